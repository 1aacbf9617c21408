/*
 * snapshot_dir.h - a snapshot's directory, for the commands
 *
 * Whoever can write into a directory of snapshots can put anything there: the files are opened without
 * following links, have to be regular, and their sizes are looked at first.
 */
#ifndef VMM_SNAPSHOT_DIR_H
#define VMM_SNAPSHOT_DIR_H

#include <stdint.h>

#include "base/err.h"
#include "base/stream.h"
#include "vmm/vm_state.h"

#define SNAPSHOT_STATE_MAX (UINT64_C(256) << 20) /* bytes; 64 vCPUs and 80 devices have far less */

struct snapshot_dir {
	int state, memory; /* read only */
	uint64_t memory_size;
	struct stream *stream; /* over state, behind the header */
	struct vm_header header;
};

/* Errors name the file. 0 or -errno; needs snapshot_dir_close() only on success. */
int snapshot_dir_open(struct snapshot_dir *d, const char *path, struct err *err);
void snapshot_dir_close(struct snapshot_dir *d);

#endif
