/*
 * boot_multiboot.c - multiboot 1 (specification version 0.6.96)
 *
 * kvm-unit-tests and many small kernels: a header in the first 8 KiB, either with addresses of its
 * own (flag 16) or in an ELF file. Entered in 32-bit protected mode, magic in EAX, information in EBX.
 *
 * The command line starts with the kernel's file name, as GRUB and QEMU have it: kernels take the
 * first word as their own name. The initrd is the one module; its string is its file name.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "vmm/x86_64/boot.h"

#define HEADER_MAGIC 0x1BADB002u
#define INFO_MAGIC   0x2BADB002u

#define HEADER_ALIGN   (1u << 0) /* modules on page boundaries: ours always are */
#define HEADER_MEMORY  (1u << 1) /* memory information: always given */
#define HEADER_ADDRESS (1u << 16)
#define HEADER_MUST    0xffffu /* what a loader must understand or refuse */

#define INFO_MEMORY  (1u << 0)
#define INFO_CMDLINE (1u << 2)
#define INFO_MODS    (1u << 3)
#define INFO_MMAP    (1u << 6)
#define INFO_NAME    (1u << 9)

struct mb_info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr;
	uint32_t syms[4], mmap_length, mmap_addr, drives_length, drives_addr, config_table;
	uint32_t boot_loader_name, apm_table;
	uint32_t vbe[4], framebuffer[7];
};

struct mb_mmap {
	uint32_t size; /* of what follows */
	uint64_t addr, len;
	uint32_t type;
} __attribute__((packed));

struct mb_module {
	uint32_t start, end, string, reserved;
};

#define NAME_AT    (BOOT_INFO_MODS + 0x100)
#define STRING_AT  (BOOT_INFO_MODS + 0x200)
#define STRING_MAX (BOOT_PAGES - STRING_AT)

static uint32_t get32(const struct boot *b, size_t at)
{
	uint32_t v;

	memcpy(&v, b->head + at, sizeof(v));
	return v;
}

static bool find_header(const struct boot *b, uint32_t *at)
{
	size_t i;

	for (i = 0; i + 12 <= b->head_len; i += 4)
		if (get32(b, i) == HEADER_MAGIC &&
		    !(uint32_t)(HEADER_MAGIC + get32(b, i + 4) + get32(b, i + 8))) {
			*at = i;
			return true;
		}
	return false;
}

/* The header's own addresses: file offset of load_addr, sizes, entry (3.1.3). */
static int probe_addresses(struct boot *b, struct err *err)
{
	uint32_t at = b->mb.header;
	const char *name = b->kernel_name;

	if (b->head_len - at < 32)
		return err_set(err, -EINVAL, "kernel %s is truncated within its multiboot header",
			       name);
	b->mb.header_addr = get32(b, at + 12);
	b->mb.load_addr = get32(b, at + 16);
	b->mb.load_end = get32(b, at + 20);
	b->mb.bss_end = get32(b, at + 24);
	b->mb.entry = get32(b, at + 28);
	if (b->mb.load_addr > b->mb.header_addr || b->mb.header_addr - b->mb.load_addr > at ||
	    (b->mb.load_end && b->mb.load_end <= b->mb.load_addr) ||
	    (b->mb.bss_end && (b->mb.bss_end < b->mb.load_end || b->mb.bss_end < b->mb.load_addr)))
		return err_set(err, -EINVAL,
			       "kernel %s has a multiboot header whose addresses contradict each "
			       "other",
			       name);
	return 0;
}

static int probe(struct boot *b, struct err *err)
{
	uint32_t must;
	int r;

	if (!find_header(b, &b->mb.header))
		return 0;
	b->mb.flags = get32(b, b->mb.header + 4);
	must = b->mb.flags & HEADER_MUST & ~(HEADER_ALIGN | HEADER_MEMORY);
	if (must)
		return err_set(
			err, -EINVAL,
			"kernel %s wants multiboot features 0x%x (0x4 is a video mode), which "
			"this machine has not",
			b->kernel_name, must);
	if (b->mb.flags & HEADER_ADDRESS) {
		r = probe_addresses(b, err);
		if (r)
			return r;
	} else {
		r = boot_elf_probe(b, err);
		if (r < 0)
			return r;
		if (!r)
			return err_set(err, -EINVAL,
				       "kernel %s has a multiboot header but neither addresses in "
				       "it nor an x86 ELF header",
				       b->kernel_name);
		b->mb.entry = boot_elf_phys(&b->elf, b->elf.entry);
	}
	snprintf(b->describe, sizeof(b->describe), "multiboot kernel, entry 0x%x", b->mb.entry);
	return 1;
}

