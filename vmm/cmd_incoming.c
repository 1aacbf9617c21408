/*
 * cmd_incoming.c - `coracle run --incoming`: a machine comes by migration
 *
 * The order of `coracle run`, with the source in between: listen, wait, read what the machine is, put
 * what is this host's in place of what was that host's, make it, give up what is no longer needed,
 * receive. Whatever does not fit is told to the source, whose user asked for it, and to ours.
 *
 * Waiting is the main loop's, as all later life: the control socket answers, a signal ends it, and
 * whoever knocks is looked at beside it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "vmm/commands.h"
#include "vmm/control.h"
#include "vmm/exit_status.h"
#include "vmm/machine_desc.h"
#include "vmm/migrate.h"
#include "vmm/runner.h"

struct arriving {
	const char *from;
	bool help;
	struct peer_address address;
	struct machine_overrides given;
	struct config early; /* what this process needs before it knows the machine */
	struct runner run;
	struct door *door;
	bool quit; /* a client of the control socket asked for it while nothing had arrived */
	struct door_guest guest;
	struct incoming *in;
	struct machine_desc desc;
	bool has_desc, has_runner;
};

static int parse(struct arriving *a, int argc, char **argv, struct err *err)
{
	for (int i = 1; i < argc;) {
		const char *arg = argv[i];
		int rc = machine_overrides_take(&a->given, argc, argv, &i, err);

		if (rc < 0)
			return rc;
		if (rc)
			continue;
		i++;
		if (!strcmp(arg, "--help") || !strcmp(arg, "-h"))
			a->help = true;
		else if (!strncmp(arg, "--incoming=", 11))
			a->from = arg + 11;
		else if (!strcmp(arg, "--incoming") && i < argc)
			a->from = argv[i++];
		else if (!strcmp(arg, "--incoming"))
			return err_set(err, EINVAL,
				       "--incoming needs a value: tcp:HOST:PORT|unix:PATH");
		else
			return err_set(err, EINVAL, "%.64s does not go with --incoming", arg);
	}
	return a->help ? 0 : peer_parse(&a->address, a->from, err);
}

/* Name, control socket, sandbox and the like, while the machine is not known yet. */
static int configure(struct arriving *a, struct err *err)
{
	for (unsigned i = 0; i < a->given.n; i++) {
		const struct machine_override *o = &a->given.v[i];
		int rc = 0;

		if (strcmp(o->key, "disk") && strcmp(o->key, "net"))
			rc = config_set(&a->early, o->key, o->value, err);
		if (rc)
			return rc;
	}
	return 0;
}

/* ---- waiting ---- */

static void on_guest(void *opaque)
{
	struct arriving *a = opaque;

	loop_stop(a->run.loop);
}

static void on_quit(void *opaque)
{
	struct arriving *a = opaque;

	a->quit = true;
	loop_stop(a->run.loop);
}

static int wait_for_source(struct arriving *a, struct err *err)
{
	const struct control_waiting w = { a->early.id, a->from, on_quit, a };
	int rc;

	a->door = door_new(&a->address, a->run.loop, on_guest, a, err);
	if (!a->door)
		return err->code;
	log_info("waiting for a machine at %s", a->from);
	control_wait(a->run.control, &w);
	rc = loop_run(a->run.loop);
	control_wait(a->run.control, NULL);
	if (rc)
		return err_set_sys(err, rc, "the main loop failed");
	if (a->run.stopped_by)
		return err_set(err, EINTR, "ended by signal %d while it waited for a machine",
			       a->run.stopped_by);
	if (a->quit)
		return err_set(err, EINTR, "ended while it waited for a machine");
	door_take(a->door, &a->guest);
	door_free(a->door);
	a->door = NULL;
	a->in = incoming_new(&a->guest, err);
	return a->in ? 0 : err->code;
}

static int understand(struct arriving *a, struct err *err)
{
	const char *machine = a->guest.header.machine;
	int rc = machine_desc_parse(&a->desc, machine, strlen(machine), err);

	if (rc)
		return rc;
	a->has_desc = true;
	rc = machine_desc_apply(&a->desc, &a->given, err);
	if (rc)
		return rc;
	/* Its disks are the source's until the end: opened, not locked. */
	a->desc.config.incoming = strdup(a->from);
	return a->desc.config.incoming ? 0 : err_set(err, ENOMEM, "out of memory");
}

/* ---- the machine ---- */

static int make(struct arriving *a, struct err *err)
{
	struct runner *r = &a->run;
	int rc;

	r->config = &a->desc.config;
	r->vm = vm_new_from(r->config, &a->guest.header, -1, r->loop, runner_on_event(r),
			    runner_opaque(r), err);
	if (!r->vm)
		return err->code;
	rc = machine_desc_check(&a->desc, r->vm, err);
	if (!rc)
		rc = vm_prepare(r->vm, err);
	return rc ? rc : runner_enter(r, err);
}

static int receive(struct arriving *a, struct err *err)
{
	int rc = runner_open(&a->run, &a->early, err);

	a->has_runner = true;
	if (!rc)
		rc = wait_for_source(a, err);
	if (rc)
		return rc;
	rc = understand(a, err);
	if (!rc)
		rc = make(a, err);
	if (rc) {
		incoming_refuse(a->in, err->msg);
		return rc;
	}
	log_info("receiving %u vCPU%s, %llu MiB", a->desc.config.cpus,
		 a->desc.config.cpus > 1 ? "s" : "",
		 (unsigned long long)a->desc.config.memory >> 20);
	rc = incoming_start(a->in, a->run.vm, err);
	if (!rc)
		a->in = NULL; /* the job's now */
	return rc;
}

static int run(struct arriving *a, struct err *err)
{
	int status = EXIT_HOST;

	log_set_level(a->early.log_level);
	if (!receive(a, err))
		status = runner_run(&a->run, err);
	else if (a->run.stopped_by)
		status = EXIT_SIGNAL + a->run.stopped_by;
	else if (a->quit)
		status = EXIT_OK;
	incoming_free(a->in);
	door_free(a->door);
	if (a->has_runner)
		runner_close(&a->run);
	if (a->has_desc)
		machine_desc_fini(&a->desc);
	vm_header_fini(&a->guest.header);
	return status;
}

int run_incoming(int argc, char **argv, struct err *err)
{
	struct arriving *a = calloc(1, sizeof(*a));
	int status = EXIT_USAGE;

	if (!a) {
		err_set(err, ENOMEM, "out of memory");
		return EXIT_HOST;
	}
	config_init(&a->early);
	if (!parse(a, argc, argv, err) && !configure(a, err)) {
		if (a->help)
			config_print_help(stdout);
		status = a->help ? EXIT_OK : run(a, err);
	}
	config_fini(&a->early);
	free(a);
	return status;
}
