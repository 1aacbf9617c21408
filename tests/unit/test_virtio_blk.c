/*
 * test_virtio_blk.c - the virtio block device: requests, refusals, batches, stops
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/blk_rig.h"

#define MIB     (1u << 20)
#define SECTORS (MIB / 512)

static void start(struct rig *g, uint64_t features)
{
	assert_true(vd_start(g->v, &g->ram, g->q, g->nqueues, RIG_SIZE, features));
	rig_settle(g);
	counting_clear(&g->signals);
	g->spy.submits = g->spy.queued = 0;
}

static int set_up(void **state)
{
	struct rig *g = malloc(sizeof(*g));

	rig_init(g, NULL, 1, RIG_SIZE, false);
	start(g, RIG_ALL);
	*state = g;
	return 0;
}

static int tear_down(void **state)
{
	rig_fini(*state);
	free(*state);
	return 0;
}

static void fill_random(uint8_t *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++) {
		seed = seed * 1103515245 + 12345;
		p[i] = (uint8_t)(seed >> 16);
	}
}

/* ---- requests ---- */

static void data_goes_to_the_disk_and_back(void **state)
{
	struct rig *g = *state;
	uint8_t *data = rig_host(g, g->data), want[8192];

	fill_random(want, sizeof(want), 1);
	memcpy(data, want, sizeof(want));
	assert_int_equal(rig_do(g, BLK_T_OUT, 7, 8192), BLK_S_OK);
	memset(data, 0, 8192);
	assert_int_equal(rig_do(g, BLK_T_IN, 7, 8192), BLK_S_OK);
	assert_memory_equal(data, want, 8192);
	assert_int_equal(rig_do(g, BLK_T_IN, 8, 512), BLK_S_OK);
	assert_memory_equal(data, want + 512, 512);
	assert_int_equal(rig_do(g, BLK_T_FLUSH, 0, 0), BLK_S_OK);
	assert_int_equal(rig_stat(g, "write-ops"), 1);
	assert_int_equal(rig_stat(g, "write-bytes"), 8192);
	assert_int_equal(rig_stat(g, "read-ops"), 2);
	assert_int_equal(rig_stat(g, "read-bytes"), 8704);
	assert_int_equal(rig_stat(g, "flush-ops"), 1);
	assert_int_equal(rig_stat(g, "errors"), 0);
}

/* 2.7.4: how a request is cut into buffers means nothing. */
static void framing_does_not_matter(void **state)
{
	struct rig *g = *state;
	uint8_t *out = rig_host(g, g->header), *in = rig_host(g, g->data);
	uint8_t want[1024];
	uint32_t len;

	fill_random(want, sizeof(want), 2);
	/* The header in pieces, the last one with data behind it. */
	rig_header(g, g->header, BLK_T_OUT, 3);
	memcpy(out + 16, want, 1024);
	assert_int_equal(rig_run(g,
				 (struct vd_seg[]){ VD_OUT(g->header, 3), VD_OUT(g->header + 3, 10),
						    VD_OUT(g->header + 13, 103),
						    VD_OUT(g->header + 116, 924),
						    VD_IN(g->status, 1) },
				 5, &len),
			 BLK_S_OK);
	assert_int_equal(len, 1);
	/* The status at the end of the data's last buffer. */
	rig_header(g, g->header, BLK_T_IN, 3);
	memset(in, 0xee, 2000);
	assert_int_equal(rig_run(g,
				 (struct vd_seg[]){ VD_OUT(g->header, 16), VD_IN(g->data, 1),
						    VD_IN(g->data + 1, 1024) },
				 3, &len),
			 0xee); /* not at g->status */
	assert_int_equal(len, 1025);
	assert_memory_equal(in, want, 1024);
	assert_int_equal(in[1024], BLK_S_OK);
	assert_int_equal(in[1025], 0xee);
}

