/*
 * test_boot.c - kernel files that lie
 *
 * A small kernel of each format that loads, and what becomes of it when one field is something else. A
 * lie is an error that names the file, nothing is written outside RAM, and the work stays small whatever
 * size a field claims (linux-loader GHSA-52h2; the fuzzer tries what nobody thought of).
 */
#include <elf.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/guest_memory.h"
#include "vmm/x86_64/boot.h"

#define MIB      UINT64_C(0x100000)
#define RAM      (64 * MIB)
#define FILE_LEN 4096
#define CPU_MAX  (1000 * 1000) /* microseconds for one file; each takes a few hundred */

struct image {
	uint8_t bytes[FILE_LEN];
	size_t len;
};

static void put(struct image *i, size_t at, uint64_t value, unsigned bytes)
{
	for (; bytes; bytes--, value >>= 8)
		i->bytes[at++] = (uint8_t)value;
}

/* Documentation/arch/x86/boot.rst: one sector of setup, protocol 2.15. */
static void bzimage(struct image *i)
{
	*i = (struct image){ .len = 2048 };
	put(i, 0x1f1, 1, 1);         /* setup_sects */
	put(i, 0x1f4, 1024 / 16, 4); /* syssize */
	put(i, 0x1fe, 0xaa55, 2);
	put(i, 0x200, 0x6ceb, 2);
	memcpy(i->bytes + 0x202, "HdrS", 4);
	put(i, 0x206, 0x20f, 2);
	put(i, 0x211, 1, 1);          /* LOADED_HIGH */
	put(i, 0x22c, 0x7fffffff, 4); /* initrd_addr_max */
	put(i, 0x230, 0x200000, 4);   /* kernel_alignment */
	put(i, 0x234, 1, 1);          /* relocatable */
	put(i, 0x236, 1, 2);          /* XLF_KERNEL_64 */
	put(i, 0x238, 2047, 4);       /* cmdline_size */
	put(i, 0x258, 0x1000000, 8);  /* pref_address */
	put(i, 0x260, 0x200000, 4);   /* init_size */
}

#define PHDR(n) (sizeof(Elf64_Ehdr) + (n) * sizeof(Elf64_Phdr))
#define NOTE    3072

/* Two segments to load and the PVH note. */
static void pvh(struct image *i)
{
	static const uint32_t note[] = { 4, 4, 18, 0x006e6558 /* "Xen" */, 0x100000 };
	const Elf64_Ehdr head = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1 },
				  .e_type = ET_EXEC,
				  .e_machine = EM_X86_64,
				  .e_entry = 0x100000,
				  .e_phoff = sizeof(head),
				  .e_phentsize = sizeof(Elf64_Phdr),
				  .e_phnum = 3 };
	const Elf64_Phdr part[] = {
		{ PT_LOAD, 7, 1024, 0x100000, 0x100000, 16, 0x2000, 4096 },
		{ PT_LOAD, 7, 2048, 0x200000, 0x200000, 16, 0x2000, 4096 },
		{ PT_NOTE, 4, NOTE, 0, 0, sizeof(note), sizeof(note), 4 },
	};

	*i = (struct image){ .len = FILE_LEN };
	memcpy(i->bytes, &head, sizeof(head));
	memcpy(i->bytes + PHDR(0), part, sizeof(part));
	memcpy(i->bytes + NOTE, note, sizeof(note));
}

/* With addresses of its own; the header is 64 bytes into the file. */
static void multiboot(struct image *i)
{
	*i = (struct image){ .len = 1024 };
	put(i, 64, 0x1badb002, 4);
	put(i, 68, 1u << 16, 4);
	put(i, 72, -(0x1badb002u + (1u << 16)), 4);
	put(i, 76, 0x100040, 4); /* header_addr */
	put(i, 80, 0x100000, 4); /* load_addr */
	put(i, 84, 0, 4);        /* load_end: the file's */
	put(i, 88, 0x110000, 4); /* bss_end */
	put(i, 92, 0x100080, 4); /* entry */
}

struct result {
	int rc;
	uint64_t cpu_us;
	struct err err;
};

