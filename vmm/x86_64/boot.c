/*
 * boot.c - from two files to a machine that is ready to run
 *
 * The kernel's format is found by looking, each loader in turn; the order matters where a file could
 * be two things (a Linux vmlinux with a multiboot header boots by PVH, which tells it more).
 *
 * What can be checked without memory is checked at boot_open(), so that a wrong file is refused before
 * a tap or a socket is made.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "devices/ged.h"
#include "vmm/x86_64/acpi.h"
#include "vmm/x86_64/boot.h"
#include "vmm/x86_64/layout.h"

#define PAGE (uint64_t)4096
#define MIB  (uint64_t)0x100000

/* As many bytes as the widest size field of any protocol could name. */
#define FILE_MAX (3ull << 30)

static const struct boot_format *const formats[] = {
	&boot_bzimage,
	&boot_pvh,
	&boot_multiboot,
};

static const char *kind_of(mode_t mode)
{
	return S_ISDIR(mode)  ? "a directory" :
	       S_ISFIFO(mode) ? "a pipe" :
	       S_ISSOCK(mode) ? "a socket" :
	       S_ISCHR(mode)  ? "a character device" :
	       S_ISBLK(mode)  ? "a block device" :
				"no regular file";
}

/* Open a regular file; never waits on a pipe. */
static int open_file(const char *what, const char *name, int *fd, uint64_t *size, struct err *err)
{
	cleanup_fd int f = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (f < 0 || fstat(f, &st) < 0)
		return err_set_sys(err, errno, "cannot open %s %s", what, name);
	if (!S_ISREG(st.st_mode))
		return err_set(err, -EINVAL, "%s %s is %s; give a regular file", what, name,
			       kind_of(st.st_mode));
	if (st.st_size == 0)
		return err_set(err, -EINVAL, "%s %s is an empty file", what, name);
	if ((uint64_t)st.st_size > FILE_MAX)
		return err_set(err, -EINVAL, "%s %s is bigger than 3 GiB", what, name);
	*size = st.st_size;
	*fd = fd_steal(&f);
	return 0;
}

static int identify(struct boot *b, const struct boot_files *files, struct err *err)
{
	char found[96];
	size_t i;
	int r;

	b->head_len = b->kernel_size < sizeof(b->head) ? b->kernel_size : sizeof(b->head);
	r = fd_pread_all(b->kernel_fd, b->head, b->head_len, 0);
	if (r)
		return err_set_sys(err, r, "cannot read kernel %s", b->kernel_name);

	if (files->flat != BOOT_FLAT_NONE) {
		b->flat.mode = files->flat;
		b->flat.addr = files->flat_addr;
		b->format = &boot_flat;
		r = boot_flat.probe(b, err);
		return r < 0 ? r : 0;
	}
	for (i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
		if (files->format && strcmp(files->format, formats[i]->name))
			continue;
		r = formats[i]->probe(b, err);
		if (r < 0)
			return r;
		if (r > 0) {
			b->format = formats[i];
			return 0;
		}
	}
	if (files->format)
		return err_set(err, -EINVAL, "kernel %s is %s, not %s as --kernel-type says",
			       b->kernel_name,
			       boot_sniff(b->head, b->head_len, found, sizeof(found)),
			       files->format);
	return err_set(err, -EINVAL,
		       "kernel %s is %s; give a Linux bzImage, an ELF kernel with a PVH note or a "
		       "multiboot kernel",
		       b->kernel_name, boot_sniff(b->head, b->head_len, found, sizeof(found)));
}

struct boot *boot_open(const struct boot_files *files, struct err *err)
{
	struct boot *b = calloc(1, sizeof(*b));

	if (!b) {
		err_set_sys(err, -ENOMEM, "cannot open kernel %s", files->kernel);
		return NULL;
	}
	b->kernel_fd = b->initrd_fd = -1;
	b->kernel_name = strdup(files->kernel);
	b->initrd_name = files->initrd ? strdup(files->initrd) : NULL;
	if (!b->kernel_name || (files->initrd && !b->initrd_name)) {
		err_set_sys(err, -ENOMEM, "cannot open kernel %s", files->kernel);
		goto fail;
	}
	if (open_file("kernel", b->kernel_name, &b->kernel_fd, &b->kernel_size, err))
		goto fail;
	if (b->initrd_name &&
	    open_file("initrd", b->initrd_name, &b->initrd_fd, &b->initrd_size, err))
		goto fail;
	if (identify(b, files, err))
		goto fail;
	return b;

fail:
	boot_free(b);
	return NULL;
}

void boot_free(struct boot *b)
{
	if (!b)
		return;
	fd_close(&b->kernel_fd);
	fd_close(&b->initrd_fd);
	free(b->kernel_name);
	free(b->initrd_name);
	free(b);
}

