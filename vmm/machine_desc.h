/*
 * machine_desc.h - what a machine is, as a snapshot or a migration tells it
 *
 * The description is JSON: the effective configuration with everything settled that was left to
 * chance (MAC addresses), and what the host side was (sizes of disks). The machine made from it is
 * the same to its guest. What only the host sees may be given anew, by device id:
 *
 *	--disk id=root,path=FILE[,aio=..][,direct=..]
 *	--net id=n0,tap=NAME|fd=N[,create=..][,addr=..]
 *	--serial --id --control --paused --no-reboot --on-panic --io-threads --sandbox --log-level --hugepages
 *
 * Anything else (memory, CPUs, MACs, queues, transport) is the guest's and cannot change.
 */
#ifndef VMM_MACHINE_DESC_H
#define VMM_MACHINE_DESC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "vmm/config.h"

struct vm;

struct machine_desc {
	struct config config;                 /* owned */
	uint64_t disk_size[CONFIG_DISKS_MAX]; /* bytes, by config.disks' index */
};

/* The description of @vm as JSON text. malloc'd; NULL on error. */
char *machine_desc_text(const struct vm *vm, struct err *err);

/*
 * From text, which may be hostile. What belongs to the run and not to the machine (control, paused)
 * is not taken over, nor the name: two machines cannot have the same. 0; -EINVAL.
 */
int machine_desc_parse(struct machine_desc *d, const char *text, size_t len, struct err *err);
void machine_desc_fini(struct machine_desc *d);

/* ---- what is given anew ---- */

#define MACHINE_OVERRIDES_MAX 128

struct machine_override {
	const char *key, *value; /* borrowed from argv */
};

struct machine_overrides {
	struct machine_override v[MACHINE_OVERRIDES_MAX];
	unsigned n;
};

/*
 * If argv[*i] is one of the options above, note it and leave *i behind it (and its value): 1.
 * 0: another option; -EINVAL: its value is missing, or it is an option of `run` that cannot be given
 * here, with why.
 */
int machine_overrides_take(struct machine_overrides *o, int argc, char **argv, int *i,
			   struct err *err);

/* Apply them all. -EINVAL: no such device (lists those there are), or a key that cannot change. */
int machine_desc_apply(struct machine_desc *d, const struct machine_overrides *o, struct err *err);

/* "--disk id=NAME,..." and so on, for restore's --help. */
void machine_overrides_help(FILE *f);

/*
 * After vm_new_from(): the disks have the sizes they had. -EINVAL naming the disk and both sizes.
 */
int machine_desc_check(const struct machine_desc *d, const struct vm *vm, struct err *err);

#endif
