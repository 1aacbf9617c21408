/*
 * test_pvpanic.c - what a guest writes to the panic device, and what becomes of it
 */
#include "tests/unit/fake_wiring.h"
#include "tests/unit/state_check.h"

#include "devices/pvpanic.h"

#define BASE 0x505

struct fixture {
	struct bus bus;
	struct fake_wiring fw;
	struct device *d;
};

static int setup(void **state)
{
	struct fixture *x = calloc(1, sizeof(*x));
	struct err err = { 0 };

	bus_init(&x->bus);
	fake_wiring_init(&x->fw);
	x->d = pvpanic_new(&x->bus, BASE, &x->fw.wiring, &err);
	assert_non_null(x->d);
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;

	x->d->ops->free(x->d);
	assert_true(fake_wiring_is_clean(&x->fw));
	assert_int_equal(x->bus.count, 0);
	bus_fini(&x->bus);
	free(x);
	return 0;
}

static void write_event(struct fixture *x, uint8_t v)
{
	assert_int_equal(bus_write(&x->bus, BASE, &v, 1), 0);
}

static void test_events_that_are_taken(void **state)
{
	struct fixture *x = *state;
	uint8_t v = 0;

	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(bus_read(&x->bus, BASE, &v, 1), 0);
		assert_int_equal(v, PVPANIC_PANICKED | PVPANIC_CRASH_LOADED);
		write_event(x, 0x80); /* no write changes it */
		x->d->ops->reset(x->d);
	}
}

/* Every byte there is. */
static void test_writes(void **state)
{
	struct fixture *x = *state;

	for (unsigned v = 0; v < 0x100; v++) {
		unsigned before = x->fw.power_calls;

		write_event(x, (uint8_t)v);
		assert_int_equal(x->fw.power_calls - before, (v & 3) != 0);
		if (v & 3)
			assert_int_equal(x->fw.power_what,
					 v & 1 ? WIRE_POWER_PANIC : WIRE_POWER_CRASH_KERNEL);
	}
}

static void test_one_port(void **state)
{
	struct fixture *x = *state;
	uint32_t v = 0x01010100;

	bus_write(&x->bus, BASE - 1, &v, 1);
	bus_write(&x->bus, BASE + 1, &v, 1);
	assert_int_equal(x->fw.power_calls, 0);
	assert_int_equal(x->d->nparts, 0); /* nothing to save */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_events_that_are_taken),
		TEST(test_writes),
		TEST(test_one_port),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
