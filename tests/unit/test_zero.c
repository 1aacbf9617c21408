/*
 * test_zero.c - one bit anywhere makes it not zero, one bit behind the end does not
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/zero.h"

static uint8_t page[4096 + 128] __attribute__((aligned(16)));

static void test_every_byte(void **state)
{
	assert_true(is_zero(page, 4096));
	for (size_t i = 0; i < 4096; i++) {
		page[i] = (uint8_t)(1u << i % 8);
		assert_false(is_zero(page, 4096));
		page[i] = 0;
	}
}

static void test_length(void **state)
{
	page[128] = 1;
	assert_true(is_zero(page, 0));
	assert_true(is_zero(page, 128));
	assert_false(is_zero(page, 256));
	page[128] = 0;
	page[4096] = 1;
	assert_true(is_zero(page, 4096));
	page[4096] = 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_byte),
		cmocka_unit_test(test_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
