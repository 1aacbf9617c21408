/*
 * vcpu_save.c - a vCPU's registers, saved and set
 *
 * The order is KVM's (platform notes in docs/state-format.md). Saving reads MP_STATE first, because
 * reading it lets KVM take a pending INIT or SIPI, which changes the other registers; events last,
 * because the others can move one from pending to injected. Setting begins with CPUID, which KVM checks
 * the rest against; system registers say which mode the local APIC is in before its registers are set;
 * MSRs come after it for the sake of the deadline timer, events last.
 *
 * All ioctls used here every KVM since Linux 3.x has (software KVM as well), but for three: XSAVE2
 * (Linux 5.17, with AMX), setting the TSC's rate, which not every processor can, and its offset (5.16).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/fd.h"
#include "base/log.h"
#include "vmm/x86_64/cpu.h"
#include "vmm/x86_64/moment.h"
#include "vmm/x86_64/vcpu_msrs.h"

_Static_assert(REGS_LAPIC_SIZE == KVM_APIC_REG_SIZE, "all of the local APIC is saved");

static int get(int fd, unsigned long request, void *arg, const char *what, struct err *err)
{
	if (ioctl(fd, request, arg) < 0)
		return err_set_sys(err, errno, "KVM cannot read the vCPU's %s", what);
	return 0;
}

static int set(int fd, unsigned long request, const void *arg, const char *what, struct err *err)
{
	if (ioctl(fd, request, arg) < 0)
		return err_set_sys(err, errno, "KVM cannot set the vCPU's %s", what);
	return 0;
}

/* Both ways of each struct in one list, so that neither can forget a field. */
/* clang-format off */
#define GENERAL(X)                                                                                 \
	X(rax) X(rbx) X(rcx) X(rdx) X(rsi) X(rdi) X(rsp) X(rbp) X(r8) X(r9) X(r10) X(r11) X(r12)   \
	X(r13) X(r14) X(r15) X(rip) X(rflags)
#define SEGMENTS(X) X(cs) X(ds) X(es) X(fs) X(gs) X(ss) X(tr) X(ldt)
#define CONTROL(X)  X(cr0) X(cr2) X(cr3) X(cr4) X(cr8) X(efer) X(apic_base)
#define SEGMENT(X)                                                                                 \
	X(base) X(limit) X(selector) X(type) X(present) X(dpl) X(db) X(s) X(l) X(g) X(avl)         \
	X(unusable)
#define EVENTS(X)                                                                                  \
	X(exception_payload, exception_payload) X(exception_error_code, exception.error_code)      \
	X(exception_injected, exception.injected) X(exception_nr, exception.nr)                    \
	X(exception_has_error_code, exception.has_error_code)                                      \
	X(exception_pending, exception.pending) X(exception_has_payload, exception_has_payload)    \
	X(interrupt_injected, interrupt.injected) X(interrupt_nr, interrupt.nr)                    \
	X(interrupt_soft, interrupt.soft) X(interrupt_shadow, interrupt.shadow)                    \
	X(nmi_injected, nmi.injected) X(nmi_pending, nmi.pending) X(nmi_masked, nmi.masked)        \
	X(smi_smm, smi.smm) X(smi_pending, smi.pending) X(smi_inside_nmi, smi.smm_inside_nmi)      \
	X(smi_latched_init, smi.latched_init) X(triple_fault_pending, triple_fault.pending)        \
	X(sipi_vector, sipi_vector)

#define COPY(f)          to->f = from->f;
#define COPY_FROM(f, kf) to->f = from->kf;
#define COPY_TO(f, kf)   to->kf = from->f;
/* clang-format on */

static void segment_from_kvm(struct segment_regs *to, const struct kvm_segment *from)
{
	SEGMENT(COPY)
}

static void segment_to_kvm(struct kvm_segment *to, const struct segment_regs *from)
{
	SEGMENT(COPY)
}

static void general_from_kvm(struct vcpu_regs *to, const struct kvm_regs *from)
{
	GENERAL(COPY)
}

