/*
 * config_json.c - the configuration as JSON, both ways
 *
 * Every scalar becomes the text a user would have typed and goes through the command line's setter,
 * so both accept and refuse the same values with the same words. json-c keeps the last of two equal
 * keys without a word; find_duplicate() looks at the text first, since a disk that silently lost
 * "read-only": true is worse than an error.
 */
#include "vmm/config_keys.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "vmm/json_util.h"

#define DEPTH_MAX 8  /* the schema needs 3 */
#define KEYS_MAX  64 /* in one object; more than any table has */
#define PLACE_MAX 128

/* ---- duplicated keys: a scan of text that json-c has accepted ---- */

struct span {
	const char *at;
	size_t len;
};

/* @s stands on a quote; returns the closing one. */
static const char *string_end(const char *s, const char *end)
{
	for (s++; s < end && *s != '"'; s++)
		if (*s == '\\')
			s++;
	return s;
}

static int note_key(struct span *keys, unsigned *n, struct span key, struct err *err)
{
	char text[CONFIG_SHOWN_MAX], shown[CONFIG_SHOWN_MAX];

	snprintf(text, sizeof(text), "%.*s", (int)key.len, key.at);
	if (memchr(key.at, '\\', key.len))
		return err_set(err, EINVAL, "the key %s has an escape: write it in plain letters",
			       config_shown(text, shown));
	for (unsigned i = 0; i < *n; i++)
		if (keys[i].len == key.len && !memcmp(keys[i].at, key.at, key.len))
			return err_set(err, EINVAL, "the key %s is given twice in one object",
				       config_shown(text, shown));
	if (*n == KEYS_MAX)
		return err_set(err, EINVAL, "an object has more than %d keys", KEYS_MAX);
	keys[(*n)++] = key;
	return 0;
}

static int find_duplicate(const char *s, const char *end, struct err *err)
{
	struct span keys[DEPTH_MAX + 1][KEYS_MAX], last = { NULL, 0 };
	unsigned n[DEPTH_MAX + 1] = { 0 }, depth = 0;
	int r = 0;

	for (; s < end && !r; s++) {
		if (*s == '"') {
			const char *close = string_end(s, end);

			last = (struct span){ s + 1, (size_t)(close - s - 1) };
			s = close;
		} else if (*s == '{' || *s == '[') {
			BUG_ON(depth == DEPTH_MAX); /* the tokener has refused it */
			n[++depth] = 0;
		} else if (*s == '}' || *s == ']') {
			depth--;
		} else if (*s == ':') {
			r = note_key(keys[depth], &n[depth], last, err);
		}
	}
	return r;
}

/* ---- JSON to configuration ---- */

static const char *type_name(json_object *o)
{
	switch (json_object_get_type(o)) {
	case json_type_null:
		return "null";
	case json_type_boolean:
		return "a boolean";
	case json_type_double:
		return "a fraction";
	case json_type_int:
		return "a number";
	case json_type_object:
		return "an object";
	case json_type_array:
		return "an array";
	case json_type_string:
		return "a string";
	}
	return "?";
}

static bool takes_number(const struct config_key *k)
{
	return k->type == KEY_UINT || k->type == KEY_POW2 || k->type == KEY_FDS ||
	       k->type == KEY_SIZE || k->type == KEY_ADDR;
}

static bool takes_boolean(const struct config_key *k)
{
	return k->type == KEY_BOOL || k->type == KEY_FLAG;
}

/* @o as the text a user would type; NULL if the type is wrong for @k. */
static const char *scalar_text(const struct config_key *k, json_object *o)
{
	switch (json_object_get_type(o)) {
	case json_type_boolean:
		if (takes_boolean(k))
			return json_object_get_boolean(o) ? "on" : "off";
		return NULL;
	case json_type_int:
		return takes_number(k) ? json_object_get_string(o) : NULL;
	case json_type_string:
		return json_object_get_string(o);
	default:
		return NULL;
	}
}

static int set_scalar(const struct config_key *k, void *base, json_object *o, const char *place,
		      struct err *err)
{
	const char *text = scalar_text(k, o);
	char shown[CONFIG_SHOWN_MAX], allowed[256];
	int r;

