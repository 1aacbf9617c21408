/*
 * test_virtq.c - the ring's parser against drivers that keep the rules and drivers that break them
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>

#include "tests/unit/state_check.h"
#include "tests/unit/virtio_driver.h"

#define RAM_SIZE (UINT64_C(1) << 20)
#define SIZE     16

struct fixture {
	struct vd_ram ram;
	uint8_t *second; /* RAM that begins where the first region ends */
	struct virtq q;
	struct vd_queue d;
	struct iovec iov[VIRTQ_SEGS_MAX];
	struct virtq_chain c;
	gpa_t buf;
};

static int set_up_with(void **state, uint64_t ram, uint16_t size)
{
	struct fixture *f = calloc(1, sizeof(*f));

	vd_ram_init(&f->ram, ram);
	f->second = aligned_alloc(4096, 4096);
	assert_int_equal(gmem_add_borrowed(f->ram.mem, VD_RAM_BASE + ram, 4096, f->second, NULL),
			 0);
	assert_int_equal(virtq_init(&f->q, f->ram.mem, 0, size, NULL), 0);
	vd_queue_init(&f->d, &f->ram, 0, size);
	vd_connect(&f->d, &f->q);
	f->q.indirect = true;
	f->c.iov = f->iov;
	f->buf = vd_alloc(&f->ram, 65536, 4096);
	*state = f;
	return 0;
}

static int set_up(void **state)
{
	return set_up_with(state, RAM_SIZE, SIZE);
}

static int set_up_large(void **state)
{
	return set_up_with(state, UINT64_C(17) << 20, VIRTQ_SIZE_MAX);
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	virtq_fini(&f->q);
	vd_ram_fini(&f->ram);
	free(f->second);
	free(f);
	return 0;
}

static int pop(struct fixture *f)
{
	return virtq_pop(&f->q, &f->c, NULL);
}

static void post(struct fixture *f, uint16_t head)
{
	vd_avail(&f->d, f->d.avail_idx++, head);
	vd_publish(&f->d);
}

/* ---- rules kept ---- */

static void init_refuses_odd_sizes(void **state)
{
	struct fixture *f = *state;
	static const uint16_t bad[] = { 0, 3, 12, 255, 512, 0xffff };

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct virtq q;

		assert_int_equal(virtq_init(&q, f->ram.mem, 0, bad[i], NULL), -EINVAL);
		virtq_fini(&q);
	}
}

static void check_wants_rings_in_ram(void **state)
{
	struct fixture *f = *state;
	const struct virtq_regs good = f->q.regs;
	const gpa_t end = VD_RAM_BASE + RAM_SIZE;

	assert_int_equal(virtq_check(&f->q), 0);
#define REFUSED(member, value)                                 \
	do {                                                   \
		f->q.regs = good;                              \
		f->q.regs.member = (value);                    \
		assert_int_equal(virtq_check(&f->q), -EPROTO); \
	} while (0)
	REFUSED(size, 0);
	REFUSED(size, 3);
	REFUSED(size, 2 * SIZE);
	REFUSED(desc, good.desc + 8);
	REFUSED(driver, good.driver + 1);
	REFUSED(device, good.device + 2);
	REFUSED(desc, 0);
	REFUSED(driver, 0xfee00000);
	REFUSED(device, UINT64_MAX - 3);
	/* From one region of RAM into the next. */
	REFUSED(desc, end - 16);
	REFUSED(driver, end - 6);
	REFUSED(device, end - 4);
#undef REFUSED
	f->q.regs = good;
	f->q.regs.desc = end - 16 * SIZE;
	assert_int_equal(virtq_check(&f->q), 0);
}

static void a_chain_and_back(void **state)
{
	struct fixture *f = *state;
	uint32_t id, len;

	assert_int_equal(pop(f), 0);
	int head = vd_add(&f->d,
			  (struct vd_seg[]){ VD_OUT(f->buf, 16), VD_OUT(f->buf + 100, 7),
					     VD_IN(f->buf + 4096, 512), VD_IN(f->buf + 8192, 1) },
			  4, 0);
	assert_int_equal(pop(f), 0); /* not published */
	vd_publish(&f->d);
	assert_int_equal(pop(f), 1);
	assert_int_equal(f->c.head, head);
	assert_int_equal(f->c.nout, 2);
	assert_int_equal(f->c.nin, 2);
	assert_int_equal(f->c.out_len, 23);
	assert_int_equal(f->c.in_len, 513);
	assert_ptr_equal(f->iov[0].iov_base, vd_host(&f->ram, f->buf));
	assert_ptr_equal(f->iov[2].iov_base, vd_host(&f->ram, f->buf + 4096));
	assert_int_equal(f->iov[2].iov_len, 512);
	assert_int_equal(f->q.in_flight, 1);
	assert_int_equal(pop(f), 0);

	virtq_push(&f->q, f->c.head, 513);
	assert_int_equal(vd_used_idx(&f->d), 0); /* flush publishes */
	assert_true(virtq_flush(&f->q));
	assert_true(vd_collect(&f->d, &id, &len));
	assert_int_equal(id, head);
	assert_int_equal(len, 513);
	assert_false(vd_collect(&f->d, &id, &len));
	assert_int_equal(f->q.in_flight, 0);
	assert_int_equal(f->q.regs.next_used, f->q.regs.next_avail);
}

