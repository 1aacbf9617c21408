/*
 * badblk.c - a block driver that breaks rules with requests in flight
 *
 * misbehave.c's rings against the entropy device finish at once; a disk holds requests, which is where
 * a head posted twice, a reset, and a request without its parts do harm (docs/threat-model.md).
 */
#include "virtio.h"

#define T_IN 0

struct header {
	uint32_t type, reserved;
	uint64_t sector;
};

static struct vdev dev;
static struct vq q;
static uint8_t *buffer;
static uint8_t *many, *statuses; /* of a full queue */
static struct header *h;
static uint8_t *status;

static bool start(void)
{
	bool good = virtio_negotiate(&dev, F_INDIRECT_DESC) && vq_open(&q, &dev, 0, 0, 0xffff);

	virtio_ok(&dev);
	return good;
}

static void honest(const char *after)
{
	struct piece p[] = { { h, 16, false }, { buffer, 512, true }, { status, 1, true } };

	if (!start()) {
		fail(after, "the device cannot be reset");
		return;
	}
	*h = (struct header){ T_IN, 0, 1 };
	*status = 0xee;
	vq_add(&q, p, 3);
	vq_kick(&q);
	if (vq_wait(&q, NULL) < 0 || *(volatile uint8_t *)status)
		fail(after, "the device does not serve after a reset: status 0x%x", *status);
	else
		ok("%s", after);
}

/* The machine lives on; whether the request is answered, left out or breaks the device is its choice. */
static void settles(const char *name)
{
	uint64_t end = deadline();

	while (!vq_done(&q) && !(virtio_status(&dev) & STATUS_NEEDS_RESET))
		if (passed(end)) {
			fail(name, "neither answered nor refused");
			return;
		}
}

static void post(const char *name, const struct piece *p, unsigned n)
{
	start();
	vq_add(&q, p, n);
	vq_kick(&q);
	settles(name);
	honest(name);
}

static void malformed(void)
{
	struct piece only_readable[] = { { h, 16, false }, { buffer, 512, false } };
	struct piece only_status[] = { { status, 1, true } };
	struct piece short_header[] = { { h, 8, false }, { status, 1, true } };
	struct piece no_status[] = { { h, 16, false } };
	struct piece empty_status[] = { { h, 16, false }, { status, 0, true } };
	struct piece overlapping[] = { { h, 16, false }, { h, 512, true }, { h, 1, true } };

	*h = (struct header){ T_IN, 0, 0 };
	post("no-writable", only_readable, 2);
	post("only-status", only_status, 1);
	post("short-header", short_header, 2);
	post("no-status", no_status, 1);
	post("empty-status", empty_status, 2);
	post("overlapping", overlapping, 3);
}

/* Both in one batch: the first is in flight when the second is looked at. */
static void same_head_twice(void)
{
	start();
	*h = (struct header){ T_IN, 0, 0 };
	q.desc[0] = (struct desc){ (uint64_t)h, 16, DESC_NEXT, 1 };
	q.desc[1] = (struct desc){ (uint64_t)buffer, 4096, DESC_NEXT | DESC_WRITE, 2 };
	q.desc[2] = (struct desc){ (uint64_t)status, 1, DESC_WRITE, 0 };
	for (unsigned i = 0; i < q.size; i++)
		q.avail->ring[i] = 0;
	barrier();
	q.avail->idx = (uint16_t)q.size;
	barrier();
	vq_kick(&q);
	check(virtio_wait_broken(&dev), "same-head-refused", "status 0x%x", virtio_status(&dev));
	honest("same-head");
}

#define PIECE 4096u

/* As many reads as fit, each with memory of its own. */
static void fill(void)
{
	*h = (struct header){ T_IN, 0, 0 };
	for (unsigned i = 0; i < q.size / 3; i++) {
		struct piece p[] = {
			{ h, 16, false },
			{ many + i * PIECE, PIECE, true },
			{ statuses + i, 1, true },
		};

		vq_add(&q, p, 3);
	}
	vq_kick(&q);
}

static bool all_are(const uint8_t *p, size_t n, uint8_t byte)
{
	for (size_t i = 0; i < n; i++)
		if (((const volatile uint8_t *)p)[i] != byte)
			return false;
	return true;
}

/* A reset waits for what is in flight: afterwards nothing may be stored into the guest's memory. */
static void reset_in_flight(void)
{
	size_t room = q.size / 3 * PIECE;
	bool quiet = true;

	for (unsigned round = 0; round < 20; round++) {
		start();
		fill();
		virtio_reset(&dev);
		memset(many, 0xa5, room);
		memset(statuses, 0xa5, 256);
		for (unsigned i = 0; i < 1000; i++)
			relax();
		quiet &= all_are(many, room, 0xa5) && all_are(statuses, 256, 0xa5);
	}
	check(quiet, "reset-quiet", "memory was written after the reset");
	honest("reset-in-flight");
}

static void never_reaped(void)
{
	start();
	for (unsigned i = 0; i < 50; i++)
		fill(); /* used entries are not looked at; descriptors are posted again */
	honest("never-reaped");
}

void guest_main(void)
{
	buffer = alloc(16384, 4096);
	many = alloc(256 / 3 * PIECE, 4096);
	statuses = alloc(256, 64);
	h = alloc(4096, 4096);
	status = alloc(64, 64);
	if (!check(virtio_find(&dev, VIRTIO_BLK, 0), "find", "no block device"))
		return;
	print("transport %s\n", dev.pci ? "pci" : "mmio");
	honest("at-first");
	malformed();
	same_head_twice();
	reset_in_flight();
	never_reaped();
}
