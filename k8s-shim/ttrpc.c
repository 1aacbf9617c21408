/*
 * ttrpc.c - connections, calls, answers
 *
 * An answer is sent at once if the socket takes it, since what comes next in the shim may take a while,
 * and kept otherwise. A connection that turns out to be broken then is only marked: nothing that answers
 * a call can find its connection freed under it. A client that does not read costs a bounded buffer: with
 * OUT_HIGH bytes unread nothing more is read from it. Answers that were owed already still pile up
 * behind that, but each was asked for, and CALLS_MAX bounds those.
 *
 * A connection that breaks leaves its open calls behind without it (call->conn is NULL): whoever holds
 * one, like a task that somebody waits for, need not know.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/proto/ttrpc.pb-c.h"
#include "k8s-shim/ttrpc.h"
#include "k8s-shim/ttrpc_frame.h"

#define CONNECTIONS_MAX 1024
#define CALLS_MAX       16384 /* of one connection, not yet answered */
#define OUT_HIGH        (1u << 20)

struct ttrpc_call {
	struct conn *conn;
	uint32_t stream;
	LIST_ENTRY(ttrpc_call) link;
};

struct conn {
	struct ttrpc_server *server;
	int fd;
	struct loop_watch watch;
	struct ttrpc_reader reader;
	uint8_t *out;
	size_t out_at, out_len, out_room;
	LIST_HEAD(, ttrpc_call) calls;
	unsigned ncalls;
	bool broken; /* it cannot be told something: close at the next occasion */
	LIST_ENTRY(conn) link;
};

struct ttrpc_server {
	int fd;
	struct loop *loop;
	struct loop_watch watch;
	ttrpc_handler *handler;
	void *opaque;
	LIST_HEAD(, conn) conns;
	unsigned nconns;
};

static void conn_free(struct conn *c)
{
	struct ttrpc_call *call;

	while ((call = LIST_FIRST(&c->calls))) {
		LIST_REMOVE(call, link);
		call->conn = NULL;
	}
	loop_remove(&c->watch);
	fd_close(&c->fd);
	ttrpc_reader_fini(&c->reader);
	LIST_REMOVE(c, link);
	c->server->nconns--;
	free(c->out);
	free(c);
}

/* ---- out ---- */

static void watch_for(struct conn *c)
{
	uint32_t events = c->out_len < OUT_HIGH ? EPOLLIN : 0;

	if (c->out_len || c->broken)
		events |= EPOLLOUT;
	loop_modify(&c->watch, events);
}

static int out_reserve(struct conn *c, size_t more)
{
	if (c->out_at) {
		memmove(c->out, c->out + c->out_at, c->out_len);
		c->out_at = 0;
	}
	size_t room = c->out_room ? c->out_room : 1024;

	while (room < c->out_len + more)
		room *= 2;
	if (room == c->out_room)
		return 0;
	uint8_t *out = realloc(c->out, room);

	if (!out)
		return -ENOMEM;
	c->out = out;
	c->out_room = room;
	return 0;
}

