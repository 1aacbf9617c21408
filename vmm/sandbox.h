/*
 * sandbox.h - what the process may still do once the guest runs
 */
#ifndef VMM_SANDBOX_H
#define VMM_SANDBOX_H

#include "base/err.h"

/* Before the first thread: no_new_privs, and the C library kept from opening files later on. */
void sandbox_prepare(void);

/*
 * Give up all capabilities and every path, then every system call that is not on the list in sandbox_gen.c,
 * in every thread, for good. @sockets: @n paths, NULL where there is none; files in their directories can
 * still be removed. In this order, when everything is open; what makes threads that are not ours (of the
 * kernel's, as vhost-net does) comes between the two. Then the guest's first instruction. 0 or -errno.
 */
int sandbox_drop(const char *const *sockets, unsigned n, struct err *err);
int sandbox_close(struct err *err);

/* A step of each alone, which sanitizer builds leave out; for tests. */
int sandbox_paths(const char *const *sockets, unsigned n, struct err *err);
int sandbox_filter(struct err *err);

#endif
