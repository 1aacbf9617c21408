/*
 * migrate_door.c - who knocks where a machine is awaited
 *
 * What somebody says is gathered as it comes and read again from its beginning whenever there is more,
 * by the same functions that would read it from a socket: they tell "not yet" (-ENODATA) from "never".
 * A source waits for our answer once it has said everything, so there is nothing behind it to read by
 * mistake.
 *
 * The first source that is complete is taken. One that is not in time (PATIENCE_S), and whoever has been
 * there longest when too many are, goes; so neither silence nor numbers keep a source out for long.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "vmm/config.h"
#include "vmm/migrate_door.h"

#define KNOCKS_MAX 64
#define PATIENCE_S 10
#define TICK_NS    UINT64_C(1000000000)
#define PIECE      ((size_t)64 << 10)
#define WORDS_MAX  (CONFIG_JSON_MAX + PIECE) /* bytes of a greeting and a header */

struct knock {
	struct door *door;
	struct knock *next; /* who came before */
	struct loop_watch watch;
	int fd;
	time_t since; /* CLOCK_MONOTONIC */
	uint8_t *words;
	size_t len, room;
	bool said; /* all of what follows is there */
	struct migrate_hello hello;
	struct vm_header header; /* of the first connection */
};

struct door {
	struct peer_listener listener;
	struct loop *loop;
	struct loop_watch watch;
	struct loop_timer timer;
	struct knock *knocks; /* the last that came is the first */
	unsigned n;
	bool taken;
	struct log_limit complaints;
	void (*on_guest)(void *opaque);
	void *opaque;
};

static time_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

/* ---- going ---- */

/* Out of the list; its descriptor, header and memory are freed unless they were taken. */
static void leave(struct knock *k)
{
	struct door *d = k->door;

	for (struct knock **p = &d->knocks; *p; p = &(*p)->next) {
		if (*p != k)
			continue;
		*p = k->next;
		break;
	}
	d->n--;
	loop_remove(&k->watch);
	fd_close(&k->fd);
	vm_header_fini(&k->header);
	free(k->words);
	free(k);
}

/* Closing a socket with unread data would take our words with it. */
static void drain(int fd)
{
	char buf[4096];

	shutdown(fd, SHUT_WR);
	for (unsigned i = 0; i < 64 && recv(fd, buf, sizeof(buf), MSG_DONTWAIT) > 0; i++)
		;
}

static void turn_away(struct knock *k, const char *why)
{
	struct err ignored;
	struct stream *s = stream_fd_new(k->fd, "somebody", &ignored);

	log_guest(&k->door->complaints, "migration: turned somebody away: %s", why);
	/* A few bytes as the first on a connection: they do not block. */
	if (s && !migrate_put_reply(s, MIGRATE_FAILED, 0, why, &ignored))
		drain(k->fd);
	stream_free(s);
	leave(k);
}

/* ---- understanding ---- */

static int read_words(struct knock *k, struct stream *s, struct err *err)
{
	int rc = migrate_get_hello(s, &k->hello, err);

	if (!rc && !k->hello.index)
		rc = vm_header_load(&k->header, s, err);
	if (!rc && stream_bytes(s) != k->len) {
		vm_header_fini(&k->header);
		rc = err_set(err, EPROTO, "it goes on without waiting for an answer");
	}
	return rc;
}

/* 0; -ENODATA: there is more to come; -errno: never. */
static int understand(struct knock *k, struct err *err)
{
	struct stream *s = stream_read_new(k->words, k->len, err);
	int rc = s ? 0 : err->code;

	if (s) {
		stream_name_peer(s, "the source");
		rc = read_words(k, s, err);
	}
	stream_free(s);
	k->said = !rc;
	return rc;
}

static bool same_session(const struct knock *a, const struct knock *b)
{
	return a->hello.connections == b->hello.connections &&
	       !memcmp(a->hello.session, b->hello.session, sizeof(a->hello.session));
}

/* The connection @index of @k's source, the first that came; NULL: it has not. */
static struct knock *find(const struct knock *k, unsigned index)
{
	struct knock *found = NULL;

	for (struct knock *o = k->door->knocks; o; o = o->next)
		if (o->said && o->hello.index == index && same_session(o, k))
			found = o;
	return found;
}

static unsigned there(const struct knock *k)
{
	unsigned n = 0;

	for (unsigned i = 0; i < k->hello.connections; i++)
		n += find(k, i) != NULL;
	return n;
}

/* @k has said everything: is its source complete? */
static void look_around(struct knock *k)
{
	struct door *d = k->door;

	if (find(k, k->hello.index) != k) {
		turn_away(k, "this connection of yours is there already");
		return;
	}
	/* Only the end of it can come now. */
	loop_modify(&k->watch, EPOLLRDHUP);
	if (there(k) < k->hello.connections)
		return;
	d->taken = true;
	loop_remove(&d->watch);
	loop_timer_disarm(&d->timer);
	for (struct knock *o = d->knocks; o; o = o->next)
		loop_remove(&o->watch);
	d->on_guest(d->opaque);
}

