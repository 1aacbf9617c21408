/*
 * forward.c - kubectl port-forward reaches the guest
 *
 * Two ways of one buffer each. An end is watched only while something can be done with it, as epoll
 * tells of a hang-up also to whoever asks for nothing.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/forward.h"
#include "k8s-shim/lookup.h"
#include "k8s-shim/netns.h"

#define BUF 16384

struct end {
	struct loop_watch watch;
	struct conn *conn;
	int fd;
	/* what it has said, on the way to the other one */
	uint8_t buf[BUF];
	size_t at, len;
	bool eof, passed; /* it has nothing more to say; the other one knows */
};

struct conn {
	struct forward *f;
	struct end ends[2]; /* who connected, and the guest */
	bool connecting;
	LIST_ENTRY(conn) link;
};

struct forward {
	struct loop *loop;
	struct loop_watch watch;
	int listener, lookup;
	struct sockaddr_storage to;
	unsigned count;
	LIST_HEAD(, conn) conns;
};

static void conn_free(struct conn *c)
{
	LIST_REMOVE(c, link);
	c->f->count--;
	for (unsigned i = 0; i < 2; i++) {
		loop_remove(&c->ends[i].watch);
		fd_close(&c->ends[i].fd);
	}
	free(c);
}

/* Somebody who has gone cannot be told from one who only has nothing more to say: the oldest makes room. */
static void make_room(struct forward *f)
{
	struct conn *c, *oldest = NULL;

	if (f->count < FORWARD_MAX)
		return;
	LIST_FOREACH(c, &f->conns, link)
	if (c->ends[0].eof)
		oldest = c;
	if (oldest)
		conn_free(oldest);
}

static bool would_block(void)
{
	return errno == EAGAIN || errno == EINTR;
}

/* Move what can be moved without waiting, a buffer at most. false: the connection is broken. */
static bool move(struct end *from, struct end *to)
{
	if (!from->len && !from->eof) {
		ssize_t n = read(from->fd, from->buf, BUF);

		if (n < 0)
			return would_block();
		from->at = 0;
		from->len = (size_t)n;
		from->eof = !n;
	}
	if (from->len) {
		ssize_t n = send(to->fd, from->buf + from->at, from->len, MSG_NOSIGNAL);

		if (n < 0)
			return would_block();
		from->at += (size_t)n;
		from->len -= (size_t)n;
	}
	if (from->eof && !from->len && !from->passed) {
		from->passed = true;
		shutdown(to->fd, SHUT_WR);
	}
	return true;
}

static void on_end(struct loop_watch *w, uint32_t events);

static int watch_for(struct end *e, uint32_t events)
{
	if (!events) {
		loop_remove(&e->watch);
		return 0;
	}
	if (e->watch.fd >= 0)
		return loop_modify(&e->watch, events);
	return loop_add(e->conn->f->loop, &e->watch, e->fd, events, on_end);
}

static void go_on(struct conn *c)
{
	struct end *a = &c->ends[0], *b = &c->ends[1];
	bool good = c->connecting || (move(a, b) && move(b, a) && !(a->passed && b->passed));

	for (unsigned i = 0; good && i < 2; i++) {
		const struct end *e = &c->ends[i], *other = &c->ends[!i];
		uint32_t events = 0;

		if (c->connecting)
			events = i ? EPOLLOUT : 0;
		else
			events = (e->len || e->eof ? 0 : EPOLLIN) | (other->len ? EPOLLOUT : 0);
		good = !watch_for(&c->ends[i], events);
	}
	if (!good)
		conn_free(c);
}

static void on_end(struct loop_watch *w, uint32_t events)
{
	struct conn *c = ((struct end *)((char *)w - offsetof(struct end, watch)))->conn;
	int error = 0;
	socklen_t len = sizeof(error);

	if (c->connecting) {
		getsockopt(c->ends[1].fd, SOL_SOCKET, SO_ERROR, &error, &len);
		c->connecting = false;
	}
	if (error) {
		log_info("port-forward: the guest cannot be reached: %s", strerror(error));
		conn_free(c);
		return;
	}
	go_on(c);
}

/* The same port of the guest's. -1: it cannot even be tried. */
static int connect_guest(const struct forward *f, int accepted)
{
	struct sockaddr_in local = { 0 };
	struct sockaddr_storage to = f->to;
	socklen_t len = sizeof(local);
	cleanup_fd int fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || getsockname(accepted, (struct sockaddr *)&local, &len))
		return -1;
	if (to.ss_family == AF_INET6)
		((struct sockaddr_in6 *)&to)->sin6_port = local.sin_port;
	else
		((struct sockaddr_in *)&to)->sin_port = local.sin_port;
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) && errno != EINPROGRESS)
		return -1;
	return fd_steal(&fd);
}

static void on_listen(struct loop_watch *w, uint32_t events)
{
	struct forward *f = (struct forward *)((char *)w - offsetof(struct forward, watch));
	cleanup_fd int fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	make_room(f);
	cleanup_fd int guest = fd < 0 || f->count == FORWARD_MAX ? -1 : connect_guest(f, fd);
	struct conn *c = guest < 0 ? NULL : calloc(1, sizeof(*c));

	if (!c) {
		if (fd >= 0)
			log_info("port-forward: no connection to the guest");
		return;
	}
	c->f = f;
	c->connecting = true;
	for (unsigned i = 0; i < 2; i++) {
		c->ends[i].conn = c;
		c->ends[i].watch.fd = -1;
		c->ends[i].fd = fd_steal(i ? &guest : &fd);
	}
	LIST_INSERT_HEAD(&f->conns, c, link);
	f->count++;
	go_on(c);
}

struct forward *forward_new(struct loop *loop, int listener, const struct sockaddr_storage *to,
			    struct err *err)
{
	struct forward *f = calloc(1, sizeof(*f));

	if (!f) {
		close(listener);
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	LIST_INIT(&f->conns);
	f->loop = loop;
	f->listener = listener;
	f->lookup = f->watch.fd = -1;
	f->to = *to;
	int rc = loop_add(loop, &f->watch, listener, EPOLLIN, on_listen);

	if (rc) {
		err_set_sys(err, rc, "cannot listen for port-forwards");
		forward_close(f);
		return NULL;
	}
	return f;
}

static int listen_inside(void *arg, struct err *err)
{
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	cleanup_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, FORWARD_MAX))
		return err_set_sys(err, errno, "cannot listen in the pod's network namespace");
	*(int *)arg = fd_steal(&fd);
	return 0;
}

struct forward *forward_open(struct loop *loop, const char *netns,
			     const struct sockaddr_storage *to, struct err *err)
{
	cleanup_fd int ns = open(netns, O_RDONLY | O_CLOEXEC), listener = -1, lookup = -1;

	if (ns < 0) {
		err_set_sys(err, errno, "the pod's network namespace %s", netns);
		return NULL;
	}
	if (netns_call(netns, listen_inside, &listener, err))
		return NULL;
	lookup = lookup_attach(ns, listener, err);
	if (lookup < 0)
		return NULL;
	struct forward *f = forward_new(loop, fd_steal(&listener), to, err);

	if (f)
		f->lookup = fd_steal(&lookup);
	return f;
}

void forward_close(struct forward *f)
{
	struct conn *c;

	if (!f)
		return;
	while ((c = LIST_FIRST(&f->conns)))
		conn_free(c);
	loop_remove(&f->watch);
	fd_close(&f->lookup);
	fd_close(&f->listener);
	free(f);
}
