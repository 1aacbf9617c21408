/*
 * fuzz_stream.c - any bytes as a stream of sections
 *
 * Read twice, from memory and through a descriptor: both have to say the same. Sections that were read
 * are written again and have to be the bytes that were read.
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "base/stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Take a bulk payload in pieces, or leave it; some of what was read last. */
static int take_bulk(struct stream *s, const struct stream_section *sec, uint8_t *room)
{
	struct err err;
	int rc = 0;

	for (uint64_t left = sec->len; !rc && left && sec->type % 3;) {
		size_t n = left < 100 ? (size_t)left : 100;

		rc = stream_read(s, room, n, &err);
		left -= n;
		if (sec->type % 3 == 2)
			break; /* the rest is skipped */
	}
	return rc;
}

static void again(const struct stream_section *sec, const uint8_t *from, size_t len)
{
	struct err err;
	struct stream *w = stream_buffer_new(&err);
	size_t n;

	BUG_ON(!w ||
	       stream_put(w, sec->type, sec->flags, sec->name, sec->data, (size_t)sec->len, &err));
	const uint8_t *bytes = stream_buffer(w, &n);

	/* A name may have held a NUL, which ends it. */
	BUG_ON(n > len || (n == len && memcmp(bytes, from, n)));
	stream_free(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct err err = { 0 }, other = { 0 };
	int fd = memfd_create("stream", MFD_CLOEXEC);

	BUG_ON(fd < 0 || write(fd, data, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET));
	struct stream *a = stream_read_new(data, size, &err),
		      *b = stream_fd_new(fd, "memory", &err);
	uint8_t room[2][100] = { { 0 } };
	int rc = 1;

	BUG_ON(!a || !b);
	while (rc == 1) {
		struct stream_section x, y;
		uint64_t from = stream_bytes(a);

		rc = stream_get(a, &x, &err);
		BUG_ON(stream_get(b, &y, &other) != rc);
		if (rc != 1)
			break;
		BUG_ON(x.type != y.type || x.len != y.len || strcmp(x.name, y.name));
		if (x.data) {
			BUG_ON(!y.data || memcmp(x.data, y.data, (size_t)x.len));
			again(&x, data + from, (size_t)(stream_bytes(a) - from));
			continue;
		}
		rc = take_bulk(a, &x, room[0]);
		BUG_ON(take_bulk(b, &y, room[1]) != rc || memcmp(room[0], room[1], 100));
		rc = rc ? rc : 1;
	}
	BUG_ON(rc < 0 && strcmp(err.msg, other.msg));
	stream_free(a);
	stream_free(b);
	close(fd);
	return 0;
}
