/*
 * rtc_cmos.c - the clock that is read once at boot
 *
 * The time is never stored: it is the host's wall clock plus what the guest has set it ahead, worked out
 * at each read. Only while the guest holds updates off (register B, SET) are the ten time registers
 * real bytes; releasing SET turns them into a new offset. So a snapshot that is restored a week later
 * shows the right time, as a battery-backed chip would.
 *
 * Registers are read one after the other, so a minute may pass between two of them. The chip warns of
 * that by raising UIP 244 microseconds before it counts (MC146818A data sheet, "update cycle"), and
 * drivers wait for it to fall; so do we, from the host's clock. A read costs no waiting of ours.
 *
 * Nonsense written to the time registers is kept while SET is on and gives no new offset afterwards.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "devices/rtc_cmos.h"

#define PORTS 2
#define SIZE  128

/* Registers; 1, 3 and 5 are the alarm, which is memory here. */
enum {
	SECONDS = 0,
	MINUTES = 2,
	HOURS = 4,
	WEEKDAY = 6,
	DAY = 7,
	MONTH = 8,
	YEAR = 9,
	REG_A = 10,
	REG_B = 11,
	REG_C = 12,
	REG_D = 13,
	CENTURY = 0x32
};

#define A_UIP     0x80
#define A_DEFAULT 0x26 /* 32768 Hz crystal, 1024 Hz square wave: what a BIOS sets */
#define B_SET     0x80
#define B_IRQS    0x78 /* periodic, alarm, update interrupt, square wave: cleared by reset */
#define B_BINARY  0x04
#define B_24H     0x02
#define C_NONE    0x00
#define D_VALID   0x80
#define HOUR_PM   0x80

#define NS_PER_S   1000000000ull
#define UPDATE_NS  244000ull
#define OFFSET_MAX (1ll << 40) /* seconds; the years 0 to 9999 fit many times */

/* Guest-visible state. */
struct rtc_regs {
	int64_t offset;     /* seconds ahead of the host's clock */
	uint8_t cmos[SIZE]; /* memory; time registers are valid only while SET is on */
	uint8_t index;      /* 0 to 127 */
	uint8_t pad_[7];
};

struct rtc {
	struct device dev;
	struct bus *pio;
	uint64_t base;
	uint64_t (*now)(void *opaque);
	void *opaque;
	struct rtc_regs regs;
};

static int rtc_validate(const void *regs, const void *device, struct err *err)
{
	const struct rtc_regs *r = regs;

	if (r->index >= SIZE)
		return err_set(err, EINVAL, "index: %u", r->index);
	if (r->offset > OFFSET_MAX || r->offset < -OFFSET_MAX)
		return err_set(err, EINVAL, "offset: %lld seconds", (long long)r->offset);
	return 0;
}

static const struct state_field rtc_fields[] = {
	STATE_U64(1, struct rtc_regs, offset),
	STATE_BYTES(2, struct rtc_regs, cmos),
	STATE_U8(3, struct rtc_regs, index),
	STATE_PAD(struct rtc_regs, pad_),
};
const struct state_desc rtc_cmos_state =
	STATE_DESC("rtc", struct rtc_regs, rtc_fields, rtc_validate);

static struct rtc *of(struct device *d)
{
	return (struct rtc *)d; /* first member */
}

static uint64_t wall_clock(void *opaque)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* ---- numbers as register B wants them ---- */

static bool is_time(unsigned index)
{
	return index == SECONDS || index == MINUTES || index == HOURS ||
	       (index >= WEEKDAY && index <= YEAR) || index == CENTURY;
}

static uint8_t encode(const struct rtc_regs *r, unsigned value)
{
	return (uint8_t)(r->cmos[REG_B] & B_BINARY ? value : value / 10 << 4 | value % 10);
}

