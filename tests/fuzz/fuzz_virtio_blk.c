/*
 * fuzz_virtio_blk.c - a virtio disk under a hostile driver
 *
 * The first byte chooses. Odd: the rest is a chain of buffers given to blk_parse() alone, whose every
 * result is checked against the disk's limits. Even: the rest is a program for a driver that owns the
 * guest's memory (descriptors, rings, headers, all by hand) and the device's registers, while the disk
 * holds requests back, fails some, and the machine stops and goes on. Whatever it did, in the end
 * nothing may be in flight and nothing used that was not made available.
 */
#include <stddef.h>

#include "tests/unit/blk_rig.h"

#define RAM       (64u << 10)
#define DISK      (64u << 10)
#define ENTRIES   8
#define CHAIN_MAX 40

#define CHECK(cond)                       \
	do {                              \
		if (!(cond))              \
			__builtin_trap(); \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

struct input {
	const uint8_t *at;
	size_t left;
};

static uint64_t take(struct input *in, size_t n)
{
	uint64_t v = 0;

	for (size_t i = 0; i < n && in->left; i++, in->left--)
		v |= (uint64_t)*in->at++ << 8 * i;
	return v;
}

/* ---- blk_parse() alone ---- */

static void check_data(const struct blk_parsed *p, const struct iovec *own, unsigned n)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < p->niov; i++) {
		bool inside = false;

		for (unsigned k = 0; k < n; k++) {
			uintptr_t a = (uintptr_t)p->iov[i].iov_base, b = (uintptr_t)own[k].iov_base;

			inside |= a >= b && a - b + p->iov[i].iov_len <= own[k].iov_len;
		}
		CHECK(inside && p->iov[i].iov_len);
		sum += p->iov[i].iov_len;
	}
	CHECK(sum == p->len);
}

static void check_parsed(const struct blk_limits *l, const struct blk_parsed *p,
			 const struct iovec *own, unsigned n)
{
	const uint64_t bytes = l->sectors * 512, block = l->block * 512ull;

	switch (p->kind) {
	case BLK_READ:
	case BLK_WRITE:
		CHECK(p->len && p->len <= bytes && p->offset <= bytes - p->len);
		CHECK(!(p->len % block) && !(p->offset % block));
		CHECK(p->kind == BLK_READ || !l->read_only);
		check_data(p, own, n);
		break;
	case BLK_DISCARD:
	case BLK_WRITE_ZEROES:
		CHECK(!l->read_only && p->nranges && p->nranges <= BLK_RANGES_MAX);
		for (unsigned i = 0; i < p->nranges; i++) {
			const uint64_t len = p->ranges[i].sectors * 512ull;

			CHECK(len && len <= bytes && p->ranges[i].offset <= bytes - len);
			CHECK(!(len % block) && !(p->ranges[i].offset % block));
		}
		break;
	case BLK_GET_ID:
		check_data(p, own, n);
		break;
	case BLK_FLUSH:
		break;
	case BLK_NONE:
		CHECK(p->status <= BLK_S_UNSUPP && (p->status == BLK_S_OK || p->wrong));
		break;
	}
}

/* Each buffer is memory of its own, so that a byte too many is seen. */
static void fuzz_parse(struct input *in)
{
	const uint8_t flags = (uint8_t)take(in, 1);
	const struct blk_limits l = {
		.sectors = take(in, 2) & ~7ull,
		.block = flags & 1 ? 8 : 1,
		.read_only = flags & 2,
		.discard = flags & 4,
		.write_zeroes = flags & 8,
	};
	struct iovec iov[CHAIN_MAX], own[CHAIN_MAX];
	struct virtq_chain c = { .iov = iov, .room = CHAIN_MAX };
	struct blk_parsed p;
	unsigned n = 0;

	while (in->left && n < CHAIN_MAX) {
		const uint16_t shape = (uint16_t)take(in, 2);
		const size_t len = (shape & 0xfff) + 1;
		const bool write = shape & 0x8000 || c.nin;

		own[n] = iov[n] = (struct iovec){ calloc(1, len), len };
		CHECK(iov[n].iov_base);
		if (write) {
			c.nin++;
			c.in_len += len;
		} else {
			const size_t given = len < in->left ? len : in->left;

			memcpy(iov[n].iov_base, in->at, given);
			in->at += given;
			in->left -= given;
			c.nout++;
			c.out_len += len;
		}
		n++;
	}
	const bool answerable = c.nin;

	if (!blk_parse(&l, &c, &p)) {
		CHECK(answerable);
		*p.status_byte = p.status;
		check_parsed(&l, &p, own, n);
	} else {
		CHECK(!answerable);
	}
	for (unsigned i = 0; i < n; i++)
		free(own[i].iov_base);
}

/* ---- the whole device ---- */

static const uint32_t lengths[] = { 1,   2,    15,   16,   17,  20,      511,        512,
				    513, 1024, 4096, 8192, RAM, RAM + 1, 0x80000000, 0xffffffff };

