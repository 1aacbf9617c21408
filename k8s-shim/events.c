/*
 * events.c - a ttrpc client with a queue
 *
 * One request is under way at a time, so containerd sees events in our order even if it serves requests
 * side by side. The head of the queue leaves it only when it has been answered: whatever breaks before
 * that, it is sent again on the next connection. containerd may then see it twice, which it copes with;
 * an exit it never sees leaves a pod hanging.
 *
 * The queue is bounded. A pod makes a dozen events in its life, so only one that restarts again and
 * again under a containerd that stays away can fill it; the oldest ones go then, as state is asked for
 * anew by a containerd that comes back.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/events.h"
#include "k8s-shim/proto/events.pb-c.h"
#include "k8s-shim/proto/ttrpc.pb-c.h"
#include "k8s-shim/ttrpc_frame.h"

#define WAITING_MAX 1024
#define MSEC        UINT64_C(1000000)
#define RETRY_MIN   (100 * MSEC)
#define RETRY_MAX   (2000 * MSEC)

struct event_msg {
	char topic[32];
	size_t len;
	uint8_t *frame; /* header included; the stream id is filled in when it is sent */
	STAILQ_ENTRY(event_msg) link;
};

struct events {
	struct loop *loop;
	struct sockaddr_un address;
	char *ns;
	int fd;
	struct loop_watch watch;
	struct loop_timer retry;
	uint64_t retry_ns;
	struct ttrpc_reader reader;
	uint32_t stream; /* of the request under way; 0: none */
	uint32_t next_stream;
	size_t sent; /* bytes of the head */
	STAILQ_HEAD(, event_msg) queue;
	unsigned waiting;
	struct log_limit complaints;
	bool lost; /* this connection is of no use any more */
	void (*on_drained)(void *opaque);
	void *opaque;
};

static void pump(struct events *e);

static void pop(struct events *e)
{
	struct event_msg *m = STAILQ_FIRST(&e->queue);

	STAILQ_REMOVE_HEAD(&e->queue, link);
	e->waiting--;
	free(m->frame);
	free(m);
	if (!e->waiting && e->on_drained) {
		void (*fn)(void *) = e->on_drained;

		e->on_drained = NULL;
		fn(e->opaque);
	}
}

/* ---- the connection ---- */

static void disconnect(struct events *e)
{
	loop_remove(&e->watch);
	fd_close(&e->fd);
	ttrpc_reader_fini(&e->reader);
	e->stream = 0;
	e->sent = 0;
	e->lost = false;
}

static void retry_later(struct events *e)
{
	disconnect(e);
	loop_timer_arm(&e->retry, e->retry_ns, 0);
	e->retry_ns = e->retry_ns * 2 > RETRY_MAX ? RETRY_MAX : e->retry_ns * 2;
}

static void on_frame(void *opaque, const struct ttrpc_frame *f)
{
	struct events *e = opaque;

	if (f->type != TTRPC_RESPONSE || f->stream != e->stream || f->len > TTRPC_DATA_MAX)
		return;
	Pb__Response *r = pb__response__unpack(NULL, f->len, f->data);

	if (!r) {
		e->lost = true;
		return;
	}
	/* Refused once is refused always: the same event would be, again. */
	if (r->status && r->status->code)
		log_warn("containerd refused event %s: %s", STAILQ_FIRST(&e->queue)->topic,
			 r->status->message);
	pb__response__free_unpacked(r, NULL);
	e->stream = 0;
	e->sent = 0;
	e->retry_ns = RETRY_MIN;
	pop(e);
}

static void on_ready(struct loop_watch *w, uint32_t events)
{
	struct events *e = (struct events *)((char *)w - offsetof(struct events, watch));
	uint8_t bytes[4096];

	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		ssize_t n = recv(e->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) ||
		    (n > 0 && ttrpc_reader_feed(&e->reader, bytes, (size_t)n, on_frame, e)) ||
		    e->lost) {
			retry_later(e);
			return;
		}
	}
	pump(e);
}

static int connect_now(struct events *e)
{
	e->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (e->fd < 0)
		return -errno;
	if (connect(e->fd, (struct sockaddr *)&e->address, sizeof(e->address)))
		return -errno; /* EAGAIN: its backlog is full; later, then */
	e->next_stream = 1;
	return loop_add(e->loop, &e->watch, e->fd, EPOLLIN, on_ready);
}

/* ---- out ---- */

