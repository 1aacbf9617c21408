/*
 * zero.h - is memory all zeroes?
 */
#ifndef BASE_ZERO_H
#define BASE_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/* @len is a multiple of 128, @p aligned to 16. Others may write there meanwhile. */
bool is_zero(const void *p, size_t len);

#endif
