/*
 * net_priv.h - the parts of the pod's network among themselves
 */
#ifndef K8S_SHIM_NET_PRIV_H
#define K8S_SHIM_NET_PRIV_H

#include "k8s-shim/net.h"
#include "k8s-shim/responder.h"
#include "k8s-shim/told.h"

struct nl_sock;

#define TAP_PREFIX "cortap" /* and the link's ifindex: sweeping finds them by it */

struct nic {
	struct pod_nic pub;
	int index;             /* of the link */
	bool no_arp, allmulti; /* the link's flags as found */
	int tap_index;
	char tap[IF_NAMESIZE];
	int taps[POD_QUEUES_MAX];
	struct pod_addr addrs[POD_ADDRS_MAX];
	struct pod_route routes[POD_ROUTES_MAX];
	struct responder responder;
};

struct pod_net {
	char *netns;
	struct told told;
	unsigned queues;
	unsigned count;
	struct nic nics[POD_NICS_MAX];
};

/* ---- netlink (net_links.c); all of these inside the namespace ---- */

struct nl_sock *netlink_open(struct err *err);                 /* NULL on error; nl_socket_free() */
int netlink_err(struct err *err, int rc, const char *fmt, ...) /* @rc: libnl's; -errno */
	__attribute__((format(printf, 3, 4)));

/* The links a machine gets NICs for, with addresses and routes, in order of ifindex. */
int net_links_read(struct nl_sock *nl, struct pod_net *n, struct err *err);
/* Every link's index but lo's, taps of ours included. How many, or -errno. */
int net_links_list(struct nl_sock *nl, int *index, unsigned room, struct err *err);
int net_link_change(struct nl_sock *nl, int index, unsigned set, unsigned unset, unsigned mtu);

/* ---- taps (net_taps.c) ---- */

int net_tap_make(struct nl_sock *nl, struct nic *n, unsigned queues, struct err *err);
void net_taps_remove(struct nl_sock *nl); /* every one of ours, whoever holds it open */
/* Is link @index a tap of ours, or has it one that somebody holds open? */
bool net_tap_in_use(int index);

/* ---- tc (net_tc.c) ---- */

/*
 * Send what arrives on @from out of @to, but leave UDP over IPv4 to @bypass_port to the
 * namespace, which has no use for it: between guest and responder DHCP stays on the tap.
 */
int net_tc_redirect(struct nl_sock *nl, int from, int to, uint16_t bypass_port, struct err *err);
/* Take that back. true: there was one. Other rules stay. */
bool net_tc_clear(struct nl_sock *nl, int index);
/* What leaves by link @index, a tap, waits nowhere but in the tap itself. libnl's error */
int net_tc_no_queue(struct nl_sock *nl, int index);

#endif
