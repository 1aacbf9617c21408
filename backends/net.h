/*
 * net.h - where a NIC's frames go
 *
 * Frames carry a struct virtio_net_hdr_v1 (12 bytes) in front, as TAP speaks it with
 * IFF_VNET_HDR. One struct netif is one queue pair; a multiqueue NIC has several. Implementations:
 * net_tap.c, net_loop.c (two ends joined in memory, for tests and fuzzers).
 */
#ifndef BACKENDS_NET_H
#define BACKENDS_NET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/err.h"

/* Offloads the guest has agreed to receive (TUNSETOFFLOAD). */
enum net_offload {
	NET_OFFLOAD_CSUM = 1,
	NET_OFFLOAD_TSO4 = 2,
	NET_OFFLOAD_TSO6 = 4,
	NET_OFFLOAD_ECN = 8,
	NET_OFFLOAD_UFO = 16,
	NET_OFFLOAD_USO = 32,
};

#define NET_VNET_HDR_LEN 12
#define NET_FRAME_MAX    (65535 + 14 + 4 + NET_VNET_HDR_LEN)

struct netif;

/* From the guest's side: rx is what it received. */
struct netif_counters {
	uint64_t rx_frames, rx_bytes, rx_dropped;
	uint64_t tx_frames, tx_bytes, tx_dropped;
};

struct netif_ops {
	const char *name;
	/* One frame. Bytes moved; -EAGAIN (wait for @fd); -errno. Never blocks. */
	ssize_t (*send)(struct netif *n, const struct iovec *iov, unsigned niov);
	ssize_t (*receive)(struct netif *n, const struct iovec *iov, unsigned niov);
	int (*set_offload)(struct netif *n, unsigned offloads); /* 0 or -errno */
	/*
	 * Multiqueue: have the host send flows to this queue, or not. A queue that is off must not
	 * be polled. NULL where there is one queue. 0 or -errno.
	 */
	int (*enable)(struct netif *n, bool on);
	/* The interface's own, of all its queues. 0 or -errno; NULL: it has none. */
	int (*counters)(struct netif *n, struct netif_counters *c);
	void (*free)(struct netif *n); /* closes; removes the tap if we created it */
};

struct netif {
	const struct netif_ops *ops;
	int fd;            /* poll for EPOLLIN / EPOLLOUT; -1: none (tests drive it) */
	char *name;        /* tap's name, for messages */
	uint16_t mtu;      /* 0: unknown */
	unsigned offloads; /* what it can do, enum net_offload */
};

struct net_tap_options {
	const char *name; /* NULL when fd is given */
	const int *
		fd; /* inherited, one a pair, of one tap; owned by the netifs on success; or NULL */
	bool create;      /* make it when absent; it then goes away with us */
	const char *addr; /* "192.0.2.1/24" for the host's side, or NULL */
	unsigned mtu;     /* set on the tap when not 0 */
	unsigned pairs;   /* queue pairs */
	bool counters;    /* be able to tell the interface's own */
};

/*
 * Open @o->pairs queues of a tap into @n[] and set it up. -EBUSY in use by another machine, -EPERM,
 * -ENODEV absent and not to be created: each message names the tap and what to do. On error nothing
 * stays open or made.
 */
int net_tap_open(const struct net_tap_options *o, struct netif **n, struct err *err);

/* Two ends joined in memory, for tests and fuzzers: what one sends the other receives, up to @depth
 * frames. */
int net_loop_new(unsigned depth, struct netif *end[2], struct err *err);
unsigned net_loop_offload(const struct netif *n); /* what set_offload() was last told */

#endif
