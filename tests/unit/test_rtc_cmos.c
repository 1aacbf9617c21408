/*
 * test_rtc_cmos.c - the time as a PC reads and sets it, with a clock of our own
 */
#include <time.h>

#include "tests/unit/state_check.h"

#include "devices/rtc_cmos.h"

#define BASE 0x70
#define NS   1000000000ull

enum { SEC, SEC_ALARM, MIN, MIN_ALARM, HOUR, HOUR_ALARM, WDAY, DAY, MONTH, YEAR, A, B, C, D };
#define CENTURY 0x32

struct fixture {
	struct bus pio;
	struct device *d;
	uint64_t now; /* nanoseconds */
};

static uint64_t now(void *opaque)
{
	return ((struct fixture *)opaque)->now;
}

static uint64_t utc(int year, int month, int day, int hour, int min, int sec)
{
	struct tm tm = { .tm_year = year - 1900,
			 .tm_mon = month - 1,
			 .tm_mday = day,
			 .tm_hour = hour,
			 .tm_min = min,
			 .tm_sec = sec };

	return (uint64_t)timegm(&tm) * NS;
}

static int setup(void **state)
{
	struct fixture *x = calloc(1, sizeof(*x));
	struct err err = { 0 };

	bus_init(&x->pio);
	x->now = utc(2024, 2, 29, 23, 59, 58);
	x->d = rtc_cmos_new_with_clock(&x->pio, BASE, now, x, &err);
	assert_non_null(x->d);
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;

	x->d->ops->free(x->d);
	assert_int_equal(x->pio.count, 0);
	bus_fini(&x->pio);
	free(x);
	return 0;
}

static uint8_t rd(struct fixture *x, uint8_t index)
{
	uint8_t v;

	assert_int_equal(bus_write(&x->pio, BASE, &index, 1), 0);
	assert_int_equal(bus_read(&x->pio, BASE + 1, &v, 1), 0);
	return v;
}

static void wr(struct fixture *x, uint8_t index, uint8_t v)
{
	assert_int_equal(bus_write(&x->pio, BASE, &index, 1), 0);
	assert_int_equal(bus_write(&x->pio, BASE + 1, &v, 1), 0);
}

static void expect(struct fixture *x, unsigned century, unsigned year, unsigned month, unsigned day,
		   unsigned hour, unsigned min, unsigned sec)
{
	assert_int_equal(rd(x, CENTURY), century);
	assert_int_equal(rd(x, YEAR), year);
	assert_int_equal(rd(x, MONTH), month);
	assert_int_equal(rd(x, DAY), day);
	assert_int_equal(rd(x, HOUR), hour);
	assert_int_equal(rd(x, MIN), min);
	assert_int_equal(rd(x, SEC), sec);
}

static void set(struct fixture *x, unsigned century, unsigned year, unsigned month, unsigned day,
		unsigned hour, unsigned min, unsigned sec)
{
	wr(x, B, rd(x, B) | 0x80);
	wr(x, CENTURY, (uint8_t)century);
	wr(x, YEAR, (uint8_t)year);
	wr(x, MONTH, (uint8_t)month);
	wr(x, DAY, (uint8_t)day);
	wr(x, HOUR, (uint8_t)hour);
	wr(x, MIN, (uint8_t)min);
	wr(x, SEC, (uint8_t)sec);
	wr(x, B, rd(x, B) & 0x7f);
}

/* ---- reading ---- */

static void test_defaults(void **state)
{
	struct fixture *x = *state;

	assert_int_equal(rd(x, A), 0x26);
	assert_int_equal(rd(x, B), 0x02); /* BCD, 24 hours */
	assert_int_equal(rd(x, C), 0x00);
	assert_int_equal(rd(x, D), 0x80); /* the battery is good */
	wr(x, C, 0xff);
	wr(x, D, 0x00);
	assert_int_equal(rd(x, C), 0x00);
	assert_int_equal(rd(x, D), 0x80);
}

static void test_leap_day(void **state)
{
	struct fixture *x = *state;

	expect(x, 0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58);
	assert_int_equal(rd(x, WDAY), 5); /* Thursday, Sunday being 1 */
	x->now += 2 * NS;
	expect(x, 0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00);
	x->now = utc(2100, 2, 28, 23, 59, 59) + NS; /* no leap year */
	expect(x, 0x21, 0x00, 0x03, 0x01, 0x00, 0x00, 0x00);
}

