/*
 * test_console.c - consoles: what the guest says gets out, what is sent gets in, nothing waits
 *
 * The loop is turned by hand; where another process or thread has a part, it is waited for by what it
 * writes, never by time.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>

#include "tests/unit/console_port.h"
#include "backends/unix_socket.h"

/* ---- the ring ---- */

static void test_ring(void **state)
{
	struct console_ring r;
	const uint8_t *data;

	assert_int_equal(console_ring_init(&r, 8), 0);
	assert_int_equal(console_ring_peek(&r, &data), 0);
	assert_int_equal(console_ring_put(&r, (const uint8_t *)"abcdef", 6), 0);
	console_ring_take(&r, 4);
	assert_int_equal(console_ring_put(&r, (const uint8_t *)"ghijkl", 6), 0);
	assert_int_equal(r.len, 8);
	assert_int_equal(console_ring_put(&r, (const uint8_t *)"mn", 2), 2);
	assert_int_equal(console_ring_peek(&r, &data), 2); /* up to the end */
	assert_memory_equal(data, "gh", 2);
	console_ring_take(&r, 2);
	assert_int_equal(console_ring_peek(&r, &data), 6);
	assert_memory_equal(data, "ijklmn", 6);
	assert_int_equal(console_ring_put(&r, (const uint8_t *)"0123456789", 10), 8);
	char all[8];
	size_t n, len = 0;

	while ((n = console_ring_peek(&r, &data))) {
		memcpy(all + len, data, n);
		len += n;
		console_ring_take(&r, n);
	}
	assert_int_equal(len, 8);
	assert_memory_equal(all, "23456789", 8);
	console_ring_fini(&r);
}

/* ---- what a spec means ---- */

static void test_spec(void **state)
{
	static const char *const bad[] = { "",      "x",       "stdio:", "stdio:x", "null:x",
					   "pty:x", "file",    "file:",  "unix",    "unix:",
					   "stdi",  "filex:y", ":",      ":x" };
	struct port *p = *state;
	struct console_user user = user_of(p);

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct err err = { 0 };

		assert_null(console_new(bad[i], p->loop, &user, &err));
		assert_int_equal(err.code, -EINVAL);
		assert_non_null(strstr(err.msg, "console"));
	}
	p->console = console_new("null", p->loop, &user, NULL);
	assert_non_null(p->console);
	assert_string_equal(p->console->ops->name, "null");
	say(p, "into the void");
	p->console->ops->poke(p->console);
}

/* ---- file ---- */

static void test_file_appends(void **state)
{
	struct port *p = *state;
	char buf[64] = { 0 };
	struct stat st;

	for (int i = 0; i < 2; i++) {
		open_spec(p, "file");
		assert_non_null(strstr(p->console->description, p->path));
		say(p, "boot\n");
		p->console->ops->free(p->console);
		p->console = NULL;
	}
	cleanup_fd int fd = open(p->path, O_RDONLY);

	assert_int_equal(read(fd, buf, sizeof(buf)), 10);
	assert_string_equal(buf, "boot\nboot\n");
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
}

static void test_file_full(void **state)
{
	struct port *p = *state;
	struct console_user user = user_of(p);
	struct rlimit before, small = { 4, RLIM_INFINITY };
	char buf[64];

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	small.rlim_max = before.rlim_max;
	open_spec(p, "file");
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	say(p, "123456");
	say(p, "789");
	settle(p);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	say(p, "later");
	settle(p);
	cleanup_fd int fd = open(p->path, O_RDONLY);

	assert_int_equal(read(fd, buf, sizeof(buf)), 9);
	assert_memory_equal(buf, "1234later", 9);

	/* a file system that is full says so as well */
	struct console *full = console_new("file:/dev/full", p->loop, &user, NULL);

	assert_non_null(full);
	full->ops->write(full, "x", 1);
	settle(p);
	full->ops->write(full, "x", 1);
	settle(p);
	full->ops->free(full);
}

static void test_file_refused(void **state)
{
	struct port *p = *state;
	struct console_user user = user_of(p);
	struct err err = { 0 };

	assert_null(console_new("file:/nonexistent/x", p->loop, &user, &err));
	assert_int_equal(err.code, -ENOENT);
	assert_non_null(strstr(err.msg, "/nonexistent/x"));
	assert_int_equal(mkfifo(p->path, 0600), 0);
	char spec[128];

	snprintf(spec, sizeof(spec), "file:%s", p->path);
	assert_null(console_new(spec, p->loop, &user, &err)); /* and does not hang */
	assert_int_equal(err.code, -ENXIO);
}

