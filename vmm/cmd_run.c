/*
 * cmd_run.c - `coracle run`: a configuration becomes a machine, the machine becomes an exit status
 *
 * Order: read the configuration, listen on the control socket, open everything it names, give up what
 * is no longer needed (sandbox.c), power on, run the main loop until the machine stops. Whatever fails
 * before the loop undoes what came before it, so a refused start leaves nothing behind.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "vmm/commands.h"
#include "vmm/exit_status.h"
#include "vmm/runner.h"

static int open_all(struct runner *r, const struct config *c, struct err *err)
{
	int rc = runner_open(r, c, err);

	if (rc)
		return rc;
	r->vm = vm_new(c, r->loop, runner_on_event(r), runner_opaque(r), err);
	if (!r->vm)
		return err->code;
	log_info("%s: %s, %u vCPU%s, %llu MiB", c->kernel, boot_describe(r->vm->boot), c->cpus,
		 c->cpus > 1 ? "s" : "", (unsigned long long)c->memory >> 20);
	return runner_enter(r, err);
}

/* An exit status. */
static int run_machine(const struct config *c, struct err *err)
{
	struct runner r;
	int rc = open_all(&r, c, err);

	if (!rc)
		rc = vm_start(r.vm, err);

	int status = rc ? EXIT_HOST : runner_run(&r, err);

	runner_close(&r);
	return status;
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

static int run_config(const struct config *c, struct err *err)
{
	if (c->help) {
		config_print_help(stdout);
		return EXIT_OK;
	}
	if (c->check)
		return print_config(c, err);
	log_set_level(c->log_level);
	return run_machine(c, err);
}

static bool is_incoming(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "--incoming") || !strncmp(argv[i], "--incoming=", 11))
			return true;
	return false;
}

int cmd_run(int argc, char **argv, struct err *err)
{
	struct config *c = calloc(1, sizeof(*c));
	int status = EXIT_USAGE;

	if (!c) {
		err_set(err, ENOMEM, "out of memory");
		return EXIT_HOST;
	}
	runner_prepare();
	config_init(c);
	if (is_incoming(argc, argv))
		status = run_incoming(argc, argv, err);
	else if (!config_from_args(c, argc, argv, err))
		status = run_config(c, err);
	config_fini(c);
	free(c);
	return status;
}
