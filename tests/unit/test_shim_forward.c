/*
 * test_shim_forward.c - connections that are passed on: all bytes, both ends, and more of them than there is room for
 *
 * The listener is on 127.0.0.1, what it passes to on the same port of 127.0.0.2.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fd.h"
#include "k8s-shim/forward.h"

#define BYTES (3u << 20) /* more than all the buffers between */

struct rig {
	struct loop *loop;
	struct forward *f;
	struct sockaddr_in at;
	int guest; /* listens */
};

static int tcp(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	return fd;
}

static void open_rig(struct rig *r, bool guest)
{
	struct sockaddr_storage to = { 0 };
	struct sockaddr_in *in = (struct sockaddr_in *)&to;
	socklen_t len = sizeof(r->at);
	int listener = tcp();
	struct err err = { 0 };

	r->at = (struct sockaddr_in){ .sin_family = AF_INET,
				      .sin_addr = { htonl(INADDR_LOOPBACK) } };
	assert_int_equal(bind(listener, (struct sockaddr *)&r->at, len), 0);
	assert_int_equal(listen(listener, 100), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&r->at, &len), 0);
	*in = r->at;
	in->sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);
	r->guest = -1;
	if (guest) {
		r->guest = tcp();
		assert_int_equal(bind(r->guest, (struct sockaddr *)in, len), 0);
		assert_int_equal(listen(r->guest, 100), 0);
	}
	in->sin_port = 0;
	r->loop = loop_new(&err);
	r->f = forward_new(r->loop, listener, &to, &err);
	assert_non_null(r->f);
}

static void close_rig(struct rig *r)
{
	forward_close(r->f);
	loop_free(r->loop);
	fd_close(&r->guest);
}

static int dial(struct rig *r)
{
	int fd = tcp();

	connect(fd, (struct sockaddr *)&r->at, sizeof(r->at));
	return fd;
}

/* The guest's end of the connection that comes next. */
static int answer(struct rig *r)
{
	int fd;

	while ((fd = accept4(r->guest, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) < 0)
		loop_poll(r->loop, 10);
	return fd;
}

static uint8_t byte(size_t at)
{
	return (uint8_t)(at * 7 + at / 251);
}

/* @from says BYTES and no more, @to hears that. */
static void say(struct rig *r, int from, int to)
{
	static uint8_t buf[100000];
	size_t said = 0, heard = 0;
	ssize_t n = 1;

	while (n) {
		size_t k = 0;

		for (; k < sizeof(buf) && said + k < BYTES; k++)
			buf[k] = byte(said + k);
		n = k ? send(from, buf, k, MSG_NOSIGNAL) : -1;
		assert_true(n > 0 || !k || errno == EAGAIN);
		if (n > 0 && (said += (size_t)n) == BYTES)
			shutdown(from, SHUT_WR);
		loop_poll(r->loop, 1);
		n = recv(to, buf, sizeof(buf), 0);
		assert_true(n >= 0 || errno == EAGAIN);
		for (ssize_t i = 0; i < n; i++)
			assert_int_equal(buf[i], byte(heard + (size_t)i));
		heard += n > 0 ? (size_t)n : 0;
	}
	assert_int_equal(heard, BYTES);
}

static void test_both_ways(void **state)
{
	struct rig r;

	open_rig(&r, true);
	int client = dial(&r), guest = answer(&r);

	say(&r, client, guest); /* and it may still answer */
	say(&r, guest, client);
	close(client);
	close(guest);
	close_rig(&r);
}

/* Until the end, however it comes. */
static void hear_end(struct rig *r, int fd)
{
	char c;
	ssize_t n;

	while ((n = recv(fd, &c, 1, 0)) > 0 || (n < 0 && errno == EAGAIN))
		loop_poll(r->loop, 10);
}

static void test_nobody_listens(void **state)
{
	struct rig r;

	open_rig(&r, false);
	int client = dial(&r);

	hear_end(&r, client);
	close(client);
	close_rig(&r);
}

static void test_the_guest_breaks_off(void **state)
{
	struct linger now = { .l_onoff = 1 };
	struct rig r;

	open_rig(&r, true);
	int client = dial(&r), guest = answer(&r);

	setsockopt(guest, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(guest);
	hear_end(&r, client);
	close(client);
	close_rig(&r);
}

/* Clients that have gone while the guest holds on do not use up the room. */
static void test_more_than_there_is_room_for(void **state)
{
	int guests[FORWARD_MAX + 10];
	struct rig r;

	open_rig(&r, true);
	for (unsigned i = 0; i < FORWARD_MAX + 10; i++) {
		char c;
		int client = dial(&r);

		guests[i] = answer(&r);
		close(client);
		while (recv(guests[i], &c, 1, 0)) /* nothing yet */
			loop_poll(r.loop, 10);
	}
	for (unsigned i = 0; i < FORWARD_MAX + 10; i++)
		close(guests[i]);
	close_rig(&r);
}

/* As long as all are in use, one more is closed, and the others stay. */
static void test_full(void **state)
{
	int clients[FORWARD_MAX], guests[FORWARD_MAX];
	struct rig r;

	open_rig(&r, true);
	for (unsigned i = 0; i < FORWARD_MAX; i++) {
		clients[i] = dial(&r);
		guests[i] = answer(&r);
	}
	int more = dial(&r);

	hear_end(&r, more);
	close(more);
	say(&r, clients[0], guests[0]);
	for (unsigned i = 0; i < FORWARD_MAX; i++) {
		close(clients[i]);
		close(guests[i]);
	}
	close_rig(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_both_ways),
		cmocka_unit_test(test_nobody_listens),
		cmocka_unit_test(test_the_guest_breaks_off),
		cmocka_unit_test(test_more_than_there_is_room_for),
		cmocka_unit_test(test_full),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
