/*
 * test_stream.c - sections there and back, over memory, pipes and sockets, and what is refused
 */
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/crc32c.h"
#include "base/stream.h"

static const char *name_of(unsigned type)
{
	return type == 7 ? "seven" : NULL;
}

static struct stream *written(void)
{
	struct err err = { 0 };
	struct stream *s = stream_buffer_new(&err);
	struct iovec iov[3] = { { (char[]){ "ab" }, 2 }, { NULL, 0 }, { (char[]){ "cde" }, 3 } };

	assert_non_null(s);
	assert_int_equal(stream_put(s, 7, 0, "first", "12345", 5, &err), 0);
	assert_int_equal(stream_put(s, 8, STREAM_OPTIONAL, NULL, NULL, 0, &err), 0);
	assert_int_equal(stream_putv(s, 9, 0, "pieces", iov, 3, &err), 0);
	assert_int_equal(stream_put(s, 10, STREAM_BULK, "", "bulkbulk", 8, &err), 0);
	assert_int_equal(stream_put(s, 11, STREAM_BULK, "", "left", 4, &err), 0);
	assert_int_equal(stream_put(s, 12, 0, "last", "x", 1, &err), 0);
	return s;
}

static void check_all(struct stream *r)
{
	struct stream_section got;
	struct err err = { 0 };
	char bulk[8];

	assert_int_equal(stream_get(r, &got, &err), 1);
	assert_int_equal(got.type, 7);
	assert_string_equal(got.name, "first");
	assert_int_equal(got.len, 5);
	assert_memory_equal(got.data, "12345", 5);
	assert_int_equal(stream_get(r, &got, &err), 1);
	assert_int_equal(got.flags, STREAM_OPTIONAL);
	assert_non_null(got.data); /* empty, and not bulk */
	assert_string_equal(got.name, "");
	assert_int_equal(got.len, 0);
	assert_int_equal(stream_get(r, &got, &err), 1);
	assert_memory_equal(got.data, "abcde", 5);
	assert_int_equal(stream_get(r, &got, &err), 1);
	assert_int_equal(got.len, 8);
	assert_null(got.data);
	assert_int_equal(stream_read(r, bulk, 4, &err), 0);
	assert_int_equal(stream_read(r, bulk + 4, 4, &err), 0);
	assert_memory_equal(bulk, "bulkbulk", 8);
	assert_int_equal(stream_read(r, bulk, 1, &err), -EPROTO);
	assert_int_equal(stream_get(r, &got, &err), 1);
	assert_int_equal(got.type, 11); /* not taken: skipped */
	assert_int_equal(stream_get(r, &got, &err), 1);
	assert_string_equal(got.name, "last");
	assert_int_equal(stream_get(r, &got, &err), 0);
	assert_int_equal(stream_get(r, &got, &err), 0);
}

static void crc(void **state)
{
	uint8_t zeroes[32] = { 0 }, rising[64];

	assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
	assert_int_equal(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283);
	assert_int_equal(crc32c(0, zeroes, 32), 0x8a9136aa); /* RFC 3720 B.4 */
	assert_int_equal(crc32c(0, NULL, 0), 0);
	for (unsigned i = 0; i < sizeof(rising); i++)
		rising[i] = (uint8_t)i;
	assert_int_equal(crc32c(0, rising, 32), 0x46dd794e); /* the same */
	/* in two pieces of every length, at every alignment */
	for (unsigned from = 0; from < 8; from++)
		for (unsigned cut = from; cut <= sizeof(rising); cut++) {
			uint32_t sum = crc32c(0, rising + from, cut - from);

			for (unsigned i = cut; i < sizeof(rising); i++)
				sum = crc32c(sum, rising + i, 1);
			assert_int_equal(sum, crc32c(0, rising + from, sizeof(rising) - from));
		}
}

static void memory(void **state)
{
	struct stream *w = written(), *r;
	struct err err = { 0 };
	size_t len;
	const uint8_t *data = stream_buffer(w, &len);

	assert_int_equal(stream_bytes(w), len);
	r = stream_read_new(data, len, &err);
	check_all(r);
	assert_int_equal(stream_bytes(r), len);
	stream_free(r);
	stream_free(w);
}

/* One byte at a time: every short read there is. */
struct dribble {
	int fd;
	const uint8_t *data;
	size_t len;
};

static void *dribble(void *arg)
{
	struct dribble *d = arg;

	for (size_t i = 0; i < d->len; i++)
		if (write(d->fd, d->data + i, 1) != 1)
			break;
	close(d->fd);
	return NULL;
}

