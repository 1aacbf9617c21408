/*
 * test_jsonrpc.c - JSON-RPC 2.0 as its specification has it, its examples among them
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/jsonrpc.h"

static int subtract(void *opaque, struct json_object *params, struct json_object **result,
		    struct err *err)
{
	struct json_object *a = NULL, *b = NULL;

	++*(int *)opaque;
	if (json_object_is_type(params, json_type_array)) {
		a = json_object_array_get_idx(params, 0);
		b = json_object_array_get_idx(params, 1);
	} else if (params) {
		json_object_object_get_ex(params, "minuend", &a);
		json_object_object_get_ex(params, "subtrahend", &b);
	}
	if (!a || !b) {
		err_set(err, EINVAL, "two numbers");
		return JSONRPC_INVALID_PARAMS;
	}
	*result = json_object_new_int(json_object_get_int(a) - json_object_get_int(b));
	return 0;
}

static int nothing(void *opaque, struct json_object *params, struct json_object **result,
		   struct err *err)
{
	return jsonrpc_no_params(params, err);
}

static const struct jsonrpc_method methods[] = { { "subtract", subtract },
						 { "nothing", nothing },
						 { NULL, NULL } };

/* The answer's text in @buf, "" for none; returns how often subtract was called. */
static int ask_bytes(const char *text, size_t len, char *buf, size_t room)
{
	int calls = 0;
	struct json_object *o = jsonrpc_answer(methods, &calls, text, len);
	size_t n = 0;

	buf[0] = '\0';
	if (o)
		snprintf(buf, room, "%s", jsonrpc_text(o, &n));
	assert_null(memchr(buf, '\n', n < room ? n : room - 1));
	json_object_put(o);
	return calls;
}

static void check(const char *request, const char *answer)
{
	char buf[4096];

	ask_bytes(request, strlen(request), buf, sizeof(buf));
	assert_string_equal(buf, answer);
}

static void check_error(const char *request, int code, const char *id)
{
	char buf[4096], start[64], end[256];

	ask_bytes(request, strlen(request), buf, sizeof(buf));
	snprintf(start, sizeof(start), "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":%d,\"message\":\"",
		 code);
	snprintf(end, sizeof(end), "\"},\"id\":%s}", id);
	if (strncmp(buf, start, strlen(start)) || strlen(buf) < strlen(end) ||
	    strcmp(buf + strlen(buf) - strlen(end), end))
		fail_msg("%s: %s, not %s...%s", request, buf, start, end);
}

static void test_calls(void **state)
{
	check("{\"jsonrpc\": \"2.0\", \"method\": \"subtract\", \"params\": [42, 23], \"id\": 1}",
	      "{\"jsonrpc\":\"2.0\",\"result\":19,\"id\":1}");
	check("{\"jsonrpc\": \"2.0\", \"method\": \"subtract\", \"params\": "
	      "{\"subtrahend\": 23, \"minuend\": 42}, \"id\": 3}",
	      "{\"jsonrpc\":\"2.0\",\"result\":19,\"id\":3}");
	check("{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":7}",
	      "{\"jsonrpc\":\"2.0\",\"result\":null,\"id\":7}");
	check(" {\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"params\":{},\"id\":7} \r\t",
	      "{\"jsonrpc\":\"2.0\",\"result\":null,\"id\":7}");
}

