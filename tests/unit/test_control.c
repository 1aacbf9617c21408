/*
 * test_control.c - the control socket: what clients get, and that none of them can do harm
 *
 * The machine is a struct vm filled in by hand, without KVM or a vCPU: enough to be paused, resumed
 * and stopped. The loop is turned by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/unix_socket.h"
#include "base/fd.h"
#include "vmm/control.h"
#include "vmm/control_methods.h"
#include "vmm/vm.h"

struct bench {
	struct loop *loop;
	struct control *control;
	struct config config;
	struct vm vm;
	char dir[64];
	char path[128];
	char *line; /* the last one received */
};

static void dummy_stats(struct device *d, device_stat_fn put, void *arg)
{
	put(arg, "read-ops", 12);
	put(arg, "read-bytes", UINT64_MAX);
}

static const struct device_ops dummy_ops = { .type = "dummy", .stats = dummy_stats };
static const struct device_ops silent_ops = { .type = "silent" };

static void make_vm(struct bench *b)
{
	static struct vcpu vcpus[2];
	static struct device disk = { .ops = &dummy_ops, .name = "disk.root" };
	static struct device silent = { .ops = &silent_ops, .name = "rtc" };

	config_init(&b->config);
	b->config.id = strdup("web");
	b->config.kernel = strdup("/boot/vm\xfflinuz");
	b->config.cpus = 2;
	b->vm.config = &b->config;
	b->vm.loop = b->loop;
	b->vm.on_event = control_event;
	b->vm.opaque = b->control;
	b->vm.fd = b->vm.kvm.fd = b->vm.request.fd = -1;
	b->vm.state = VM_RUNNING;
	b->vm.devices[0] = &disk;
	b->vm.devices[1] = &silent;
	b->vm.ndevices = 2;
	atomic_store(&vcpus[1].count.exits, 77);
	b->vm.vcpus.v = vcpus;
	pthread_mutex_init(&b->vm.vcpus.lock, NULL);
	pthread_cond_init(&b->vm.vcpus.changed, NULL);
}

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));
	struct err err = { 0 };

	strcpy(b->dir, "/tmp/coracle-test-XXXXXX");
	if (!mkdtemp(b->dir))
		return -1;
	setenv("CORACLE_RUNTIME_DIR", b->dir, 1);
	snprintf(b->path, sizeof(b->path), "%s/web.sock", b->dir);
	b->loop = loop_new(&err);
	b->control = control_new(NULL, "web", b->loop, &err);
	if (!b->control) {
		fprintf(stderr, "%s\n", err.msg);
		return -1;
	}
	make_vm(b);
	control_serve(b->control, &b->vm);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	if (b->control)
		control_serve(b->control, NULL);
	control_free(b->control);
	b->vm.on_event = NULL;
	loop_free(b->loop);
	config_fini(&b->config);
	rmdir(b->dir);
	free(b->line);
	free(b);
	return 0;
}

static void settle(struct bench *b)
{
	while (loop_poll(b->loop, 0) > 0)
		;
}

static int client(struct bench *b)
{
	struct err err = { 0 };
	int fd = unix_connect(b->path, 5000, &err);

	if (fd < 0)
		fail_msg("%s", err.msg);
	settle(b);
	return fd;
}

static void tell(int fd, const char *text)
{
	assert_int_equal(fd_write_all(fd, text, strlen(text)), 0);
}

/* Whether @fd has something to read: bytes or its end. Turns the loop first. */
static bool has_input(struct bench *b, int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	settle(b);
	return poll(&p, 1, 0) > 0;
}

/* The next line, or NULL at the end of the stream. What follows it stays in the socket. */
static const char *next_line(struct bench *b, int fd)
{
	static const size_t piece = 65536;
	size_t len = 0;
	char *end = NULL;

	free(b->line);
	b->line = NULL;
	while (!end) {
		struct pollfd p = { .fd = fd, .events = POLLIN };

		settle(b);
		assert_int_equal(poll(&p, 1, 10000), 1);
		b->line = realloc(b->line, len + piece);
		ssize_t n = recv(fd, b->line + len, piece, MSG_PEEK);

		if (n <= 0)
			return NULL;
		end = memchr(b->line + len, '\n', (size_t)n);
		n = read(fd, b->line + len, end ? (size_t)(end - b->line) - len + 1 : (size_t)n);
		assert_true(n > 0);
		len += (size_t)n;
	}
	*end = '\0';
	return b->line;
}

