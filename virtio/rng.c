/*
 * rng.c - virtio entropy device
 *
 * The host's getrandom() straight into the guest's buffers. It runs on the main loop, so no turn of it
 * may be long: a request is answered with at most 64 KiB (the driver asks again; 4 GiB in one request
 * kept Firecracker busy, #5762), a turn ends after a few of these, and what is left comes with the next
 * one. getrandom() is asked not to wait: early after the host's own boot it has nothing yet, and we try
 * again.
 *
 * The rate is kept in windows: so many bytes, then nothing until the window ends. A guest that resets
 * the device keeps the window it is in, or a reset would be a way round the limit.
 */
#include <stddef.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#include "virtio/rng.h"

#define QUEUE_SIZE   64
#define REQUEST_MAX  (64u << 10)
#define TURN_MAX     (256u << 10)
#define REQUEST_COST 1024u /* counted for each, so that tiny ones do not make a long turn */
#define RETRY_NS     UINT64_C(100000000)

struct virtio_rng {
	struct virtio v; /* first */
	uint64_t rate;   /* bytes in a window, 0: any number */
	uint64_t period_ns;
	uint64_t left;       /* of this window */
	uint64_t window_end; /* CLOCK_MONOTONIC; 0: none has begun */
	struct loop_timer timer;
	uint64_t requests, bytes;
	struct iovec iov[VIRTQ_SEGS_MAX];
};

static struct virtio_rng *of(struct virtio *v)
{
	return (struct virtio_rng *)v;
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Bytes that may be given now; if none, the timer is set for when there are some. */
static uint64_t allowance(struct virtio_rng *d)
{
	if (!d->rate)
		return REQUEST_MAX;
	const uint64_t t = now();

	if (t >= d->window_end) {
		d->window_end = t + d->period_ns;
		d->left = d->rate;
	}
	if (!d->left)
		loop_timer_arm(&d->timer, d->window_end - t, 0);
	return d->left;
}

/* Bytes stored, fewer than @len only when the host has none. */
static uint32_t fill(const struct virtq_chain *c, uint32_t len)
{
	uint32_t done = 0;

	for (unsigned i = c->nout; done < len; i++) {
		for (size_t at = 0; at < c->iov[i].iov_len && done < len;) {
			size_t want = c->iov[i].iov_len - at;

			if (want > len - done)
				want = len - done;
			ssize_t n =
				getrandom((uint8_t *)c->iov[i].iov_base + at, want, GRND_NONBLOCK);

			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0)
				return done;
			at += (size_t)n;
			done += (uint32_t)n;
		}
	}
	return done;
}

enum outcome { SERVED, EMPTY, LATER };

/* One request; LATER: it stays in the ring until the timer. Adds what it cost to @turn. */
static enum outcome serve(struct virtio_rng *d, struct virtq *q, uint32_t *turn)
{
	struct virtq_chain c = { .iov = d->iov, .room = VIRTQ_SEGS_MAX };
	const char *why = NULL;
	int n = virtq_pop(q, &c, &why);

	if (n == 1 && !c.nin) {
		virtq_unpop(q, &c);
		why = "a request for entropy has no writable buffer";
		n = -EPROTO;
	}
	if (n < 0)
		virtio_fail(&d->v, why);
	if (n != 1)
		return EMPTY;

	const uint64_t may = allowance(d);
	uint64_t len = c.in_len < REQUEST_MAX ? c.in_len : REQUEST_MAX;

	if (len > may)
		len = may;
	const uint32_t done = fill(&c, (uint32_t)len);

	if (!done) {
		virtq_unpop(q, &c);
		if (may)
			loop_timer_arm(&d->timer, RETRY_NS, 0);
		return LATER;
	}
	virtq_mark_written(q, &c, done);
	virtq_push(q, c.head, done);
	if (d->rate)
		d->left -= done;
	d->requests++;
	d->bytes += done;
	*turn += done + REQUEST_COST;
	return SERVED;
}

static void rng_kick(struct virtio *v, unsigned queue)
{
	struct virtq *q = &v->queues[queue];
	enum outcome last = EMPTY;
	uint32_t turn = 0;

	while (turn < TURN_MAX) {
		virtq_no_kick(q);
		while (turn < TURN_MAX && (last = serve(of(v), q, &turn)) == SERVED)
			;
		if (last != EMPTY || !virtio_running(v) || !virtq_want_kick(q))
			break;
		turn += REQUEST_COST; /* an index that goes to and fro is work, too */
	}
	if (last == SERVED || turn >= TURN_MAX)
		event_signal(&q->kick); /* the turn is over, there may be more */
	virtio_flush(v, queue);
}

static void on_timer(struct loop_timer *t)
{
	struct virtio_rng *d =
		(struct virtio_rng *)((char *)t - offsetof(struct virtio_rng, timer));

	pthread_mutex_lock(&d->v.dev.lock);
	if (virtio_running(&d->v) && d->v.queues[0].regs.ready)
		rng_kick(&d->v, 0);
	pthread_mutex_unlock(&d->v.dev.lock);
}

/* ---- coming and going ---- */

static void rng_stats(struct device *dev, device_stat_fn put, void *arg)
{
	struct virtio_rng *d = (struct virtio_rng *)dev;

	pthread_mutex_lock(&dev->lock);
	const uint64_t requests = d->requests, bytes = d->bytes;

	pthread_mutex_unlock(&dev->lock);
	put(arg, "requests", requests);
	put(arg, "bytes", bytes);
}

static void fini_timer(void *arg)
{
	loop_timer_fini(arg);
}

static void rng_free(struct device *dev)
{
	struct virtio_rng *d = (struct virtio_rng *)dev;

	loop_call(d->v.loop, fini_timer, &d->timer);
	virtio_fini(&d->v);
	free(d);
}

static const struct virtio_ops rng_ops = {
	.dev = { .type = "virtio-rng", .stats = rng_stats, .free = rng_free },
	.id = 4,
	.kick = rng_kick,
};

struct virtio *virtio_rng_new(const char *name, uint64_t rate, unsigned period_ms, struct gmem *mem,
			      struct loop *loop, struct err *err)
{
	struct virtio_rng *d = calloc(1, sizeof(*d));

	if (!d) {
		err_set(err, ENOMEM, "%s: out of memory", name);
		return NULL;
	}
	if (virtio_init(&d->v, &rng_ops, name, mem, loop, 0, 1, QUEUE_SIZE, err)) {
		free(d);
		return NULL;
	}
	d->rate = rate;
	d->period_ns = period_ms * UINT64_C(1000000);
	if (loop_timer_init(loop, &d->timer, on_timer, err)) {
		virtio_fini(&d->v);
		free(d);
		return NULL;
	}
	return &d->v;
}
