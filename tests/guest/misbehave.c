/*
 * misbehave.c - a driver that breaks every rule; the device may break, the machine may not
 *
 * Each case starts from a reset device. It ends in DEVICE_NEEDS_RESET or in nothing at all, as the case
 * says; then the device is reset and must serve an honest request. The bugs are those other machines had
 * (docs/threat-model.md).
 */
#include "virtio.h"

static struct vdev dev;
static struct vq q;
static uint8_t *buffer;
static struct desc *table; /* indirect */

#define OUTSIDE 0xb0000000ull /* below 4 GiB, and no guest here has so much RAM */

enum end { BREAKS, SURVIVES };

struct bad {
	const char *name;
	void (*act)(void);
	enum end end;
};

static void put(unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	q.desc[i].addr = addr;
	q.desc[i].len = len;
	q.desc[i].flags = flags;
	q.desc[i].next = next;
}

static void post(uint16_t head)
{
	vq_publish(&q, head);
	vq_kick(&q);
}

static void put_buffer(unsigned i)
{
	put(i, (uint64_t)buffer, 16, DESC_WRITE, 0);
}

/* ---- descriptors ---- */

static void loops(void)
{
	put(0, (uint64_t)buffer, 16, DESC_WRITE | DESC_NEXT, 1);
	put(1, (uint64_t)buffer, 16, DESC_WRITE | DESC_NEXT, 0);
	post(0);
}

static void loops_on_itself(void)
{
	put(0, (uint64_t)buffer, 16, DESC_WRITE | DESC_NEXT, 0);
	post(0);
}

static void next_beyond(void)
{
	put(0, (uint64_t)buffer, 16, DESC_WRITE | DESC_NEXT, (uint16_t)q.size);
	post(0);
}

static void head_beyond(void)
{
	post((uint16_t)q.size);
}

static void head_far_beyond(void)
{
	post(0xffff);
}

static void readable_after_writable(void)
{
	put(0, (uint64_t)buffer, 16, DESC_WRITE | DESC_NEXT, 1);
	put(1, (uint64_t)buffer, 16, 0, 0);
	post(0);
}

static void outside(void)
{
	put(0, OUTSIDE, 16, DESC_WRITE, 0);
	post(0);
}

static void over_the_end(void)
{
	uint64_t end = 0;

	for (unsigned i = 0; i < boot.ranges; i++)
		if (boot.map[i].type == 1 && boot.map[i].base < 1ull << 32)
			end = boot.map[i].base + boot.map[i].size;
	put(0, end - 8, 16, DESC_WRITE, 0);
	post(0);
}

static void wraps(void)
{
	put(0, ~0ull - 7, 16, DESC_WRITE, 0);
	post(0);
}

static void four_gigabytes(void)
{
	put(0, (uint64_t)buffer, 0xffffffff, DESC_WRITE, 0);
	post(0);
}

static void own_registers(void)
{
	put(0, dev.base & ~0xfffull, 64, DESC_WRITE, 0);
	post(0);
}

static void local_apic(void)
{
	put(0, LAPIC, 64, DESC_WRITE, 0);
	post(0);
}

/* ---- indirect tables ---- */

static void indirect(uint32_t bytes, uint16_t flags)
{
	put(0, (uint64_t)table, bytes, flags, 0);
	post(0);
}

static void nested(void)
{
	table[0] = (struct desc){ (uint64_t)table, 16, DESC_INDIRECT, 0 };
	indirect(16, DESC_INDIRECT);
}

static void indirect_empty(void)
{
	indirect(0, DESC_INDIRECT);
}

static void indirect_odd(void)
{
	table[0] = (struct desc){ (uint64_t)buffer, 16, DESC_WRITE, 0 };
	indirect(24, DESC_INDIRECT);
}

static void indirect_huge(void)
{
	table[0] = (struct desc){ (uint64_t)buffer, 16, DESC_WRITE | DESC_NEXT, 0 };
	indirect(0xfffffff0, DESC_INDIRECT);
}

static void indirect_loops(void)
{
	table[0] = (struct desc){ (uint64_t)buffer, 16, DESC_WRITE | DESC_NEXT, 1 };
	table[1] = (struct desc){ (uint64_t)buffer, 16, DESC_WRITE | DESC_NEXT, 0 };
	indirect(32, DESC_INDIRECT);
}

