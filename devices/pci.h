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
#include "base/log.h"
#include "base/state.h"
#include "devices/device.h"
#include "devices/wiring.h"

#define PCI_CFG_SIZE    256
#define PCI_MSIX_MAX    68 /* vectors a function may have */
#define PCI_DEVICES_MAX 32 /* slots on bus 0; function 0 only */
#define PCI_BARS_MAX    6

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
	uint8_t pending[PCI_MSIX_MAX]; /* signalled, not delivered; follows the events */
	uint32_t count;                /* must match the device's at load */
};

/* For device_add_state(), with the function as what they are validated with. */
extern const struct state_desc pci_state, msix_state;
extern const struct state_desc pci_host_state; /* the bridge's own */

struct pci_bus;

struct pci_function {
	struct pci_regs regs;
	struct pci_msix_regs msix;
	uint8_t wmask[PCI_CFG_SIZE];     /* bits the guest may write */
	struct region bar[PCI_BARS_MAX]; /* size 0: none; base 0 and mapped false: not decoded */
	bool bar_is_64[PCI_BARS_MAX];
	bool bar_mapped[PCI_BARS_MAX];
	uint16_t cap_end;                   /* where the next capability goes */
	uint8_t cap_last;                   /* the one before it; 0: none */
	uint8_t msix_cap;                   /* 0: none */
	struct event *vector[PCI_MSIX_MAX]; /* owned by the function */
	struct wire_msi wire[PCI_MSIX_MAX];
	struct wiring *wiring;
	struct pci_bus *bus;
	uint8_t slot;
	pthread_mutex_t *lock; /* the device's; every function below runs under it */
	struct log_limit complaints;

	/*
	 * Configuration access outside the common header: cfg_read before the bytes are taken from
	 * regs.cfg, cfg_write after they were stored there (through wmask). May be NULL.
	 */
	void (*cfg_read)(struct pci_function *f, unsigned off, unsigned len);
	void (*cfg_write)(struct pci_function *f, unsigned off, unsigned len);
	/*
	 * A BAR was placed at @base (or unmapped from there, @mapped false); re-bind kicks. A move is
	 * an unmapping and a placing. The bus lock is not held. May be NULL.
	 */
	void (*bar_moved)(struct pci_function *f, unsigned bar, uint64_t base, bool mapped);
	void *opaque;
};

/* ---- a function, for its device (pci_function.c, pci_msix.c) ---- */

struct pci_id {
	uint16_t vendor, device, subvendor, subdevice;
	uint8_t revision;
	uint32_t class_code; /* 24 bits: class, subclass, interface */
};

/* The common header of a zeroed @f. Configuration space is answered under @lock, the device's. */
void pci_function_init(struct pci_function *f, const struct pci_id *id, pthread_mutex_t *lock);
/* Without the lock, no vCPU running: leaves its bus, unbinds, frees vectors. */
void pci_function_fini(struct pci_function *f);

/* A 64-bit memory BAR (uses @bar and @bar + 1). @size a power of two, at least 4096. */
void pci_add_bar64(struct pci_function *f, unsigned bar, uint64_t size,
		   const struct region_ops *ops, void *opaque, const char *name);

/*
 * Append a capability: @body is what follows the id and next bytes, @len its length, @wmask (may be
 * NULL: read-only) the bits of it the guest may write. Returns its offset in configuration space.
 */
unsigned pci_add_cap(struct pci_function *f, uint8_t id, const void *body, unsigned len,
		     const void *wmask);

/*
 * MSI-X with @count vectors, table and PBA in @bar at these offsets; makes the events. The device's
 * BAR operations hand accesses to those ranges to pci_msix_table_* and pci_msix_pba_read. 0 or -errno.
 */
int pci_add_msix(struct pci_function *f, struct wiring *wiring, unsigned count, unsigned bar,
		 uint32_t table_off, uint32_t pba_off, struct err *err);
#define PCI_MSIX_TABLE_SIZE(n) ((n)*16u)
#define PCI_MSIX_PBA_SIZE(n)   ((((n) + 63u) / 64u) * 8u)

/* @off from the table's (PBA's) start; past the end reads 0 and is not written. Under @lock. */
void pci_msix_table_read(struct pci_function *f, uint64_t off, void *data, unsigned len);
void pci_msix_table_write(struct pci_function *f, uint64_t off, const void *data, unsigned len);
void pci_msix_pba_read(struct pci_function *f, uint64_t off, void *data, unsigned len);

/* Raise @vector; pending while masked, out of range: nothing. Any thread, under @lock. */
void pci_msix_signal(struct pci_function *f, unsigned vector);

/* The event that is @vector, for a kernel to signal; NULL: there is no such vector. */
struct event *pci_msix_event(struct pci_function *f, unsigned vector);
void pci_msix_settle(struct pci_function *f); /* nobody signals: pending bits for saved state */

/*
 * Power-on state: header's writable bits, MSI-X off and masked, BARs unmapped. For a machine reset; a
 * virtio reset leaves configuration space alone. Under @lock.
 */
void pci_function_reset(struct pci_function *f);

/*
 * After a load of pci_state and msix_state: map BARs, bind vectors as the registers say. What is
 * mapped and bound already stays. Under @lock.
 */
void pci_function_restore(struct pci_function *f);

/* For pci_bus.c: an access to configuration space, @off + @len within it. Under @lock. */
void pci_function_cfg_read(struct pci_function *f, unsigned off, void *data, unsigned len);
void pci_function_cfg_write(struct pci_function *f, unsigned off, const void *data, unsigned len);
/* Make the MMIO bus agree with the BARs. True if an address became free. Under @lock. */
bool pci_function_map_bars(struct pci_function *f);
/* The MSI-X half of reset, restore and a write to message control. */
void pci_msix_update(struct pci_function *f);
void pci_msix_reset(struct pci_function *f);
void pci_msix_restore(struct pci_function *f);
void pci_msix_fini(struct pci_function *f);

/* ---- the bus and its host bridge (pci_bus.c) ---- */

struct pci_bus_config {
	struct bus *mmio, *pio;
	uint64_t ecam_base, ecam_size;
	uint64_t bars_base, bars_size; /* where 64-bit BARs go at power-on, as firmware would */
	struct wiring *wiring;         /* 0xCF9 resets the machine */
};

/*
 * An empty bus 0 with the host bridge in slot 0, answering ECAM, 0xCF8/0xCFC (and reset control in
 * 0xCF9). It is a device of its own ("pci-host", instance "pci0"): pci_bus_device(). NULL on error.
 */
struct pci_bus *pci_bus_new(const struct pci_bus_config *c, struct err *err);
struct device *pci_bus_device(struct pci_bus *b); /* free it by its ops, after all functions */

/* -EEXIST: the slot is taken; -EINVAL. */
int pci_bus_add(struct pci_bus *b, struct pci_function *f, unsigned slot, struct err *err);
void pci_bus_remove(struct pci_bus *b, struct pci_function *f); /* without the device's lock */
struct bus *pci_bus_mmio(struct pci_bus *b);

/*
 * What firmware does before an operating system starts: give every BAR its address and switch memory
 * decoding on. Called by the machine at power-on and after each reset, without locks. -ENOSPC.
 */
int pci_bus_assign_bars(struct pci_bus *b, struct err *err);

#endif
