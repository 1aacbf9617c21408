/*
 * mmio.h - virtio over MMIO, version 2 (virtio 1.2 chapter 4.2)
 *
 * One 512-byte register window and one edge interrupt. Found by the guest through ACPI (LNRO0005)
 * or a device tree.
 */
#ifndef VIRTIO_MMIO_H
#define VIRTIO_MMIO_H

#include "base/bus.h"
#include "devices/wiring.h"
#include "virtio/device.h"

#define VIRTIO_MMIO_SIZE 0x200

/*
 * Put @v at @base on @mmio, interrupting on @gsi. Binds kicks and the line through @wiring. The
 * transport belongs to @v and goes with virtio_fini. 0 or -errno.
 */
int virtio_mmio_attach(struct virtio *v, struct bus *mmio, uint64_t base, unsigned gsi,
		       struct wiring *wiring, struct err *err);

#endif
