/*
 * rtc_cmos.h - the MC146818 clock of a PC, time only
 *
 * Index and data at two ports. Shows the host's wall clock in UTC plus the offset the guest has set; no
 * alarm, no periodic interrupt, 114 bytes of CMOS memory, one of which (0x32) is the century. Like a
 * battery-backed chip it keeps time and memory over a reset.
 */
#ifndef DEVICES_RTC_CMOS_H
#define DEVICES_RTC_CMOS_H

#include "base/bus.h"
#include "devices/device.h"

struct device *rtc_cmos_new(struct bus *pio, uint64_t base, struct err *err); /* instance "rtc" */

/* The same with another wall clock: nanoseconds since 1970 (tests). */
struct device *rtc_cmos_new_with_clock(struct bus *pio, uint64_t base,
				       uint64_t (*now)(void *opaque), void *opaque,
				       struct err *err);

extern const struct state_desc rtc_cmos_state;

#endif
