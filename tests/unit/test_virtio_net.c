/*
 * test_virtio_net.c - the network device against a driver and a far end of the test's own
 */
#include "net_rig.h"
#include "state_check.h"

#define ALL       (~0ull)
#define PLAIN     (~(NET_F(MRG_RXBUF) | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC))
#define NO_EVENTS (~VIRTIO_F_EVENT_IDX)
#define CTRL_AT   0x300000u

#define NEEDS_RESET(r) (virtio_get_status((r)->v) & VIRTIO_STATUS_NEEDS_RESET)

static uint8_t expected[NET_FRAME_MAX], got[NET_FRAME_MAX];

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

static void send_from_guest(struct rig *r, unsigned q, size_t len, uint8_t tag)
{
	struct vd_seg s[2] = { { RIG_BUFFERS, NET_VNET_HDR_LEN, false },
			       { RIG_BUFFERS + NET_VNET_HDR_LEN, (uint32_t)len, false } };

	rig_make(rig_at(r, RIG_BUFFERS), len, tag);
	rig_add(r, q, s, 2);
}

static void assert_sent(struct rig *r, unsigned pair, size_t len, uint8_t tag)
{
	rig_make(expected, len, tag);
	assert_int_equal(rig_far_receive(r, pair, got), NET_VNET_HDR_LEN + len);
	assert_memory_equal(got + NET_VNET_HDR_LEN, expected + NET_VNET_HDR_LEN, len);
}

/*
 * The frame that used entries from here on make up is (@len, @tag), in buffers of @size laid out
 * from @at in the order they were added. Returns how many buffers it took.
 */
static unsigned assert_received(struct rig *r, unsigned q, uint32_t at, uint32_t size, size_t len,
				uint8_t tag)
{
	size_t total = NET_VNET_HDR_LEN + len, have = 0;
	unsigned want = (unsigned)((total + size - 1) / size);

	for (unsigned i = 0; i < want; i++) {
		uint32_t part = total - have < size ? (uint32_t)(total - have) : size, written;

		assert_true(rig_used(r, q, &written));
		assert_int_equal(written, part);
		memcpy(got + have, rig_at(r, at + size * i), part);
		have += part;
	}
	rig_make(expected, len, tag);
	expected[10] = (uint8_t)want;
	expected[11] = (uint8_t)(want >> 8);
	assert_memory_equal(got, expected, total);
	return want;
}

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
	assert_int_equal(r->signals[0], 4);
	for (unsigned i = 0; i < 100; i++)
		send_from_guest(r, 1, 60, 0);
	rig_kick(r, 1);
	assert_int_equal(r->signals[1], 2);
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
	assert_int_equal(r->config_signals, 1);
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

/* ---- control queue ---- */

/*
 * Run a command; @answer_len bytes of room for the answer. VIRTIO_NET_OK or ERR, or -1 if unused.
 */
static int command(struct rig *r, unsigned q, const void *cmd, uint32_t len, uint32_t answer_len)
{
	struct vd_seg s[3] = { { CTRL_AT, len < 2 ? len : 2, false },
			       { CTRL_AT + 2, len < 2 ? 0 : len - 2, false },
			       { CTRL_AT + 0x1000, answer_len, true } };
	uint32_t written;

	memcpy(rig_at(r, CTRL_AT), cmd, len);
	*rig_at(r, CTRL_AT + 0x1000) = 0x55;
	if (len <= 2)
		s[1] = s[2];
	rig_add(r, q, s, (len > 2 ? 2u : 1u) + (answer_len ? 1 : 0));
	rig_kick(r, q);
	if (!rig_used(r, q, &written))
		return -1;
	assert_int_equal(written, 1);
	return *rig_at(r, CTRL_AT + 0x1000);
}
#define CMD(r, q, bytes) command(r, q, bytes, sizeof(bytes) - 1, 1)

