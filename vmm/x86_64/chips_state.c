/*
 * chips_state.c - PICs, I/O APIC and PIT, saved and set
 */
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/arch.h"
#include "vmm/x86_64/layout.h"
#include "vmm/x86_64/regs.h"

_Static_assert(REGS_PINS == KVM_IOAPIC_NUM_PINS, "all pins are saved");
_Static_assert(sizeof(struct pic_regs) == sizeof(struct kvm_pic_state), "all of the PIC is saved");

static const uint32_t pic_ids[2] = { KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE };

/* Both ways in one list, so that neither can forget a field. */
/* clang-format off */
#define PIC_FIELDS(X)                                                                              \
	X(last_irr) X(irr) X(imr) X(isr) X(priority_add) X(irq_base) X(read_reg_select) X(poll)    \
	X(special_mask) X(init_state) X(auto_eoi) X(rotate_on_auto_eoi)                            \
	X(special_fully_nested_mode) X(init4) X(elcr) X(elcr_mask)
#define PIT_FIELDS(X)                                                                              \
	X(count_load_time) X(count) X(latched_count) X(count_latched) X(status_latched) X(status)  \
	X(read_state) X(write_state) X(write_latch) X(rw_mode) X(mode) X(bcd) X(gate)
#define COPY(f) to->f = from->f;
/* clang-format on */

static void pic_from_kvm(struct pic_regs *to, const struct kvm_pic_state *from)
{
	PIC_FIELDS(COPY)
}

static void pic_to_kvm(struct kvm_pic_state *to, const struct pic_regs *from)
{
	PIC_FIELDS(COPY)
}

static void pit_from_kvm(struct pit_channel_regs *to, const struct kvm_pit_channel_state *from)
{
	PIT_FIELDS(COPY)
}

static void pit_to_kvm(struct kvm_pit_channel_state *to, const struct pit_channel_regs *from)
{
	PIT_FIELDS(COPY)
}

static int get_chip(int vm_fd, struct kvm_irqchip *c, uint32_t id, struct err *err)
{
	*c = (struct kvm_irqchip){ .chip_id = id };
	if (ioctl(vm_fd, KVM_GET_IRQCHIP, c) < 0)
		return err_set_sys(err, errno, "KVM cannot read interrupt controller %u", id);
	return 0;
}

static int set_chip(int vm_fd, const struct kvm_irqchip *c, struct err *err)
{
	if (ioctl(vm_fd, KVM_SET_IRQCHIP, c) < 0)
		return err_set_sys(err, errno, "KVM cannot set interrupt controller %u",
				   c->chip_id);
	return 0;
}

int arch_chips_save(int vm_fd, struct state_buf *out, struct err *err)
{
	struct chips_regs r = { 0 };
	struct kvm_irqchip c;
	struct kvm_pit_state2 pit = { 0 };
	int rc;

	for (unsigned i = 0; i < 2; i++) {
		rc = get_chip(vm_fd, &c, pic_ids[i], err);
		if (rc)
			return rc;
		pic_from_kvm(&r.pic[i], &c.chip.pic);
	}
	rc = get_chip(vm_fd, &c, KVM_IRQCHIP_IOAPIC, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < REGS_PINS; i++)
		r.ioapic.redirection[i] = c.chip.ioapic.redirtbl[i].bits;
	r.ioapic.select = c.chip.ioapic.ioregsel;
	r.ioapic.id = c.chip.ioapic.id;
	r.ioapic.irr = c.chip.ioapic.irr;
	if (ioctl(vm_fd, KVM_GET_PIT2, &pit) < 0)
		return err_set_sys(err, errno, "KVM cannot read the interval timer");
	for (unsigned i = 0; i < 3; i++)
		pit_from_kvm(&r.pit[i], &pit.channels[i]);
	r.pit_flags = pit.flags;
	return state_save(&chips_state, &r, out) ?
		       err_set(err, ENOMEM, "out of memory for the chips' state") :
		       0;
}

int arch_chips_load(int vm_fd, const void *data, size_t len, struct err *err)
{
	struct chips_regs r = { 0 };
	struct kvm_pit_state2 pit = { 0 };
	int rc = state_load_new(&chips_state, &r, NULL, data, len, err);

	for (unsigned i = 0; i < 2 && !rc; i++) {
		struct kvm_irqchip c = { .chip_id = pic_ids[i] };

		pic_to_kvm(&c.chip.pic, &r.pic[i]);
		rc = set_chip(vm_fd, &c, err);
	}
	if (rc)
		return rc;

	struct kvm_irqchip c = { .chip_id = KVM_IRQCHIP_IOAPIC };

	c.chip.ioapic.base_address = X86_IOAPIC_BASE;
	c.chip.ioapic.ioregsel = r.ioapic.select;
	c.chip.ioapic.id = r.ioapic.id;
	c.chip.ioapic.irr = r.ioapic.irr;
	for (unsigned i = 0; i < REGS_PINS; i++)
		c.chip.ioapic.redirtbl[i].bits = r.ioapic.redirection[i];
	rc = set_chip(vm_fd, &c, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < 3; i++)
		pit_to_kvm(&pit.channels[i], &r.pit[i]);
	pit.flags = r.pit_flags;
	if (ioctl(vm_fd, KVM_SET_PIT2, &pit) < 0)
		return err_set_sys(err, errno, "KVM cannot set the interval timer");
	return 0;
}
