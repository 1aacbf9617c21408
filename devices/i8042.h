/*
 * i8042.h - as much of a keyboard controller as a reset takes
 *
 * Ports 0x60 and 0x64. Writing 0xFE to 0x64 restarts the machine; there is no keyboard and the status
 * register says so, which lets drivers give up at once.
 */
#ifndef DEVICES_I8042_H
#define DEVICES_I8042_H

#include "base/bus.h"
#include "devices/device.h"
#include "devices/wiring.h"

struct device *i8042_new(struct bus *pio, uint64_t base, struct wiring *wiring,
			 struct err *err); /* instance "i8042" */

#endif
