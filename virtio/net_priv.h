/*
 * net_priv.h - what net.c, net_rx.c, net_tx.c and net_control.c share
 *
 * Everything here is touched under dev.lock only; watches also only on the loop's thread.
 */
#ifndef VIRTIO_NET_PRIV_H
#define VIRTIO_NET_PRIV_H

#include <linux/virtio_net.h>
#include <stddef.h>

/* The kernel has these as bit numbers, device.h as masks. */
#undef VIRTIO_F_VERSION_1
#undef VIRTIO_F_ACCESS_PLATFORM
#undef VIRTIO_F_RING_RESET

#include "backends/vhost.h"
#include "virtio/net.h"

#define NET_F(bit) (1ull << VIRTIO_NET_F_##bit)

#define NET_BATCH 64 /* frames a turn, so that pairs and devices that share a loop stay fair */

/* Guest-visible state beside the configuration space (table virtio_net_state). */
struct virtio_net_regs {
	uint64_t offloads_off; /* GUEST_ feature bits that the driver switched off again */
	uint16_t pairs;        /* in use: 1 until the driver asks for more */
	uint8_t promisc, allmulti, alluni, nomulti, nouni, nobcast;
};

struct net;
struct net_pair;

/* A ring that the kernel may work on (net_vhost.c). */
struct net_ring {
	struct net_pair *pair;
	unsigned index;    /* VHOST_RX, VHOST_TX */
	struct event call; /* the interrupt, where it takes us */
	struct loop_watch watch;
};

struct net_pair {
	struct net *net;
	struct netif *nif; /* owned */
	unsigned index;
	struct loop_watch watch; /* on nif's descriptor */
	bool rx_on;              /* watch for frames */
	bool tx_blocked;         /* watch for room; TX kicks wait for it */
	bool gone;               /* the host took the interface away */
	bool stale;          /* throw away what is queued: its offloads are an earlier driver's */
	unsigned errors;     /* failed receives in a row */
	uint32_t expect;     /* bytes of buffers to offer the next frame */
	uint32_t held;       /* bytes of a frame in spill that waits for buffers; 0: none */
	uint8_t *spill;      /* NET_FRAME_MAX bytes, for what did not fit */
	struct vhost *vhost; /* owned; NULL: the loop does the work */
	struct net_ring ring[VHOST_RINGS];
};

/* RX buffers taken for this turn, in order. Empty between turns. */
#define NET_WINDOW_IOV 1023 /* with the spill's one: IOV_MAX */
struct net_window {
	unsigned first, end;         /* chains */
	unsigned iov_first, iov_end; /* their ranges */
	uint64_t room;               /* bytes in them */
	struct {
		uint64_t len;
		uint16_t head, nin;
	} chain[VIRTQ_SIZE_MAX];
	struct iovec iov[NET_WINDOW_IOV + 1];
};

struct net {
	struct virtio v;
	struct virtio_net_regs regs;
	uint8_t mac[6]; /* as configured; a reset goes back to it */
	uint16_t mtu;
	unsigned npairs;
	unsigned applied;   /* enum net_offload, as the host knows them */
	bool pairs_changed; /* the host does not know regs.pairs yet */
	uint32_t small;     /* bytes of a frame that is not a segmentation offload's */
	struct netif_counters count;
	struct loop_timer announce_timer; /* on the loop's thread, as the next */
	unsigned announcements;           /* still to be sent */
	struct event vhost_back;          /* a ring came back: the loop watches its kick again */
	struct event vhost_error;         /* the kernel does not understand a ring */
	struct loop_watch back_watch, error_watch;
	struct loop_timer look;            /* is the tap still there? */
	struct netif_counters tap_at_open; /* what its counters began with */
	struct iovec iov[VIRTQ_SEGS_MAX];  /* TX and control chains */
	struct net_window window;
	struct net_pair pair[];
};

static inline struct net *net_of(struct virtio *v)
{
	return (struct net *)((char *)v - offsetof(struct net, v));
}

static inline unsigned net_rx_index(const struct net_pair *p)
{
	return 2 * p->index;
}

static inline unsigned net_tx_index(const struct net_pair *p)
{
	return 2 * p->index + 1;
}

/* net.c */
void net_watch(struct net_pair *p);                /* as rx_on and tx_blocked say */
void net_link_lost(struct net_pair *p, int error); /* the host's interface is no more */
void net_apply_offloads(struct net *net);
void net_apply_pairs(struct net *net);
uint64_t net_guest_offload_bits(const struct net *net); /* negotiated */

/* One turn: a bounded batch, one signal. On the loop's thread. */
void net_rx_turn(struct net_pair *p);
void net_tx_turn(struct net_pair *p);
void net_control_turn(struct net *net, unsigned queue);

void net_rx_drain(struct net_pair *p); /* throw away what waits in the tap */

/* net_vhost.c */
void net_vhost_blank(struct net *net);                                  /* so that fini may come */
int net_vhost_init(struct net *net, struct vhost **h, struct err *err); /* owns @h[] on success */
void net_vhost_fini(struct net *net);                                   /* on the loop's thread */
bool net_vhost_kick(struct net_pair *p,
		    unsigned ring); /* on the loop's; true: it is the kernel's */
/* Any thread. @keep: what the kernel did is in the queues' registers; else they were reset. */
void net_vhost_stop(struct net_pair *p, bool keep);
void net_vhost_stop_all(struct net *net, bool keep);
void net_vhost_reset(struct net *net);
void net_vhost_rerouted(struct virtio *v, unsigned q);
int net_vhost_log(struct device *d, void *log);

/* net_announce.c */
int net_announce_init(struct net *net, struct err *err);
void net_announced(struct net *net); /* the driver has done so */

#endif
