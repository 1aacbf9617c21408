/*
 * net_tc.c - frames from a link to a tap and back, by tc
 *
 * A rule on the ingress of either end sends all that arrives there out of the other. That is
 * before the namespace's own stack: it never sees a frame for the guest, so it answers no ARP
 * request, no ping and no TCP segment in the guest's place, though the link keeps its addresses.
 * (It has to: ipvlan delivers by them, macvlan's multicast filter is made from them, and CNI's
 * CHECK looks for them.)
 *
 * matchall is the right classifier, u32 with a key that always matches does the same where the
 * kernel lacks it. In front of it a u32 rule without an action lets DHCP through to the
 * namespace's stack, which throws it away: the guest's requests would otherwise reach a DHCP
 * server in the pod's network (macvlan), and its answers race with ours. Without u32 that is so.
 *
 * The rules are known again by their priorities, so that a shim can take away what one that was
 * killed has left. The qdisc goes with the last rule in it.
 */
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/tc_act/tc_mirred.h>
#include <netlink/cache.h>
#include <netlink/errno.h>
#include <netlink/netlink.h>
#include <netlink/route/act/mirred.h>
#include <netlink/route/action.h>
#include <netlink/route/classifier.h>
#include <netlink/route/cls/matchall.h>
#include <netlink/route/cls/u32.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/tc.h>

#include "base/log.h"
#include "k8s-shim/net_priv.h"

#define PRIO_BYPASS   0xc0a0
#define PRIO_REDIRECT 0xc0a1
#define INGRESS       TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
#define EGRESS        TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)

static struct rtnl_qdisc *qdisc(int index, const char *kind, uint32_t parent, uint32_t handle)
{
	struct rtnl_qdisc *q = rtnl_qdisc_alloc();

	if (!q)
		return NULL;
	rtnl_tc_set_ifindex(TC_CAST(q), index);
	rtnl_tc_set_parent(TC_CAST(q), parent);
	rtnl_tc_set_handle(TC_CAST(q), handle);
	rtnl_tc_set_kind(TC_CAST(q), kind);
	return q;
}

static struct rtnl_qdisc *clsact(int index)
{
	return qdisc(index, "clsact", TC_H_CLSACT, TC_HANDLE(0xffffu, 0));
}

int net_tc_no_queue(struct nl_sock *nl, int index)
{
	struct rtnl_qdisc *q = qdisc(index, "noqueue", TC_H_ROOT, 0);
	int rc = q ? rtnl_qdisc_add(nl, q, NLM_F_CREATE | NLM_F_REPLACE) : -NLE_NOMEM;

	rtnl_qdisc_put(q);
	return rc;
}

static struct rtnl_cls *rule(int index, const char *kind, uint16_t prio, uint16_t protocol)
{
	struct rtnl_cls *c = rtnl_cls_alloc();

	if (!c)
		return NULL;
	rtnl_tc_set_ifindex(TC_CAST(c), index);
	rtnl_tc_set_parent(TC_CAST(c), INGRESS);
	rtnl_cls_set_prio(c, prio);
	rtnl_cls_set_protocol(c, protocol);
	if (kind && rtnl_tc_set_kind(TC_CAST(c), kind)) {
		rtnl_cls_put(c);
		return NULL;
	}
	return c;
}

static struct rtnl_act *redirect_to(int index)
{
	struct rtnl_act *a = rtnl_act_alloc();

	if (!a)
		return NULL;
	rtnl_tc_set_kind(TC_CAST(a), "mirred");
	rtnl_mirred_set_action(a, TCA_EGRESS_REDIR);
	rtnl_mirred_set_policy(a, TC_ACT_STOLEN);
	rtnl_mirred_set_ifindex(a, (uint32_t)index);
	return a;
}