static gpa_t address(struct rig *g, struct input *in)
{
	const uint16_t v = (uint16_t)take(in, 2);

	/* Mostly inside RAM, now and then at its edges and outside. */
	switch (v >> 12) {
	case 15:
		return take(in, 8);
	case 14:
		return VD_RAM_BASE + RAM - (v & 0xff);
	case 13:
		return VD_RAM_BASE - (v & 0xff);
	case 12:
		return g->q[v & 1].used + (v >> 1 & 0xff);
	case 11:
		return g->q[v & 1].desc + (v >> 1 & 0xff);
	default:
		return VD_RAM_BASE + v % RAM;
	}
}

static void put_desc(struct rig *g, struct input *in, gpa_t table)
{
	const uint8_t i = (uint8_t)take(in, 1) % ENTRIES, shape = (uint8_t)take(in, 1);
	struct vd_desc d = { .addr = address(g, in), .len = lengths[shape & 15] };

	if (shape >> 4 == 15)
		d.len = (uint32_t)take(in, 4);
	d.flags = (uint16_t)(take(in, 1) & 7);
	if (d.flags & VD_INDIRECT)
		d.len = 16 * (1 + (shape & 15));
	d.next = (uint16_t)take(in, 1);
	if (d.next < 0xf0)
		d.next %= ENTRIES;
	gmem_write(g->ram.mem, table + 16 * i, &d, sizeof(d));
}

static void put_header(struct rig *g, struct input *in)
{
	const gpa_t at = address(g, in);
	const uint8_t shape = (uint8_t)take(in, 1);
	const struct blk_wire_header h = { .type = shape & 15,
					   .sector = take(in, shape & 16 ? 8 : 1) };

	gmem_write(g->ram.mem, at, &h, sizeof(h));
}

static void restart(struct rig *g, struct input *in)
{
	const uint64_t features =
		(take(in, 2) << 0 & g->v->features) |
		(take(in, 1) & 1 ? VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC : 0);

	spy_release(g->disk);
	g->ram.next = VD_RAM_BASE;
	vd_start(g->v, &g->ram, g->q, g->nqueues, ENTRIES, features);
}

static void stop_and_go(struct rig *g)
{
	const struct virtq_regs *r = &g->v->queues[0].regs;

	spy_release(g->disk);
	g->v->dev.ops->quiesce(&g->v->dev);
	CHECK(!g->v->in_flight && r->next_used == r->next_avail);
	g->v->dev.ops->resume(&g->v->dev);
}

static void step(struct rig *g, struct input *in)
{
	const uint8_t op = (uint8_t)take(in, 1);
	struct vd_queue *q = &g->q[op >> 7 ? g->nqueues - 1 : 0];
	uint8_t byte;

	switch (op % 14) {
	case 0:
	case 1:
	case 2:
		put_desc(g, in, q->desc);
		break;
	case 3:
		put_desc(g, in, address(g, in));
		break;
	case 4:
		put_header(g, in);
		break;
	case 5:
	case 6:
		vd_avail(q, q->avail_idx++, (uint16_t)(take(in, 1) % (ENTRIES + 1)));
		vd_publish(q);
		break;
	case 7:
		virtio_notify(g->v, q->index);
		loop_poll(g->loop, 0);
		break;
	case 8:
		loop_poll(g->loop, 0);
		break;
	case 9:
		restart(g, in);
		break;
	case 10:
		byte = (uint8_t)take(in, 1);
		gmem_write(g->ram.mem, address(g, in), &byte, 1);
		break;
	case 11:
		stop_and_go(g);
		break;
	case 12:
		if (g->spy.hold)
			spy_release(g->disk);
		else
			g->spy.hold = true;
		break;
	case 13:
		byte = (uint8_t)take(in, 1);
		virtio_write_config(g->v, (unsigned)take(in, 1) % 70, &byte, 1);
		break;
	}
}

static struct block *make_disk(uint8_t flags)
{
	struct block *b = block_ram_new(DISK, flags & 2 ? DISK / 2 : UINT64_MAX, NULL);

	CHECK(b);
	if (flags & 4)
		b->logical_block = b->physical_block = 4096;
	if (flags & 8) {
		b->read_only = true;
		b->can_discard = b->can_write_zeroes = false;
	}
	return b;
}

static void fuzz_device(struct input *in, uint8_t flags)
{
	struct rig g;

	rig_init_sized(&g, make_disk(flags), flags & 16 ? 2 : 1, ENTRIES, flags & 32, RAM);
	restart(&g, in);
	while (in->left)
		step(&g, in);
	spy_release(g.disk);
	for (int i = 0; i < 100 && loop_poll(g.loop, 0); i++)
		;
	CHECK(!g.v->in_flight);
	for (unsigned i = 0; i < g.nqueues; i++)
		CHECK(!g.v->queues[i].in_flight);
	rig_fini(&g);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	log_set_level(LOG_ERR);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	const uint8_t flags = (uint8_t)take(&in, 1);

	if (flags & 1)
		fuzz_parse(&in);
	else
		fuzz_device(&in, flags);
	return 0;
}
