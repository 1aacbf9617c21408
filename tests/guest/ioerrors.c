/*
 * ioerrors.c - a driver that goes on writing to a disk which fails every time
 *
 * Keeps the queue full, as fast as answers come, until a byte comes on the serial port.
 */
#include "virtio.h"

#define T_OUT 1
#define SLOTS 64

struct slot {
	struct {
		uint32_t type, reserved;
		uint64_t sector;
	} h;
	uint8_t data[512];
	volatile uint8_t status;
};

static struct vdev dev;
static struct vq q;
static struct slot slots[SLOTS];

static void submit(unsigned i)
{
	struct slot *s = &slots[i];
	volatile struct desc *d = &q.desc[3 * i];
	uint16_t at = (uint16_t)(3 * i);

	d[0] = (struct desc){ (uint64_t)&s->h, sizeof(s->h), DESC_NEXT, at + 1 };
	d[1] = (struct desc){ (uint64_t)s->data, sizeof(s->data), DESC_NEXT, at + 2 };
	d[2] = (struct desc){ (uint64_t)&s->status, 1, DESC_WRITE, 0 };
	s->h.type = T_OUT;
	s->status = 0xee;
	vq_publish(&q, at);
}

void guest_main(void)
{
	unsigned long failed = 0;
	bool good = true;

	check(virtio_find(&dev, VIRTIO_BLK, 0), "find", "no disk");
	check(virtio_negotiate(&dev, 0), "negotiate", "status %u", virtio_status(&dev));
	check(vq_open(&q, &dev, 0, 0, 0xffff), "queue", "not there");
	virtio_ok(&dev);
	for (unsigned i = 0; i < SLOTS; i++)
		submit(i);
	vq_kick(&q);
	print("ready\n");
	while (good && !char_waiting()) {
		bool kick = false;

		while (good && vq_done(&q)) {
			int head = vq_wait(&q, NULL);

			good = head >= 0 && slots[head / 3].status == 1;
			if (good)
				submit((unsigned)head / 3);
			failed++;
			kick = true;
		}
		if (kick)
			vq_kick(&q);
	}
	get_char();
	print("%lu failed\n", failed);
	check(good && failed, "errors", "one request did not fail");
}
