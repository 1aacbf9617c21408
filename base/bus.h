/*
 * bus.h - a sorted range to (device, operations)
 *
 * One for MMIO, one for port I/O. A vCPU's exit is looked up here, the device's lock is taken, its
 * operation is called. Regions move while vCPUs run (a BAR is reprogrammed), so look-up copies the
 * region under a read lock and calls without it; a device outlives the machine's vCPUs, so a call
 * that arrives just after its region has gone is late, not wrong.
 *
 * Lock order: PCI configuration -> device -> bus.
 */
#ifndef BASE_BUS_H
#define BASE_BUS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct region_ops {
	/* @off from the region's start; off + len is within it; len 1, 2, 4 or 8; little-endian */
	void (*read)(void *opaque, uint64_t off, void *data, unsigned len);
	void (*write)(void *opaque, uint64_t off, const void *data, unsigned len);
};

struct region {
	uint64_t base, size;
	const struct region_ops *ops;
	void *opaque;
	pthread_mutex_t
		*lock;    /* taken around read and write; NULL: the operations lock themselves */
	const char *name; /* borrowed, for messages */
};

struct bus {
	pthread_rwlock_t lock;
	struct region *regions; /* sorted by base */
	size_t count, room;
};

void bus_init(struct bus *b);
void bus_fini(struct bus *b);

/* -EINVAL: empty or wraps; -EEXIST: overlaps another, which the message names; -ENOMEM. */
int bus_add(struct bus *b, const struct region *r, struct err *err);
void bus_remove(struct bus *b, uint64_t base, const void *opaque); /* nothing there: no harm */

/*
 * 0, or -ENXIO where nothing answers the whole access: reads then give all-ones, writes vanish, as
 * on hardware. An access that only partly lies in a region counts as nothing.
 */
int bus_read(struct bus *b, uint64_t addr, void *data, unsigned len);
int bus_write(struct bus *b, uint64_t addr, const void *data, unsigned len);

#endif