static void expect_line(struct bench *b, int fd, const char *want)
{
	const char *line = next_line(b, fd);

	assert_non_null(line);
	assert_string_equal(line, want);
}

static void ask(struct bench *b, int fd, const char *method)
{
	char text[256];

	snprintf(text, sizeof(text), "{\"jsonrpc\":\"2.0\",\"method\":\"%s\",\"id\":1}\n", method);
	tell(fd, text);
}

static struct json_object *result_of(struct bench *b, int fd, const char *method)
{
	struct json_object *o, *result;

	ask(b, fd, method);
	o = json_tokener_parse(next_line(b, fd));
	assert_true(json_object_object_get_ex(o, "result", &result));
	json_object_get(result);
	json_object_put(o);
	return result;
}

static const char *string_at(struct json_object *o, const char *key)
{
	return json_object_get_string(json_object_object_get(o, key));
}

static int64_t int_at(struct json_object *o, const char *key)
{
	return json_object_get_int64(json_object_object_get(o, key));
}

/* ---- what one can ask ---- */

static void test_info(void **state)
{
	struct bench *b = *state;
	cleanup_fd int fd = client(b);
	struct json_object *o = result_of(b, fd, "info");

	assert_string_equal(string_at(o, "id"), "web");
	assert_string_equal(string_at(o, "state"), "running");
	assert_string_equal(string_at(o, "version"), CORACLE_VERSION);
	assert_int_equal(int_at(o, "pid"), getpid());
	assert_int_equal(int_at(o, "cpus"), 2);
	assert_int_equal(int_at(o, "memory"), b->config.memory);
	assert_string_equal(string_at(json_object_object_get(o, "kernel"), "path"),
			    "/boot/vm?linuz");
	struct json_object *devices = json_object_object_get(o, "devices");

	assert_int_equal(json_object_array_length(devices), 2);
	struct json_object *d = json_object_array_get_idx(devices, 0);

	assert_string_equal(string_at(d, "name"), "disk.root");
	assert_string_equal(string_at(d, "type"), "dummy");
	json_object_put(o);
}

static void test_stats(void **state)
{
	struct bench *b = *state;
	cleanup_fd int fd = client(b);

	b->vm.vcpus.count = 2;
	struct json_object *o = result_of(b, fd, "stats");
	struct json_object *vcpus = json_object_object_get(o, "vcpus");

	b->vm.vcpus.count = 0;
	assert_int_equal(json_object_array_length(vcpus), 2);
	assert_int_equal(int_at(json_object_array_get_idx(vcpus, 1), "exits"), 77);
	struct json_object *devices = json_object_object_get(o, "devices");

	assert_int_equal(json_object_object_length(devices), 1);
	struct json_object *disk = json_object_object_get(devices, "disk.root");

	assert_int_equal(int_at(disk, "read-ops"), 12);
	assert_true(json_object_get_uint64(json_object_object_get(disk, "read-bytes")) ==
		    UINT64_MAX);
	assert_true(int_at(json_object_object_get(o, "process"), "rss") > 4096);
	json_object_put(o);
}

static void test_pause_resume(void **state)
{
	struct bench *b = *state;
	cleanup_fd int fd = client(b);
	cleanup_fd int other = client(b);

	for (int i = 0; i < 2; i++) { /* the second changes nothing and succeeds */
		ask(b, fd, "pause");
		if (!i)
			expect_line(b, fd,
				    "{\"jsonrpc\":\"2.0\",\"method\":\"paused\",\"params\":{}}");
		expect_line(b, fd,
			    "{\"jsonrpc\":\"2.0\",\"result\":{\"state\":\"paused\"},\"id\":1}");
		assert_int_equal(b->vm.state, VM_PAUSED);
	}
	ask(b, fd, "resume");
	expect_line(b, fd, "{\"jsonrpc\":\"2.0\",\"method\":\"resumed\",\"params\":{}}");
	expect_line(b, fd, "{\"jsonrpc\":\"2.0\",\"result\":{\"state\":\"running\"},\"id\":1}");
	expect_line(b, other, "{\"jsonrpc\":\"2.0\",\"method\":\"paused\",\"params\":{}}");
	expect_line(b, other, "{\"jsonrpc\":\"2.0\",\"method\":\"resumed\",\"params\":{}}");
	assert_false(has_input(b, other));
}

