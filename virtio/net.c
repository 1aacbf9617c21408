/*
 * net.c - virtio network device (virtio 1.2, 5.1)
 *
 * This file is the device as such: what it offers, its life, which queue means what. Frames are in
 * net_rx.c and net_tx.c, commands in net_control.c. All of it runs on one I/O loop under dev.lock.
 *
 * The header in front of a frame is 12 bytes whatever is negotiated: VERSION_1 is mandatory here,
 * and HASH_REPORT, which alone would make it longer, is not offered (QEMU CVE-2023-6693 mixed up
 * the sizes).
 *
 * Watches belong to the loop's thread, but activation and reset arrive on a vCPU's. So neither
 * touches them: activation makes the core kick every queue, and that turn, on the loop, begins to
 * watch; after a reset the next event finds the device not running and ends the watch. The same
 * goes for telling the host which pairs are in use, since a queue that is off must be off the loop
 * first.
 */
#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "virtio/net_priv.h"

/* Linux 6.2; newer than the headers of Debian 12. */
#define F_GUEST_USO4 (1ull << 54)
#define F_GUEST_USO6 (1ull << 55)
#define F_HOST_USO   (1ull << 56)

#define PAIRS_MAX 32

_Static_assert(sizeof(struct virtio_net_hdr_v1) == NET_VNET_HDR_LEN, "the header");

/* What one offload is called in each direction. */
static const struct {
	unsigned net;
	uint64_t guest, host;
} offloads[] = {
	{ NET_OFFLOAD_CSUM, NET_F(GUEST_CSUM), NET_F(CSUM) },
	{ NET_OFFLOAD_TSO4, NET_F(GUEST_TSO4), NET_F(HOST_TSO4) },
	{ NET_OFFLOAD_TSO6, NET_F(GUEST_TSO6), NET_F(HOST_TSO6) },
	{ NET_OFFLOAD_ECN, NET_F(GUEST_ECN), NET_F(HOST_ECN) },
	{ NET_OFFLOAD_UFO, NET_F(GUEST_UFO), NET_F(HOST_UFO) },
	{ NET_OFFLOAD_USO, F_GUEST_USO4 | F_GUEST_USO6, F_HOST_USO },
};
#define N_OFFLOADS (sizeof(offloads) / sizeof(offloads[0]))

static uint64_t guest_bits(unsigned net_offloads)
{
	uint64_t f = 0;

	for (size_t i = 0; i < N_OFFLOADS; i++)
		f |= net_offloads & offloads[i].net ? offloads[i].guest : 0;
	return f;
}

static uint64_t offered(const struct virtio_net_options *o, const struct netif *nif)
{
	uint64_t f = NET_F(MAC) | NET_F(STATUS) | NET_F(MRG_RXBUF) | NET_F(CTRL_VQ) |
		     NET_F(CTRL_RX) | NET_F(CTRL_RX_EXTRA) | NET_F(CTRL_MAC_ADDR) |
		     NET_F(GUEST_ANNOUNCE);

	f |= guest_bits(nif->offloads);
	for (size_t i = 0; i < N_OFFLOADS; i++)
		f |= nif->offloads & offloads[i].net ? offloads[i].host : 0;
	if (nif->offloads)
		f |= NET_F(CTRL_GUEST_OFFLOADS);
	if (o->mtu)
		f |= NET_F(MTU);
	if (o->pairs > 1)
		f |= NET_F(MQ);
	return f;
}

void virtio_net_default_mac(const char *vm_id, const char *nic_id, uint8_t mac[6])
{
	/* FNV-1a of "vm/nic"; neither name contains a slash */
	const char *const parts[] = { vm_id, "/", nic_id };
	uint64_t h = 0xcbf29ce484222325;

	for (int i = 0; i < 3; i++)
		for (const char *s = parts[i]; *s; s++)
			h = (h ^ (uint8_t)*s) * 0x100000001b3;
	h ^= h >> 48;
	for (int i = 0; i < 6; i++)
		mac[i] = (uint8_t)(h >> 8 * i);
	mac[0] = (uint8_t)((mac[0] & ~1) | 2); /* one station's, locally administered */
}

/* ---- state ---- */

static const struct state_field net_fields[] = {
	STATE_U64(1, struct virtio_net_regs, offloads_off),
	STATE_U16(2, struct virtio_net_regs, pairs),
	STATE_U8(3, struct virtio_net_regs, promisc),
	STATE_U8(4, struct virtio_net_regs, allmulti),
	STATE_U8(5, struct virtio_net_regs, alluni),
	STATE_U8(6, struct virtio_net_regs, nomulti),
	STATE_U8(7, struct virtio_net_regs, nouni),
	STATE_U8(8, struct virtio_net_regs, nobcast),
};

