/*
 * test_virtio_net.c - frames through the network device, with drivers good and bad
 */
#include "net_rig.h"

/* ---- what it says of itself ---- */

static void test_default_mac(void **state)
{
	uint8_t a[6], b[6];

	virtio_net_default_mac("vm", "net0", a);
	virtio_net_default_mac("vm", "net0", b);
	assert_memory_equal(a, b, 6);
	assert_int_equal(a[0] & 3, 2);
	virtio_net_default_mac("vm", "net1", b);
	assert_memory_not_equal(a, b, 6);
	virtio_net_default_mac("vn", "net0", b);
	assert_memory_not_equal(a, b, 6);
	/* it is a promise: a guest's network set-up names its card by this */
	virtio_net_default_mac("", "net0", a);
	assert_memory_equal(a, ((uint8_t[]){ 0x56, 0xdb, 0x49, 0x97, 0xc9, 0xad }), 6);
}

static void test_config(void **state)
{
	struct rig *r = rig_new(RIG_LOOP, 2, 64);
	uint8_t c[16];

	virtio_read_config(r->v, 0, c, sizeof(c));
	assert_memory_equal(c, rig_mac, 6);
	assert_memory_equal(c + 6, "\x01\x00\x02\x00\xdc\x05\xff\xff\xff\xff", 10);
	assert_int_equal(r->v->nqueues, 5);
	assert_true(r->v->features & NET_F(MQ));
	virtio_write_config(r->v, 0, "\0\0\0\0\0\0", 6); /* read-only since VERSION_1 */
	virtio_read_config(r->v, 0, c, 6);
	assert_memory_equal(c, rig_mac, 6);
	rig_free(r);
	r = rig_new(RIG_LOOP, 1, 64);
	assert_false(r->v->features & NET_F(MQ));
	rig_free(r);
}

static void test_bad_options(void **state)
{
	struct virtio_net_options o = { .name = "net.t", .pairs = 33, .queue_size = 64 };
	struct err err = { 0 };

	assert_null(virtio_net_new(&o, NULL, NULL, NULL, &err));
	assert_int_equal(err.code, -EINVAL);
	o.pairs = 1;
	o.mtu = 67;
	assert_null(virtio_net_new(&o, NULL, NULL, NULL, &err));
	assert_int_equal(err.code, -EINVAL);
}

/* ---- sending and receiving ---- */

/* QEMU CVE-2023-6693: the header's size must not depend on what is negotiated. */
static void test_header_every_subset(void **state)
{
	const uint64_t bits[] = { NET_F(MRG_RXBUF),   NET_F(CSUM),
				  NET_F(GUEST_CSUM),  NET_F(HOST_TSO4),
				  NET_F(GUEST_TSO4),  NET_F(CTRL_VQ),
				  NET_F(MQ),          NET_F(MTU),
				  VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC };
	const unsigned n = sizeof(bits) / sizeof(bits[0]);
	struct rig *r = rig_new(RIG_LOOP, 2, 16);

	for (unsigned set = 0; set < 1u << n; set++) {
		uint64_t f = NET_F(MAC);

		for (unsigned i = 0; i < n; i++)
			f |= set >> i & 1 ? bits[i] : 0;
		rig_reset(r);
		rig_start(r, f, 16);
		memset(rig_at(r, RIG_BUFFERS), 0xee, 4096);
		rig_add_rx(r, 0, RIG_BUFFERS + 2048, 1600);
		assert_true(rig_far_send(r, 0, 60, (uint8_t)set) > 0);
		rig_kick(r, 0);
		assert_received(r, 0, RIG_BUFFERS + 2048, 1600, 60, (uint8_t)set);
		assert_int_equal(*rig_at(r, RIG_BUFFERS + 2048 + 72), 0xee);
		send_from_guest(r, 1, 60, (uint8_t)~set);
		rig_kick(r, 1);
		assert_sent(r, 0, 60, (uint8_t)~set);
		assert_true(rig_used(r, 1, NULL));
	}
	rig_free(r);
}

