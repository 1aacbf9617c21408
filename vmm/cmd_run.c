/*
 * cmd_run.c - `coracle run`: a configuration becomes a machine, the machine becomes an exit status
 *
 * Order: read the configuration, listen on the control socket, open everything it names, give up what
 * is no longer needed (sandbox.c), power on, run the main loop until the machine stops. Whatever fails
 * before the loop undoes what came before it, so a refused start leaves nothing behind.
 *
 * Signals arrive as file descriptor events on the main loop and are blocked in every thread before the
 * first one is made. The first SIGTERM, SIGINT or SIGHUP presses the power button, as a service manager
 * or a person at Ctrl-C expects a machine to shut down; a second one ends it at once.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "vmm/commands.h"
#include "vmm/config.h"
#include "vmm/control.h"
#include "vmm/exit_status.h"
#include "vmm/sandbox.h"
#include "vmm/vm.h"

struct run {
	struct config config;
	struct loop *loop;
	struct control *control;
	struct vm *vm;
	int signal_fd;
	struct loop_watch signal_watch;
	bool button_pressed;
};

static void on_signal(struct loop_watch *w, uint32_t events)
{
	struct run *r = (struct run *)((char *)w - offsetof(struct run, signal_watch));
	struct signalfd_siginfo info;

	if (read(r->signal_fd, &info, sizeof(info)) != sizeof(info))
		return;
	int sig = (int)info.ssi_signo;

	if (r->button_pressed || r->vm->state != VM_RUNNING) {
		log_info("signal %d: stopping at once", sig);
		vm_stop(r->vm, EXIT_SIGNAL + sig, "signal");
		return;
	}
	r->button_pressed = true;
	log_info("signal %d: power button pressed; once more to stop at once", sig);
	vm_power_button(r->vm);
}

static int watch_signals(struct run *r, struct err *err)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN); /* a reader that goes away is an error of its write, no more */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	int rc = pthread_sigmask(SIG_BLOCK, &set, NULL);

	if (rc)
		return err_set_sys(err, rc, "cannot block signals");
	r->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (r->signal_fd < 0)
		return err_set_sys(err, errno, "cannot watch signals");
	rc = loop_add(r->loop, &r->signal_watch, r->signal_fd, EPOLLIN, on_signal);
	return rc ? err_set_sys(err, rc, "cannot watch signals") : 0;
}

static int open_all(struct run *r, struct err *err)
{
	const struct config *c = &r->config;
	int rc;

	r->loop = loop_new(err);
	if (!r->loop)
		return err->code;
	rc = watch_signals(r, err);
	if (rc)
		return rc;
	if (c->control || c->id) {
		r->control = control_new(c->control, c->id, r->loop, err);
		if (!r->control)
			return err->code;
	}
	r->vm = vm_new(c, r->loop, r->control ? control_event : NULL, r->control, err);
	if (!r->vm)
		return err->code;
	log_info("%s: %s, %u vCPU%s, %llu MiB", c->kernel, boot_describe(r->vm->boot), c->cpus,
		 c->cpus > 1 ? "s" : "", (unsigned long long)c->memory >> 20);
	return c->sandbox ? sandbox_enter(err) : 0;
}

/* An exit status. */
static int run_machine(struct run *r, struct err *err)
{
	int rc = open_all(r, err);

	if (!rc)
		rc = vm_start(r->vm, err);
	if (rc)
		return EXIT_HOST;
	if (r->control)
		control_serve(r->control, r->vm);
	rc = loop_run(r->loop);
	if (rc) {
		err_set_sys(err, rc, "the main loop failed");
		return EXIT_HOST;
	}
	log_debug("stopped: %s", r->vm->stop_reason);
	return r->vm->status;
}

static void run_fini(struct run *r)
{
	if (r->control)
		control_serve(r->control, NULL);
	control_free(r->control);
	vm_free(r->vm);
	if (r->loop) {
		loop_remove(&r->signal_watch);
		loop_free(r->loop);
	}
	fd_close(&r->signal_fd);
}

static int print_config(const struct config *c, struct err *err)
{
	cleanup_free char *text = config_to_json(c);

	if (!text) {
		err_set(err, ENOMEM, "out of memory");
		return EXIT_HOST;
	}
	puts(text);
	return EXIT_OK;
}

static int run_config(struct run *r, struct err *err)
{
	if (r->config.help) {
		config_print_help(stdout);
		return EXIT_OK;
	}
	if (r->config.check)
		return print_config(&r->config, err);
	log_set_level(r->config.log_level);

	int status = run_machine(r, err);

	run_fini(r);
	return status;
}

int cmd_run(int argc, char **argv, struct err *err)
{
	struct run *r = calloc(1, sizeof(*r));
	int status = EXIT_USAGE;

	if (!r) {
		err_set(err, ENOMEM, "out of memory");
		return EXIT_HOST;
	}
	sandbox_prepare();
	r->signal_fd = r->signal_watch.fd = -1;
	config_init(&r->config);
	if (!config_from_args(&r->config, argc, argv, err))
		status = run_config(r, err);
	config_fini(&r->config);
	free(r);
	return status;
}
