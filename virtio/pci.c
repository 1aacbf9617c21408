/*
 * pci.c - virtio over PCI, modern only
 *
 * One 64-bit BAR, each part in a page of its own, so that a hypervisor below us or a driver above may
 * map them apart (virtio 1.2, 4.1.4). The capabilities that point there come in the order drivers
 * look for them. There is no INTx: a driver without MSI-X polls, and the ISR register is kept for it.
 *
 * Every queue has a notify address of its own and thus an ioeventfd without datamatch. They move with
 * the BAR. Either all queues are bound or none: a driver's stores then arrive at the BAR's write
 * operation, which signals the same events, and half of each would only be harder to see.
 *
 * The PCI configuration window (4.1.4.9) lets firmware reach the BAR through configuration space. It
 * calls the BAR's operations directly, never the bus: whatever bar, offset and length the guest puts
 * there, it reaches this device's own registers or nothing, and cannot nest.
 */
#include <stdlib.h>
#include <string.h>

#include "virtio/pci.h"

#define VENDOR      0x1af4
#define DEVICE_BASE 0x1040
#define REVISION    1 /* 4.1.2: modern */

#define BAR            0
#define BAR_SIZE       0x8000
#define COMMON_OFF     0x0000
#define COMMON_SIZE    0x3c
#define ISR_OFF        0x1000
#define DEVICE_OFF     0x2000
#define NOTIFY_OFF     0x3000
#define MSIX_TABLE_OFF 0x4000
#define MSIX_PBA_OFF   0x5000
#define PART_SIZE      0x1000

#define NOTIFY_MULTIPLIER 4
_Static_assert(VIRTIO_QUEUES_MAX *NOTIFY_MULTIPLIER <= PART_SIZE, "fits its page");
_Static_assert(VIRTIO_QUEUES_MAX + 1 <= PCI_MSIX_MAX, "a vector a queue and one for changes");

#define CAP_ID_VENDOR 0x09
#define CAP_COMMON    1
#define CAP_NOTIFY    2
#define CAP_ISR       3
#define CAP_DEVICE    4
#define CAP_PCI_CFG   5

/* struct virtio_pci_cap from its start; what pci_add_cap takes begins at cap_len */
#define CAP_BAR      4
#define CAP_OFFSET   8
#define CAP_LENGTH   12
#define CAP_MORE     16 /* notify: multiplier; PCI_CFG: the window's data */
#define CAP_SIZE     16
#define CAP_SIZE_EXT 20

struct virtio_pci {
	struct pci_function f;
	struct virtio *v;
	unsigned window;         /* where the PCI_CFG capability is */
	struct wire_kick *kicks; /* one a queue */
};

static void put16(uint8_t *at, uint16_t value)
{
	memcpy(at, &value, sizeof(value)); /* hosts are little-endian, as the registers */
}

static void put32(uint8_t *at, uint32_t value)
{
	memcpy(at, &value, sizeof(value));
}

static void put64(uint8_t *at, uint64_t value)
{
	memcpy(at, &value, sizeof(value));
}

/* ---- common configuration, 4.1.4.3 ---- */

#define C_DEVICE_FEATURE_SELECT 0x00
#define C_DEVICE_FEATURE        0x04
#define C_DRIVER_FEATURE_SELECT 0x08
#define C_DRIVER_FEATURE        0x0c
#define C_CONFIG_VECTOR         0x10
#define C_NUM_QUEUES            0x12
#define C_STATUS                0x14
#define C_GENERATION            0x15
#define C_QUEUE_SELECT          0x16
#define C_QUEUE_SIZE            0x18
#define C_QUEUE_VECTOR          0x1a
#define C_QUEUE_ENABLE          0x1c
#define C_QUEUE_NOTIFY_OFF      0x1e
#define C_QUEUE_DESC            0x20
#define C_QUEUE_DRIVER          0x28
#define C_QUEUE_DEVICE          0x30
/* queue_notify_data and queue_reset belong to features that are not offered: they read 0 */