static void indirect_and_next(void)
{
	table[0] = (struct desc){ (uint64_t)buffer, 16, DESC_WRITE, 0 };
	put_buffer(1);
	put(0, (uint64_t)table, 16, DESC_INDIRECT | DESC_NEXT, 1);
	post(0);
}

static void indirect_outside(void)
{
	put(0, OUTSIDE, 16, DESC_INDIRECT, 0);
	post(0);
}

/* ---- the rings ---- */

static void index_jumps(void)
{
	put_buffer(0);
	q.avail->idx = (uint16_t)(q.size + 5);
	barrier();
	vq_kick(&q);
}

static void resize_while_running(void)
{
	if (dev.pci) {
		write16(dev.base + 0x16, 0);
		write16(dev.base + 0x18, 1);
	} else {
		write32(dev.base + 0x30, 0);
		write32(dev.base + 0x38, 1);
	}
	put_buffer(5); /* beyond the new size, if that had been taken */
	post(5);
	check(vq_wait(&q, NULL) == 5, "resized-still-serves", "nothing came back");
}

static void move_while_running(void)
{
	uint64_t at = dev.base + (dev.pci ? 0x20 : 0x80);

	write32(at, OUTSIDE);
	write32(at + 4, 0);
	put_buffer(0);
	post(0);
	check(vq_wait(&q, NULL) == 0, "moved-still-serves", "nothing came back");
}

/* ---- registers ---- */

static void queue_beyond(void)
{
	static const uint16_t which[] = { 1, 64, 0x7fff, 0xffff };

	for (unsigned i = 0; i < ARRAY_SIZE(which); i++) {
		uint64_t sel = dev.base + (dev.pci ? 0x16 : 0x30);

		if (dev.pci) {
			write16(sel, which[i]);
			write16(dev.base + 0x18, 0xffff);
			write16(dev.base + 0x1c, 1);
			write16(q.notify, which[i]);
		} else {
			write32(sel, which[i]);
			write32(dev.base + 0x38, 0xffff);
			write32(dev.base + 0x44, 1);
			write32(dev.base + 0x50, which[i]);
		}
		check(vq_max(&dev, which[i]) == 0, "no-such-queue", "%u has a size", which[i]);
	}
	if (!dev.pci)
		write32(dev.base + 0x50, 0xffffffff);
}

static void reads_all_registers(void)
{
	uint64_t len = dev.pci ? 0x1000 : 0x200;

	for (uint64_t off = 0; off < len; off += dev.pci ? 52 : 4) {
		read8(dev.base + off);
		read16(dev.base + off + 1);
		read32(dev.base + off);
	}
	if (dev.pci)
		read8(dev.isr);
}

static void vector_storm(void)
{
	static const uint16_t junk[] = { 0xffff, 0xfffe, 0x8000, 200, 68, 67, 3, 0 };

	if (!dev.pci)
		return;
	for (unsigned i = 0; i < 64; i++) {
		write16(dev.base + 0x10, junk[i % 8]);
		write16(dev.base + 0x16, 0);
		write16(dev.base + 0x1a, junk[i * 3 % 8]);
		msix_mask(&dev, i & 1, i & 2);
	}
	pci_write(dev.slot, pci_find_cap(dev.slot, 0x11, 0) + 2, 2, 0x0000);
}

/* A window that moves onto RAM, the local APIC and back; what lies there must stay reachable. */
static void bar_walk(void)
{
	uint32_t low, high;

	if (!dev.pci)
		return;
	low = pci_read(dev.slot, 0x10, 4);
	high = pci_read(dev.slot, 0x14, 4);
	static const uint64_t to[] = { 0, 0x1000000, LAPIC, ~0ull << 12, 1ull << 51 };

	*(volatile uint32_t *)0x1000000 = 0xfeed;
	for (unsigned i = 0; i < ARRAY_SIZE(to); i++) {
		pci_write(dev.slot, 0x10, 4, (uint32_t)to[i]);
		pci_write(dev.slot, 0x14, 4, (uint32_t)(to[i] >> 32));
	}
	check(*(volatile uint32_t *)0x1000000 == 0xfeed, "ram-under-bar", "is gone");
	pci_write(dev.slot, 0x10, 4, low);
	pci_write(dev.slot, 0x14, 4, high);
}

static void driver_ok_too_early(void)
{
	virtio_reset(&dev);
	virtio_set_status(&dev, STATUS_DRIVER_OK);
	vq_kick(&q);
	virtio_set_status(&dev, 0xff);
}