/* ---- hearing ---- */

static bool make_room(struct knock *k)
{
	if (k->room - k->len >= PIECE)
		return true;
	uint8_t *words = realloc(k->words, k->len + PIECE);

	if (!words)
		return false;
	k->words = words;
	k->room = k->len + PIECE;
	return true;
}

static void on_words(struct loop_watch *w, uint32_t events)
{
	struct knock *k = (struct knock *)((char *)w - offsetof(struct knock, watch));
	struct err err = { 0 };

	if (k->said || !make_room(k)) {
		turn_away(k, k->said ? "it has gone before it began" : "out of memory");
		return;
	}
	ssize_t n = recv(k->fd, k->words + k->len, PIECE, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		turn_away(k, "it has gone before it had said who it is");
		return;
	}
	k->len += (size_t)n;
	int rc = understand(k, &err);

	if (rc == -ENODATA && k->len <= WORDS_MAX)
		return;
	if (rc)
		turn_away(k, rc == -ENODATA ? "it does not come to an end" : err.msg);
	else
		look_around(k);
}

static void on_knock(struct loop_watch *w, uint32_t events)
{
	struct door *d = (struct door *)((char *)w - offsetof(struct door, watch));
	cleanup_fd int fd = peer_accept(&d->listener);
	struct knock *oldest = d->knocks, *k = fd < 0 ? NULL : calloc(1, sizeof(*k));

	if (!k)
		return;
	while (oldest && oldest->next)
		oldest = oldest->next;
	if (d->n == KNOCKS_MAX)
		turn_away(oldest, "too many knock, and it was there longest");
	k->door = d;
	k->fd = fd;
	k->since = now();
	if (loop_add(d->loop, &k->watch, fd, EPOLLIN, on_words)) {
		free(k);
		return;
	}
	fd_steal(&fd);
	if (!d->n)
		loop_timer_arm(&d->timer, TICK_NS, TICK_NS);
	k->next = d->knocks;
	d->knocks = k;
	d->n++;
}

static void out_of_patience(struct knock *k)
{
	char why[96];

	if (k->said)
		snprintf(why, sizeof(why), "only %u of its %u connections came", there(k),
			 k->hello.connections);
	else
		snprintf(why, sizeof(why), "it did not say who it is within %d s", PATIENCE_S);
	turn_away(k, why);
}

static void on_tick(struct loop_timer *t)
{
	struct door *d = (struct door *)((char *)t - offsetof(struct door, timer));
	time_t before = now() - PATIENCE_S;

	for (struct knock *k = d->knocks, *next; k; k = next) {
		next = k->next;
		if (k->since < before)
			out_of_patience(k);
	}
	if (!d->n)
		loop_timer_disarm(&d->timer);
}

/* ---- the whole ---- */

struct door *door_new(const struct peer_address *a, struct loop *loop,
		      void (*on_guest)(void *opaque), void *opaque, struct err *err)
{
	struct door *d = calloc(1, sizeof(*d));

	if (!d) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	d->loop = loop;
	d->on_guest = on_guest;
	d->opaque = opaque;
	d->listener.l.fd = d->listener.l.spare = d->watch.fd = d->timer.fd = -1;
	if (loop_timer_init(loop, &d->timer, on_tick, err) ||
	    peer_listen(&d->listener, a, KNOCKS_MAX, err))
		goto fail;
	int rc = loop_add(loop, &d->watch, d->listener.l.fd, EPOLLIN, on_knock);

	if (!rc)
		return d;
	err_set_sys(err, rc, "cannot wait for a source");
fail:
	door_free(d);
	return NULL;
}

void door_take(struct door *d, struct door_guest *g)
{
	struct knock *first = d->knocks;

	/* The one session of which everybody is there. */
	while (!first->said || there(first) < first->hello.connections)
		first = first->next;
	*g = (struct door_guest){ .connections = first->hello.connections };
	for (unsigned i = 0; i < g->connections; i++)
		g->fds[i] = fd_steal(&find(first, i)->fd);
	struct knock *k = find(first, 0);

	memcpy(g->session, first->hello.session, sizeof(g->session));
	g->header = k->header;
	k->header = (struct vm_header){ 0 };
}

void door_free(struct door *d)
{
	if (!d)
		return;
	loop_remove(&d->watch);
	while (d->knocks) {
		if (d->taken && d->knocks->fd >= 0)
			turn_away(d->knocks, "another machine is arriving here");
		else
			leave(d->knocks);
	}
	if (d->timer.fd >= 0)
		loop_timer_fini(&d->timer);
	peer_listener_close(&d->listener);
	free(d);
}
