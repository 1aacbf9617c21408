/*
 * blk_rig.h - a virtio disk with a driver in front and a disk in memory behind it
 *
 * The disk's submits are counted and can be held back; the transport counts signals.
 */
#ifndef TESTS_UNIT_BLK_RIG_H
#define TESTS_UNIT_BLK_RIG_H

#include "tests/unit/counting_transport.h"
#include "tests/unit/virtio_driver.h"
#include "virtio/blk.h"
#include "virtio/blk_parse.h"
#include "virtio/blk_wire.h"

#define RIG_SIZE 64 /* entries of a queue */

#define RIG_ALL                                                                            \
	(BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_FLUSH | BLK_F_CONFIG_WCE | BLK_F_DISCARD | \
	 BLK_F_WRITE_ZEROES | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

/* A disk in memory that lets itself be watched. */
struct spy {
	struct block_ops ops; /* what the device calls: first */
	const struct block_ops *real;
	unsigned submits, queued, flushes;
	bool hold; /* submits wait for spy_release() */
	bool held;
};

struct rig {
	struct vd_ram ram;
	struct loop *loop;
	struct spy spy;
	struct block *disk;
	struct virtio *v;
	struct vd_queue q[64];
	unsigned nqueues;
	struct counting signals;
	gpa_t header, data, status; /* for one request at a time */
};

static inline struct spy *spy_of(struct block *b)
{
	return (struct spy *)(uintptr_t)b->ops;
}

static inline void spy_queue(struct block *b, struct block_request *r)
{
	struct spy *s = spy_of(b);

	s->queued++;
	s->flushes += r->op == BLOCK_FLUSH;
	s->real->queue(b, r);
}

static inline void spy_submit(struct block *b)
{
	struct spy *s = spy_of(b);

	s->submits++;
	if (s->hold)
		s->held = true;
	else
		s->real->submit(b);
}

static inline void spy_release(struct block *b)
{
	struct spy *s = spy_of(b);

	s->hold = false;
	if (s->held)
		s->real->submit(b);
	s->held = false;
}

static inline void rig_init_sized(struct rig *g, struct block *disk, unsigned nqueues,
				  uint16_t size, bool writethrough, uint64_t ram)
{
	struct virtio_blk_options o = {
		.name = "disk.test",
		.serial = "serial-0123",
		.queues = nqueues,
		.queue_size = size,
		.writethrough = writethrough,
	};

	*g = (struct rig){ .nqueues = nqueues };
	vd_ram_init(&g->ram, ram);
	g->loop = loop_new(NULL);
	BUG_ON(!g->loop || !disk);
	g->disk = disk;
	g->spy = (struct spy){ .ops = *disk->ops, .real = disk->ops };
	g->spy.ops.queue = spy_queue;
	g->spy.ops.submit = spy_submit;
	disk->ops = &g->spy.ops;
	g->v = virtio_blk_new(&o, disk, g->ram.mem, g->loop, NULL);
	BUG_ON(!g->v);
	counting_attach(&g->signals, g->v);
}

/* @disk: ready made, or NULL: 1 MiB of memory whose last sector fails. */
static inline void rig_init(struct rig *g, struct block *disk, unsigned nqueues, uint16_t size,
			    bool writethrough)
{
	if (!disk)
		disk = block_ram_new(1 << 20, (1 << 20) - 512, NULL);
	rig_init_sized(g, disk, nqueues, size, writethrough, 16 << 20);
	g->header = vd_alloc(&g->ram, 4096, 16);
	g->data = vd_alloc(&g->ram, 1 << 20, 4096);
	g->status = vd_alloc(&g->ram, 4096, 4096);
}

static inline void rig_fini(struct rig *g)
{
	g->v->dev.ops->free(&g->v->dev);
	loop_free(g->loop);
	vd_ram_fini(&g->ram);
	sem_destroy(&g->signals.signalled);
}

static inline void *rig_host(struct rig *g, gpa_t at)
{
	return vd_host(&g->ram, at);
}

static inline void rig_header(struct rig *g, gpa_t at, uint32_t type, uint64_t sector)
{
	const struct blk_wire_header h = { .type = type, .sector = sector };

	BUG_ON(gmem_write(g->ram.mem, at, &h, sizeof(h)));
}

/* Until the device is idle and the loop has nothing more to do. */
static inline void rig_settle(struct rig *g)
{
	do {
		loop_poll(g->loop, g->v->in_flight && !g->spy.held ? -1 : 0);
	} while ((g->v->in_flight && !g->spy.held) || loop_poll(g->loop, 0));
}

/* One chain on queue 0, to its end. The status, or -1 when none came; @len: the used length. */
static inline int rig_run(struct rig *g, const struct vd_seg *s, unsigned n, uint32_t *len)
{
	uint32_t head, written;
	uint8_t *status = rig_host(g, g->status);

	*status = 0xee;
	BUG_ON(vd_add(&g->q[0], s, n, 0) < 0);
	vd_kick(g->v, &g->q[0]);
	rig_settle(g);
	if (!vd_collect(&g->q[0], &head, &written))
		return -1;
	if (len)
		*len = written;
	return *status;
}

/* The usual form: header, data (if any), status. */
static inline int rig_do(struct rig *g, uint32_t type, uint64_t sector, uint32_t len)
{
	const bool in = type == BLK_T_IN || type == BLK_T_GET_ID;
	struct vd_seg s[3] = { VD_OUT(g->header, 16) };
	unsigned n = 1;

	rig_header(g, g->header, type, sector);
	if (len)
		s[n++] = (struct vd_seg){ g->data, len, in };
	s[n++] = (struct vd_seg)VD_IN(g->status, 1);
	return rig_run(g, s, n, NULL);
}

struct rig_stat {
	const char *key;
	uint64_t value;
};

static inline void rig_on_stat(void *arg, const char *key, uint64_t value)
{
	struct rig_stat *s = arg;

	if (!strcmp(s->key, key))
		s->value = value;
}

static inline uint64_t rig_stat(struct rig *g, const char *key)
{
	struct rig_stat s = { key, UINT64_MAX };

	g->v->dev.ops->stats(&g->v->dev, rig_on_stat, &s);
	return s.value;
}

#endif
