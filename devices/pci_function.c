/*
 * pci_function.c - one function's configuration space
 *
 * Two arrays say everything: what the guest reads (regs.cfg) and which bits of it a store changes
 * (wmask). BAR sizing needs no code of its own: the size bits of a BAR are simply not writable, so all
 * ones read back as the size mask (PCI 3.0, 6.2.5.1).
 *
 * A BAR is decoded while memory decoding is on and its address is not 0, where RAM is and where an
 * unassigned BAR points. Whatever the guest writes there is only an address: the bus refuses one that
 * overlaps something, and the BAR then answers nowhere until it is moved. The guest harms itself.
 *
 * Saved state is compared with the device it is loaded into: every bit the guest cannot write must be
 * what this device has. So capability pointers, BAR sizes and identity are never taken from a
 * snapshot, and a snapshot of another device is refused.
 */
#include <string.h>

#include "devices/pci.h"

#define CFG_VENDOR     0x00
#define CFG_DEVICE     0x02
#define CFG_COMMAND    0x04
#define CFG_STATUS     0x06
#define CFG_REVISION   0x08
#define CFG_CACHE_LINE 0x0c
#define CFG_BAR        0x10
#define CFG_SUBVENDOR  0x2c
#define CFG_SUBDEVICE  0x2e
#define CFG_CAPS       0x34
#define CFG_IRQ_LINE   0x3c
#define CFG_HEADER_END 0x40

/* Memory decoding, bus mastering, SERR# and INTx disable; there is no I/O BAR to decode. */
#define COMMAND_MEMORY   0x0002
#define COMMAND_WRITABLE 0x0506

#define STATUS_CAPS 0x0010
#define BAR_MEM64   0x4 /* registers with side effects lie in it: not prefetchable */

static int pci_validate(const void *regs, const void *device, struct err *err)
{
	const struct pci_regs *r = regs;
	const struct pci_function *f = device;

	for (unsigned i = 0; f && i < PCI_CFG_SIZE; i++) {
		if ((r->cfg[i] ^ f->regs.cfg[i]) & ~f->wmask[i])
			return err_set(err, EINVAL,
				       "cfg: byte 0x%02x is 0x%02x, this device has 0x%02x there",
				       i, r->cfg[i], f->regs.cfg[i]);
	}
	return 0;
}

static const struct state_field pci_fields[] = {
	STATE_BYTES(1, struct pci_regs, cfg),
};
const struct state_desc pci_state = STATE_DESC("pci", struct pci_regs, pci_fields, pci_validate);

/* ---- little-endian fields of the two arrays ---- */

static void put(uint8_t *at, uint64_t value, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *at, unsigned len)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < len; i++)
		value |= (uint64_t)at[i] << (8 * i);
	return value;
}

/* ---- making a function ---- */

void pci_function_init(struct pci_function *f, const struct pci_id *id, pthread_mutex_t *lock)
{
	uint8_t *cfg = f->regs.cfg;

	memset(f, 0, sizeof(*f));
	f->lock = lock;
	f->cap_end = CFG_HEADER_END;
	put(cfg + CFG_VENDOR, id->vendor, 2);
	put(cfg + CFG_DEVICE, id->device, 2);
	put(cfg + CFG_REVISION, id->revision | (uint64_t)id->class_code << 8, 4);
	put(cfg + CFG_SUBVENDOR, id->subvendor, 2);
	put(cfg + CFG_SUBDEVICE, id->subdevice, 2);
	put(f->wmask + CFG_COMMAND, COMMAND_WRITABLE, 2);
	f->wmask[CFG_CACHE_LINE] = 0xff;
	f->wmask[CFG_IRQ_LINE] = 0xff;
}

void pci_add_bar64(struct pci_function *f, unsigned bar, uint64_t size,
		   const struct region_ops *ops, void *opaque, const char *name)
{
	BUG_ON(bar + 1 >= PCI_BARS_MAX || size < 4096 || (size & (size - 1)));
	f->bar[bar] = (struct region){
		.size = size, .ops = ops, .opaque = opaque, .lock = f->lock, .name = name
	};
	f->bar_is_64[bar] = true;
	put(f->regs.cfg + CFG_BAR + 4 * bar, BAR_MEM64, 8);
	put(f->wmask + CFG_BAR + 4 * bar, ~(size - 1), 8);
}

