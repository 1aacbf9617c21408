/*
 * state.c - a device's guest-visible state, to bytes and back
 *
 * Everything is walked from the table, never from the bytes: the bytes say only which row comes next
 * and how long it claims to be. Recursion is as deep as the tables nest, and each byte is looked at
 * once per level, so hostile bytes cost no more than their length.
 *
 * What the wire may leave out, a table decides: fields of format 1 are mandatory and must be there;
 * STATE_OPTIONAL ones came later, and keep their reset value when an older snapshot lacks them.
 *
 * Memory is copied as it is: both architectures are little-endian, like the wire.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/state.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "state is copied as it is");

#define WIRE_MANDATORY 1
#define HEADER_SIZE    8 /* u16 id, u16 flags, u32 length */

void state_buf_fini(struct state_buf *b)
{
	free(b->data);
	*b = (struct state_buf){ 0 };
}

static int reserve(struct state_buf *b, size_t more)
{
	if (more <= b->room - b->len)
		return 0;
	if (more > SIZE_MAX / 2 - b->room)
		return -ENOMEM;
	size_t room = 2 * b->room + more;
	uint8_t *data = realloc(b->data, room);

	if (!data)
		return -ENOMEM;
	b->data = data;
	b->room = room;
	return 0;
}

int state_buf_put(struct state_buf *b, const void *src, size_t len)
{
	int rc = reserve(b, len);

	if (rc || !len)
		return rc;
	memcpy(b->data + b->len, src, len);
	b->len += len;
	return 0;
}

static int put_header(struct state_buf *b, const struct state_field *f)
{
	uint8_t h[HEADER_SIZE] = { 0 };
	uint16_t flags = f->flags & STATE_OPTIONAL ? 0 : WIRE_MANDATORY;

	memcpy(h, &f->id, 2);
	memcpy(h + 2, &flags, 2);
	return state_buf_put(b, h, sizeof(h)); /* the length follows when it is known */
}

/* Fill in the u32 before @from: how much has been put since. */
static void patch_length(struct state_buf *b, size_t from)
{
	size_t len = b->len - from;
	uint32_t len32 = (uint32_t)len;

	BUG_ON(len > UINT32_MAX);
	memcpy(b->data + from - sizeof(len32), &len32, sizeof(len32));
}

static int put_table(const struct state_desc *d, const uint8_t *regs, struct state_buf *out);

static int put_elements(const struct state_field *f, const uint8_t *at, struct state_buf *out)
{
	static const uint32_t later;

	BUG_ON(f->elem != f->sub->size);
	for (size_t i = 0; i < f->count; i++) {
		int rc = state_buf_put(out, &later, sizeof(later));
		size_t from = out->len;

		if (!rc)
			rc = put_table(f->sub, at + i * f->elem, out);
		if (rc)
			return rc;
		patch_length(out, from);
	}
	return 0;
}

/* Bytes of a plain field that go on the wire. */
static size_t wire_length(const struct state_field *f, const uint8_t *at)
{
	size_t len = f->elem * f->count;

	while (f->flags & STATE_TRIM && len && !at[len - 1])
		len--;
	return (len + f->elem - 1) / f->elem * f->elem;
}

static int put_table(const struct state_desc *d, const uint8_t *regs, struct state_buf *out)
{
	for (size_t i = 0; i < d->count; i++) {
		const struct state_field *f = &d->fields[i];
		const uint8_t *at = regs + f->offset;

		if (f->type == STATE_TYPE_PAD)
			continue;
		int rc = put_header(out, f);
		size_t from = out->len;

		if (!rc)
			rc = f->type == STATE_TYPE_TABLE ?
				     put_elements(f, at, out) :
				     state_buf_put(out, at, wire_length(f, at));
		if (rc)
			return rc;
		patch_length(out, from);
	}
	return 0;
}

int state_save(const struct state_desc *d, const void *regs, struct state_buf *out)
{
	size_t before = out->len;
	int rc = put_table(d, regs, out);

	if (rc)
		out->len = before;
	return rc;
}

/* Bytes still to be read. */
struct input {
	const uint8_t *data;
	size_t len;
};

static bool get(struct input *in, void *dst, size_t len)
{
	if (len > in->len)
		return false;
	memcpy(dst, in->data, len);
	in->data += len;
	in->len -= len;
	return true;
}

/* The next @len bytes as an input of their own. */
static bool split(struct input *in, size_t len, struct input *part)
{
	if (len > in->len)
		return false;
	*part = (struct input){ in->data, len };
	in->data += len;
	in->len -= len;
	return true;
}

static int get_table(const struct state_desc *d, uint8_t *regs, struct input in, struct err *err);

static int get_elements(const struct state_desc *d, const struct state_field *f, uint8_t *at,
			struct input in, struct err *err)
{
	BUG_ON(f->elem != f->sub->size);
	for (size_t i = 0; i < f->count; i++) {
		struct input part = { 0 };
		uint32_t len = 0;

		if (!get(&in, &len, sizeof(len)) || !split(&in, len, &part))
			return err_set(err, EINVAL, "%s.%s: ends within element %zu of %zu",
				       d->name, f->name, i, f->count);
		int rc = get_table(f->sub, at + i * f->elem, part, err);

		if (rc) {
			err_prefix(err, "%s.%s[%zu]", d->name, f->name, i);
			return rc;
		}
	}
	if (in.len)
		return err_set(err, EINVAL, "%s.%s: %zu bytes after its %zu elements", d->name,
			       f->name, in.len, f->count);
	return 0;
}

