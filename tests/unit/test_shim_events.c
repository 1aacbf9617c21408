/*
 * test_shim_events.c - events reach a containerd that answers late, goes away and comes back; what a
 * machine answers on its control socket
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
#include "k8s-shim/control_client.h"
#include "k8s-shim/events.h"
#include "k8s-shim/json.h"
#include "k8s-shim/proto/events.pb-c.h"
#include "k8s-shim/proto/ttrpc.pb-c.h"
#include "k8s-shim/ttrpc_frame.h"

struct rig {
	struct loop *loop;
	struct events *events;
	char path[64];
	int listener, fd;
	bool drained;
};

static int listen_at(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	strcpy(a.sun_path, path);
	unlink(path);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 8), 0);
	return fd;
}

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct err err = { 0 };
	char address[80];

	snprintf(r->path, sizeof(r->path), "/tmp/coracle-events-%d", (int)getpid());
	snprintf(address, sizeof(address), "unix://%s", r->path);
	r->listener = listen_at(r->path);
	r->fd = -1;
	r->loop = loop_new(&err);
	r->events = events_new(r->loop, address, "k8s.io", &err);
	assert_non_null(r->events);
	*state = r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	events_free(r->events);
	loop_free(r->loop);
	fd_close(&r->listener);
	fd_close(&r->fd);
	unlink(r->path);
	free(r);
	return 0;
}

static void turn(struct rig *r)
{
	while (loop_poll(r->loop, 0) > 0)
		;
}

static void publish(struct rig *r, const char *id)
{
	Pb__TaskOOM m = PB__TASK_OOM__INIT;

	m.container_id = (char *)id;
	events_publish(r->events, "/tasks/oom", "containerd.events.TaskOOM", &m.base);
}

/* Wait for the next request at containerd's end; its event must be of this container. */
static uint32_t expect(struct rig *r, const char *id)
{
	uint8_t bytes[4096];
	size_t have = 0, want = TTRPC_HEADER;

	while (have < want) {
		if (r->fd < 0) {
			r->fd = accept4(r->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
			if (r->fd < 0)
				assert_true(loop_poll(r->loop, 5000) > 0);
			continue;
		}
		ssize_t n = recv(r->fd, bytes + have, want - have, 0);

		if (n < 0 && errno == EAGAIN) {
			assert_true(loop_poll(r->loop, 5000) > 0);
			continue;
		}
		assert_true(n > 0);
		have += (size_t)n;
		if (have == TTRPC_HEADER)
			want += (uint32_t)bytes[2] << 8 | bytes[3];
	}
	assert_int_equal(bytes[8], TTRPC_REQUEST);
	Pb__Request *q = pb__request__unpack(NULL, want - TTRPC_HEADER, bytes + TTRPC_HEADER);

	assert_string_equal(q->service, "containerd.services.events.ttrpc.v1.Events");
	assert_string_equal(q->method, "Forward");
	Pb__ForwardRequest *f = pb__forward_request__unpack(NULL, q->payload.len, q->payload.data);

	assert_string_equal(f->envelope->namespace_, "k8s.io");
	assert_string_equal(f->envelope->topic, "/tasks/oom");
	assert_string_equal(f->envelope->event->type_url, "containerd.events.TaskOOM");
	Pb__TaskOOM *m = pb__task_oom__unpack(NULL, f->envelope->event->value.len,
					      f->envelope->event->value.data);

	assert_string_equal(m->container_id, id);
	pb__task_oom__free_unpacked(m, NULL);
	pb__forward_request__free_unpacked(f, NULL);
	pb__request__free_unpacked(q, NULL);
	return (uint32_t)bytes[6] << 8 | bytes[7];
}

static void nothing_more(struct rig *r)
{
	uint8_t byte;

	turn(r);
	assert_int_equal(recv(r->fd, &byte, 1, 0), -1);
}

static void answer(struct rig *r, uint32_t stream)
{
	struct ttrpc_frame f = { .stream = stream, .type = TTRPC_RESPONSE };
	uint8_t bytes[TTRPC_HEADER];

	ttrpc_header(bytes, &f); /* of no bytes: an Empty in a Response */
	assert_int_equal(send(r->fd, bytes, sizeof(bytes), 0), sizeof(bytes));
	turn(r);
}

static void on_drained(void *opaque)
{
	((struct rig *)opaque)->drained = true;
}

static void test_one_after_the_other(void **state)
{
	struct rig *r = *state;

	publish(r, "a");
	publish(r, "b");
	events_when_drained(r->events, on_drained, r);
	uint32_t s = expect(r, "a");

	nothing_more(r);
	answer(r, s);
	s = expect(r, "b");
	assert_false(r->drained);
	answer(r, s + 100); /* to something else */
	assert_false(r->drained);
	answer(r, s);
	assert_true(r->drained);
}

static void test_not_answered_is_sent_again(void **state)
{
	struct rig *r = *state;

	publish(r, "a");
	expect(r, "a");
	fd_close(&r->fd);
	publish(r, "b");
	answer(r, expect(r, "a"));
	answer(r, expect(r, "b"));
	nothing_more(r);
}

static void test_containerd_is_away(void **state)
{
	struct rig *r = *state;

	fd_close(&r->listener);
	unlink(r->path);
	publish(r, "a");
	publish(r, "b");
	turn(r);
	r->listener = listen_at(r->path);
	answer(r, expect(r, "a"));
	answer(r, expect(r, "b"));
}

static void test_drained_already(void **state)
{
	struct rig *r = *state;

	events_when_drained(r->events, on_drained, r);
	assert_true(r->drained);
}

static void test_away_for_ever(void **state)
{
	struct rig *r = *state;

	for (unsigned i = 0; i < 3000; i++)
		publish(r, i == 0 ? "first" : i == 2999 ? "last" : "middle");
	answer(r, expect(r, "first")); /* was on its way */
	answer(r, expect(r, "middle"));
}

/* ---- the machine's control socket ---- */

struct control_rig {
	struct loop *loop;
	struct control_client *client;
	int fd;
	unsigned answers, events;
	char last[600];
	int code;
};

static void on_event(void *opaque, const char *method, struct json_object *params)
{
	struct control_rig *r = opaque;

	r->events++;
	snprintf(r->last, sizeof(r->last), "%s", method);
}

static void on_answer(void *opaque, struct json_object *result, const struct err *err)
{
	struct control_rig *r = opaque;

	r->answers++;
	r->code = err->code;
	snprintf(r->last, sizeof(r->last), "%s",
		 result ? json_object_to_json_string_ext(result, 0) : err->msg);
}

static int control_setup(void **state)
{
	struct control_rig *r = calloc(1, sizeof(*r));
	struct err err = { 0 };
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair),
			 0);
	r->loop = loop_new(&err);
	r->fd = pair[0];
	r->client = control_client_new(pair[1], r->loop, on_event, r, &err);
	assert_non_null(r->client);
	*state = r;
	return 0;
}