static const struct bad cases[] = {
	{ "loop", loops, BREAKS },
	{ "loop-of-one", loops_on_itself, BREAKS },
	{ "next-beyond", next_beyond, BREAKS },
	{ "head-beyond", head_beyond, BREAKS },
	{ "head-far-beyond", head_far_beyond, BREAKS },
	{ "readable-after-writable", readable_after_writable, BREAKS },
	{ "outside", outside, BREAKS },
	{ "over-the-end", over_the_end, BREAKS },
	{ "wraps", wraps, BREAKS },
	{ "four-gigabytes", four_gigabytes, BREAKS },
	{ "own-registers", own_registers, BREAKS },
	{ "local-apic", local_apic, BREAKS },
	{ "nested", nested, BREAKS },
	{ "indirect-empty", indirect_empty, BREAKS },
	{ "indirect-odd", indirect_odd, BREAKS },
	{ "indirect-huge", indirect_huge, BREAKS },
	{ "indirect-loop", indirect_loops, BREAKS },
	{ "indirect-and-next", indirect_and_next, BREAKS },
	{ "indirect-outside", indirect_outside, BREAKS },
	{ "index-jumps", index_jumps, BREAKS },
	{ "resize", resize_while_running, SURVIVES },
	{ "move", move_while_running, SURVIVES },
	{ "queue-beyond", queue_beyond, SURVIVES },
	{ "read-all", reads_all_registers, SURVIVES },
	{ "vectors", vector_storm, SURVIVES },
	{ "bar", bar_walk, SURVIVES },
	{ "too-early", driver_ok_too_early, SURVIVES },
};

static bool start(void)
{
	bool good = virtio_negotiate(&dev, F_INDIRECT_DESC) && vq_open(&q, &dev, 0, 0, 0xffff);

	virtio_ok(&dev);
	return good;
}

/* The device serves again after a reset. */
static void honest(const char *after)
{
	struct piece p = { buffer, 32, true };

	if (!start()) {
		fail(after, "the device cannot be reset");
		return;
	}
	vq_add(&q, &p, 1);
	vq_kick(&q);
	if (vq_wait(&q, NULL) < 0)
		fail(after, "the device does not serve after a reset");
	else
		ok("%s", after);
}

/* Both heads come back or the device breaks; nothing else. */
static void same_head_twice(void)
{
	put_buffer(0);
	q.avail->ring[0] = q.avail->ring[1] = 0;
	barrier();
	q.avail->idx = q.next_avail = 2;
	barrier();
	vq_kick(&q);

	uint64_t end = deadline();

	while (q.used->idx != 2 && !(virtio_status(&dev) & STATUS_NEEDS_RESET) && !passed(end))
		relax();
	check(!passed(end), "same-head-ends", "neither served nor refused");
}

static void bad_rings(void)
{
	static const uint64_t where[] = { OUTSIDE, ~0ull & ~0xfffull, LAPIC };

	for (unsigned i = 0; i < ARRAY_SIZE(where); i++) {
		uint64_t at = dev.base + (dev.pci ? 0x28 : 0x90);

		virtio_negotiate(&dev, 0);
		if (dev.pci)
			write16(dev.base + 0x16, 0);
		else
			write32(dev.base + 0x30, 0);
		write32(at, (uint32_t)where[i]);
		write32(at + 4, (uint32_t)(where[i] >> 32));
		if (dev.pci)
			write16(dev.base + 0x1c, 1);
		else
			write32(dev.base + 0x44, 1);
		virtio_ok(&dev);
		vq_kick(&q);
	}
}

void guest_main(void)
{
	buffer = alloc(4096, 4096);
	table = alloc(4096, 4096);
	if (!check(virtio_find(&dev, VIRTIO_RNG, 0), "find", "no entropy device"))
		return;
	print("transport %s\n", dev.pci ? "pci" : "mmio");
	honest("at-first");
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct bad *b = &cases[i];

		if (!start()) {
			fail(b->name, "cannot start");
			return;
		}
		b->act();
		if (b->end == BREAKS && !virtio_wait_broken(&dev))
			fail(b->name, "was taken: status 0x%x", virtio_status(&dev));
		sync_point(i);
		honest(b->name);
	}
	start();
	same_head_twice();
	honest("same-head");
	bad_rings();
	honest("bad-rings");
}
