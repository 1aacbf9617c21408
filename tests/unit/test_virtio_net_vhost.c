/*
 * test_virtio_net_vhost.c - rings that go to the kernel and come back, with fake_vhost.h as the kernel
 */
#include "net_rig.h"

#include "fake_vhost.h"

#define RX 0
#define TX 1

struct kernel {
	struct fake_vhost *f[2];
	bool freed[2];
};

static struct rig *rig_with(struct kernel *k, unsigned pairs)
{
	struct vhost *h[2];

	for (unsigned i = 0; i < pairs; i++) {
		k->f[i] = fake_vhost_new(&k->freed[i]);
		h[i] = &k->f[i]->h;
	}
	return rig_new_vhost(RIG_SOCKET, pairs, 64, h);
}

static void add_buffers(struct rig *r, unsigned q, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		rig_add_rx(r, q, RIG_BUFFERS + 0x1000 * i, 2048);
}

/* The used entries there are. */
static unsigned collect(struct rig *r, unsigned q)
{
	unsigned n = 0;

	while (rig_used(r, q, NULL))
		n++;
	return n;
}

static void assert_with_kernel(struct rig *r, const struct kernel *k, unsigned q)
{
	const struct fake_vhost_ring *ring = &k->f[q / 2]->ring[q & 1];
	const struct virtq_regs *g = &r->v->queues[q].regs;

	assert_int_equal(ring->tap, r->tif[q / 2]->n.fd);
	assert_int_equal(ring->kick, r->v->queues[q].kick.fd);
	assert_int_equal(ring->num, g->size);
	assert_ptr_equal(ring->addr.desc_user_addr, rig_at(r, g->desc));
	assert_ptr_equal(ring->addr.avail_user_addr, rig_at(r, g->driver));
	assert_ptr_equal(ring->addr.used_user_addr, rig_at(r, g->device));
	assert_int_equal(r->v->watches[q].watch.fd, -1);
}

static void assert_with_us(struct rig *r, const struct kernel *k, unsigned q)
{
	rig_settle(r);
	if (!k->freed[q / 2])
		assert_int_equal(k->f[q / 2]->ring[q & 1].tap, -1);
	assert_int_equal(r->v->watches[q].watch.fd, r->v->queues[q].kick.fd);
}

static void test_ring_goes_to_the_kernel(void **state)
{
	struct kernel k;
	struct rig *r = rig_with(&k, 1);

	rig_start(r, ALL, 16);
	assert_with_kernel(r, &k, RX);
	assert_with_kernel(r, &k, TX);
	assert_int_equal(k.f[0]->features, r->v->regs.driver_features & vhost_features);
	assert_int_equal(k.f[0]->mem.guest_phys_addr, VD_RAM_BASE);
	assert_int_equal(k.f[0]->mem.memory_size, RIG_RAM);

	/* a kick is the kernel's alone, and was given once when it began */
	assert_true(event_pending(&r->v->queues[TX].kick));
	send_from_guest(r, TX, 100, 1);
	rig_kick(r, TX);
	assert_true(event_pending(&r->v->queues[TX].kick));
	assert_int_equal(rig_far_receive(r, 0, got), -EAGAIN);
	assert_int_equal(collect(r, TX), 0);

	/* its interrupt comes by way of us, the ISR bit with it */
	fake_vhost_work(k.f[0], TX, 1, 0);
	rig_settle(r);
	assert_int_equal(collect(r, TX), 1);
	assert_int_equal(r->signals.queue[TX], 1);
	assert_int_equal(r->v->regs.isr, VIRTIO_ISR_QUEUE);
	rig_free(r);
	assert_true(k.freed[0]);
}

/* What is saved is what our own loop would have left, and either goes on from it. */
static void test_stop_and_go_on(void **state)
{
	struct kernel k;
	struct rig *r = rig_with(&k, 1);
	const struct virtq_regs *g = &r->v->queues[RX].regs;
	struct state_buf buf = { 0 };
	struct virtq_regs loaded = { 0 };
	struct err err = { 0 };

	rig_start(r, ALL, 16);
	add_buffers(r, RX, 12);
	rig_kick(r, RX);
	fake_vhost_work(k.f[0], RX, 5, 1);
	r->v->dev.ops->quiesce(&r->v->dev);
	assert_with_us(r, &k, RX);
	assert_int_equal(g->next_avail, 5);
	assert_int_equal(g->next_used, 5);
	assert_int_equal(g->signalled_used, 5);
	assert_int_equal(r->signals.queue[RX], 1); /* the one that was on its way */
	assert_int_equal(state_save(&virtq_state, g, &buf), 0);
	assert_int_equal(
		state_load(&virtq_state, &loaded, &r->v->queues[RX], buf.data, buf.len, &err), 0);
	state_buf_fini(&buf);

	r->v->dev.ops->resume(&r->v->dev);
	assert_with_kernel(r, &k, RX);
	assert_int_equal(k.f[0]->ring[RX].next, 5);
	fake_vhost_work(k.f[0], RX, 2, 1);
	r->v->dev.ops->quiesce(&r->v->dev);
	rig_settle(r);

	/* a kernel that does not take it: we go on where it was */
	k.f[0]->refuse = VHOST_NET_SET_BACKEND;
	r->v->dev.ops->resume(&r->v->dev);
	assert_true(k.freed[0]);
	assert_with_us(r, &k, RX);
	assert_true(rig_far_send(r, 0, 200, 9) > 0);
	rig_settle(r);
	assert_int_equal(g->next_avail, 8);
	assert_int_equal(collect(r, RX), 8);
	assert_false(NEEDS_RESET(r));
	rig_free(r);
}