static int net_validate(const void *regs, const void *device, struct err *err)
{
	const struct virtio_net_regs *r = regs;
	const struct net *net = device;

	if (!r->pairs || r->pairs > net->npairs)
		return err_set(err, EINVAL, "virtio-net.pairs: %u, while %s has %u", r->pairs,
			       net->v.dev.name, net->npairs);
	if (r->offloads_off & ~guest_bits(~0u))
		return err_set(err, EINVAL, "virtio-net.offloads_off: 0x%llx",
			       (unsigned long long)r->offloads_off);
	if ((r->promisc | r->allmulti | r->alluni | r->nomulti | r->nouni | r->nobcast) > 1)
		return err_set(err, EINVAL, "virtio-net: a receive mode is neither 0 nor 1");
	return 0;
}

const struct state_desc virtio_net_state =
	STATE_DESC("virtio-net", struct virtio_net_regs, net_fields, net_validate);

/* ---- configuration ---- */

static bool link_up(const struct net *net)
{
	for (unsigned i = 0; i < net->npairs; i++)
		if (net->pair[i].gone)
			return false;
	return true;
}

static void put_config(struct net *net)
{
	struct virtio_net_config c = {
		.status = htole16(link_up(net) ? VIRTIO_NET_S_LINK_UP : 0),
		.max_virtqueue_pairs = htole16((uint16_t)net->npairs),
		.mtu = htole16(net->mtu),
	};

	memcpy(c.mac, net->mac, sizeof(c.mac));
	memcpy(net->v.regs.config, &c, net->v.config_len);
}

void net_link_lost(struct net_pair *p, int error)
{
	struct net *net = p->net;
	uint16_t down = 0;
	bool was_up = link_up(net);

	p->gone = true;
	p->rx_on = p->tx_blocked = false;
	p->held = 0;
	net_watch(p);
	if (!was_up)
		return;
	log_err("%s: %s %s is gone (%s): the guest's link is down until the machine is restarted",
		net->v.dev.name, p->nif->ops->name, p->nif->name, strerror(-error));
	memcpy(net->v.regs.config + offsetof(struct virtio_net_config, status), &down,
	       sizeof(down));
	virtio_config_changed(&net->v);
}

/* ---- the host's side ---- */

uint64_t net_guest_offload_bits(const struct net *net)
{
	return net->v.regs.driver_features & guest_bits(net->pair[0].nif->offloads);
}

void net_apply_offloads(struct net *net)
{
	struct netif *nif = net->pair[0].nif; /* they are the interface's, not the queue's */
	uint64_t on = net_guest_offload_bits(net) & ~net->regs.offloads_off;
	unsigned set = 0;

	for (size_t i = 0; i < N_OFFLOADS; i++)
		set |= (on & offloads[i].guest) == offloads[i].guest ? offloads[i].net : 0;
	if (set == net->applied || net->pair[0].gone)
		return;
	int rc = nif->ops->set_offload(nif, set);

	/* not fatal: the host then does the work itself */
	if (rc)
		log_guest(&net->v.complaints, "%s: %s does not take offloads 0x%x: %s",
			  net->v.dev.name, nif->name, set, strerror(-rc));
	else
		net->applied = set;
}

void net_apply_pairs(struct net *net)
{
	net->pairs_changed = false;
	for (unsigned i = 1; i < net->npairs; i++) {
		struct net_pair *p = &net->pair[i];
		bool on = i < net->regs.pairs;

		if (!on) {
			p->rx_on = p->tx_blocked = false;
			net_watch(p);
			net_vhost_stop(p, true);
		}
		int rc = p->gone || !p->nif->ops->enable ? 0 : p->nif->ops->enable(p->nif, on);

		if (rc)
			log_guest(&net->v.complaints, "%s: cannot switch queue %u of %s %s: %s",
				  net->v.dev.name, i, p->nif->name, on ? "on" : "off",
				  strerror(-rc));
	}
}

static void on_ready(struct loop_watch *w, uint32_t events)
{
	struct net_pair *p = (struct net_pair *)((char *)w - offsetof(struct net_pair, watch));
	struct virtio *v = &p->net->v;

	pthread_mutex_lock(&v->dev.lock);
	if (!virtio_running(v) || p->index >= p->net->regs.pairs) {
		p->rx_on = p->tx_blocked = false;
		net_watch(p);
	} else {
		if (p->tx_blocked && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
			p->tx_blocked = false;
			net_tx_turn(p);
		}
		if (p->rx_on && events & (EPOLLIN | EPOLLERR | EPOLLHUP))
			net_rx_turn(p);
	}
	pthread_mutex_unlock(&v->dev.lock);
}

