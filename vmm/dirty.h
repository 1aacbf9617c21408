/*
 * dirty.h - which guest pages were written since we last looked
 *
 * KVM logs what vCPUs store, guest_memory.c what we store for devices and, in a log it lends out, what
 * the kernel does (vhost-net); a page is dirty if any says so. KVM's log is cleared by hand
 * (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), in pieces, right before the pages are read: the guest is not held
 * up by one large sweep, and a page written after we read it is found by the next look.
 *
 * Pages are 4 KiB, numbered within their region of gmem.
 */
#ifndef VMM_DIRTY_H
#define VMM_DIRTY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct dirty;
struct vm;

/*
 * Start logging, on the main thread. At first every page counts as dirty; those that nobody ever touched,
 * and read as zero, are passed over by dirty_take() all the same until the first dirty_fetch(). NULL on
 * error.
 */
struct dirty *dirty_start(struct vm *vm, struct err *err);
void dirty_stop(struct dirty *d); /* main thread; logging off, frees. NULL is fine */

/*
 * Add what was written since the last call to the set. With vCPUs stopped and devices quiet nothing is
 * missed. 0 or -errno.
 */
int dirty_fetch(struct dirty *d, struct err *err);

uint64_t dirty_pages(const struct dirty *d); /* in the set */

/*
 * Take the next run of at most @most pages out of the set, from @*region and @*page on (start with 0, 0;
 * both are moved behind the run). False: none left up to the end. Protects the run's pages again first,
 * so read them after this. Thread safe for disjoint callers.
 */
bool dirty_take(struct dirty *d, unsigned *region, uint64_t *page, uint64_t most, uint64_t *first,
		uint64_t *count);

#endif
