/*
 * machine.c - what exists, at which address, on which interrupt
 *
 * machine_build() is the whole wiring: the platform's chips, then one virtio device after the other in
 * the order of the configuration, so that the same configuration always gives the same machine.
 *
 * Disks and NICs have requests in flight and therefore live on I/O threads (virtio/device.h says why);
 * everything slow shares the main loop. Threads start when all devices are there, since a loop that does
 * not run yet may be touched by anyone.
 */
#include <stdlib.h>
#include <string.h>

#include "backends/block.h"
#include "backends/net.h"
#include "backends/vhost.h"
#include "base/fd.h"
#include "base/log.h"
#include "devices/ged.h"
#include "devices/pci.h"
#include "devices/uart16550.h"
#include "virtio/blk.h"
#include "virtio/console.h"
#include "virtio/mmio.h"
#include "virtio/net.h"
#include "virtio/pci.h"
#include "virtio/rng.h"
#include "vmm/monitor.h"
#include "vmm/vm.h"

int vm_add_device(struct vm *vm, struct device *d, struct err *err)
{
	if (vm->ndevices == VM_DEVICES_MAX) {
		d->ops->free(d);
		return err_set(err, ENOSPC, "a machine has at most %u devices", VM_DEVICES_MAX);
	}
	d->listener = &vm->listener;
	vm->devices[vm->ndevices++] = d;
	return 0;
}

/*
 * ---- I/O errors, from a device's thread to the main loop ----
 *
 * A guest whose disk fails can make more of them than any client reads, and one that does not keep up is
 * dropped: so most are only counted (the device's statistics).
 */

struct io_error {
	struct vm *vm;
	const struct device *device;
	const char *op;
	uint64_t offset, len;
	int error;
};

static void tell_io_error(void *arg)
{
	struct io_error *e = arg;
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "device", json_object_new_string(e->device->name));
	json_object_object_add(o, "operation", json_object_new_string(e->op));
	json_object_object_add(o, "offset", json_object_new_uint64(e->offset));
	json_object_object_add(o, "length", json_object_new_uint64(e->len));
	json_object_object_add(o, "error", json_object_new_string(strerror(-e->error)));
	vm_emit(e->vm, "io-error", o);
	free(e);
}

static void on_io_error(void *opaque, const struct device *d, const char *op, uint64_t offset,
			uint64_t len, int error)
{
	struct vm *vm = opaque;
	struct io_error *e = log_limit_take(&vm->io_errors) ? malloc(sizeof(*e)) : NULL;

	if (!e)
		return;
	*e = (struct io_error){ vm, d, op, offset, len, error };
	if (loop_post(vm->loop, tell_io_error, e))
		free(e);
}

/* ---- the lines to a person ---- */

static int connect_ports(struct vm *vm, struct err *err)
{
	struct uart16550_host host = { port_transmit, port_receive_ready, &vm->ports[PORT_SERIAL] };

	vm->monitor = monitor_new(vm, err);
	if (!vm->monitor)
		return err->code;
	int rc = port_connect(vm, PORT_SERIAL, vm->config->serial, err);

	if (rc)
		return rc;
	uart16550_connect(vm->serial, &host);
	return vm->config->console ? port_connect(vm, PORT_VIRTIO, vm->config->console, err) : 0;
}

/* ---- virtio ---- */

/* A loop for a disk or NIC: its own, or the one they all share. */
static struct loop *io_loop(struct vm *vm, struct err *err)
{
	if (vm->config->io_threads == CONFIG_IO_THREADS_SHARED && vm->nio_loops)
		return vm->io_loops[0];

	struct loop *l = loop_new(err);

	if (l)
		vm->io_loops[vm->nio_loops++] = l;
	return l;
}

/* Put @v on the bus. Owned by the machine whatever happens. */
static int attach(struct vm *vm, struct virtio *v, struct err *err)
{
	int rc = vm_add_device(vm, &v->dev, err);

	if (rc)
		return rc;
	if (vm->config->transport == CONFIG_TRANSPORT_PCI)
		return virtio_pci_attach(v, vm->pci, ++vm->nslots, &vm->notify.wiring, err);

	struct arch_mmio_device *m = &vm->machine.mmio[vm->machine.mmio_count];

	if (vm->machine.mmio_count == ARCH_MMIO_SLOTS)
		return err_set(err, ENOSPC, "at most %u virtio-mmio devices fit", ARCH_MMIO_SLOTS);
	arch_mmio_slot(vm->machine.mmio_count++, &m->base, &m->gsi);
	return virtio_mmio_attach(v, &vm->mmio, m->base, m->gsi, &vm->notify.wiring, err);
}