static void test_formats(void **state)
{
	static const struct {
		int hour;
		uint8_t bcd, binary;
	} h[] = {
		{ 0, 0x12, 12 },    { 9, 0x09, 9 },     { 11, 0x11, 11 },
		{ 12, 0x92, 0x8c }, { 13, 0x81, 0x81 }, { 23, 0x91, 0x8b },
	};
	struct fixture *x = *state;

	for (unsigned i = 0; i < sizeof(h) / sizeof(h[0]); i++) {
		x->now = utc(1999, 12, 31, h[i].hour, 45, 30);
		wr(x, B, 0x00);
		assert_int_equal(rd(x, HOUR), h[i].bcd);
		wr(x, B, 0x04);
		assert_int_equal(rd(x, HOUR), h[i].binary);
		wr(x, B, 0x06);
		expect(x, 19, 99, 12, 31, (unsigned)h[i].hour, 45, 30);
	}
}

/* UIP announces the next second, so that nobody reads 10:59 as 10:00 or 11:59. */
static void test_update_in_progress(void **state)
{
	struct fixture *x = *state;

	x->now += NS / 2;
	assert_int_equal(rd(x, A) & 0x80, 0);
	x->now += NS / 2 - 244000;
	assert_int_equal(rd(x, A) & 0x80, 0x80);
	wr(x, B, 0x82); /* no updates, no warning */
	assert_int_equal(rd(x, A) & 0x80, 0);
	wr(x, B, 0x02);
	x->now += 244000;
	assert_int_equal(rd(x, A) & 0x80, 0);
	wr(x, A, 0xf0);
	assert_int_equal(rd(x, A), 0x70);
}

/* ---- setting ---- */

static void test_set(void **state)
{
	struct fixture *x = *state;

	set(x, 0x20, 0x37, 0x12, 0x31, 0x23, 0x59, 0x59);
	expect(x, 0x20, 0x37, 0x12, 0x31, 0x23, 0x59, 0x59);
	x->now += 3 * NS;
	expect(x, 0x20, 0x38, 0x01, 0x01, 0x00, 0x00, 0x02);
	set(x, 0x19, 0x70, 0x01, 0x01, 0x00, 0x00, 0x00); /* backwards */
	expect(x, 0x19, 0x70, 0x01, 0x01, 0x00, 0x00, 0x00);
	set(x, 0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59);
	x->now += NS; /* year 10000 */
	expect(x, 0x00, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00);
}

static void test_set_holds_time(void **state)
{
	struct fixture *x = *state;

	wr(x, B, 0x82);
	x->now += 100 * NS;
	assert_int_equal(rd(x, SEC), 0x58);
	wr(x, SEC, 0x10);
	assert_int_equal(rd(x, SEC), 0x10);
	wr(x, B, 0x02);
	expect(x, 0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x10);
}

/* One register at a time, without holding updates. */
static void test_set_running(void **state)
{
	struct fixture *x = *state;

	wr(x, HOUR, 0x05);
	expect(x, 0x20, 0x24, 0x02, 0x29, 0x05, 0x59, 0x58);
	wr(x, YEAR, 0x23); /* 29 February 2023 is 1 March */
	expect(x, 0x20, 0x23, 0x03, 0x01, 0x05, 0x59, 0x58);
}

static void test_set_nonsense(void **state)
{
	static const struct {
		uint8_t index, value;
	} bad[] = {
		{ MONTH, 0x13 }, { MONTH, 0x00 }, { DAY, 0x32 },  { DAY, 0x00 },     { HOUR, 0x24 },
		{ MIN, 0x60 },   { SEC, 0x5a },   { YEAR, 0xff }, { CENTURY, 0xaa },
	};
	struct fixture *x = *state;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		wr(x, bad[i].index, bad[i].value);
		expect(x, 0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58);
		wr(x, B, 0x82);
		wr(x, bad[i].index, bad[i].value);
		wr(x, B, 0x02);
		expect(x, 0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58);
	}
}

/* Every value in every register in every format: no harm, and the time stays a time. */
static void test_storm(void **state)
{
	struct fixture *x = *state;
	uint32_t seed = 5;

	for (unsigned i = 0; i < 50000; i++) {
		seed = seed * 1664525u + 1013904223u;
		wr(x, seed >> 8 & 0x3f, (uint8_t)(seed >> 16));
		rd(x, seed >> 24 & 0xff);
	}
	wr(x, B, 0x82);
	wr(x, B, 0x02);
	set(x, 0x20, 0x30, 0x06, 0x15, 0x12, 0x00, 0x00);
	expect(x, 0x20, 0x30, 0x06, 0x15, 0x12, 0x00, 0x00);
}

/* ---- memory and ports ---- */

static void test_memory(void **state)
{
	struct fixture *x = *state;

	for (unsigned i = D + 1; i < 128; i++) {
		if (i != CENTURY)
			wr(x, (uint8_t)i, (uint8_t)(i ^ 0x5a));
	}
	wr(x, SEC_ALARM, 0xc0);
	for (unsigned i = D + 1; i < 128; i++) {
		if (i != CENTURY)
			assert_int_equal(rd(x, (uint8_t)(i | 0x80)), i ^ 0x5a); /* bit 7: NMI */
	}
	assert_int_equal(rd(x, SEC_ALARM), 0xc0);
}

