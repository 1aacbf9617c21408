/*
 * stream.c - sections of bytes to a file, a socket or a buffer
 *
 * Not buffered: a section is one writev(2), and bulk payloads are read straight to where they belong.
 * A machine's state is a few dozen sections, and RAM comes in pieces that are large by themselves.
 *
 * A reader of a bulk payload that is faster than its writer would be woken for each packet, which costs the
 * writer more than the reader: the kernel lets it sleep until a good part is there.
 *
 * A length in a header is a claim. Memory for a payload grows with what has arrived, so a peer that
 * claims much and sends little costs us little.
 */
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/stream.h"

#define MAGIC       0x43455343u /* "CSEC" */
#define HEADER_SIZE 24
#define FLAGS       (STREAM_OPTIONAL | STREAM_BULK)
#define GROW_FIRST  ((size_t)64 << 10)
#define PUT_IOV     260          /* pieces that are written in one call with their head */
#define WAKE        (256u << 10) /* bytes of a bulk payload to wait for */

struct stream {
	int fd; /* -1: memory */
	char peer[160];
	const uint8_t *in; /* reading from memory */
	size_t in_len;
	uint8_t *buf; /* written, or the payload last read */
	size_t len, room;
	char name[STREAM_NAME_MAX + 1]; /* of the section being read, for messages */
	uint16_t type;
	const char *(*type_name)(unsigned type);
	uint64_t bulk_left;
	uint64_t bytes;
};

static struct stream *stream_new(struct err *err)
{
	struct stream *s = calloc(1, sizeof(*s));

	if (!s)
		err_set(err, ENOMEM, "out of memory");
	else
		s->fd = -1;
	return s;
}

struct stream *stream_fd_new(int fd, const char *peer, struct err *err)
{
	struct stream *s = stream_new(err);

	if (!s)
		return NULL;
	s->fd = fd;
	stream_name_peer(s, peer);
	return s;
}

struct stream *stream_read_new(const void *data, size_t len, struct err *err)
{
	struct stream *s = stream_new(err);

	if (!s)
		return NULL;
	s->in = data;
	s->in_len = len;
	stream_name_peer(s, "memory");
	return s;
}

struct stream *stream_buffer_new(struct err *err)
{
	return stream_read_new(NULL, 0, err);
}

const uint8_t *stream_buffer(const struct stream *s, size_t *len)
{
	*len = s->len;
	return s->buf;
}

void stream_free(struct stream *s)
{
	if (!s)
		return;
	free(s->buf);
	free(s);
}

void stream_name_types(struct stream *s, const char *(*name)(unsigned type))
{
	s->type_name = name;
}

/* What is being read, for messages: "section device disk.root". */
static const char *where(const struct stream *s, char *buf, size_t size)
{
	const char *type = s->type_name ? s->type_name(s->type) : NULL;
	char number[8];

	snprintf(number, sizeof(number), "%u", s->type);
	snprintf(buf, size, "section %s%s%s", type ? type : number, *s->name ? " " : "", s->name);
	return buf;
}

#define WHERE(s) where(s, (char[160]){ 0 }, 160)

const char *stream_peer(const struct stream *s)
{
	return s->peer;
}

void stream_name_peer(struct stream *s, const char *peer)
{
	snprintf(s->peer, sizeof(s->peer), "%s", peer);
}

uint64_t stream_bytes(const struct stream *s)
{
	return s->bytes;
}

static int make_room(struct stream *s, size_t more, struct err *err)
{
	if (more <= s->room - s->len)
		return 0;
	if (more > SIZE_MAX / 2 - s->room)
		return err_set(err, ENOMEM, "%s: out of memory", s->peer);
	size_t room = 2 * s->room + more;
	uint8_t *buf = realloc(s->buf, room);

	if (!buf)
		return err_set(err, ENOMEM, "%s: out of memory", s->peer);
	s->buf = buf;
	s->room = room;
	return 0;
}

/* ---- writing ---- */

static void put16(uint8_t *at, uint16_t v)
{
	memcpy(at, &v, sizeof(v)); /* hosts are little-endian, base/state.c asserts it */
}