static int add_disk(struct vm *vm, const struct config_disk *d, struct err *err)
{
	char name[8 + CONFIG_ID_MAX];
	struct block_options o = {
		.path = d->path,
		.read_only = d->read_only,
		.direct = d->direct,
		.writethrough = d->cache == CONFIG_CACHE_WRITETHROUGH,
		.discard = d->discard,
		.unlocked = vm->config->incoming,
		.aio = d->aio == CONFIG_AIO_IO_URING ? BLOCK_AIO_URING :
		       d->aio == CONFIG_AIO_THREADS  ? BLOCK_AIO_THREADS :
						       BLOCK_AIO_AUTO,
		.depth = d->queues * d->queue_size,
	};
	struct virtio_blk_options vo = {
		.name = name,
		.serial = d->serial,
		.queues = d->queues,
		.queue_size = (uint16_t)d->queue_size,
		.writethrough = o.writethrough,
	};
	struct loop *loop = io_loop(vm, err);
	struct block *disk = loop ? block_file_open(&o, err) : NULL;

	if (!disk)
		return err->code;
	snprintf(name, sizeof(name), "disk.%s", d->id);
	log_info("%s: %s, %llu MiB%s, %s", name, d->path, (unsigned long long)disk->size >> 20,
		 disk->read_only ? ", read-only" : "", disk->ops->name);

	struct virtio *v = virtio_blk_new(&vo, disk, vm->mem, loop, err);

	if (!v) {
		disk->ops->free(disk);
		return err->code;
	}
	vm->disks[vm->ndisks++] = disk;
	return attach(vm, v, err);
}

void vm_announce(struct vm *vm)
{
	for (unsigned i = 0; i < vm->ndevices; i++)
		if (!strcmp(vm->devices[i]->ops->type, VIRTIO_NET_TYPE))
			virtio_net_announce(vm->devices[i]);
}

int vm_lock_disks(struct vm *vm, unsigned first, uint64_t mark, struct err *err)
{
	for (unsigned i = 0; i < vm->ndisks; i++) {
		struct block *b = vm->disks[(first + i) % vm->ndisks];
		int rc = b->ops->lock ? b->ops->lock(b, true, mark, err) : 0;

		if (rc)
			return rc;
	}
	vm->disks_away = false;
	return 0;
}

void vm_unlock_disks(struct vm *vm)
{
	vm->disks_away = true;
	for (unsigned i = 0; i < vm->ndisks; i++)
		if (vm->disks[i]->ops->lock)
			vm->disks[i]->ops->lock(vm->disks[i], false, 0, NULL);
}

/*
 * A vhost-net for each pair of queues. 0 with @h[0] NULL: none, and our own loop does the work.
 */
static int open_vhost(const struct config_net *n, struct vhost **h, struct err *err)
{
	const bool given = n->vhostfd.count;
	struct err why = { 0 };
	unsigned i = 0;
	int rc = 0;

	h[0] = NULL;
	if (n->vhost == CONFIG_VHOST_OFF)
		return 0;
	for (; i < n->queues && !rc; i++)
		rc = vhost_open(given ? n->vhostfd.fd[i] : -1, &h[i], &why);
	if (!rc)
		return 0;
	for (i--; i--;)
		h[i]->ops->free(h[i]);
	h[0] = NULL;
	if (given || n->vhost == CONFIG_VHOST_ON)
		return err_set(err, rc, "--net: %s: %s", n->id, why.msg);
	log_debug("net.%s: without vhost-net: %s", n->id, why.msg);
	return 0;
}

static void free_net(struct netif **ifs, struct vhost **h, unsigned pairs)
{
	for (unsigned i = 0; i < pairs; i++) {
		ifs[i]->ops->free(ifs[i]);
		if (h[0])
			h[i]->ops->free(h[i]);
	}
}

static int add_net(struct vm *vm, const struct config_net *n, struct err *err)
{
	char name[8 + CONFIG_ID_MAX];
	struct net_tap_options o = {
		.name = n->tap,
		.fd = n->fd.count ? n->fd.fd : NULL,
		.create = n->create,
		.addr = n->addr,
		.mtu = n->mtu,
		.pairs = n->queues,
	};
	struct virtio_net_options vo = {
		.name = name,
		.pairs = n->queues,
		.queue_size = (uint16_t)n->queue_size,
	};
	struct netif *ifs[CONFIG_PAIRS_MAX];
	struct vhost *vhost[CONFIG_PAIRS_MAX];
	struct loop *loop = io_loop(vm, err);

	if (!loop)
		return err->code;
	int rc = open_vhost(n, vhost, err);

	if (rc)
		return rc;
	o.counters = vhost[0];
	vo.vhost = vhost[0] ? vhost : NULL;
	rc = net_tap_open(&o, ifs, err);
	for (unsigned i = 0; i < n->queues && rc && vhost[0]; i++)
		vhost[i]->ops->free(vhost[i]);
	if (rc)
		return rc;
	snprintf(name, sizeof(name), "net.%s", n->id);
	if (n->mac.set)
		memcpy(vo.mac, n->mac.addr, sizeof(vo.mac));
	else
		virtio_net_default_mac(vm->config->id ? vm->config->id : "", n->id, vo.mac);
	vo.mtu = n->mtu ? (uint16_t)n->mtu : ifs[0]->mtu;
	log_info("%s: tap %s, MAC %02x:%02x:%02x:%02x:%02x:%02x%s", name, ifs[0]->name, vo.mac[0],
		 vo.mac[1], vo.mac[2], vo.mac[3], vo.mac[4], vo.mac[5],
		 vo.vhost ? ", vhost-net" : "");

	struct virtio *v = virtio_net_new(&vo, ifs, vm->mem, loop, err);

	if (!v) {
		free_net(ifs, vhost, n->queues);
		return err->code;
	}
	for (unsigned i = 0; i < n->queues && vhost[0]; i++) {
		vm->vhosts[vm->nvhosts].h = vhost[i];
		vm->vhosts[vm->nvhosts++].net = n;
	}
	return attach(vm, v, err);
}

