/*
 * test_cpuid.c - topology and baselines, from made-up hosts
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/x86_64/cpu.h"

/* A host that has every feature bit. */
static void everything(struct cpu_leaves *l, const char *vendor)
{
	struct kvm_cpuid_entry2 *e;

	memset(l, 0, sizeof(*l));
	e = cpu_leaf_add(l, 0, 0);
	e->eax = 0x20;
	memcpy(&e->ebx, vendor, 4);
	memcpy(&e->edx, vendor + 4, 4);
	memcpy(&e->ecx, vendor + 8, 4);
	static const uint32_t all[] = { 1, 7, 0x80000001, 0x40000001 };

	for (unsigned i = 0; i < 4; i++) {
		e = cpu_leaf_add(l, all[i], 0);
		e->eax = e->ebx = e->ecx = e->edx = ~0u;
	}
	e = cpu_leaf_add(l, 0xd, 0);
	e->eax = 0x2ff;
	e = cpu_leaf_add(l, 0xd, 1);
	e->eax = 0xf;
	static const uint32_t area[][3] = {
		{ 2, 256, 576 },   { 5, 64, 1088 }, { 6, 512, 1152 },
		{ 7, 1024, 1664 }, { 9, 8, 2688 },
	};

	for (unsigned i = 0; i < 5; i++) {
		e = cpu_leaf_add(l, 0xd, area[i][0]);
		e->eax = area[i][1];
		e->ebx = area[i][2];
	}
	cpu_leaf_add(l, 0x80000008, 0)->eax = 0x3034;
}

static void test_baseline_hides(void **state)
{
	struct cpu_leaves l;
	struct err err = { 0 };

	everything(&l, "GenuineIntel");
	assert_int_equal(cpu_baseline(&l, 3, &err), 0);
	assert_int_equal(cpu_leaf(&l, 7, 0)->ebx,
			 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8);
	assert_int_equal(cpu_leaf(&l, 7, 0)->edx, 0);
	assert_int_equal(cpu_leaf(&l, 0xd, 0)->eax, 7);
	assert_int_equal(cpu_leaf(&l, 0xd, 0)->ecx, 832);
	assert_null(cpu_leaf(&l, 0xd, 5));
	assert_null(cpu_leaf(&l, 0xa, 0));
	assert_int_equal(cpu_leaf(&l, 0x80000008, 0)->eax & 0xff, 39);

	everything(&l, "GenuineIntel");
	assert_int_equal(cpu_baseline(&l, 4, &err), 0);
	assert_int_equal(cpu_leaf(&l, 0xd, 0)->eax, 0xe7);
	assert_int_equal(cpu_leaf(&l, 0xd, 0)->ecx, 2688);

	everything(&l, "AuthenticAMD");
	assert_int_equal(cpu_baseline(&l, 2, &err), 0);
	assert_int_equal(cpu_leaf(&l, 1, 0)->ecx & 1 << 26, 0); /* no xsave */
	assert_null(cpu_leaf(&l, 0xd, 0));
	assert_non_null(cpu_leaf(&l, 0x8000001d, 3));
	assert_null(cpu_leaf(&l, 4, 0));
}

/* Two hosts of different worth, one guest. */
static void test_baseline_same_everywhere(void **state)
{
	struct cpu_leaves rich, poor;
	struct err err = { 0 };

	everything(&rich, "GenuineIntel");
	everything(&poor, "GenuineIntel");
	assert_int_equal(cpu_baseline(&poor, 2, &err), 0); /* a host that has just the level */
	assert_int_equal(cpu_baseline(&rich, 2, &err), 0);
	cpu_leaf(&poor, 0, 0)->eax = 0x7;
	assert_int_equal(cpu_baseline(&poor, 2, &err), 0);
	assert_int_equal(rich.n, poor.n);
	for (unsigned i = 0; i < rich.n; i++) {
		struct kvm_cpuid_entry2 *other =
			cpu_leaf(&poor, rich.e[i].function, rich.e[i].index);

		assert_non_null(other);
		assert_memory_equal(&rich.e[i], other, sizeof(*other));
	}
}

