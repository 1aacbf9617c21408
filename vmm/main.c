/*
 * main.c - find the subcommand, say what went wrong, exit
 *
 * The only place that exits. Commands report by return value and struct err.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "vmm/commands.h"
#include "vmm/exit_status.h"

const struct command commands[] = {
	{ "run", cmd_run, "start a virtual machine and stay with it until it ends", NULL },
	{ "restore", cmd_restore, "go on with a machine from a snapshot",
	  "--disk --net --serial --id --control --paused --no-reboot --help" },
	{ "inspect", cmd_inspect, "show what is in a snapshot", "--json --help" },
	{ "check-host", cmd_check_host, "find out what this host offers to virtual machines",
	  "--json --help" },
	{ "ctl", cmd_ctl, "list running machines, ask one, pause, reset or stop it",
	  "list info stats pause resume power-button reset quit snapshot migrate cancel events "
	  "--json --timeout --help" },
	{ "help", cmd_help, "list the commands, or one's options",
	  "run --man-options --schema --completion --state-format" },
	{ "version", cmd_version, "print the version", NULL },
	{ NULL, NULL, NULL, NULL },
};

static const struct command *find_command(const char *name)
{
	if (!strcmp(name, "--help") || !strcmp(name, "-h"))
		name = "help";
	else if (!strcmp(name, "--version") || !strcmp(name, "-V"))
		name = "version";
	for (const struct command *c = commands; c->name; c++)
		if (!strcmp(c->name, name))
			return c;
	return NULL;
}

/* Long output is written on the way, and an error then is only remembered: fflush() is happy. */
static int flush_output(int status)
{
	int failed = ferror(stdout) ? EIO : 0;

	if (fflush(stdout))
		failed = errno;
	if (!failed || status != EXIT_OK)
		return status;
	fprintf(stderr, "coracle: standard output: %s\n", strerror(failed));
	return EXIT_HOST;
}

int main(int argc, char **argv)
{
	const struct command *c;
	struct err err = { 0 };
	int status;

	if (fd_fill_standard())
		return EXIT_HOST; /* and nowhere to say it */
	if (argc < 2) {
		cmd_help(1, argv, &err);
		return EXIT_USAGE;
	}
	c = find_command(argv[1]);
	if (!c) {
		fprintf(stderr, "coracle: no command %.64s: coracle help lists them\n", argv[1]);
		return EXIT_USAGE;
	}
	status = c->fn(argc - 1, argv + 1, &err);
	if (err.code)
		fprintf(stderr, "coracle %s: %s\n", c->name, err.msg);
	return flush_output(status);
}
