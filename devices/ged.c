/*
 * ged.c - events for the guest, and its way to switch itself off
 *
 * Events collect in one register until the guest reads them. Each new one is an edge even while older
 * ones wait: the firmware's method reads the register once per interrupt, and an edge that finds nothing
 * left to read does no harm, while a missing one would leave a button pressed for ever.
 *
 * Registers are bytes that may be accessed in any width; reading clears just the event bits that were
 * read. A wide store reaches each register it covers, in order.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "devices/ged.h"

#define SLEEP_ENABLE  0x20
#define SLEEP_TYPE(v) ((v) >> 2 & 7)
#define SLEEP_KEEP    0x1c /* the type reads back, the enable bit does not */

/* Guest-visible state. */
struct ged_regs {
	uint32_t events;
	uint32_t sleep_control;
};

struct ged {
	struct device dev;
	struct bus *bus;
	uint64_t base;
	struct wiring *wiring;
	struct wire_line line;
	struct event trigger;
	struct ged_regs regs;
	struct log_limit complaints;
};

static int ged_validate(const void *regs, const void *device, struct err *err)
{
	const struct ged_regs *r = regs;

	if (r->sleep_control & ~SLEEP_KEEP)
		return err_set(err, EINVAL, "sleep_control: 0x%x", r->sleep_control);
	return 0;
}

static const struct state_field ged_fields[] = {
	STATE_U32(1, struct ged_regs, events),
	STATE_U32(2, struct ged_regs, sleep_control),
};
const struct state_desc ged_state = STATE_DESC("ged", struct ged_regs, ged_fields, ged_validate);

static struct ged *of(struct device *d)
{
	return (struct ged *)d; /* first member */
}

/* ---- registers ---- */

static uint8_t read_reg(struct ged *g, unsigned off)
{
	uint8_t value;

	if (off < GED_REG_SLEEP_CONTROL) {
		value = (uint8_t)(g->regs.events >> (8 * off));
		g->regs.events &= ~(0xffu << (8 * off));
		return value;
	}
	return off == GED_REG_SLEEP_CONTROL ? (uint8_t)g->regs.sleep_control : 0;
}

static void sleep_control(struct ged *g, uint8_t value)
{
	g->regs.sleep_control = value & SLEEP_KEEP;
	if (!(value & SLEEP_ENABLE))
		return;
	if (SLEEP_TYPE(value) == GED_SLEEP_TYPE_S5)
		g->wiring->ops->power(g->wiring, WIRE_POWER_OFF, 0);
	else
		log_guest(&g->complaints,
			  "%s: the guest asks for sleep type %u; only %u (off) exists", g->dev.name,
			  SLEEP_TYPE(value), GED_SLEEP_TYPE_S5);
}

static void write_reg(struct ged *g, unsigned off, uint8_t value)
{
	if (off == GED_REG_SLEEP_CONTROL)
		sleep_control(g, value);
	else if (off == GED_REG_RESET && value == GED_RESET_VALUE)
		g->wiring->ops->power(g->wiring, WIRE_POWER_RESET, 0);
}

static void ged_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		((uint8_t *)data)[i] = read_reg(opaque, (unsigned)off + i);
}

static void ged_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		write_reg(opaque, (unsigned)off + i, ((const uint8_t *)data)[i]);
}

static const struct region_ops ged_ops = { ged_read, ged_write };

void ged_power_button(struct ged *g)
{
	pthread_mutex_lock(&g->dev.lock);
	g->regs.events |= GED_EVENT_POWER_BUTTON;
	event_signal(&g->trigger);
	pthread_mutex_unlock(&g->dev.lock);
}

/* ---- the device ---- */

static void ged_reset(struct device *d)
{
	struct ged *g = of(d);

	pthread_mutex_lock(&d->lock);
	g->regs = (struct ged_regs){ 0 };
	event_clear(&g->trigger);
	pthread_mutex_unlock(&d->lock);
}

static void ged_quiesce(struct device *d)
{
}

/* An event may have come while no guest ran. */
static void ged_resume(struct device *d)
{
	struct ged *g = of(d);

	pthread_mutex_lock(&d->lock);
	if (g->regs.events)
		event_signal(&g->trigger);
	pthread_mutex_unlock(&d->lock);
}

static void ged_free(struct device *d)
{
	struct ged *g = of(d);

	bus_remove(g->bus, g->base, g);
	g->wiring->ops->unbind_line(g->wiring, &g->line);
	event_fini(&g->trigger);
	device_fini(d);
	free(g);
}

static const struct device_ops ged_device_ops = {
	.type = "ged",
	.reset = ged_reset,
	.quiesce = ged_quiesce,
	.resume = ged_resume,
	.free = ged_free,
};

static int attach(struct ged *g, unsigned gsi, struct err *err)
{
	struct region r = { .base = g->base,
			    .size = GED_SIZE,
			    .ops = &ged_ops,
			    .opaque = g,
			    .lock = &g->dev.lock,
			    .name = g->dev.name };
	int rc = event_init(&g->trigger, err);

	if (rc)
		return rc;
	g->line = (struct wire_line){ .gsi = gsi, .trigger = &g->trigger };
	rc = g->wiring->ops->bind_line(g->wiring, &g->line);
	if (rc)
		return err_set_sys(err, rc, "%s: interrupt %u", g->dev.name, gsi);
	return bus_add(g->bus, &r, err);
}

struct ged *ged_new(struct bus *bus, uint64_t base, unsigned gsi, struct wiring *wiring,
		    struct err *err)
{
	struct ged *g = calloc(1, sizeof(*g));

	if (!g || device_init(&g->dev, &ged_device_ops, "ged")) {
		free(g);
		err_set(err, ENOMEM, "out of memory for the generic event device");
		return NULL;
	}
	g->bus = bus;
	g->base = base;
	g->wiring = wiring;
	g->trigger.fd = -1;
	device_add_state(&g->dev, &ged_state, &g->regs, g);
	if (attach(g, gsi, err)) {
		ged_free(&g->dev);
		return NULL;
	}
	return g;
}

struct device *ged_device(struct ged *g)
{
	return &g->dev;
}