static void short_reads(void **state)
{
	struct stream *w = written(), *r;
	struct err err = { 0 };
	struct dribble d;
	pthread_t t;
	int p[2];

	assert_int_equal(pipe(p), 0);
	d.fd = p[1];
	d.data = stream_buffer(w, &d.len);
	assert_int_equal(pthread_create(&t, NULL, dribble, &d), 0);
	r = stream_fd_new(p[0], "pipe", &err);
	check_all(r);
	pthread_join(t, NULL);
	stream_free(r);
	stream_free(w);
	close(p[0]);
}

/* A socket takes less than it is given: every short write there is. */
static void *take_all(void *arg)
{
	struct stream *r = stream_fd_new(*(int *)arg, "socket", &(struct err){ 0 });
	struct stream_section got;
	uint64_t sum = 0;

	while (stream_get(r, &got, NULL) == 1)
		for (uint64_t i = 0; i < got.len; i++)
			sum += got.data[i];
	stream_free(r);
	return (void *)(uintptr_t)sum;
}

static void short_writes(void **state)
{
	enum { PIECES = 1500, LEN = 4000 };
	static uint8_t bytes[LEN];
	static struct iovec iov[PIECES];
	struct err err = { 0 };
	struct stream *w;
	pthread_t t;
	void *sum;
	int p[2], small = 4096;

	memset(bytes, 3, sizeof(bytes));
	for (int i = 0; i < PIECES; i++)
		iov[i] = (struct iovec){ bytes, LEN };
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, p), 0);
	setsockopt(p[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	assert_int_equal(pthread_create(&t, NULL, take_all, &p[0]), 0);
	w = stream_fd_new(p[1], "socket", &err);
	assert_int_equal(stream_putv(w, 1, 0, "many", iov, PIECES, &err), 0);
	stream_free(w);
	close(p[1]);
	pthread_join(t, &sum);
	assert_int_equal((uintptr_t)sum, 3ull * PIECES * LEN);
	close(p[0]);
}

/* How reading all of it ends: 0, or the error. */
static int read_through(const uint8_t *data, size_t len, bool by_fd, struct err *err)
{
	struct stream_section got;
	struct stream *r;
	int p[2] = { -1, -1 }, rc;

	if (by_fd) {
		assert_int_equal(pipe(p), 0);
		assert_int_equal(write(p[1], data, len), len);
		close(p[1]);
		r = stream_fd_new(p[0], "x", err);
	} else {
		r = stream_read_new(data, len, err);
	}
	stream_name_types(r, name_of);
	while ((rc = stream_get(r, &got, err)) == 1)
		;
	stream_free(r);
	if (by_fd)
		close(p[0]);
	return rc;
}

/* The only places to end without an error are between two sections. */
static void truncated(void **state)
{
	struct stream *w = written();
	size_t len;
	const uint8_t *data = stream_buffer(w, &len);

	for (int by_fd = 0; by_fd < 2; by_fd++) {
		unsigned whole = 0;

		for (size_t cut = 0; cut <= len; cut++) {
			struct err err = { 0 };
			int rc = read_through(data, cut, by_fd, &err);

			if (!rc)
				whole++;
			else
				assert_int_equal(rc, -ENODATA);
			if (cut == 26)
				assert_non_null(strstr(err.msg, "ends within section seven"));
			if (cut == 32)
				assert_non_null(strstr(err.msg, "section seven first"));
		}
		assert_int_equal(whole, 7); /* before the first and after each of six */
	}
	stream_free(w);
}

/* A bit flipped anywhere in the first section is noticed. */
static void damaged(void **state)
{
	struct stream *w = written();
	size_t len;
	const uint8_t *data = stream_buffer(w, &len);
	uint8_t *copy = malloc(len);
	const size_t first = 24 + 5 + 5;

	for (size_t bit = 0; bit < first * 8; bit++) {
		struct err err = { 0 };
		size_t at = bit / 8;

		/* the type, and what flags let go, is for the caller to know */
		if (at == 4 || at == 5 || (at == 6 && bit % 8 < 2))
			continue;
		memcpy(copy, data, len);
		copy[at] ^= (uint8_t)(1 << bit % 8);
		assert_true(read_through(copy, len, false, &err) < 0);
		assert_true(*err.msg);
	}
	free(copy);
	stream_free(w);
}

static void foreign(void **state)
{
	struct err err = { 0 };
	uint8_t head[24] = { 'C', 'S', 'E', 'C', 7 };
	uint64_t huge = STREAM_PAYLOAD_MAX + 1;
	uint32_t long_name = STREAM_NAME_MAX + 1;

	assert_int_equal(read_through((const uint8_t *)"#!/bin/sh", 9, true, &err), -EPROTO);
	assert_non_null(strstr(err.msg, "no section begins at byte 0"));

	memcpy(head + 16, &huge, 8);
	assert_int_equal(read_through(head, sizeof(head), true, &err), -EPROTO);
	assert_non_null(strstr(err.msg, "section seven makes no sense"));
	huge = STREAM_PAYLOAD_MAX; /* claimed, not there */
	memcpy(head + 16, &huge, 8);
	assert_int_equal(read_through(head, sizeof(head), true, &err), -ENODATA);
	memset(head + 16, 0, 8);
	memcpy(head + 8, &long_name, 4);
	assert_int_equal(read_through(head, sizeof(head), true, &err), -EPROTO);
}

static void tcp_pair(int *fds)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM, 0);

	assert_int_equal(bind(l, (struct sockaddr *)&a, len), 0);
	assert_int_equal(listen(l, 1), 0);
	assert_int_equal(getsockname(l, (struct sockaddr *)&a, &len), 0);
	fds[0] = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(connect(fds[0], (struct sockaddr *)&a, len), 0);
	fds[1] = accept(l, NULL, NULL);
	assert_true(fds[1] >= 0);
	close(l);
}