static void test_control_good(void **state)
{
	struct rig *r = rig_new(RIG_LOOP, 1, 64);
	const struct virtio_net_regs *regs = &((struct net *)r->v)->regs;
	uint8_t c[6];

	rig_start(r, ALL, 64);
	assert_int_equal(CMD(r, 2, "\0\0\1"), VIRTIO_NET_OK);
	assert_int_equal(regs->promisc, 1);
	assert_int_equal(CMD(r, 2, "\0\0\0"), VIRTIO_NET_OK);
	assert_int_equal(regs->promisc, 0);
	assert_int_equal(CMD(r, 2, "\0\1\1"), VIRTIO_NET_OK);
	assert_int_equal(CMD(r, 2, "\0\5\1"), VIRTIO_NET_OK);
	assert_int_equal(regs->allmulti, 1);
	assert_int_equal(regs->nobcast, 1);

	assert_int_equal(CMD(r, 2, "\1\1\x02\1\2\3\4\5"), VIRTIO_NET_OK);
	virtio_read_config(r->v, 0, c, 6);
	assert_memory_equal(c, "\x02\1\2\3\4\5", 6);

	/* tables: none; one and two addresses */
	assert_int_equal(CMD(r, 2, "\1\0\0\0\0\0\0\0\0\0"), VIRTIO_NET_OK);
	assert_int_equal(CMD(r, 2, "\1\0\1\0\0\0abcdef\2\0\0\0abcdefabcdef"), VIRTIO_NET_OK);
	/* an answer with more room than it needs */
	assert_int_equal(command(r, 2, "\0\0\1", 3, 100), VIRTIO_NET_OK);
	rig_free(r);
}

static void test_control_bad(void **state)
{
	static const struct {
		const char *bytes;
		uint32_t len;
	} bad[] = {
#define B(s) { s, sizeof(s) - 1 }
		B("\0"),       /* half a header */
		B("\0\0"),     /* no value */
		B("\0\0\1\0"), /* too much */
		B("\0\0\2"),   /* neither on nor off */
		B("\0\6\1"),   /* no such command */
		B("\0\xff\1"),
		B("\x7f\0\1"),       /* no such class */
		B("\1\1\2\1\2\3\4"), /* an address too short */
		B("\1\1\2\1\2\3\4\5\6"),
		B("\1\1\3\1\2\3\4\5"), /* a group's address */
		B("\1\1\0\0\0\0\0\0"),
		B("\1\2\2\1\2\3\4\5"),
		B("\1\0"),
		B("\1\0\0\0\0\0"), /* one table */
		B("\1\0\0\0\0\0\0\0\0"),
		B("\1\0\0\0\0\0\0\0\0\0\0"),
		B("\1\0\1\0\0\0abcde\0\0\0\0"),
		B("\1\0\xff\xff\xff\xff"
		  "abcdef\0\0\0\0"),               /* counts that overflow */
		B("\1\0\xab\xaa\xaa\x2a\0\0\0\0"), /* * 6 is 2 modulo 2^32 */
		B("\4\0\0\0"),                     /* no pair */
		B("\4\0\3\0"),                     /* more than there are */
		B("\4\0\xff\xff"),
		B("\4\0\1"),
		B("\4\1\1\0"),               /* RSS */
		B("\5\0\1\0\0\0\0\0\0"),     /* short */
		B("\5\0\1\0\0\0\0\0\0\x80"), /* a bit that is no offload */
		B("\5\0\x21\0\0\0\0\0\0\0"), /* MAC is not one */
		B("\5\1\2\0\0\0\0\0\0\0"),
#undef B
	};
	struct rig *r = rig_new(RIG_LOOP, 2, 64);
	struct virtio_net_regs before;
	uint8_t mac[6];

	rig_start(r, ALL, 64);
	before = ((struct net *)r->v)->regs;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (command(r, 4, bad[i].bytes, bad[i].len, 1) != VIRTIO_NET_ERR)
			fail_msg("bad command %zu was not refused", i);
	assert_memory_equal(&before, &((struct net *)r->v)->regs, sizeof(before));
	virtio_read_config(r->v, 0, mac, 6);
	assert_memory_equal(mac, rig_mac, 6);
	assert_false(NEEDS_RESET(r));
	/* nowhere to answer */
	assert_int_equal(command(r, 4, "\0\0\1", 3, 0), -1);
	assert_true(NEEDS_RESET(r));
	assert_int_equal(r->v->queues[4].in_flight, 0);
	rig_free(r);
}