/*
 * A watch that waits for nothing is taken off, not silenced: EPOLLERR of an interface that went
 * away would come all the same, for ever.
 */
void net_watch(struct net_pair *p)
{
	uint32_t events = (p->rx_on ? EPOLLIN : 0) | (p->tx_blocked ? EPOLLOUT : 0);
	int rc = 0;

	if (p->nif->fd < 0 || events == (p->watch.fd < 0 ? 0 : p->watch.events))
		return;
	if (!events)
		loop_remove(&p->watch);
	else if (p->watch.fd < 0)
		rc = loop_add(p->net->v.loop, &p->watch, p->nif->fd, events, on_ready);
	else
		rc = loop_modify(&p->watch, events);
	if (rc)
		log_guest(&p->net->v.complaints, "%s: cannot watch %s: %s", p->net->v.dev.name,
			  p->nif->name, strerror(-rc));
}

/* ---- the core's calls ---- */

/* DRIVER_OK, or a restored machine resumes: regs hold what is to be in force. */
static int net_activate(struct virtio *v)
{
	struct net *net = net_of(v);

	net_apply_offloads(net);
	net->pairs_changed = true;
	return 0;
}

static void net_kick(struct virtio *v, unsigned q)
{
	struct net *net = net_of(v);
	unsigned pairs = virtio_has(v, NET_F(MQ)) ? net->npairs : 1;

	if (net->pairs_changed)
		net_apply_pairs(net);
	/* 5.1.2: the control queue follows those that are negotiated, not those that exist */
	if (q == 2 * pairs) {
		if (virtio_has(v, NET_F(CTRL_VQ)))
			net_control_turn(net, q);
		if (!virtio_running(v)) /* its driver broke a rule */
			net_vhost_stop_all(net, true);
		return;
	}
	if (q / 2 >= net->regs.pairs)
		return;
	if (net_vhost_kick(&net->pair[q / 2], q & 1))
		return;
	if (q & 1)
		net_tx_turn(&net->pair[q / 2]);
	else
		net_rx_turn(&net->pair[q / 2]);
}

static void net_reset(struct virtio *v)
{
	struct net *net = net_of(v);
	bool stale = net->applied;

	net_vhost_reset(net);
	net->regs = (struct virtio_net_regs){ .pairs = 1 };
	put_config(net);
	net_apply_offloads(net); /* nothing is negotiated now */
	for (unsigned i = 0; i < net->npairs; i++) {
		struct net_pair *p = &net->pair[i];

		net->count.rx_dropped += p->held ? 1 : 0;
		p->held = 0;
		p->tx_blocked = false;
		p->stale |= stale;
	}
}

static void net_stop(struct virtio *v)
{
	struct net *net = net_of(v);

	for (unsigned i = 0; i < net->npairs; i++) {
		net->pair[i].rx_on = net->pair[i].tx_blocked = false;
		net_watch(&net->pair[i]);
	}
	net_vhost_stop_all(net, true);
}

/* The core kicks every queue next, and that starts traffic. */
static void net_start(struct virtio *v)
{
	if (virtio_running(v))
		net_apply_pairs(net_of(v));
}

static bool read_tap(struct net *net, struct netif_counters *c)
{
	struct netif *nif = net->pair[0].nif;

	return nif->ops->counters && !nif->ops->counters(nif, c);
}

/* Frames of rings that the kernel works on are only counted there. */
static struct netif_counters since_open(const struct net *net, const struct netif_counters *now)
{
	const struct netif_counters *was = &net->tap_at_open;

	return (struct netif_counters){
		.rx_frames = now->rx_frames - was->rx_frames,
		.rx_bytes = now->rx_bytes - was->rx_bytes,
		.rx_dropped = now->rx_dropped - was->rx_dropped,
		.tx_frames = now->tx_frames - was->tx_frames,
		.tx_bytes = now->tx_bytes - was->tx_bytes,
		.tx_dropped = now->tx_dropped - was->tx_dropped,
	};
}

