/*
 * netconfig.c - cloud-init's network-config (version 2) of the pod's NICs
 *
 * It carries what DHCP and router advertisements cannot: IPv6 addresses and their gateway, a
 * link's second address, metrics. NICs are told apart by MAC address and get the names they have
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

static void put_addrs(FILE *f, const struct pod_nic *nic)
{
	char buf[INET6_ADDRSTRLEN];

	if (nic->naddrs)
		fprintf(f, "    addresses:\n");
	for (unsigned i = 0; i < nic->naddrs; i++)
		fprintf(f, "      - \"%s/%u\"\n",
			text(nic->addrs[i].family, nic->addrs[i].addr, buf), nic->addrs[i].prefix);
}

static void put_routes(FILE *f, const struct pod_nic *nic)
{
	char buf[INET6_ADDRSTRLEN];

	if (nic->nroutes)
		fprintf(f, "    routes:\n");
	for (unsigned i = 0; i < nic->nroutes; i++) {
		const struct pod_route *r = &nic->routes[i];

		fprintf(f, "      - to: \"%s/%u\"\n", text(r->family, r->to, buf), r->prefix);
		if (r->has_via)
			fprintf(f, "        via: \"%s\"\n        on-link: true\n",
				text(r->family, r->via, buf));
		else
			fprintf(f, "        scope: link\n");
		/* 1024 is what IPv6 has where nobody said anything */
		if (r->metric && !(r->family == AF_INET6 && r->metric == 1024))
			fprintf(f, "        metric: %u\n", r->metric);
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

static void put_nic(FILE *f, const struct pod_nic *nic, const struct told *t)
{
	const uint8_t *m = nic->mac;

	fprintf(f, "  ");
	put_name(f, nic->name);
	fprintf(f, ":\n    match:\n      macaddress: \"%02x:%02x:%02x:%02x:%02x:%02x\"\n", m[0],
		m[1], m[2], m[3], m[4], m[5]);
	fprintf(f, "    set-name: ");
	put_name(f, nic->name);
	fprintf(f, "\n    mtu: %u\n    dhcp4: false\n    dhcp6: false\n", nic->mtu);
	put_addrs(f, nic);
	put_routes(f, nic);
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
			put_nic(f, &n->nics[i].pub, &n->told);
	if (fclose(f)) {
		free(out);
		return NULL;
	}
	return out;
}
