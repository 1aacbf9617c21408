/*
 * regs.c - tables and checks of what regs.h describes
 *
 * KVM checks most values when they are set, and it has to: any program can set them. What is checked
 * here are lengths that we use ourselves, and what KVM takes without a word but the machine is not
 * made for.
 */
#include <linux/kvm.h>

#include "vmm/arch.h"
#include "vmm/x86_64/regs.h"

static int cpuid_validate(const void *regs, const void *device, struct err *err)
{
	const struct cpuid_regs *r = regs;

	if (!r->count || r->count > REGS_LEAVES_MAX)
		return err_set(err, EINVAL, "cpuid.count: %u leaves, 1 to %u are possible",
			       r->count, REGS_LEAVES_MAX);
	return 0;
}

#define LEAF_FIELD(id, m) STATE_U32_TRIM(id, struct cpuid_regs, m, REGS_LEAVES_MAX)

static const struct state_field cpuid_fields[] = {
	STATE_U32(1, struct cpuid_regs, count),
	LEAF_FIELD(2, function),
	LEAF_FIELD(3, index),
	LEAF_FIELD(4, flags),
	LEAF_FIELD(5, eax),
	LEAF_FIELD(6, ebx),
	LEAF_FIELD(7, ecx),
	LEAF_FIELD(8, edx),
};
const struct state_desc cpuid_state =
	STATE_DESC("cpuid", struct cpuid_regs, cpuid_fields, cpuid_validate);

static const struct state_field segment_fields[] = {
	STATE_U64(1, struct segment_regs, base),     STATE_U32(2, struct segment_regs, limit),
	STATE_U16(3, struct segment_regs, selector), STATE_U8(4, struct segment_regs, type),
	STATE_U8(5, struct segment_regs, present),   STATE_U8(6, struct segment_regs, dpl),
	STATE_U8(7, struct segment_regs, db),        STATE_U8(8, struct segment_regs, s),
	STATE_U8(9, struct segment_regs, l),         STATE_U8(10, struct segment_regs, g),
	STATE_U8(11, struct segment_regs, avl),      STATE_U8(12, struct segment_regs, unusable),
	STATE_PAD(struct segment_regs, pad_),
};
static const struct state_desc segment_state =
	STATE_DESC("segment", struct segment_regs, segment_fields, NULL);

static const struct state_field event_fields[] = {
	STATE_U64(1, struct event_regs, exception_payload),
	STATE_U32(2, struct event_regs, exception_error_code),
	STATE_U32(3, struct event_regs, sipi_vector),
	STATE_U8(4, struct event_regs, exception_injected),
	STATE_U8(5, struct event_regs, exception_nr),
	STATE_U8(6, struct event_regs, exception_has_error_code),
	STATE_U8(7, struct event_regs, exception_pending),
	STATE_U8(8, struct event_regs, exception_has_payload),
	STATE_U8(9, struct event_regs, interrupt_injected),
	STATE_U8(10, struct event_regs, interrupt_nr),
	STATE_U8(11, struct event_regs, interrupt_soft),
	STATE_U8(12, struct event_regs, interrupt_shadow),
	STATE_U8(13, struct event_regs, nmi_injected),
	STATE_U8(14, struct event_regs, nmi_pending),
	STATE_U8(15, struct event_regs, nmi_masked),
	STATE_U8(16, struct event_regs, smi_smm),
	STATE_U8(17, struct event_regs, smi_pending),
	STATE_U8(18, struct event_regs, smi_inside_nmi),
	STATE_U8(19, struct event_regs, smi_latched_init),
	STATE_U8(20, struct event_regs, triple_fault_pending),
	STATE_PAD(struct event_regs, pad_),
};
static const struct state_desc event_state =
	STATE_DESC("events", struct event_regs, event_fields, NULL);

