/*
 * net_taps.c - the taps between the pod's links and the machine
 *
 * Not persistent: a tap lives as long as somebody holds its descriptors, so whatever is killed in
 * whatever order, no tap is left. It is of the pod's namespace but no part of its network: IPv6
 * is off on it, so the namespace's stack keeps silent towards the guest.
 *
 * A tap never tells the stack to wait: it has a ring of its own, and drops what finds that full. So a
 * qdisc before it is always empty and only costs: 5 to 9 % of all it takes to bring a frame from the other
 * end of a veth into that ring, where it is pfifo_fast. Most distributions have fq_codel.
 */
#include <fcntl.h>
#include <net/if.h>
#include <linux/if_tun.h>
#include <netlink/errno.h>
#include <netlink/netlink.h>
#include <netlink/route/link.h>
#include <netlink/cache.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/net_priv.h"

static int open_queue(struct nic *n, bool first, bool multi, int *out, struct err *err)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	cleanup_fd int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return err_set_sys(err, errno,
				   "cannot open /dev/net/tun for the pod's %s; if the driver is "
				   "missing: modprobe tun",
				   n->pub.name);
	snprintf(ifr.ifr_name, IFNAMSIZ, "%s", n->tap);
	if (multi)
		ifr.ifr_flags |= IFF_MULTI_QUEUE;
	if (first)
		ifr.ifr_flags = (short)(ifr.ifr_flags | IFF_TUN_EXCL);
	if (ioctl(fd, TUNSETIFF, &ifr))
		return err_set_sys(err, errno, "cannot make tap %s for the pod's %s", n->tap,
				   n->pub.name);
	*out = fd_steal(&fd);
	return 0;
}

static void silence(const char *tap)
{
	char path[64 + IF_NAMESIZE];
	cleanup_fd int fd = -1;

	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", tap);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) /* no IPv6 in this kernel */
		return;
	if (fd < 0 || write(fd, "1", 1) != 1)
		log_warn("tap %s: cannot turn IPv6 off: %s", tap, strerror(errno));
}

int net_tap_make(struct nl_sock *nl, struct nic *n, unsigned queues, struct err *err)
{
	int rc = 0;

	snprintf(n->tap, sizeof(n->tap), TAP_PREFIX "%d", n->index);
	queues = queues < 1 ? 1 : queues > POD_QUEUES_MAX ? POD_QUEUES_MAX : queues;
	for (n->pub.ntaps = 0; n->pub.ntaps < queues && !rc; n->pub.ntaps += !rc)
		rc = open_queue(n, !n->pub.ntaps, queues > 1, &n->taps[n->pub.ntaps], err);
	if (rc)
		return rc;
	n->pub.taps = n->taps;
	n->tap_index = (int)if_nametoindex(n->tap);
	silence(n->tap);
	rc = net_tc_no_queue(nl, n->tap_index);
	if (rc)
		log_info("tap %s: cannot do without a qdisc: %s", n->tap, nl_geterror(rc));
	rc = net_link_change(nl, n->tap_index, 0, 0, n->pub.mtu);
	return rc ? netlink_err(err, rc, "tap %s does not take the MTU %u of %s", n->tap,
				n->pub.mtu, n->pub.name) :
		    0;
}

bool net_tap_in_use(int index)
{
	char name[IF_NAMESIZE];

	if (if_indextoname((unsigned)index, name) && !strncmp(name, TAP_PREFIX, strlen(TAP_PREFIX)))
		return true;
	snprintf(name, sizeof(name), TAP_PREFIX "%d", index);
	return if_nametoindex(name) != 0;
}

void net_taps_remove(struct nl_sock *nl)
{
	struct nl_cache *cache;

	if (rtnl_link_alloc_cache(nl, AF_UNSPEC, &cache))
		return;
	for (struct nl_object *o = nl_cache_get_first(cache); o; o = nl_cache_get_next(o)) {
		struct rtnl_link *l = (struct rtnl_link *)o;
		const char *name = rtnl_link_get_name(l), *kind = rtnl_link_get_type(l);

		if (kind && !strcmp(kind, "tun") && name &&
		    !strncmp(name, TAP_PREFIX, strlen(TAP_PREFIX)))
			rtnl_link_delete(nl, l);
	}
	nl_cache_free(cache);
}
