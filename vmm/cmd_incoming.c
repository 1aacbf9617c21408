/*
 * cmd_incoming.c - `coracle run --incoming`: a machine comes by migration
 *
 * The order of `coracle run`, with the source in between: listen, take it in, read what the machine is,
 * put what is this host's in place of what was that host's, make it, give up what is no longer needed,
 * receive. Whatever does not fit is told to the source, whose user asked for it, and to ours.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "vmm/commands.h"
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
	struct incoming *in;
	struct vm_header header;
	struct machine_desc desc;
	bool has_header, has_desc, has_runner;
	int stopped_by; /* a signal while nothing had arrived */
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

static int wait_for_source(struct arriving *a, struct err *err)
{
	struct signalfd_siginfo info;

	log_info("waiting for a machine at %s", a->from);
	int rc = incoming_accept(a->in, a->run.signal_fd, err);

	if (rc == -EINTR && read(a->run.signal_fd, &info, sizeof(info)) == sizeof(info))
		a->stopped_by = (int)info.ssi_signo;
	return rc;
}

static int understand(struct arriving *a, struct err *err)
{
	int rc = vm_header_load(&a->header, incoming_header(a->in), err);

	if (rc)
		return rc;
	a->has_header = true;
	incoming_understood(a->in);
	rc = machine_desc_parse(&a->desc, a->header.machine, strlen(a->header.machine), err);
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

static int make(struct arriving *a, struct err *err)
{
	struct runner *r = &a->run;
	int rc;

	r->config = &a->desc.config;
	r->vm = vm_new_from(r->config, &a->header, -1, r->loop, runner_on_event(r),
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
	a->in = incoming_new(&a->address, err);
	int rc = a->in ? runner_open(&a->run, &a->early, err) : err->code;

	a->has_runner = a->in;
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
	else if (a->stopped_by)
		status = EXIT_SIGNAL + a->stopped_by;
	incoming_free(a->in);
	if (a->has_runner)
		runner_close(&a->run);
	if (a->has_desc)
		machine_desc_fini(&a->desc);
	if (a->has_header)
		vm_header_fini(&a->header);
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
