/*
 * fuzz_migrate_door.c - who knocks where a machine is awaited: any number of clients, any words, any order
 *
 * The input is a row of steps: somebody comes, says something (bytes of the input, or a greeting and a
 * header as a source would say them, with values of the input), goes, half goes, reads nothing; the target
 * looks, or its patience passes. A source is let in once at most, with all that was promised of it. And
 * whatever has happened, one that does everything right is let in at the end.
 *
 * Time is the test's own while the door looks at it; its timer fires when a step says so.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "vmm/arch.h"
#include "vmm/migrate_door.h"
#include "vmm/sections.h"

#define CLIENTS 100 /* more than the door lets in */
#define STEPS   400

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *data;
	size_t len;
};

struct rig {
	struct loop *loop;
	struct door *door;
	struct sockaddr_un at;
	int client[CLIENTS];
	unsigned guests; /* on_guest() was called */
};

/* ---- time ---- */

static bool at_the_door;
static time_t later; /* seconds */
static int timer = -1;

int clock_gettime(clockid_t id, struct timespec *t)
{
	int rc = (int)syscall(SYS_clock_gettime, id, t);

	t->tv_sec += at_the_door && id == CLOCK_MONOTONIC ? later : 0; /* not the fuzzer's */
	return rc;
}

/* When it is to fire is patience_passes()'s to say; that it is not to is the door's. */
int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)
{
	timer = new->it_value.tv_sec || new->it_value.tv_nsec ? fd : -1;
	return timer >= 0 ? 0 : (int)syscall(SYS_timerfd_settime, fd, flags, new, old);
}

static void look(struct rig *r)
{
	at_the_door = true;
	for (unsigned i = 0; i < 300 && loop_poll(r->loop, 0); i++)
		;
	at_the_door = false;
}

static void patience_passes(struct rig *r)
{
	const struct itimerspec soon = { .it_value.tv_nsec = 1 };

	later += 11;
	if (timer >= 0)
		syscall(SYS_timerfd_settime, timer, 0, &soon, NULL);
	at_the_door = true;
	if (timer >= 0)
		loop_poll(r->loop, 1000);
	at_the_door = false;
}

/* ---- the clients ---- */

static uint8_t take(struct input *in)
{
	if (!in->len)
		return 0;
	in->len--;
	return *in->data++;
}

