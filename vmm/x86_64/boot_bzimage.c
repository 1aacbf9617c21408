/*
 * boot_bzimage.c - Linux' own format, entered by its 64-bit entry point
 *
 * Documentation/arch/x86/boot.rst. The real-mode part is used only for its header: no BIOS is there
 * to answer it. The protected-mode part goes to 1 MiB and is entered 0x200 into it; it decompresses
 * itself to where it wants to run, which takes init_size bytes from pref_address (or from where it
 * was loaded, if that is higher), so that much has to be RAM and free of the initrd.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <asm/bootparam.h>

#include "vmm/x86_64/boot.h"

#define HDR_OFF     0x1f1
#define HDR_MAGIC   0x53726448 /* "HdrS" */
#define VERSION_MIN 0x020c     /* xloadflags */
#define ENTRY_64    0x200
#define LOADER_TYPE 0xff /* "unregistered" */

_Static_assert(offsetof(struct boot_params, hdr) == HDR_OFF, "zero page");
_Static_assert(sizeof(struct boot_params) == 4096, "zero page");

/* The header as far as the file has it; the rest reads as zero. Its length is told by its jump. */
static void get_header(const struct boot *b, struct setup_header *h)
{
	size_t end = 0x202 + (b->head_len > 0x201 ? b->head[0x201] : 0);

	memset(h, 0, sizeof(*h));
	if (end > b->head_len)
		end = b->head_len;
	if (end > HDR_OFF + sizeof(*h))
		end = HDR_OFF + sizeof(*h);
	if (end > HDR_OFF)
		memcpy(h, b->head + HDR_OFF, end - HDR_OFF);
}

static int probe(struct boot *b, struct err *err)
{
	const char *name = b->kernel_name;
	struct setup_header h;
	uint64_t off, size;

	if (b->head_len < 0x206 || memcmp(b->head + 0x1fe, "\x55\xaa", 2) ||
	    memcmp(b->head + 0x202, "HdrS", 4))
		return 0;
	get_header(b, &h);
	if (h.version < VERSION_MIN)
		return err_set(
			err, -EINVAL,
			"kernel %s speaks boot protocol %u.%u, older than 2.12 (Linux 3.8), and "
			"has no 64-bit entry point",
			name, h.version >> 8, h.version & 0xff);
	if (!(h.xloadflags & XLF_KERNEL_64))
		return err_set(err, -EINVAL,
			       "kernel %s is a 32-bit Linux kernel; only 64-bit ones are supported",
			       name);
	if (!(h.loadflags & LOADED_HIGH))
		return err_set(err, -EINVAL, "kernel %s is a zImage; give a bzImage", name);

	off = ((h.setup_sects ? h.setup_sects : 4) + 1) * 512ull;
	size = h.syssize * 16ull;
	if (off >= b->kernel_size || size > b->kernel_size - off)
		return err_set(err, -EINVAL,
			       "kernel %s is truncated: its header speaks of %" PRIu64
			       " bytes, the file has %" PRIu64,
			       name, off + size, b->kernel_size);
	if (size <= ENTRY_64)
		return err_set(err, -EINVAL, "kernel %s is a bzImage without code", name);
	b->bz.payload_off = off;
	b->bz.payload_size = size;
	b->bz.version = h.version;
	snprintf(b->describe, sizeof(b->describe), "Linux bzImage, boot protocol %u.%u",
		 h.version >> 8, h.version & 0xff);
	return 1;
}

/* How far up the kernel writes before it looks at any memory map. */
static int decompression_end(struct boot *b, const struct setup_header *h, uint64_t *end,
			     struct err *err)
{
	uint64_t start = h->pref_address;

	if (h->relocatable_kernel && start < BOOT_HIGH) {
		if (!h->kernel_alignment || (h->kernel_alignment & (h->kernel_alignment - 1)))
			return err_set(
				err, -EINVAL,
				"kernel %s asks for an alignment of 0x%x, which is no power of 2",
				b->kernel_name, h->kernel_alignment);
		start = (BOOT_HIGH + h->kernel_alignment - 1) &
			~((uint64_t)h->kernel_alignment - 1);
	}
	if (start < BOOT_HIGH)
		return err_set(err, -EINVAL, "kernel %s wants to run at 0x%" PRIx64 ", below 1 MiB",
			       b->kernel_name, start);
	*end = start + h->init_size;
	if (*end < start || *end >= 1ull << 40)
		return err_set(err, -EINVAL,
			       "kernel %s wants to run at 0x%" PRIx64
			       ", beyond what it could reach",
			       b->kernel_name, start);
	if (*end < BOOT_HIGH + b->bz.payload_size)
		*end = BOOT_HIGH + b->bz.payload_size;
	return 0;
}

static int put_params(struct boot *b, struct boot_ctx *c, struct setup_header *h, struct err *err)
{
	struct boot_params p;
	unsigned i;

	memset(&p, 0, sizeof(p));
	p.hdr = *h;
	p.hdr.type_of_loader = LOADER_TYPE;
	p.hdr.cmd_line_ptr = BOOT_CMDLINE;
	p.hdr.setup_data = 0;
	p.hdr.hardware_subarch = 0;
	p.hdr.ramdisk_image = c->initrd;
	p.hdr.ramdisk_size = c->initrd ? b->initrd_size : 0;
	p.hdr.vid_mode = 0xffff; /* normal */
	p.acpi_rsdp_addr = c->rsdp;
	for (i = 0; i < c->map_count; i++) {
		p.e820_table[i].addr = c->map[i].base;
		p.e820_table[i].size = c->map[i].size;
		p.e820_table[i].type = c->map[i].type;
	}
	p.e820_entries = c->map_count;
	return boot_put(c, BOOT_PARAMS, &p, sizeof(p), err);
}

static int load(struct boot *b, struct boot_ctx *c, struct err *err)
{
	struct setup_header h;
	uint64_t end = 0, limit;
	int r;

	get_header(b, &h);
	r = decompression_end(b, &h, &end, err);
	if (r)
		return r;
	if (end > c->layout->ram_low.size)
		return boot_too_small(b, c, end, err);
	r = boot_segment(b, c, BOOT_HIGH, b->bz.payload_off, b->bz.payload_size, b->bz.payload_size,
			 err);
	if (r)
		return r;
	c->kernel_end = end;

	/* the last byte's address; kernels that could take it higher still name 2 GiB */
	limit = (uint64_t)h.initrd_addr_max + 1;
	r = boot_place_initrd(b, c, limit, err);
	if (!r)
		r = boot_put_cmdline(c, "", h.cmdline_size, err);
	if (!r)
		r = put_params(b, c, &h, err);
	b->entry.mode = BOOT_LONG;
	b->entry.rip = BOOT_HIGH + ENTRY_64;
	b->entry.rsi = BOOT_PARAMS;
	if (!r)
		r = boot_put_gdt(c, &b->entry, err);
	if (!r)
		r = boot_put_pages(c, &b->entry, err);
	return r;
}

const struct boot_format boot_bzimage = { "bzImage", probe, load };
