/*
 * jsonrpc.h - one JSON-RPC 2.0 message in, one answer out
 *
 * https://www.jsonrpc.org/specification. Knows neither sockets nor machines. @text is hostile: its
 * nesting is limited here, its length by the caller.
 */
#ifndef VMM_JSONRPC_H
#define VMM_JSONRPC_H

#include <json-c/json.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define JSONRPC_PARSE_ERROR      -32700
#define JSONRPC_INVALID_REQUEST  -32600
#define JSONRPC_METHOD_NOT_FOUND -32601
#define JSONRPC_INVALID_PARAMS   -32602
#define JSONRPC_INTERNAL_ERROR   -32603

#define JSONRPC_DEPTH_MAX 16
#define JSONRPC_BATCH_MAX 64 /* a short message must not ask for an answer without end */

struct jsonrpc_method {
	const char *name;
	/*
	 * 0 with *@result set, or an error code with @err's message. @params: NULL, an object or an
	 * array; borrowed.
	 */
	int (*fn)(void *opaque, struct json_object *params, struct json_object **result,
		  struct err *err);
};

/*
 * Answer @text, which need not end in NUL. @methods ends with a NULL name, whose function, if there is
 * one, answers for all others. NULL: there is nothing to answer, it held notifications only.
 */
struct json_object *jsonrpc_answer(const struct jsonrpc_method *methods, void *opaque,
				   const char *text, size_t len);

/* {"jsonrpc":"2.0","method":@method,"params":...}; takes a reference to @params (NULL: empty). */
struct json_object *jsonrpc_notification(const char *method, struct json_object *params);

/* An error answer; takes @id, NULL is null. */
struct json_object *jsonrpc_error(struct json_object *id, int code, const char *message);

/* For methods that take none: 0, or JSONRPC_INVALID_PARAMS naming the first. */
int jsonrpc_no_params(struct json_object *params, struct err *err);

struct jsonrpc_number {
	const char *name;
	uint64_t min, max;
	uint64_t *to; /* left alone if it is not given */
};

/*
 * For methods that take whole numbers: members of @params into @all, ended by a NULL name. 0, or
 * JSONRPC_INVALID_PARAMS naming the first that is not in it or out of range.
 */
int jsonrpc_numbers(struct json_object *params, const struct jsonrpc_number *all, struct err *err);

/* A JSON string of bytes that may not be UTF-8 (paths): then other bytes than ASCII become '?'. */
struct json_object *jsonrpc_string(const char *text);

/* One line for the wire, without the newline; @len set; lives as long as @o. NULL: no memory. */
const char *jsonrpc_text(struct json_object *o, size_t *len);

#endif