static void test_ids(void **state)
{
	static const char *const ids[] = { "0",    "-1",   "1.5",          "9223372036854775807",
					   "\"\"", "null", "\"a/b\\\"c\"", "\"\\u0000x\"" };
	static const char *const bad[] = { "[]", "{}", "true", "[1]" };
	char request[256], answer[256];

	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		snprintf(request, sizeof(request),
			 "{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":%s}", ids[i]);
		snprintf(answer, sizeof(answer), "{\"jsonrpc\":\"2.0\",\"result\":null,\"id\":%s}",
			 ids[i]);
		check(request, answer);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(request, sizeof(request),
			 "{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":%s}", bad[i]);
		check_error(request, JSONRPC_INVALID_REQUEST, "null");
	}
	/* never changed on the way: refused */
	check_error("{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":"
		    "123456789012345678901234567890}",
		    JSONRPC_INVALID_REQUEST, "null");
	check_error("{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":-9999999999999999999}",
		    JSONRPC_INVALID_REQUEST, "null");
	char buf[256];
	const char *nan = "{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"id\":NaN}";

	ask_bytes(nan, strlen(nan), buf, sizeof(buf));
	assert_non_null(strstr(buf, "-32700"));
}

static void test_notifications(void **state)
{
	char buf[256];
	const char *note = "{\"jsonrpc\":\"2.0\",\"method\":\"subtract\",\"params\":[1,2]}";

	assert_int_equal(ask_bytes(note, strlen(note), buf, sizeof(buf)), 1);
	assert_string_equal(buf, "");
	check("{\"jsonrpc\":\"2.0\",\"method\":\"foobar\"}", "");
	check("{\"jsonrpc\":\"2.0\",\"method\":\"subtract\"}", ""); /* nor are its errors told */
}

static void test_errors(void **state)
{
	check_error("{\"jsonrpc\": \"2.0\", \"method\": \"foobar\", \"id\": \"1\"}",
		    JSONRPC_METHOD_NOT_FOUND, "\"1\"");
	check_error("{\"jsonrpc\": \"2.0\", \"method\": \"foobar, \"params\": \"bar\", \"baz]",
		    JSONRPC_PARSE_ERROR, "null");
	check_error("{\"jsonrpc\": \"2.0\", \"method\": 1, \"params\": \"bar\"}",
		    JSONRPC_INVALID_REQUEST, "null");
	check_error("{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"params\":\"bar\",\"id\":1}",
		    JSONRPC_INVALID_REQUEST, "1");
	check_error("{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"params\":null,\"id\":1}",
		    JSONRPC_INVALID_REQUEST, "1");
	check_error("{\"jsonrpc\":\"1.0\",\"method\":\"nothing\",\"id\":1}",
		    JSONRPC_INVALID_REQUEST, "1");
	check_error("{\"jsonrpc\":2.0,\"method\":\"nothing\",\"id\":1}", JSONRPC_INVALID_REQUEST,
		    "1");
	check_error("{\"method\":\"nothing\",\"id\":1}", JSONRPC_INVALID_REQUEST, "1");
	check_error("{}", JSONRPC_INVALID_REQUEST, "null");
	check_error("{\"jsonrpc\":\"2.0\",\"method\":\"nothing\\u0000\",\"id\":1}",
		    JSONRPC_METHOD_NOT_FOUND, "1");
	check_error("{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"params\":[1],\"id\":1}",
		    JSONRPC_INVALID_PARAMS, "1");
	check_error(
		"{\"jsonrpc\":\"2.0\",\"method\":\"nothing\",\"params\":{\"f\\u0001\":1},\"id\":1}",
		JSONRPC_INVALID_PARAMS, "1");
	check_error("{\"jsonrpc\":\"2.0\",\"method\":\"subtract\",\"id\":1}",
		    JSONRPC_INVALID_PARAMS, "1");
}

static void test_not_json(void **state)
{
	static const char *const bad[] = {
		"",         "x",
		"{",        "}",
		"[",        "{\"a\":}",
		"{} {}",    "'a'",
		"{'a':1}",  "nul",
		"\"abc",    "[1,]",
		"{,}",      "\"a\nb\"",
		"\"\xff\"", "{\"jsonrpc\":\"2.0\",\"method\":\"\xc3\",\"id\":1}"
	};
	static const char *const scalar[] = { "1", "-1", "1.5", "\"a\"", "true", "null", " null " };
	char buf[256];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		check_error(bad[i], JSONRPC_PARSE_ERROR, "null");
	for (size_t i = 0; i < sizeof(scalar) / sizeof(scalar[0]); i++)
		check_error(scalar[i], JSONRPC_INVALID_REQUEST, "null");
	assert_int_equal(ask_bytes("{}\0{}", 5, buf, sizeof(buf)), 0);
	assert_non_null(strstr(buf, "-32700"));
}

