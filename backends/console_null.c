/*
 * console_null.c - a console nobody listens to
 */
#include <stdlib.h>

#include "backends/console_io.h"

static void null_write(struct console *c, const void *data, size_t len)
{
}

static void null_poke(struct console *c)
{
}

static void null_free(struct console *c)
{
	free(c);
}

static const struct console_ops ops = {
	.name = "null",
	.write = null_write,
	.poke = null_poke,
	.free = null_free,
};

struct console *console_null_new(const char *arg, struct loop *loop,
				 const struct console_user *user, struct err *err)
{
	struct console *c = malloc(sizeof(*c));

	if (!c) {
		err_set(err, ENOMEM, "out of memory for the console");
		return NULL;
	}
	*c = (struct console){ .ops = &ops, .description = "null" };
	return c;
}
