/*
 * cmd_inspect.c - `coracle inspect DIR`: what is in a snapshot, by the names of the tables
 *
 * First everything becomes one JSON object, which `--json` prints; what people read is made from that.
 * Nothing is validated against a machine, as there is none: what is damaged is refused, what is only
 * odd is shown.
 */
#include <ctype.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "vmm/arch.h"
#include "vmm/commands.h"
#include "vmm/exit_status.h"
#include "vmm/sections.h"
#include "vmm/snapshot_dir.h"
#include "vmm/state_tables.h"

#define TEXT_MAX 64 /* characters of a long value shown to people */

/* ---- to one object ---- */

static int add_table(struct json_object *o, const char *key, const struct state_desc *d,
		     const void *data, size_t len, struct err *err)
{
	struct json_object *t = d ? state_to_json(d, data, len, err) :
				    (err_set(err, ENOTSUP, "its table is not known here"), NULL);

	if (!t)
		return err->code;
	return json_object_object_add(o, key, t) ? err_set(err, ENOMEM, "out of memory") : 0;
}

/* A part of a device: its table's name beside its fields. */
static int add_part(struct json_object *parts, const struct device_state_part *p, struct err *err)
{
	struct json_object *o = json_object_new_object();

	json_object_array_add(parts, o);
	return add_table(o, p->table, state_table_find(p->table), p->data, p->len, err);
}

static int add_device(struct json_object *devices, const struct stream_section *sec,
		      struct err *err)
{
	cleanup_free struct device_state *s = calloc(1, sizeof(*s));
	int rc = s ? device_state_parse(s, sec->data, (size_t)sec->len, err) :
		     err_set(err, ENOMEM, "out of memory");

	if (rc)
		return rc;
	struct json_object *o = json_object_new_object(), *parts = json_object_new_array();

	json_object_object_add(o, "name", json_object_new_string(sec->name));
	json_object_object_add(o, "type", json_object_new_string(s->type));
	json_object_object_add(o, "state", parts);
	json_object_array_add(devices, o);
	for (unsigned i = 0; i < s->nparts && !rc; i++)
		rc = add_part(parts, &s->parts[i], err);
	return rc;
}

struct picture {
	struct json_object *all, *devices, *vcpus;
	bool ended;
};

static int add_section(struct picture *p, const struct stream_section *sec, struct err *err)
{
	struct json_object *o;
	int rc;

	switch (sec->type) {
	case SECTION_CLOCK:
	case SECTION_CHIPS:
		return add_table(p->all, section_name(sec->type),
				 state_table_find(section_name(sec->type)), sec->data,
				 (size_t)sec->len, err);
	case SECTION_DEVICE:
		return add_device(p->devices, sec, err);
	case SECTION_VCPU:
		o = json_object_new_object();
		rc = add_table(o, "vcpu", state_table_find("vcpu"), sec->data, (size_t)sec->len,
			       err);
		if (!rc)
			json_object_array_add(p->vcpus,
					      json_object_get(json_object_object_get(o, "vcpu")));
		json_object_put(o);
		return rc;
	case SECTION_END:
		p->ended = true;
		return add_table(p->all, "end", &end_state, sec->data, (size_t)sec->len, err);
	default:
		return sec->flags & STREAM_OPTIONAL ? 0 :
						      err_set(err, EPROTO, "it is not known here");
	}
}

static int read_sections(struct picture *p, struct stream *s, struct err *err)
{
	struct stream_section sec;
	int rc = 0;

	while (!p->ended && (rc = stream_get(s, &sec, err)) == 1) {
		const char *name = section_name(sec.type);

		rc = sec.data ? add_section(p, &sec, err) :
				err_set(err, EPROTO, "it has no checksum");
		if (rc)
			return err_prefix(err, "section %s%s%s", name ? name : "?",
					  *sec.name ? " " : "", sec.name);
	}
	if (rc >= 0 && !p->ended)
		return err_set(err, ENODATA, "it ends before section end");
	return rc < 0 ? rc : 0;
}

static int look(struct picture *p, struct snapshot_dir *d, struct err *err)
{
	struct json_object *machine = json_tokener_parse(d->header.machine);
	int rc;

	json_object_object_add(p->all, "version", json_object_new_int((int)d->header.version));
	json_object_object_add(p->all, "machine", machine);
	rc = add_table(p->all, "cpu", state_table_find("cpuid"), d->header.cpu, d->header.cpu_len,
		       err);
	if (rc)
		return err_prefix(err, "section cpu");
	json_object_object_add(p->all, "devices", json_object_get(p->devices));
	json_object_object_add(p->all, "vcpus", json_object_get(p->vcpus));
	return read_sections(p, d->stream, err);
}

/* ---- for people ---- */

static void print_number(uint64_t v)
{
	printf(v < 10 ? "%" PRIu64 : "0x%" PRIx64, v);
}

