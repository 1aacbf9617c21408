/*
 * vcpu_state.c - registers at power-on and where a kernel starts
 *
 * Written in the order in which KVM wants state set (see docs/state.md): CPUID, MP_STATE, general
 * and system registers, FPU, XCR0, debug registers, local APIC, MSRs, pending events. CPUID first,
 * since KVM checks the rest against it; events last, since the others can raise them.
 *
 * A fresh vCPU of KVM has most of these values already; they are written all the same so that a vCPU
 * that ran is brought back too, and so that what the guest starts with does not depend on the kernel.
 * The time stamp counter is left alone: KVM starts those of one VM together, and a write to one of them
 * would set it apart.
 */
#include <asm/kvm_para.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/x86_64/boot.h"
#include "vmm/x86_64/cpu.h"
#include "vmm/x86_64/layout.h"

#define CR0_PE   0x1ull
#define CR0_ET   0x10ull
#define CR0_NW   0x20000000ull
#define CR0_CD   0x40000000ull
#define CR0_PG   0x80000000ull
#define CR4_PAE  0x20ull
#define EFER_LME 0x100ull
#define EFER_LMA 0x400ull

#define APIC_BASE_BSP    0x100ull
#define APIC_BASE_ENABLE 0x800ull

#define SEG_CODE 0xb /* execute, read, accessed */
#define SEG_DATA 0x3 /* read, write, accessed */
#define SEG_LDT  0x2
#define SEG_TSS  0xb /* busy */

static int set(int fd, unsigned long request, const void *arg, const char *what, struct err *err)
{
	if (ioctl(fd, request, arg) < 0)
		return err_set_sys(err, errno, "KVM cannot set the vCPU's %s", what);
	return 0;
}

static int set_cpuid(int fd, const struct arch_cpu *cpu, unsigned index, struct err *err)
{
	struct cpu_leaves *mine = malloc(sizeof(*mine));
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + CPU_LEAVES_MAX * sizeof(c->entries[0]));
	int rc;

	if (!mine || !c) {
		rc = err_set(err, ENOMEM, "out of memory");
	} else {
		*mine = cpu->leaves;
		cpu_topology(mine, cpu->ncpus, index);
		c->nent = mine->n;
		memcpy(c->entries, mine->e, mine->n * sizeof(mine->e[0]));
		rc = set(fd, KVM_SET_CPUID2, c, "CPUID", err);
	}
	free(mine);
	free(c);
	return rc;
}

int arch_vcpu_init(int vcpu_fd, const struct arch_cpu *c, unsigned index, struct err *err)
{
	int rc = set_cpuid(vcpu_fd, c, index, err);

	return rc ? rc : arch_vcpu_reset(vcpu_fd, c, index, err);
}

/* ---- power-on ---- */

static struct kvm_segment segment(uint16_t selector, uint64_t base, uint32_t limit, uint8_t type)
{
	return (struct kvm_segment){
		.selector = selector,
		.base = base,
		.limit = limit,
		.type = type,
		.present = 1,
		.s = 1,
	};
}

static struct kvm_segment system_segment(uint16_t selector, uint32_t limit, uint8_t type)
{
	struct kvm_segment s = segment(selector, 0, limit, type);

	s.s = 0;
	return s;
}

static void set_data_segments(struct kvm_sregs *s, struct kvm_segment data)
{
	s->ds = s->es = s->fs = s->gs = s->ss = data;
}

/* Intel SDM volume 3, 9.1.1 (AMD has the same). */
static int reset_sregs(int fd, unsigned index, struct err *err)
{
	struct kvm_sregs s = {
		.cs = segment(0xf000, 0xffff0000, 0xffff, SEG_CODE),
		.tr = system_segment(0, 0xffff, SEG_TSS),
		.ldt = system_segment(0, 0xffff, SEG_LDT),
		.gdt = { .limit = 0xffff },
		.idt = { .limit = 0xffff },
		.cr0 = CR0_ET | CR0_NW | CR0_CD,
		.apic_base = X86_LAPIC_BASE | APIC_BASE_ENABLE | (index ? 0 : APIC_BASE_BSP),
	};

	set_data_segments(&s, segment(0, 0, 0xffff, SEG_DATA));
	return set(fd, KVM_SET_SREGS, &s, "system registers", err);
}

/* The x87 and SSE state as after FNINIT; everything wider in its initial state. */
static int reset_fpu(int fd, const struct arch_cpu *c, struct err *err)
{
	/* With AMX the kernel reads more than struct kvm_xsave has; this covers all of it. */
	union {
		struct kvm_xsave area;
		uint8_t bytes[16384];
	} x = { .bytes = { 0 } };
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs = { { .xcr = 0, .value = 1 } } };
	int rc;

	x.area.region[0] = 0x37f;   /* FCW */
	x.area.region[6] = 0x1f80;  /* MXCSR */
	x.area.region[512 / 4] = 3; /* XSTATE_BV: these two are given */
	rc = set(fd, KVM_SET_XSAVE, &x, "FPU state", err);
	if (!rc && cpu_has(c, 1, CPU_ECX, 26)) /* XSAVE: else there is no XCR0 */
		rc = set(fd, KVM_SET_XCRS, &xcrs, "XCR0", err);
	return rc;
}

