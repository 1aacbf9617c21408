/*
 * control.c - the control socket: lines in, lines out, nobody waits
 *
 * A client can cost a bounded amount of memory and of the main loop's time, whatever it does. Its
 * line grows to LINE_MAX at most. It is read only while its answers get away (OUT_STOP), so one that
 * asks without reading just waits; events come unasked, and with OUT_MAX bytes of them unread the
 * client is dropped. A turn of the loop answers a few of its requests, then others have theirs.
 *
 * A request may end up dropping any client, its own sender too: an event that does not fit any more.
 * So clients are marked dead first and freed when no function of ours is at work on them (`busy`).
 *
 * Descriptors may come along (SCM_RIGHTS): this process can open no file and connect nowhere, its
 * clients can. They wait for a request that takes them, a bounded number, and are closed when no
 * request is left.
 *
 * Messages are separated by newlines, which JSON text never needs: no length to believe, and a
 * person can type them into socat.
 */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backends/unix_socket.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/control.h"
#include "vmm/control_methods.h"
#include "vmm/control_name.h"
#include "vmm/job.h"
#include "vmm/vm.h"

#define CLIENTS_MAX     64
#define LINE_ROOM       (1u << 20) /* bytes of one message, without its newline */
#define OUT_MAX         (1u << 20)
#define OUT_STOP        (64u << 10)
#define READ_PIECE      (64u << 10)
#define REQUESTS_A_TURN 16
#define FAREWELL_MS     200 /* control_free() waits as long for slow readers, all together */

struct client {
	struct control *control;
	struct client *next;
	struct loop_watch watch;
	int fd;
	bool dead;    /* to be freed */
	bool closing; /* has sent all it will; dropped when the last answer is out */
	struct control_peer peer;

	char *in;
	size_t in_len, in_room;
	size_t scanned; /* of in[], no newline so far */
	char *out;
	size_t out_at, out_len, out_room; /* unsent: out[out_at .. out_len) */
};

struct control {
	struct loop *loop;
	struct control_target target;
	struct unix_listener listener;
	struct loop_watch listen_watch;
	struct control_name name;
	struct client *clients;
	unsigned nclients;
	uint64_t last_number;
	unsigned busy;
	struct log_limit complaints;
};

static void on_client(struct loop_watch *w, uint32_t events);

/* ---- a client's end ---- */

static void client_drop(struct client *c)
{
	if (c->dead)
		return;
	c->dead = true;
	loop_remove(&c->watch);
	fd_close(&c->fd);
	control_peer_close_fds(&c->peer);
	c->control->nclients--;
	if (c->control->target.vm)
		job_owner_gone(c->control->target.vm->job, c->peer.number);
}

static void reap(struct control *control)
{
	if (control->busy)
		return;
	for (struct client **p = &control->clients; *p;) {
		struct client *c = *p;

		if (!c->dead) {
			p = &c->next;
			continue;
		}
		*p = c->next;
		free(c->in);
		free(c->out);
		free(c);
	}
}

/* ---- sending ---- */

static void client_flush(struct client *c)
{
	while (!c->dead && c->out_at < c->out_len) {
		ssize_t n = send(c->fd, c->out + c->out_at, c->out_len - c->out_at,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n >= 0)
			c->out_at += (size_t)n;
		else if (errno == EAGAIN)
			return;
		else if (errno != EINTR)
			client_drop(c);
	}
	c->out_at = c->out_len = 0;
	if (c->out_room > OUT_STOP) {
		ptr_free(&c->out);
		c->out_room = 0;
	}
}

/* Room for @len more bytes. False: that would be more than a client may have. */
static bool out_reserve(struct client *c, size_t len)
{
	if (c->out_at) {
		memmove(c->out, c->out + c->out_at, c->out_len - c->out_at);
		c->out_len -= c->out_at;
		c->out_at = 0;
	}
	if (c->out_len + len > OUT_MAX + OUT_STOP)
		return false;
	if (c->out_len + len <= c->out_room)
		return true;
	size_t room = c->out_len + len < 4096 ? 4096 : (c->out_len + len) * 2;
	char *out = realloc(c->out, room);

	if (!out)
		return false;
	c->out = out;
	c->out_room = room;
	return true;
}

static void client_send(struct client *c, const char *text, size_t len)
{
	if (c->dead)
		return;
	if (!out_reserve(c, len + 1)) {
		log_guest(&c->control->complaints,
			  "control socket: dropped a client that does not read");
		client_drop(c);
		return;
	}
	memcpy(c->out + c->out_len, text, len);
	c->out[c->out_len + len] = '\n';
	c->out_len += len + 1;
	client_flush(c);
}

/* Takes @o. */
static void client_send_object(struct client *c, struct json_object *o)
{
	size_t len;
	const char *text = jsonrpc_text(o, &len);

	if (text)
		client_send(c, text, len);
	else
		client_drop(c);
	json_object_put(o);
}

