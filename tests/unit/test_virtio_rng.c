/*
 * test_virtio_rng.c - the virtio entropy device
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/unit/virtio_driver.h"
#include "virtio/rng.h"

#define HOUR 3600000

struct rig {
	struct vd_ram ram;
	struct loop *loop;
	struct virtio *v;
	struct vd_queue q;
	gpa_t data;
};

static void rig_init(struct rig *g, uint64_t rate, unsigned period_ms, uint64_t features)
{
	vd_ram_init(&g->ram, 4 << 20);
	g->loop = loop_new(NULL);
	g->v = virtio_rng_new("rng", rate, period_ms, g->ram.mem, g->loop, NULL);
	assert_non_null(g->v);
	assert_int_equal(g->v->ops->id, 4);
	assert_int_equal(g->v->config_len, 0);
	assert_true(vd_start(g->v, &g->ram, &g->q, 1, 64, features));
	g->data = vd_alloc(&g->ram, 2 << 20, 4096);
}

static void rig_fini(struct rig *g)
{
	g->v->dev.ops->free(&g->v->dev);
	loop_free(g->loop);
	vd_ram_fini(&g->ram);
}

static void settle(struct rig *g)
{
	while (loop_poll(g->loop, 0))
		;
}

static void ask(struct rig *g, gpa_t at, uint32_t len)
{
	assert_true(vd_add(&g->q, (struct vd_seg[]){ VD_IN(at, len) }, 1, 0) >= 0);
	vd_kick(g->v, &g->q);
	settle(g);
}

/* Bytes of the next answer, 0: none. */
static uint32_t answer(struct rig *g)
{
	uint32_t head, len;

	return vd_collect(&g->q, &head, &len) ? len : 0;
}

