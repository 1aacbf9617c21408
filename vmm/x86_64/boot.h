/*
 * boot.h - what the kernel loaders share
 *
 * A loader looks at a file (probe) and later puts it into guest memory (load) any number of times.
 * File bytes are hostile: they are read by pread into our own copies, never mapped, and every
 * address they name goes through boot_segment().
 *
 * The first MiB:
 *	0x60000 global descriptor table		0x68000 page tables (identity, 4 GiB)
 *	0x61000 boot_params ("zero page")	0x70000 command line, to 0x7FFFF
 *	0x62000 start info, memory map, modules	0xE0000 ACPI tables
 *						0xFFFF0 reset vector
 */
#ifndef VMM_X86_64_BOOT_H
#define VMM_X86_64_BOOT_H

#include "vmm/arch.h"

#define BOOT_AREA        0x60000ull /* a kernel may not be loaded over this */
#define BOOT_GDT         0x60000ull
#define BOOT_PARAMS      0x61000ull
#define BOOT_INFO        0x62000ull
#define BOOT_INFO_MMAP   0x62800ull
#define BOOT_INFO_MODS   0x63000ull
#define BOOT_PAGES       0x68000ull
#define BOOT_CMDLINE     0x70000ull
#define BOOT_CMDLINE_MAX 0x10000ull /* with the final NUL */
#define BOOT_AREA_END    0x80000ull
#define BOOT_EBDA        0x9FC00ull /* end of conventional memory */
#define BOOT_ACPI        0xE0000ull
#define BOOT_ACPI_END    0xFFFF0ull
#define BOOT_RESET       0xFFFF0ull /* where a PC's firmware starts */
#define BOOT_HIGH        0x100000ull

enum boot_mode { BOOT_REAL, BOOT_PROTECTED, BOOT_LONG };

/* Where and how the boot vCPU starts; arch_vcpu_set_entry() makes it KVM's registers. */
struct boot_entry {
	enum boot_mode mode;
	uint64_t rip;
	uint64_t rsp; /* 0 where the protocol promises no stack */
	uint64_t rax, rbx, rsi;
	uint64_t cs_base; /* real mode */
	uint64_t cr3;     /* long mode */
	uint64_t gdt;
	uint16_t gdt_limit;
};

#define BOOT_CS 0x10 /* selectors of the table at BOOT_GDT, as Linux' boot protocol numbers them */
#define BOOT_DS 0x18
#define BOOT_TR 0x20

#define E820_RAM      1
#define E820_RESERVED 2

struct boot_range {
	uint64_t base, size;
	uint32_t type;
};

#define BOOT_RANGES_MAX 8

/* One load in progress. */
struct boot_ctx {
	struct gmem *mem;
	const struct arch_layout *layout;
	const char *cmdline;
	gpa_t rsdp;
	struct boot_range map[BOOT_RANGES_MAX]; /* e820, sorted */
	unsigned map_count;
	gpa_t kernel_end; /* first byte above everything the kernel occupies at its start */
	gpa_t initrd;     /* set by boot_place_initrd(); 0: none */
};

struct boot_format {
	const char *name;
	/* 1: mine; 0: not mine; -EINVAL: mine and broken; -errno. Fills b->describe and b->u. */
	int (*probe)(struct boot *b, struct err *err);
	/* Load the kernel and what its protocol hands over; fill b->entry. */
	int (*load)(struct boot *b, struct boot_ctx *c, struct err *err);
};

extern const struct boot_format boot_bzimage, boot_pvh, boot_multiboot, boot_flat;

#define BOOT_HEAD_MAX 8192 /* multiboot searches this far for its header */

#define BOOT_ELF_SEGMENTS_MAX 32

struct boot_elf_segment {
	uint64_t off, filesz, vaddr, paddr, memsz;
};

struct boot_elf {
	uint16_t machine;
	unsigned bits; /* 32 or 64 */
	uint64_t entry;
	unsigned count; /* PT_LOAD with memsz > 0 */
	struct boot_elf_segment seg[BOOT_ELF_SEGMENTS_MAX];
	bool has_pvh;
	uint64_t pvh_entry;
};

struct boot {
	const struct boot_format *format;
	char *kernel_name, *initrd_name; /* as given, for messages */
	int kernel_fd, initrd_fd;
	uint64_t kernel_size, initrd_size;
	char describe[128];
	struct boot_entry entry;
	bool loaded;

	uint8_t head[BOOT_HEAD_MAX]; /* the file's first bytes */
	size_t head_len;

	/* found by probe */
	struct boot_elf elf;
	struct {
		uint32_t payload_off, payload_size;
		uint16_t version;
	} bz;
	struct {
		uint32_t flags, header, header_addr, load_addr, load_end, bss_end, entry;
	} mb;
	struct {
		enum boot_flat_mode mode;
		gpa_t addr;
	} flat;
};

/* Parse the ELF header, program headers and notes into b->elf. 1, 0 not ELF, -EINVAL broken. */
int boot_elf_probe(struct boot *b, struct err *err);
int boot_elf_load(struct boot *b, struct boot_ctx *c, struct err *err);
/* Where in physical memory the virtual address @at is loaded, or @at itself. */
uint64_t boot_elf_phys(const struct boot_elf *e, uint64_t at);

/*
 * Copy @filesz bytes at @off of the kernel file to @at and zero up to @memsz. Refuses what is not
 * RAM (memory too small), overlaps the boot area or firmware's, wraps, or is not in the file.
 */
int boot_segment(struct boot *b, struct boot_ctx *c, gpa_t at, uint64_t off, uint64_t filesz,
		 uint64_t memsz, struct err *err);

/* "memory too small for this kernel" with numbers; @end is what it must reach up to. */
int boot_too_small(const struct boot *b, const struct boot_ctx *c, uint64_t end, struct err *err);

/* Load the initrd as high as possible in [c->kernel_end, min(@limit, low RAM)), page aligned. */
int boot_place_initrd(struct boot *b, struct boot_ctx *c, uint64_t limit, struct err *err);

/* Put @prefix (may be "") and the command line at BOOT_CMDLINE; @max bytes without the NUL. */
int boot_put_cmdline(struct boot_ctx *c, const char *prefix, uint64_t max, struct err *err);

/* Write to guest memory that is known to be ours. */
int boot_put(struct boot_ctx *c, gpa_t at, const void *src, size_t len, struct err *err);

/* Descriptor table for all modes; identity page tables of the first 4 GiB. Fill @e's part. */
int boot_put_gdt(struct boot_ctx *c, struct boot_entry *e, struct err *err);
int boot_put_pages(struct boot_ctx *c, struct boot_entry *e, struct err *err);

/* What a file that is no kernel looks like: "a gzip file". @buf may be used. */
const char *boot_sniff(const uint8_t *head, size_t len, char *buf, size_t room);

const struct boot_entry *boot_get_entry(const struct boot *b); /* NULL before boot_load() */

#endif