/* ---- receiving ---- */

static bool in_reserve(struct client *c)
{
	if (c->in_room - c->in_len >= READ_PIECE)
		return true;
	size_t room = c->in_room ? c->in_room * 2 : READ_PIECE;
	char *in = realloc(c->in, room);

	if (!in)
		return false;
	c->in = in;
	c->in_room = room;
	return true;
}

/* Keep the descriptors that came with @msg for a request that wants them. */
static void keep_fds(struct client *c, struct msghdr *msg)
{
	struct control_peer *p = &c->peer;

	if (msg->msg_flags & MSG_CTRUNC)
		p->fds_lost = true;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(msg); h; h = CMSG_NXTHDR(msg, h)) {
		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < (h->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(h) + i * sizeof(int), sizeof(int));
			if (p->nfds < CONTROL_FDS_MAX) {
				p->fds[p->nfds++] = fd;
				continue;
			}
			p->fds_lost = true;
			close(fd);
		}
	}
}

static void client_read(struct client *c)
{
	union {
		char room[CMSG_SPACE(sizeof(int) * CONTROL_FDS_MAX)];
		struct cmsghdr align;
	} fds;
	ssize_t n;

	if (!in_reserve(c)) {
		client_drop(c);
		return;
	}
	struct iovec iov = { c->in + c->in_len, READ_PIECE };
	struct msghdr msg;

	do {
		msg = (struct msghdr){ .msg_iov = &iov,
				       .msg_iovlen = 1,
				       .msg_control = fds.room,
				       .msg_controllen = sizeof(fds) };
		n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n >= 0)
		keep_fds(c, &msg);
	if (n > 0)
		c->in_len += (size_t)n;
	else if (n < 0 && errno != EAGAIN)
		client_drop(c);
	else if (n == 0)
		c->closing = true; /* the answers it still waits for go out first */
}

static void too_long(struct client *c)
{
	client_send_object(c, jsonrpc_error(NULL, JSONRPC_INVALID_REQUEST,
					    "a message has at most 1 MiB"));
	log_guest(&c->control->complaints,
		  "control socket: dropped a client that sends a line without end");
	client_drop(c);
}

/* The length of the first complete line; false: there is none yet. */
static bool next_line(struct client *c, size_t *len)
{
	char *end = NULL;

	if (c->in_len > c->scanned)
		end = memchr(c->in + c->scanned, '\n', c->in_len - c->scanned);
	c->scanned = end ? (size_t)(end - c->in) : c->in_len;
	*len = c->scanned;
	return end;
}

static bool is_blank(const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r')
			return false;
	return true;
}

/* Is there anybody who could answer? */
static bool is_served(const struct control *control)
{
	return control->target.vm || control->target.waiting;
}

static void answer(struct client *c, const char *text, size_t len)
{
	if (is_blank(text, len))
		return;
	struct control_target *t = &c->control->target;

	t->peer = &c->peer;
	struct json_object *o =
		jsonrpc_answer(t->vm ? control_methods : control_waiting_methods, t, text, len);

	t->peer = NULL;
	if (o)
		client_send_object(c, o);
}

static bool may_answer(const struct client *c)
{
	return !c->dead && is_served(c->control) && c->out_len - c->out_at < OUT_STOP;
}

/* A few of the lines that have arrived. True: there may be more. */
static bool client_serve(struct client *c)
{
	unsigned n = 0;
	size_t at = 0, len;

	for (; n < REQUESTS_A_TURN && may_answer(c) && next_line(c, &len); n++) {
		if (len - at > LINE_ROOM)
			break;
		answer(c, c->in + at, len - at);
		at = c->scanned = len + 1;
	}
	if (at) {
		memmove(c->in, c->in + at, c->in_len - at);
		c->in_len -= at;
		c->scanned -= at;
	}
	if (!c->dead && c->scanned > LINE_ROOM)
		too_long(c);
	/* No request is left that could want them. */
	if (!c->in_len)
		control_peer_close_fds(&c->peer);
	if (!c->in_len && c->in_room > READ_PIECE) {
		ptr_free(&c->in);
		c->in_room = 0;
	}
	return n == REQUESTS_A_TURN;
}

/* ---- the loop ---- */

/* @more: lines are waiting in our own buffer; writable is a client's usual state, so ask for that. */
static void client_watch(struct client *c, bool more)
{
	uint32_t events = 0;

	if (c->dead)
		return;
	if (is_served(c->control) && !c->closing && c->out_len - c->out_at < OUT_STOP && !more)
		events |= EPOLLIN;
	if (c->out_at < c->out_len || more)
		events |= EPOLLOUT;
	if (!events && !is_served(c->control))
		events = EPOLLPRI; /* a hang-up only */
	if (loop_modify(&c->watch, events))
		client_drop(c);
}