static void indirect_alone_and_last(void **state)
{
	struct fixture *f = *state;
	const struct vd_seg s[] = { VD_OUT(f->buf, 16), VD_OUT(f->buf + 64, 32),
				    VD_IN(f->buf + 4096, 8) };

	for (unsigned indirect = 1; indirect <= 3; indirect++) {
		assert_true(vd_add(&f->d, s, 3, indirect) >= 0);
		vd_publish(&f->d);
		assert_int_equal(pop(f), 1);
		assert_int_equal(f->c.nout, 2);
		assert_int_equal(f->c.nin, 1);
		assert_int_equal(f->c.out_len, 48);
		virtq_push(&f->q, f->c.head, 0);
	}
}

/* The device ignores WRITE on a descriptor that refers to an indirect table (2.7.5.3.2). */
static void indirect_ignores_write(void **state)
{
	struct fixture *f = *state;
	gpa_t table = vd_alloc(&f->ram, 16, 16);

	*(struct vd_desc *)vd_host(&f->ram, table) = (struct vd_desc){ f->buf, 5, 0, 0 };
	vd_desc(&f->d, 0, table, 16, VD_INDIRECT | VD_WRITE, 0);
	post(f, 0);
	assert_int_equal(pop(f), 1);
	assert_int_equal(f->c.out_len, 5);
	assert_int_equal(f->c.nin, 0);
}

static void indices_wrap(void **state)
{
	struct fixture *f = *state;
	uint32_t id, len;

	f->q.regs.next_avail = f->q.regs.next_used = f->q.regs.signalled_used = 0xfff5;
	f->d.avail_idx = f->d.published = f->d.last_used = 0xfff5;
	vd_store16(&f->d, f->d.used + 2, 0xfff5);
	vd_avail_idx(&f->d, 0xfff5);
	for (unsigned round = 0; round < 3 * SIZE; round++) {
		int a = vd_add(&f->d, &(struct vd_seg)VD_OUT(f->buf, 1), 1, 0);
		int b = vd_add(&f->d, &(struct vd_seg)VD_OUT(f->buf, 2), 1, 0);

		vd_publish(&f->d);
		assert_int_equal(pop(f), 1);
		assert_int_equal(f->c.head, a);
		assert_int_equal(pop(f), 1);
		assert_int_equal(f->c.head, b);
		assert_int_equal(pop(f), 0);
		/* Out of order. */
		virtq_push(&f->q, (uint16_t)b, round);
		virtq_push(&f->q, (uint16_t)a, round + 1);
		assert_true(virtq_flush(&f->q));
		assert_true(vd_collect(&f->d, &id, &len));
		assert_int_equal(id, b);
		assert_int_equal(len, round);
		assert_true(vd_collect(&f->d, &id, &len));
		assert_int_equal(id, a);
	}
	assert_int_equal(f->d.nfree, SIZE);
}

static void unpop_gives_the_same_again(void **state)
{
	struct fixture *f = *state;
	int head = vd_add(&f->d, &(struct vd_seg)VD_IN(f->buf, 9), 1, 0);

	vd_publish(&f->d);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(pop(f), 1);
		assert_int_equal(f->c.head, head);
		virtq_unpop(&f->q, &f->c);
		assert_int_equal(f->q.in_flight, 0);
	}
	assert_int_equal(pop(f), 1);
	assert_int_equal(f->c.in_len, 9);
}

static void a_smaller_ring_than_offered(void **state)
{
	struct fixture *f = *state;

	f->q.regs.size = 4;
	f->d.size = f->d.nfree = 4;
	for (int i = 0; i < 10; i++) {
		uint32_t id, len;

		assert_true(vd_add(&f->d, &(struct vd_seg)VD_OUT(f->buf, 1), 1, 0) >= 0);
		vd_publish(&f->d);
		assert_int_equal(pop(f), 1);
		virtq_push(&f->q, f->c.head, 0);
		virtq_flush(&f->q);
		assert_true(vd_collect(&f->d, &id, &len));
	}
}