static uint64_t cpu_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static struct result try(const struct image *i)
{
	struct arch_machine machine = { .cpus = 1, .serial = true };
	struct arch_layout layout;
	struct result r = { 0 };
	cleanup_fd int fd = memfd_create("kernel", MFD_CLOEXEC);
	struct gmem *mem = gmem_new(&r.err);
	uint64_t start = cpu_us();
	char path[64];

	assert_non_null(mem);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	assert_int_equal(fd_write_all(fd, i->bytes, i->len), 0);
	assert_int_equal(arch_layout_init(&layout, RAM, 40, &r.err), 0);
	assert_int_equal(arch_add_ram(mem, &layout, GMEM_PAGES_SMALL, &r.err), 0);

	struct boot *b = boot_open(&(struct boot_files){ .kernel = path }, &r.err);

	r.rc = b ? boot_load(b, mem, &layout, &machine, "quiet", &r.err) : r.err.code;
	boot_free(b);
	gmem_free(mem);
	r.cpu_us = cpu_us() - start;
	/* An error tells its story and whose it is. */
	assert_true(!r.rc || strstr(r.err.msg, path) || strstr(r.err.msg, "command line"));
	return r;
}

/* One field that lies: @bytes of @value at @at. */
struct lie {
	size_t at;
	uint64_t value;
	unsigned bytes;
	const char *says;
};

static void check_lies(void (*make)(struct image *), const struct lie *lies, size_t n)
{
	struct image i;

	make(&i);
	assert_int_equal(try(&i).rc, 0);
	for (size_t k = 0; k < n; k++) {
		make(&i);
		put(&i, lies[k].at, lies[k].value, lies[k].bytes);
		struct result r = try(&i);

		if (!r.rc || !strstr(r.err.msg, lies[k].says))
			fail_msg("0x%zx = 0x%llx: %d %s", lies[k].at,
				 (unsigned long long)lies[k].value, r.rc, r.err.msg);
		if (r.cpu_us > CPU_MAX)
			fail_msg("0x%zx = 0x%llx: took %llu us", lies[k].at,
				 (unsigned long long)lies[k].value, (unsigned long long)r.cpu_us);
	}
}

#define CHECK_LIES(make, lies) check_lies(make, lies, sizeof(lies) / sizeof((lies)[0]))

static void test_bzimage(void **state)
{
	static const struct lie lies[] = {
		{ 0x1f1, 0xff, 1, "truncated" },
		{ 0x1f1, 0, 1, "truncated" }, /* 0 means 4 */
		{ 0x1f4, 0xffffffff, 4, "truncated" },
		{ 0x1f4, 1024 / 16 + 1, 4, "truncated" },
		{ 0x1f4, 0, 4, "without code" },
		{ 0x206, 0x20b, 2, "older than 2.12" },
		{ 0x211, 0, 1, "zImage" },
		{ 0x236, 0, 2, "32-bit" },
		{ 0x258, UINT64_MAX, 8, "beyond" },
		{ 0x258, UINT64_MAX - 0x1fffff, 8, "beyond" },
		{ 0x258, UINT64_C(1) << 40, 8, "beyond" },
		{ 0x258, RAM, 8, "too small" },
		{ 0x260, 0xffffffff, 4, "too small" },
		{ 0x238, 3, 4, "command line" },
	};

	CHECK_LIES(bzimage, lies);

	/* Below 1 MiB the alignment decides where it goes. */
	struct image i;

	for (unsigned k = 0; k < 3; k++) {
		static const uint32_t alignment[] = { 0, 0x180000, 0xffffffff };

		bzimage(&i);
		put(&i, 0x258, 0, 8);
		put(&i, 0x230, alignment[k], 4);
		struct result r = try(&i);

		assert_int_equal(r.rc, -EINVAL);
		assert_non_null(strstr(r.err.msg, "no power of 2"));
	}
	bzimage(&i);
	put(&i, 0x234, 0, 1); /* not relocatable, and wants to be at 0 */
	put(&i, 0x258, 0, 8);
	assert_non_null(strstr(try(&i).err.msg, "below 1 MiB"));
}