static void net_stats(struct device *d, device_stat_fn put, void *arg)
{
	struct net *net = net_of((struct virtio *)d);

	struct netif_counters n, tap;

	pthread_mutex_lock(&d->lock);
	n = net->count;
	if (net->pair[0].vhost && read_tap(net, &tap))
		n = since_open(net, &tap);
	pthread_mutex_unlock(&d->lock);
	put(arg, "rx-frames", n.rx_frames);
	put(arg, "rx-bytes", n.rx_bytes);
	put(arg, "rx-dropped", n.rx_dropped);
	put(arg, "tx-frames", n.tx_frames);
	put(arg, "tx-bytes", n.tx_bytes);
	put(arg, "tx-dropped", n.tx_dropped);
}

static const char *net_worker(const struct device *d)
{
	return net_of((struct virtio *)d)->pair[0].vhost ? "vhost-net" : NULL;
}

/* ---- life ---- */

static void unwatch(void *arg)
{
	struct net *net = arg;

	for (unsigned i = 0; i < net->npairs; i++)
		loop_remove(&net->pair[i].watch);
	net_vhost_fini(net);
	loop_timer_fini(&net->announce_timer);
}

static void free_memory(struct net *net)
{
	for (unsigned i = 0; i < net->npairs; i++)
		free(net->pair[i].spill);
	free(net);
}

static void net_free(struct device *d)
{
	struct net *net = net_of((struct virtio *)d);

	loop_call(net->v.loop, unwatch, net);
	virtio_fini(&net->v);
	for (unsigned i = 0; i < net->npairs; i++)
		net->pair[i].nif->ops->free(net->pair[i].nif);
	free_memory(net);
}

static const struct virtio_ops net_ops = {
	.dev = { .type = VIRTIO_NET_TYPE,
		 .log_writes = net_vhost_log,
		 .stats = net_stats,
		 .worker = net_worker,
		 .free = net_free },
	.id = 1,
	.activate = net_activate,
	.kick = net_kick,
	.reset = net_reset,
	.stop = net_stop,
	.start = net_start,
	.rerouted = net_vhost_rerouted,
};

/* NULL: out of memory. */
static struct net *allocate(const struct virtio_net_options *o, struct netif **ifs)
{
	struct net *net = calloc(1, sizeof(*net) + o->pairs * sizeof(struct net_pair));
	bool ok = net;

	for (unsigned i = 0; ok && i < o->pairs; i++) {
		struct net_pair *p = &net->pair[i];

		p->net = net;
		p->nif = ifs[i];
		p->index = i;
		p->watch.fd = -1;
		p->spill = malloc(NET_FRAME_MAX); /* pages come when a frame spills */
		net->npairs = i + 1;
		ok = p->spill;
	}
	if (net && !ok) {
		free_memory(net);
		return NULL;
	}
	if (net)
		net_vhost_blank(net);
	return net;
}

struct virtio *virtio_net_new(const struct virtio_net_options *o, struct netif **ifs,
			      struct gmem *mem, struct loop *loop, struct err *err)
{
	if (!o->pairs || o->pairs > PAIRS_MAX || (o->mtu && o->mtu < 68)) {
		err_set(err, EINVAL,
			"%s: %u queue pairs and an MTU of %u: 1 to %d pairs, MTU from 68", o->name,
			o->pairs, o->mtu, PAIRS_MAX);
		return NULL;
	}
	struct net *net = allocate(o, ifs);

	if (!net) {
		err_set(err, ENOMEM, "%s: out of memory for %u queue pairs", o->name, o->pairs);
		return NULL;
	}
	if (virtio_init(&net->v, &net_ops, o->name, mem, loop, offered(o, ifs[0]), 2 * o->pairs + 1,
			o->queue_size, err)) {
		free_memory(net);
		return NULL;
	}
	if (net_announce_init(net, err) || (o->vhost && net_vhost_init(net, o->vhost, err))) {
		unwatch(net);
		virtio_fini(&net->v);
		free_memory(net);
		return NULL;
	}
	if (o->vhost)
		read_tap(net, &net->tap_at_open);
	uint16_t mtu = o->mtu ? o->mtu : ifs[0]->mtu;

	net->v.config_len = offsetof(struct virtio_net_config, mtu) + sizeof(uint16_t);
	net->mtu = o->mtu;
	memcpy(net->mac, o->mac, sizeof(net->mac));
	net->regs.pairs = 1;
	/* Ethernet's header with a VLAN tag, and what stands in front */
	net->small = NET_VNET_HDR_LEN + 18 + (mtu > 1500 ? mtu : 1500);
	for (unsigned i = 0; i < o->pairs; i++)
		net->pair[i].expect = net->small;
	device_add_state(&net->v.dev, &virtio_net_state, &net->regs, net);
	put_config(net);
	net_apply_pairs(net); /* nothing is watched yet, so this may run on any thread */
	return &net->v;
}