static void put32(uint8_t *at, uint32_t v)
{
	memcpy(at, &v, sizeof(v));
}

static void put64(uint8_t *at, uint64_t v)
{
	memcpy(at, &v, sizeof(v));
}

static int write_buffer(struct stream *s, const struct iovec *iov, unsigned niov, struct err *err)
{
	for (unsigned i = 0; i < niov; i++) {
		int rc = make_room(s, iov[i].iov_len, err);

		if (rc)
			return rc;
		if (iov[i].iov_len)
			memcpy(s->buf + s->len, iov[i].iov_base, iov[i].iov_len);
		s->len += iov[i].iov_len;
	}
	return 0;
}

/* Take @n bytes off the front. */
static void advance(struct iovec **iov, unsigned *niov, size_t n)
{
	while (*niov && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		(*iov)++;
		(*niov)--;
	}
	if (*niov) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
}

static int write_fd(struct stream *s, struct iovec *iov, unsigned niov, struct err *err)
{
	advance(&iov, &niov, 0);
	while (niov) {
		ssize_t n = writev(s->fd, iov, niov < IOV_MAX ? (int)niov : IOV_MAX);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_set_sys(err, errno, "%s: cannot write", s->peer);
		advance(&iov, &niov, (size_t)n);
	}
	return 0;
}

static int write_all(struct stream *s, struct iovec *iov, unsigned niov, struct err *err)
{
	return s->fd < 0 ? write_buffer(s, iov, niov, err) : write_fd(s, iov, niov, err);
}

int stream_putv(struct stream *s, uint16_t type, uint16_t flags, const char *name,
		struct iovec *iov, unsigned niov, struct err *err)
{
	uint8_t head[HEADER_SIZE + STREAM_NAME_MAX] = { 0 };
	size_t name_len = name ? strlen(name) : 0;
	uint64_t len = 0;

	BUG_ON(flags & ~FLAGS || name_len > STREAM_NAME_MAX);
	for (unsigned i = 0; i < niov; i++)
		len += iov[i].iov_len;
	BUG_ON(len > STREAM_PAYLOAD_MAX);

	uint32_t crc = crc32c(0, name, name_len);

	for (unsigned i = 0; i < niov && !(flags & STREAM_BULK); i++)
		crc = crc32c(crc, iov[i].iov_base, iov[i].iov_len);
	put32(head, MAGIC);
	put16(head + 4, type);
	put16(head + 6, flags);
	put32(head + 8, (uint32_t)name_len);
	put32(head + 12, flags & STREAM_BULK ? 0 : crc);
	put64(head + 16, len);
	if (name_len)
		memcpy(head + HEADER_SIZE, name, name_len);

	/* Head and payload in one call, unless the list is very long. */
	struct iovec all[1 + PUT_IOV] = { { head, HEADER_SIZE + name_len } };
	bool fits = niov <= PUT_IOV;
	int rc;

	if (fits && niov)
		memcpy(all + 1, iov, niov * sizeof(*iov));
	rc = write_all(s, all, fits ? 1 + niov : 1, err);
	if (!rc && !fits)
		rc = write_all(s, iov, niov, err);
	if (!rc)
		s->bytes += HEADER_SIZE + name_len + len;
	return rc;
}

int stream_put(struct stream *s, uint16_t type, uint16_t flags, const char *name,
	       const void *payload, size_t len, struct err *err)
{
	struct iovec iov = { (void *)payload, len }; /* only read from */

	return stream_putv(s, type, flags, name, &iov, 1, err);
}

/* ---- reading ---- */