/* -1: not a number. */
static int decode(const struct rtc_regs *r, uint8_t value)
{
	if (r->cmos[REG_B] & B_BINARY)
		return value;
	return (value & 0xf) > 9 || value >> 4 > 9 ? -1 : (value >> 4) * 10 + (value & 0xf);
}

static uint8_t encode_hour(const struct rtc_regs *r, unsigned hour)
{
	if (r->cmos[REG_B] & B_24H)
		return encode(r, hour);
	return encode(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0);
}

static int decode_hour(const struct rtc_regs *r, uint8_t value)
{
	int hour;

	if (r->cmos[REG_B] & B_24H)
		return decode(r, value);
	hour = decode(r, value & (uint8_t)~HOUR_PM);
	return hour < 1 || hour > 12 ? -1 : hour % 12 + (value & HOUR_PM ? 12 : 0);
}

/* ---- the time ---- */

/* Write the time of now into the time registers. */
static void latch(struct rtc *t)
{
	struct rtc_regs *r = &t->regs;
	time_t now = (time_t)(t->now(t->opaque) / NS_PER_S) + (time_t)r->offset;
	struct tm tm = { .tm_mday = 1 };

	/* Years that four digits cannot show are shown modulo 10000; there is no way to be right. */
	gmtime_r(&now, &tm);
	unsigned year = (unsigned)((tm.tm_year + 1900) % 10000 + 10000) % 10000;

	r->cmos[SECONDS] = encode(r, (unsigned)tm.tm_sec);
	r->cmos[MINUTES] = encode(r, (unsigned)tm.tm_min);
	r->cmos[HOURS] = encode_hour(r, (unsigned)tm.tm_hour);
	r->cmos[WEEKDAY] = encode(r, (unsigned)tm.tm_wday + 1);
	r->cmos[DAY] = encode(r, (unsigned)tm.tm_mday);
	r->cmos[MONTH] = encode(r, (unsigned)tm.tm_mon + 1);
	r->cmos[YEAR] = encode(r, year % 100);
	r->cmos[CENTURY] = encode(r, year / 100);
}

static bool in_range(int value, int low, int high)
{
	return value >= low && value <= high;
}

/* Make the time registers the time of now, if they say one. */
static void set_time(struct rtc *t)
{
	struct rtc_regs *r = &t->regs;
	int year = decode(r, r->cmos[YEAR]), century = decode(r, r->cmos[CENTURY]);
	struct tm tm = {
		.tm_sec = decode(r, r->cmos[SECONDS]),
		.tm_min = decode(r, r->cmos[MINUTES]),
		.tm_hour = decode_hour(r, r->cmos[HOURS]),
		.tm_mday = decode(r, r->cmos[DAY]),
		.tm_mon = decode(r, r->cmos[MONTH]) - 1,
		.tm_year = century * 100 + year - 1900,
	};

	if (in_range(tm.tm_sec, 0, 59) && in_range(tm.tm_min, 0, 59) &&
	    in_range(tm.tm_hour, 0, 23) && in_range(tm.tm_mday, 1, 31) &&
	    in_range(tm.tm_mon, 0, 11) && in_range(year, 0, 99) && in_range(century, 0, 99))
		r->offset = (int64_t)timegm(&tm) - (int64_t)(t->now(t->opaque) / NS_PER_S);
}

static bool held(const struct rtc *t)
{
	return t->regs.cmos[REG_B] & B_SET;
}

static bool about_to_update(const struct rtc *t)
{
	return !held(t) && t->now(t->opaque) % NS_PER_S >= NS_PER_S - UPDATE_NS;
}

/* ---- registers ---- */

static uint8_t read_reg(struct rtc *t, unsigned index)
{
	struct rtc_regs *r = &t->regs;

	switch (index) {
	case REG_A:
		return r->cmos[REG_A] | (about_to_update(t) ? A_UIP : 0);
	case REG_C:
		return C_NONE;
	case REG_D:
		return D_VALID;
	default:
		if (is_time(index) && !held(t))
			latch(t);
		return r->cmos[index];
	}
}