static void not_ready_gives_nothing(void **state)
{
	struct fixture *f = *state;

	vd_add(&f->d, &(struct vd_seg)VD_OUT(f->buf, 1), 1, 0);
	vd_publish(&f->d);
	f->q.regs.ready = 0;
	assert_int_equal(pop(f), 0);
	assert_false(virtq_flush(&f->q));
	assert_false(virtq_want_kick(&f->q));
	virtq_no_kick(&f->q);
	assert_int_equal(vd_load16(&f->d, f->d.used), 0);
}

/* ---- rules broken: each is -EPROTO, for good, and holds nothing ---- */

static void bad_index_jump(struct fixture *f)
{
	vd_avail_idx(&f->d, SIZE + 1);
}

static void bad_index_back(struct fixture *f)
{
	vd_avail_idx(&f->d, 0xffff);
}

static void bad_head(struct fixture *f)
{
	post(f, SIZE);
}

static void bad_head_ffff(struct fixture *f)
{
	post(f, 0xffff);
}

static void bad_next(struct fixture *f)
{
	vd_desc(&f->d, 0, f->buf, 1, VD_NEXT, SIZE);
	post(f, 0);
}

static void bad_circle(struct fixture *f)
{
	vd_desc(&f->d, 0, f->buf, 1, VD_NEXT, 1);
	vd_desc(&f->d, 1, f->buf, 1, VD_NEXT, 0);
	post(f, 0);
}

static void bad_self(struct fixture *f)
{
	vd_desc(&f->d, 3, f->buf, 1, VD_NEXT | VD_WRITE, 3);
	post(f, 3);
}

static void bad_zero(struct fixture *f)
{
	vd_desc(&f->d, 0, f->buf, 0, 0, 0);
	post(f, 0);
}

static void bad_zero_inside(struct fixture *f)
{
	vd_desc(&f->d, 0, f->buf, 1, VD_NEXT, 1);
	vd_desc(&f->d, 1, f->buf, 0, VD_WRITE, 0);
	post(f, 0);
}

static void bad_address_zero(struct fixture *f)
{
	vd_desc(&f->d, 0, 0, 16, 0, 0);
	post(f, 0);
}

static void bad_mmio(struct fixture *f)
{
	vd_desc(&f->d, 0, 0xfee00000, 4, VD_WRITE, 0);
	post(f, 0);
}

static void bad_wrap(struct fixture *f)
{
	vd_desc(&f->d, 0, UINT64_MAX - 7, 64, 0, 0);
	post(f, 0);
}

static void bad_past_the_end(struct fixture *f)
{
	vd_desc(&f->d, 0, VD_RAM_BASE + RAM_SIZE + 4096 - 8, 9, 0, 0);
	post(f, 0);
}

static void bad_crosses_regions(struct fixture *f)
{
	vd_desc(&f->d, 0, VD_RAM_BASE + RAM_SIZE - 8, 16, VD_WRITE, 0);
	post(f, 0);
}

static void bad_4g_minus_1(struct fixture *f)
{
	vd_desc(&f->d, 0, f->buf, UINT32_MAX, VD_WRITE, 0);
	post(f, 0);
}

static void bad_order(struct fixture *f)
{
	vd_desc(&f->d, 0, f->buf, 1, VD_NEXT | VD_WRITE, 1);
	vd_desc(&f->d, 1, f->buf, 1, 0, 0);
	post(f, 0);
}

/* A table of @n entries, the first of them @first; one entry long it is good. */
static gpa_t table(struct fixture *f, unsigned n, struct vd_desc first)
{
	gpa_t at = vd_alloc(&f->ram, 16ull * n, 16);

	for (unsigned i = 0; i < n; i++)
		((struct vd_desc *)vd_host(&f->ram, at))[i] = first;
	return at;
}

static void indirect(struct fixture *f, gpa_t at, uint32_t len, uint16_t flags)
{
	vd_desc(&f->d, 0, at, len, VD_INDIRECT | flags, 1);
	vd_desc(&f->d, 1, f->buf, 1, 0, 0);
	post(f, 0);
}

static void bad_indirect_unasked(struct fixture *f)
{
	f->q.indirect = false;
	indirect(f, table(f, 1, (struct vd_desc){ f->buf, 1, 0, 0 }), 16, 0);
}