static void ranges_outside_the_disk_are_refused(void **state)
{
	static const struct {
		uint64_t sector;
		uint32_t len;
		uint8_t status;
	} cases[] = {
		{ SECTORS - 2, 512, BLK_S_OK },
		{ SECTORS, 0, BLK_S_OK },
		{ SECTORS + 1, 0, BLK_S_IOERR },
		{ SECTORS, 512, BLK_S_IOERR },
		{ SECTORS - 1, 1024, BLK_S_IOERR }, /* starts inside, ends past */
		{ 0, MIB + 512, BLK_S_IOERR },
		{ UINT64_MAX, 512, BLK_S_IOERR },
		{ UINT64_MAX / 512, 512, BLK_S_IOERR },
		{ UINT64_MAX / 512 + 1, 512, BLK_S_IOERR }, /* times 512 is 0 */
		{ UINT64_MAX / 512 + 1 + 7, 512, BLK_S_IOERR },
		{ UINT64_C(1) << 63, 512, BLK_S_IOERR },
		{ UINT64_MAX - 1, 1024, BLK_S_IOERR },
		{ 0, 511, BLK_S_IOERR },
		{ 0, 513, BLK_S_IOERR },
		{ 0, 1, BLK_S_IOERR },
	};
	struct rig *g = *state;

	g->data = vd_alloc(&g->ram, 2 * MIB, 4096);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		g->spy.queued = 0;
		assert_int_equal(rig_do(g, BLK_T_IN, cases[i].sector, cases[i].len),
				 cases[i].status);
		assert_int_equal(rig_do(g, BLK_T_OUT, cases[i].sector, cases[i].len),
				 cases[i].status);
		assert_int_equal(g->spy.queued,
				 cases[i].status == BLK_S_OK && cases[i].len ? 2 : 0);
	}
	assert_int_equal(g->v->regs.status & VIRTIO_STATUS_NEEDS_RESET, 0);
}

static void blocks_of_4096_are_whole(void **state)
{
	struct rig g;
	struct block *b = block_ram_new(MIB, UINT64_MAX, NULL);

	(void)state;
	b->logical_block = b->physical_block = 4096;
	rig_init(&g, b, 1, RIG_SIZE, false);
	start(&g, RIG_ALL);
	assert_int_equal(rig_do(&g, BLK_T_IN, 0, 4096), BLK_S_OK);
	assert_int_equal(rig_do(&g, BLK_T_IN, 8, 8192), BLK_S_OK);
	assert_int_equal(rig_do(&g, BLK_T_IN, 0, 512), BLK_S_IOERR);
	assert_int_equal(rig_do(&g, BLK_T_IN, 1, 4096), BLK_S_IOERR);
	rig_fini(&g);
}

static void unknown_types_are_unsupported(void **state)
{
	static const uint32_t types[] = { 2, 3, 5, 9, 10, 14, 15, 0x80000000, 0xffffffff };
	struct rig *g = *state;

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		assert_int_equal(rig_do(g, types[i], 0, 512), BLK_S_UNSUPP);
	assert_int_equal(g->spy.queued, 0);
	/* And a request that is not one still gets its status. */
	assert_int_equal(rig_run(g, (struct vd_seg[]){ VD_OUT(g->header, 15), VD_IN(g->status, 1) },
				 2, NULL),
			 BLK_S_IOERR);
	assert_int_equal(rig_run(g, (struct vd_seg[]){ VD_IN(g->status, 1) }, 1, NULL),
			 BLK_S_IOERR);
	assert_int_equal(rig_do(g, BLK_T_IN, 0, 512), BLK_S_OK);
}

