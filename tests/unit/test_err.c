/*
 * test_err.c - messages that name the culprit, whatever is put into them
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"

static void test_set(void **state)
{
	struct err e = { 0 };

	assert_int_equal(err_set(&e, EINVAL, "--cpus %d: too many", 900), -EINVAL);
	assert_int_equal(e.code, -EINVAL);
	assert_string_equal(e.msg, "--cpus 900: too many");
	assert_int_equal(err_set(&e, -ENOENT, "second"), -ENOENT);
	assert_string_equal(e.msg, "second");
	assert_int_equal(err_set(NULL, EBUSY, "nobody asks"), -EBUSY);
	assert_int_equal(err_set(&e, 0, "no code"), -EIO);
}

static void test_set_sys(void **state)
{
	struct err e = { 0 };

	assert_int_equal(err_set_sys(&e, -ENOENT, "cannot open %s", "a.img"), -ENOENT);
	assert_string_equal(e.msg, "cannot open a.img: No such file or directory");
	assert_int_equal(err_set_sys(&e, EACCES, "b"), -EACCES);
	assert_string_equal(e.msg, "b: Permission denied");
	assert_int_equal(err_set_sys(NULL, ENOSPC, "c"), -ENOSPC);
}

static void test_prefix(void **state)
{
	struct err e = { 0 };

	err_set(&e, EINVAL, "size is odd");
	assert_int_equal(err_prefix(&e, "disk %s", "root"), -EINVAL);
	assert_string_equal(e.msg, "disk root: size is odd");
	assert_int_equal(err_prefix(NULL, "x"), -EIO);
}

/* An error rewritten with its own text. */
static void test_own_text(void **state)
{
	struct err e = { 0 };

	err_set(&e, EINVAL, "inner");
	err_set(&e, EIO, "outer (%s)", e.msg);
	assert_string_equal(e.msg, "outer (inner)");
	err_prefix(&e, "%s", e.msg);
	assert_string_equal(e.msg, "outer (inner): outer (inner)");
}

static void check_cut(const struct err *e)
{
	assert_int_equal(strlen(e->msg), ERR_MSG_MAX - 1);
	assert_string_equal(e->msg + ERR_MSG_MAX - 4, "...");
}

static void test_long(void **state)
{
	struct err e = { 0 };
	char text[2 * ERR_MSG_MAX];

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	err_set(&e, EINVAL, "%s", text);
	check_cut(&e);
	err_set_sys(&e, EINVAL, "%s", text);
	check_cut(&e);
	err_set(&e, EINVAL, "%s", text);
	err_prefix(&e, "ab");
	check_cut(&e);
	assert_memory_equal(e.msg, "ab: xxx", 7);
	/* Fits to the byte: not cut. */
	err_set(&e, EINVAL, "%.*s", ERR_MSG_MAX - 1, text);
	assert_int_equal(strlen(e.msg), ERR_MSG_MAX - 1);
	assert_int_equal(e.msg[ERR_MSG_MAX - 2], 'x');
	for (int n = ERR_MSG_MAX - 30; n <= ERR_MSG_MAX; n++) {
		err_set_sys(&e, EINVAL, "%.*s", n, text);
		assert_true(strlen(e.msg) < ERR_MSG_MAX);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_set),    cmocka_unit_test(test_set_sys),
		cmocka_unit_test(test_prefix), cmocka_unit_test(test_own_text),
		cmocka_unit_test(test_long),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
