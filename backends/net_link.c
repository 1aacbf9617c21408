/*
 * net_link.c - network interfaces through netlink
 *
 * libnl does the changes. The query reads the answer's attributes itself: the tun driver's own
 * (IFLA_INFO_DATA) tell how many descriptors a tap has, which is the only way to see that another
 * machine uses a multiqueue tap, and libnl-route does not know them.
 */
#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
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

/* Ask for @change's attributes to be set on interface @index. */
static int change_link(struct nl_sock *nl, int index, void (*fill)(struct rtnl_link *, unsigned),
		       unsigned value)
{
	struct rtnl_link *which = rtnl_link_alloc(), *change = rtnl_link_alloc();
	int rc = -NLE_NOMEM;

	if (which && change) {
		rtnl_link_set_ifindex(which, index);
		fill(change, value);
		rc = rtnl_link_change(nl, which, change, 0);
	}
	rtnl_link_put(which);
	rtnl_link_put(change);
	return from_nl(rc);
}

int net_link_set_mtu(struct nl_sock *nl, int index, unsigned mtu)
{
	return change_link(nl, index, rtnl_link_set_mtu, mtu);
}

int net_link_set_up(struct nl_sock *nl, int index)
{
	return change_link(nl, index, rtnl_link_set_flags, IFF_UP);
}

static int make_addr(int index, const char *text, struct rtnl_addr **out)
{
	struct nl_addr *local = NULL;
	struct rtnl_addr *a = rtnl_addr_alloc();
	int rc = a ? nl_addr_parse(text, AF_UNSPEC, &local) : -NLE_NOMEM;

	if (!rc) {
		rtnl_addr_set_ifindex(a, index);
		rc = rtnl_addr_set_local(a, local);
	}
	nl_addr_put(local);
	if (rc < 0) {
		rtnl_addr_put(a);
		return from_nl(rc);
	}
	*out = a;
	return 0;
}

int net_link_add_addr(struct nl_sock *nl, int index, const char *addr)
{
	struct rtnl_addr *a;
	int rc = make_addr(index, addr, &a);

	if (rc)
		return rc;
	rc = from_nl(rtnl_addr_add(nl, a, 0));
	rtnl_addr_put(a);
	return !rc ? 1 : rc == -EEXIST ? 0 : rc;
}

void net_link_del_addr(struct nl_sock *nl, int index, const char *addr)
{
	struct rtnl_addr *a;

	if (make_addr(index, addr, &a))
		return;
	rtnl_addr_delete(nl, a, 0);
	rtnl_addr_put(a);
}
