/*
 * virtio_driver.h - the guest's half of virtio, for tests and fuzzers
 *
 *	struct vd_ram ram;
 *	struct vd_queue q;
 *	vd_ram_init(&ram, 1 << 20);
 *	vd_start(v, &ram, &q, 1, 16, VIRTIO_F_EVENT_IDX);	// status, features, queues, DRIVER_OK
 *	gpa_t buf = vd_alloc(&ram, 512, 16);
 *	vd_add(&q, (struct vd_seg[]){ VD_OUT(req, 16), VD_IN(buf, 512) }, 2, 0);
 *	vd_kick(v, &q);						// publishes; notifies if asked for
 *	loop_poll(loop, 0);
 *	vd_collect(&q, &head, &len);
 *
 * Guest RAM is malloc'd. The rings are written as a driver does it: descriptors, then the ring, then
 * the index. Everything can also be set by hand (vd_desc, vd_avail, vd_avail_idx) to break rules.
 */
#ifndef TESTS_UNIT_VIRTIO_DRIVER_H
#define TESTS_UNIT_VIRTIO_DRIVER_H

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/guest_memory.h"
#include "base/log.h"
#include "virtio/device.h"
#include "virtio/queue.h"

#define VD_RAM_BASE 0x100000 /* nothing below it: 0 and small addresses are not RAM */

#define VD_NEXT     1
#define VD_WRITE    2
#define VD_INDIRECT 4

/* ---- RAM ---- */

struct vd_ram {
	struct gmem *mem;
	uint8_t *host; /* of VD_RAM_BASE */
	uint64_t size;
	gpa_t next; /* first free byte */
};

static inline void vd_ram_init(struct vd_ram *r, uint64_t size)
{
	*r = (struct vd_ram){ .size = size, .next = VD_RAM_BASE };
	r->host = aligned_alloc(4096, size);
	BUG_ON(!r->host);
	memset(r->host, 0, size);
	r->mem = gmem_new(NULL);
	BUG_ON(!r->mem || gmem_add_borrowed(r->mem, VD_RAM_BASE, size, r->host, NULL));
}

static inline void vd_ram_fini(struct vd_ram *r)
{
	gmem_free(r->mem);
	free(r->host);
}

static inline gpa_t vd_alloc(struct vd_ram *r, uint64_t len, uint64_t align)
{
	gpa_t at = (r->next + align - 1) / align * align;

	BUG_ON(len > r->size || at - VD_RAM_BASE > r->size - len);
	r->next = at + len;
	return at;
}

/* The host's view of guest memory; not checked for more than its first byte. */
static inline void *vd_host(const struct vd_ram *r, gpa_t at)
{
	BUG_ON(at < VD_RAM_BASE || at - VD_RAM_BASE >= r->size);
	return r->host + (at - VD_RAM_BASE);
}

/* ---- a queue ---- */

struct vd_seg {
	gpa_t addr;
	uint32_t len;
	bool write; /* by the device */
};
#define VD_OUT(at, n)            \
	{                        \
		(at), (n), false \
	}
#define VD_IN(at, n)            \
	{                       \
		(at), (n), true \
	}

struct vd_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct vd_queue {
	struct vd_ram *ram;
	uint16_t index, size;
	bool event_idx;
	gpa_t desc, avail, used;
	uint16_t avail_idx; /* buffers added; the ring's index follows with vd_publish */
	uint16_t published; /* the ring's index */
	uint16_t last_used; /* used entries collected */
	uint16_t nfree;
	bool busy[VIRTQ_SIZE_MAX];          /* descriptor belongs to a chain */
	uint16_t next[VIRTQ_SIZE_MAX];      /* our own copy: the device is not trusted either */
	uint16_t chain_len[VIRTQ_SIZE_MAX]; /* by head */
};

static inline void vd_queue_init(struct vd_queue *d, struct vd_ram *ram, uint16_t index,
				 uint16_t size)
{
	*d = (struct vd_queue){ .ram = ram, .index = index, .size = size, .nfree = size };
	d->desc = vd_alloc(ram, 16ull * size, 16);
	d->avail = vd_alloc(ram, 6 + 2ull * size, 2);
	d->used = vd_alloc(ram, 6 + 8ull * size, 4);
	memset(vd_host(ram, d->desc), 0, 16ull * size);
	memset(vd_host(ram, d->avail), 0, 6 + 2ull * size);
	memset(vd_host(ram, d->used), 0, 6 + 8ull * size);
}

