/*
 * control_client.c - JSON-RPC, a message a line
 *
 * Answers come in the order of requests, so what waits is a queue and the id only a check. Lines are
 * bounded; a machine that breaks the protocol is treated as one that has gone.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/control_client.h"
#include "k8s-shim/json.h"

#define LINE_BYTES (1u << 20)

struct waiting {
	uint64_t id;
	control_answer *fn;
	void *opaque;
	STAILQ_ENTRY(waiting) link;
};

struct control_client {
	int fd;
	struct loop *loop;
	struct loop_watch watch;
	control_event *on_event;
	void *opaque;
	uint64_t next_id;
	STAILQ_HEAD(, waiting) queue;
	char *out, *in;
	size_t out_len, in_len, in_room;
	bool gone;
};

static void fail_all(struct control_client *c)
{
	struct err err = { 0 };
	struct waiting *w;

	err_set(&err, ESHUTDOWN, "the machine has ended");
	while ((w = STAILQ_FIRST(&c->queue))) {
		STAILQ_REMOVE_HEAD(&c->queue, link);
		w->fn(w->opaque, NULL, &err);
		free(w);
	}
}

static void lose(struct control_client *c)
{
	c->gone = true;
	loop_remove(&c->watch);
}

static void flush(struct control_client *c)
{
	while (c->out_len && !c->gone) {
		ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0)
			break; /* full; or gone, which reading tells */
		c->out_len -= (size_t)n;
		memmove(c->out, c->out + n, c->out_len);
	}
	if (!c->gone)
		loop_modify(&c->watch, EPOLLIN | (c->out_len ? EPOLLOUT : 0));
}

static void answered(struct control_client *c, struct json_object *message)
{
	struct waiting *w = STAILQ_FIRST(&c->queue);
	struct json_object *result = json_at(message, "result", NULL);
	struct json_object *error = json_at(message, "error", NULL);
	const char *text = json_text(json_at(error, "message", NULL));
	struct err err = { 0 };

	if (!w || json_u64(json_at(message, "id", NULL)) != w->id) {
		log_warn("the machine answered what nobody asked");
		return;
	}
	STAILQ_REMOVE_HEAD(&c->queue, link);
	if (error || !result)
		err_set(&err, EIO, "%s", text ? text : "the machine refused without a reason");
	w->fn(w->opaque, error ? NULL : result, &err);
	free(w);
}

static void take_line(struct control_client *c, const char *line, size_t len)
{
	struct err err = { 0 };
	struct json_object *message = json_parse(line, len, "the machine's message", &err);
	const char *method = json_text(json_at(message, "method", NULL));

	if (!message)
		log_warn("%s", err.msg);
	else if (method)
		c->on_event(c->opaque, method, json_at(message, "params", NULL));
	else
		answered(c, message);
	json_object_put(message);
}

static void take_lines(struct control_client *c)
{
	size_t at = 0;
	char *nl;

	while ((nl = memchr(c->in + at, '\n', c->in_len - at))) {
		take_line(c, c->in + at, (size_t)(nl - c->in) - at);
		at = (size_t)(nl - c->in) + 1;
	}
	c->in_len -= at;
	memmove(c->in, c->in + at, c->in_len);
}

/* false: nothing to be had now, or any more. */
static bool fill(struct control_client *c)
{
	if (c->in_len == c->in_room) {
		size_t room = c->in_room ? c->in_room * 2 : 4096;
		char *in = room <= LINE_BYTES ? realloc(c->in, room) : NULL;

		if (!in) {
			log_warn("the machine's message is too long");
			lose(c);
			return false;
		}
		c->in = in;
		c->in_room = room;
	}
	ssize_t n = recv(c->fd, c->in + c->in_len, c->in_room - c->in_len, MSG_DONTWAIT);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		lose(c);
	if (n <= 0)
		return false;
	c->in_len += (size_t)n;
	return true;
}

static void on_ready(struct loop_watch *w, uint32_t events)
{
	struct control_client *c =
		(struct control_client *)((char *)w - offsetof(struct control_client, watch));

	if (fill(c))
		take_lines(c);
	flush(c);
}

void control_client_call(struct control_client *c, const char *method, const char *params,
			 control_answer *fn, void *opaque)
{
	struct waiting *w = calloc(1, sizeof(*w));
	char line[256];
	int n = snprintf(line, sizeof(line),
			 "{\"jsonrpc\":\"2.0\",\"method\":\"%s\"%s%s,\"id\":%llu}\n", method,
			 params ? ",\"params\":" : "", params ? params : "",
			 (unsigned long long)c->next_id);

	BUG_ON(n >= (int)sizeof(line));
	char *out = w ? realloc(c->out, c->out_len + (size_t)n) : NULL;
	struct err err = { 0 };

	if (!out || c->gone) {
		if (out)
			c->out = out;
		free(w);
		err_set(&err, c->gone ? ESHUTDOWN : ENOMEM,
			c->gone ? "the machine has ended" : "out of memory");
		fn(opaque, NULL, &err);
		return;
	}
	*w = (struct waiting){ .id = c->next_id++, .fn = fn, .opaque = opaque };
	STAILQ_INSERT_TAIL(&c->queue, w, link);
	c->out = out;
	memcpy(c->out + c->out_len, line, (size_t)n);
	c->out_len += (size_t)n;
	flush(c);
}

void control_client_end(struct control_client *c)
{
	if (!c)
		return;
	while (!c->gone && fill(c))
		take_lines(c);
	lose(c);
	fail_all(c);
}

struct control_client *control_client_new(int fd, struct loop *loop, control_event *on_event,
					  void *opaque, struct err *err)
{
	struct control_client *c = calloc(1, sizeof(*c));
	int rc = c ? 0 : -ENOMEM;

	if (c) {
		c->fd = fd;
		c->loop = loop;
		c->watch.fd = -1;
		c->on_event = on_event;
		c->opaque = opaque;
		c->next_id = 1;
		STAILQ_INIT(&c->queue);
		rc = loop_add(loop, &c->watch, fd, EPOLLIN, on_ready);
	}
	if (rc) {
		err_set_sys(err, rc, "cannot watch the machine's control socket");
		close(fd);
		free(c);
		return NULL;
	}
	return c;
}

void control_client_free(struct control_client *c)
{
	struct waiting *w;

	if (!c)
		return;
	loop_remove(&c->watch);
	fd_close(&c->fd);
	while ((w = STAILQ_FIRST(&c->queue))) {
		STAILQ_REMOVE_HEAD(&c->queue, link);
		free(w);
	}
	free(c->out);
	free(c->in);
	free(c);
}
