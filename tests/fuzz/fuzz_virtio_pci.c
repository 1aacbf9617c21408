/*
 * fuzz_virtio_pci.c - configuration space and BAR storms on virtio over PCI
 *
 * Both ways to configuration space, the BAR wherever the guest has put it, the window in configuration
 * space that reaches the BAR, MSI-X with junk vectors, and a wiring that refuses in between.
 */
#include "tests/fuzz/virtio_storm.h"
#include "virtio/pci.h"

#define ECAM 0xb0000000u
#define BARS UINT64_C(0x4000000000)
#define SLOT 2

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct rig {
	struct storm s;
	struct bus pio;
	struct pci_bus *bus;
	unsigned window; /* where the PCI_CFG capability is */
};

static uint32_t cfg_read(struct rig *r, unsigned off, unsigned len)
{
	uint32_t v = 0;

	bus_read(&r->s.mmio, ECAM + (SLOT << 15) + off, &v, len);
	return v;
}

static void cfg_write(struct rig *r, unsigned off, unsigned len, uint32_t v)
{
	bus_write(&r->s.mmio, ECAM + (SLOT << 15) + off, &v, len);
}

static void find_window(struct rig *r)
{
	unsigned turns = 0;

	for (unsigned at = cfg_read(r, 0x34, 1); at; at = cfg_read(r, at + 1, 1)) {
		BUG_ON(++turns > 48);
		if (cfg_read(r, at, 1) == 0x09 && cfg_read(r, at + 3, 1) == 5)
			r->window = at;
	}
	BUG_ON(!r->window);
}

static void cfg_any(struct rig *r)
{
	struct storm *s = &r->s;
	const uint8_t how = (uint8_t)storm_take(s, 1);
	const uint64_t at = ECAM + (uint64_t)(how >> 7) * (SLOT << 15) + storm_take(s, 2) % 0x120;
	uint8_t b[8];

	for (unsigned i = 0; i < 8; i++)
		b[i] = (uint8_t)(how & 4 ? storm_take(s, 1) : 0);
	if (how & 4) {
		bus_write(&s->mmio, at, b, 1u << how % 4);
		s->honest = false;
	} else {
		bus_read(&s->mmio, at, b, 1u << how % 4);
	}
}

static void ports_any(struct rig *r)
{
	struct storm *s = &r->s;
	const uint8_t how = (uint8_t)storm_take(s, 1);
	uint32_t v = 0x80000000u | SLOT << 11 | storm_take(s, 1);

	if (how & 8)
		bus_write(&r->pio, 0xcf8, &v, 4);
	v = storm_take(s, 4);
	if (how & 16)
		bus_read(&r->pio, 0xcf8 + (how >> 5), &v, 1u << how % 3);
	else
		bus_write(&r->pio, 0xcf8 + (how >> 5), &v, 1u << how % 3);
	s->honest = false;
}

/* Where the guest's own registers say the BAR is. */
static uint64_t bar(struct rig *r)
{
	return (cfg_read(r, 0x10, 4) & ~15u) | (uint64_t)cfg_read(r, 0x14, 4) << 32;
}

static void bar_any(struct rig *r)
{
	struct storm *s = &r->s;
	const uint8_t how = (uint8_t)storm_take(s, 1);
	const uint64_t at = bar(r) + (uint64_t)(how >> 5) * 0x1000 + storm_take(s, 2) % 0x1000;
	uint8_t b[8];

	for (unsigned i = 0; i < 8; i++)
		b[i] = (uint8_t)(how & 4 ? storm_take(s, 1) : 0);
	if (how & 4) {
		bus_write(&s->mmio, at, b, 1u << how % 4);
		s->honest = false;
	} else {
		bus_read(&s->mmio, at, b, 1u << how % 4);
	}
}

/* A field of the common configuration as a driver writes it. */
static void common_write(struct rig *r)
{
	static const struct {
		uint8_t off, len;
	} field[] = {
		{ 0x00, 4 }, { 0x08, 4 }, { 0x0c, 4 }, { 0x10, 2 }, { 0x14, 1 }, { 0x16, 2 },
		{ 0x18, 2 }, { 0x1a, 2 }, { 0x1c, 2 }, { 0x20, 8 }, { 0x28, 8 }, { 0x30, 8 }
	};
	struct storm *s = &r->s;
	const unsigned i = storm_take(s, 1) % (sizeof(field) / sizeof(field[0]));
	uint64_t v = storm_take(s, 4);

	bus_write(&s->mmio, bar(r) + field[i].off, &v, field[i].len);
	s->honest = false;
}