static inline void vd_store16(struct vd_queue *d, gpa_t at, uint16_t value)
{
	BUG_ON(gmem_store16(d->ram->mem, at, value));
}

static inline uint16_t vd_load16(const struct vd_queue *d, gpa_t at)
{
	uint16_t value;

	BUG_ON(gmem_load16(d->ram->mem, at, &value));
	return value;
}

/* By hand: a descriptor, the available ring's entry for index @at, the available index. */
static inline void vd_desc(struct vd_queue *d, uint16_t i, gpa_t addr, uint32_t len, uint16_t flags,
			   uint16_t next)
{
	const struct vd_desc e = { addr, len, flags, next };

	BUG_ON(gmem_write(d->ram->mem, d->desc + 16ull * i, &e, sizeof(e)));
}

static inline void vd_avail(struct vd_queue *d, uint16_t at, uint16_t head)
{
	vd_store16(d, d->avail + 4 + 2ull * (at % d->size), head);
}

static inline void vd_avail_idx(struct vd_queue *d, uint16_t idx)
{
	vd_store16(d, d->avail + 2, idx);
}

static inline uint16_t vd_used_idx(const struct vd_queue *d)
{
	return vd_load16(d, d->used + 2);
}

/* What the driver tells: want no interrupt (flag), or the one for used entry @event. */
static inline void vd_no_interrupt(struct vd_queue *d, bool no)
{
	vd_store16(d, d->avail, no);
}

static inline void vd_used_event(struct vd_queue *d, uint16_t event)
{
	vd_store16(d, d->avail + 4 + 2ull * d->size, event);
}

static inline uint16_t vd_avail_event(const struct vd_queue *d)
{
	return vd_load16(d, d->used + 4 + 8ull * d->size);
}

static inline uint16_t vd_take_desc(struct vd_queue *d)
{
	for (uint16_t i = 0; i < d->size; i++) {
		if (!d->busy[i]) {
			d->busy[i] = true;
			d->nfree--;
			return i;
		}
	}
	BUG_ON(true);
}

/* Add a chain; @indirect: how many of its last segments go into an indirect table. Head, or -1. */
static inline int vd_add(struct vd_queue *d, const struct vd_seg *s, unsigned n, unsigned indirect)
{
	const unsigned direct = n - indirect, need = direct + !!indirect;
	uint16_t ids[VIRTQ_SIZE_MAX];

	if (!n || indirect > n || need > d->nfree)
		return -1;
	for (unsigned i = 0; i < need; i++)
		ids[i] = vd_take_desc(d);
	for (unsigned i = 0; i < direct; i++)
		vd_desc(d, ids[i], s[i].addr, s[i].len,
			(i + 1 < need ? VD_NEXT : 0) | (s[i].write ? VD_WRITE : 0),
			i + 1 < need ? ids[i + 1] : 0);
	if (indirect) {
		gpa_t table = vd_alloc(d->ram, 16ull * indirect, 16);
		struct vd_desc *t = vd_host(d->ram, table);

		for (unsigned i = 0; i < indirect; i++)
			t[i] = (struct vd_desc){ s[direct + i].addr, s[direct + i].len,
						 (i + 1 < indirect ? VD_NEXT : 0) |
							 (s[direct + i].write ? VD_WRITE : 0),
						 (uint16_t)(i + 1 < indirect ? i + 1 : 0) };
		vd_desc(d, ids[direct], table, 16 * indirect, VD_INDIRECT, 0);
	}
	for (unsigned i = 0; i + 1 < need; i++)
		d->next[ids[i]] = ids[i + 1];
	d->chain_len[ids[0]] = (uint16_t)need;
	vd_avail(d, d->avail_idx++, ids[0]);
	return ids[0];
}

/* Make what was added visible. True if the device asked to be notified of it. */
static inline bool vd_publish(struct vd_queue *d)
{
	const uint16_t old = d->published;
	uint16_t event;

	d->published = d->avail_idx;
	vd_avail_idx(d, d->avail_idx);
	/* On x86 a store and a later load may pass each other, here as in the device. */
	atomic_thread_fence(memory_order_seq_cst);
	if (!d->event_idx)
		return !(vd_load16(d, d->used) & 1);
	event = vd_avail_event(d);
	return (uint16_t)(d->published - event - 1) < (uint16_t)(d->published - old);
}

