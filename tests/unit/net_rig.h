/*
 * net_rig.h - a virtio-net device, a driver for it and a far end, without KVM
 *
 * The driver is virtio_driver.h's; here are the far end, the transport that counts, and frames.
 */
#ifndef TESTS_UNIT_NET_RIG_H
#define TESTS_UNIT_NET_RIG_H

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fd.h"
#include "tests/unit/counting_transport.h"
#include "tests/unit/virtio_driver.h"
#include "virtio/net_priv.h"

#define RIG_RAM     (8u << 20)
#define RIG_END     (VD_RAM_BASE + RIG_RAM)
#define RIG_BUFFERS 0x400000u /* where tests put their buffers; rings lie below */
#define RIG_QUEUES  5

/* features */
#define ALL       (~0ull)
#define PLAIN     (~(NET_F(MRG_RXBUF) | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC))
#define NO_EVENTS (~VIRTIO_F_EVENT_IDX)

#define NEEDS_RESET(r) (virtio_get_status((r)->v) & VIRTIO_STATUS_NEEDS_RESET)

static uint8_t expected[NET_FRAME_MAX], got[NET_FRAME_MAX];

/* A network interface of the test's: a socket pair, so that waiting can be tested. */
struct test_if {
	struct netif n;
	int peer;
	unsigned offloads;
	int enabled;                 /* -1: never told */
	int fail_send, fail_receive; /* -errno */
};

struct rig {
	struct vd_ram ram;
	struct loop *loop;
	struct virtio *v;
	struct netif *far[2]; /* loop's other ends */
	struct test_if *tif[2];
	struct vd_queue q[RIG_QUEUES];
	struct counting signals;
};

static inline uint8_t *rig_at(struct rig *r, gpa_t at)
{
	return vd_host(&r->ram, at);
}

/* ---- interface ---- */

static inline ssize_t test_if_send(struct netif *n, const struct iovec *iov, unsigned niov)
{
	struct test_if *t = (struct test_if *)n;
	ssize_t rc = t->fail_send ? -1 : writev(n->fd, iov, (int)niov);

	return rc >= 0 ? rc : t->fail_send ? t->fail_send : -errno;
}

static inline ssize_t test_if_receive(struct netif *n, const struct iovec *iov, unsigned niov)
{
	struct test_if *t = (struct test_if *)n;
	ssize_t rc = t->fail_receive ? -1 : readv(n->fd, iov, (int)niov);

	return rc >= 0 ? rc : t->fail_receive ? t->fail_receive : -errno;
}

static inline int test_if_set_offload(struct netif *n, unsigned offloads)
{
	((struct test_if *)n)->offloads = offloads;
	return 0;
}

static inline int test_if_enable(struct netif *n, bool on)
{
	((struct test_if *)n)->enabled = on;
	return 0;
}

static inline void test_if_free(struct netif *n)
{
	struct test_if *t = (struct test_if *)n;

	fd_close(&n->fd);
	fd_close(&t->peer);
	free(t);
}

static const struct netif_ops test_if_ops = {
	.name = "test",
	.send = test_if_send,
	.receive = test_if_receive,
	.set_offload = test_if_set_offload,
	.enable = test_if_enable,
	.free = test_if_free,
};

static inline struct test_if *test_if_new(void)
{
	struct test_if *t = calloc(1, sizeof(*t));
	int fd[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd),
			 0);
	t->n = (struct netif){
		.ops = &test_if_ops, .fd = fd[0], .name = (char *)"test0", .offloads = 63
	};
	t->peer = fd[1];
	t->enabled = -1;
	return t;
}

/* ---- life ---- */

enum rig_far { RIG_LOOP, RIG_SOCKET };

static const uint8_t rig_mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };

/* @vhost: one a pair, or NULL. */
static inline struct rig *rig_new_vhost(enum rig_far far, unsigned pairs, uint16_t queue_size,
					struct vhost **vhost)
{
	struct virtio_net_options o = { .name = "net.t",
					.mtu = 1500,
					.pairs = pairs,
					.queue_size = queue_size,
					.vhost = vhost };
	struct rig *r = calloc(1, sizeof(*r));
	struct netif *ifs[2];
	struct err err = { 0 };

	assert_non_null(r);
	vd_ram_init(&r->ram, RIG_RAM);
	r->loop = loop_new(&err);
	memcpy(o.mac, rig_mac, 6);
	for (unsigned i = 0; i < pairs; i++) {
		struct netif *end[2];

		if (far == RIG_SOCKET) {
			r->tif[i] = test_if_new();
			ifs[i] = &r->tif[i]->n;
			continue;
		}
		assert_int_equal(net_loop_new(1024, end, &err), 0);
		ifs[i] = end[0];
		r->far[i] = end[1];
	}
	r->v = virtio_net_new(&o, ifs, r->ram.mem, r->loop, &err);
	if (!r->v)
		fail_msg("%s", err.msg);
	counting_attach(&r->signals, r->v);
	return r;
}

static inline struct rig *rig_new(enum rig_far far, unsigned pairs, uint16_t queue_size)
{
	return rig_new_vhost(far, pairs, queue_size, NULL);
}

