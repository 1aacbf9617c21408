/*
 * test_virtio_console.c - the virtio console: bytes both ways, its size, and drivers that break rules
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/unit/counting_transport.h"
#include "tests/unit/virtio_driver.h"
#include "virtio/console.h"

#define F_SIZE        1u
#define F_EMERG_WRITE 4u
#define EMERG_WR      8 /* in the configuration */

enum { RX, TX };

struct rig {
	struct vd_ram ram;
	struct loop *loop;
	struct virtio *v;
	struct vd_queue q[2];
	gpa_t data;
	char out[4096]; /* the last of what was sent */
	size_t len;
	uint64_t sent;
	unsigned ready;
	struct counting signals;
};

static void on_transmit(void *opaque, const uint8_t *data, size_t len)
{
	struct rig *g = opaque;

	assert_true(len > 0);
	g->sent += len;
	if (len > sizeof(g->out) - g->len)
		return;
	memcpy(g->out + g->len, data, len);
	g->len += len;
}

static void on_ready(void *opaque)
{
	((struct rig *)opaque)->ready++;
}

static void make_device(struct rig *g)
{
	const struct virtio_console_host host = { on_transmit, on_ready, g };

	g->v = virtio_console_new("console", &host, g->ram.mem, g->loop, NULL);
	assert_non_null(g->v);
	counting_attach(&g->signals, g->v);
}

static void start(struct rig *g, uint64_t features)
{
	assert_true(vd_start(g->v, &g->ram, g->q, 2, 64, features));
}

static void settle(struct rig *g)
{
	while (loop_poll(g->loop, 0))
		;
}

static int set_up(void **state)
{
	struct rig *g = calloc(1, sizeof(*g));

	log_set_level(LOG_ERR);
	vd_ram_init(&g->ram, 4 << 20);
	g->loop = loop_new(NULL);
	make_device(g);
	assert_int_equal(g->v->ops->id, 3);
	assert_int_equal(g->v->config_len, 12);
	g->data = VD_RAM_BASE + (2 << 20);
	*state = g;
	return 0;
}

static int tear_down(void **state)
{
	struct rig *g = *state;

	g->v->dev.ops->free(&g->v->dev);
	loop_free(g->loop);
	vd_ram_fini(&g->ram);
	free(g);
	return 0;
}

static void post(struct rig *g, unsigned q, gpa_t at, uint32_t len)
{
	const struct vd_seg s = { at, len, q == RX };

	assert_true(vd_add(&g->q[q], &s, 1, 0) >= 0);
	vd_kick(g->v, &g->q[q]);
	settle(g);
}

/* Bytes of the next buffer back, -1: none. */
static int64_t back(struct rig *g, unsigned q)
{
	uint32_t head, len;

	return vd_collect(&g->q[q], &head, &len) ? (int64_t)len : -1;
}

static bool broken(struct rig *g)
{
	return vd_get_status(g->v) & VIRTIO_STATUS_NEEDS_RESET;
}

static unsigned config16(struct rig *g, unsigned off)
{
	uint8_t b[2];

	virtio_read_config(g->v, off, b, 2);
	return b[0] | (unsigned)b[1] << 8;
}

/* ---- output ---- */

static void output_is_sent_in_order(void **state)
{
	struct rig *g = *state;

	start(g, VIRTIO_F_EVENT_IDX);
	memcpy(vd_host(&g->ram, g->data), "hello, world", 12);
	assert_true(vd_add(&g->q[TX],
			   (struct vd_seg[]){ VD_OUT(g->data, 5), VD_OUT(g->data + 5, 2),
					      VD_OUT(g->data + 7, 3) },
			   3, 0) >= 0);
	post(g, TX, g->data + 10, 2);
	assert_int_equal(g->len, 12);
	assert_memory_equal(g->out, "hello, world", 12);
	assert_int_equal(back(g, TX), 0);
	assert_int_equal(back(g, TX), 0);
	assert_int_equal(back(g, TX), -1);
	assert_int_equal(g->signals.queue[TX], 1);
}

/* QEMU CVE-2016-7422: one request of 4 GiB. The same RAM is named many times over. */
static void a_huge_buffer_goes_in_turns(void **state)
{
	struct rig *g = *state;
	struct vd_seg s[32];

	start(g, VIRTIO_F_INDIRECT_DESC);
	for (int i = 0; i < 32; i++)
		s[i] = (struct vd_seg)VD_OUT(g->data, 2 << 20);
	assert_true(vd_add(&g->q[TX], s, 32, 32) >= 0);
	vd_kick(g->v, &g->q[TX]);
	loop_poll(g->loop, 0);
	assert_int_equal(g->sent, 256 << 10);
	/* A stop in the middle finds nothing in flight; what follows begins where it ended. */
	g->v->dev.ops->quiesce(&g->v->dev);
	assert_int_equal(g->v->queues[TX].regs.next_used, g->v->queues[TX].regs.next_avail);
	settle(g);
	assert_int_equal(g->sent, 256 << 10);
	g->v->dev.ops->resume(&g->v->dev);
	settle(g);
	assert_int_equal(g->sent, 64 << 20);
	assert_int_equal(back(g, TX), 0);
	/* The next one starts at its own beginning. */
	memcpy(vd_host(&g->ram, g->data), "next", 4);
	g->len = 0;
	post(g, TX, g->data, 4);
	assert_memory_equal(g->out, "next", 4);
}

