/*
 * pci.h - PCI functions and the host bridge that finds them
 *
 * A struct pci_function is one function's configuration space: header, BARs, capabilities, MSI-X. Its
 * device embeds it. The host bridge answers ECAM and 0xCF8/0xCFC and moves BAR regions on the MMIO
 * bus as the guest programs them. Registers follow PCI Local Bus 3.0 chapter 6 and PCIe Base 4.0 7.5.
 *
 * Everything here is reached from guest stores; nothing asserts on them.
 */
#ifndef DEVICES_PCI_H
#define DEVICES_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bus.h"
#include "base/state.h"
#include "devices/wiring.h"

#define PCI_CFG_SIZE     256
#define PCI_MSIX_MAX     68 /* vectors a function may have */
#define PCI_DEVICES_MAX  32 /* slots on bus 0; function 0 only */
#define PCI_BARS_MAX     6

/* Guest-visible state (tables pci_state and msix_state). */
struct pci_regs {
	uint8_t cfg[PCI_CFG_SIZE]; /* as the guest last wrote it, read-only bits included */
};

struct pci_msix_entry {
	uint64_t addr;
	uint32_t data;
	uint32_t ctrl; /* bit 0: masked */
};

struct pci_msix_regs {
	struct pci_msix_entry entry[PCI_MSIX_MAX];
	uint8_t pending[PCI_MSIX_MAX]; /* filled from the events when saved, signalled when loaded */
	uint16_t count;                /* must match the device's at load */
	uint8_t pad_[2];
};

struct pci_bus;

struct pci_function {
	struct pci_regs regs;
	struct pci_msix_regs msix;
	uint8_t wmask[PCI_CFG_SIZE]; /* bits the guest may write */
	struct region bar[PCI_BARS_MAX]; /* size 0: none; base 0 and mapped false: not decoded */
	bool bar_is_64[PCI_BARS_MAX];
	bool bar_mapped[PCI_BARS_MAX];
	uint8_t cap_end; /* where the next capability goes */
	uint8_t msix_cap;
	struct event *vector[PCI_MSIX_MAX]; /* owned by the function */
	struct wire_msi wire[PCI_MSIX_MAX];
	struct wiring *wiring;
	struct pci_bus *bus;
	uint8_t slot;
	pthread_mutex_t *lock; /* the device's */

	/* Configuration access outside the common header, after the bytes are stored; may be NULL. */
	void (*cfg_read)(struct pci_function *f, unsigned off, unsigned len);
	void (*cfg_write)(struct pci_function *f, unsigned off, unsigned len);
	/* A BAR was placed at @base (or unmapped, @mapped false); re-bind kicks. May be NULL. */
	void (*bar_moved)(struct pci_function *f, unsigned bar, uint64_t base, bool mapped);
	void *opaque;
};

#endif
