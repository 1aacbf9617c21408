/*
 * moment.h - one moment of a machine that stands still, by all of its clocks (struct arch_moment)
 */
#ifndef VMM_X86_64_MOMENT_H
#define VMM_X86_64_MOMENT_H

#include "vmm/arch.h"

/* @vcpu_fd -1: without the time stamp counter. 0 or -errno; a counter that KVM cannot tell is 0 kHz. */
int moment_look(int vm_fd, int vcpu_fd, struct arch_moment *m);

/* What the vCPU's counter was at @m, whose counter is known. 0 or -errno. */
int moment_tsc(const struct arch_moment *m, int vcpu_fd, uint64_t *tsc);

/*
 * Set a counter that ran at @khz and was @tsc at @k->saved so that it has gone on just as the guest's clock
 * did. false: this KVM cannot, or @k's counters were not read together.
 */
bool moment_set_tsc(struct arch_clock *k, int vcpu_fd, uint64_t tsc, uint32_t khz);

/* CLOCK_REALTIME */
uint64_t moment_realtime(void);

#endif