static void bad_indirect_next(struct fixture *f)
{
	indirect(f, table(f, 1, (struct vd_desc){ f->buf, 1, 0, 0 }), 16, VD_NEXT);
}

static void bad_indirect_empty(struct fixture *f)
{
	indirect(f, table(f, 1, (struct vd_desc){ f->buf, 1, 0, 0 }), 0, 0);
}

static void bad_indirect_ragged(struct fixture *f)
{
	indirect(f, table(f, 2, (struct vd_desc){ f->buf, 1, 0, 0 }), 17, 0);
}

static void bad_indirect_huge(struct fixture *f)
{
	indirect(f, table(f, VIRTQ_SEGS_MAX + 1, (struct vd_desc){ f->buf, 1, 0, 0 }),
		 16 * (VIRTQ_SEGS_MAX + 1), 0);
}

static void bad_indirect_4g(struct fixture *f)
{
	indirect(f, f->buf, 0xfffffff0, 0);
}

static void bad_indirect_nested(struct fixture *f)
{
	gpa_t inner = table(f, 1, (struct vd_desc){ f->buf, 1, 0, 0 });

	indirect(f, table(f, 1, (struct vd_desc){ inner, 16, VD_INDIRECT, 0 }), 16, 0);
}

static void bad_indirect_itself(struct fixture *f)
{
	gpa_t at = table(f, 1, (struct vd_desc){ 0 });

	*(struct vd_desc *)vd_host(&f->ram, at) = (struct vd_desc){ at, 16, VD_INDIRECT, 0 };
	indirect(f, at, 16, 0);
}

static void bad_indirect_mmio(struct fixture *f)
{
	indirect(f, 0xd0000000, 16, 0);
}

static void bad_indirect_crosses(struct fixture *f)
{
	indirect(f, VD_RAM_BASE + RAM_SIZE - 16, 32, 0);
}

static void bad_indirect_circle(struct fixture *f)
{
	indirect(f, table(f, 4, (struct vd_desc){ f->buf, 1, VD_NEXT, 2 }), 64, 0);
}

static void bad_indirect_next_outside(struct fixture *f)
{
	/* Inside the queue's size, outside the table's. */
	indirect(f, table(f, 2, (struct vd_desc){ f->buf, 1, VD_NEXT, 2 }), 32, 0);
}

static void bad_indirect_zero_length(struct fixture *f)
{
	indirect(f, table(f, 1, (struct vd_desc){ f->buf, 0, 0, 0 }), 16, 0);
}

static const struct broken {
	void (*make)(struct fixture *f);
	const char *why; /* part of the message: the rule meant is the rule found */
} broken_rules[] = {
	{ bad_index_jump, "further ahead" },
	{ bad_index_back, "further ahead" },
	{ bad_head, "outside the descriptor table" },
	{ bad_head_ffff, "outside the descriptor table" },
	{ bad_next, "outside its table" },
	{ bad_circle, "circle" },
	{ bad_self, "circle" },
	{ bad_zero, "length 0" },
	{ bad_zero_inside, "length 0" },
	{ bad_address_zero, "outside RAM" },
	{ bad_mmio, "outside RAM" },
	{ bad_wrap, "outside RAM" },
	{ bad_past_the_end, "outside RAM" },
	{ bad_crosses_regions, "outside RAM" },
	{ bad_4g_minus_1, "outside RAM" },
	{ bad_order, "follows a device-writable" },
	{ bad_indirect_unasked, "without the feature" },
	{ bad_indirect_next, "has a next" },
	{ bad_indirect_empty, "whole number" },
	{ bad_indirect_ragged, "whole number" },
	{ bad_indirect_huge, "larger than" },
	{ bad_indirect_4g, "larger than" },
	{ bad_indirect_nested, "inside an indirect" },
	{ bad_indirect_itself, "inside an indirect" },
	{ bad_indirect_mmio, "outside RAM" },
	{ bad_indirect_crosses, "outside RAM" },
	{ bad_indirect_circle, "circle" },
	{ bad_indirect_next_outside, "outside its table" },
	{ bad_indirect_zero_length, "length 0" },
};