static void test_own_errors(void **state)
{
	struct bench *b = *state;
	cleanup_fd int fd = client(b);

	ask(b, fd, "power-button");
	assert_non_null(strstr(next_line(b, fd), "\"code\":-32003"));
	tell(fd, "{\"jsonrpc\":\"2.0\",\"method\":\"pause\",\"params\":{\"x\":1},\"id\":1}\n");
	assert_non_null(strstr(next_line(b, fd), "\"code\":-32602"));
	b->vm.state = VM_CREATED;
	ask(b, fd, "pause");
	assert_non_null(strstr(next_line(b, fd), "\"code\":-32001"));
}

static void test_quit(void **state)
{
	struct bench *b = *state;
	cleanup_fd int fd = client(b);

	tell(fd, "[{\"jsonrpc\":\"2.0\",\"method\":\"quit\",\"id\":1},"
		 "{\"jsonrpc\":\"2.0\",\"method\":\"resume\",\"id\":2}]\n");
	assert_int_equal(loop_run(b->loop), 0); /* ends */
	assert_int_equal(b->vm.state, VM_STOPPED);
	assert_int_equal(b->vm.status, 0);
	control_serve(b->control, NULL);
	control_free(b->control);
	b->control = NULL;
	expect_line(b, fd,
		    "{\"jsonrpc\":\"2.0\",\"method\":\"shutdown\",\"params\":{\"reason\":"
		    "\"quit\",\"status\":0}}");
	const char *line = next_line(b, fd);

	assert_non_null(strstr(line, "{\"state\":\"stopped\"},\"id\":1}"));
	assert_non_null(strstr(line, "\"code\":-32001"));
	assert_null(next_line(b, fd));
}

/* ---- lines ---- */

static void test_lines(void **state)
{
	struct bench *b = *state;
	cleanup_fd int fd = client(b);
	const char *text =
		"\n \r\n{\"jsonrpc\":\"2.0\",\"method\":\"resume\",\"id\":1}\r\nnonsense\n";

	for (const char *c = text; *c; c++) { /* a byte at a time */
		assert_int_equal(write(fd, c, 1), 1);
		settle(b);
	}
	expect_line(b, fd, "{\"jsonrpc\":\"2.0\",\"result\":{\"state\":\"running\"},\"id\":1}");
	assert_non_null(strstr(next_line(b, fd), "\"code\":-32700"));
	/* many at once, and the sending side shut: all are answered, then the end */
	enum { MANY = 100 }; /* more than one turn answers, fewer than a socket holds */

	for (int i = 0; i < MANY; i++)
		ask(b, fd, "resume");
	shutdown(fd, SHUT_WR);
	for (int i = 0; i < MANY; i++)
		expect_line(b, fd,
			    "{\"jsonrpc\":\"2.0\",\"result\":{\"state\":\"running\"},\"id\":1}");
	assert_null(next_line(b, fd));
}

/* Send what @fd takes while the loop turns; false: it was closed on us. */
static bool pour(struct bench *b, int fd, const char *text, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = send(fd, text + done, len - done, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n > 0)
			done += (size_t)n;
		else if (errno != EAGAIN)
			return false;
		settle(b);
	}
	return true;
}

