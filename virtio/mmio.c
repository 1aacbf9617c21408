/*
 * mmio.c - virtio over MMIO, version 2
 *
 * A window of 32-bit registers (virtio 1.2, 4.2.2), then the device's configuration. Everything with a
 * meaning is in device.c; here offsets become calls. What the specification leaves open is answered as
 * hardware would: stores to read-only or unknown registers vanish, reads of write-only ones give 0, and
 * the same goes for any other width than 32 bits below the configuration space.
 *
 * One interrupt line for everything, and edges, which need no trip through us when the guest is done
 * (a level would take a resample event). An edge is given for each signal. One that comes between the
 * driver's look at InterruptStatus and its InterruptACK could be lost with the acknowledged bit, but
 * the driver looks at its queues after the ACK; a bit that the ACK leaves set gets an edge of its own.
 *
 * One notify register for all queues, so each queue's kick is told apart by the value stored. Where the
 * wiring cannot bind them the store arrives here and signals the same event.
 */
#include <stdlib.h>
#include <string.h>

#include "virtio/mmio.h"

#define MAGIC   0x74726976 /* "virt" */
#define VERSION 2
#define VENDOR  0x1af4

#define REG_MAGIC               0x000
#define REG_VERSION             0x004
#define REG_DEVICE_ID           0x008
#define REG_VENDOR_ID           0x00c
#define REG_DEVICE_FEATURES     0x010
#define REG_DEVICE_FEATURES_SEL 0x014
#define REG_DRIVER_FEATURES     0x020
#define REG_DRIVER_FEATURES_SEL 0x024
#define REG_QUEUE_SEL           0x030
#define REG_QUEUE_NUM_MAX       0x034
#define REG_QUEUE_NUM           0x038
#define REG_QUEUE_READY         0x044
#define REG_QUEUE_NOTIFY        0x050
#define REG_INTERRUPT_STATUS    0x060
#define REG_INTERRUPT_ACK       0x064
#define REG_STATUS              0x070
#define REG_QUEUE_DESC          0x080 /* low, and high 4 bytes on */
#define REG_QUEUE_DRIVER        0x090
#define REG_QUEUE_DEVICE        0x0a0
#define REG_QUEUE_STRIDE        0x010 /* from one of the three to the next */
#define REG_SHM_LEN             0x0b0 /* low, high; then base low, high */
#define REG_SHM_END             0x0c0
#define REG_CONFIG_GENERATION   0x0fc
#define REG_CONFIG              0x100

struct mmio {
	struct virtio *v;
	struct bus *bus;
	struct wiring *wiring;
	uint64_t base;
	struct event trigger;
	struct wire_line line;
	struct wire_kick *kicks; /* one a queue */
};

static uint32_t read_reg(struct virtio *v, unsigned off)
{
	const struct virtq *q = virtio_selected_queue(v);

	switch (off) {
	case REG_MAGIC:
		return MAGIC;
	case REG_VERSION:
		return VERSION;
	case REG_DEVICE_ID:
		return v->ops->id;
	case REG_VENDOR_ID:
		return VENDOR;
	case REG_DEVICE_FEATURES:
		return virtio_get_features(v);
	case REG_QUEUE_NUM_MAX:
		return q ? q->max : 0;
	case REG_QUEUE_READY:
		return q ? q->regs.ready : 0;
	case REG_INTERRUPT_STATUS:
		return v->regs.isr;
	case REG_STATUS:
		return virtio_get_status(v);
	case REG_CONFIG_GENERATION:
		return v->regs.config_generation;
	}
	/* No shared memory region, whichever is selected, has length -1 (4.2.2). */
	if (off >= REG_SHM_LEN && off < REG_SHM_END)
		return UINT32_MAX;
	return 0;
}

static void acknowledge(struct mmio *m, uint32_t bits)
{
	struct virtio *v = m->v;

	v->regs.isr &= (uint8_t)~bits;
	if (v->regs.isr)
		event_signal(&m->trigger);
}

static void write_reg(struct mmio *m, unsigned off, uint32_t value)
{
	struct virtio *v = m->v;

	switch (off) {
	case REG_DEVICE_FEATURES_SEL:
		v->regs.feature_select = value;
		break;
	case REG_DRIVER_FEATURES:
		virtio_set_features(v, value);
		break;
	case REG_DRIVER_FEATURES_SEL:
		v->regs.driver_feature_select = value;
		break;
	case REG_QUEUE_SEL: /* 0x10000 must not become queue 0 */
		v->regs.queue_select = value < 0xffff ? (uint16_t)value : 0xffff;
		break;
	case REG_QUEUE_NUM:
		virtio_set_queue_size(v, value);
		break;
	case REG_QUEUE_READY:
		virtio_set_queue_ready(v, value);
		break;
	case REG_QUEUE_NOTIFY:
		virtio_notify(v, value);
		break;
	case REG_INTERRUPT_ACK:
		acknowledge(m, value);
		break;
	case REG_STATUS:
		if (value <= 0xff) /* 0x100 must not become a reset */
			virtio_set_status(v, (uint8_t)value);
		break;
	case REG_QUEUE_DESC:
	case REG_QUEUE_DESC + 4:
	case REG_QUEUE_DRIVER:
	case REG_QUEUE_DRIVER + 4:
	case REG_QUEUE_DEVICE:
	case REG_QUEUE_DEVICE + 4:
		virtio_set_queue_addr(v, (off - REG_QUEUE_DESC) / REG_QUEUE_STRIDE, off & 4, value);
		break;
	}
}

