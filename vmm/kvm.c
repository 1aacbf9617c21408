/*
 * kvm.c - open /dev/kvm and refuse early, by name, what we cannot do without
 *
 * Every capability used without a fallback is in one table with what it is for, so that the message
 * says what is missing instead of a later ioctl failing with EINVAL.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/fd.h"
#include "vmm/kvm.h"

const struct kvm_need kvm_needs[] = {
	{ KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", "guest RAM" },
	{ KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", "interrupt controllers in the kernel" },
	{ KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "interrupts from eventfds" },
	{ KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "kicks to eventfds" },
	{ KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", "MSI" },
	{ KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI", "MSI" },
	{ KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "stopping a vCPU without a race" },
	{ KVM_CAP_DESTROY_MEMORY_REGION_WORKS, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS",
	  "taking RAM away" },
	{ 0, NULL, NULL },
};

static int explain_open(struct err *err, int e)
{
	switch (e) {
	case ENOENT:
		return err_set(
			err, e,
			"/dev/kvm is not there: enable virtualization in the firmware and load "
			"kvm_intel or kvm_amd (coracle check-host says more)");
	case EACCES:
	case EPERM:
		return err_set(err, e,
			       "no permission to open /dev/kvm: join the group that owns it "
			       "(usually kvm) or run as root");
	default:
		return err_set_sys(err, e, "cannot open /dev/kvm");
	}
}

int kvm_open(struct kvm *k, struct err *err)
{
	cleanup_fd int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	*k = (struct kvm){ .fd = -1 };
	if (fd < 0)
		return explain_open(err, errno);
	int version = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		return err_set(err, ENODEV, "/dev/kvm is not KVM with API version %d (it says %d)",
			       KVM_API_VERSION, version);
	for (const struct kvm_need *n = kvm_needs; n->name; n++) {
		if (ioctl(fd, KVM_CHECK_EXTENSION, n->cap) <= 0)
			return err_set(err, ENODEV,
				       "this host's KVM lacks %s (%s): use a newer kernel", n->name,
				       n->what);
	}
	int size = ioctl(fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < (int)sizeof(struct kvm_run))
		return err_set_sys(err, size < 0 ? errno : ENODEV, "KVM_GET_VCPU_MMAP_SIZE");
	int max = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
	if (max <= 0)
		max = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS);
	k->run_size = (size_t)size;
	k->max_vcpus = max > 0 ? (unsigned)max : 4; /* api.rst 4.4 asks to assume 4 */
	k->any_length_kicks = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0;
	k->fd = fd_steal(&fd);
	return 0;
}

void kvm_close(struct kvm *k)
{
	fd_close(&k->fd);
}

int kvm_create_vm(const struct kvm *k, struct err *err)
{
	int fd;

	do {
		fd = ioctl(k->fd, KVM_CREATE_VM, 0);
	} while (fd < 0 && errno == EINTR);
	if (fd < 0)
		return err_set_sys(err, errno, "KVM cannot create a virtual machine");
	return fd;
}
