/*
 * rng.h - virtio entropy device (virtio 1.2 chapter 5.4)
 */
#ifndef VIRTIO_RNG_H
#define VIRTIO_RNG_H

#include "virtio/device.h"

/* At most @rate bytes per @period_ms, 0: no limit. A request is served with at most 64 KiB. */
struct virtio *virtio_rng_new(const char *name, uint64_t rate, unsigned period_ms, struct gmem *mem,
			      struct loop *loop, struct err *err);

#endif
