/*
 * net_vhost.c - rings that the kernel works on (backends/vhost.h)
 *
 * Data rings go to the kernel one by one, each at its first kick, on the loop's thread; the control queue
 * stays here. From then on the loop does not watch the ring's kick, which KVM signals and the kernel hears.
 * A ring comes back when the machine stops, the device is reset, the driver uses fewer pairs, or something
 * is wrong, on whatever thread that is; the loop then watches its kick again, told through @back. In
 * between nothing is lost: the kick's event stays signalled, since the kernel never clears it.
 *
 * The interrupt: the kernel signals the event that is the queue's MSI-X vector. While the vector is open
 * that is KVM's irqfd, while it is masked the event keeps the signal and is the pending bit, so masking
 * takes nothing here (devices/pci_msix.c). Where there is no such event (virtio-mmio, a driver that
 * polls) it signals @call, and the loop does what virtio_flush() would: the ISR bit, then the line.
 *
 * A ring that came back has nothing in flight, so its registers say what they would if we had done the
 * work, and a snapshot of either is a snapshot of both. The used index need not be read from the ring,
 * where the guest could have put anything: all that was taken was used.
 *
 * Frames are not seen here and not counted; the tap's own counters tell. Nor does the kernel say that the
 * tap has gone, so that is looked for once a second.
 */
#include <poll.h>
#include <string.h>

#include "virtio/net_priv.h"

#define LOOK_NS 1000000000u

static struct virtq *queue_of(struct net_ring *r)
{
	return &r->pair->net->v.queues[2 * r->pair->index + r->index];
}

static bool any_on(const struct net *net)
{
	for (unsigned i = 0; i < net->npairs; i++) {
		const struct vhost *h = net->pair[i].vhost;

		if (h && (h->on[VHOST_RX] || h->on[VHOST_TX]))
			return true;
	}
	return false;
}

/* ---- interrupts ---- */

static int call_of(struct net_ring *r)
{
	struct virtio *v = &r->pair->net->v;
	struct event *direct = v->transport && v->transport->queue_event ?
				       v->transport->queue_event(v, queue_of(r)->index) :
				       NULL;

	return direct ? direct->fd : r->call.fd;
}

/* What came by way of us. Under dev.lock. */
static void pass_on(struct net_ring *r)
{
	struct virtio *v = &r->pair->net->v;

	if (!event_clear(&r->call))
		return;
	v->regs.isr |= VIRTIO_ISR_QUEUE;
	if (v->transport)
		v->transport->signal_queue(v, queue_of(r)->index);
}

static void on_call(struct loop_watch *w, uint32_t events)
{
	struct net_ring *r = (struct net_ring *)((char *)w - offsetof(struct net_ring, watch));
	struct virtio *v = &r->pair->net->v;

	pthread_mutex_lock(&v->dev.lock);
	if (virtio_running(v))
		pass_on(r);
	pthread_mutex_unlock(&v->dev.lock);
}

void net_vhost_rerouted(struct virtio *v, unsigned q)
{
	struct net *net = net_of(v);
	struct net_pair *p = &net->pair[q / 2];

	if (q / 2 < net->npairs && p->vhost && p->vhost->on[q & 1])
		vhost_set_call(p->vhost, q & 1, call_of(&p->ring[q & 1]));
}

/* ---- starting and stopping ---- */

static int start_ring(struct net_pair *p, unsigned i)
{
	struct net *net = p->net;
	struct virtq *q = queue_of(&p->ring[i]);
	struct vhost_ring r = {
		.desc = q->regs.desc,
		.driver = q->regs.driver,
		.device = q->regs.device,
		.size = q->regs.size,
		.next = q->regs.next_avail,
		.kick = q->kick.fd,
		.call = call_of(&p->ring[i]),
		.error = net->vhost_error.fd,
		.tap = p->nif->fd,
	};
	int rc = 0;

	if (i == VHOST_RX && p->stale)
		net_rx_drain(p);
	if (!p->vhost->on[VHOST_RX] && !p->vhost->on[VHOST_TX])
		rc = vhost_set_up(p->vhost, net->v.regs.driver_features & net->v.features,
				  net->v.mem);
	return rc ? rc : vhost_start(p->vhost, i, &r, net->v.mem);
}

bool net_vhost_kick(struct net_pair *p, unsigned i)
{
	struct virtio *v = &p->net->v;

	if (!p->vhost || p->gone)
		return false;
	if (p->vhost->on[i])
		return true;
	int rc = start_ring(p, i);

	if (rc) {
		log_err("%s: vhost-net does not take a ring (%s): pair %u of its queues is served "
			"by this process",
			v->dev.name, strerror(-rc), p->index);
		net_vhost_stop(p, true);
		p->vhost->ops->free(p->vhost);
		p->vhost = NULL;
		return false;
	}
	virtio_watch_kicks(v, queue_of(&p->ring[i])->index, false);
	event_signal(&queue_of(&p->ring[i])->kick);
	loop_timer_arm(&p->net->look, LOOK_NS, LOOK_NS);
	return true;
}

void net_vhost_stop(struct net_pair *p, bool keep)
{
	for (unsigned i = 0; p->vhost && i < VHOST_RINGS; i++) {
		struct virtq_regs *r = &queue_of(&p->ring[i])->regs;
		uint16_t next = r->next_avail;

		if (!p->vhost->on[i])
			continue;
		event_signal(&p->net->vhost_back);
		int rc = vhost_stop(p->vhost, i, &next);

		if (rc)
			log_err("%s: vhost-net does not give a ring back: %s", p->net->v.dev.name,
				strerror(-rc));
		if (!keep) {
			event_clear(&p->ring[i].call);
			continue;
		}
		pass_on(&p->ring[i]);
		r->next_avail = r->next_used = r->signalled_used = next;
		r->signalled_valid = 1;
	}
}

