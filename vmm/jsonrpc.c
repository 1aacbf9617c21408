/*
 * jsonrpc.c - one JSON-RPC 2.0 message in, one answer out
 *
 * Where the specification leaves a choice: an id is echoed if one could be made out, even where the
 * rest is no request; an id that is a fraction is echoed as it was written; members we do not know
 * are ignored. json-c makes integers beyond 64 bits the nearest it has; so that no id comes back
 * changed, those two are refused.
 *
 * What json-c reads even when told to be strict and JSON has not is refused before: names in single
 * quotes, NaN and Infinity, control characters within strings, bytes after a NUL.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "vmm/json_util.h"
#include "vmm/jsonrpc.h"

#define NAME_SHOWN 64

/* ---- text ---- */

/* Bytes of the UTF-8 sequence at @s (RFC 3629), 0 if there is none. A NUL ends the text. */
static unsigned utf8_sequence(const unsigned char *s)
{
	uint32_t c = s[0];
	unsigned n = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;

	if (n < 2)
		return n;
	c &= 0x7fu >> n;
	for (unsigned i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	bool surrogate = c >= 0xd800 && c < 0xe000;

	return surrogate || (n == 3 && c < 0x800) || (n == 4 && c < 0x10000) || c > 0x10ffff ? 0 :
											       n;
}

static bool is_utf8(const char *text)
{
	const unsigned char *s = (const unsigned char *)text;

	while (*s) {
		unsigned n = utf8_sequence(s);

		if (!n)
			return false;
		s += n;
	}
	return true;
}

struct json_object *jsonrpc_string(const char *text)
{
	if (is_utf8(text))
		return json_object_new_string(text);
	cleanup_free char *copy = strdup(text);

	if (!copy)
		return NULL;
	for (char *c = copy; *c; c++)
		if (*c & 0x80)
			*c = '?';
	return json_object_new_string(copy);
}

const char *jsonrpc_text(struct json_object *o, size_t *len)
{
	return json_object_to_json_string_length(
		o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, len);
}

/* A client's string for a message: short, printable. */
static const char *shown(json_object *o, char *buf)
{
	const char *s = json_object_get_string(o);
	size_t n = (size_t)json_object_get_string_len(o), i;

	for (i = 0; i < n && i < NAME_SHOWN - 1; i++)
		buf[i] = s[i] < 0x20 || s[i] > 0x7e ? '?' : s[i];
	buf[i] = '\0';
	return buf;
}

/* ---- answers ---- */

static struct json_object *message(void)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "jsonrpc", json_object_new_string("2.0"));
	return o;
}

struct json_object *jsonrpc_error(struct json_object *id, int code, const char *text)
{
	struct json_object *o = message(), *e = json_object_new_object();

	json_object_object_add(e, "code", json_object_new_int(code));
	json_object_object_add(e, "message", jsonrpc_string(text));
	json_object_object_add(o, "error", e);
	json_object_object_add(o, "id", id);
	return o;
}

struct json_object *jsonrpc_notification(const char *method, struct json_object *params)
{
	struct json_object *o = message();

	json_object_object_add(o, "method", json_object_new_string(method));
	json_object_object_add(o, "params",
			       params ? json_object_get(params) : json_object_new_object());
	return o;
}

static struct json_object *success(struct json_object *id, struct json_object *result)
{
	struct json_object *o = message();

	json_object_object_add(o, "result", result);
	json_object_object_add(o, "id", id);
	return o;
}

/* ---- requests ---- */

int jsonrpc_no_params(struct json_object *params, struct err *err)
{
	char buf[NAME_SHOWN];

	if (json_object_is_type(params, json_type_array) && json_object_array_length(params)) {
		err_set(err, EINVAL, "this method takes no parameters");
		return JSONRPC_INVALID_PARAMS;
	}
	if (!json_object_is_type(params, json_type_object) || !json_object_object_length(params))
		return 0;
	json_object_object_foreach (params, name, value) {
		cleanup_json json_object *o = json_object_new_string(name);

		(void)value;
		err_set(err, EINVAL, "this method takes no parameter %s", shown(o, buf));
		break;
	}
	return JSONRPC_INVALID_PARAMS;
}

static int bad_number(struct err *err, const char *name, const struct jsonrpc_number *n)
{
	if (n)
		err_set(err, EINVAL, "%s is a whole number from %llu to %llu", name,
			(unsigned long long)n->min, (unsigned long long)n->max);
	else
		err_set(err, EINVAL, "this method takes no parameter %.64s", name);
	return JSONRPC_INVALID_PARAMS;
}

int jsonrpc_numbers(struct json_object *params, const struct jsonrpc_number *all, struct err *err)
{
	if (!json_object_is_type(params, json_type_object))
		return jsonrpc_no_params(params, err);
	json_object_object_foreach (params, name, value) {
		const struct jsonrpc_number *n = all;

		while (n->name && strcmp(n->name, name))
			n++;
		if (!n->name)
			return bad_number(err, name, NULL);
		if (!json_object_is_type(value, json_type_int) || json_object_get_int64(value) < 0)
			return bad_number(err, name, n);
		*n->to = json_object_get_uint64(value);
		if (*n->to < n->min || *n->to > n->max)
			return bad_number(err, name, n);
	}
	return 0;
}

