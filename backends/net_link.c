/*
 * net_link.c - network interfaces through netlink
 *
 * By libnl's messages alone. libnl-route has objects for all this, but would be a tenth of what each
 * machine takes beside guest RAM; and it does not know the tun driver's attributes (IFLA_INFO_DATA)
 * that tell how many descriptors a tap has, the only way to see that another machine uses a multiqueue
 * tap.
 */
#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <netlink/addr.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <string.h>

#include "backends/net_link.h"

/* libnl has error numbers of its own. */
static int from_nl(int rc)
{
	switch (rc >= 0 ? 0 : -rc) {
	case 0:
		return 0;
	case NLE_EXIST:
		return -EEXIST;
	case NLE_PERM:
	case NLE_NOACCESS:
		return -EPERM;
	case NLE_NODEV:
	case NLE_OBJ_NOTFOUND:
		return -ENODEV;
	case NLE_NOMEM:
		return -ENOMEM;
	case NLE_RANGE:
	case NLE_INVAL:
	case NLE_NOADDR:
		return -EINVAL;
	case NLE_OPNOTSUPP:
	case NLE_AF_NOSUPPORT:
		return -EOPNOTSUPP;
	case NLE_BUSY:
		return -EBUSY;
	default:
		return -EIO;
	}
}

struct nl_sock *net_link_connect(struct err *err)
{
	struct nl_sock *nl = nl_socket_alloc();
	int rc = nl ? nl_connect(nl, NETLINK_ROUTE) : -NLE_NOMEM;

	if (!rc)
		return nl;
	err_set(err, from_nl(rc), "cannot talk to the kernel's network configuration: %s",
		nl_geterror(rc));
	nl_socket_free(nl);
	return NULL;
}

static void read_tun_info(struct nlattr *data, struct net_link *l)
{
	struct nlattr *a[IFLA_TUN_MAX + 1];

	if (nla_parse_nested(a, IFLA_TUN_MAX, data, NULL) < 0)
		return;
	l->tap = a[IFLA_TUN_TYPE] && nla_get_u8(a[IFLA_TUN_TYPE]) == IFF_TAP;
	l->multi_queue = a[IFLA_TUN_MULTI_QUEUE] && nla_get_u8(a[IFLA_TUN_MULTI_QUEUE]);
	if (!l->multi_queue)
		return;
	if (a[IFLA_TUN_NUM_QUEUES])
		l->queues += nla_get_u32(a[IFLA_TUN_NUM_QUEUES]);
	if (a[IFLA_TUN_NUM_DISABLED_QUEUES])
		l->queues += nla_get_u32(a[IFLA_TUN_NUM_DISABLED_QUEUES]);
}

static void read_counters(const struct nlattr *stats, struct netif_counters *c)
{
	struct rtnl_link_stats64 s = { 0 };

	nla_memcpy(&s, stats, sizeof(s));
	*c = (struct netif_counters){ .rx_frames = s.tx_packets,
				      .rx_bytes = s.tx_bytes,
				      .rx_dropped = s.tx_dropped,
				      .tx_frames = s.rx_packets,
				      .tx_bytes = s.rx_bytes,
				      .tx_dropped = s.rx_dropped };
}

static int on_link(struct nl_msg *msg, void *arg)
{
	struct net_link *l = arg;
	struct nlmsghdr *h = nlmsg_hdr(msg);
	struct nlattr *a[IFLA_MAX + 1], *info[IFLA_INFO_MAX + 1];

	if (h->nlmsg_type != RTM_NEWLINK ||
	    nlmsg_parse(h, sizeof(struct ifinfomsg), a, IFLA_MAX, NULL) < 0)
		return NL_SKIP;
	const struct ifinfomsg *i = nlmsg_data(h);

	l->index = i->ifi_index;
	l->up = i->ifi_flags & IFF_UP;
	l->mtu = a[IFLA_MTU] ? nla_get_u32(a[IFLA_MTU]) : 0;
	if (a[IFLA_STATS64])
		read_counters(a[IFLA_STATS64], &l->counters);
	if (a[IFLA_LINKINFO] &&
	    nla_parse_nested(info, IFLA_INFO_MAX, a[IFLA_LINKINFO], NULL) >= 0 &&
	    info[IFLA_INFO_KIND] && !strcmp(nla_get_string(info[IFLA_INFO_KIND]), "tun") &&
	    info[IFLA_INFO_DATA])
		read_tun_info(info[IFLA_INFO_DATA], l);
	return NL_OK;
}

