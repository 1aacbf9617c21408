/*
 * test_shim_ttrpc.c - frames in any pieces, calls answered at once, later or never
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fd.h"
#include "k8s-shim/proto/ttrpc.pb-c.h"
#include "k8s-shim/ttrpc.h"
#include "k8s-shim/ttrpc_frame.h"

/* ---- the reader ---- */

struct seen {
	unsigned frames;
	struct ttrpc_frame last;
	uint8_t data[64];
};

static void on_frame(void *opaque, const struct ttrpc_frame *f)
{
	struct seen *s = opaque;

	s->frames++;
	s->last = *f;
	if (f->len && f->len <= sizeof(s->data))
		memcpy(s->data, f->data, f->len);
}

static void test_frame_in_pieces(void **state)
{
	static const uint8_t bytes[] = { 0,   0, 0, 3, 0, 0, 0, 7, 1, 9, 'a', 'b',
					 'c', 0, 0, 0, 0, 0, 0, 0, 9, 2, 0 };

	for (size_t piece = 1; piece <= sizeof(bytes); piece++) {
		struct ttrpc_reader r = { 0 };
		struct seen s = { 0 };

		for (size_t at = 0; at < sizeof(bytes); at += piece) {
			size_t n = sizeof(bytes) - at < piece ? sizeof(bytes) - at : piece;

			assert_int_equal(ttrpc_reader_feed(&r, bytes + at, n, on_frame, &s), 0);
		}
		assert_int_equal(s.frames, 2);
		assert_memory_equal(s.data, "abc", 3);
		assert_int_equal(s.last.stream, 9);
		assert_int_equal(s.last.type, TTRPC_RESPONSE);
		assert_int_equal(s.last.len, 0);
		ttrpc_reader_fini(&r);
	}
}

static void test_frame_too_long(void **state)
{
	struct ttrpc_frame f = { .len = TTRPC_DATA_MAX + 1, .stream = 5, .type = TTRPC_REQUEST };
	struct ttrpc_reader r = { 0 };
	struct seen s = { 0 };
	uint8_t bytes[4096] = { 0 };
	size_t left = f.len;

	ttrpc_header(bytes, &f);
	ttrpc_reader_feed(&r, bytes, TTRPC_HEADER, on_frame, &s);
	memset(bytes, 0, sizeof(bytes));
	while (left) {
		size_t n = left < sizeof(bytes) ? left : sizeof(bytes);

		assert_int_equal(s.frames, 0);
		ttrpc_reader_feed(&r, bytes, n, on_frame, &s);
		left -= n;
	}
	assert_int_equal(s.frames, 1);
	assert_int_equal(s.last.len, TTRPC_DATA_MAX + 1);
	assert_int_equal(r.room, 0); /* nothing of it was kept */
	ttrpc_reader_fini(&r);
}

static void test_memory_follows_what_arrives(void **state)
{
	struct ttrpc_frame f = { .len = TTRPC_DATA_MAX, .stream = 1, .type = TTRPC_REQUEST };
	struct ttrpc_reader r = { 0 };
	struct seen s = { 0 };
	uint8_t bytes[TTRPC_HEADER + 100] = { 0 };

	ttrpc_header(bytes, &f);
	ttrpc_reader_feed(&r, bytes, sizeof(bytes), on_frame, &s);
	assert_true(r.room < 4096);
	ttrpc_reader_fini(&r);
}

/* ---- the server ---- */

#define HELD_MAX 2000

struct rig {
	struct loop *loop;
	struct ttrpc_server *server;
	char path[64];
	struct ttrpc_call *held[HELD_MAX];
	unsigned nheld, handled;
};