static void test_baseline_refuses_by_name(void **state)
{
	struct cpu_leaves l;
	struct err err = { 0 };

	everything(&l, "AuthenticAMD");
	cpu_leaf(&l, 7, 0)->ebx &= ~(1u << 8 | 1u << 16);
	cpu_leaf(&l, 1, 0)->ecx &= ~(1u << 22);
	struct cpu_leaves copy = l;

	assert_int_equal(cpu_baseline(&l, 3, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "x86-64-v3"));
	assert_non_null(strstr(err.msg, "bmi2"));
	assert_non_null(strstr(err.msg, "movbe"));
	assert_null(strstr(err.msg, "avx512f"));
	assert_int_equal(cpu_baseline(&copy, 2, &err), 0);

	/* So many that not all are named: whole names, and how many more. */
	everything(&l, "GenuineIntel");
	cpu_leaf(&l, 1, 0)->ecx = cpu_leaf(&l, 1, 0)->edx = cpu_leaf(&l, 7, 0)->ebx = 0;
	assert_int_equal(cpu_baseline(&l, 4, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "lacks: fpu, de, "));

	unsigned commas = 0, more = 0;

	for (const char *c = strchr(err.msg, ':'); *c; c++)
		commas += *c == ',';
	assert_int_equal(sscanf(strstr(err.msg, " and "), " and %u more", &more), 1);
	assert_true(commas + 1 + more > 40);
	assert_true(strlen(err.msg) < 250);

	everything(&l, "GenuineIntel");
	cpu_leaf(&l, 0x80000008, 0)->eax = 0x3024;
	assert_int_equal(cpu_baseline(&l, 2, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "address bits"));
}

static void test_topology(void **state)
{
	static const struct {
		unsigned ncpus, shift;
	} cases[] = { { 1, 0 }, { 2, 1 }, { 3, 2 }, { 4, 2 }, { 5, 3 }, { 64, 6 } };
	struct err err = { 0 };

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		unsigned n = cases[i].ncpus, shift = cases[i].shift, me = n - 1;
		uint32_t all = (1u << shift) - 1;
		struct cpu_leaves l;

		everything(&l, "GenuineIntel");
		assert_int_equal(cpu_baseline(&l, 3, &err), 0);
		cpu_topology(&l, n, 0);
		cpu_topology(&l, n, me); /* again for another vCPU: nothing is left of the first */
		assert_int_equal(cpu_leaf(&l, 1, 0)->ebx, me << 24 | n << 16 | 8 << 8);
		assert_int_equal(cpu_leaf(&l, 1, 0)->edx >> 28 & 1, n > 1);
		assert_int_equal(cpu_leaf(&l, 4, 0)->eax >> 14 & 0xfff, 0);
		assert_int_equal(cpu_leaf(&l, 4, 3)->eax >> 14 & 0xfff, all);
		assert_int_equal(cpu_leaf(&l, 4, 0)->eax >> 26, all);
		assert_int_equal(cpu_leaf(&l, 4, 4)->eax, 0);
		assert_int_equal(cpu_leaf(&l, 0xb, 0)->eax, 0);
		assert_int_equal(cpu_leaf(&l, 0xb, 0)->ebx, 1);
		assert_int_equal(cpu_leaf(&l, 0xb, 0)->ecx, 0x100);
		assert_int_equal(cpu_leaf(&l, 0xb, 1)->eax, shift);
		assert_int_equal(cpu_leaf(&l, 0xb, 1)->ebx, n);
		assert_int_equal(cpu_leaf(&l, 0xb, 1)->ecx, 0x201);
		assert_int_equal(cpu_leaf(&l, 0xb, 2)->ebx, 0);
		for (unsigned k = 0; k < 3; k++)
			assert_int_equal(cpu_leaf(&l, 0xb, k)->edx, me);
		assert_null(cpu_leaf(&l, 0x1f, 0));

		everything(&l, "AuthenticAMD");
		cpu_topology(&l, n, me);
		assert_int_equal(cpu_leaf(&l, 0x80000008, 0)->ecx, shift << 12 | (n - 1));
		assert_int_equal(cpu_leaf(&l, 0x80000001, 0)->ecx >> 1 & 1, n > 1);
		assert_int_equal(cpu_leaf(&l, 0x8000001e, 0)->eax, me);
		assert_int_equal(cpu_leaf(&l, 0x8000001e, 0)->ebx, me);
		assert_int_equal(cpu_leaf(&l, 0x1f, 1)->ebx, n);
	}
}

static void test_room(void **state)
{
	struct cpu_leaves l = { .n = 0 };

	for (uint32_t i = 0; i < CPU_LEAVES_MAX + 10; i++)
		cpu_leaf_add(&l, 0x100 + i, 0);
	assert_int_equal(l.n, CPU_LEAVES_MAX);
	cpu_leaf_remove(&l, 0x100);
	assert_int_equal(l.n, CPU_LEAVES_MAX - 1);
	assert_null(cpu_leaf(&l, 0x100, 0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_baseline_hides),
		cmocka_unit_test(test_baseline_same_everywhere),
		cmocka_unit_test(test_baseline_refuses_by_name),
		cmocka_unit_test(test_topology),
		cmocka_unit_test(test_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
