/*
 * json.h - JSON texts read whole and looked into
 */
#ifndef K8S_SHIM_JSON_H
#define K8S_SHIM_JSON_H

#include <json-c/json.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* @what names the text in messages. The whole of it must be one value. NULL on error. */
struct json_object *json_parse(const char *text, size_t len, const char *what, struct err *err);

/* At most @max bytes of a regular file; *len without the NUL that follows. NULL on error. */
char *json_read_file(const char *path, size_t max, size_t *len, struct err *err);

/*
 * The value at a path of member names, NULL-terminated, or NULL where there is none. Names that lead
 * through something that is not an object lead nowhere.
 */
struct json_object *json_at(struct json_object *o, ...) __attribute__((sentinel));

/* NULL where @o is NULL or no string, or has a NUL in it, which no path or name can have. */
const char *json_text(struct json_object *o);
/* 0 where it is NULL, no integer, or negative. */
uint64_t json_u64(struct json_object *o);

#endif
