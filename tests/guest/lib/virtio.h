/*
 * virtio.h - drivers' side of virtio 1.2: split queues, polled, over PCI and MMIO
 *
 * Everything a well-behaved driver does, in pieces, so that a test can leave one out or do it wrong.
 */
#ifndef TESTS_GUEST_VIRTIO_H
#define TESTS_GUEST_VIRTIO_H

#include "guest.h"

#define VIRTIO_NET     1
#define VIRTIO_BLK     2
#define VIRTIO_CONSOLE 3
#define VIRTIO_RNG     4

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER      2
#define STATUS_DRIVER_OK   4
#define STATUS_FEATURES_OK 8
#define STATUS_NEEDS_RESET 64

#define F_INDIRECT_DESC (1ull << 28)
#define F_EVENT_IDX     (1ull << 29)
#define F_VERSION_1     (1ull << 32)

#define DESC_NEXT     1
#define DESC_WRITE    2
#define DESC_INDIRECT 4

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct avail {
	uint16_t flags, idx, ring[256];
};

struct used {
	uint16_t flags, idx;
	struct {
		uint32_t id, len;
	} ring[256];
};

struct vdev {
	bool pci;
	unsigned id;
	unsigned slot;                /* PCI */
	uint64_t base;                /* MMIO: registers; PCI: common configuration */
	uint64_t isr, config, notify; /* PCI; config for MMIO, too */
	uint32_t notify_multiplier;
	unsigned gsi;      /* MMIO */
	uint64_t features; /* negotiated */
};

struct vq {
	struct vdev *dev;
	unsigned index, size;
	volatile struct desc *desc;
	volatile struct avail *avail;
	volatile struct used *used;
	uint64_t notify; /* PCI: where to kick */
	uint16_t next_desc, next_avail, last_used;
};

/* The @nth device of a kind, on PCI or MMIO, whichever the machine has. false: there is none. */
bool virtio_find(struct vdev *d, unsigned id, unsigned nth);

void virtio_set_status(struct vdev *d, uint8_t status);
uint8_t virtio_status(struct vdev *d);
void virtio_reset(struct vdev *d); /* and waits until it is done */
uint64_t virtio_offered(struct vdev *d);
void virtio_accept(struct vdev *d, uint64_t features); /* writes them */
uint8_t virtio_config8(struct vdev *d, unsigned off);
uint32_t virtio_config32(struct vdev *d, unsigned off);
uint64_t virtio_config64(struct vdev *d, unsigned off);

/* Reset, ACKNOWLEDGE, DRIVER, @wanted & offered + VERSION_1, FEATURES_OK. false: refused. */
bool virtio_negotiate(struct vdev *d, uint64_t wanted);
void virtio_ok(struct vdev *d); /* DRIVER_OK */

/* Set up queue @index with its rings. @vector: MSI-X table entry or 0xffff. @size 0: as offered. */
bool vq_open(struct vq *q, struct vdev *d, unsigned index, unsigned size, uint16_t vector);
unsigned vq_max(struct vdev *d, unsigned index); /* size offered, 0: no such queue */

struct piece {
	const void *addr;
	uint32_t len;
	bool write; /* by the device */
};

/*
 * Put one request; returns its head. Descriptors are taken in turn, so what is in flight must fit the
 * queue. vq_kick() tells the device.
 */
uint16_t vq_add(struct vq *q, const struct piece *p, unsigned n);
void vq_publish(struct vq *q, uint16_t head); /* of descriptors filled by hand */
void vq_kick(struct vq *q);
bool vq_done(struct vq *q); /* something came back */
/* Wait for the next one back. Its head, or -1 in the end. @len may be NULL. */
int vq_wait(struct vq *q, uint32_t *len);
/* Wait for DEVICE_NEEDS_RESET. */
bool virtio_wait_broken(struct vdev *d);

/* PCI only. Table entry @entry to @vector of this processor; MSI-X is turned on. */
void msix_route(struct vdev *d, unsigned entry, unsigned vector);
void msix_mask(struct vdev *d, unsigned entry, bool masked);

#endif
