/*
 * packet.h - frames written and read within bounds
 */
#ifndef K8S_SHIM_PACKET_H
#define K8S_SHIM_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ETH_LEN  14
#define IPV4_LEN 20
#define IPV6_LEN 40
#define UDP_LEN  8

static inline uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t get32(const uint8_t *p)
{
	return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static inline void set16(uint8_t *p, unsigned v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

/* A frame being written; what does not fit sets @over and is left out. */
struct put {
	uint8_t *buf;
	size_t len, room;
	bool over;
};

static inline void put_zeroes(struct put *p, size_t len)
{
	if (len > p->room - p->len) {
		p->over = true;
		return;
	}
	memset(p->buf + p->len, 0, len);
	p->len += len;
}

static inline void put_bytes(struct put *p, const void *data, size_t len)
{
	size_t at = p->len;

	put_zeroes(p, len);
	if (p->len != at)
		memcpy(p->buf + at, data, len);
}

static inline void put8(struct put *p, unsigned v)
{
	put_bytes(p, &(uint8_t){ (uint8_t)v }, 1);
}

static inline void put16(struct put *p, unsigned v)
{
	put_bytes(p, (uint8_t[]){ (uint8_t)(v >> 8), (uint8_t)v }, 2);
}

static inline void put32(struct put *p, uint32_t v)
{
	put16(p, v >> 16);
	put16(p, v & 0xffff);
}

/* Internet checksum (RFC 1071): add up, from 0 or what an earlier part of even length gave. */
static inline uint32_t sum_add(uint32_t sum, const uint8_t *p, size_t len)
{
	for (; len > 1; p += 2, len -= 2)
		sum += get16(p);
	if (len)
		sum += (uint32_t)p[0] << 8;
	return sum;
}

static inline uint16_t sum_end(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

#endif
