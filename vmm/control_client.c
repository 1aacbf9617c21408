/*
 * control_client.c - the other end of a control socket
 *
 * One request at a time, so that any answer is the one that is waited for. The machine may send
 * events at any moment, and an old or a foreign program may listen on the socket: what comes is
 * bounded and checked here as well.
 */
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "backends/unix_socket.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/control_client.h"

#define LINE_ROOM  (8u << 20)
#define READ_PIECE (64u << 10)

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int control_client_open(struct control_client *c, const char *path, unsigned timeout_ms,
			struct err *err)
{
	*c = (struct control_client){ .fd = unix_connect(path, timeout_ms, err) };
	if (c->fd == -EAGAIN)
		return err_set(err, ETIMEDOUT, "%s: does not take anybody in: is it stopped?",
			       path);
	return c->fd < 0 ? c->fd : 0;
}

void control_client_close(struct control_client *c)
{
	fd_close(&c->fd);
	free(c->buf);
	*c = (struct control_client){ .fd = -1 };
}

/* Some bytes more, until @deadline (ms; INT64_MAX: none). */
static int receive(struct control_client *c, int64_t deadline, struct err *err)
{
	struct pollfd p = { .fd = c->fd, .events = POLLIN };
	int64_t left = deadline == INT64_MAX ? -1 : deadline - now_ms();
	int rc = left < -1 ? 0 : poll(&p, 1, left > INT_MAX ? INT_MAX : (int)left);

	if (rc < 0 && errno == EINTR)
		return 0;
	if (rc < 0)
		return err_set_sys(err, errno, "cannot wait for the machine");
	if (!rc)
		return err_set(err, ETIMEDOUT, "no answer in time");
	if (c->at) {
		memmove(c->buf, c->buf + c->at, c->len - c->at);
		c->len -= c->at;
		c->at = 0;
	}
	if (c->len > LINE_ROOM)
		return err_set(err, EPROTO, "sends a line without end: no machine of ours");
	if (c->room - c->len < READ_PIECE) {
		char *buf = realloc(c->buf, c->len + 2 * READ_PIECE);

		if (!buf)
			return err_set(err, ENOMEM, "out of memory");
		c->buf = buf;
		c->room = c->len + 2 * READ_PIECE;
	}
	ssize_t n = read(c->fd, c->buf + c->len, READ_PIECE);

	if (n > 0)
		c->len += (size_t)n;
	if (n < 0 && errno != EINTR)
		return err_set_sys(err, errno, "cannot read from the machine");
	return n ? 0 : err_set(err, ENODATA, "the machine has ended");
}

static int next_until(struct control_client *c, int64_t deadline, const char **line,
		      struct json_object **o, struct err *err)
{
	char *end;

	while (!(end = c->len > c->at ? memchr(c->buf + c->at, '\n', c->len - c->at) : NULL)) {
		int rc = receive(c, deadline, err);

		if (rc)
			return rc;
	}
	*end = '\0';
	*line = c->buf + c->at;
	c->at = (size_t)(end - c->buf) + 1;
	*o = json_tokener_parse(*line);
	if (json_object_is_type(*o, json_type_object))
		return 0;
	json_object_put(*o);
	return err_set(err, EPROTO, "sends no JSON-RPC: no machine of ours");
}

static int64_t deadline_of(unsigned timeout_ms)
{
	return timeout_ms == UINT_MAX ? INT64_MAX : now_ms() + timeout_ms;
}

int control_client_next(struct control_client *c, unsigned timeout_ms, const char **line,
			struct json_object **o, struct err *err)
{
	return next_until(c, deadline_of(timeout_ms), line, o, err);
}

/* 1: @o was an event. */
static int take_answer(struct json_object *o, struct json_object **result, struct err *err)
{
	struct json_object *e, *message = NULL;

	if (json_object_object_get_ex(o, "method", NULL))
		return 1;
	if (json_object_object_get_ex(o, "error", &e)) {
		json_object_object_get_ex(e, "message", &message);
		return err_set(err, EREMOTEIO, "%s",
			       message ? json_object_get_string(message) : "an error");
	}
	if (!json_object_object_get_ex(o, "result", result))
		return err_set(err, EPROTO, "sends no JSON-RPC: no machine of ours");
	json_object_get(*result);
	return 0;
}

#define FDS_MAX 32

/* One message with its newline; descriptors go with its first byte. */
static int send_request(struct control_client *c, const char *text, size_t len, const int *fds,
			unsigned nfds, struct err *err)
{
	union {
		char room[CMSG_SPACE(sizeof(int) * FDS_MAX)];
		struct cmsghdr align;
	} control = { .room = { 0 } };

	BUG_ON(nfds > FDS_MAX);
	for (size_t at = 0; at < len;) {
		struct iovec iov = { (char *)text + at, len - at };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

		if (nfds && !at) {
			msg.msg_control = &control;
			msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
			struct cmsghdr *h = CMSG_FIRSTHDR(&msg);

			h->cmsg_level = SOL_SOCKET;
			h->cmsg_type = SCM_RIGHTS;
			h->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
			memcpy(CMSG_DATA(h), fds, sizeof(int) * nfds);
		}
		/* a machine that just ended is told by read, not by SIGPIPE */
		ssize_t n = sendmsg(c->fd, &msg, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EPIPE)
			return 0;
		if (n < 0)
			return err_set_sys(err, errno, "cannot ask the machine");
		at += (size_t)n;
	}
	return 0;
}

int control_client_call(struct control_client *c, const char *method, unsigned timeout_ms,
			struct json_object **result, struct err *err)
{
	return control_client_call_fds(c, method, NULL, NULL, 0, timeout_ms, result, err);
}

int control_client_call_fds(struct control_client *c, const char *method,
			    struct json_object *params, const int *fds, unsigned nfds,
			    unsigned timeout_ms, struct json_object **result, struct err *err)
{
	int64_t deadline = deadline_of(timeout_ms);
	cleanup_free char *request = NULL;
	const char *line;
	struct json_object *o;
	int n = asprintf(&request, "{\"jsonrpc\":\"2.0\",\"method\":\"%s\",\"id\":1%s%s}\n", method,
			 params ? ",\"params\":" : "",
			 params ? json_object_to_json_string_ext(params, JSON_C_TO_STRING_PLAIN) :
				  "");

	if (n < 0) {
		request = NULL;
		return err_set(err, ENOMEM, "out of memory");
	}
	int sent = send_request(c, request, (size_t)n, fds, nfds, err);

	if (sent)
		return sent;
	for (int rc = 1; rc;) {
		rc = next_until(c, deadline, &line, &o, err);
		if (rc == -ENODATA)
			return err_set(err, ECONNRESET, "the machine ended without an answer");
		if (rc)
			return rc;
		rc = take_answer(o, result, err);
		json_object_put(o);
		if (rc < 0)
			return rc;
	}
	return 0;
}