static void put32(struct kvm_lapic_state *s, unsigned reg, uint32_t value)
{
	memcpy(s->regs + reg, &value, 4);
}

/*
 * Power-on, but for the two inputs: LINT0 passes the PIC's interrupts through on the boot processor
 * and LINT1 takes NMIs, as firmware leaves them (MP specification 1.4, 3.6.2.2, virtual wire mode).
 */
static int reset_lapic(int fd, unsigned index, struct err *err)
{
	enum {
		ID = 0x20,
		VERSION = 0x30,
		DFR = 0xe0,
		SPIV = 0xf0,
		LVT_CMCI = 0x2f0,
		LVT_TIMER = 0x320,
		LVT_LINT0 = 0x350,
		LVT_LINT1 = 0x360,
		LVT_ERROR = 0x370
	};
	const uint32_t masked = 0x10000, ext_int = 0x700, nmi = 0x400;
	struct kvm_lapic_state now, s = { 0 };

	if (ioctl(fd, KVM_GET_LAPIC, &now) < 0)
		return err_set_sys(err, errno, "KVM cannot read the vCPU's local APIC");
	memcpy(s.regs + VERSION, now.regs + VERSION, 4);
	put32(&s, ID, index << 24);
	put32(&s, DFR, 0xffffffff);
	put32(&s, SPIV, 0xff);
	put32(&s, LVT_CMCI, masked);
	for (unsigned reg = LVT_TIMER; reg <= LVT_ERROR; reg += 0x10)
		put32(&s, reg, masked);
	put32(&s, LVT_LINT0, index ? masked : ext_int);
	put32(&s, LVT_LINT1, nmi);
	return set(fd, KVM_SET_LAPIC, &s, "local APIC", err);
}

struct msr {
	uint32_t index;
	uint64_t value;
	/*
	 * Not every KVM has it, and where it is missing the guest cannot have left anything in it.
	 * The others every x86-64 processor has.
	 */
	bool optional;
};

static const struct msr reset_msrs[] = {
	{ 0x174, 0, false }, /* SYSENTER_CS, ESP, EIP */
	{ 0x175, 0, false },
	{ 0x176, 0, false },
	{ 0x277, 0x0007040600070406, false }, /* PAT */
	{ 0x2ff, 0x806, false },              /* MTRR_DEF_TYPE: enabled, write-back */
	{ 0xc0000081, 0, false },             /* STAR, LSTAR, CSTAR, SYSCALL_MASK */
	{ 0xc0000082, 0, false },
	{ 0xc0000083, 0, false },
	{ 0xc0000084, 0, false },
	{ 0xc0000102, 0, false }, /* KERNEL_GS_BASE */
	{ 0x48, 0, true },        /* SPEC_CTRL */
	{ 0x1d9, 0, true },       /* DEBUGCTL */
	{ 0x6e0, 0, true },       /* TSC_DEADLINE */
	{ 0xda0, 0, true },       /* XSS */
	{ 0xc0000103, 0, true },  /* TSC_AUX */
	{ MSR_KVM_SYSTEM_TIME_NEW, 0, true },
	{ MSR_KVM_ASYNC_PF_EN, 0, true },
	{ MSR_KVM_STEAL_TIME, 0, true },
	{ MSR_KVM_PV_EOI_EN, 0, true },
	{ MSR_KVM_ASYNC_PF_INT, 0, true },
};

#define RESET_MSRS (sizeof(reset_msrs) / sizeof(reset_msrs[0]))

struct msr_list {
	struct kvm_msrs head;
	struct kvm_msr_entry entries[RESET_MSRS];
};

/* Fast string operations on, and whatever else KVM has there. */
static int set_misc_enable(int fd, struct err *err)
{
	struct msr_list one = { .head.nmsrs = 1, .entries = { { .index = 0x1a0 } } };

	if (ioctl(fd, KVM_GET_MSRS, &one) != 1)
		return err_set(err, EIO, "KVM cannot read the vCPU's MSR 0x1a0");
	one.entries[0].data |= 1;
	if (ioctl(fd, KVM_SET_MSRS, &one) != 1)
		return err_set(err, EIO, "KVM cannot set the vCPU's MSR 0x1a0");
	return 0;
}