static void broken_rules_break_the_queue(void **state)
{
	for (size_t i = 0; i < sizeof(broken_rules) / sizeof(broken_rules[0]); i++) {
		const struct broken *b = &broken_rules[i];
		const char *why = NULL;
		struct fixture *f;
		void *fresh;

		set_up(&fresh);
		f = fresh;
		b->make(f);
		assert_int_equal(virtq_pop(&f->q, &f->c, &why), -EPROTO);
		if (!why || !strstr(why, b->why))
			fail_msg("rule %zu (%s): %s", i, b->why, why ? why : "no reason");
		assert_int_equal(f->q.in_flight, 0);
		assert_int_equal(f->q.regs.next_avail, 0);

		/* A driver that mends the ring is not listened to, */
		vd_desc(&f->d, 0, f->buf, 1, 0, 0);
		vd_avail(&f->d, 0, 0);
		vd_avail_idx(&f->d, 1);
		assert_int_equal(pop(f), -EPROTO);
		assert_false(virtq_want_kick(&f->q));
		/* but one that resets is. */
		virtq_reset(&f->q);
		vd_connect(&f->d, &f->q);
		assert_int_equal(pop(f), 1);
		tear_down(&fresh);
	}
}

static void same_head_twice_in_flight(void **state)
{
	struct fixture *f = *state;
	const char *why = NULL;

	vd_desc(&f->d, 5, f->buf, 16, VD_WRITE, 0);
	vd_avail(&f->d, 0, 5);
	vd_avail(&f->d, 1, 5);
	vd_avail_idx(&f->d, 2);
	assert_int_equal(pop(f), 1);
	assert_int_equal(virtq_pop(&f->q, &f->c, &why), -EPROTO);
	assert_non_null(strstr(why, "before it was used"));
	assert_int_equal(f->q.in_flight, 1);
	/* What was in flight still ends in order. */
	virtq_push(&f->q, 5, 16);
	assert_true(virtq_flush(&f->q));
	assert_int_equal(f->q.in_flight, 0);
	assert_int_equal(vd_used_idx(&f->d), 1);
}

static void in_flight_never_exceeds_the_ring(void **state)
{
	struct fixture *f = *state;
	const char *why = NULL;

	for (uint16_t i = 0; i < SIZE; i++)
		assert_int_equal(vd_add(&f->d, &(struct vd_seg)VD_IN(f->buf, 1), 1, 0), i);
	vd_publish(&f->d);
	for (uint16_t i = 0; i < SIZE; i++)
		assert_int_equal(pop(f), 1);
	assert_int_equal(f->q.in_flight, SIZE);
	assert_int_equal(pop(f), 0);
	post(f, 3); /* none was reaped */
	assert_int_equal(virtq_pop(&f->q, &f->c, &why), -EPROTO);
	assert_non_null(strstr(why, "further ahead"));
	assert_int_equal(f->q.in_flight, SIZE);
}

static void at_most_the_room_given(void **state)
{
	struct fixture *f = *state;
	struct vd_seg s[5];

	for (int i = 0; i < 5; i++)
		s[i] = (struct vd_seg){ f->buf, 1, i > 2 };
	f->c.room = 5;
	vd_add(&f->d, s, 5, 0);
	vd_publish(&f->d);
	assert_int_equal(pop(f), 1);
	f->c.room = 4;
	vd_add(&f->d, s, 5, 5);
	vd_publish(&f->d);
	assert_int_equal(pop(f), -EPROTO);
}

static void the_longest_indirect_chain(void **state)
{
	struct fixture *f = *state;
	struct vd_seg s[VIRTQ_SEGS_MAX];

	for (int i = 0; i < VIRTQ_SEGS_MAX; i++)
		s[i] = (struct vd_seg){ f->buf + (gpa_t)i, 1, i > 100 };
	assert_true(vd_add(&f->d, s, VIRTQ_SEGS_MAX, VIRTQ_SEGS_MAX) >= 0);
	vd_publish(&f->d);
	assert_int_equal(pop(f), 1);
	assert_int_equal(f->c.nout + f->c.nin, VIRTQ_SEGS_MAX);
	/* One more, in front. */
	vd_add(&f->d, s, 1, 0);
	f->d.avail_idx--;
	vd_desc(&f->d, 1, f->buf, 1, VD_NEXT, 0);
	virtq_push(&f->q, 0, 0);
	post(f, 1);
	assert_int_equal(pop(f), -EPROTO);
}

/* Ranges may overlap, so a small RAM makes a chain of any length. */
static void four_gigabytes_in_one_chain(void **state)
{
	struct fixture *f = *state;
	const uint32_t len = 16u << 20;
	const unsigned n = (unsigned)((UINT64_C(1) << 32) / len);
	struct vd_seg s[VIRTQ_SIZE_MAX];

	assert_int_equal(n, VIRTQ_SIZE_MAX);
	for (unsigned i = 0; i < n; i++)
		s[i] = (struct vd_seg){ f->buf, len, i > 3 };
	assert_true(vd_add(&f->d, s, n, 0) >= 0);
	vd_publish(&f->d);
	assert_int_equal(pop(f), 1);
	assert_int_equal(f->c.out_len + f->c.in_len, UINT64_C(1) << 32);
	virtq_push(&f->q, f->c.head, 0);
	virtq_flush(&f->q);

	uint32_t id, used;

	assert_true(vd_collect(&f->d, &id, &used));
	s[0].len++;
	assert_true(vd_add(&f->d, s, n, 0) >= 0);
	vd_publish(&f->d);
	assert_int_equal(pop(f), -EPROTO);
}

