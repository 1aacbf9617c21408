/*
 * cpu_model.c - the baselines x86-64-v2, v3 and v4
 *
 * A baseline is the same on every host of a vendor, so that a guest can move between hosts whose
 * processors differ: the level of the x86-64 psABI, what a virtual machine has anyway because KVM
 * emulates it, and a few things that every processor of the level has and guests gain much by (AES).
 * One table says which bit belongs to which level and what it is called; a host that lacks one is
 * refused by that name instead of losing it silently.
 *
 * The signature is that of an early processor of the level, so that a guest kernel assumes its flaws
 * and mitigates them; the bits by which microcode offers mitigations differ between hosts and are
 * hidden, as is the invariant TSC (the next host's may run at another rate; kvmclock follows it).
 * Caches are made up, and addresses have 39 bits, which every such processor reaches.
 */
#include <stdio.h>
#include <string.h>

#include "vmm/x86_64/cpu.h"

#define KVM_LEAF      0x40000001
#define BASELINE_BITS 39
#define LINEAR_BITS   48

struct feature {
	uint32_t function, index;
	enum cpu_reg reg;
	unsigned bit, level;
	const char *name; /* as /proc/cpuinfo has it */
};

static const struct feature features[] = {
	{ 1, 0, CPU_EDX, 0, 1, "fpu" },
	{ 1, 0, CPU_EDX, 2, 1, "de" },
	{ 1, 0, CPU_EDX, 3, 1, "pse" },
	{ 1, 0, CPU_EDX, 4, 1, "tsc" },
	{ 1, 0, CPU_EDX, 5, 1, "msr" },
	{ 1, 0, CPU_EDX, 6, 1, "pae" },
	{ 1, 0, CPU_EDX, 7, 1, "mce" },
	{ 1, 0, CPU_EDX, 8, 1, "cx8" },
	{ 1, 0, CPU_EDX, 9, 1, "apic" },
	{ 1, 0, CPU_EDX, 11, 1, "sep" },
	{ 1, 0, CPU_EDX, 12, 1, "mtrr" },
	{ 1, 0, CPU_EDX, 13, 1, "pge" },
	{ 1, 0, CPU_EDX, 14, 1, "mca" },
	{ 1, 0, CPU_EDX, 15, 1, "cmov" },
	{ 1, 0, CPU_EDX, 16, 1, "pat" },
	{ 1, 0, CPU_EDX, 17, 1, "pse36" },
	{ 1, 0, CPU_EDX, 19, 1, "clflush" },
	{ 1, 0, CPU_EDX, 23, 1, "mmx" },
	{ 1, 0, CPU_EDX, 24, 1, "fxsr" },
	{ 1, 0, CPU_EDX, 25, 1, "sse" },
	{ 1, 0, CPU_EDX, 26, 1, "sse2" },
	{ 1, 0, CPU_ECX, 21, 1, "x2apic" },
	{ 1, 0, CPU_ECX, 24, 1, "tsc_deadline_timer" },
	{ 1, 0, CPU_ECX, 31, 1, "hypervisor" },
	{ 7, 0, CPU_EBX, 1, 1, "tsc_adjust" },
	{ 0x80000001, 0, CPU_EDX, 11, 1, "syscall" },
	{ 0x80000001, 0, CPU_EDX, 20, 1, "nx" },
	{ 0x80000001, 0, CPU_EDX, 29, 1, "lm" },

	{ KVM_LEAF, 0, CPU_EAX, 0, 1, "kvm clocksource" },
	{ KVM_LEAF, 0, CPU_EAX, 1, 1, "kvm nop_io_delay" },
	{ KVM_LEAF, 0, CPU_EAX, 3, 1, "kvm clocksource2" },
	{ KVM_LEAF, 0, CPU_EAX, 4, 1, "kvm async_pf" },
	{ KVM_LEAF, 0, CPU_EAX, 5, 1, "kvm steal_time" },
	{ KVM_LEAF, 0, CPU_EAX, 6, 1, "kvm pv_eoi" },
	{ KVM_LEAF, 0, CPU_EAX, 7, 1, "kvm pv_unhalt" },
	{ KVM_LEAF, 0, CPU_EAX, 9, 1, "kvm pv_tlb_flush" },
	{ KVM_LEAF, 0, CPU_EAX, 11, 1, "kvm pv_send_ipi" },
	{ KVM_LEAF, 0, CPU_EAX, 12, 1, "kvm poll_control" },
	{ KVM_LEAF, 0, CPU_EAX, 13, 1, "kvm pv_sched_yield" },
	{ KVM_LEAF, 0, CPU_EAX, 14, 1, "kvm async_pf_int" },
	{ KVM_LEAF, 0, CPU_EAX, 24, 1, "kvm clocksource_stable" },

	{ 1, 0, CPU_ECX, 0, 2, "sse3" },
	{ 1, 0, CPU_ECX, 9, 2, "ssse3" },
	{ 1, 0, CPU_ECX, 13, 2, "cx16" },
	{ 1, 0, CPU_ECX, 19, 2, "sse4_1" },
	{ 1, 0, CPU_ECX, 20, 2, "sse4_2" },
	{ 1, 0, CPU_ECX, 23, 2, "popcnt" },
	{ 0x80000001, 0, CPU_ECX, 0, 2, "lahf_lm" },
	{ 0x80000001, 0, CPU_EDX, 27, 2, "rdtscp" },

	{ 1, 0, CPU_ECX, 1, 3, "pclmulqdq" },
	{ 1, 0, CPU_ECX, 12, 3, "fma" },
	{ 1, 0, CPU_ECX, 22, 3, "movbe" },
	{ 1, 0, CPU_ECX, 25, 3, "aes" },
	{ 1, 0, CPU_ECX, 26, 3, "xsave" },
	{ 1, 0, CPU_ECX, 28, 3, "avx" },
	{ 1, 0, CPU_ECX, 29, 3, "f16c" },
	{ 1, 0, CPU_ECX, 30, 3, "rdrand" },
	{ 7, 0, CPU_EBX, 0, 3, "fsgsbase" },
	{ 7, 0, CPU_EBX, 3, 3, "bmi1" },
	{ 7, 0, CPU_EBX, 5, 3, "avx2" },
	{ 7, 0, CPU_EBX, 7, 3, "smep" },
	{ 7, 0, CPU_EBX, 8, 3, "bmi2" },
	{ 0xd, 0, CPU_EAX, 0, 3, "x87 state" },
	{ 0xd, 0, CPU_EAX, 1, 3, "sse state" },
	{ 0xd, 0, CPU_EAX, 2, 3, "avx state" },
	{ 0xd, 1, CPU_EAX, 0, 3, "xsaveopt" },
	{ 0x80000001, 0, CPU_ECX, 5, 3, "abm (lzcnt)" },

	{ 7, 0, CPU_EBX, 16, 4, "avx512f" },
	{ 7, 0, CPU_EBX, 17, 4, "avx512dq" },
	{ 7, 0, CPU_EBX, 20, 4, "smap" },
	{ 7, 0, CPU_EBX, 28, 4, "avx512cd" },
	{ 7, 0, CPU_EBX, 30, 4, "avx512bw" },
	{ 7, 0, CPU_EBX, 31, 4, "avx512vl" },
	{ 0xd, 0, CPU_EAX, 5, 4, "avx512 opmask state" },
	{ 0xd, 0, CPU_EAX, 6, 4, "avx512 zmm state" },
	{ 0xd, 0, CPU_EAX, 7, 4, "avx512 zmm16 state" },
	{ 0xd, 1, CPU_EAX, 1, 4, "xsavec" },
	{ 0xd, 1, CPU_EAX, 2, 4, "xgetbv1" },
};