static void no_status_byte_breaks_the_device(void **state)
{
	struct rig *g = *state;

	rig_header(g, g->header, BLK_T_OUT, 0);
	assert_int_equal(rig_run(g,
				 (struct vd_seg[]){ VD_OUT(g->header, 16), VD_OUT(g->data, 512) },
				 2, NULL),
			 -1);
	assert_true(vd_get_status(g->v) & VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(g->signals.config, 1);
	assert_int_equal(g->v->in_flight, 0);
	/* A reset is all it takes. */
	start(g, RIG_ALL);
	assert_int_equal(rig_do(g, BLK_T_IN, 0, 512), BLK_S_OK);
}

static void serial_number_is_told(void **state)
{
	static const char want[20] = "serial-0123";
	struct rig *g = *state;
	char *data = rig_host(g, g->data);
	uint32_t len;

	memset(data, 0xee, 64);
	assert_int_equal(rig_do(g, BLK_T_GET_ID, 0, 20), BLK_S_OK);
	assert_memory_equal(data, want, 20);
	memset(data, 0xee, 64);
	rig_header(g, g->header, BLK_T_GET_ID, 0);
	assert_int_equal(rig_run(g,
				 (struct vd_seg[]){ VD_OUT(g->header, 16), VD_IN(g->data, 3),
						    VD_IN(g->data + 3, 40), VD_IN(g->status, 1) },
				 4, &len),
			 BLK_S_OK);
	assert_memory_equal(data, want, 20);
	assert_int_equal((uint8_t)data[20], 0xee);
	assert_int_equal(len, 20);
	assert_int_equal(rig_do(g, BLK_T_GET_ID, 0, 5), BLK_S_OK);
	assert_int_equal(rig_do(g, BLK_T_GET_ID, 0, 0), BLK_S_OK);
}

static void a_read_only_disk_says_so(void **state)
{
	struct rig g;
	struct block *b = block_ram_new(MIB, UINT64_MAX, NULL);

	(void)state;
	b->read_only = true;
	b->can_discard = b->can_write_zeroes = false;
	rig_init(&g, b, 1, RIG_SIZE, false);
	assert_true(g.v->features & BLK_F_RO);
	assert_false(g.v->features & (BLK_F_CONFIG_WCE | BLK_F_DISCARD | BLK_F_WRITE_ZEROES));
	start(&g, BLK_F_RO | BLK_F_FLUSH);
	assert_int_equal(rig_do(&g, BLK_T_OUT, 0, 512), BLK_S_IOERR);
	assert_int_equal(rig_do(&g, BLK_T_DISCARD, 0, 16), BLK_S_IOERR);
	assert_int_equal(rig_do(&g, BLK_T_WRITE_ZEROES, 0, 16), BLK_S_IOERR);
	assert_int_equal(g.spy.queued, 0);
	assert_int_equal(rig_do(&g, BLK_T_IN, 0, 512), BLK_S_OK);
	assert_int_equal(rig_do(&g, BLK_T_FLUSH, 0, 0), BLK_S_OK);
	rig_fini(&g);
}

/* ---- ranges ---- */

static int do_ranges(struct rig *g, uint32_t type, const struct blk_wire_range *r, unsigned n)
{
	memcpy(rig_host(g, g->data), r, n * sizeof(*r));
	return rig_do(g, type, 0, (uint32_t)(n * sizeof(*r)));
}

/* Is each of the first 64 sectors what it was written with (its number + 1), or zero? */
static uint64_t zero_sectors(struct rig *g)
{
	uint64_t zero = 0;

	assert_int_equal(rig_do(g, BLK_T_IN, 0, 64 * 512), BLK_S_OK);
	for (unsigned i = 0; i < 64 * 512; i++) {
		uint8_t byte = ((uint8_t *)rig_host(g, g->data))[i];

		if (!byte)
			zero |= UINT64_C(1) << i / 512;
		else
			assert_int_equal(byte, i / 512 + 1);
	}
	return zero;
}

static void write_sectors(struct rig *g)
{
	for (unsigned i = 0; i < 64; i++)
		memset((uint8_t *)rig_host(g, g->data) + i * 512, (int)i + 1, 512);
	assert_int_equal(rig_do(g, BLK_T_OUT, 0, 64 * 512), BLK_S_OK);
}

static void ranges_are_zeroed_and_discarded(void **state)
{
	struct rig *g = *state;
	struct blk_wire_range many[17];

	for (int type = BLK_T_DISCARD; type <= BLK_T_WRITE_ZEROES; type += 2) {
		write_sectors(g);
		assert_int_equal(do_ranges(g, type,
					   (struct blk_wire_range[]){
						   { 1, 2, 0 }, { 10, 0, 0 }, { 8, 1, 0 } },
					   3),
				 BLK_S_OK);
		assert_true(zero_sectors(g) == 0x106);
		/* Every other sector, as many ranges as one request may have. */
		write_sectors(g);
		for (unsigned i = 0; i < 17; i++)
			many[i] = (struct blk_wire_range){ 2 * i, 1, 0 };
		assert_int_equal(do_ranges(g, type, many, 16), BLK_S_OK);
		assert_true(zero_sectors(g) == 0x55555555);
		assert_int_equal(do_ranges(g, type, many, 17), BLK_S_IOERR);
		assert_int_equal(do_ranges(g, type, many, 0), BLK_S_IOERR);
	}
	assert_int_equal(do_ranges(g, BLK_T_WRITE_ZEROES,
				   (struct blk_wire_range[]){ { 40, 1, BLK_RANGE_UNMAP } }, 1),
			 BLK_S_OK);
	assert_true(zero_sectors(g) >> 40 & 1);
	assert_int_equal(rig_stat(g, "discard-ops"), 2 + 16);
}

static void bad_ranges_do_nothing(void **state)
{
	static const struct {
		uint32_t type;
		struct blk_wire_range r;
		uint8_t status;
	} cases[] = {
		{ BLK_T_DISCARD, { 0, 1, BLK_RANGE_UNMAP }, BLK_S_UNSUPP },
		{ BLK_T_DISCARD, { 0, 1, 2 }, BLK_S_UNSUPP },
		{ BLK_T_WRITE_ZEROES, { 0, 1, 2 }, BLK_S_UNSUPP },
		{ BLK_T_WRITE_ZEROES, { 0, 1, 0x80000001 }, BLK_S_UNSUPP },
		{ BLK_T_DISCARD, { SECTORS, 1, 0 }, BLK_S_IOERR },
		{ BLK_T_DISCARD, { SECTORS - 1, 2, 0 }, BLK_S_IOERR },
		{ BLK_T_WRITE_ZEROES, { UINT64_MAX, 1, 0 }, BLK_S_IOERR },
		{ BLK_T_WRITE_ZEROES, { UINT64_MAX - 3, 4, 0 }, BLK_S_IOERR },
		{ BLK_T_WRITE_ZEROES, { UINT64_MAX / 512 + 1, 1, 0 }, BLK_S_IOERR },
		{ BLK_T_WRITE_ZEROES, { 0, BLK_ZEROES_MAX + 1, 0 }, BLK_S_IOERR },
		{ BLK_T_DISCARD, { 0, UINT32_MAX, 0 }, BLK_S_IOERR },
	};
	struct rig *g = *state;

	write_sectors(g);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct blk_wire_range two[] = { { 1, 1, 0 }, cases[i].r };

		assert_int_equal(do_ranges(g, cases[i].type, two, 2), cases[i].status);
	}
	assert_true(zero_sectors(g) == 0);
	/* Not whole ranges. */
	assert_int_equal(rig_do(g, BLK_T_DISCARD, 0, 15), BLK_S_IOERR);
	assert_int_equal(rig_do(g, BLK_T_DISCARD, 0, 17), BLK_S_IOERR);
}

