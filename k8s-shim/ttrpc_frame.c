/*
 * ttrpc_frame.c - frames out of bytes
 *
 * The length in a header is a stranger's claim. Memory follows what has arrived (doubling), not what
 * was announced, and a frame that announces too much is passed over byte by byte: the connection stays
 * in step, and whoever sent it can be told.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "k8s-shim/ttrpc_frame.h"

static uint32_t get_be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put_be32(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 24);
	p[1] = (uint8_t)(v >> 16);
	p[2] = (uint8_t)(v >> 8);
	p[3] = (uint8_t)v;
}

void ttrpc_header(uint8_t out[TTRPC_HEADER], const struct ttrpc_frame *f)
{
	put_be32(out, f->len);
	put_be32(out + 4, f->stream);
	out[8] = f->type;
	out[9] = f->flags;
}

void ttrpc_reader_fini(struct ttrpc_reader *r)
{
	free(r->data);
	memset(r, 0, sizeof(*r));
}

static size_t take_header(struct ttrpc_reader *r, const uint8_t *bytes, size_t len)
{
	size_t n = TTRPC_HEADER - r->have;

	if (n > len)
		n = len;
	memcpy(r->header + r->have, bytes, n);
	r->have += (unsigned)n;
	if (r->have == TTRPC_HEADER) {
		r->frame = (struct ttrpc_frame){ .len = get_be32(r->header),
						 .stream = get_be32(r->header + 4),
						 .type = r->header[8],
						 .flags = r->header[9] };
		r->got = 0;
	}
	return n;
}

static int make_room(struct ttrpc_reader *r, size_t want)
{
	size_t room = r->room ? r->room : 512;

	while (room < want)
		room *= 2;
	if (room == r->room)
		return 0;
	uint8_t *data = realloc(r->data, room);

	if (!data)
		return -ENOMEM;
	r->data = data;
	r->room = room;
	return 0;
}

/* Up to the end of the frame's data. Bytes used or -ENOMEM. */
static ssize_t take_data(struct ttrpc_reader *r, const uint8_t *bytes, size_t len)
{
	size_t n = r->frame.len - r->got;

	if (n > len)
		n = len;
	if (n && r->frame.len <= TTRPC_DATA_MAX) {
		if (make_room(r, r->got + n))
			return -ENOMEM;
		memcpy(r->data + r->got, bytes, n);
	}
	r->got += (uint32_t)n;
	return (ssize_t)n;
}

int ttrpc_reader_feed(struct ttrpc_reader *r, const uint8_t *bytes, size_t len,
		      void (*on_frame)(void *opaque, const struct ttrpc_frame *f), void *opaque)
{
	for (;;) {
		if (r->have < TTRPC_HEADER) {
			size_t n = take_header(r, bytes, len);

			bytes += n;
			len -= n;
			if (r->have < TTRPC_HEADER)
				return 0;
		}
		ssize_t n = take_data(r, bytes, len);

		if (n < 0)
			return (int)n;
		bytes += n;
		len -= (size_t)n;
		if (r->got < r->frame.len)
			return 0;
		r->frame.data = r->frame.len > TTRPC_DATA_MAX ? NULL : r->data;
		r->have = 0;
		on_frame(opaque, &r->frame);
	}
}
