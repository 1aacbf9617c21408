/*
 * virtio_storm.h - what the fuzzers of the two transports, and of small devices, share
 *
 * A toy device (tests/unit/virtio_toy.h; or another one, then @t is NULL), whose requests stay in flight until the loop turns, and steps
 * for its memory, its loop and its life. The transport's fuzzer adds its registers. A driver that has
 * kept the rules since it last started the device (@honest) must find it working.
 */
#ifndef TESTS_FUZZ_VIRTIO_STORM_H
#define TESTS_FUZZ_VIRTIO_STORM_H

#include "base/bus.h"
#include "tests/unit/fake_wiring.h"
#include "tests/unit/virtio_driver.h"
#include "tests/unit/virtio_toy.h"

#define STORM_RAM        (1u << 16)
#define STORM_BUFFERS    (VD_RAM_BASE + STORM_RAM / 2)
#define STORM_QUEUES     3
#define STORM_SIZE       8
#define STORM_CONFIG_LEN 12
#define STORM_STEPS_MAX  256
#define STORM_TURNS_MAX  4096
#define STORM_STEPS      8 /* of storm_step() */

struct storm {
	const uint8_t *at; /* the input */
	size_t left;
	struct vd_ram ram;
	struct loop *loop;
	struct bus mmio;
	struct fake_wiring fw;
	struct toy *t;
	struct virtio *v;
	struct vd_queue d[STORM_QUEUES];
	bool honest;
};

static inline uint32_t storm_take(struct storm *s, size_t n)
{
	uint32_t v = 0;

	for (size_t i = 0; i < n && s->left; i++, s->left--)
		v |= (uint32_t)*s->at++ << 8 * i;
	return v;
}

static inline void storm_check(struct storm *s)
{
	const struct virtio *v = s->v;

	BUG_ON(v->in_flight > STORM_QUEUES * STORM_SIZE);
	BUG_ON(v->resetting || v->stopped);
	for (unsigned i = 0; i < v->nqueues; i++)
		BUG_ON(v->queues[i].in_flight > v->queues[i].regs.size);
	BUG_ON(v->regs.status & VIRTIO_STATUS_DRIVER_OK &&
	       !(v->regs.status & VIRTIO_STATUS_FEATURES_OK));
	BUG_ON(s->honest && v->regs.status & VIRTIO_STATUS_NEEDS_RESET);
	BUG_ON(s->fw.misuse);
}

static inline void storm_turn(struct storm *s)
{
	unsigned turns = 0;
	int n;

	while ((n = loop_poll(s->loop, 0)) > 0)
		BUG_ON((turns += (unsigned)n) > STORM_TURNS_MAX);
	fake_wiring_deliver(&s->fw);
	BUG_ON(s->v->in_flight);
}

static inline void storm_quiesce(struct storm *s)
{
	s->v->dev.ops->quiesce(&s->v->dev);
	BUG_ON(s->v->in_flight);
	for (unsigned i = 0; i < s->v->nqueues; i++) {
		const struct virtq *q = &s->v->queues[i];

		BUG_ON(q->regs.next_used != q->regs.next_avail || q->in_flight);
	}
}

static inline void storm_start(struct storm *s)
{
	static const uint16_t sizes[] = { 1, 2, 4, 8 };
	uint64_t f = s->v->features & ~(uint64_t)storm_take(s, 4);

	s->ram.next = VD_RAM_BASE;
	memset(s->ram.host, 0, STORM_RAM / 2);
	if (s->t) {
		s->t->mode = storm_take(s, 1) & 1 ? TOY_LATER : TOY_NOW;
		s->t->activate_result = 0;
	}
	s->honest = vd_start(s->v, &s->ram, s->d, s->v->nqueues, sizes[storm_take(s, 1) % 4], f);
	BUG_ON(!s->honest);
}

static inline void storm_add(struct storm *s)
{
	struct vd_queue *d = &s->d[storm_take(s, 1) % STORM_QUEUES];
	struct vd_seg seg[4];
	unsigned how = storm_take(s, 1), n = 1 + how % 4, indirect = how >> 2 & 3;

	if (!virtio_has(s->v, VIRTIO_F_INDIRECT_DESC) || s->ram.next + 64 > STORM_BUFFERS)
		indirect = 0;
	for (unsigned i = 0; i < n; i++)
		seg[i] = (struct vd_seg){ STORM_BUFFERS + storm_take(s, 1) * 64,
					  1 + storm_take(s, 2) % 4096, i >= (how >> 4) % 4 };
	if (d->size)
		vd_add(d, seg, n, indirect > n ? n : indirect);
}