static void what_was_not_negotiated_is_unsupported(void **state)
{
	const struct blk_wire_range r = { 0, 1, 0 };
	struct rig *g = *state;

	start(g, BLK_F_FLUSH);
	write_sectors(g);
	assert_int_equal(do_ranges(g, BLK_T_DISCARD, &r, 1), BLK_S_UNSUPP);
	assert_int_equal(do_ranges(g, BLK_T_WRITE_ZEROES, &r, 1), BLK_S_UNSUPP);
	assert_true(zero_sectors(g) == 0);
}

/* ---- errors ---- */

struct heard {
	char op[16];
	uint64_t offset, len;
	int error, times;
};

static void on_io_error(void *opaque, const struct device *d, const char *op, uint64_t offset,
			uint64_t len, int error)
{
	struct heard *h = opaque;

	assert_string_equal(d->name, "disk.test");
	snprintf(h->op, sizeof(h->op), "%s", op);
	h->offset = offset;
	h->len = len;
	h->error = error;
	h->times++;
}

static void host_errors_reach_guest_and_listener(void **state)
{
	struct rig *g = *state;
	struct heard heard = { 0 };
	const struct device_listener l = { .io_error = on_io_error, .opaque = &heard };
	uint32_t len;

	g->v->dev.listener = &l;
	assert_int_equal(rig_do(g, BLK_T_OUT, SECTORS - 2, 1024), BLK_S_IOERR);
	assert_string_equal(heard.op, "write");
	assert_int_equal(heard.offset, MIB - 1024);
	assert_int_equal(heard.len, 1024);
	assert_int_equal(heard.error, -EIO);
	rig_header(g, g->header, BLK_T_IN, SECTORS - 1);
	assert_int_equal(rig_run(g,
				 (struct vd_seg[]){ VD_OUT(g->header, 16), VD_IN(g->data, 512),
						    VD_IN(g->status, 1) },
				 3, &len),
			 BLK_S_IOERR);
	assert_int_equal(len, 0); /* no leading byte is promised */
	assert_int_equal(heard.times, 2);
	assert_int_equal(rig_stat(g, "errors"), 2);
	assert_int_equal(rig_stat(g, "read-ops"), 0);
	/* The guest's own mistakes are not the host's. */
	assert_int_equal(rig_do(g, BLK_T_IN, SECTORS, 512), BLK_S_IOERR);
	assert_int_equal(heard.times, 2);
	assert_int_equal(rig_do(g, BLK_T_IN, 0, 512), BLK_S_OK);
	/* A range that fails ends the request. */
	assert_int_equal(do_ranges(g, BLK_T_WRITE_ZEROES,
				   (struct blk_wire_range[]){ { SECTORS - 1, 1, 0 }, { 0, 1, 0 } },
				   2),
			 BLK_S_IOERR);
	assert_int_equal(heard.times, 3);
	g->v->dev.listener = NULL;
}

