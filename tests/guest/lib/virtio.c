/*
 * virtio.c - see virtio.h; register layouts of virtio 1.2, 4.1.4 (PCI) and 4.2.2 (MMIO)
 */
#include "virtio.h"

#define MMIO_BASE   0xd0000000ull /* vmm/x86_64/layout.h; the DSDT names the same windows */
#define MMIO_STRIDE 0x1000
#define MMIO_SLOTS  48

static const uint8_t mmio_gsis[] = { 5, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23 };

/* ---- finding ---- */

static bool pci_open(struct vdev *d, unsigned slot)
{
	uint64_t base[5] = { 0 };

	*d = (struct vdev){ .pci = true, .slot = slot };
	pci_write(slot, 4, 2, pci_read(slot, 4, 2) | 6); /* memory, bus master */
	for (unsigned cap = pci_find_cap(slot, 9, 0); cap; cap = pci_find_cap(slot, 9, cap)) {
		unsigned type = pci_read(slot, cap + 3, 1), bar = pci_read(slot, cap + 4, 1);
		uint32_t len = pci_read(slot, cap + 12, 4);

		if (type < 1 || type > 4)
			continue;
		base[type] = pci_bar(slot, bar) + pci_read(slot, cap + 8, 4);
		map(base[type], len);
		if (type == 2)
			d->notify_multiplier = pci_read(slot, cap + 16, 4);
	}
	d->base = base[1];
	d->notify = base[2];
	d->isr = base[3];
	d->config = base[4];
	return base[1] && base[2] && base[3];
}

static bool find_pci(struct vdev *d, unsigned id, unsigned nth)
{
	if (!acpi_table("MCFG"))
		return false;
	for (unsigned slot = 0; slot < 32; slot++)
		if (pci_read(slot, 0, 4) == (0x10400000 + (id << 16) + 0x1af4) && !nth--)
			return pci_open(d, slot);
	return false;
}

static bool find_mmio(struct vdev *d, unsigned id, unsigned nth)
{
	for (unsigned i = 0; i < MMIO_SLOTS; i++) {
		uint64_t base = MMIO_BASE + i * MMIO_STRIDE;

		if (read32(base) != 0x74726976) /* the first empty slot ends them */
			return false;
		if (read32(base + 4) == 2 && read32(base + 8) == id && !nth--) {
			*d = (struct vdev){
				.base = base,
				.config = base + 0x100,
				.gsi = mmio_gsis[i % sizeof(mmio_gsis)],
			};
			return true;
		}
	}
	return false;
}

bool virtio_find(struct vdev *d, unsigned id, unsigned nth)
{
	bool found = find_mmio(d, id, nth) || find_pci(d, id, nth);

	d->id = id;
	return found;
}

/* ---- registers ---- */

uint8_t virtio_status(struct vdev *d)
{
	return d->pci ? read8(d->base + 0x14) : (uint8_t)read32(d->base + 0x70);
}

void virtio_set_status(struct vdev *d, uint8_t status)
{
	if (d->pci)
		write8(d->base + 0x14, status);
	else
		write32(d->base + 0x70, status);
}

void virtio_reset(struct vdev *d)
{
	uint64_t end = deadline();

	virtio_set_status(d, 0);
	while (virtio_status(d))
		if (passed(end)) {
			fail("virtio", "reset of device %u does not end", d->id);
			guest_exit();
		}
}

uint64_t virtio_offered(struct vdev *d)
{
	uint64_t select = d->base + (d->pci ? 0 : 0x14), word = d->base + (d->pci ? 4 : 0x10);
	uint64_t low;

	write32(select, 0);
	low = read32(word);
	write32(select, 1);
	return (uint64_t)read32(word) << 32 | low;
}

void virtio_accept(struct vdev *d, uint64_t features)
{
	uint64_t select = d->base + (d->pci ? 8 : 0x24), word = d->base + (d->pci ? 12 : 0x20);

	write32(select, 0);
	write32(word, (uint32_t)features);
	write32(select, 1);
	write32(word, (uint32_t)(features >> 32));
	d->features = features;
}

uint8_t virtio_config8(struct vdev *d, unsigned off)
{
	return read8(d->config + off);
}

uint32_t virtio_config32(struct vdev *d, unsigned off)
{
	return read32(d->config + off);
}

uint64_t virtio_config64(struct vdev *d, unsigned off)
{
	return (uint64_t)read32(d->config + off + 4) << 32 | read32(d->config + off);
}

bool virtio_negotiate(struct vdev *d, uint64_t wanted)
{
	uint8_t status = STATUS_ACKNOWLEDGE;

	virtio_reset(d);
	virtio_set_status(d, status);
	virtio_set_status(d, status |= STATUS_DRIVER);
	virtio_accept(d, (wanted | F_VERSION_1) & virtio_offered(d));
	virtio_set_status(d, status |= STATUS_FEATURES_OK);
	return virtio_status(d) == status;
}

void virtio_ok(struct vdev *d)
{
	virtio_set_status(d, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK |
				     STATUS_DRIVER_OK);
}

