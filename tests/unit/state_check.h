/*
 * state_check.h - does a state table describe every byte of its registers?
 *
 *	state_check_complete(&virtq_state, sizeof(struct virtq_regs));
 *
 * Every byte gets a value of its own, is saved, decoded into zeroes and compared: a field that was
 * added to the struct and not to the table, two rows on the same member, or a wrong width all show
 * as a byte that differs. STATE_PAD() bytes are the only ones excused, and must stay zero.
 *
 * Tables inside tables are walked too, for the rules that no round trip shows: ids are there, unique
 * and not 0, rows lie inside the struct and do not overlap.
 */
#ifndef TESTS_UNIT_STATE_CHECK_H
#define TESTS_UNIT_STATE_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/state.h"

static inline void state_check_row_(const struct state_desc *d, size_t row)
{
	const struct state_field *f = &d->fields[row];
	const size_t end = f->offset + f->elem * f->count;

	if (!f->elem || !f->count || end > d->size)
		fail_msg("%s.%s: does not lie inside the struct", d->name, f->name);
	if (!f->id != (f->type == STATE_TYPE_PAD))
		fail_msg("%s.%s: id %u", d->name, f->name, f->id);
	if (f->type == STATE_TYPE_TABLE && (!f->sub || f->sub->size != f->elem))
		fail_msg("%s.%s: is not an array of its sub-table's struct", d->name, f->name);
	for (size_t i = 0; i < row; i++) {
		const struct state_field *o = &d->fields[i];

		if (f->id && o->id == f->id)
			fail_msg("%s: %s and %s have id %u", d->name, o->name, f->name, f->id);
		if (f->offset < o->offset + o->elem * o->count && o->offset < end)
			fail_msg("%s: %s and %s overlap", d->name, o->name, f->name);
	}
}

/* Check @d's rows, and those below it; set @pad (of @d->size) where bytes are padding. */
static inline void state_check_rows_(const struct state_desc *d, bool *pad)
{
	if (d->count > STATE_FIELDS_MAX)
		fail_msg("%s: more than %d fields", d->name, STATE_FIELDS_MAX);
	for (size_t row = 0; row < d->count; row++) {
		const struct state_field *f = &d->fields[row];

		state_check_row_(d, row);
		if (f->type == STATE_TYPE_PAD)
			memset(pad + f->offset, true, f->elem);
		for (size_t i = 0; f->type == STATE_TYPE_TABLE && i < f->count; i++)
			state_check_rows_(f->sub, pad + f->offset + i * f->elem);
	}
}

/* The row that byte @at lies in or follows, for the message. */
static inline const char *state_check_near_(const struct state_desc *d, size_t at)
{
	const char *name = "its start";
	size_t best = 0;

	for (size_t i = 0; i < d->count; i++) {
		if (d->fields[i].offset <= at && d->fields[i].offset >= best) {
			best = d->fields[i].offset;
			name = d->fields[i].name;
		}
	}
	return name;
}

/* Every byte differs from its neighbours at any distance below 255, and none is 0. */
static inline uint8_t state_check_poison_(size_t i)
{
	return (uint8_t)(1 + (i + i / 255) % 255);
}

static inline void state_check_complete(const struct state_desc *d, size_t regs_size)
{
	uint8_t *regs = test_malloc(regs_size), *back = test_calloc(1, regs_size);
	bool *pad = test_calloc(regs_size, sizeof(*pad));
	struct state_buf buf = { 0 };
	struct err err = { 0 };

	assert_int_equal(d->size, regs_size);
	state_check_rows_(d, pad);
	for (size_t i = 0; i < regs_size; i++)
		regs[i] = pad[i] ? 0 : state_check_poison_(i);
	assert_int_equal(state_save(d, regs, &buf), 0);
	if (state_decode(d, back, buf.data, buf.len, &err))
		fail_msg("%s does not load what it saved: %s", d->name, err.msg);
	for (size_t i = 0; i < regs_size; i++)
		if (back[i] != regs[i])
			fail_msg("%s: byte %zu, in or after %s, is not saved", d->name, i,
				 state_check_near_(d, i));
	state_buf_fini(&buf);
	test_free(pad);
	test_free(back);
	test_free(regs);
}

#endif