/* ---- cache modes ---- */

static unsigned flushes_of(struct rig *g, uint32_t type)
{
	const struct blk_wire_range r = { 0, 1, 0 };
	const unsigned before = g->spy.flushes;

	if (type == BLK_T_WRITE_ZEROES)
		assert_int_equal(do_ranges(g, type, &r, 1), BLK_S_OK);
	else
		assert_int_equal(rig_do(g, type, 0, 512), BLK_S_OK);
	return g->spy.flushes - before;
}

static void set_wce(struct rig *g, uint8_t wce)
{
	pthread_mutex_lock(&g->v->dev.lock);
	virtio_write_config(g->v, offsetof(struct blk_wire_config, wce), &wce, 1);
	pthread_mutex_unlock(&g->v->dev.lock);
}

static void writes_are_as_durable_as_the_guest_thinks(void **state)
{
	struct rig *g = *state;

	assert_int_equal(g->v->regs.config[32], 1);
	assert_int_equal(flushes_of(g, BLK_T_OUT), 0);
	set_wce(g, 0);
	assert_int_equal(g->v->regs.config[32], 0);
	assert_int_equal(flushes_of(g, BLK_T_OUT), 1);
	assert_int_equal(flushes_of(g, BLK_T_WRITE_ZEROES), 1);
	assert_int_equal(flushes_of(g, BLK_T_IN), 0);
	set_wce(g, 77);
	assert_int_equal(g->v->regs.config[32], 1);
	assert_int_equal(flushes_of(g, BLK_T_OUT), 0);

	set_wce(g, 0);
	start(g, BLK_F_FLUSH); /* a reset brings the cache back */
	assert_int_equal(g->v->regs.config[32], 1);
	assert_int_equal(flushes_of(g, BLK_T_OUT), 0);
	set_wce(g, 0); /* not negotiated */
	assert_int_equal(g->v->regs.config[32], 1);

	start(g, 0); /* cannot flush: 5.2.6.2 */
	assert_int_equal(flushes_of(g, BLK_T_OUT), 1);
}

static void a_writethrough_disk_needs_no_flush(void **state)
{
	struct rig g;

	(void)state;
	rig_init(&g, NULL, 1, RIG_SIZE, true);
	start(&g, RIG_ALL);
	assert_int_equal(g.v->regs.config[32], 0);
	assert_int_equal(flushes_of(&g, BLK_T_OUT), 0);
	assert_int_equal(flushes_of(&g, BLK_T_WRITE_ZEROES), 1);
	rig_fini(&g);
}

/* ---- batches ---- */

static gpa_t add_reads(struct rig *g, struct vd_queue *q, unsigned n)
{
	gpa_t status = vd_alloc(&g->ram, n, 1);

	for (unsigned i = 0; i < n; i++) {
		gpa_t h = vd_alloc(&g->ram, 16, 16), d = vd_alloc(&g->ram, 512, 512);

		rig_header(g, h, BLK_T_IN, i);
		*(uint8_t *)rig_host(g, status + i) = 0xee;
		assert_true(vd_add(q,
				   (struct vd_seg[]){ VD_OUT(h, 16), VD_IN(d, 512),
						      VD_IN(status + i, 1) },
				   3, 3) >= 0);
	}
	return status;
}

static unsigned collect(struct rig *g, struct vd_queue *q)
{
	uint32_t head, len;
	unsigned n = 0;

	while (vd_collect(q, &head, &len)) {
		assert_int_equal(len, 513);
		n++;
	}
	return n;
}

