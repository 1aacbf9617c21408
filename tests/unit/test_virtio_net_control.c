/*
 * test_virtio_net_control.c - the network device: commands, queue pairs, reset, state, a lost link
 */
#include "net_rig.h"
#include "state_check.h"

#define CTRL_AT 0x300000u

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
		{ NET_F(GUEST_ANNOUNCE), "\3\0", 2 },
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

/* A driver on a thread of its own that resets in the middle of traffic. */
static void test_reset_in_traffic(void **state)
{
	struct rig *r = rig_new(RIG_SOCKET, 1, 64);
	struct err err = { 0 };

	/* written once: from here on the device may read it at any time */
	rig_make(rig_at(r, RIG_BUFFERS), 60, 1);
	assert_int_equal(loop_thread_start(r->loop, "net-test", &err), 0);
	for (unsigned round = 0; round < 50; round++) {
		struct timespec deadline;

		r->ram.next = VD_RAM_BASE;
		assert_true(vd_start(r->v, &r->ram, r->q, 3, 64, NET_F(MRG_RXBUF)));
		for (unsigned i = 0; i < 32; i++)
			rig_add_rx(r, 0, RIG_BUFFERS + 4096 + i * 256, 256);
		vd_kick(r->v, &r->q[0]);
		for (unsigned i = 0; i < 20; i++) {
			rig_add(r, 1, &(struct vd_seg)VD_OUT(RIG_BUFFERS, 72), 1);
			vd_kick(r->v, &r->q[1]);
			rig_far_send(r, 0, 700, (uint8_t)i);
			while (rig_far_receive(r, 0, got) >= 0)
				;
		}
		clock_gettime(CLOCK_REALTIME, &deadline);
		deadline.tv_sec += 10;
		while (!rig_used(r, 0, NULL))
			assert_int_equal(sem_timedwait(&r->signals.signalled, &deadline), 0);
	}
	vd_set_status(r->v, 0);
	loop_thread_stop(r->loop);
	rig_free(r);
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
	assert_int_equal(r->signals.config, 1);
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

/* ---- announcements ---- */

/* The guest is asked if it can be; a frame goes out anyway, again and again, a few times. */
static void announce(uint64_t features, bool asked)
{
	struct rig *r = rig_new(RIG_LOOP, 1, 64);
	uint8_t got[NET_FRAME_MAX], config[8];
	unsigned frames = 0;

	rig_start(r, features, 64);
	virtio_net_announce(&r->v->dev);
	virtio_read_config(r->v, 0, config, sizeof(config));
	assert_int_equal(config[6], asked ? 3 : 1);
	assert_int_equal(r->signals.config, asked ? 1 : 0);
	while (frames < 5) {
		ssize_t n = rig_far_receive(r, 0, got);

		if (n < 0) {
			loop_poll(r->loop, 10000);
			continue;
		}
		frames++;
		assert_int_equal(n, NET_VNET_HDR_LEN + 60);
		assert_memory_equal(got + NET_VNET_HDR_LEN, "\xff\xff\xff\xff\xff\xff", 6);
		assert_memory_equal(got + NET_VNET_HDR_LEN + 6, rig_mac, 6);
		assert_memory_equal(got + NET_VNET_HDR_LEN + 12, "\x80\x35", 2);
	}
	if (asked)
		assert_int_equal(CMD(r, 2, "\3\0"), VIRTIO_NET_OK);
	virtio_read_config(r->v, 0, config, sizeof(config));
	assert_int_equal(config[6], 1);
	rig_free(r);
}

static void test_announce(void **state)
{
	announce(ALL, true);
	announce(~NET_F(GUEST_ANNOUNCE), false);
}

/* Freed in the middle of it, and reset: the request to the guest is gone with its driver. */
static void test_announce_ends(void **state)
{
	struct rig *r = rig_new(RIG_LOOP, 1, 64);
	uint8_t config[8];

	rig_start(r, ALL, 64);
	virtio_net_announce(&r->v->dev);
	rig_reset(r);
	virtio_read_config(r->v, 0, config, sizeof(config));
	assert_int_equal(config[6], 1);
	rig_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_control_good),
		cmocka_unit_test(test_control_bad),
		cmocka_unit_test(test_broken_is_silent),
		cmocka_unit_test(test_control_features),
		cmocka_unit_test(test_announce),
		cmocka_unit_test(test_announce_ends),
		cmocka_unit_test(test_offloads),
		cmocka_unit_test(test_multiqueue),
		cmocka_unit_test(test_reset),
		cmocka_unit_test(test_quiesce),
		cmocka_unit_test(test_state_complete),
		cmocka_unit_test(test_state_hostile),
		cmocka_unit_test(test_state_moves),
		cmocka_unit_test(test_dirty_pages),
		cmocka_unit_test(test_reset_in_traffic),
		cmocka_unit_test(test_link_lost),
		cmocka_unit_test(test_receive_keeps_failing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
