/*
 * ged.h - generic event device with sleep and reset registers (ACPI 6.4, 4.8.3 and 5.6.9)
 *
 * One small register block in I/O or MMIO space stands for what a hardware-reduced machine has
 * instead of a chipset. The architecture's firmware tables describe it to the guest by the offsets
 * below; the event interrupt is an edge.
 */
#ifndef DEVICES_GED_H
#define DEVICES_GED_H

#define GED_SIZE              0x8
#define GED_REG_EVENT         0x0 /* 32 bits, read: events since the last read, which clears them */
#define GED_REG_SLEEP_CONTROL 0x4 /* 8 bits: SLP_TYP in bits 2 to 4, SLP_EN bit 5 */
#define GED_REG_SLEEP_STATUS  0x5 /* 8 bits: WAK_STS bit 7, always clear */
#define GED_REG_RESET         0x6 /* 8 bits: GED_RESET_VALUE restarts the machine */

#define GED_EVENT_POWER_BUTTON 0x1

#define GED_SLEEP_TYPE_S5 5
#define GED_RESET_VALUE   1

#include <stdint.h>

#include "base/bus.h"
#include "devices/device.h"
#include "devices/wiring.h"

struct ged;

/* On @bus (port or memory) at @base, edge interrupt on @gsi. Instance name "ged". NULL on error. */
struct ged *ged_new(struct bus *bus, uint64_t base, unsigned gsi, struct wiring *wiring,
		    struct err *err);
struct device *ged_device(struct ged *g);
void ged_power_button(struct ged *g); /* any thread, without the lock */

extern const struct state_desc ged_state;

#endif