static void test_long_line(void **state)
{
	enum { LIMIT = 1 << 20 };
	struct bench *b = *state;
	cleanup_fd int fd = client(b);
	cleanup_fd int endless = client(b);
	char *text = malloc(LIMIT + 1);
	static const char head[] = "{\"jsonrpc\":\"2.0\",\"method\":\"resume\",\"id\":1}";

	/* as long as may be */
	memset(text, ' ', LIMIT + 1);
	memcpy(text, head, sizeof(head) - 1);
	text[LIMIT] = '\n';
	assert_true(pour(b, fd, text, LIMIT + 1));
	expect_line(b, fd, "{\"jsonrpc\":\"2.0\",\"result\":{\"state\":\"running\"},\"id\":1}");
	/* one byte more, newline or not */
	assert_true(pour(b, fd, text, LIMIT));
	tell(fd, " \n");
	assert_non_null(strstr(next_line(b, fd), "\"code\":-32600"));
	assert_null(next_line(b, fd));
	for (int i = 0; i < 8; i++)
		if (!pour(b, endless, text, LIMIT))
			break;
	assert_non_null(strstr(next_line(b, endless), "\"code\":-32600"));
	assert_null(next_line(b, endless));
	/* nobody else noticed */
	cleanup_fd int next = client(b);

	ask(b, next, "resume");
	expect_line(b, next, "{\"jsonrpc\":\"2.0\",\"result\":{\"state\":\"running\"},\"id\":1}");
	free(text);
}

/* ---- clients that do not read ---- */

/* Requests wait in its own socket; nothing grows, and when it reads, all are answered. */
static void test_asks_without_reading(void **state)
{
	struct bench *b = *state;
	cleanup_fd int fd = client(b);
	static const char request[] = "{\"jsonrpc\":\"2.0\",\"method\":\"info\",\"id\":1}\n";
	size_t sent = 0;

	/* whole lines as long as they fit, so that the count is exact */
	while (send(fd, request, sizeof(request) - 1, MSG_DONTWAIT | MSG_NOSIGNAL) ==
	       (ssize_t)sizeof(request) - 1) {
		sent++;
		settle(b);
	}
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(loop_poll(b->loop, 0), 0); /* and it does not spin */
	for (size_t i = 0; i < sent; i++)
		assert_non_null(strstr(next_line(b, fd), "\"result\""));
	assert_false(has_input(b, fd));
}

static void test_events_without_reading(void **state)
{
	struct bench *b = *state;
	cleanup_fd int deaf = client(b);
	cleanup_fd int fd = client(b);
	char *big = malloc(100001);

	memset(big, 'e', 100000);
	big[100000] = '\0';
	struct json_object *params = json_object_new_object();

	json_object_object_add(params, "text", json_object_new_string(big));
	for (int i = 0; i < 40; i++) {
		control_event(b->control, "io-error", params);
		assert_non_null(strstr(next_line(b, fd), "io-error")); /* this one reads */
	}
	json_object_put(params);
	free(big);
	int lines = 0;

	while (next_line(b, deaf))
		lines++;
	assert_true(lines > 0 && lines < 40); /* dropped */
	ask(b, fd, "resume");
	expect_line(b, fd, "{\"jsonrpc\":\"2.0\",\"result\":{\"state\":\"running\"},\"id\":1}");
}

/* Gone before the answers, so that the event of its own request is what finds it out. */
static void test_asks_and_leaves(void **state)
{
	struct bench *b = *state;
	cleanup_fd int watcher = client(b);
	cleanup_fd int fd = client(b);

	for (int i = 0; i < 20; i++)
		ask(b, fd, i % 2 ? "resume" : "pause");
	fd_close(&fd);
	settle(b);
	assert_non_null(strstr(next_line(b, watcher), "\"paused\"")); /* the first was heeded */
	cleanup_fd int next = client(b);

	ask(b, next, "info");
	assert_non_null(strstr(next_line(b, next), "\"result\""));
}

static void test_farewell_is_bounded(void **state)
{
	struct bench *b = *state;
	cleanup_fd int fd = client(b);
	char *big = malloc(100001);

	memset(big, 'e', 100000);
	big[100000] = '\0';
	struct json_object *params = json_object_new_object();

	json_object_object_add(params, "text", json_object_new_string(big));
	for (int i = 0; i < 8; i++)
		control_event(b->control, "io-error", params);
	json_object_put(params);
	free(big);
	control_serve(b->control, NULL);
	control_free(b->control); /* returns though nobody reads */
	b->control = NULL;
	assert_true(access(b->path, F_OK) != 0);
}

/* ---- how many, when, where ---- */

