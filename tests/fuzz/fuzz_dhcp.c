/*
 * fuzz_dhcp.c - what a guest may send on its tap: DHCP, router and neighbour solicitations, ARP
 *
 * The first byte chooses the NIC, the rest is the frame. An answer must be well-formed: of whole
 * headers with right lengths, a DHCP one with options up to an end, one of neighbour discovery
 * with options that fill it.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "k8s-shim/dhcp.h"
#include "k8s-shim/icmp6.h"
#include "k8s-shim/neigh.h"
#include "k8s-shim/ra.h"

#define CHECK(cond)                       \
	do {                              \
		if (!(cond))              \
			__builtin_trap(); \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct rig {
	struct pod_nic nic;
	struct told told;
	struct pod_addr addrs[2];
	struct pod_route routes[POD_ROUTES_MAX];
};

static void set_up(struct rig *r, unsigned how)
{
	static const uint8_t mac[6] = { 2, 0x11, 0x22, 0x33, 0x44, 0x55 };
	struct pod_nic *n = &r->nic;

	memset(r, 0, sizeof(*r));
	memcpy(n->mac, mac, 6);
	n->mtu = how & 1 ? 1400 : how & 2 ? 9000 : 68;
	n->addrs = r->addrs;
	n->routes = r->routes;
	if (how & 4)
		r->addrs[n->naddrs++] = (struct pod_addr){ .family = AF_INET,
							   .addr = { 10, 1, 2, 3 },
							   .prefix = how & 8 ? 24 : 32 };
	if (how & 16)
		r->addrs[n->naddrs++] = (struct pod_addr){ .family = AF_INET6,
							   .addr = { 0xfd, [15] = 3 },
							   .prefix = how & 8 ? 60 : 128 };
	for (unsigned i = 0; i < (how & 32 ? POD_ROUTES_MAX : 2); i++)
		r->routes[n->nroutes++] = (struct pod_route){ .family = i & 1 ? AF_INET6 : AF_INET,
							      .prefix = i * 2 % 33,
							      .via = { 0xfe, 0x80, [15] = 1 },
							      .has_via = i % 5 != 2 };
	if (how & 64) {
		strcpy(r->told.hostname, "host.example");
		r->told.nsearch = TOLD_SEARCH_MAX;
		for (unsigned i = 0; i < TOLD_SEARCH_MAX; i++)
			strcpy(r->told.search[i], "some.where.in.a.long.domain.example");
		r->told.ndns = 2;
		r->told.dns[0].family = AF_INET;
		r->told.dns[1].family = AF_INET6;
	}
}

static void check_dhcp(const uint8_t *f, size_t len)
{
	const uint8_t *o = f + 14 + 28 + 240, *end = f + len;

	CHECK(len >= 14 + 28 + 300 && get16(f + 16) == len - 14 && get16(f + 38) == len - 34);
	while (*o != 255) {
		CHECK(o + 2 <= end && o + 2 + o[1] < end);
		o += 2 + o[1];
	}
}

static void check_icmp6(const uint8_t *f, size_t len, size_t head)
{
	struct icmp6 m;

	CHECK(icmp6_parse(f, len, &m) && m.len == len - 54);
	for (size_t at = head; at < m.len; at += m.data[at + 1] * 8u)
		CHECK(m.data[at + 1] && at + m.data[at + 1] * 8u <= m.len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t out[DHCP_FRAME_MAX], *frame;
	struct rig r;
	size_t n;

	if (!size)
		return 0;
	set_up(&r, data[0]);
	frame = malloc(size); /* ends where the input ends */
	memcpy(frame, data + 1, --size);
	n = dhcp_answer(&r.nic, &r.told, frame, size, out, sizeof(out));
	CHECK(n <= sizeof(out));
	if (n)
		check_dhcp(out, n);
	n = ra_answer(&r.nic, &r.told, frame, size, out, RA_FRAME_MAX);
	CHECK(n <= RA_FRAME_MAX);
	if (n)
		check_icmp6(out, n, 16);
	n = neigh_answer(&r.nic, frame, size, out, NEIGH_FRAME_MAX);
	CHECK(n <= NEIGH_FRAME_MAX);
	if (n && get16(out + 12) == 0x86dd)
		check_icmp6(out, n, 24);
	free(frame);
	return 0;
}