static int vcpu_validate(const void *regs, const void *device, struct err *err)
{
	const struct vcpu_regs *r = regs;

	if (r->msr_count > REGS_MSRS_MAX)
		return err_set(err, EINVAL, "vcpu.msr_count: %u, at most %u are possible",
			       r->msr_count, REGS_MSRS_MAX);
	if (r->mp_state > KVM_MP_STATE_SIPI_RECEIVED)
		return err_set(err, EINVAL, "vcpu.mp_state: %u", r->mp_state);
	return 0;
}

#define SEGMENT(id, m) STATE_TABLE(id, struct vcpu_regs, m, 1, &segment_state)

static const struct state_field vcpu_fields[] = {
	STATE_U32(1, struct vcpu_regs, mp_state),
	STATE_U32(2, struct vcpu_regs, tsc_khz),
	STATE_U64(3, struct vcpu_regs, rax),
	STATE_U64(4, struct vcpu_regs, rbx),
	STATE_U64(5, struct vcpu_regs, rcx),
	STATE_U64(6, struct vcpu_regs, rdx),
	STATE_U64(7, struct vcpu_regs, rsi),
	STATE_U64(8, struct vcpu_regs, rdi),
	STATE_U64(9, struct vcpu_regs, rsp),
	STATE_U64(10, struct vcpu_regs, rbp),
	STATE_U64(11, struct vcpu_regs, r8),
	STATE_U64(12, struct vcpu_regs, r9),
	STATE_U64(13, struct vcpu_regs, r10),
	STATE_U64(14, struct vcpu_regs, r11),
	STATE_U64(15, struct vcpu_regs, r12),
	STATE_U64(16, struct vcpu_regs, r13),
	STATE_U64(17, struct vcpu_regs, r14),
	STATE_U64(18, struct vcpu_regs, r15),
	STATE_U64(19, struct vcpu_regs, rip),
	STATE_U64(20, struct vcpu_regs, rflags),
	SEGMENT(21, cs),
	SEGMENT(22, ds),
	SEGMENT(23, es),
	SEGMENT(24, fs),
	SEGMENT(25, gs),
	SEGMENT(26, ss),
	SEGMENT(27, tr),
	SEGMENT(28, ldt),
	STATE_U64(29, struct vcpu_regs, gdt_base),
	STATE_U64(30, struct vcpu_regs, idt_base),
	STATE_U32(31, struct vcpu_regs, gdt_limit),
	STATE_U32(32, struct vcpu_regs, idt_limit),
	STATE_U64(33, struct vcpu_regs, cr0),
	STATE_U64(34, struct vcpu_regs, cr2),
	STATE_U64(35, struct vcpu_regs, cr3),
	STATE_U64(36, struct vcpu_regs, cr4),
	STATE_U64(37, struct vcpu_regs, cr8),
	STATE_U64(38, struct vcpu_regs, efer),
	STATE_U64(39, struct vcpu_regs, apic_base),
	STATE_U64_ARRAY(40, struct vcpu_regs, interrupt_bitmap, 4),
	STATE_U64_ARRAY(41, struct vcpu_regs, dr, 4),
	STATE_U64(42, struct vcpu_regs, dr6),
	STATE_U64(43, struct vcpu_regs, dr7),
	STATE_U64(44, struct vcpu_regs, xcr0),
	STATE_TABLE(45, struct vcpu_regs, events, 1, &event_state),
	STATE_U64_TRIM(46, struct vcpu_regs, msr_value, REGS_MSRS_MAX),
	STATE_U32_TRIM(47, struct vcpu_regs, msr, REGS_MSRS_MAX),
	STATE_U32(48, struct vcpu_regs, msr_count),
	STATE_TABLE(49, struct vcpu_regs, cpuid, 1, &cpuid_state),
	STATE_U8_ARRAY(50, struct vcpu_regs, lapic, REGS_LAPIC_SIZE),
	STATE_U8_TRIM(51, struct vcpu_regs, xsave, REGS_XSAVE_MAX),
};
const struct state_desc vcpu_state =
	STATE_DESC("vcpu", struct vcpu_regs, vcpu_fields, vcpu_validate);

