/*
 * vm_state.h - everything of a machine but its RAM, to a stream and back
 *
 * A stream begins with a header that says what the machine is: whoever reads it can refuse, by name,
 * before it makes anything. The state follows when the machine stands still.
 */
#ifndef VMM_VM_STATE_H
#define VMM_VM_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/stream.h"

struct kvm;
struct vm;

#define STATE_VERSION 1 /* what we write; readers take 1 to this */

struct vm_header {
	uint32_t version;
	uint64_t ram;  /* bytes */
	char *machine; /* JSON (machine_desc.h), NUL-terminated; owned */
	uint8_t *cpu;  /* what the guest has seen of its processor; owned, for arch_cpu_load() */
	size_t cpu_len;
};

/* The first three sections. Any time, main thread or not: what they say never changes. */
int vm_header_save(const struct vm *vm, struct stream *s, struct err *err);
/* -EPROTO: not ours, or damaged; -ENOTSUP: a newer version's. @h needs vm_header_fini() on success. */
int vm_header_load(struct vm_header *h, struct stream *s, struct err *err);
void vm_header_fini(struct vm_header *h);

/*
 * Can this host be the processor that the guest has seen? 0, or -EINVAL naming what is missing. Needs
 * no machine: @kvm is open. vm_new_from() asks the same.
 */
int vm_check_cpu(const struct kvm *kvm, const struct vm_header *h, struct err *err);

/*
 * All sections from CLOCK to END. The machine stands still: vCPUs parked, devices quiet, on the main
 * thread (on_main). 0 or -errno.
 */
int vm_state_save(struct vm *vm, struct stream *s, struct err *err);

enum vm_clock {
	VM_CLOCK_STOOD, /* a snapshot: the guest's clocks go on from where they were */
	VM_CLOCK_RAN,   /* a migration: they went on meanwhile, by the two hosts' real time */
};

/*
 * The way back, into a machine made for it (vm_new_from) that stands still and whose RAM is there
 * already. Reads to the END section. Any mismatch is refused by name; the machine may then only be
 * freed. For vm_start_loaded().
 */
int vm_state_load(struct vm *vm, struct stream *s, enum vm_clock clock, struct err *err);

#endif
