/*
 * test_acpi.c - firmware tables of every shape, read back by an independent reader
 *
 * Sums, lengths and pointers are checked here as a guest would find them, and ACPICA's disassembler and
 * compiler, which Linux' own interpreter comes from, have to make sense of the byte code.
 */
#include <fcntl.h>
#include <ftw.h>
#include <malloc.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/guest_memory.h"
#include "vmm/x86_64/acpi.h"
#include "vmm/x86_64/boot.h"

#define MIB UINT64_C(0x100000)

struct shape {
	unsigned cpus, mmio;
	bool pci, chips;
	uint64_t ram;
};

/* One processor to all of them, both transports, no device and the most there can be. */
static const struct shape shapes[] = {
	{ 1, 0, true, true, 64 * MIB },
	{ 2, 0, true, true, 3072 * MIB },
	{ 3, 1, true, true, 5000 * MIB },
	{ 4, 0, false, false, 64 * MIB },
	{ 16, 17, true, true, 64 * MIB },
	{ 63, ARCH_MMIO_SLOTS - 1, false, true, 64 * MIB },
	{ ARCH_CPUS_MAX, ARCH_MMIO_SLOTS, true, true, 64 * MIB },
};
#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static uint64_t le(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;

	while (bytes--)
		v = v << 8 | p[bytes];
	return v;
}

static uint8_t sum(const uint8_t *p, size_t len)
{
	uint8_t s = 0;

	while (len--)
		s = (uint8_t)(s + *p++);
	return s;
}

struct firmware {
	struct arch_machine machine;
	struct arch_layout layout;
	struct gmem *mem;
	uint8_t area[BOOT_ACPI_END - BOOT_ACPI];
	gpa_t rsdp;
};

static void build(struct firmware *f, const struct shape *s)
{
	struct err err = { 0 };

	*f = (struct firmware){ .machine = { .cpus = s->cpus,
					     .pci = s->pci,
					     .serial = s->chips,
					     .rtc = s->chips,
					     .panic = s->chips } };
	while (f->machine.mmio_count < s->mmio) {
		struct arch_mmio_device *d = &f->machine.mmio[f->machine.mmio_count];

		arch_mmio_slot(f->machine.mmio_count++, &d->base, &d->gsi);
	}
	f->mem = gmem_new(&err);
	assert_non_null(f->mem);
	assert_int_equal(arch_layout_init(&f->layout, s->ram, 40, &err), 0);
	assert_int_equal(arch_add_ram(f->mem, &f->layout, GMEM_PAGES_SMALL, &err), 0);
	assert_int_equal(acpi_build(f->mem, &f->layout, &f->machine, &f->rsdp, &err), 0);
	assert_int_equal(gmem_read(f->mem, BOOT_ACPI, f->area, sizeof(f->area)), 0);
}

/* A table by its address: whole, in its place, summed up. */
static const uint8_t *table_at(const struct firmware *f, uint64_t at, size_t *len)
{
	const uint8_t *t = f->area + (at - BOOT_ACPI);

	assert_true(at >= BOOT_ACPI && at <= BOOT_ACPI_END - 36);
	*len = le(t + 4, 4);
	assert_true(*len >= 36 && *len <= BOOT_ACPI_END - at);
	assert_int_equal(sum(t, *len), 0);
	return t;
}

static const uint8_t *find(const struct firmware *f, const char *signature, size_t *len)
{
	const uint8_t *rsdp = f->area + (f->rsdp - BOOT_ACPI);
	size_t n;

	/* As a guest that searches finds it: on a paragraph, both sums right. */
	assert_int_equal(f->rsdp % 16, 0);
	assert_memory_equal(rsdp, "RSD PTR ", 8);
	assert_int_equal(sum(rsdp, 20), 0);
	assert_int_equal(sum(rsdp, 36), 0);

	const uint8_t *xsdt = table_at(f, le(rsdp + 24, 8), &n);

	assert_memory_equal(xsdt, "XSDT", 4);
	assert_int_equal((n - 36) % 8, 0);
	for (size_t i = 36; i < n; i += 8) {
		const uint8_t *t = table_at(f, le(xsdt + i, 8), len);

		if (!memcmp(t, signature, 4))
			return t;
	}
	return NULL;
}

static const uint8_t *find_dsdt(const struct firmware *f, size_t *len)
{
	const uint8_t *fadt = find(f, "FACP", len);

	assert_non_null(fadt);
	assert_int_equal(*len, 276);
	/* 5.2.9: where both are given they agree; a hardware-reduced machine has no FACS. */
	assert_int_equal(le(fadt + 40, 4), le(fadt + 140, 8));
	assert_int_equal(le(fadt + 36, 4), 0);
	assert_true(le(fadt + 112, 4) & 1u << 20);

	const uint8_t *dsdt = table_at(f, le(fadt + 140, 8), len);

	assert_memory_equal(dsdt, "DSDT", 4);
	return dsdt;
}

static void check_madt(const struct firmware *f)
{
	size_t len;
	const uint8_t *t = find(f, "APIC", &len);
	unsigned processors = 0, chips = 0;

	assert_non_null(t);
	for (size_t at = 44; at < len; at += t[at + 1]) {
		assert_true(t[at + 1] >= 2 && at + t[at + 1] <= len);
		if (t[at] == 0) {
			assert_int_equal(t[at + 3], processors); /* APIC id, as CPUID has it */
			assert_int_equal(le(t + at + 4, 4), 1);
			processors++;
		}
		chips += t[at] == 1;
	}
	assert_int_equal(processors, f->machine.cpus);
	assert_int_equal(chips, 1);
}