/* ---- stdio without a terminal ---- */

static void open_pipes(struct port *p, int in[2], int out[2])
{
	struct console_user user = user_of(p);
	struct err err = { 0 };

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	p->console = console_stdio_open(in[0], out[1], p->loop, &user, &err);
	if (!p->console)
		fail_msg("%s", err.msg);
}

static void close_pipes(int in[2], int out[2])
{
	for (int i = 0; i < 2; i++) {
		fd_close(&in[i]);
		fd_close(&out[i]);
	}
}

static void test_stdio_pipe(void **state)
{
	struct port *p = *state;
	int in[2], out[2];

	open_pipes(p, in, out);
	say(p, "hello");
	expect(p, out[0], "hello");
	/* no escapes in a pipe */
	assert_int_equal(write(in[1], "a\1xb", 4), 4);
	wait_for(p, 4);
	assert_memory_equal(p->got, "a\1xb", 4);
	assert_int_equal(p->quits, 0);
	/* the shared description is as it was */
	assert_int_equal(fcntl(out[1], F_GETFL) & O_NONBLOCK, 0);
	assert_int_equal(fcntl(in[0], F_GETFL) & O_NONBLOCK, 0);
	/* the end of input is not the end of output, and does not keep the loop busy */
	fd_close(&in[1]);
	settle(p);
	say(p, "still here");
	expect(p, out[0], "still here");
	assert_int_equal(loop_poll(p->loop, 0), 0);
	close_pipes(in, out);
}

static void test_stdio_slow_reader(void **state)
{
	enum { TOTAL = 4 << 20 };
	struct port *p = *state;
	int in[2], out[2];
	char line[64], buf[4096], last[32];
	size_t got = 0;
	ssize_t n;

	open_pipes(p, in, out);
	for (unsigned i = 0; i < TOTAL / 16; i++) {
		snprintf(line, sizeof(line), "%015u\n", i);
		say(p, line);
	}
	settle(p);
	struct console_io *io = (struct console_io *)p->console;

	assert_int_equal(io->ring.room, CONSOLE_RING);
	assert_int_equal(io->ring.len, CONSOLE_RING);
	assert_true(io->dropped > 0 && io->dropped < TOTAL);
	/* All that was kept arrives, the newest line last. */
	assert_int_equal(fd_set_nonblock(out[0]), 0);
	while ((n = read(out[0], buf, sizeof(buf))) > 0) {
		got += (size_t)n;
		memcpy(last, buf + n - 16, 16);
		settle(p);
	}
	assert_int_equal(got + io->dropped, TOTAL);
	snprintf(line, sizeof(line), "%015u\n", TOTAL / 16 - 1);
	assert_memory_equal(last, line, 16);
	assert_int_equal(loop_poll(p->loop, 0), 0);
	close_pipes(in, out);
}

static void test_stdio_reader_leaves(void **state)
{
	struct port *p = *state;
	int in[2], out[2];

	open_pipes(p, in, out);
	fd_close(&out[0]);
	say(p, "into a broken pipe");
	settle(p);
	say(p, "again");
	settle(p);
	assert_int_equal(write(in[1], "k", 1), 1);
	wait_for(p, 1);
	close_pipes(in, out);
}

static void test_stdio_port_slow(void **state)
{
	struct port *p = *state;
	int in[2], out[2];
	char text[100];

	memset(text, 'z', sizeof(text));
	p->room = 0;
	open_pipes(p, in, out);
	assert_int_equal(write(in[1], text, sizeof(text)), (int)sizeof(text));
	settle(p);
	assert_int_equal(p->len, 0);
	for (size_t i = 0; i < sizeof(text); i += 20) {
		assert_int_equal(p->len, i);
		p->room = 20;
		p->console->ops->poke(p->console);
		settle(p);
	}
	assert_int_equal(p->len, sizeof(text));
	close_pipes(in, out);
}

/* A writer faster than the port waits in the pipe: no more than the hold is taken. */
static void test_stdio_input_bounded(void **state)
{
	enum { TOTAL = 60000 };
	struct port *p = *state;
	int in[2], out[2];
	char *text = malloc(TOTAL);

	for (size_t i = 0; i < TOTAL; i++)
		text[i] = (char)(i * 7);
	p->room = 0;
	open_pipes(p, in, out);
	assert_int_equal(write(in[1], text, TOTAL), TOTAL);
	settle(p);
	assert_int_equal(((struct console_io *)p->console)->hold.len, CONSOLE_HOLD);
	assert_int_equal(loop_poll(p->loop, 0), 0);
	p->room = SIZE_MAX;
	p->console->ops->poke(p->console);
	wait_for(p, TOTAL);
	assert_memory_equal(p->got, text, TOTAL);
	free(text);
	close_pipes(in, out);
}