static void common_image(struct virtio *v, uint8_t c[COMMON_SIZE])
{
	const struct virtio_regs *r = &v->regs;
	const struct virtq *q = virtio_selected_queue(v);

	memset(c, 0, COMMON_SIZE);
	put32(c + C_DEVICE_FEATURE_SELECT, r->feature_select);
	put32(c + C_DEVICE_FEATURE, virtio_get_features(v));
	put32(c + C_DRIVER_FEATURE_SELECT, r->driver_feature_select);
	if (r->driver_feature_select < 2)
		put32(c + C_DRIVER_FEATURE,
		      (uint32_t)(r->driver_features >> 32 * r->driver_feature_select));
	put16(c + C_CONFIG_VECTOR, r->config_vector);
	put16(c + C_NUM_QUEUES, (uint16_t)v->nqueues);
	c[C_STATUS] = virtio_get_status(v);
	c[C_GENERATION] = r->config_generation;
	put16(c + C_QUEUE_SELECT, r->queue_select);
	put16(c + C_QUEUE_VECTOR, q ? q->regs.vector : VIRTIO_NO_VECTOR);
	if (!q)
		return; /* size 0: there is no such queue */
	put16(c + C_QUEUE_SIZE, q->regs.size);
	put16(c + C_QUEUE_ENABLE, q->regs.ready);
	put16(c + C_QUEUE_NOTIFY_OFF, q->index);
	put64(c + C_QUEUE_DESC, q->regs.desc);
	put64(c + C_QUEUE_DRIVER, q->regs.driver);
	put64(c + C_QUEUE_DEVICE, q->regs.device);
}

/* One that does not exist reads back as none, which tells the driver (4.1.5.1.2). */
static uint16_t vector_for(const struct virtio *v, uint32_t value)
{
	return value < v->vectors ? (uint16_t)value : VIRTIO_NO_VECTOR;
}

static void set_vector(struct virtio *v, struct virtq *q, uint32_t value)
{
	if (!q)
		return;
	q->regs.vector = vector_for(v, value);
	if (v->ops->rerouted)
		v->ops->rerouted(v, q->index);
}

/* A field is written whole (4.1.3.1), 64-bit ones by halves or in one; else nothing happens. */
static void common_write(struct virtio *v, unsigned off, const uint8_t *data, unsigned len)
{
#define FIELD(off, len) ((off)*16 + (len))
	struct virtq *q = virtio_selected_queue(v);
	uint32_t value = 0;

	if (len == 8 && off >= C_QUEUE_DESC && off <= C_QUEUE_DEVICE && off % 8 == 0) {
		common_write(v, off, data, 4);
		common_write(v, off + 4, data + 4, 4);
		return;
	}
	if (len > 4)
		return;
	memcpy(&value, data, len);
	switch (FIELD(off, len)) {
	case FIELD(C_DEVICE_FEATURE_SELECT, 4):
		v->regs.feature_select = value;
		break;
	case FIELD(C_DRIVER_FEATURE_SELECT, 4):
		v->regs.driver_feature_select = value;
		break;
	case FIELD(C_DRIVER_FEATURE, 4):
		virtio_set_features(v, value);
		break;
	case FIELD(C_CONFIG_VECTOR, 2):
		v->regs.config_vector = vector_for(v, value);
		break;
	case FIELD(C_STATUS, 1):
		virtio_set_status(v, (uint8_t)value);
		break;
	case FIELD(C_QUEUE_SELECT, 2):
		v->regs.queue_select = (uint16_t)value;
		break;
	case FIELD(C_QUEUE_SIZE, 2):
		virtio_set_queue_size(v, value);
		break;
	case FIELD(C_QUEUE_VECTOR, 2):
		set_vector(v, q, value);
		break;
	case FIELD(C_QUEUE_ENABLE, 2):
		virtio_set_queue_ready(v, value);
		break;
	case FIELD(C_QUEUE_DESC, 4):
	case FIELD(C_QUEUE_DESC + 4, 4):
	case FIELD(C_QUEUE_DRIVER, 4):
	case FIELD(C_QUEUE_DRIVER + 4, 4):
	case FIELD(C_QUEUE_DEVICE, 4):
	case FIELD(C_QUEUE_DEVICE + 4, 4):
		virtio_set_queue_addr(v, (off - C_QUEUE_DESC) / 8, off & 4, value);
		break;
	}
#undef FIELD
}

/* ---- the BAR; no access crosses a page's end, since they are aligned or end in it ---- */

static void read_isr(struct virtio *v, uint8_t *data)
{
	*data = v->regs.isr;
	v->regs.isr = 0;
}

static void bar_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	struct virtio_pci *p = opaque;
	const unsigned in = off % PART_SIZE;
	uint8_t image[COMMON_SIZE];

	memset(data, 0, len);
	if (in + len > PART_SIZE)
		return;
	switch (off - in) {
	case COMMON_OFF:
		if (in + len > COMMON_SIZE)
			break;
		common_image(p->v, image);
		memcpy(data, image + in, len);
		break;
	case ISR_OFF:
		if (in == 0)
			read_isr(p->v, data);
		break;
	case DEVICE_OFF:
		virtio_read_config(p->v, in, data, len);
		break;
	case MSIX_TABLE_OFF:
		pci_msix_table_read(&p->f, in, data, len);
		break;
	case MSIX_PBA_OFF:
		pci_msix_pba_read(&p->f, in, data, len);
		break;
	}
}

