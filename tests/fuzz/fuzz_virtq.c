/*
 * fuzz_virtq.c - the ring's parser under a driver that writes what it likes
 *
 * The input is a program. Steps put descriptors, indirect tables and ring entries in place, well formed
 * or not, overwrite any byte of guest memory, and call every function of the queue in any order a
 * device could. After each: what a chain points at is RAM, its lengths are their sum, in flight are at
 * most as many as the ring holds and none twice, and a broken queue stays broken until reset.
 */
#include <stdint.h>

#include "base/log.h"
#include "tests/unit/virtio_driver.h"

#define PAGES     16
#define RAM       (PAGES * 4096u)
#define STEPS_MAX 512

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *at;
	size_t left;
};

struct rig {
	struct input in;
	struct vd_ram ram;
	uint8_t *second; /* a page of RAM right behind the first region */
	struct virtq q;
	struct vd_queue d;
	struct virtq_chain c;
	struct iovec iov[VIRTQ_SEGS_MAX];
	bool last; /* @c is the chain popped last, and in flight */
	uint16_t held[VIRTQ_SIZE_MAX];
	unsigned nheld;
	bool broken;
};

static uint32_t take(struct rig *r, size_t n)
{
	uint32_t v = 0;

	for (size_t i = 0; i < n && r->in.left; i++, r->in.left--)
		v |= (uint32_t)*r->in.at++ << 8 * i;
	return v;
}

/* Mostly RAM, sometimes its end, sometimes nowhere. */
static gpa_t address(struct rig *r)
{
	uint32_t v = take(r, 3);

	switch (v >> 20) {
	case 0:
		return VD_RAM_BASE + RAM - 64 + v % 128;
	case 1:
		return UINT64_MAX - v % 0x10000;
	case 2:
		return v;
	default:
		return VD_RAM_BASE + v % (RAM + 8192);
	}
}

static void put_desc(struct rig *r, gpa_t table, uint16_t entry)
{
	uint8_t scale = (uint8_t)take(r, 1);
	const struct vd_desc e = { .addr = address(r),
				   .len = take(r, 1) << scale % 25,
				   .flags = (uint16_t)(scale >> 5),
				   .next = (uint16_t)take(r, 1) };

	gmem_write(r->ram.mem, table + 16ull * entry, &e, sizeof(e));
}

static void check_chain(const struct rig *r)
{
	uint64_t len[2] = { 0 };
	const struct virtq_chain *c = &r->c;

	BUG_ON(!c->nout && !c->nin);
	BUG_ON(c->nout + c->nin > c->room || c->head >= r->q.regs.size);
	for (unsigned i = 0; i < c->nout + c->nin; i++) {
		const struct iovec *v = &r->iov[i];
		uintptr_t first = (uintptr_t)v->iov_base - (uintptr_t)r->ram.host;
		uintptr_t second = (uintptr_t)v->iov_base - (uintptr_t)r->second;

		BUG_ON(!v->iov_len);
		BUG_ON((first >= RAM || v->iov_len > RAM - first) &&
		       (second >= 4096 || v->iov_len > 4096 - second));
		len[i >= c->nout] += v->iov_len;
	}
	BUG_ON(len[0] != c->out_len || len[1] != c->in_len || len[0] + len[1] > UINT64_C(1) << 32);
	for (unsigned i = 0; i < r->nheld; i++)
		BUG_ON(r->held[i] == c->head);
}

static void pop(struct rig *r)
{
	const char *why = NULL;

	r->c.room = (uint16_t)(take(r, 1) + 1);
	int rc = virtq_pop(&r->q, &r->c, &why);

	BUG_ON(r->broken && rc != -EPROTO);
	BUG_ON(rc == -EPROTO && !why);
	BUG_ON(rc != 0 && rc != 1 && rc != -EPROTO);
	r->last = rc == 1;
	r->broken = rc == -EPROTO;
	if (rc == 1) {
		check_chain(r);
		BUG_ON(r->nheld == VIRTQ_SIZE_MAX);
		r->held[r->nheld++] = r->c.head;
	}
}

static void push(struct rig *r, unsigned i, uint32_t written)
{
	if (!r->nheld)
		return;
	i %= r->nheld;
	virtq_push(&r->q, r->held[i], written);
	memmove(r->held + i, r->held + i + 1, (--r->nheld - i) * sizeof(*r->held));
	r->last = false;
}

static void use_chain(struct rig *r)
{
	uint8_t buf[4096];

	if (!r->last)
		return;
	uint64_t off = take(r, 2);
	size_t n = virtq_copy_out(&r->c, off, buf, sizeof(buf));

	BUG_ON(n > sizeof(buf) || (off < r->c.out_len && !n));
	BUG_ON(off >= r->c.out_len && n);
	n = virtq_copy_in(&r->c, off, buf, n);
	BUG_ON(off >= r->c.in_len && n);
	virtq_mark_written(&r->q, &r->c, take(r, 4));
}