static void general_to_kvm(struct kvm_regs *to, const struct vcpu_regs *from)
{
	GENERAL(COPY)
}

static void system_from_kvm(struct vcpu_regs *to, const struct kvm_sregs *from)
{
#define GET_SEGMENT(f) segment_from_kvm(&to->f, &from->f);
	SEGMENTS(GET_SEGMENT)
	CONTROL(COPY)
	to->gdt_base = from->gdt.base;
	to->gdt_limit = from->gdt.limit;
	to->idt_base = from->idt.base;
	to->idt_limit = from->idt.limit;
	memcpy(to->interrupt_bitmap, from->interrupt_bitmap, sizeof(to->interrupt_bitmap));
}

static void system_to_kvm(struct kvm_sregs *to, const struct vcpu_regs *from)
{
#define SET_SEGMENT(f) segment_to_kvm(&to->f, &from->f);
	SEGMENTS(SET_SEGMENT)
	CONTROL(COPY)
	to->gdt.base = from->gdt_base;
	to->gdt.limit = (uint16_t)from->gdt_limit;
	to->idt.base = from->idt_base;
	to->idt.limit = (uint16_t)from->idt_limit;
	memcpy(to->interrupt_bitmap, from->interrupt_bitmap, sizeof(to->interrupt_bitmap));
}

static void events_from_kvm(struct event_regs *to, const struct kvm_vcpu_events *from)
{
	EVENTS(COPY_FROM)
}

static void events_to_kvm(struct kvm_vcpu_events *to, const struct event_regs *from)
{
	EVENTS(COPY_TO)
}

/* ---- saving ---- */

/*
 * What it was given, not what KVM_GET_CPUID2 says: that follows the guest's own switches, and with
 * software KVM shows the host's processor.
 */
static int save_cpuid(const struct arch_cpu *c, unsigned index, struct cpuid_regs *r,
		      struct err *err)
{
	cleanup_free struct cpu_leaves *l = malloc(sizeof(*l));

	if (!l)
		return err_set(err, ENOMEM, "out of memory for the vCPU's CPUID");
	*l = c->leaves;
	cpu_topology(l, c->ncpus, index);
	cpuid_to_regs(l->e, l->n, r);
	return 0;
}

static int save_fpu(int fd, const struct arch_cpu *c, struct vcpu_regs *r, struct err *err)
{
	struct kvm_xcrs xcrs = { 0 };
	int rc;

	_Static_assert(sizeof(struct kvm_xsave) <= REGS_XSAVE_MAX, "the area fits");
	if (c->xsave_size > REGS_XSAVE_MAX)
		return err_set(err, E2BIG, "this processor's FPU state of %zu bytes is too large",
			       c->xsave_size);
	rc = get(fd, c->xsave_size ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, r->xsave, "FPU state", err);
	if (rc || !cpu_has(c, 1, CPU_ECX, 26)) /* XSAVE: else there is no XCR0 */
		return rc;
	rc = get(fd, KVM_GET_XCRS, &xcrs, "XCR0", err);
	for (uint32_t i = 0; !rc && i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; i++)
		if (!xcrs.xcrs[i].xcr)
			r->xcr0 = xcrs.xcrs[i].value;
	return rc;
}

static int save(int fd, const struct arch_cpu *c, unsigned index, struct vcpu_regs *r,
		struct err *err)
{
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_debugregs debug;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	int rc;

	if ((rc = get(fd, KVM_GET_MP_STATE, &mp, "run state", err)) ||
	    (rc = get(fd, KVM_GET_REGS, &regs, "registers", err)) ||
	    (rc = get(fd, KVM_GET_SREGS, &sregs, "system registers", err)) ||
	    (rc = save_fpu(fd, c, r, err)) ||
	    (rc = get(fd, KVM_GET_DEBUGREGS, &debug, "debug registers", err)) ||
	    (rc = get(fd, KVM_GET_LAPIC, &lapic, "local APIC", err)) ||
	    (rc = vcpu_msrs_save(fd, c, r, err)) || (rc = save_cpuid(c, index, &r->cpuid, err)) ||
	    (rc = get(fd, KVM_GET_VCPU_EVENTS, &events, "pending events", err)))
		return rc;
	int khz = ioctl(fd, KVM_GET_TSC_KHZ, 0);

