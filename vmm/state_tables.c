/*
 * state_tables.c - every table of state there is, in one list
 *
 * Explicit, as all registration here. A device whose table is missing here cannot be inspected, which
 * a test would see: it makes a machine of everything and looks at all its devices.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "devices/ged.h"
#include "devices/pci.h"
#include "devices/rtc_cmos.h"
#include "devices/testdev.h"
#include "devices/uart16550.h"
#include "virtio/console.h"
#include "virtio/device.h"
#include "virtio/net.h"
#include "vmm/arch.h"
#include "vmm/state_tables.h"

/* In the order of the page: what the stream has, then devices. The architecture's come between. */
static const struct state_desc *const stream_tables[] = { &header_state, &end_state };
static const struct state_desc *const device_tables[] = {
	&pci_host_state, &pci_state,        &msix_state,           &uart16550_state,
	&ged_state,      &rtc_cmos_state,   &testdev_state,        &virtio_state,
	&virtq_state,    &virtio_net_state, &virtio_console_state,
};

#define COUNT(a)   (sizeof(a) / sizeof((a)[0]))
#define TABLES_MAX 64

static bool is_listed(const struct state_desc **all, unsigned n, const struct state_desc *d)
{
	for (unsigned i = 0; i < n; i++)
		if (all[i] == d)
			return true;
	return false;
}

/* With its sub-tables behind it. */
static unsigned add(const struct state_desc **all, unsigned n, const struct state_desc *d)
{
	if (is_listed(all, n, d))
		return n;
	BUG_ON(n == TABLES_MAX);
	all[n++] = d;
	for (size_t i = 0; i < d->count; i++)
		if (d->fields[i].type == STATE_TYPE_TABLE)
			n = add(all, n, d->fields[i].sub);
	return n;
}

const struct state_desc **state_tables(void)
{
	const struct state_desc **all = calloc(TABLES_MAX + 1, sizeof(const struct state_desc *));
	unsigned n = 0;

	if (!all)
		return NULL;
	for (size_t i = 0; i < COUNT(stream_tables); i++)
		n = add(all, n, stream_tables[i]);
	for (const struct state_desc *const *d = arch_state_tables(); *d; d++)
		n = add(all, n, *d);
	for (size_t i = 0; i < COUNT(device_tables); i++)
		n = add(all, n, device_tables[i]);
	return all;
}

const struct state_desc *state_table_find(const char *name)
{
	const struct state_desc **all = state_tables(), *found = NULL;

	for (unsigned i = 0; all && all[i] && !found; i++)
		if (!strcmp(all[i]->name, name))
			found = all[i];
	free(all);
	return found;
}

/* ---- as JSON ---- */

static uint64_t number_at(const uint8_t *at, size_t elem)
{
	uint64_t v = 0;

	memcpy(&v, at, elem);
	return v;
}

static struct json_object *hex(const uint8_t *at, size_t len)
{
	cleanup_free char *text = malloc(2 * len + 1);

	if (!text)
		return NULL;
	/* Zeroes at the end say nothing. */
	while (len && !at[len - 1])
		len--;
	for (size_t i = 0; i < len; i++)
		snprintf(text + 2 * i, 3, "%02x", at[i]);
	text[2 * len] = '\0';
	return json_object_new_string(text);
}

static struct json_object *numbers(const struct state_field *f, const uint8_t *at)
{
	struct json_object *a = json_object_new_array();
	size_t count = f->count;

	while (f->flags & STATE_TRIM && count && !number_at(at + (count - 1) * f->elem, f->elem))
		count--;
	for (size_t i = 0; i < count; i++)
		json_object_array_add(a,
				      json_object_new_uint64(number_at(at + i * f->elem, f->elem)));
	return a;
}

static struct json_object *table_object(const struct state_desc *d, const uint8_t *regs);

static struct json_object *field_object(const struct state_field *f, const uint8_t *at)
{
	struct json_object *a;

	switch (f->type) {
	case STATE_TYPE_BYTES:
		return hex(at, f->elem);
	case STATE_TYPE_UINT:
		if (f->elem == 1 && f->count > 1)
			return hex(at, f->count);
		return f->count > 1 ? numbers(f, at) :
				      json_object_new_uint64(number_at(at, f->elem));
	case STATE_TYPE_TABLE:
		if (f->count == 1)
			return table_object(f->sub, at);
		a = json_object_new_array();
		for (size_t i = 0; i < f->count; i++)
			json_object_array_add(a, table_object(f->sub, at + i * f->elem));
		return a;
	case STATE_TYPE_PAD:
		break;
	}
	return NULL;
}

static struct json_object *table_object(const struct state_desc *d, const uint8_t *regs)
{
	struct json_object *o = json_object_new_object();

	for (size_t i = 0; i < d->count; i++)
		if (d->fields[i].type != STATE_TYPE_PAD)
			json_object_object_add(o, d->fields[i].name,
					       field_object(&d->fields[i],
							    regs + d->fields[i].offset));
	return o;
}

struct json_object *state_to_json(const struct state_desc *d, const void *data, size_t len,
				  struct err *err)
{
	cleanup_free uint8_t *regs = calloc(1, d->size);

	if (!regs) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	return state_decode(d, regs, data, len, err) ? NULL : table_object(d, regs);
}

/* ---- as a page ---- */

static void print_field(FILE *f, const struct state_field *d)
{
	fprintf(f, "| %u | `%s` | ", d->id, d->name);
	if (d->type == STATE_TYPE_TABLE)
		fprintf(f, "table [%s](#%s)", d->sub->name, d->sub->name);
	else if (d->type == STATE_TYPE_BYTES)
		fprintf(f, "%zu bytes", d->elem);
	else
		fprintf(f, "u%zu", d->elem * 8);
	if (d->count > 1)
		fprintf(f, ", %s%zu", d->flags & STATE_TRIM ? "up to " : "", d->count);
	fprintf(f, "%s |\n", d->flags & STATE_OPTIONAL ? "; may be missing" : "");
}

void state_print_tables(FILE *f)
{
	const struct state_desc **all = state_tables();

	for (unsigned i = 0; all && all[i]; i++) {
		fprintf(f, "%s### %s\n\n| id | field | type |\n| --- | --- | --- |\n",
			i ? "\n" : "", all[i]->name);
		for (size_t k = 0; k < all[i]->count; k++)
			if (all[i]->fields[k].type != STATE_TYPE_PAD)
				print_field(f, &all[i]->fields[k]);
	}
	free(all);
}
