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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/state.h"

#define STATE_CHECK_WHY 256

__attribute__((format(printf, 2, 3))) static inline bool state_check_no_(char *why, const char *fmt,
									 ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, STATE_CHECK_WHY, fmt, ap);
	va_end(ap);
	return false;
}

static inline bool state_check_row_(const struct state_desc *d, size_t row, char *why)
{
	const struct state_field *f = &d->fields[row];
	const size_t end = f->offset + f->elem * f->count;

	if (!f->elem || !f->count || end > d->size)
		return state_check_no_(why, "%s.%s: does not lie inside the struct", d->name,
				       f->name);
	if (!f->id != (f->type == STATE_TYPE_PAD))
		return state_check_no_(why, "%s.%s: id %u", d->name, f->name, f->id);
	if (f->type == STATE_TYPE_TABLE && (!f->sub || f->sub->size != f->elem))
		return state_check_no_(why, "%s.%s: is not an array of its sub-table's struct",
				       d->name, f->name);
	for (size_t i = 0; i < row; i++) {
		const struct state_field *o = &d->fields[i];

		if (f->id && o->id == f->id)
			return state_check_no_(why, "%s: %s and %s have id %u", d->name, o->name,
					       f->name, f->id);
		if (f->offset < o->offset + o->elem * o->count && o->offset < end)
			return state_check_no_(why, "%s: %s and %s overlap", d->name, o->name,
					       f->name);
	}
	return true;
}

/* Check @d's rows, and those below it; set @pad (of @d->size) where bytes are padding. */
static inline bool state_check_rows_(const struct state_desc *d, bool *pad, char *why)
{
	if (d->count > STATE_FIELDS_MAX)
		return state_check_no_(why, "%s: more than %d fields", d->name, STATE_FIELDS_MAX);
	for (size_t row = 0; row < d->count; row++) {
		const struct state_field *f = &d->fields[row];

		if (!state_check_row_(d, row, why))
			return false;
		if (f->type == STATE_TYPE_PAD)
			memset(pad + f->offset, true, f->elem);
		for (size_t i = 0; f->type == STATE_TYPE_TABLE && i < f->count; i++)
			if (!state_check_rows_(f->sub, pad + f->offset + i * f->elem, why))
				return false;
	}
	return true;
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

/* None is 0, and bytes less than 255 apart differ. */
static inline uint8_t state_check_poison_(size_t i)
{
	return (uint8_t)(1 + i % 255);
}

static inline bool state_check_bytes_(const struct state_desc *d, uint8_t *regs, uint8_t *back,
				      const bool *pad, char *why)
{
	struct state_buf buf = { 0 };
	struct err err = { 0 };
	bool good = true;

	for (size_t i = 0; i < d->size; i++)
		regs[i] = pad[i] ? 0 : state_check_poison_(i);
	if (state_save(d, regs, &buf))
		good = state_check_no_(why, "%s: no memory", d->name);
	else if (state_decode(d, back, buf.data, buf.len, &err))
		good = state_check_no_(why, "%.40s does not load what it saved: %.160s", d->name,
				       err.msg);
	for (size_t i = 0; good && i < d->size; i++)
		if (back[i] != regs[i])
			good = state_check_no_(why, "%s: byte %zu, in or after %s, is not saved",
					       d->name, i, state_check_near_(d, i));
	state_buf_fini(&buf);
	return good;
}

/* false: @why (STATE_CHECK_WHY bytes) says what is wrong with @d as the table of @regs_size bytes */
static inline bool state_check(const struct state_desc *d, size_t regs_size, char *why)
{
	uint8_t *regs = calloc(2, regs_size);
	bool *pad = calloc(regs_size, sizeof(*pad));
	bool good = regs && pad;

	if (!good)
		state_check_no_(why, "%s: no memory", d->name);
	else if (d->size != regs_size)
		good = state_check_no_(why, "%s: the struct has %zu bytes, the table says %zu",
				       d->name, regs_size, d->size);
	good = good && state_check_rows_(d, pad, why) &&
	       state_check_bytes_(d, regs, regs + regs_size, pad, why);
	free(pad);
	free(regs);
	return good;
}

static inline void state_check_complete(const struct state_desc *d, size_t regs_size)
{
	char why[STATE_CHECK_WHY];

	if (!state_check(d, regs_size, why))
		fail_msg("%s", why);
}

#endif
