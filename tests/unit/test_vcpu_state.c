/*
 * test_vcpu_state.c - vCPU registers on a real KVM: power-on, reset and the three ways in
 *
 * Skipped where /dev/kvm cannot be opened. The code that runs is a few instructions, so software KVM
 * runs it too.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/x86_64/boot.h"
#include "vmm/x86_64/cpu.h"

#define RAM  (4u << 20)
#define CPUS 3

struct machine {
	int kvm, vm, vcpu[CPUS];
	uint8_t *ram;
	struct kvm_run *run;
	size_t run_size;
	struct arch_cpu *cpu;
};

static struct machine *machine_or_skip(void)
{
	static struct machine m;
	struct err err = { 0 };

	memset(&m, 0, sizeof(m));
	m.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (m.kvm < 0) {
		print_message("SKIP: /dev/kvm cannot be opened\n");
		skip();
	}
	m.vm = ioctl(m.kvm, KVM_CREATE_VM, 0);
	assert_true(m.vm >= 0);
	assert_int_equal(arch_vm_init(m.vm, &err), 0);
	m.ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(m.ram, MAP_FAILED);
	struct kvm_userspace_memory_region slot = { .memory_size = RAM,
						    .userspace_addr = (uintptr_t)m.ram };

	assert_int_equal(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &slot), 0);
	m.cpu = arch_cpu_new(m.kvm, "host", CPUS, &err);
	assert_non_null(m.cpu);
	for (unsigned i = 0; i < CPUS; i++) {
		m.vcpu[i] = ioctl(m.vm, KVM_CREATE_VCPU, i);
		assert_true(m.vcpu[i] >= 0);
		if (arch_vcpu_init(m.vcpu[i], m.cpu, i, &err))
			fail_msg("%s", err.msg);
	}
	m.run_size = (size_t)ioctl(m.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	m.run = mmap(NULL, m.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu[0], 0);
	assert_ptr_not_equal(m.run, MAP_FAILED);
	return &m;
}

static void machine_end(struct machine *m)
{
	arch_cpu_free(m->cpu);
	munmap(m->run, m->run_size);
	for (unsigned i = 0; i < CPUS; i++)
		close(m->vcpu[i]);
	close(m->vm);
	close(m->kvm);
	munmap(m->ram, RAM);
}

struct snapshot {
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	union {
		struct kvm_xsave area;
		uint8_t room[16384];
	} fpu; /* KVM_GET_FPU leaves MXCSR out */
	struct kvm_debugregs debug;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	uint64_t msr[4];
};

static void take(int fd, struct snapshot *s)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e[4];
	} l = { .head.nmsrs = 4,
		.e = { { .index = 0x1a0 },
		       { .index = 0x2ff },
		       { .index = 0x277 },
		       { .index = 0xc0000082 } } };

	memset(s, 0, sizeof(*s));
	assert_int_equal(ioctl(fd, KVM_GET_MP_STATE, &s->mp), 0);
	assert_int_equal(ioctl(fd, KVM_GET_REGS, &s->regs), 0);
	assert_int_equal(ioctl(fd, KVM_GET_SREGS, &s->sregs), 0);
	assert_int_equal(ioctl(fd, KVM_GET_XSAVE, &s->fpu), 0);
	assert_int_equal(ioctl(fd, KVM_GET_DEBUGREGS, &s->debug), 0);
	assert_int_equal(ioctl(fd, KVM_GET_LAPIC, &s->lapic), 0);
	assert_int_equal(ioctl(fd, KVM_GET_VCPU_EVENTS, &s->events), 0);
	assert_int_equal(ioctl(fd, KVM_GET_MSRS, &l), 4);
	for (int i = 0; i < 4; i++)
		s->msr[i] = l.e[i].data;
	memset(s->lapic.regs + 0x390, 0, 4); /* the timer's current count */
}

static uint32_t lapic32(const struct snapshot *s, unsigned reg)
{
	uint32_t v;

	memcpy(&v, s->lapic.regs + reg, 4);
	return v;
}

static void test_power_on(void **state)
{
	struct machine *m = machine_or_skip();
	struct snapshot s;

	for (unsigned i = 0; i < CPUS; i++) {
		take(m->vcpu[i], &s);
		assert_int_equal(s.mp.mp_state,
				 i ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE);
		assert_int_equal(s.regs.rip, 0xfff0);
		assert_int_equal(s.regs.rflags, 2);
		assert_int_equal(s.sregs.cs.base, 0xffff0000);
		assert_int_equal(s.sregs.apic_base, 0xfee00000 | 0x800 | (i ? 0 : 0x100));
		assert_int_equal(s.fpu.area.region[0] & 0xffff, 0x37f);
		assert_int_equal(s.fpu.area.region[6], 0x1f80);
		assert_int_equal(lapic32(&s, 0x20), i << 24);
		assert_int_equal(lapic32(&s, 0x350) & 0x10700, i ? 0x10000 : 0x700);
		assert_int_equal(lapic32(&s, 0x360) & 0x10700, 0x400);
		assert_true(s.msr[0] & 1);
		assert_int_equal(s.msr[1], 0x806);
	}
	machine_end(m);
}

