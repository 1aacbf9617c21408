/*
 * err.h - an error with its story
 *
 * Every function that can fail because of the host or the configuration takes a struct err last and
 * returns 0 or a negative errno. The message is one sentence for the person who has the problem: it
 * names the option, file or device, and says what to do. Callers add context with err_prefix() on
 * the way up; vmm/main.c prints it and is the only place that exits.
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <errno.h>

#define ERR_MSG_MAX 512

struct err {
	int code; /* negative errno, 0 when unset */
	char msg[ERR_MSG_MAX];
};

/* Set @e (may be NULL) and return the code, made negative. A second set replaces the first. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* As err_set() with ": <strerror(code)>" added. @code may be positive or negative. */
int err_set_sys(struct err *e, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Put "<fmt>: " before the message; returns e->code (-EIO if @e is NULL). */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
