/*
 * console.c - which console a --serial or --console value means
 *
 * Kinds with a path have it behind the first colon, whatever it contains; the others take nothing.
 */
#include <stdbool.h>
#include <string.h>

#include "backends/console_io.h"

static const struct kind {
	const char *name;
	bool takes_path;
	console_open_fn *open;
} kinds[] = {
	{ "stdio", false, console_stdio_new }, { "null", false, console_null_new },
	{ "pty", false, console_pty_new },     { "file", true, console_file_new },
	{ "unix", true, console_unix_new },
};

struct console *console_new(const char *spec, struct loop *loop, const struct console_user *user,
			    struct err *err)
{
	size_t len = strcspn(spec, ":");
	const char *path = spec[len] ? spec + len + 1 : "";

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		const struct kind *k = &kinds[i];

		if (strlen(k->name) != len || memcmp(k->name, spec, len))
			continue;
		if (k->takes_path ? *path : !spec[len])
			return k->open(path, loop, user, err);
		err_set(err, EINVAL,
			k->takes_path ? "console %s: needs a path: %s:PATH" :
					"console %s: %s takes nothing after it",
			spec, k->name);
		return NULL;
	}
	err_set(err, EINVAL,
		"console %.100s: not known; one of stdio, null, pty, file:PATH, unix:PATH", spec);
	return NULL;
}