static int control_teardown(void **state)
{
	struct control_rig *r = *state;

	control_client_free(r->client);
	loop_free(r->loop);
	fd_close(&r->fd);
	free(r);
	return 0;
}

static void machine_says(struct control_rig *r, const char *text)
{
	assert_int_equal(send(r->fd, text, strlen(text), 0), strlen(text));
	while (loop_poll(r->loop, 0) > 0)
		;
}

static void test_control_answers(void **state)
{
	struct control_rig *r = *state;
	char line[256] = { 0 };

	control_client_call(r->client, "info", NULL, on_answer, r);
	control_client_call(r->client, "pause", NULL, on_answer, r);
	assert_true(recv(r->fd, line, sizeof(line) - 1, 0) > 0);
	assert_string_equal(line, "{\"jsonrpc\":\"2.0\",\"method\":\"info\",\"id\":1}\n"
				  "{\"jsonrpc\":\"2.0\",\"method\":\"pause\",\"id\":2}\n");
	machine_says(r,
		     "{\"jsonrpc\":\"2.0\",\"method\":\"started\",\"params\":{}}\n{\"jsonrpc\":");
	assert_int_equal(r->events, 1);
	assert_string_equal(r->last, "started");
	assert_int_equal(r->answers, 0);
	machine_says(r, "\"2.0\",\"result\":{\"a\":1},\"id\":1}\n");
	assert_int_equal(r->answers, 1);
	assert_string_equal(r->last, "{\"a\":1}");
	machine_says(r, "{\"error\":{\"code\":-32003,\"message\":\"no button\"},\"id\":2}\n");
	assert_int_equal(r->answers, 2);
	assert_string_equal(r->last, "no button");
}

static void test_control_end(void **state)
{
	struct control_rig *r = *state;

	control_client_call(r->client, "resume", NULL, on_answer, r);
	control_client_call(r->client, "stats", NULL, on_answer, r);
	/* The answer is there, the loop has not read it yet, and the process has gone. */
	send(r->fd, "{\"result\":{},\"id\":1}\n", 21, 0);
	fd_close(&r->fd);
	control_client_end(r->client);
	assert_int_equal(r->answers, 2);
	assert_int_equal(r->code, -ESHUTDOWN);
	control_client_call(r->client, "info", NULL, on_answer, r);
	assert_int_equal(r->answers, 3);
}

static void test_control_nonsense(void **state)
{
	struct control_rig *r = *state;

	control_client_call(r->client, "info", NULL, on_answer, r);
	machine_says(r, "\n}{\nnull\n7\n[]\n{\"id\":1}\n");
	assert_int_equal(r->answers, 1);
	assert_int_equal(r->code, -EIO);
	machine_says(r, "{\"id\":9,\"result\":{}}\n{\"method\":7}\n");
	assert_int_equal(r->answers, 1);
}

static void test_control_line_without_end(void **state)
{
	struct control_rig *r = *state;
	static char bytes[65536];
	unsigned i;

	memset(bytes, 'x', sizeof(bytes));
	for (i = 0; i < 64; i++) {
		if (send(r->fd, bytes, sizeof(bytes), MSG_NOSIGNAL) < 0)
			break;
		while (loop_poll(r->loop, 0) > 0)
			;
	}
	assert_true(i < 64); /* it does not take more */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_one_after_the_other, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_answered_is_sent_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_containerd_is_away, setup, teardown),
		cmocka_unit_test_setup_teardown(test_drained_already, setup, teardown),
		cmocka_unit_test_setup_teardown(test_away_for_ever, setup, teardown),
		cmocka_unit_test_setup_teardown(test_control_answers, control_setup,
						control_teardown),
		cmocka_unit_test_setup_teardown(test_control_end, control_setup, control_teardown),
		cmocka_unit_test_setup_teardown(test_control_nonsense, control_setup,
						control_teardown),
		cmocka_unit_test_setup_teardown(test_control_line_without_end, control_setup,
						control_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
