/*
 * net_rig.h - a virtio-net device, a driver for it and a far end, without KVM
 *
 * The driver's side is written out here instead of using the device's own ring code, so that a
 * mistake there shows. It keeps its rings and buffers in 8 MiB of RAM at address 0.
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
#include "virtio/net_priv.h"

#define RIG_RAM	     (8u << 20)
#define RIG_BUFFERS  0x400000u /* where tests put their buffers */
#define RIG_QUEUES   5
#define RIG_RING(q)  (0x10000u * (q))
#define RIG_AVAIL(q) (RIG_RING(q) + 0x2000)
#define RIG_USED(q)  (RIG_RING(q) + 0x4000)

#define SEG_NEXT  1
#define SEG_WRITE 2

struct seg {
	uint64_t addr;
	uint32_t len;
	bool write;
};

struct driver_queue {
	uint16_t size, next_desc, avail, used;
};

/* A network interface of the test's: a socket pair, so that waiting can be tested. */
struct test_if {
	struct netif n;
	int peer;
	unsigned offloads;
	int enabled; /* -1: never told */
	int fail_send, fail_receive; /* -errno */
};

struct rig {
	uint8_t *ram;
	struct gmem *mem;
	struct loop *loop;
	struct virtio *v;
	struct netif *far[2]; /* loop's other ends */
	struct test_if *tif[2];
	struct driver_queue q[RIG_QUEUES];
	unsigned signals[RIG_QUEUES], config_signals;
	uint64_t features;
};

/* ---- transport: counts ---- */

static inline void rig_signal_queue(struct virtio *v, unsigned q)
{
	((struct rig *)v->transport_data)->signals[q]++;
}

static inline void rig_signal_config(struct virtio *v)
{
	((struct rig *)v->transport_data)->config_signals++;
}

static inline void rig_nothing(struct virtio *v)
{
}

static const struct virtio_transport_ops rig_transport = {
	.signal_queue = rig_signal_queue,
	.signal_config = rig_signal_config,
	.reset = rig_nothing,
	.power_on = rig_nothing,
	.free = rig_nothing,
};

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

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
	t->n = (struct netif){ .ops = &test_if_ops, .fd = fd[0], .name = (char *)"test0",
			       .offloads = 63 };
	t->peer = fd[1];
	t->enabled = -1;
	return t;
}

/* ---- life ---- */

enum rig_far { RIG_LOOP, RIG_SOCKET };

static const uint8_t rig_mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };

static inline struct rig *rig_new(enum rig_far far, unsigned pairs, uint16_t queue_size)
{
	struct virtio_net_options o = { .name = "net.t", .mtu = 1500, .pairs = pairs,
					.queue_size = queue_size };
	struct rig *r = calloc(1, sizeof(*r));
	struct netif *ifs[2];
	struct err err = { 0 };

	assert_non_null(r);
	r->ram = aligned_alloc(4096, RIG_RAM);
	memset(r->ram, 0, RIG_RAM);
	r->mem = gmem_new(&err);
	assert_int_equal(gmem_add_borrowed(r->mem, 0, RIG_RAM, r->ram, &err), 0);
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
	r->v = virtio_net_new(&o, ifs, r->mem, r->loop, &err);
	if (!r->v)
		fail_msg("%s", err.msg);
	r->v->transport = &rig_transport;
	r->v->transport_data = r;
	return r;
}

static inline void rig_free(struct rig *r)
{
	r->v->dev.ops->free(&r->v->dev);
	for (int i = 0; i < 2; i++)
		if (r->far[i])
			r->far[i]->ops->free(r->far[i]);
	loop_free(r->loop);
	gmem_free(r->mem);
	free(r->ram);
	free(r);
}

static inline void rig_status(struct rig *r, uint8_t status)
{
	pthread_mutex_lock(&r->v->dev.lock);
	virtio_set_status(r->v, status);
	pthread_mutex_unlock(&r->v->dev.lock);
}

static inline void rig_reset(struct rig *r)
{
	rig_status(r, 0);
	memset(r->q, 0, sizeof(r->q));
	memset(r->ram, 0, RIG_BUFFERS);
}