/* Every relation of frame and buffer size around the edges. */
static void test_mergeable_sizes(void **state)
{
	static const uint32_t sizes[] = { 12, 13, 64, 512, 1526, 4096 };
	struct rig *r = rig_new(RIG_LOOP, 1, 256);

	rig_start(r, ALL, 256);
	for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++)
		for (unsigned k = 1; k <= 5; k++)
			for (int d = -1; d <= 1; d++) {
				size_t total = (size_t)sizes[s] * k + (size_t)d;

				if (total < NET_VNET_HDR_LEN + 14)
					continue;
				size_t len = total - NET_VNET_HDR_LEN;
				unsigned n = (unsigned)((total + sizes[s] - 1) / sizes[s]);

				for (unsigned i = 0; i < n; i++)
					rig_add_rx(r, 0, RIG_BUFFERS + i * sizes[s], sizes[s]);
				assert_true(rig_far_send(r, 0, len, (uint8_t)k) > 0);
				rig_kick(r, 0);
				assert_received(r, 0, RIG_BUFFERS, sizes[s], len, (uint8_t)k);
				assert_false(rig_used(r, 0, NULL));
			}
	assert_int_equal(rig_stat(r, "rx-dropped"), 0);
	rig_free(r);
}

/* The largest frame there is, in buffers of a driver's usual size; then small ones again. */
static void test_largest_frame(void **state)
{
	const size_t largest = NET_FRAME_MAX - NET_VNET_HDR_LEN;
	struct rig *r = rig_new(RIG_LOOP, 1, 256);

	rig_start(r, ALL, 256);
	for (unsigned round = 0; round < 4; round++) {
		uint32_t at = RIG_BUFFERS;

		for (unsigned i = 0; i < 45; i++)
			rig_add_rx(r, 0, RIG_BUFFERS + i * 1526, 1526);
		/* the second is read with the window wide already, so nothing spills */
		assert_true(rig_far_send(r, 0, largest, (uint8_t)round) > 0);
		assert_true(rig_far_send(r, 0, 100, 9) > 0);
		rig_kick(r, 0);
		unsigned n = assert_received(r, 0, at, 1526, largest, (uint8_t)round);

		assert_int_equal(n, 43);
		assert_received(r, 0, at + n * 1526, 1526, 100, 9);
		assert_true(rig_far_send(r, 0, 200, 8) > 0);
		rig_kick(r, 0);
		assert_received(r, 0, at + (n + 1) * 1526, 1526, 200, 8);
	}
	assert_int_equal(rig_stat(r, "rx-frames"), 12);
	assert_int_equal(rig_stat(r, "rx-bytes"), 4 * (largest + 300));
	assert_int_equal(rig_stat(r, "rx-dropped"), 0);
	rig_free(r);
}

/* Chains of many ranges: more than one read takes. */
static void test_many_ranges(void **state)
{
	struct rig *r = rig_new(RIG_LOOP, 1, 256);
	struct vd_seg s[64];

	rig_start(r, ALL, 256);
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned c = 0; c < 4; c++) {
			for (unsigned i = 0; i < 64; i++)
				s[i] = (struct vd_seg){ RIG_BUFFERS + c * 640 + i * 10, 10, true };
			rig_add(r, 0, s, 64);
		}
		assert_true(rig_far_send(r, 0, 1500, (uint8_t)round) > 0);
		rig_kick(r, 0);
		uint32_t len[3];

		for (unsigned c = 0; c < 3; c++)
			assert_true(rig_used(r, 0, &len[c]));
		assert_int_equal(len[0] + len[1] + len[2], 1512);
		rig_make(expected, 1500, (uint8_t)round);
		expected[10] = 3;
		assert_memory_equal(rig_at(r, RIG_BUFFERS), expected, 1512);
		/* the fourth is used up by a small frame, so that each round starts alike */
		assert_true(rig_far_send(r, 0, 60, 1) > 0);
		rig_kick(r, 0);
		assert_true(rig_used(r, 0, &len[0]));
		assert_int_equal(len[0], 72);
	}
	rig_free(r);
}

