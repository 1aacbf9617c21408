/*
 * vcpu_msrs.h - a vCPU's MSRs, for vcpu_save.c
 */
#ifndef VMM_X86_64_VCPU_MSRS_H
#define VMM_X86_64_VCPU_MSRS_H

#include "vmm/arch.h"
#include "vmm/x86_64/regs.h"

/* Those of @c that KVM reads; fills @r->msr, msr_value, msr_count. */
int vcpu_msrs_save(int vcpu_fd, const struct arch_cpu *c, struct vcpu_regs *r, struct err *err);

/* Where @r has the time stamp counter; NULL: nowhere. */
uint64_t *vcpu_msrs_tsc(struct vcpu_regs *r);

/* After the local APIC. @tsc_elapsed is added to the time stamp counter, unless that @tsc_is_set. */
int vcpu_msrs_load(int vcpu_fd, const struct vcpu_regs *r, uint64_t tsc_elapsed, bool tsc_is_set,
		   struct err *err);

#endif
