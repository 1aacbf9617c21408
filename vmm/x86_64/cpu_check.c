/*
 * cpu_check.c - can this host be the processor that a guest has seen?
 *
 * A guest looks at CPUID once and believes it for ever. So the machine made from a snapshot gets the
 * leaves of the snapshot, not what this host would offer, and every feature in them must be here.
 * More than the guest has seen may be here; it is not shown.
 *
 * Only registers that are lists of features are compared, by one table. Bits in them that are not
 * features but follow what the guest does (OSXSAVE), or tell topology, are left out.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "vmm/x86_64/cpu.h"
#include "vmm/x86_64/regs.h"

_Static_assert(REGS_LEAVES_MAX == CPU_LEAVES_MAX, "every list of leaves can be saved");

struct feature_register {
	uint32_t function, index;
	enum cpu_reg reg;
	uint32_t ignore;
};

static const struct feature_register feature_registers[] = {
	{ 0x1, 0, CPU_ECX, 1u << 3 | 1u << 27 }, /* MONITOR follows an MSR; OSXSAVE */
	{ 0x1, 0, CPU_EDX, 1u << 9 | 1u << 28 }, /* APIC can be off; HTT */
	{ 0x6, 0, CPU_EAX, 0 },
	{ 0x7, 0, CPU_EBX, 0 },
	{ 0x7, 0, CPU_ECX, 1u << 4 }, /* OSPKE */
	{ 0x7, 0, CPU_EDX, 0 },
	{ 0x7, 1, CPU_EAX, 0 },
	{ 0x7, 1, CPU_EDX, 0 },
	{ 0x7, 2, CPU_EDX, 0 },
	{ 0xd, 0, CPU_EAX, 0 },
	{ 0xd, 0, CPU_EDX, 0 },
	{ 0xd, 1, CPU_EAX, 0 },
	{ 0xd, 1, CPU_ECX, 0 },
	{ 0xd, 1, CPU_EDX, 0 },
	{ 0x40000001, 0, CPU_EAX, 0 },
	{ 0x80000001, 0, CPU_ECX, 1u << 1 }, /* CmpLegacy */
	{ 0x80000001, 0, CPU_EDX, 1u << 9 },
	{ 0x80000007, 0, CPU_EDX, 0 },
	{ 0x80000008, 0, CPU_EBX, 0 },
	{ 0x80000021, 0, CPU_EAX, 0 },
};

static const struct kvm_cpuid_entry2 *leaf(const struct cpu_leaves *l, uint32_t function,
					   uint32_t index)
{
	return cpu_leaf((struct cpu_leaves *)l, function, index); /* only looks */
}

static uint32_t value(const struct cpu_leaves *l, const struct feature_register *f)
{
	const struct kvm_cpuid_entry2 *e = leaf(l, f->function, f->index);

	return e ? *cpu_leaf_reg((struct kvm_cpuid_entry2 *)e, f->reg) : 0;
}

/* Append "name, name" for each bit. */
static void name_bits(char *buf, size_t size, const struct feature_register *f, uint32_t bits)
{
	static const char *const regs[] = { "eax", "ebx", "ecx", "edx" };

	for (unsigned bit = 0; bit < 32; bit++) {
		if (!(bits >> bit & 1))
			continue;
		const char *name = cpu_feature_name(f->function, f->index, f->reg, bit);
		size_t used = strlen(buf);

		if (name)
			snprintf(buf + used, size - used, "%s%s", used ? ", " : "", name);
		else
			snprintf(buf + used, size - used, "%sCPUID 0x%x.%u %s bit %u",
				 used ? ", " : "", f->function, f->index, regs[f->reg], bit);
	}
}

static int check_vendor(const struct cpu_leaves *host, const struct cpu_leaves *l, struct err *err)
{
	const struct kvm_cpuid_entry2 *a = leaf(host, 0, 0), *b = leaf(l, 0, 0);

	if (a && b && a->ebx == b->ebx && a->ecx == b->ecx && a->edx == b->edx)
		return 0;
	return err_set(err, EINVAL, "the guest's processor is of another vendor than this host's");
}