static void a_batch_costs_one_submit_and_one_signal(void **state)
{
	struct rig *g = *state;

	for (int i = 0; i < 2; i++) {
		start(g, i ? RIG_ALL : RIG_ALL & ~VIRTIO_F_EVENT_IDX);
		add_reads(g, &g->q[0], 40);
		assert_true(vd_kick(g->v, &g->q[0]));
		rig_settle(g);
		assert_int_equal(g->spy.queued, 40);
		assert_int_equal(g->spy.submits, 1);
		assert_int_equal(counting_sum(&g->signals), 1);
		assert_int_equal(collect(g, &g->q[0]), 40);
	}
	/* With EVENT_IDX, a driver that wants to hear of the last one only. */
	add_reads(g, &g->q[0], 10);
	vd_used_event(&g->q[0], (uint16_t)(g->q[0].last_used + 20));
	counting_clear(&g->signals);
	vd_kick(g->v, &g->q[0]);
	rig_settle(g);
	assert_int_equal(counting_sum(&g->signals), 0);
	assert_int_equal(collect(g, &g->q[0]), 10);
}

static void queues_do_not_mix(void **state)
{
	struct rig *g = malloc(sizeof(*g));

	(void)state;
	rig_init(g, NULL, 64, RIG_SIZE, false);
	assert_true(g->v->features & BLK_F_MQ);
	start(g, RIG_ALL | BLK_F_MQ);
	for (unsigned i = 0; i < 64; i += 9) {
		add_reads(g, &g->q[i], 1 + i / 2);
		assert_true(vd_kick(g->v, &g->q[i]));
	}
	rig_settle(g);
	for (unsigned i = 0; i < 64; i++)
		assert_int_equal(collect(g, &g->q[i]), i % 9 ? 0 : 1 + i / 2);
	assert_int_equal(counting_sum(&g->signals), 8);
	rig_fini(g);
	free(g);
}

static void long_chains_are_kept_apart(void **state)
{
	enum { CHAINS = 40 };
	struct rig *g = *state;
	struct vd_seg s[62];
	gpa_t data[CHAINS], header = vd_alloc(&g->ram, 16 * CHAINS, 16);

	fill_random(rig_host(g, g->data), MIB - 512, 3);
	assert_int_equal(rig_do(g, BLK_T_OUT, 0, MIB - 512), BLK_S_OK);
	for (int round = 0; round < 3; round++) {
		for (unsigned i = 0; i < CHAINS; i++) {
			data[i] = vd_alloc(&g->ram, 60 * 128 + 1, 1);
			rig_header(g, header + 16 * i, BLK_T_IN, i * 15);
			s[0] = (struct vd_seg)VD_OUT(header + 16 * i, 16);
			/* 60 * 128 bytes are 15 sectors */
			for (unsigned k = 0; k < 60; k++)
				s[1 + k] = (struct vd_seg)VD_IN(data[i] + 128 * k, 128);
			s[61] = (struct vd_seg)VD_IN(data[i] + 60 * 128, 1);
			memset(rig_host(g, data[i]), 0xee, 60 * 128 + 1);
			assert_true(vd_add(&g->q[0], s, 62, 62) >= 0);
		}
		vd_kick(g->v, &g->q[0]);
		rig_settle(g);
		for (unsigned i = 0; i < CHAINS; i++) {
			assert_memory_equal(rig_host(g, data[i]),
					    (uint8_t *)rig_host(g, g->data) + i * 15 * 512,
					    60 * 128);
			assert_int_equal(*(uint8_t *)rig_host(g, data[i] + 60 * 128), BLK_S_OK);
		}
		uint32_t head, len;

		for (unsigned i = 0; i < CHAINS; i++)
			assert_true(vd_collect(&g->q[0], &head, &len));
	}
}

/* ---- dirty pages ---- */

static bool is_dirty(struct rig *g, const uint64_t *bits, gpa_t at)
{
	const uint64_t page = (at - VD_RAM_BASE) / 4096;

	return bits[page / 64] >> page % 64 & 1;
}

