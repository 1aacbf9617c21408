/*
 * vm.c - the machine's life
 *
 * Power on, pause, resume, reset and stop in their one order. Which devices exist is machine.c's
 * business, how a vCPU runs is vcpu.c's.
 *
 * Why a reset makes a new KVM VM: resetting in place means writing back every register of every vCPU,
 * local APIC, I/O APIC, PIC, PIT and clock, and a forgotten one is a bug that shows weeks later. A
 * new VM costs about as long as the first one did (tests/bench has the figure) and starts from what
 * the kernel calls power-on.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/fd.h"
#include "base/log.h"
#include "devices/ged.h"
#include "vmm/exit_status.h"
#include "vmm/job.h"
#include "vmm/memslots.h"
#include "vmm/vm.h"

enum vm_power {
	VM_POWER_NONE,
	VM_POWER_OFF,
	VM_POWER_RESET,
	VM_POWER_EXIT,
	VM_POWER_PANIC,
	VM_POWER_CRASH_KERNEL,
	VM_POWER_FAILED
};

void vm_emit(struct vm *vm, const char *event, struct json_object *params)
{
	if (vm->on_event)
		vm->on_event(vm->opaque, event, params);
	json_object_put(params);
}

/* ---- requests from vCPU threads ---- */

static void request(struct vm *vm, enum vm_power what)
{
	int none = VM_POWER_NONE;

	atomic_compare_exchange_strong(&vm->power, &none, (int)what);
	vcpus_hold(&vm->vcpus); /* the guest must not run on past its own request */
	event_signal(&vm->request);
}

static void on_wire_power(void *opaque, enum wire_power what, int status)
{
	struct vm *vm = opaque;

	switch (what) {
	case WIRE_POWER_OFF:
		request(vm, VM_POWER_OFF);
		break;
	case WIRE_POWER_RESET:
		request(vm, VM_POWER_RESET);
		break;
	case WIRE_POWER_EXIT:
		atomic_store(&vm->exit_status, status);
		request(vm, VM_POWER_EXIT);
		break;
	case WIRE_POWER_PANIC:
		request(vm, VM_POWER_PANIC);
		break;
	case WIRE_POWER_CRASH_KERNEL:
		request(vm, VM_POWER_CRASH_KERNEL);
		break;
	}
}

static void on_vcpu_stop(void *opaque, enum vcpu_stop why, unsigned index)
{
	static const enum vm_power power[] = {
		[VCPU_STOP_RESET] = VM_POWER_RESET,
		[VCPU_STOP_OFF] = VM_POWER_OFF,
		[VCPU_STOP_CRASH] = VM_POWER_PANIC,
		[VCPU_STOP_FAILED] = VM_POWER_FAILED,
	};

	if (why == VCPU_STOP_RESET)
		log_info("vCPU %u: triple fault or reset", index);
	request(opaque, power[why]);
}

static void guest_reset(struct vm *vm)
{
	struct err err = { 0 };

	if (!vm->boot)
		log_err("the guest resets, and the kernel it was started with is not there any "
			"more");
	if (vm->config->no_reboot || !vm->boot) {
		vm_stop(vm, EXIT_GUEST_RESET, "guest-reset");
		return;
	}
	if (vm_reset(vm, &err)) {
		log_err("the machine could not be started again: %s", err.msg);
		vm_stop(vm, EXIT_HOST, "host-error");
	}
}

/* Its request has stopped the guest, and nothing comes of it. */
static void go_on(struct vm *vm)
{
	if (vm->state != VM_RUNNING)
		return;
	vcpus_pause(&vm->vcpus); /* it may be on its way there */
	vcpus_resume(&vm->vcpus);
}

static void tell_panic(struct vm *vm, const char *action)
{
	struct json_object *params = json_object_new_object();

	json_object_object_add(params, "action", json_object_new_string(action));
	vm_emit(vm, "guest-panic", params);
}

static void guest_panic(struct vm *vm)
{
	log_err("the guest's kernel panicked; its console has what it said");
	tell_panic(vm, config_panic_words[vm->config->on_panic]);
	switch (vm->config->on_panic) {
	case CONFIG_PANIC_EXIT:
		vm_stop(vm, EXIT_GUEST_PANIC, "guest-panic");
		break;
	case CONFIG_PANIC_RESET:
		guest_reset(vm);
		break;
	case CONFIG_PANIC_PAUSE:
		vm_pause(vm);
		break;
	case CONFIG_PANIC_IGNORE:
		go_on(vm);
		break;
	}
}

