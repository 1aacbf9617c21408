/*
 * pci_bus.c - bus 0, its host bridge, and the two ways to configuration space
 *
 * ECAM and the port pair 0xCF8/0xCFC end in the same access by slot, offset and width. Where nothing
 * answers (no such slot, function above 0, another bus, beyond 256 bytes, unaligned, wider than 32 bits)
 * reads give all ones and writes vanish, which is what enumeration expects of an empty slot. We show
 * no PCI Express capability, so nothing lies beyond 256 bytes.
 *
 * Lock order: the host bridge's device lock is the configuration lock and comes first, then one
 * function's device lock at a time, then the MMIO bus, which map_bars takes for itself and no longer
 * than a look-up needs. A BAR operation runs under its device's lock alone, so it never waits for
 * the configuration lock while holding the other.
 *
 * When a BAR leaves an address, one that was refused there may fit now: a guest that swaps two BARs
 * gets both, as it would on hardware, where overlap is not refused but merely useless.
 */
#include <stdlib.h>
#include <string.h>

#include "devices/pci.h"

/*
 * The generic host bridge of Red Hat's published range of virtual device ids. The class is all that
 * systems look at, and no driver or quirk is tied to this one; a chipset maker's id would bring
 * workarounds for registers that we do not have.
 */
#define HOST_VENDOR 0x1b36
#define HOST_DEVICE 0x0008
#define HOST_CLASS  0x060000

#define PORTS          0xcf8
#define PORTS_SIZE     8
#define PORT_RESET     1 /* 0xCF9, byte access */
#define PORT_DATA      4
#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_MASK   0x80fffffcu

/* Reset control as in PC chipsets: bit 2 rising restarts; bits 1 (hard) and 3 (power) choose how. */
#define RESET_CPU  0x04
#define RESET_KIND 0x0a

struct pci_host_regs {
	uint32_t address; /* 0xCF8 */
	uint32_t reset;   /* 0xCF9 */
};

struct pci_bus {
	struct device dev;
	struct pci_bus_config config;
	struct pci_host_regs regs;
	struct pci_function host;
	pthread_mutex_t host_lock;
	struct pci_function *slot[PCI_DEVICES_MAX];
};

static int host_validate(const void *regs, const void *device, struct err *err)
{
	const struct pci_host_regs *r = regs;

	if (r->address & ~ADDRESS_MASK)
		return err_set(err, EINVAL, "address: 0x%x", r->address);
	if (r->reset & ~RESET_KIND)
		return err_set(err, EINVAL, "reset: 0x%x", r->reset);
	return 0;
}

static const struct state_field host_fields[] = {
	STATE_U32(1, struct pci_host_regs, address),
	STATE_U32(2, struct pci_host_regs, reset),
};
const struct state_desc pci_host_state =
	STATE_DESC("pci-host", struct pci_host_regs, host_fields, host_validate);

static struct pci_bus *of(struct device *d)
{
	return (struct pci_bus *)d; /* first member */
}

/* ---- configuration space by bus, slot, function ---- */

/* @where: bus, device, function and offset as ECAM packs them (20, 15, 12, 0). NULL: nothing there. */
static struct pci_function *find(struct pci_bus *b, uint64_t where, unsigned len)
{
	unsigned off = where & 0xfff;

	if (where >> 20 || (where >> 12 & 7) || off + len > PCI_CFG_SIZE || len > 4 || off % len)
		return NULL;
	return b->slot[where >> 15 & 31];
}

static void config_read(struct pci_bus *b, uint64_t where, void *data, unsigned len)
{
	struct pci_function *f = find(b, where, len);

	if (!f) {
		memset(data, 0xff, len);
		return;
	}
	pthread_mutex_lock(f->lock);
	pci_function_cfg_read(f, where & 0xff, data, len);
	pthread_mutex_unlock(f->lock);
}

static bool map_bars(struct pci_function *f)
{
	bool freed;

	pthread_mutex_lock(f->lock);
	freed = pci_function_map_bars(f);
	pthread_mutex_unlock(f->lock);
	return freed;
}

