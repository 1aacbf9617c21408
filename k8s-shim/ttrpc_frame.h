/*
 * ttrpc_frame.h - the frames of ttrpc
 *
 * A frame is a header of 10 bytes and data: u32be length of data, u32be stream id (odd: opened by the
 * client), u8 type, u8 flags. Data is at most 4 MiB. The reader takes bytes as they come, in any
 * pieces, and keeps no more than one frame's data that has really arrived.
 */
#ifndef K8S_SHIM_TTRPC_FRAME_H
#define K8S_SHIM_TTRPC_FRAME_H

#include <stddef.h>
#include <stdint.h>

#define TTRPC_HEADER   10
#define TTRPC_DATA_MAX (4u << 20)

enum ttrpc_type { TTRPC_REQUEST = 1, TTRPC_RESPONSE = 2 };

struct ttrpc_frame {
	uint32_t len, stream;
	uint8_t type, flags;
	const uint8_t *data; /* len > TTRPC_DATA_MAX: too long, dropped, there is none */
};

struct ttrpc_reader {
	uint8_t header[TTRPC_HEADER];
	unsigned have; /* bytes of the header */
	struct ttrpc_frame frame;
	uint32_t got; /* bytes of its data */
	uint8_t *data;
	size_t room;
};

/* Zeroed is ready. */
void ttrpc_reader_fini(struct ttrpc_reader *r);

/* Take @len bytes; @on_frame for each frame that is complete, data valid within. 0 or -ENOMEM. */
int ttrpc_reader_feed(struct ttrpc_reader *r, const uint8_t *bytes, size_t len,
		      void (*on_frame)(void *opaque, const struct ttrpc_frame *f), void *opaque);

void ttrpc_header(uint8_t out[TTRPC_HEADER], const struct ttrpc_frame *f);

#endif