/* "now" is answered with its own payload as the message, "wait" later, "big" with a lot. */
static void handle(void *opaque, struct ttrpc_call *call, const struct ttrpc_request *q)
{
	struct rig *r = opaque;
	Pb__Any any = PB__ANY__INIT;

	r->handled++;
	assert_string_equal(q->service, "s");
	if (!strcmp(q->method, "now")) {
		any.value.data = (uint8_t *)q->payload;
		any.value.len = q->len;
		ttrpc_reply(call, &any.base);
	} else if (!strcmp(q->method, "big")) {
		any.value.len = 100000;
		any.value.data = calloc(1, any.value.len);
		ttrpc_reply(call, &any.base);
		free(any.value.data);
	} else if (!strcmp(q->method, "wait") && r->nheld < HELD_MAX) {
		r->held[r->nheld++] = call;
	} else {
		ttrpc_fail(call, TTRPC_UNIMPLEMENTED, "no %s", q->method);
	}
}

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct err err = { 0 };

	snprintf(r->path, sizeof(r->path), "/tmp/coracle-ttrpc-%d", (int)getpid());
	strcpy(a.sun_path, r->path);
	unlink(r->path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 8), 0);
	r->loop = loop_new(&err);
	r->server = ttrpc_server_new(fd, r->loop, handle, r, &err);
	assert_non_null(r->server);
	*state = r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	ttrpc_server_free(r->server);
	for (unsigned i = 0; i < r->nheld; i++)
		ttrpc_fail(r->held[i], TTRPC_UNKNOWN, "the end");
	loop_free(r->loop);
	unlink(r->path);
	free(r);
	return 0;
}

static void turn(struct rig *r)
{
	while (loop_poll(r->loop, 0) > 0)
		;
}

static int client(struct rig *r)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	strcpy(a.sun_path, r->path);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	turn(r);
	return fd;
}

static size_t request(uint8_t *out, uint32_t stream, const char *method, const char *payload)
{
	Pb__Request q = PB__REQUEST__INIT;
	struct ttrpc_frame f = { .stream = stream, .type = TTRPC_REQUEST };

	q.service = (char *)"s";
	q.method = (char *)method;
	q.payload.data = (uint8_t *)payload;
	q.payload.len = strlen(payload);
	f.len = (uint32_t)pb__request__pack(&q, out + TTRPC_HEADER);
	ttrpc_header(out, &f);
	return TTRPC_HEADER + f.len;
}

static void ask(struct rig *r, int fd, uint32_t stream, const char *method, const char *payload)
{
	uint8_t bytes[512];
	size_t n = request(bytes, stream, method, payload);

	assert_int_equal(send(fd, bytes, n, 0), n);
	turn(r);
}

