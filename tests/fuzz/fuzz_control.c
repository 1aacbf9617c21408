/*
 * fuzz_control.c - the control socket and the prompt under a hostile client
 *
 * The machine is a struct vm without KVM or vCPUs. The first byte chooses:
 *
 *	0  one message given to the dispatcher: whatever it is, what comes back is JSON-RPC
 *	1  a stream given to a real socket, in pieces whose sizes are the pieces' first bytes, sometimes
 *	   read from; every line that comes back is JSON-RPC, and the server answers the next client
 *	2  typed at the prompt
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/console.h"
#include "backends/unix_socket.h"
#include "base/log.h"
#include "vmm/control.h"
#include "vmm/control_methods.h"
#include "vmm/monitor.h"
#include "vmm/vm.h"

#define RAM (1u << 20)

#define CHECK(cond)                       \
	do {                              \
		if (!(cond))              \
			__builtin_trap(); \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void sink_write(struct console *c, const void *data, size_t len)
{
	const char *volatile last = data; /* looked at, so that a bad length shows */

	CHECK(len < 65536);
	for (size_t i = 0; i < len; i++)
		(void)*(const volatile char *)(last + i);
}

static const struct console_ops sink_ops = { .name = "sink", .write = sink_write };

static void put_stats(struct device *d, device_stat_fn put, void *arg)
{
	put(arg, "read-ops", UINT64_MAX);
}

static void nothing(struct device *d)
{
}

static const struct device_ops device_ops = { .type = "dummy",
					      .stats = put_stats,
					      .reset = nothing };

struct rig {
	struct loop *loop;
	struct control *control;
	struct config config;
	struct vm vm;
	struct console console;
	struct device device;
	char path[64];
	char buf[65536];
	size_t len; /* of buf: a line begun */
};

static void no_power(void *opaque, enum wire_power what, int status)
{
}

static struct rig *make_rig(void)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct vm *vm = &r->vm;

	snprintf(r->path, sizeof(r->path), "/tmp/coracle-fuzz-%d", (int)getpid());
	r->loop = loop_new(NULL);
	r->control = control_new(r->path, NULL, r->loop, NULL);
	CHECK(r->control);
	config_init(&r->config);
	r->config.kernel = strdup("/boot/vmlinuz");
	r->console = (struct console){ &sink_ops, "sink" };
	r->device = (struct device){ .ops = &device_ops, .name = "disk.root" };
	vm->config = &r->config;
	vm->loop = r->loop;
	vm->on_event = control_event;
	vm->opaque = r->control;
	vm->ports[PORT_SERIAL].console = &r->console;
	vm->devices[0] = &r->device;
	vm->ndevices = 1;
	vm->mem = gmem_new(NULL);
	CHECK(!gmem_add_ram(vm->mem, 0, RAM, GMEM_PAGES_SMALL, NULL));
	CHECK(!notify_init(&vm->notify, false, no_power, vm, NULL));
	vm->fd = vm->kvm.fd = vm->request.fd =
		-1; /* a reset fails, as on a host that has had enough */
	pthread_mutex_init(&vm->vcpus.lock, NULL);
	pthread_cond_init(&vm->vcpus.changed, NULL);
	return r;
}

static void free_rig(struct rig *r)
{
	control_serve(r->control, NULL);
	control_free(r->control);
	gmem_free(r->vm.mem);
	notify_fini(&r->vm.notify);
	config_fini(&r->config);
	loop_free(r->loop);
	free(r);
}

/* ---- what an answer is ---- */

static void check_answer(struct json_object *o)
{
	struct json_object *version, *result, *error, *id, *code, *method;
	bool has_result, has_error;

	CHECK(json_object_is_type(o, json_type_object));
	CHECK(json_object_object_get_ex(o, "jsonrpc", &version));
	CHECK(!strcmp(json_object_get_string(version), "2.0"));
	has_result = json_object_object_get_ex(o, "result", &result);
	has_error = json_object_object_get_ex(o, "error", &error);
	if (json_object_object_get_ex(o, "method", &method)) { /* an event */
		CHECK(!has_result && !has_error && !json_object_object_get_ex(o, "id", NULL));
		return;
	}
	CHECK(has_result != has_error);
	CHECK(json_object_object_get_ex(o, "id", &id));
	CHECK(!json_object_is_type(id, json_type_object) &&
	      !json_object_is_type(id, json_type_array) &&
	      !json_object_is_type(id, json_type_boolean));
	if (has_error) {
		CHECK(json_object_object_get_ex(error, "code", &code));
		CHECK(json_object_get_int(code) < -32000);
		CHECK(json_object_get_string_len(json_object_object_get(error, "message")) > 0);
	}
}

