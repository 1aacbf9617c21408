/*
 * crc32c.c - CRC-32C (Castagnoli), RFC 3720 appendix B.4
 *
 * It finds damage, not malice: what is read is checked all the same. Eight bytes at a time, 0.4 ns a byte
 * and not 1.9: every vCPU has 8 KiB of state, which is summed up twice on either side, and the guest
 * stands still meanwhile. RAM goes without.
 */
#include <endian.h>
#include <string.h>

#include "base/crc32c.h"

static const uint32_t table[8][256] = {
#include "base/crc32c.inc"
};

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
	const uint8_t *p = data;

	crc = ~crc;
	for (; len >= 8; len -= 8, p += 8) {
		uint64_t v;

		memcpy(&v, p, sizeof(v));
		v = le64toh(v) ^ crc;
		crc = table[7][v & 0xff] ^ table[6][v >> 8 & 0xff] ^ table[5][v >> 16 & 0xff] ^
		      table[4][v >> 24 & 0xff] ^ table[3][v >> 32 & 0xff] ^
		      table[2][v >> 40 & 0xff] ^ table[1][v >> 48 & 0xff] ^ table[0][v >> 56];
	}
	while (len--)
		crc = crc >> 8 ^ table[0][(crc ^ *p++) & 0xff];
	return ~crc;
}
