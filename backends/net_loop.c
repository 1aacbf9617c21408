/*
 * net_loop.c - two ends joined in memory
 *
 * For tests and fuzzers: behaves as a tap does in what a device can see. A frame that does not fit
 * what the receiver offers is cut and its tail is lost, as read() on a tap does it; a full queue is
 * -EAGAIN; of the header's 12 bytes the kernel writes only the first 10, so num_buffers arrives as
 * whatever the buffer held, and a device that forgets to set it fails here too.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backends/net.h"
#include "base/fd.h"

#define LEGACY_HDR_LEN 10 /* struct virtio_net_hdr, without num_buffers */

struct frame {
	size_t len;
	uint8_t data[];
};

struct fifo {
	struct frame **slot;
	unsigned head, count;
};

struct joint {
	pthread_mutex_t lock;
	unsigned depth, users;
	struct fifo fifo[2]; /* fifo[i]: on the way to end i */
};

struct loop_end {
	struct netif n;
	struct joint *joint;
	unsigned side;
	unsigned offloads;
};

static struct loop_end *to_end(struct netif *n)
{
	return (struct loop_end *)n;
}

static size_t iov_total(const struct iovec *iov, unsigned niov)
{
	size_t len = 0;

	for (unsigned i = 0; i < niov; i++)
		len += iov[i].iov_len;
	return len;
}

static ssize_t loop_send(struct netif *n, const struct iovec *iov, unsigned niov)
{
	struct loop_end *e = to_end(n);
	struct joint *j = e->joint;
	struct fifo *to = &j->fifo[!e->side];
	size_t len = iov_total(iov, niov), at = 0;

	/* tun_get_user(): shorter than a header and an Ethernet header is no frame */
	if (len < NET_VNET_HDR_LEN + 14 || len > NET_FRAME_MAX)
		return -EINVAL;
	struct frame *f = malloc(sizeof(*f) + len);

	if (!f)
		return -ENOMEM;
	f->len = len;
	for (unsigned i = 0; i < niov; i++) {
		if (iov[i].iov_len)
			memcpy(f->data + at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	pthread_mutex_lock(&j->lock);
	bool full = to->count == j->depth;

	if (!full)
		to->slot[(to->head + to->count++) % j->depth] = f;
	pthread_mutex_unlock(&j->lock);
	if (full) {
		free(f);
		return -EAGAIN;
	}
	return (ssize_t)len;
}

/* Copy [from, to) of the frame to the same place of @iov; what does not fit is cut. */
static void put(const struct iovec *iov, unsigned niov, const uint8_t *data, size_t from, size_t to)
{
	size_t at = 0;

	for (unsigned i = 0; i < niov && at < to; at += iov[i++].iov_len) {
		size_t lo = at > from ? at : from;
		size_t hi = at + iov[i].iov_len < to ? at + iov[i].iov_len : to;

		if (lo < hi)
			memcpy((uint8_t *)iov[i].iov_base + (lo - at), data + lo, hi - lo);
	}
}

static ssize_t loop_receive(struct netif *n, const struct iovec *iov, unsigned niov)
{
	struct loop_end *e = to_end(n);
	struct joint *j = e->joint;
	struct fifo *from = &j->fifo[e->side];
	size_t room = iov_total(iov, niov);
	struct frame *f = NULL;

	pthread_mutex_lock(&j->lock);
	if (from->count) {
		f = from->slot[from->head];
		from->head = (from->head + 1) % j->depth;
		from->count--;
	}
	pthread_mutex_unlock(&j->lock);
	if (!f)
		return -EAGAIN;
	ssize_t got = (ssize_t)(f->len < room ? f->len : room);

	/* tun_put_user(): no room for the header loses the frame */
	if (room < NET_VNET_HDR_LEN) {
		got = -EINVAL;
	} else {
		put(iov, niov, f->data, 0, LEGACY_HDR_LEN);
		put(iov, niov, f->data, NET_VNET_HDR_LEN, f->len);
	}
	free(f);
	return got;
}

static int loop_set_offload(struct netif *n, unsigned offloads)
{
	if (offloads & ~n->offloads)
		return -EINVAL;
	to_end(n)->offloads = offloads;
	return 0;
}

static void joint_put(struct joint *j)
{
	pthread_mutex_lock(&j->lock);
	bool last = --j->users == 0;

	pthread_mutex_unlock(&j->lock);
	if (!last)
		return;
	for (unsigned s = 0; s < 2; s++) {
		struct fifo *f = &j->fifo[s];

		for (unsigned i = 0; i < f->count; i++)
			free(f->slot[(f->head + i) % j->depth]);
		free(f->slot);
	}
	pthread_mutex_destroy(&j->lock);
	free(j);
}

static void loop_free_end(struct netif *n)
{
	joint_put(to_end(n)->joint);
	free(n->name);
	free(n);
}

static const struct netif_ops loop_ops = {
	.name = "loop",
	.send = loop_send,
	.receive = loop_receive,
	.set_offload = loop_set_offload,
	.free = loop_free_end,
};

unsigned net_loop_offload(const struct netif *n)
{
	return ((const struct loop_end *)n)->offloads;
}

static struct netif *end_new(struct joint *j, unsigned side)
{
	struct loop_end *e = calloc(1, sizeof(*e));
	char *name = strdup(side ? "loop1" : "loop0");

	if (!e || !name) {
		free(e);
		free(name);
		return NULL;
	}
	e->n = (struct netif){
		.ops = &loop_ops,
		.fd = -1,
		.name = name,
		.offloads = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 |
			    NET_OFFLOAD_ECN | NET_OFFLOAD_UFO | NET_OFFLOAD_USO,
	};
	e->joint = j;
	e->side = side;
	j->users++;
	return &e->n;
}

int net_loop_new(unsigned depth, struct netif *end[2], struct err *err)
{
	struct joint *j = calloc(1, sizeof(*j));

	if (!j || !depth) {
		free(j);
		return err_set(err, depth ? ENOMEM : EINVAL, "cannot make a loop of %u frames",
			       depth);
	}
	pthread_mutex_init(&j->lock, NULL);
	j->depth = depth;
	j->users = 1;
	j->fifo[0].slot = calloc(depth, sizeof(struct frame *));
	j->fifo[1].slot = calloc(depth, sizeof(struct frame *));
	end[0] = end_new(j, 0);
	end[1] = end_new(j, 1);
	bool ok = j->fifo[0].slot && j->fifo[1].slot && end[0] && end[1];

	for (unsigned i = 0; i < 2 && !ok; i++) {
		if (end[i])
			loop_free_end(end[i]);
		end[i] = NULL;
	}
	joint_put(j);
	return ok ? 0 : err_set(err, ENOMEM, "out of memory for a loop of %u frames", depth);
}
