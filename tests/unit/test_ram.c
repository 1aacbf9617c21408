/*
 * test_ram.c - guest RAM over streams: whole, in order of rounds, and never trusted
 *
 * Both ends in one process, joined by socket pairs. The dirty set wants KVM, for its log: those tests
 * are skipped where /dev/kvm cannot be opened; the receiver's are not.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/memslots.h"
#include "vmm/migrate.h"
#include "vmm/migrate_wire.h"
#include "vmm/ram.h"
#include "vmm/sections.h"
#include "vmm/vm.h"

#define PAGE     4096u
#define LOW      (12u << 20)
#define HIGH_GPA LOW /* adjoins: a range must not run from one region into the other */
#define HIGH     (5 * PAGE)
#define MAX      4

struct side {
	struct gmem *mem;
	struct stream *stream[MAX];
};

struct rig {
	struct vm vm;
	struct side from, to;
	int fd[MAX][2];
	unsigned n;
	struct dirty *dirty;
	struct ram_sender *sender;
	struct transfer_watch watch;
	bool cancelled, interrupted;
	unsigned told;
	struct transfer_progress p;
};

static bool is_cancelled(void *opaque)
{
	return ((struct rig *)opaque)->cancelled;
}

static bool is_interrupted(void *opaque)
{
	return ((struct rig *)opaque)->interrupted;
}

static void on_progress(void *opaque, const struct transfer_progress *p)
{
	((struct rig *)opaque)->told++;
}

static struct gmem *make_memory(void)
{
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);

	assert_int_equal(gmem_add_ram(m, 0, LOW, GMEM_PAGES_SMALL, &err), 0);
	assert_int_equal(gmem_add_ram(m, HIGH_GPA, HIGH, GMEM_PAGES_SMALL, &err), 0);
	return m;
}

static struct rig *rig_or_skip(unsigned n, uint64_t bandwidth)
{
	struct err err = { 0 };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0) {
		print_message("SKIP: /dev/kvm cannot be opened\n");
		skip();
	}
	struct rig *r = calloc(1, sizeof(*r));

	r->vm.kvm.fd = kvm;
	r->vm.fd = ioctl(r->vm.kvm.fd, KVM_CREATE_VM, 0);
	r->vm.mem = r->from.mem = make_memory();
	r->to.mem = make_memory();
	assert_int_equal(memslots_set(r->vm.fd, r->vm.mem, &err), 0);
	r->n = n;
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, r->fd[i]), 0);
		r->from.stream[i] = stream_fd_new(r->fd[i][0], "target", &err);
		r->to.stream[i] = stream_fd_new(r->fd[i][1], "source", &err);
	}
	r->dirty = dirty_start(&r->vm, &err);
	assert_non_null(r->dirty);
	r->watch = (struct transfer_watch){ is_cancelled, on_progress, NULL, r };
	struct ram_sender_options o = { r->from.mem, r->dirty,  r->from.stream, n,
					bandwidth,   &r->watch, is_interrupted, r };

	r->sender = ram_sender_new(&o, &err);
	assert_non_null(r->sender);
	return r;
}

static void rig_free(struct rig *r)
{
	ram_sender_free(r->sender);
	dirty_stop(r->dirty);
	for (unsigned i = 0; i < r->n; i++) {
		stream_free(r->from.stream[i]);
		stream_free(r->to.stream[i]);
		close(r->fd[i][0]);
		if (r->fd[i][1] >= 0)
			close(r->fd[i][1]);
	}
	close(r->vm.fd);
	close(r->vm.kvm.fd);
	gmem_free(r->from.mem);
	gmem_free(r->to.mem);
	free(r);
}

struct receiver {
	struct rig *r;
	unsigned i;
	uint32_t round;
	pthread_t thread;
	struct ram_round_end end;
	int rc;
	struct err err;
};

static void *receiver(void *arg)
{
	struct receiver *v = arg;

	v->rc = ram_receive_round(v->r->to.mem, v->r->to.stream[v->i], v->round, &v->end, &v->err);
	return NULL;
}