/* Where each part of the FPU's state lies is told by CPUID, and the guest has laid it out so. */
static int check_xsave(const struct cpu_leaves *host, const struct cpu_leaves *l, struct err *err)
{
	const struct kvm_cpuid_entry2 *main_leaf = leaf(l, 0xd, 0);

	for (uint32_t i = 2; main_leaf && i < 32; i++) {
		const struct kvm_cpuid_entry2 *a = leaf(host, 0xd, i), *b = leaf(l, 0xd, i);

		if (main_leaf->eax >> i & 1 && (!a || !b || a->eax != b->eax || a->ebx != b->ebx))
			return err_set(
				err, EINVAL,
				"this host's processor keeps FPU state %u elsewhere than the "
				"guest has seen",
				i);
	}
	return 0;
}

int cpu_check_leaves(const struct arch_cpu *c, const struct cpu_leaves *l, struct err *err)
{
	char missing[384] = "";
	unsigned bits = cpu_phys_bits(l);
	int rc = check_vendor(&c->host, l, err);

	if (rc)
		return rc;
	for (size_t i = 0; i < sizeof(feature_registers) / sizeof(feature_registers[0]); i++) {
		const struct feature_register *f = &feature_registers[i];

		name_bits(missing, sizeof(missing), f,
			  value(l, f) & ~value(&c->host, f) & ~f->ignore);
	}
	if (*missing)
		return err_set(
			err, EINVAL,
			"the guest has seen features that this host's processor or KVM lacks: "
			"%s",
			missing);
	if (bits > cpu_phys_bits(&c->host))
		return err_set(err, EINVAL,
			       "the guest has seen %u address bits, this host's processor has %u",
			       bits, cpu_phys_bits(&c->host));
	return check_xsave(&c->host, l, err);
}

/* ---- saved and made again ---- */

void cpuid_to_regs(const struct kvm_cpuid_entry2 *e, unsigned n, struct cpuid_regs *r)
{
	BUG_ON(n > REGS_LEAVES_MAX);
	*r = (struct cpuid_regs){ .count = n };
	for (unsigned i = 0; i < n; i++) {
		r->function[i] = e[i].function;
		r->index[i] = e[i].index;
		r->flags[i] = e[i].flags;
		r->eax[i] = e[i].eax;
		r->ebx[i] = e[i].ebx;
		r->ecx[i] = e[i].ecx;
		r->edx[i] = e[i].edx;
	}
}

void cpuid_from_regs(const struct cpuid_regs *r, struct cpu_leaves *l)
{
	l->n = r->count;
	for (unsigned i = 0; i < r->count; i++)
		l->e[i] = (struct kvm_cpuid_entry2){
			.function = r->function[i],
			.index = r->index[i],
			.flags = r->flags[i],
			.eax = r->eax[i],
			.ebx = r->ebx[i],
			.ecx = r->ecx[i],
			.edx = r->edx[i],
		};
}

int arch_cpu_save(const struct arch_cpu *c, struct state_buf *out, struct err *err)
{
	struct cpuid_regs *r = malloc(sizeof(*r));
	int rc = -ENOMEM;

	if (r) {
		cpuid_to_regs(c->leaves.e, c->leaves.n, r);
		rc = state_save(&cpuid_state, r, out);
	}
	free(r);
	return rc ? err_set(err, ENOMEM, "out of memory for the processor's state") : 0;
}

static int load(struct arch_cpu *c, const void *data, size_t len, struct err *err)
{
	cleanup_free struct cpuid_regs *r = calloc(1, sizeof(*r));

	if (!r)
		return err_set(err, ENOMEM, "out of memory for the processor's state");
	int rc = state_load_new(&cpuid_state, r, NULL, data, len, err);

	if (!rc)
		cpuid_from_regs(r, &c->leaves);
	return rc;
}

struct arch_cpu *arch_cpu_load(unsigned ncpus, const void *data, size_t len, struct err *err)
{
	struct arch_cpu *c = calloc(1, sizeof(*c));

	if (!c) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	if (load(c, data, len, err)) {
		free(c);
		return NULL;
	}
	c->ncpus = ncpus;
	c->phys_bits = cpu_phys_bits(&c->leaves);
	return c;
}

int arch_cpu_check(struct arch_cpu *c, int kvm_fd, struct err *err)
{
	int rc = cpu_ask_host(kvm_fd, c, err);

	return rc ? rc : cpu_check_leaves(c, &c->leaves, err);
}