int vm_own_vhosts(struct vm *vm, struct err *err)
{
	for (unsigned i = 0; i < vm->nvhosts; i++) {
		const struct config_net *n = vm->vhosts[i].net;
		struct err why = { 0 };
		int rc = vhost_own(vm->vhosts[i].h, &why);

		if (rc && (n->vhostfd.count || n->vhost == CONFIG_VHOST_ON))
			return err_set(err, rc, "--net: %s: %s", n->id, why.msg);
		if (rc) /* its first ring is refused, and the device does the work itself */
			log_warn("net.%s: without vhost-net: %s", n->id, why.msg);
	}
	return 0;
}

static int add_rng(struct vm *vm, struct err *err)
{
	const struct config_rng *r = &vm->config->rng;
	struct virtio *v;

	if (!r->enabled)
		return 0;
	v = virtio_rng_new("rng", r->rate, r->period, vm->mem, vm->loop, err);
	return v ? attach(vm, v, err) : err->code;
}

static int add_console(struct vm *vm, struct err *err)
{
	struct virtio_console_host host = { port_transmit, port_receive_ready,
					    &vm->ports[PORT_VIRTIO] };

	if (!vm->config->console)
		return 0;
	vm->virtio_console = virtio_console_new("console", &host, vm->mem, vm->loop, err);
	return vm->virtio_console ? attach(vm, vm->virtio_console, err) : err->code;
}

static int start_io_threads(struct vm *vm, struct err *err)
{
	for (unsigned i = 0; i < vm->nio_loops; i++) {
		char name[16];
		int rc;

		snprintf(name, sizeof(name), "io%u", i);
		rc = loop_thread_start(vm->io_loops[i], name, err);
		if (rc)
			return rc;
	}
	return 0;
}

int machine_build(struct vm *vm, struct err *err)
{
	const struct config *c = vm->config;
	int rc;

	vm->machine.cpus = c->cpus;
	vm->listener = (struct device_listener){ on_io_error, vm };
	vm->io_loops = calloc(c->ndisks + c->nnets + 1, sizeof(*vm->io_loops));
	if (!vm->io_loops)
		return err_set(err, ENOMEM, "out of memory");

	rc = platform_build(vm, err);
	for (unsigned i = 0; i < c->ndisks && !rc; i++)
		rc = add_disk(vm, &c->disks[i], err);
	for (unsigned i = 0; i < c->nnets && !rc; i++)
		rc = add_net(vm, &c->nets[i], err);
	if (!rc)
		rc = add_rng(vm, err);
	if (!rc)
		rc = add_console(vm, err);
	if (!rc)
		rc = connect_ports(vm, err);
	return rc ? rc : start_io_threads(vm, err);
}

int machine_power_on(struct vm *vm, struct err *err)
{
	return vm->pci ? pci_bus_assign_bars(vm->pci, err) : 0;
}

/* Threads first: a loop that does not run may be touched by anyone. The PCI bus was the first made. */
void machine_free(struct vm *vm)
{
	for (unsigned i = 0; i < vm->nio_loops; i++)
		loop_thread_stop(vm->io_loops[i]);
	while (vm->ndevices) {
		struct device *d = vm->devices[--vm->ndevices];

		d->ops->free(d);
	}
	for (unsigned i = 0; i < vm->nio_loops; i++)
		loop_free(vm->io_loops[i]);
	free(vm->io_loops);
	vm->io_loops = NULL;
	vm->nio_loops = 0;
	vm->ndisks = 0;
	vm->pci = NULL;
	vm->ged = NULL;
	vm->serial = NULL;
	vm->virtio_console = NULL;
	ports_free(vm);
	monitor_free(vm->monitor);
	vm->monitor = NULL;
}