/* ---- interrupts and kicks ---- */

static void serve(struct fixture *f, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		vd_add(&f->d, &(struct vd_seg)VD_OUT(f->buf, 1), 1, 0);
		vd_publish(&f->d);
		assert_int_equal(pop(f), 1);
		virtq_push(&f->q, f->c.head, 0);
	}
}

static void interrupts_by_flag(void **state)
{
	struct fixture *f = *state;

	assert_false(virtq_flush(&f->q)); /* nothing to tell */
	serve(f, 1);
	assert_true(virtq_flush(&f->q));
	assert_false(virtq_flush(&f->q));
	vd_no_interrupt(&f->d, true);
	serve(f, 3);
	assert_false(virtq_flush(&f->q));
	assert_int_equal(vd_used_idx(&f->d), 4);
	vd_no_interrupt(&f->d, false);
	assert_false(virtq_flush(&f->q)); /* published before: the driver saw it */
	serve(f, 1);
	assert_true(virtq_flush(&f->q));
}

static void interrupts_by_event_index(void **state)
{
	struct fixture *f = *state;

	f->q.event_idx = true;
	vd_no_interrupt(&f->d, true); /* means nothing now (2.7.10) */
	vd_used_event(&f->d, 100);
	serve(f, 1);
	assert_true(virtq_flush(&f->q)); /* the first one always */
	vd_used_event(&f->d, 0);
	serve(f, 1);
	assert_false(virtq_flush(&f->q)); /* 0 was told */
	vd_used_event(&f->d, 2);
	serve(f, 1);
	assert_true(virtq_flush(&f->q)); /* entry 2 was used */
	vd_used_event(&f->d, 5);
	serve(f, 2);
	assert_false(virtq_flush(&f->q)); /* 3 and 4 */
	serve(f, 3);
	assert_true(virtq_flush(&f->q)); /* 5 in the middle of a batch */
	serve(f, 1);
	assert_false(virtq_flush(&f->q));
}

static void event_index_wraps(void **state)
{
	struct fixture *f = *state;

	f->q.event_idx = true;
	f->q.regs.next_avail = f->q.regs.next_used = f->q.regs.signalled_used = 0xfffe;
	f->q.regs.signalled_valid = 1;
	f->d.avail_idx = f->d.published = 0xfffe;
	vd_avail_idx(&f->d, 0xfffe);
	vd_used_event(&f->d, 1);
	serve(f, 3);
	assert_false(virtq_flush(&f->q)); /* 0xfffe, 0xffff, 0 */
	serve(f, 1);
	assert_true(virtq_flush(&f->q));
}

static void kicks_by_flag(void **state)
{
	struct fixture *f = *state;

	virtq_no_kick(&f->q);
	vd_add(&f->d, &(struct vd_seg)VD_OUT(f->buf, 1), 1, 0);
	assert_false(vd_publish(&f->d));
	assert_true(virtq_want_kick(&f->q)); /* it came while we did not want to hear */
	assert_int_equal(pop(f), 1);
	assert_false(virtq_want_kick(&f->q));
	vd_add(&f->d, &(struct vd_seg)VD_OUT(f->buf, 1), 1, 0);
	assert_true(vd_publish(&f->d));
}

static void kicks_by_event_index(void **state)
{
	struct fixture *f = *state;

	f->q.event_idx = f->d.event_idx = true;
	assert_false(virtq_want_kick(&f->q));
	vd_add(&f->d, &(struct vd_seg)VD_OUT(f->buf, 1), 1, 0);
	assert_true(vd_publish(&f->d));
	vd_add(&f->d, &(struct vd_seg)VD_OUT(f->buf, 1), 1, 0);
	assert_false(vd_publish(&f->d)); /* we asked for one */
	assert_true(virtq_want_kick(&f->q));
	assert_int_equal(pop(f), 1);
	assert_int_equal(pop(f), 1);
	assert_false(virtq_want_kick(&f->q));
	assert_int_equal(vd_avail_event(&f->d), 2);
	vd_add(&f->d, &(struct vd_seg)VD_OUT(f->buf, 1), 1, 0);
	assert_true(vd_publish(&f->d));
}

