/*
 * state.h - a device's guest-visible state, described once
 *
 * The part of a device that the guest can see lives in a struct xxx_regs: fixed-size integers and
 * arrays, no pointers, no holes (the completeness test compares every byte). A table describes it by
 * stable numeric ids. The same table serves snapshot, migration, inspection, the docs, golden files,
 * the fuzzed loader and the poison test.
 *
 *	static const struct state_field virtq_fields[] = {
 *		STATE_U64(1, struct virtq_regs, desc),
 *		STATE_U16(5, struct virtq_regs, next_avail),     // never reuse an id
 *	};
 *	const struct state_desc virtq_state = STATE_DESC("virtq", struct virtq_regs, virtq_fields,
 *							 virtq_validate);
 *
 * Wire form, little-endian, one field after another: u16 id, u16 flags (bit 0: mandatory), u32
 * length, bytes. An array carries its elements one after another; a sub-table, alone or an
 * array, carries u32 element length and TLVs per element. Unknown optional fields are skipped,
 * unknown mandatory ones refuse the load by id; a field that is absent keeps what the regs held
 * before the load (reset values), unless it is mandatory. The same field twice is refused.
 */
#ifndef BASE_STATE_H
#define BASE_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* PAD: alignment of the struct, not on the wire; told so that the completeness test can be exact */
enum state_type { STATE_TYPE_UINT, STATE_TYPE_BYTES, STATE_TYPE_TABLE, STATE_TYPE_PAD };

struct state_desc;

struct state_field {
	uint16_t id;      /* never 0 (but PAD), never reused */
	uint16_t flags;   /* STATE_OPTIONAL, STATE_TRIM */
	const char *name; /* as in the struct; inspect and docs show it */
	enum state_type type;
	size_t offset;
	size_t elem; /* bytes of an element: 1, 2, 4, 8 for UINT; else of the member (TABLE: one) */
	size_t count;                 /* 1, or the array's length */
	const struct state_desc *sub; /* TABLE */
};

#define STATE_OPTIONAL 1 /* newer than format 1: an older loader may skip it */
#define STATE_TRIM     2 /* an array that is mostly empty: zeroes at its end are not on the wire */

#define STATE_FIELDS_MAX 256 /* in one table */

struct state_desc {
	const char *name;
	size_t size; /* of the regs struct */
	const struct state_field *fields;
	size_t count;
	/*
	 * The bytes are hostile: check every index, size and enum of the loaded @regs, which are a
	 * scratch copy. @device: what the regs belong to, for limits it was configured with. 0 or
	 * err_set() naming the field. A sub-table's runs first, for each element, with the outer
	 * one's @device.
	 */
	int (*validate)(const void *regs, const void *device, struct err *err);
};

#define STATE_SIZEOF(s, m) sizeof(((s *)0)->m)
#define STATE_UINT_(i, s, m, e, n, f)                                                     \
	{                                                                                 \
		.id = (i), .flags = (f), .name = #m, .type = STATE_TYPE_UINT,             \
		.offset = offsetof(s, m),                                                 \
		.elem = (e) + 0 * sizeof(char[STATE_SIZEOF(s, m) == (e) * (n) ? 1 : -1]), \
		.count = (n)                                                              \
	}
#define STATE_U8(i, s, m)           STATE_UINT_(i, s, m, 1, 1, 0)
#define STATE_U16(i, s, m)          STATE_UINT_(i, s, m, 2, 1, 0)
#define STATE_U32(i, s, m)          STATE_UINT_(i, s, m, 4, 1, 0)
#define STATE_U64(i, s, m)          STATE_UINT_(i, s, m, 8, 1, 0)
#define STATE_U8_ARRAY(i, s, m, n)  STATE_UINT_(i, s, m, 1, n, 0)
#define STATE_U16_ARRAY(i, s, m, n) STATE_UINT_(i, s, m, 2, n, 0)
#define STATE_U32_ARRAY(i, s, m, n) STATE_UINT_(i, s, m, 4, n, 0)
#define STATE_U64_ARRAY(i, s, m, n) STATE_UINT_(i, s, m, 8, n, 0)
#define STATE_U8_TRIM(i, s, m, n)   STATE_UINT_(i, s, m, 1, n, STATE_TRIM)
#define STATE_U32_TRIM(i, s, m, n)  STATE_UINT_(i, s, m, 4, n, STATE_TRIM)
#define STATE_U64_TRIM(i, s, m, n)  STATE_UINT_(i, s, m, 8, n, STATE_TRIM)
#define STATE_BYTES(i, s, m)                                                               \
	{                                                                                  \
		.id = (i), .name = #m, .type = STATE_TYPE_BYTES, .offset = offsetof(s, m), \
		.elem = STATE_SIZEOF(s, m), .count = 1                                     \
	}
#define STATE_PAD(s, m)                                                                \
	{                                                                              \
		.id = 0, .name = #m, .type = STATE_TYPE_PAD, .offset = offsetof(s, m), \
		.elem = STATE_SIZEOF(s, m), .count = 1                                 \
	}
#define STATE_TABLE(i, s, m, n, d)                                                         \
	{                                                                                  \
		.id = (i), .name = #m, .type = STATE_TYPE_TABLE, .offset = offsetof(s, m), \
		.elem = STATE_SIZEOF(s, m) / (n), .count = (n), .sub = (d)                 \
	}
#define STATE_DESC(n, s, f, v)                                       \
	{                                                            \
		.name = (n), .size = sizeof(s), .fields = (f),       \
		.count = sizeof(f) / sizeof((f)[0]), .validate = (v) \
	}

/* One table with what it describes; a device has a few (its own, its queues, its transport). */
struct state_part {
	const struct state_desc *desc;
	void *regs;         /* borrowed from the device */
	const void *device; /* handed to validate */
};

/* A growing byte buffer. */
struct state_buf {
	uint8_t *data;
	size_t len, room;
};
void state_buf_fini(struct state_buf *b);
int state_buf_put(struct state_buf *b, const void *src, size_t len); /* append: 0 or -ENOMEM */

/* Append @regs' wire form. 0 or -ENOMEM. */
int state_save(const struct state_desc *d, const void *regs, struct state_buf *out);

/*
 * Decode into a copy of @regs, validate the copy, then store it: on any error @regs is untouched.
 * -EINVAL (message names table, field and reason), -ENOMEM. Work and memory bounded by @len.
 */
int state_load(const struct state_desc *d, void *regs, const void *device, const void *data,
	       size_t len, struct err *err);

/* The same into @regs that nobody uses yet, without the copy: on an error anything may be in them. */
int state_load_new(const struct state_desc *d, void *regs, const void *device, const void *data,
		   size_t len, struct err *err);

/* state_load_new() without validate. For tests. */
int state_decode(const struct state_desc *d, void *regs, const void *data, size_t len,
		 struct err *err);

#endif
