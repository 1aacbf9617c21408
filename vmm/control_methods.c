/*
 * control_methods.c - what a client may ask of the machine
 *
 * All on the main thread, where vm.h wants its calls. Asking for a state the machine is in already
 * succeeds: a client that repeats a request after a lost answer must not see an error for it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "virtio/console.h"
#include "vmm/control_methods.h"
#include "vmm/exit_status.h"
#include "vmm/job.h"
#include "vmm/json_util.h"
#include "vmm/vm.h"

static void add_string(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, text ? jsonrpc_string(text) : NULL);
}

static uint64_t uptime_ms(const struct vm *vm)
{
	struct timespec now;

	if (!vm->started.tv_sec && !vm->started.tv_nsec)
		return 0;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)(now.tv_sec - vm->started.tv_sec) * 1000 +
	       (uint64_t)(now.tv_nsec / 1000000) - (uint64_t)(vm->started.tv_nsec / 1000000);
}

static struct json_object *device_list(const struct vm *vm)
{
	struct json_object *all = json_object_new_array();

	for (unsigned i = 0; i < vm->ndevices; i++) {
		struct json_object *o = json_object_new_object();
		const struct device *d = vm->devices[i];

		add_string(o, "name", d->name);
		add_string(o, "type", d->ops->type);
		if (d->ops->worker && d->ops->worker(d))
			add_string(o, "worker", d->ops->worker(d));
		json_object_array_add(all, o);
	}
	return all;
}

static int info(void *opaque, struct json_object *params, struct json_object **result,
		struct err *err)
{
	const struct vm *vm = ((struct control_target *)opaque)->vm;
	int code = jsonrpc_no_params(params, err);

	if (code)
		return code;
	struct json_object *o = json_object_new_object(), *kernel = json_object_new_object();

	add_string(o, "id", vm->config->id);
	add_string(o, "state", vm_state_name(vm));
	add_string(o, "version", CORACLE_VERSION);
	json_add_u64(o, "pid", (uint64_t)getpid());
	json_add_u64(o, "cpus", vm->config->cpus);
	json_add_u64(o, "memory", vm->config->memory);
	add_string(o, "transport", vm->config->transport == CONFIG_TRANSPORT_PCI ? "pci" : "mmio");
	add_string(kernel, "path", vm->config->kernel);
	add_string(kernel, "format", vm->boot ? boot_describe(vm->boot) : NULL);
	json_object_object_add(o, "kernel", kernel);
	add_string(o, "console", port_description(vm, PORT_SERIAL));
	add_string(o, "virtio-console", port_description(vm, PORT_VIRTIO));
	json_object_object_add(o, "devices", device_list(vm));
	json_add_u64(o, "uptime-ms", uptime_ms(vm));
	json_add_u64(o, "resets", vm->resets);
	add_string(o, "job", job_running(vm->job));
	*result = o;
	return 0;
}

/* ---- descriptors that came with a request ---- */

void control_peer_close_fds(struct control_peer *p)
{
	while (p->nfds)
		close(p->fds[--p->nfds]);
	p->fds_lost = false;
}

int control_peer_take_fds(struct control_peer *p, int fds[CONTROL_FDS_MAX])
{
	unsigned n = p->nfds;

	if (p->fds_lost) {
		control_peer_close_fds(p);
		return -EMFILE;
	}
	memcpy(fds, p->fds, n * sizeof(*fds));
	p->nfds = 0;
	return (int)n;
}

/* ---- stats ---- */

static void put_stat(void *arg, const char *key, uint64_t value)
{
	json_add_u64(arg, key, value);
}

static struct json_object *device_stats(const struct vm *vm)
{
	struct json_object *all = json_object_new_object();

	for (unsigned i = 0; i < vm->ndevices; i++) {
		struct device *d = vm->devices[i];
		struct json_object *o;

		if (!d->ops->stats)
			continue;
		o = json_object_new_object();
		d->ops->stats(d, put_stat, o);
		json_object_object_add(all, d->name, o);
	}
	return all;
}

static struct json_object *vcpu_stats(const struct vm *vm)
{
	struct json_object *all = json_object_new_array();

	for (unsigned i = 0; i < vm->vcpus.count; i++) {
		struct vcpu_counters *c = &vm->vcpus.v[i].count;
		struct json_object *o = json_object_new_object();

		json_add_u64(o, "exits", atomic_load_explicit(&c->exits, memory_order_relaxed));
		json_add_u64(o, "pio", atomic_load_explicit(&c->pio, memory_order_relaxed));
		json_add_u64(o, "mmio", atomic_load_explicit(&c->mmio, memory_order_relaxed));
		json_add_u64(o, "other", atomic_load_explicit(&c->other, memory_order_relaxed));
		json_object_array_add(all, o);
	}
	return all;
}

static uint64_t timeval_us(struct timeval t)
{
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_usec;
}

/* Resident memory holds the guest's RAM as far as it was ever touched, and our own. */
static struct json_object *process_stats(int statm_fd)
{
	struct json_object *o = json_object_new_object();
	unsigned long long size, resident;
	struct rusage usage;
	char text[128];
	ssize_t n = statm_fd < 0 ? -1 : pread(statm_fd, text, sizeof(text) - 1, 0);

