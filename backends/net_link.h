/*
 * net_link.h - network interfaces through netlink (net_tap.c's)
 *
 * Set-up only: after the sandbox is entered nothing here is called but net_link_get().
 */
#ifndef BACKENDS_NET_LINK_H
#define BACKENDS_NET_LINK_H

#include <stdbool.h>

#include "backends/net.h"
#include "base/err.h"

struct nl_sock;

struct net_link {
	int index;
	unsigned mtu;
	bool up;
	bool tap;                       /* a tun driver's link, of type tap */
	bool multi_queue;               /* made with IFF_MULTI_QUEUE */
	unsigned queues;                /* descriptors attached to it, enabled or not */
	struct netif_counters counters; /* whoever holds a tap receives what the host sends by it */
};

struct nl_sock *net_link_connect(struct err *err); /* NULL on error; nl_socket_free() */

/* What @name is. -ENODEV (no message) when there is no such interface. */
int net_link_get(struct nl_sock *nl, const char *name, struct net_link *l, struct err *err);

int net_link_set_mtu(struct nl_sock *nl, int index, unsigned mtu); /* 0 or -errno */
int net_link_set_up(struct nl_sock *nl, int index);                /* 0 or -errno */

/* "192.0.2.1/24", IPv4 or IPv6. 1 added, 0 it had it already, or -errno. */
int net_link_add_addr(struct nl_sock *nl, int index, const char *addr);
void net_link_del_addr(struct nl_sock *nl, int index, const char *addr);

#endif