/* One round from end to end. */
static void round_trip(struct rig *r, uint32_t round, bool last)
{
	struct receiver v[MAX];
	struct err err = { 0 };

	for (unsigned i = 0; i < r->n; i++) {
		v[i] = (struct receiver){ .r = r, .i = i, .round = round };
		pthread_create(&v[i].thread, NULL, receiver, &v[i]);
	}
	if (ram_send_round(r->sender, &r->p, last, &err))
		fail_msg("%s", err.msg);
	for (unsigned i = 0; i < r->n; i++) {
		pthread_join(v[i].thread, NULL);
		if (v[i].rc)
			fail_msg("%s", v[i].err.msg);
		assert_int_equal(v[i].end.round, round);
		assert_int_equal(v[i].end.last, last);
	}
	assert_int_equal(r->p.round, round);
}

static void fill(struct gmem *m, unsigned page, unsigned count, uint32_t seed)
{
	uint32_t buf[PAGE / 4];

	for (unsigned p = page; p < page + count; p++) {
		for (unsigned i = 0; i < PAGE / 4; i++)
			buf[i] = seed = seed * 1664525 + 1013904223;
		assert_int_equal(gmem_write(m, (gpa_t)p * PAGE, buf, sizeof(buf)), 0);
	}
}

static void expect_same(struct rig *r)
{
	for (unsigned i = 0; i < 2; i++) {
		const struct gmem_region *a = gmem_region(r->from.mem, i);
		const struct gmem_region *b = gmem_region(r->to.mem, i);

		assert_int_equal(memcmp(a->host, b->host, a->size), 0);
	}
}

static void rounds(unsigned n)
{
	struct rig *r = rig_or_skip(n, 0);
	struct err err = { 0 };
	uint8_t byte = 1;

	/* runs of both kinds, single pages, more ranges than fit a section, across the regions */
	fill(r->from.mem, 3, 500, 7);
	for (unsigned p = 600; p < 2400; p += 2)
		fill(r->from.mem, p, 1, p);
	fill(r->from.mem, LOW / PAGE - 2, 4, 9);
	/* the last byte of a page is what makes it one of data */
	assert_int_equal(gmem_write(r->from.mem, 2500 * PAGE + PAGE - 1, &byte, 1), 0);
	round_trip(r, 1, false);
	expect_same(r);
	assert_true(ram_sent(r->sender) > (500 + 900 + 4 + 1) * PAGE);
	assert_true(ram_sent(r->sender) < (500 + 900 + 4 + 1) * PAGE + 64 * 1024);
	assert_true(r->told > 0);

	/* what was written since, and that alone; pages that are zero again */
	assert_int_equal(dirty_fetch(r->dirty, &err), 0);
	round_trip(r, 2, false); /* what fill() marked before the first */
	uint64_t before = ram_sent(r->sender);

	fill(r->from.mem, 10, 3, 1234);
	assert_int_equal(gmem_fill(r->from.mem, 100 * PAGE, 0, 50 * PAGE), 0);
	assert_int_equal(dirty_fetch(r->dirty, &err), 0);
	assert_int_equal(dirty_pages(r->dirty), 53);
	round_trip(r, r->p.round + 1, false);
	expect_same(r);
	assert_true(ram_sent(r->sender) - before < 4 * PAGE);

	/* the same page in round after round: the last one's is what stays */
	for (uint32_t i = 0; i < 10; i++) {
		fill(r->from.mem, 42, 1, i);
		assert_int_equal(dirty_fetch(r->dirty, &err), 0);
		round_trip(r, r->p.round + 1, i == 9);
		expect_same(r);
	}
	rig_free(r);
}

static void test_one(void **state)
{
	rounds(1);
}