static void test_stdio_files(void **state)
{
	enum { TOTAL = 40000 };
	struct port *p = *state;
	struct console_user user = user_of(p);
	cleanup_fd int file = open(p->path, O_RDWR | O_CREAT, 0600);
	cleanup_fd int null = open("/dev/null", O_RDWR);
	char *text = malloc(TOTAL);

	memset(text, 'f', TOTAL);
	assert_int_equal(fd_write_all(file, text, TOTAL), 0);
	assert_int_equal(lseek(file, 0, SEEK_SET), 0);
	p->console = console_stdio_open(file, null, p->loop, &user, NULL);
	assert_non_null(p->console);
	say(p, "away");
	wait_for(p, TOTAL);
	settle(p);
	assert_int_equal(p->len, TOTAL);
	p->console->ops->free(p->console);
	/* and the other way round; /dev/null has nothing to read */
	p->console = console_stdio_open(null, file, p->loop, &user, NULL);
	assert_non_null(p->console);
	say(p, "end");
	settle(p);
	assert_int_equal(pread(file, text, TOTAL, TOTAL), 3);
	assert_memory_equal(text, "end", 3);
	assert_int_equal(p->len, TOTAL);
	free(text);
}

static void test_stdio_socket(void **state)
{
	struct port *p = *state;
	struct console_user user = user_of(p);
	int s[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	p->console = console_stdio_open(s[0], s[0], p->loop, &user, NULL);
	assert_non_null(p->console);
	say(p, "hi");
	expect(p, s[1], "hi");
	assert_int_equal(write(s[1], "ho", 2), 2);
	wait_for(p, 2);
	assert_int_equal(fcntl(s[0], F_GETFL) & O_NONBLOCK, 0);
	char zeros[4096] = { 0 };

	for (int i = 0; i < 1000; i++)
		p->console->ops->write(p->console, zeros, sizeof(zeros)); /* does not wait */
	fd_close(&s[0]);
	fd_close(&s[1]);
}

static void test_stdio_closed(void **state)
{
	struct port *p = *state;
	struct console_user user = user_of(p);
	struct err err = { 0 };

	assert_null(console_stdio_open(-1, -1, p->loop, &user, &err));
	assert_int_equal(err.code, -EBADF);
	cleanup_fd int null = open("/dev/null", O_RDWR);

	p->console = console_stdio_open(-1, null, p->loop, &user, &err);
	assert_non_null(p->console);
	settle(p);
}

/* ---- pty ---- */

static void test_pty(void **state)
{
	struct port *p = *state;
	struct console_user user = user_of(p);
	struct termios modes;
	char big[4096];

	p->console = console_new("pty", p->loop, &user, NULL);
	assert_non_null(p->console);
	assert_memory_equal(p->console->description, "pty /dev/pts/", 13);
	memset(big, 'y', sizeof(big));
	say(p, "before anybody came\n");
	settle(p);
	assert_int_equal(p->len, 0); /* no echo */
	for (int round = 0; round < 2; round++) {
		cleanup_fd int fd = open(p->console->description + 4, O_RDWR | O_NOCTTY);

		assert_true(fd >= 0);
		assert_int_equal(tcgetattr(fd, &modes), 0);
		assert_false(modes.c_lflag & (ECHO | ICANON));
		if (!round)
			expect(p, fd, "before anybody came\n");
		say(p, "hi\n");
		expect(p, fd, "hi\n");
		assert_int_equal(write(fd, "in\1x", 4), 4);
		wait_for(p, 4 * (size_t)(round + 1));
	}
	assert_int_equal(p->quits, 0);
	assert_int_equal(loop_poll(p->loop, 0), 0); /* nobody is attached: no EPOLLHUP storm */
	for (int i = 0; i < 200; i++)
		p->console->ops->write(p->console, big, sizeof(big));
	/* how much the kernel moves on meanwhile is its own affair */
	assert_true(((struct console_io *)p->console)->dropped > 0);
}

/* ---- unix ---- */

static int client_of(struct port *p)
{
	struct err err = { 0 };
	int fd = unix_connect(p->path, 5000, &err);

	if (fd < 0)
		fail_msg("%s", err.msg);
	return fd;
}

static void test_unix(void **state)
{
	struct port *p = *state;
	struct stat st;

	open_spec(p, "unix");
	assert_int_equal(stat(p->path, &st), 0);
	assert_true(S_ISSOCK(st.st_mode));
	assert_int_equal(st.st_mode & 0777, 0600);
	say(p, "early ");
	cleanup_fd int first = client_of(p);

	settle(p);
	say(p, "bird");
	expect(p, first, "early bird");
	cleanup_fd int second = client_of(p);

	assert_int_equal(write(second, "2", 1), 1);
	say(p, "one");
	expect(p, first, "one");
	expect_nothing(p, second);
	assert_int_equal(write(first, "1\1x", 3), 3);
	wait_for(p, 3);
	assert_memory_equal(p->got, "1\1x", 3);
	fd_close(&first);
	wait_for(p, 4);
	assert_int_equal(p->got[3], '2');
	say(p, "two");
	expect(p, second, "two");
	/* only its sending side closed: it goes on reading, without keeping the loop busy */
	assert_int_equal(shutdown(second, SHUT_WR), 0);
	settle(p);
	say(p, "more");
	expect(p, second, "more");
	fd_close(&second);
	settle(p);
	cleanup_fd int third = client_of(p);

	settle(p);
	say(p, "three");
	expect(p, third, "three");
	p->console->ops->free(p->console);
	p->console = NULL;
	assert_int_equal(stat(p->path, &st), -1);
}

/* Sends and leaves while the port is slow and the guest prints: every byte arrives. */
static void test_unix_hit_and_run(void **state)
{
	struct port *p = *state;
	char text[10000];

	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)('a' + i % 26);
	open_spec(p, "unix");
	p->room = 16;
	cleanup_fd int fd = client_of(p);

	settle(p);
	assert_int_equal(write(fd, text, sizeof(text)), (int)sizeof(text));
	fd_close(&fd);
	say(p, "nobody hears this");
	settle(p);
	while (p->len < sizeof(text)) {
		assert_true(p->room == 0);
		p->room = 1000;
		p->console->ops->poke(p->console);
		settle(p);
	}
	assert_memory_equal(p->got, text, sizeof(text));
	cleanup_fd int next = client_of(p);

	settle(p);
	say(p, " next");
	expect(p, next, "nobody hears this next");
}