static inline void rig_free(struct rig *r)
{
	r->v->dev.ops->free(&r->v->dev);
	for (int i = 0; i < 2; i++)
		if (r->far[i])
			r->far[i]->ops->free(r->far[i]);
	loop_free(r->loop);
	vd_ram_fini(&r->ram);
	sem_destroy(&r->signals.signalled);
	free(r);
}

static inline void rig_reset(struct rig *r)
{
	vd_set_status(r->v, 0);
	r->ram.next = VD_RAM_BASE;
}

/* Up to DRIVER_OK with @features of what is offered and all queues of @size. */
static inline void rig_start(struct rig *r, uint64_t features, uint16_t size)
{
	assert_true(vd_start(r->v, &r->ram, r->q, r->v->nqueues, size, features & r->v->features));
	assert_true(r->ram.next <= RIG_BUFFERS);
	while (loop_poll(r->loop, 0) > 0)
		;
	counting_clear(&r->signals);
}

/* ---- driver ---- */

/* Until nothing more happens. Number of callbacks. */
static inline unsigned rig_settle(struct rig *r)
{
	unsigned n = 0;
	int rc;

	while ((rc = loop_poll(r->loop, 0)) > 0) {
		n += (unsigned)rc;
		assert_true(n < 10000); /* spinning */
	}
	return n;
}

/* Make what was added available and tell the device, wanted or not. */
static inline void rig_kick(struct rig *r, unsigned q)
{
	vd_publish(&r->q[q]);
	virtio_notify(r->v, q);
	rig_settle(r);
}

static inline void rig_add(struct rig *r, unsigned q, const struct vd_seg *s, unsigned n)
{
	assert_true(vd_add(&r->q[q], s, n, 0) >= 0);
}

static inline void rig_add_rx(struct rig *r, unsigned q, gpa_t addr, uint32_t len)
{
	rig_add(r, q, &(struct vd_seg)VD_IN(addr, len), 1);
}

/* Take the next used entry. */
static inline bool rig_used(struct rig *r, unsigned q, uint32_t *len)
{
	uint32_t head, n;

	return vd_collect(&r->q[q], &head, len ? len : &n);
}

/* ---- far end ---- */

/* Frame @tag of @len bytes (after the header). */
static inline void rig_make(uint8_t *buf, size_t len, uint8_t tag)
{
	memset(buf, 0, NET_VNET_HDR_LEN);
	for (size_t i = 0; i < len; i++)
		buf[NET_VNET_HDR_LEN + i] = (uint8_t)(tag + i * 7 + i / 251);
}

static inline ssize_t rig_far_send(struct rig *r, unsigned pair, size_t len, uint8_t tag)
{
	static uint8_t buf[NET_FRAME_MAX];
	struct iovec iov = { buf, NET_VNET_HDR_LEN + len };

	rig_make(buf, len, tag);
	if (r->far[pair])
		return r->far[pair]->ops->send(r->far[pair], &iov, 1);
	ssize_t rc = send(r->tif[pair]->peer, buf, iov.iov_len, 0);

	return rc < 0 ? -errno : rc;
}

/* What the guest sent: length with header, or -EAGAIN. */
static inline ssize_t rig_far_receive(struct rig *r, unsigned pair, uint8_t *buf)
{
	struct iovec iov = { buf, NET_FRAME_MAX };

	if (r->far[pair])
		return r->far[pair]->ops->receive(r->far[pair], &iov, 1);
	ssize_t rc = recv(r->tif[pair]->peer, buf, NET_FRAME_MAX, 0);

	return rc < 0 ? -errno : rc;
}

/* ---- counters ---- */

struct rig_stat {
	const char *key;
	uint64_t value;
	bool found;
};

static inline void rig_put_stat(void *arg, const char *key, uint64_t value)
{
	struct rig_stat *s = arg;

	if (!strcmp(s->key, key)) {
		s->value = value;
		s->found = true;
	}
}

static inline uint64_t rig_stat(struct rig *r, const char *key)
{
	struct rig_stat s = { .key = key };

	r->v->dev.ops->stats(&r->v->dev, rig_put_stat, &s);
	assert_true(s.found);
	return s.value;
}

/* ---- frames there and back ---- */

static inline void send_from_guest(struct rig *r, unsigned q, size_t len, uint8_t tag)
{
	struct vd_seg s[2] = { { RIG_BUFFERS, NET_VNET_HDR_LEN, false },
			       { RIG_BUFFERS + NET_VNET_HDR_LEN, (uint32_t)len, false } };

	rig_make(rig_at(r, RIG_BUFFERS), len, tag);
	rig_add(r, q, s, 2);
}

static inline void assert_sent(struct rig *r, unsigned pair, size_t len, uint8_t tag)
{
	rig_make(expected, len, tag);
	assert_int_equal(rig_far_receive(r, pair, got), NET_VNET_HDR_LEN + len);
	assert_memory_equal(got + NET_VNET_HDR_LEN, expected + NET_VNET_HDR_LEN, len);
}

/*
 * The frame that used entries from here on make up is (@len, @tag), in buffers of @size laid out
 * from @at in the order they were added. Returns how many buffers it took.
 */
static inline unsigned assert_received(struct rig *r, unsigned q, uint32_t at, uint32_t size,
				       size_t len, uint8_t tag)
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

#endif