static int load_addresses(struct boot *b, struct boot_ctx *c, struct err *err)
{
	uint64_t off = b->mb.header - (b->mb.header_addr - b->mb.load_addr);
	uint64_t filesz = b->kernel_size - off, memsz;

	if (b->mb.load_end)
		filesz = b->mb.load_end - b->mb.load_addr;
	memsz = filesz;
	if (b->mb.bss_end && b->mb.bss_end - b->mb.load_addr > memsz)
		memsz = b->mb.bss_end - b->mb.load_addr;
	return boot_segment(b, c, b->mb.load_addr, off, filesz, memsz, err);
}

static int put_mmap(struct boot_ctx *c, struct mb_info *info, struct err *err)
{
	struct mb_mmap map[BOOT_RANGES_MAX] = { 0 };
	unsigned i;

	for (i = 0; i < c->map_count; i++)
		map[i] = (struct mb_mmap){ sizeof(map[i]) - 4, c->map[i].base, c->map[i].size,
					   c->map[i].type };
	info->flags |= INFO_MMAP;
	info->mmap_addr = BOOT_INFO_MMAP;
	info->mmap_length = c->map_count * sizeof(map[0]);
	return boot_put(c, BOOT_INFO_MMAP, map, sizeof(map), err);
}

static int put_module(struct boot *b, struct boot_ctx *c, struct mb_info *info, struct err *err)
{
	struct mb_module mod = { c->initrd, c->initrd + b->initrd_size, STRING_AT, 0 };
	size_t n = strlen(b->initrd_name);
	int r;

	info->flags |= INFO_MODS;
	info->mods_count = 1;
	info->mods_addr = BOOT_INFO_MODS;
	r = boot_put(c, BOOT_INFO_MODS, &mod, sizeof(mod), err);
	if (n > STRING_MAX - 1) /* PATH_MAX is less */
		n = STRING_MAX - 1;
	return r ? r : boot_put(c, STRING_AT, b->initrd_name, n, err);
}

static int put_info(struct boot *b, struct boot_ctx *c, struct err *err)
{
	static const char name[] = "Coracle";
	struct mb_info info = {
		.flags = INFO_MEMORY | INFO_CMDLINE | INFO_NAME,
		.mem_lower = BOOT_EBDA / 1024,
		.mem_upper = (c->layout->ram_low.size - BOOT_HIGH) / 1024,
		.cmdline = BOOT_CMDLINE,
		.boot_loader_name = NAME_AT,
	};
	cleanup_free char *prefix = NULL;
	int r;

	if (asprintf(&prefix, "%s%s", b->kernel_name, *c->cmdline ? " " : "") < 0)
		return err_set_sys(err, -ENOMEM, "cannot load kernel %s", b->kernel_name);
	r = boot_put_cmdline(c, prefix, BOOT_CMDLINE_MAX - 1, err);
	if (!r)
		r = boot_put(c, NAME_AT, name, sizeof(name), err);
	if (!r)
		r = put_mmap(c, &info, err);
	if (!r && c->initrd)
		r = put_module(b, c, &info, err);
	return r ? r : boot_put(c, BOOT_INFO, &info, sizeof(info), err);
}

static int load(struct boot *b, struct boot_ctx *c, struct err *err)
{
	int r = b->mb.flags & HEADER_ADDRESS ? load_addresses(b, c, err) : boot_elf_load(b, c, err);

	if (!r)
		r = boot_place_initrd(b, c, UINT64_MAX, err);
	if (!r)
		r = put_info(b, c, err);
	b->entry.mode = BOOT_PROTECTED;
	b->entry.rip = b->mb.entry;
	b->entry.rax = INFO_MAGIC;
	b->entry.rbx = BOOT_INFO;
	return r ? r : boot_put_gdt(c, &b->entry, err);
}

const struct boot_format boot_multiboot = { "multiboot", probe, load };
