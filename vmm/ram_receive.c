/*
 * ram_receive.c - guest RAM from a stream
 *
 * The sender may be anyone. A section's list of ranges is read and checked whole before a byte of its
 * data is: each range is whole pages inside one region of RAM, and together they are exactly as long as
 * the section says. Data then goes straight to where it belongs.
 */
#include <inttypes.h>
#include <string.h>

#include "vmm/ram.h"
#include "vmm/sections.h"

#define PAGE 4096u

struct range {
	uint64_t gpa, len; /* little-endian on the wire, as the host */
};

static int check_range(const struct gmem *mem, const struct range *r, struct iovec *to,
		       struct err *err)
{
	if (!r->len || r->gpa % PAGE || r->len % PAGE || gmem_iov(mem, r->gpa, r->len, to))
		return err_set(err, EPROTO,
			       "guest RAM: 0x%" PRIx64 " bytes at 0x%" PRIx64
			       " are not pages of it",
			       r->len, r->gpa);
	return 0;
}

static int receive_zero(struct gmem *mem, const struct stream_section *s, uint32_t round,
			struct err *err)
{
	struct range r;
	struct iovec to;

	if (s->len % sizeof(r) || s->len > RAM_RANGES_MAX * sizeof(r))
		return err_set(err, EPROTO, "guest RAM: a list of zero pages of %" PRIu64 " bytes",
			       s->len);
	for (size_t at = 0; at < s->len; at += sizeof(r)) {
		memcpy(&r, s->data + at, sizeof(r));
		int rc = check_range(mem, &r, &to, err);

		if (!rc && round > 1)
			rc = gmem_fill(mem, r.gpa, 0, r.len);
		if (rc)
			return rc;
	}
	return 0;
}

static int receive_data(struct gmem *mem, struct stream *in, uint64_t len, struct err *err)
{
	struct range r[RAM_RANGES_MAX];
	struct iovec to[RAM_RANGES_MAX];
	struct {
		uint32_t n, zero;
	} head;
	uint64_t sum = sizeof(head);
	int rc;

	if (len < sizeof(head))
		return err_set(err, EPROTO, "guest RAM: a section of %" PRIu64 " bytes", len);
	rc = stream_read(in, &head, sizeof(head), err);
	if (rc)
		return rc;
	sum += head.n * sizeof(*r);
	if (!head.n || head.n > RAM_RANGES_MAX || head.zero || sum > len)
		return err_set(err, EPROTO, "guest RAM: %u ranges in a section", head.n);
	rc = stream_read(in, r, head.n * sizeof(*r), err);
	for (uint32_t i = 0; i < head.n && !rc; i++) {
		rc = check_range(mem, &r[i], &to[i], err);
		if (!rc && r[i].len > len - sum)
			rc = err_set(err, EPROTO, "guest RAM: ranges longer than their section");
		sum += rc ? 0 : r[i].len;
	}
	if (!rc && sum != len)
		rc = err_set(err, EPROTO, "guest RAM: ranges shorter than their section");
	return rc ? rc : stream_readv(in, to, head.n, err);
}

static int receive_end(const struct stream_section *s, uint32_t round, struct ram_round_end *end,
		       struct err *err)
{
	uint32_t words[2];

	if (s->len != sizeof(words))
		return err_set(err, EPROTO, "the end of a round has %" PRIu64 " bytes", s->len);
	memcpy(words, s->data, sizeof(words));
	if (words[0] != round || words[1] > 1)
		return err_set(err, EPROTO, "round %u ends where round %u should", words[0], round);
	*end = (struct ram_round_end){ words[0], words[1] };
	return 0;
}

int ram_receive_round(struct gmem *mem, struct stream *in, uint32_t round,
		      struct ram_round_end *end, struct err *err)
{
	for (;;) {
		struct stream_section s;
		int rc = stream_get(in, &s, err);

		if (rc == 0)
			return err_set(err, ENODATA, "it ends within round %u of guest RAM", round);
		if (rc < 0)
			return rc;
		bool bulk = s.flags & STREAM_BULK;

		if (s.type == SECTION_ROUND_END && !bulk)
			return receive_end(&s, round, end, err);
		if (s.type == SECTION_RAM_DATA && bulk)
			rc = receive_data(mem, in, s.len, err);
		else if (s.type == SECTION_RAM_ZERO && !bulk)
			rc = receive_zero(mem, &s, round, err);
		else if (!(s.flags & STREAM_OPTIONAL))
			rc = err_set(err, EPROTO, "a section of type %u within guest RAM", s.type);
		else
			rc = 0;
		if (rc)
			return rc;
	}
}