const char *boot_describe(const struct boot *b)
{
	return b->describe;
}

const struct boot_entry *boot_get_entry(const struct boot *b)
{
	return b->loaded ? &b->entry : NULL;
}

static void add_range(struct boot_ctx *c, uint64_t base, uint64_t end, uint32_t type)
{
	if (end > base && c->map_count < BOOT_RANGES_MAX)
		c->map[c->map_count++] = (struct boot_range){ base, end - base, type };
}

/*
 * Linux accepts the ECAM window of MCFG only if it is reserved here or claimed in the DSDT; both say
 * so (arch/x86/pci/mmconfig-shared.c).
 */
static void memory_map(struct boot_ctx *c)
{
	const struct arch_layout *l = c->layout;

	add_range(c, 0, BOOT_EBDA, E820_RAM);
	add_range(c, BOOT_EBDA, BOOT_HIGH, E820_RESERVED);
	add_range(c, BOOT_HIGH, l->ram_low.size, E820_RAM);
	add_range(c, l->ecam.base, l->ecam.base + l->ecam.size, E820_RESERVED);
	add_range(c, l->ram_high.base, l->ram_high.base + l->ram_high.size, E820_RAM);
}

/*
 * A guest that restarts the old way jumps to the firmware's entry: Linux does with hardware-reduced ACPI,
 * for which it expects EFI's reset, and without EFI goes on to this (arch/x86/kernel/reboot.c,
 * BOOT_EFI then BOOT_BIOS). The firmware it finds is as small as can be: it writes the reset register.
 */
static int put_reset_vector(struct boot_ctx *c, struct err *err)
{
	static const uint16_t port = X86_PORT_GED + GED_REG_RESET;
	const uint8_t code[] = {
		0xba,      port & 0xff,
		port >> 8,                  /* mov $port, %dx */
		0xb0,      GED_RESET_VALUE, /* mov $value, %al */
		0xee,                       /* out %al, (%dx) */
		0xf4,                       /* hlt */
		0xeb,      0xfd,            /* jmp to it */
	};

	return boot_put(c, BOOT_RESET, code, sizeof(code), err);
}

int boot_load(struct boot *b, struct gmem *m, const struct arch_layout *l,
	      const struct arch_machine *machine, const char *cmdline, struct err *err)
{
	struct boot_ctx c = { .mem = m, .layout = l, .cmdline = cmdline };
	int r;

	b->loaded = false;
	memset(&b->entry, 0, sizeof(b->entry));
	memory_map(&c);
	r = acpi_build(m, l, machine, &c.rsdp, err);
	if (!r)
		r = put_reset_vector(&c, err);
	if (!r)
		r = b->format->load(b, &c, err);
	if (!r)
		b->loaded = true;
	return r;
}

int boot_too_small(const struct boot *b, const struct boot_ctx *c, uint64_t end, struct err *err)
{
	uint64_t have = gmem_size(c->mem), low = c->layout->ram_low.size;

	if (end > low && low < have) /* the rest lies above 4 GiB, out of the kernel's reach */
		return err_set(err, -ENOSPC,
			       "kernel %s wants memory up to %" PRIu64
			       " MiB, but only the first %" PRIu64 " MiB are below 4 GiB",
			       b->kernel_name, (end + MIB - 1) / MIB, low / MIB);
	return err_set(err, -ENOSPC,
		       "memory too small for kernel %s%s%s: it needs %" PRIu64
		       " MiB and has %" PRIu64 " MiB",
		       b->kernel_name, b->initrd_name ? " with initrd " : "",
		       b->initrd_name ? b->initrd_name : "", end / MIB + !!(end % MIB), have / MIB);
}

static bool overlaps(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
	return a < b_end && b < a_end;
}

int boot_segment(struct boot *b, struct boot_ctx *c, gpa_t at, uint64_t off, uint64_t filesz,
		 uint64_t memsz, struct err *err)
{
	uint64_t end = at + memsz;
	int r;

	if (filesz > memsz || off > b->kernel_size || filesz > b->kernel_size - off)
		return err_set(err, -EINVAL,
			       "kernel %s is truncated: %" PRIu64 " bytes at %" PRIu64
			       " lie outside its %" PRIu64 " bytes",
			       b->kernel_name, filesz, off, b->kernel_size);
	if (end < at)
		return err_set(err, -EINVAL, "kernel %s has a segment at 0x%" PRIx64 " that wraps",
			       b->kernel_name, at);
	if (end > c->layout->ram_low.size)
		return boot_too_small(b, c, end, err);
	if (overlaps(at, end, BOOT_AREA, BOOT_AREA_END) || overlaps(at, end, BOOT_EBDA, BOOT_HIGH))
		return err_set(err, -EINVAL,
			       "kernel %s wants to be at 0x%" PRIx64 "-0x%" PRIx64
			       ", over boot information (0x60000-0x80000) or firmware tables "
			       "(0x9FC00-0x100000)",
			       b->kernel_name, at, end);

	r = gmem_load_fd(c->mem, at, b->kernel_fd, off, filesz);
	if (!r && memsz > filesz)
		r = gmem_fill(c->mem, at + filesz, 0, memsz - filesz);
	if (r)
		return err_set_sys(err, r, "cannot load kernel %s at 0x%" PRIx64, b->kernel_name,
				   at);
	if (end > c->kernel_end)
		c->kernel_end = end;
	return 0;
}