static void print_scalar(struct json_object *o)
{
	if (json_object_is_type(o, json_type_int)) {
		print_number(json_object_get_uint64(o));
	} else {
		const char *text = json_object_get_string(o);
		size_t len = text ? strlen(text) : 0;

		printf("%.*s", TEXT_MAX, len ? text : "-");
		if (len > TEXT_MAX)
			printf("... (%zu characters)", len);
	}
}

static void print_array(struct json_object *o)
{
	size_t n = json_object_array_length(o), shown = n < 8 ? n : 8;

	for (size_t i = 0; i < shown; i++) {
		fputs(i ? " " : "", stdout);
		print_scalar(json_object_array_get_idx(o, i));
	}
	if (shown < n)
		printf(" ... (%zu)", n);
	else if (!n)
		fputs("-", stdout);
}

static bool is_plain(struct json_object *o)
{
	if (json_object_is_type(o, json_type_array))
		return !json_object_array_length(o) || is_plain(json_object_array_get_idx(o, 0));
	return !json_object_is_type(o, json_type_object);
}

static void print_object(struct json_object *o, unsigned indent);

static void print_member(const char *key, struct json_object *v, unsigned indent)
{
	if (is_plain(v)) {
		printf("%*s%-24s ", indent, "", key);
		if (json_object_is_type(v, json_type_array))
			print_array(v);
		else
			print_scalar(v);
		putchar('\n');
	} else if (json_object_is_type(v, json_type_array)) {
		for (size_t i = 0; i < json_object_array_length(v); i++) {
			printf("%*s%s %zu\n", indent, "", key, i);
			print_object(json_object_array_get_idx(v, i), indent + 2);
		}
	} else {
		printf("%*s%s\n", indent, "", key);
		print_object(v, indent + 2);
	}
}

static void print_object(struct json_object *o, unsigned indent)
{
	json_object_object_foreach (o, key, v)
		print_member(key, v, indent);
}

static const char *string_of(struct json_object *o, const char *key)
{
	struct json_object *v = NULL;

	return json_object_object_get_ex(o, key, &v) ? json_object_get_string(v) : "?";
}

static void print_device(struct json_object *d)
{
	struct json_object *parts = NULL;

	printf("\n%s (%s)\n", string_of(d, "name"), string_of(d, "type"));
	json_object_object_get_ex(d, "state", &parts);
	for (size_t i = 0; parts && i < json_object_array_length(parts); i++)
		print_object(json_object_array_get_idx(parts, i), 2);
}

static void print_all(struct json_object *o)
{
	static const char *const named[] = { "clock", "chips", NULL };
	struct json_object *v = NULL, *list;

	json_object_object_get_ex(o, "machine", &v);
	puts(json_object_to_json_string_ext(v, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
						       JSON_C_TO_STRING_NOSLASHESCAPE));
	for (unsigned i = 0; named[i]; i++)
		if (json_object_object_get_ex(o, named[i], &v)) {
			printf("\n%s\n", named[i]);
			print_object(v, 2);
		}
	json_object_object_get_ex(o, "devices", &list);
	for (size_t i = 0; i < json_object_array_length(list); i++)
		print_device(json_object_array_get_idx(list, i));
	json_object_object_get_ex(o, "vcpus", &list);
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		printf("\nvcpu %zu\n", i);
		print_object(json_object_array_get_idx(list, i), 2);
	}
}

/* ---- the command ---- */

static void print_help(void)
{
	puts("usage: coracle inspect DIR [--json]\n"
	     "\n"
	     "Show the machine of a snapshot and the state of each of its devices and processors.\n"
	     "\n"
	     "  --json         everything, as one JSON object (docs/state-format.md has the "
	     "fields)");
}

static int inspect(const char *dir, bool json, struct err *err)
{
	struct snapshot_dir d;
	struct picture p = { 0 };
	int rc = snapshot_dir_open(&d, dir, err);

	if (rc)
		return EXIT_HOST;
	p.all = json_object_new_object();
	p.devices = json_object_new_array();
	p.vcpus = json_object_new_array();
	rc = look(&p, &d, err);
	if (rc)
		err_prefix(err, "%s", dir);
	else if (json)
		puts(json_object_to_json_string_ext(p.all, JSON_C_TO_STRING_NOSLASHESCAPE));
	else
		print_all(p.all);
	json_object_put(p.devices);
	json_object_put(p.vcpus);
	json_object_put(p.all);
	snapshot_dir_close(&d);
	return rc ? EXIT_HOST : EXIT_OK;
}

int cmd_inspect(int argc, char **argv, struct err *err)
{
	const char *dir = NULL;
	bool json = false;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--json")) {
			json = true;
		} else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			print_help();
			return EXIT_OK;
		} else if (argv[i][0] == '-' || dir) {
			err_set(err, EINVAL, "%.64s: coracle inspect DIR [--json]", argv[i]);
			return EXIT_USAGE;
		} else {
			dir = argv[i];
		}
	}
	if (!dir) {
		err_set(err, EINVAL, "which snapshot? coracle inspect DIR");
		return EXIT_USAGE;
	}
	return inspect(dir, json, err);
}
