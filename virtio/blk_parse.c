/*
 * blk_parse.c - a chain of buffers becomes a checked disk request
 *
 * The framing of a request is the driver's affair (2.7.4): the header may come in sixteen descriptors
 * or share one with the data, the status byte may end the data's last range. So the parts are found by
 * counting bytes, never descriptors: the first 16 readable ones are the header, the last writable one
 * is the status.
 *
 * Sector numbers are the guest's, up to 2^64 - 1. They are compared in sectors, before anything is
 * multiplied (crosvm 5329be363), and as "fits in what is left", so that no sum can wrap.
 */
#include <endian.h>
#include <string.h>

#include "virtio/blk_parse.h"
#include "virtio/blk_wire.h"

#define RANGE_LEN sizeof(struct blk_wire_range)

static int refuse(struct blk_parsed *p, uint8_t status, const char *wrong)
{
	p->kind = BLK_NONE;
	p->status = status;
	p->wrong = wrong;
	return 0;
}

static bool in_disk(const struct blk_limits *l, uint64_t sector, uint64_t count)
{
	return sector <= l->sectors && count <= l->sectors - sector && !(sector % l->block) &&
	       !(count % l->block);
}

/* Take the status byte off the end of the writable part. */
static int take_status(struct virtq_chain *c, struct blk_parsed *p)
{
	if (!c->nin)
		return -EPROTO;
	struct iovec *last = &c->iov[c->nout + c->nin - 1];

	p->status_byte = (uint8_t *)last->iov_base + last->iov_len - 1;
	c->in_len--;
	if (!--last->iov_len)
		c->nin--;
	return 0;
}

/* Leave the first @len bytes of the readable part out; they are there. */
static void skip(struct virtq_chain *c, struct blk_parsed *p, size_t len)
{
	p->iov = c->iov;
	p->niov = c->nout;
	while (p->niov && len >= p->iov->iov_len) {
		len -= p->iov->iov_len;
		p->iov++;
		p->niov--;
	}
	if (len) {
		p->iov->iov_base = (uint8_t *)p->iov->iov_base + len;
		p->iov->iov_len -= len;
	}
}

static int parse_transfer(const struct blk_limits *l, struct virtq_chain *c, struct blk_parsed *p,
			  uint64_t sector)
{
	const size_t header = sizeof(struct blk_wire_header);

	if (p->kind == BLK_READ) {
		p->iov = c->iov + c->nout;
		p->niov = c->nin;
		p->len = c->in_len;
	} else {
		skip(c, p, header);
		p->len = c->out_len - header;
	}
	if (p->len % BLK_SECTOR)
		return refuse(p, BLK_S_IOERR, "is not whole sectors");
	if (!in_disk(l, sector, p->len / BLK_SECTOR))
		return refuse(p, BLK_S_IOERR, "is outside the disk or not whole blocks");
	p->offset = sector * BLK_SECTOR;
	/* No data: it could be argued about, but there is nothing to do. */
	return p->len ? 0 : refuse(p, BLK_S_OK, NULL);
}

static int parse_range(const struct blk_limits *l, struct blk_parsed *p,
		       const struct blk_wire_range *from)
{
	const uint64_t sector = le64toh(from->sector);
	const uint32_t count = le32toh(from->num_sectors), flags = le32toh(from->flags);
	const bool discard = p->kind == BLK_DISCARD;
	/* 5.2.6.2: unknown flags, and unmap on a discard, which has no such choice. */
	const uint32_t known = discard ? 0 : BLK_RANGE_UNMAP;

	if (flags & ~known)
		return refuse(p, BLK_S_UNSUPP, "has flags that do not exist");
	if (count > (discard ? BLK_DISCARD_MAX : BLK_ZEROES_MAX))
		return refuse(p, BLK_S_IOERR, "has a longer range than the device takes");
	if (!in_disk(l, sector, count))
		return refuse(p, BLK_S_IOERR, "is outside the disk or not whole blocks");
	if (count)
		p->ranges[p->nranges++] = (struct blk_range){
			.offset = sector * BLK_SECTOR,
			.sectors = count,
			.unmap = flags & BLK_RANGE_UNMAP,
		};
	return 0;
}

/* All or nothing: one bad range refuses the request. */
static int parse_ranges(const struct blk_limits *l, struct virtq_chain *c, struct blk_parsed *p)
{
	struct blk_wire_range from[BLK_RANGES_MAX];
	const size_t header = sizeof(struct blk_wire_header);
	const uint64_t len = c->out_len - header;

	if (!len || len % RANGE_LEN)
		return refuse(p, BLK_S_IOERR, "is not whole ranges");
	if (len > sizeof(from))
		return refuse(p, BLK_S_IOERR, "has more ranges than the device takes");
	virtq_copy_out(c, header, from, len);
	for (unsigned i = 0; i < len / RANGE_LEN && p->kind != BLK_NONE; i++)
		parse_range(l, p, &from[i]);
	if (p->kind != BLK_NONE && !p->nranges)
		return refuse(p, BLK_S_OK, NULL);
	return 0;
}

static bool writes(uint32_t type)
{
	return type == BLK_T_OUT || type == BLK_T_DISCARD || type == BLK_T_WRITE_ZEROES;
}

int blk_parse(const struct blk_limits *l, struct virtq_chain *c, struct blk_parsed *p)
{
	struct blk_wire_header h;

	p->kind = BLK_NONE;
	p->status = BLK_S_OK;
	p->wrong = NULL;
	p->offset = p->len = 0;
	p->iov = NULL;
	p->niov = p->nranges = 0;
	if (take_status(c, p))
		return -EPROTO;
	if (virtq_copy_out(c, 0, &h, sizeof(h)) < sizeof(h))
		return refuse(p, BLK_S_IOERR, "has a header of less than 16 bytes");

	const uint32_t type = le32toh(h.type);

	if (l->read_only && writes(type))
		return refuse(p, BLK_S_IOERR, "writes to a read-only disk");
	switch (type) {
	case BLK_T_IN:
	case BLK_T_OUT:
		p->kind = type == BLK_T_IN ? BLK_READ : BLK_WRITE;
		return parse_transfer(l, c, p, le64toh(h.sector));
	case BLK_T_FLUSH:
		p->kind = BLK_FLUSH;
		return 0;
	case BLK_T_GET_ID:
		p->kind = BLK_GET_ID;
		p->iov = c->iov + c->nout;
		p->niov = c->nin;
		p->len = c->in_len;
		return 0;
	case BLK_T_DISCARD:
	case BLK_T_WRITE_ZEROES:
		if (!(type == BLK_T_DISCARD ? l->discard : l->write_zeroes))
			break;
		p->kind = type == BLK_T_DISCARD ? BLK_DISCARD : BLK_WRITE_ZEROES;
		return parse_ranges(l, c, p);
	}
	return refuse(p, BLK_S_UNSUPP, "is of a type the device does not have");
}
