/*
 * net.c - the virtio network device: frames out, frames in
 *
 * The host's side answers every frame of type 0x88B5 (IEEE 802 local experimental) with one of type
 * 0x88B6 and the same payload. "frames=N" of growing length; each must come back as it went. With "announce" it is asked to
 * announce itself after the sync point (it has moved), and says that it has.
 */
#include "virtio.h"

#define HDR      12
#define F_MTU    (1ull << 3)
#define F_MAC    (1ull << 5)
#define F_STATUS (1ull << 16)
#define F_CTRL   (1ull << 17)
#define F_GUEST  (1ull << 21) /* _ANNOUNCE */
#define BUF      2048
#define RX_BUFS  16

static struct vdev dev;
static struct vq rx, tx;
static uint8_t *rx_buf, *tx_buf;

static void give(unsigned i)
{
	struct piece p = { rx_buf + i * BUF, BUF, true };

	vq_add(&rx, &p, 1);
}

/* A frame of ours that came back; everything else on the wire (ARP, IPv6) is passed over. */
static uint8_t *receive(uint32_t *len)
{
	uint64_t end = deadline();

	while (!passed(end)) {
		int head = vq_wait(&rx, len);
		uint8_t *frame;

		if (head < 0)
			return NULL;
		frame = (uint8_t *)rx.desc[head].addr;
		if (*len >= HDR + 14 && frame[HDR + 12] == 0x88 && frame[HDR + 13] == 0xb6)
			return frame;
		vq_publish(&rx, (uint16_t)head);
		vq_kick(&rx);
	}
	return NULL;
}

static bool one_frame(unsigned n, const uint8_t *mac)
{
	uint32_t size = 46 + n * 37 % 1455, len = 0; /* payload, up to 1500 */
	struct piece p[] = { { tx_buf, HDR, false }, { tx_buf + HDR, 14 + size, false } };
	uint8_t *f = tx_buf + HDR, *back;
	bool good;

	memset(tx_buf, 0, HDR);
	memset(f, 0xff, 6);
	memcpy(f + 6, mac, 6);
	f[12] = 0x88;
	f[13] = 0xb5;
	for (uint32_t i = 0; i < size; i++)
		f[14 + i] = (uint8_t)(n + i * 7);
	vq_add(&tx, p, 2);
	vq_kick(&tx);
	if (vq_wait(&tx, NULL) < 0)
		return check(false, "transmit", "frame %u is stuck", n);
	back = receive(&len);
	if (!back)
		return check(false, "receive", "frame %u did not come back", n);
	good = len >= HDR + 14 + size && !memcmp(back + HDR + 14, f + 14, size);
	if (!good)
		check(false, "content", "frame %u of %u bytes differs", n, size);
	vq_publish(&rx, (uint16_t)((back - rx_buf) / BUF));
	vq_kick(&rx);
	return good;
}

/* virtio 1.2, 5.1.6.5.4 */
static void test_announce(struct vq *control)
{
	static uint8_t ack[2] = { 3, 0 }, answer;
	struct piece p[] = { { ack, 2, false }, { &answer, 1, true } };
	uint64_t end = deadline();

	while (!(virtio_config8(&dev, 6) & 2) && !passed(end))
		relax();
	if (!check(virtio_config8(&dev, 6) & 2, "announce", "was not asked for"))
		return;
	answer = 0xee;
	vq_add(control, p, 2);
	vq_kick(control);
	check(vq_wait(control, NULL) >= 0 && *(volatile uint8_t *)&answer == 0, "announce",
	      "answer %u", answer);
	if (check(virtio_config8(&dev, 6) == 1, "announce", "is asked for still"))
		ok("announce");
}

void guest_main(void)
{
	static struct vq control;
	char word[4];
	bool announce = arg("announce", word, sizeof(word));
	unsigned frames = (unsigned)arg_number("frames", 20);
	uint8_t mac[6];

	if (!check(virtio_find(&dev, VIRTIO_NET, 0), "find", "no network device"))
		return;
	print("transport %s\n", dev.pci ? "pci" : "mmio");
	check(virtio_negotiate(&dev, F_MAC | F_STATUS | F_MTU | (announce ? F_CTRL | F_GUEST : 0)),
	      "negotiate", "status %u", virtio_status(&dev));
	for (unsigned i = 0; i < 6; i++)
		mac[i] = virtio_config8(&dev, i);
	print("mac %02x:%02x:%02x:%02x:%02x:%02x\n", mac[0], mac[1], mac[2], mac[3], mac[4],
	      mac[5]);
	check(!(mac[0] & 1), "mac", "is a group address");
	rx_buf = alloc(RX_BUFS * BUF, 4096);
	tx_buf = alloc(BUF, 4096);
	check(vq_open(&rx, &dev, 0, 0, 0xffff) && vq_open(&tx, &dev, 1, 0, 0xffff), "queues",
	      "not there");
	if (announce)
		check(vq_open(&control, &dev, 2, 0, 0xffff), "queues", "no control queue");
	virtio_ok(&dev);
	for (unsigned i = 0; i < RX_BUFS; i++)
		give(i); /* descriptor i holds buffer i */
	vq_kick(&rx);
	print("ready\n");
	get_char(); /* the host's side is there */
	for (unsigned i = 0; i < frames; i++)
		if (!one_frame(i, mac))
			return;
	ok("frames");
	sync_point(1);
	if (announce)
		test_announce(&control);
	if (one_frame(frames, mac))
		ok("frames-after-sync");
}
