/*
 * state_tables.h - every table of state there is, and a device's section taken apart
 *
 * For inspection, the documentation and the tests that walk all tables.
 */
#ifndef VMM_STATE_TABLES_H
#define VMM_STATE_TABLES_H

#include <json-c/json.h>
#include <stdio.h>

#include "base/err.h"
#include "base/state.h"
#include "devices/device.h"

/* Ended by NULL; sub-tables too. malloc'd; NULL: no memory. */
const struct state_desc **state_tables(void);
const struct state_desc *state_table_find(const char *name); /* NULL: not known */

/* One instance of table @d as JSON, by field names. NULL and @err: bytes that do not fit. */
struct json_object *state_to_json(const struct state_desc *d, const void *data, size_t len,
				  struct err *err);

/* docs/state-format.md's part that is made from the tables. */
void state_print_tables(FILE *f);

/* A device's section (vm_state.c has the layout); parts point into the section. */
struct device_state_part {
	char table[32];
	const uint8_t *data;
	size_t len;
};

struct device_state {
	char type[32];
	uint16_t nparts;
	struct device_state_part parts[DEVICE_PARTS_MAX];
};

/* -EINVAL saying where it breaks off. */
int device_state_parse(struct device_state *d, const void *data, size_t len, struct err *err);

/* Into @d, which stands still; it has to have the same parts. */
int device_state_load(struct device *d, const void *data, size_t len, struct err *err);

extern const struct state_desc header_state, end_state; /* vm_state.c */

#endif
