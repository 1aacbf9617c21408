/*
 * test_virtio_device.c - status order, reset, the stop order and what registers ignore
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>
#include <sched.h>

#include "tests/unit/state_check.h"
#include "tests/unit/virtio_driver.h"
#include "tests/unit/virtio_toy.h"

#define QUEUES     3
#define SIZE       8
#define CONFIG_LEN 20
#define UP                                                                              \
	(VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK | \
	 VIRTIO_STATUS_DRIVER_OK)

struct fixture {
	struct vd_ram ram;
	struct loop *loop;
	struct toy *t;
	struct virtio *v;
	struct vd_queue d[QUEUES];
	gpa_t buf;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	log_set_level(LOG_ERR); /* broken rules are what is tested: no line for each */
	vd_ram_init(&f->ram, 256 << 10);
	f->loop = loop_new(NULL);
	f->t = toy_new(f->ram.mem, f->loop, QUEUES, SIZE, CONFIG_LEN);
	f->v = &f->t->v;
	f->v->transport = &toy_transport;
	f->buf = vd_alloc(&f->ram, 4096, 4096);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	f->v->dev.ops->free(&f->v->dev);
	loop_free(f->loop);
	vd_ram_fini(&f->ram);
	free(f);
	return 0;
}

static void start(struct fixture *f, uint64_t features)
{
	assert_true(vd_start(f->v, &f->ram, f->d, QUEUES, SIZE, features));
}

static void poll_all(struct fixture *f)
{
	while (loop_poll(f->loop, 0) > 0)
		;
}

static int post(struct fixture *f, unsigned q)
{
	return vd_add(&f->d[q], (struct vd_seg[]){ VD_OUT(f->buf, 8), VD_IN(f->buf + 64, 8) }, 2,
		      0);
}

static bool collect(struct fixture *f, unsigned q)
{
	uint32_t id, len;

	return vd_collect(&f->d[q], &id, &len);
}

/* ---- status and features ---- */