static void test_unix_slow_client(void **state)
{
	struct port *p = *state;
	char line[4096];

	memset(line, 'x', sizeof(line));
	open_spec(p, "unix");
	cleanup_fd int fd = client_of(p);

	settle(p);
	for (int i = 0; i < 1000; i++)
		p->console->ops->write(p->console, line, sizeof(line));
	settle(p);
	assert_int_equal(((struct console_io *)p->console)->ring.len, CONSOLE_RING);
	assert_int_equal(loop_poll(p->loop, 0), 0);
	fd_close(&fd);
	settle(p);
	cleanup_fd int next = client_of(p);

	read_all(p, next, line, sizeof(line)); /* the last output, kept */
}

static void test_unix_stale(void **state)
{
	struct port *p = *state;
	struct console_user user = user_of(p);
	struct err err = { 0 };
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	char spec[300], *long_path;
	struct stat st;

	/* what a crash leaves behind */
	memcpy(a.sun_path, p->path, strlen(p->path));
	int dead = socket(AF_UNIX, SOCK_STREAM, 0);

	assert_int_equal(bind(dead, (struct sockaddr *)&a, sizeof(a)), 0);
	fd_close(&dead);
	open_spec(p, "unix");
	snprintf(spec, sizeof(spec), "unix:%s", p->path);
	assert_null(console_new(spec, p->loop, &user, &err));
	assert_int_equal(err.code, -EADDRINUSE);
	assert_non_null(strstr(err.msg, p->path));
	assert_int_equal(stat(p->path, &st), 0);
	/* somebody else's by now: not removed */
	assert_int_equal(unlink(p->path), 0);
	cleanup_fd int file = open(p->path, O_CREAT | O_RDWR, 0600);

	p->console->ops->free(p->console);
	p->console = NULL;
	assert_int_equal(stat(p->path, &st), 0);
	assert_null(console_new(spec, p->loop, &user, &err));
	assert_int_equal(err.code, -EEXIST);
	long_path = spec + 5;
	memset(long_path, 'l', 200);
	long_path[200] = '\0';
	assert_null(console_new(spec, p->loop, &user, &err));
	assert_int_equal(err.code, -ENAMETOOLONG);
}

