/*
 * sandbox.h - what the process may still do once the guest runs
 */
#ifndef VMM_SANDBOX_H
#define VMM_SANDBOX_H

#include "base/err.h"

/* Before the first thread: keep the C library from opening files later on. */
void sandbox_prepare(void);

/*
 * Give up all capabilities and every system call that is not on the list in sandbox.c, in every
 * thread, for good. Call when everything is open and before the guest's first instruction. 0 or
 * -errno.
 */
int sandbox_enter(struct err *err);

/* Its last step alone, which sanitizer builds leave out; for tests. */
int sandbox_filter(struct err *err);

#endif
