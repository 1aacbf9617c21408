/*
 * i8042.c - a keyboard controller with nothing but a reset button
 *
 * The status register always says "a byte waits for you, and I take commands". A driver that probes
 * drains the waiting bytes, finds that they never end and gives up at once (Linux i8042_flush: "No
 * controller found"); one that wants to restart the machine waits for "I take commands" and finds it
 * at once (Linux native_machine_emergency_restart). All ones, the answer of an empty bus, would make the
 * second one wait for its whole time limit before each try.
 */
#include <stdlib.h>
#include <string.h>

#include "devices/i8042.h"

#define PORT_DATA    0
#define PORT_COMMAND 4

#define STATUS_OUTPUT_FULL 0x01
#define COMMAND_RESET      0xfe /* pulse output line 0, which is the processor's reset */

struct i8042 {
	struct device dev;
	struct bus *pio;
	uint64_t base;
	struct wiring *wiring;
};

static struct i8042 *of(struct device *d)
{
	return (struct i8042 *)d; /* first member */
}

static void data_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	memset(data, 0xff, len);
}

static void data_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
}

static void command_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	memset(data, STATUS_OUTPUT_FULL, len);
}

static void command_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct i8042 *k = opaque;

	if (*(const uint8_t *)data == COMMAND_RESET)
		k->wiring->ops->power(k->wiring, WIRE_POWER_RESET, 0);
}

static const struct region_ops data_ops = { data_read, data_write };
static const struct region_ops command_ops = { command_read, command_write };

/* There is no state: nothing the guest writes is remembered. */
static void i8042_nothing(struct device *d)
{
}

static void i8042_free(struct device *d)
{
	struct i8042 *k = of(d);

	bus_remove(k->pio, k->base + PORT_DATA, k);
	bus_remove(k->pio, k->base + PORT_COMMAND, k);
	device_fini(d);
	free(k);
}

static const struct device_ops i8042_device_ops = {
	.type = "i8042",
	.reset = i8042_nothing,
	.quiesce = i8042_nothing,
	.resume = i8042_nothing,
	.free = i8042_free,
};

static int add_port(struct i8042 *k, unsigned port, const struct region_ops *ops, struct err *err)
{
	struct region r = { .base = k->base + port,
			    .size = 1,
			    .ops = ops,
			    .opaque = k,
			    .lock = &k->dev.lock,
			    .name = k->dev.name };

	return bus_add(k->pio, &r, err);
}

struct device *i8042_new(struct bus *pio, uint64_t base, struct wiring *wiring, struct err *err)
{
	struct i8042 *k = calloc(1, sizeof(*k));

	if (!k || device_init(&k->dev, &i8042_device_ops, "i8042")) {
		free(k);
		err_set(err, ENOMEM, "out of memory for the keyboard controller");
		return NULL;
	}
	k->pio = pio;
	k->base = base;
	k->wiring = wiring;
	if (add_port(k, PORT_DATA, &data_ops, err) ||
	    add_port(k, PORT_COMMAND, &command_ops, err)) {
		i8042_free(&k->dev);
		return NULL;
	}
	return &k->dev;
}