/* More ranges in one turn than the window has places: it moves to the front, with what is in it. */
static void test_window_moves(void **state)
{
	enum { CHAINS = 40, RANGES = 60, SIZE = 600 };
	struct rig *r = rig_new(RIG_LOOP, 1, 64);
	struct vd_seg s[RANGES];

	rig_start(r, ALL, 64);
	for (unsigned c = 0; c < CHAINS; c++) {
		for (unsigned i = 0; i < RANGES; i++)
			s[i] = (struct vd_seg)VD_IN(RIG_BUFFERS + c * SIZE + i * 10, 10);
		assert_true(vd_add(&r->q[0], s, RANGES, RANGES) >= 0);
	}
	/* two buffers a frame, so that some are in the window whenever it moves */
	for (unsigned f = 0; f < CHAINS / 2; f++)
		assert_true(rig_far_send(r, 0, 800, (uint8_t)f) > 0);
	rig_kick(r, 0);
	for (unsigned f = 0; f < CHAINS / 2; f++)
		assert_received(r, 0, RIG_BUFFERS + 2 * f * SIZE, SIZE, 800, (uint8_t)f);
	assert_false(NEEDS_RESET(r));
	rig_free(r);
}

/* Too few buffers for a frame: it waits, and the kick for more is really asked for. */
static void wait_for_buffers(uint64_t features)
{
	struct rig *r = rig_new(RIG_LOOP, 1, 64);

	rig_start(r, features, 64);
	for (unsigned i = 0; i < 3; i++)
		rig_add_rx(r, 0, RIG_BUFFERS + i * 1024, 1024);
	assert_true(rig_far_send(r, 0, 9000, 5) > 0);
	assert_true(rig_far_send(r, 0, 100, 6) > 0);
	rig_kick(r, 0);
	assert_false(rig_used(r, 0, NULL));
	assert_int_equal(r->v->queues[0].in_flight, 0);
	assert_int_equal(r->v->queues[0].regs.next_avail, 0);
	for (unsigned i = 3; i < 10; i++) {
		rig_add_rx(r, 0, RIG_BUFFERS + i * 1024, 1024);
		assert_true(vd_kick(r->v, &r->q[0]));
		rig_settle(r);
		/* the ninth completes the large one */
		assert_int_equal(vd_used_idx(&r->q[0]), i < 8 ? 0 : i + 1);
	}
	assert_received(r, 0, RIG_BUFFERS, 1024, 9000, 5);
	assert_received(r, 0, RIG_BUFFERS + 9 * 1024, 1024, 100, 6);
	assert_int_equal(rig_stat(r, "rx-dropped"), 0);
	rig_free(r);
}

static void test_wait_for_buffers(void **state)
{
	wait_for_buffers(ALL);
	wait_for_buffers(NO_EVENTS);
}

/* A frame that the whole ring cannot hold is dropped, or nothing would ever arrive again. */
static void test_never_fits(void **state)
{
	struct rig *r = rig_new(RIG_LOOP, 1, 2);

	rig_start(r, ALL, 2);
	rig_add_rx(r, 0, RIG_BUFFERS, 1024);
	rig_add_rx(r, 0, RIG_BUFFERS + 1024, 1024);
	assert_true(rig_far_send(r, 0, 9000, 5) > 0);
	assert_true(rig_far_send(r, 0, 1500, 6) > 0);
	rig_kick(r, 0);
	assert_received(r, 0, RIG_BUFFERS, 1024, 1500, 6);
	assert_int_equal(rig_stat(r, "rx-dropped"), 1);
	assert_false(NEEDS_RESET(r));
	rig_free(r);
}

