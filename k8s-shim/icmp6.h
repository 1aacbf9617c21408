/*
 * icmp6.h - ICMPv6 messages of neighbour discovery in Ethernet frames (RFC 4443, 4861)
 */
#ifndef K8S_SHIM_ICMP6_H
#define K8S_SHIM_ICMP6_H

#include "k8s-shim/packet.h"

enum icmp6_type {
	ICMP6_ROUTER_SOLICIT = 133,
	ICMP6_ROUTER_ADVERT = 134,
	ICMP6_NEIGHBOR_SOLICIT = 135,
	ICMP6_NEIGHBOR_ADVERT = 136,
};

struct icmp6 {
	unsigned type;
	const uint8_t *src, *dst; /* IPv6 addresses */
	const uint8_t *data;      /* from the type on */
	size_t len;
};

/* A message of code 0 with hop limit 255, no extension headers? Points into @frame. */
static inline bool icmp6_parse(const uint8_t *frame, size_t len, struct icmp6 *m)
{
	const uint8_t *ip = frame + ETH_LEN;

	if (len < ETH_LEN + IPV6_LEN + 8 || get16(frame + 12) != 0x86dd || ip[0] >> 4 != 6 ||
	    ip[6] != 58 || ip[7] != 255)
		return false;
	*m = (struct icmp6){
		.src = ip + 8, .dst = ip + 24, .data = ip + IPV6_LEN, .len = get16(ip + 4)
	};
	m->type = m->data[0];
	return m->len >= 8 && m->len <= len - ETH_LEN - IPV6_LEN && m->data[1] == 0;
}

/* Room for what goes before, and the first four bytes. */
static inline void icmp6_begin(struct put *p, enum icmp6_type type)
{
	put_zeroes(p, ETH_LEN + IPV6_LEN);
	put8(p, type);
	put_zeroes(p, 3);
}

/* The headers and checksums of what has been put; its length, 0 if it did not fit. */
static inline size_t icmp6_end(struct put *p, const uint8_t dst_mac[6], const uint8_t src_mac[6],
			       const uint8_t src[16], const uint8_t dst[16])
{
	uint8_t *f = p->buf, *ip = f + ETH_LEN, *data = ip + IPV6_LEN;
	size_t len = p->len - ETH_LEN - IPV6_LEN;

	if (p->over)
		return 0;
	memcpy(f, dst_mac, 6);
	memcpy(f + 6, src_mac, 6);
	set16(f + 12, 0x86dd);
	ip[0] = 0x60;
	set16(ip + 4, (unsigned)len);
	ip[6] = 58;
	ip[7] = 255;
	memcpy(ip + 8, src, 16);
	memcpy(ip + 24, dst, 16);
	set16(data + 2, sum_end(sum_add(sum_add(58 + (uint32_t)len, ip + 8, 32), data, len)));
	return p->len;
}

#endif
