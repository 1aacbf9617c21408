/*
 * notify.c - kicks and interrupts without a trip through user space
 *
 * A bind is recorded first and then handed to KVM; with no VM (before start, between the two VMs of
 * a reset) it is only recorded, and notify_set_vm() replays the lists. So no device ever learns that
 * the VM below it was replaced.
 *
 * Order matters to the kernel: a GSI is routed before its irqfd is assigned (an irqfd without a route
 * panicked hosts once, Firecracker #3827), and a vector is masked by deassigning its irqfd, after
 * which its eventfd simply keeps the pending state that the PBA shows. When an irqfd is assigned to an
 * eventfd that is already signalled KVM injects at once (virt/kvm/eventfd.c), which is the delivery of
 * a pending interrupt on unmask.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "vmm/arch.h"
#include "vmm/notify.h"

static struct notify *of(struct wiring *w)
{
	return (struct notify *)w; /* first member */
}

static int list_add(struct notify_list *l, void *item)
{
	if (l->count == l->room) {
		size_t more = l->room ? l->room * 2 : 16;
		void **p = realloc(l->items, more * sizeof(*p));

		if (!p)
			return -ENOMEM;
		l->items = p;
		l->room = more;
	}
	l->items[l->count++] = item;
	return 0;
}

static void list_remove(struct notify_list *l, void *item)
{
	for (size_t i = 0; i < l->count; i++) {
		if (l->items[i] == item) {
			l->items[i] = l->items[--l->count];
			return;
		}
	}
}

/* ---- kicks ---- */

static int kick_ioctl(struct notify *n, const struct wire_kick *k, unsigned flags)
{
	struct kvm_ioeventfd e = {
		.addr = k->addr,
		.len = k->len,
		.fd = k->event->fd,
		.datamatch = k->match ? k->value : 0,
		.flags = flags | (k->pio ? KVM_IOEVENTFD_FLAG_PIO : 0) |
			 (k->match ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0),
	};

	if (!k->len && !n->any_length)
		e.len = 2; /* a driver stores the 16-bit queue index */
	return ioctl(n->vm_fd, KVM_IOEVENTFD, &e) < 0 ? -errno : 0;
}

static int bind_kick(struct wiring *w, struct wire_kick *k)
{
	struct notify *n = of(w);
	int rc = 0;

	pthread_mutex_lock(&n->lock);
	if (!k->bound) {
		rc = list_add(&n->kicks, k);
		if (!rc && n->vm_fd >= 0) {
			rc = kick_ioctl(n, k, 0);
			if (rc)
				list_remove(&n->kicks, k);
		}
		k->bound = !rc;
	}
	pthread_mutex_unlock(&n->lock);
	return rc;
}

static void unbind_kick(struct wiring *w, struct wire_kick *k)
{
	struct notify *n = of(w);

	pthread_mutex_lock(&n->lock);
	if (k->bound) {
		if (n->vm_fd >= 0)
			kick_ioctl(n, k, KVM_IOEVENTFD_FLAG_DEASSIGN);
		list_remove(&n->kicks, k);
		k->bound = false;
	}
	pthread_mutex_unlock(&n->lock);
}

/* ---- message-signalled interrupts ---- */

static int set_routes(struct notify *n)
{
	struct kvm_irq_routing *t = n->table;

	t->nr = n->chip_routes;
	for (unsigned i = 0; i < n->nmsi; i++) {
		if (!n->msi[i] || !n->msi[i]->bound)
			continue;
		t->entries[t->nr++] = (struct kvm_irq_routing_entry){
			.gsi = ARCH_GSI_MSI + i,
			.type = KVM_IRQ_ROUTING_MSI,
			.u.msi = {
				.address_lo = (uint32_t)n->msi[i]->addr,
				.address_hi = (uint32_t)(n->msi[i]->addr >> 32),
				.data = n->msi[i]->data,
			},
		};
	}
	return ioctl(n->vm_fd, KVM_SET_GSI_ROUTING, t) < 0 ? -errno : 0;
}

static int irqfd(struct notify *n, unsigned gsi, const struct event *trigger,
		 const struct event *resample, unsigned flags)
{
	struct kvm_irqfd q = {
		.fd = (uint32_t)trigger->fd,
		.gsi = gsi,
		.flags = flags | (resample ? KVM_IRQFD_FLAG_RESAMPLE : 0),
		.resamplefd = resample ? (uint32_t)resample->fd : 0,
	};

	return ioctl(n->vm_fd, KVM_IRQFD, &q) < 0 ? -errno : 0;
}

static int bind_msi(struct wiring *w, struct wire_msi *m)
{
	struct notify *n = of(w);
	int rc = 0;

	pthread_mutex_lock(&n->lock);
	if (m->bound)
		goto out;
	if (m->gsi < 0) {
		if (n->nmsi == NOTIFY_MSI_MAX) {
			rc = -ENOSPC;
			goto out;
		}
		m->gsi = (int)(ARCH_GSI_MSI + n->nmsi);
		n->msi[n->nmsi++] = m;
	}
	m->bound = true;
	if (n->vm_fd >= 0) {
		rc = set_routes(n);
		if (!rc)
			rc = irqfd(n, (unsigned)m->gsi, m->event, NULL, 0);
		m->bound = !rc;
	}
out:
	pthread_mutex_unlock(&n->lock);
	return rc;
}