static inline void rig_set_up_queue(struct rig *r, unsigned q, uint16_t size)
{
	struct virtio *v = r->v;

	pthread_mutex_lock(&v->dev.lock);
	v->regs.queue_select = (uint16_t)q;
	virtio_set_queue_size(v, size);
	virtio_set_queue_addr(v, &v->queues[q].regs.desc, false, RIG_RING(q));
	virtio_set_queue_addr(v, &v->queues[q].regs.driver, false, RIG_AVAIL(q));
	virtio_set_queue_addr(v, &v->queues[q].regs.device, false, RIG_USED(q));
	virtio_set_queue_ready(v, 1);
	pthread_mutex_unlock(&v->dev.lock);
	assert_int_equal(v->queues[q].regs.ready, 1);
	r->q[q].size = size;
}

/* Up to DRIVER_OK with @features of what is offered and all queues of @size. */
static inline void rig_start(struct rig *r, uint64_t features, uint16_t size)
{
	r->features = (features & r->v->features) | VIRTIO_F_VERSION_1;
	rig_status(r, 1);
	rig_status(r, 3);
	for (uint32_t w = 0; w < 2; w++) {
		r->v->regs.driver_feature_select = w;
		virtio_set_features(r->v, (uint32_t)(r->features >> 32 * w));
	}
	rig_status(r, 11);
	assert_int_equal(virtio_get_status(r->v), 11);
	for (unsigned q = 0; q < r->v->nqueues; q++)
		rig_set_up_queue(r, q, size);
	rig_status(r, 15);
	assert_int_equal(virtio_get_status(r->v), 15);
	while (loop_poll(r->loop, 0) > 0)
		;
	memset(r->signals, 0, sizeof(r->signals));
	r->config_signals = 0;
}

/* ---- driver ---- */

static inline uint16_t *rig16(struct rig *r, uint32_t at)
{
	return (uint16_t *)(r->ram + at);
}

/* Make one chain available. Its head. */
static inline uint16_t rig_add(struct rig *r, unsigned q, const struct seg *s, unsigned n)
{
	struct driver_queue *d = &r->q[q];
	uint16_t head = d->next_desc % d->size;

	for (unsigned i = 0; i < n; i++) {
		uint16_t at = d->next_desc++ % d->size, next = d->next_desc % d->size;
		uint16_t flags = (uint16_t)((s[i].write ? SEG_WRITE : 0) | (i + 1 < n ? SEG_NEXT : 0));
		uint8_t *desc = r->ram + RIG_RING(q) + 16 * at;

		memcpy(desc, &s[i].addr, 8);
		memcpy(desc + 8, &s[i].len, 4);
		memcpy(desc + 12, &flags, 2);
		memcpy(desc + 14, &next, 2);
	}
	*rig16(r, RIG_AVAIL(q) + 4 + 2 * (d->avail % d->size)) = head;
	*rig16(r, RIG_AVAIL(q) + 2) = ++d->avail;
	return head;
}

/* Would a driver that follows the rules kick for the last @n chains it added? */
static inline bool rig_kick_wanted(struct rig *r, unsigned q, uint16_t n)
{
	struct driver_queue *d = &r->q[q];

	if (!(r->features & VIRTIO_F_EVENT_IDX))
		return !(*rig16(r, RIG_USED(q)) & 1);
	uint16_t event = *rig16(r, RIG_USED(q) + 4 + 8 * d->size);

	return (uint16_t)(d->avail - event - 1) < n;
}

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

static inline void rig_kick(struct rig *r, unsigned q)
{
	virtio_notify(r->v, q);
	rig_settle(r);
}

/* The next used entry: its head, or -1 when there is none. */
static inline int rig_used(struct rig *r, unsigned q, uint32_t *len)
{
	struct driver_queue *d = &r->q[q];
	uint32_t e[2];

	if (d->used == *rig16(r, RIG_USED(q) + 2))
		return -1;
	memcpy(e, r->ram + RIG_USED(q) + 4 + 8 * (d->used++ % d->size), sizeof(e));
	if (len)
		*len = e[1];
	return (int)e[0];
}

static inline void rig_add_rx(struct rig *r, unsigned q, uint64_t addr, uint32_t len)
{
	struct seg s = { addr, len, true };

	rig_add(r, q, &s, 1);
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

#endif
