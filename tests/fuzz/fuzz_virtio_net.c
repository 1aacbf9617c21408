/*
 * fuzz_virtio_net.c - a hostile driver and a hostile wire against the network device
 *
 * The input is a program: each step is one byte that says what, and arguments as bytes. Steps make
 * rings and buffers as a driver does, then break them: any byte of guest memory may be overwritten,
 * frames of any size come from the far end, queues are kicked in any order, the device is reset,
 * stopped and given a hostile state in between.
 *
 * Beside what the sanitizers see, after every step: nothing is in flight, a turn ends, and a device
 * whose driver kept the rules (no byte was poked since the last reset) is not broken.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "tests/unit/counting_transport.h"
#include "tests/unit/virtio_driver.h"
#include "virtio/net_priv.h"

#define RAM       (1u << 18)
#define QUEUES    5
#define BUFFERS   (VD_RAM_BASE + RAM / 4)
#define STEPS_MAX 256
#define TURNS_MAX 4096

struct input {
	const uint8_t *at;
	size_t left;
};

struct rig {
	struct vd_ram ram;
	struct vd_queue q[QUEUES];
	struct loop *loop;
	struct virtio *v;
	struct counting signals;
	struct netif *far[2];
	bool honest;
};

static uint32_t take(struct input *in, size_t bytes)
{
	uint32_t v = 0;

	for (size_t i = 0; i < bytes && in->left; i++, in->left--)
		v |= (uint32_t)*in->at++ << 8 * i;
	return v;
}

static void settle(struct rig *r)
{
	unsigned turns = 0;
	int n;

	while ((n = loop_poll(r->loop, 0)) > 0)
		BUG_ON((turns += (unsigned)n) > TURNS_MAX);
	for (unsigned i = 0; i < r->v->nqueues; i++)
		BUG_ON(r->v->queues[i].in_flight);
	BUG_ON(r->honest && virtio_get_status(r->v) & VIRTIO_STATUS_NEEDS_RESET);
}

static void start(struct rig *r, struct input *in)
{
	static const uint16_t sizes[] = { 2, 4, 16, 64 };
	uint64_t f = r->v->features & (take(in, 4) | (uint64_t)take(in, 4) << 32);

	r->ram.next = VD_RAM_BASE;
	r->honest = vd_start(r->v, &r->ram, r->q, r->v->nqueues, sizes[take(in, 1) % 4], f);
}

/* A chain of up to four ranges; kept legal unless the buffer itself is too short. */
static void add(struct rig *r, struct input *in)
{
	unsigned q = take(in, 1) % r->v->nqueues, n = take(in, 1) % 4 + 1;
	unsigned writable = take(in, 1) % (n + 1); /* of the ranges, the last ones */
	uint32_t total = 0;
	struct vd_seg s[4];

	for (unsigned i = 0; i < n; i++) {
		uint32_t off = take(in, 2) * 2, len = take(in, 2) + 1;

		s[i] = (struct vd_seg){ BUFFERS + off, len, i >= n - writable };
		total += len;
	}
	vd_add(&r->q[q], s, n, 0);
	/* a frame that cannot be sent is dropped, but receive buffers have rules */
	if (!(q & 1) && (writable < n || total < NET_VNET_HDR_LEN))
		r->honest = false;
}

/* A command of any bytes, well put: never a reason to break. */
static void command(struct rig *r, struct input *in)
{
	unsigned q = take(in, 1) & 1 ? r->v->nqueues - 1 : 2;
	uint32_t len = take(in, 1) % 64 + 1, split = take(in, 1) % len;
	const struct vd_seg s[3] = { VD_OUT(BUFFERS, len - split),
				     VD_OUT(BUFFERS + len - split, split), VD_IN(BUFFERS + 64, 1) };

	for (uint32_t i = 0; i < len; i++)
		*((uint8_t *)vd_host(&r->ram, BUFFERS) + i) = (uint8_t)take(in, 1);
	if (split)
		vd_add(&r->q[q], s, 3, 0);
	else
		vd_add(&r->q[q], (struct vd_seg[]){ s[0], s[2] }, 2, 0);
	/* without MQ it may be a receive queue */
	if (q != r->v->nqueues - 1 || !virtio_has(r->v, NET_F(MQ)))
		r->honest &= r->v->nqueues == 3;
	vd_publish(&r->q[q]);
	virtio_notify(r->v, q);
}

