/*
 * net_rx.c - frames to the guest
 *
 * A tap tells the size of a frame only by handing it over, and what does not fit the read is lost.
 * So each read offers a window of the guest's buffers and behind them a spill area of ours;
 * together they hold any frame. How many buffers to offer is a guess: one frame of the MTU's size,
 * or the largest there is once such a frame came in this turn or the one before. A guess too low
 * costs a copy, never the frame: what spilled moves into further buffers, or waits in the spill
 * area until the guest adds some.
 *
 * The window is empty between turns: buffers taken but not used are given back in reverse. So
 * nothing is ever in flight here, and a reset or a snapshot between turns needs no care.
 *
 * When the ring is empty the tap is not watched (it would report ready again and again) until the
 * guest kicks. The kick is asked for while every buffer is still taken: asked for after giving some
 * back, the event index would lie behind what the driver has already passed, and it would never
 * come (EVENT_IDX, 2.7.10).
 */
#include <endian.h>
#include <string.h>

#include "virtio/net_priv.h"

#define ERRORS_MAX 64   /* in a row: then the interface counts as gone */
#define DRAIN_MAX  4096 /* frames; a tap's queue holds 500 to begin with */

enum rx {
	RX_FRAME,   /* one done, delivered or dropped */
	RX_IDLE,    /* the tap has none */
	RX_MORE,    /* the turn is over, the tap may have more */
	RX_STARVED, /* the guest has no buffers left */
	RX_BROKEN,  /* the driver broke a rule */
	RX_GONE,    /* the tap is no more */
};

static struct virtq *queue_of(struct net_pair *p)
{
	return &p->net->v.queues[net_rx_index(p)];
}

static bool mergeable(const struct net_pair *p)
{
	return virtio_has(&p->net->v, NET_F(MRG_RXBUF));
}

/* ---- the window ---- */

static void window_clear(struct net_window *w)
{
	w->first = w->end = w->iov_first = w->iov_end = 0;
	w->room = 0;
}

static struct virtq_chain window_chain(struct net_window *w, unsigned i, unsigned iov)
{
	return (struct virtq_chain){ .head = w->chain[i].head,
				     .nin = w->chain[i].nin,
				     .in_len = w->chain[i].len,
				     .iov = w->iov + iov };
}

/* The whole window as one chain, to scatter into. */
static struct virtq_chain window_all(struct net_window *w)
{
	return (struct virtq_chain){ .nin = (uint16_t)(w->iov_end - w->iov_first),
				     .in_len = w->room,
				     .iov = w->iov + w->iov_first };
}

/* Is there a place for one more chain of any shape? Moves the window to the front if it must. */
static bool window_has_place(struct net_window *w)
{
	if (w->end < VIRTQ_SIZE_MAX && w->iov_end + VIRTQ_SEGS_MAX <= NET_WINDOW_IOV)
		return true;
	w->end -= w->first;
	w->iov_end -= w->iov_first;
	memmove(w->chain, w->chain + w->first, w->end * sizeof(w->chain[0]));
	memmove(w->iov, w->iov + w->iov_first, w->iov_end * sizeof(w->iov[0]));
	w->first = w->iov_first = 0;
	return w->end < VIRTQ_SIZE_MAX && w->iov_end + VIRTQ_SEGS_MAX <= NET_WINDOW_IOV;
}

/* Take one more buffer. 1; 0 there is none; -ENOSPC no place; -EPROTO, @why tells. */
static int window_take(struct net_pair *p, const char **why)
{
	struct net_window *w = &p->net->window;

	if (!window_has_place(w))
		return -ENOSPC;
	struct virtq_chain c = { .iov = w->iov + w->iov_end, .room = VIRTQ_SEGS_MAX };
	int rc = virtq_pop(queue_of(p), &c, why);

	if (rc != 1)
		return rc;
	if (c.nout || c.in_len < NET_VNET_HDR_LEN) {
		*why = c.nout ? "a receive buffer has a device-readable part" :
				"a receive buffer is too short for the header";
		virtq_unpop(queue_of(p), &c);
		return -EPROTO;
	}
	w->chain[w->end].head = c.head;
	w->chain[w->end].nin = c.nin;
	w->chain[w->end++].len = c.in_len;
	w->iov_end += c.nin;
	w->room += c.in_len;
	return 1;
}

/* Take buffers until there is one at least and they hold @want bytes. 1, or as window_take(). */
static int window_fill(struct net_pair *p, uint64_t want, const char **why)
{
	struct net_window *w = &p->net->window;
	int rc = 1;

	while (rc == 1 && (w->first == w->end || w->room < want))
		rc = window_take(p, why);
	return rc;
}

static void window_give_back(struct net_pair *p)
{
	struct net_window *w = &p->net->window;

	while (w->end > w->first) {
		struct virtq_chain c = window_chain(w, --w->end, 0);

		virtq_unpop(queue_of(p), &c);
	}
	window_clear(w);
}

/*
 * The first @len bytes were written and may not be handed over: migration has to know all the same.
 */
static void window_touched(struct net_pair *p, uint64_t len)
{
	struct virtq_chain all = window_all(&p->net->window);

	virtq_mark_written(queue_of(p), &all, len);
}