/* Whatever a vCPU did, a reset brings back what it had at power-on. */
static void test_reset_undoes(void **state)
{
	struct machine *m = machine_or_skip();
	struct err err = { 0 };
	struct snapshot before, now;
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e[2];
	} l = { .head.nmsrs = 2,
		.e = { { .index = 0xc0000082, .data = 0x1234 }, { .index = 0x277, .data = 0 } } };

	for (unsigned i = 0; i < CPUS; i++) {
		int fd = m->vcpu[i];

		take(fd, &before);
		now = before;
		memset(&now.regs, 0x11, sizeof(now.regs));
		now.regs.rflags = 2;
		now.fpu.area.region[0] = 0x27f;
		now.fpu.area.region[6] = 0x1fa0;
		now.fpu.area.region[40] = 0x55; /* XMM0 */
		now.fpu.area.region[512 / 4] = 3;
		now.debug.dr6 = 0xffff0ff1;
		now.debug.db[1] = 0x1000;
		now.mp.mp_state = KVM_MP_STATE_HALTED;
		memset(now.lapic.regs + 0x80, 0x20, 1); /* task priority */
		memset(now.lapic.regs + 0x320, 0x31, 1);
		now.sregs.cr2 = 0x5000;
		now.sregs.gdt.base = 0x7000;
		assert_int_equal(ioctl(fd, KVM_SET_MP_STATE, &now.mp), 0);
		assert_int_equal(ioctl(fd, KVM_SET_REGS, &now.regs), 0);
		assert_int_equal(ioctl(fd, KVM_SET_SREGS, &now.sregs), 0);
		assert_int_equal(ioctl(fd, KVM_SET_XSAVE, &now.fpu), 0);
		assert_int_equal(ioctl(fd, KVM_SET_DEBUGREGS, &now.debug), 0);
		assert_int_equal(ioctl(fd, KVM_SET_LAPIC, &now.lapic), 0);
		assert_int_equal(ioctl(fd, KVM_SET_MSRS, &l), 2);
		take(fd, &now);
		assert_memory_not_equal(&before, &now, sizeof(now)); /* the test can fail */

		if (arch_vcpu_reset(fd, m->cpu, i, &err))
			fail_msg("%s", err.msg);
		take(fd, &now);
		assert_memory_equal(&before.mp, &now.mp, sizeof(now.mp));
		assert_memory_equal(&before.regs, &now.regs, sizeof(now.regs));
		assert_memory_equal(&before.sregs, &now.sregs, sizeof(now.sregs));
		/* the header may say "initial" in more than one way */
		assert_memory_equal(&before.fpu, &now.fpu, 512);
		assert_memory_equal(&before.debug, &now.debug, sizeof(now.debug));
		assert_memory_equal(&before.lapic, &now.lapic, sizeof(now.lapic));
		assert_memory_equal(&before.events, &now.events, sizeof(now.events));
		assert_memory_equal(before.msr, now.msr, sizeof(now.msr));
	}
	machine_end(m);
}

static void test_cpuid_per_vcpu(void **state)
{
	struct machine *m = machine_or_skip();
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 256 * sizeof(c->entries[0]));

	assert_non_null(c);
	for (unsigned i = 0; i < CPUS; i++) {
		bool seen = false;

		c->nent = 256;
		assert_int_equal(ioctl(m->vcpu[i], KVM_GET_CPUID2, c), 0);
		for (unsigned k = 0; k < c->nent; k++) {
			if (c->entries[k].function == 1)
				assert_int_equal(c->entries[k].ebx >> 16, i << 8 | CPUS);
			if (c->entries[k].function == 0xb) {
				assert_int_equal(c->entries[k].edx, i);
				seen = true;
			}
		}
		assert_true(seen);
	}
	free(c);
	machine_end(m);
}

/* Run from @entry until an OUT to port 0xE9; its byte, or -1. */
static int run_until_out(struct machine *m, const struct boot_entry *entry, const void *code,
			 size_t len, uint64_t at)
{
	struct boot *b = calloc(1, sizeof(*b));
	struct err err = { 0 };
	int byte = -1;

	assert_non_null(b);
	assert_int_equal(arch_vcpu_set_entry(m->vcpu[0], b, &err), -EINVAL); /* nothing loaded */
	b->entry = *entry;
	b->loaded = true;
	memcpy(m->ram + at, code, len);
	if (arch_vcpu_set_entry(m->vcpu[0], b, &err))
		fail_msg("%s", err.msg);
	for (int i = 0; i < 16 && byte < 0; i++) {
		if (ioctl(m->vcpu[0], KVM_RUN, 0) < 0)
			break;
		if (m->run->exit_reason == KVM_EXIT_IO && m->run->io.port == 0xe9)
			byte = *((uint8_t *)m->run + m->run->io.data_offset);
		else if (m->run->exit_reason != KVM_EXIT_INTR)
			break;
	}
	if (byte < 0) {
		char text[512];

		arch_vcpu_describe(m->vcpu[0], text, sizeof(text));
		print_error("exit %u: %s\n", m->run->exit_reason, text);
	}
	free(b);
	return byte;
}