/* A device that wants a reset touches the guest's memory no more, whichever queue was at fault. */
static void test_broken_is_silent(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 1, 64);

	rig_start(r, ALL, 64);
	rig_add_rx(r, 0, RIG_BUFFERS, 2048);
	rig_kick(r, 0);
	assert_int_equal(command(r, 2, "\0\0\1", 3, 0), -1);
	assert_true(NEEDS_RESET(r));
	assert_true(rig_far_send(r, 0, 60, 1) > 0);
	rig_settle(r);
	assert_false(rig_used(r, 0, NULL));
	assert_int_equal(((struct net *)r->v)->pair[0].watch.fd, -1);
	rig_free(r);
}

/* Without its feature a command is refused. */
static void test_control_features(void **state)
{
	static const struct {
		uint64_t feature;
		const char *bytes;
		uint32_t len;
	} c[] = {
		{ NET_F(CTRL_RX), "\0\0\1", 3 },
		{ NET_F(CTRL_RX), "\1\0\0\0\0\0\0\0\0\0", 10 },
		{ NET_F(CTRL_RX_EXTRA), "\0\2\1", 3 },
		{ NET_F(CTRL_MAC_ADDR), "\1\1\2\1\2\3\4\5", 8 },
		{ NET_F(CTRL_GUEST_OFFLOADS), "\5\0\0\0\0\0\0\0\0\0", 10 },
	};
	struct rig *r = rig_new(RIG_LOOP, 1, 64);

	for (size_t i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
		rig_reset(r);
		rig_start(r, ALL, 64);
		assert_int_equal(command(r, 2, c[i].bytes, c[i].len, 1), VIRTIO_NET_OK);
		rig_reset(r);
		rig_start(r, ~c[i].feature, 64);
		assert_int_equal(command(r, 2, c[i].bytes, c[i].len, 1), VIRTIO_NET_ERR);
	}
	rig_reset(r);
	rig_start(r, ~NET_F(CTRL_VQ), 64);
	assert_int_equal(command(r, 2, "\0\0\1", 3, 1), -1);
	rig_free(r);
}

static void test_offloads(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 1, 64);
	struct test_if *t = r->tif[0];
	uint8_t cmd[10] = { 5, 0 };
	uint64_t bits;

	rig_start(r,
		  NET_F(GUEST_CSUM) | NET_F(GUEST_TSO4) | NET_F(CTRL_VQ) |
			  NET_F(CTRL_GUEST_OFFLOADS),
		  64);
	assert_int_equal(t->offloads, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4);
	bits = NET_F(GUEST_CSUM);
	memcpy(cmd + 2, &bits, 8);
	assert_int_equal(command(r, 2, cmd, 10, 1), VIRTIO_NET_OK);
	assert_int_equal(t->offloads, NET_OFFLOAD_CSUM);
	bits = NET_F(GUEST_CSUM) | NET_F(GUEST_TSO6); /* not negotiated */
	memcpy(cmd + 2, &bits, 8);
	assert_int_equal(command(r, 2, cmd, 10, 1), VIRTIO_NET_ERR);
	bits = NET_F(GUEST_CSUM) | NET_F(GUEST_TSO4);
	memcpy(cmd + 2, &bits, 8);
	assert_int_equal(command(r, 2, cmd, 10, 1), VIRTIO_NET_OK);
	assert_int_equal(t->offloads, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4);
	rig_reset(r);
	assert_int_equal(t->offloads, 0);
	/* half of USO is none: the kernel knows them only together */
	rig_start(r, NET_F(GUEST_CSUM) | 1ull << 54, 64);
	assert_int_equal(t->offloads, NET_OFFLOAD_CSUM);
	rig_reset(r);
	rig_start(r, ALL, 64);
	assert_int_equal(t->offloads, 63);
	rig_free(r);
}

/* ---- multiqueue ---- */