	r->tsc_khz = khz > 0 ? (uint32_t)khz : 0; /* 0: unknown */
	r->mp_state = mp.mp_state;
	general_from_kvm(r, &regs);
	system_from_kvm(r, &sregs);
	memcpy(r->dr, debug.db, sizeof(r->dr));
	r->dr6 = debug.dr6;
	r->dr7 = debug.dr7;
	memcpy(r->lapic, lapic.regs, sizeof(r->lapic));
	events_from_kvm(&r->events, &events);
	return 0;
}

/* As it was when the clock was read, not as it is when it is the counter's turn. */
static int save_tsc(int fd, const struct arch_clock *k, struct vcpu_regs *r, struct err *err)
{
	uint64_t *tsc = vcpu_msrs_tsc(r);
	int rc = tsc && k->saved.tsc_khz ? moment_tsc(&k->saved, fd, tsc) : 0;

	return rc ? err_set_sys(err, rc, "KVM cannot read the vCPU's time stamp counter") : 0;
}

int arch_vcpu_save(int vcpu_fd, const struct arch_cpu *c, unsigned index,
		   const struct arch_clock *k, struct state_buf *out, struct err *err)
{
	cleanup_free struct vcpu_regs *r = calloc(1, sizeof(*r));
	int rc;

	if (!r)
		return err_set(err, ENOMEM, "out of memory for the vCPU's state");
	rc = save(vcpu_fd, c, index, r, err);
	if (!rc)
		rc = save_tsc(vcpu_fd, k, r, err);
	if (!rc && state_save(&vcpu_state, r, out))
		rc = err_set(err, ENOMEM, "out of memory for the vCPU's state");
	return rc;
}

/* ---- loading ---- */

static int load_cpuid(int fd, const struct arch_cpu *cpu, const struct cpuid_regs *r,
		      struct err *err)
{
	cleanup_free struct cpu_leaves *l = malloc(sizeof(*l));
	cleanup_free struct kvm_cpuid2 *c =
		calloc(1, sizeof(*c) + REGS_LEAVES_MAX * sizeof(c->entries[0]));
	int rc;

	if (!l || !c)
		return err_set(err, ENOMEM, "out of memory for the vCPU's CPUID");
	cpuid_from_regs(r, l);
	rc = cpu_check_leaves(cpu, l, err);
	if (rc)
		return rc;
	c->nent = l->n;
	memcpy(c->entries, l->e, l->n * sizeof(l->e[0]));
	return set(fd, KVM_SET_CPUID2, c, "CPUID", err);
}

static bool has_invariant_tsc(const struct cpuid_regs *r)
{
	for (uint32_t i = 0; i < r->count; i++)
		if (r->function[i] == 0x80000007)
			return r->edx[i] >> 8 & 1;
	return false;
}

/* KVM itself lets two rates pass as one that differ by 250 millionths. */
static int load_tsc_rate(int fd, const struct vcpu_regs *r, struct err *err)
{
	int khz = ioctl(fd, KVM_GET_TSC_KHZ, 0);
	uint64_t tolerance = r->tsc_khz / 4000;

	if (khz <= 0 || !r->tsc_khz ||
	    ((uint64_t)khz <= r->tsc_khz + tolerance && (uint64_t)khz + tolerance >= r->tsc_khz) ||
	    !ioctl(fd, KVM_SET_TSC_KHZ, (unsigned long)r->tsc_khz))
		return 0;
	ioctl(fd, KVM_SET_TSC_KHZ, (unsigned long)khz); /* KVM believed it all the same */
	if (!has_invariant_tsc(&r->cpuid)) {
		log_warn("the guest's time stamp counter ran at %u kHz and now runs at %d",
			 r->tsc_khz, khz);
		return 0;
	}
	return err_set(
		err, EINVAL,
		"the guest's time stamp counter runs at %u kHz, this host's at %d kHz, and its "
		"processor cannot scale it; a guest of --cpu x86-64-v2 to v4 does not rely on "
		"it",
		r->tsc_khz, khz);
}