/* Where the rings are: where a driver puts them, or where the input says if that passes. */
static void connect(struct rig *r)
{
	static const uint16_t sizes[] = { 1, 2, 4, 8, 16, 64, 128, 256 };
	uint8_t how = (uint8_t)take(r, 1);

	r->ram.next = VD_RAM_BASE;
	memset(r->ram.host, 0, RAM);
	vd_queue_init(&r->d, &r->ram, 0, sizes[how % 8]);
	vd_connect(&r->d, &r->q);
	r->q.event_idx = r->d.event_idx = how & 8;
	r->q.indirect = how & 16;
	if (how & 32) {
		r->q.regs.desc = address(r);
		r->q.regs.driver = address(r);
		r->q.regs.device = address(r);
	}
	if (virtq_check(&r->q))
		vd_connect(&r->d, &r->q);
	BUG_ON(virtq_check(&r->q));
	if (how & 64) {
		uint16_t start = (uint16_t)take(r, 2);

		r->q.regs.next_avail = r->q.regs.next_used = r->q.regs.signalled_used = start;
		r->d.avail_idx = r->d.published = r->d.last_used = start;
		vd_avail_idx(&r->d, start);
	}
}

static void reset(struct rig *r)
{
	while (r->nheld)
		push(r, 0, 0);
	virtq_reset(&r->q);
	r->broken = false;
	connect(r);
}

/* Any bytes as saved state: refused, or a queue as good as any. */
static void load(struct rig *r)
{
	struct state_buf buf = { 0 };
	struct err err;

	while (r->nheld)
		push(r, 0, 0);
	virtq_flush(&r->q);
	BUG_ON(state_save(&virtq_state, &r->q.regs, &buf));
	for (unsigned n = take(r, 1) % 8; n; n--) {
		size_t at = take(r, 1) % buf.len;

		buf.data[at] = (uint8_t)take(r, 1);
	}
	if (!state_load(&virtq_state, &r->q.regs, &r->q, buf.data, buf.len, &err))
		BUG_ON(r->q.regs.ready && virtq_check(&r->q));
	state_buf_fini(&buf);
}

static void poke(struct rig *r)
{
	uint32_t at = take(r, 2) % (RAM - 16);

	for (unsigned n = take(r, 1) % 16; n; n--)
		r->ram.host[at++] = (uint8_t)take(r, 1);
}

static void add(struct rig *r)
{
	struct vd_seg s[8];
	unsigned n = take(r, 1), indirect = n >> 4 & 7, writable = n >> 1 & 7;

	n = 1 + n % 8;
	for (unsigned i = 0; i < n; i++)
		s[i] = (struct vd_seg){ VD_RAM_BASE + 0x8000 + take(r, 1) * 16, 1 + take(r, 1),
					i >= writable };
	if (r->ram.next > VD_RAM_BASE + RAM / 2)
		return; /* tables have used their half */
	vd_add(&r->d, s, n, indirect > n ? n : indirect);
}

static void step(struct rig *r)
{
	switch (take(r, 1) % 14) {
	case 0:
		put_desc(r, r->q.regs.desc, (uint16_t)(take(r, 1) % r->q.regs.size));
		break;
	case 1: /* an indirect table's entry */
		put_desc(r, VD_RAM_BASE + 0xc000, (uint16_t)take(r, 1));
		break;
	case 2:
		vd_avail(&r->d, r->d.avail_idx++, (uint16_t)take(r, 1));
		break;
	case 3:
		vd_avail_idx(&r->d, (uint16_t)take(r, 2));
		break;
	case 4:
	case 5:
		pop(r);
		break;
	case 6:
		push(r, take(r, 1), take(r, 4));
		break;
	case 7:
		if (virtq_flush(&r->q))
			BUG_ON(!r->q.regs.ready);
		BUG_ON(virtq_flush(&r->q)); /* nothing new to tell */
		break;
	case 8:
		if (take(r, 1) & 1)
			virtq_no_kick(&r->q);
		else if (virtq_want_kick(&r->q))
			BUG_ON(r->broken);
		break;
	case 9:
		if (r->last) {
			virtq_unpop(&r->q, &r->c);
			r->nheld--;
			r->last = false;
		}
		break;
	case 10:
		use_chain(r);
		break;
	case 11:
		if (take(r, 1) & 1)
			reset(r);
		else
			load(r);
		break;
	case 12:
		poke(r);
		break;
	case 13:
		add(r);
		vd_publish(&r->d);
		break;
	}
	BUG_ON(r->q.in_flight != r->nheld || r->nheld > r->q.regs.size);
	BUG_ON((uint16_t)(r->q.regs.next_avail - r->q.regs.next_used) != r->nheld);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig r = { .in = { data, size } };

	log_set_level(LOG_ERR);
	vd_ram_init(&r.ram, RAM);
	r.second = aligned_alloc(4096, 4096);
	BUG_ON(!r.second || gmem_add_borrowed(r.ram.mem, VD_RAM_BASE + RAM, 4096, r.second, NULL));
	memset(r.second, 0, 4096);
	gmem_dirty_start(r.ram.mem, NULL);
	BUG_ON(virtq_init(&r.q, r.ram.mem, 0, VIRTQ_SIZE_MAX, NULL));
	r.c.iov = r.iov;
	connect(&r);
	for (unsigned i = 0; i < STEPS_MAX && r.in.left; i++)
		step(&r);
	virtq_fini(&r.q);
	vd_ram_fini(&r.ram);
	free(r.second);
	return 0;
}
