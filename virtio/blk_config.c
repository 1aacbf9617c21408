/*
 * blk_config.c - what a disk tells its driver about itself
 *
 * SIZE_MAX is not offered: a range may have any length, the backend cuts what is too long for one call
 * of the host. Zoned disks and secure erase are not either: raw files have no such thing.
 */
#include <endian.h>

#include "backends/block.h"
#include "virtio/blk_parse.h"
#include "virtio/blk_wire.h"

uint64_t blk_features(const struct block *b, unsigned queues)
{
	uint64_t f = BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_TOPOLOGY | BLK_F_FLUSH;

	f |= b->read_only ? BLK_F_RO : BLK_F_CONFIG_WCE;
	if (b->can_discard)
		f |= BLK_F_DISCARD;
	if (b->can_write_zeroes)
		f |= BLK_F_WRITE_ZEROES;
	if (queues > 1)
		f |= BLK_F_MQ;
	return f;
}

/* Header and status take two, and a chain is never longer than its queue (2.7.5.3.1). */
static uint32_t seg_max(uint16_t queue_size)
{
	return queue_size > 3 ? queue_size - 2u : 1;
}

void blk_config_fill(struct blk_wire_config *c, const struct block *b, unsigned queues,
		     uint16_t queue_size)
{
	const uint32_t blocks = b->physical_block / b->logical_block;

	*c = (struct blk_wire_config){
		.capacity = htole64(b->size / BLK_SECTOR),
		.seg_max = htole32(seg_max(queue_size)),
		.blk_size = htole32(b->logical_block),
		.physical_block_exp = (uint8_t)__builtin_ctz(blocks),
		.min_io_size = htole16((uint16_t)blocks),
		.num_queues = htole16((uint16_t)queues),
	};
	if (b->can_discard) {
		c->max_discard_sectors = htole32(BLK_DISCARD_MAX);
		c->max_discard_seg = htole32(BLK_RANGES_MAX);
		c->discard_sector_alignment = htole32(b->physical_block / BLK_SECTOR);
	}
	if (b->can_write_zeroes) {
		c->max_write_zeroes_sectors = htole32(BLK_ZEROES_MAX);
		c->max_write_zeroes_seg = htole32(BLK_RANGES_MAX);
		c->write_zeroes_may_unmap = b->can_discard;
	}
}
