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

#include "vmm/ctl_verbs.h"

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

static bool is_of(struct json_object *params, uint64_t id)
{
	struct json_object *o;

	return json_object_object_get_ex(params, "id", &o) && json_object_get_uint64(o) == id;
}

static int failed(struct json_object *params, struct err *err)
{
	struct json_object *m = NULL;

	json_object_object_get_ex(params, "message", &m);
	return err_set(err, EREMOTEIO, "%s", m ? json_object_get_string(m) : "it failed");
}

int ctl_follow_job(const struct ctl_call *c, uint64_t id, int signal_fd,
		   void (*progress)(void *opaque, const char *line, struct json_object *params),
		   void *opaque, struct json_object **done, struct err *err)
{
	for (int rc = 1; rc > 0;) {
		struct json_object *o = NULL, *method = NULL, *params = NULL;
		const char *line, *what = "";

		rc = wait_for_either(c, signal_fd, err);
		if (!rc)
			rc = control_client_next(c->client, UINT_MAX, &line, &o, err);
		if (rc == -ENODATA)
			return err_set(err, ECONNRESET, "the machine ended meanwhile");
		if (rc)
			return rc;
		if (json_object_object_get_ex(o, "method", &method))
			what = json_object_get_string(method);
		json_object_object_get_ex(o, "params", &params);
		rc = 1;
		if (is_of(params, id)) {
			if (progress)
				progress(opaque, line, params);
			if (!strcmp(what, "job-done")) {
				*done = json_object_get(params);
				rc = 0;
			} else if (!strcmp(what, "job-failed")) {
				rc = failed(params, err);
			}
		}
		json_object_put(o);
		if (rc <= 0)
			return rc;
	}
	return 0;
}