static void want_kick_lets_pop_tell_a_bad_index(void **state)
{
	struct fixture *f = *state;

	vd_avail_idx(&f->d, 0x8000);
	assert_true(virtq_want_kick(&f->q));
	assert_int_equal(pop(f), -EPROTO);
	assert_false(virtq_want_kick(&f->q));
}

/* ---- bytes ---- */

static void copies_over_ranges(void **state)
{
	struct fixture *f = *state;
	uint8_t *ram = vd_host(&f->ram, f->buf), got[64];

	for (int i = 0; i < 64; i++)
		ram[i] = (uint8_t)i;
	vd_add(&f->d,
	       (struct vd_seg[]){ VD_OUT(f->buf, 3), VD_OUT(f->buf + 10, 1), VD_OUT(f->buf + 20, 6),
				  VD_IN(f->buf + 100, 2), VD_IN(f->buf + 200, 5) },
	       5, 0);
	vd_publish(&f->d);
	assert_int_equal(pop(f), 1);

	static const uint8_t all[] = { 0, 1, 2, 10, 20, 21, 22, 23, 24, 25 };

	for (size_t off = 0; off <= 12; off++) {
		size_t want = off < 10 ? 10 - off : 0;

		assert_int_equal(virtq_copy_out(&f->c, off, got, sizeof(got)), want);
		if (want)
			assert_memory_equal(got, all + off, want);
		assert_int_equal(virtq_copy_out(&f->c, off, got, 1), want ? 1 : 0);
	}
	assert_int_equal(virtq_copy_out(&f->c, UINT64_MAX, got, 1), 0);
	assert_int_equal(virtq_copy_in(&f->c, 1, "abcdefghij", 10), 6);
	assert_int_equal(ram[100], 0);
	assert_int_equal(ram[101], 'a');
	assert_memory_equal(ram + 200, "bcdef", 5);
	assert_int_equal(ram[205], 0);
	assert_int_equal(virtq_copy_in(&f->c, 7, "x", 1), 0);
}

static bool dirty(const uint64_t *bits, gpa_t at)
{
	gpa_t page = (at - VD_RAM_BASE) >> 12;

	return bits[page / 64] >> page % 64 & 1;
}

static void stores_are_marked_dirty(void **state)
{
	struct fixture *f = *state;
	static uint64_t bits[(RAM_SIZE >> 12) / 64];
	unsigned n = 0;

	assert_int_equal(gmem_dirty_start(f->ram.mem, NULL), 0);
	/* Driver's stores are the vCPU's, which KVM logs: start clean after them. */
	vd_add(&f->d,
	       (struct vd_seg[]){ VD_OUT(f->buf, 16), VD_IN(f->buf + 4096, 4096),
				  VD_IN(f->buf + 3 * 4096, 8192) },
	       3, 0);
	vd_publish(&f->d);
	assert_int_equal(gmem_dirty_fetch(f->ram.mem, 0, bits, sizeof(bits) / 8), 0);

	assert_int_equal(pop(f), 1);
	virtq_mark_written(&f->q, &f->c, 4096 + 1);
	assert_int_equal(gmem_dirty_fetch(f->ram.mem, 0, bits, sizeof(bits) / 8), 0);
	for (size_t i = 0; i < sizeof(bits) / 8; i++)
		n += (unsigned)__builtin_popcountll(bits[i]);
	assert_int_equal(n, 2);
	assert_true(dirty(bits, f->buf + 4096));
	assert_true(dirty(bits, f->buf + 3 * 4096));

	virtq_push(&f->q, f->c.head, 4097);
	virtq_flush(&f->q);
	assert_int_equal(gmem_dirty_fetch(f->ram.mem, 0, bits, sizeof(bits) / 8), 0);
	assert_true(dirty(bits, f->d.used));

	/* More than there is: the whole part and no further. */
	virtq_mark_written(&f->q, &f->c, UINT64_MAX);
	assert_int_equal(gmem_dirty_fetch(f->ram.mem, 0, bits, sizeof(bits) / 8), 0);
	assert_true(dirty(bits, f->buf + 4 * 4096));
	assert_false(dirty(bits, f->buf + 5 * 4096));
	gmem_dirty_stop(f->ram.mem);
}

/* ---- a vCPU rewrites descriptors while we look ---- */

#ifndef __SANITIZE_THREAD__ /* the race is the guest's, and meant */

struct flipper {
	volatile struct vd_desc *d;
	gpa_t good;
	atomic_bool stop;
};

