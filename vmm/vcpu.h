/*
 * vcpu.h - one virtual processor, one thread
 *
 * All vCPUs of a machine are asked for one thing at a time: to run, to pause, or to exit. A pause is
 * complete when every one has finished the I/O instruction it was in (api.rst, KVM_RUN: re-entering
 * with immediate_exit set completes it), so that its registers may be read.
 */
#ifndef VMM_VCPU_H
#define VMM_VCPU_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bus.h"
#include "base/err.h"

struct vcpu;

/* Why a vCPU cannot go on; told from its thread, before it parks if on_stop held the machine. */
enum vcpu_stop {
	VCPU_STOP_RESET,  /* triple fault, KVM_SYSTEM_EVENT_RESET */
	VCPU_STOP_OFF,    /* KVM_SYSTEM_EVENT_SHUTDOWN */
	VCPU_STOP_CRASH,  /* KVM_SYSTEM_EVENT_CRASH: the guest says that it panicked */
	VCPU_STOP_FAILED, /* KVM could not go on; already logged */
};

enum vcpus_want { VCPUS_RUN, VCPUS_PAUSE, VCPUS_EXIT };

struct vcpu_counters { /* written by the vCPU's thread alone, read by anyone */
	_Atomic uint64_t exits, pio, mmio, other;
};

struct vcpus {
	struct vcpu *v;
	unsigned count;
	struct bus *mmio, *pio; /* borrowed */
	void (*on_stop)(void *opaque, enum vcpu_stop why, unsigned index);
	void *opaque;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum vcpus_want want;   /* under lock */
	_Atomic bool interrupt; /* want != VCPUS_RUN, without the lock */
	unsigned parked;        /* threads that neither run the guest nor touch devices */
};

struct vcpu {
	struct vcpus *all;
	unsigned index;
	int fd;
	struct kvm_run *run;
	size_t run_size;
	pthread_t thread;
	bool started;
	struct vcpu_counters count;
};

/* Create @count vCPUs of @vm_fd, without threads. 0 or -errno. */
int vcpus_create(struct vcpus *s, int vm_fd, unsigned count, size_t run_size, struct err *err);

/* Threads, paused. 0 or -errno. */
int vcpus_start(struct vcpus *s, struct err *err);

void vcpus_resume(struct vcpus *s);
void vcpus_hold(struct vcpus *s);  /* from any thread, a vCPU's too: park, without waiting for it */
void vcpus_pause(struct vcpus *s); /* returns when all are parked */
void vcpus_destroy(struct vcpus *s); /* ends the threads, closes the descriptors */

/* The signal that interrupts KVM_RUN; its empty handler is installed by vcpus_start(). */
#define VCPU_SIGNAL SIGRTMIN

#endif
