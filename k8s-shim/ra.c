/*
 * ra.c - router advertisements for one NIC
 *
 * They tell the guest which networks are on the link, the MTU, name servers and search domains,
 * and the router where the pod's default gateway is a link-local address: an advertisement's
 * sender *is* the router (RFC 4861, 6.1.2), so it can name no other. With a gateway of another
 * kind the router lifetime is 0, "not a default router". Routes of more specific networks go the
 * same way.
 *
 * The address itself doesn't come from here. The pod has exactly one, made by the CNI plugin,
 * while autoconfiguration would give the guest another that the pod network does not know; so no
 * prefix has the autonomous flag. DHCPv6 is not there, and the managed flags, which would have
 * guests wait for it, are not set. Cloud-init's network-config carries address and gateway
 * (netconfig.c).
 *
 * Where the pod itself got addresses from a router's advertisements those are not in the NIC's
 * list: that router's advertisements reach the guest as they reached the pod.
 */
#include <arpa/inet.h>

#include "k8s-shim/icmp6.h"
#include "k8s-shim/ra.h"

#define HOP_LIMIT       64
#define ROUTER_LIFETIME 9000 /* seconds; RFC 4861's greatest */
#define FOREVER         0xffffffff

enum nd_option {
	ND_PREFIX = 3,
	ND_MTU = 5,
	ND_ROUTE = 24,
	ND_RDNSS = 25,
	ND_DNSSL = 31,
};

static bool is_link_local(const uint8_t a[16])
{
	return a[0] == 0xfe && (a[1] & 0xc0) == 0x80;
}

static bool has_ipv6(const struct pod_nic *nic)
{
	for (unsigned i = 0; i < nic->naddrs; i++)
		if (nic->addrs[i].family == AF_INET6)
			return true;
	return false;
}

/* The router to speak for, or NULL. */
static const uint8_t *router(const struct pod_nic *nic)
{
	for (unsigned i = 0; i < nic->nroutes; i++) {
		const struct pod_route *r = &nic->routes[i];

		if (r->family == AF_INET6 && !r->prefix && r->has_via && is_link_local(r->via))
			return r->via;
	}
	return NULL;
}

/* An option of @len bytes in all, a multiple of 8, fits? Its first two bytes then are there. */
static bool begin_option(struct put *p, enum nd_option type, size_t len)
{
	if (len > 255 * 8 || len > p->room - p->len)
		return false;
	put8(p, type);
	put8(p, (unsigned)(len / 8));
	return true;
}

static void put_mtu(struct put *p, unsigned mtu)
{
	if (mtu < 1280 || !begin_option(p, ND_MTU, 8))
		return;
	put16(p, 0);
	put32(p, mtu);
}

static void put_prefix(struct put *p, const struct pod_addr *a)
{
	uint8_t net[16];

	if (a->family != AF_INET6 || a->prefix == 128 || !begin_option(p, ND_PREFIX, 32))
		return;
	memcpy(net, a->addr, 16);
	for (unsigned i = 0; i < 16; i++)
		if (i * 8 + 8 > a->prefix)
			net[i] &= i * 8 >= a->prefix ? 0 : (uint8_t)(0xff00 >> (a->prefix % 8));
	put8(p, a->prefix);
	put8(p, 0x80); /* on the link, not autonomous */
	put32(p, FOREVER);
	put32(p, FOREVER);
	put32(p, 0);
	put_bytes(p, net, 16);
}

static void put_route(struct put *p, const struct pod_route *r, const uint8_t *via)
{
	unsigned len = r->prefix > 64 ? 16 : 8;

	if (r->family != AF_INET6 || !r->prefix || !r->has_via || memcmp(r->via, via, 16) ||
	    !begin_option(p, ND_ROUTE, 8 + len))
		return;
	put8(p, r->prefix);
	put8(p, 0); /* medium preference */
	put32(p, ROUTER_LIFETIME);
	put_bytes(p, r->to, len);
}

static void put_rdnss(struct put *p, const struct told *t)
{
	size_t n = 0;

	for (unsigned i = 0; i < t->ndns; i++)
		n += t->dns[i].family == AF_INET6;
	if (!n || !begin_option(p, ND_RDNSS, 8 + n * 16))
		return;
	put16(p, 0);
	put32(p, FOREVER);
	for (unsigned i = 0; i < t->ndns; i++)
		if (t->dns[i].family == AF_INET6)
			put_bytes(p, t->dns[i].addr, 16);
}

/* Domains as long as they fit. */
static void put_dnssl(struct put *p, const struct told *t)
{
	uint8_t buf[RA_FRAME_MAX];
	size_t len = 0, n, padded;

	for (unsigned i = 0; i < t->nsearch; i++) {
		n = told_dns_name(t->search[i], buf + len, sizeof(buf) - len);
		if (!n || 8 + len + n + 7 > p->room - p->len)
			break;
		len += n;
	}
	padded = (len + 7) / 8 * 8;
	if (!len || !begin_option(p, ND_DNSSL, 8 + padded))
		return;
	put16(p, 0);
	put32(p, FOREVER);
	put_bytes(p, buf, len);
	put_zeroes(p, padded - len);
}

static size_t build(const struct pod_nic *nic, const struct told *t, const uint8_t dst_mac[6],
		    const uint8_t dst[16], uint8_t *out, size_t room)
{
	struct put p = { .buf = out, .room = room };
	const uint8_t *gw = router(nic);
	uint8_t mac[6], own[16] = { 0xfe, 0x80 };

	memcpy(mac, nic->mac, 6);
	mac[0] ^= 0x02; /* as in dhcp.c: not the guest's */
	/* a link-local address that is nobody's (RFC 4291, appendix A, of our MAC address) */
	memcpy(own + 8,
	       (uint8_t[]){ nic->mac[0], mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5] }, 8);
	icmp6_begin(&p, ICMP6_ROUTER_ADVERT);
	put8(&p, HOP_LIMIT);
	put8(&p, 0);
	put16(&p, gw ? ROUTER_LIFETIME : 0);
	put_zeroes(&p, 8); /* reachable time, retransmission: as the guest likes */
	put_mtu(&p, nic->mtu);
	for (unsigned i = 0; i < nic->naddrs; i++)
		put_prefix(&p, &nic->addrs[i]);
	put_rdnss(&p, t);
	for (unsigned i = 0; gw && i < nic->nroutes; i++)
		put_route(&p, &nic->routes[i], gw);
	put_dnssl(&p, t);
	return icmp6_end(&p, dst_mac, mac, gw ? gw : own, dst);
}

size_t ra_advertise(const struct pod_nic *nic, const struct told *told, uint8_t *out, size_t room)
{
	static const uint8_t all_nodes[16] = { 0xff, 2, [15] = 1 };
	static const uint8_t all_macs[6] = { 0x33, 0x33, 0, 0, 0, 1 };

	return has_ipv6(nic) ? build(nic, told, all_macs, all_nodes, out, room) : 0;
}

size_t ra_answer(const struct pod_nic *nic, const struct told *told, const uint8_t *frame,
		 size_t len, uint8_t *out, size_t room)
{
	struct icmp6 in;

	if (!icmp6_parse(frame, len, &in) || in.type != ICMP6_ROUTER_SOLICIT || !has_ipv6(nic))
		return 0;
	/* without an address yet it cannot be spoken to alone */
	if (!is_link_local(in.src))
		return ra_advertise(nic, told, out, room);
	return build(nic, told, nic->mac, in.src, out, room);
}