int boot_place_initrd(struct boot *b, struct boot_ctx *c, uint64_t limit, struct err *err)
{
	uint64_t low = c->kernel_end < BOOT_HIGH ? BOOT_HIGH : c->kernel_end;
	uint64_t top = c->layout->ram_low.size, at;
	int r;

	if (!b->initrd_name)
		return 0;
	low = (low + PAGE - 1) & ~(PAGE - 1);
	if (limit < top) {
		top = limit;
		if (low > top || b->initrd_size > top - low)
			return err_set(err, -ENOSPC,
				       "initrd %s of %" PRIu64 " MiB does not fit below 0x%" PRIx64
				       ", as far as this kernel looks for it",
				       b->initrd_name, b->initrd_size / MIB, limit);
	}
	if (low > top || b->initrd_size > top - low)
		return boot_too_small(b, c, low + b->initrd_size, err);
	at = (top - b->initrd_size) & ~(PAGE - 1);
	if (at < low)
		return boot_too_small(b, c, low + b->initrd_size + PAGE, err);
	r = gmem_load_fd(c->mem, at, b->initrd_fd, 0, b->initrd_size);
	if (r)
		return err_set_sys(err, r, "cannot load initrd %s", b->initrd_name);
	c->initrd = at;
	return 0;
}

int boot_put(struct boot_ctx *c, gpa_t at, const void *src, size_t len, struct err *err)
{
	int r = gmem_write(c->mem, at, src, len);

	return r ? err_set_sys(err, r, "cannot write boot information at 0x%" PRIx64, at) : 0;
}

int boot_put_cmdline(struct boot_ctx *c, const char *prefix, uint64_t max, struct err *err)
{
	size_t a = strlen(prefix), n = strlen(c->cmdline);
	int r;

	if (max > BOOT_CMDLINE_MAX - 1)
		max = BOOT_CMDLINE_MAX - 1;
	if (a > max || n > max - a)
		return err_set(err, -EINVAL,
			       "the kernel command line has %zu bytes, this kernel takes at most "
			       "%" PRIu64,
			       a + n, max);
	r = boot_put(c, BOOT_CMDLINE, prefix, a, err);
	if (!r)
		r = boot_put(c, BOOT_CMDLINE + a, c->cmdline, n + 1, err);
	return r;
}

/* Linux' boot protocol asks for selectors 0x10 and 0x18; PVH for a task segment too. */
int boot_put_gdt(struct boot_ctx *c, struct boot_entry *e, struct err *err)
{
	uint64_t gdt[] = {
		0,
		0,
		e->mode == BOOT_LONG ? 0x00af9b000000ffff : 0x00cf9b000000ffff, /* code, accessed */
		0x00cf93000000ffff,                                             /* data */
		0x00008b0000000067, /* busy 32/64-bit task segment at 0 */
		0,                  /* its upper half in long mode */
	};

	e->gdt = BOOT_GDT;
	e->gdt_limit = sizeof(gdt) - 1;
	return boot_put(c, BOOT_GDT, gdt, sizeof(gdt), err);
}

int boot_put_pages(struct boot_ctx *c, struct boot_entry *e, struct err *err)
{
	uint64_t page[512] = { 0 };
	unsigned i, j;
	int r;

	/* present, writable; a PML4, a PDPT with four entries, four directories of 2 MiB pages */
	page[0] = (BOOT_PAGES + PAGE) | 3;
	r = boot_put(c, BOOT_PAGES, page, sizeof(page), err);
	for (i = 0; i < 4; i++)
		page[i] = (BOOT_PAGES + (2 + i) * PAGE) | 3;
	if (!r)
		r = boot_put(c, BOOT_PAGES + PAGE, page, sizeof(page), err);
	for (i = 0; i < 4 && !r; i++) {
		for (j = 0; j < 512; j++)
			page[j] = ((uint64_t)(i * 512 + j) << 21) | 0x83;
		r = boot_put(c, BOOT_PAGES + (2 + i) * PAGE, page, sizeof(page), err);
	}
	e->cr3 = BOOT_PAGES;
	return r;
}
