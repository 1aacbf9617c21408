/*
 * commands.h - the subcommands of coracle
 *
 * @argv[0] is the subcommand's name. Each returns an exit status of vmm/exit_status.h and exits
 * never itself; where it sets @err, main.c prints "coracle NAME: message" to stderr.
 */
#ifndef VMM_COMMANDS_H
#define VMM_COMMANDS_H

#include "base/err.h"

struct command {
	const char *name;
	int (*fn)(int argc, char **argv, struct err *err);
	const char *help;  /* one line, no full stop */
	const char *words; /* what bash completes as its arguments, or NULL; "--a --b c" */
};

/* The array in main.c, ended by a NULL name: help and completion list it. */
extern const struct command commands[];

int cmd_run(int argc, char **argv, struct err *err);
int run_incoming(int argc, char **argv, struct err *err); /* run, with --incoming */
int cmd_restore(int argc, char **argv, struct err *err);
int cmd_inspect(int argc, char **argv, struct err *err);
int cmd_ctl(int argc, char **argv, struct err *err);
int cmd_check_host(int argc, char **argv, struct err *err);
int cmd_help(int argc, char **argv, struct err *err);
int cmd_version(int argc, char **argv, struct err *err);

#endif