static void *flip(void *arg)
{
	struct flipper *fl = arg;

	while (!atomic_load(&fl->stop)) {
		fl->d->addr = 0xfee00000;
		fl->d->len = 0xffffff00;
		fl->d->flags = VD_INDIRECT;
		fl->d->flags = VD_WRITE;
		fl->d->len = 8;
		fl->d->addr = fl->good;
	}
	return NULL;
}

static void a_descriptor_is_copied_once(void **state)
{
	struct fixture *f = *state;
	struct flipper fl = { .d = vd_host(&f->ram, f->d.desc), .good = f->buf };
	const uint8_t *ram = f->ram.host;
	pthread_t t;

	vd_desc(&f->d, 0, f->buf, 8, VD_WRITE, 0);
	assert_int_equal(pthread_create(&t, NULL, flip, &fl), 0);
	for (int i = 0; i < 20000; i++) {
		virtq_reset(&f->q);
		vd_connect(&f->d, &f->q);
		vd_avail(&f->d, 0, 0);
		vd_avail_idx(&f->d, 1);
		if (pop(f) != 1)
			continue;
		const uint8_t *at = f->iov[0].iov_base;

		/* Whatever mixture was seen, what was checked is what is used. */
		assert_int_equal(f->c.nout + f->c.nin, 1);
		assert_int_equal(f->c.in_len + f->c.out_len, f->iov[0].iov_len);
		assert_true(at >= ram && f->iov[0].iov_len <= (size_t)(ram + RAM_SIZE - at));
	}
	atomic_store(&fl.stop, true);
	pthread_join(t, NULL);
}

#endif

/* ---- state ---- */

static void state_is_complete(void **state)
{
	state_check_complete(&virtq_state, sizeof(struct virtq_regs));
}

static int load(struct fixture *f, const struct virtq_regs *r, struct err *err)
{
	struct state_buf buf = { 0 };

	assert_int_equal(state_save(&virtq_state, r, &buf), 0);
	struct virtq_regs into = f->q.regs;
	int rc = state_load(&virtq_state, &into, &f->q, buf.data, buf.len, err);

	if (!rc)
		assert_memory_equal(&into, r, sizeof(into));
	state_buf_fini(&buf);
	return rc;
}

static void state_is_validated(void **state)
{
	struct fixture *f = *state;
	struct virtq_regs good = f->q.regs;
	struct err err;

	f->q.vectors = 3;
	good.next_avail = good.next_used = good.signalled_used = 0x8123;
	good.vector = 2;
	good.signalled_valid = 1;
	assert_int_equal(load(f, &good, &err), 0);
#define REFUSED(member, value)                                  \
	do {                                                    \
		struct virtq_regs bad = good;                   \
		bad.member = (value);                           \
		assert_int_equal(load(f, &bad, &err), -EINVAL); \
		assert_non_null(strstr(err.msg, #member));      \
	} while (0)
	REFUSED(size, 0);
	REFUSED(size, 5);
	REFUSED(size, 2 * SIZE);
	REFUSED(ready, 2);
	REFUSED(signalled_valid, 2);
	REFUSED(next_used, 0x8122);
	REFUSED(signalled_used, 0x8122);
	REFUSED(vector, 3);
	REFUSED(desc, UINT64_MAX - 15);
#undef REFUSED
	/* A queue that is not in use may have any address. */
	good.ready = 0;
	good.desc = 1;
	good.vector = 0xffff;
	assert_int_equal(load(f, &good, &err), 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(init_refuses_odd_sizes),
		T(check_wants_rings_in_ram),
		T(a_chain_and_back),
		T(indirect_alone_and_last),
		T(indirect_ignores_write),
		T(indices_wrap),
		T(unpop_gives_the_same_again),
		T(a_smaller_ring_than_offered),
		T(not_ready_gives_nothing),
		cmocka_unit_test(broken_rules_break_the_queue),
		T(same_head_twice_in_flight),
		T(in_flight_never_exceeds_the_ring),
		T(at_most_the_room_given),
		T(the_longest_indirect_chain),
		cmocka_unit_test_setup_teardown(four_gigabytes_in_one_chain, set_up_large,
						tear_down),
		T(interrupts_by_flag),
		T(interrupts_by_event_index),
		T(event_index_wraps),
		T(kicks_by_flag),
		T(kicks_by_event_index),
		T(want_kick_lets_pop_tell_a_bad_index),
		T(copies_over_ranges),
		T(stores_are_marked_dirty),
#ifndef __SANITIZE_THREAD__
		T(a_descriptor_is_copied_once),
#endif
		cmocka_unit_test(state_is_complete),
		T(state_is_validated),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