static void what_is_stored_is_dirty(void **state)
{
	struct rig *g = *state;
	uint64_t bits[16 * MIB / 4096 / 64];
	const size_t words = sizeof(bits) / sizeof(bits[0]);

	assert_int_equal(gmem_dirty_start(g->ram.mem, NULL), 0);
	assert_int_equal(rig_do(g, BLK_T_OUT, 0, 8192), BLK_S_OK);
	assert_int_equal(gmem_dirty_fetch(g->ram.mem, 0, bits, words), 0);
	assert_false(is_dirty(g, bits, g->data));
	assert_true(is_dirty(g, bits, g->status));
	assert_int_equal(rig_do(g, BLK_T_IN, 0, 8192), BLK_S_OK);
	assert_int_equal(gmem_dirty_fetch(g->ram.mem, 0, bits, words), 0);
	assert_true(is_dirty(g, bits, g->data));
	assert_true(is_dirty(g, bits, g->data + 4096));
	assert_false(is_dirty(g, bits, g->data + 8192));
	assert_true(is_dirty(g, bits, g->status));
	assert_int_equal(rig_do(g, BLK_T_GET_ID, 0, 20), BLK_S_OK);
	assert_int_equal(gmem_dirty_fetch(g->ram.mem, 0, bits, words), 0);
	assert_true(is_dirty(g, bits, g->data));
	assert_false(is_dirty(g, bits, g->data + 4096));
	/* A failed read may have stored some of it. */
	assert_int_equal(rig_do(g, BLK_T_IN, SECTORS - 1, 512), BLK_S_IOERR);
	assert_int_equal(gmem_dirty_fetch(g->ram.mem, 0, bits, words), 0);
	assert_true(is_dirty(g, bits, g->data));
	gmem_dirty_stop(g->ram.mem);
}

/* ---- stops ---- */

static void hold(struct rig *g, unsigned n)
{
	g->spy.hold = true;
	add_reads(g, &g->q[0], n);
	vd_kick(g->v, &g->q[0]);
	rig_settle(g);
	assert_int_equal(g->v->in_flight, n);
}

static void release_on_loop(void *arg)
{
	spy_release(arg);
}

static void reset_waits_for_what_is_in_flight(void **state)
{
	struct rig *g = *state;

	hold(g, 20);
	loop_post(g->loop, release_on_loop, g->disk);
	vd_set_status(g->v, 0);
	assert_int_equal(vd_get_status(g->v), 0);
	assert_int_equal(g->v->in_flight, 0);
	assert_int_equal(g->v->queues[0].regs.ready, 0);
	start(g, RIG_ALL);
	assert_int_equal(rig_do(g, BLK_T_IN, 0, 512), BLK_S_OK);
}

static void quiesce_leaves_nothing_in_flight(void **state)
{
	struct rig *g = *state;
	const struct virtq_regs *r = &g->v->queues[0].regs;

	hold(g, 20);
	loop_post(g->loop, release_on_loop, g->disk);
	g->v->dev.ops->quiesce(&g->v->dev);
	assert_int_equal(g->v->in_flight, 0);
	assert_int_equal(r->next_used, r->next_avail);
	assert_int_equal(collect(g, &g->q[0]), 20);
	/* What comes now waits. */
	add_reads(g, &g->q[0], 5);
	vd_kick(g->v, &g->q[0]);
	rig_settle(g);
	assert_int_equal(collect(g, &g->q[0]), 0);
	g->v->dev.ops->resume(&g->v->dev);
	rig_settle(g);
	assert_int_equal(collect(g, &g->q[0]), 5);
}

