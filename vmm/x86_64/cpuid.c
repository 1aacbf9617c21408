/*
 * cpuid.c - what the guest's processors say they are
 *
 * KVM_GET_SUPPORTED_CPUID is the start: what the host's processor has and KVM can virtualize. Parts of
 * it are not features but facts about the host's own place in its package (APIC ids, core counts,
 * who shares a cache); those are replaced by the guest's topology: one package, a core each vCPU, no
 * threads, APIC id equal to the index. Linux reads it from leaf 0xB on both vendors, older kernels
 * from leaves 1 and 4 or 0x80000008 and 0x8000001E, so all of them tell the same story.
 *
 * Left out even of "host": nested virtualization, SGX and Intel PT. Their state lives outside what a
 * snapshot saves, and a guest that found them would lose it by migrating.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/x86_64/cpu.h"

static const char *const models[] = { "host", "x86-64-v2", "x86-64-v3", "x86-64-v4", NULL };

/* ---- the list of leaves ---- */

struct kvm_cpuid_entry2 *cpu_leaf(struct cpu_leaves *l, uint32_t function, uint32_t index)
{
	for (unsigned i = 0; i < l->n; i++)
		if (l->e[i].function == function && l->e[i].index == index)
			return &l->e[i];
	return NULL;
}

static bool has_indices(uint32_t function)
{
	switch (function) {
	case 0x4:
	case 0x7:
	case 0xb:
	case 0xd:
	case 0x1f:
	case 0x8000001d:
		return true;
	default:
		return false;
	}
}

struct kvm_cpuid_entry2 *cpu_leaf_add(struct cpu_leaves *l, uint32_t function, uint32_t index)
{
	struct kvm_cpuid_entry2 *e = cpu_leaf(l, function, index);

	if (e)
		return e;
	/* KVM reports fewer than a hundred; the last slot is sacrificed rather than overrun. */
	e = &l->e[l->n < CPU_LEAVES_MAX ? l->n++ : CPU_LEAVES_MAX - 1];
	*e = (struct kvm_cpuid_entry2){
		.function = function,
		.index = index,
		.flags = has_indices(function) ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
	};
	return e;
}

void cpu_leaf_remove(struct cpu_leaves *l, uint32_t function)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < l->n; i++)
		if (l->e[i].function != function)
			l->e[kept++] = l->e[i];
	l->n = kept;
}

uint32_t *cpu_leaf_reg(struct kvm_cpuid_entry2 *e, enum cpu_reg reg)
{
	switch (reg) {
	case CPU_EAX:
		return &e->eax;
	case CPU_EBX:
		return &e->ebx;
	case CPU_ECX:
		return &e->ecx;
	default:
		return &e->edx;
	}
}

bool cpu_has(const struct arch_cpu *c, uint32_t function, enum cpu_reg reg, unsigned bit)
{
	/* cpu_leaf() only looks. */
	struct kvm_cpuid_entry2 *e = cpu_leaf((struct cpu_leaves *)&c->leaves, function, 0);

	return e && *cpu_leaf_reg(e, reg) >> bit & 1;
}

bool cpu_is_amd(const struct cpu_leaves *l)
{
	struct kvm_cpuid_entry2 *e = cpu_leaf((struct cpu_leaves *)l, 0, 0);

	if (!e)
		return false;
	return e->ebx == 0x68747541 /* "Auth"enticAMD */ ||
	       e->ebx == 0x6f677948 /* "Hygo"nGenuine */;
}

/* ---- topology ---- */

static unsigned bits_for(unsigned count)
{
	unsigned bits = 0;

	while (1u << bits < count)
		bits++;
	return bits;
}

/* Leaves 4 and 0x8000001D: the last level is the package's, the others belong to one core. */
static void share_caches(struct cpu_leaves *l, uint32_t function, unsigned ncpus, bool cores)
{
	uint32_t all = (1u << bits_for(ncpus)) - 1;

	for (unsigned i = 0; i < l->n; i++) {
		struct kvm_cpuid_entry2 *e = &l->e[i];

		if (e->function != function || !(e->eax & 0x1f))
			continue;
		unsigned cache_level = e->eax >> 5 & 7;

		e->eax &= 0x3fff;
		if (cache_level >= 3)
			e->eax |= all << 14;
		if (cores)
			e->eax |= all << 26;
	}
}

static void extended_topology(struct cpu_leaves *l, uint32_t function, unsigned ncpus,
			      unsigned index)
{
	const struct {
		uint32_t shift, count, type;
	} level[] = { { 0, 1, 1 /* thread */ }, { bits_for(ncpus), ncpus, 2 /* core */ }, { 0 } };

	for (uint32_t i = 0; i < 3; i++) {
		struct kvm_cpuid_entry2 *e = cpu_leaf_add(l, function, i);

		e->eax = level[i].shift;
		e->ebx = level[i].count;
		e->ecx = level[i].type << 8 | i;
		e->edx = index;
	}
}

static void amd_topology(struct cpu_leaves *l, unsigned ncpus, unsigned index)
{
	struct kvm_cpuid_entry2 *e = cpu_leaf(l, 0x80000001, 0);
	bool topology_extensions = false;

	if (e) {
		e->ecx &= ~2u; /* CmpLegacy: more than one core, not threads */
		e->ecx |= ncpus > 1 ? 2 : 0;
		topology_extensions = e->ecx >> 22 & 1;
	}
	e = cpu_leaf(l, 0x80000008, 0);
	if (e)
		e->ecx = bits_for(ncpus) << 12 | (ncpus - 1);
	if (topology_extensions) {
		share_caches(l, 0x8000001d, ncpus, false);
		e = cpu_leaf_add(l, 0x8000001e, 0);
		e->eax = index; /* extended APIC id */
		e->ebx = index; /* core id; one thread a core */
		e->ecx = 0;     /* node 0 of 1 */
		e->edx = 0;
	}
}