static void test_too_many(void **state)
{
	enum { MAX = 64 };
	struct bench *b = *state;
	int fd[MAX];

	for (int i = 0; i < MAX; i++)
		fd[i] = client(b);
	cleanup_fd int more = client(b);

	assert_non_null(strstr(next_line(b, more), "\"code\":-32004"));
	assert_null(next_line(b, more));
	fd_close(&fd[5]);
	settle(b);
	cleanup_fd int again = client(b);

	ask(b, again, "resume");
	assert_non_null(strstr(next_line(b, again), "\"result\""));
	for (int i = 0; i < MAX; i++)
		fd_close(&fd[i]);
}

static void test_waits_until_served(void **state)
{
	struct bench *b = *state;

	control_serve(b->control, NULL);
	cleanup_fd int fd = client(b);

	ask(b, fd, "resume");
	assert_false(has_input(b, fd));
	assert_int_equal(loop_poll(b->loop, 0), 0);
	control_serve(b->control, &b->vm);
	expect_line(b, fd, "{\"jsonrpc\":\"2.0\",\"result\":{\"state\":\"running\"},\"id\":1}");
	/* and one that is connected already */
	control_serve(b->control, NULL);
	ask(b, fd, "resume");
	assert_false(has_input(b, fd));
	control_serve(b->control, &b->vm);
	expect_line(b, fd, "{\"jsonrpc\":\"2.0\",\"result\":{\"state\":\"running\"},\"id\":1}");
	control_serve(b->control, NULL);
	fd_close(&fd); /* goes while nobody is served */
	settle(b);
	assert_int_equal(loop_poll(b->loop, 0), 0);
}

static void test_names(void **state)
{
	struct bench *b = *state;
	struct err err = { 0 };
	struct stat st;
	char path[128], link[128];

	assert_int_equal(stat(b->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_null(control_new(NULL, "web", b->loop, &err));
	assert_int_equal(err.code, -EADDRINUSE);
	assert_non_null(strstr(err.msg, "web"));
	assert_null(control_new(b->path, NULL, b->loop, &err));
	assert_int_equal(err.code, -EADDRINUSE);
	/* a path and a name */
	snprintf(path, sizeof(path), "%s/elsewhere", b->dir);
	snprintf(link, sizeof(link), "%s/db.sock", b->dir);
	struct control *both = control_new(path, "db", b->loop, &err);

	assert_non_null(both);
	assert_int_equal(lstat(link, &st), 0);
	assert_true(S_ISLNK(st.st_mode));
	cleanup_fd int fd = unix_connect(link, 5000, NULL);

	assert_true(fd >= 0);
	assert_null(control_new(NULL, "db", b->loop, &err));
	assert_int_equal(err.code, -EADDRINUSE);
	control_free(both);
	assert_int_equal(lstat(link, &st), -1);
	assert_int_equal(lstat(path, &st), -1);
	/* a link that leads nowhere is no machine */
	assert_int_equal(symlink(path, link), 0);
	both = control_new(NULL, "db", b->loop, &err);
	assert_non_null(both);
	control_free(both);
	/* the name's own place given as the path */
	both = control_new(link, "db", b->loop, &err);
	assert_non_null(both);
	control_free(both);
	assert_int_equal(lstat(link, &st), -1);
	/* a directory others may write to is not trusted */
	assert_int_equal(chmod(b->dir, 0777), 0);
	assert_null(control_new(NULL, "db", b->loop, &err));
	assert_int_equal(err.code, -EPERM);
	assert_int_equal(chmod(b->dir, 0700), 0);
}

/* ---- docs/control.md is the same list ---- */

static bool is_method(const char *name, size_t len)
{
	for (const struct jsonrpc_method *m = control_methods; m->name; m++)
		if (strlen(m->name) == len && !memcmp(m->name, name, len))
			return true;
	return false;
}

static void test_documented(void **state)
{
	FILE *f = fopen("docs/control.md", "r");
	char line[1024];
	bool methods = false;
	unsigned n = 0, all = 0;

	if (!f)
		fail_msg("run me from the top of the source");
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, "## ", 3))
			methods = !strcmp(line, "## Methods\n");
		if (!methods || strncmp(line, "### `", 5))
			continue;
		size_t len = strcspn(line + 5, "`");

		if (!is_method(line + 5, len))
			fail_msg("documented, but there is no %s", line + 4);
		n++;
	}
	fclose(f);
	for (const struct jsonrpc_method *m = control_methods; m->name; m++)
		all++;
	assert_int_equal(n, all);
}

