/*
 * last_signal.h - signals that end the machine, heard whatever the main loop is doing
 */
#ifndef VMM_LAST_SIGNAL_H
#define VMM_LAST_SIGNAL_H

#include "base/err.h"
#include "base/loop.h"

struct last_signal;

/*
 * SIGTERM, SIGINT and SIGHUP become on_signal(opaque, number) on @main's thread, which may take its time over
 * the first. After a second the process is gone within seconds, after a third at once, with status 128 + number.
 * Before any other thread. NULL on error.
 */
struct last_signal *last_signal_new(struct loop *main, void (*on_signal)(void *opaque, int sig),
				    void *opaque, struct err *err);
void last_signal_free(struct last_signal *s); /* NULL is fine; @main does not run any more */

/* Sockets and links that are ours by now, removed when the end is that one. NULL: none. Copied. Once. */
void last_signal_removes(struct last_signal *s, const char *const *paths, unsigned n);

#endif
