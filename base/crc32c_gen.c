/*
 * crc32c_gen.c - the tables of crc32c.c, made when coracle is built
 *
 * Row 0 says what a byte does to the sum, row n what it does when n more bytes have come after it.
 */
#include <stdint.h>
#include <stdio.h>

#define POLYNOMIAL UINT32_C(0x82f63b78) /* Castagnoli's, lowest bit first */

int main(void)
{
	uint32_t table[8][256];

	for (unsigned byte = 0; byte < 256; byte++) {
		uint32_t sum = byte;

		for (unsigned bit = 0; bit < 8; bit++)
			sum = sum >> 1 ^ (sum & 1 ? POLYNOMIAL : 0);
		table[0][byte] = sum;
	}
	for (unsigned n = 0; n < 8; n++) {
		puts("{");
		for (unsigned byte = 0; byte < 256; byte++) {
			if (n) {
				uint32_t sum = table[n - 1][byte];

				table[n][byte] = sum >> 8 ^ table[0][sum & 0xff];
			}
			printf("0x%08x,\n", table[n][byte]);
		}
		puts("},");
	}
	return fflush(stdout) ? 1 : 0;
}