int net_link_get(struct nl_sock *nl, const char *name, struct net_link *l, struct err *err)
{
	struct ifinfomsg head = { .ifi_family = AF_UNSPEC };
	struct nl_msg *msg = nlmsg_alloc_simple(RTM_GETLINK, 0);
	int rc = msg ? 0 : -NLE_NOMEM;

	*l = (struct net_link){ 0 };
	if (!rc)
		rc = nlmsg_append(msg, &head, sizeof(head), NLMSG_ALIGNTO);
	if (!rc)
		rc = nla_put_string(msg, IFLA_IFNAME, name);
	if (!rc)
		rc = nl_socket_modify_cb(nl, NL_CB_VALID, NL_CB_CUSTOM, on_link, l);
	if (!rc)
		rc = nl_send_auto(nl, msg);
	nlmsg_free(msg);
	if (rc >= 0)
		rc = nl_recvmsgs_default(nl);
	if (rc >= 0) /* with NLM_F_ACK set by nl_send_auto: the answer, then an acknowledgement */
		rc = nl_wait_for_ack(nl);
	if (from_nl(rc) == -ENODEV)
		return -ENODEV;
	return rc < 0 ? err_set(err, from_nl(rc), "cannot look up interface %s: %s", name,
				nl_geterror(rc)) :
			0;
}

/* A request of @head and what @fill (may be NULL) adds with @arg, and its acknowledgement. */
static int ask(struct nl_sock *nl, int type, int flags, void *head, size_t len,
	       int (*fill)(struct nl_msg *msg, const void *arg), const void *arg)
{
	struct nl_msg *msg = nlmsg_alloc_simple(type, flags);
	int rc = msg ? nlmsg_append(msg, head, len, NLMSG_ALIGNTO) : -NLE_NOMEM;

	if (!rc && fill)
		rc = fill(msg, arg);
	if (!rc)
		rc = nl_send_auto(nl, msg);
	nlmsg_free(msg);
	return from_nl(rc < 0 ? rc : nl_wait_for_ack(nl));
}

static int put_mtu(struct nl_msg *msg, const void *arg)
{
	const uint32_t *mtu = arg;

	return nla_put_u32(msg, IFLA_MTU, *mtu);
}

int net_link_set_mtu(struct nl_sock *nl, int index, unsigned mtu)
{
	struct ifinfomsg head = { .ifi_index = index };

	return ask(nl, RTM_SETLINK, 0, &head, sizeof(head), put_mtu, &(uint32_t){ mtu });
}

int net_link_set_up(struct nl_sock *nl, int index)
{
	struct ifinfomsg head = { .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP };

	return ask(nl, RTM_SETLINK, 0, &head, sizeof(head), NULL, NULL);
}

/* The interface's own, and the other end's: a tap is no point-to-point link, so they are the same. */
static int put_addr(struct nl_msg *msg, const void *arg)
{
	struct nl_addr *local = (struct nl_addr *)arg; /* which libnl does not change */
	int rc = nla_put_addr(msg, IFA_LOCAL, local);

	return rc ? rc : nla_put_addr(msg, IFA_ADDRESS, local);
}

static int change_addr(struct nl_sock *nl, int type, int flags, int index, const char *text)
{
	struct nl_addr *local;
	int rc = from_nl(nl_addr_parse(text, AF_UNSPEC, &local));

	if (rc)
		return rc;
	struct ifaddrmsg head = { .ifa_family = (unsigned char)nl_addr_get_family(local),
				  .ifa_prefixlen = (unsigned char)nl_addr_get_prefixlen(local),
				  .ifa_index = (unsigned int)index };

	rc = ask(nl, type, flags, &head, sizeof(head), put_addr, local);
	nl_addr_put(local);
	return rc;
}

int net_link_add_addr(struct nl_sock *nl, int index, const char *addr)
{
	int rc = change_addr(nl, RTM_NEWADDR, NLM_F_CREATE, index, addr);

	return !rc ? 1 : rc == -EEXIST ? 0 : rc;
}

void net_link_del_addr(struct nl_sock *nl, int index, const char *addr)
{
	change_addr(nl, RTM_DELADDR, 0, index, addr);
}