static inline void storm_collect(struct storm *s)
{
	uint32_t id, len;

	for (unsigned i = 0; s->honest && i < s->v->nqueues && s->d[i].size; i++)
		while (vd_collect(&s->d[i], &id, &len))
			;
}

static inline void storm_poke(struct storm *s)
{
	uint32_t at = storm_take(s, 2) % (STORM_RAM - 16);

	for (unsigned n = storm_take(s, 1) % 16; n; n--)
		s->ram.host[at++] = (uint8_t)storm_take(s, 1);
	s->honest = false;
}

/* Every part of what was saved loads; a part with bytes changed is refused or makes a device. */
static inline void storm_load(struct storm *s)
{
	struct device *d = &s->v->dev;
	struct err err;

	storm_quiesce(s);
	for (unsigned i = 0; i < d->nparts; i++) {
		const struct state_part *p = &d->parts[i];
		struct state_buf buf = { 0 };

		BUG_ON(state_save(p->desc, p->regs, &buf));
		BUG_ON(state_load(p->desc, p->regs, p->device, buf.data, buf.len, &err));
		state_buf_fini(&buf);
	}
	const struct state_part *p = &d->parts[storm_take(s, 1) % d->nparts];
	struct state_buf buf = { 0 };

	BUG_ON(state_save(p->desc, p->regs, &buf));
	for (unsigned n = storm_take(s, 1) % 8; n; n--) {
		size_t at = storm_take(s, 2) % buf.len;

		buf.data[at] = (uint8_t)storm_take(s, 1);
		s->honest = false;
	}
	state_load(p->desc, p->regs, p->device, buf.data, buf.len, &err);
	state_buf_fini(&buf);
	d->ops->resume(d);
}

static inline void storm_step(struct storm *s, unsigned what)
{
	struct device *d = &s->v->dev;

	switch (what) {
	case 0:
		storm_start(s);
		break;
	case 1:
		storm_add(s);
		break;
	case 2: { /* as KVM's ioeventfd does, wherever it is bound */
		unsigned q = storm_take(s, 1) % s->v->nqueues;

		if (s->d[q].size)
			vd_publish(&s->d[q]);
		event_signal(&s->v->queues[q].kick);
		break;
	}
	case 3:
		storm_turn(s);
		storm_collect(s);
		break;
	case 4:
		storm_poke(s);
		break;
	case 5:
		storm_quiesce(s);
		d->ops->resume(d);
		break;
	case 6:
		storm_load(s);
		break;
	case 7:
		if (s->t)
			s->t->activate_result = storm_take(s, 1) & 1 ? -EIO : 0;
		virtio_config_changed(s->v);
		break;
	}
}

/* The machine without a device. */
static inline void storm_init_bare(struct storm *s, const uint8_t *data, size_t size)
{
	*s = (struct storm){ .at = data, .left = size };
	log_set_level(LOG_ERR);
	vd_ram_init(&s->ram, STORM_RAM);
	s->loop = loop_new(NULL);
	BUG_ON(!s->loop);
	bus_init(&s->mmio);
	fake_wiring_init(&s->fw);
}

/* The same with the toy, which no transport has yet. */
static inline void storm_init(struct storm *s, const uint8_t *data, size_t size)
{
	storm_init_bare(s, data, size);
	s->t = toy_new(s->ram.mem, s->loop, STORM_QUEUES, STORM_SIZE, STORM_CONFIG_LEN);
	s->v = &s->t->v;
}

/* Before the bus goes. */
static inline void storm_free_device(struct storm *s)
{
	storm_quiesce(s);
	s->v->dev.ops->free(&s->v->dev);
}

static inline void storm_fini(struct storm *s)
{
	BUG_ON(!fake_wiring_is_clean(&s->fw));
	bus_fini(&s->mmio);
	loop_free(s->loop);
	vd_ram_fini(&s->ram);
}

#endif
