/*
 * boot_elf.c - ELF kernels: where their pieces go, and the PVH entry note
 *
 * Both 32 and 64-bit files, of either x86 machine type (multiboot kernels of 64-bit systems are often
 * 32-bit ELF files with 64-bit code inside). Segments that overlap are refused: no linker makes them,
 * and without them the work of loading is bounded by the size of RAM.
 */
#include <elf.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "vmm/x86_64/boot.h"

#define PHDRS_MAX                512         /* program headers of any type */
#define NOTES_MAX                0x100000ull /* bytes of one note segment */
#define XEN_ELFNOTE_PHYS32_ENTRY 18          /* Xen public/elfnote.h */

/* A program header of either width. */
struct phdr {
	uint32_t type;
	uint64_t off, vaddr, paddr, filesz, memsz, align;
};

static int broken(const struct boot *b, const char *what, struct err *err)
{
	return err_set(err, -EINVAL, "kernel %s is a broken ELF file: %s", b->kernel_name, what);
}

static void get_phdr(const struct boot *b, const uint8_t *raw, struct phdr *p)
{
	if (b->elf.bits == 64) {
		Elf64_Phdr h;

		memcpy(&h, raw, sizeof(h));
		*p = (struct phdr){ h.p_type,   h.p_offset, h.p_vaddr, h.p_paddr,
				    h.p_filesz, h.p_memsz,  h.p_align };
	} else {
		Elf32_Phdr h;

		memcpy(&h, raw, sizeof(h));
		*p = (struct phdr){ h.p_type,   h.p_offset, h.p_vaddr, h.p_paddr,
				    h.p_filesz, h.p_memsz,  h.p_align };
	}
}

/* Look for the Xen note in @buf. All lengths are the file's. */
static void scan_notes(struct boot *b, const uint8_t *buf, uint64_t len, uint64_t align)
{
	uint64_t at = 0;

	align = align == 8 ? 8 : 4;
	while (len - at >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr n;
		uint64_t name, desc, next;

		memcpy(&n, buf + at, sizeof(n));
		name = at + sizeof(n);
		desc = name + (((uint64_t)n.n_namesz + align - 1) & ~(align - 1));
		next = desc + (((uint64_t)n.n_descsz + align - 1) & ~(align - 1));
		if (name + n.n_namesz > len || desc + n.n_descsz > len)
			return;
		if (n.n_type == XEN_ELFNOTE_PHYS32_ENTRY && n.n_namesz == 4 &&
		    !memcmp(buf + name, "Xen", 4) && (n.n_descsz == 4 || n.n_descsz == 8)) {
			b->elf.pvh_entry = 0;
			memcpy(&b->elf.pvh_entry, buf + desc, n.n_descsz);
			b->elf.has_pvh = true;
			return;
		}
		if (next > len)
			return;
		at = next;
	}
}

static int read_notes(struct boot *b, const struct phdr *p, struct err *err)
{
	cleanup_free uint8_t *buf = NULL;
	int r;

	if (p->off > b->kernel_size || p->filesz > b->kernel_size - p->off)
		return broken(b, "its notes lie outside the file (truncated?)", err);
	if (p->filesz > NOTES_MAX)
		return broken(b, "its notes are bigger than 1 MiB", err);
	buf = malloc(p->filesz + 1);
	if (!buf)
		return err_set_sys(err, -ENOMEM, "cannot read kernel %s", b->kernel_name);
	r = fd_pread_all(b->kernel_fd, buf, p->filesz, p->off);
	if (r)
		return err_set_sys(err, r, "cannot read kernel %s", b->kernel_name);
	scan_notes(b, buf, p->filesz, p->align);
	return 0;
}

static int add_segment(struct boot *b, const struct phdr *p, struct err *err)
{
	struct boot_elf *e = &b->elf;
	unsigned i;

	if (!p->memsz)
		return 0;
	if (p->filesz > p->memsz)
		return broken(b, "a segment is bigger in the file than in memory", err);
	if (p->off > b->kernel_size || p->filesz > b->kernel_size - p->off)
		return broken(b, "a segment lies outside the file (truncated?)", err);
	if (p->paddr + p->memsz < p->paddr)
		return broken(b, "a segment wraps around the end of memory", err);
	for (i = 0; i < e->count; i++)
		if (p->paddr < e->seg[i].paddr + e->seg[i].memsz &&
		    e->seg[i].paddr < p->paddr + p->memsz)
			return broken(b, "its segments overlap in memory", err);
	if (e->count == BOOT_ELF_SEGMENTS_MAX)
		return broken(b, "it has more than 32 segments to load", err);
	e->seg[e->count++] =
		(struct boot_elf_segment){ p->off, p->filesz, p->vaddr, p->paddr, p->memsz };
	return 0;
}