void net_vhost_stop_all(struct net *net, bool keep)
{
	for (unsigned i = 0; i < net->npairs; i++)
		net_vhost_stop(&net->pair[i], keep);
}

void net_vhost_reset(struct net *net)
{
	net_vhost_stop_all(net, false);
	event_clear(&net->vhost_error); /* it was the earlier driver's */
}

static void on_back(struct loop_watch *w, uint32_t events)
{
	struct net *net = (struct net *)((char *)w - offsetof(struct net, back_watch));

	pthread_mutex_lock(&net->v.dev.lock);
	event_clear(&net->vhost_back);
	for (unsigned q = 0; q < 2 * net->npairs; q++) {
		const struct vhost *h = net->pair[q / 2].vhost;

		if (!h || !h->on[q & 1])
			virtio_watch_kicks(&net->v, q, true);
	}
	if (!any_on(net))
		loop_timer_disarm(&net->look);
	pthread_mutex_unlock(&net->v.dev.lock);
}

/* ---- what can go wrong ---- */

static void on_error(struct loop_watch *w, uint32_t events)
{
	struct net *net = (struct net *)((char *)w - offsetof(struct net, error_watch));

	pthread_mutex_lock(&net->v.dev.lock);
	if (event_clear(&net->vhost_error) && any_on(net) && virtio_running(&net->v)) {
		net_vhost_stop_all(net, true);
		virtio_fail(&net->v, "vhost-net cannot follow a ring or a descriptor in it");
	}
	pthread_mutex_unlock(&net->v.dev.lock);
}

static void look(struct loop_timer *t)
{
	struct net *net = (struct net *)((char *)t - offsetof(struct net, look));

	pthread_mutex_lock(&net->v.dev.lock);
	for (unsigned i = 0; i < net->npairs; i++) {
		struct net_pair *p = &net->pair[i];
		struct pollfd at = { .fd = p->nif->fd };

		if (!p->vhost || (!p->vhost->on[VHOST_RX] && !p->vhost->on[VHOST_TX]) ||
		    poll(&at, 1, 0) != 1)
			continue;
		net_vhost_stop(p, true);
		net_link_lost(p, -ENODEV);
	}
	pthread_mutex_unlock(&net->v.dev.lock);
}

/* ---- dirty pages ---- */

int net_vhost_log(struct device *d, void *log)
{
	struct net *net = net_of((struct virtio *)d);
	int rc = 0;

	pthread_mutex_lock(&d->lock);
	for (unsigned i = 0; i < net->npairs && !rc; i++)
		if (net->pair[i].vhost)
			rc = vhost_set_log(net->pair[i].vhost, log);
	pthread_mutex_unlock(&d->lock);
	return rc;
}

/* ---- life ---- */

static int watch(struct net *net, struct event *e, struct loop_watch *w,
		 void (*fn)(struct loop_watch *w, uint32_t events), struct err *err)
{
	int rc = event_init(e, err);

	if (rc)
		return rc;
	rc = loop_add(net->v.loop, w, e->fd, EPOLLIN, fn);
	return rc ? err_set_sys(err, rc, "%s: cannot watch vhost-net", net->v.dev.name) : 0;
}

int net_vhost_init(struct net *net, struct vhost **h, struct err *err)
{
	int rc = loop_timer_init(net->v.loop, &net->look, look, err);

	if (!rc)
		rc = watch(net, &net->vhost_back, &net->back_watch, on_back, err);
	if (!rc)
		rc = watch(net, &net->vhost_error, &net->error_watch, on_error, err);
	for (unsigned i = 0; i < net->npairs; i++)
		for (unsigned k = 0; k < VHOST_RINGS && !rc; k++) {
			struct net_ring *r = &net->pair[i].ring[k];

			rc = watch(net, &r->call, &r->watch, on_call, err);
		}
	for (unsigned i = 0; i < net->npairs && !rc; i++)
		net->pair[i].vhost = h[i];
	return rc;
}

void net_vhost_blank(struct net *net)
{
	net->look.fd = net->look.watch.fd = net->back_watch.fd = net->error_watch.fd = -1;
	event_init_counter(&net->vhost_back);
	event_init_counter(&net->vhost_error);
	for (unsigned i = 0; i < net->npairs; i++)
		for (unsigned k = 0; k < VHOST_RINGS; k++) {
			struct net_ring *r = &net->pair[i].ring[k];

			*r = (struct net_ring){ .pair = &net->pair[i], .index = k };
			r->watch.fd = -1;
			event_init_counter(&r->call);
		}
}

void net_vhost_fini(struct net *net)
{
	for (unsigned i = 0; i < net->npairs; i++) {
		struct net_pair *p = &net->pair[i];

		for (unsigned k = 0; k < VHOST_RINGS; k++) {
			loop_remove(&p->ring[k].watch);
			event_fini(&p->ring[k].call);
		}
		if (p->vhost)
			p->vhost->ops->free(p->vhost);
		p->vhost = NULL;
	}
	loop_timer_fini(&net->look);
	loop_remove(&net->back_watch);
	loop_remove(&net->error_watch);
	event_fini(&net->vhost_back);
	event_fini(&net->vhost_error);
}
