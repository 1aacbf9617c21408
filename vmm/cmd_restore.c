/*
 * cmd_restore.c - `coracle restore DIR`: a snapshot goes on as a machine
 *
 * The same process as for `coracle run`, in the same order, but that the machine comes from the
 * directory. Guest RAM is mapped, not read, so the time does not depend on its size; what the guest
 * writes stays in this process. The directory must stay as it is while the machine lives.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "vmm/commands.h"
#include "vmm/exit_status.h"
#include "vmm/machine_desc.h"
#include "vmm/runner.h"
#include "vmm/snapshot_dir.h"

struct restore {
	const char *dir;
	bool help;
	struct machine_overrides given;
	struct machine_desc desc;
	struct snapshot_dir snapshot;
};

static void print_help(void)
{
	puts("usage: coracle restore DIR [OPTION]...\n"
	     "\n"
	     "Go on with the machine that `coracle ctl NAME snapshot DIR` left in DIR. What the "
	     "guest\n"
	     "sees is as it was; what only the host sees can be given anew:\n");
	machine_overrides_help(stdout);
	puts("\n"
	     "It has no name and no control socket unless they are given here: several machines "
	     "can be\n"
	     "made of one directory, each with disks of its own. DIR has to stay while they run.");
}

static int parse(struct restore *r, int argc, char **argv, struct err *err)
{
	for (int i = 1; i < argc;) {
		const char *a = argv[i];
		int rc = machine_overrides_take(&r->given, argc, argv, &i, err);

		if (rc < 0)
			return rc;
		if (rc)
			continue;
		i++;
		if (!strcmp(a, "--help") || !strcmp(a, "-h"))
			r->help = true;
		else if (a[0] == '-' && a[1])
			return err_set(err, EINVAL, "no option %.64s: coracle restore --help", a);
		else if (r->dir)
			return err_set(err, EINVAL, "%.64s is one directory too many", a);
		else
			r->dir = a;
	}
	/* Of a migration's target it is one: there RAM is not a file. */
	for (unsigned i = 0; i < r->given.n; i++)
		if (!strcmp(r->given.v[i].key, "hugepages"))
			return err_set(err, EINVAL,
				       "--hugepages: RAM is mapped from the snapshot's file");
	if (!r->help && !r->dir)
		return err_set(err, EINVAL, "which snapshot? coracle restore DIR");
	return 0;
}

static int start(struct restore *r, struct runner *run, struct err *err)
{
	const struct config *c = &r->desc.config;
	int rc = runner_open(run, c, err);

	if (rc)
		return rc;
	run->vm = vm_new_from(c, &r->snapshot.header, r->snapshot.memory, run->loop,
			      runner_on_event(run), runner_opaque(run), err);
	if (!run->vm)
		return err_prefix(err, "%s", r->dir);
	rc = machine_desc_check(&r->desc, run->vm, err);
	if (!rc)
		rc = runner_enter(run, err);
	if (!rc)
		rc = vm_start_loaded(run->vm, r->snapshot.stream, VM_CLOCK_STOOD, c->paused, err);
	if (rc)
		return rc;
	log_info("%s: %u vCPU%s, %llu MiB go on", r->dir, c->cpus, c->cpus > 1 ? "s" : "",
		 (unsigned long long)c->memory >> 20);
	return 0;
}

static int restore_machine(struct restore *r, struct err *err)
{
	struct runner run;
	int status = start(r, &run, err) ? EXIT_HOST : EXIT_OK;

	snapshot_dir_close(&r->snapshot);
	if (status == EXIT_OK)
		status = runner_run(&run, err);
	runner_close(&run);
	return status;
}

static int restore(struct restore *r, struct err *err)
{
	int status = EXIT_HOST;

	if (snapshot_dir_open(&r->snapshot, r->dir, err))
		return EXIT_HOST;
	int rc = machine_desc_parse(&r->desc, r->snapshot.header.machine,
				    strlen(r->snapshot.header.machine), err);

	if (rc) {
		err_prefix(err, "%s", r->dir);
		snapshot_dir_close(&r->snapshot);
		return EXIT_HOST;
	}
	if (machine_desc_apply(&r->desc, &r->given, err)) {
		snapshot_dir_close(&r->snapshot);
		status = EXIT_USAGE;
	} else {
		log_set_level(r->desc.config.log_level);
		status = restore_machine(r, err);
	}
	machine_desc_fini(&r->desc);
	return status;
}

int cmd_restore(int argc, char **argv, struct err *err)
{
	struct restore *r = calloc(1, sizeof(*r));
	int status = EXIT_USAGE;

	if (!r) {
		err_set(err, ENOMEM, "out of memory");
		return EXIT_HOST;
	}
	runner_prepare();
	if (!parse(r, argc, argv, err)) {
		if (r->help)
			print_help();
		status = r->help ? EXIT_OK : restore(r, err);
	}
	free(r);
	return status;
}