void cpu_topology(struct cpu_leaves *l, unsigned ncpus, unsigned index)
{
	struct kvm_cpuid_entry2 *max = cpu_leaf_add(l, 0, 0), *e = cpu_leaf_add(l, 1, 0);

	e->ebx = (e->ebx & 0xffff) | ncpus << 16 | index << 24;
	e->edx &= ~(1u << 28); /* HTT: EBX has a count */
	e->edx |= ncpus > 1 ? 1u << 28 : 0;
	if (max->eax < 0xb)
		max->eax = 0xb;
	bool has_1f = max->eax >= 0x1f;

	share_caches(l, 4, ncpus, true);
	extended_topology(l, 0xb, ncpus, index);
	if (has_1f) /* Linux prefers it */
		extended_topology(l, 0x1f, ncpus, index);
	if (cpu_is_amd(l))
		amd_topology(l, ncpus, index);
}

/* ---- from KVM's list to ours ---- */

static int get_supported(int kvm_fd, struct cpu_leaves *l, struct err *err)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + CPU_LEAVES_MAX * sizeof(c->entries[0]));
	int rc = 0;

	if (!c)
		return err_set(err, ENOMEM, "out of memory");
	c->nent = CPU_LEAVES_MAX;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, c) < 0) {
		rc = err_set_sys(err, errno, "cannot ask KVM which processor features it has");
	} else {
		l->n = c->nent;
		memcpy(l->e, c->entries, c->nent * sizeof(c->entries[0]));
	}
	free(c);
	return rc;
}

static void clear(struct cpu_leaves *l, uint32_t function, enum cpu_reg reg, uint32_t bits)
{
	struct kvm_cpuid_entry2 *e = cpu_leaf(l, function, 0);

	if (e)
		*cpu_leaf_reg(e, reg) &= ~bits;
}

static void adapt(int kvm_fd, struct cpu_leaves *l)
{
	struct kvm_cpuid_entry2 *e = cpu_leaf_add(l, 1, 0);

	e->ecx |= 1u << 31; /* a hypervisor is there */
	/*
	 * The local APIC is in the kernel: x2APIC always works, and whether the deadline timer does
	 * is told by a capability, not by the list (api.rst, KVM_GET_SUPPORTED_CPUID).
	 */
	e->ecx |= 1u << 21;
	if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
		e->ecx |= 1u << 24;

	clear(l, 1, CPU_ECX, 1u << 5);          /* VMX */
	clear(l, 0x80000001, CPU_ECX, 1u << 2); /* SVM */
	cpu_leaf_remove(l, 0x8000000a);
	clear(l, 7, CPU_EBX, 1u << 2 | 1u << 25); /* SGX, PT */
	clear(l, 7, CPU_ECX, 1u << 30);           /* SGX launch control */
	cpu_leaf_remove(l, 0x12);
	cpu_leaf_remove(l, 0x14);
	cpu_leaf_remove(l, 0x80000026); /* the host's topology once more; 0xB is enough */
}

unsigned cpu_phys_bits(const struct cpu_leaves *l)
{
	struct kvm_cpuid_entry2 *e = cpu_leaf((struct cpu_leaves *)l, 0x80000008, 0);

	if (!e || !(e->eax & 0xff))
		return 36; /* what a processor without the leaf has */
	unsigned bits = e->eax & 0xff, guest = e->eax >> 16 & 0xff;

	/* Newer kernels say here how far their page tables for guests reach. */
	return guest && guest < bits ? guest : bits;
}

int cpu_ask_host(int kvm_fd, struct arch_cpu *c, struct err *err)
{
	int rc = get_supported(kvm_fd, &c->host, err);

	if (rc)
		return rc;
	adapt(kvm_fd, &c->host);
	int size = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

	c->xsave_size = size > 0 ? (size_t)size : 0;
	return cpu_list_msrs(kvm_fd, c, err);
}

static int find_model(const char *model, struct err *err)
{
	for (int i = 0; models[i]; i++)
		if (!strcmp(models[i], model))
			return i;
	return err_set(err, EINVAL,
		       "no processor model %.64s: give host, x86-64-v2, x86-64-v3 or x86-64-v4",
		       model);
}

struct arch_cpu *arch_cpu_new(int kvm_fd, const char *model, unsigned ncpus, struct err *err)
{
	int which = find_model(model, err);
	struct arch_cpu *c;

	if (which < 0)
		return NULL;
	if (!ncpus || ncpus > ARCH_CPUS_MAX) {
		err_set(err, EINVAL, "%u vCPUs: give 1 to %u", ncpus, ARCH_CPUS_MAX);
		return NULL;
	}
	c = calloc(1, sizeof(*c));
	if (!c) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	c->ncpus = ncpus;
	if (cpu_ask_host(kvm_fd, c, err))
		goto fail;
	c->leaves = c->host;
	if (which > 0 && cpu_baseline(&c->leaves, (unsigned)which + 1, err))
		goto fail;
	c->phys_bits = cpu_phys_bits(&c->leaves);
	cpu_topology(&c->leaves, ncpus, 0);
	return c;

fail:
	free(c);
	return NULL;
}

void arch_cpu_free(struct arch_cpu *c)
{
	free(c);
}

unsigned arch_cpu_phys_bits(const struct arch_cpu *c)
{
	return c->phys_bits;
}

const char *const *arch_cpu_models(void)
{
	return models;
}