static bool is_zero(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

static void buffers_are_filled_to_their_end(void **state)
{
	struct rig g;
	uint8_t *p;

	(void)state;
	rig_init(&g, 0, 1000, VIRTIO_F_EVENT_IDX);
	p = vd_host(&g.ram, g.data);
	ask(&g, g.data + 64, 64);
	assert_int_equal(answer(&g), 64);
	assert_true(is_zero(p, 64) && is_zero(p + 128, 64));
	assert_false(is_zero(p + 64, 32) || is_zero(p + 96, 32)); /* 2^-256 */
	/* Not the same twice, and over several ranges. */
	assert_true(vd_add(&g.q,
			   (struct vd_seg[]){ VD_IN(g.data + 256, 1), VD_IN(g.data + 300, 40),
					      VD_IN(g.data + 400, 23) },
			   3, 0) >= 0);
	vd_kick(g.v, &g.q);
	settle(&g);
	assert_int_equal(answer(&g), 64);
	assert_memory_not_equal(p + 300, p + 65, 40);
	assert_false(is_zero(p + 400, 23));
	assert_true(is_zero(p + 340, 60));
	rig_fini(&g);
}

static void many_requests_are_answered(void **state)
{
	struct rig g;

	(void)state;
	for (int i = 0; i < 2; i++) {
		rig_init(&g, 0, 1000, i ? VIRTIO_F_EVENT_IDX : 0);
		for (int k = 0; k < 64; k++)
			assert_true(vd_add(&g.q, (struct vd_seg[]){ VD_IN(g.data, 32768) }, 1, 0) >=
				    0);
		vd_kick(g.v, &g.q);
		/* More than one turn's worth: each turn is bounded, and the rest follows by itself. */
		loop_poll(g.loop, 0);
		assert_true((uint16_t)(vd_used_idx(&g.q) - g.q.last_used) < 64);
		settle(&g);
		for (int k = 0; k < 64; k++)
			assert_int_equal(answer(&g), 32768);
		rig_fini(&g);
	}
}

/* Firecracker #5762: 4 GiB in one request. The same RAM may be named many times over. */
static void a_huge_request_is_bounded(void **state)
{
	struct rig g;
	struct vd_seg s[32];
	uint8_t *p;

	(void)state;
	rig_init(&g, 0, 1000, VIRTIO_F_INDIRECT_DESC);
	p = vd_host(&g.ram, g.data);
	ask(&g, g.data, 2 << 20);
	assert_int_equal(answer(&g), 65536);
	assert_true(is_zero(p + 65536, 4096));
	for (int i = 0; i < 32; i++)
		s[i] = (struct vd_seg)VD_IN(g.data, 2 << 20);
	assert_true(vd_add(&g.q, s, 32, 32) >= 0);
	vd_kick(g.v, &g.q);
	settle(&g);
	assert_int_equal(answer(&g), 65536);
	rig_fini(&g);
}

static void the_rate_holds_across_a_reset(void **state)
{
	struct rig g;

	(void)state;
	rig_init(&g, 100, HOUR, VIRTIO_F_EVENT_IDX);
	ask(&g, g.data, 64);
	ask(&g, g.data, 64);
	ask(&g, g.data, 64);
	assert_int_equal(answer(&g), 64);
	assert_int_equal(answer(&g), 36);
	assert_int_equal(answer(&g), 0);
	/* It waits in the ring, where a stop finds nothing in flight. */
	g.v->dev.ops->quiesce(&g.v->dev);
	assert_int_equal(g.v->queues[0].regs.next_used, g.v->queues[0].regs.next_avail);
	g.v->dev.ops->resume(&g.v->dev);
	settle(&g);
	assert_int_equal(answer(&g), 0);
	assert_true(vd_start(g.v, &g.ram, &g.q, 1, 64, 0));
	ask(&g, g.data, 64);
	assert_int_equal(answer(&g), 0);
	assert_int_equal(g.v->regs.status & VIRTIO_STATUS_NEEDS_RESET, 0);
	rig_fini(&g);
}

static void a_new_window_serves_who_waits(void **state)
{
	struct rig g;
	uint64_t sum = 0;

	(void)state;
	rig_init(&g, 8, 1, 0);
	ask(&g, g.data, 100);
	ask(&g, g.data, 100);
	ask(&g, g.data, 100);
	while (g.q.last_used != g.q.avail_idx) {
		uint32_t n = answer(&g);

		assert_true(n <= 8);
		sum += n;
		if (!n)
			loop_poll(g.loop, -1); /* the timer */
	}
	assert_true(sum >= 3 && sum <= 24);
	rig_fini(&g);
}

static void what_is_stored_is_dirty(void **state)
{
	struct rig g;
	uint64_t bits[16];

	(void)state;
	rig_init(&g, 0, 1000, 0);
	assert_int_equal(gmem_dirty_start(g.ram.mem, NULL), 0);
	ask(&g, g.data + 4096, 4097);
	assert_int_equal(answer(&g), 4097);
	assert_int_equal(gmem_dirty_fetch(g.ram.mem, 0, bits, 16), 0);
	const uint64_t page = (g.data - VD_RAM_BASE) / 4096;

	for (uint64_t i = 0; i < 4; i++)
		assert_int_equal(bits[(page + i) / 64] >> (page + i) % 64 & 1, i == 1 || i == 2);
	rig_fini(&g);
}

static void no_writable_buffer_breaks_the_device(void **state)
{
	struct rig g;

	(void)state;
	rig_init(&g, 0, 1000, 0);
	assert_true(vd_add(&g.q, (struct vd_seg[]){ VD_OUT(g.data, 64) }, 1, 0) >= 0);
	vd_kick(g.v, &g.q);
	settle(&g);
	assert_int_equal(answer(&g), 0);
	assert_true(vd_get_status(g.v) & VIRTIO_STATUS_NEEDS_RESET);
	assert_true(vd_start(g.v, &g.ram, &g.q, 1, 64, 0));
	ask(&g, g.data, 64);
	assert_int_equal(answer(&g), 64);
	rig_fini(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(buffers_are_filled_to_their_end),
		cmocka_unit_test(many_requests_are_answered),
		cmocka_unit_test(a_huge_request_is_bounded),
		cmocka_unit_test(the_rate_holds_across_a_reset),
		cmocka_unit_test(a_new_window_serves_who_waits),
		cmocka_unit_test(what_is_stored_is_dirty),
		cmocka_unit_test(no_writable_buffer_breaks_the_device),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