static void test_batch(void **state)
{
	check("[]", "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32600,\"message\":\"an empty "
		    "batch\"},\"id\":null}");
	check("[1,{\"jsonrpc\":\"2.0\",\"method\":\"subtract\",\"params\":[5,2],\"id\":\"a\"},"
	      "{\"jsonrpc\":\"2.0\",\"method\":\"nothing\"}]",
	      "[{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32600,\"message\":\"a request is an "
	      "object\"},\"id\":null},{\"jsonrpc\":\"2.0\",\"result\":3,\"id\":\"a\"}]");
	check("[{\"jsonrpc\":\"2.0\",\"method\":\"nothing\"},{\"jsonrpc\":\"2.0\",\"method\":\"x\"}"
	      "]",
	      "");
	check("[[]]", "[{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32600,\"message\":\"a request is "
		      "an object\"},\"id\":null}]");
	check_error("[1,{\"jsonrpc\": \"2.0\", \"method\"]", JSONRPC_PARSE_ERROR, "null");

	char request[512] = "[", buf[1024];

	for (int i = 0; i < JSONRPC_BATCH_MAX; i++)
		strcat(request, "1,");
	strcat(request, "1]");
	ask_bytes(request, strlen(request), buf, sizeof(buf));
	assert_memory_equal(buf, "{\"jsonrpc\"", 10); /* one error, not 65 */
}

static void test_depth(void **state)
{
	enum { DEEP = 100000 };
	char *text = malloc(DEEP), buf[256];

	memset(text, '[', DEEP);
	ask_bytes(text, DEEP, buf, sizeof(buf));
	assert_non_null(strstr(buf, "-32700"));
	free(text);
}

/* Names from outside never make an answer that is no JSON or holds what a terminal obeys. */
static void test_names_shown(void **state)
{
	char request[512], buf[512];
	char name[200];

	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	snprintf(request, sizeof(request),
		 "{\"jsonrpc\":\"2.0\",\"method\":\"\xc3\xa4\\u001b[2J%s\",\"id\":1}", name);
	ask_bytes(request, strlen(request), buf, sizeof(buf));
	assert_non_null(strstr(buf, "there is no method ???[2Jnnn"));
	assert_true(strlen(buf) < 200);
}

static void test_string(void **state)
{
	static const struct {
		const char *in, *out;
	} t[] = {
		{ "plain", "\"plain\"" },
		{ "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80",
		  "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"" },
		{ "a\xff", "\"a?\"" },
		{ "\xc3", "\"?\"" },
		{ "\xc0\x80", "\"??\"" },           /* overlong */
		{ "\xe0\x80\x80", "\"???\"" },      /* overlong */
		{ "\xed\xa0\x80", "\"???\"" },      /* surrogate */
		{ "\xf4\x90\x80\x80", "\"????\"" }, /* beyond Unicode */
		{ "/dev/pts/1", "\"/dev/pts/1\"" },
	};
	size_t len;

	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct json_object *o = jsonrpc_string(t[i].in);

		assert_string_equal(jsonrpc_text(o, &len), t[i].out);
		json_object_put(o);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_calls),         cmocka_unit_test(test_ids),
		cmocka_unit_test(test_notifications), cmocka_unit_test(test_errors),
		cmocka_unit_test(test_not_json),      cmocka_unit_test(test_batch),
		cmocka_unit_test(test_depth),         cmocka_unit_test(test_names_shown),
		cmocka_unit_test(test_string),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
