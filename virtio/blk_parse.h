/*
 * blk_parse.h - a chain of buffers becomes a checked disk request (virtio 1.2, 5.2.6)
 *
 * Pure: reads the chain, decides, changes nothing but its results. Fuzzed alone.
 */
#ifndef VIRTIO_BLK_PARSE_H
#define VIRTIO_BLK_PARSE_H

#include "virtio/queue.h"

#define BLK_SECTOR     512u
#define BLK_ID_LEN     20u
#define BLK_RANGES_MAX 16u /* of one discard or write-zeroes request */

/* In sectors, of one range. Bounds what one request can keep a host disk busy with. */
#define BLK_DISCARD_MAX ((1u << 30) / BLK_SECTOR)
#define BLK_ZEROES_MAX  ((128u << 20) / BLK_SECTOR)

/* What the disk is and what was negotiated. */
struct blk_limits {
	uint64_t sectors;
	uint32_t block; /* sectors in a logical block */
	bool read_only, discard, write_zeroes;
};

enum blk_kind {
	BLK_READ,
	BLK_WRITE,
	BLK_FLUSH,
	BLK_GET_ID,
	BLK_DISCARD,
	BLK_WRITE_ZEROES,
	BLK_NONE
};

struct blk_range {
	uint64_t offset; /* bytes */
	uint32_t sectors;
	bool unmap;
};

struct blk_parsed {
	enum blk_kind kind; /* BLK_NONE: answer with status */
	uint8_t status;     /* BLK_S_OK, or why it is refused */
	const char *wrong;  /* for the log, when refused */
	uint8_t *status_byte;
	uint64_t offset, len; /* bytes: READ and WRITE inside the disk; len: of iov */
	/* The data: within the chain's own array, whose elements were cut to it. */
	struct iovec *iov;
	unsigned niov;
	struct blk_range ranges[BLK_RANGES_MAX];
	unsigned nranges;
};

/* 0, or -EPROTO: there is no byte for a status, so the driver cannot even be answered. */
int blk_parse(const struct blk_limits *l, struct virtq_chain *c, struct blk_parsed *p);

#endif