/* The window's first @len bytes are a frame: hand its buffers over. */
static void window_complete(struct net_pair *p, uint32_t len)
{
	struct net_window *w = &p->net->window;
	struct virtq *q = queue_of(p);
	uint32_t left = len;
	uint16_t buffers = 0;

	for (uint64_t sum = 0; sum < len; sum += w->chain[w->first + buffers++].len)
		;
	uint16_t num_buffers = htole16(buffers);

	for (uint16_t i = 0; i < buffers; i++) {
		struct virtq_chain c = window_chain(w, w->first, w->iov_first);
		uint32_t written = c.in_len < left ? (uint32_t)c.in_len : left;

		/* 5.1.6.4: always, and 1 without MRG_RXBUF. A tap leaves it unset. */
		if (!i)
			virtq_copy_in(&c, offsetof(struct virtio_net_hdr_v1, num_buffers),
				      &num_buffers, sizeof(num_buffers));
		virtq_mark_written(q, &c, written);
		virtq_push(q, c.head, written);
		left -= written;
		w->room -= c.in_len;
		w->iov_first += c.nin;
		w->first++;
	}
	p->net->count.rx_frames++;
	p->net->count.rx_bytes += len - NET_VNET_HDR_LEN;
}

/* ---- frames ---- */

static enum rx drop(struct net_pair *p)
{
	p->held = 0;
	p->net->count.rx_dropped++;
	return RX_FRAME;
}

static enum rx deliver_held(struct net_pair *p, const char **why)
{
	int rc = window_fill(p, p->held, why);

	if (rc == -EPROTO)
		return RX_BROKEN;
	if (rc == 1) {
		struct virtq_chain all = window_all(&p->net->window);

		virtq_copy_in(&all, 0, p->spill, p->held);
		window_complete(p, p->held);
		p->held = 0;
		return RX_FRAME;
	}
	/* The whole ring is not enough, or is in more pieces than we take: it never will be. */
	if (rc == -ENOSPC || queue_of(p)->in_flight == queue_of(p)->regs.size)
		return drop(p);
	return RX_STARVED;
}

/* A frame of @len bytes is larger than the window; its end, from @fit on, is in the spill area. */
static enum rx spilled(struct net_pair *p, uint32_t len, uint32_t fit, const char **why)
{
	struct net_window *w = &p->net->window;

	window_touched(p, fit);
	if (!mergeable(p))
		return drop(p);
	p->expect = NET_FRAME_MAX;
	if (window_fill(p, len, why) == 1) {
		struct virtq_chain all = window_all(w);

		virtq_copy_in(&all, fit, p->spill + fit, len - fit);
		window_complete(p, len);
		return RX_FRAME;
	}
	struct virtq_chain all = { .nout = (uint16_t)(w->iov_end - w->iov_first),
				   .iov = w->iov + w->iov_first };

	virtq_copy_out(&all, 0, p->spill, fit);
	p->held = len;
	return deliver_held(p, why);
}

static enum rx failed(struct net_pair *p, int error)
{
	if (error == -EAGAIN)
		return RX_IDLE;
	if (error != -EBADFD && error != -EBADF && error != -ENODEV && ++p->errors < ERRORS_MAX)
		return drop(p);
	net_link_lost(p, error);
	return RX_GONE;
}

static enum rx receive(struct net_pair *p, uint32_t *largest, const char **why)
{
	struct net_window *w = &p->net->window;
	int rc = window_fill(p, mergeable(p) ? p->expect : 0, why);

	if (rc == -EPROTO)
		return RX_BROKEN;
	if (w->first == w->end)
		return RX_STARVED;
	uint32_t fit = w->room < NET_FRAME_MAX ? (uint32_t)w->room : NET_FRAME_MAX;
	unsigned niov = w->iov_end - w->iov_first;

	if (fit < NET_FRAME_MAX)
		w->iov[w->iov_first + niov++] =
			(struct iovec){ p->spill + fit, NET_FRAME_MAX - fit };
	ssize_t got = p->nif->ops->receive(p->nif, w->iov + w->iov_first, niov);

	if (got < 0)
		return failed(p, (int)got);
	p->errors = 0;
	if (got < NET_VNET_HDR_LEN || got > NET_FRAME_MAX) {
		window_touched(p, fit);
		return drop(p);
	}
	if (got > *largest)
		*largest = (uint32_t)got;
	if (got > fit)
		return spilled(p, (uint32_t)got, fit, why);
	window_complete(p, (uint32_t)got);
	return RX_FRAME;
}

/* What waits was made for an earlier driver's offloads; this one may not understand it. */
void net_rx_drain(struct net_pair *p)
{
	struct iovec iov = { p->spill, NET_FRAME_MAX };

	for (unsigned i = 0; i < DRAIN_MAX && p->nif->ops->receive(p->nif, &iov, 1) >= 0; i++)
		p->net->count.rx_dropped++;
	p->stale = false;
}

static enum rx batch(struct net_pair *p, const char **why)
{
	uint32_t largest = 0;
	enum rx rc = RX_FRAME;

	/* counted, since the driver could make want_kick and pop disagree for ever */
	for (unsigned i = 0; i < NET_BATCH; i++) {
		rc = p->held ? deliver_held(p, why) : receive(p, &largest, why);
		if (rc == RX_STARVED && virtq_want_kick(queue_of(p)))
			rc = RX_FRAME; /* buffers came meanwhile */
		if (rc != RX_FRAME)
			break;
	}
	if (largest && largest <= p->net->small)
		p->expect = p->net->small;
	return rc == RX_FRAME ? RX_MORE : rc;
}

void net_rx_turn(struct net_pair *p)
{
	struct virtio *v = &p->net->v;
	const char *why = NULL;

	if (p->gone)
		return;
	if (p->stale)
		net_rx_drain(p);
	virtq_no_kick(queue_of(p));
	enum rx rc = batch(p, &why);

	window_give_back(p);
	virtio_flush(v, net_rx_index(p));
	p->rx_on = rc == RX_IDLE || rc == RX_MORE;
	net_watch(p);
	/* the tap's descriptor brings us back, unless nothing but the held frame is left */
	if (rc == RX_MORE && (p->held || p->nif->fd < 0))
		event_signal(&queue_of(p)->kick);
	if (rc == RX_BROKEN)
		virtio_fail(v, why);
}
