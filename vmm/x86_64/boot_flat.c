/*
 * boot_flat.c - raw code at a given address, entered in a given mode
 *
 * For tiny tests and fuzzing. Nothing is handed over: 16-bit code starts as from a boot sector
 * (segment base = address / 16 * 16), 32-bit code in flat protected mode without paging, 64-bit code
 * with the first 4 GiB mapped one to one.
 */
#include <inttypes.h>
#include <stdio.h>

#include "vmm/x86_64/boot.h"

#define FLAT_MAX 0xC0000000ull /* low RAM ends here at the latest */

static int probe(struct boot *b, struct err *err)
{
	uint64_t limit = b->flat.mode == BOOT_FLAT_16 ? BOOT_HIGH : FLAT_MAX;

	if (b->flat.addr >= limit)
		return err_set(err, -EINVAL,
			       "flat kernel %s cannot be loaded at 0x%" PRIx64
			       ": in %u-bit mode the address must be below 0x%" PRIx64,
			       b->kernel_name, b->flat.addr, b->flat.mode, limit);
	snprintf(b->describe, sizeof(b->describe), "flat %u-bit binary at 0x%" PRIx64, b->flat.mode,
		 b->flat.addr);
	return 1;
}

static int load(struct boot *b, struct boot_ctx *c, struct err *err)
{
	struct boot_entry *e = &b->entry;
	int r = boot_segment(b, c, b->flat.addr, 0, b->kernel_size, b->kernel_size, err);

	if (r)
		return r;
	e->rip = b->flat.addr;
	switch (b->flat.mode) {
	case BOOT_FLAT_16:
		e->mode = BOOT_REAL;
		e->cs_base = b->flat.addr & ~0xfull;
		e->rip = b->flat.addr & 0xf;
		return 0;
	case BOOT_FLAT_32:
		e->mode = BOOT_PROTECTED;
		return boot_put_gdt(c, e, err);
	default:
		e->mode = BOOT_LONG;
		r = boot_put_gdt(c, e, err);
		return r ? r : boot_put_pages(c, e, err);
	}
}

const struct boot_format boot_flat = { "flat", probe, load };
