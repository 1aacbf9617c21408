/*
 * netconfig.c - cloud-init's network-config (version 2) of the pod's NICs
 *
 * It carries what DHCP and router advertisements cannot: IPv6 addresses and their gateway, a
 * link's second address, metrics.
 *
 * Netplan is handed it as it is, every other renderer of cloud-init's gets a translation of it, and two
 * of those (ifupdown's and sysconfig's: Debian 11, RHEL up to 9) die of a route without a gateway, after
 * which the guest has no network at all. So there is none where it can be helped:
 *
 *	- a NIC with such an IPv4 route (Calico, Cilium, ptp) is left to DHCP for its first address and for
 *	  routes, which every client there understands (dhcp.c);
 *	- an IPv6 one that makes a gateway reachable is what "on-link" at the gateway's own routes says;
 *	- where a link knows no neighbours (ipvlan L3), any address will do for one (neigh.c).
 *
 * NICs are told apart by MAC address and get the names they have
 * in the pod, so that eth0 and net1 (Multus) are in the guest what the pod's annotations call
 * them. Interfaces that share a MAC address (two ipvlan links on one parent) cannot be told apart
 * that way; those are left to DHCP and have no entry. Matching them by name would not help: names are
 * the guest's choice, and cloud-init gives up at the first MAC address that it sees twice.
 *
 * Nothing in it needs quoting for YAML's sake but what comes from names of links, and everything is
 * quoted.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "k8s-shim/net_priv.h"

static const char *text(int family, const uint8_t *addr, char *buf)
{
	return inet_ntop(family, addr, buf, INET6_ADDRSTRLEN);
}

/* A link's name may have any byte but / and white space. */
static void put_name(FILE *f, const char *name)
{
	fputc('"', f);
	for (; *name; name++) {
		unsigned char c = (unsigned char)*name;

		if (c < 0x20 || c > 0x7e || c == '"' || c == '\\')
			fprintf(f, "\\x%02x", c);
		else
			fputc(c, f);
	}
	fputc('"', f);
}

/* A route of a family without a gateway? */
static bool has_direct(const struct pod_nic *nic, int family)
{
	for (unsigned i = 0; i < nic->nroutes; i++)
		if (nic->routes[i].family == family && !nic->routes[i].has_via)
			return true;
	return false;
}

/* Is IPv4 left to DHCP? It has no answer for a link without an address. */
static bool by_dhcp(const struct pod_nic *nic)
{
	for (unsigned i = 0; i < nic->naddrs; i++)
		if (nic->addrs[i].family == AF_INET)
			return has_direct(nic, AF_INET);
	return false;
}

static void put_addrs(FILE *f, const struct pod_nic *nic)
{
	char buf[INET6_ADDRSTRLEN];
	bool skip = by_dhcp(nic), any = false; /* the first of IPv4 */

	for (unsigned i = 0; i < nic->naddrs; i++) {
		const struct pod_addr *a = &nic->addrs[i];

		if (skip && a->family == AF_INET) {
			skip = false;
			continue;
		}
		fprintf(f, "%s      - \"%s/%u\"\n", any ? "" : "    addresses:\n",
			text(a->family, a->addr, buf), a->prefix);
		any = true;
	}
}

/* Does @r, without a gateway, make that of another route reachable, and no more? */
static bool only_reaches(const struct pod_nic *nic, const struct pod_route *r)
{
	for (unsigned i = 0; i < nic->nroutes && r->prefix == 128; i++)
		if (nic->routes[i].family == r->family && nic->routes[i].has_via &&
		    !memcmp(nic->routes[i].via, r->to, sizeof(r->to)))
			return true;
	return false;
}

static void put_route(FILE *f, const struct pod_route *r, const uint8_t *via)
{
	char buf[INET6_ADDRSTRLEN];

	fprintf(f, "      - to: \"%s/%u\"\n", text(r->family, r->to, buf), r->prefix);
	if (via)
		fprintf(f, "        via: \"%s\"\n        on-link: true\n",
			text(r->family, via, buf));
	else
		fprintf(f, "        scope: link\n");
	/* 1024 is what IPv6 has where nobody said anything */
	if (r->metric && !(r->family == AF_INET6 && r->metric == 1024))
		fprintf(f, "        metric: %u\n", r->metric);
}

static void put_routes(FILE *f, const struct nic *n)
{
	static const uint8_t somebody[16] = { 0xfe, 0x80, [15] = 1 };
	const struct pod_nic *nic = &n->pub;
	bool skip = by_dhcp(nic), any = false;

	for (unsigned i = 0; i < nic->nroutes; i++) {
		const struct pod_route *r = &nic->routes[i];
		const uint8_t *via = r->has_via ? r->via : NULL;

		if (r->family == AF_INET ? skip : !via && only_reaches(nic, r))
			continue;
		if (!via && n->no_arp && r->family == AF_INET6)
			via = somebody;
		if (!any)
			fprintf(f, "    routes:\n");
		any = true;
		put_route(f, r, via);
	}
}

static void put_told(FILE *f, const struct told *t)
{
	char buf[INET6_ADDRSTRLEN];

	if (!t->ndns && !t->nsearch)
		return;
	fprintf(f, "    nameservers:\n");
	if (t->ndns)
		fprintf(f, "      addresses:\n");
	for (unsigned i = 0; i < t->ndns; i++)
		fprintf(f, "        - \"%s\"\n", text(t->dns[i].family, t->dns[i].addr, buf));
	if (t->nsearch)
		fprintf(f, "      search:\n");
	for (unsigned i = 0; i < t->nsearch; i++)
		fprintf(f, "        - \"%s\"\n", t->search[i]);
}

static void put_nic(FILE *f, const struct nic *n, const struct told *t)
{
	const struct pod_nic *nic = &n->pub;
	const uint8_t *m = nic->mac;

	fprintf(f, "  ");
	put_name(f, nic->name);
	fprintf(f, ":\n    match:\n      macaddress: \"%02x:%02x:%02x:%02x:%02x:%02x\"\n", m[0],
		m[1], m[2], m[3], m[4], m[5]);
	fprintf(f, "    set-name: ");
	put_name(f, nic->name);
	fprintf(f, "\n    mtu: %u\n    dhcp4: %s\n    dhcp6: false\n", nic->mtu,
		by_dhcp(nic) ? "true" : "false");
	put_addrs(f, nic);
	put_routes(f, n);
	put_told(f, t);
}

char *pod_net_config(const struct pod_net *n)
{
	char *out = NULL;
	size_t len;
	FILE *f = open_memstream(&out, &len);
	unsigned written = 0;

	if (!f)
		return NULL;
	fprintf(f, "version: 2\nethernets:");
	for (unsigned i = 0; i < n->count; i++)
		if (!pod_net_twin(n, i) && !written++)
			fprintf(f, "\n");
	if (!written)
		fprintf(f, " {}\n");
	for (unsigned i = 0; i < n->count; i++)
		if (!pod_net_twin(n, i))
			put_nic(f, &n->nics[i], &n->told);
	if (fclose(f)) {
		free(out);
		return NULL;
	}
	return out;
}