	if (!text) {
		config_value_allowed(k, allowed, sizeof(allowed));
		return err_set(err, EINVAL, "%s: must be %s, not %s", place, allowed, type_name(o));
	}
	if (json_object_get_type(o) == json_type_string &&
	    strlen(text) != (size_t)json_object_get_string_len(o))
		return err_set(err, EINVAL, "%s: has a NUL character in it", place);
	r = config_value_set(k, base, text, err);
	if (r)
		err_prefix(err, "%s: %s", place, *text ? config_shown(text, shown) : "''");
	return r;
}

static int set_key(const struct config_key *k, struct config *c, void *base, json_object *o,
		   const char *place, struct err *err);

/* Every member of @o into the structure at @base. @place is "" at the top. */
static int set_members(const struct config_key *table, struct config *c, void *base, json_object *o,
		       const char *place, struct err *err)
{
	json_object_object_foreach (o, name, value) {
		const struct config_key *k = config_key_find(table, name, strlen(name));
		char inner[PLACE_MAX], shown[CONFIG_SHOWN_MAX];
		int r;

		if (!k)
			return err_set(err, EINVAL, "%s%sunknown key %s, the nearest is %s", place,
				       *place ? ": " : "", config_shown(name, shown),
				       config_key_nearest(table, name, false)->name);
		if (k->cli_only)
			return err_set(err, EINVAL, "%s is an option of the command line only",
				       name);
		snprintf(inner, sizeof(inner), "%s%s%s", place, *place ? "." : "", name);
		r = set_key(k, c, base, value, inner, err);
		if (r)
			return r;
	}
	return 0;
}

/* An object, or a bare value for the group's first key. */
static int set_group(const struct config_key *k, struct config *c, void *base, json_object *o,
		     const char *place, struct err *err)
{
	if (json_object_is_type(o, json_type_object))
		return set_members(k->sub, c, base, o, place, err);
	return set_scalar(&k->sub[0], base, o, place, err);
}

static int set_list(const struct config_key *k, struct config *c, json_object *o, const char *place,
		    struct err *err)
{
	int r = 0;

	if (!json_object_is_type(o, json_type_array))
		return err_set(err, EINVAL, "%s: must be an array of objects, not %s", place,
			       type_name(o));
	for (size_t i = 0; i < json_object_array_length(o) && !r; i++) {
		void *base = config_list_add(k, c, err);
		char inner[PLACE_MAX];

		snprintf(inner, sizeof(inner), "%.100s[%zu]", place, i);
		if (!base)
			return err_prefix(err, "%s", inner);
		r = set_group(k, c, base, json_object_array_get_idx(o, i), inner, err);
	}
	return r;
}

static int set_key(const struct config_key *k, struct config *c, void *base, json_object *o,
		   const char *place, struct err *err)
{
	if (key_is_list(k))
		return set_list(k, c, o, place, err);
	if (k->type == KEY_GROUP)
		return set_group(k, c, (char *)base + k->offset, o, place, err);
	return set_scalar(k, base, o, place, err);
}

static void line_of(const char *text, size_t at, unsigned *line, unsigned *column)
{
	*line = *column = 1;
	for (size_t i = 0; i < at; i++) {
		++*column;
		if (text[i] == '\n') {
			++*line;
			*column = 1;
		}
	}
}

static int parse(const char *text, size_t len, json_object **o, struct err *err)
{
	cleanup_tokener json_tokener *t = json_tokener_new_ex(DEPTH_MAX);
	enum json_tokener_error e;
	unsigned line, column;

	if (!t)
		return err_set(err, ENOMEM, "out of memory");
	if (len > CONFIG_JSON_MAX)
		return err_set(err, EFBIG, "is too large for a configuration: at most 1M");
	if (memchr(text, '\0', len)) /* json-c would stop there and call the rest nothing */
		return err_set(err, EINVAL, "is not JSON: it has a NUL byte in it");
	json_tokener_set_flags(t, JSON_TOKENER_STRICT);
	*o = json_tokener_parse_ex(t, text, (int)len);
	e = json_tokener_get_error(t);
	if (e == json_tokener_success)
		return 0;
	if (e == json_tokener_continue) /* a bare number too, since more digits might follow */
		return err_set(err, EINVAL, "is not a JSON object in braces, or ends too early");
	line_of(text, json_tokener_get_parse_end(t), &line, &column);
	return err_set(err, EINVAL, "is not JSON at line %u, column %u: %s", line, column,
		       json_tokener_error_desc(e));
}

