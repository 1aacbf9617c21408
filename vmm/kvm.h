/*
 * kvm.h - /dev/kvm and what it must offer (Documentation/virt/kvm/api.rst)
 */
#ifndef VMM_KVM_H
#define VMM_KVM_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct kvm {
	int fd;          /* /dev/kvm, kept: a reset makes a new VM from it */
	size_t run_size; /* bytes to map of each vCPU */
	unsigned max_vcpus;
	bool any_length_kicks; /* KVM_CAP_IOEVENTFD_ANY_LENGTH: x86 fast path of zero-length kicks */
};

/* Capabilities used without a fallback; ended by a NULL name. kvm_open() refuses a host without. */
struct kvm_need {
	int cap;
	const char *name;
	const char *what; /* it is for */
};
extern const struct kvm_need kvm_needs[];

/* 0; -ENOENT, -EACCES, -ENODEV ... with what to do about it. */
int kvm_open(struct kvm *k, struct err *err);
void kvm_close(struct kvm *k);

/* A new, empty VM: its descriptor or -errno. */
int kvm_create_vm(const struct kvm *k, struct err *err);

#endif