static void guest_crash_kernel(struct vm *vm)
{
	log_warn("the guest's kernel panicked, and its crash kernel takes over");
	tell_panic(vm, "crash-kernel");
	go_on(vm);
}

static void on_request(struct loop_watch *w, uint32_t events)
{
	struct vm *vm = (struct vm *)((char *)w - offsetof(struct vm, request_watch));

	event_clear(&vm->request);
	if (vm->state == VM_STOPPED)
		return;
	switch (atomic_exchange(&vm->power, VM_POWER_NONE)) {
	case VM_POWER_OFF:
		vm_stop(vm, EXIT_OK, "guest-power-off");
		break;
	case VM_POWER_RESET:
		guest_reset(vm);
		break;
	case VM_POWER_EXIT:
		vm_stop(vm, atomic_load(&vm->exit_status), "test-device");
		break;
	case VM_POWER_PANIC:
		guest_panic(vm);
		break;
	case VM_POWER_CRASH_KERNEL:
		guest_crash_kernel(vm);
		break;
	case VM_POWER_FAILED:
		vm_stop(vm, EXIT_KVM, "kvm-error");
		break;
	}
}

/* ---- power on ---- */

/* A fresh KVM VM and its vCPUs, which have no registers yet. */
static int make_kvm_vm(struct vm *vm, struct err *err)
{
	int rc;

	vm->fd = kvm_create_vm(&vm->kvm, err);
	if (vm->fd < 0)
		return vm->fd;
	/*
	 * RAM first: the interrupt chips below register with KVM's buses, which newer kernels finish in
	 * the background, and a memory slot set meanwhile waits some milliseconds for that (tests/bench
	 * tiny).
	 */
	if ((rc = memslots_set(vm->fd, vm->mem, err)) || (rc = arch_vm_init(vm->fd, err)))
		return rc;
	return vcpus_create(&vm->vcpus, vm->fd, vm->config->cpus, vm->kvm.run_size, err);
}

static int init_vcpus(struct vm *vm, struct err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < vm->vcpus.count && !rc; i++)
		rc = arch_vcpu_init(vm->vcpus.v[i].fd, vm->cpu, i, err);
	return rc;
}

/* The kernel loaded and vCPU threads parked. */
static int power_on(struct vm *vm, struct err *err)
{
	int rc = vm->fd < 0 ? make_kvm_vm(vm, err) : 0; /* after a reset */

	if (!rc)
		rc = notify_set_vm(&vm->notify, vm->fd, err);
	if (!rc)
		rc = init_vcpus(vm, err);
	if (!rc)
		rc = machine_power_on(vm, err);
	if (rc)
		return rc;
	rc = boot_load(vm->boot, vm->mem, &vm->layout, &vm->machine,
		       vm->config->cmdline ? vm->config->cmdline : "", err);
	if (rc)
		return rc;
	rc = arch_vcpu_set_entry(vm->vcpus.v[0].fd, vm->boot, err);
	if (rc)
		return rc;
	return vcpus_start(&vm->vcpus, err);
}

static void power_cut(struct vm *vm)
{
	struct err ignored;

	vcpus_destroy(&vm->vcpus);
	notify_set_vm(&vm->notify, -1, &ignored);
	fd_close(&vm->fd);
}

static void quiesce(struct vm *vm)
{
	vcpus_pause(&vm->vcpus);
	for (unsigned i = 0; i < vm->ndevices; i++) {
		if (vm->devices[i]->ops->quiesce)
			vm->devices[i]->ops->quiesce(vm->devices[i]);
	}
}

static void run(struct vm *vm)
{
	for (unsigned i = 0; i < vm->ndevices; i++) {
		if (vm->devices[i]->ops->resume)
			vm->devices[i]->ops->resume(vm->devices[i]);
	}
	/* A guest that has asked for its end stays where it is: on_request() comes next. */
	if (atomic_load(&vm->power) == VM_POWER_NONE)
		vcpus_resume(&vm->vcpus);
}

int vm_start(struct vm *vm, struct err *err)
{
	int rc = power_on(vm, err);

	if (rc)
		return rc;
	clock_gettime(CLOCK_MONOTONIC, &vm->started);
	if (vm->config->paused) {
		quiesce(vm);
		vm->state = VM_PAUSED;
		vm_emit(vm, "paused", NULL);
		return 0;
	}
	vm->state = VM_RUNNING;
	vcpus_resume(&vm->vcpus);
	vm_emit(vm, "started", NULL);
	return 0;
}