static int load_fpu(int fd, const struct arch_cpu *c, const struct vcpu_regs *r, struct err *err)
{
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs = { { .xcr = 0, .value = r->xcr0 } } };
	int rc = set(fd, KVM_SET_XSAVE, r->xsave, "FPU state", err);

	if (!rc && cpu_has(c, 1, CPU_ECX, 26))
		rc = set(fd, KVM_SET_XCRS, &xcrs, "XCR0", err);
	return rc;
}

static int load_events(int fd, const struct event_regs *r, struct err *err)
{
	struct kvm_vcpu_events e = {
		.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
			 KVM_VCPUEVENT_VALID_SHADOW,
	};

	/* Payloads, triple faults and SMM have to be switched on in KVM, and are not: all zero. */
	events_to_kvm(&e, r);
	if (r->smi_smm || r->smi_pending || r->smi_inside_nmi || r->smi_latched_init)
		e.flags |= KVM_VCPUEVENT_VALID_SMM;
	return set(fd, KVM_SET_VCPU_EVENTS, &e, "pending events", err);
}

static uint64_t ticks(const struct vcpu_regs *r, uint64_t ns)
{
	return (uint64_t)((unsigned __int128)ns * r->tsc_khz / 1000000);
}

static bool load_tsc(int fd, struct arch_clock *k, struct vcpu_regs *r)
{
	const uint64_t *tsc = vcpu_msrs_tsc(r);

	return tsc && moment_set_tsc(k, fd, *tsc, r->tsc_khz);
}

static int load(int fd, const struct arch_cpu *c, struct vcpu_regs *r, struct arch_clock *k,
		struct err *err)
{
	struct kvm_mp_state mp = { .mp_state = r->mp_state };
	struct kvm_regs regs = { 0 };
	struct kvm_sregs sregs = { 0 };
	struct kvm_debugregs debug = { .dr6 = r->dr6, .dr7 = r->dr7 };
	struct kvm_lapic_state lapic;
	int rc;

	general_to_kvm(&regs, r);
	system_to_kvm(&sregs, r);
	memcpy(debug.db, r->dr, sizeof(r->dr));
	memcpy(lapic.regs, r->lapic, sizeof(r->lapic));
	if ((rc = load_cpuid(fd, c, &r->cpuid, err)) || (rc = load_tsc_rate(fd, r, err)) ||
	    (rc = set(fd, KVM_SET_MP_STATE, &mp, "run state", err)) ||
	    (rc = set(fd, KVM_SET_REGS, &regs, "registers", err)) ||
	    (rc = set(fd, KVM_SET_SREGS, &sregs, "system registers", err)) ||
	    (rc = load_fpu(fd, c, r, err)) ||
	    (rc = set(fd, KVM_SET_DEBUGREGS, &debug, "debug registers", err)) ||
	    (rc = set(fd, KVM_SET_LAPIC, &lapic, "local APIC", err)) ||
	    (rc = vcpu_msrs_load(fd, r, ticks(r, k->elapsed_ns), load_tsc(fd, k, r), err)))
		return rc;
	return load_events(fd, &r->events, err);
}

int arch_vcpu_load(int vcpu_fd, const struct arch_cpu *c, struct arch_clock *k, const void *data,
		   size_t len, struct err *err)
{
	/* KVM reads as much of the FPU's state as the host has: the array is longer. */
	cleanup_free struct vcpu_regs *r = calloc(1, sizeof(*r));
	int rc;

	if (!r)
		return err_set(err, ENOMEM, "out of memory for the vCPU's state");
	if (c->xsave_size > REGS_XSAVE_MAX)
		return err_set(err, E2BIG, "this processor's FPU state of %zu bytes is too large",
			       c->xsave_size);
	rc = state_load_new(&vcpu_state, r, NULL, data, len, err);
	return rc ? rc : load(vcpu_fd, c, r, k, err);
}