static void test_multiqueue(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 2, 64);

	assert_int_equal(r->tif[1]->enabled, 0); /* nothing is to go there yet */
	rig_start(r, ALL, 64);
	rig_add_rx(r, 2, RIG_BUFFERS, 2048);
	assert_true(rig_far_send(r, 1, 60, 1) > 0);
	send_from_guest(r, 3, 60, 2);
	rig_kick(r, 2);
	rig_kick(r, 3);
	assert_false(rig_used(r, 2, NULL));
	assert_int_equal(rig_far_receive(r, 1, got), -EAGAIN);

	/* buffers and frames that were there before are taken at once */
	assert_int_equal(CMD(r, 4, "\4\0\2\0"), VIRTIO_NET_OK);
	assert_int_equal(r->tif[1]->enabled, 1);
	assert_received(r, 2, RIG_BUFFERS, 2048, 60, 1);
	assert_int_equal(rig_far_receive(r, 1, got), 72);

	assert_int_equal(CMD(r, 4, "\4\0\1\0"), VIRTIO_NET_OK);
	assert_int_equal(r->tif[1]->enabled, 0);
	assert_int_equal(((struct net *)r->v)->pair[1].watch.fd, -1);
	assert_int_equal(CMD(r, 4, "\4\0\2\0"), VIRTIO_NET_OK);

	/* a reset leaves one, without MQ the control queue is another */
	rig_reset(r);
	rig_start(r, ~NET_F(MQ), 64);
	assert_int_equal(r->tif[1]->enabled, 0);
	assert_int_equal(CMD(r, 2, "\0\0\1"), VIRTIO_NET_OK);
	assert_int_equal(CMD(r, 2, "\4\0\1\0"), VIRTIO_NET_ERR);
	assert_int_equal(CMD(r, 4, "\0\0\1"), -1);
	rig_free(r);
}

/* ---- reset, quiesce, state ---- */

static void test_reset(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 1, 64);
	uint8_t mac[6];

	rig_start(r, ALL, 64);
	assert_int_equal(CMD(r, 2, "\1\1\x02\1\2\3\4\5"), VIRTIO_NET_OK);
	assert_int_equal(CMD(r, 2, "\0\0\1"), VIRTIO_NET_OK);
	rig_add_rx(r, 0, RIG_BUFFERS, 100);
	rig_kick(r, 0);
	/* a frame waits for buffers, the tap is ready: nothing may be written after the reset */
	assert_true(rig_far_send(r, 0, 1500, 1) > 0);
	rig_settle(r);
	assert_true(rig_far_send(r, 0, 60, 2) > 0);
	rig_reset(r);
	memset(rig_at(r, RIG_BUFFERS), 0xee, 4096);
	rig_settle(r);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(*rig_at(r, RIG_BUFFERS + i), 0xee);
	virtio_read_config(r->v, 0, mac, 6);
	assert_memory_equal(mac, rig_mac, 6);
	assert_int_equal(((struct net *)r->v)->regs.promisc, 0);

	/* frames made for the last driver's offloads do not reach the next one */
	rig_start(r, PLAIN & ~NET_F(GUEST_CSUM), 64);
	rig_add_rx(r, 0, RIG_BUFFERS, 2048);
	rig_kick(r, 0);
	assert_false(rig_used(r, 0, NULL));
	assert_true(rig_far_send(r, 0, 60, 3) > 0);
	rig_settle(r);
	assert_received(r, 0, RIG_BUFFERS, 2048, 60, 3);
	assert_int_equal(rig_stat(r, "rx-dropped"), 2);
	rig_free(r);
}

static void test_quiesce(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 1, 64);
	struct device *d = &r->v->dev;

	rig_start(r, ALL, 64);
	rig_add_rx(r, 0, RIG_BUFFERS + 2048, 2048);
	rig_add_rx(r, 0, RIG_BUFFERS + 4096, 2048);
	rig_kick(r, 0);
	d->ops->quiesce(d);
	assert_true(rig_far_send(r, 0, 60, 1) > 0);
	send_from_guest(r, 1, 60, 2);
	vd_publish(&r->q[1]);
	virtio_notify(r->v, 1);
	rig_settle(r);
	assert_false(rig_used(r, 0, NULL));
	assert_int_equal(rig_far_receive(r, 0, got), -EAGAIN);
	for (unsigned q = 0; q < r->v->nqueues; q++)
		assert_int_equal(r->v->queues[q].regs.next_avail, r->v->queues[q].regs.next_used);
	d->ops->resume(d);
	rig_settle(r);
	assert_received(r, 0, RIG_BUFFERS + 2048, 2048, 60, 1);
	assert_sent(r, 0, 60, 2);
	rig_free(r);
}

static void test_state_complete(void **state)
{
	state_check_complete(&virtio_net_state, sizeof(struct virtio_net_regs));
}

