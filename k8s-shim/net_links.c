/*
 * net_links.c - what CNI has put into the pod's namespace
 *
 * A link becomes a NIC if it carries Ethernet frames, is up and stands alone: lo, tunnels that
 * every namespace has once their driver is loaded, ports of a bridge in the pod and VPN taps of
 * sidecars do not.
 *
 * What is read is turned into what a guest has to do to behave as the pod would. The network of
 * an address is on the link only where the pod has a route that says so; otherwise the guest
 * would look for its neighbours where nobody answers. A gateway that no on-link route reaches
 * (flag onlink) gets one of its own. Addresses and routes made from router advertisements are
 * left out: the router's advertisements go on to the guest.
 */
#include <net/if.h>
#include <linux/if_addr.h>
#include <linux/if_arp.h>
#include <linux/rtnetlink.h>
#include <netlink/cache.h>
#include <netlink/errno.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>
#include <netlink/socket.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "k8s-shim/net_priv.h"

#define MTU_MAX 65521 /* what a virtio NIC takes */

/* ---- netlink ---- */

/* libnl has error numbers of its own. */
static int errno_of(int rc)
{
	switch (rc < 0 ? -rc : rc) {
	case NLE_EXIST:
		return EEXIST;
	case NLE_PERM:
	case NLE_NOACCESS:
		return EPERM;
	case NLE_NODEV:
		return ENODEV;
	case NLE_OBJ_NOTFOUND:
		return ENOENT;
	case NLE_NOMEM:
		return ENOMEM;
	case NLE_RANGE:
	case NLE_INVAL:
		return EINVAL;
	case NLE_OPNOTSUPP:
		return EOPNOTSUPP;
	case NLE_BUSY:
		return EBUSY;
	default:
		return EIO;
	}
}

