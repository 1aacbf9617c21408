/*
 * sandbox.h - what the process may still do once the guest runs
 */
#ifndef VMM_SANDBOX_H
#define VMM_SANDBOX_H

#include "base/err.h"

/* Before the first thread: keep the C library from opening files later on. */
void sandbox_prepare(void);

/*
 * Give up all capabilities, every path and every system call that is not on the list in sandbox_gen.c, in
 * every thread, for good. @sockets: @n paths, NULL where there is none; files in their directories can
 * still be removed. Call when everything is open and before the guest's first instruction. 0 or -errno.
 */
int sandbox_enter(const char *const *sockets, unsigned n, struct err *err);

/* Its last steps alone, which sanitizer builds leave out; for tests. */
int sandbox_paths(const char *const *sockets, unsigned n, struct err *err);
int sandbox_filter(struct err *err);

#endif
