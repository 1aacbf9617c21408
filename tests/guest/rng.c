/*
 * rng.c - the virtio entropy device
 */
#include "virtio.h"

void guest_main(void)
{
	struct vdev dev;
	struct vq q = { 0 };
	static uint8_t a[64], b[64];
	struct piece one[] = { { a, 64, true } }, two[] = { { b, 10, true }, { b + 10, 54, true } };
	uint32_t len = 0, zero = 0;

	if (!check(virtio_find(&dev, VIRTIO_RNG, 0), "find", "no entropy device"))
		return;
	check(virtio_negotiate(&dev, 0), "negotiate", "status %u", virtio_status(&dev));
	check(vq_open(&q, &dev, 0, 0, 0xffff), "queue", "not there");
	sync_point(1); /* queues are there, DRIVER_OK is not */
	virtio_ok(&dev);
	vq_add(&q, one, 1);
	vq_kick(&q);
	check(vq_wait(&q, &len) >= 0 && len > 0 && len <= 64, "request", "%u bytes", len);
	sync_point(2);
	vq_add(&q, two, 2);
	vq_kick(&q);
	check(vq_wait(&q, &len) >= 0 && len > 0 && len <= 64, "request-in-pieces", "%u bytes", len);
	check(memcmp(a, b, 32) != 0, "differ", "the same twice");
	for (unsigned i = 0; i < 32; i++)
		zero += !a[i];
	check(zero < 16, "random", "%u zeroes in 32", zero);
}
