/*
 * cmd_help.c - `coracle help` and `coracle version`
 *
 * Besides the list of commands it prints what is generated from the table of configuration keys; the
 * Makefile turns that into the manual page and the completion, and a test compares the schema with
 * docs/config.schema.json.
 */
#include <stdio.h>
#include <string.h>

#include "vmm/commands.h"
#include "vmm/config.h"
#include "vmm/exit_status.h"
#include "vmm/state_tables.h"

static void print_commands(FILE *f)
{
	fputs("usage: coracle COMMAND [OPTION]...\n\nVirtual machines on KVM.\n\n", f);
	for (const struct command *c = commands; c->name; c++)
		fprintf(f, "  %-12s  %s\n", c->name, c->help);
	fputs("\ncoracle COMMAND --help says more; the manual is coracle(1).\n", f);
}

int cmd_help(int argc, char **argv, struct err *err)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!*what || !strcmp(what, "--help"))
		print_commands(stdout);
	else if (!strcmp(what, "run"))
		config_print_help(stdout);
	else if (!strcmp(what, "--man-options"))
		config_print_man(stdout);
	else if (!strcmp(what, "--schema"))
		config_print_schema(stdout);
	else if (!strcmp(what, "--state-format"))
		state_print_tables(stdout);
	else if (!strcmp(what, "--completion"))
		config_print_completion(stdout, commands);
	else {
		err_set(err, EINVAL,
			"no page %s: coracle help lists the commands, coracle COMMAND "
			"--help says more",
			what);
		return EXIT_USAGE;
	}
	return EXIT_OK;
}

int cmd_version(int argc, char **argv, struct err *err)
{
	puts("coracle " CORACLE_VERSION);
	return EXIT_OK;
}