static void unbind_msi(struct wiring *w, struct wire_msi *m)
{
	struct notify *n = of(w);

	pthread_mutex_lock(&n->lock);
	if (m->bound) {
		if (n->vm_fd >= 0)
			irqfd(n, (unsigned)m->gsi, m->event, NULL, KVM_IRQFD_FLAG_DEASSIGN);
		m->bound = false; /* its route goes with the next table */
	}
	pthread_mutex_unlock(&n->lock);
}

/* ---- wired interrupts ---- */

static int bind_line(struct wiring *w, struct wire_line *l)
{
	struct notify *n = of(w);
	int rc = 0;

	pthread_mutex_lock(&n->lock);
	if (!l->bound) {
		rc = list_add(&n->lines, l);
		if (!rc && n->vm_fd >= 0) {
			rc = irqfd(n, l->gsi, l->trigger, l->level ? l->resample : NULL, 0);
			if (rc)
				list_remove(&n->lines, l);
		}
		l->bound = !rc;
	}
	pthread_mutex_unlock(&n->lock);
	return rc;
}

static void unbind_line(struct wiring *w, struct wire_line *l)
{
	struct notify *n = of(w);

	pthread_mutex_lock(&n->lock);
	if (l->bound) {
		if (n->vm_fd >= 0)
			irqfd(n, l->gsi, l->trigger, NULL, KVM_IRQFD_FLAG_DEASSIGN);
		list_remove(&n->lines, l);
		l->bound = false;
	}
	pthread_mutex_unlock(&n->lock);
}

static int set_line(struct wiring *w, unsigned gsi, bool up)
{
	struct notify *n = of(w);
	struct kvm_irq_level l = { .irq = gsi, .level = up };
	int rc = 0;

	pthread_mutex_lock(&n->lock);
	if (n->vm_fd >= 0 && ioctl(n->vm_fd, KVM_IRQ_LINE, &l) < 0)
		rc = -errno;
	pthread_mutex_unlock(&n->lock);
	return rc;
}

static void power(struct wiring *w, enum wire_power what, int status)
{
	struct notify *n = of(w);

	n->power(n->opaque, what, status);
}

static const struct wiring_ops ops = {
	.bind_kick = bind_kick,
	.unbind_kick = unbind_kick,
	.bind_msi = bind_msi,
	.unbind_msi = unbind_msi,
	.bind_line = bind_line,
	.unbind_line = unbind_line,
	.set_line = set_line,
	.power = power,
};

int notify_init(struct notify *n, bool any_length,
		void (*on_power)(void *opaque, enum wire_power what, int status), void *opaque,
		struct err *err)
{
	*n = (struct notify){ .wiring.ops = &ops,
			      .vm_fd = -1,
			      .any_length = any_length,
			      .power = on_power,
			      .opaque = opaque };
	/* 100 KiB, of which few machines need more than the first page */
	n->table = malloc(sizeof(*n->table) +
			  (ARCH_GSI_ROUTES + NOTIFY_MSI_MAX) * sizeof(n->table->entries[0]));
	if (!n->table)
		return err_set(err, ENOMEM, "out of memory for the interrupt routing table");
	n->table->flags = 0;
	n->chip_routes = arch_gsi_routes(n->table->entries, ARCH_GSI_ROUTES);
	pthread_mutex_init(&n->lock, NULL);
	return 0;
}

void notify_fini(struct notify *n)
{
	if (!n->table)
		return;
	free(n->kicks.items);
	free(n->lines.items);
	free(n->table);
	pthread_mutex_destroy(&n->lock);
	*n = (struct notify){ .vm_fd = -1 };
}

static int connect_all(struct notify *n, struct err *err)
{
	int rc = set_routes(n);

	if (rc)
		return err_set_sys(err, rc, "KVM_SET_GSI_ROUTING");
	for (size_t i = 0; i < n->kicks.count; i++) {
		const struct wire_kick *k = n->kicks.items[i];

		rc = kick_ioctl(n, k, 0);
		if (rc)
			return err_set_sys(err, rc, "KVM_IOEVENTFD at 0x%llx",
					   (unsigned long long)k->addr);
	}
	for (size_t i = 0; i < n->lines.count; i++) {
		const struct wire_line *l = n->lines.items[i];

		rc = irqfd(n, l->gsi, l->trigger, l->level ? l->resample : NULL, 0);
		if (rc)
			return err_set_sys(err, rc, "KVM_IRQFD for line %u", l->gsi);
	}
	for (unsigned i = 0; i < n->nmsi; i++) {
		if (!n->msi[i]->bound)
			continue;
		rc = irqfd(n, ARCH_GSI_MSI + i, n->msi[i]->event, NULL, 0);
		if (rc)
			return err_set_sys(err, rc, "KVM_IRQFD for GSI %u", ARCH_GSI_MSI + i);
	}
	return 0;
}

int notify_set_vm(struct notify *n, int vm_fd, struct err *err)
{
	int rc = 0;

	pthread_mutex_lock(&n->lock);
	n->vm_fd = vm_fd;
	if (vm_fd >= 0)
		rc = connect_all(n, err);
	pthread_mutex_unlock(&n->lock);
	return rc;
}