static void test_reset(void **state)
{
	struct kernel k;
	struct rig *r = rig_with(&k, 1);

	for (int i = 0; i < 3; i++) {
		rig_start(r, ALL, 16);
		assert_with_kernel(r, &k, RX);
		assert_int_equal(k.f[0]->ring[RX].next, 0);
		add_buffers(r, RX, 4);
		rig_kick(r, RX);
		fake_vhost_work(k.f[0], RX, 3, 1);
		event_signal(&((struct net *)r->v)->vhost_error); /* of this driver's time */
		vd_set_status(r->v, 0);
		/* at once: the driver may use its memory for something else now */
		assert_int_equal(k.f[0]->ring[RX].tap, -1);
		assert_int_equal(k.f[0]->ring[TX].tap, -1);
		assert_int_equal(k.f[0]->ring[RX].kick, -1);
		assert_int_equal(r->v->queues[RX].regs.next_avail, 0);
		counting_clear(&r->signals);
		if (i == 1) /* or the loop hears of it only with the next driver's kicks */
			rig_settle(r);
		assert_int_equal(r->signals.queue[RX], 0);
		r->ram.next = VD_RAM_BASE;
	}
	rig_free(r);
}

static void test_error(void **state)
{
	struct kernel k;
	struct rig *r = rig_with(&k, 1);
	const uint64_t one = 1;

	rig_start(r, ALL, 16);
	assert_int_equal(write(k.f[0]->ring[RX].error, &one, sizeof(one)), sizeof(one));
	rig_settle(r);
	assert_true(NEEDS_RESET(r));
	assert_int_equal(r->signals.config, 1);
	assert_with_us(r, &k, RX);
	assert_with_us(r, &k, TX);
	rig_reset(r);
	rig_start(r, ALL, 16);
	assert_with_kernel(r, &k, RX);
	assert_false(NEEDS_RESET(r));

	/* a rule broken where we look ends the kernel's work, too */
	rig_add(r, 2, &(struct vd_seg){ RIG_BUFFERS, 2, false }, 1);
	rig_kick(r, 2);
	assert_true(NEEDS_RESET(r));
	assert_with_us(r, &k, RX);
	assert_with_us(r, &k, TX);
	rig_free(r);
}

static bool is_logged(struct rig *r, gpa_t at)
{
	static uint64_t bits[RIG_RAM / 4096 / 64];

	assert_int_equal(gmem_dirty_fetch(r->ram.mem, 0, bits, sizeof(bits) / 8), 0);
	uint64_t page = (at - VD_RAM_BASE) / 4096;

	return bits[page / 64] >> page % 64 & 1;
}

static void test_log(void **state)
{
	struct kernel k;
	struct rig *r = rig_with(&k, 1);
	struct err err = { 0 };

	rig_start(r, ALL, 64);
	add_buffers(r, RX, 40);
	rig_kick(r, RX);
	fake_vhost_work(k.f[0], RX, 1, 1);
	assert_int_equal(gmem_dirty_start(r->ram.mem, &err), 0);
	void *log = gmem_dirty_log(r->ram.mem, &err);

	assert_non_null(log);
	assert_int_equal(r->v->dev.ops->log_writes(&r->v->dev, log), 0);
	assert_true(k.f[0]->features & FAKE_VHOST_LOG_ALL);
	fake_vhost_work(k.f[0], RX, 1, 2);
	assert_true(is_logged(r, RIG_BUFFERS + 0x1000));
	assert_false(is_logged(r, RIG_BUFFERS + 0x1000));
	fake_vhost_work(k.f[0], RX, 1, 3);
	assert_true(is_logged(r, r->q[RX].used));
	assert_false(is_logged(r, RIG_BUFFERS));

	/* a ring that comes while logging is on is logged, too */
	rig_reset(r);
	rig_start(r, ALL, 64);
	add_buffers(r, RX, 4);
	rig_kick(r, RX);
	fake_vhost_work(k.f[0], RX, 1, 4);
	assert_true(is_logged(r, RIG_BUFFERS));

	assert_int_equal(r->v->dev.ops->log_writes(&r->v->dev, NULL), 0);
	assert_false(k.f[0]->features & FAKE_VHOST_LOG_ALL);
	assert_int_equal(k.f[0]->ring[RX].addr.flags, 0);
	fake_vhost_work(k.f[0], RX, 1, 5);
	assert_false(is_logged(r, RIG_BUFFERS + 0x1000));
	gmem_dirty_stop(r->ram.mem);

	/* one that cannot log says so: the migration must not begin */
	k.f[0]->refuse = VHOST_SET_LOG_BASE;
	assert_int_equal(r->v->dev.ops->log_writes(&r->v->dev, log), -EIO);
	rig_free(r);
}