/* The format bits count for what is read and written from now on; what is latched stays as it is. */
static void write_b(struct rtc *t, uint8_t value)
{
	bool was_held = held(t);

	if (!was_held && (value & B_SET))
		latch(t);
	t->regs.cmos[REG_B] = value;
	if (was_held && !(value & B_SET))
		set_time(t);
}

static void write_reg(struct rtc *t, unsigned index, uint8_t value)
{
	struct rtc_regs *r = &t->regs;

	if (index == REG_C || index == REG_D)
		return;
	if (index == REG_B) {
		write_b(t, value);
	} else if (index == REG_A) {
		r->cmos[REG_A] = value & (uint8_t)~A_UIP;
	} else if (is_time(index) && !held(t)) {
		latch(t);
		r->cmos[index] = value;
		set_time(t);
	} else {
		r->cmos[index] = value;
	}
}

/* An 8-bit chip: a 16-bit access is one to the index, which cannot be read back, and one to the data. */
static void rtc_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	struct rtc *t = opaque;

	for (unsigned i = 0; i < len; i++)
		((uint8_t *)data)[i] = off + i == 1 ? read_reg(t, t->regs.index) : 0xff;
}

static void rtc_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct rtc *t = opaque;
	const uint8_t *bytes = data;

	for (unsigned i = 0; i < len; i++) {
		if (off + i == 0)
			t->regs.index = bytes[i] & (SIZE - 1); /* bit 7 masks NMIs on a PC */
		else
			write_reg(t, t->regs.index, bytes[i]);
	}
}

static const struct region_ops rtc_ops = { rtc_read, rtc_write };

/* ---- the device ---- */

static void rtc_reset(struct device *d)
{
	struct rtc *t = of(d);

	pthread_mutex_lock(&d->lock);
	t->regs.index = 0;
	t->regs.cmos[REG_B] &= (uint8_t)~B_IRQS;
	pthread_mutex_unlock(&d->lock);
}

static void rtc_quiesce(struct device *d)
{
}

static void rtc_resume(struct device *d)
{
}

static void rtc_free(struct device *d)
{
	struct rtc *t = of(d);

	bus_remove(t->pio, t->base, t);
	device_fini(d);
	free(t);
}

static const struct device_ops rtc_device_ops = {
	.type = "rtc-cmos",
	.reset = rtc_reset,
	.quiesce = rtc_quiesce,
	.resume = rtc_resume,
	.free = rtc_free,
};

struct device *rtc_cmos_new_with_clock(struct bus *pio, uint64_t base,
				       uint64_t (*now)(void *opaque), void *opaque, struct err *err)
{
	struct rtc *t = calloc(1, sizeof(*t));

	if (!t || device_init(&t->dev, &rtc_device_ops, "rtc")) {
		free(t);
		err_set(err, ENOMEM, "out of memory for the clock");
		return NULL;
	}
	t->pio = pio;
	t->base = base;
	t->now = now;
	t->opaque = opaque;
	t->regs.cmos[REG_A] = A_DEFAULT;
	t->regs.cmos[REG_B] = B_24H;
	device_add_state(&t->dev, &rtc_cmos_state, &t->regs, t);
	/* glibc reads the time zone's file at the first gmtime_r(), which is in the sandbox otherwise. */
	tzset();

	struct region r = { .base = base,
			    .size = PORTS,
			    .ops = &rtc_ops,
			    .opaque = t,
			    .lock = &t->dev.lock,
			    .name = t->dev.name };

	if (bus_add(pio, &r, err)) {
		rtc_free(&t->dev);
		return NULL;
	}
	return &t->dev;
}

struct device *rtc_cmos_new(struct bus *pio, uint64_t base, struct err *err)
{
	tzset(); /* opens a file the first time: later, gmtime_r() could not (vmm/sandbox.c) */
	return rtc_cmos_new_with_clock(pio, base, wall_clock, NULL, err);
}