static void come(struct rig *r, unsigned i)
{
	if (r->client[i] >= 0)
		return;
	r->client[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	BUG_ON(r->client[i] < 0);
	if (connect(r->client[i], (struct sockaddr *)&r->at, sizeof(r->at)))
		fd_close(&r->client[i]); /* the door is shut, or the queue before it is full */
}

static void say(struct rig *r, unsigned i, const void *what, size_t len)
{
	if (r->client[i] >= 0 && len &&
	    send(r->client[i], what, len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return; /* turned away already */
}

static void put(struct stream *s, uint16_t type, const void *data, size_t len)
{
	struct err err;

	BUG_ON(stream_put(s, type, 0, NULL, data, len, &err));
}

static void field(uint8_t **at, uint16_t id, const void *value, uint32_t len)
{
	const uint16_t head[2] = { id, 1 };

	memcpy(*at, head, 4);
	memcpy(*at + 4, &len, 4);
	memcpy(*at + 8, value, len);
	*at += 8 + len;
}

/* @odd: one of its numbers is another, which a reader may take (a newer version that it can read) or not. */
static void put_header(struct stream *s, uint8_t odd)
{
	const uint32_t version = odd == 1 ? 77 : STATE_VERSION, compat = odd == 2 ? 77 : 1;
	const uint64_t features = odd == 3, ram = 2 << 20;
	char arch[16] = "";
	uint8_t table[128], *end = table;

	snprintf(arch, sizeof(arch), "%s", odd == 4 ? "z80" : arch_name);
	field(&end, 1, &version, 4);
	field(&end, 2, &compat, 4);
	field(&end, 3, &features, 8);
	field(&end, 4, &ram, 8);
	field(&end, 5, arch, sizeof(arch));
	put(s, SECTION_HEADER, table, (size_t)(end - table));
	put(s, SECTION_MACHINE, odd == 5 ? "{\0" : "{}", 2);
	put(s, SECTION_CPU, table, odd == 6 ? 0 : 8);
}

/* A source's words on one connection: the whole, or a part of them. */
static void greet(struct rig *r, unsigned i, struct migrate_hello h, uint8_t odd, unsigned per256)
{
	struct err err;
	struct stream *s = stream_buffer_new(&err);
	size_t len;

	BUG_ON(!s || migrate_put_hello(s, &h, &err));
	if (!h.index)
		put_header(s, odd);
	const uint8_t *words = stream_buffer(s, &len);

	say(r, i, words, len * per256 / 256);
	stream_free(s);
}

static void greet_somehow(struct rig *r, unsigned i, struct input *in)
{
	const uint8_t how = take(in);
	struct migrate_hello h = {
		.protocol = MIGRATE_PROTOCOL + (how == 255),
		.connections = take(in) % 20,
		.index = take(in) % 20,
		.zero = how == 254,
	};

	memset(h.session, take(in) % 4, sizeof(h.session));
	greet(r, i, h, how & 8 ? how % 8 : 0, how & 16 ? take(in) : 256);
}

static void babble(struct rig *r, unsigned i, struct input *in)
{
	size_t n = take(in);

	n = n < in->len ? n : in->len;
	say(r, i, in->data, n);
	in->data += n;
	in->len -= n;
}

/* ---- the target ---- */

static void on_guest(void *opaque)
{
	struct rig *r = opaque;

	BUG_ON(r->guests++);
}

static void let_in(struct rig *r)
{
	struct door_guest g;

	door_take(r->door, &g);
	BUG_ON(!g.connections || g.connections > RAM_CONNECTIONS_MAX);
	BUG_ON(!g.header.machine || strcmp(g.header.machine, "{}") || !g.header.cpu);
	BUG_ON(g.header.ram != 2 << 20);
	for (unsigned i = 0; i < g.connections; i++) {
		BUG_ON(g.fds[i] < 0 || fcntl(g.fds[i], F_GETFL) & O_NONBLOCK);
		for (unsigned j = 0; j < i; j++)
			BUG_ON(g.fds[i] == g.fds[j]);
		close(g.fds[i]);
	}
	vm_header_fini(&g.header);
}

static void step(struct rig *r, struct input *in)
{
	const uint8_t what = take(in);
	const unsigned i = take(in) % CLIENTS;

	switch (what % 8) {
	case 0:
	case 1:
		come(r, i);
		break;
	case 2:
		greet_somehow(r, i, in);
		break;
	case 3:
		babble(r, i, in);
		break;
	case 4:
		fd_close(&r->client[i]);
		break;
	case 5:
		if (r->client[i] >= 0)
			shutdown(r->client[i], what & 8 ? SHUT_WR : SHUT_RD);
		break;
	case 6:
		look(r);
		break;
	default:
		patience_passes(r);
	}
}

/* Nobody else's silence, nonsense or number keeps a source out. */
static void a_good_one_comes(struct rig *r)
{
	struct migrate_hello h = { .protocol = MIGRATE_PROTOCOL, .connections = 1 };

	memset(h.session, 0xee, sizeof(h.session));
	look(r);
	if (r->guests)
		return;
	fd_close(&r->client[0]);
	come(r, 0);
	BUG_ON(r->client[0] < 0);
	greet(r, 0, h, 0, 256);
	look(r);
	BUG_ON(r->guests != 1);
}

static void begin(struct rig *r)
{
	struct peer_address a = { .tcp = false };
	struct err err;

	*r = (struct rig){ .at.sun_family = AF_UNIX };
	for (unsigned i = 0; i < CLIENTS; i++)
		r->client[i] = -1;
	snprintf(a.path, sizeof(a.path), "/tmp/fuzz-door-%d", getpid());
	memcpy(r->at.sun_path, a.path, sizeof(a.path));
	later = 0;
	timer = -1;
	r->loop = loop_new(&err);
	BUG_ON(!r->loop);
	r->door = door_new(&a, r->loop, on_guest, r, &err);
	BUG_ON(!r->door);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct rig r;

	log_set_level(LOG_ERR);
	signal(SIGPIPE, SIG_IGN); /* as the runner does */
	begin(&r);
	for (unsigned n = 0; n < STEPS && in.len && !r.guests; n++)
		step(&r, &in);
	a_good_one_comes(&r);
	let_in(&r);
	door_free(r.door);
	loop_free(r.loop);
	for (unsigned i = 0; i < CLIENTS; i++)
		fd_close(&r.client[i]);
	return 0;
}
