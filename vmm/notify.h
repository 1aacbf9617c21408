/*
 * notify.h - devices/wiring.h over KVM: ioeventfd, irqfd and GSI routing
 *
 * Keeps what is bound, so that a machine reset, which makes a new VM, can connect everything again.
 */
#ifndef VMM_NOTIFY_H
#define VMM_NOTIFY_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stddef.h>

#include "devices/wiring.h"

#define NOTIFY_MSI_MAX 2048 /* GSIs for message-signalled interrupts; KVM has 4096 routes */

struct notify_list {
	void **items; /* borrowed from devices, bound now */
	size_t count, room;
};

struct notify {
	struct wiring wiring; /* what devices hold */
	pthread_mutex_t lock; /* a leaf: taken under device locks */
	int vm_fd;            /* borrowed; -1 while there is none: binds are then only recorded */
	bool any_length;      /* zero-length ioeventfds */

	struct notify_list kicks;             /* struct wire_kick */
	struct notify_list lines;             /* struct wire_line */
	struct wire_msi *msi[NOTIFY_MSI_MAX]; /* owner of GSI ARCH_GSI_MSI + index */
	unsigned nmsi;                        /* GSIs taken so far */

	struct kvm_irq_routing *table; /* room for the chip's routes and NOTIFY_MSI_MAX */
	unsigned chip_routes;          /* of the interrupt controllers' own pins */

	void (*power)(void *opaque, enum wire_power what, int status);
	void *opaque;
};

int notify_init(struct notify *n, bool any_length,
		void (*power)(void *opaque, enum wire_power what, int status), void *opaque,
		struct err *err);
void notify_fini(struct notify *n);

/* Connect everything recorded to a VM; -1 before it goes (closing it disconnects). 0 or -errno. */
int notify_set_vm(struct notify *n, int vm_fd, struct err *err);

#endif