static int get_field(const struct state_desc *d, const struct state_field *f, uint8_t *regs,
		     struct input in, struct err *err)
{
	const size_t want = f->elem * f->count;

	if (f->type == STATE_TYPE_TABLE)
		return get_elements(d, f, regs + f->offset, in, err);
	if (f->flags & STATE_TRIM ? in.len > want || in.len % f->elem : in.len != want)
		return err_set(err, EINVAL, "%s.%s: %zu bytes where %zu belong", d->name, f->name,
			       in.len, want);
	if (in.len)
		memcpy(regs + f->offset, in.data, in.len);
	memset(regs + f->offset + in.len, 0, want - in.len);
	return 0;
}

/* Row of @id or d->count. Rows mostly come in order, so the search begins at @hint. */
static size_t row_of(const struct state_desc *d, uint16_t id, size_t hint)
{
	for (size_t i = 0; i < d->count; i++) {
		size_t row = hint + i < d->count ? hint + i : hint + i - d->count;

		if (d->fields[row].id == id && d->fields[row].type != STATE_TYPE_PAD)
			return row;
	}
	return d->count;
}

static int check_missing(const struct state_desc *d, const bool *seen, struct err *err)
{
	for (size_t i = 0; i < d->count; i++) {
		const struct state_field *f = &d->fields[i];

		if (!seen[i] && f->type != STATE_TYPE_PAD && !(f->flags & STATE_OPTIONAL))
			return err_set(err, EINVAL, "%s.%s: missing", d->name, f->name);
	}
	return 0;
}

struct header {
	uint16_t id, flags;
	uint32_t len;
};

static int get_header(const struct state_desc *d, struct input *in, struct header *h,
		      struct input *value, struct err *err)
{
	if (!get(in, &h->id, 2) || !get(in, &h->flags, 2) || !get(in, &h->len, 4) ||
	    !split(in, h->len, value))
		return err_set(err, EINVAL, "%s: ends within a field", d->name);
	if (!h->id || h->flags & ~WIRE_MANDATORY)
		return err_set(err, EINVAL, "%s: field %u with flags 0x%x makes no sense", d->name,
			       h->id, h->flags);
	return 0;
}

static int get_table(const struct state_desc *d, uint8_t *regs, struct input in, struct err *err)
{
	bool seen[STATE_FIELDS_MAX] = { false };
	size_t next = 0;

	BUG_ON(d->count > STATE_FIELDS_MAX);
	while (in.len) {
		struct header h = { 0 };
		struct input value = { 0 };
		int rc = get_header(d, &in, &h, &value, err);

		if (rc)
			return rc;
		size_t row = row_of(d, h.id, next);

		if (row == d->count && h.flags & WIRE_MANDATORY)
			return err_set(err, EINVAL,
				       "%s: field %u is not known here and cannot be left out: it "
				       "was saved by a newer version",
				       d->name, h.id);
		if (row == d->count)
			continue;
		if (seen[row])
			return err_set(err, EINVAL, "%s.%s: is there twice", d->name,
				       d->fields[row].name);
		seen[row] = true;
		next = row + 1;
		rc = get_field(d, &d->fields[row], regs, value, err);
		if (rc)
			return rc;
	}
	return check_missing(d, seen, err);
}

int state_decode(const struct state_desc *d, void *regs, const void *data, size_t len,
		 struct err *err)
{
	return get_table(d, regs, (struct input){ data, len }, err);
}

/* Inner tables first: an outer one may rely on what they promise. */
static int validate(const struct state_desc *d, const uint8_t *regs, const void *device,
		    struct err *err)
{
	for (size_t i = 0; i < d->count; i++) {
		const struct state_field *f = &d->fields[i];

		for (size_t n = 0; f->type == STATE_TYPE_TABLE && n < f->count; n++) {
			int rc = validate(f->sub, regs + f->offset + n * f->elem, device, err);

			if (rc) {
				err_prefix(err, "%s.%s[%zu]", d->name, f->name, n);
				return rc;
			}
		}
	}
	return d->validate ? d->validate(regs, device, err) : 0;
}

int state_load_new(const struct state_desc *d, void *regs, const void *device, const void *data,
		   size_t len, struct err *err)
{
	int rc = state_decode(d, regs, data, len, err);

	return rc ? rc : validate(d, regs, device, err);
}

int state_load(const struct state_desc *d, void *regs, const void *device, const void *data,
	       size_t len, struct err *err)
{
	cleanup_free uint8_t *scratch = malloc(d->size);

	if (!scratch)
		return err_set(err, ENOMEM, "out of memory for the state of %s", d->name);
	memcpy(scratch, regs, d->size);
	int rc = state_load_new(d, scratch, device, data, len, err);

	if (!rc)
		memcpy(regs, scratch, d->size);
	return rc;
}
