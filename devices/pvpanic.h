/*
 * pvpanic.h - the port by which a guest's kernel says that it has panicked
 *
 * One byte (QEMU's docs/specs/pvpanic.rst; Linux drivers/misc/pvpanic). Reading it tells which events
 * the machine takes, writing those bits reports them. The architecture's firmware tables name it to
 * the guest by PVPANIC_HID.
 */
#ifndef DEVICES_PVPANIC_H
#define DEVICES_PVPANIC_H

#include "base/bus.h"
#include "devices/device.h"
#include "devices/wiring.h"

#define PVPANIC_SIZE 1
#define PVPANIC_HID  "QEMU0001"

#define PVPANIC_PANICKED     0x1 /* the kernel has come to its end */
#define PVPANIC_CRASH_LOADED 0x2 /* it panicked and goes on in its crash kernel (kdump) */
#define PVPANIC_EVENTS       (PVPANIC_PANICKED | PVPANIC_CRASH_LOADED)

/* On @bus (port or memory) at @base. Instance name "pvpanic". NULL on error. */
struct device *pvpanic_new(struct bus *bus, uint64_t base, struct wiring *wiring, struct err *err);

#endif
