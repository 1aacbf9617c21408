/*
 * test_ged.c - events, sleep and reset of a hardware-reduced machine
 */
#include "tests/unit/fake_wiring.h"
#include "tests/unit/state_check.h"

#include "base/log.h"
#include "devices/ged.h"

#define BASE 0x600
#define GSI  9

struct fixture {
	struct bus bus;
	struct fake_wiring fw;
	struct ged *g;
	struct device *d;
};

static int setup(void **state)
{
	struct fixture *x = calloc(1, sizeof(*x));
	struct err err = { 0 };

	bus_init(&x->bus);
	fake_wiring_init(&x->fw);
	x->g = ged_new(&x->bus, BASE, GSI, &x->fw.wiring, &err);
	assert_non_null(x->g);
	x->d = ged_device(x->g);
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

static uint64_t rd(struct fixture *x, unsigned off, unsigned len)
{
	uint64_t v = 0;

	assert_int_equal(bus_read(&x->bus, BASE + off, &v, len), 0);
	return v;
}

static void wr(struct fixture *x, unsigned off, uint64_t v, unsigned len)
{
	assert_int_equal(bus_write(&x->bus, BASE + off, &v, len), 0);
}

static void test_power_button(void **state)
{
	struct fixture *x = *state;

	assert_int_equal(rd(x, GED_REG_EVENT, 4), 0);
	ged_power_button(x->g);
	assert_int_equal(fake_wiring_deliver(&x->fw), 1);
	assert_int_equal(x->fw.last_line, GSI);
	assert_int_equal(rd(x, GED_REG_EVENT, 4), GED_EVENT_POWER_BUTTON);
	assert_int_equal(rd(x, GED_REG_EVENT, 4), 0); /* reading cleared it */

	ged_power_button(x->g); /* pressed twice before anyone looked: an edge each */
	assert_int_equal(fake_wiring_deliver(&x->fw), 1);
	ged_power_button(x->g);
	assert_int_equal(fake_wiring_deliver(&x->fw), 1);
	assert_int_equal(rd(x, GED_REG_EVENT, 1), GED_EVENT_POWER_BUTTON);
	assert_int_equal(rd(x, GED_REG_EVENT, 1), 0);
}

/* Only what is read is cleared: the button is in the first byte. */
static void test_event_widths(void **state)
{
	struct fixture *x = *state;

	ged_power_button(x->g);
	assert_int_equal(rd(x, GED_REG_EVENT + 1, 1), 0);
	assert_int_equal(rd(x, GED_REG_EVENT + 2, 2), 0);
	wr(x, GED_REG_EVENT, 0xffffffff, 4); /* read-only */
	assert_int_equal(rd(x, GED_REG_EVENT, 2), GED_EVENT_POWER_BUTTON);
	assert_int_equal(rd(x, GED_REG_EVENT, 4), 0);
	ged_power_button(x->g);
	assert_int_equal(rd(x, GED_REG_EVENT, 8), GED_EVENT_POWER_BUTTON);
}

static void test_sleep(void **state)
{
	struct fixture *x = *state;

	for (unsigned type = 0; type < 8; type++) {
		wr(x, GED_REG_SLEEP_CONTROL, type << 2, 1); /* type alone does nothing */
		assert_int_equal(x->fw.power_calls, 0);
		assert_int_equal(rd(x, GED_REG_SLEEP_CONTROL, 1), type << 2);
		if (type != GED_SLEEP_TYPE_S5) {
			wr(x, GED_REG_SLEEP_CONTROL, type << 2 | 0x20, 1);
			assert_int_equal(x->fw.power_calls, 0);
		}
	}
	wr(x, GED_REG_SLEEP_CONTROL, GED_SLEEP_TYPE_S5 << 2 | 0x20, 1);
	assert_int_equal(x->fw.power_calls, 1);
	assert_int_equal(x->fw.power_what, WIRE_POWER_OFF);
	assert_int_equal(rd(x, GED_REG_SLEEP_CONTROL, 1), GED_SLEEP_TYPE_S5 << 2);
	wr(x, GED_REG_SLEEP_STATUS, 0x80, 1);
	assert_int_equal(rd(x, GED_REG_SLEEP_STATUS, 1), 0);
}

static void test_reset_register(void **state)
{
	struct fixture *x = *state;

	wr(x, GED_REG_RESET, 0, 1);
	wr(x, GED_REG_RESET, 0xff, 1);
	assert_int_equal(x->fw.power_calls, 0);
	wr(x, GED_REG_RESET, GED_RESET_VALUE, 1);
	assert_int_equal(x->fw.power_calls, 1);
	assert_int_equal(x->fw.power_what, WIRE_POWER_RESET);
	assert_int_equal(rd(x, GED_REG_RESET, 1), 0);
	wr(x, GED_REG_SLEEP_CONTROL, (uint64_t)GED_RESET_VALUE << 16, 4); /* wide: reaches it too */
	assert_int_equal(x->fw.power_calls, 2);
	assert_int_equal(rd(x, GED_REG_SLEEP_CONTROL, 4), 0);
}

static void test_reset(void **state)
{
	struct fixture *x = *state;

	ged_power_button(x->g);
	wr(x, GED_REG_SLEEP_CONTROL, 0x14, 1);
	x->d->ops->reset(x->d);
	assert_int_equal(fake_wiring_deliver(&x->fw), 0);
	assert_int_equal(rd(x, GED_REG_EVENT, 4), 0);
	assert_int_equal(rd(x, GED_REG_SLEEP_CONTROL, 1), 0);
}

/* A button pressed just before the snapshot is heard on the other side. */
static void test_state(void **state)
{
	struct fixture *x = *state, *y;
	const struct state_part *p = &x->d->parts[0];
	struct state_buf buf = { 0 };
	struct err err = { 0 };
	uint32_t bad[2] = { 0, 0x20 };

	assert_int_equal(x->d->nparts, 1);
	state_check_complete(p->desc, p->desc->size);
	ged_power_button(x->g);
	x->d->ops->quiesce(x->d);
	assert_int_equal(state_save(p->desc, p->regs, &buf), 0);

	setup((void **)&y);
	assert_int_equal(state_load(y->d->parts[0].desc, y->d->parts[0].regs, y->d, buf.data,
				    buf.len, &err),
			 0);
	y->d->ops->resume(y->d);
	assert_int_equal(fake_wiring_deliver(&y->fw), 1);
	assert_int_equal(rd(y, GED_REG_EVENT, 4), GED_EVENT_POWER_BUTTON);
	y->d->ops->resume(y->d);
	assert_int_equal(fake_wiring_deliver(&y->fw), 0);
	teardown((void **)&y);

	buf.len = 0;
	assert_int_equal(sizeof(bad), p->desc->size);
	assert_int_equal(state_save(p->desc, bad, &buf), 0);
	assert_int_equal(state_load(p->desc, p->regs, x->d, buf.data, buf.len, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "sleep_control"));
	state_buf_fini(&buf);
}

static void test_refused_line(void **state)
{
	struct fixture *x = *state;
	struct err err = { 0 };

	x->fw.refuse_line = -EBUSY;
	assert_null(ged_new(&x->bus, 0x700, GSI, &x->fw.wiring, &err));
	assert_int_equal(err.code, -EBUSY);
	x->fw.refuse_line = 0;
	assert_null(ged_new(&x->bus, BASE + 4, GSI, &x->fw.wiring, &err));
	assert_int_equal(err.code, -EEXIST);
	assert_int_equal(x->fw.nline, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_power_button),   TEST(test_event_widths), TEST(test_sleep),
		TEST(test_reset_register), TEST(test_reset),        TEST(test_state),
		TEST(test_refused_line),
	};

	log_set_level(LOG_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