/* ---- descriptors ---- */

static void tell_with_fds(int fd, const char *text, const int *fds, unsigned n)
{
	union {
		char room[CMSG_SPACE(sizeof(int) * 64)];
		struct cmsghdr align;
	} c = { { 0 } };
	struct iovec iov = { (char *)text, strlen(text) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = c.room,
			      .msg_controllen = CMSG_SPACE(sizeof(int) * n) };
	struct cmsghdr *h = CMSG_FIRSTHDR(&msg);

	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(int) * n);
	memcpy(CMSG_DATA(h), fds, sizeof(int) * n);
	assert_int_equal(sendmsg(fd, &msg, 0), (ssize_t)strlen(text));
}

/* The other end of a pipe whose writing end was handed over: closed there? */
static bool is_closed(int reading)
{
	struct pollfd p = { .fd = reading, .events = POLLIN };

	return poll(&p, 1, 0) == 1 && p.revents & POLLHUP;
}

/* Whatever comes along with a request that does not want it is closed, how ever many. */
static void test_unwanted_fds(void **state)
{
	static const char info[] = "{\"jsonrpc\":\"2.0\",\"method\":\"pause\",\"id\":1}\n";
	struct bench *b = *state;
	int pipes[3][2], many[64], fd = client(b);

	for (int i = 0; i < 3; i++)
		assert_int_equal(pipe(pipes[i]), 0);
	tell_with_fds(fd, info, &pipes[0][1], 1);
	close(pipes[0][1]);
	assert_non_null(next_line(b, fd));
	settle(b);
	assert_true(is_closed(pipes[0][0]));

	for (int i = 0; i < 64; i++)
		many[i] = pipes[1][1];
	tell_with_fds(fd, info, many, 20);
	tell_with_fds(fd, info, many, 64);
	close(pipes[1][1]);
	assert_non_null(next_line(b, fd));
	assert_non_null(next_line(b, fd));
	settle(b);
	assert_true(is_closed(pipes[1][0]));

	/* half a request, then gone */
	tell_with_fds(fd, "{\"jsonrpc\"", &pipes[2][1], 1);
	close(pipes[2][1]);
	settle(b);
	assert_false(is_closed(pipes[2][0]));
	close(fd);
	settle(b);
	assert_true(is_closed(pipes[2][0]));
	for (int i = 0; i < 3; i++)
		close(pipes[i][0]);
}

static void test_take_fds(void **state)
{
	struct control_peer p = { .number = 1 };
	int fds[CONTROL_FDS_MAX], none[CONTROL_FDS_MAX];

	assert_int_equal(control_peer_take_fds(&p, fds), 0);
	p.fds[0] = dup(0);
	p.fds[1] = dup(0);
	p.nfds = 2;
	assert_int_equal(control_peer_take_fds(&p, fds), 2);
	assert_int_equal(control_peer_take_fds(&p, none), 0);
	p.fds[0] = fds[0];
	p.nfds = 1;
	p.fds_lost = true;
	assert_int_equal(control_peer_take_fds(&p, none), -EMFILE);
	assert_int_equal(fcntl(fds[0], F_GETFD), -1); /* closed: half of them are of no use */
	assert_int_equal(control_peer_take_fds(&p, none), 0);
	close(fds[1]);
}

static void test_cancel_nothing(void **state)
{
	struct bench *b = *state;
	int fd = client(b);

	ask(b, fd, "cancel");
	expect_line(b, fd,
		    "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32001,\"message\":\"there is "
		    "nothing to cancel\"},\"id\":1}");
	close(fd);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_info),
		T(test_stats),
		T(test_pause_resume),
		T(test_own_errors),
		T(test_quit),
		T(test_lines),
		T(test_long_line),
		T(test_asks_without_reading),
		T(test_events_without_reading),
		T(test_asks_and_leaves),
		T(test_farewell_is_bounded),
		T(test_too_many),
		T(test_waits_until_served),
		T(test_names),
		T(test_unwanted_fds),
		T(test_cancel_nothing),
		cmocka_unit_test(test_take_fds),
		cmocka_unit_test(test_documented),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