const char *cpu_feature_name(uint32_t function, uint32_t index, enum cpu_reg reg, unsigned bit)
{
	for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		const struct feature *f = &features[i];

		if (f->function == function && f->index == index && f->reg == reg && f->bit == bit)
			return f->name;
	}
	return NULL;
}

/* Nehalem, Haswell, Skylake-X; Bulldozer's second revision, Zen, Zen 4. */
static const uint32_t signature_intel[] = { [2] = 0x000106a0, [3] = 0x000306c0, [4] = 0x00050650 };
static const uint32_t signature_amd[] = { [2] = 0x00610f00, [3] = 0x00800f10, [4] = 0x00a10f10 };

/* Copy the level's features from @have to @l; list those that are missing. */
static int copy_features(struct cpu_leaves *l, struct cpu_leaves *have, unsigned level,
			 struct err *err)
{
	char missing[160] = "";
	unsigned unnamed = 0; /* a list that long helps nobody */

	for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		const struct feature *f = &features[i];
		struct kvm_cpuid_entry2 *e = cpu_leaf(have, f->function, f->index);
		size_t used = strlen(missing);

		if (f->level > level)
			continue;
		if (!e || !(*cpu_leaf_reg(e, f->reg) >> f->bit & 1)) {
			if (unnamed || used + strlen(f->name) + 2 >= sizeof(missing))
				unnamed++;
			else
				snprintf(missing + used, sizeof(missing) - used, "%s%s",
					 used ? ", " : "", f->name);
			continue;
		}
		e = cpu_leaf_add(l, f->function, f->index);
		*cpu_leaf_reg(e, f->reg) |= 1u << f->bit;
	}
	char more[32] = "";

	if (unnamed)
		snprintf(more, sizeof(more), " and %u more", unnamed);
	if (*missing)
		return err_set(err, EINVAL,
			       "this host cannot be x86-64-v%u, its processor or KVM lacks: %s%s",
			       level, missing, more);
	return 0;
}