	if (n > 0) {
		text[n] = '\0';
		if (sscanf(text, "%llu %llu", &size, &resident) == 2)
			json_add_u64(o, "rss", resident * (uint64_t)sysconf(_SC_PAGESIZE));
	}
	if (!getrusage(RUSAGE_SELF, &usage)) {
		json_add_u64(o, "user-us", timeval_us(usage.ru_utime));
		json_add_u64(o, "system-us", timeval_us(usage.ru_stime));
	}
	return o;
}

static int stats(void *opaque, struct json_object *params, struct json_object **result,
		 struct err *err)
{
	const struct control_target *t = opaque;
	int code = jsonrpc_no_params(params, err);

	if (code)
		return code;
	struct json_object *o = json_object_new_object();

	json_add_u64(o, "uptime-ms", uptime_ms(t->vm));
	json_object_object_add(o, "vcpus", vcpu_stats(t->vm));
	json_object_object_add(o, "devices", device_stats(t->vm));
	json_object_object_add(o, "process", process_stats(t->statm_fd));
	*result = o;
	return 0;
}

/* ---- what changes the machine ---- */

/* The machine if it has not stopped. */
static int want_alive(void *opaque, struct json_object *params, struct vm **vm, struct err *err)
{
	int code = jsonrpc_no_params(params, err);

	*vm = ((struct control_target *)opaque)->vm;
	if (code || (*vm)->state == VM_RUNNING || (*vm)->state == VM_PAUSED)
		return code;
	err_set(err, EBUSY, "the machine is %s", vm_state_name(*vm));
	return CONTROL_WRONG_STATE;
}

static struct json_object *state_of(const struct vm *vm)
{
	struct json_object *o = json_object_new_object();

	add_string(o, "state", vm_state_name(vm));
	return o;
}

static int pause_vm(void *opaque, struct json_object *params, struct json_object **result,
		    struct err *err)
{
	struct vm *vm;
	int code = want_alive(opaque, params, &vm, err);

	if (code)
		return code;
	vm_pause(vm);
	*result = state_of(vm);
	return 0;
}

static int resume_vm(void *opaque, struct json_object *params, struct json_object **result,
		     struct err *err)
{
	struct vm *vm;
	int code = want_alive(opaque, params, &vm, err);

	if (code)
		return code;
	/* A migration gave them up and did not get them back. While one is under way, see vm_hold(). */
	if (vm->disks_away && !vm->held && vm_lock_disks(vm, 0, 0, err))
		return CONTROL_FAILED;
	vm_resume(vm);
	*result = state_of(vm);
	return 0;
}

static int power_button(void *opaque, struct json_object *params, struct json_object **result,
			struct err *err)
{
	struct vm *vm;
	int code = want_alive(opaque, params, &vm, err);

	if (code)
		return code;
	if (!vm->ged) {
		err_set(err, ENOTSUP, "this machine has no power button");
		return CONTROL_UNSUPPORTED;
	}
	vm_power_button(vm);
	*result = state_of(vm);
	return 0;
}

static int reset_vm(void *opaque, struct json_object *params, struct json_object **result,
		    struct err *err)
{
	struct vm *vm;
	int code = want_alive(opaque, params, &vm, err);

	if (code)
		return code;
	if (vm_reset(vm, err)) {
		log_err("the machine could not be started again: %s", err->msg);
		vm_stop(vm, EXIT_HOST, "host-error");
		return CONTROL_FAILED;
	}
	*result = state_of(vm);
	return 0;
}

static int quit(void *opaque, struct json_object *params, struct json_object **result,
		struct err *err)
{
	struct vm *vm = ((struct control_target *)opaque)->vm;
	int code = jsonrpc_no_params(params, err);

	if (code)
		return code;
	vm_stop(vm, EXIT_OK, "quit");
	*result = state_of(vm);
	return 0;
}

/* The size stays with the line whatever the machine does, so any state will do. */
static int console_resize(void *opaque, struct json_object *params, struct json_object **result,
			  struct err *err)
{
	struct vm *vm = ((struct control_target *)opaque)->vm;
	uint64_t cols = 0, rows = 0;
	const struct jsonrpc_number all[] = { { "cols", 1, UINT16_MAX, &cols },
					      { "rows", 1, UINT16_MAX, &rows },
					      { NULL, 0, 0, NULL } };
	int code = jsonrpc_numbers(params, all, err);

	if (code)
		return code;
	if (!cols || !rows) {
		err_set(err, EINVAL, "cols and rows are both wanted");
		return JSONRPC_INVALID_PARAMS;
	}
	if (!vm->virtio_console) {
		err_set(err, ENOTSUP,
			"this machine has no virtio console (--console), and its serial port has "
			"no size");
		return CONTROL_UNSUPPORTED;
	}
	virtio_console_resize(vm->virtio_console, (uint16_t)cols, (uint16_t)rows);
	*result = json_object_new_object();
	json_add_u64(*result, "cols", cols);
	json_add_u64(*result, "rows", rows);
	return 0;
}

/* ---- snapshots and migrations: control_jobs.c ---- */

const struct jsonrpc_method control_methods[] = {
	{ "info", info },
	{ "stats", stats },
	{ "pause", pause_vm },
	{ "resume", resume_vm },
	{ "power-button", power_button },
	{ "reset", reset_vm },
	{ "quit", quit },
	{ "console-resize", console_resize },
	{ "snapshot", control_snapshot },
	{ "migrate", control_migrate },
	{ "cancel", control_cancel },
	{ "migrate-cancel", control_cancel },
	{ NULL, NULL },
};