/* Cloud Hypervisor CVE-2026-45782. */
static void a_head_posted_twice_breaks_the_device(void **state)
{
	struct rig *g = *state;

	hold(g, 3);
	vd_avail(&g->q[0], g->q[0].avail_idx++, 0);
	vd_publish(&g->q[0]);
	virtio_notify(g->v, 0);
	rig_settle(g);
	assert_true(vd_get_status(g->v) & VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(g->v->in_flight, 3);
	spy_release(g->disk);
	rig_settle(g);
	assert_int_equal(g->v->in_flight, 0);
	start(g, RIG_ALL);
	assert_int_equal(rig_do(g, BLK_T_IN, 0, 512), BLK_S_OK);
}

static void freeing_waits_too(void **state)
{
	struct rig g;

	(void)state;
	rig_init(&g, NULL, 1, RIG_SIZE, false);
	start(&g, RIG_ALL);
	hold(&g, 8);
	loop_post(g.loop, release_on_loop, g.disk);
	rig_fini(&g);
}

/* ---- with a thread of its own ---- */

static void wait_used(struct rig *g, unsigned n)
{
	for (unsigned got = 0; got < n;) {
		got += collect(g, &g->q[0]);
		if (got < n)
			sem_wait(&g->signals.signalled);
	}
}

static void an_io_thread_serves_resets_and_stops(void **state)
{
	struct rig *g = malloc(sizeof(*g));
	char path[] = "/tmp/coracle-blk.XXXXXX";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, MIB), 0);
	close(fd);
	for (int aio = BLOCK_AIO_URING; aio <= BLOCK_AIO_THREADS; aio++) {
		const struct block_options o = {
			.path = path, .aio = aio, .depth = RIG_SIZE, .discard = true
		};
		struct block *b = block_file_open(&o, NULL);

		assert_non_null(b);
		rig_init(g, b, 1, RIG_SIZE, false);
		assert_int_equal(loop_thread_start(g->loop, "io-test", NULL), 0);
		for (int round = 0; round < 5; round++) {
			assert_true(vd_start(g->v, &g->ram, g->q, 1, RIG_SIZE,
					     RIG_ALL & ~VIRTIO_F_EVENT_IDX));
			for (int i = 0; i < 20; i++) {
				add_reads(g, &g->q[0], 30);
				vd_kick(g->v, &g->q[0]);
				wait_used(g, 30);
			}
			add_reads(g, &g->q[0], 30);
			vd_kick(g->v, &g->q[0]);
			g->v->dev.ops->quiesce(&g->v->dev);
			const struct virtq_regs *r = &g->v->queues[0].regs;

			assert_int_equal(r->next_used, r->next_avail);
			g->v->dev.ops->resume(&g->v->dev);
			wait_used(g, 30);
			add_reads(g, &g->q[0], 30);
			vd_kick(g->v, &g->q[0]);
			/* and reset with them in flight */
		}
		vd_set_status(g->v, 0);
		assert_int_equal(vd_get_status(g->v), 0);
		rig_fini(g);
	}
	unlink(path);
	free(g);
}

/* ---- configuration ---- */

static void configuration_describes_the_disk(void **state)
{
	struct rig g;
	struct block *b = block_ram_new(MIB, UINT64_MAX, NULL);
	struct blk_wire_config c;
	uint8_t junk = 0x55;

	(void)state;
	b->physical_block = 4096;
	rig_init(&g, b, 3, RIG_SIZE, false);
	assert_int_equal(g.v->config_len, 60);
	assert_int_equal(g.v->ops->id, 2);
	memcpy(&c, g.v->regs.config, sizeof(c));
	assert_int_equal(c.capacity, SECTORS);
	assert_int_equal(c.seg_max, RIG_SIZE - 2);
	assert_int_equal(c.blk_size, 512);
	assert_int_equal(c.physical_block_exp, 3);
	assert_int_equal(c.min_io_size, 8);
	assert_int_equal(c.num_queues, 3);
	assert_int_equal(c.max_discard_sectors, BLK_DISCARD_MAX);
	assert_int_equal(c.max_discard_seg, 16);
	assert_int_equal(c.discard_sector_alignment, 8);
	assert_int_equal(c.max_write_zeroes_sectors, BLK_ZEROES_MAX);
	assert_int_equal(c.write_zeroes_may_unmap, 1);
	/* Only the cache mode can be written, and only whole writes that touch it. */
	start(&g, RIG_ALL);
	for (unsigned i = 0; i < 64; i++)
		virtio_write_config(g.v, i, &junk, 1);
	assert_memory_equal(&c, g.v->regs.config, sizeof(c));
	rig_fini(&g);
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(data_goes_to_the_disk_and_back),
		T(framing_does_not_matter),
		T(ranges_outside_the_disk_are_refused),
		cmocka_unit_test(blocks_of_4096_are_whole),
		T(unknown_types_are_unsupported),
		T(no_status_byte_breaks_the_device),
		T(serial_number_is_told),
		cmocka_unit_test(a_read_only_disk_says_so),
		T(ranges_are_zeroed_and_discarded),
		T(bad_ranges_do_nothing),
		T(what_was_not_negotiated_is_unsupported),
		T(host_errors_reach_guest_and_listener),
		T(writes_are_as_durable_as_the_guest_thinks),
		cmocka_unit_test(a_writethrough_disk_needs_no_flush),
		T(a_batch_costs_one_submit_and_one_signal),
		cmocka_unit_test(queues_do_not_mix),
		T(long_chains_are_kept_apart),
		T(what_is_stored_is_dirty),
		T(reset_waits_for_what_is_in_flight),
		T(quiesce_leaves_nothing_in_flight),
		T(a_head_posted_twice_breaks_the_device),
		cmocka_unit_test(freeing_waits_too),
		cmocka_unit_test(an_io_thread_serves_resets_and_stops),
		cmocka_unit_test(configuration_describes_the_disk),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