int netlink_err(struct err *err, int rc, const char *fmt, ...)
{
	char what[ERR_MSG_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	return err_set(err, errno_of(rc), "%s: %s", what, nl_geterror(rc));
}

struct nl_sock *netlink_open(struct err *err)
{
	struct nl_sock *nl = nl_socket_alloc();
	int rc = nl ? nl_connect(nl, NETLINK_ROUTE) : -NLE_NOMEM;

	if (!rc)
		return nl;
	netlink_err(err, rc, "cannot talk to the kernel's network configuration");
	nl_socket_free(nl);
	return NULL;
}

int net_link_change(struct nl_sock *nl, int index, unsigned set, unsigned unset, unsigned mtu)
{
	struct rtnl_link *which = rtnl_link_alloc(), *change = rtnl_link_alloc();
	int rc = -NLE_NOMEM;

	if (which && change) {
		rtnl_link_set_ifindex(which, index);
		if (set)
			rtnl_link_set_flags(change, set);
		if (unset)
			rtnl_link_unset_flags(change, unset);
		if (mtu)
			rtnl_link_set_mtu(change, mtu);
		rc = rtnl_link_change(nl, which, change, 0);
	}
	rtnl_link_put(which);
	rtnl_link_put(change);
	return rc;
}

static bool link_local6(int family, const uint8_t *a)
{
	return family == AF_INET6 && a[0] == 0xfe && (a[1] & 0xc0) == 0x80;
}

/* ---- links ---- */

static bool for_guest(struct rtnl_link *l)
{
	const char *kind = rtnl_link_get_type(l);
	struct nl_addr *mac = rtnl_link_get_addr(l);

	return rtnl_link_get_arptype(l) == ARPHRD_ETHER && !rtnl_link_get_master(l) &&
	       rtnl_link_get_flags(l) & IFF_UP && !(kind && !strcmp(kind, "tun")) && mac &&
	       nl_addr_get_len(mac) == 6;
}

static void read_link(struct rtnl_link *l, struct nic *n)
{
	unsigned mtu = rtnl_link_get_mtu(l), flags = rtnl_link_get_flags(l);

	n->index = rtnl_link_get_ifindex(l);
	n->no_arp = flags & IFF_NOARP;
	n->allmulti = flags & IFF_ALLMULTI;
	snprintf(n->pub.name, sizeof(n->pub.name), "%s", rtnl_link_get_name(l));
	memcpy(n->pub.mac, nl_addr_get_binary_addr(rtnl_link_get_addr(l)), 6);
	n->pub.mtu = mtu > MTU_MAX ? MTU_MAX : mtu;
}

static int by_index(const void *a, const void *b)
{
	const struct nic *x = a, *y = b;

	return x->index - y->index;
}

static int read_links(struct nl_sock *nl, struct pod_net *n, struct err *err)
{
	struct nl_cache *cache;
	int rc = rtnl_link_alloc_cache(nl, AF_UNSPEC, &cache);

	if (rc)
		return netlink_err(err, rc, "cannot list the pod's network interfaces");
	for (struct nl_object *o = nl_cache_get_first(cache); o; o = nl_cache_get_next(o)) {
		struct rtnl_link *l = (struct rtnl_link *)o;

		if (!for_guest(l))
			continue;
		if (n->count == POD_NICS_MAX) {
			rc = err_set(
				err, E2BIG,
				"the pod has more than %d network interfaces: a virtual machine "
				"cannot have as many NICs",
				POD_NICS_MAX);
			break;
		}
		read_link(l, &n->nics[n->count++]);
	}
	nl_cache_free(cache);
	qsort(n->nics, n->count, sizeof(n->nics[0]), by_index);
	return rc;
}

int net_links_list(struct nl_sock *nl, int *index, unsigned room, struct err *err)
{
	struct nl_cache *cache;
	int rc = rtnl_link_alloc_cache(nl, AF_UNSPEC, &cache);
	unsigned n = 0;

	if (rc)
		return netlink_err(err, rc, "cannot list the pod's network interfaces");
	for (struct nl_object *o = nl_cache_get_first(cache); o; o = nl_cache_get_next(o)) {
		struct rtnl_link *l = (struct rtnl_link *)o;

		if (!(rtnl_link_get_flags(l) & IFF_LOOPBACK) && n < room)
			index[n++] = rtnl_link_get_ifindex(l);
	}
	nl_cache_free(cache);
	return (int)n;
}

/* ---- addresses ---- */

static struct nic *nic_of(struct pod_net *n, int index)
{
	for (unsigned i = 0; i < n->count; i++)
		if (n->nics[i].index == index)
			return &n->nics[i];
	return NULL;
}

static void read_addr(struct rtnl_addr *a, struct nic *n)
{
	struct nl_addr *local = rtnl_addr_get_local(a);
	struct pod_addr *to = &n->addrs[n->pub.naddrs];
	int family = local ? nl_addr_get_family(local) : AF_UNSPEC;
	unsigned len = family == AF_INET ? 4 : 16;

	if ((family != AF_INET && family != AF_INET6) || nl_addr_get_len(local) != len ||
	    link_local6(family, nl_addr_get_binary_addr(local)))
		return;
	/* autoconfigured: the guest does that, too */
	if (family == AF_INET6 && !(rtnl_addr_get_flags(a) & IFA_F_PERMANENT))
		return;
	if (n->pub.naddrs == POD_ADDRS_MAX) {
		log_warn("%s: more than %d addresses: the guest gets the first of them",
			 n->pub.name, POD_ADDRS_MAX);
		return;
	}
	*to = (struct pod_addr){ .family = family, .prefix = nl_addr_get_prefixlen(local) };
	if (rtnl_addr_get_peer(a)) /* the network named is the other end's */
		to->prefix = len * 8;
	memcpy(to->addr, nl_addr_get_binary_addr(local), len);
	n->pub.naddrs++;
}

static int read_addrs(struct nl_sock *nl, struct pod_net *n, struct err *err)
{
	struct nl_cache *cache;
	int rc = rtnl_addr_alloc_cache(nl, &cache);

	if (rc)
		return netlink_err(err, rc, "cannot list the pod's addresses");
	for (struct nl_object *o = nl_cache_get_first(cache); o; o = nl_cache_get_next(o)) {
		struct nic *nic = nic_of(n, rtnl_addr_get_ifindex((struct rtnl_addr *)o));

		if (nic)
			read_addr((struct rtnl_addr *)o, nic);
	}
	nl_cache_free(cache);
	return 0;
}

/* ---- routes ---- */

static bool same_prefix(const uint8_t *a, const uint8_t *b, unsigned prefix)
{
	unsigned whole = prefix / 8, rest = prefix % 8;

	return !memcmp(a, b, whole) &&
	       (!rest || !((a[whole] ^ b[whole]) & (uint8_t)(0xff00 >> rest)));
}

static void add_route(struct nic *n, const struct pod_route *r)
{
	if (n->pub.nroutes == POD_ROUTES_MAX)
		log_warn("%s: more than %d routes: the guest gets the first of them", n->pub.name,
			 POD_ROUTES_MAX);
	else
		n->routes[n->pub.nroutes++] = *r;
}

static void read_hop(struct rtnl_route *r, struct rtnl_nexthop *hop, struct nic *n)
{
	struct nl_addr *dst = rtnl_route_get_dst(r), *via = rtnl_route_nh_get_gateway(hop);
	struct pod_route to = { .family = rtnl_route_get_family(r),
				.metric = rtnl_route_get_priority(r) };

	if (rtnl_route_nh_get_via(hop)) {
		log_warn("%s: a route by a next hop of another family is not told the guest",
			 n->pub.name);
		return;
	}
	if (dst && nl_addr_get_len(dst) <= 16) {
		to.prefix = nl_addr_get_prefixlen(dst);
		memcpy(to.to, nl_addr_get_binary_addr(dst), nl_addr_get_len(dst));
	}
	if (via && nl_addr_get_len(via) <= 16) {
		to.has_via = true;
		memcpy(to.via, nl_addr_get_binary_addr(via), nl_addr_get_len(via));
	}
	if (!link_local6(to.family, to.to))
		add_route(n, &to);
}

static void read_route(struct rtnl_route *r, struct pod_net *n)
{
	int family = rtnl_route_get_family(r);

	if (rtnl_route_get_table(r) != RT_TABLE_MAIN || rtnl_route_get_type(r) != RTN_UNICAST ||
	    rtnl_route_get_protocol(r) == RTPROT_RA || (family != AF_INET && family != AF_INET6))
		return;
	for (int i = 0; i < rtnl_route_get_nnexthops(r); i++) {
		struct rtnl_nexthop *hop = rtnl_route_nexthop_n(r, i);
		struct nic *nic = nic_of(n, rtnl_route_nh_get_ifindex(hop));

		if (nic)
			read_hop(r, hop, nic);
	}
}

static int read_routes(struct nl_sock *nl, struct pod_net *n, struct err *err)
{
	struct nl_cache *cache;
	int rc = rtnl_route_alloc_cache(nl, AF_UNSPEC, 0, &cache);

	if (rc)
		return netlink_err(err, rc, "cannot list the pod's routes");
	for (struct nl_object *o = nl_cache_get_first(cache); o; o = nl_cache_get_next(o))
		read_route((struct rtnl_route *)o, n);
	nl_cache_free(cache);
	return 0;
}

/* ---- what the guest has to do ---- */

/* A route to the network of the address @a, which the guest makes by itself from the prefix? */
static bool is_network_of(const struct pod_route *r, const struct pod_addr *a)
{
	return !r->has_via && r->family == a->family && r->prefix == a->prefix &&
	       same_prefix(r->to, a->addr, a->prefix);
}

static void join_networks(struct nic *n)
{
	bool on_link[POD_ADDRS_MAX] = { false };
	unsigned kept = 0;

	for (unsigned i = 0; i < n->pub.nroutes; i++) {
		bool network = false;

		for (unsigned a = 0; a < n->pub.naddrs; a++)
			if (is_network_of(&n->routes[i], &n->addrs[a]))
				network = on_link[a] = true;
		if (!network)
			n->routes[kept++] = n->routes[i];
	}
	n->pub.nroutes = kept;
	for (unsigned a = 0; a < n->pub.naddrs; a++)
		if (!on_link[a])
			n->addrs[a].prefix = n->addrs[a].family == AF_INET ? 32 : 128;
}

static bool reachable(const struct nic *n, int family, const uint8_t *via)
{
	for (unsigned i = 0; i < n->pub.naddrs; i++)
		if (n->addrs[i].family == family &&
		    same_prefix(n->addrs[i].addr, via, n->addrs[i].prefix))
			return true;
	for (unsigned i = 0; i < n->pub.nroutes; i++)
		if (n->routes[i].family == family && !n->routes[i].has_via &&
		    same_prefix(n->routes[i].to, via, n->routes[i].prefix))
			return true;
	return link_local6(family, via);
}

static void reach_gateways(struct nic *n)
{
	unsigned count = n->pub.nroutes;

	for (unsigned i = 0; i < count; i++) {
		const struct pod_route *r = &n->routes[i];
		struct pod_route direct = { .family = r->family,
					    .prefix = r->family == AF_INET ? 32 : 128,
					    .metric = r->metric };

		if (!r->has_via || reachable(n, r->family, r->via))
			continue;
		memcpy(direct.to, r->via, 16);
		add_route(n, &direct);
	}
}

/* On-link ones first, then the more specific: the order in which they can be added. */
static int by_need(const void *a, const void *b)
{
	const struct pod_route *x = a, *y = b;

	if (x->has_via != y->has_via)
		return x->has_via - y->has_via;
	if (x->prefix != y->prefix)
		return (int)y->prefix - (int)x->prefix;
	return x->metric < y->metric ? -1 : x->metric > y->metric;
}

int net_links_read(struct nl_sock *nl, struct pod_net *n, struct err *err)
{
	int rc = read_links(nl, n, err);

	if (!rc)
		rc = read_addrs(nl, n, err);
	if (!rc)
		rc = read_routes(nl, n, err);
	for (unsigned i = 0; i < n->count && !rc; i++) {
		struct nic *nic = &n->nics[i];

		join_networks(nic);
		reach_gateways(nic);
		qsort(nic->routes, nic->pub.nroutes, sizeof(nic->routes[0]), by_need);
		nic->pub.addrs = nic->addrs;
		nic->pub.routes = nic->routes;
	}
	return rc;
}
