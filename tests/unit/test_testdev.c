/*
 * test_testdev.c - the test device and the keyboard controller's reset
 */
#include "tests/unit/fake_wiring.h"
#include "tests/unit/state_check.h"

#include "base/log.h"
#include "devices/i8042.h"
#include "devices/testdev.h"

struct fixture {
	struct bus pio, mmio;
	struct fake_wiring fw;
	struct device *test, *keyboard;
};

static int setup(void **state)
{
	struct fixture *x = calloc(1, sizeof(*x));
	struct err err = { 0 };

	bus_init(&x->pio);
	bus_init(&x->mmio);
	fake_wiring_init(&x->fw);
	x->test = testdev_new(&x->pio, &x->mmio, &x->fw.wiring, &err);
	x->keyboard = i8042_new(&x->pio, 0x60, &x->fw.wiring, &err);
	assert_non_null(x->test);
	assert_non_null(x->keyboard);
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;

	x->test->ops->free(x->test);
	x->keyboard->ops->free(x->keyboard);
	assert_true(fake_wiring_is_clean(&x->fw));
	assert_int_equal(x->pio.count + x->mmio.count, 0);
	bus_fini(&x->pio);
	bus_fini(&x->mmio);
	free(x);
	return 0;
}

static uint64_t rd(struct bus *b, uint64_t at, unsigned len)
{
	uint64_t v = 0;

	bus_read(b, at, &v, len);
	return v;
}

static void wr(struct bus *b, uint64_t at, uint64_t v, unsigned len)
{
	bus_write(b, at, &v, len);
}

static void test_exit(void **state)
{
	static const struct {
		uint32_t value;
		unsigned len;
		int status;
	} e[] = {
		{ 0, 4, 1 },       { 1, 1, 3 },          { 0x10, 2, 0x21 },
		{ 0xff, 4, 0xff }, { 0x12345600, 4, 1 },
	};
	struct fixture *x = *state;

	for (unsigned i = 0; i < sizeof(e) / sizeof(e[0]); i++) {
		wr(&x->pio, 0xf4, e[i].value, e[i].len);
		assert_int_equal(x->fw.power_calls, i + 1);
		assert_int_equal(x->fw.power_what, WIRE_POWER_EXIT);
		assert_int_equal(x->fw.power_status, e[i].status);
	}
	wr(&x->pio, 0xf5, 1, 1);
	assert_int_equal(x->fw.power_calls, sizeof(e) / sizeof(e[0]));
}

static void test_lines(void **state)
{
	struct fixture *x = *state;

	wr(&x->pio, 0x2005, 0, 1); /* down already */
	assert_int_equal(x->fw.line_sets, 0);
	for (unsigned i = 0; i < 3; i++) {
		wr(&x->pio, 0x2005, 1, 1 << i); /* any width */
		assert_int_equal(x->fw.lines_up, 1u << 5);
		wr(&x->pio, 0x2005, 1, 1); /* up already */
		assert_int_equal(x->fw.line_sets, 2 * i + 1);
		wr(&x->pio, 0x2005, 0, 1);
		assert_int_equal(x->fw.lines_up, 0);
	}
	wr(&x->pio, 0x2017, 1, 1);
	wr(&x->pio, 0x2018, 1, 1); /* beyond the last */
	assert_int_equal(x->fw.lines_up, 1u << 23);
	wr(&x->pio, 0x2017, 0x100, 2);
	assert_int_equal(x->fw.lines_up, 1u << 23);

	x->fw.refuse_line = -EINVAL;
	wr(&x->pio, 0x2001, 1, 1);
	x->fw.refuse_line = 0;
	wr(&x->pio, 0x2001, 0, 1);
	wr(&x->pio, 0x2001, 1, 1); /* tries again */
	assert_int_equal(x->fw.lines_up, 1u << 23 | 2);

	/* What a new machine's interrupt controllers do not know is told again. */
	x->fw.lines_up = 0;
	x->test->ops->resume(x->test);
	assert_int_equal(x->fw.lines_up, 1u << 23 | 2);
	x->test->ops->reset(x->test);
	assert_int_equal(x->fw.lines_up, 0);
}