int config_from_json(struct config *c, const char *text, size_t len, struct err *err)
{
	cleanup_json json_object *o = NULL;
	int r = parse(text, len, &o, err);

	if (!r && !json_object_is_type(o, json_type_object))
		r = err_set(err, EINVAL, "must be an object in braces, not %s", type_name(o));
	if (!r)
		r = find_duplicate(text, text + len, err);
	return r ? r : set_members(config_keys, c, c, o, "", err);
}

/* A whole file; at most CONFIG_JSON_MAX + 1 bytes. */
static int slurp(int fd, char **text, size_t *len, struct err *err)
{
	cleanup_free char *buf = malloc(CONFIG_JSON_MAX + 1);

	if (!buf)
		return err_set(err, ENOMEM, "out of memory");
	ssize_t n = fd_read_to_end(fd, buf, CONFIG_JSON_MAX + 1);

	if (n < 0)
		return err_set_sys(err, (int)n, "cannot be read");
	*len = (size_t)n;
	*text = buf;
	buf = NULL;
	return 0;
}

int config_from_file(struct config *c, const char *path, struct err *err)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	cleanup_free char *text = NULL;
	size_t len = 0;
	int r;

	if (fd < 0)
		return err_set_sys(err, errno, "cannot be opened");
	r = slurp(fd, &text, &len, err);
	return r ? r : config_from_json(c, text, len, err);
}

/* ---- configuration to JSON ---- */

static json_object *value_to_json(const struct config_key *k, const void *base, bool *given)
{
	char text[320]; /* the longest are descriptors: 32 of 8 bytes */

	if (k->type == KEY_STRING || k->type == KEY_FILE) {
		const char *s = config_value_string(k, base);

		*given = s;
		return s ? json_object_new_string(s) : NULL;
	}
	*given = config_value_get(k, base, text, sizeof(text));
	if (!*given)
		return NULL;
	if (takes_boolean(k))
		return json_object_new_boolean(!strcmp(text, "on"));
	if (k->type == KEY_UINT || k->type == KEY_POW2)
		return json_object_new_int64(strtoll(text, NULL, 10));
	return json_object_new_string(text);
}

static json_object *group_to_json(const struct config_key *table, const void *base);

static json_object *list_to_json(const struct config_key *k, const void *base)
{
	json_object *list = json_object_new_array();
	unsigned n;

	memcpy(&n, (const char *)base + k->count_offset, sizeof(n));
	for (unsigned i = 0; i < n && list; i++) {
		json_object *o =
			group_to_json(k->sub, (const char *)base + k->offset + i * k->stride);

		if (!o || json_object_array_add(list, o)) {
			json_object_put(o);
			json_object_put(list);
			return NULL;
		}
	}
	return list;
}

static json_object *group_to_json(const struct config_key *table, const void *base)
{
	json_object *o = json_object_new_object();

	for (const struct config_key *k = table; k->name && o; k++) {
		json_object *v;
		bool given = true;

		if (k->cli_only)
			continue;
		if (key_is_list(k))
			v = list_to_json(k, base);
		else if (k->type == KEY_GROUP)
			v = group_to_json(k->sub, (const char *)base + k->offset);
		else
			v = value_to_json(k, base, &given);
		if (!given)
			continue;
		if (!v || json_object_object_add(o, k->name, v)) {
			json_object_put(v);
			json_object_put(o);
			return NULL;
		}
	}
	return o;
}

char *config_to_json(const struct config *c)
{
	cleanup_json json_object *o = group_to_json(config_keys, c);
	const char *s = o ? json_object_to_json_string_ext(
				    o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
					       JSON_C_TO_STRING_NOSLASHESCAPE) :
			    NULL;

	return s ? strdup(s) : NULL;
}