/* The component leaves say where in the save area each lies, which differs between vendors. */
static void copy_xsave_layout(struct cpu_leaves *l, struct cpu_leaves *have)
{
	struct kvm_cpuid_entry2 *main_leaf = cpu_leaf(l, 0xd, 0);

	if (!main_leaf)
		return;
	main_leaf->ecx = 576; /* legacy area and header */
	for (uint32_t i = 2; i < 32; i++) {
		struct kvm_cpuid_entry2 *from = cpu_leaf(have, 0xd, i), *to;

		if (!(main_leaf->eax >> i & 1) || !from)
			continue;
		to = cpu_leaf_add(l, 0xd, i);
		to->eax = from->eax;
		to->ebx = from->ebx;
		to->ecx = from->ecx & 2; /* alignment in the compacted format */
		if (from->eax + from->ebx > main_leaf->ecx)
			main_leaf->ecx = from->eax + from->ebx;
	}
	main_leaf->ebx = main_leaf->ecx; /* KVM keeps it up to date with XCR0 */
}

static void put_name(struct cpu_leaves *l, unsigned level)
{
	char name[48] = "";

	snprintf(name, sizeof(name), "Coracle virtual processor x86-64-v%u", level);
	for (uint32_t i = 0; i < 3; i++) {
		struct kvm_cpuid_entry2 *e = cpu_leaf_add(l, 0x80000002 + i, 0);

		memcpy(&e->eax, name + 16 * i, 4);
		memcpy(&e->ebx, name + 16 * i + 4, 4);
		memcpy(&e->ecx, name + 16 * i + 8, 4);
		memcpy(&e->edx, name + 16 * i + 12, 4);
	}
}

