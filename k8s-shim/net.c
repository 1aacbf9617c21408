/*
 * net.c - the pod's network interfaces as the machine's NICs
 *
 * Nothing in the pod's namespace is changed but what can be found again without a memory of it:
 * taps by their names, rules by their priorities. So opening begins with sweeping, and a shim
 * that was killed in the middle needs no journal.
 *
 * A link also gets the flag ALLMULTI: macvlan and ipvlan (and real NICs) pass on only multicast
 * frames that somebody in the namespace has joined, while the guest joins groups of its own,
 * those of its IPv6 addresses first of all. Closing takes back only a flag that opening has set;
 * a sweep, which cannot know, takes it from every link that had our rules.
 */
#include <net/if.h>
#include <netlink/socket.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/dhcp.h"
#include "k8s-shim/net_priv.h"
#include "k8s-shim/netns.h"

#define LINKS_MAX 1024

/* ---- inside the namespace ---- */

/* Rules of ours, but not of links whose tap is there. */
static void sweep_rules(struct nl_sock *nl)
{
	int index[LINKS_MAX];
	int count = net_links_list(nl, index, LINKS_MAX, NULL);

	for (int i = 0; i < count; i++)
		if (!net_tap_in_use(index[i]) && net_tc_clear(nl, index[i]))
			net_link_change(nl, index[i], 0, IFF_ALLMULTI, 0);
}

static void sweep(struct nl_sock *nl)
{
	net_taps_remove(nl);
	sweep_rules(nl);
}

/* A NIC without an IPv4 address is told none: its DHCP is the guest's and the network's. */
static uint16_t bypass(const struct nic *nic, uint16_t port)
{
	for (unsigned i = 0; i < nic->pub.naddrs; i++)
		if (nic->addrs[i].family == AF_INET)
			return port;
	return 0;
}

static int connect_nic(struct nl_sock *nl, struct pod_net *n, struct nic *nic, struct err *err)
{
	int rc = net_tap_make(nl, nic, n->queues, err);

	if (!rc)
		rc = responder_open(&nic->responder, &nic->pub, &n->told, nic->tap_index,
				    nic->no_arp, err);
	/* the tap's way first: it is still down, so nothing of the link's gets lost in between */
	if (!rc) {
		rc = net_tc_redirect(nl, nic->tap_index, nic->index, bypass(nic, DHCP_SERVER_PORT),
				     err);
		if (rc)
			err_prefix(err, "tap %s", nic->tap);
	}
	if (!rc && !nic->allmulti)
		net_link_change(nl, nic->index, IFF_ALLMULTI, 0, 0);
	if (!rc) {
		rc = net_tc_redirect(nl, nic->index, nic->tap_index, bypass(nic, DHCP_CLIENT_PORT),
				     err);
		if (rc)
			err_prefix(err, "the pod's %s", nic->pub.name);
	}
	if (rc)
		return rc;
	rc = net_link_change(nl, nic->tap_index, IFF_UP, 0, 0);
	return rc ? netlink_err(err, rc, "cannot bring tap %s up", nic->tap) : 0;
}

static int open_inside(void *arg, struct err *err)
{
	struct pod_net *n = arg;
	struct nl_sock *nl = netlink_open(err);
	int rc;

	if (!nl)
		return -EIO;
	sweep(nl);
	rc = net_links_read(nl, n, err);
	for (unsigned i = 0; i < n->count && !rc; i++)
		rc = connect_nic(nl, n, &n->nics[i], err);
	if (rc)
		sweep(nl);
	nl_socket_free(nl);
	return rc;
}

static int close_inside(void *arg, struct err *err)
{
	struct pod_net *n = arg;
	struct nl_sock *nl = netlink_open(err);

	if (!nl)
		return -EIO;
	sweep(nl);
	for (unsigned i = 0; i < n->count; i++)
		if (n->nics[i].allmulti)
			net_link_change(nl, n->nics[i].index, IFF_ALLMULTI, 0, 0);
	nl_socket_free(nl);
	return 0;
}

static int sweep_inside(void *arg, struct err *err)
{
	struct nl_sock *nl = netlink_open(err);

	if (!nl)
		return -EIO;
	sweep_rules(nl);
	nl_socket_free(nl);
	return 0;
}

/* ---- outside ---- */

static struct pod_net *new_net(const struct pod_net_options *o)
{
	struct pod_net *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	n->netns = strdup(o->netns);
	if (!n->netns) {
		free(n);
		return NULL;
	}
	n->queues = o->queues;
	told_init(&n->told, o);
	for (unsigned i = 0; i < POD_NICS_MAX; i++)
		responder_init(&n->nics[i].responder);
	return n;
}

/* What is held on this side; the namespace's side is somebody else's business. */
static void release(struct pod_net *n)
{
	for (unsigned i = 0; i < n->count; i++) {
		responder_fini(&n->nics[i].responder);
		for (unsigned q = 0; q < n->nics[i].pub.ntaps; q++)
			fd_close(&n->nics[i].taps[q]);
	}
	free(n->netns);
	free(n);
}

int pod_net_open(const struct pod_net_options *o, struct loop *loop, struct pod_net **out,
		 struct err *err)
{
	struct pod_net *n = new_net(o);
	int rc;

	*out = NULL;
	if (!n)
		return err_set(err, ENOMEM, "out of memory");
	rc = netns_call(n->netns, open_inside, n, err);
	if (rc) {
		release(n);
		return rc;
	}
	for (unsigned i = 0; i < n->count && !rc; i++)
		rc = responder_start(&n->nics[i].responder, loop, err);
	if (rc)
		pod_net_close(n);
	else
		*out = n;
	return rc;
}

unsigned pod_net_count(const struct pod_net *n)
{
	return n->count;
}

const struct pod_nic *pod_net_nic(const struct pod_net *n, unsigned i)
{
	return i < n->count ? &n->nics[i].pub : NULL;
}

const struct pod_nic *pod_net_twin(const struct pod_net *n, unsigned i)
{
	for (unsigned k = 0; k < n->count; k++)
		if (k != i && !memcmp(n->nics[k].pub.mac, n->nics[i].pub.mac, 6))
			return &n->nics[k].pub;
	return NULL;
}

void pod_net_close(struct pod_net *n)
{
	struct err err = { 0 };
	int rc;

	if (!n)
		return;
	rc = netns_call(n->netns, close_inside, n, &err);
	if (rc && rc != -ENOENT)
		log_warn("the pod's network is not taken down: %s", err.msg);
	release(n);
}

void pod_net_sweep(const char *netns)
{
	struct err err = { 0 };
	int rc = netns_call(netns, sweep_inside, NULL, &err);

	if (rc && rc != -ENOENT)
		log_warn("the pod's network is not taken down: %s", err.msg);
}