static int read_phdrs(struct boot *b, uint64_t off, unsigned num, unsigned size, struct err *err)
{
	cleanup_free uint8_t *raw = NULL;
	struct phdr p;
	unsigned i;
	int r = 0;

	if (size != (b->elf.bits == 64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
		return broken(b, "its program headers have the wrong size", err);
	if (!num || num > PHDRS_MAX)
		return broken(b, "it has no program headers, or too many", err);
	if (off > b->kernel_size || (uint64_t)num * size > b->kernel_size - off)
		return broken(b, "its program headers lie outside the file (truncated?)", err);
	raw = malloc((size_t)num * size);
	if (!raw)
		return err_set_sys(err, -ENOMEM, "cannot read kernel %s", b->kernel_name);
	r = fd_pread_all(b->kernel_fd, raw, (size_t)num * size, off);
	if (r)
		return err_set_sys(err, r, "cannot read kernel %s", b->kernel_name);
	for (i = 0; i < num && !r; i++) {
		get_phdr(b, raw + (size_t)i * size, &p);
		if (p.type == PT_LOAD)
			r = add_segment(b, &p, err);
		else if (p.type == PT_NOTE && !b->elf.has_pvh)
			r = read_notes(b, &p, err);
	}
	return r;
}

int boot_elf_probe(struct boot *b, struct err *err)
{
	uint64_t off;
	unsigned num, size;
	int r;

	memset(&b->elf, 0, sizeof(b->elf));
	if (b->head_len < SELFMAG || memcmp(b->head, ELFMAG, SELFMAG))
		return 0;
	if (b->head_len < sizeof(Elf32_Ehdr))
		return broken(b, "it ends within its header", err);
	if (b->head[EI_DATA] != ELFDATA2LSB)
		return 0;

	if (b->head[EI_CLASS] == ELFCLASS64) {
		Elf64_Ehdr h;

		if (b->head_len < sizeof(h))
			return broken(b, "it ends within its header", err);
		memcpy(&h, b->head, sizeof(h));
		b->elf.bits = 64;
		b->elf.machine = h.e_machine;
		b->elf.entry = h.e_entry;
		off = h.e_phoff;
		num = h.e_phnum;
		size = h.e_phentsize;
	} else if (b->head[EI_CLASS] == ELFCLASS32) {
		Elf32_Ehdr h;

		memcpy(&h, b->head, sizeof(h));
		b->elf.bits = 32;
		b->elf.machine = h.e_machine;
		b->elf.entry = h.e_entry;
		off = h.e_phoff;
		num = h.e_phnum;
		size = h.e_phentsize;
	} else {
		return broken(b, "it is neither 32 nor 64-bit", err);
	}
	if (b->elf.machine != EM_386 && b->elf.machine != EM_X86_64)
		return 0; /* boot_sniff() names the processor it is for */
	r = read_phdrs(b, off, num, size, err);
	if (r)
		return r;
	if (!b->elf.count)
		return broken(b, "nothing in it is to be loaded", err);
	return 1;
}

int boot_elf_load(struct boot *b, struct boot_ctx *c, struct err *err)
{
	unsigned i;
	int r = 0;

	/* the highest first: an error about too little memory then names what the whole needs */
	for (i = 0; i < b->elf.count; i++)
		if (b->elf.seg[i].paddr + b->elf.seg[i].memsz > c->kernel_end)
			c->kernel_end = b->elf.seg[i].paddr + b->elf.seg[i].memsz;
	if (c->kernel_end > c->layout->ram_low.size)
		return boot_too_small(b, c, c->kernel_end, err);
	for (i = 0; i < b->elf.count && !r; i++) {
		const struct boot_elf_segment *s = &b->elf.seg[i];

		r = boot_segment(b, c, s->paddr, s->off, s->filesz, s->memsz, err);
	}
	return r;
}

uint64_t boot_elf_phys(const struct boot_elf *e, uint64_t at)
{
	unsigned i;

	for (i = 0; i < e->count; i++)
		if (at - e->seg[i].vaddr < e->seg[i].memsz)
			return at - e->seg[i].vaddr + e->seg[i].paddr;
	return at;
}