static void test_scratch(void **state)
{
	struct fixture *x = *state;

	wr(&x->pio, 0xe0, 0x12345678, 4);
	assert_int_equal(rd(&x->pio, 0xe0, 4), 0x12345678);
	assert_int_equal(rd(&x->pio, 0xe1, 1), 0x56);
	assert_int_equal(rd(&x->pio, 0xe2, 2), 0x1234);
	wr(&x->pio, 0xe3, 0xff, 1);
	wr(&x->pio, 0xe0, 0xaaaa, 2);
	assert_int_equal(rd(&x->pio, 0xe0, 4), 0xff34aaaa);
	assert_int_equal(rd(&x->pio, 0xe2, 4), 0xffffffff); /* leaves the register */
}

static void test_page(void **state)
{
	struct fixture *x = *state;

	for (unsigned len = 1; len <= 8; len *= 2) {
		uint64_t at = TESTDEV_MMIO_BASE + 0x100 * len + 3;
		uint64_t v = 0x1122334455667788ull >> (64 - 8 * len);

		wr(&x->mmio, at, v, len);
		assert_true(rd(&x->mmio, at, len) == v);
		assert_int_equal(rd(&x->mmio, at + len, 1), 0);
	}
	wr(&x->mmio, TESTDEV_MMIO_BASE + TESTDEV_MMIO_SIZE - 8, 0x55, 8);
	assert_int_equal(rd(&x->mmio, TESTDEV_MMIO_BASE + TESTDEV_MMIO_SIZE - 8, 8), 0x55);
	assert_int_equal(rd(&x->mmio, TESTDEV_MMIO_BASE + TESTDEV_MMIO_SIZE - 4, 8), -1);
}

static void test_state(void **state)
{
	struct fixture *x = *state;
	const struct state_part *p = &x->test->parts[0];
	struct state_buf buf = { 0 };
	struct err err = { 0 };
	uint8_t *bad;

	assert_int_equal(x->test->nparts, 1);
	state_check_complete(p->desc, p->desc->size);
	wr(&x->pio, 0xe0, 0x99, 1);
	assert_int_equal(state_save(p->desc, p->regs, &buf), 0);
	x->test->ops->reset(x->test);
	assert_int_equal(rd(&x->pio, 0xe0, 4), 0);
	assert_int_equal(state_load(p->desc, p->regs, x->test, buf.data, buf.len, &err), 0);
	assert_int_equal(rd(&x->pio, 0xe0, 4), 0x99);

	bad = test_calloc(1, p->desc->size);
	bad[p->desc->fields[1].offset + 3] = 1; /* line 24 */
	buf.len = 0;
	assert_int_equal(state_save(p->desc, bad, &buf), 0);
	assert_int_equal(state_load(p->desc, p->regs, x->test, buf.data, buf.len, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "lines"));
	test_free(bad);
	state_buf_fini(&buf);
}

static void test_keyboard_reset(void **state)
{
	struct fixture *x = *state;

	for (unsigned v = 0; v < 0xfe; v++)
		wr(&x->pio, 0x64, v, 1);
	wr(&x->pio, 0x60, 0xfe, 1);
	assert_int_equal(x->fw.power_calls, 0);
	wr(&x->pio, 0x64, 0xfe, 1);
	assert_int_equal(x->fw.power_calls, 1);
	assert_int_equal(x->fw.power_what, WIRE_POWER_RESET);
}

/* Linux i8042_flush() gives up after 16 bytes; kb_wait() before a reset must not wait. */
static void test_keyboard_absent(void **state)
{
	struct fixture *x = *state;
	unsigned drained = 0;

	while (drained < 17 && (rd(&x->pio, 0x64, 1) & 0x01)) {
		rd(&x->pio, 0x60, 1);
		drained++;
	}
	assert_int_equal(drained, 17);
	assert_int_equal(rd(&x->pio, 0x64, 1) & 0x02, 0);
	assert_int_equal(rd(&x->pio, 0x61, 1), 0xff); /* between the two is somebody else's */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_exit),
		TEST(test_lines),
		TEST(test_scratch),
		TEST(test_page),
		TEST(test_state),
		TEST(test_keyboard_reset),
		TEST(test_keyboard_absent),
	};

	log_set_level(LOG_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