/* Leaf 4 and 0x8000001D alike: 32 KiB of each L1, 1 MiB L2, 16 MiB L3; lines of 64 bytes. */
static void put_caches(struct cpu_leaves *l, uint32_t function)
{
	static const struct {
		uint32_t type, level, ways, sets;
	} cache[] = {
		{ 1, 1, 8, 64 },
		{ 2, 1, 8, 64 },
		{ 3, 2, 16, 1024 },
		{ 3, 3, 16, 16384 },
	};

	for (uint32_t i = 0; i < 4; i++) {
		struct kvm_cpuid_entry2 *e = cpu_leaf_add(l, function, i);

		e->eax = cache[i].type | cache[i].level << 5 | 1u << 8; /* self-initializing */
		e->ebx = (cache[i].ways - 1) << 22 | (64 - 1);
		e->ecx = cache[i].sets - 1;
	}
	cpu_leaf_add(l, function, 4); /* ends the list */
}

static void put_intel(struct cpu_leaves *l)
{
	struct kvm_cpuid_entry2 *e = cpu_leaf_add(l, 2, 0);

	e->eax = 0x00feff01; /* TLB and caches: see the other leaves */
	put_caches(l, 4);
	cpu_leaf_add(l, 0x80000000, 0)->eax = 0x80000008;
}

static void put_amd(struct cpu_leaves *l)
{
	struct kvm_cpuid_entry2 *one = cpu_leaf_add(l, 1, 0);
	struct kvm_cpuid_entry2 *e = cpu_leaf_add(l, 0x80000001, 0);

	e->eax = one->eax;
	e->edx |= one->edx & 0x0183f3ff; /* AMD repeats these here */
	e->ecx |= 1u << 22;              /* TOPOEXT: 0x8000001D and 1E are there */
	e = cpu_leaf_add(l, 0x80000005, 0);
	e->ecx = e->edx = 32u << 24 | 8u << 16 | 1u << 8 | 64; /* KiB, ways, lines, bytes */
	e = cpu_leaf_add(l, 0x80000006, 0);
	e->ecx = 1024u << 16 | 8u << 12 | 1u << 8 | 64; /* 8: 16 ways */
	e->edx = 32u << 18 | 8u << 12 | 1u << 8 | 64;   /* times 512 KiB */
	put_caches(l, 0x8000001d);
	cpu_leaf_add(l, 0x80000000, 0)->eax = 0x8000001e;
}

int cpu_baseline(struct cpu_leaves *l, unsigned level, struct err *err)
{
	struct cpu_leaves have = *l;
	struct kvm_cpuid_entry2 *vendor = cpu_leaf(&have, 0, 0), *e;
	bool amd = cpu_is_amd(&have);
	int rc;

	e = cpu_leaf(&have, 0x80000008, 0);
	if (!vendor || !e || (e->eax & 0xff) < BASELINE_BITS)
		return err_set(err, EINVAL,
			       "this host cannot be x86-64-v%u, its processor has fewer than %u "
			       "address bits",
			       level, BASELINE_BITS);
	l->n = 0;
	rc = copy_features(l, &have, level, err);
	if (rc)
		return rc;
	copy_xsave_layout(l, &have);

	e = cpu_leaf_add(l, 0, 0);
	*e = *vendor;
	e->eax = level >= 3 ? 0xd : 0xb;
	e = cpu_leaf_add(l, 1, 0);
	e->eax = amd ? signature_amd[level] : signature_intel[level];
	e->ebx = 64 / 8 << 8;                 /* CLFLUSH */
	cpu_leaf_add(l, 6, 0)->eax = 1u << 2; /* ARAT: KVM's APIC timer never stops */
	e = cpu_leaf_add(l, 0x40000000, 0);
	e->eax = KVM_LEAF;
	memcpy(&e->ebx, "KVMKVMKVM\0\0", 12); /* EBX, ECX, EDX */
	put_name(l, level);
	cpu_leaf_add(l, 0x80000008, 0)->eax = LINEAR_BITS << 8 | BASELINE_BITS;
	if (amd)
		put_amd(l);
	else
		put_intel(l);
	return 0;
}
