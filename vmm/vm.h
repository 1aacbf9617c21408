/*
 * vm.h - the machine: KVM descriptors, guest RAM, vCPUs, devices, and its life
 *
 *	vm_new -> vm_start -> { vm_pause <-> vm_resume | vm_reset }* -> vm_free
 *
 * Everything here is called on the main thread. What vCPU and I/O threads have to say (the guest
 * powers off, KVM fails) reaches it through one event on the main loop.
 *
 * The stop order is fixed: vCPUs park, devices quiesce (no new work, nothing in flight), then state
 * may be read or the machine rebuilt. A reset closes the KVM VM and makes a new one, so power-on
 * state is the kernel's own and no register can be forgotten; devices stay and are reconnected.
 */
#ifndef VMM_VM_H
#define VMM_VM_H

#include <json-c/json.h>

#include "base/bus.h"
#include "base/err.h"
#include "base/guest_memory.h"
#include "base/log.h"
#include "base/loop.h"
#include "devices/device.h"
#include "vmm/arch.h"
#include "vmm/config.h"
#include "vmm/kvm.h"
#include "vmm/notify.h"
#include "vmm/ports.h"
#include "vmm/vcpu.h"
#include "vmm/vm_state.h"

#define VM_DEVICES_MAX 80
#define VM_VHOSTS_MAX  (CONFIG_NETS_MAX * CONFIG_PAIRS_MAX)

enum vm_state { VM_CREATED, VM_RUNNING, VM_PAUSED, VM_STOPPED };

struct block;
struct vhost;
struct ged;
struct job;
struct monitor;
struct pci_bus;
struct uart16550;
struct virtio;

/* What happened, for whoever watches (control socket, log). Main thread. @params may be NULL; borrowed. */
typedef void (*vm_event_fn)(void *opaque, const char *event, struct json_object *params);

struct vm {
	const struct config *config; /* borrowed */
	struct loop *loop;           /* the main loop, borrowed */
	vm_event_fn on_event;
	void *opaque;

	struct kvm kvm;
	int fd; /* the KVM VM; replaced by a reset */
	struct gmem *mem;
	struct arch_layout layout;
	struct arch_machine machine; /* what the firmware tables describe */
	struct arch_cpu *cpu;
	struct boot *boot;
	struct bus mmio, pio;
	struct notify notify;
	struct vcpus vcpus;

	struct device *devices[VM_DEVICES_MAX]; /* owned, in order of creation */
	unsigned ndevices;
	struct loop **io_loops; /* threads of their own; owned */
	unsigned nio_loops;
	struct pci_bus *pci;
	unsigned nslots;                       /* PCI slots taken by virtio devices */
	struct block *disks[CONFIG_DISKS_MAX]; /* by config->disks' index; their devices own them */
	unsigned ndisks;
	struct {
		struct vhost *h; /* its NIC owns it */
		const struct config_net *net;
	} vhosts[VM_VHOSTS_MAX];
	unsigned nvhosts;
	bool disks_away; /* their locks were given up and are not all back: it must not run */
	struct ged *ged;
	struct uart16550 *serial;
	struct virtio *virtio_console; /* NULL: there is none */
	struct port ports[PORTS];      /* freed last: that restores the terminal */
	struct monitor *monitor;       /* the prompt on one of them */
	struct job *job;               /* snapshots and migrations */
	struct device_listener listener;
	struct log_limit io_errors; /* how many are told of */

	enum vm_state state;
	bool held; /* stands still for a job; state says what it is for everybody else */
	struct timespec started; /* CLOCK_MONOTONIC */
	unsigned resets;

	/* Requests from other threads: set, then signal. Read on the main loop. */
	struct event request;
	struct loop_watch request_watch;
	_Atomic int power;       /* enum vm_power; the first one wins */
	_Atomic int exit_status; /* WIRE_POWER_EXIT */

	int status;              /* exit status once VM_STOPPED */
	const char *stop_reason; /* static string */
};

/*
 * Open everything the configuration names: KVM, memory, kernel files, devices. Nothing runs. On
 * error everything is as before and @err says what to do.
 */
struct vm *vm_new(const struct config *c, struct loop *main_loop, vm_event_fn on_event,
		  void *opaque, struct err *err);
void vm_free(struct vm *vm); /* stops what runs */

int vm_start(struct vm *vm, struct err *err); /* power on; paused if so configured */

/*
 * A machine to load a state into: the processor is what the guest has seen (@h). @memory_fd: a
 * snapshot's RAM, mapped copy-on-write and borrowed; -1: RAM starts as zeroes. A kernel file that is
 * not there any more is only a warning: a reset then ends the machine. Refuses by name what the host
 * cannot do.
 */
struct vm *vm_new_from(const struct config *c, const struct vm_header *h, int memory_fd,
		       struct loop *main_loop, vm_event_fn on_event, void *opaque, struct err *err);

/*
 * Before vm_start_loaded(): vCPUs as at power-on. Receivers of a migration call it early, for what KVM
 * refuses of the guest's processor; a restore does not need to.
 */
int vm_prepare(struct vm *vm, struct err *err);

/* Load the rest of @state (vm_state.h), then run, or stand still until vm_resume(). */
int vm_start_loaded(struct vm *vm, struct stream *state, enum vm_clock clock, bool paused,
		    struct err *err);
void vm_pause(struct vm *vm);
void vm_resume(struct vm *vm);

/*
 * Stand still for a moment, on behalf of a job: vCPUs parked, devices quiet, vm->state as before and
 * nobody told. Until vm_release() vm_pause() and vm_resume() only note what shall be then.
 * -ECANCELED: the guest has just asked for power off or a reset, and that comes first.
 */
int vm_hold(struct vm *vm, struct err *err);
void vm_release(struct vm *vm); /* run on, or stay paused */

int vm_reset(struct vm *vm, struct err *err);
void vm_power_button(struct vm *vm);

/*
 * Have the kernel make the threads that work on NICs' rings, before the machine runs. Late, since they keep
 * what the process may do now (backends/vhost.h).
 */
int vm_own_vhosts(struct vm *vm, struct err *err);

/*
 * The disks' locks, for the hand-over to another process; the machine stands still. They are taken one
 * after the other from number @first on, around to the one before it; @mark as for block_ops.lock. If
 * one is somebody else's, -EBUSY: those before it are held, those after it not.
 */
int vm_lock_disks(struct vm *vm, unsigned first, uint64_t mark, struct err *err);
void vm_unlock_disks(struct vm *vm);

/* Its NICs tell the network where it is now. */
void vm_announce(struct vm *vm);

/* End the machine: vCPUs parked, devices quiet; the main loop returns. @reason is static. */
void vm_stop(struct vm *vm, int status, const char *reason);

/* Tell whoever watches; takes @params, which may be NULL. Main thread. */
void vm_emit(struct vm *vm, const char *event, struct json_object *params);

const char *vm_state_name(const struct vm *vm);

/* Give the machine a device; from success on it owns it. -ENOSPC with a message: no room. */
int vm_add_device(struct vm *vm, struct device *d, struct err *err);

/* machine.c: what exists, at which address, on which interrupt. */
int machine_build(struct vm *vm, struct err *err);
int machine_power_on(struct vm *vm, struct err *err); /* what firmware does before the kernel */
void machine_free(struct vm *vm);

/* vmm/<arch>/platform.c: the chips that are not virtio; sets vm->serial, vm->ged and vm->pci. */
int platform_build(struct vm *vm, struct err *err);

#endif