int vm_prepare(struct vm *vm, struct err *err)
{
	return init_vcpus(vm, err);
}

int vm_start_loaded(struct vm *vm, struct stream *state, enum vm_clock clock, bool paused,
		    struct err *err)
{
	int rc;

	quiesce(vm);
	rc = vm_state_load(vm, state, clock, err);
	/*
	 * Afterwards: each change of a route while it is connected waits for all who use the table, and
	 * interrupts that wait are not written over by the vCPUs' state.
	 */
	if (!rc)
		rc = notify_set_vm(&vm->notify, vm->fd, err);
	if (!rc)
		rc = vcpus_start(&vm->vcpus, err);
	if (rc)
		return rc;
	clock_gettime(CLOCK_MONOTONIC, &vm->started);
	vm->state = VM_PAUSED;
	if (paused) {
		vm_emit(vm, "paused", NULL);
		return 0;
	}
	vm_resume(vm);
	return 0;
}

void vm_pause(struct vm *vm)
{
	if (vm->state != VM_RUNNING)
		return;
	if (!vm->held)
		quiesce(vm);
	vm->state = VM_PAUSED;
	vm_emit(vm, "paused", NULL);
}

void vm_resume(struct vm *vm)
{
	if (vm->state != VM_PAUSED)
		return;
	vm->state = VM_RUNNING;
	if (!vm->held)
		run(vm);
	vm_emit(vm, "resumed", NULL);
}

int vm_hold(struct vm *vm, struct err *err)
{
	if (vm->state != VM_RUNNING && vm->state != VM_PAUSED)
		return err_set(err, ECANCELED, "the machine is %s", vm_state_name(vm));
	if (vm->state == VM_RUNNING)
		quiesce(vm);
	vm->held = true;
	/* Its vCPUs are parked: nothing new can come after this look. */
	if (atomic_load(&vm->power) == VM_POWER_NONE)
		return 0;
	/* The request holds the vCPUs until it is carried out, which the main loop does next. */
	vm->held = false;
	return err_set(err, ECANCELED, "the guest has asked to be powered off or reset");
}

void vm_release(struct vm *vm)
{
	if (!vm->held)
		return;
	vm->held = false;
	if (vm->state == VM_RUNNING)
		run(vm);
}

static int discard_ram(struct vm *vm, struct err *err)
{
	for (unsigned i = 0; i < gmem_count(vm->mem); i++) {
		const struct gmem_region *r = gmem_region(vm->mem, i);
		int rc = gmem_discard(vm->mem, r->gpa, r->size);

		if (rc)
			return err_set_sys(err, rc, "cannot clear guest RAM");
	}
	return 0;
}

int vm_reset(struct vm *vm, struct err *err)
{
	enum vm_state before = vm->state;

	if (before != VM_RUNNING && before != VM_PAUSED)
		return err_set(err, EBUSY, "the machine is not running");
	job_end(vm->job, "the machine is reset");
	if (vm->state == VM_STOPPED)
		return 0; /* the job had gone too far, and has ended it */
	if (before == VM_RUNNING)
		quiesce(vm);
	for (unsigned i = 0; i < vm->ndevices; i++)
		vm->devices[i]->ops->reset(vm->devices[i]);
	power_cut(vm);
	atomic_store(&vm->power, VM_POWER_NONE);
	event_clear(&vm->request);
	int rc = discard_ram(vm, err);

	if (!rc)
		rc = power_on(vm, err);
	if (rc)
		return rc;
	vm->resets++;
	vm_emit(vm, "reset", NULL);
	if (before == VM_RUNNING)
		run(vm);
	return 0;
}

void vm_power_button(struct vm *vm)
{
	if (vm->ged)
		ged_power_button(vm->ged);
}

void vm_stop(struct vm *vm, int status, const char *reason)
{
	if (vm->state == VM_STOPPED)
		return;
	job_end(vm->job, "the machine ends");
	if (vm->state == VM_STOPPED)
		return; /* the job had gone too far, and has ended it itself */
	if (vm->state == VM_RUNNING)
		quiesce(vm);
	vm->held = false;
	vm->state = VM_STOPPED;
	vm->status = status;
	vm->stop_reason = reason;
	struct json_object *params = json_object_new_object();

	json_object_object_add(params, "reason", json_object_new_string(reason));
	json_object_object_add(params, "status", json_object_new_int(status));
	vm_emit(vm, "shutdown", params);
	loop_stop(vm->loop);
}

