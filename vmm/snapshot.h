/*
 * snapshot.h - a machine to a directory and back
 *
 * The directory holds machine.json (for people and tools), state (a stream, sections.h) and memory:
 * guest RAM, region after region as the header's machine has them, zero pages as holes. It is made
 * under another name by whoever asked (`coracle ctl`), who hands in open files: the machine's process
 * cannot open any.
 */
#ifndef VMM_SNAPSHOT_H
#define VMM_SNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "vmm/transfer.h"

struct vm;

struct snapshot_files {
	int machine, state, memory; /* open for writing, empty; borrowed */
};

struct snapshot_result {
	uint64_t total_ns, pause_ns; /* time in all; time the guest stood still */
	uint64_t ram, written;       /* bytes of RAM; bytes that were not holes */
	unsigned rounds;
};

/*
 * On a worker thread. The machine runs on while RAM is written and pauses only for the rest; a paused
 * one stays so. When it returns 0 the files are complete and on stable storage, and the machine runs
 * again, or with @stop has ended. On any error it runs on as before. -ECANCELED: @w said so.
 */
int snapshot_save(struct vm *vm, const struct snapshot_files *f, bool stop,
		  const struct transfer_watch *w, struct snapshot_result *r, struct err *err);

#endif
