/*
 * uart16550.h - a serial port (National Semiconductor PC16550D data sheet)
 *
 * Knows nothing of where the bytes go: the machine joins it to a console. Transmission never waits, so
 * the transmitter is always empty; received bytes wait in the 16-byte FIFO and the console holds the rest.
 */
#ifndef DEVICES_UART16550_H
#define DEVICES_UART16550_H

#include <stddef.h>
#include <stdint.h>

#include "base/bus.h"
#include "devices/device.h"
#include "devices/wiring.h"

struct uart16550;

struct uart16550_host {
	/* The guest sent bytes. Under the device's lock; must not block. */
	void (*transmit)(void *opaque, const uint8_t *data, size_t len);
	/* The FIFO has room again after uart16550_room() said 0. Under the lock; must not call back. */
	void (*receive_ready)(void *opaque);
	void *opaque;
};

/* Eight ports at @base on @pio, edge interrupt on @gsi. @name e.g. "serial0". NULL on error. */
struct uart16550 *uart16550_new(const char *name, struct bus *pio, uint64_t base, unsigned gsi,
				struct wiring *wiring, struct err *err);
struct device *uart16550_device(struct uart16550 *u);

/* Before the machine starts. @host is copied. */
void uart16550_connect(struct uart16550 *u, const struct uart16550_host *host);

/* Any thread, without the lock. What input() is given beyond room() is lost, as on a line. */
size_t uart16550_room(struct uart16550 *u);
void uart16550_input(struct uart16550 *u, const uint8_t *data, size_t len);
void uart16550_break(struct uart16550 *u); /* a break condition on the line (sysrq) */

extern const struct state_desc uart16550_state;

#endif
