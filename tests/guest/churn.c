/*
 * churn.c - memory and a disk that change all the time, and know what they should be
 *
 * For snapshots and migrations of a machine that works. Until a byte comes on the serial port it counts
 * in pages all over a region ("pages=N" of them), keeps "depth=N" requests in the disk's queue, has
 * buffers ready for what comes in at the NIC, and looks at the clock. Every page holds its own number of
 * visits, which a table elsewhere has too: one page that was left behind shows at its next visit or in
 * the end. Of frames, those of type 0x88B6 (IEEE 802 local experimental) count up from their first byte
 * on. Neither disk nor NIC is needed. "pace=TICKS" of the TSC pass between one page and the next, on
 * average.
 */
#include "virtio.h"

#define T_IN  0
#define T_OUT 1
#define S_OK  0

#define SLOT_BYTES 16384
#define SLOTS_MAX  64

struct header {
	uint32_t type, reserved;
	uint64_t sector;
};

struct slot {
	struct header h;
	uint8_t *data;
	uint32_t seed;
	volatile uint8_t status;
};

#define NET_HDR 12
#define FRAME   2048
#define FRAMES  64 /* buffers for them */

static struct vdev nic;
static struct vq rx;
static uint8_t *frames;
static uint64_t received;

static struct vdev dev;
static struct vq q;
static struct slot slots[SLOTS_MAX];
static unsigned depth, npages;
static uint8_t *pages;
static uint32_t *visits;
static uint64_t requests, sweeps, last_tsc, pace;

static void pattern(uint8_t *p, uint32_t seed)
{
	uint32_t *w = (uint32_t *)p;

	for (uint32_t i = 0; i < SLOT_BYTES / 4; i++) {
		seed = seed * 1664525 + 1013904223;
		w[i] = seed;
	}
}

static bool has_pattern(const uint8_t *p, uint32_t seed)
{
	const uint32_t *w = (const uint32_t *)p;

	for (uint32_t i = 0; i < SLOT_BYTES / 4; i++) {
		seed = seed * 1664525 + 1013904223;
		if (w[i] != seed)
			return false;
	}
	return true;
}

/* A slot has descriptors of its own, since requests come back in any order. */
static void submit(unsigned i, uint32_t type)
{
	struct slot *s = &slots[i];
	volatile struct desc *d = &q.desc[3 * i];
	uint16_t at = (uint16_t)(3 * i);

	d[0] = (struct desc){ (uint64_t)&s->h, sizeof(s->h), DESC_NEXT, at + 1 };
	d[1] = (struct desc){ (uint64_t)s->data, SLOT_BYTES,
			      DESC_NEXT | (type == T_IN ? DESC_WRITE : 0), at + 2 };
	d[2] = (struct desc){ (uint64_t)&s->status, 1, DESC_WRITE, 0 };
	s->h = (struct header){ type, 0, (uint64_t)i * (SLOT_BYTES / 512) };
	s->status = 0xee;
	vq_publish(&q, at);
	requests++;
}

/* A write is followed by its read, a read by the next write. */
static bool completed(unsigned i)
{
	struct slot *s = &slots[i];

	if (s->status != S_OK)
		return check(false, "disk", "slot %u: status %u", i, s->status);
	if (s->h.type == T_OUT) {
		memset(s->data, 0, SLOT_BYTES);
		submit(i, T_IN);
		return true;
	}
	if (!has_pattern(s->data, s->seed))
		return check(false, "disk", "slot %u does not hold what was written", i);
	pattern(s->data, ++s->seed);
	submit(i, T_OUT);
	return true;
}

static bool disk_turn(void)
{
	bool kick = false;

	while (vq_done(&q)) {
		int head = vq_wait(&q, NULL);

		if (head < 0 || !completed((unsigned)head / 3))
			return false;
		kick = true;
	}
	if (kick)
		vq_kick(&q);
	return true;
}

