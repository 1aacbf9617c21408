/*
 * config_schema.c - the table of keys as JSON schema
 *
 * For editors and for whoever writes vm.json by program. It cannot say what config_check() checks
 * between keys, so a document it accepts may still be refused; one it refuses always is.
 */
#include "vmm/config_keys.h"

#include <json-c/json.h>
#include <string.h>

/* Out of memory makes a NULL here and there; print_schema's reader notices at once. */
static json_object *str(const char *s)
{
	return json_object_new_string(s);
}

static void add(json_object *o, const char *name, json_object *v)
{
	json_object_object_add(o, name, v);
}

static json_object *strings(const char *a, const char *b)
{
	json_object *list = json_object_new_array();

	json_object_array_add(list, str(a));
	json_object_array_add(list, str(b));
	return list;
}

static void describe_number(json_object *o, const struct config_key *k)
{
	const char *pattern = k->type == KEY_SIZE ? "^[0-9]+([KMGTkmgt](iB)?)?$" :
			      k->type == KEY_ADDR ? "^([0-9]+|0[xX][0-9A-Fa-f]+)$" :
						    "^[0-9]+$";

	add(o, "type", strings("integer", "string"));
	add(o, "minimum", json_object_new_uint64(k->min));
	add(o, "maximum", json_object_new_uint64(k->max));
	add(o, "pattern", str(pattern));
}

static void describe_words(json_object *o, const struct config_key *k)
{
	json_object *list = json_object_new_array();

	if (k->type != KEY_WORD) {
		json_object_array_add(list, json_object_new_boolean(true));
		json_object_array_add(list, json_object_new_boolean(false));
		json_object_array_add(list, str("on"));
		json_object_array_add(list, str("off"));
	} else {
		for (unsigned i = 0; k->words[i]; i++)
			json_object_array_add(list, str(k->words[i]));
	}
	add(o, "enum", list);
}

static json_object *group_schema(const struct config_key *table);

static void describe_group(json_object *o, const struct config_key *k);

static json_object *key_schema(const struct config_key *k)
{
	json_object *o = json_object_new_object();
	char text[512];

	snprintf(text, sizeof(text), "%s.%s%s", k->help, k->more ? " " : "",
		 k->more ? k->more : "");
	add(o, "description", str(text));
	switch (k->type) {
	case KEY_BOOL:
	case KEY_FLAG:
	case KEY_WORD:
		describe_words(o, k);
		break;
	case KEY_UINT:
	case KEY_POW2:
	case KEY_SIZE:
	case KEY_ADDR:
		describe_number(o, k);
		break;
	case KEY_FDS:
		describe_number(o, k);
		add(o, "pattern", str("^[0-9]+(:[0-9]+)*$"));
		break;
	case KEY_STRING:
	case KEY_FILE:
		add(o, "type", str("string"));
		if (!k->shape->pattern)
			add(o, "minLength", json_object_new_int(1));
		else if (*k->shape->pattern)
			add(o, "pattern", str(k->shape->pattern));
		break;
	case KEY_MAC:
		add(o, "type", str("string"));
		add(o, "pattern", str("^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$"));
		break;
	case KEY_GROUP:
		describe_group(o, k);
		break;
	case KEY_CONFIG:
		break;
	}
	if (k->def)
		add(o, "default", str(k->def));
	return o;
}

/* A list of, or one, object or bare value of the first key. */
static void describe_group(json_object *o, const struct config_key *k)
{
	json_object *either = json_object_new_array();
	json_object *items = o;

	json_object_array_add(either, group_schema(k->sub));
	json_object_array_add(either, key_schema(&k->sub[0]));
	if (key_is_list(k)) {
		items = json_object_new_object();
		add(o, "type", str("array"));
		add(o, "maxItems", json_object_new_int((int)k->count_max));
		add(o, "items", items);
	}
	add(items, "anyOf", either);
}

static json_object *group_schema(const struct config_key *table)
{
	json_object *o = json_object_new_object();
	json_object *properties = json_object_new_object();
	json_object *required = json_object_new_array();

	add(o, "type", str("object"));
	for (const struct config_key *k = table; k->name; k++) {
		if (k->cli_only)
			continue;
		add(properties, k->name, key_schema(k));
		/* the kernel may come from the command line, beside the file */
		if (k->required && table != config_keys)
			json_object_array_add(required, str(k->name));
	}
	add(o, "properties", properties);
	add(o, "additionalProperties", json_object_new_boolean(false));
	if (json_object_array_length(required))
		add(o, "required", required);
	else
		json_object_put(required);
	return o;
}

void config_print_schema(FILE *f)
{
	json_object *keys = group_schema(config_keys);
	json_object *o = json_object_new_object();

	add(o, "$schema", str("https://json-schema.org/draft/2020-12/schema"));
	add(o, "title", str("coracle run --config"));
	add(o, "description", str("Made by `coracle help --schema`; see docs/user-guide.md."));
	json_object_object_foreach (keys, name, v)
		add(o, name, json_object_get(v));
	json_object_put(keys);
	fprintf(f, "%s\n",
		json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY |
							  JSON_C_TO_STRING_SPACED |
							  JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
}
