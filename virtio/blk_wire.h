/*
 * blk_wire.h - the block device's numbers and structures (virtio 1.2, 5.2.3 to 5.2.6)
 *
 * Little-endian, as the guest has them. Ours, since <linux/virtio_blk.h> brings definitions along that
 * device.h has in another form.
 */
#ifndef VIRTIO_BLK_WIRE_H
#define VIRTIO_BLK_WIRE_H

#include <stdint.h>

#define BLK_F_SEG_MAX      (1ull << 2)
#define BLK_F_RO           (1ull << 5)
#define BLK_F_BLK_SIZE     (1ull << 6)
#define BLK_F_FLUSH        (1ull << 9)
#define BLK_F_TOPOLOGY     (1ull << 10)
#define BLK_F_CONFIG_WCE   (1ull << 11)
#define BLK_F_MQ           (1ull << 12)
#define BLK_F_DISCARD      (1ull << 13)
#define BLK_F_WRITE_ZEROES (1ull << 14)

#define BLK_T_IN           0
#define BLK_T_OUT          1
#define BLK_T_FLUSH        4
#define BLK_T_GET_ID       8
#define BLK_T_DISCARD      11
#define BLK_T_WRITE_ZEROES 13

#define BLK_S_OK     0
#define BLK_S_IOERR  1
#define BLK_S_UNSUPP 2

#define BLK_RANGE_UNMAP 1 /* flag of a write-zeroes range */

struct blk_wire_header {
	uint32_t type, reserved;
	uint64_t sector;
};

struct blk_wire_range {
	uint64_t sector;
	uint32_t num_sectors, flags;
};

struct blk_wire_config {
	uint64_t capacity; /* in sectors of 512 bytes, whatever blk_size says */
	uint32_t size_max, seg_max;
	uint16_t cylinders;
	uint8_t heads, sectors;
	uint32_t blk_size;
	uint8_t physical_block_exp, alignment_offset;
	uint16_t min_io_size;
	uint32_t opt_io_size;
	uint8_t wce, unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
	uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));
/* Ends with write_zeroes_may_unmap: later fields belong to features that are not offered. */
_Static_assert(sizeof(struct blk_wire_config) == 60, "as in the specification");

/* What is offered for @b (blk_config.c). The cache mode (wce) is the caller's to set. */
struct block;
uint64_t blk_features(const struct block *b, unsigned queues);
void blk_config_fill(struct blk_wire_config *c, const struct block *b, unsigned queues,
		     uint16_t queue_size);

#endif