static void client_turn(struct client *c, uint32_t events)
{
	struct control *control = c->control;

	control->busy++;
	if (events & EPOLLOUT)
		client_flush(c);
	if (!c->dead && !c->closing && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		client_read(c);
	bool more = client_serve(c);

	if (!c->dead && c->closing && !more && c->out_at == c->out_len)
		client_drop(c);
	client_watch(c, more);
	control->busy--;
	reap(control);
}

static void on_client(struct loop_watch *w, uint32_t events)
{
	client_turn((struct client *)((char *)w - offsetof(struct client, watch)), events);
}

static void refuse(int fd)
{
	static const char text[] = "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32004,\"message\":"
				   "\"too many clients: at "
				   "most 64\"},\"id\":null}\n";

	if (send(fd, text, sizeof(text) - 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		log_debug("control socket: a refused client has gone already");
}

static void on_listener(struct loop_watch *w, uint32_t events)
{
	struct control *control =
		(struct control *)((char *)w - offsetof(struct control, listen_watch));
	cleanup_fd int fd = unix_accept(&control->listener);

	if (fd < 0) {
		if (fd != -EAGAIN)
			log_guest(&control->complaints, "control socket: no client: %s",
				  strerror(-fd));
		return;
	}
	struct client *c = NULL;

	if (control->nclients == CLIENTS_MAX)
		refuse(fd);
	else
		c = calloc(1, sizeof(*c));
	if (!c)
		return;
	c->control = control;
	c->fd = fd;
	c->peer.number = ++control->last_number;
	if (loop_add(control->loop, &c->watch, fd, EPOLLIN, on_client)) {
		free(c);
		return;
	}
	fd_steal(&fd);
	c->next = control->clients;
	control->clients = c;
	control->nclients++;
}

/* ---- what the machine calls ---- */

static void listen_on(void *arg)
{
	struct control *control = arg;

	if (is_served(control) && control->listen_watch.fd < 0) {
		int rc = loop_add(control->loop, &control->listen_watch, control->listener.fd,
				  EPOLLIN, on_listener);
		if (rc)
			log_err("control socket: cannot wait for clients: %s", strerror(-rc));
	} else if (!is_served(control)) {
		loop_remove(&control->listen_watch);
	}
	for (struct client *c = control->clients; c; c = c->next)
		client_watch(c, is_served(control) && c->in_len);
	reap(control);
}

void control_serve(struct control *control, struct vm *vm)
{
	control->target.vm = vm;
	listen_on(control);
}

void control_wait(struct control *control, const struct control_waiting *w)
{
	if (!control)
		return;
	control->target.waiting = w;
	listen_on(control);
}

void control_event(void *arg, const char *event, struct json_object *params)
{
	struct control *control = arg;
	struct json_object *o = jsonrpc_notification(event, params);
	size_t len;
	const char *text = jsonrpc_text(o, &len);

	control->busy++;
	for (struct client *c = control->clients; text && c; c = c->next) {
		client_send(c, text, len);
		/* the sender of the request that led here sets its watch itself, later */
		if (!c->dead && c->out_at < c->out_len)
			loop_modify(&c->watch, c->watch.events | EPOLLOUT);
	}
	control->busy--;
	json_object_put(o);
	reap(control);
}

struct control *control_new(const char *path, const char *vm_id, struct loop *loop, struct err *err)
{
	struct control *control = calloc(1, sizeof(*control));

	if (!control) {
		err_set(err, ENOMEM, "out of memory for the control socket");
		return NULL;
	}
	control->loop = loop;
	control->listener.fd = control->listener.spare = control->listen_watch.fd = -1;
	control->target.statm_fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	if (control_name_take(&control->name, path, vm_id, err) ||
	    unix_listen(&control->listener, control->name.socket, CLIENTS_MAX, err) ||
	    control_name_link(&control->name, err)) {
		err_prefix(err, "--control");
		control_free(control);
		return NULL;
	}
	return control;
}

void control_paths(const struct control *c, const char **socket, const char **link)
{
	*socket = c->name.socket;
	*link = c->name.link;
}

/* ---- the end ---- */

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void say_farewell(struct control *control)
{
	int64_t until = now_ms() + FAREWELL_MS;

	for (struct client *c = control->clients; c; c = c->next) {
		client_flush(c);
		while (!c->dead && c->out_at < c->out_len && now_ms() < until) {
			struct pollfd p = { .fd = c->fd, .events = POLLOUT };

			poll(&p, 1, (int)(until - now_ms()));
			client_flush(c);
		}
	}
}

static void shut(void *arg)
{
	struct control *control = arg;

	loop_remove(&control->listen_watch);
	say_farewell(control);
	for (struct client *c = control->clients; c; c = c->next)
		client_drop(c);
	reap(control);
}

void control_free(struct control *control)
{
	if (!control)
		return;
	loop_call(control->loop, shut, control);
	control_name_release(&control->name);
	unix_listener_close(&control->listener);
	fd_close(&control->target.statm_fd);
	free(control);
}
