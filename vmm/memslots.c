/*
 * memslots.c - one KVM memory slot per region of guest RAM
 *
 * Slot numbers are region indices, so that dirty logs of KVM and of gmem name the same memory.
 */
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "vmm/memslots.h"

static int set(int vm_fd, const struct gmem *mem, unsigned i, uint32_t flags)
{
	const struct gmem_region *r = gmem_region(mem, i);
	struct kvm_userspace_memory_region slot = {
		.slot = i,
		.flags = flags,
		.guest_phys_addr = r->gpa,
		.memory_size = r->size,
		.userspace_addr = (uintptr_t)r->host,
	};

	return ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0 ? -errno : 0;
}

int memslots_set(int vm_fd, const struct gmem *mem, struct err *err)
{
	for (unsigned i = 0; i < gmem_count(mem); i++) {
		const struct gmem_region *r = gmem_region(mem, i);
		int rc = set(vm_fd, mem, i, 0);

		if (rc)
			return err_set_sys(err, rc, "KVM refuses %llu MiB of RAM at 0x%llx",
					   (unsigned long long)r->size >> 20,
					   (unsigned long long)r->gpa);
	}
	return 0;
}

int memslots_log(int vm_fd, const struct gmem *mem, bool on, struct err *err)
{
	for (unsigned i = 0; i < gmem_count(mem); i++) {
		int rc = set(vm_fd, mem, i, on ? KVM_MEM_LOG_DIRTY_PAGES : 0);

		if (!rc)
			continue;
		while (on && i)
			set(vm_fd, mem, --i, 0);
		return err_set_sys(err, rc, "KVM cannot %s logging writes to guest RAM",
				   on ? "start" : "stop");
	}
	return 0;
}
