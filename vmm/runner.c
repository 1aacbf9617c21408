/*
 * runner.c - the process around a machine
 *
 * The first SIGTERM, SIGINT or SIGHUP presses the power button, as a service manager or a person at Ctrl-C
 * expects a machine to shut down; a second one ends it at once, and the process at any rate (last_signal.c).
 */
#include <malloc.h>
#include <signal.h>
#include <string.h>

#include "base/fd.h"
#include "base/guest_memory.h"
#include "base/log.h"
#include "vmm/control.h"
#include "vmm/exit_status.h"
#include "vmm/job.h"
#include "vmm/last_signal.h"
#include "vmm/runner.h"
#include "vmm/sandbox.h"

static void on_signal(void *opaque, int sig)
{
	struct runner *r = opaque;

	if (!r->vm) {
		r->stopped_by = sig;
		loop_stop(r->loop);
		return;
	}
	if (r->button_pressed || r->vm->state != VM_RUNNING) {
		log_info("signal %d: stopping at once", sig);
		vm_stop(r->vm, EXIT_SIGNAL + sig, "signal");
		return;
	}
	r->button_pressed = true;
	log_info("signal %d: power button pressed; once more to stop at once", sig);
	vm_power_button(r->vm);
}

static int watch_signals(struct runner *r, struct err *err)
{
	/* A reader that goes away, or a file at its limit, is an error of the write and no more. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	r->signals = last_signal_new(r->loop, on_signal, r, err);
	return r->signals ? 0 : err->code;
}

void runner_prepare(void)
{
	sandbox_prepare();
	gmem_prepare();
}

int runner_open(struct runner *r, const struct config *c, struct err *err)
{
	int rc;

	*r = (struct runner){ .config = c };
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
	return 0;
}

vm_event_fn runner_on_event(const struct runner *r)
{
	return r->control ? control_event : NULL;
}

void *runner_opaque(const struct runner *r)
{
	return r->control;
}

/* NULL: @spec is no socket */
static const char *socket_of(const char *spec)
{
	return spec && !strncmp(spec, "unix:", 5) ? spec + 5 : NULL;
}

int runner_enter(struct runner *r, struct err *err)
{
	const struct config *c = r->config;
	const char *sockets[] = { socket_of(c->serial), socket_of(c->incoming), NULL, NULL };
	int rc = 0;

	if (r->control)
		control_paths(r->control, &sockets[2], &sockets[3]);
	last_signal_removes(r->signals, sockets, sizeof(sockets) / sizeof(sockets[0]));
	if (c->sandbox)
		rc = sandbox_drop(sockets, sizeof(sockets) / sizeof(sockets[0]), err);
	if (!rc)
		rc = vm_own_vhosts(r->vm, err);
	return rc || !c->sandbox ? rc : sandbox_close(err);
}

int runner_run(struct runner *r, struct err *err)
{
	if (r->control)
		control_serve(r->control, r->vm);
	/* What reading the configuration and building the machine took: 64 KiB. The vCPUs run already. */
	malloc_trim(0);
	int rc = loop_run(r->loop);

	/* A job that ends the machine is told of while there is somebody to tell. */
	job_end(r->vm->job, "the machine ends");
	if (rc) {
		err_set_sys(err, rc, "the main loop failed");
		return EXIT_HOST;
	}
	log_debug("stopped: %s", r->vm->stop_reason);
	return r->vm->status;
}

void runner_close(struct runner *r)
{
	/* A job that ended the machine still has its last word for the clients. */
	if (r->vm)
		job_end(r->vm->job, "the machine has ended");
	if (r->control)
		control_serve(r->control, NULL);
	control_free(r->control);
	vm_free(r->vm);
	last_signal_free(r->signals);
	loop_free(r->loop);
}