static bool id_is_valid(json_object *id)
{
	switch (json_object_get_type(id)) {
	case json_type_null:
	case json_type_string:
		return true;
	case json_type_int:
		return json_object_get_uint64(id) != UINT64_MAX &&
		       json_object_get_int64(id) != INT64_MIN;
	case json_type_double:
		return isfinite(json_object_get_double(id));
	default:
		return false;
	}
}

static bool string_is(json_object *o, const char *text)
{
	return json_object_is_type(o, json_type_string) &&
	       (size_t)json_object_get_string_len(o) == strlen(text) &&
	       !memcmp(json_object_get_string(o), text, strlen(text));
}

/* What is wrong with @o as a request, or NULL. */
static const char *invalid(json_object *o, json_object *method, json_object *params,
			   bool has_params)
{
	if (!string_is(json_object_object_get(o, "jsonrpc"), "2.0"))
		return "\"jsonrpc\" must be \"2.0\"";
	if (!json_object_is_type(method, json_type_string))
		return "\"method\" must be a string";
	if (has_params && !json_object_is_type(params, json_type_object) &&
	    !json_object_is_type(params, json_type_array))
		return "\"params\" must be an object or an array";
	return NULL;
}

static struct json_object *call(const struct jsonrpc_method *m, void *opaque, json_object *method,
				json_object *params, json_object *id)
{
	struct json_object *result = NULL;
	struct err err = { 0 };
	char buf[NAME_SHOWN];
	int code = JSONRPC_METHOD_NOT_FOUND;

	while (m->name && !string_is(method, m->name))
		m++;
	if (m->fn)
		code = m->fn(opaque, params, &result, &err);
	else
		err_set(&err, ENOSYS, "there is no method %s", shown(method, buf));
	return code ? jsonrpc_error(id, code, err.msg) : success(id, result);
}

/* NULL: a notification. */
static struct json_object *answer_one(const struct jsonrpc_method *methods, void *opaque,
				      json_object *o)
{
	json_object *id = NULL, *method = NULL, *params = NULL;
	const char *wrong;

	if (!json_object_is_type(o, json_type_object))
		return jsonrpc_error(NULL, JSONRPC_INVALID_REQUEST, "a request is an object");
	bool has_id = json_object_object_get_ex(o, "id", &id);

	if (!id_is_valid(id))
		return jsonrpc_error(NULL, JSONRPC_INVALID_REQUEST,
				     "\"id\" must be a string, a number or null");
	bool has_params = json_object_object_get_ex(o, "params", &params);

	json_object_object_get_ex(o, "method", &method);
	wrong = invalid(o, method, params, has_params);
	if (wrong)
		return jsonrpc_error(json_object_get(id), JSONRPC_INVALID_REQUEST, wrong);
	struct json_object *answer = call(methods, opaque, method, params, json_object_get(id));

	if (has_id)
		return answer;
	json_object_put(answer);
	return NULL;
}

static struct json_object *answer_batch(const struct jsonrpc_method *methods, void *opaque,
					json_object *batch)
{
	size_t n = json_object_array_length(batch);

	if (!n)
		return jsonrpc_error(NULL, JSONRPC_INVALID_REQUEST, "an empty batch");
	if (n > JSONRPC_BATCH_MAX)
		return jsonrpc_error(NULL, JSONRPC_INVALID_REQUEST,
				     "a batch has at most 64 requests");
	cleanup_json json_object *all = json_object_new_array();

	for (size_t i = 0; i < n; i++) {
		json_object *o = json_object_array_get_idx(batch, i);
		struct json_object *a = answer_one(methods, opaque, o);

		if (a)
			json_object_array_add(all, a);
	}
	return json_object_array_length(all) ? json_object_get(all) : NULL;
}

static bool is_plain(const char *text, size_t len)
{
	bool in_string = false;

	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (!c || (in_string && c < 0x20))
			return false;
		if (c == '"')
			in_string = !in_string;
		else if (in_string && c == '\\')
			i++;
		else if (!in_string && (c == '\'' || c == 'N' || c == 'I'))
			return false;
	}
	return true;
}

/* *@why: what to tell the sender if NULL is returned and *@ok is false; JSON null is NULL, too. */
static json_object *parse(const char *text, size_t len, bool *ok, const char **why)
{
	cleanup_tokener json_tokener *t = json_tokener_new_ex(JSONRPC_DEPTH_MAX);
	json_object *o;

	*ok = false;
	*why = "not JSON";
	if (!t || !is_plain(text, len))
		return NULL;
	json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	o = json_tokener_parse_ex(t, text, (int)len);
	/* Only the end of the text tells that a number is complete. */
	if (json_tokener_get_error(t) == json_tokener_continue)
		o = json_tokener_parse_ex(t, "", 1);
	*ok = json_tokener_get_error(t) == json_tokener_success;
	if (!*ok)
		*why = json_tokener_get_error(t) == json_tokener_continue ?
			       "not JSON: ends too early" :
			       json_tokener_error_desc(json_tokener_get_error(t));
	return o;
}

struct json_object *jsonrpc_answer(const struct jsonrpc_method *methods, void *opaque,
				   const char *text, size_t len)
{
	const char *why;
	bool ok;
	cleanup_json json_object *o = parse(text, len, &ok, &why);

	if (!ok)
		return jsonrpc_error(NULL, JSONRPC_PARSE_ERROR, why);
	if (json_object_is_type(o, json_type_array))
		return answer_batch(methods, opaque, o);
	return answer_one(methods, opaque, o);
}