static void config_write(struct pci_bus *b, uint64_t where, const void *data, unsigned len)
{
	struct pci_function *f = find(b, where, len);

	if (!f)
		return;
	pthread_mutex_lock(f->lock);
	pci_function_cfg_write(f, where & 0xff, data, len);
	pthread_mutex_unlock(f->lock);

	if ((where & 0xff) >= 0x40 || !map_bars(f))
		return;
	for (unsigned i = 0; i < PCI_DEVICES_MAX; i++) {
		if (b->slot[i])
			map_bars(b->slot[i]);
	}
}

/* ---- ECAM and ports, under the configuration lock ---- */

static void ecam_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	config_read(opaque, off, data, len);
}

static void ecam_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	config_write(opaque, off, data, len);
}

static const struct region_ops ecam_ops = { ecam_read, ecam_write };

/* False: address port not set up for a configuration cycle. */
static bool port_address(const struct pci_bus *b, unsigned data_off, uint64_t *where)
{
	uint32_t a = b->regs.address;

	*where = (uint64_t)(a & 0xffff00) << 4 | (a & 0xfc) | data_off;
	return a & ADDRESS_ENABLE;
}

static void ports_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	struct pci_bus *b = opaque;
	uint64_t where;

	memset(data, 0xff, len);
	if (off == 0 && len == 4)
		memcpy(data, &b->regs.address, 4);
	else if (off == PORT_RESET && len == 1)
		*(uint8_t *)data = (uint8_t)b->regs.reset;
	else if (off >= PORT_DATA && port_address(b, (unsigned)off - PORT_DATA, &where))
		config_read(b, where, data, len);
}

static void reset_control(struct pci_bus *b, uint8_t value)
{
	b->regs.reset = value & RESET_KIND;
	if (value & RESET_CPU)
		b->config.wiring->ops->power(b->config.wiring, WIRE_POWER_RESET, 0);
}

static void ports_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct pci_bus *b = opaque;
	uint64_t where;

	if (off == 0 && len == 4) {
		memcpy(&b->regs.address, data, 4);
		b->regs.address &= ADDRESS_MASK;
	} else if (off == PORT_RESET && len == 1) {
		reset_control(b, *(const uint8_t *)data);
	} else if (off >= PORT_DATA && port_address(b, (unsigned)off - PORT_DATA, &where)) {
		config_write(b, where, data, len);
	}
}

static const struct region_ops ports_ops = { ports_read, ports_write };

/* ---- the host bridge as a device ---- */

static void bus_reset(struct device *d)
{
	struct pci_bus *b = of(d);

	pthread_mutex_lock(&d->lock);
	b->regs = (struct pci_host_regs){ 0 };
	pthread_mutex_lock(&b->host_lock);
	pci_function_reset(&b->host);
	pthread_mutex_unlock(&b->host_lock);
	pthread_mutex_unlock(&d->lock);
}

static void bus_quiesce(struct device *d)
{
}

static void bus_resume(struct device *d)
{
}

static void bus_free(struct device *d)
{
	struct pci_bus *b = of(d);

	for (unsigned i = 0; i < PCI_DEVICES_MAX; i++)
		BUG_ON(b->slot[i] && b->slot[i] != &b->host);
	pci_function_fini(&b->host);
	bus_remove(b->config.mmio, b->config.ecam_base, b);
	if (b->config.pio)
		bus_remove(b->config.pio, PORTS, b);
	pthread_mutex_destroy(&b->host_lock);
	device_fini(d);
	free(b);
}

static const struct device_ops bus_device_ops = {
	.type = "pci-host",
	.reset = bus_reset,
	.quiesce = bus_quiesce,
	.resume = bus_resume,
	.free = bus_free,
};

static int add_regions(struct pci_bus *b, struct err *err)
{
	struct region ecam = { .base = b->config.ecam_base,
			       .size = b->config.ecam_size,
			       .ops = &ecam_ops,
			       .opaque = b,
			       .lock = &b->dev.lock,
			       .name = "PCI configuration space" };
	struct region ports = { .base = PORTS,
				.size = PORTS_SIZE,
				.ops = &ports_ops,
				.opaque = b,
				.lock = &b->dev.lock,
				.name = "PCI configuration ports" };
	int rc = bus_add(b->config.mmio, &ecam, err);

	return rc || !b->config.pio ? rc : bus_add(b->config.pio, &ports, err);
}