static void test_state_hostile(void **state)
{
	struct rig *r = rig_new(RIG_LOOP, 2, 64);
	struct net *net = (struct net *)r->v;
	const struct virtio_net_regs good = { .pairs = 2,
					      .promisc = 1,
					      .offloads_off = NET_F(GUEST_TSO4) };
	struct err err = { 0 };

	assert_int_equal(virtio_net_state.validate(&good, net, &err), 0);
	for (unsigned i = 0; i < 9; i++) {
		struct virtio_net_regs bad = good;
		uint8_t *const mode[] = { &bad.promisc, &bad.allmulti, &bad.alluni,
					  &bad.nomulti, &bad.nouni,    &bad.nobcast };

		if (i < 6)
			*mode[i] = 2;
		else if (i < 8)
			bad.pairs = i == 6 ? 0 : 3;
		else
			bad.offloads_off = 1ull << 63;
		assert_int_equal(virtio_net_state.validate(&bad, net, &err), -EINVAL);
		assert_non_null(strstr(err.msg, "virtio-net"));
	}
	rig_free(r);
}

/* The whole device goes to another one, as a snapshot does it, with buffers in the ring. */
static void test_state_moves(void **state)
{
	struct rig *a = rig_new(RIG_SOCKET, 2, 64), *b = rig_new(RIG_SOCKET, 2, 64);
	struct err err = { 0 };
	uint8_t mac[6];

	rig_start(a, ALL, 64);
	assert_int_equal(CMD(a, 4, "\4\0\2\0"), VIRTIO_NET_OK);
	assert_int_equal(CMD(a, 4, "\1\1\x02\1\2\3\4\5"), VIRTIO_NET_OK);
	assert_int_equal(CMD(a, 4, "\5\0\x02\0\0\0\0\0\0\0"), VIRTIO_NET_OK);
	for (unsigned i = 0; i < 4; i++)
		rig_add_rx(a, 2, RIG_BUFFERS + i * 512, 512);
	assert_true(rig_far_send(a, 1, 60, 1) > 0);
	rig_kick(a, 2);
	a->v->dev.ops->quiesce(&a->v->dev);
	b->v->dev.ops->quiesce(&b->v->dev);
	memcpy(b->ram.host, a->ram.host, RIG_RAM);
	memcpy(b->q, a->q, sizeof(b->q));
	for (unsigned q = 0; q < RIG_QUEUES; q++)
		b->q[q].ram = &b->ram;
	for (unsigned i = 0; i < a->v->dev.nparts; i++) {
		const struct state_part *from = &a->v->dev.parts[i], *to = &b->v->dev.parts[i];
		struct state_buf buf = { 0 };

		assert_int_equal(state_save(from->desc, from->regs, &buf), 0);
		if (state_load(to->desc, to->regs, to->device, buf.data, buf.len, &err))
			fail_msg("%s", err.msg);
		state_buf_fini(&buf);
	}
	b->v->dev.ops->resume(&b->v->dev);
	rig_settle(b);
	assert_int_equal(b->tif[0]->offloads, NET_OFFLOAD_CSUM);
	assert_int_equal(b->tif[1]->enabled, 1);
	virtio_read_config(b->v, 0, mac, 6);
	assert_memory_equal(mac, "\x02\1\2\3\4\5", 6);
	/* the used entry from before, then frames that only the new one has seen */
	assert_received(b, 2, RIG_BUFFERS, 512, 60, 1);
	assert_true(rig_far_send(b, 1, 1400, 2) > 0);
	rig_settle(b);
	assert_received(b, 2, RIG_BUFFERS + 512, 512, 1400, 2);
	rig_free(a);
	rig_free(b);
}

