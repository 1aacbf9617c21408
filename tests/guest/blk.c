/*
 * blk.c - the virtio block device, over whichever transport the machine has
 *
 * Fills the disk with patterns and reads them back. "sectors=N" is the size it should have, "serial=S"
 * its name, "ro" says it must refuse writes.
 */
#include "virtio.h"

#define T_IN      0
#define T_OUT     1
#define T_FLUSH   4
#define T_GET_ID  8
#define T_DISCARD 11
#define T_ZEROES  13

#define S_OK     0
#define S_IOERR  1
#define S_UNSUPP 2

#define F_RO      (1ull << 5)
#define F_FLUSH   (1ull << 9)
#define F_DISCARD (1ull << 13)
#define F_ZEROES  (1ull << 14)

struct header {
	uint32_t type, reserved;
	uint64_t sector;
};

static struct vdev dev;
static struct vq q;
static uint8_t *buffer; /* 64 KiB */

/* One request and its end: the status byte, or 0x100 if it never came. */
static unsigned request(uint32_t type, uint64_t sector, void *data, uint32_t len, bool in)
{
	static struct header h;
	static uint8_t status;
	struct piece p[] = {
		{ &h, sizeof(h), false },
		{ data, len, in },
		{ &status, 1, true },
	};

	h = (struct header){ type, 0, sector };
	status = 0xee;
	if (!len)
		p[1] = p[2];
	vq_add(&q, p, len ? 3 : 2);
	vq_kick(&q);
	return vq_wait(&q, NULL) < 0 ? 0x100 : *(volatile uint8_t *)&status;
}

static void pattern(uint8_t *p, uint32_t len, uint32_t seed)
{
	for (uint32_t i = 0; i < len; i += 4) {
		seed = seed * 1664525 + 1013904223;
		memcpy(p + i, &seed, 4);
	}
}

static bool has_pattern(const uint8_t *p, uint32_t len, uint32_t seed)
{
	for (uint32_t i = 0; i < len; i += 4) {
		seed = seed * 1664525 + 1013904223;
		if (memcmp(p + i, &seed, 4))
			return false;
	}
	return true;
}

static void test_read_write(uint64_t sectors)
{
	const struct {
		uint64_t sector;
		uint32_t len;
	} places[] = { { 0, 512 }, { 1, 4096 }, { 100, 65536 }, { sectors - 1, 512 } };
	unsigned st = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
		pattern(buffer, places[i].len, i + 1);
		st |= request(T_OUT, places[i].sector, buffer, places[i].len, false);
	}
	check(st == S_OK, "write", "status %u", st);
	st = request(T_FLUSH, 0, NULL, 0, false);
	check(st == S_OK, "flush", "status %u", st);
	for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
		memset(buffer, 0, places[i].len);
		st = request(T_IN, places[i].sector, buffer, places[i].len, true);
		if (st != S_OK || !has_pattern(buffer, places[i].len, i + 1)) {
			check(false, "read", "sector %lu: status %u", places[i].sector, st);
			return;
		}
	}
	ok("read");
}

/* Data in odd pieces, header and status apart and together: framing is the driver's choice. */
static void test_framing(void)
{
	static struct header h;
	static uint8_t status;
	struct piece write[] = {
		{ &h, 4, false },           { (uint8_t *)&h + 4, 12, false }, { buffer, 1, false },
		{ buffer + 1, 510, false }, { buffer + 511, 1, false },       { &status, 1, true },
	};
	struct piece read[] = {
		{ &h, 16, false },
		{ buffer + 1024, 100, true },
		{ buffer + 1124, 412, true },
		{ &status, 1, true },
	};
	bool good;

	pattern(buffer, 512, 77);
	h = (struct header){ T_OUT, 0, 7 };
	status = 0xee;
	vq_add(&q, write, ARRAY_SIZE(write));
	vq_kick(&q);
	good = vq_wait(&q, NULL) >= 0 && *(volatile uint8_t *)&status == S_OK;
	h.type = T_IN;
	status = 0xee;
	vq_add(&q, read, ARRAY_SIZE(read));
	vq_kick(&q);
	good = good && vq_wait(&q, NULL) >= 0 && *(volatile uint8_t *)&status == S_OK;
	check(good && has_pattern(buffer + 1024, 512, 77), "framing", "status %u", status);
}

static void test_get_id(void)
{
	char want[24];
	unsigned st;

	memset(buffer, 0xff, 20);
	st = request(T_GET_ID, 0, buffer, 20, true);
	if (!check(st == S_OK, "get-id", "status %u", st))
		return;
	buffer[20] = 0;
	if (arg("serial", want, sizeof(want)))
		check(!strcmp((char *)buffer, want), "serial", "%s", (char *)buffer);
}

