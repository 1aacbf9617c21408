/*
 * describe.c - where a vCPU is, for the person who reads the log
 */
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/arch.h"

typedef unsigned long long ull;

void arch_vcpu_describe(int vcpu_fd, char *buf, size_t len)
{
	struct kvm_regs r;
	struct kvm_sregs s;

	if (ioctl(vcpu_fd, KVM_GET_REGS, &r) < 0 || ioctl(vcpu_fd, KVM_GET_SREGS, &s) < 0) {
		snprintf(buf, len, "its registers cannot be read: %s", strerror(errno));
		return;
	}
	snprintf(buf, len,
		 "cs:rip %04x:%llx rsp %llx rflags %llx rax %llx rbx %llx rcx %llx rdx %llx "
		 "rsi %llx rdi %llx cr0 %llx cr2 %llx cr3 %llx cr4 %llx efer %llx",
		 s.cs.selector, (ull)r.rip, (ull)r.rsp, (ull)r.rflags, (ull)r.rax, (ull)r.rbx,
		 (ull)r.rcx, (ull)r.rdx, (ull)r.rsi, (ull)r.rdi, (ull)s.cr0, (ull)s.cr2, (ull)s.cr3,
		 (ull)s.cr4, (ull)s.efer);
}
