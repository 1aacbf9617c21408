/*
 * pod_rig.h - a pod's NIC as the responders see it, and a client's side of their protocols
 */
#ifndef TESTS_UNIT_POD_RIG_H
#define TESTS_UNIT_POD_RIG_H

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "k8s-shim/net_priv.h"
#include "k8s-shim/packet.h"

static const uint8_t rig_mac[6] = { 0x02, 0x11, 0x22, 0x33, 0x44, 0x55 };

/* A NIC with nothing yet. */
static inline void rig_nic(struct nic *n, unsigned mtu)
{
	memset(n, 0, sizeof(*n));
	strcpy(n->pub.name, "eth0");
	memcpy(n->pub.mac, rig_mac, 6);
	n->pub.mtu = mtu;
	n->pub.addrs = n->addrs;
	n->pub.routes = n->routes;
}

static inline int rig_family(const char *text)
{
	return strchr(text, ':') ? AF_INET6 : AF_INET;
}

static inline void rig_addr(struct nic *n, const char *text, unsigned prefix)
{
	struct pod_addr *a = &n->addrs[n->pub.naddrs++];

	*a = (struct pod_addr){ .family = rig_family(text), .prefix = prefix };
	assert_int_equal(inet_pton(a->family, text, a->addr), 1);
}

/* @via NULL: on the link */
static inline void rig_route(struct nic *n, const char *to, unsigned prefix, const char *via)
{
	struct pod_route *r = &n->routes[n->pub.nroutes++];

	*r = (struct pod_route){ .family = rig_family(to), .prefix = prefix, .has_via = via };
	assert_int_equal(inet_pton(r->family, to, r->to), 1);
	if (via)
		assert_int_equal(inet_pton(r->family, via, r->via), 1);
}

static inline void rig_told(struct told *t, const char *hostname, const char *const *dns,
			    const char *const *search)
{
	struct pod_net_options o = { .hostname = hostname, .dns = dns, .search = search };

	told_init(t, &o);
}

/* A copy that ends where the frame ends, for the sanitizer. */
static inline uint8_t *rig_exact(const uint8_t *frame, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1);

	assert_non_null(copy);
	if (len)
		memcpy(copy, frame, len);
	return copy;
}

#endif