const char *vm_state_name(const struct vm *vm)
{
	static const char *const names[] = {
		[VM_CREATED] = "created",
		[VM_RUNNING] = "running",
		[VM_PAUSED] = "paused",
		[VM_STOPPED] = "stopped",
	};

	if (vm->state == VM_CREATED && vm->config->incoming)
		return "incoming";
	return names[vm->state];
}

/* ---- making and freeing ---- */

static enum boot_flat_mode flat_mode(enum config_kernel_type t)
{
	switch (t) {
	case CONFIG_KERNEL_FLAT16:
		return BOOT_FLAT_16;
	case CONFIG_KERNEL_FLAT32:
		return BOOT_FLAT_32;
	case CONFIG_KERNEL_FLAT64:
		return BOOT_FLAT_64;
	default:
		return BOOT_FLAT_NONE;
	}
}

/* The loader's name for what the user says the kernel is; NULL: the file tells. */
static const char *kernel_format(enum config_kernel_type t)
{
	switch (t) {
	case CONFIG_KERNEL_BZIMAGE:
		return "bzImage";
	case CONFIG_KERNEL_PVH:
		return "PVH";
	case CONFIG_KERNEL_MULTIBOOT:
		return "multiboot";
	default:
		return NULL;
	}
}

static int open_kernel(struct vm *vm, struct err *err)
{
	const struct config *c = vm->config;
	struct boot_files files = {
		.kernel = c->kernel,
		.initrd = c->initrd,
		.format = kernel_format(c->kernel_type),
		.flat = flat_mode(c->kernel_type),
		.flat_addr = config_load_address(c),
	};

	vm->boot = boot_open(&files, err);
	return vm->boot ? 0 : err->code;
}

/* A snapshot's file has region after region. */
static int map_memory(struct vm *vm, int fd, struct err *err)
{
	const struct arch_window *w[] = { &vm->layout.ram_low, &vm->layout.ram_high };
	uint64_t off = 0;
	int rc = 0;

	for (unsigned i = 0; i < 2 && !rc; i++) {
		if (w[i]->size)
			rc = gmem_add_file(vm->mem, w[i]->base, w[i]->size, fd, off, err);
		off += w[i]->size;
	}
	return rc;
}

static int make_memory(struct vm *vm, int memory_fd, struct err *err)
{
	const struct config *c = vm->config;
	int rc = arch_layout_init(&vm->layout, c->memory, arch_cpu_phys_bits(vm->cpu), err);

	if (rc)
		return rc;
	vm->mem = gmem_new(err);
	if (!vm->mem)
		return err->code;
	if (memory_fd >= 0)
		return map_memory(vm, memory_fd, err);
	rc = arch_add_ram(vm->mem, &vm->layout, c->hugepages, err);
	return rc ? err_prefix(err, "--memory") : 0;
}

static const char *cpu_model(enum config_cpu c)
{
	static const char *const names[] = {
		[CONFIG_CPU_HOST] = "host",
		[CONFIG_CPU_V2] = "x86-64-v2",
		[CONFIG_CPU_V3] = "x86-64-v3",
		[CONFIG_CPU_V4] = "x86-64-v4",
	};

	return names[c];
}

/* A machine that goes on needs its kernel only if it resets. */
static int open_kernel_again(struct vm *vm, struct err *err)
{
	if (!vm->config->kernel || open_kernel(vm, err)) {
		log_warn("%s: a reset would end this machine",
			 vm->config->kernel ? err->msg : "no kernel is named");
		*err = (struct err){ 0 };
	}
	return 0;
}

static int make_cpu(struct vm *vm, const struct vm_header *from, struct err *err)
{
	const struct config *c = vm->config;

	if (from) {
		vm->cpu = arch_cpu_load(c->cpus, from->cpu, from->cpu_len, err);
		return vm->cpu ? 0 : err_prefix(err, "section cpu");
	}
	vm->cpu = arch_cpu_new(vm->kvm.fd, cpu_model(c->cpu), c->cpus, err);
	return vm->cpu ? 0 : err_prefix(err, "--cpu");
}

