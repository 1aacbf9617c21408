/*
 * zero.c - is memory all zeroes?
 *
 * Whatever is not shows it in its first bytes, mostly; what is gets read whole, as fast as memory comes.
 * The vectors are such as every x86-64 has. AVX2's take 40 % less time for pages in the cache, but 8 % for
 * those of a guest's RAM, which are not in it, and would need code for processors without.
 */
#include <stdint.h>

#include "base/zero.h"

typedef uint64_t vec __attribute__((vector_size(16), may_alias));

#define STEP 8

bool is_zero(const void *p, size_t len)
{
	const vec *v = p;

	for (size_t n = len / sizeof(*v); n; n -= STEP, v += STEP) {
		vec sum = v[0] | v[1] | v[2] | v[3] | v[4] | v[5] | v[6] | v[7];

		if (sum[0] | sum[1])
			return false;
	}
	return true;
}
