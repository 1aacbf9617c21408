/*
 * memslots.h - guest RAM, handed to KVM (api.rst KVM_SET_USER_MEMORY_REGION)
 */
#ifndef VMM_MEMSLOTS_H
#define VMM_MEMSLOTS_H

#include <stdbool.h>

#include "base/guest_memory.h"

/* One slot per region, slot number = region index. 0 or -errno. */
int memslots_set(int vm_fd, const struct gmem *mem, struct err *err);

/* The same slots with or without the log of vCPUs' stores (dirty.c). All of them, or none. */
int memslots_log(int vm_fd, const struct gmem *mem, bool on, struct err *err);

#endif