/* All but the KVM VM. */
static int build_devices(struct vm *vm, const struct vm_header *from, struct err *err)
{
	int rc = from ? arch_cpu_check(vm->cpu, vm->kvm.fd, err) : 0;

	if (rc)
		return err_prefix(err, "section cpu");
	rc = event_init(&vm->request, err);
	if (rc)
		return rc;
	rc = loop_add(vm->loop, &vm->request_watch, vm->request.fd, EPOLLIN, on_request);
	if (rc)
		return err_set_sys(err, rc, "cannot watch the machine's requests");
	vm->job = job_new(vm, err);
	if (!vm->job)
		return err->code;
	rc = notify_init(&vm->notify, vm->kvm.any_length_kicks, on_wire_power, vm, err);
	if (rc)
		return rc;
	return machine_build(vm, err);
}

/* The KVM VM, made beside the rest. */
struct maker {
	struct vm *vm;
	struct err err;
	int rc;
};

static void *make_beside(void *arg)
{
	struct maker *m = arg;

	m->rc = make_kvm_vm(m->vm, &m->err);
	return NULL;
}

/*
 * Making a KVM VM is waiting, mostly: for the kernel's readers of what is changed, and while it clears its
 * books on a large memory. Meanwhile the host is asked what its processors can do, and devices are made.
 */
static int build_both(struct vm *vm, const struct vm_header *from, struct err *err)
{
	struct maker m = { .vm = vm };
	pthread_t thread;
	int rc = pthread_create(&thread, NULL, make_beside, &m);

	if (rc)
		return err_set_sys(err, rc, "cannot start a thread");
	rc = build_devices(vm, from, err);
	pthread_join(thread, NULL);
	if (rc || !m.rc)
		return rc;
	*err = m.err;
	return m.rc;
}

/* @from NULL: power on; else a state is loaded afterwards, and its RAM may be in @memory_fd. */
static int build(struct vm *vm, const struct vm_header *from, int memory_fd, struct err *err)
{
	const struct config *c = vm->config;
	int rc;

	/* Files of the user's first: their mistakes show without KVM, too. */
	rc = from ? open_kernel_again(vm, err) : open_kernel(vm, err);
	if (rc)
		return rc;
	rc = kvm_open(&vm->kvm, err);
	if (rc)
		return rc;
	if (c->cpus > vm->kvm.max_vcpus)
		return err_set(err, EINVAL, "--cpus %u: this host's KVM runs at most %u", c->cpus,
			       vm->kvm.max_vcpus);
	rc = make_cpu(vm, from, err);
	if (rc)
		return rc;
	if (from && c->memory != from->ram)
		return err_set(err, EINVAL,
			       "section header: it has %llu bytes of RAM, its machine %llu",
			       (unsigned long long)from->ram, (unsigned long long)c->memory);
	rc = make_memory(vm, memory_fd, err);
	return rc ? rc : build_both(vm, from, err);
}

struct vm *vm_new(const struct config *c, struct loop *main_loop, vm_event_fn on_event,
		  void *opaque, struct err *err)
{
	return vm_new_from(c, NULL, -1, main_loop, on_event, opaque, err);
}

struct vm *vm_new_from(const struct config *c, const struct vm_header *h, int memory_fd,
		       struct loop *main_loop, vm_event_fn on_event, void *opaque, struct err *err)
{
	struct vm *vm = calloc(1, sizeof(*vm));

	if (!vm) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	vm->config = c;
	vm->loop = main_loop;
	vm->on_event = on_event;
	vm->opaque = opaque;
	vm->fd = vm->kvm.fd = vm->request.fd = vm->notify.vm_fd = -1;
	vm->request_watch.fd = -1;
	bus_init(&vm->mmio);
	bus_init(&vm->pio);
	vm->vcpus = (struct vcpus){
		.mmio = &vm->mmio, .pio = &vm->pio, .on_stop = on_vcpu_stop, .opaque = vm
	};
	if (build(vm, h, memory_fd, err)) {
		vm_free(vm);
		return NULL;
	}
	return vm;
}

void vm_free(struct vm *vm)
{
	if (!vm)
		return;
	job_free(vm->job);
	/* Before the devices: KVM lets go of all kicks at once, each by itself takes milliseconds. */
	power_cut(vm);
	machine_free(vm);
	notify_fini(&vm->notify);
	loop_remove(&vm->request_watch);
	event_fini(&vm->request);
	bus_fini(&vm->mmio);
	bus_fini(&vm->pio);
	gmem_free(vm->mem);
	arch_cpu_free(vm->cpu);
	boot_free(vm->boot);
	kvm_close(&vm->kvm);
	free(vm);
}
