/*
 * starts.c - how long commands take from their start to their first output, and to their exit
 *
 *	starts RUNS COMMAND [ARG]... [-- COMMAND [ARG]...]...
 *
 * The commands take turns, RUNS times over. Each run is a line: which command (from 0), microseconds to
 * the first byte on its standard output, microseconds until it was reaped, and its exit status. In C
 * since a Python process takes longer to start another one than the one takes to run.
 */
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COMMANDS_MAX 8

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static pid_t start(char **argv, int out)
{
	extern char **environ;
	posix_spawn_file_actions_t actions;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, out, 1);
	int rc = posix_spawn(&pid, argv[0], &actions, NULL, argv, environ);

	posix_spawn_file_actions_destroy(&actions);
	if (rc) {
		fprintf(stderr, "starts: %s: %s\n", argv[0], strerror(rc));
		exit(1);
	}
	return pid;
}

static void measure(int which, char **argv)
{
	char buffer[4096];
	int ends[2], status;

	if (pipe2(ends, O_CLOEXEC))
		fail("pipe");

	double began = now();
	pid_t pid = start(argv, ends[1]);

	close(ends[1]);
	ssize_t n = read(ends[0], buffer, sizeof(buffer));
	double first = now();

	while (n > 0)
		n = read(ends[0], buffer, sizeof(buffer));
	if (waitpid(pid, &status, 0) != pid)
		fail("wait");
	printf("%d %.1f %.1f %d\n", which, first - began, now() - began,
	       WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	close(ends[0]);
}

int main(int argc, char **argv)
{
	char **commands[COMMANDS_MAX];
	int n = 0, runs = argc > 2 ? atoi(argv[1]) : 0;

	for (int i = 2; i < argc; i++) {
		if (i > 2 && strcmp(argv[i - 1], "--"))
			continue;
		if (n == COMMANDS_MAX)
			break;
		commands[n++] = argv + i;
	}
	for (int i = 2; i < argc; i++) {
		if (!strcmp(argv[i], "--"))
			argv[i] = NULL;
	}
	if (runs < 1) {
		fprintf(stderr, "usage: starts RUNS COMMAND [ARG]... [-- COMMAND [ARG]...]...\n");
		return 2;
	}
	while (runs--) {
		for (int i = 0; i < n; i++)
			measure(i, commands[i]);
	}
	return 0;
}
