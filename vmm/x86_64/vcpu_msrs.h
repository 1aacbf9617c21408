/*
 * vcpu_msrs.h - a vCPU's MSRs, for vcpu_save.c
 */
#ifndef VMM_X86_64_VCPU_MSRS_H
#define VMM_X86_64_VCPU_MSRS_H

#include "vmm/arch.h"
#include "vmm/x86_64/regs.h"

/* Those of @c that KVM reads; fills @r->msr, msr_value, msr_count. */
int vcpu_msrs_save(int vcpu_fd, const struct arch_cpu *c, struct vcpu_regs *r, struct err *err);

/* After the local APIC. @tsc_elapsed is added to the time stamp counter. */
int vcpu_msrs_load(int vcpu_fd, const struct vcpu_regs *r, uint64_t tsc_elapsed, struct err *err);

#endif