static void check_text(const char *text, size_t len)
{
	struct json_tokener *t = json_tokener_new();
	struct json_object *o;

	json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	o = json_tokener_parse_ex(t, text, (int)len);
	CHECK(json_tokener_get_error(t) == json_tokener_success);
	if (json_object_is_type(o, json_type_array)) {
		CHECK(json_object_array_length(o) > 0);
		for (size_t i = 0; i < json_object_array_length(o); i++)
			check_answer(json_object_array_get_idx(o, i));
	} else {
		check_answer(o);
	}
	json_object_put(o);
	json_tokener_free(t);
}

/* ---- the three ways in ---- */

static void one_message(struct rig *r, const char *text, size_t len)
{
	struct control_peer peer = { .number = 1 };
	struct control_target target = { .vm = &r->vm, .statm_fd = -1, .peer = &peer };
	struct json_object *o = jsonrpc_answer(control_methods, &target, text, len);
	const char *out;
	size_t n;

	if (!o)
		return;
	out = jsonrpc_text(o, &n);
	CHECK(out && !memchr(out, '\n', n));
	check_text(out, n);
	json_object_put(o);
}

static void settle(struct rig *r)
{
	while (loop_poll(r->loop, 0) > 0)
		;
}

/* Read what there is; false at the end of the stream. */
static bool take_lines(struct rig *r, int fd)
{
	ssize_t n = recv(fd, r->buf + r->len, sizeof(r->buf) - r->len, MSG_DONTWAIT);

	if (n <= 0)
		return n < 0 && errno == EAGAIN;
	r->len += (size_t)n;
	for (char *end; (end = memchr(r->buf, '\n', r->len));) {
		size_t line = (size_t)(end - r->buf);

		check_text(r->buf, line);
		r->len -= line + 1;
		memmove(r->buf, end + 1, r->len);
	}
	CHECK(r->len < sizeof(r->buf)); /* an id of ours is shorter than that */
	return true;
}

static void a_stream(struct rig *r, const uint8_t *data, size_t size)
{
	int fd = unix_connect(r->path, 1000, NULL);

	CHECK(fd >= 0);
	r->len = 0;
	settle(r);
	while (size) {
		size_t n = data[0] >> 1;
		bool look = data[0] & 1;

		data++;
		size--;
		n = n < size ? n : size;
		if (n && send(fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			break;
		data += n;
		size -= n;
		settle(r);
		if (look && !take_lines(r, fd))
			break;
	}
	shutdown(fd, SHUT_WR);
	for (bool more = true; more;) {
		settle(r);
		more = take_lines(r, fd);
	}
	close(fd);
	settle(r);
}

static void at_the_prompt(struct rig *r, const uint8_t *data, size_t size)
{
	struct monitor *m = monitor_new(&r->vm, NULL);

	CHECK(m);
	monitor_toggle(m, &r->console);
	monitor_input(m, data, size);
	monitor_free(m);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	log_set_level(LOG_ERR);
	return 0;
}

/* Everything is made anew: no input may depend on the one before it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig *r;

	if (!size)
		return 0;
	r = make_rig();
	r->vm.state = data[0] & 0x80 ? VM_PAUSED : VM_RUNNING;
	control_serve(r->control, &r->vm);
	switch (data[0] & 3) {
	case 0:
		one_message(r, (const char *)data + 1, size - 1);
		break;
	case 1:
		a_stream(r, data + 1, size - 1);
		break;
	default:
		at_the_prompt(r, data + 1, size - 1);
	}
	free_rig(r);
	return 0;
}
