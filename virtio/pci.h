/*
 * pci.h - virtio over PCI, modern only (virtio 1.2 chapter 4.1)
 *
 * Vendor 0x1AF4, device 0x1040 + id. One 64-bit memory BAR with common configuration, ISR, device
 * configuration, notification (multiplier 4, one address a queue) and MSI-X table and PBA, plus the
 * PCI configuration access capability.
 */
#ifndef VIRTIO_PCI_H
#define VIRTIO_PCI_H

#include "devices/pci.h"
#include "devices/wiring.h"
#include "virtio/device.h"

/* Put @v in slot @slot of @bus with one vector per queue and one for configuration changes. */
int virtio_pci_attach(struct virtio *v, struct pci_bus *bus, unsigned slot, struct wiring *wiring,
		      struct err *err);

#endif
