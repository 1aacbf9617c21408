/*
 * netchurn.c - a NIC that writes all over memory, all the time
 *
 * For migrations: until a byte comes on the serial port it keeps frames in flight to the host's side,
 * which sends each back (as in net.c). Every frame that arrives is checked, and its buffer is replaced by
 * the next page of a region ("pages=N" of them), so that after a while the device has written them all.
 * Frames may get lost on the way, but none may be damaged, and after the byte "more=N" have to come.
 */
#include "virtio.h"

#define HDR      12
#define ETH      14
#define F_MAC    (1ull << 5)
#define PAGE     4096
#define RX_BUFS  64
#define TX_SLOTS 16
#define PAYLOAD  1500

static struct vdev dev;
static struct vq rx, tx;
static uint8_t *pool, *out;
static unsigned npages, next_page;
static uint32_t sent;
static uint64_t received;

static void give(unsigned i)
{
	rx.desc[i] =
		(struct desc){ (uint64_t)(pool + (uint64_t)next_page * PAGE), 2048, DESC_WRITE, 0 };
	next_page = (next_page + 1) % npages;
	vq_publish(&rx, (uint16_t)i);
}

static void put(uint8_t *p, uint32_t seed)
{
	uint32_t *w = (uint32_t *)p;

	for (uint32_t i = 0; i < PAYLOAD / 4; i++)
		w[i] = seed + i * 2654435761u;
}

static bool is(const uint8_t *p)
{
	const uint32_t *w = (const uint32_t *)p;

	for (uint32_t i = 0; i < PAYLOAD / 4; i++)
		if (w[i] != w[0] + i * 2654435761u)
			return false;
	return true;
}

/* Payloads start at a multiple of 4: the frame begins 2 bytes into its slot. */
static void send(unsigned i)
{
	uint8_t *f = out + (uint64_t)i * 2048 + 2;

	f[HDR + 12] = 0x88;
	f[HDR + 13] = 0xb5;
	put(f + HDR + ETH, sent++);
	tx.desc[i] = (struct desc){ (uint64_t)f, HDR + ETH + PAYLOAD, 0, 0 };
	vq_publish(&tx, (uint16_t)i);
}

static bool arrived(unsigned i, uint32_t len)
{
	static uint32_t copy[PAYLOAD / 4];
	const uint8_t *f = (const uint8_t *)rx.desc[i].addr;

	if (len < HDR + ETH || f[HDR + 12] != 0x88 || f[HDR + 13] != 0xb6)
		return true; /* the host's own */
	if (len != HDR + ETH + PAYLOAD)
		return check(false, "receive", "a frame of %u bytes", len);
	memcpy(copy, f + HDR + ETH, PAYLOAD);
	received++;
	return is((const uint8_t *)copy) || check(false, "content", "frame %u is damaged", copy[0]);
}

static bool turn(void)
{
	bool kick = false;
	uint32_t len;

	while (vq_done(&rx)) {
		int head = vq_wait(&rx, &len);

		if (head < 0 || !arrived((unsigned)head, len))
			return false;
		give((unsigned)head);
		kick = true;
	}
	if (kick)
		vq_kick(&rx);
	kick = false;
	while (vq_done(&tx)) {
		int head = vq_wait(&tx, NULL);

		if (head < 0)
			return false;
		send((unsigned)head);
		kick = true;
	}
	if (kick)
		vq_kick(&tx);
	return true;
}

void guest_main(void)
{
	uint64_t more = arg_number("more", 100);
	bool good = true;

	npages = (unsigned)arg_number("pages", 1024);
	pool = alloc((uint64_t)npages * PAGE, PAGE);
	out = alloc(TX_SLOTS * 2048, PAGE);
	if (!check(virtio_find(&dev, VIRTIO_NET, 0), "find", "no network device"))
		return;
	check(virtio_negotiate(&dev, F_MAC), "negotiate", "status %u", virtio_status(&dev));
	check(vq_open(&rx, &dev, 0, 0, 0xffff) && vq_open(&tx, &dev, 1, 0, 0xffff), "queues",
	      "not there");
	virtio_ok(&dev);
	for (unsigned i = 0; i < RX_BUFS; i++)
		give(i);
	vq_kick(&rx);
	print("ready\n");
	get_char(); /* the host's side is there */
	for (unsigned i = 0; i < TX_SLOTS; i++)
		send(i);
	vq_kick(&tx);
	while (good && received < npages)
		good = turn();
	print("all pages\n");
	while (good && !char_waiting())
		good = turn();
	get_char();
	for (uint64_t end = received + more; good && received < end;)
		good = turn();
	print("%lu frames came back\n", received);
	if (good)
		ok("netchurn");
}
