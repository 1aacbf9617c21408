/*
 * err.c - an error with its story
 *
 * Messages are formatted into a buffer of their own and copied over, since callers rewrite an error
 * with its own text as an argument ("...: %s", err->msg). One that is too long ends in "...".
 */
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"

/* What failed must not read as success because nobody set errno. */
static int negative(int code)
{
	if (code == 0 || code == INT_MIN)
		return -EIO;
	return code > 0 ? -code : code;
}

static void format(char *out, const char *fmt, va_list ap)
{
	int n = vsnprintf(out, ERR_MSG_MAX, fmt, ap);

	if (n < 0)
		out[0] = '\0';
	else if (n >= ERR_MSG_MAX)
		memcpy(out + ERR_MSG_MAX - 4, "...", 4);
}

static void append(char *out, const char *sep, const char *text)
{
	size_t len = strlen(out);
	size_t room = ERR_MSG_MAX - len;

	if ((size_t)snprintf(out + len, room, "%s%s", sep, text) >= room)
		memcpy(out + ERR_MSG_MAX - 4, "...", 4);
}

static int set(struct err *e, int code, bool story, const char *fmt, va_list ap)
{
	char msg[ERR_MSG_MAX];

	code = negative(code);
	if (!e)
		return code;
	format(msg, fmt, ap);
	if (story)
		append(msg, ": ",
		       strerror(-code)); /* thread-safe in glibc since 2.32, and in musl */
	e->code = code;
	strcpy(e->msg, msg);
	return code;
}

int err_set(struct err *e, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	code = set(e, code, false, fmt, ap);
	va_end(ap);
	return code;
}

int err_set_sys(struct err *e, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	code = set(e, code, true, fmt, ap);
	va_end(ap);
	return code;
}

int err_prefix(struct err *e, const char *fmt, ...)
{
	char msg[ERR_MSG_MAX];
	va_list ap;

	if (!e)
		return -EIO;
	va_start(ap, fmt);
	format(msg, fmt, ap);
	va_end(ap);
	append(msg, ": ", e->msg);
	strcpy(e->msg, msg);
	return e->code;
}