/* 0, or -errno when the connection is of no more use. */
static int conn_flush(struct conn *c)
{
	while (c->out_len) {
		ssize_t n =
			send(c->fd, c->out + c->out_at, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		c->out_at += (size_t)n;
		c->out_len -= (size_t)n;
	}
	c->out_at = 0;
	return 0;
}

static void conn_send(struct conn *c, uint32_t stream, const Pb__Response *r)
{
	size_t len = pb__response__get_packed_size(r);
	struct ttrpc_frame f = { .len = (uint32_t)len, .stream = stream, .type = TTRPC_RESPONSE };

	if (out_reserve(c, TTRPC_HEADER + len)) {
		c->broken = true;
	} else {
		ttrpc_header(c->out + c->out_len, &f);
		pb__response__pack(r, c->out + c->out_len + TTRPC_HEADER);
		c->out_len += TTRPC_HEADER + len;
		c->broken = conn_flush(c) != 0;
	}
	watch_for(c);
}

static void send_status(struct conn *c, uint32_t stream, enum ttrpc_code code, const char *text)
{
	Pb__Status status = PB__STATUS__INIT;
	Pb__Response r = PB__RESPONSE__INIT;

	status.code = (int32_t)code;
	status.message = (char *)text;
	r.status = &status;
	conn_send(c, stream, &r);
}

/* ---- answers ---- */

static void call_end(struct ttrpc_call *call)
{
	if (call->conn) {
		LIST_REMOVE(call, link);
		call->conn->ncalls--;
	}
	free(call);
}

void ttrpc_reply(struct ttrpc_call *call, const ProtobufCMessage *m)
{
	if (!call)
		return;
	if (call->conn) {
		Pb__Response r = PB__RESPONSE__INIT;
		size_t len = protobuf_c_message_get_packed_size(m);
		cleanup_free uint8_t *payload = malloc(len ? len : 1);

		if (!payload) {
			send_status(call->conn, call->stream, TTRPC_RESOURCE_EXHAUSTED,
				    "out of memory");
		} else {
			r.payload.data = payload;
			r.payload.len = protobuf_c_message_pack(m, payload);
			conn_send(call->conn, call->stream, &r);
		}
	}
	call_end(call);
}

void ttrpc_fail(struct ttrpc_call *call, enum ttrpc_code code, const char *fmt, ...)
{
	char text[ERR_MSG_MAX];
	va_list ap;

	if (!call)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (call->conn)
		send_status(call->conn, call->stream, code, text);
	call_end(call);
}

void ttrpc_fail_err(struct ttrpc_call *call, const struct err *err)
{
	enum ttrpc_code code = TTRPC_UNKNOWN;

	switch (-err->code) {
	case ENOENT:
		code = TTRPC_NOT_FOUND;
		break;
	case EEXIST:
		code = TTRPC_ALREADY_EXISTS;
		break;
	case EINVAL:
		code = TTRPC_INVALID_ARGUMENT;
		break;
	case ENOTSUP:
		code = TTRPC_UNIMPLEMENTED;
		break;
	case EBUSY:
		code = TTRPC_FAILED_PRECONDITION;
		break;
	}
	ttrpc_fail(call, code, "%s", err->msg);
}

/* ---- in ---- */

static void dispatch(struct conn *c, uint32_t stream, const Pb__Request *r)
{
	struct ttrpc_server *s = c->server;
	struct ttrpc_call *call = calloc(1, sizeof(*call));
	struct ttrpc_request request = { .service = r->service,
					 .method = r->method,
					 .payload = r->payload.data,
					 .len = r->payload.len };

	if (!call) {
		send_status(c, stream, TTRPC_RESOURCE_EXHAUSTED, "out of memory");
		return;
	}
	call->conn = c;
	call->stream = stream;
	LIST_INSERT_HEAD(&c->calls, call, link);
	c->ncalls++;
	s->handler(s->opaque, call, &request);
}

static void on_frame(void *opaque, const struct ttrpc_frame *f)
{
	struct conn *c = opaque;

	if (f->len > TTRPC_DATA_MAX) {
		send_status(c, f->stream, TTRPC_RESOURCE_EXHAUSTED,
			    "message length exceeds maximum message size of 4194304 bytes");
		return;
	}
	if (f->type != TTRPC_REQUEST || !(f->stream & 1)) {
		send_status(c, f->stream, TTRPC_INVALID_ARGUMENT,
			    "not a request on a stream of the client's");
		return;
	}
	if (c->ncalls >= CALLS_MAX) {
		send_status(c, f->stream, TTRPC_RESOURCE_EXHAUSTED, "too many open requests");
		return;
	}
	Pb__Request *r = pb__request__unpack(NULL, f->len, f->data);

	if (!r) {
		send_status(c, f->stream, TTRPC_INVALID_ARGUMENT, "not a ttrpc request");
		return;
	}
	dispatch(c, f->stream, r);
	pb__request__free_unpacked(r, NULL);
}

static void on_conn(struct loop_watch *w, uint32_t events)
{
	struct conn *c = (struct conn *)((char *)w - offsetof(struct conn, watch));
	uint8_t bytes[65536];

	if (c->broken || conn_flush(c)) {
		conn_free(c);
		return;
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		ssize_t n = recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) ||
		    (n > 0 && ttrpc_reader_feed(&c->reader, bytes, (size_t)n, on_frame, c))) {
			conn_free(c);
			return;
		}
	}
	watch_for(c);
}

static void on_listen(struct loop_watch *w, uint32_t events)
{
	struct ttrpc_server *s =
		(struct ttrpc_server *)((char *)w - offsetof(struct ttrpc_server, watch));
	cleanup_fd int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	struct conn *c = s->nconns < CONNECTIONS_MAX ? calloc(1, sizeof(*c)) : NULL;

	if (!c) {
		log_warn("no room for one more connection");
		return;
	}
	c->server = s;
	c->fd = fd_steal(&fd);
	c->watch.fd = -1;
	LIST_INIT(&c->calls);
	LIST_INSERT_HEAD(&s->conns, c, link);
	s->nconns++;
	if (loop_add(s->loop, &c->watch, c->fd, EPOLLIN, on_conn))
		conn_free(c);
}

struct ttrpc_server *ttrpc_server_new(int fd, struct loop *loop, ttrpc_handler *handler,
				      void *opaque, struct err *err)
{
	struct ttrpc_server *s = calloc(1, sizeof(*s));
	int rc = s ? fd_set_nonblock(fd) : -ENOMEM;

	if (!rc) {
		s->fd = fd;
		s->loop = loop;
		s->watch.fd = -1;
		s->handler = handler;
		s->opaque = opaque;
		LIST_INIT(&s->conns);
		rc = loop_add(loop, &s->watch, fd, EPOLLIN, on_listen);
	}
	if (rc) {
		err_set_sys(err, rc, "cannot serve");
		free(s);
		return NULL;
	}
	return s;
}

void ttrpc_server_free(struct ttrpc_server *s)
{
	struct conn *c;

	if (!s)
		return;
	loop_remove(&s->watch);
	while ((c = LIST_FIRST(&s->conns))) {
		conn_flush(c);
		conn_free(c);
	}
	fd_close(&s->fd);
	free(s);
}
