/*
 * device.h - what every device is to the machine
 *
 * Embedded first in each device's struct. The machine stops in one fixed order: vCPUs pause,
 * quiesce() of every device, then state may be read; resume() is the way back.
 *
 * Locking: @lock guards the device's registers. Bus regions name it, so read and write operations
 * run under it on a vCPU thread; the device's loop takes it once per batch. reset, quiesce and resume
 * are called without it, on the main thread, while no vCPU runs.
 */
#ifndef DEVICES_DEVICE_H
#define DEVICES_DEVICE_H

#include <pthread.h>

#include "base/err.h"
#include "base/state.h"

struct device;

/* Takes one counter: "read-ops", 12. */
typedef void (*device_stat_fn)(void *arg, const char *key, uint64_t value);

struct device_ops {
	const char *type; /* "virtio-blk", "uart16550": stable, used in snapshots */

	void (*reset)(struct device *d);   /* to power-on state; nothing is in flight afterwards */
	void (*quiesce)(struct device *d); /* take no new work, return when none is in flight */
	void (*resume)(struct device *d);  /* look at every queue again: a kick may have come */
	/*
	 * Somebody else stores to guest RAM for this device (the kernel): from the return on it sets a bit
	 * in @log (gmem_dirty_log()) for each page; NULL: no more. 0 or -errno; takes @lock itself. NULL:
	 * there is nobody else.
	 */
	int (*log_writes)(struct device *d, void *log);
	/* Counters for whoever watches; takes @lock itself; may be NULL. */
	void (*stats)(struct device *d, device_stat_fn put, void *arg);
	/* Who does its work on the host's side, if not this process: "vhost-net"; may be NULL, as the result. */
	const char *(*worker)(const struct device *d);
	void (*free)(struct device *d);
};

/*
 * Whoever wants to hear of failed I/O (the machine: an event on the control socket). Called under
 * @lock on the device's thread, as often as the device logs it; must neither block nor call back.
 */
struct device_listener {
	/* @op "read", "write", "flush" ...; bytes; @error a negative errno */
	void (*io_error)(void *opaque, const struct device *d, const char *op, uint64_t offset,
			 uint64_t len, int error);
	void *opaque;
};

#define DEVICE_PARTS_MAX 72 /* a virtio device: one a queue, and a few */

struct device {
	const struct device_ops *ops;
	const char *name; /* instance: "disk.root", "serial0"; stable, owned by the device */
	pthread_mutex_t lock;
	const struct device_listener *listener; /* borrowed; NULL: nobody listens */
	struct state_part parts[DEVICE_PARTS_MAX];
	unsigned nparts;
};

/* @name is copied; the lock is ready. 0 or -ENOMEM. */
int device_init(struct device *d, const struct device_ops *ops, const char *name);
void device_fini(struct device *d);

/* Name a piece of guest-visible state; at most DEVICE_PARTS_MAX. @regs lives as long as @d. */
void device_add_state(struct device *d, const struct state_desc *desc, void *regs,
		      const void *validate_with);

#endif
