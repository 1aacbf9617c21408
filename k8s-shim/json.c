/*
 * json.c - JSON texts read whole and looked into
 *
 * json-c takes a text's first value and leaves the rest, and turns a string with an escaped NUL into one
 * that ends there for everybody who uses it as a C string. Both are refused here.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/json.h"

#define DEPTH 32

struct json_object *json_parse(const char *text, size_t len, const char *what, struct err *err)
{
	struct json_tokener *t = json_tokener_new_ex(DEPTH);
	struct json_object *o;
	enum json_tokener_error e;

	if (!t || len > INT32_MAX) {
		err_set(err, ENOMEM, "%s: out of memory", what);
		json_tokener_free(t);
		return NULL;
	}
	o = json_tokener_parse_ex(t, text, (int)len);
	e = json_tokener_get_error(t);
	size_t end = json_tokener_get_parse_end(t);

	if (e == json_tokener_continue) { /* a number at the very end is known by what follows */
		o = json_tokener_parse_ex(t, "\n", 1);
		e = json_tokener_get_error(t);
		end = len;
	}
	json_tokener_free(t);
	if (e != json_tokener_success) {
		err_set(err, EINVAL, "%s is not valid JSON: %s at byte %zu", what,
			e == json_tokener_continue ? "it ends too soon" :
						     json_tokener_error_desc(e),
			end);
		json_object_put(o);
		return NULL;
	}
	for (; end < len; end++)
		if (!memchr(" \t\r\n", text[end], 4)) {
			err_set(err, EINVAL, "%s: something follows its end at byte %zu", what,
				end);
			json_object_put(o);
			return NULL;
		}
	if (!o)
		err_set(err, EINVAL, "%s is null", what);
	return o;
}

char *json_read_file(const char *path, size_t max, size_t *len, struct err *err)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;

	if (fd < 0 || fstat(fd, &st)) {
		err_set_sys(err, errno, "cannot open %s", path);
		return NULL;
	}
	if (!S_ISREG(st.st_mode) || st.st_size < 0 || (uint64_t)st.st_size > max) {
		err_set(err, EINVAL, "%s is no regular file of at most %zu bytes", path, max);
		return NULL;
	}
	char *text = malloc((size_t)st.st_size + 1);

	if (!text) {
		err_set(err, ENOMEM, "%s: out of memory", path);
		return NULL;
	}
	int rc = fd_pread_all(fd, text, (size_t)st.st_size, 0);

	if (rc) {
		err_set_sys(err, rc, "cannot read %s", path);
		free(text);
		return NULL;
	}
	text[st.st_size] = '\0';
	*len = (size_t)st.st_size;
	return text;
}

struct json_object *json_at(struct json_object *o, ...)
{
	const char *name;
	va_list ap;

	va_start(ap, o);
	while (o && (name = va_arg(ap, const char *)))
		if (!json_object_is_type(o, json_type_object) ||
		    !json_object_object_get_ex(o, name, &o))
			o = NULL;
	va_end(ap);
	return o;
}

const char *json_text(struct json_object *o)
{
	if (!json_object_is_type(o, json_type_string))
		return NULL;
	const char *s = json_object_get_string(o);

	return strlen(s) == (size_t)json_object_get_string_len(o) ? s : NULL;
}

uint64_t json_u64(struct json_object *o)
{
	if (!json_object_is_type(o, json_type_int))
		return 0;
	if (json_object_get_int64(o) < 0)
		return 0;
	return json_object_get_uint64(o);
}