static void test_ports(void **state)
{
	struct fixture *x = *state;
	uint8_t v[2] = { 0x40, 0x77 };

	assert_int_equal(bus_write(&x->pio, BASE, v, 2), 0); /* index and data at once */
	assert_int_equal(rd(x, 0x40), 0x77);
	assert_int_equal(bus_read(&x->pio, BASE, v, 1), 0);
	assert_int_equal(v[0], 0xff);
	assert_int_equal(bus_read(&x->pio, BASE, v, 2), 0);
	assert_int_equal(v[1], 0x77);
	assert_int_equal(bus_read(&x->pio, BASE + 1, v, 2), -ENXIO);
}

/* ---- state ---- */

static void test_reset_keeps_time(void **state)
{
	struct fixture *x = *state;

	set(x, 0x20, 0x30, 0x06, 0x15, 0x12, 0x00, 0x00);
	wr(x, 0x50, 0x11);
	wr(x, B, 0x72);
	x->d->ops->reset(x->d);
	assert_int_equal(rd(x, B), 0x02);
	assert_int_equal(rd(x, 0x50), 0x11);
	expect(x, 0x20, 0x30, 0x06, 0x15, 0x12, 0x00, 0x00);
}

/* Restored a day later, an hour ahead of the host as before. */
static void test_state(void **state)
{
	struct fixture *x = *state, *y;
	const struct state_part *p = &x->d->parts[0];
	struct state_buf buf = { 0 };
	struct err err = { 0 };

	assert_int_equal(x->d->nparts, 1);
	state_check_complete(p->desc, p->desc->size);
	set(x, 0x20, 0x24, 0x03, 0x01, 0x00, 0x59, 0x58);
	wr(x, 0x7f, 0x42);
	assert_int_equal(state_save(p->desc, p->regs, &buf), 0);

	setup((void **)&y);
	y->now += 86400 * NS;
	assert_int_equal(state_load(y->d->parts[0].desc, y->d->parts[0].regs, y->d, buf.data,
				    buf.len, &err),
			 0);
	y->d->ops->resume(y->d);
	expect(y, 0x20, 0x24, 0x03, 0x02, 0x00, 0x59, 0x58);
	assert_int_equal(rd(y, 0x7f), 0x42);
	teardown((void **)&y);
	state_buf_fini(&buf);
}

static void refuse(struct fixture *x, const char *field, uint64_t value, size_t len)
{
	const struct state_part *p = &x->d->parts[0];
	uint8_t *regs = test_calloc(1, p->desc->size);
	struct state_buf buf = { 0 };
	struct err err = { 0 };

	for (unsigned i = 0; i < p->desc->count; i++) {
		if (!strcmp(p->desc->fields[i].name, field))
			memcpy(regs + p->desc->fields[i].offset, &value, len);
	}
	assert_int_equal(state_save(p->desc, regs, &buf), 0);
	assert_int_equal(state_load(p->desc, p->regs, x->d, buf.data, buf.len, &err), -EINVAL);
	assert_non_null(strstr(err.msg, field));
	state_buf_fini(&buf);
	test_free(regs);
}

static void test_state_refused(void **state)
{
	struct fixture *x = *state;

	refuse(x, "index", 128, 1);
	refuse(x, "offset", INT64_MAX, 8);
	refuse(x, "offset", (uint64_t)INT64_MIN, 8);
	expect(x, 0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58);
}

/* The real clock: between two looks at it. */
static void test_wall_clock(void **state)
{
	struct fixture x = { 0 };
	struct err err = { 0 };
	struct timespec before, after;
	time_t shown;

	bus_init(&x.pio);
	x.d = rtc_cmos_new(&x.pio, BASE, &err);
	assert_non_null(x.d);
	wr(&x, B, 0x06);
	clock_gettime(CLOCK_REALTIME, &before); /* time() may lag behind it */
	wr(&x, B, 0x86); /* binary, and held so that the registers belong together */
	shown = (time_t)(utc(rd(&x, CENTURY) * 100 + rd(&x, YEAR), rd(&x, MONTH), rd(&x, DAY),
			     rd(&x, HOUR), rd(&x, MIN), rd(&x, SEC)) /
			 NS);
	clock_gettime(CLOCK_REALTIME, &after);
	assert_in_range(shown, before.tv_sec, after.tv_sec);
	x.d->ops->free(x.d);
	bus_fini(&x.pio);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_defaults),
		TEST(test_leap_day),
		TEST(test_formats),
		TEST(test_update_in_progress),
		TEST(test_set),
		TEST(test_set_holds_time),
		TEST(test_set_running),
		TEST(test_set_nonsense),
		TEST(test_storm),
		TEST(test_memory),
		TEST(test_ports),
		TEST(test_reset_keeps_time),
		TEST(test_state),
		TEST(test_state_refused),
		cmocka_unit_test(test_wall_clock),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