/* Pairs that the driver does not use stay with us, and switched off. */
static void test_pairs(void **state)
{
	const struct {
		uint8_t class, cmd;
		uint16_t pairs;
	} two = { VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, 2 },
	  one = { VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, 1 };
	struct vd_seg s[2] = { { RIG_BUFFERS, sizeof(two), false },
			       { RIG_BUFFERS + 0x1000, 1, true } };
	struct kernel k;
	struct rig *r = rig_with(&k, 2);

	rig_start(r, ALL, 16);
	assert_with_kernel(r, &k, RX);
	assert_int_equal(k.f[1]->requests, 0);
	for (int i = 0; i < 2; i++) {
		memcpy(rig_at(r, RIG_BUFFERS), &two, sizeof(two));
		rig_add(r, 4, s, 2);
		rig_kick(r, 4);
		assert_int_equal(*rig_at(r, RIG_BUFFERS + 0x1000), VIRTIO_NET_OK);
		assert_with_kernel(r, &k, 2 + RX);
		assert_with_kernel(r, &k, 2 + TX);
		assert_int_equal(k.f[1]->ring[TX].next, i);
		send_from_guest(r, 2 + TX, 100, 1);
		rig_kick(r, 2 + TX);
		fake_vhost_work(k.f[1], TX, 1, 0);

		memcpy(rig_at(r, RIG_BUFFERS), &one, sizeof(one));
		rig_add(r, 4, s, 2);
		rig_kick(r, 4);
		assert_with_us(r, &k, 2 + RX);
		assert_int_equal(r->tif[1]->enabled, false);
		assert_int_equal(r->v->queues[2 + TX].regs.next_used, i + 1);
		assert_with_kernel(r, &k, TX);
	}
	rig_free(r);
}

static void test_link_lost(void **state)
{
	struct kernel k;
	struct rig *r = rig_with(&k, 1);

	rig_start(r, ALL, 16);
	fd_close(&r->tif[0]->peer);
	while (!r->signals.config)
		loop_poll(r->loop, -1);
	assert_with_us(r, &k, RX);
	assert_false(NEEDS_RESET(r));
	/* frames go nowhere, but go */
	send_from_guest(r, TX, 100, 1);
	rig_kick(r, TX);
	assert_int_equal(collect(r, TX), 1);
	rig_free(r);
}

/* What a transport says is the way of an interrupt, it is. */
static struct event direct;

static struct event *queue_event(struct virtio *v, unsigned q)
{
	return q == RX && direct.fd >= 0 ? &direct : NULL;
}

static void test_interrupts(void **state)
{
	struct virtio_transport_ops ops = counting_transport;
	struct err err = { 0 };
	struct kernel k;
	struct rig *r = rig_with(&k, 1);

	ops.queue_event = queue_event;
	r->v->transport = &ops;
	assert_int_equal(event_init(&direct, &err), 0);
	rig_start(r, ALL, 16);
	assert_int_equal(k.f[0]->ring[RX].call, direct.fd);
	assert_int_not_equal(k.f[0]->ring[TX].call, direct.fd);
	add_buffers(r, RX, 2);
	rig_kick(r, RX);
	fake_vhost_work(k.f[0], RX, 1, 1);
	rig_settle(r);
	assert_true(event_clear(&direct));
	assert_int_equal(r->signals.queue[RX], 0);

	event_fini(&direct); /* the driver takes the vector away */
	r->v->ops->rerouted(r->v, RX);
	fake_vhost_work(k.f[0], RX, 1, 1);
	rig_settle(r);
	assert_int_equal(r->signals.queue[RX], 1);
	r->v->ops->rerouted(r->v, 2); /* the control queue is not the kernel's */
	rig_free(r);
}

/* Whichever request is refused: nothing of the ring stays with the kernel, and the NIC works. */
static void test_refused(void **state)
{
	static const unsigned long requests[] = {
		VHOST_SET_FEATURES,   VHOST_SET_MEM_TABLE,  VHOST_SET_VRING_NUM,
		VHOST_SET_VRING_BASE, VHOST_SET_VRING_ADDR, VHOST_SET_VRING_ERR,
		VHOST_SET_VRING_CALL, VHOST_SET_VRING_KICK, VHOST_NET_SET_BACKEND,
	};

	for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
		struct kernel k;
		struct rig *r = rig_with(&k, 1);

		k.f[0]->refuse = requests[i];
		rig_start(r, ALL, 16);
		assert_true(k.freed[0]);
		send_from_guest(r, TX, 100, 7);
		rig_kick(r, TX);
		assert_sent(r, 0, 100, 7);
		assert_int_equal(collect(r, TX), 1);
		rig_free(r);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ring_goes_to_the_kernel),
		cmocka_unit_test(test_stop_and_go_on),
		cmocka_unit_test(test_reset),
		cmocka_unit_test(test_error),
		cmocka_unit_test(test_log),
		cmocka_unit_test(test_pairs),
		cmocka_unit_test(test_link_lost),
		cmocka_unit_test(test_interrupts),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
