/*
 * memslots.c - one KVM memory slot per region of guest RAM
 *
 * Slot numbers are region indices, so that dirty logs of KVM and of gmem name the same memory.
 */
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "vmm/memslots.h"

int memslots_set(int vm_fd, const struct gmem *mem, struct err *err)
{
	for (unsigned i = 0; i < gmem_count(mem); i++) {
		const struct gmem_region *r = gmem_region(mem, i);
		struct kvm_userspace_memory_region slot = {
			.slot = i,
			.guest_phys_addr = r->gpa,
			.memory_size = r->size,
			.userspace_addr = (uintptr_t)r->host,
		};

		if (ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
			return err_set_sys(err, errno, "KVM refuses %llu MiB of RAM at 0x%llx",
					   (unsigned long long)r->size >> 20,
					   (unsigned long long)r->gpa);
	}
	return 0;
}
