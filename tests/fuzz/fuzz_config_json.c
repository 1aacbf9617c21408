/*
 * fuzz_config_json.c - a configuration file from anybody
 *
 * What is accepted must come out of config_to_json() as a file that is accepted again and says the
 * same.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/config.h"

#define CHECK(cond)                       \
	do {                              \
		if (!(cond))              \
			__builtin_trap(); \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The configuration @text means, as JSON; NULL: refused, with a reason. */
static char *read_config(const char *text, size_t len)
{
	struct config c;
	struct err err = { 0 };
	char *out = NULL;

	config_init(&c);
	if (config_from_json(&c, text, len, &err) || config_finish(&c, &err) ||
	    config_check(&c, &err)) {
		CHECK(err.code < 0 && err.msg[0]);
		CHECK(memchr(err.msg, '\0', sizeof(err.msg)));
	} else {
		out = config_to_json(&c);
		CHECK(out);
	}
	config_fini(&c);
	return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *copy = malloc(size ? size : 1), *first, *second;

	memcpy(copy, data, size); /* no NUL behind it */
	first = read_config(copy, size);
	free(copy);
	if (first) {
		second = read_config(first, strlen(first));
		CHECK(second && !strcmp(first, second));
		free(second);
	}
	free(first);
	return 0;
}