bool virtio_wait_broken(struct vdev *d)
{
	uint64_t end = deadline();

	while (!(virtio_status(d) & STATUS_NEEDS_RESET))
		if (passed(end))
			return false;
	return true;
}

/* ---- queues ---- */

static void select_queue(struct vdev *d, unsigned index)
{
	if (d->pci)
		write16(d->base + 0x16, (uint16_t)index);
	else
		write32(d->base + 0x30, index);
}

unsigned vq_max(struct vdev *d, unsigned index)
{
	select_queue(d, index);
	return d->pci ? read16(d->base + 0x18) : read32(d->base + 0x34);
}

static void put_addr(uint64_t at, volatile void *p)
{
	write32(at, (uint32_t)(uint64_t)p);
	write32(at + 4, (uint32_t)((uint64_t)p >> 32));
}

static void open_pci(struct vq *q, uint16_t vector)
{
	uint64_t c = q->dev->base;

	write16(c + 0x18, (uint16_t)q->size);
	write16(c + 0x1a, vector);
	q->notify = q->dev->notify + read16(c + 0x1e) * q->dev->notify_multiplier;
	put_addr(c + 0x20, q->desc);
	put_addr(c + 0x28, q->avail);
	put_addr(c + 0x30, q->used);
	write16(c + 0x1c, 1);
}

static void open_mmio(struct vq *q)
{
	uint64_t c = q->dev->base;

	write32(c + 0x38, q->size);
	put_addr(c + 0x80, q->desc);
	put_addr(c + 0x90, q->avail);
	put_addr(c + 0xa0, q->used);
	write32(c + 0x44, 1);
}

bool vq_open(struct vq *q, struct vdev *d, unsigned index, unsigned size, uint16_t vector)
{
	unsigned max = vq_max(d, index);
	struct vq old = *q;

	if (!max || size > max)
		return false;
	*q = (struct vq){ .dev = d, .index = index, .size = size ? size : max };
	/* Rings are allocated once; a test that opens a queue again and again does not run out. */
	if (old.desc) {
		q->desc = memset((void *)old.desc, 0, 256 * sizeof(struct desc));
		q->avail = memset((void *)old.avail, 0, sizeof(struct avail));
		q->used = memset((void *)old.used, 0, sizeof(struct used));
	} else {
		q->desc = alloc(256 * sizeof(struct desc), 16);
		q->avail = alloc(sizeof(struct avail) + 8, 4);
		q->used = alloc(sizeof(struct used) + 8, 4);
	}
	if (d->pci)
		open_pci(q, vector);
	else
		open_mmio(q);
	return true;
}

void vq_publish(struct vq *q, uint16_t head)
{
	q->avail->ring[q->next_avail % q->size] = head;
	barrier();
	q->avail->idx = ++q->next_avail;
	barrier();
}

uint16_t vq_add(struct vq *q, const struct piece *p, unsigned n)
{
	uint16_t head = q->next_desc, at = head;

	for (unsigned i = 0; i < n; i++) {
		uint16_t next = (uint16_t)((at + 1) % q->size);

		q->desc[at].addr = (uint64_t)p[i].addr;
		q->desc[at].len = p[i].len;
		q->desc[at].flags =
			(uint16_t)((i + 1 < n ? DESC_NEXT : 0) | (p[i].write ? DESC_WRITE : 0));
		q->desc[at].next = next;
		at = next;
	}
	q->next_desc = at;
	vq_publish(q, head);
	return head;
}

void vq_kick(struct vq *q)
{
	if (q->dev->pci)
		write16(q->notify, (uint16_t)q->index);
	else
		write32(q->dev->base + 0x50, q->index);
}

bool vq_done(struct vq *q)
{
	return q->used->idx != q->last_used;
}

int vq_wait(struct vq *q, uint32_t *len)
{
	uint64_t end = deadline();
	uint16_t at;

	while (!vq_done(q))
		if (passed(end))
			return -1;
		else
			relax();
	barrier();
	at = q->last_used++ % q->size;
	if (len)
		*len = q->used->ring[at].len;
	return (int)q->used->ring[at].id;
}

/* ---- MSI-X ---- */

static uint64_t msix_entry(struct vdev *d, unsigned entry)
{
	unsigned cap = pci_find_cap(d->slot, 0x11, 0);
	uint32_t table = pci_read(d->slot, cap + 4, 4);
	uint64_t at = pci_bar(d->slot, table & 7) + (table & ~7u) + entry * 16;

	map(at, 16);
	return at;
}

void msix_route(struct vdev *d, unsigned entry, unsigned vector)
{
	unsigned cap = pci_find_cap(d->slot, 0x11, 0);
	uint64_t at = msix_entry(d, entry);

	write32(at, 0xfee00000 | (read32(LAPIC + 0x20) >> 24) << 12);
	write32(at + 4, 0);
	write32(at + 8, vector);
	write32(at + 12, 0);
	pci_write(d->slot, cap + 2, 2, 0x8000);
}

void msix_mask(struct vdev *d, unsigned entry, bool masked)
{
	write32(msix_entry(d, entry) + 12, masked);
}