static int reset_all_msrs(int fd, struct err *err)
{
	/* KVM stops at the first it refuses and says how many it took. */
	for (size_t done = 0; done < RESET_MSRS;) {
		struct msr_list l = { .head.nmsrs = (uint32_t)(RESET_MSRS - done) };

		for (size_t i = done; i < RESET_MSRS; i++)
			l.entries[i - done] = (struct kvm_msr_entry){
				.index = reset_msrs[i].index,
				.data = reset_msrs[i].value,
			};
		int n = ioctl(fd, KVM_SET_MSRS, &l);

		if (n < 0)
			return err_set_sys(err, errno, "KVM cannot set the vCPU's MSRs");
		done += (size_t)n;
		if (done < RESET_MSRS && !reset_msrs[done].optional)
			return err_set(err, EIO, "KVM cannot set the vCPU's MSR 0x%x",
				       reset_msrs[done].index);
		done++;
	}
	return set_misc_enable(fd, err);
}

int arch_vcpu_reset(int vcpu_fd, const struct arch_cpu *c, unsigned index, struct err *err)
{
	struct kvm_mp_state mp = {
		.mp_state = index ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE,
	};
	struct kvm_regs regs = { .rip = 0xfff0, .rflags = 2 };
	struct kvm_debugregs debug = { .dr6 = 0xffff0ff0, .dr7 = 0x400 };
	struct kvm_vcpu_events events = {
		.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
			 KVM_VCPUEVENT_VALID_SHADOW,
	};
	const struct kvm_cpuid_entry2 *one = cpu_leaf((struct cpu_leaves *)&c->leaves, 1, 0);
	int rc;

	regs.rdx = one ? one->eax : 0; /* the processor's signature */
	if ((rc = set(vcpu_fd, KVM_SET_MP_STATE, &mp, "run state", err)) ||
	    (rc = set(vcpu_fd, KVM_SET_REGS, &regs, "registers", err)) ||
	    (rc = reset_sregs(vcpu_fd, index, err)) || (rc = reset_fpu(vcpu_fd, c, err)) ||
	    (rc = set(vcpu_fd, KVM_SET_DEBUGREGS, &debug, "debug registers", err)) ||
	    (rc = reset_lapic(vcpu_fd, index, err)) || (rc = reset_all_msrs(vcpu_fd, err)))
		return rc;
	return set(vcpu_fd, KVM_SET_VCPU_EVENTS, &events, "pending events", err);
}

/* ---- where the kernel starts ---- */

static void enter_real(struct kvm_sregs *s, const struct boot_entry *e)
{
	s->cs = segment((uint16_t)(e->cs_base >> 4), e->cs_base, 0xffff, SEG_CODE);
	s->idt.limit = 0x3ff; /* the interrupt vector table at 0 */
	s->cr0 = CR0_ET;
}

/* Flat segments, interrupts without a table: the kernel brings its own before it enables them. */
static void enter_protected(struct kvm_sregs *s, const struct boot_entry *e)
{
	struct kvm_segment code = segment(BOOT_CS, 0, 0xffffffff, SEG_CODE);
	struct kvm_segment data = segment(BOOT_DS, 0, 0xffffffff, SEG_DATA);

	code.g = data.g = 1;
	data.db = 1;
	code.db = e->mode == BOOT_PROTECTED;
	code.l = e->mode == BOOT_LONG;
	s->cs = code;
	set_data_segments(s, data);
	s->tr = system_segment(BOOT_TR, 0x67, SEG_TSS);
	s->gdt = (struct kvm_dtable){ .base = e->gdt, .limit = e->gdt_limit };
	s->idt = (struct kvm_dtable){ .base = 0, .limit = 0 };
	s->cr0 = CR0_PE | CR0_ET;
}

static void enter_long(struct kvm_sregs *s, const struct boot_entry *e)
{
	enter_protected(s, e);
	s->cr3 = e->cr3;
	s->cr4 = CR4_PAE;
	s->cr0 |= CR0_PG;
	s->efer = EFER_LME | EFER_LMA;
}

int arch_vcpu_set_entry(int vcpu_fd, const struct boot *b, struct err *err)
{
	const struct boot_entry *e = boot_get_entry(b);
	struct kvm_sregs s;
	struct kvm_regs regs;
	int rc;

	if (!e)
		return err_set(err, EINVAL, "no kernel is loaded");
	if (ioctl(vcpu_fd, KVM_GET_SREGS, &s) < 0)
		return err_set_sys(err, errno, "KVM cannot read the vCPU's system registers");
	switch (e->mode) {
	case BOOT_REAL:
		enter_real(&s, e);
		break;
	case BOOT_PROTECTED:
		enter_protected(&s, e);
		break;
	case BOOT_LONG:
		enter_long(&s, e);
		break;
	}
	regs = (struct kvm_regs){
		.rip = e->rip,
		.rsp = e->rsp,
		.rax = e->rax,
		.rbx = e->rbx,
		.rsi = e->rsi,
		.rflags = 2,
	};
	rc = set(vcpu_fd, KVM_SET_SREGS, &s, "system registers", err);
	return rc ? rc : set(vcpu_fd, KVM_SET_REGS, &regs, "registers", err);
}
