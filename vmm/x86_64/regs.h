/*
 * regs.h - the processor and the chips in KVM as a snapshot has them
 *
 * Our own structs, not KVM's: theirs have holes, unions and reserved fields that change with the
 * kernel. Names are KVM's and the manuals'. The tables are in regs.c; ids are for ever.
 */
#ifndef VMM_X86_64_REGS_H
#define VMM_X86_64_REGS_H

#include <stdint.h>

#include "base/state.h"

struct cpu_leaves;
struct kvm_cpuid_entry2;

#define REGS_LEAVES_MAX 256
#define REGS_MSRS_MAX   1024
#define REGS_XSAVE_MAX  16384
#define REGS_LAPIC_SIZE 1024
#define REGS_PINS       24

/* Leaf by leaf, @count of them. */
struct cpuid_regs {
	uint32_t count;
	uint32_t function[REGS_LEAVES_MAX], index[REGS_LEAVES_MAX], flags[REGS_LEAVES_MAX];
	uint32_t eax[REGS_LEAVES_MAX], ebx[REGS_LEAVES_MAX], ecx[REGS_LEAVES_MAX],
		edx[REGS_LEAVES_MAX];
};

struct segment_regs {
	uint64_t base;
	uint32_t limit;
	uint16_t selector;
	uint8_t type, present, dpl, db, s, l, g, avl, unusable;
	uint8_t pad_[1];
};

struct event_regs {
	uint64_t exception_payload;
	uint32_t exception_error_code;
	uint32_t sipi_vector;
	uint8_t exception_injected, exception_nr, exception_has_error_code, exception_pending;
	uint8_t exception_has_payload;
	uint8_t interrupt_injected, interrupt_nr, interrupt_soft, interrupt_shadow;
	uint8_t nmi_injected, nmi_pending, nmi_masked;
	uint8_t smi_smm, smi_pending, smi_inside_nmi, smi_latched_init;
	uint8_t triple_fault_pending;
	uint8_t pad_[7];
};

struct vcpu_regs {
	uint32_t mp_state;
	uint32_t tsc_khz;
	uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
	uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
	uint64_t rip, rflags;
	struct segment_regs cs, ds, es, fs, gs, ss, tr, ldt;
	uint64_t gdt_base, idt_base;
	uint32_t gdt_limit, idt_limit;
	uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
	uint64_t interrupt_bitmap[4];
	uint64_t dr[4], dr6, dr7;
	uint64_t xcr0;
	struct event_regs events;
	uint64_t msr_value[REGS_MSRS_MAX];
	uint32_t msr[REGS_MSRS_MAX]; /* @msr_count of them */
	uint32_t msr_count;
	struct cpuid_regs cpuid;
	uint8_t lapic[REGS_LAPIC_SIZE];
	uint8_t xsave[REGS_XSAVE_MAX];
};

struct pic_regs {
	uint8_t last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll;
	uint8_t special_mask, init_state, auto_eoi, rotate_on_auto_eoi;
	uint8_t special_fully_nested_mode, init4, elcr, elcr_mask;
};

struct ioapic_regs {
	uint64_t redirection[REGS_PINS];
	uint32_t select, id, irr;
	uint8_t pad_[4];
};

struct pit_channel_regs {
	int64_t count_load_time;
	uint32_t count;
	uint16_t latched_count;
	uint8_t count_latched, status_latched, status, read_state, write_state, write_latch;
	uint8_t rw_mode, mode, bcd, gate;
};

struct chips_regs {
	struct pic_regs pic[2]; /* master, slave */
	struct ioapic_regs ioapic;
	struct pit_channel_regs pit[3];
	uint32_t pit_flags;
	uint8_t pad_[4];
};

struct clock_regs {
	uint64_t guest_ns;    /* kvmclock */
	uint64_t realtime_ns; /* the host's CLOCK_REALTIME at that moment */
	uint32_t with_tsc; /* 1: and MSR 0x10 of every vCPU; 0: those were read one after another */
	uint8_t pad_[4];
};

void cpuid_to_regs(const struct kvm_cpuid_entry2 *e, unsigned n, struct cpuid_regs *r);
void cpuid_from_regs(const struct cpuid_regs *r, struct cpu_leaves *l);

extern const struct state_desc cpuid_state, vcpu_state, chips_state, clock_state;

#endif
