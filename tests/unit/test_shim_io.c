/*
 * test_shim_io.c - the serial port and the FIFOs: slow, absent and returning readers
 */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fd.h"
#include "k8s-shim/io.h"

struct rig {
	struct loop *loop;
	struct io *io;
	char dir[32], in[48], out[48], err[48];
	int port; /* the machine's side of the serial line */
	int reader, writer;
};

static struct rig *make(bool terminal)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct io_paths p;
	struct err err = { 0 };
	int pair[2];

	strcpy(r->dir, "/tmp/coracle-io-XXXXXX");
	assert_non_null(mkdtemp(r->dir));
	snprintf(r->in, sizeof(r->in), "%s/in", r->dir);
	snprintf(r->out, sizeof(r->out), "%s/out", r->dir);
	snprintf(r->err, sizeof(r->err), "%s/err", r->dir);
	assert_int_equal(mkfifo(r->in, 0600) | mkfifo(r->out, 0600) | mkfifo(r->err, 0600), 0);
	r->loop = loop_new(&err);
	p = (struct io_paths){ .in = r->in, .out = r->out, .err = r->err, .terminal = terminal };
	r->reader = open(r->out, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	r->io = io_new(r->loop, &p, &err);
	assert_non_null(r->io);
	r->writer = open(r->in, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair),
			 0);
	r->port = pair[0];
	assert_int_equal(io_attach(r->io, pair[1], &err), 0);
	return r;
}

static int setup(void **state)
{
	*state = make(false);
	return 0;
}

static int setup_terminal(void **state)
{
	*state = make(true);
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	io_free(r->io);
	loop_free(r->loop);
	fd_close(&r->port);
	fd_close(&r->reader);
	fd_close(&r->writer);
	unlink(r->in);
	unlink(r->out);
	unlink(r->err);
	rmdir(r->dir);
	free(r);
	return 0;
}

static void turn(struct rig *r)
{
	while (loop_poll(r->loop, 0) > 0)
		;
}

static void says(struct rig *r, const char *text)
{
	assert_int_equal(send(r->port, text, strlen(text), 0), strlen(text));
	turn(r);
}

static void reads(struct rig *r, const char *text)
{
	char got[256] = { 0 };
	ssize_t n = read(r->reader, got, sizeof(got) - 1);

	assert_int_equal(n, strlen(text));
	assert_string_equal(got, text);
}

static void test_log_lines(void **state)
{
	struct rig *r = *state;

	says(r, "one\r\ntwo\r");
	says(r, "\nthree\rfour\r\r\n");
	reads(r, "one\ntwo\nthree\rfour\r\n");
	io_note(r->io, "the end");
	reads(r, "the end\n");
}

static void test_terminal(void **state)
{
	struct rig *r = *state;

	says(r, "one\r\n");
	reads(r, "one\r\n");
}

static void test_input(void **state)
{
	struct rig *r = *state;
	char got[16] = { 0 };

	assert_int_equal(write(r->writer, "abc", 3), 3);
	turn(r);
	assert_int_equal(recv(r->port, got, sizeof(got), 0), 3);
	assert_string_equal(got, "abc");
	/* containerd goes away and comes back */
	close(r->writer);
	turn(r);
	r->writer = open(r->in, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	assert_int_equal(write(r->writer, "def", 3), 3);
	turn(r);
	assert_int_equal(recv(r->port, got, sizeof(got), 0), 3);
	assert_memory_equal(got, "def", 3);
	io_close_in(r->io);
	assert_int_equal(write(r->writer, "x", 1), -1); /* nobody reads any more */
}

/* A guest that does not read stops whoever types; nothing is lost and nothing piles up. */
static void test_input_that_nobody_takes(void **state)
{
	struct rig *r = *state;
	size_t sent = 0, got = 0;
	uint8_t bytes[1024];
	ssize_t n;

	for (unsigned i = 0; i < 10000; i++) {
		memset(bytes, (int)(sent / 1024), sizeof(bytes));
		n = write(r->writer, bytes, sizeof(bytes));
		if (n < 0)
			break;
		sent += (size_t)n;
		turn(r);
	}
	assert_true(sent < 10000 * 1024);
	for (unsigned idle = 0; idle < 2;) {
		n = recv(r->port, bytes, sizeof(bytes), 0);
		idle = n > 0 ? 0 : idle + 1;
		for (ssize_t i = 0; i < n; i++, got++)
			assert_int_equal(bytes[i], (got / 1024) & 0xff);
		turn(r);
	}
	assert_int_equal(got, sent);
}

/* With nobody reading, the machine goes on, and what is kept is the newest. */
static void test_reader_that_stops(void **state)
{
	struct rig *r = *state;
	char line[32];
	unsigned count = 0, total = 40000;

	for (unsigned i = 0; i < total; i++) {
		snprintf(line, sizeof(line), "line %07u\n", i);
		says(r, line);
	}
	/* What the pipe took before it was full comes first, then a gap, then the newest. */
	for (char c[13] = { 0 }; read(r->reader, c, 12) > 0; turn(r))
		count++;
	assert_true(count < total);
	assert_true(count * 13 > IO_RING);
	says(r, "\nback\n");
	char tail[16] = { 0 };
	ssize_t n = read(r->reader, tail, sizeof(tail) - 1);

	assert_true(n >= 6);
	assert_non_null(strstr(tail, "back\n"));
}

static void test_last_words(void **state)
{
	struct rig *r = *state;
	char c;

	send(r->port, "dying\r\n", 7, 0);
	fd_close(&r->port); /* before the loop has seen any of it */
	io_detach(r->io);
	io_finish(r->io);
	turn(r);
	reads(r, "dying\n");
	assert_int_equal(read(r->reader, &c, 1), 0); /* end of file: containerd's copy ends */
}

/* The end is told only when everything has been read. */
static void test_finish_waits_for_the_reader(void **state)
{
	struct rig *r = *state;
	static char bytes[200000];
	size_t got = 0;
	ssize_t n;

	memset(bytes, 'x', sizeof(bytes));
	for (size_t at = 0; at < 120000; at += 1000) {
		assert_int_equal(send(r->port, bytes, 1000, 0), 1000);
		turn(r);
	}
	io_detach(r->io);
	io_finish(r->io);
	while ((n = read(r->reader, bytes, 4096)) != 0) {
		if (n > 0)
			got += (size_t)n;
		turn(r);
	}
	assert_int_equal(got, 120000);
}

static void early_says(struct rig *r, int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), 0), strlen(text));
	turn(r);
}

