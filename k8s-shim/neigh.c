/*
 * neigh.c - answer for every neighbour on a link that knows no neighbours
 *
 * The answer is always the NIC's own MAC address. That is what a kernel uses on such a link, and
 * what another container on the same parent expects in what it gets: ipvlan hands a frame over
 * without rewriting it, and one for another MAC address would be dropped there.
 *
 * No answer for the guest's own addresses and for probes without a sender: they'd say that somebody
 * else has the guest's address.
 */
#include <arpa/inet.h>

#include "k8s-shim/icmp6.h"
#include "k8s-shim/neigh.h"
#include "k8s-shim/packet.h"

#define ARP_LEN 28

static bool is_own(const struct pod_nic *nic, int family, const uint8_t *addr)
{
	for (unsigned i = 0; i < nic->naddrs; i++)
		if (nic->addrs[i].family == family &&
		    !memcmp(nic->addrs[i].addr, addr, family == AF_INET ? 4 : 16))
			return true;
	return false;
}

static size_t answer_arp(const struct pod_nic *nic, const uint8_t *frame, size_t len, uint8_t *out,
			 size_t room)
{
	static const uint8_t head[] = { 0, 1, 8, 0, 6, 4, 0, 1 };
	struct put p = { .buf = out, .room = room };
	const uint8_t *arp = frame + ETH_LEN;

	if (len < ETH_LEN + ARP_LEN || memcmp(arp, head, sizeof(head)))
		return 0;
	if (!get32(arp + 14) || !memcmp(arp + 14, arp + 24, 4) || is_own(nic, AF_INET, arp + 24))
		return 0;
	put_bytes(&p, arp + 8, 6);
	put_bytes(&p, nic->mac, 6);
	put16(&p, 0x0806);
	put_bytes(&p, head, 7);
	put8(&p, 2);
	put_bytes(&p, nic->mac, 6);
	put_bytes(&p, arp + 24, 4); /* who was asked for */
	put_bytes(&p, arp + 8, 10); /* who asked */
	return p.over ? 0 : p.len;
}

static size_t answer_solicitation(const struct pod_nic *nic, const uint8_t *frame, size_t len,
				  uint8_t *out, size_t room)
{
	static const uint8_t any[16];
	struct put p = { .buf = out, .room = room };
	struct icmp6 in;

	if (!icmp6_parse(frame, len, &in) || in.type != ICMP6_NEIGHBOR_SOLICIT || in.len < 24)
		return 0;
	const uint8_t *target = in.data + 8;

	if (!memcmp(in.src, any, 16) || !memcmp(in.src, target, 16) || target[0] == 0xff ||
	    is_own(nic, AF_INET6, target))
		return 0;
	icmp6_begin(&p, ICMP6_NEIGHBOR_ADVERT);
	put32(&p, 0x60000000); /* solicited, override */
	put_bytes(&p, target, 16);
	put8(&p, 2); /* target link-layer address */
	put8(&p, 1);
	put_bytes(&p, nic->mac, 6);
	return icmp6_end(&p, frame + 6, nic->mac, target, in.src);
}

size_t neigh_answer(const struct pod_nic *nic, const uint8_t *frame, size_t len, uint8_t *out,
		    size_t room)
{
	if (len >= ETH_LEN && get16(frame + 12) == 0x0806)
		return answer_arp(nic, frame, len, out, room);
	return answer_solicitation(nic, frame, len, out, room);
}