static void a_buffer_that_shrinks_is_done(void **state)
{
	struct rig *g = *state;

	start(g, 0);
	assert_true(vd_add(&g->q[TX], (struct vd_seg[]){ VD_OUT(g->data, 1 << 20) }, 1, 0) == 0);
	vd_kick(g->v, &g->q[TX]);
	loop_poll(g->loop, 0);
	vd_desc(&g->q[TX], 0, g->data, 10, 0, 0);
	settle(g);
	assert_int_equal(g->sent, 256 << 10);
	assert_int_equal(back(g, TX), 0);
	assert_false(broken(g));
}

static void many_small_ones_take_several_turns(void **state)
{
	struct rig *g = *state;

	start(g, 0);
	for (int round = 0; round < 8; round++) {
		for (int i = 0; i < 64; i++)
			assert_true(vd_add(&g->q[TX], (struct vd_seg[]){ VD_OUT(g->data, 1) }, 1,
					   0) >= 0);
		vd_kick(g->v, &g->q[TX]);
		settle(g);
		for (int i = 0; i < 64; i++)
			assert_int_equal(back(g, TX), 0);
	}
	assert_int_equal(g->sent, 8 * 64);
}

/* ---- input ---- */

static void input_waits_for_buffers(void **state)
{
	struct rig *g = *state;

	assert_int_equal(virtio_console_room(g->v), 0);
	start(g, VIRTIO_F_EVENT_IDX);
	settle(g);
	assert_int_equal(g->ready, 1); /* the driver has come */
	assert_int_equal(virtio_console_room(g->v), 0);
	post(g, RX, g->data, 8);
	assert_int_equal(g->ready, 2);
	assert_int_equal(virtio_console_room(g->v), 8);
	post(g, RX, g->data + 100, 16);
	assert_int_equal(g->ready, 2); /* nobody waits */
	virtio_console_input(g->v, (const uint8_t *)"12345678", 8);
	assert_int_equal(virtio_console_room(g->v), 16);
	virtio_console_input(g->v, (const uint8_t *)"abc", 3);
	assert_int_equal(g->signals.queue[RX], 1); /* the driver has not looked since */
	assert_int_equal(back(g, RX), 8);
	assert_int_equal(back(g, RX), 3);
	assert_memory_equal(vd_host(&g->ram, g->data), "12345678\0", 9);
	assert_memory_equal(vd_host(&g->ram, g->data + 100), "abc\0", 4);
	assert_int_equal(virtio_console_room(g->v), 0);
	post(g, RX, g->data, 8);
	assert_int_equal(g->ready, 3);
	/* At rest it takes nothing, and asks again afterwards. */
	g->v->dev.ops->quiesce(&g->v->dev);
	assert_int_equal(virtio_console_room(g->v), 0);
	virtio_console_input(g->v, (const uint8_t *)"x", 1);
	g->v->dev.ops->resume(&g->v->dev);
	assert_int_equal(g->ready, 4);
	assert_int_equal(back(g, RX), -1);
	assert_int_equal(virtio_console_room(g->v), 8);
	vd_set_status(g->v, 0);
	assert_int_equal(virtio_console_room(g->v), 0);
	virtio_console_input(g->v, (const uint8_t *)"x", 1);
}

static void input_is_marked_dirty(void **state)
{
	struct rig *g = *state;
	uint64_t bits[16];

	start(g, 0);
	post(g, RX, g->data, 16384);
	assert_int_equal(gmem_dirty_start(g->ram.mem, NULL), 0);
	static const uint8_t bytes[4097];

	virtio_console_input(g->v, bytes, sizeof(bytes));
	assert_int_equal(gmem_dirty_fetch(g->ram.mem, 0, bits, 16), 0);
	const uint64_t page = (g->data - VD_RAM_BASE) / 4096;

	for (uint64_t i = 0; i < 4; i++)
		assert_int_equal(bits[(page + i) / 64] >> (page + i) % 64 & 1, i < 2);
}

/* ---- broken rules ---- */

