/*
 * test_virtio_blk_memory.c - a virtio disk on a host that is out of memory
 *
 * The device is compiled in here with an allocator that can be told to fail. Whatever happens no
 * request may be lost or failed for it: it waits in the ring until another one ends.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static bool out_of_memory;
static unsigned refused;

static void *try_calloc(size_t n, size_t size)
{
	refused += out_of_memory;
	return out_of_memory ? NULL : calloc(n, size);
}

static void *try_malloc(size_t size)
{
	refused += out_of_memory;
	return out_of_memory ? NULL : malloc(size);
}

#define calloc try_calloc
#define malloc try_malloc
#include "virtio/blk.c"
#undef calloc
#undef malloc

#include "tests/unit/blk_rig.h"

enum { N = 20, SHORT = 3, LONG = 20 }; /* segments: kept within a request, or in an array */

static void add_reads(struct rig *g, unsigned segments)
{
	for (unsigned i = 0; i < N; i++) {
		struct vd_seg s[LONG + 2];
		gpa_t h = vd_alloc(&g->ram, 16, 16), d = vd_alloc(&g->ram, 512 * segments, 512);
		gpa_t status = vd_alloc(&g->ram, 1, 1);

		rig_header(g, h, BLK_T_IN, i);
		s[0] = (struct vd_seg)VD_OUT(h, 16);
		for (unsigned k = 0; k < segments; k++)
			s[1 + k] = (struct vd_seg)VD_IN(d + 512 * k, 512);
		s[1 + segments] = (struct vd_seg)VD_IN(status, 1);
		assert_true(vd_add(&g->q[0], s, segments + 2, segments + 2) >= 0);
	}
}

static void requests_wait_for_memory(void **state)
{
	static const unsigned segments[] = { SHORT, LONG };

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		struct rig *g = malloc(sizeof(*g));
		uint32_t head, len;

		rig_init(g, NULL, 1, RIG_SIZE, false);
		assert_true(vd_start(g->v, &g->ram, g->q, 1, RIG_SIZE, RIG_ALL));
		rig_settle(g);
		out_of_memory = true;
		refused = 0;
		add_reads(g, segments[i]);
		vd_kick(g->v, &g->q[0]);
		rig_settle(g);
		assert_true(refused > 0);
		/* Ranges need no memory of their own either. */
		const struct blk_wire_range zeroes[16] = { { 0, 1, 0 } };

		memcpy(rig_host(g, g->data), zeroes, sizeof(zeroes));
		for (unsigned k = 0; k < N; k++) {
			assert_true(vd_collect(&g->q[0], &head, &len));
			assert_int_equal(len, 512 * segments[i] + 1);
		}
		assert_false(vd_collect(&g->q[0], &head, &len));
		assert_int_equal(rig_do(g, BLK_T_WRITE_ZEROES, 0, sizeof(zeroes)), BLK_S_OK);
		out_of_memory = false;
		assert_int_equal(rig_stat(g, "errors"), 0);
		assert_int_equal(rig_stat(g, "read-ops"), N);
		rig_fini(g);
		free(g);
	}
}

/* Stopped while some wait: they are still in the ring, and are served afterwards. */
static void a_stop_leaves_the_waiting_in_the_ring(void **state)
{
	struct rig *g = malloc(sizeof(*g));
	uint32_t head, len;
	unsigned n = 0;

	(void)state;
	rig_init(g, NULL, 1, RIG_SIZE, false);
	assert_true(vd_start(g->v, &g->ram, g->q, 1, RIG_SIZE, RIG_ALL));
	rig_settle(g);
	out_of_memory = true;
	add_reads(g, LONG);
	vd_kick(g->v, &g->q[0]);
	loop_poll(g->loop, 0);
	g->v->dev.ops->quiesce(&g->v->dev);
	assert_int_equal(g->v->queues[0].regs.next_used, g->v->queues[0].regs.next_avail);
	while (vd_collect(&g->q[0], &head, &len))
		n++;
	assert_true(n >= 1 && n < N);
	out_of_memory = false;
	g->v->dev.ops->resume(&g->v->dev);
	rig_settle(g);
	while (vd_collect(&g->q[0], &head, &len))
		n++;
	assert_int_equal(n, N);
	rig_fini(g);
	free(g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(requests_wait_for_memory),
		cmocka_unit_test(a_stop_leaves_the_waiting_in_the_ring),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
