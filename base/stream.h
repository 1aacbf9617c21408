/*
 * stream.h - sections of bytes to a file, a socket or a buffer
 *
 * A snapshot's state and a migration are sequences of sections. On the wire, little-endian:
 *
 *	u32 magic "CSEC"	u16 type	u16 flags
 *	u32 length of name	u32 CRC-32C of name and payload (0 with STREAM_BULK)
 *	u64 length of payload
 *	name, payload
 *
 * Types and their payloads belong to whoever uses the stream. Reading trusts nothing: lengths are
 * checked before memory is taken, names are printable, an end within a section is an error that
 * names the section. No section is larger than STREAM_PAYLOAD_MAX; more is sent as several.
 */
#ifndef BASE_STREAM_H
#define BASE_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

#define STREAM_NAME_MAX    80
#define STREAM_PAYLOAD_MAX (64ull << 20)

#define STREAM_OPTIONAL 1 /* a reader that does not know the type skips it */
#define STREAM_BULK     2 /* guest RAM: no checksum; the payload is read by stream_read() */

struct stream;

struct stream_section {
	uint16_t type, flags;
	char name[STREAM_NAME_MAX + 1]; /* "" where there is none */
	uint64_t len;                   /* of the payload */
	const uint8_t *data;            /* until the next call; NULL for STREAM_BULK */
};

/* Over a blocking descriptor, borrowed. NULL: -ENOMEM. @peer names it in messages ("state file x"). */
struct stream *stream_fd_new(int fd, const char *peer, struct err *err);

/* Over memory: reading from @data (borrowed), or writing to a buffer that grows. For tests, fuzzers. */
struct stream *stream_read_new(const void *data, size_t len, struct err *err);
struct stream *stream_buffer_new(struct err *err);
const uint8_t *stream_buffer(const struct stream *s, size_t *len); /* what was written */

void stream_free(struct stream *s); /* NULL is fine; the descriptor stays open */

/* Write one section. 0 or -errno (-EPIPE, -ENOSPC, ...). */
int stream_put(struct stream *s, uint16_t type, uint16_t flags, const char *name,
	       const void *payload, size_t len, struct err *err);
/* The same from pieces, without copying them: @iov is consumed. */
int stream_putv(struct stream *s, uint16_t type, uint16_t flags, const char *name,
		struct iovec *iov, unsigned niov, struct err *err);

/*
 * Read the next section. 1: @out filled; 0: the stream ended between two sections; -EPROTO: not a
 * section, too large, checksum wrong; -ENODATA: ended within one; -errno. For STREAM_BULK the payload
 * has to be taken by stream_read() before the next call.
 */
int stream_get(struct stream *s, struct stream_section *out, struct err *err);
int stream_read(struct stream *s, void *to, size_t len, struct err *err);
/* The same into pieces; @iov is consumed. */
int stream_readv(struct stream *s, struct iovec *iov, unsigned niov, struct err *err);

/* Names of the types for messages (NULL: unknown, then it is the number). */
void stream_name_types(struct stream *s, const char *(*name)(unsigned type));

const char *stream_peer(const struct stream *s);
void stream_name_peer(struct stream *s, const char *peer); /* of one over memory */
uint64_t stream_bytes(const struct stream *s);             /* read or written so far */

#endif