#define EH(field)    offsetof(Elf64_Ehdr, field)
#define PH(n, field) (PHDR(n) + offsetof(Elf64_Phdr, field))

static void test_pvh(void **state)
{
	static const struct lie lies[] = {
		{ EH(e_phnum), 0, 2, "program headers" },
		{ EH(e_phnum), 0xffff, 2, "program headers" },
		{ EH(e_phnum), 200, 2, "truncated" },
		{ EH(e_phentsize), 1, 2, "wrong size" },
		{ EH(e_phoff), UINT64_MAX, 8, "truncated" },
		{ EH(e_phoff), FILE_LEN - 1, 8, "truncated" },
		{ EH(e_ident) + EI_CLASS, 3, 1, "neither" },
		{ EH(e_machine), EM_AARCH64, 2, "arm64" },
		{ PH(0, p_offset), UINT64_MAX, 8, "truncated" },
		{ PH(0, p_offset), FILE_LEN - 15, 8, "truncated" },
		{ PH(0, p_filesz), UINT64_MAX, 8, "bigger in the file" },
		{ PH(0, p_filesz), 0x2000, 8, "truncated" },
		{ PH(1, p_memsz), UINT64_MAX, 8, "wraps" },
		{ PH(1, p_memsz), UINT64_C(1) << 62, 8, "too small" },
		{ PH(1, p_memsz), RAM, 8, "too small" },
		{ PH(0, p_memsz), 0x100001, 8, "overlap" },
		{ PH(1, p_paddr), UINT64_MAX - 0x1000, 8, "wraps" },
		{ PH(1, p_paddr), RAM - 0x1000, 8, "too small" },
		{ PH(1, p_paddr), 0x101fff, 8, "overlap" },
		{ PH(1, p_paddr), 0x60000, 8, "boot information" },
		{ PH(1, p_paddr), 0xdffff, 8, "firmware tables" },
		{ PH(2, p_filesz), 0x100001, 8, "truncated" },
		{ PH(2, p_offset), UINT64_MAX - 1, 8, "truncated" },
		{ NOTE, 0xffffffff, 4, "without a PVH note" },       /* the name's length */
		{ NOTE + 4, 0xffffffff, 4, "without a PVH note" },   /* the value's */
		{ NOTE + 8, 17, 4, "without a PVH note" },           /* the type */
		{ NOTE + 16, 0xfffffff0, 4, "none of its segments" } /* the entry */
	};

	CHECK_LIES(pvh, lies);
}

static void test_multiboot(void **state)
{
	static const struct lie lies[] = {
		{ 76, 0, 4, "contradict" },        /* the header below what is loaded */
		{ 76, 0x100041, 4, "contradict" }, /* the load starts before the file */
		{ 80, 0xfffffff0, 4, "contradict" },
		{ 84, 0xfffff, 4, "contradict" }, /* ends before it begins */
		{ 84, 0x100401, 4, "truncated" },
		{ 84, 0xffffffff, 4, "contradict" }, /* beyond its bss */
		{ 88, 0xfffff, 4, "contradict" },
		{ 88, 0xffffffff, 4, "too small" },
		{ 72, 0, 4, "is " }, /* a sum that is not one: no header at all */
	};

	CHECK_LIES(multiboot, lies);
}

/* Each format cut short anywhere: an error, or a kernel that loads, and never a hang. */
static void test_truncated(void **state)
{
	void (*const makers[])(struct image *) = { bzimage, pvh, multiboot };

	for (size_t k = 0; k < 3; k++) {
		struct image i;

		makers[k](&i);
		size_t whole = i.len;

		for (i.len = 1; i.len < whole; i.len += i.len < 768 ? 1 : 61) {
			struct result r = try(&i);

			assert_true(!r.rc || r.err.msg[0]);
			assert_true(r.cpu_us < CPU_MAX);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bzimage),
		cmocka_unit_test(test_pvh),
		cmocka_unit_test(test_multiboot),
		cmocka_unit_test(test_truncated),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
