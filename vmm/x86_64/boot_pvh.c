/*
 * boot_pvh.c - ELF kernels with a PVH entry note
 *
 * Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h: 32-bit flat protected mode, paging
 * off, EBX points to hvm_start_info. Unlike multiboot it hands over the ACPI root, and unlike bzImage
 * the kernel needs no decompression.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "vmm/x86_64/boot.h"

#define START_MAGIC 0x336ec578 /* "xEn3" with bit 7 of the E set */

struct start_info {
	uint32_t magic, version, flags, nr_modules;
	uint64_t modlist, cmdline, rsdp;
	uint64_t memmap; /* version 1 and later */
	uint32_t memmap_entries, reserved;
};

struct module {
	uint64_t paddr, size, cmdline, reserved;
};

struct memmap_entry {
	uint64_t addr, size;
	uint32_t type, reserved; /* types as in e820 */
};

_Static_assert(sizeof(struct start_info) == 56, "start_info.h");
_Static_assert(sizeof(struct memmap_entry) * BOOT_RANGES_MAX <= BOOT_INFO_MODS - BOOT_INFO_MMAP,
	       "memory map's place");

static int probe(struct boot *b, struct err *err)
{
	unsigned i;
	int r = boot_elf_probe(b, err);

	if (r <= 0 || !b->elf.has_pvh)
		return r < 0 ? r : 0;
	for (i = 0; i < b->elf.count; i++)
		if (b->elf.pvh_entry - b->elf.seg[i].paddr < b->elf.seg[i].memsz)
			break;
	if (i == b->elf.count)
		return err_set(err, -EINVAL,
			       "kernel %s has its PVH entry at 0x%" PRIx64
			       ", which is in none of its segments",
			       b->kernel_name, b->elf.pvh_entry);
	snprintf(b->describe, sizeof(b->describe), "%u-bit ELF with PVH entry 0x%" PRIx64,
		 b->elf.bits, b->elf.pvh_entry);
	return 1;
}

static int put_info(struct boot *b, struct boot_ctx *c, struct err *err)
{
	struct memmap_entry map[BOOT_RANGES_MAX] = { 0 };
	struct module mod = { c->initrd, b->initrd_size, 0, 0 };
	struct start_info info = {
		.magic = START_MAGIC,
		.version = 1,
		.nr_modules = c->initrd ? 1 : 0,
		.modlist = c->initrd ? BOOT_INFO_MODS : 0,
		.cmdline = BOOT_CMDLINE,
		.rsdp = c->rsdp,
		.memmap = BOOT_INFO_MMAP,
		.memmap_entries = c->map_count,
	};
	unsigned i;
	int r;

	for (i = 0; i < c->map_count; i++)
		map[i] = (struct memmap_entry){ c->map[i].base, c->map[i].size, c->map[i].type, 0 };
	r = boot_put(c, BOOT_INFO, &info, sizeof(info), err);
	if (!r)
		r = boot_put(c, BOOT_INFO_MMAP, map, sizeof(map), err);
	if (!r && c->initrd)
		r = boot_put(c, BOOT_INFO_MODS, &mod, sizeof(mod), err);
	return r;
}

static int load(struct boot *b, struct boot_ctx *c, struct err *err)
{
	int r = boot_elf_load(b, c, err);

	if (!r)
		r = boot_place_initrd(b, c, UINT64_MAX, err);
	if (!r)
		r = boot_put_cmdline(c, "", BOOT_CMDLINE_MAX - 1, err);
	if (!r)
		r = put_info(b, c, err);
	b->entry.mode = BOOT_PROTECTED;
	b->entry.rip = b->elf.pvh_entry;
	b->entry.rbx = BOOT_INFO;
	return r ? r : boot_put_gdt(c, &b->entry, err);
}

const struct boot_format boot_pvh = { "PVH", probe, load };
