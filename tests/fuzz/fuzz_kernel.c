/*
 * fuzz_kernel.c - kernels and initrds from anybody (linux-loader GHSA-52h2: hostile headers)
 *
 * Four bytes say how the machine is: what the file is taken for, RAM in MiB, pages of initrd, length of
 * the command line. The rest is the kernel, in a memfd. What was loaded once loads again the same way
 * (the guest restarts), and the entry is where guest memory is.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/x86_64/boot.h"

#define CHECK(cond)                       \
	do {                              \
		if (!(cond))              \
			__builtin_trap(); \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct host_file {
	int fd;
	char path[32];
};

static void file_make(struct host_file *f, const void *data, size_t len, off_t size)
{
	f->fd = memfd_create("kernel", MFD_CLOEXEC);
	CHECK(f->fd >= 0);
	CHECK(write(f->fd, data, len) == (ssize_t)len);
	CHECK(!ftruncate(f->fd, size));
	snprintf(f->path, sizeof(f->path), "/proc/self/fd/%d", f->fd);
}

static void load(struct boot *b, const uint8_t *how)
{
	struct arch_machine machine = {
		.cpus = 1 + (how[1] & 3), .pci = true, .serial = true, .rtc = true
	};
	struct arch_layout layout;
	struct gmem *m = gmem_new(NULL);
	char *cmdline = malloc(how[3] * 300u + 1);
	struct err err = { 0 };

	memset(cmdline, 'c', how[3] * 300u);
	cmdline[how[3] * 300u] = '\0';
	CHECK(!arch_layout_init(&layout, (uint64_t)(2 + how[1] % 32) << 20, 40, &err));
	CHECK(!arch_add_ram(m, &layout, GMEM_PAGES_SMALL, &err));
	CHECK(boot_describe(b)[0]);
	int rc = boot_load(b, m, &layout, &machine, cmdline, &err);

	CHECK(rc ? err.code == rc && err.msg[0] : boot_get_entry(b) != NULL);
	CHECK(!rc == !!boot_get_entry(b));
	for (unsigned i = 0; i < gmem_count(m); i++)
		CHECK(!gmem_discard(m, gmem_region(m, i)->gpa, gmem_region(m, i)->size));
	struct boot_entry entry = b->entry;

	CHECK(boot_load(b, m, &layout, &machine, cmdline, &err) == rc);
	CHECK(rc || !memcmp(&entry, &b->entry, sizeof(entry)));
	gmem_free(m);
	free(cmdline);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const enum boot_flat_mode modes[] = { BOOT_FLAT_NONE, BOOT_FLAT_16, BOOT_FLAT_32,
						     BOOT_FLAT_64 };
	struct boot_files files = { .flat_addr = 0x7c00 };
	struct host_file kernel, initrd = { .fd = -1 };
	struct err err = { 0 };
	struct boot *b;

	if (size < 4)
		return 0;
	files.flat = data[0] < 0xf0 ? BOOT_FLAT_NONE : modes[data[0] & 3];
	if (data[0] & 4)
		files.flat_addr = 0x100000;
	file_make(&kernel, data + 4, size - 4, (off_t)size - 4);
	files.kernel = kernel.path;
	if (data[2]) {
		file_make(&initrd, "070701", 6, (off_t)data[2] * 4096);
		files.initrd = initrd.path;
	}
	b = boot_open(&files, &err);
	if (b)
		load(b, data);
	else
		CHECK(err.code < 0 && err.msg[0]);
	boot_free(b);
	close(kernel.fd);
	if (initrd.fd >= 0)
		close(initrd.fd);
	return 0;
}