static void mmio_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	struct mmio *m = opaque;
	uint32_t value;

	memset(data, 0, len);
	if (off >= REG_CONFIG) {
		virtio_read_config(m->v, (unsigned)off - REG_CONFIG, data, len);
	} else if (len == 4 && off % 4 == 0) {
		value = read_reg(m->v, (unsigned)off);
		memcpy(data, &value, sizeof(value));
	}
}

static void mmio_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct mmio *m = opaque;
	uint32_t value;

	if (off >= REG_CONFIG) {
		virtio_write_config(m->v, (unsigned)off - REG_CONFIG, data, len);
	} else if (len == 4 && off % 4 == 0) {
		memcpy(&value, data, sizeof(value));
		write_reg(m, (unsigned)off, value);
	}
}

static const struct region_ops mmio_region_ops = { mmio_read, mmio_write };

/* ---- what the core asks of a transport ---- */

static void signal_line(struct virtio *v)
{
	struct mmio *m = v->transport_data;

	event_signal(&m->trigger);
}

static void signal_queue(struct virtio *v, unsigned q)
{
	signal_line(v);
}

static void drop_interrupts(struct virtio *v)
{
	struct mmio *m = v->transport_data;

	event_clear(&m->trigger);
}

static void resume(struct virtio *v)
{
	/* The edge may have been lost with the machine that was saved; one too many does no harm. */
	if (v->regs.isr)
		signal_line(v);
}

static void unbind(struct mmio *m)
{
	for (unsigned i = 0; i < m->v->nqueues; i++)
		if (m->kicks[i].bound)
			m->wiring->ops->unbind_kick(m->wiring, &m->kicks[i]);
	if (m->line.bound)
		m->wiring->ops->unbind_line(m->wiring, &m->line);
}

static void mmio_free(struct virtio *v)
{
	struct mmio *m = v->transport_data;

	bus_remove(m->bus, m->base, m);
	unbind(m);
	event_fini(&m->trigger);
	free(m->kicks);
	free(m);
}

static const struct virtio_transport_ops mmio_ops = {
	.signal_queue = signal_queue,
	.signal_config = signal_line,
	.reset = drop_interrupts,
	.power_on = drop_interrupts,
	.resume = resume,
	.free = mmio_free,
};

/* ---- life ---- */

static void bind_kicks(struct mmio *m)
{
	for (unsigned i = 0; i < m->v->nqueues; i++) {
		struct wire_kick *k = &m->kicks[i];
		int rc;

		*k = (struct wire_kick){ .addr = m->base + REG_QUEUE_NOTIFY,
					 .len = 4,
					 .match = true,
					 .value = i,
					 .event = &m->v->queues[i].kick };
		rc = m->wiring->ops->bind_kick(m->wiring, k);
		if (rc)
			log_warn("%s: queue %u is kicked through the VMM, which is slower: %s",
				 m->v->dev.name, i, strerror(-rc));
	}
}

int virtio_mmio_attach(struct virtio *v, struct bus *mmio, uint64_t base, unsigned gsi,
		       struct wiring *wiring, struct err *err)
{
	struct mmio *m = calloc(1, sizeof(*m));
	struct wire_kick *kicks = calloc(v->nqueues, sizeof(*kicks));
	int rc;

	if (!m || !kicks) {
		free(kicks);
		free(m);
		return err_set(err, ENOMEM, "%s: out of memory", v->dev.name);
	}
	*m = (struct mmio){ .v = v, .bus = mmio, .wiring = wiring, .base = base, .kicks = kicks };
	rc = event_init(&m->trigger, err);
	m->line = (struct wire_line){ .gsi = gsi, .trigger = &m->trigger };
	if (!rc) {
		rc = wiring->ops->bind_line(wiring, &m->line);
		if (rc)
			err_set_sys(err, rc, "cannot connect interrupt %u", gsi);
	}
	v->transport = &mmio_ops;
	v->transport_data = m;
	if (!rc)
		rc = bus_add(mmio,
			     &(struct region){ .base = base,
					       .size = VIRTIO_MMIO_SIZE,
					       .ops = &mmio_region_ops,
					       .opaque = m,
					       .lock = &v->dev.lock,
					       .name = v->dev.name },
			     err);
	if (rc) {
		err_prefix(err, "%s", v->dev.name);
		mmio_free(v);
		v->transport = NULL;
		v->transport_data = NULL;
		return rc;
	}
	bind_kicks(m);
	return 0;
}
