/*
 * blk.h - virtio block device (virtio 1.2 chapter 5.2)
 */
#ifndef VIRTIO_BLK_H
#define VIRTIO_BLK_H

#include "backends/block.h"
#include "virtio/device.h"

struct virtio_blk_options {
	const char *name;   /* instance, "disk.root" */
	const char *serial; /* up to 20 bytes, or NULL */
	unsigned queues;
	uint16_t queue_size;
	bool writethrough; /* the disk's cache mode, told to the guest */
};

/*
 * Owns @disk from success on. @loop is an I/O thread's, not the main one. NULL on error. Freed by its
 * device's ops.
 */
struct virtio *virtio_blk_new(const struct virtio_blk_options *o, struct block *disk,
			      struct gmem *mem, struct loop *loop, struct err *err);

#endif
