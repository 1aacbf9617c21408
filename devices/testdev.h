/*
 * testdev.h - the test devices that kvm-unit-tests expect of an x86 machine
 *
 * Port 0xF4 ends the machine with exit status (value << 1) | 1 (isa-debug-exit), of which the low
 * eight bits count; ports 0x2000 + n put interrupt line n up or down; 0xE0 to 0xE3 are a scratch
 * register; a page of memory at TESTDEV_MMIO_BASE is a scratch register block (hw/misc/pc-testdev
 * in QEMU documents them).
 */
#ifndef DEVICES_TESTDEV_H
#define DEVICES_TESTDEV_H

#include "base/bus.h"
#include "devices/device.h"
#include "devices/wiring.h"

#define TESTDEV_MMIO_BASE 0xFF000000ull
#define TESTDEV_MMIO_SIZE 0x1000ull

struct device *testdev_new(struct bus *pio, struct bus *mmio, struct wiring *wiring,
			   struct err *err); /* instance "testdev" */

extern const struct state_desc testdev_state;

#endif
