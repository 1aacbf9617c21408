/*
 * badnet.c - a NIC's driver that breaks rules, whoever works on its rings
 *
 * Each case starts from a reset device and ends in DEVICE_NEEDS_RESET; then the device is reset and has to
 * carry a frame to the host's side and back, as in net.c. Rules that only one end of the two (our own loop,
 * vhost-net) minds are not here.
 */
#include "virtio.h"

#define HDR     12
#define F_MAC   (1ull << 5)
#define LEN     (HDR + 14 + 46)
#define OUTSIDE 0xb0000000ull /* below 4 GiB, and no guest here has so much RAM */

static struct vdev dev;
static struct vq rx, tx;
static uint8_t *out, *in;

static bool start(void)
{
	static const uint8_t head[14] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,
					  0,    0,    0,    0,    9,    0x88, 0xb5 };

	if (!virtio_negotiate(&dev, F_MAC) || !vq_open(&rx, &dev, 0, 0, 0xffff) ||
	    !vq_open(&tx, &dev, 1, 0, 0xffff))
		return false;
	memset(out, 0, LEN);
	memcpy(out + HDR, head, sizeof(head));
	tx.desc[0] = (struct desc){ (uint64_t)out, LEN, 0, 0 };
	rx.desc[0] = (struct desc){ (uint64_t)in, 2048, DESC_WRITE, 0 };
	virtio_ok(&dev);
	return true;
}

static void post(struct vq *q, uint16_t head)
{
	vq_publish(q, head);
	vq_kick(q);
}

static void head_beyond(void)
{
	post(&tx, (uint16_t)tx.size);
}

static void index_jumps(void)
{
	tx.avail->idx = (uint16_t)(tx.size + 1);
	vq_kick(&tx);
}

static void loops(void)
{
	tx.desc[0].flags = DESC_NEXT;
	tx.desc[0].next = 0;
	post(&tx, 0);
}

static void next_beyond(void)
{
	tx.desc[0].flags = DESC_NEXT;
	tx.desc[0].next = 0xffff;
	post(&tx, 0);
}

static void outside(void)
{
	tx.desc[0].addr = OUTSIDE;
	post(&tx, 0);
}

static void wraps(void)
{
	tx.desc[0].addr = ~0ull - 16;
	post(&tx, 0);
}

static void indirect_unasked(void)
{
	tx.desc[0].flags = DESC_INDIRECT;
	tx.desc[0].len = 7;
	post(&tx, 0);
}

static void receive_outside(void)
{
	rx.desc[0].addr = OUTSIDE;
	post(&rx, 0);
	post(&tx, 0);
}

static void receive_into_bar(void)
{
	rx.desc[0].addr = dev.base;
	post(&rx, 0);
	post(&tx, 0);
}

static void receive_readable(void)
{
	rx.desc[0].flags = 0;
	post(&rx, 0);
	post(&tx, 0);
}

static bool honest(const char *after)
{
	uint64_t end = deadline();
	uint32_t len = 0;

	if (!check(start(), after, "the device does not start again"))
		return false;
	post(&rx, 0);
	post(&tx, 0);
	while (!passed(end)) {
		if (vq_wait(&rx, &len) < 0)
			return check(false, after, "nothing comes in");
		if (len >= HDR + 14 && in[HDR + 12] == 0x88 && in[HDR + 13] == 0xb6)
			return true;
		post(&rx, 0); /* the host's own */
	}
	return check(false, after, "the frame does not come back");
}

void guest_main(void)
{
	static const struct {
		const char *name;
		void (*act)(void);
	} cases[] = {
		{ "head-beyond", head_beyond },
		{ "index-jumps", index_jumps },
		{ "loops", loops },
		{ "next-beyond", next_beyond },
		{ "outside", outside },
		{ "wraps", wraps },
		{ "indirect", indirect_unasked },
		{ "receive-outside", receive_outside },
		{ "receive-into-bar", receive_into_bar },
		{ "receive-readable", receive_readable },
	};

	if (!check(virtio_find(&dev, VIRTIO_NET, 0), "find", "no network device"))
		return;
	out = alloc(4096, 4096);
	in = alloc(4096, 4096);
	print("ready\n");
	get_char(); /* the host's side is there */
	if (!honest("at first"))
		return;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (!check(start(), cases[i].name, "the device does not start"))
			return;
		cases[i].act();
		if (!check(virtio_wait_broken(&dev), cases[i].name, "the device did not mind") ||
		    !honest(cases[i].name))
			return;
		ok(cases[i].name);
	}
}
