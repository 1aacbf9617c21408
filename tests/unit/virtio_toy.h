/*
 * virtio_toy.h - a device kind for tests of what all kinds share
 *
 * Echoes: what is readable of a chain is copied to its writable part. TOY_NOW does so in the kick,
 * TOY_LATER through the loop as a backend with requests in flight does, TOY_HELD when toy_release()
 * is called (from any thread). The toy's transport, if none is attached, counts signals.
 */
#ifndef TESTS_UNIT_VIRTIO_TOY_H
#define TESTS_UNIT_VIRTIO_TOY_H

#include "virtio/device.h"

#define TOY_ID        42 /* no such device */
#define TOY_FEATURE   (UINT64_C(1) << 5)
#define TOY_FEATURE_2 (UINT64_C(1) << 40 >> 1) /* bit 39: in the second word */

enum toy_mode { TOY_NOW, TOY_LATER, TOY_HELD };

struct toy_request {
	struct toy *toy;
	unsigned queue;
	struct virtq_chain c;
	struct iovec iov[VIRTQ_SEGS_MAX];
	struct toy_request *next;
};

struct toy {
	struct virtio v; /* first */
	enum toy_mode mode;
	struct toy_request *held;
	int activate_result;
	unsigned activated, resets, stops, starts, kicks, writes, served;
	unsigned queue_signals, config_signals, transport_resets, power_ons, resumes;
	bool freed_transport;
	const char *why; /* the rule last broken */
};

static inline struct toy *toy_of(struct virtio *v)
{
	return (struct toy *)v;
}

static inline int toy_activate(struct virtio *v)
{
	toy_of(v)->activated++;
	return toy_of(v)->activate_result;
}

static inline void toy_reset(struct virtio *v)
{
	toy_of(v)->resets++;
	BUG_ON(v->in_flight);
	for (unsigned i = 0; i < v->nqueues; i++)
		BUG_ON(v->queues[i].in_flight);
}

static inline void toy_stop(struct virtio *v)
{
	toy_of(v)->stops++;
}

static inline void toy_start(struct virtio *v)
{
	toy_of(v)->starts++;
}

static inline void toy_write_config(struct virtio *v, unsigned off, const void *data, unsigned len)
{
	toy_of(v)->writes++;
	memcpy(v->regs.config + off, data, len);
}

/* Under dev.lock. */
static inline void toy_serve(struct toy *t, unsigned qi, const struct virtq_chain *c)
{
	struct virtq *q = &t->v.queues[qi];
	uint8_t buf[256];
	uint64_t done = 0;
	size_t n;

	/* A chain may be gigabytes: echo what a test can look at. */
	while (done < 64 * sizeof(buf) && (n = virtq_copy_out(c, done, buf, sizeof(buf)))) {
		n = virtq_copy_in(c, done, buf, n);
		if (!n)
			break;
		done += n;
	}
	virtq_mark_written(q, c, done);
	virtq_push(q, c->head, (uint32_t)done);
	t->served++;
}

static inline void toy_finish(void *arg)
{
	struct toy_request *r = arg;
	struct toy *t = r->toy;

	pthread_mutex_lock(&t->v.dev.lock);
	toy_serve(t, r->queue, &r->c);
	virtio_flush(&t->v, r->queue);
	virtio_end(&t->v);
	pthread_mutex_unlock(&t->v.dev.lock);
	free(r);
}

static inline void toy_defer(struct toy *t, unsigned qi, const struct virtq_chain *c)
{
	struct toy_request *r = calloc(1, sizeof(*r));

	BUG_ON(!r);
	*r = (struct toy_request){ .toy = t, .queue = qi, .c = *c };
	memcpy(r->iov, c->iov, sizeof(*c->iov) * (c->nout + c->nin));
	r->c.iov = r->iov;
	virtio_begin(&t->v);
	if (t->mode == TOY_LATER) {
		BUG_ON(loop_post(t->v.loop, toy_finish, r));
		return;
	}
	r->next = t->held;
	t->held = r;
}

/* Let held requests finish on the loop. Any thread. */
static inline void toy_release(struct toy *t)
{
	pthread_mutex_lock(&t->v.dev.lock);
	struct toy_request *r = t->held;

	t->held = NULL;
	pthread_mutex_unlock(&t->v.dev.lock);
	for (struct toy_request *next; r; r = next) {
		next = r->next;
		BUG_ON(loop_post(t->v.loop, toy_finish, r));
	}
}

static inline void toy_kick(struct virtio *v, unsigned qi)
{
	struct toy *t = toy_of(v);
	struct virtq *q = &v->queues[qi];
	struct iovec iov[VIRTQ_SEGS_MAX];
	struct virtq_chain c = { .iov = iov };
	int rc;

	t->kicks++;
	do {
		virtq_no_kick(q);
		while ((rc = virtq_pop(q, &c, &t->why)) == 1) {
			if (t->mode == TOY_NOW)
				toy_serve(t, qi, &c);
			else
				toy_defer(t, qi, &c);
		}
		if (rc < 0)
			virtio_fail(v, t->why);
	} while (virtq_want_kick(q));
	virtio_flush(v, qi);
}

static inline void toy_free(struct device *d)
{
	struct toy *t = (struct toy *)d;

	virtio_fini(&t->v);
	free(t);
}

static inline void toy_signal_queue(struct virtio *v, unsigned q)
{
	toy_of(v)->queue_signals++;
}

static inline void toy_signal_config(struct virtio *v)
{
	toy_of(v)->config_signals++;
}

static inline void toy_transport_reset(struct virtio *v)
{
	toy_of(v)->transport_resets++;
}

static inline void toy_power_on(struct virtio *v)
{
	toy_of(v)->power_ons++;
}

static inline void toy_resume(struct virtio *v)
{
	toy_of(v)->resumes++;
}

static inline void toy_transport_free(struct virtio *v)
{
	toy_of(v)->freed_transport = true;
}

static const struct virtio_ops toy_ops = {
	.dev = { .type = "virtio-toy", .free = toy_free },
	.id = TOY_ID,
	.activate = toy_activate,
	.kick = toy_kick,
	.reset = toy_reset,
	.write_config = toy_write_config,
	.stop = toy_stop,
	.start = toy_start,
};

static const struct virtio_transport_ops toy_transport = {
	.signal_queue = toy_signal_queue,
	.signal_config = toy_signal_config,
	.reset = toy_transport_reset,
	.power_on = toy_power_on,
	.resume = toy_resume,
	.free = toy_transport_free,
};

/* Without a transport; set v.transport = &toy_transport or attach one. */
static inline struct toy *toy_new(struct gmem *mem, struct loop *loop, unsigned nqueues,
				  uint16_t size, unsigned config_len)
{
	struct toy *t = calloc(1, sizeof(*t));

	BUG_ON(!t || virtio_init(&t->v, &toy_ops, "toy0", mem, loop, TOY_FEATURE | TOY_FEATURE_2,
				 nqueues, size, NULL));
	t->v.config_len = config_len;
	for (unsigned i = 0; i < config_len; i++)
		t->v.regs.config[i] = (uint8_t)(0x80 + i);
	return t;
}

#endif