/* No descriptor left: the client is turned away, the loop does not spin, and the next one is served. */
static void test_unix_no_descriptors(void **state)
{
	struct port *p = *state;
	struct rlimit before, none;
	char byte;

	open_spec(p, "unix");
	cleanup_fd int fd = client_of(p);
	int lowest = dup(fd); /* all below are in use */

	close(lowest);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = before;
	none.rlim_cur = (rlim_t)lowest;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	settle(p);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(read(fd, &byte, 1), 0);
	cleanup_fd int next = client_of(p);

	settle(p);
	say(p, "ok");
	expect(p, next, "ok");
}

/* A client that waits for the file to appear and connects is never refused. */
static void *connect_when_there(void *arg)
{
	struct port *p = arg;
	struct stat st;
	int fd;

	while (stat(p->path, &st))
		sched_yield();
	fd = unix_connect(p->path, 5000, NULL);
	return (void *)(intptr_t)fd;
}

static void test_unix_listens_at_once(void **state)
{
	struct port *p = *state;

	for (int i = 0; i < 50; i++) {
		pthread_t t;
		void *result;

		assert_int_equal(pthread_create(&t, NULL, connect_when_there, p), 0);
		open_spec(p, "unix");
		pthread_join(t, &result);
		assert_true((intptr_t)result >= 0);
		close((int)(intptr_t)result);
		p->console->ops->free(p->console);
		p->console = NULL;
	}
}

/* A path so long that there is no room for another name beside it. */
static void test_unix_long_path(void **state)
{
	struct port *p = *state;
	size_t at = (size_t)snprintf(p->path, sizeof(p->path), "%s/", p->dir);

	memset(p->path + at, 'l', 107 - at);
	p->path[107] = '\0';
	open_spec(p, "unix");
	cleanup_fd int fd = client_of(p);

	settle(p);
	say(p, "there");
	expect(p, fd, "there");
	rmdir(p->dir); /* refused: only the socket is in it */
	p->console->ops->free(p->console);
	p->console = NULL;
	assert_int_equal(rmdir(p->dir), 0); /* nothing was left behind */
	assert_int_equal(mkdir(p->dir, 0700), 0);
}

/* ---- threads ---- */

struct writer {
	struct port *p;
	unsigned id;
};

static void *write_lines(void *arg)
{
	struct writer *w = arg;
	char line[8] = { (char)('0' + w->id), 'l', 'i', 'n', 'e', '.', '.', '\n' };

	for (int i = 0; i < 1000; i++) {
		w->p->console->ops->write(w->p->console, line, sizeof(line));
		w->p->console->ops->poke(w->p->console);
	}
	return NULL;
}

static void test_threads(void **state)
{
	enum { N = 4, TOTAL = N * 1000 * 8 };
	struct port *p = *state;
	struct writer w[N];
	pthread_t t[N];
	int in[2], out[2];
	char *all = malloc(TOTAL);

	open_pipes(p, in, out);
	assert_int_equal(loop_thread_start(p->loop, "test", NULL), 0);
	for (unsigned i = 0; i < N; i++) {
		w[i] = (struct writer){ p, i };
		assert_int_equal(pthread_create(&t[i], NULL, write_lines, &w[i]), 0);
	}
	for (size_t done = 0; done < TOTAL;) {
		ssize_t n = read(out[0], all + done, TOTAL - done);

		assert_true(n > 0);
		done += (size_t)n;
	}
	for (unsigned i = 0; i < N; i++)
		pthread_join(t[i], NULL);
	unsigned seen[N] = { 0 };

	for (size_t i = 0; i < TOTAL; i += 8) {
		assert_memory_equal(all + i + 1, "line..\n", 7); /* writes do not mix */
		seen[all[i] - '0']++;
	}
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(seen[i], 1000);
	p->console->ops->free(p->console); /* while the loop runs elsewhere */
	p->console = NULL;
	loop_thread_stop(p->loop);
	free(all);
	close_pipes(in, out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ring),
		T(test_spec),
		T(test_file_appends),
		T(test_file_full),
		T(test_file_refused),
		T(test_stdio_pipe),
		T(test_stdio_slow_reader),
		T(test_stdio_reader_leaves),
		T(test_stdio_port_slow),
		T(test_stdio_input_bounded),
		T(test_stdio_files),
		T(test_stdio_socket),
		T(test_stdio_closed),
		T(test_pty),
		T(test_unix),
		T(test_unix_hit_and_run),
		T(test_unix_slow_client),
		T(test_unix_stale),
		T(test_unix_no_descriptors),
		T(test_unix_listens_at_once),
		T(test_unix_long_path),
		T(test_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
