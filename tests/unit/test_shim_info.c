/*
 * test_shim_info.c - what the shim says of itself, and what it makes of the options it is given
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fd.h"
#include "k8s-shim/json.h"
#include "k8s-shim/proto/info.pb-c.h"
#include "k8s-shim/proto/task.pb-c.h"
#include "k8s-shim/shim.h"

/* The answer to @len bytes of options; NULL where there is none, with why in @err. */
static Pb__RuntimeInfo *ask(const uint8_t *options, size_t len, struct err *err)
{
	cleanup_fd int in = memfd_create("in", MFD_CLOEXEC);
	cleanup_fd int out = memfd_create("out", MFD_CLOEXEC);
	uint8_t bytes[4096];

	memset(err, 0, sizeof(*err));
	assert_int_equal(fd_write_all(in, options, len), 0);
	lseek(in, 0, SEEK_SET);
	int status = shim_info(in, out, err);
	ssize_t n = pread(out, bytes, sizeof(bytes), 0);

	assert_int_equal(status, err->code ? 1 : 0);
	assert_int_equal(n > 0, !err->code);
	return err->code ? NULL : pb__runtime_info__unpack(NULL, (size_t)n, bytes);
}

static void test_features(void **state)
{
	struct err err = { 0 };
	Pb__RuntimeInfo *info = ask(NULL, 0, &err);

	assert_non_null(info);
	assert_string_equal(info->name, "io.containerd.coracle.v2");
	assert_string_equal(info->version->version, CORACLE_VERSION);
	assert_null(info->options);
	assert_string_equal(info->features->type_url,
			    "types.containerd.io/opencontainers/runtime-spec/1/features/Features");
	struct json_object *f = json_parse((const char *)info->features->value.data,
					   info->features->value.len, "features", &err);

	assert_non_null(f);
	assert_string_equal(json_text(json_at(f, "ociVersionMin", NULL)), "1.0.0");
	/* containerd looks for these without a look at what is around them. */
	assert_true(json_object_is_type(json_at(f, "linux", NULL), json_type_object));
	assert_null(strstr(json_object_to_json_string(json_at(f, "linux", "namespaces", NULL)),
			   "user"));
	assert_non_null(
		strstr(json_object_to_json_string(json_at(f, "mountOptions", NULL)), "\"rro\""));
	json_object_put(f);
	pb__runtime_info__free_unpacked(info, NULL);
}

static void test_options_come_back(void **state)
{
	Pb__Any any = PB__ANY__INIT;
	uint8_t value[] = { 0x12, 2, '/', 'x' }, bytes[256];
	struct err err;

	any.type_url = (char *)"runtimeoptions.v1.Options";
	any.value = (ProtobufCBinaryData){ .len = sizeof(value), .data = value };
	Pb__RuntimeInfo *info = ask(bytes, pb__any__pack(&any, bytes), &err);

	assert_non_null(info);
	assert_string_equal(info->options->type_url, any.type_url);
	assert_int_equal(info->options->value.len, sizeof(value));
	assert_memory_equal(info->options->value.data, value, sizeof(value));
	pb__runtime_info__free_unpacked(info, NULL);
}

static void test_options_that_are_none(void **state)
{
	const size_t much = (1u << 20) + 1;
	cleanup_free uint8_t *zeroes = calloc(1, much);
	struct err err;

	assert_null(ask((const uint8_t *)"\xff\xff", 2, &err));
	assert_string_equal(err.msg, "standard input has no options of a runtime");
	assert_null(ask(zeroes, much, &err));
	assert_string_equal(err.msg, "the runtime's options on standard input are too long");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_features),
		cmocka_unit_test(test_options_come_back),
		cmocka_unit_test(test_options_that_are_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