static int add_redirect(struct nl_sock *nl, int from, int to, bool matchall)
{
	struct rtnl_cls *c = rule(from, matchall ? "matchall" : "u32", PRIO_REDIRECT, ETH_P_ALL);
	struct rtnl_act *a = redirect_to(to);
	int rc = c && a ? 0 : -NLE_NOMEM;

	if (!rc && matchall) {
		rc = rtnl_mall_append_action(c, a);
	} else if (!rc) {
		rc = rtnl_u32_add_key_uint32(c, 0, 0, 0, 0);
		if (!rc)
			rc = rtnl_u32_add_action(c, a);
		if (!rc)
			rc = rtnl_u32_set_cls_terminal(c);
	}
	if (!rc)
		rc = rtnl_cls_add(nl, c, NLM_F_CREATE | NLM_F_EXCL);
	rtnl_act_put(a); /* the rule has its own reference */
	rtnl_cls_put(c);
	return rc;
}

/* IPv4 without options and not a later fragment, UDP, to @port. */
static int add_bypass(struct nl_sock *nl, int from, uint16_t port)
{
	struct rtnl_cls *c = rule(from, "u32", PRIO_BYPASS, ETH_P_IP);
	int rc = c ? rtnl_u32_add_key_uint8(c, 0x45, 0xff, 0, 0) : -NLE_NOMEM;

	if (!rc)
		rc = rtnl_u32_add_key_uint16(c, 0, 0x1fff, 6, 0);
	if (!rc)
		rc = rtnl_u32_add_key_uint8(c, 17, 0xff, 9, 0);
	if (!rc)
		rc = rtnl_u32_add_key_uint16(c, port, 0xffff, 22, 0);
	if (!rc)
		rc = rtnl_u32_set_cls_terminal(c);
	if (!rc)
		rc = rtnl_cls_add(nl, c, NLM_F_CREATE | NLM_F_EXCL);
	rtnl_cls_put(c);
	return rc;
}

int net_tc_redirect(struct nl_sock *nl, int from, int to, uint16_t bypass_port, struct err *err)
{
	struct rtnl_qdisc *q = clsact(from);
	int rc = q ? rtnl_qdisc_add(nl, q, NLM_F_CREATE | NLM_F_EXCL) : -NLE_NOMEM, all;

	rtnl_qdisc_put(q);
	if (rc && rc != -NLE_EXIST)
		return netlink_err(err, rc,
				   "no tc qdisc clsact on it: load the driver with modprobe "
				   "sch_ingress");
	rc = bypass_port ? add_bypass(nl, from, bypass_port) : 0;
	if (rc)
		log_warn("no tc classifier u32 (%s): the guest's DHCP requests reach the pod's "
			 "network, too: modprobe cls_u32",
			 nl_geterror(rc));
	all = add_redirect(nl, from, to, true);
	rc = all ? add_redirect(nl, from, to, false) : 0;
	return rc ? netlink_err(err, rc,
				"no tc redirection: it takes the kernel modules act_mirred and "
				"cls_matchall (%s) or cls_u32",
				nl_geterror(all)) :
		    0;
}

/* ---- taking it back ---- */

/* false: there is no such rule. */
static bool remove_rule(struct nl_sock *nl, int index, uint16_t prio, uint16_t protocol)
{
	struct rtnl_cls *c = rule(index, NULL, prio, protocol);
	int rc = c ? rtnl_cls_delete(nl, c, 0) : -NLE_NOMEM;

	rtnl_cls_put(c);
	return !rc;
}

static bool empty(struct nl_sock *nl, int index, uint32_t parent)
{
	struct nl_cache *cache;
	bool none;

	if (rtnl_cls_alloc_cache(nl, index, parent, &cache))
		return false;
	none = !nl_cache_nitems(cache);
	nl_cache_free(cache);
	return none;
}

bool net_tc_clear(struct nl_sock *nl, int index)
{
	bool bypass = remove_rule(nl, index, PRIO_BYPASS, ETH_P_IP);
	bool ours = remove_rule(nl, index, PRIO_REDIRECT, ETH_P_ALL) || bypass;
	struct rtnl_qdisc *q;

	if (!ours || !empty(nl, index, INGRESS) || !empty(nl, index, EGRESS))
		return ours;
	q = clsact(index);
	if (q)
		rtnl_qdisc_delete(nl, q);
	rtnl_qdisc_put(q);
	return true;
}
