/*
 * acpi.h - the firmware tables the guest finds its machine by (ACPI 6.4)
 */
#ifndef VMM_X86_64_ACPI_H
#define VMM_X86_64_ACPI_H

#include "vmm/arch.h"

/*
 * Write all tables to BOOT_ACPI and up. @rsdp: where the root pointer is. -ENOSPC: more devices than
 * fit. Nothing in them is measured or hashed, so that a machine of the same description gets the same
 * bytes.
 */
int acpi_build(struct gmem *m, const struct arch_layout *l, const struct arch_machine *machine,
	       gpa_t *rsdp, struct err *err);

#endif