static void test_discard(void)
{
	struct {
		uint64_t sector;
		uint32_t count, flags;
	} range = { 200, 8, 0 };
	unsigned st;

	if (dev.features & F_ZEROES) {
		pattern(buffer, 4096, 5);
		request(T_OUT, range.sector, buffer, 4096, false);
		st = request(T_ZEROES, 0, &range, sizeof(range), false);
		check(st == S_OK, "write-zeroes", "status %u", st);
		request(T_IN, range.sector, buffer, 4096, true);
		for (unsigned i = 0; i < 4096; i++)
			if (buffer[i]) {
				check(false, "zeroes", "byte %u is 0x%x", i, buffer[i]);
				break;
			}
	}
	if (dev.features & F_DISCARD) {
		st = request(T_DISCARD, 0, &range, sizeof(range), false);
		check(st == S_OK, "discard", "status %u", st);
		range.sector = ~0ull - 4;
		st = request(T_DISCARD, 0, &range, sizeof(range), false);
		check(st == S_IOERR, "discard-beyond", "status %u", st);
	}
}

static void test_refusals(uint64_t sectors)
{
	static const uint64_t beyond[] = { 0, 1, ~0ull, ~0ull / 512, 1ull << 55 };
	unsigned st;

	for (unsigned i = 0; i < ARRAY_SIZE(beyond); i++) {
		uint64_t at = i < 2 ? sectors - 1 + i : beyond[i];

		st = request(T_IN, at, buffer, 1024, true);
		check(st == S_IOERR, "read-beyond", "sector 0x%lx: status %u", at, st);
	}
	st = request(T_IN, 0, buffer, 100, true);
	check(st == S_IOERR, "odd-length", "status %u", st);
	st = request(0x4242, 0, buffer, 512, true);
	check(st == S_UNSUPP, "unknown-type", "status %u", st);
	if (dev.features & F_RO) {
		st = request(T_OUT, 0, buffer, 512, false);
		check(st == S_IOERR, "read-only", "status %u", st);
	}
}

/* The queue full of reads at once; every one comes back once. */
static void test_many(void)
{
	struct req {
		struct header h;
		uint8_t status;
	} *r = alloc(256 * sizeof(*r), 16);
	unsigned n = q.size / 3, back = 0;
	uint64_t seen[4] = { 0 };
	bool twice = false;

	for (unsigned i = 0; i < n; i++) {
		struct piece p[] = {
			{ &r[i].h, 16, false },
			{ buffer + i * 512, 512, true },
			{ &r[i].status, 1, true },
		};

		r[i].h = (struct header){ T_IN, 0, 100 + i };
		r[i].status = 0xee;
		vq_add(&q, p, 3);
	}
	vq_kick(&q);
	sync_point(2); /* done or not, none has been looked at */
	for (; back < n; back++) {
		int head = vq_wait(&q, NULL);

		if (head < 0)
			break;
		twice |= seen[head / 64] >> head % 64 & 1;
		seen[head / 64] |= 1ull << head % 64;
	}
	for (unsigned i = 0; i < n; i++)
		twice |= r[i].status != S_OK;
	check(back == n && !twice, "many", "%u of %u came back", back, n);
}

/* A completion raises the interrupt that was asked for; a masked one is kept until it is unmasked. */
static void test_interrupts(void)
{
	uint32_t before;

	irq_on();
	if (dev.pci) {
		msix_route(&dev, 1, 0x31);
		before = irq_count[0x31];
		request(T_IN, 0, buffer, 512, true);
		check(irq_wait(0x31, before), "msix", "none came");
		msix_mask(&dev, 1, true);
		before = irq_count[0x31];
		request(T_IN, 0, buffer, 512, true);
		sync_point(3); /* the vector is pending */
		check(irq_count[0x31] == before, "msix-masked", "came");
		msix_mask(&dev, 1, false);
		check(irq_wait(0x31, before), "msix-pending", "lost");
	} else {
		ioapic_route(dev.gsi, 0x32);
		before = irq_count[0x32];
		request(T_IN, 0, buffer, 512, true);
		check(irq_wait(0x32, before), "irq", "none came");
		sync_point(3); /* not acknowledged yet */
		check(read32(dev.base + 0x60) & 1, "isr", "clear");
		write32(dev.base + 0x64, 1);
		check(!(read32(dev.base + 0x60) & 1), "isr-acknowledge", "still set");
	}
	irq_off();
}

void guest_main(void)
{
	uint64_t sectors, want = arg_number("sectors", 0);
	char text[8];
	bool ro;

	buffer = alloc(64 << 10, 4096);
	if (!check(virtio_find(&dev, VIRTIO_BLK, 0), "find", "no block device"))
		return;
	print("transport %s\n", dev.pci ? "pci" : "mmio");
	sectors = virtio_config64(&dev, 0);
	check(!want || sectors == want, "capacity", "%lu sectors", sectors);
	sync_point(0); /* before it has a driver */
	if (!check(virtio_negotiate(&dev, F_RO | F_FLUSH | F_DISCARD | F_ZEROES), "negotiate",
		   "status %u", virtio_status(&dev)))
		return;
	check(vq_open(&q, &dev, 0, 0, 1), "queue", "not there");
	virtio_ok(&dev);
	ro = dev.features & F_RO;
	check(ro == (arg("ro", text, sizeof(text)) != NULL), "ro", "feature %u", ro);
	if (!ro) {
		test_read_write(sectors);
		test_framing();
		test_discard();
	}
	sync_point(1);
	test_get_id();
	test_refusals(sectors);
	test_many();
	test_interrupts();
	check(!(virtio_status(&dev) & STATUS_NEEDS_RESET), "status", "needs reset");
}