/* Bytes read: fewer than @len only at the end. Or -errno. */
static ssize_t read_some(struct stream *s, void *to, size_t len, struct err *err)
{
	size_t got = 0;

	if (s->fd < 0) {
		got = len < s->in_len ? len : s->in_len;
		if (!got)
			return 0;
		memcpy(to, s->in, got);
		s->in += got;
		s->in_len -= got;
		s->bytes += got;
		return (ssize_t)got;
	}
	while (got < len) {
		ssize_t n = read(s->fd, (uint8_t *)to + got, len - got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_set_sys(err, errno, "%s: cannot read", s->peer);
		if (n == 0)
			break;
		got += (size_t)n;
	}
	s->bytes += got;
	return (ssize_t)got;
}

static int ended_within(const struct stream *s, struct err *err)
{
	return err_set(err, ENODATA, "%s: it ends within %s", s->peer, WHERE(s));
}

static int read_all(struct stream *s, void *to, size_t len, struct err *err)
{
	ssize_t n = read_some(s, to, len, err);

	if (n < 0)
		return (int)n;
	return (size_t)n < len ? ended_within(s, err) : 0;
}

static int skip_bulk(struct stream *s, struct err *err)
{
	uint8_t drain[4096];

	while (s->bulk_left) {
		size_t n = s->bulk_left < sizeof(drain) ? (size_t)s->bulk_left : sizeof(drain);
		int rc = read_all(s, drain, n, err);

		if (rc)
			return rc;
		s->bulk_left -= n;
	}
	return 0;
}

static int read_name(struct stream *s, uint32_t len, struct err *err)
{
	*s->name = '\0';
	int rc = read_all(s, s->name, len, err);

	s->name[rc ? 0 : len] = '\0';
	if (rc)
		return rc;
	for (uint32_t i = 0; i < len; i++)
		if (s->name[i] < 0x20 || s->name[i] > 0x7e) {
			*s->name = '\0';
			return err_set(err, EPROTO, "%s: %s has a name that is not text", s->peer,
				       WHERE(s));
		}
	return 0;
}

/* From memory in place; from a descriptor into a buffer that grows with what comes. */
static int read_payload(struct stream *s, uint64_t len, const uint8_t **data, struct err *err)
{
	if (s->fd < 0) {
		if (len > s->in_len)
			return ended_within(s, err);
		*data = (const uint8_t *)""; /* NULL is for bulk */
		if (!len)
			return 0;
		*data = s->in;
		s->in += len;
		s->in_len -= len;
		s->bytes += len;
		return 0;
	}
	for (s->len = 0; s->len < len;) {
		size_t piece = s->len ? s->len : GROW_FIRST;

		if (piece > len - s->len)
			piece = (size_t)(len - s->len);
		int rc = make_room(s, piece, err);

		if (!rc)
			rc = read_all(s, s->buf + s->len, piece, err);
		if (rc)
			return rc;
		s->len += piece;
	}
	*data = len ? s->buf : (const uint8_t *)"";
	return 0;
}

int stream_get(struct stream *s, struct stream_section *out, struct err *err)
{
	uint8_t head[HEADER_SIZE];
	uint32_t magic, name_len, crc;
	int rc = skip_bulk(s, err);

	if (rc)
		return rc;
	ssize_t n = read_some(s, head, sizeof(head), err);

	if (n <= 0)
		return (int)n;
	memcpy(&magic, head, 4);
	if ((size_t)n < sizeof(head) || magic != MAGIC)
		return (size_t)n < sizeof(head) && !memcmp(head, "CSEC", n < 4 ? (size_t)n : 4) ?
			       err_set(err, ENODATA, "%s: it ends within a section's head",
				       s->peer) :
			       err_set(err, EPROTO, "%s: no section begins at byte %llu", s->peer,
				       (unsigned long long)s->bytes - (unsigned long long)n);
	*out = (struct stream_section){ 0 };
	memcpy(&out->type, head + 4, 2);
	memcpy(&out->flags, head + 6, 2);
	memcpy(&name_len, head + 8, 4);
	memcpy(&crc, head + 12, 4);
	memcpy(&out->len, head + 16, 8);
	s->type = out->type;
	*s->name = '\0';
	if (out->flags & ~FLAGS || name_len > STREAM_NAME_MAX || out->len > STREAM_PAYLOAD_MAX)
		return err_set(
			err, EPROTO,
			"%s: %s makes no sense: flags 0x%x, %u bytes of name, %llu of payload",
			s->peer, WHERE(s), out->flags, name_len, (unsigned long long)out->len);
	rc = read_name(s, name_len, err);
	if (rc)
		return rc;
	memcpy(out->name, s->name, sizeof(out->name));
	if (out->flags & STREAM_BULK) {
		s->bulk_left = out->len;
		return 1;
	}
	rc = read_payload(s, out->len, &out->data, err);
	if (rc)
		return rc;
	if (crc32c(crc32c(0, s->name, name_len), out->data, (size_t)out->len) != crc)
		return err_set(err, EPROTO, "%s: %s is damaged: its checksum is wrong", s->peer,
			       WHERE(s));
	return 1;
}

int stream_read(struct stream *s, void *to, size_t len, struct err *err)
{
	if (len > s->bulk_left)
		return err_set(err, EPROTO, "%s: %s is %zu bytes too short", s->peer, WHERE(s),
			       len - (size_t)s->bulk_left);
	s->bulk_left -= len;
	return read_all(s, to, len, err);
}

/*
 * Wait until @left bytes, or WAKE of more, are there: 0 or -errno. By poll(2), since a read that has begun
 * sleeps until as many have come again, which there may not be. The time limit is the socket's for reads,
 * and -EAGAIN tells that it has passed.
 */
static int wait_for(const struct stream *s, uint64_t left)
{
	int low = left < WAKE ? (int)left : (int)WAKE, rc;
	struct pollfd p = { .fd = s->fd, .events = POLLIN };
	struct timeval t = { 0 };

	if (setsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low)) < 0 ||
	    getsockopt(s->fd, SOL_SOCKET, SO_RCVTIMEO, &t, &(socklen_t){ sizeof(t) }) < 0)
		return -errno;
	rc = poll(&p, 1, t.tv_sec || t.tv_usec ? (int)(t.tv_sec * 1000 + t.tv_usec / 1000) : -1);
	if (rc < 0)
		return -errno;
	return rc ? 0 : -EAGAIN;
}