static void status_goes_up_in_order(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;

	vd_set_status(v, VIRTIO_STATUS_DRIVER); /* not acknowledged */
	assert_int_equal(vd_get_status(v), 0);
	vd_set_status(v, VIRTIO_STATUS_ACKNOWLEDGE);
	vd_set_features(v, VIRTIO_F_VERSION_1);
	vd_set_status(v, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_FEATURES_OK);
	assert_int_equal(vd_get_status(v), VIRTIO_STATUS_ACKNOWLEDGE);
	vd_set_status(v, UP & ~VIRTIO_STATUS_FEATURES_OK);
	assert_int_equal(vd_get_status(v), VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	assert_int_equal(f->t->activated, 0);
	vd_set_status(v, UP & ~VIRTIO_STATUS_DRIVER_OK);
	vd_set_status(v, UP);
	assert_int_equal(vd_get_status(v), UP);
	assert_int_equal(f->t->activated, 1);
	vd_set_status(v, UP);
	assert_int_equal(f->t->activated, 1);
}

static void status_bits_are_not_cleared_or_made_up(void **state)
{
	struct fixture *f = *state;

	start(f, 0);
	vd_set_status(f->v, VIRTIO_STATUS_ACKNOWLEDGE);
	assert_int_equal(vd_get_status(f->v), UP);
	vd_set_status(f->v, UP | VIRTIO_STATUS_NEEDS_RESET | 0x30);
	assert_int_equal(vd_get_status(f->v), UP);
	vd_set_status(f->v, VIRTIO_STATUS_NEEDS_RESET); /* not 0: no reset either */
	assert_int_equal(vd_get_status(f->v), UP);
	vd_set_status(f->v, VIRTIO_STATUS_FAILED); /* would clear the others */
	assert_int_equal(vd_get_status(f->v), UP);
	vd_set_status(f->v, UP | VIRTIO_STATUS_FAILED);
	assert_int_equal(vd_get_status(f->v), UP | VIRTIO_STATUS_FAILED);
}

static void features_are_checked(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;
	const uint8_t before = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER;

	assert_true(v->features & VIRTIO_F_VERSION_1);
	assert_true(v->features & VIRTIO_F_INDIRECT_DESC);
	assert_true(v->features & VIRTIO_F_EVENT_IDX);
	assert_false(v->features & (VIRTIO_F_RING_RESET | VIRTIO_F_ACCESS_PLATFORM));

	vd_set_status(v, before);
	assert_int_equal(vd_get_status(v), before); /* two steps at once are in order */
	vd_set_features(v, TOY_FEATURE);            /* no VERSION_1: a legacy driver */
	vd_set_status(v, before | VIRTIO_STATUS_FEATURES_OK);
	assert_int_equal(vd_get_status(v), before);
	vd_set_features(v, VIRTIO_F_VERSION_1 | VIRTIO_F_RING_RESET);
	vd_set_status(v, before | VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK);
	assert_int_equal(vd_get_status(v), before);
	vd_set_features(v, VIRTIO_F_VERSION_1 | 1);
	vd_set_status(v, before | VIRTIO_STATUS_FEATURES_OK);
	assert_int_equal(vd_get_status(v), before);

	vd_set_features(v, VIRTIO_F_VERSION_1 | TOY_FEATURE_2);
	vd_set_status(v, before | VIRTIO_STATUS_FEATURES_OK);
	assert_int_equal(vd_get_status(v), before | VIRTIO_STATUS_FEATURES_OK);
	assert_true(virtio_has(v, TOY_FEATURE_2));
	assert_false(virtio_has(v, TOY_FEATURE));

	vd_set_features(v, ~UINT64_C(0)); /* too late */
	assert_int_equal(v->regs.driver_features, VIRTIO_F_VERSION_1 | TOY_FEATURE_2);
}

static void feature_words_past_the_second(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;

	for (unsigned i = 0; i < 4; i++) {
		v->regs.feature_select = i == 3 ? UINT32_MAX : i;
		assert_int_equal(virtio_get_features(v),
				 i < 2 ? (uint32_t)(v->features >> 32 * i) : 0);
	}
	v->regs.driver_feature_select = 2;
	virtio_set_features(v, UINT32_MAX);
	v->regs.driver_feature_select = UINT32_MAX;
	virtio_set_features(v, UINT32_MAX);
	assert_int_equal(v->regs.driver_features, 0);
}

static void a_device_that_cannot_start(void **state)
{
	struct fixture *f = *state;

	f->t->activate_result = -EIO;
	assert_false(vd_start(f->v, &f->ram, f->d, QUEUES, SIZE, 0));
	assert_int_equal(vd_get_status(f->v), UP | VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(f->t->config_signals, 1);
	f->t->activate_result = 0;
	start(f, 0);
}

/* ---- queue registers ---- */

static void queue_size_is_checked(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;
	static const uint32_t bad[] = { 0, 3, SIZE * 2, 0x10000, 0x10004, UINT32_MAX };

	assert_true(vd_negotiate(v, 0));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		virtio_set_queue_size(v, bad[i]);
		assert_int_equal(v->queues[0].regs.size, SIZE);
	}
	virtio_set_queue_size(v, 2);
	assert_int_equal(v->queues[0].regs.size, 2);
}

static void queue_registers_are_final_once_ready(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;

	start(f, 0);
	v->regs.queue_select = 0;
	const struct virtq_regs before = v->queues[0].regs;

	for (int i = 0; i < 2; i++) {
		virtio_set_queue_size(v, 4);
		vd_set_addr(v, VIRTQ_DESC, 0);
		vd_set_addr(v, VIRTQ_DRIVER, 0);
		vd_set_addr(v, VIRTQ_DEVICE, 0xfee00000);
		assert_memory_equal(&v->queues[0].regs, &before, sizeof(before));
		/* The second round: after DRIVER_OK the queue cannot be stopped first. */
		virtio_set_queue_ready(v, 0);
		assert_int_equal(v->queues[0].regs.ready, 1);
	}
	/* And it still works. */
	post(f, 0);
	vd_kick(v, &f->d[0]);
	poll_all(f);
	assert_true(collect(f, 0));
}

static void a_queue_not_set_up_stays_so_after_driver_ok(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;

	assert_true(vd_start(v, &f->ram, f->d, 1, SIZE, 0));
	vd_queue_init(&f->d[1], &f->ram, 1, SIZE);
	vd_enable_queue(v, &f->d[1]);
	assert_int_equal(v->queues[1].regs.ready, 0);
	assert_int_equal(v->queues[1].regs.desc, 0);
	virtio_notify(v, 1);
	poll_all(f);
	assert_int_equal(f->t->kicks, 1); /* queue 0, for DRIVER_OK */
}

static void a_queue_may_be_given_up_before_driver_ok(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;

	vd_queue_init(&f->d[0], &f->ram, 0, SIZE);
	vd_enable_queue(v, &f->d[0]);
	assert_int_equal(v->queues[0].regs.ready, 0); /* before FEATURES_OK */
	assert_true(vd_negotiate(v, 0));
	vd_enable_queue(v, &f->d[0]);
	assert_int_equal(v->queues[0].regs.ready, 1);
	virtio_set_queue_size(v, 4);
	vd_set_addr(v, VIRTQ_DESC, 0);
	assert_int_equal(v->queues[0].regs.size, SIZE);
	assert_int_equal(v->queues[0].regs.desc, f->d[0].desc);
	virtio_set_queue_ready(v, 0);
	assert_int_equal(v->queues[0].regs.ready, 0);
	virtio_set_queue_size(v, 4);
	assert_int_equal(v->queues[0].regs.size, 4);
}

static void rings_outside_ram_need_a_reset(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;

	assert_true(vd_negotiate(v, 0));
	vd_queue_init(&f->d[0], &f->ram, 0, SIZE);
	f->d[0].used = 0xd0000000; /* a BAR */
	vd_enable_queue(v, &f->d[0]);
	assert_int_equal(v->queues[0].regs.ready, 0);
	assert_true(vd_get_status(v) & VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(f->t->config_signals, 0); /* the driver is not ready for it */
	vd_driver_ok(v);
	virtio_notify(v, 0);
	poll_all(f);
	assert_int_equal(f->t->kicks, 0);
	vd_set_status(v, 0);
	assert_int_equal(vd_get_status(v), 0);
}

static void queues_that_do_not_exist(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;
	static const uint16_t bad[] = { QUEUES, 0x100, 0xffff };

	start(f, 0);
	poll_all(f);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		v->regs.queue_select = bad[i];
		assert_null(virtio_selected_queue(v));
		virtio_set_queue_size(v, 4);
		virtio_set_queue_ready(v, 1);
		virtio_notify(v, bad[i]);
	}
	virtio_notify(v, UINT32_MAX);
	virtio_notify(v, 0x10000);
	assert_int_equal(loop_poll(f->loop, 0), 0);
	assert_int_equal(vd_get_status(v), UP);
}

/* ---- configuration ---- */

static void config_past_its_end(void **state)
{
	struct fixture *f = *state;
	uint8_t b[8], ones[8];

	memset(ones, 0xff, sizeof(ones));
	virtio_read_config(f->v, CONFIG_LEN - 2, b, 4);
	assert_memory_equal(b, ((uint8_t[]){ 0x80 + 18, 0x80 + 19, 0xff, 0xff }), 4);
	virtio_read_config(f->v, CONFIG_LEN, b, 8);
	assert_memory_equal(b, ones, 8);
	virtio_read_config(f->v, UINT32_MAX - 3, b, 8);
	assert_memory_equal(b, ones, 8);

	virtio_write_config(f->v, CONFIG_LEN - 2, b, 4);
	virtio_write_config(f->v, CONFIG_LEN, b, 1);
	virtio_write_config(f->v, UINT32_MAX, b, 8);
	assert_int_equal(f->t->writes, 0);
	virtio_write_config(f->v, CONFIG_LEN - 4, "wxyz", 4);
	virtio_read_config(f->v, CONFIG_LEN - 4, b, 4);
	assert_memory_equal(b, "wxyz", 4);
}

static void config_changes_are_told(void **state)
{
	struct fixture *f = *state;
	uint8_t generation = f->v->regs.config_generation;

	virtio_config_changed(f->v);
	assert_int_equal(f->v->regs.config_generation, ++generation);
	assert_int_equal(f->t->config_signals, 0); /* nobody there yet */
	start(f, 0);
	virtio_config_changed(f->v);
	assert_int_equal(f->v->regs.config_generation, ++generation);
	assert_int_equal(f->t->config_signals, 1);
	assert_int_equal(f->v->regs.isr, VIRTIO_ISR_CONFIG);
}

/* ---- work ---- */

static void a_kick_is_served_on_the_loop(void **state)
{
	struct fixture *f = *state;
	uint32_t id, len;

	start(f, VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC);
	poll_all(f);
	memcpy(vd_host(&f->ram, f->buf), "request!", 8);
	int head = post(f, 1);

	assert_true(vd_kick(f->v, &f->d[1]));
	assert_int_equal(f->t->served, 0); /* not on this thread */
	poll_all(f);
	assert_true(vd_collect(&f->d[1], &id, &len));
	assert_int_equal(id, head);
	assert_int_equal(len, 8);
	assert_memory_equal(vd_host(&f->ram, f->buf + 64), "request!", 8);
	assert_int_equal(f->t->queue_signals, 1);
	assert_int_equal(f->v->regs.isr, VIRTIO_ISR_QUEUE);
}

static void nothing_before_driver_ok(void **state)
{
	struct fixture *f = *state;

	assert_true(vd_negotiate(f->v, 0));
	vd_queue_init(&f->d[0], &f->ram, 0, SIZE);
	vd_enable_queue(f->v, &f->d[0]);
	post(f, 0);
	vd_kick(f->v, &f->d[0]);
	poll_all(f);
	assert_int_equal(f->t->served, 0);
	/* The kick is gone, the buffer is not forgotten. */
	vd_driver_ok(f->v);
	poll_all(f);
	assert_int_equal(f->t->served, 1);
}

static void a_broken_rule_needs_a_reset(void **state)
{
	struct fixture *f = *state;

	start(f, 0);
	poll_all(f);
	vd_avail_idx(&f->d[2], SIZE + 1);
	virtio_notify(f->v, 2);
	poll_all(f);
	assert_int_equal(vd_get_status(f->v), UP | VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(f->t->config_signals, 1);
	assert_int_equal(f->v->regs.isr, VIRTIO_ISR_CONFIG);

	/* The whole device stands still, and says so once. */
	unsigned kicks = f->t->kicks;

	post(f, 0);
	vd_kick(f->v, &f->d[0]);
	virtio_notify(f->v, 2);
	poll_all(f);
	assert_int_equal(f->t->kicks, kicks);
	assert_int_equal(f->t->config_signals, 1);

	start(f, 0);
	post(f, 2);
	vd_kick(f->v, &f->d[2]);
	poll_all(f);
	assert_true(collect(f, 2));
}

static void the_same_head_while_it_is_held(void **state)
{
	struct fixture *f = *state;

	f->t->mode = TOY_HELD;
	start(f, 0);
	vd_desc(&f->d[0], 4, f->buf, 8, VD_WRITE, 0);
	vd_avail(&f->d[0], 0, 4);
	vd_avail_idx(&f->d[0], 1);
	virtio_notify(f->v, 0);
	poll_all(f);
	assert_int_equal(f->v->in_flight, 1);
	vd_avail(&f->d[0], 1, 4);
	vd_avail_idx(&f->d[0], 2);
	virtio_notify(f->v, 0);
	poll_all(f);
	assert_int_equal(f->v->in_flight, 1);
	assert_true(vd_get_status(f->v) & VIRTIO_STATUS_NEEDS_RESET);
	toy_release(f->t);
	poll_all(f);
	assert_int_equal(f->v->in_flight, 0);
	assert_int_equal(f->t->served, 1);
}

static void completions_never_reaped(void **state)
{
	struct fixture *f = *state;

	f->t->mode = TOY_HELD;
	start(f, 0);
	for (unsigned round = 0; round < 4 * SIZE; round++) {
		vd_desc(&f->d[0], (uint16_t)(round % SIZE), f->buf, 8, VD_WRITE, 0);
		vd_avail(&f->d[0], (uint16_t)round, (uint16_t)(round % SIZE));
		vd_avail_idx(&f->d[0], (uint16_t)(round + 1));
		virtio_notify(f->v, 0);
		poll_all(f);
		assert_true(f->v->in_flight <= SIZE);
	}
	assert_int_equal(f->v->in_flight, SIZE);
	toy_release(f->t);
	poll_all(f);
}

/* ---- reset ---- */

static void expect_power_on(struct fixture *f)
{
	const struct virtio_regs *r = &f->v->regs;

	assert_int_equal(r->status, 0);
	assert_int_equal(r->driver_features, 0);
	assert_int_equal(r->feature_select | r->driver_feature_select | r->queue_select, 0);
	assert_int_equal(r->config_vector, VIRTIO_NO_VECTOR);
	assert_int_equal(r->isr, 0);
	assert_int_equal(r->config[0], 0x80);
	for (unsigned i = 0; i < QUEUES; i++) {
		const struct virtq *q = &f->v->queues[i];
		const struct virtq_regs want = { .size = SIZE, .vector = VIRTIO_NO_VECTOR };

		assert_memory_equal(&q->regs, &want, sizeof(want));
		assert_false(q->broken || q->event_idx || q->indirect || q->in_flight);
		assert_false(event_pending(&q->kick));
	}
}

static void mess_up(struct fixture *f)
{
	start(f, VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC);
	post(f, 0);
	vd_kick(f->v, &f->d[0]);
	poll_all(f);
	f->v->regs.queue_select = 2;
	f->v->regs.feature_select = 1;
	f->v->regs.config_vector = 1;
	f->v->queues[1].regs.vector = 2;
	vd_avail_idx(&f->d[2], 100);
	virtio_notify(f->v, 2);
	poll_all(f);
	virtio_notify(f->v, 1);
	assert_true(vd_get_status(f->v) & VIRTIO_STATUS_NEEDS_RESET);
}

static void reset_undoes_everything(void **state)
{
	struct fixture *f = *state;

	mess_up(f);
	uint8_t generation = f->v->regs.config_generation;

	vd_set_status(f->v, 0);
	expect_power_on(f);
	assert_int_equal(f->v->regs.config_generation, generation);
	assert_int_equal(f->t->transport_resets, 2); /* start() begins with one */
	assert_int_equal(f->t->power_ons, 0);
	assert_int_equal(f->t->resets, 2);
}

static void power_on_undoes_the_transport_too(void **state)
{
	struct fixture *f = *state;

	mess_up(f);
	virtio_config_changed(f->v);
	f->v->dev.ops->reset(&f->v->dev);
	expect_power_on(f);
	assert_int_equal(f->v->regs.config_generation, 0);
	assert_int_equal(f->t->power_ons, 1);
	start(f, 0);
}

/* Nobody runs the loop: the reset itself must, or it would wait for ever. */
static void reset_with_requests_in_flight_on_this_thread(void **state)
{
	struct fixture *f = *state;

	f->t->mode = TOY_LATER;
	start(f, 0);
	poll_all(f);
	post(f, 0);
	post(f, 0);
	vd_kick(f->v, &f->d[0]);
	loop_poll(f->loop, 0);
	assert_int_equal(f->v->in_flight, 2);
	vd_set_status(f->v, 0);
	assert_int_equal(f->v->in_flight, 0);
	assert_int_equal(f->t->served, 2);
	expect_power_on(f);
}

static void reset_from_loop(void *arg)
{
	vd_set_status(arg, 0);
}

/* The completions stand in the loop's queue right behind whoever waits for them. */
static void reset_before_its_completions_in_the_queue(void **state)
{
	struct fixture *f = *state;

	f->t->mode = TOY_HELD;
	start(f, 0);
	post(f, 0);
	post(f, 0);
	vd_kick(f->v, &f->d[0]);
	poll_all(f);
	assert_int_equal(f->v->in_flight, 2);
	assert_int_equal(loop_post(f->loop, reset_from_loop, f->v), 0);
	toy_release(f->t);
	loop_poll(f->loop, 0);
	assert_int_equal(f->t->served, 2);
	expect_power_on(f);
}

/* From a callback of the running loop. */
static void reset_on_the_loops_own_thread(void **state)
{
	struct fixture *f = *state;

	f->t->mode = TOY_LATER;
	start(f, 0);
	assert_int_equal(loop_thread_start(f->loop, "toy", NULL), 0);
	for (int i = 0; i < SIZE / 2; i++)
		post(f, 0);
	vd_kick(f->v, &f->d[0]);
	loop_call(f->loop, reset_from_loop, f->v);
	loop_thread_stop(f->loop);
	expect_power_on(f);
}

static void *reset_from_vcpu(void *arg)
{
	vd_set_status(arg, 0);
	return NULL;
}

static void wait_until(struct virtio *v, const bool *what)
{
	pthread_mutex_lock(&v->dev.lock);
	while (!*what) {
		pthread_mutex_unlock(&v->dev.lock);
		sched_yield();
		pthread_mutex_lock(&v->dev.lock);
	}
	pthread_mutex_unlock(&v->dev.lock);
}

static void hold_one(struct fixture *f)
{
	f->t->mode = TOY_HELD;
	start(f, 0);
	post(f, 0);
	vd_kick(f->v, &f->d[0]);
	poll_all(f);
	assert_int_equal(f->v->in_flight, 1);
	assert_int_equal(loop_thread_start(f->loop, "toy", NULL), 0);
}

static void reset_waits_for_another_thread(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;
	pthread_t vcpu;

	hold_one(f);
	assert_int_equal(pthread_create(&vcpu, NULL, reset_from_vcpu, v), 0);
	wait_until(v, &v->resetting);

	/* Meanwhile other vCPUs get an answer at once, and change nothing. */
	assert_int_equal(vd_get_status(v), UP);
	vd_set_status(v, 0);
	vd_set_status(v, UP | VIRTIO_STATUS_FAILED);
	assert_int_equal(vd_get_status(v), UP);
	vd_set_features(v, 1);
	vd_queue_init(&f->d[1], &f->ram, 1, SIZE);
	vd_enable_queue(v, &f->d[1]);
	pthread_mutex_lock(&v->dev.lock);
	assert_int_equal(v->regs.driver_features, VIRTIO_F_VERSION_1);
	assert_int_not_equal(v->queues[1].regs.desc, f->d[1].desc);
	virtio_write_config(v, 0, "x", 1);
	assert_int_equal(f->t->writes, 0);
	assert_int_equal(v->in_flight, 1);
	pthread_mutex_unlock(&v->dev.lock);

	toy_release(f->t);
	pthread_join(vcpu, NULL);
	assert_int_equal(f->t->served, 1);
	expect_power_on(f);
	loop_thread_stop(f->loop);
}

/* ---- stop and start ---- */

static void *quiesce_from_main(void *arg)
{
	struct virtio *v = arg;

	v->dev.ops->quiesce(&v->dev);
	return NULL;
}

static void quiesce_waits_and_takes_nothing_new(void **state)
{
	struct fixture *f = *state;
	struct virtio *v = f->v;
	pthread_t main_thread;

	hold_one(f);
	assert_int_equal(pthread_create(&main_thread, NULL, quiesce_from_main, v), 0);
	wait_until(v, &v->stopped);
	post(f, 1);
	vd_kick(v, &f->d[1]);
	toy_release(f->t);
	pthread_join(main_thread, NULL);
	loop_thread_stop(f->loop);

	assert_int_equal(v->in_flight, 0);
	assert_int_equal(f->t->stops, 1);
	assert_int_equal(f->t->served, 1);
	for (unsigned i = 0; i < QUEUES; i++) {
		assert_int_equal(v->queues[i].regs.next_used, v->queues[i].regs.next_avail);
		assert_int_equal(v->queues[i].regs.signalled_used, v->queues[i].regs.next_used);
	}
	assert_true(collect(f, 0));
	poll_all(f);
	assert_false(collect(f, 1));

	/* Nobody kicks again, but resume looks. */
	f->t->mode = TOY_NOW;
	v->dev.ops->quiesce(&v->dev); /* again: no harm */
	assert_int_equal(f->t->stops, 1);
	v->dev.ops->resume(&v->dev);
	assert_int_equal(f->t->starts, 1);
	assert_int_equal(f->t->activated, 1);
	assert_true(collect(f, 1));
}

/* A kind that pushed and did not flush yet: quiesce publishes. */
static void quiesce_publishes(void **state)
{
	struct fixture *f = *state;
	struct virtq *q = &f->v->queues[0];
	struct iovec iov[VIRTQ_SEGS_MAX];
	struct virtq_chain c = { .iov = iov };

	start(f, 0);
	poll_all(f);
	post(f, 0);
	vd_publish(&f->d[0]);
	assert_int_equal(virtq_pop(q, &c, NULL), 1);
	virtq_push(q, c.head, 0);
	assert_false(collect(f, 0));
	f->v->dev.ops->quiesce(&f->v->dev);
	assert_true(collect(f, 0));
	assert_int_equal(f->t->queue_signals, 1);
}

static void quiesce_of_an_idle_device(void **state)
{
	struct fixture *f = *state;

	f->v->dev.ops->quiesce(&f->v->dev);
	f->v->dev.ops->resume(&f->v->dev);
	assert_int_equal(f->t->activated, 0);
	assert_int_equal(f->t->kicks, 0);
	/* Reset while stopped, as a machine does; then it lives again. */
	start(f, 0);
	f->v->dev.ops->quiesce(&f->v->dev);
	f->v->dev.ops->reset(&f->v->dev);
	f->v->dev.ops->resume(&f->v->dev);
	expect_power_on(f);
	start(f, 0);
	post(f, 0);
	vd_kick(f->v, &f->d[0]);
	poll_all(f);
	assert_true(collect(f, 0));
}

static void load_all(struct virtio *from, struct virtio *to)
{
	assert_int_equal(from->dev.nparts, to->dev.nparts);
	for (unsigned i = 0; i < from->dev.nparts; i++) {
		const struct state_part *a = &from->dev.parts[i], *b = &to->dev.parts[i];
		struct state_buf buf = { 0 };
		struct err err = { 0 };

		assert_ptr_equal(a->desc, b->desc);
		assert_int_equal(state_save(a->desc, a->regs, &buf), 0);
		if (state_load(b->desc, b->regs, b->device, buf.data, buf.len, &err))
			fail_msg("%s", err.msg);
		state_buf_fini(&buf);
	}
}

static void saved_and_continued_elsewhere(void **state)
{
	struct fixture *f = *state;
	struct toy *other = toy_new(f->ram.mem, f->loop, QUEUES, SIZE, CONFIG_LEN);

	other->v.transport = &toy_transport;
	start(f, VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | TOY_FEATURE);
	for (int i = 0; i < 3; i++) {
		post(f, 0);
		vd_kick(f->v, &f->d[0]);
		poll_all(f);
		assert_true(collect(f, 0));
	}
	f->v->dev.ops->quiesce(&f->v->dev);
	post(f, 0); /* the vCPU's last store before it was paused; its kick is lost */
	vd_add(&f->d[2], (struct vd_seg[]){ VD_OUT(f->buf, 1), VD_IN(f->buf, 1) }, 2, 2);
	vd_publish(&f->d[0]);
	vd_publish(&f->d[2]);

	load_all(f->v, &other->v);
	other->v.dev.ops->resume(&other->v.dev);
	assert_int_equal(other->activated, 1);
	assert_int_equal(other->resumes, 1);
	assert_true(virtio_has(&other->v, TOY_FEATURE));
	assert_int_equal(vd_get_status(&other->v), UP);
	assert_true(collect(f, 0));
	assert_true(collect(f, 2)); /* an indirect one: the feature is known */
	post(f, 0);
	assert_true(vd_kick(&other->v, &f->d[0]));
	poll_all(f);
	assert_true(collect(f, 0));
	assert_int_equal(other->served, 3);
	other->v.dev.ops->free(&other->v.dev);
}

/* Signals of a loaded device whose driver's last word on interrupts is @word; served before: one. */
static unsigned signals_after_load(struct fixture *f, uint64_t features, uint16_t word)
{
	struct toy *other = toy_new(f->ram.mem, f->loop, QUEUES, SIZE, CONFIG_LEN);
	unsigned signals;

	other->v.transport = &toy_transport;
	start(f, features);
	post(f, 0);
	vd_kick(f->v, &f->d[0]);
	poll_all(f);
	f->v->dev.ops->quiesce(&f->v->dev);
	if (features & VIRTIO_F_EVENT_IDX)
		vd_used_event(&f->d[0], word);
	else
		vd_no_interrupt(&f->d[0], word);
	load_all(f->v, &other->v);
	other->v.dev.ops->resume(&other->v.dev);
	signals = other->queue_signals;
	other->v.dev.ops->quiesce(&other->v.dev);
	other->v.dev.ops->resume(&other->v.dev); /* a pause is no load */
	assert_int_equal(other->queue_signals, signals);
	other->v.dev.ops->free(&other->v.dev);
	f->v->dev.ops->reset(&f->v->dev);
	f->v->dev.ops->resume(&f->v->dev);
	return signals;
}

static void an_interrupt_on_its_way_is_not_lost(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(signals_after_load(f, 0, 0), 1);
	assert_int_equal(signals_after_load(f, 0, 1), 0); /* it wants none */
	assert_int_equal(signals_after_load(f, VIRTIO_F_EVENT_IDX, 0), 1);
	assert_int_equal(signals_after_load(f, VIRTIO_F_EVENT_IDX, 1), 0); /* has seen it */
}

static void state_is_complete(void **state)
{
	state_check_complete(&virtio_state, sizeof(struct virtio_regs));
}

static int load_regs(struct fixture *f, const struct virtio_regs *r, struct err *err)
{
	struct state_buf buf = { 0 };
	struct virtio_regs into = { 0 };

	assert_int_equal(state_save(&virtio_state, r, &buf), 0);
	int rc = state_load(&virtio_state, &into, f->v, buf.data, buf.len, err);

	state_buf_fini(&buf);
	return rc;
}

static void state_is_validated(void **state)
{
	struct fixture *f = *state;
	struct err err = { 0 };

	start(f, VIRTIO_F_EVENT_IDX);
	f->v->vectors = 4;
	f->v->regs.config_vector = 3;
	f->v->regs.queue_select = 0xffff; /* a driver may write that */
	const struct virtio_regs good = f->v->regs;

	assert_int_equal(load_regs(f, &good, &err), 0);
#define REFUSED(member, value)                                       \
	do {                                                         \
		struct virtio_regs bad = good;                       \
		bad.member = (value);                                \
		assert_int_equal(load_regs(f, &bad, &err), -EINVAL); \
		assert_non_null(strstr(err.msg, #member));           \
	} while (0)
	REFUSED(status, VIRTIO_STATUS_DRIVER_OK);
	REFUSED(status, UP & ~VIRTIO_STATUS_FEATURES_OK);
	REFUSED(status, UP & ~VIRTIO_STATUS_ACKNOWLEDGE);
	REFUSED(status, UP | 0x10);
	REFUSED(driver_features, 0);
	REFUSED(driver_features, good.driver_features | VIRTIO_F_RING_RESET);
	REFUSED(config_vector, 4);
	REFUSED(isr, 4);
#undef REFUSED
}

static void init_refuses_nonsense(void **state)
{
	struct fixture *f = *state;
	struct virtio v;
	struct err err = { 0 };
	static const unsigned queues[] = { 0, VIRTIO_QUEUES_MAX + 1 };

	for (int i = 0; i < 2; i++) {
		assert_int_equal(virtio_init(&v, &toy_ops, "odd", f->ram.mem, f->loop, 0, queues[i],
					     8, &err),
				 -EINVAL);
		assert_non_null(strstr(err.msg, "odd"));
	}
	assert_int_equal(virtio_init(&v, &toy_ops, "odd", f->ram.mem, f->loop, 0, 1, 12, &err),
			 -EINVAL);
	assert_non_null(strstr(err.msg, "odd"));

	/* As many as there may be. */
	assert_int_equal(virtio_init(&v, &toy_ops, "many", f->ram.mem, f->loop, 0,
				     VIRTIO_QUEUES_MAX, 256, &err),
			 0);
	virtio_fini(&v);
}

/* ---- threads: vCPUs that kick, one that resets, a main thread that pauses ---- */

struct storm {
	struct virtio *v;
	atomic_bool stop;
};

/* As KVM's ioeventfd does, and as a register store on a vCPU does. */
static void *kicker(void *arg)
{
	struct storm *s = arg;

	for (unsigned i = 0; !atomic_load(&s->stop); i++) {
		event_signal(&s->v->queues[i % QUEUES].kick);
		pthread_mutex_lock(&s->v->dev.lock);
		virtio_notify(s->v, (i >> 2) % (QUEUES + 1));
		pthread_mutex_unlock(&s->v->dev.lock);
	}
	return NULL;
}

static void *pauser(void *arg)
{
	struct storm *s = arg;
	struct device *d = &s->v->dev;

	while (!atomic_load(&s->stop)) {
		d->ops->quiesce(d);
		pthread_mutex_lock(&d->lock);
		BUG_ON(s->v->in_flight);
		pthread_mutex_unlock(&d->lock);
		d->ops->resume(d);
	}
	return NULL;
}

static void kicks_against_resets_and_pauses(void **state)
{
	struct fixture *f = *state;
	struct storm s = { .v = f->v };
	pthread_t a, b, c;

	f->t->mode = TOY_LATER;
	assert_int_equal(loop_thread_start(f->loop, "toy", NULL), 0);
	assert_int_equal(pthread_create(&a, NULL, kicker, &s), 0);
	assert_int_equal(pthread_create(&b, NULL, kicker, &s), 0);
	assert_int_equal(pthread_create(&c, NULL, pauser, &s), 0);
	for (int round = 0; round < 200; round++) {
		f->ram.next = f->buf + 4096; /* the same rings again */
		start(f, round & 1 ? VIRTIO_F_EVENT_IDX : 0);
		for (unsigned q = 0; q < QUEUES; q++)
			for (int i = 0; i < SIZE / 2; i++)
				post(f, q);
		for (unsigned q = 0; q < QUEUES; q++)
			vd_kick(f->v, &f->d[q]);
		/* Sometimes wait for one answer, sometimes reset in the middle. */
		while (round % 4 == 0 && !collect(f, 1))
			sched_yield();
		vd_set_status(f->v, 0);
	}
	atomic_store(&s.stop, true);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	pthread_join(c, NULL);
	loop_thread_stop(f->loop);
	expect_power_on(f);
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(status_goes_up_in_order),
		T(status_bits_are_not_cleared_or_made_up),
		T(features_are_checked),
		T(feature_words_past_the_second),
		T(a_device_that_cannot_start),
		T(queue_size_is_checked),
		T(queue_registers_are_final_once_ready),
		T(a_queue_not_set_up_stays_so_after_driver_ok),
		T(a_queue_may_be_given_up_before_driver_ok),
		T(rings_outside_ram_need_a_reset),
		T(queues_that_do_not_exist),
		T(config_past_its_end),
		T(config_changes_are_told),
		T(a_kick_is_served_on_the_loop),
		T(nothing_before_driver_ok),
		T(a_broken_rule_needs_a_reset),
		T(the_same_head_while_it_is_held),
		T(completions_never_reaped),
		T(reset_undoes_everything),
		T(power_on_undoes_the_transport_too),
		T(reset_with_requests_in_flight_on_this_thread),
		T(reset_before_its_completions_in_the_queue),
		T(reset_on_the_loops_own_thread),
		T(reset_waits_for_another_thread),
		T(quiesce_waits_and_takes_nothing_new),
		T(quiesce_publishes),
		T(quiesce_of_an_idle_device),
		T(saved_and_continued_elsewhere),
		T(an_interrupt_on_its_way_is_not_lost),
		cmocka_unit_test(state_is_complete),
		T(state_is_validated),
		T(init_refuses_nonsense),
		T(kicks_against_resets_and_pauses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
