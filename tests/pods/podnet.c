/*
 * podnet.c - the pod's network without a pod: for tests
 *
 * usage: podnet NETNS [--hostname NAME] [--dns ADDRESS] [--search DOMAIN] [--queues N] [--orphan]
 *                     [--config FILE] -- COMMAND...
 *        podnet --sweep NETNS
 *
 * Opens the NICs of a namespace, answers on them, and runs a command, in whose arguments {fd0},
 * {mac0}, {mtu0}, {name0} and so on stand for what the NICs have; {fds0} is for all descriptors
 * of one, with commas. When the command has ended the NICs are closed, and its exit status is
 * this one's. If this is killed so is the command, but with --orphan.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/net.h"

#define MAX 16

struct opts {
	struct pod_net_options net;
	const char *dns[MAX + 1], *search[MAX + 1], *config;
	bool orphan;
	char **command;
};

struct waiter {
	struct loop_watch watch;
	struct loop *loop;
	pid_t pid;
};

static void die(const char *what, const char *why)
{
	fprintf(stderr, "podnet: %s: %s\n", what, why);
	exit(125);
}

static void parse(int argc, char **argv, struct opts *o)
{
	unsigned ndns = 0, nsearch = 0;
	int i = 2;

	*o = (struct opts){ .net = { .netns = argv[1] } };
	for (; i < argc && strcmp(argv[i], "--"); i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";

		if (!strcmp(argv[i], "--orphan")) {
			o->orphan = true;
			continue;
		}
		if (!strcmp(argv[i], "--hostname"))
			o->net.hostname = value;
		else if (!strcmp(argv[i], "--dns") && ndns < MAX)
			o->dns[ndns++] = value;
		else if (!strcmp(argv[i], "--search") && nsearch < MAX)
			o->search[nsearch++] = value;
		else if (!strcmp(argv[i], "--queues"))
			o->net.queues = (unsigned)atoi(value);
		else if (!strcmp(argv[i], "--config"))
			o->config = value;
		else
			die(argv[i], "no such option");
		i++;
	}
	if (i + 1 >= argc)
		die("usage", "podnet NETNS [options] -- COMMAND...");
	o->net.dns = o->dns;
	o->net.search = o->search;
	o->command = argv + i + 1;
}

static int inherited(int fd)
{
	int copy = dup(fd);

	if (copy < 0)
		die("dup", strerror(errno));
	return copy;
}

static void put_value(FILE *f, const char *key, size_t len, const struct pod_nic *nic)
{
	const uint8_t *m = nic->mac;

	if (len == 2 && !strncmp(key, "fd", 2))
		fprintf(f, "%d", inherited(nic->taps[0]));
	else if (len == 3 && !strncmp(key, "fds", 3))
		for (unsigned i = 0; i < nic->ntaps; i++)
			fprintf(f, "%s%d", i ? ":" : "", inherited(nic->taps[i]));
	else if (len == 3 && !strncmp(key, "mac", 3))
		fprintf(f, "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
	else if (len == 3 && !strncmp(key, "mtu", 3))
		fprintf(f, "%u", nic->mtu);
	else if (len == 4 && !strncmp(key, "name", 4))
		fprintf(f, "%s", nic->name);
	else
		die(key, "no such value");
}

/* In the child: {fd0} and the like replaced. */
static char *expand(const char *arg, const struct pod_net *n)
{
	char *out = NULL;
	size_t len;
	FILE *f = open_memstream(&out, &len);

	for (; *arg; arg++) {
		size_t key = strspn(arg + 1, "abcdefghijklmnopqrstuvwxyz");
		char *end = (char *)arg;
		unsigned long i = 0;

		if (*arg == '{' && key)
			i = strtoul(arg + 1 + key, &end, 10);
		if (*arg != '{' || !key || *end != '}' || end == arg + 1 + key) {
			fputc(*arg, f);
			continue;
		}
		if (i >= pod_net_count(n))
			die(arg, "the pod has no such NIC");
		put_value(f, arg + 1, key, pod_net_nic(n, (unsigned)i));
		arg = end;
	}
	fclose(f);
	return out;
}

static void run(const struct opts *o, const struct pod_net *n)
{
	if (!o->orphan)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (char **a = o->command; *a; a++)
		*a = expand(*a, n);
	execvp(o->command[0], o->command);
	die(o->command[0], strerror(errno));
}

static void on_exit_of_child(struct loop_watch *w, uint32_t events)
{
	loop_stop(((struct waiter *)w)->loop);
}

static void write_config(const char *path, const struct pod_net *n)
{
	char *text = pod_net_config(n);
	FILE *f = fopen(path, "w");

	if (!text || !f || fputs(text, f) < 0 || fclose(f))
		die(path, strerror(errno));
	free(text);
}

int main(int argc, char **argv)
{
	struct err err = { 0 };
	struct opts o;
	struct pod_net *n;
	struct waiter w = { .loop = loop_new(&err) };
	int status, fd;

	if (argc == 3 && !strcmp(argv[1], "--sweep")) {
		pod_net_sweep(argv[2]);
		loop_free(w.loop);
		return 0;
	}
	if (argc < 4)
		die("usage", "podnet NETNS [options] -- COMMAND...");
	parse(argc, argv, &o);
	if (!w.loop || pod_net_open(&o.net, w.loop, &n, &err))
		die("open", err.msg);
	if (o.config)
		write_config(o.config, n);
	w.pid = fork();
	if (!w.pid)
		run(&o, n);
	fd = (int)syscall(SYS_pidfd_open, w.pid, 0);
	if (fd < 0 || loop_add(w.loop, &w.watch, fd, EPOLLIN, on_exit_of_child))
		die("wait", strerror(errno));
	loop_run(w.loop);
	loop_remove(&w.watch);
	fd_close(&fd);
	pod_net_close(n);
	loop_free(w.loop);
	waitpid(w.pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