static void wrong_direction_breaks_it(void **state)
{
	struct rig *g = *state;

	start(g, 0);
	assert_true(vd_add(&g->q[TX], (struct vd_seg[]){ VD_IN(g->data, 64) }, 1, 0) >= 0);
	vd_kick(g->v, &g->q[TX]);
	settle(g);
	assert_true(broken(g));
	assert_int_equal(back(g, TX), -1);
	start(g, 0);
	assert_true(vd_add(&g->q[RX], (struct vd_seg[]){ VD_OUT(g->data, 64) }, 1, 0) >= 0);
	vd_kick(g->v, &g->q[RX]);
	settle(g);
	assert_int_equal(virtio_console_room(g->v), 0);
	assert_true(broken(g));
	start(g, 0);
	vd_avail_idx(&g->q[RX], 65); /* more than the ring holds */
	assert_int_equal(virtio_console_room(g->v), 0);
	assert_true(broken(g));
	/* Buffers that are not RAM. */
	start(g, 0);
	post(g, TX, 0x1000, 16);
	assert_true(broken(g));
	start(g, 0);
	post(g, TX, g->data, 16);
	assert_int_equal(back(g, TX), 0);
	assert_false(broken(g));
}

/* ---- configuration ---- */

static void the_size_is_told(void **state)
{
	struct rig *g = *state;

	assert_int_equal(config16(g, 0), 0);
	virtio_console_resize(g->v, 100, 40); /* before there is a driver */
	assert_int_equal(config16(g, 0), 100);
	assert_int_equal(config16(g, 2), 40);
	assert_int_equal(g->signals.config, 0);
	start(g, F_SIZE);
	assert_int_equal(g->signals.config, 1); /* Linux looks only when told */
	const uint8_t generation = g->v->regs.config_generation;

	virtio_console_resize(g->v, 100, 40);
	assert_int_equal(g->signals.config, 1);
	virtio_console_resize(g->v, 300, 50);
	assert_int_equal(g->signals.config, 2);
	assert_int_not_equal(g->v->regs.config_generation, generation);
	assert_int_equal(config16(g, 0), 300);
	/* It is the line's: a reset leaves it. */
	start(g, 0);
	assert_int_equal(g->signals.config, 2); /* this one does not care */
	assert_int_equal(config16(g, 0), 300);
	/* At rest nothing changes. */
	g->v->dev.ops->quiesce(&g->v->dev);
	virtio_console_resize(g->v, 80, 24);
	assert_int_equal(config16(g, 0), 300);
	g->v->dev.ops->resume(&g->v->dev);
	assert_int_equal(config16(g, 0), 80);
	assert_int_equal(config16(g, 2), 24);
	assert_int_equal(g->signals.config, 3);
}

/* A state brings the size there was; whoever restores it may know a newer one. */
static void a_loaded_size_gives_way(void **state)
{
	struct rig *g = *state;
	struct state_buf b = { 0 };
	struct err err;

	for (int known = 0; known < 2; known++) {
		virtio_console_resize(g->v, 111, 11);
		start(g, F_SIZE);
		g->v->dev.ops->quiesce(&g->v->dev);
		b.len = 0;
		assert_int_equal(state_save(&virtio_state, &g->v->regs, &b), 0);
		g->v->dev.ops->resume(&g->v->dev);
		g->v->dev.ops->free(&g->v->dev);
		make_device(g);
		if (known)
			virtio_console_resize(g->v, 222, 22);
		g->v->dev.ops->quiesce(&g->v->dev);
		assert_int_equal(state_load(&virtio_state, &g->v->regs, g->v, b.data, b.len, &err),
				 0);
		g->v->dev.ops->resume(&g->v->dev);
		assert_int_equal(config16(g, 0), known ? 222 : 111);
		assert_int_equal(config16(g, 2), known ? 22 : 11);
	}
	state_buf_fini(&b);
}

static void emergency_writes_need_no_driver(void **state)
{
	struct rig *g = *state;

	pthread_mutex_lock(&g->v->dev.lock);
	virtio_write_config(g->v, EMERG_WR, "Oxxx", 4);
	virtio_write_config(g->v, EMERG_WR, "k", 1);
	virtio_write_config(g->v, 0, "zz", 2); /* the size is not the driver's to set */
	virtio_write_config(g->v, EMERG_WR + 2, "zz", 2);
	virtio_write_config(g->v, EMERG_WR + 4, "z", 1);
	pthread_mutex_unlock(&g->v->dev.lock);
	assert_int_equal(g->len, 2);
	assert_memory_equal(g->out, "Ok", 2);
	assert_int_equal(config16(g, 0), 0);
	assert_true(g->v->features & F_EMERG_WRITE);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(output_is_sent_in_order),       TEST(a_huge_buffer_goes_in_turns),
		TEST(a_buffer_that_shrinks_is_done), TEST(many_small_ones_take_several_turns),
		TEST(input_waits_for_buffers),       TEST(input_is_marked_dirty),
		TEST(wrong_direction_breaks_it),     TEST(the_size_is_told),
		TEST(a_loaded_size_gives_way),       TEST(emergency_writes_need_no_driver),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
