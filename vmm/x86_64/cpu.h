/*
 * cpu.h - what cpuid.c, cpu_model.c and vcpu_state.c share
 */
#ifndef VMM_X86_64_CPU_H
#define VMM_X86_64_CPU_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/arch.h"

#define CPU_LEAVES_MAX 256 /* KVM_MAX_CPUID_ENTRIES */

enum cpu_reg { CPU_EAX, CPU_EBX, CPU_ECX, CPU_EDX };

struct cpu_leaves {
	unsigned n;
	struct kvm_cpuid_entry2 e[CPU_LEAVES_MAX];
};

#define CPU_MSRS_MAX 1024

struct arch_cpu {
	unsigned ncpus;
	unsigned phys_bits;
	struct cpu_leaves leaves;    /* as vCPU 0 sees them */
	struct cpu_leaves host;      /* what this host could offer at most */
	uint32_t msrs[CPU_MSRS_MAX]; /* a vCPU's state */
	unsigned nmsrs;
	size_t xsave_size; /* bytes of KVM_GET_XSAVE2; 0: KVM has only KVM_GET_XSAVE */
};

/* NULL when not there. */
struct kvm_cpuid_entry2 *cpu_leaf(struct cpu_leaves *l, uint32_t function, uint32_t index);

/* The leaf, added with zeroes if need be. Room is never short: what KVM reports fits as well. */
struct kvm_cpuid_entry2 *cpu_leaf_add(struct cpu_leaves *l, uint32_t function, uint32_t index);
void cpu_leaf_remove(struct cpu_leaves *l, uint32_t function); /* with all its indices */

uint32_t *cpu_leaf_reg(struct kvm_cpuid_entry2 *e, enum cpu_reg reg);
bool cpu_has(const struct arch_cpu *c, uint32_t function, enum cpu_reg reg, unsigned bit);
/* As /proc/cpuinfo has it; NULL: no name is known. */
const char *cpu_feature_name(uint32_t function, uint32_t index, enum cpu_reg reg, unsigned bit);

bool cpu_is_amd(const struct cpu_leaves *l); /* or Hygon: leaves 0x8000'00xx mean the same */

/*
 * Make @l, what KVM supports, into a baseline: level 2, 3 or 4. -EINVAL naming what is missing.
 * Topology is filled in later by cpuid.c.
 */
int cpu_baseline(struct cpu_leaves *l, unsigned level, struct err *err);

/* Fill in what the host has: @c->host, the MSRs, the size of the FPU's state. */
int cpu_ask_host(int kvm_fd, struct arch_cpu *c, struct err *err);
/* Which MSRs a vCPU's state is made of (vcpu_msrs.c). */
int cpu_list_msrs(int kvm_fd, struct arch_cpu *c, struct err *err);
unsigned cpu_phys_bits(const struct cpu_leaves *l);

/* Could @c's host be a processor with leaves @l? -EINVAL naming what is missing (cpu_check.c). */
int cpu_check_leaves(const struct arch_cpu *c, const struct cpu_leaves *l, struct err *err);

/* Topology of @ncpus processors as number @index sees it; cores of one package, a thread each. */
void cpu_topology(struct cpu_leaves *l, unsigned ncpus, unsigned index);

#endif