static void bar_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct virtio_pci *p = opaque;
	const unsigned in = off % PART_SIZE;

	if (in + len > PART_SIZE)
		return;
	switch (off - in) {
	case COMMON_OFF:
		common_write(p->v, in, data, len);
		break;
	case DEVICE_OFF:
		virtio_write_config(p->v, in, data, len);
		break;
	case NOTIFY_OFF: /* the address says which queue, whatever is stored */
		if (in % NOTIFY_MULTIPLIER == 0)
			virtio_notify(p->v, in / NOTIFY_MULTIPLIER);
		break;
	case MSIX_TABLE_OFF:
		pci_msix_table_write(&p->f, in, data, len);
		break;
	}
}

static const struct region_ops bar_ops = { bar_read, bar_write };

/* ---- the window in configuration space ---- */

/* Does an access to [off, off + len) of configuration space go through it, and where to? */
static bool through_window(struct virtio_pci *p, unsigned off, unsigned len, uint32_t *to,
			   uint32_t *width)
{
	const uint8_t *cap = p->f.regs.cfg + p->window;
	const unsigned data = p->window + CAP_MORE;

	memcpy(to, cap + CAP_OFFSET, sizeof(*to));
	memcpy(width, cap + CAP_LENGTH, sizeof(*width));
	return off <= data && data < off + len && cap[CAP_BAR] == BAR &&
	       (*width == 1 || *width == 2 || *width == 4) && *to % *width == 0 &&
	       *to <= BAR_SIZE - *width;
}

static void cfg_read(struct pci_function *f, unsigned off, unsigned len)
{
	struct virtio_pci *p = f->opaque;
	uint32_t to, width;

	if (through_window(p, off, len, &to, &width))
		bar_read(p, to, f->regs.cfg + p->window + CAP_MORE, width);
}

static void cfg_write(struct pci_function *f, unsigned off, unsigned len)
{
	struct virtio_pci *p = f->opaque;
	uint32_t to, width;

	if (through_window(p, off, len, &to, &width))
		bar_write(p, to, f->regs.cfg + p->window + CAP_MORE, width);
}

/* ---- kicks, which move with the BAR ---- */

static void unbind_kicks(struct virtio_pci *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (p->kicks[i].bound)
			p->f.wiring->ops->unbind_kick(p->f.wiring, &p->kicks[i]);
}

static void bar_moved(struct pci_function *f, unsigned bar, uint64_t base, bool mapped)
{
	struct virtio_pci *p = f->opaque;
	struct virtio *v = p->v;

	unbind_kicks(p, v->nqueues);
	for (unsigned i = 0; mapped && i < v->nqueues; i++) {
		struct wire_kick *k = &p->kicks[i];
		int rc;

		*k = (struct wire_kick){ .addr = base + NOTIFY_OFF + NOTIFY_MULTIPLIER * i,
					 .event = &v->queues[i].kick };
		rc = f->wiring->ops->bind_kick(f->wiring, k);
		if (rc) {
			log_guest(&v->complaints,
				  "%s: its queues are kicked through the VMM, which is slower: %s",
				  v->dev.name, strerror(-rc));
			unbind_kicks(p, i);
			return;
		}
	}
}

/* ---- what the core asks of a transport ---- */

static void signal_queue(struct virtio *v, unsigned q)
{
	struct virtio_pci *p = v->transport_data;

	pci_msix_signal(&p->f, v->queues[q].regs.vector); /* none: past the end */
}

static struct event *queue_event(struct virtio *v, unsigned q)
{
	struct virtio_pci *p = v->transport_data;

	return pci_msix_event(&p->f, v->queues[q].regs.vector);
}

static void settle(struct virtio *v)
{
	struct virtio_pci *p = v->transport_data;

	pci_msix_settle(&p->f);
}

static void signal_config(struct virtio *v)
{
	struct virtio_pci *p = v->transport_data;

	pci_msix_signal(&p->f, v->regs.config_vector);
}

static void reset(struct virtio *v)
{
	/* Vectors are registers and gone already; the MSI-X table is the function's, not the device's. */
}

static void power_on(struct virtio *v)
{
	struct virtio_pci *p = v->transport_data;

	pci_function_reset(&p->f);
}

static void resume(struct virtio *v)
{
	struct virtio_pci *p = v->transport_data;

	pci_function_restore(&p->f);
}

static void transport_free(struct virtio *v)
{
	struct virtio_pci *p = v->transport_data;

	pci_function_fini(&p->f); /* unmaps the BAR, which unbinds the kicks */
	free(p->kicks);
	free(p);
}

static const struct virtio_transport_ops pci_ops = {
	.signal_queue = signal_queue,
	.signal_config = signal_config,
	.queue_event = queue_event,
	.settle = settle,
	.reset = reset,
	.power_on = power_on,
	.resume = resume,
	.free = transport_free,
};

/* ---- making it ---- */