static const struct state_field pic_fields[] = {
	STATE_U8(1, struct pic_regs, last_irr),
	STATE_U8(2, struct pic_regs, irr),
	STATE_U8(3, struct pic_regs, imr),
	STATE_U8(4, struct pic_regs, isr),
	STATE_U8(5, struct pic_regs, priority_add),
	STATE_U8(6, struct pic_regs, irq_base),
	STATE_U8(7, struct pic_regs, read_reg_select),
	STATE_U8(8, struct pic_regs, poll),
	STATE_U8(9, struct pic_regs, special_mask),
	STATE_U8(10, struct pic_regs, init_state),
	STATE_U8(11, struct pic_regs, auto_eoi),
	STATE_U8(12, struct pic_regs, rotate_on_auto_eoi),
	STATE_U8(13, struct pic_regs, special_fully_nested_mode),
	STATE_U8(14, struct pic_regs, init4),
	STATE_U8(15, struct pic_regs, elcr),
	STATE_U8(16, struct pic_regs, elcr_mask),
};
static const struct state_desc pic_state = STATE_DESC("pic", struct pic_regs, pic_fields, NULL);

static const struct state_field ioapic_fields[] = {
	STATE_U64_ARRAY(1, struct ioapic_regs, redirection, REGS_PINS),
	STATE_U32(2, struct ioapic_regs, select),
	STATE_U32(3, struct ioapic_regs, id),
	STATE_U32(4, struct ioapic_regs, irr),
	STATE_PAD(struct ioapic_regs, pad_),
};
static const struct state_desc ioapic_state =
	STATE_DESC("ioapic", struct ioapic_regs, ioapic_fields, NULL);

static const struct state_field pit_fields[] = {
	STATE_UINT_(1, struct pit_channel_regs, count_load_time, 8, 1, 0),
	STATE_U32(2, struct pit_channel_regs, count),
	STATE_U16(3, struct pit_channel_regs, latched_count),
	STATE_U8(4, struct pit_channel_regs, count_latched),
	STATE_U8(5, struct pit_channel_regs, status_latched),
	STATE_U8(6, struct pit_channel_regs, status),
	STATE_U8(7, struct pit_channel_regs, read_state),
	STATE_U8(8, struct pit_channel_regs, write_state),
	STATE_U8(9, struct pit_channel_regs, write_latch),
	STATE_U8(10, struct pit_channel_regs, rw_mode),
	STATE_U8(11, struct pit_channel_regs, mode),
	STATE_U8(12, struct pit_channel_regs, bcd),
	STATE_U8(13, struct pit_channel_regs, gate),
};
static const struct state_desc pit_state =
	STATE_DESC("pit-channel", struct pit_channel_regs, pit_fields, NULL);

static const struct state_field chips_fields[] = {
	STATE_TABLE(1, struct chips_regs, pic, 2, &pic_state),
	STATE_TABLE(2, struct chips_regs, ioapic, 1, &ioapic_state),
	STATE_TABLE(3, struct chips_regs, pit, 3, &pit_state),
	STATE_U32(4, struct chips_regs, pit_flags),
	STATE_PAD(struct chips_regs, pad_),
};
const struct state_desc chips_state = STATE_DESC("chips", struct chips_regs, chips_fields, NULL);

static const struct state_field clock_fields[] = {
	STATE_U64(1, struct clock_regs, guest_ns),
	STATE_U64(2, struct clock_regs, realtime_ns),
	STATE_UINT_(3, struct clock_regs, with_tsc, 4, 1, STATE_OPTIONAL),
	STATE_PAD(struct clock_regs, pad_),
};
const struct state_desc clock_state = STATE_DESC("clock", struct clock_regs, clock_fields, NULL);

const struct state_desc *const *arch_state_tables(void)
{
	static const struct state_desc *const all[] = {
		&cpuid_state, &vcpu_state,   &segment_state, &event_state, &chips_state,
		&pic_state,   &ioapic_state, &pit_state,     &clock_state, NULL,
	};

	return all;
}
