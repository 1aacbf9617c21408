/*
 * pvpanic.c - a guest's kernel that has panicked
 *
 * A kernel that panics stands still for ever by default, which looks like work from outside. Nothing
 * else tells: what it prints on its console anybody in the guest could print, too.
 *
 * Events that are not among those we announce are left alone, as the specification wants: later drivers
 * know more of them. A kernel that has loaded a crash kernel does not also report a panic; if a write
 * has both bits, it is its end.
 */
#include <stdlib.h>
#include <string.h>

#include "devices/pvpanic.h"

struct pvpanic {
	struct device dev;
	struct bus *bus;
	uint64_t base;
	struct wiring *wiring;
};

static struct pvpanic *of(struct device *d)
{
	return (struct pvpanic *)d; /* first member */
}

static void pvpanic_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	memset(data, 0, len);
	*(uint8_t *)data = PVPANIC_EVENTS;
}

static void pvpanic_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct pvpanic *p = opaque;
	uint8_t events = *(const uint8_t *)data;

	if (events & PVPANIC_PANICKED)
		p->wiring->ops->power(p->wiring, WIRE_POWER_PANIC, 0);
	else if (events & PVPANIC_CRASH_LOADED)
		p->wiring->ops->power(p->wiring, WIRE_POWER_CRASH_KERNEL, 0);
}

static const struct region_ops pvpanic_ops = { pvpanic_read, pvpanic_write };

/* There is no state: nothing the guest writes is remembered. */
static void pvpanic_nothing(struct device *d)
{
}

static void pvpanic_free(struct device *d)
{
	struct pvpanic *p = of(d);

	bus_remove(p->bus, p->base, p);
	device_fini(d);
	free(p);
}

static const struct device_ops pvpanic_device_ops = {
	.type = "pvpanic",
	.reset = pvpanic_nothing,
	.quiesce = pvpanic_nothing,
	.resume = pvpanic_nothing,
	.free = pvpanic_free,
};

struct device *pvpanic_new(struct bus *bus, uint64_t base, struct wiring *wiring, struct err *err)
{
	struct pvpanic *p = calloc(1, sizeof(*p));

	if (!p || device_init(&p->dev, &pvpanic_device_ops, "pvpanic")) {
		free(p);
		err_set(err, ENOMEM, "out of memory for the panic device");
		return NULL;
	}
	struct region r = { .base = base,
			    .size = PVPANIC_SIZE,
			    .ops = &pvpanic_ops,
			    .opaque = p,
			    .lock = &p->dev.lock,
			    .name = p->dev.name };

	p->bus = bus;
	p->base = base;
	p->wiring = wiring;
	if (bus_add(bus, &r, err)) {
		pvpanic_free(&p->dev);
		return NULL;
	}
	return &p->dev;
}