/* 0, or -errno when the connection is of no more use. */
static int send_head(struct events *e)
{
	struct event_msg *m = STAILQ_FIRST(&e->queue);

	if (!e->stream) {
		struct ttrpc_frame f = { .len = (uint32_t)(m->len - TTRPC_HEADER),
					 .stream = e->next_stream,
					 .type = TTRPC_REQUEST };

		ttrpc_header(m->frame, &f);
		e->stream = e->next_stream;
		e->next_stream += 2;
	}
	while (e->sent < m->len) {
		ssize_t n = send(e->fd, m->frame + e->sent, m->len - e->sent,
				 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		e->sent += (size_t)n;
	}
	return 0;
}

static void pump(struct events *e)
{
	struct event_msg *m = STAILQ_FIRST(&e->queue);

	if (!m)
		return;
	if (e->fd < 0 && connect_now(e)) {
		retry_later(e);
		return;
	}
	if (send_head(e)) {
		retry_later(e);
		return;
	}
	loop_modify(&e->watch, EPOLLIN | (e->sent < m->len ? EPOLLOUT : 0));
}

static void on_retry(struct loop_timer *t)
{
	struct events *e = (struct events *)((char *)t - offsetof(struct events, retry));

	if (e->fd < 0)
		pump(e);
}

/* The message in a request in a frame. */
static struct event_msg *encode(struct events *e, const char *topic, const char *type,
				const ProtobufCMessage *m)
{
	Pb__Envelope envelope = PB__ENVELOPE__INIT;
	Pb__ForwardRequest forward = PB__FORWARD_REQUEST__INIT;
	Pb__Request request = PB__REQUEST__INIT;
	Pb__Timestamp now = PB__TIMESTAMP__INIT;
	Pb__Any any = PB__ANY__INIT;
	struct event_msg *msg = calloc(1, sizeof(*msg));
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	now.seconds = ts.tv_sec;
	now.nanos = (int32_t)ts.tv_nsec;
	any.type_url = (char *)type;
	any.value.len = protobuf_c_message_get_packed_size(m);
	cleanup_free uint8_t *value = any.value.data = malloc(any.value.len + 1);

	envelope.timestamp = &now;
	envelope.namespace_ = e->ns;
	envelope.topic = (char *)topic;
	envelope.event = &any;
	forward.envelope = &envelope;
	request.service = (char *)"containerd.services.events.ttrpc.v1.Events";
	request.method = (char *)"Forward";
	request.payload.len = 0;
	if (!msg || !value) {
		free(msg);
		return NULL;
	}
	protobuf_c_message_pack(m, value);
	request.payload.len = pb__forward_request__get_packed_size(&forward);
	cleanup_free uint8_t *payload = request.payload.data = malloc(request.payload.len + 1);

	if (payload) {
		pb__forward_request__pack(&forward, payload);
		msg->len = TTRPC_HEADER + pb__request__get_packed_size(&request);
		msg->frame = malloc(msg->len);
	}
	if (!msg->frame) {
		free(msg);
		return NULL;
	}
	pb__request__pack(&request, msg->frame + TTRPC_HEADER);
	snprintf(msg->topic, sizeof(msg->topic), "%s", topic);
	return msg;
}

void events_publish(struct events *e, const char *topic, const char *type,
		    const ProtobufCMessage *m)
{
	struct event_msg *msg = encode(e, topic, type, m);

	if (!msg) {
		log_err("out of memory: event %s is lost", topic);
		return;
	}
	if (e->waiting >= WAITING_MAX) {
		struct event_msg *second = STAILQ_NEXT(STAILQ_FIRST(&e->queue), link);

		/* The head may be half sent. */
		log_guest(&e->complaints, "containerd has been away for long: event %s is dropped",
			  second->topic);
		STAILQ_REMOVE(&e->queue, second, event_msg, link);
		free(second->frame);
		free(second);
		e->waiting--;
	}
	STAILQ_INSERT_TAIL(&e->queue, msg, link);
	e->waiting++;
	if (e->waiting == 1)
		pump(e);
}

void events_when_drained(struct events *e, void (*fn)(void *opaque), void *opaque)
{
	if (!e->waiting) {
		fn(opaque);
		return;
	}
	e->on_drained = fn;
	e->opaque = opaque;
}

struct events *events_new(struct loop *loop, const char *address, const char *ns, struct err *err)
{
	struct events *e = calloc(1, sizeof(*e));

	if (!e) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	e->loop = loop;
	e->fd = e->watch.fd = e->retry.fd = -1;
	e->retry_ns = RETRY_MIN;
	STAILQ_INIT(&e->queue);
	if (!strncmp(address, "unix://", 7))
		address += 7;
	e->address.sun_family = AF_UNIX;
	if (strlen(address) >= sizeof(e->address.sun_path)) {
		err_set(err, ENAMETOOLONG, "containerd's address %s is too long for a socket",
			address);
		events_free(e);
		return NULL;
	}
	strcpy(e->address.sun_path, address);
	e->ns = strdup(ns);
	if (!e->ns)
		err_set(err, ENOMEM, "out of memory");
	if (!e->ns || loop_timer_init(loop, &e->retry, on_retry, err)) {
		events_free(e);
		return NULL;
	}
	return e;
}

void events_free(struct events *e)
{
	if (!e)
		return;
	e->on_drained = NULL;
	disconnect(e);
	if (e->retry.fd >= 0)
		loop_timer_fini(&e->retry);
	while (e->waiting)
		pop(e);
	free(e->ns);
	free(e);
}
