/*
 * fake_vhost.h - stands in for /dev/vhost-net, which not every host has
 *
 * Takes the requests of backends/vhost.h, refuses what the kernel would, and moves no frame by itself:
 * fake_vhost_work() uses so many buffers of a ring as the kernel would on its own thread. The real one is
 * tested in tests/e2e/test_debian_vhost.py.
 */
#ifndef TESTS_UNIT_FAKE_VHOST_H
#define TESTS_UNIT_FAKE_VHOST_H

#include <errno.h>
#include <linux/vhost.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#undef VIRTIO_F_VERSION_1
#undef VIRTIO_F_ACCESS_PLATFORM
#undef VIRTIO_F_RING_RESET

#include "backends/vhost.h"
#include "base/log.h"

#define FAKE_VHOST_LOG_ALL (UINT64_C(1) << VHOST_F_LOG_ALL)

struct fake_vhost {
	struct vhost h;
	struct fake_vhost_ring {
		unsigned num;
		uint16_t next;
		struct vhost_vring_addr addr;
		int kick, call, error, tap;
	} ring[VHOST_RINGS];
	uint64_t features, log;
	struct vhost_memory_region mem;
	unsigned requests;
	unsigned long refuse; /* this request fails with -EIO */
	bool *freed;          /* set when it is */
};

static inline int fake_vhost_file(int *field, const struct vhost_vring_file *f)
{
	*field = f->fd;
	return 0;
}

static inline int fake_vhost_ring_request(struct fake_vhost *f, unsigned long request, void *arg)
{
	const struct vhost_vring_file *file = arg; /* the index is first in all of them */
	struct vhost_vring_state *state = arg;
	struct fake_vhost_ring *r = &f->ring[state->index];
	const bool running = r->tap >= 0;

	BUG_ON(state->index >= VHOST_RINGS);
	switch (request) {
	case VHOST_SET_VRING_NUM:
		r->num = state->num;
		return running ? -EBUSY : 0;
	case VHOST_SET_VRING_BASE:
		r->next = (uint16_t)state->num;
		return running ? -EBUSY : 0;
	case VHOST_GET_VRING_BASE:
		state->num = r->next;
		return running ? -EBUSY : 0; /* the kernel tells, but what it tells moves on */
	case VHOST_SET_VRING_ADDR:
		memcpy(&r->addr, arg, sizeof(r->addr));
		return r->addr.flags && !f->log ? -EINVAL : 0;
	case VHOST_SET_VRING_KICK:
		return fake_vhost_file(&r->kick, file);
	case VHOST_SET_VRING_CALL:
		return fake_vhost_file(&r->call, file);
	case VHOST_SET_VRING_ERR:
		return fake_vhost_file(&r->error, file);
	case VHOST_NET_SET_BACKEND:
		return file->fd >= 0 && (!r->addr.desc_user_addr || !f->mem.memory_size) ?
			       -EFAULT :
			       fake_vhost_file(&r->tap, file);
	}
	return -ENOTTY;
}

static inline int fake_vhost_request(struct vhost *h, unsigned long request, void *arg)
{
	struct fake_vhost *f = (struct fake_vhost *)h;
	const struct vhost_memory *m = arg;

	f->requests++;
	if (request == f->refuse)
		return -EIO;
	switch (request) {
	case VHOST_SET_FEATURES:
		memcpy(&f->features, arg, sizeof(f->features));
		return f->features & FAKE_VHOST_LOG_ALL && !f->log ? -EFAULT : 0;
	case VHOST_SET_LOG_BASE:
		memcpy(&f->log, arg, sizeof(f->log));
		return 0;
	case VHOST_SET_MEM_TABLE:
		BUG_ON(m->nregions != 1);
		f->mem = m->regions[0];
		return 0;
	}
	return fake_vhost_ring_request(f, request, arg);
}

static inline void fake_vhost_free(struct vhost *h)
{
	struct fake_vhost *f = (struct fake_vhost *)h;

	*f->freed = true;
	free(f);
}

static inline struct fake_vhost *fake_vhost_new(bool *freed)
{
	static const struct vhost_ops ops = { fake_vhost_request, fake_vhost_free };
	struct fake_vhost *f = calloc(1, sizeof(*f));

	BUG_ON(!f);
	f->h.ops = &ops;
	f->h.fd = -1;
	f->freed = freed;
	*freed = false;
	for (unsigned i = 0; i < VHOST_RINGS; i++)
		f->ring[i].kick = f->ring[i].call = f->ring[i].error = f->ring[i].tap = -1;
	return f;
}

static inline void fake_vhost_log_page(struct fake_vhost *f, uint64_t gpa)
{
	uint8_t *log = (uint8_t *)(uintptr_t)f->log;

	if (f->features & FAKE_VHOST_LOG_ALL)
		log[gpa / 4096 / 8] |= (uint8_t)(1 << gpa / 4096 % 8);
}

/* Use the next @n buffers, the first byte of receive buffers written with @byte; interrupt. */
static inline void fake_vhost_work(struct fake_vhost *f, unsigned ring, unsigned n, uint8_t byte)
{
	struct fake_vhost_ring *r = &f->ring[ring];
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} *desc = (void *)(uintptr_t)r->addr.desc_user_addr;
	const uint16_t *avail = (void *)(uintptr_t)r->addr.avail_user_addr;
	uint16_t *used = (void *)(uintptr_t)r->addr.used_user_addr;
	const uint64_t one = 1;

	BUG_ON(r->tap < 0);
	for (; n; n--, r->next++) {
		uint16_t head = avail[2 + r->next % r->num];
		uint32_t *entry = (uint32_t *)(void *)(used + 2) + used[1] % r->num * 2;

		BUG_ON((uint16_t)(avail[1] - r->next) == 0);
		if (ring == VHOST_RX) {
			uint64_t gpa = desc[head].addr;

			*(uint8_t *)(uintptr_t)(f->mem.userspace_addr + gpa -
						f->mem.guest_phys_addr) = byte;
			fake_vhost_log_page(f, gpa);
		}
		entry[0] = head;
		entry[1] = ring == VHOST_RX;
		used[1]++;
		if (r->addr.flags)
			fake_vhost_log_page(f, r->addr.log_guest_addr);
	}
	BUG_ON(write(r->call, &one, sizeof(one)) != sizeof(one));
}

#endif
