/*
 * console.c - the virtio console: output in order, its size, and what is typed
 *
 * Writes "E", "first", and two runs of LONG bytes to it, around the sync points, which the host compares.
 * With "echo" on the command line it says "size COLSxROWS" instead of those runs, again whenever it is told of
 * another one, and sends back what comes until a dot. With "silent" as well nothing is written before something
 * was typed, which is told on the serial port.
 */
#include "virtio.h"

#define F_SIZE        (1ull << 0)
#define F_EMERG_WRITE (1ull << 2)
#define EMERG_WR      8

#define LONG     (1u << 20) /* more than a turn of the device's */
#define RX_BUFS  8
#define RX_BYTES 64
#define VECTOR   0x31

static struct vdev dev;
static struct vq rx, tx;
static uint32_t told_before;
static bool silent;

static void put(const void *bytes, uint32_t len)
{
	struct piece p = { bytes, len, false };

	vq_add(&tx, &p, 1);
	vq_kick(&tx);
	if (vq_wait(&tx, NULL) < 0)
		fail("output", "%u bytes are stuck", len);
}

static void put_text(const char *text)
{
	put(text, (uint32_t)strlen(text));
}

static void put_number(unsigned n)
{
	char digits[10];
	unsigned at = sizeof(digits);

	do
		digits[--at] = (char)('0' + n % 10);
	while (n /= 10);
	put(digits + at, sizeof(digits) - at);
}

/* An interrupt has come that says the configuration changed. */
static bool told(void)
{
	uint32_t now = irq_count[VECTOR], isr;

	if (now == told_before)
		return false;
	told_before = now;
	if (dev.pci)
		return true;
	isr = read32(dev.base + 0x60);
	write32(dev.base + 0x64, isr);
	return isr & 2;
}

static bool wait_told(void)
{
	uint64_t end = deadline();

	while (!told())
		if (passed(end))
			return false;
		else
			relax();
	return true;
}

static bool start(void)
{
	const char e[] = "E";

	if (!check(virtio_find(&dev, VIRTIO_CONSOLE, 0), "find", "no console"))
		return false;
	irq_on();
	check(virtio_negotiate(&dev, F_SIZE | F_EMERG_WRITE), "negotiate", "status %u",
	      virtio_status(&dev));
	check((dev.features & (F_SIZE | F_EMERG_WRITE)) == (F_SIZE | F_EMERG_WRITE), "features",
	      "0x%lx", dev.features);
	if (dev.pci) {
		msix_route(&dev, 0, VECTOR);
		write16(dev.base + 0x10, 0); /* the configuration's entry */
		check(read16(dev.base + 0x10) == 0, "config-vector", "refused");
	} else {
		ioapic_route(dev.gsi, VECTOR);
	}
	check(vq_open(&rx, &dev, 0, 0, 0xffff) && vq_open(&tx, &dev, 1, 0, 0xffff), "queues",
	      "not there");
	check(!vq_max(&dev, 2), "no-more-queues", "there is a third");
	if (!silent)
		write8(dev.config + EMERG_WR, (uint8_t)e[0]);
	return true;
}

static void pattern(uint8_t *p, unsigned seed)
{
	for (unsigned i = 0; i < LONG; i++)
		p[i] = (uint8_t)('a' + (i * 7 + i / 4096 + seed) % 26);
}

static void write_long(void)
{
	uint8_t *bytes = alloc(LONG, 4096);
	struct piece whole = { bytes, LONG, false };

	pattern(bytes, 0);
	vq_add(&tx, &whole, 1); /* the device hears of it after the machine was saved */
	sync_point(3);
	vq_kick(&tx);
	check(vq_wait(&tx, NULL) >= 0, "long", "does not come back");
	pattern(bytes, 1);
	vq_add(&tx, &whole, 1);
	vq_kick(&tx);
	sync_point(4); /* in the middle of it, maybe */
	check(vq_wait(&tx, NULL) >= 0, "long-after-sync", "does not come back");
}

static void post(uint8_t *bufs)
{
	for (unsigned i = 0; i < RX_BUFS; i++) {
		struct piece p = { bufs + i * RX_BYTES, RX_BYTES, true };

		vq_add(&rx, &p, 1);
	}
	vq_kick(&rx);
}

static void say_size(void)
{
	uint32_t size = virtio_config32(&dev, 0);

	put_text("size ");
	put_number(size & 0xffff);
	put_text("x");
	put_number(size >> 16);
	put_text("\r\n");
}

/* False: that was the dot. */
static bool echo(void)
{
	uint32_t len = 0;
	int head = vq_wait(&rx, &len);
	const uint8_t *bytes = head < 0 ? NULL : (const uint8_t *)rx.desc[head].addr;

	if (!check(bytes && len > 0 && len <= RX_BYTES, "input", "%u bytes", len))
		return false;
	put(bytes, len);
	for (uint32_t i = 0; i < len; i++)
		if (bytes[i] == '.')
			return false;
	vq_publish(&rx, (uint16_t)head);
	vq_kick(&rx);
	return true;
}

void guest_main(void)
{
	uint8_t *bufs = alloc(RX_BUFS * RX_BYTES, 64);
	char word[8];
	bool more = true;

	silent = arg("silent", word, sizeof(word));
	if (!start())
		return;
	sync_point(1);
	virtio_ok(&dev);
	if (arg("sized", word, sizeof(word)))
		check(wait_told() && virtio_config32(&dev, 0), "told-at-start", "size 0x%x",
		      virtio_config32(&dev, 0));
	if (!silent)
		put_text("first");
	sync_point(2);
	if (!arg("echo", word, sizeof(word))) {
		write_long();
		post(bufs);
		sync_point(5);
		return;
	}
	post(bufs);
	while (silent && !vq_done(&rx))
		relax();
	if (silent)
		print("woken\n");
	told();
	put_text("\r\n");
	say_size();
	print("ready\n");
	while (more) {
		if (told())
			say_size();
		if (vq_done(&rx))
			more = echo();
	}
}