/* @more: the last four bytes, if @size has them; @wmask as in pci_add_cap, from the cap's start */
static unsigned add_cap(struct virtio_pci *p, uint8_t type, uint32_t off, uint32_t len,
			unsigned size, uint32_t more, const uint8_t *wmask)
{
	uint8_t cap[CAP_SIZE_EXT] = { [2] = (uint8_t)size, [3] = type, [CAP_BAR] = BAR };

	put32(cap + CAP_OFFSET, off);
	put32(cap + CAP_LENGTH, len);
	put32(cap + CAP_MORE, more);
	return pci_add_cap(&p->f, CAP_ID_VENDOR, cap + 2, size - 2, wmask ? wmask + 2 : NULL);
}

static void add_caps(struct virtio_pci *p)
{
	static const uint8_t window_mask[CAP_SIZE_EXT] = {
		[CAP_BAR] = 0xff,
		[CAP_OFFSET] = 0xff,
		0xff,
		0xff,
		0xff,
		[CAP_LENGTH] = 0xff,
		0xff,
		0xff,
		0xff,
		[CAP_MORE] = 0xff,
		0xff,
		0xff,
		0xff,
	};
	const struct virtio *v = p->v;

	add_cap(p, CAP_COMMON, COMMON_OFF, COMMON_SIZE, CAP_SIZE, 0, NULL);
	add_cap(p, CAP_ISR, ISR_OFF, 1, CAP_SIZE, 0, NULL);
	if (v->config_len)
		add_cap(p, CAP_DEVICE, DEVICE_OFF, v->config_len, CAP_SIZE, 0, NULL);
	add_cap(p, CAP_NOTIFY, NOTIFY_OFF, NOTIFY_MULTIPLIER * v->nqueues, CAP_SIZE_EXT,
		NOTIFY_MULTIPLIER, NULL);
	p->window = add_cap(p, CAP_PCI_CFG, 0, 0, CAP_SIZE_EXT, 0, window_mask);
}

/* For people and boot menus; drivers go by vendor and device. */
static uint32_t class_of(uint16_t id)
{
	switch (id) {
	case 1:
		return 0x020000; /* Ethernet */
	case 2:
		return 0x018000; /* other mass storage */
	case 3:
		return 0x078000; /* other communication */
	case 19:
		return 0x028000; /* other network: vsock */
	case 26:
		return 0x018000; /* a shared file system */
	default:
		return 0xff0000; /* fits no class */
	}
}

static int set_up(struct virtio_pci *p, struct pci_bus *bus, unsigned slot, struct wiring *wiring,
		  struct err *err)
{
	struct virtio *v = p->v;
	const struct pci_id id = { .vendor = VENDOR,
				   .device = DEVICE_BASE + v->ops->id,
				   .subvendor = VENDOR,
				   .subdevice = 0x40 + v->ops->id,
				   .revision = REVISION,
				   .class_code = class_of(v->ops->id) };
	int rc;

	pci_function_init(&p->f, &id, &v->dev.lock);
	p->f.cfg_read = cfg_read;
	p->f.cfg_write = cfg_write;
	p->f.bar_moved = bar_moved;
	p->f.opaque = p;
	pci_add_bar64(&p->f, BAR, BAR_SIZE, &bar_ops, p, v->dev.name);
	rc = pci_add_msix(&p->f, wiring, v->nqueues + 1, BAR, MSIX_TABLE_OFF, MSIX_PBA_OFF, err);
	if (rc)
		return rc;
	add_caps(p);
	rc = pci_bus_add(bus, &p->f, slot, err);
	if (rc)
		pci_function_fini(&p->f);
	return rc;
}

int virtio_pci_attach(struct virtio *v, struct pci_bus *bus, unsigned slot, struct wiring *wiring,
		      struct err *err)
{
	struct virtio_pci *p = calloc(1, sizeof(*p));
	struct wire_kick *kicks = calloc(v->nqueues, sizeof(*kicks));
	int rc;

	if (!p || !kicks) {
		rc = err_set(err, ENOMEM, "%s: out of memory", v->dev.name);
	} else {
		p->v = v;
		p->kicks = kicks;
		rc = set_up(p, bus, slot, wiring, err);
		if (rc)
			err_prefix(err, "%s", v->dev.name);
	}
	if (rc) {
		free(kicks);
		free(p);
		return rc;
	}
	v->transport = &pci_ops;
	v->transport_data = p;
	v->vectors = v->nqueues + 1;
	for (unsigned i = 0; i < v->nqueues; i++)
		v->queues[i].vectors = (uint16_t)v->vectors;
	device_add_state(&v->dev, &pci_state, &p->f.regs, &p->f);
	device_add_state(&v->dev, &msix_state, &p->f.msix, &p->f);
	return 0;
}