static bool counts_up(const uint8_t *f, uint32_t len)
{
	if (len < NET_HDR + 14 || f[NET_HDR + 12] != 0x88 || f[NET_HDR + 13] != 0xb6)
		return true;
	received++;
	for (uint32_t i = NET_HDR + 15; i < len; i++)
		if (f[i] != (uint8_t)(f[i - 1] + 1))
			return check(false, "net", "byte %u of a frame is %u behind %u", i, f[i],
				     f[i - 1]);
	return true;
}

static bool net_turn(void)
{
	bool kick = false;

	while (vq_done(&rx)) {
		uint32_t len = 0;
		int head = vq_wait(&rx, &len); /* descriptor i holds buffer i */

		if (head < 0 || !counts_up(frames + (uint64_t)head * FRAME, len))
			return false;
		vq_publish(&rx, (uint16_t)head);
		kick = true;
	}
	if (kick)
		vq_kick(&rx);
	return true;
}

static bool visit(unsigned i)
{
	volatile uint32_t *p = (volatile uint32_t *)(pages + (uint64_t)i * 4096);

	if (p[0] != visits[i] || p[1023] != ~visits[i])
		return check(false, "memory", "page %u: %u and %u, should be %u", i, p[0], ~p[1023],
			     visits[i]);
	visits[i]++;
	p[0] = visits[i];
	p[1023] = ~visits[i];
	return true;
}

static bool clock_turn(void)
{
	uint64_t now = rdtsc();

	if (now < last_tsc)
		return check(false, "tsc", "went back from 0x%lx to 0x%lx", last_tsc, now);
	last_tsc = now;
	return true;
}

static bool churn(void)
{
	uint64_t due = rdtsc();
	unsigned stride = 0;

	while (!char_waiting()) {
		for (unsigned n = 0; n < 256; n++) {
			for (due += pace; pace && !passed(due);)
				relax();
			stride = (stride + 61) % npages;
			if (!visit(stride))
				return false;
			sweeps += !stride;
		}
		if ((depth && !disk_turn()) || (frames && !net_turn()) || !clock_turn())
			return false;
	}
	return true;
}

static bool start_disk(void)
{
	if (!virtio_find(&dev, VIRTIO_BLK, 0))
		return false;
	check(virtio_negotiate(&dev, 0), "negotiate", "status %u", virtio_status(&dev));
	check(vq_open(&q, &dev, 0, 0, 0xffff), "queue", "not there");
	virtio_ok(&dev);
	for (unsigned i = 0; i < depth; i++) {
		slots[i].data = alloc(SLOT_BYTES, 4096);
		slots[i].seed = i + 1;
		pattern(slots[i].data, slots[i].seed);
		submit(i, T_OUT);
	}
	vq_kick(&q);
	return true;
}

static void start_nic(void)
{
	if (!virtio_find(&nic, VIRTIO_NET, 0))
		return;
	check(virtio_negotiate(&nic, 0), "negotiate", "status %u", virtio_status(&nic));
	check(vq_open(&rx, &nic, 0, FRAMES, 0xffff), "queue", "not there");
	virtio_ok(&nic);
	frames = alloc((uint64_t)FRAMES * FRAME, 4096);
	for (unsigned i = 0; i < FRAMES; i++)
		vq_add(&rx, &(struct piece){ frames + (uint64_t)i * FRAME, FRAME, true }, 1);
	vq_kick(&rx);
}

void guest_main(void)
{
	bool good;

	npages = (unsigned)arg_number("pages", 1024);
	depth = (unsigned)arg_number("depth", 16);
	pace = arg_number("pace", 0);
	if (depth > SLOTS_MAX)
		depth = SLOTS_MAX;
	pages = alloc((uint64_t)npages * 4096, 4096);
	visits = alloc(npages * sizeof(*visits), 64);
	for (unsigned i = 0; i < npages; i++)
		*(uint32_t *)(pages + (uint64_t)i * 4096 + 4092) = ~0u;
	if (depth && !start_disk())
		depth = 0;
	start_nic();
	print("ready\n");
	good = churn();
	get_char();
	for (unsigned i = 0; i < npages && good; i++)
		good = visit(i);
	print("%lu rounds of memory, %lu requests\n", sweeps, requests);
	if (good && received)
		ok("net");
	if (good)
		ok("churn");
}