unsigned pci_add_cap(struct pci_function *f, uint8_t id, const void *body, unsigned len,
		     const void *wmask)
{
	unsigned at = f->cap_end;
	uint8_t *cfg = f->regs.cfg;

	BUG_ON(at + 2 + len > PCI_CFG_SIZE);
	cfg[at] = id;
	cfg[at + 1] = 0;
	memcpy(cfg + at + 2, body, len);
	if (wmask)
		memcpy(f->wmask + at + 2, wmask, len);

	cfg[f->cap_last ? f->cap_last + 1 : CFG_CAPS] = (uint8_t)at;
	cfg[CFG_STATUS] |= STATUS_CAPS;
	f->cap_last = (uint8_t)at;
	f->cap_end = (uint16_t)((at + 2 + len + 3) & ~3u);
	return at;
}

void pci_function_fini(struct pci_function *f)
{
	if (f->bus)
		pci_bus_remove(f->bus, f);
	pci_msix_fini(f);
}

/* ---- BARs ---- */

/* Where the registers put @bar; 0: nowhere, which includes the all ones of sizing. */
static uint64_t wanted_base(const struct pci_function *f, unsigned bar)
{
	uint64_t size = f->bar[bar].size, base;

	if (!size || !f->bus || !(get(f->regs.cfg + CFG_COMMAND, 2) & COMMAND_MEMORY))
		return 0;
	base = get(f->regs.cfg + CFG_BAR + 4 * bar, f->bar_is_64[bar] ? 8 : 4) & ~(size - 1);
	return base + size ? base : 0;
}

static void unmap_bar(struct pci_function *f, unsigned bar)
{
	struct region *r = &f->bar[bar];
	uint64_t base = r->base;

	bus_remove(pci_bus_mmio(f->bus), base, r->opaque);
	f->bar_mapped[bar] = false;
	r->base = 0;
	if (f->bar_moved)
		f->bar_moved(f, bar, base, false);
}

static void map_bar(struct pci_function *f, unsigned bar, uint64_t base)
{
	struct region *r = &f->bar[bar];
	struct err err = { 0 };

	r->base = base;
	if (bus_add(pci_bus_mmio(f->bus), r, &err)) {
		r->base = 0;
		log_guest(&f->complaints, "%s: BAR %u stays unmapped at 0x%llx: %s", r->name, bar,
			  (unsigned long long)base, err.msg);
		return;
	}
	f->bar_mapped[bar] = true;
	if (f->bar_moved)
		f->bar_moved(f, bar, base, true);
}

bool pci_function_map_bars(struct pci_function *f)
{
	bool freed = false;

	for (unsigned i = 0; i < PCI_BARS_MAX; i++) {
		uint64_t base = wanted_base(f, i);

		if (f->bar_mapped[i] && f->bar[i].base != base) {
			unmap_bar(f, i);
			freed = true;
		}
		if (!f->bar_mapped[i] && base)
			map_bar(f, i, base);
	}
	return freed;
}

/* ---- configuration accesses ---- */

static bool overlaps(unsigned off, unsigned len, unsigned at, unsigned size)
{
	return off < at + size && at < off + len;
}

void pci_function_cfg_read(struct pci_function *f, unsigned off, void *data, unsigned len)
{
	if (off >= CFG_HEADER_END && f->cfg_read)
		f->cfg_read(f, off, len);
	memcpy(data, f->regs.cfg + off, len);
}

void pci_function_cfg_write(struct pci_function *f, unsigned off, const void *data, unsigned len)
{
	const uint8_t *src = data;
	uint8_t *cfg = f->regs.cfg;

	for (unsigned i = 0; i < len; i++) {
		uint8_t mask = f->wmask[off + i];

		cfg[off + i] = (uint8_t)((cfg[off + i] & ~mask) | (src[i] & mask));
	}
	if (f->msix_cap && overlaps(off, len, f->msix_cap + 2u, 2))
		pci_msix_update(f);
	if (off >= CFG_HEADER_END && f->cfg_write)
		f->cfg_write(f, off, len);
}

/* ---- power-on and load ---- */

void pci_function_reset(struct pci_function *f)
{
	for (unsigned i = 0; i < PCI_CFG_SIZE; i++)
		f->regs.cfg[i] &= (uint8_t)~f->wmask[i];
	pci_msix_reset(f);
	pci_function_map_bars(f);
}

void pci_function_restore(struct pci_function *f)
{
	pci_function_map_bars(f);
	pci_msix_restore(f);
}
