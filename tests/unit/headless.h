/*
 * headless.h - a machine without KVM: memory, buses, and all devices as the configuration has them
 *
 * For what a snapshot's devices load into, in tests that have to run anywhere, and in fuzzers. Its
 * wiring only takes notes, as between two KVM VMs. A NIC (net.n0) is joined to nothing, since a tap
 * needs rights.
 */
#ifndef TESTS_UNIT_HEADLESS_H
#define TESTS_UNIT_HEADLESS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/net.h"
#include "base/loop.h"
#include "virtio/mmio.h"
#include "virtio/net.h"
#include "virtio/pci.h"
#include "vmm/vm.h"

struct headless {
	struct config config;
	struct loop *loop;
	struct vm *vm;
	struct netif *far; /* the NIC's other end */
	int disk;
};

static inline void headless_power(void *opaque, enum wire_power what, int status)
{
}

static inline int headless_set(struct headless *h, const char *key, const char *value)
{
	struct err err = { 0 };

	return config_set(&h->config, key, value, &err);
}

static inline int headless_add_net(struct headless *h, struct err *err)
{
	struct virtio_net_options o = { .name = "net.n0",
					.mac = { 0x52, 0x54, 0, 0, 0, 1 },
					.mtu = 1500,
					.pairs = 1,
					.queue_size = 256 };
	struct vm *vm = h->vm;
	struct netif *end[2];

	if (net_loop_new(16, end, err))
		return err->code;
	h->far = end[1];
	struct virtio *v = virtio_net_new(&o, end, vm->mem, h->loop, err);

	if (!v)
		return err->code;
	int rc = vm_add_device(vm, &v->dev, err);

	if (!rc && h->config.transport == CONFIG_TRANSPORT_PCI)
		return virtio_pci_attach(v, vm->pci, ++vm->nslots, &vm->notify.wiring, err);
	struct arch_mmio_device *m = &vm->machine.mmio[vm->machine.mmio_count];

	arch_mmio_slot(vm->machine.mmio_count++, &m->base, &m->gsi);
	return rc ? rc : virtio_mmio_attach(v, &vm->mmio, m->base, m->gsi, &vm->notify.wiring, err);
}

static inline int headless_build(struct headless *h, struct err *err)
{
	struct vm *vm = h->vm;
	int rc = arch_layout_init(&vm->layout, h->config.memory, 40, err);

	if (rc)
		return rc;
	vm->mem = gmem_new(err);
	rc = vm->mem ? arch_add_ram(vm->mem, &vm->layout, GMEM_PAGES_SMALL, err) : err->code;
	if (!rc)
		rc = notify_init(&vm->notify, true, headless_power, vm, err);
	return rc ? rc : machine_build(vm, err);
}

/*
 * @mmio: transport, and no virtio console; @read_only and @queues: of its disk "root" of 1 MiB with serial number "golden";
 * @net: with a NIC. 0 or -errno.
 */
static inline int headless_begin(struct headless *h, bool mmio, bool read_only, const char *queues,
				 bool net, bool testdev, struct err *err)
{
	char disk[160];

	memset(h, 0, sizeof(*h));
	h->disk = memfd_create("disk", MFD_CLOEXEC);
	if (h->disk < 0 || ftruncate(h->disk, 1 << 20) < 0)
		return err_set_sys(err, errno, "memfd");
	snprintf(disk, sizeof(disk), "/proc/self/fd/%d,id=root,queues=%s,serial=golden%s", h->disk,
		 queues, read_only ? ",read-only=on" : "");
	config_init(&h->config);
	if (headless_set(h, "kernel", "none") || headless_set(h, "memory", "2M") ||
	    headless_set(h, "serial", "null") || headless_set(h, "disk", disk) ||
	    headless_set(h, "transport", mmio ? "mmio" : "pci") ||
	    (!mmio && headless_set(h, "console", "null")) ||
	    headless_set(h, "testdev", testdev ? "on" : "off") || config_finish(&h->config, err))
		return err_set(err, EINVAL, "configuration");
	h->loop = loop_new(err);
	h->vm = calloc(1, sizeof(*h->vm));
	if (!h->loop || !h->vm)
		return -ENOMEM;
	h->vm->config = &h->config;
	h->vm->loop = h->loop;
	h->vm->fd = h->vm->kvm.fd = -1;
	bus_init(&h->vm->mmio);
	bus_init(&h->vm->pio);
	int rc = headless_build(h, err);

	return rc || !net ? rc : headless_add_net(h, err);
}

static inline void headless_end(struct headless *h)
{
	struct vm *vm = h->vm;

	machine_free(vm);
	if (h->far)
		h->far->ops->free(h->far);
	notify_fini(&vm->notify);
	bus_fini(&vm->mmio);
	bus_fini(&vm->pio);
	gmem_free(vm->mem);
	loop_free(h->loop);
	config_fini(&h->config);
	free(vm);
	close(h->disk);
}

static inline struct device *headless_device(struct headless *h, const char *name)
{
	for (unsigned i = 0; i < h->vm->ndevices; i++)
		if (!strcmp(h->vm->devices[i]->name, name))
			return h->vm->devices[i];
	return NULL;
}

#endif
