/*
 * platform.c - the chips of the x86_64 machine that are not virtio
 *
 * All of them sit on ports, at the addresses of layout.h that the firmware tables name.
 */
#include "devices/ged.h"
#include "devices/i8042.h"
#include "devices/pci.h"
#include "devices/pvpanic.h"
#include "devices/rtc_cmos.h"
#include "devices/testdev.h"
#include "devices/uart16550.h"
#include "vmm/vm.h"
#include "vmm/x86_64/layout.h"

static int add_serial(struct vm *vm, struct err *err)
{
	vm->serial = uart16550_new("serial0", &vm->pio, X86_PORT_COM1, X86_GSI_COM1,
				   &vm->notify.wiring, err);
	if (!vm->serial)
		return err->code;
	vm->machine.serial = true;
	return vm_add_device(vm, uart16550_device(vm->serial), err);
}

static int add_ged(struct vm *vm, struct err *err)
{
	vm->ged = ged_new(&vm->pio, X86_PORT_GED, X86_GSI_GED, &vm->notify.wiring, err);
	return vm->ged ? vm_add_device(vm, ged_device(vm->ged), err) : err->code;
}

static int add_pci(struct vm *vm, struct err *err)
{
	struct pci_bus_config c = {
		.mmio = &vm->mmio,
		.pio = &vm->pio,
		.ecam_base = vm->layout.ecam.base,
		.ecam_size = vm->layout.ecam.size,
		.bars_base = vm->layout.pci64.base,
		.bars_size = vm->layout.pci64.size,
		.wiring = &vm->notify.wiring,
	};

	vm->pci = pci_bus_new(&c, err);
	if (!vm->pci)
		return err->code;
	vm->machine.pci = true;
	return vm_add_device(vm, pci_bus_device(vm->pci), err);
}

static int add(struct vm *vm, struct device *d, struct err *err)
{
	return d ? vm_add_device(vm, d, err) : err->code;
}

int platform_build(struct vm *vm, struct err *err)
{
	struct wiring *w = &vm->notify.wiring;
	int rc = add_pci(vm, err);

	if (!rc)
		rc = add_serial(vm, err);
	if (!rc)
		rc = add_ged(vm, err);
	if (!rc)
		rc = add(vm, rtc_cmos_new(&vm->pio, X86_PORT_RTC, err), err);
	if (!rc)
		rc = add(vm, i8042_new(&vm->pio, X86_PORT_I8042, w, err), err);
	if (!rc)
		rc = add(vm, pvpanic_new(&vm->pio, X86_PORT_PANIC, w, err), err);
	if (!rc && vm->config->testdev)
		rc = add(vm, testdev_new(&vm->pio, &vm->mmio, w, err), err);
	vm->machine.rtc = true;
	vm->machine.panic = true;
	return rc;
}
