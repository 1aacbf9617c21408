/*
 * irqchip.c - the in-kernel PICs, I/O APIC and PIT
 *
 * A guest booted with hardware-reduced ACPI uses only the I/O APIC and local APICs; the PICs and the
 * PIT are there for guests that expect a PC (kvm-unit-tests, a kernel without ACPI) and cost nothing
 * while unused.
 *
 * After a reset the chips are brought back by writing their power-on state, as KVM has no ioctl that
 * resets them.
 */
#include <string.h>
#include <sys/ioctl.h>

#include <linux/kvm.h>

#include "vmm/arch.h"
#include "vmm/x86_64/layout.h"

int arch_vm_init(int vm_fd, struct err *err)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	uint64_t map = X86_IDENTITY_MAP;

	/* Intel hosts without unrestricted guests need both for real mode; the pages hold nothing else. */
	if (ioctl(vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &map) < 0)
		return err_set_sys(err, errno, "cannot place KVM's identity map");
	if (ioctl(vm_fd, KVM_SET_TSS_ADDR, (unsigned long)X86_TSS) < 0)
		return err_set_sys(err, errno, "cannot place KVM's task segment");
	if (ioctl(vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
		return err_set_sys(err, errno, "cannot create the interrupt controllers");
	if (ioctl(vm_fd, KVM_CREATE_PIT2, &pit) < 0)
		return err_set_sys(err, errno, "cannot create the interval timer");
	return 0;
}

static int set_chip(int vm_fd, const struct kvm_irqchip *chip, const char *name, struct err *err)
{
	if (ioctl(vm_fd, KVM_SET_IRQCHIP, chip) < 0)
		return err_set_sys(err, errno, "cannot reset the %s", name);
	return 0;
}

int arch_vm_reset(int vm_fd, struct err *err)
{
	struct kvm_irqchip chip;
	struct kvm_pit_state2 pit = { .flags = 0 };
	unsigned i;
	int r = 0;

	for (i = 0; i < 2 && !r; i++) {
		memset(&chip, 0, sizeof(chip));
		chip.chip_id = i ? KVM_IRQCHIP_PIC_SLAVE : KVM_IRQCHIP_PIC_MASTER;
		/* which inputs may be level is wired, not programmed: ISA's four are always edges */
		chip.chip.pic.elcr_mask = i ? 0xde : 0xf8;
		r = set_chip(vm_fd, &chip, "PIC", err);
	}
	if (r)
		return r;

	memset(&chip, 0, sizeof(chip));
	chip.chip_id = KVM_IRQCHIP_IOAPIC;
	chip.chip.ioapic.base_address = X86_IOAPIC_BASE;
	for (i = 0; i < X86_IOAPIC_PINS; i++)
		chip.chip.ioapic.redirtbl[i].fields.mask = 1;
	r = set_chip(vm_fd, &chip, "I/O APIC", err);
	if (r)
		return r;

	for (i = 0; i < 3; i++) {
		pit.channels[i].mode = 0xff; /* as KVM's own reset: counting nothing */
		pit.channels[i].gate = i != 2;
	}
	if (ioctl(vm_fd, KVM_SET_PIT2, &pit) < 0)
		return err_set_sys(err, errno, "cannot reset the interval timer");
	return 0;
}

unsigned arch_gsi_routes(struct kvm_irq_routing_entry *e, unsigned room)
{
	unsigned n = 0, gsi;

	for (gsi = 0; gsi < X86_IOAPIC_PINS; gsi++) {
		if (gsi < 16 && gsi != 2 && n < room)
			e[n++] = (struct kvm_irq_routing_entry){
				.gsi = gsi,
				.type = KVM_IRQ_ROUTING_IRQCHIP,
				.u.irqchip.irqchip = gsi < 8 ? KVM_IRQCHIP_PIC_MASTER :
							       KVM_IRQCHIP_PIC_SLAVE,
				.u.irqchip.pin = gsi % 8,
			};
		/* the PIT is on pin 2, as on a PC; the PICs' cascade has no pin */
		if (gsi != 2 && n < room)
			e[n++] = (struct kvm_irq_routing_entry){
				.gsi = gsi,
				.type = KVM_IRQ_ROUTING_IRQCHIP,
				.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC,
				.u.irqchip.pin = gsi ? gsi : 2,
			};
	}
	return n;
}