static void test_not_mergeable(void **state)
{
	struct rig *r = rig_new(RIG_LOOP, 1, 16);

	rig_start(r, PLAIN, 16);
	rig_add_rx(r, 0, RIG_BUFFERS, 1000);
	rig_add_rx(r, 0, RIG_BUFFERS + 1000, 1000);
	assert_true(rig_far_send(r, 0, 1500, 1) > 0); /* too large for one: dropped */
	assert_true(rig_far_send(r, 0, 988, 2) > 0);  /* exactly */
	assert_true(rig_far_send(r, 0, 989, 3) > 0);
	assert_true(rig_far_send(r, 0, 60, 4) > 0);
	rig_kick(r, 0);
	assert_received(r, 0, RIG_BUFFERS, 1000, 988, 2);
	assert_received(r, 0, RIG_BUFFERS + 1000, 1000, 60, 4);
	assert_int_equal(rig_stat(r, "rx-dropped"), 2);
	assert_int_equal(rig_stat(r, "rx-frames"), 2);
	rig_free(r);
}

static void test_one_signal_a_batch(void **state)
{
	struct rig *r = rig_new(RIG_LOOP, 1, 256);

	rig_start(r, NO_EVENTS, 256);
	for (unsigned i = 0; i < 200; i++) {
		rig_add_rx(r, 0, RIG_BUFFERS + i * 256, 256);
		assert_true(rig_far_send(r, 0, 60, (uint8_t)i) > 0);
	}
	rig_kick(r, 0);
	for (unsigned i = 0; i < 200; i++)
		assert_received(r, 0, RIG_BUFFERS + i * 256, 256, 60, (uint8_t)i);
	/* 200 frames are four turns: 64, 64, 64, 8 */
	assert_int_equal(r->signals.queue[0], 4);
	for (unsigned i = 0; i < 100; i++)
		send_from_guest(r, 1, 60, 0);
	rig_kick(r, 1);
	assert_int_equal(r->signals.queue[1], 2);
	assert_int_equal(rig_stat(r, "tx-frames"), 100);
	assert_int_equal(rig_stat(r, "tx-bytes"), 6000);
	rig_free(r);
}

/* Firecracker CVE-2020-16843: the ring is full, the tap is flooded, the guest catches up. */
static void test_ring_full_flood_drain(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 1, 16);
	unsigned flooded = 0, received = 0;

	rig_start(r, ALL, 16);
	for (unsigned i = 0; i < 16; i++)
		rig_add_rx(r, 0, RIG_BUFFERS + i * 2048, 2048);
	rig_kick(r, 0);
	while (rig_far_send(r, 0, 500, (uint8_t)flooded) > 0)
		flooded++;
	rig_settle(r);
	while (rig_far_send(r, 0, 500, (uint8_t)flooded) > 0)
		flooded++;
	assert_true(flooded > 16);
	/* the ring is full and the tap ready, and yet the loop sleeps */
	assert_int_equal(rig_settle(r), 0);
	assert_int_equal(r->v->queues[0].in_flight, 0);
	while (received < flooded) {
		uint32_t at = RIG_BUFFERS + received % 16 * 2048;

		assert_received(r, 0, at, 2048, 500, (uint8_t)received);
		received++;
		rig_add_rx(r, 0, at, 2048);
		vd_kick(r->v, &r->q[0]);
		rig_settle(r);
	}
	/* and on: with buffers there, no kick is needed */
	assert_true(rig_far_send(r, 0, 70, 3) > 0);
	rig_settle(r);
	assert_received(r, 0, RIG_BUFFERS + received % 16 * 2048, 2048, 70, 3);
	assert_int_equal(rig_stat(r, "rx-dropped"), 0);
	rig_free(r);
}

