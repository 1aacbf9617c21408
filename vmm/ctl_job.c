/*
 * ctl_job.c - follow a long operation from outside
 *
 * The machine sends events; the last one says how it ended. A signal is watched beside the socket, so
 * that Ctrl-C can clean up; it is read from a descriptor, since a handler would need a global.
 */
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "vmm/ctl_verbs.h"
#include "vmm/json_util.h"

int ctl_catch_signals(struct err *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int fd = signalfd(-1, &set, SFD_CLOEXEC);

	return fd < 0 ? err_set_sys(err, errno, "cannot watch signals") : fd;
}

/* A signal, or something to read. -EINTR, 0. */
static int wait_for_either(const struct ctl_call *c, int signal_fd, struct err *err)
{
	struct control_client *k = c->client;
	struct pollfd p[2] = { { .fd = k->fd, .events = POLLIN },
			       { .fd = signal_fd, .events = POLLIN } };

	if (k->len > k->at && memchr(k->buf + k->at, '\n', k->len - k->at))
		return 0;
	while (poll(p, 2, -1) < 0)
		if (errno != EINTR)
			return err_set_sys(err, errno, "cannot wait for the machine");
	return p[1].revents ? err_set(err, EINTR, "interrupted") : 0;
}

int ctl_start_job(const struct ctl_call *c, const char *method, struct json_object *params,
		  const int *fds, unsigned nfds, uint64_t *id, struct err *err)
{
	cleanup_json json_object *mine = params, *result = NULL;
	int rc = control_client_call_fds(c->client, method, mine, fds, nfds, c->timeout_ms, &result,
					 err);

	if (rc)
		return rc;
	*id = json_get_u64(result, "id");
	return *id ? 0 : err_set(err, EPROTO, "the machine does not say which job it began");
}

static int failed(struct json_object *params, struct err *err)
{
	struct json_object *m = NULL;

	json_object_object_get_ex(params, "message", &m);
	return err_set(err, EREMOTEIO, "%s", m ? json_object_get_string(m) : "it failed");
}

static void show(const struct ctl_call *c, const char *line, struct json_object *params,
		 void (*draw)(FILE *f, struct json_object *params))
{
	if (c->json) {
		puts(line);
		fflush(stdout);
	} else if (json_get_u64(params, "total") && isatty(STDERR_FILENO)) {
		fputc('\r', stderr);
		draw(stderr, params);
		fputs("\033[K", stderr);
	}
}

/* 1: not the last event. */
static int take_event(const char *what, struct json_object *params, struct json_object **done,
		      struct err *err)
{
	if (!strcmp(what, "job-failed"))
		return failed(params, err);
	if (strcmp(what, "job-done"))
		return 1;
	*done = json_object_get(params);
	return 0;
}

/* The next event of any job. 1: there will be more. */
static int follow(const struct ctl_call *c, uint64_t id, int signal_fd,
		  void (*draw)(FILE *f, struct json_object *params), struct json_object **done,
		  struct err *err)
{
	cleanup_json json_object *o = NULL;
	json_object *method = NULL, *params = NULL;
	const char *line;
	int rc = wait_for_either(c, signal_fd, err);

	if (!rc)
		rc = control_client_next(c->client, UINT_MAX, &line, &o, err);
	if (rc == -ENODATA)
		return err_set(err, ECONNRESET, "the machine ended meanwhile");
	if (rc)
		return rc;
	json_object_object_get_ex(o, "method", &method);
	json_object_object_get_ex(o, "params", &params);
	if (!method || json_get_u64(params, "id") != id)
		return 1;
	show(c, line, params, draw);
	return take_event(json_object_get_string(method), params, done, err);
}

int ctl_follow_job(const struct ctl_call *c, uint64_t id, int signal_fd,
		   void (*draw)(FILE *f, struct json_object *params), struct json_object **done,
		   struct err *err)
{
	int rc;

	do
		rc = follow(c, id, signal_fd, draw, done, err);
	while (rc > 0);
	if (!c->json && isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
	return rc;
}