static void test_four(void **state)
{
	rounds(4);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* The limit holds over all connections together, and not in the last round. */
static void test_bandwidth(void **state)
{
	struct rig *r = rig_or_skip(2, 16 << 20);
	struct err err = { 0 };
	uint64_t start = now_ns();

	fill(r->from.mem, 0, 1024, 3); /* 4 MiB: a quarter of a second */
	round_trip(r, 1, false);
	assert_true(now_ns() - start > 240000000);
	assert_int_equal(dirty_fetch(r->dirty, &err), 0);
	fill(r->from.mem, 0, 1024, 4);
	round_trip(r, 2, true);
	expect_same(r);
	rig_free(r);
}

static void test_cancelled(void **state)
{
	struct rig *r = rig_or_skip(2, 1 << 20);
	struct err err = { 0 };

	r->cancelled = true;
	fill(r->from.mem, 0, 1024, 3);
	assert_int_equal(ram_send_round(r->sender, &r->p, false, &err), -ECANCELED);
	rig_free(r);
}

static void test_interrupted(void **state)
{
	struct rig *r = rig_or_skip(1, 0);
	struct err err = { 0 };

	r->interrupted = true;
	assert_int_equal(ram_send_round(r->sender, &r->p, false, &err), -EINTR);
	rig_free(r);
}

/* One connection of two breaks: the round fails, nobody hangs. */
static void test_broken(void **state)
{
	struct rig *r = rig_or_skip(2, 0);
	struct err err = { 0 };

	signal(SIGPIPE, SIG_IGN);
	for (unsigned i = 0; i < 2; i++) {
		close(r->fd[i][1]);
		r->fd[i][1] = -1;
	}
	fill(r->from.mem, 0, 2000, 3);
	assert_int_equal(ram_send_round(r->sender, &r->p, false, &err), -EPIPE);
	assert_non_null(strstr(err.msg, "target"));
	rig_free(r);
}

/* ---- what a source may not do ---- */

struct bytes {
	struct stream *s;
	struct gmem *mem;
};

static struct bytes bytes_new(void)
{
	struct err err = { 0 };

	return (struct bytes){ stream_buffer_new(&err), make_memory() };
}

/* Receive what was written as round @round; the error, or 0. */
static int bytes_end(struct bytes *b, uint32_t round, char *why)
{
	struct err err = { 0 };
	struct ram_round_end end;
	size_t len;
	const uint8_t *data = stream_buffer(b->s, &len);
	struct stream *in = stream_read_new(data, len, &err);
	int rc = ram_receive_round(b->mem, in, round, &end, &err);

	strcpy(why, err.msg);
	stream_free(in);
	stream_free(b->s);
	gmem_free(b->mem);
	return rc;
}

static void put_end(struct bytes *b, uint32_t round)
{
	uint32_t words[2] = { round, 0 };

	stream_put(b->s, SECTION_ROUND_END, 0, NULL, words, sizeof(words), NULL);
}

static void test_ranges(void **state)
{
	static const struct {
		uint64_t gpa, len;
		int rc;
	} c[] = {
		{ 0, PAGE, 0 },
		{ LOW - PAGE, PAGE, 0 },
		{ HIGH_GPA, HIGH, 0 },
		{ 0, LOW, 0 },
		{ LOW - PAGE, 2 * PAGE, -EPROTO }, /* two regions */
		{ HIGH_GPA, HIGH + PAGE, -EPROTO },
		{ HIGH_GPA + HIGH, PAGE, -EPROTO },
		{ 0, 0, -EPROTO },
		{ 1, PAGE, -EPROTO },
		{ 0, PAGE + 1, -EPROTO },
		{ UINT64_MAX - PAGE + 1, PAGE, -EPROTO },
		{ PAGE, UINT64_MAX - PAGE + 1, -EPROTO },
	};
	char why[ERR_MSG_MAX];

	for (unsigned i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
		struct bytes b = bytes_new();

		assert_int_equal(gmem_fill(b.mem, 0, 5, PAGE), 0);
		stream_put(b.s, SECTION_RAM_ZERO, 0, NULL, &c[i], 16, NULL);
		put_end(&b, 2);
		if (bytes_end(&b, 2, why) != c[i].rc)
			fail_msg("range %u: %s", i, why);
	}
	for (unsigned i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
		struct bytes b = bytes_new();
		uint64_t room = c[i].len <= LOW + HIGH ? c[i].len : PAGE;
		uint8_t *data = calloc(1, 24 + room + 1);

		data[0] = 1;
		memcpy(data + 8, &c[i], 16);
		stream_put(b.s, SECTION_RAM_DATA, STREAM_BULK, NULL, data, 24 + room, NULL);
		put_end(&b, 2);
		if (bytes_end(&b, 2, why) != c[i].rc)
			fail_msg("data %u: %s", i, why);
		free(data);
	}
}

/* A zero range of the first round touches nothing, of a later one clears. */
static void test_zero_rounds(void **state)
{
	uint64_t range[2] = { 0, PAGE };

	for (uint32_t round = 1; round <= 2; round++) {
		struct err err = { 0 };
		struct gmem *m = make_memory();
		struct stream *s = stream_buffer_new(&err);
		uint32_t words[2] = { round, 0 };
		struct ram_round_end end;
		size_t len;
		uint8_t byte = 9;

		gmem_write(m, 100, &byte, 1);
		stream_put(s, SECTION_RAM_ZERO, 0, NULL, range, sizeof(range), &err);
		stream_put(s, SECTION_ROUND_END, 0, NULL, words, sizeof(words), &err);
		const uint8_t *data = stream_buffer(s, &len);
		struct stream *in = stream_read_new(data, len, &err);

		assert_int_equal(ram_receive_round(m, in, round, &end, &err), 0);
		gmem_read(m, 100, &byte, 1);
		assert_int_equal(byte, round == 1 ? 9 : 0);
		stream_free(in);
		stream_free(s);
		gmem_free(m);
	}
}

/* ---- words of the protocol ---- */

static struct stream *reread(struct stream *w)
{
	struct err err = { 0 };
	size_t len;
	const uint8_t *data = stream_buffer(w, &len);

	return stream_read_new(data, len, &err);
}

static void test_words(void **state)
{
	struct err err = { 0 };
	struct stream *w = stream_buffer_new(&err);
	struct migrate_hello h = {
		.protocol = 1, .connections = 4, .index = 3, .session = { 1, 2 }
	};
	struct migrate_hello got;
	struct migrate_reply r;
	bool paused;

	assert_int_equal(migrate_put_hello(w, &h, &err), 0);
	migrate_put_reply(w, MIGRATE_ROUND, 77, NULL, &err);
	migrate_put_reply(w, MIGRATE_FAILED, 0, "disk\x1b[2J \xff", &err);
	migrate_put_commit(w, true, &err);
	struct stream *in = reread(w);

	assert_int_equal(migrate_get_hello(in, &got, &err), 0);
	assert_memory_equal(&got, &h, sizeof(h));
	assert_int_equal(migrate_get_reply(in, &r, &err), 0);
	assert_int_equal(r.what, MIGRATE_ROUND);
	assert_int_equal(r.arg, 77);
	assert_int_equal(migrate_get_reply(in, &r, &err), 0);
	assert_string_equal(r.text, "disk?[2J ?"); /* goes to a terminal */
	assert_int_equal(migrate_get_commit(in, &paused, &err), 0);
	assert_true(paused);
	assert_int_equal(migrate_get_commit(in, &paused, &err), -ENODATA);
	stream_free(in);
	stream_free(w);
}

static void test_bad_words(void **state)
{
	static const struct migrate_hello bad[] = {
		{ .protocol = 2, .connections = 1 },
		{ .protocol = 1, .connections = 0 },
		{ .protocol = 1, .connections = 17 },
		{ .protocol = 1, .connections = 2, .index = 2 },
		{ .protocol = 1, .connections = 1, .zero = 1 },
	};
	struct migrate_hello got;
	struct migrate_reply r;
	struct err err = { 0 };
	bool paused;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct stream *w = stream_buffer_new(&err);

		migrate_put_hello(w, &bad[i], &err);
		struct stream *in = reread(w);

		assert_true(migrate_get_hello(in, &got, &err) < 0);
		stream_free(in);
		stream_free(w);
	}
	for (size_t len = 0; len < 700; len += len < 10 ? 1 : 250) {
		struct stream *w = stream_buffer_new(&err);
		uint8_t data[700] = { 0 };

		memset(data, 'x', sizeof(data));
		stream_put(w, SECTION_REPLY, 0, NULL, data, len, &err);
		stream_put(w, SECTION_HELLO, 0, NULL, data, len, &err);
		stream_put(w, SECTION_COMMIT, 0, NULL, data, len, &err);
		struct stream *in = reread(w);
		bool fits = len >= 8 && len < 8 + ERR_MSG_MAX;

		assert_int_equal(migrate_get_reply(in, &r, &err), fits ? 0 : -EPROTO);
		assert_true(migrate_get_hello(in, &got, &err) < 0);
		assert_int_equal(migrate_get_commit(in, &paused, &err), -EPROTO);
		stream_free(in);
		stream_free(w);
	}
}

