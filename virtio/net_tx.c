/*
 * net_tx.c - frames from the guest
 *
 * Header and frame go to the tap from where they lie, in one write. The kernel reads the header
 * once and checks it against the frame itself; what it refuses (an unknown gso_type, a checksum
 * outside the frame) is dropped and counted, as a real card would put a bad frame on the wire and
 * nobody hear of it. Nothing is decided here on bytes that the guest can change meanwhile.
 *
 * A tap that is full is waited for: the chain goes back to the ring and kicks are ignored until the
 * descriptor is writable, so the queue's own size bounds what waits.
 */
#include "virtio/net_priv.h"

enum tx {
	TX_EMPTY,   /* the ring is */
	TX_MORE,    /* the turn is over, the ring may have more */
	TX_BLOCKED, /* the tap is full */
	TX_BROKEN,  /* the driver broke a rule */
};

static struct virtq *queue_of(struct net_pair *p)
{
	return &p->net->v.queues[net_tx_index(p)];
}

/* 0: sent or dropped; -EAGAIN. */
static int send_frame(struct net_pair *p, const struct virtq_chain *c)
{
	struct netif_counters *n = &p->net->count;
	ssize_t rc = -EINVAL;

	if (!p->gone && c->out_len > NET_VNET_HDR_LEN && c->out_len <= NET_FRAME_MAX)
		rc = p->nif->ops->send(p->nif, c->iov, c->nout);
	if (rc == -EAGAIN)
		return -EAGAIN;
	if (rc < 0) {
		n->tx_dropped++;
		if (rc == -EBADFD || rc == -ENODEV || rc == -EBADF)
			net_link_lost(p, (int)rc);
		return 0;
	}
	n->tx_frames++;
	n->tx_bytes += c->out_len - NET_VNET_HDR_LEN;
	return 0;
}

static enum tx batch(struct net_pair *p, const char **why)
{
	struct virtq *q = queue_of(p);
	struct virtq_chain c = { .iov = p->net->iov, .room = VIRTQ_SEGS_MAX };

	/* counted, since the driver could make want_kick and pop disagree for ever */
	for (unsigned i = 0; i < NET_BATCH; i++) {
		int rc = virtq_pop(q, &c, why);

		if (rc < 0)
			return TX_BROKEN;
		if (!rc) {
			if (!virtq_want_kick(q))
				return TX_EMPTY;
			continue; /* one came meanwhile: pop takes it or finds it broken */
		}
		if (send_frame(p, &c)) {
			virtq_unpop(q, &c);
			return TX_BLOCKED;
		}
		virtq_push(q, c.head, 0);
	}
	return TX_MORE;
}

void net_tx_turn(struct net_pair *p)
{
	struct virtio *v = &p->net->v;
	const char *why = NULL;

	if (p->tx_blocked)
		return;
	virtq_no_kick(queue_of(p));
	enum tx rc = batch(p, &why);

	virtio_flush(v, net_tx_index(p));
	p->tx_blocked = rc == TX_BLOCKED && p->nif->fd >= 0;
	net_watch(p);
	if (rc == TX_MORE)
		event_signal(&queue_of(p)->kick);
	if (rc == TX_BROKEN)
		virtio_fail(v, why);
}
