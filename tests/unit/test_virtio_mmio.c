/*
 * test_virtio_mmio.c - the register window, through the bus and a wiring that counts
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/unit/fake_wiring.h"
#include "tests/unit/virtio_driver.h"
#include "tests/unit/virtio_toy.h"
#include "virtio/mmio.h"

#define BASE       0xc0001000u
#define GSI        7
#define QUEUES     3
#define SIZE       8
#define CONFIG_LEN 10
#define UP                                                                              \
	(VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK | \
	 VIRTIO_STATUS_DRIVER_OK)

struct fixture {
	struct vd_ram ram;
	struct loop *loop;
	struct bus bus;
	struct fake_wiring fw;
	struct toy *t;
	struct virtio *v;
	struct vd_queue d[QUEUES];
	gpa_t buf;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	log_set_level(LOG_ERR);
	vd_ram_init(&f->ram, 256 << 10);
	f->buf = vd_alloc(&f->ram, 4096, 4096);
	f->loop = loop_new(NULL);
	bus_init(&f->bus);
	fake_wiring_init(&f->fw);
	f->t = toy_new(f->ram.mem, f->loop, QUEUES, SIZE, CONFIG_LEN);
	f->v = &f->t->v;
	assert_int_equal(virtio_mmio_attach(f->v, &f->bus, BASE, GSI, &f->fw.wiring, NULL), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	uint32_t v;

	f->v->dev.ops->free(&f->v->dev);
	assert_true(fake_wiring_is_clean(&f->fw));
	assert_int_equal(bus_read(&f->bus, BASE, &v, 4), -ENXIO);
	bus_fini(&f->bus);
	loop_free(f->loop);
	vd_ram_fini(&f->ram);
	free(f);
	return 0;
}

static uint32_t rd(struct fixture *f, unsigned off)
{
	uint32_t v;

	assert_int_equal(bus_read(&f->bus, BASE + off, &v, 4), 0);
	return v;
}

static void wr(struct fixture *f, unsigned off, uint32_t v)
{
	assert_int_equal(bus_write(&f->bus, BASE + off, &v, 4), 0);
}

static void poll_all(struct fixture *f)
{
	while (loop_poll(f->loop, 0) > 0)
		;
}

/* As Linux's virtio_mmio does it, by registers alone. */
static void start(struct fixture *f, uint64_t features)
{
	features |= VIRTIO_F_VERSION_1;
	wr(f, 0x070, 0);
	assert_int_equal(rd(f, 0x070), 0);
	wr(f, 0x070, VIRTIO_STATUS_ACKNOWLEDGE);
	wr(f, 0x070, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	for (unsigned i = 0; i < 2; i++) {
		wr(f, 0x024, i);
		wr(f, 0x020, (uint32_t)(features >> 32 * i));
	}
	wr(f, 0x070, UP & ~VIRTIO_STATUS_DRIVER_OK);
	assert_true(rd(f, 0x070) & VIRTIO_STATUS_FEATURES_OK);
	for (unsigned i = 0; i < QUEUES; i++) {
		struct vd_queue *d = &f->d[i];

		wr(f, 0x030, i);
		assert_int_equal(rd(f, 0x044), 0);
		assert_int_equal(rd(f, 0x034), SIZE);
		vd_queue_init(d, &f->ram, (uint16_t)i, SIZE);
		d->event_idx = features & VIRTIO_F_EVENT_IDX;
		wr(f, 0x038, SIZE);
		wr(f, 0x080, (uint32_t)d->desc);
		wr(f, 0x084, 0);
		wr(f, 0x090, (uint32_t)d->avail);
		wr(f, 0x094, 0);
		wr(f, 0x0a0, (uint32_t)d->used);
		wr(f, 0x0a4, 0);
		wr(f, 0x044, 1);
		assert_int_equal(rd(f, 0x044), 1);
	}
	wr(f, 0x070, UP);
	assert_int_equal(rd(f, 0x070), UP);
	poll_all(f);
}

static void post(struct fixture *f, unsigned q)
{
	vd_add(&f->d[q], (struct vd_seg[]){ VD_OUT(f->buf, 8), VD_IN(f->buf + 64, 8) }, 2, 0);
	vd_publish(&f->d[q]);
}

static bool collect(struct fixture *f, unsigned q)
{
	uint32_t id, len;

	return vd_collect(&f->d[q], &id, &len);
}

static void identity(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(rd(f, 0x000), 0x74726976);
	assert_int_equal(rd(f, 0x004), 2);
	assert_int_equal(rd(f, 0x008), TOY_ID);
	assert_int_not_equal(rd(f, 0x00c), 0);
	wr(f, 0x014, 0);
	assert_int_equal(rd(f, 0x010), (uint32_t)f->v->features);
	wr(f, 0x014, 1);
	assert_int_equal(rd(f, 0x010), (uint32_t)(f->v->features >> 32));
	wr(f, 0x014, 0x80000000);
	assert_int_equal(rd(f, 0x010), 0);
}

static void requests_go_and_come(void **state)
{
	struct fixture *f = *state;

	start(f, VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC);
	for (unsigned i = 0; i < 3 * SIZE; i++) {
		unsigned q = i % QUEUES;

		post(f, q);
		wr(f, 0x050, q);
		poll_all(f);
		assert_int_equal(fake_wiring_deliver(&f->fw), 1);
		assert_int_equal(f->fw.last_line, GSI);
		assert_int_equal(rd(f, 0x060), VIRTIO_ISR_QUEUE);
		wr(f, 0x064, VIRTIO_ISR_QUEUE);
		assert_int_equal(rd(f, 0x060), 0);
		assert_int_equal(fake_wiring_deliver(&f->fw), 0);
		assert_true(collect(f, q));
		vd_used_event(&f->d[q], f->d[q].last_used);
	}
}

static void kicks_are_bound_by_value(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(f->fw.nkick, QUEUES);
	for (unsigned i = 0; i < QUEUES; i++) {
		const struct wire_kick *k = f->fw.kick[i];

		assert_int_equal(k->addr, BASE + 0x50);
		assert_int_equal(k->len, 4);
		assert_true(k->match);
		assert_false(k->pio);
		assert_int_equal(k->value, i);
		assert_ptr_equal(k->event, &f->v->queues[i].kick);
	}
	assert_int_equal(f->fw.nline, 1);
	assert_false(f->fw.line[0]->level);

	start(f, 0);
	post(f, 2);
	event_signal(f->fw.kick[2]->event); /* as KVM does */
	poll_all(f);
	assert_true(collect(f, 2));
}

static void a_wiring_without_kicks(void **state)
{
	struct fixture *f = *state;
	struct toy *t = toy_new(f->ram.mem, f->loop, QUEUES, SIZE, 0);

	f->fw.refuse_kick = -ENOSPC;
	assert_int_equal(
		virtio_mmio_attach(&t->v, &f->bus, BASE + 0x1000, GSI + 1, &f->fw.wiring, NULL), 0);
	/* The store comes through the bus all the same. */
	uint32_t v = 1;

	assert_int_equal(bus_write(&f->bus, BASE + 0x1050, &v, 4), 0);
	assert_true(event_pending(&t->v.queues[1].kick));
	t->v.dev.ops->free(&t->v.dev);
}

static void attach_that_fails_leaves_nothing(void **state)
{
	struct fixture *f = *state;
	struct toy *t = toy_new(f->ram.mem, f->loop, 1, SIZE, 0);
	struct err err = { 0 };
	size_t kicks = f->fw.nkick, lines = f->fw.nline;

	assert_int_equal(virtio_mmio_attach(&t->v, &f->bus, BASE, GSI, &f->fw.wiring, &err),
			 -EEXIST);
	assert_non_null(strstr(err.msg, "toy0"));
	assert_null(t->v.transport);
	f->fw.refuse_line = -EBUSY;
	assert_int_equal(virtio_mmio_attach(&t->v, &f->bus, BASE + 0x1000, GSI, &f->fw.wiring,
					    &err),
			 -EBUSY);
	assert_int_equal(f->fw.nkick, kicks);
	assert_int_equal(f->fw.nline, lines);
	f->fw.refuse_line = 0;
	assert_int_equal(
		virtio_mmio_attach(&t->v, &f->bus, BASE + 0x1000, GSI, &f->fw.wiring, &err), 0);
	t->v.dev.ops->free(&t->v.dev);
}

static void a_bit_left_after_the_acknowledge_signals_again(void **state)
{
	struct fixture *f = *state;

	start(f, 0);
	post(f, 0);
	wr(f, 0x050, 0);
	poll_all(f);
	pthread_mutex_lock(&f->v->dev.lock);
	virtio_config_changed(f->v);
	pthread_mutex_unlock(&f->v->dev.lock);
	fake_wiring_deliver(&f->fw);
	assert_int_equal(rd(f, 0x060), VIRTIO_ISR_QUEUE | VIRTIO_ISR_CONFIG);
	wr(f, 0x064, VIRTIO_ISR_QUEUE);
	assert_int_equal(rd(f, 0x060), VIRTIO_ISR_CONFIG);
	assert_int_equal(fake_wiring_deliver(&f->fw), 1);
	wr(f, 0x064, UINT32_MAX);
	assert_int_equal(rd(f, 0x060), 0);
	assert_int_equal(fake_wiring_deliver(&f->fw), 0);
	wr(f, 0x064, UINT32_MAX);
	assert_int_equal(fake_wiring_deliver(&f->fw), 0);
}

static void widths_and_holes(void **state)
{
	struct fixture *f = *state;
	uint8_t b[8];

	/* Below the configuration only whole, aligned registers; the rest reads 0 and is not written. */
	for (unsigned len = 1; len <= 8; len *= 2) {
		for (unsigned off = 0; off + len <= 0x100; off++) {
			if (len == 4 && off % 4 == 0)
				continue;
			memset(b, 0xaa, sizeof(b));
			assert_int_equal(bus_read(&f->bus, BASE + off, b, len), 0);
			for (unsigned i = 0; i < len; i++)
				assert_int_equal(b[i], 0);
			memset(b, 0x01, sizeof(b));
			assert_int_equal(bus_write(&f->bus, BASE + off, b, len), 0);
		}
	}
	assert_int_equal(f->v->regs.status, 0);
	assert_int_equal(f->v->regs.queue_select, 0);
	/* Write-only registers, queue reset (not offered) and holes read 0. */
	static const uint16_t zero[] = { 0x014, 0x018, 0x01c, 0x020, 0x024, 0x028, 0x030,
					 0x038, 0x03c, 0x040, 0x048, 0x050, 0x064, 0x074,
					 0x080, 0x084, 0x090, 0x0a4, 0x0ac, 0x0c0, 0x0f8 };

	for (size_t i = 0; i < sizeof(zero) / sizeof(zero[0]); i++)
		assert_int_equal(rd(f, zero[i]), 0);
	/* Stores to read-only ones vanish. */
	for (unsigned off = 0; off <= 0x10; off += 4) {
		uint32_t was = rd(f, off);

		wr(f, off, ~was);
		assert_int_equal(rd(f, off), was);
	}
	/* The window's end is the device's end. */
	assert_int_equal(bus_read(&f->bus, BASE + VIRTIO_MMIO_SIZE - 2, b, 4), -ENXIO);
}

static void no_shared_memory(void **state)
{
	struct fixture *f = *state;

	for (unsigned id = 0; id < 3; id++) {
		wr(f, 0x0ac, id);
		for (unsigned off = 0x0b0; off < 0x0c0; off += 4)
			assert_int_equal(rd(f, off), UINT32_MAX);
	}
}

static void values_are_not_cut_short(void **state)
{
	struct fixture *f = *state;

	start(f, 0);
	unsigned kicks = f->t->kicks;

	wr(f, 0x070, 0x100); /* not a reset */
	wr(f, 0x070, 0xffffff00);
	assert_int_equal(rd(f, 0x070), UP);
	wr(f, 0x030, 0x10000); /* not queue 0 */
	assert_int_equal(rd(f, 0x034), 0);
	assert_int_equal(rd(f, 0x044), 0);
	wr(f, 0x030, 0xffff);
	assert_int_equal(rd(f, 0x034), 0);
	wr(f, 0x050, 0x10000);
	wr(f, 0x050, 0xffff);
	wr(f, 0x050, UINT32_MAX);
	poll_all(f);
	assert_int_equal(f->t->kicks, kicks);
	wr(f, 0x070, 0);
	wr(f, 0x030, 0);
	wr(f, 0x038, 0x10004); /* not 4 */
	assert_int_equal(f->v->queues[0].regs.size, SIZE);
}

static void queues_that_do_not_exist(void **state)
{
	struct fixture *f = *state;

	for (uint32_t q = QUEUES; q < 0x20000; q = q * 2 + 1) {
		wr(f, 0x030, q);
		for (unsigned off = 0x38; off <= 0xa4; off += 4)
			if (off != 0x50 && off != 0x64 && off != 0x70)
				wr(f, off, 1);
	}
	for (unsigned i = 0; i < QUEUES; i++) {
		assert_int_equal(f->v->queues[i].regs.desc, 0);
		assert_int_equal(f->v->queues[i].regs.ready, 0);
	}
}

static void configuration(void **state)
{
	struct fixture *f = *state;
	uint8_t b[8];

	for (unsigned len = 1; len <= 8; len *= 2) {
		for (unsigned off = 0; off + len <= 0x100; off++) {
			assert_int_equal(bus_read(&f->bus, BASE + 0x100 + off, b, len), 0);
			for (unsigned i = 0; i < len; i++)
				assert_int_equal(b[i],
						 off + i < CONFIG_LEN ? 0x80 + off + i : 0xff);
		}
	}
	assert_int_equal(bus_write(&f->bus, BASE + 0x102, "ab", 2), 0);
	assert_memory_equal(f->v->regs.config + 2, "ab", 2);
	assert_int_equal(bus_write(&f->bus, BASE + 0x100 + CONFIG_LEN - 1, "ab", 2), 0);
	assert_int_equal(f->t->writes, 1);

	uint32_t generation = rd(f, 0x0fc);

	start(f, 0);
	virtio_config_changed(f->v);
	assert_int_not_equal(rd(f, 0x0fc), generation);
	assert_int_equal(fake_wiring_deliver(&f->fw), 1);
	assert_int_equal(rd(f, 0x060), VIRTIO_ISR_CONFIG);
}

static void reset_drops_the_interrupt(void **state)
{
	struct fixture *f = *state;

	start(f, 0);
	virtio_config_changed(f->v);
	wr(f, 0x070, 0);
	assert_int_equal(rd(f, 0x060), 0);
	assert_int_equal(fake_wiring_deliver(&f->fw), 0);

	start(f, 0);
	virtio_config_changed(f->v);
	f->v->dev.ops->quiesce(&f->v->dev);
	f->v->dev.ops->reset(&f->v->dev);
	f->v->dev.ops->resume(&f->v->dev);
	assert_int_equal(rd(f, 0x060), 0);
	assert_int_equal(rd(f, 0x070), 0);
	assert_int_equal(fake_wiring_deliver(&f->fw), 0);
	assert_int_equal(f->fw.nkick, QUEUES); /* still bound: they are no register */
	start(f, 0);
}

static void an_interrupt_not_yet_acknowledged_survives_a_pause(void **state)
{
	struct fixture *f = *state;

	start(f, 0);
	virtio_config_changed(f->v);
	fake_wiring_deliver(&f->fw);
	f->v->dev.ops->quiesce(&f->v->dev);
	f->v->dev.ops->resume(&f->v->dev);
	assert_int_equal(fake_wiring_deliver(&f->fw), 1);
	assert_int_equal(rd(f, 0x060), VIRTIO_ISR_CONFIG);
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(identity),
		T(requests_go_and_come),
		T(kicks_are_bound_by_value),
		T(a_wiring_without_kicks),
		T(attach_that_fails_leaves_nothing),
		T(a_bit_left_after_the_acknowledge_signals_again),
		T(widths_and_holes),
		T(no_shared_memory),
		T(values_are_not_cut_short),
		T(queues_that_do_not_exist),
		T(configuration),
		T(reset_drops_the_interrupt),
		T(an_interrupt_not_yet_acknowledged_survives_a_pause),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