/* A tap that takes no more is waited for, and nothing is lost or doubled. */
static void test_tx_waits(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 1, 256);
	unsigned sent = 0, seen = 0;

	rig_start(r, ALL, 256);
	while (!((struct net *)r->v)->pair[0].tx_blocked) {
		send_from_guest(r, 1, 900, (uint8_t)sent++);
		rig_kick(r, 1);
		assert_true(sent < 100000);
	}
	assert_int_equal(r->v->queues[1].in_flight, 0);
	assert_int_equal(rig_settle(r), 0); /* sleeps, and a kick does not wake it */
	rig_kick(r, 1);
	assert_int_equal(vd_used_idx(&r->q[1]), sent - 1);
	rig_make(expected, 900, 0);
	for (ssize_t n; seen < sent; seen++) {
		n = rig_far_receive(r, 0, got);
		if (n == -EAGAIN) {
			assert_true(loop_poll(r->loop, 10000) > 0);
			n = rig_far_receive(r, 0, got);
		}
		assert_int_equal(n, 912);
		rig_make(expected, 900, (uint8_t)seen);
		/* the waiting frame shares its buffer with the one before: same bytes by then */
		if (seen + 1 < sent)
			assert_memory_equal(got, expected, 912);
	}
	rig_settle(r);
	assert_int_equal(vd_used_idx(&r->q[1]), (uint16_t)sent);
	assert_int_equal(rig_stat(r, "tx-frames"), sent);
	assert_int_equal(rig_stat(r, "tx-dropped"), 0);
	rig_free(r);
}

/* ---- what a hostile driver does ---- */

static void test_tx_hostile(void **state)
{
	struct rig *r = rig_new(RIG_LOOP, 1, 64);
	struct vd_seg s[3];

	rig_start(r, ALL, 64);
	/* shorter than the header; nothing after it; too long; nothing to read at all */
	s[0] = (struct vd_seg){ RIG_BUFFERS, 11, false };
	rig_add(r, 1, s, 1);
	s[0].len = 12;
	rig_add(r, 1, s, 1);
	s[0].len = NET_FRAME_MAX + 1;
	rig_add(r, 1, s, 1);
	s[0].len = 2u << 20;
	rig_add(r, 1, s, 1);
	s[0] = (struct vd_seg){ RIG_BUFFERS, 100, true };
	rig_add(r, 1, s, 1);
	rig_kick(r, 1);
	for (unsigned i = 0; i < 5; i++) {
		uint32_t len;

		assert_true(rig_used(r, 1, &len));
		assert_int_equal(len, 0);
	}
	assert_int_equal(rig_stat(r, "tx-dropped"), 5);
	assert_int_equal(rig_far_receive(r, 0, got), -EAGAIN);
	assert_false(NEEDS_RESET(r));

	/* the largest that is allowed, and one in pieces that cut the header */
	s[0] = (struct vd_seg){ RIG_BUFFERS, NET_FRAME_MAX, false };
	rig_make(rig_at(r, RIG_BUFFERS), NET_FRAME_MAX - NET_VNET_HDR_LEN, 3);
	rig_add(r, 1, s, 1);
	s[0].len = 1;
	s[1] = (struct vd_seg){ RIG_BUFFERS + 1, 12, false };
	s[2] = (struct vd_seg){ RIG_BUFFERS + 13, 99, false };
	rig_add(r, 1, s, 3);
	rig_kick(r, 1);
	assert_sent(r, 0, NET_FRAME_MAX - NET_VNET_HDR_LEN, 3);
	assert_sent(r, 0, 100, 3);
	rig_free(r);
}

/* The device refuses these itself: this far end would take them. */
static void test_tx_lengths(void **state)
{
	static const uint32_t len[] = { 12, NET_FRAME_MAX + 1, 100000 };
	struct rig *r = rig_new(RIG_SOCKET, 1, 64);

	rig_start(r, ALL, 64);
	for (unsigned i = 0; i < 3; i++)
		rig_add(r, 1, &(struct vd_seg)VD_OUT(RIG_BUFFERS, len[i]), 1);
	rig_kick(r, 1);
	assert_int_equal(rig_far_receive(r, 0, got), -EAGAIN);
	assert_int_equal(rig_stat(r, "tx-dropped"), 3);
	rig_free(r);
}

