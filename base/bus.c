/*
 * bus.c - a sorted range to (device, operations)
 *
 * Look-up is a binary search under a read lock that prefers writers: vCPUs that hammer a device must
 * not keep a BAR from moving. The lock is never held while a device is called, so a device may move
 * regions from within its own operations. Ranges are compared by their last byte, inclusive, so that
 * one which ends at 2^64 needs no special case.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bus.h"

void bus_init(struct bus *b)
{
	pthread_rwlockattr_t attr;

	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&b->lock, &attr);
	pthread_rwlockattr_destroy(&attr);
	b->regions = NULL;
	b->count = b->room = 0;
}

void bus_fini(struct bus *b)
{
	free(b->regions);
	b->regions = NULL;
	b->count = b->room = 0;
	pthread_rwlock_destroy(&b->lock);
}

/* How many regions start at or below @addr: the last of them is the only one that can hold it. */
static size_t count_up_to(const struct bus *b, uint64_t addr)
{
	size_t low = 0, high = b->count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (b->regions[mid].base <= addr)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static uint64_t last_byte(const struct region *r)
{
	return r->base + (r->size - 1);
}

static const char *name_of(const struct region *r)
{
	return r->name ? r->name : "unnamed";
}

static int overlap(const struct region *r, const struct region *other, struct err *err)
{
	return err_set(err, EEXIST,
		       "%s at 0x%" PRIx64 "-0x%" PRIx64 " overlaps %s at 0x%" PRIx64 "-0x%" PRIx64,
		       name_of(r), r->base, last_byte(r), name_of(other), other->base,
		       last_byte(other));
}

static int insert(struct bus *b, const struct region *r, struct err *err)
{
	size_t at = count_up_to(b, r->base);

	if (at > 0 && last_byte(&b->regions[at - 1]) >= r->base)
		return overlap(r, &b->regions[at - 1], err);
	if (at < b->count && b->regions[at].base <= last_byte(r))
		return overlap(r, &b->regions[at], err);
	if (b->count == b->room) {
		size_t room = b->room ? 2 * b->room : 16;
		struct region *more = reallocarray(b->regions, room, sizeof(*more));

		if (!more)
			return err_set(err, ENOMEM, "out of memory for the region of %s",
				       name_of(r));
		b->regions = more;
		b->room = room;
	}
	memmove(&b->regions[at + 1], &b->regions[at], (b->count - at) * sizeof(*r));
	b->regions[at] = *r;
	b->count++;
	return 0;
}

int bus_add(struct bus *b, const struct region *r, struct err *err)
{
	if (!r->size || r->base > UINT64_MAX - (r->size - 1))
		return err_set(err, EINVAL,
			       "%s: no region of 0x%" PRIx64 " bytes can be at 0x%" PRIx64,
			       name_of(r), r->size, r->base);
	pthread_rwlock_wrlock(&b->lock);
	int rc = insert(b, r, err);

	pthread_rwlock_unlock(&b->lock);
	return rc;
}

void bus_remove(struct bus *b, uint64_t base, const void *opaque)
{
	pthread_rwlock_wrlock(&b->lock);
	size_t n = count_up_to(b, base);

	if (n > 0) {
		struct region *r = &b->regions[n - 1];

		if (r->base == base && r->opaque == opaque) {
			memmove(r, r + 1, (b->count - n) * sizeof(*r));
			b->count--;
		}
	}
	pthread_rwlock_unlock(&b->lock);
}

/*
 * Sizes that operations do not know (a page-crossing access that KVM cut to three bytes) hit nothing,
 * like any access that leaves its region.
 */
static bool look_up(struct bus *b, uint64_t addr, unsigned len, struct region *found)
{
	bool hit = false;

	if (len != 1 && len != 2 && len != 4 && len != 8)
		return false;
	pthread_rwlock_rdlock(&b->lock);
	size_t n = count_up_to(b, addr);

	if (n > 0) {
		const struct region *r = &b->regions[n - 1];
		uint64_t off = addr - r->base;

		hit = off < r->size && len <= r->size - off;
		if (hit)
			*found = *r;
	}
	pthread_rwlock_unlock(&b->lock);
	return hit;
}

int bus_read(struct bus *b, uint64_t addr, void *data, unsigned len)
{
	struct region r;

	if (!look_up(b, addr, len, &r) || !r.ops->read) {
		memset(data, 0xff, len);
		return -ENXIO;
	}
	if (r.lock)
		pthread_mutex_lock(r.lock);
	r.ops->read(r.opaque, addr - r.base, data, len);
	if (r.lock)
		pthread_mutex_unlock(r.lock);
	return 0;
}

int bus_write(struct bus *b, uint64_t addr, const void *data, unsigned len)
{
	struct region r;

	if (!look_up(b, addr, len, &r) || !r.ops->write)
		return -ENXIO;
	if (r.lock)
		pthread_mutex_lock(r.lock);
	r.ops->write(r.opaque, addr - r.base, data, len);
	if (r.lock)
		pthread_mutex_unlock(r.lock);
	return 0;
}
