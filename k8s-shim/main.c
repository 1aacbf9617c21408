/*
 * main.c - containerd-shim-coracle-v2: pods that are virtual machines
 *
 * containerd starts it four ways. `start` makes the pod's daemon, or finds it for a second container of
 * the same pod, and prints its address. The daemon (shim_serve) has the pod until Shutdown. `delete` clears
 * away what is left of a container; it is run after each one's end, and alone when the daemon has been
 * killed. `-info` is about no pod: what this runtime can do.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "k8s-shim/shim.h"

static int usage(void)
{
	fputs("usage: containerd-shim-coracle-v2 -namespace NS -address SOCKET -id ID [-bundle "
	      "DIR] "
	      "start|delete\n"
	      "       containerd-shim-coracle-v2 -info <OPTIONS\n"
	      "       containerd-shim-coracle-v2 -v\n"
	      "containerd starts this program; see the user guide on how to tell it to.\n",
	      stderr);
	return 2;
}

/* Go's flag package takes -name value, -name=value and both with two dashes. */
static int parse(struct shim_args *a, int argc, char **argv, const char **command)
{
	const char *ignored;
	const struct {
		const char *name;
		const char **to;
	} options[] = {
		{ "namespace", &a->ns },  { "address", &a->address },     { "id", &a->id },
		{ "bundle", &a->bundle }, { "publish-binary", &ignored }, { "socket", &ignored }
	};

	*command = NULL;
	for (int i = 1; i < argc; i++) {
		const char *name = argv[i], *equals = strchr(name, '=');
		size_t n = equals ? (size_t)(equals - name) : strlen(name);
		const char **to = NULL;

		if (*name != '-') {
			*command = name;
			continue;
		}
		while (*name == '-')
			name++, n--;
		if (n == 5 && !strncmp(name, "debug", n)) {
			a->debug = true;
			continue;
		}
		for (size_t k = 0; k < sizeof(options) / sizeof(options[0]); k++)
			if (strlen(options[k].name) == n && !strncmp(options[k].name, name, n))
				to = options[k].to;
		if (!to || (!equals && i + 1 == argc))
			return -1;
		*to = equals ? equals + 1 : argv[++i];
	}
	return *command ? 0 : -1;
}

/* The only argument is @name, with one dash or two. */
static bool only(int argc, char **argv, const char *name)
{
	return argc == 2 && *argv[1] == '-' && !strcmp(argv[1] + (argv[1][1] == '-'), name);
}

int main(int argc, char **argv)
{
	struct shim_args a = { "", "", "", "", false };
	struct err err = { 0 };
	const char *command;
	int status = 2;

	if (only(argc, argv, "-v") || only(argc, argv, "-version")) {
		printf("containerd-shim-coracle-v2 " CORACLE_VERSION "\n");
		return 0;
	}
	if (only(argc, argv, "-info"))
		command = "info";
	else if (parse(&a, argc, argv, &command) || !*a.id || !*a.ns)
		return usage();
	if (!strcmp(command, "info"))
		status = shim_info(STDIN_FILENO, STDOUT_FILENO, &err);
	else if (!strcmp(command, "start"))
		status = shim_start(&a, &err);
	else if (!strcmp(command, "delete"))
		status = shim_delete(&a, &err);
	else
		return usage();
	if (err.code)
		fprintf(stderr, "coracle: %s\n", err.msg);
	return status;
}