static void recycle(struct rig *r, unsigned q)
{
	struct vd_queue *d = &r->q[q];

	/* all used up: the descriptors are free again */
	if (vd_used_idx(d) != d->avail_idx)
		return;
	memset(d->busy, 0, sizeof(d->busy));
	d->nfree = d->size;
}

static void poke(struct rig *r, struct input *in)
{
	/* most of what matters lies in the first pages */
	uint32_t where = take(in, 1), n = take(in, 1) % 16 + 1;
	uint32_t at = (where & 0x80 ? 4 * take(in, 2) : take(in, 2) % 8192) % (RAM - 16);

	for (uint32_t i = 0; i < n; i++)
		r->ram.host[at + i] = (uint8_t)take(in, 1);
	r->honest = false;
}

static void far_send(struct rig *r, struct input *in)
{
	static uint8_t frame[NET_FRAME_MAX + 64];
	struct netif *n = r->far[take(in, 1) & 1];
	uint32_t len = take(in, 2) + take(in, 1);
	struct iovec iov = { frame, len < sizeof(frame) ? len : sizeof(frame) };

	if (n)
		n->ops->send(n, &iov, 1);
}

static void far_receive(struct rig *r, struct input *in)
{
	static uint8_t frame[NET_FRAME_MAX];
	struct netif *n = r->far[take(in, 1) & 1];
	struct iovec iov = { frame, sizeof(frame) };
	ssize_t len = n ? n->ops->receive(n, &iov, 1) : 0;

	BUG_ON(len > (ssize_t)sizeof(frame));
}

/* A saved part with a few bytes changed. */
static void load(struct rig *r, struct input *in)
{
	struct device *d = &r->v->dev;
	const struct state_part *p = &d->parts[take(in, 1) % d->nparts];
	struct state_buf buf = { 0 };
	struct err err;

	d->ops->quiesce(d);
	BUG_ON(state_save(p->desc, p->regs, &buf));
	for (uint32_t n = take(in, 1) % 8; n; n--) {
		uint32_t at = take(in, 1) % buf.len;

		buf.data[at] = (uint8_t)take(in, 1);
		r->honest = false;
	}
	int rc = state_load(p->desc, p->regs, p->device, buf.data, buf.len, &err);

	BUG_ON(rc && r->honest); /* what was saved loads */
	state_buf_fini(&buf);
	d->ops->resume(d);
}

static void put_stat(void *arg, const char *key, uint64_t value)
{
}

static void step(struct rig *r, struct input *in)
{
	struct device *d = &r->v->dev;
	uint32_t v;

	switch (take(in, 1) % 12) {
	case 0:
		start(r, in);
		break;
	case 1:
	case 2:
		add(r, in);
		break;
	case 3:
		v = take(in, 1) % r->v->nqueues;
		vd_publish(&r->q[v]);
		virtio_notify(r->v, v);
		break;
	case 4:
		recycle(r, take(in, 1) % r->v->nqueues);
		break;
	case 5:
		poke(r, in);
		break;
	case 6:
		far_send(r, in);
		break;
	case 7:
		far_receive(r, in);
		break;
	case 8:
		d->ops->quiesce(d);
		d->ops->stats(d, put_stat, NULL);
		d->ops->resume(d);
		break;
	case 9:
		load(r, in);
		break;
	case 10:
		vd_set_status(r->v, (uint8_t)take(in, 1));
		r->honest = false;
		break;
	case 11:
		command(r, in);
		break;
	}
	settle(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	unsigned pairs = take(&in, 1) % 2 + 1;
	struct virtio_net_options o = {
		.name = "net.f", .mac = { 2 }, .mtu = 1500, .pairs = pairs, .queue_size = 64
	};
	struct netif *ifs[2], *end[2];
	struct rig r = { 0 };

	log_set_level(LOG_ERR);
	vd_ram_init(&r.ram, RAM);
	r.loop = loop_new(NULL);
	BUG_ON(!r.loop);
	for (unsigned i = 0; i < pairs; i++) {
		BUG_ON(net_loop_new(8, end, NULL));
		ifs[i] = end[0];
		r.far[i] = end[1];
	}
	r.v = virtio_net_new(&o, ifs, r.ram.mem, r.loop, NULL);
	BUG_ON(!r.v);
	counting_attach(&r.signals, r.v);
	gmem_dirty_start(r.ram.mem, NULL);
	start(&r, &in);
	for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
		step(&r, &in);
	r.v->dev.ops->free(&r.v->dev);
	for (unsigned i = 0; i < pairs; i++)
		r.far[i]->ops->free(r.far[i]);
	loop_free(r.loop);
	vd_ram_fini(&r.ram);
	return 0;
}