/* The next used entry, if there is one; its descriptors are free again. */
static inline bool vd_collect(struct vd_queue *d, uint32_t *head, uint32_t *len)
{
	struct {
		uint32_t id, len;
	} e;

	if (d->last_used == vd_used_idx(d))
		return false;
	BUG_ON(gmem_read(d->ram->mem, d->used + 4 + 8ull * (d->last_used % d->size), &e,
			 sizeof(e)));
	d->last_used++;
	*head = e.id;
	*len = e.len;
	BUG_ON(e.id >= d->size || !d->chain_len[e.id]); /* not ours: the device lies */
	for (uint16_t i = (uint16_t)e.id, n = d->chain_len[e.id]; n; n--, i = d->next[i]) {
		d->busy[i] = false;
		d->nfree++;
	}
	d->chain_len[e.id] = 0;
	return true;
}

/* ---- a device, driven through the calls that transports make ---- */

/* Point @q at the rings as a driver would, without a device around it. */
static inline void vd_connect(struct vd_queue *d, struct virtq *q)
{
	q->regs.desc = d->desc;
	q->regs.driver = d->avail;
	q->regs.device = d->used;
	q->regs.size = d->size;
	q->regs.ready = 1;
}

static inline void vd_set_status(struct virtio *v, uint8_t status)
{
	pthread_mutex_lock(&v->dev.lock);
	virtio_set_status(v, status);
	pthread_mutex_unlock(&v->dev.lock);
}

static inline uint8_t vd_get_status(struct virtio *v)
{
	pthread_mutex_lock(&v->dev.lock);
	uint8_t status = virtio_get_status(v);

	pthread_mutex_unlock(&v->dev.lock);
	return status;
}

static inline void vd_set_features(struct virtio *v, uint64_t features)
{
	pthread_mutex_lock(&v->dev.lock);
	for (unsigned i = 0; i < 2; i++) {
		v->regs.driver_feature_select = i;
		virtio_set_features(v, (uint32_t)(features >> 32 * i));
	}
	pthread_mutex_unlock(&v->dev.lock);
}

static inline void vd_set_addr(struct virtio *v, enum virtq_area area, gpa_t value)
{
	virtio_set_queue_addr(v, area, false, (uint32_t)value);
	virtio_set_queue_addr(v, area, true, (uint32_t)(value >> 32));
}

static inline void vd_enable_queue(struct virtio *v, struct vd_queue *d)
{
	pthread_mutex_lock(&v->dev.lock);
	v->regs.queue_select = d->index;
	struct virtq *q = virtio_selected_queue(v);

	BUG_ON(!q);
	virtio_set_queue_size(v, d->size);
	vd_set_addr(v, VIRTQ_DESC, d->desc);
	vd_set_addr(v, VIRTQ_DRIVER, d->avail);
	vd_set_addr(v, VIRTQ_DEVICE, d->used);
	virtio_set_queue_ready(v, 1);
	pthread_mutex_unlock(&v->dev.lock);
}

/* Up to FEATURES_OK. False if the device refused the features. VERSION_1 is added. */
static inline bool vd_negotiate(struct virtio *v, uint64_t features)
{
	vd_set_status(v, 0);
	vd_set_status(v, VIRTIO_STATUS_ACKNOWLEDGE);
	vd_set_status(v, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	vd_set_features(v, features | VIRTIO_F_VERSION_1);
	vd_set_status(v,
		      VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK);
	return vd_get_status(v) & VIRTIO_STATUS_FEATURES_OK;
}

static inline void vd_driver_ok(struct virtio *v)
{
	vd_set_status(v, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
				 VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK);
}

/* The whole way up with @n queues from index 0. False: refused on the way. */
static inline bool vd_start(struct virtio *v, struct vd_ram *ram, struct vd_queue *d, unsigned n,
			    uint16_t size, uint64_t features)
{
	if (!vd_negotiate(v, features))
		return false;
	for (unsigned i = 0; i < n; i++) {
		vd_queue_init(&d[i], ram, (uint16_t)i, size);
		d[i].event_idx = features & VIRTIO_F_EVENT_IDX;
		vd_enable_queue(v, &d[i]);
	}
	vd_driver_ok(v);
	return (vd_get_status(v) & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET)) ==
	       VIRTIO_STATUS_DRIVER_OK;
}

/* Publish, and notify by the register if the device asked for it. True if it did. */
static inline bool vd_kick(struct virtio *v, struct vd_queue *d)
{
	bool wanted = vd_publish(d);

	if (wanted) {
		pthread_mutex_lock(&v->dev.lock);
		virtio_notify(v, d->index);
		pthread_mutex_unlock(&v->dev.lock);
	}
	return wanted;
}

#endif