static void window_any(struct rig *r)
{
	struct storm *s = &r->s;
	const uint8_t how = (uint8_t)storm_take(s, 1);

	cfg_write(r, r->window + 4, 1, how & 1 ? storm_take(s, 1) : 0);
	cfg_write(r, r->window + 8, 4, how & 2 ? storm_take(s, 4) : storm_take(s, 2) % 0x6000);
	cfg_write(r, r->window + 12, 4, how & 4 ? storm_take(s, 4) : 1u << (how >> 3) % 3);
	if (how & 32)
		cfg_write(r, r->window + 16, 1u << (how >> 6) % 3, storm_take(s, 4));
	else
		cfg_read(r, r->window + 16, 1u << (how >> 6) % 3);
	s->honest = false;
}

static void move_bar(struct rig *r)
{
	const uint8_t how = (uint8_t)storm_take(&r->s, 1);

	cfg_write(r, 0x04, 2, how & 1 ? 2 : 0);
	cfg_write(r, 0x14, 4, (uint32_t)(BARS >> 32));
	cfg_write(r, 0x10, 4, (uint32_t)(how >> 1) << 15);
	cfg_write(r, 0x04, 2, 2);
}

static void msix(struct rig *r)
{
	struct storm *s = &r->s;
	const uint8_t how = (uint8_t)storm_take(s, 1);
	const uint64_t entry = bar(r) + 0x4000 + how % 8 * 16;
	uint32_t v = 0xfee00000;

	bus_write(&s->mmio, entry, &v, 4);
	v = how >> 3 & 1;
	bus_write(&s->mmio, entry + 12, &v, 4);
	/* the capability came first */
	cfg_write(r, cfg_read(r, 0x34, 1) + 2, 2, (uint32_t)(how >> 4 & 3) << 14);
	v = how % 8;
	bus_write(&s->mmio, bar(r) + 0x10, &v, 2);
}

static void power_on(struct rig *r)
{
	struct storm *s = &r->s;

	s->v->dev.ops->reset(&s->v->dev);
	BUG_ON(s->v->regs.status || s->v->in_flight || s->fw.nkick || s->fw.nmsi);
	BUG_ON(pci_bus_assign_bars(r->bus, NULL));
	s->honest = false;
}

static void step(struct rig *r)
{
	struct storm *s = &r->s;
	const unsigned what = storm_take(s, 1) % (STORM_STEPS + 9);

	switch (what) {
	case STORM_STEPS:
		cfg_any(r);
		break;
	case STORM_STEPS + 1:
		ports_any(r);
		break;
	case STORM_STEPS + 2:
		bar_any(r);
		break;
	case STORM_STEPS + 3:
		common_write(r);
		break;
	case STORM_STEPS + 4:
		window_any(r);
		break;
	case STORM_STEPS + 5:
		move_bar(r);
		break;
	case STORM_STEPS + 6:
		msix(r);
		break;
	case STORM_STEPS + 7:
		power_on(r);
		break;
	case STORM_STEPS + 8:
		s->fw.refuse_kick = storm_take(s, 1) & 1 ? -ENOSPC : 0;
		s->fw.refuse_msi = storm_take(s, 1) & 1 ? -EINVAL : 0;
		break;
	default:
		storm_step(s, what);
	}
	/* All kicks are bound or none. */
	BUG_ON(s->fw.nkick && s->fw.nkick != STORM_QUEUES);
	storm_check(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rig r = { 0 };
	struct storm *s = &r.s;
	struct pci_bus_config c = { .mmio = &s->mmio,
				    .pio = &r.pio,
				    .ecam_base = ECAM,
				    .ecam_size = 1 << 20,
				    .bars_base = BARS,
				    .bars_size = 1 << 22,
				    .wiring = &s->fw.wiring };

	storm_init(s, data, size);
	bus_init(&r.pio);
	r.bus = pci_bus_new(&c, NULL);
	BUG_ON(!r.bus || virtio_pci_attach(s->v, r.bus, SLOT, &s->fw.wiring, NULL));
	BUG_ON(pci_bus_assign_bars(r.bus, NULL));
	find_window(&r);
	for (unsigned i = 0; i < STORM_STEPS_MAX && s->left; i++)
		step(&r);
	storm_free_device(s);
	struct device *d = pci_bus_device(r.bus);

	d->ops->free(d);
	storm_fini(s);
	bus_fini(&r.pio);
	return 0;
}