/* The kernel refuses a frame (a bad gso_type): counted, and the next goes out. */
static void test_tx_refused(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 1, 64);

	rig_start(r, ALL, 64);
	r->tif[0]->fail_send = -EINVAL;
	send_from_guest(r, 1, 60, 1);
	rig_kick(r, 1);
	r->tif[0]->fail_send = 0;
	send_from_guest(r, 1, 60, 2);
	rig_kick(r, 1);
	assert_sent(r, 0, 60, 2);
	assert_int_equal(vd_used_idx(&r->q[1]), 2);
	assert_int_equal(rig_stat(r, "tx-dropped"), 1);
	rig_free(r);
}

static void assert_broken_then_heals(struct rig *r)
{
	assert_true(NEEDS_RESET(r));
	assert_int_equal(r->signals.config, 1);
	assert_int_equal(r->v->queues[0].in_flight, 0);
	assert_int_equal(r->v->queues[0].regs.next_avail, r->v->queues[0].regs.next_used);
	rig_settle(r);
	rig_reset(r);
	rig_start(r, ALL, 64);
	rig_add_rx(r, 0, RIG_BUFFERS, 2048);
	assert_true(rig_far_send(r, 0, 60, 1) > 0);
	rig_kick(r, 0);
	/* what came while it was broken is still delivered, in order */
	assert_true(rig_used(r, 0, NULL));
	rig_free(r);
}

static void test_rx_hostile(void **state)
{
	static const struct vd_seg bad[][2] = {
		{ { RIG_END, 2048, true } },       /* MMIO: QEMU CVE-2021-3748 */
		{ { RIG_END - 100, 2048, true } }, /* across RAM's end */
		{ { RIG_BUFFERS, 11, true } },     /* no room for the header */
		{ { RIG_BUFFERS, 2048, false } },  /* nothing to write to */
		{ { RIG_BUFFERS, 64, false }, { RIG_BUFFERS, 2048, true } },
		{ { RIG_BUFFERS, 0, true } },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct rig *r = rig_new(RIG_LOOP, 1, 64);

		rig_start(r, ALL, 64);
		/* a good one in front: what was delivered stays delivered */
		rig_add_rx(r, 0, RIG_BUFFERS + 8192, 100);
		rig_add(r, 0, bad[i], bad[i][1].len ? 2 : 1);
		assert_true(rig_far_send(r, 0, 1500, 1) > 0);
		rig_kick(r, 0);
		assert_broken_then_heals(r);
	}
}

/* Indices that jump, a head that is out of range or twice there. */
static void test_ring_hostile(void **state)
{
	for (unsigned how = 0; how < 3; how++) {
		struct rig *r = rig_new(RIG_LOOP, 1, 64);

		rig_start(r, ALL, 64);
		rig_add_rx(r, 0, RIG_BUFFERS, 100);
		vd_publish(&r->q[0]);
		if (how)
			vd_avail(&r->q[0], 1, how == 1 ? 64 : 0);
		vd_avail_idx(&r->q[0], how ? 2 : 65);
		assert_true(rig_far_send(r, 0, 1500, 1) > 0);
		virtio_notify(r->v, 0);
		rig_settle(r);
		assert_broken_then_heals(r);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_default_mac),
		cmocka_unit_test(test_config),
		cmocka_unit_test(test_bad_options),
		cmocka_unit_test(test_header_every_subset),
		cmocka_unit_test(test_mergeable_sizes),
		cmocka_unit_test(test_largest_frame),
		cmocka_unit_test(test_many_ranges),
		cmocka_unit_test(test_window_moves),
		cmocka_unit_test(test_wait_for_buffers),
		cmocka_unit_test(test_never_fits),
		cmocka_unit_test(test_not_mergeable),
		cmocka_unit_test(test_one_signal_a_batch),
		cmocka_unit_test(test_ring_full_flood_drain),
		cmocka_unit_test(test_tx_waits),
		cmocka_unit_test(test_tx_hostile),
		cmocka_unit_test(test_tx_lengths),
		cmocka_unit_test(test_tx_refused),
		cmocka_unit_test(test_rx_hostile),
		cmocka_unit_test(test_ring_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