static void test_addresses(void **state)
{
	static const struct {
		const char *text, *host, *port, *path;
	} good[] = {
		{ "tcp:host2:4444", "host2", "4444", "" },
		{ "tcp:192.0.2.1:1", "192.0.2.1", "1", "" },
		{ "tcp:[2001:db8::1]:65535", "2001:db8::1", "65535", "" },
		{ "unix:/run/x y", "", "", "/run/x y" },
	};
	static const char *const bad[] = {
		"",
		"tcp",
		"tcp:",
		"tcp:host",
		"tcp:host:",
		"tcp:host:0",
		"tcp:host:65536",
		"tcp:host:-1",
		"tcp:host:1x",
		"tcp::1",
		"tcp:[::1:5",
		"tcp:[]:5",
		"tcp:a:b:5",
		"tcp:host:000001",
		"unix:",
		"udp:host:1",
		"/run/x",
	};
	struct peer_address a;
	struct err err;
	char longest[200];

	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_int_equal(peer_parse(&a, good[i].text, &err), 0);
		assert_string_equal(a.host, good[i].host);
		assert_string_equal(a.port, good[i].port);
		assert_string_equal(a.path, good[i].path);
	}
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (peer_parse(&a, bad[i], &err) != -EINVAL)
			fail_msg("%s is taken", bad[i]);
	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	memcpy(longest, "unix:", 5);
	assert_int_equal(peer_parse(&a, longest, &err), -EINVAL);
}

/* docs/migration.md lists the stages of the table, in its order. */
static void test_stages_documented(void **state)
{
	FILE *f = fopen("docs/migration.md", "r");
	char line[512], want[512];
	unsigned n = 0;
	bool there = false;

	if (!f)
		fail_msg("run me from the top of the source");
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, "## ", 3))
			there = !strcmp(line, "## Stages\n");
		if (!there || strncmp(line, "| `", 3))
			continue;
		assert_true(n < MIGRATE_STAGES);
		snprintf(want, sizeof(want), "| `%s` | %s |\n", migrate_stages[n].name,
			 migrate_stages[n].what);
		assert_string_equal(line, want);
		n++;
	}
	fclose(f);
	assert_int_equal(n, MIGRATE_STAGES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one),         cmocka_unit_test(test_four),
		cmocka_unit_test(test_bandwidth),   cmocka_unit_test(test_cancelled),
		cmocka_unit_test(test_interrupted), cmocka_unit_test(test_broken),
		cmocka_unit_test(test_ranges),      cmocka_unit_test(test_zero_rounds),
		cmocka_unit_test(test_words),       cmocka_unit_test(test_bad_words),
		cmocka_unit_test(test_addresses),   cmocka_unit_test(test_stages_documented),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
