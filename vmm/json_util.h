/*
 * json_util.h - json-c, shorter
 */
#ifndef VMM_JSON_UTIL_H
#define VMM_JSON_UTIL_H

#include <json-c/json.h>
#include <stdint.h>

static inline void json_put_object(json_object **o)
{
	json_object_put(*o);
}

static inline void json_free_tokener(json_tokener **t)
{
	if (*t)
		json_tokener_free(*t);
}

#define cleanup_json    __attribute__((cleanup(json_put_object)))
#define cleanup_tokener __attribute__((cleanup(json_free_tokener)))

static inline void json_add_u64(json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_uint64(value));
}

/* Member @key of @o, which may be anything; 0 if it has none. */
static inline uint64_t json_get_u64(json_object *o, const char *key)
{
	json_object *v;

	return json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, key, &v) ?
		       json_object_get_uint64(v) :
		       0;
}

#endif
