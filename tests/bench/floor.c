/*
 * floor.c - the least a program can do to run a guest: what no virtual machine monitor can beat
 *
 * Open /dev/kvm, make a VM with one vCPU and one page of memory, and run one instruction, an OUT. Its
 * exit to us is the guest's first output: it becomes a byte on standard output, as a VMM's serial port
 * does, and then the process ends. Nothing is checked but that; nothing is closed, the kernel does it.
 *
 * "floor chips" has the kernel make interrupt controllers and timer of a PC too. Whatever boots an
 * operating system needs these, and to take them down costs some kernels more than all the rest.
 * "floor chips FILE" also has its memory from a file, copy-on-write, as a restored machine has: the
 * kernel's own books about memory of that size are part of the floor.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE  4096
#define ENTRY 0x1000
#define HOLE  (3ull << 30) /* where a PC has no RAM, up to 4 GiB */

static int need(int rc, const char *what)
{
	if (rc < 0) {
		perror(what);
		exit(1);
	}
	return rc;
}

static void *need_map(size_t size, int flags, int fd, off_t off, const char *what)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, off);

	if (p == MAP_FAILED)
		need(-1, what);
	return p;
}

static const unsigned char code[] = { 0xe6, 0xf8 }; /* out %al, $0xf8 */

static void give(int vm, unsigned slot, unsigned long long at, size_t size, void *host)
{
	struct kvm_userspace_memory_region region = { .slot = slot,
						      .guest_phys_addr = at,
						      .memory_size = size,
						      .userspace_addr = (unsigned long)host };

	need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
}

static void give_memory(int vm)
{
	unsigned char *ram = need_map(PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, "guest memory");

	memcpy(ram, code, sizeof(code));
	give(vm, 0, ENTRY, PAGE, ram);
}

static void give_file(int vm, const char *path)
{
	int fd = need(open(path, O_RDONLY | O_CLOEXEC), path);
	size_t size = (size_t)lseek(fd, 0, SEEK_END), low = size < HOLE ? size : HOLE;
	unsigned char *ram = need_map(low, MAP_PRIVATE | MAP_NORESERVE, fd, 0, path);

	memcpy(ram + ENTRY, code, sizeof(code));
	give(vm, 0, 0, low, ram);
	if (size > low)
		give(vm, 1, 4ull << 30, size - low,
		     need_map(size - low, MAP_PRIVATE | MAP_NORESERVE, fd, (off_t)low, path));
}

static void set_entry(int vcpu)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = ENTRY, .rflags = 2, .rax = '!' };

	need(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	need(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static void make_chips(int vm)
{
	struct kvm_pit_config pit = { 0 };

	need(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	need(ioctl(vm, KVM_CREATE_PIT2, &pit), "KVM_CREATE_PIT2");
}

int main(int argc, char **argv)
{
	int kvm = need(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = need(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");

	if (argc > 2)
		give_file(vm, argv[2]);
	else
		give_memory(vm);
	if (argc > 1 && !strcmp(argv[1], "chips"))
		make_chips(vm);

	int vcpu = need(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = need(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *run = need_map((size_t)size, MAP_SHARED, vcpu, 0, "kvm_run");

	set_entry(vcpu);
	need(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
	if (run->exit_reason != KVM_EXIT_IO) {
		fprintf(stderr, "floor: exit %u, not the OUT\n", run->exit_reason);
		return 1;
	}
	return write(1, (char *)run + run->io.data_offset, 1) == 1 ? 0 : 1;
}