/* Read what there is of @left bytes. Or -errno. */
static ssize_t read_part(const struct stream *s, struct iovec *iov, unsigned niov, uint64_t left)
{
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = niov < IOV_MAX ? niov : IOV_MAX };
	int rc = wait_for(s, left);

	if (rc && rc != -ENOTSOCK)
		return rc;
	ssize_t n = rc ? readv(s->fd, iov, (int)m.msg_iovlen) : recvmsg(s->fd, &m, MSG_DONTWAIT);

	if (n >= 0)
		return n;
	return errno == EAGAIN ? -EINTR : -errno; /* it was there, and is no more: wait again */
}

/* Until @iov, which has @left bytes, is full; it is consumed. */
static int read_pieces(struct stream *s, struct iovec *iov, unsigned niov, uint64_t left,
		       struct err *err)
{
	advance(&iov, &niov, 0);
	while (niov) {
		ssize_t n = read_part(s, iov, niov, left);

		if (n == -EINTR)
			continue;
		if (n < 0)
			return err_set_sys(err, (int)n, "%s: cannot read", s->peer);
		if (n == 0)
			return ended_within(s, err);
		s->bytes += (size_t)n;
		left -= (size_t)n;
		advance(&iov, &niov, (size_t)n);
	}
	return 0;
}

int stream_readv(struct stream *s, struct iovec *iov, unsigned niov, struct err *err)
{
	uint64_t len = 0;
	int rc = 0;

	for (unsigned i = 0; i < niov; i++)
		len += iov[i].iov_len;
	if (len > s->bulk_left)
		return err_set(err, EPROTO, "%s: %s is too short", s->peer, WHERE(s));
	if (s->fd >= 0) {
		s->bulk_left -= len;
		rc = read_pieces(s, iov, niov, len, err);
		/* Or the next head would not do to wake us. */
		setsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &(int){ 1 }, sizeof(int));
		return rc;
	}
	for (unsigned i = 0; i < niov && !rc; i++)
		rc = stream_read(s, iov[i].iov_base, iov[i].iov_len, err);
	return rc;
}
