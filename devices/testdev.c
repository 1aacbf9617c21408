/*
 * testdev.c - what kvm-unit-tests pokes at
 *
 * An interrupt line is up or down from the instruction after the store on: tests look at once whether it
 * came, so it does not go through an event, whose interrupt the kernel may deliver a moment later.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "devices/testdev.h"

#define PORT_SCRATCH 0xe0
#define PORT_EXIT    0xf4
#define PORT_LINES   0x2000
#define LINES        24

/* Guest-visible state. */
struct testdev_regs {
	uint8_t scratch[4];
	uint32_t lines; /* bit n: line n is up */
	uint8_t page[TESTDEV_MMIO_SIZE];
};

struct testdev {
	struct device dev;
	struct bus *pio, *mmio;
	struct wiring *wiring;
	struct testdev_regs regs;
	struct log_limit complaints;
};

static int testdev_validate(const void *regs, const void *device, struct err *err)
{
	const struct testdev_regs *r = regs;

	if (r->lines >> LINES)
		return err_set(err, EINVAL, "lines: 0x%x", r->lines);
	return 0;
}

static const struct state_field testdev_fields[] = {
	STATE_BYTES(1, struct testdev_regs, scratch),
	STATE_U32(2, struct testdev_regs, lines),
	STATE_BYTES(3, struct testdev_regs, page),
};
const struct state_desc testdev_state =
	STATE_DESC("testdev", struct testdev_regs, testdev_fields, testdev_validate);

static struct testdev *of(struct device *d)
{
	return (struct testdev *)d; /* first member */
}

/* ---- scratch registers ---- */

static void scratch_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	memcpy(data, ((struct testdev *)opaque)->regs.scratch + off, len);
}

static void scratch_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	memcpy(((struct testdev *)opaque)->regs.scratch + off, data, len);
}

static void page_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	memcpy(data, ((struct testdev *)opaque)->regs.page + off, len);
}

static void page_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	memcpy(((struct testdev *)opaque)->regs.page + off, data, len);
}

static const struct region_ops scratch_ops = { scratch_read, scratch_write };
static const struct region_ops page_ops = { page_read, page_write };

/* ---- the exit ---- */

static void exit_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	memset(data, 0, len);
}

static void exit_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct testdev *t = opaque;
	uint8_t low = *(const uint8_t *)data;

	if (!off)
		t->wiring->ops->power(t->wiring, WIRE_POWER_EXIT, (uint8_t)(low << 1 | 1));
}

static const struct region_ops exit_ops = { exit_read, exit_write };

/* ---- interrupt lines ---- */

static void set_line(struct testdev *t, unsigned n, bool up)
{
	int rc = t->wiring->ops->set_line(t->wiring, n, up);

	if (rc)
		log_guest(&t->complaints, "%s: interrupt line %u cannot be set: %s", t->dev.name, n,
			  strerror(-rc));
}

static void set_lines_up(struct testdev *t, bool up)
{
	for (unsigned n = 0; n < LINES; n++)
		if (t->regs.lines >> n & 1)
			set_line(t, n, up);
}

static void lines_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	memset(data, 0xff, len);
}

/* The port says which line, whatever the width; the value is "up" or "down" as a whole. */
static void lines_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct testdev *t = opaque;
	uint32_t bit = 1u << off;
	uint64_t value = 0;

	memcpy(&value, data, len);
	if (!value != !(t->regs.lines & bit))
		set_line(t, (unsigned)off, value);
	t->regs.lines = value ? t->regs.lines | bit : t->regs.lines & ~bit;
}

static const struct region_ops lines_ops = { lines_read, lines_write };

/* ---- the device ---- */

static void testdev_reset(struct device *d)
{
	struct testdev *t = of(d);

	pthread_mutex_lock(&d->lock);
	set_lines_up(t, false);
	t->regs = (struct testdev_regs){ 0 };
	pthread_mutex_unlock(&d->lock);
}

static void testdev_nothing(struct device *d)
{
}

/* Perhaps after a load, into interrupt controllers whose pins are down. */
static void testdev_resume(struct device *d)
{
	struct testdev *t = of(d);

	pthread_mutex_lock(&d->lock);
	set_lines_up(t, true);
	pthread_mutex_unlock(&d->lock);
}

static void testdev_free(struct device *d)
{
	struct testdev *t = of(d);

	bus_remove(t->pio, PORT_SCRATCH, t);
	bus_remove(t->pio, PORT_EXIT, t);
	bus_remove(t->pio, PORT_LINES, t);
	bus_remove(t->mmio, TESTDEV_MMIO_BASE, t);
	device_fini(d);
	free(t);
}

static const struct device_ops testdev_device_ops = {
	.type = "testdev",
	.reset = testdev_reset,
	.quiesce = testdev_nothing,
	.resume = testdev_resume,
	.free = testdev_free,
};

static int add(struct testdev *t, struct bus *bus, uint64_t base, uint64_t size,
	       const struct region_ops *ops, struct err *err)
{
	struct region r = { .base = base,
			    .size = size,
			    .ops = ops,
			    .opaque = t,
			    .lock = &t->dev.lock,
			    .name = t->dev.name };

	return bus_add(bus, &r, err);
}

struct device *testdev_new(struct bus *pio, struct bus *mmio, struct wiring *wiring,
			   struct err *err)
{
	struct testdev *t = calloc(1, sizeof(*t));

	if (!t || device_init(&t->dev, &testdev_device_ops, "testdev")) {
		free(t);
		err_set(err, ENOMEM, "out of memory for the test device");
		return NULL;
	}
	t->pio = pio;
	t->mmio = mmio;
	t->wiring = wiring;
	device_add_state(&t->dev, &testdev_state, &t->regs, t);
	if (add(t, pio, PORT_SCRATCH, sizeof(t->regs.scratch), &scratch_ops, err) ||
	    add(t, pio, PORT_EXIT, 4, &exit_ops, err) ||
	    add(t, pio, PORT_LINES, LINES, &lines_ops, err) ||
	    add(t, mmio, TESTDEV_MMIO_BASE, TESTDEV_MMIO_SIZE, &page_ops, err)) {
		testdev_free(&t->dev);
		return NULL;
	}
	return &t->dev;
}