static void put_gdt(struct machine *m, struct boot_entry *e)
{
	uint64_t gdt[] = { 0,
			   0,
			   e->mode == BOOT_LONG ? 0x00af9b000000ffff : 0x00cf9b000000ffff,
			   0x00cf93000000ffff,
			   0x00008b0000000067,
			   0 };

	memcpy(m->ram + BOOT_GDT, gdt, sizeof(gdt));
	e->gdt = BOOT_GDT;
	e->gdt_limit = sizeof(gdt) - 1;
}

static void test_enter_real(void **state)
{
	struct machine *m = machine_or_skip();
	/* mov ax,cs; add al,bl; out 0xe9,al */
	static const uint8_t code[] = { 0x8c, 0xc8, 0x00, 0xd8, 0xe6, 0xe9 };
	struct boot_entry e = { .mode = BOOT_REAL, .rip = 4, .cs_base = 0x7c00, .rbx = 3 };

	assert_int_equal(run_until_out(m, &e, code, sizeof(code), 0x7c04), 0xc0 + 3);
	machine_end(m);
}

static void test_enter_protected(void **state)
{
	struct machine *m = machine_or_skip();
	/* push 0x18; pop ds; mov al,[ebx]; add al,ah; out 0xe9,al : a stack, a selector, EAX, EBX */
	static const uint8_t code[] = { 0x6a, 0x18, 0x1f, 0x8a, 0x03, 0x00, 0xe0, 0xe6, 0xe9 };
	struct boot_entry e = { .mode = BOOT_PROTECTED,
				.rip = 0x100000,
				.rsp = 0x200000,
				.rax = 0x1200,
				.rbx = 0x150000 };

	put_gdt(m, &e);
	m->ram[0x150000] = 0x30;
	assert_int_equal(run_until_out(m, &e, code, sizeof(code), 0x100000), 0x42);
	machine_end(m);
}

static void test_enter_long(void **state)
{
	struct machine *m = machine_or_skip();
	/* push rsi; pop rax; shr rax,32; out 0xe9,al : 64-bit registers and a stack */
	static const uint8_t code[] = { 0x56, 0x58, 0x48, 0xc1, 0xe8, 0x20, 0xe6, 0xe9 };
	struct boot_entry e = { .mode = BOOT_LONG,
				.rip = 0x100000,
				.rsp = 0x200000,
				.rsi = 0x7700000000,
				.cr3 = BOOT_PAGES };
	uint64_t pml4 = (BOOT_PAGES + 4096) | 3, pdpt = (BOOT_PAGES + 8192) | 3;
	uint64_t pd[2] = { 0x83, 0x200083 };

	put_gdt(m, &e);
	memcpy(m->ram + BOOT_PAGES, &pml4, 8);
	memcpy(m->ram + BOOT_PAGES + 4096, &pdpt, 8);
	memcpy(m->ram + BOOT_PAGES + 8192, pd, 16);
	assert_int_equal(run_until_out(m, &e, code, sizeof(code), 0x100000), 0x77);
	machine_end(m);
}

static void test_models(void **state)
{
	struct machine *m = machine_or_skip();
	struct err err = { 0 };

	assert_null(arch_cpu_new(m->kvm, "pentium", 1, &err));
	assert_non_null(strstr(err.msg, "pentium"));
	assert_null(arch_cpu_new(m->kvm, "host", ARCH_CPUS_MAX + 1, &err));
	assert_null(arch_cpu_new(m->kvm, "host", 0, &err));
	for (const char *const *name = arch_cpu_models(); *name; name++) {
		struct arch_cpu *c;

		memset(&err, 0, sizeof(err));
		c = arch_cpu_new(m->kvm, *name, 2, &err);
		if (c) { /* then a vCPU can be it */
			int vm = ioctl(m->kvm, KVM_CREATE_VM, 0);

			assert_int_equal(arch_vm_init(vm, &err), 0);
			int vcpu = ioctl(vm, KVM_CREATE_VCPU, 1);

			assert_true(vcpu >= 0);
			if (arch_vcpu_init(vcpu, c, 1, &err))
				fail_msg("%s: %s", *name, err.msg);
			close(vcpu);
			close(vm);
		} else { /* refused by name */
			assert_non_null(strstr(err.msg, *name));
			assert_non_null(strstr(err.msg, "lacks"));
			print_message("%s\n", err.msg);
		}
		arch_cpu_free(c);
	}
	assert_in_range(arch_cpu_phys_bits(m->cpu), 36, 52);
	machine_end(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_power_on),        cmocka_unit_test(test_reset_undoes),
		cmocka_unit_test(test_cpuid_per_vcpu),  cmocka_unit_test(test_enter_real),
		cmocka_unit_test(test_enter_protected), cmocka_unit_test(test_enter_long),
		cmocka_unit_test(test_models),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