/* The next answer; its status code, 0 for none. */
static int answer(struct rig *r, int fd, uint32_t *stream)
{
	static uint8_t bytes[200000];
	size_t have = 0, want = TTRPC_HEADER;

	while (have < want) {
		ssize_t n = recv(fd, bytes + have, want - have, 0);

		if (n < 0 && errno == EAGAIN) {
			assert_true(loop_poll(r->loop, 1000) > 0);
			continue;
		}
		assert_true(n > 0);
		have += (size_t)n;
		if (have == TTRPC_HEADER && want == TTRPC_HEADER)
			want += (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
	}
	*stream = (uint32_t)bytes[6] << 8 | bytes[7];
	assert_int_equal(bytes[8], TTRPC_RESPONSE);
	Pb__Response *p = pb__response__unpack(NULL, want - TTRPC_HEADER, bytes + TTRPC_HEADER);

	assert_non_null(p);
	int code = p->status ? p->status->code : 0;

	pb__response__free_unpacked(p, NULL);
	return code;
}

static void test_answered_at_once(void **state)
{
	struct rig *r = *state;
	cleanup_fd int fd = client(r);
	uint32_t stream;

	ask(r, fd, 1, "now", "hello");
	assert_int_equal(answer(r, fd, &stream), 0);
	assert_int_equal(stream, 1);
	ask(r, fd, 3, "else", "");
	assert_int_equal(answer(r, fd, &stream), TTRPC_UNIMPLEMENTED);
	assert_int_equal(stream, 3);
}

static void test_a_thousand_wait(void **state)
{
	struct rig *r = *state;
	cleanup_fd int waiting = client(r);
	cleanup_fd int other = client(r);
	uint32_t stream;

	for (unsigned i = 0; i < 1000; i++)
		ask(r, waiting, 2 * i + 1, "wait", "");
	assert_int_equal(r->nheld, 1000);
	ask(r, other, 1, "now", "");
	assert_int_equal(answer(r, other, &stream), 0);
	for (unsigned i = 1000; i-- > 0;)
		ttrpc_fail(r->held[i], TTRPC_NOT_FOUND, "gone");
	r->nheld = 0;
	for (unsigned i = 1000; i-- > 0;) {
		assert_int_equal(answer(r, waiting, &stream), TTRPC_NOT_FOUND);
		assert_int_equal(stream, 2 * i + 1);
	}
}

static void test_client_goes_before_the_answer(void **state)
{
	struct rig *r = *state;
	int fd = client(r);
	Pb__Empty empty = PB__EMPTY__INIT;

	ask(r, fd, 1, "wait", "");
	ask(r, fd, 3, "wait", "");
	close(fd);
	turn(r);
	assert_int_equal(r->nheld, 2);
	ttrpc_reply(r->held[0], &empty.base);
	ttrpc_reply(r->held[1], &empty.base);
	r->nheld = 0;
	turn(r);
}

/* The socket is closed while the answer is made: the next turn of the loop clears up. */
static void test_client_goes_during_the_answer(void **state)
{
	struct rig *r = *state;
	int fd = client(r);
	Pb__Empty empty = PB__EMPTY__INIT;

	ask(r, fd, 1, "wait", "");
	ask(r, fd, 3, "wait", "");
	close(fd);
	ttrpc_reply(r->held[0], &empty.base);
	ttrpc_reply(r->held[1], &empty.base);
	r->nheld = 0;
	turn(r);
}

static void test_client_that_does_not_read(void **state)
{
	struct rig *r = *state;
	cleanup_fd int fd = client(r);
	uint8_t bytes[512];
	unsigned asked = 0;

	/* Until the server reads no more; it must not go on for ever, nor hold more than it said */
	for (; asked < 100000; asked++) {
		size_t n = request(bytes, 2 * asked + 1, "big", "");

		if (send(fd, bytes, n, 0) != (ssize_t)n)
			break;
		turn(r);
	}
	assert_true(asked < 100000);
	assert_true(r->handled < 64);
	cleanup_fd int other = client(r);
	uint32_t stream;

	ask(r, other, 1, "now", "");
	assert_int_equal(answer(r, other, &stream), 0);
}

static void test_what_is_no_request(void **state)
{
	struct rig *r = *state;
	uint32_t stream;
	uint8_t bytes[64] = { 0 };
	const struct ttrpc_frame bad[] = {
		{ .len = 4, .stream = 2, .type = TTRPC_REQUEST },  /* a server's stream */
		{ .len = 4, .stream = 1, .type = TTRPC_RESPONSE }, /* an answer to nothing */
		{ .len = 4, .stream = 1, .type = TTRPC_REQUEST },  /* no message */
	};

	for (unsigned i = 0; i < 3; i++) {
		cleanup_fd int fd = client(r);

		ttrpc_header(bytes, &bad[i]);
		memset(bytes + TTRPC_HEADER, 0xff, 4);
		assert_int_equal(send(fd, bytes, TTRPC_HEADER + 4, 0), TTRPC_HEADER + 4);
		turn(r);
		assert_int_equal(answer(r, fd, &stream), TTRPC_INVALID_ARGUMENT);
		ask(r, fd, 3, "now", "");
		assert_int_equal(answer(r, fd, &stream), 0);
	}
	assert_int_equal(r->handled, 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_frame_in_pieces),
		cmocka_unit_test(test_frame_too_long),
		cmocka_unit_test(test_memory_follows_what_arrives),
		cmocka_unit_test_setup_teardown(test_answered_at_once, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_thousand_wait, setup, teardown),
		cmocka_unit_test_setup_teardown(test_client_goes_before_the_answer, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_client_goes_during_the_answer, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_client_that_does_not_read, setup, teardown),
		cmocka_unit_test_setup_teardown(test_what_is_no_request, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