#define BULK 700001u

/* In pieces of all lengths, and then nothing more for now. */
static void *write_slowly(void *arg)
{
	const int *fd = arg;
	struct err err = { 0 };
	struct stream *s = stream_buffer_new(&err);
	uint8_t *bulk = malloc(BULK);
	size_t len, step = 1;

	for (size_t i = 0; i < BULK; i++)
		bulk[i] = (uint8_t)(i % 251);
	stream_put(s, 1, STREAM_BULK, NULL, bulk, BULK, &err);
	stream_put(s, 2, 0, NULL, "x", 1, &err);

	const uint8_t *data = stream_buffer(s, &len);

	for (size_t at = 0; at < len; at += step, step = step * 3 % 65521) {
		size_t n = step < len - at ? step : len - at;

		if (write(*fd, data + at, n) != (ssize_t)n)
			break;
	}
	free(bulk);
	stream_free(s);
	return NULL;
}

/* The reader waits for a good part of a bulk payload, but never for more than there will be. */
static void bulk_by_tcp(void **state)
{
	struct err err = { 0 };
	uint8_t *got = malloc(BULK);

	for (unsigned i = 0; i < 20; i++) {
		struct iovec iov[2] = { { got, 12345 }, { got + 12345, BULK - 12345 } };
		struct stream_section s;
		pthread_t writer;
		int fd[2];

		tcp_pair(fd);
		struct stream *r = stream_fd_new(fd[1], "peer", &err);

		pthread_create(&writer, NULL, write_slowly, &fd[0]);
		assert_int_equal(stream_get(r, &s, &err), 1);
		assert_int_equal(stream_readv(r, iov, 2, &err), 0);
		for (size_t at = 0; at < BULK; at++)
			assert_int_equal(got[at], at % 251);
		assert_int_equal(stream_get(r, &s, &err), 1);
		assert_int_equal(s.type, 2);
		pthread_join(writer, NULL);
		stream_free(r);
		close(fd[0]);
		close(fd[1]);
	}
	free(got);
}

/* The socket's own limit on waiting holds, in the middle of a payload too. */
static void bulk_never_comes(void **state)
{
	const struct timeval limit = { .tv_usec = 1000 };
	struct err err = { 0 };
	struct stream_section s;
	struct stream *w = stream_buffer_new(&err), *r;
	uint8_t bulk[4096] = { 0 };
	struct iovec iov = { bulk, sizeof(bulk) };
	size_t len;
	int fd[2];

	tcp_pair(fd);
	r = stream_fd_new(fd[1], "peer", &err);
	assert_int_equal(setsockopt(fd[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
	stream_put(w, 1, STREAM_BULK, NULL, bulk, sizeof(bulk), &err);
	const uint8_t *data = stream_buffer(w, &len);

	assert_int_equal(write(fd[0], data, len - 1), len - 1);
	assert_int_equal(stream_get(r, &s, &err), 1);
	assert_int_equal(stream_readv(r, &iov, 1, &err), -EAGAIN);
	stream_free(w);
	stream_free(r);
	close(fd[0]);
	close(fd[1]);
}

static void peer_gone(void **state)
{
	struct err err = { 0 };
	struct stream *w;
	int p[2];

	signal(SIGPIPE, SIG_IGN);
	assert_int_equal(pipe(p), 0);
	close(p[0]);
	w = stream_fd_new(p[1], "the other side", &err);
	assert_int_equal(stream_put(w, 1, 0, NULL, "x", 1, &err), -EPIPE);
	assert_non_null(strstr(err.msg, "the other side"));
	stream_free(w);
	close(p[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(crc),
		cmocka_unit_test(memory),
		cmocka_unit_test(short_reads),
		cmocka_unit_test(short_writes),
		cmocka_unit_test(truncated),
		cmocka_unit_test(damaged),
		cmocka_unit_test(foreign),
		cmocka_unit_test(bulk_by_tcp),
		cmocka_unit_test(bulk_never_comes),
		cmocka_unit_test(peer_gone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