struct pci_bus *pci_bus_new(const struct pci_bus_config *c, struct err *err)
{
	static const struct pci_id id = { .vendor = HOST_VENDOR,
					  .device = HOST_DEVICE,
					  .class_code = HOST_CLASS };
	struct pci_bus *b = calloc(1, sizeof(*b));

	if (!b || device_init(&b->dev, &bus_device_ops, "pci0")) {
		free(b);
		err_set(err, ENOMEM, "out of memory for the PCI bus");
		return NULL;
	}
	b->config = *c;
	pthread_mutex_init(&b->host_lock, NULL);
	pci_function_init(&b->host, &id, &b->host_lock);
	b->host.bus = b;
	b->slot[0] = &b->host;
	device_add_state(&b->dev, &pci_host_state, &b->regs, b);
	device_add_state(&b->dev, &pci_state, &b->host.regs, &b->host);
	if (add_regions(b, err)) {
		bus_free(&b->dev);
		return NULL;
	}
	return b;
}

struct device *pci_bus_device(struct pci_bus *b)
{
	return &b->dev;
}

struct bus *pci_bus_mmio(struct pci_bus *b)
{
	return b->config.mmio;
}

/* ---- slots ---- */

int pci_bus_add(struct pci_bus *b, struct pci_function *f, unsigned slot, struct err *err)
{
	int rc = 0;

	if (slot >= PCI_DEVICES_MAX)
		return err_set(err, EINVAL, "PCI slot %u: the bus has slots 1 to %u", slot,
			       PCI_DEVICES_MAX - 1);
	pthread_mutex_lock(&b->dev.lock);
	if (b->slot[slot]) {
		rc = err_set(err, EEXIST, "PCI slot %u is taken", slot);
	} else {
		f->bus = b;
		f->slot = (uint8_t)slot;
		b->slot[slot] = f;
	}
	pthread_mutex_unlock(&b->dev.lock);
	return rc;
}

void pci_bus_remove(struct pci_bus *b, struct pci_function *f)
{
	pthread_mutex_lock(&b->dev.lock);
	pthread_mutex_lock(f->lock);
	for (unsigned i = 0; i < PCI_BARS_MAX; i++) {
		if (!f->bar_mapped[i])
			continue;
		bus_remove(b->config.mmio, f->bar[i].base, f->bar[i].opaque);
		f->bar_mapped[i] = false;
		if (f->bar_moved)
			f->bar_moved(f, i, f->bar[i].base, false);
		f->bar[i].base = 0;
	}
	b->slot[f->slot] = NULL;
	f->bus = NULL;
	pthread_mutex_unlock(f->lock);
	pthread_mutex_unlock(&b->dev.lock);
}

/* ---- addresses, as firmware gives them ---- */

static void write32(struct pci_bus *b, unsigned slot, unsigned off, uint32_t value)
{
	config_write(b, (uint64_t)slot << 15 | off, &value, 4);
}

static int assign_function(struct pci_bus *b, unsigned slot, uint64_t *next, struct err *err)
{
	uint64_t end = b->config.bars_base + b->config.bars_size;

	for (unsigned i = 0; i < PCI_BARS_MAX; i++) {
		const struct region *r = &b->slot[slot]->bar[i];
		uint64_t base = (*next + r->size - 1) & ~(r->size - 1);

		if (!r->size)
			continue;
		if (base < *next || base > end || r->size > end - base)
			return err_set(err, ENOSPC,
				       "BAR %u of %s in PCI slot %u (0x%llx bytes) does not fit "
				       "in the PCI window",
				       i, r->name, slot, (unsigned long long)r->size);
		write32(b, slot, 0x10 + 4 * i, (uint32_t)base);
		if (b->slot[slot]->bar_is_64[i])
			write32(b, slot, 0x14 + 4 * i, (uint32_t)(base >> 32));
		*next = base + r->size;
	}
	write32(b, slot, 0x04, 0x2); /* memory decoding; status is not written */
	return 0;
}

int pci_bus_assign_bars(struct pci_bus *b, struct err *err)
{
	uint64_t next = b->config.bars_base;
	int rc = 0;

	pthread_mutex_lock(&b->dev.lock);
	for (unsigned i = 1; i < PCI_DEVICES_MAX && !rc; i++) {
		if (b->slot[i])
			rc = assign_function(b, i, &next, err);
	}
	pthread_mutex_unlock(&b->dev.lock);
	return rc;
}