static void reads_nothing(struct rig *r)
{
	char c;

	assert_int_equal(read(r->reader, &c, 1), -1);
}

/* The serial port counts until the console speaks, and again when the guest starts anew. */
static void test_serial_port_before_the_console(void **state)
{
	struct rig *r = *state;
	struct err err = { 0 };
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair),
			 0);
	assert_int_equal(io_attach_early(r->io, pair[1], &err), 0);
	early_says(r, pair[0], "kernel\n");
	reads(r, "kernel\n");
	assert_int_equal(write(r->writer, "abc", 3), 3); /* typed at the console, not there */
	turn(r);
	char got[8] = { 0 };

	assert_int_equal(recv(pair[0], got, sizeof(got), 0), -1);
	assert_int_equal(recv(r->port, got, sizeof(got), 0), 3);
	assert_int_equal(send(pair[0], "early\n", 6, 0), 6); /* both in one turn: in this order */
	says(r, "login: ");
	reads(r, "early\nlogin: ");
	early_says(r, pair[0], "more\n");
	reads_nothing(r);
	assert_int_equal(send(r->port, "bye\n", 4, 0), 4); /* of the old guest, not seen yet */
	io_restarted(r->io);
	turn(r);
	reads(r, "bye\n");
	early_says(r, pair[0], "again\n");
	reads(r, "again\n");
	assert_int_equal(send(pair[0], "panic\n", 6, 0), 6);
	fd_close(&pair[0]);
	fd_close(&r->port);
	io_detach(r->io);
	reads(r, "panic\n");
}

static void test_what_cannot_be_opened(void **state)
{
	struct err err = { 0 };
	struct loop *l = loop_new(&err);
	struct io_paths binary = { .out = "binary:///bin/x" }, none = { .out = "/nowhere/out" };
	struct io_paths nothing = { 0 };

	assert_null(io_new(l, &binary, &err));
	assert_non_null(strstr(err.msg, "binary://"));
	assert_null(io_new(l, &none, &err));
	assert_non_null(strstr(err.msg, "/nowhere/out"));
	struct io *io = io_new(l, &nothing, &err);

	assert_non_null(io);
	io_note(io, "to nobody");
	io_finish(io);
	io_free(io);
	loop_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_log_lines, setup, teardown),
		cmocka_unit_test_setup_teardown(test_terminal, setup_terminal, teardown),
		cmocka_unit_test_setup_teardown(test_input, setup, teardown),
		cmocka_unit_test_setup_teardown(test_input_that_nobody_takes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reader_that_stops, setup, teardown),
		cmocka_unit_test_setup_teardown(test_last_words, setup, teardown),
		cmocka_unit_test_setup_teardown(test_finish_waits_for_the_reader, setup, teardown),
		cmocka_unit_test_setup_teardown(test_serial_port_before_the_console, setup,
						teardown),
		cmocka_unit_test(test_what_cannot_be_opened),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