/* A page we stored to and did not report would arrive stale after a migration. */
static void check_dirty(struct rig *r, size_t frame, bool delivered)
{
	static uint8_t before[RIG_RAM];
	uint64_t bits[RIG_RAM / 4096 / 64];
	const struct vd_seg cmd[2] = { VD_OUT(CTRL_AT, 3), VD_IN(CTRL_AT + 0x1000, 1) };
	unsigned changed = 0;

	/* the driver's own stores are KVM's to log, so they come first */
	memset(rig_at(r, RIG_BUFFERS), 0xee, 0x40000);
	*rig_at(r, CTRL_AT + 0x1000) = 0xee;
	for (unsigned i = 0; i < 8; i++)
		rig_add_rx(r, 0, RIG_BUFFERS + i * 8192, i & 1 ? 5000 : 3000);
	vd_publish(&r->q[0]);
	memcpy(rig_at(r, CTRL_AT), "\0\0\1", 3);
	rig_add(r, 2, cmd, 2);
	vd_publish(&r->q[2]);
	assert_int_equal(gmem_dirty_fetch(r->ram.mem, 0, bits, sizeof(bits) / 8), 0);
	memcpy(before, r->ram.host, RIG_RAM);

	rig_far_send(r, 0, frame, 7);
	rig_kick(r, 0);
	rig_kick(r, 2);
	assert_int_equal(gmem_dirty_fetch(r->ram.mem, 0, bits, sizeof(bits) / 8), 0);
	for (unsigned p = 0; p < RIG_RAM / 4096; p++) {
		if (!memcmp(before + p * 4096, r->ram.host + p * 4096, 4096))
			continue;
		changed++;
		if (!(bits[p / 64] >> p % 64 & 1))
			fail_msg("page %u was written and not marked", p);
	}
	assert_true(changed > 2); /* ring, answer, frame */
	assert_int_equal(rig_used(r, 0, NULL), delivered);
	assert_int_equal(*rig_at(r, CTRL_AT + 0x1000), VIRTIO_NET_OK);
}

static void test_dirty_pages(void **state)
{
	static const struct {
		uint64_t features;
		size_t frame;
		bool delivered;
	} c[] = {
		{ ALL, 60, true },     { ALL, 25000, true },   { ALL, 65000, false }, /* waits */
		{ PLAIN, 2900, true }, { PLAIN, 9000, false },                        /* dropped */
	};
	struct err err = { 0 };

	for (size_t i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
		struct rig *r = rig_new(RIG_LOOP, 1, 64);

		rig_start(r, c[i].features, 64);
		assert_int_equal(gmem_dirty_start(r->ram.mem, &err), 0);
		check_dirty(r, c[i].frame, c[i].delivered);
		rig_free(r);
	}
}

/* ---- the host's interface goes away ---- */

static void test_link_lost(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 1, 64);
	uint8_t status[2];

	rig_start(r, ALL, 64);
	rig_add_rx(r, 0, RIG_BUFFERS, 2048);
	rig_kick(r, 0);
	assert_true(rig_far_send(r, 0, 60, 1) > 0);
	r->tif[0]->fail_receive = -EBADFD;
	rig_settle(r);
	virtio_read_config(r->v, 6, status, 2);
	assert_memory_equal(status, "\0\0", 2);
	assert_int_equal(r->config_signals, 1);
	assert_int_equal(((struct net *)r->v)->pair[0].watch.fd, -1);
	assert_false(NEEDS_RESET(r));
	/* sending goes nowhere and hangs nothing */
	send_from_guest(r, 1, 60, 1);
	rig_kick(r, 1);
	assert_true(rig_used(r, 1, NULL));
	assert_int_equal(rig_stat(r, "tx-dropped"), 1);
	rig_reset(r);
	rig_start(r, ALL, 64);
	virtio_read_config(r->v, 6, status, 2);
	assert_memory_equal(status, "\0\0", 2);
	rig_free(r);
}

/* An error that does not go away must not keep the loop busy for ever. */
static void test_receive_keeps_failing(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 1, 64);

	rig_start(r, ALL, 64);
	rig_add_rx(r, 0, RIG_BUFFERS, 2048);
	rig_kick(r, 0);
	assert_true(rig_far_send(r, 0, 60, 1) > 0);
	r->tif[0]->fail_receive = -EFAULT;
	rig_settle(r);
	assert_int_equal(((struct net *)r->v)->pair[0].watch.fd, -1);
	assert_int_equal(r->v->queues[0].in_flight, 0);
	rig_free(r);
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
		cmocka_unit_test(test_control_good),
		cmocka_unit_test(test_control_bad),
		cmocka_unit_test(test_broken_is_silent),
		cmocka_unit_test(test_control_features),
		cmocka_unit_test(test_offloads),
		cmocka_unit_test(test_multiqueue),
		cmocka_unit_test(test_reset),
		cmocka_unit_test(test_quiesce),
		cmocka_unit_test(test_state_complete),
		cmocka_unit_test(test_state_hostile),
		cmocka_unit_test(test_state_moves),
		cmocka_unit_test(test_dirty_pages),
		cmocka_unit_test(test_link_lost),
		cmocka_unit_test(test_receive_keeps_failing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