static void check_mcfg(const struct firmware *f)
{
	size_t len;
	const uint8_t *t = find(f, "MCFG", &len);

	assert_int_equal(!!t, f->machine.pci);
	if (!t)
		return;
	assert_int_equal(le(t + 44, 8), f->layout.ecam.base);
	/* 1 MiB a bus */
	assert_int_equal((t[55] - t[54] + 1) * MIB, f->layout.ecam.size);
}

static void test_tables(void **state)
{
	static struct firmware f;

	for (size_t i = 0; i < SHAPES; i++) {
		size_t len;

		build(&f, &shapes[i]);
		find_dsdt(&f, &len);
		check_madt(&f);
		check_mcfg(&f);
		gmem_free(f.mem);
	}
}

static void test_too_much(void **state)
{
	static const struct shape most = { ARCH_CPUS_MAX, ARCH_MMIO_SLOTS, true, true, 64 * MIB };
	static struct firmware f;
	struct err err = { 0 };

	build(&f, &most);
	f.machine.cpus++;
	assert_int_equal(acpi_build(f.mem, &f.layout, &f.machine, &f.rsdp, &err), -ENOSPC);
	gmem_free(f.mem);
}

/* Nothing of ours is in the gaps between them. */
static void test_same_on_used_memory(void **state)
{
	static struct firmware clean, used;

	for (size_t i = 0; i < SHAPES; i++) {
		build(&clean, &shapes[i]);
		mallopt(M_PERTURB, 0x55);
		build(&used, &shapes[i]);
		mallopt(M_PERTURB, 0);
		assert_memory_equal(clean.area, used.area, sizeof(clean.area));
		gmem_free(clean.mem);
		gmem_free(used.mem);
	}
}

/* ---- ACPICA ---- */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int run_iasl(const char *dir, const char *const argv[])
{
	posix_spawn_file_actions_t actions;
	char *const env[] = { NULL };
	char out[256];
	pid_t pid;
	int status;

	snprintf(out, sizeof(out), "%s/out", dir);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 1, out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	posix_spawn_file_actions_adddup2(&actions, 1, 2);

	int rc = posix_spawnp(&pid, argv[0], &actions, NULL, (char *const *)argv, env);

	posix_spawn_file_actions_destroy(&actions);
	if (rc)
		return -rc;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static char *read_text(const char *dir, const char *name)
{
	static char text[256 << 10];
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	FILE *f = fopen(path, "r");

	assert_non_null(f);
	text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
	fclose(f);
	return text;
}

static void put_file(const char *dir, const char *name, const uint8_t *data, size_t len)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}

static unsigned occurrences(const char *text, const char *what)
{
	unsigned n = 0;

	for (const char *p = text; (p = strstr(p, what)); p++)
		n++;
	return n;
}

/*
 * The disassembly says what was meant, and compiles again to the same bytes: nothing in it was skipped
 * or guessed.
 */
static void check_code(const char *dir, const struct firmware *f)
{
	char aml[256], dsl[256], again[256];
	size_t len;
	const uint8_t *dsdt = find_dsdt(f, &len);

	snprintf(aml, sizeof(aml), "%s/dsdt.aml", dir);
	snprintf(dsl, sizeof(dsl), "%s/dsdt.dsl", dir);
	snprintf(again, sizeof(again), "%s/again", dir);
	put_file(dir, "dsdt.aml", dsdt, len);
	assert_int_equal(run_iasl(dir, (const char *[]){ "iasl", "-d", aml, NULL }), 0);

	char *text = read_text(dir, "out");

	if (occurrences(text, "rror") || occurrences(text, "arning"))
		fail_msg("%s", text);
	text = read_text(dir, "dsdt.dsl");
	assert_int_equal(occurrences(text, "LNRO0005"), f->machine.mmio_count);
	assert_int_equal(occurrences(text, "PNP0A08"), f->machine.pci);
	assert_int_equal(occurrences(text, "Device (COM1)"), f->machine.serial);
	assert_int_equal(occurrences(text, "\"QEMU0001\""), f->machine.panic);
	/* What it cannot read as resources it shows as the bytes of a buffer. */
	assert_int_equal(occurrences(text, "Name (_CRS, ResourceTemplate ()"),
			 occurrences(text, "Name (_CRS,"));
	assert_int_equal(occurrences(text, "Method (_EVT, 1, Serialized)"), 1);
	assert_int_equal(occurrences(text, "Name (\\_S5, Package"), 1);

	int rc = run_iasl(dir, (const char *[]){ "iasl", "-oa", "-p", again, dsl, NULL });

	text = read_text(dir, "out");
	if (rc || !strstr(text, " 0 Errors"))
		fail_msg("%s", text);

	uint8_t *bytes = (uint8_t *)read_text(dir, "again.aml");

	assert_int_equal(le(bytes + 4, 4), len);
	/* from the body on: the compiler puts its own name and version into the header */
	assert_memory_equal(bytes + 36, dsdt + 36, len - 36);
}

static void test_disassembles(void **state)
{
	static struct firmware f;
	char dir[] = "/tmp/coracle-acpi-XXXXXX";

	assert_non_null(mkdtemp(dir));
	bool there = run_iasl(dir, (const char *[]){ "iasl", "-v", NULL }) == 0;

	for (size_t i = 0; there && i < SHAPES; i++) {
		build(&f, &shapes[i]);
		check_code(dir, &f);
		gmem_free(f.mem);
	}
	nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	if (!there) {
		print_message("iasl is not installed (package acpica-tools)\n");
		skip();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tables),
		cmocka_unit_test(test_too_much),
		cmocka_unit_test(test_same_on_used_memory),
		cmocka_unit_test(test_disassembles),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
