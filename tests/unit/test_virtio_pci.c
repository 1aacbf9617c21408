/*
 * test_virtio_pci.c - capabilities, the BAR and its kicks, MSI-X and the configuration window
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/unit/fake_wiring.h"
#include "tests/unit/virtio_driver.h"
#include "tests/unit/virtio_toy.h"
#include "virtio/pci.h"

#define ECAM       0xb0000000u
#define BARS       UINT64_C(0x4000000000)
#define BARS_SIZE  (UINT64_C(1) << 30)
#define SLOT       3
#define QUEUES     3
#define VECTORS    (QUEUES + 1)
#define SIZE       8
#define CONFIG_LEN 10
#define MSI_ADDR   0xfee01000u
#define UP                                                                              \
	(VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK | \
	 VIRTIO_STATUS_DRIVER_OK)

enum { COMMON = 1, NOTIFY, ISR, DEVICE, PCI_CFG };

struct cap {
	unsigned at; /* in configuration space; 0: not there */
	uint32_t off, len, more;
};

struct fixture {
	struct vd_ram ram;
	struct loop *loop;
	struct bus mmio;
	struct fake_wiring fw;
	struct wiring_ops ops; /* a copy, for one that fails in the middle */
	int kicks_left;
	struct pci_bus *bus;
	struct toy *t;
	struct virtio *v;
	struct vd_queue d[QUEUES];
	gpa_t buf;

	/* What the driver found. */
	uint64_t bar;
	struct cap cap[6];
	unsigned msix;
	uint32_t table, pba;
};

/* ---- configuration space ---- */

static void cfg_access(struct fixture *f, bool write, unsigned off, void *data, unsigned len)
{
	uint64_t at = ECAM + (SLOT << 15) + off;

	assert_int_equal(
		write ? bus_write(&f->mmio, at, data, len) : bus_read(&f->mmio, at, data, len), 0);
}

static uint32_t cfg_rd(struct fixture *f, unsigned off, unsigned len)
{
	uint32_t v = 0;

	cfg_access(f, false, off, &v, len);
	return v;
}

static void cfg_wr(struct fixture *f, unsigned off, unsigned len, uint32_t v)
{
	cfg_access(f, true, off, &v, len);
}

static void read_cap(struct fixture *f, unsigned at)
{
	uint8_t type = (uint8_t)cfg_rd(f, at + 3, 1);
	struct cap *c = &f->cap[type];

	assert_true(type >= COMMON && type <= PCI_CFG);
	assert_int_equal(c->at, 0);
	c->at = at;
	c->off = cfg_rd(f, at + 8, 4);
	c->len = cfg_rd(f, at + 12, 4);
	assert_int_equal(cfg_rd(f, at + 2, 1), type == NOTIFY || type == PCI_CFG ? 20 : 16);
	if (type == NOTIFY)
		c->more = cfg_rd(f, at + 16, 4);
}

static void find_caps(struct fixture *f)
{
	unsigned at = cfg_rd(f, 0x34, 1), n = 0;

	memset(f->cap, 0, sizeof(f->cap));
	for (; at && n < 48; n++, at = cfg_rd(f, at + 1, 1)) {
		assert_int_equal(at % 4, 0);
		if (cfg_rd(f, at, 1) == 0x09) {
			read_cap(f, at);
		} else if (cfg_rd(f, at, 1) == 0x11) {
			f->msix = at;
			f->table = cfg_rd(f, at + 4, 4);
			f->pba = cfg_rd(f, at + 8, 4);
		}
	}
	assert_true(n < 48);
	f->bar = (cfg_rd(f, 0x10, 4) & ~15u) | (uint64_t)cfg_rd(f, 0x14, 4) << 32;
}

/* ---- set up ---- */

static int bind_some_kicks(struct wiring *w, struct wire_kick *k)
{
	struct fixture *f = (struct fixture *)((char *)w - offsetof(struct fixture, fw));

	if (f->kicks_left == 0)
		return -ENOSPC;
	f->kicks_left--;
	return fake_wiring_bind_kick_(w, k);
}

static struct toy *add_toy(struct fixture *f, unsigned slot, unsigned config_len)
{
	struct toy *t = toy_new(f->ram.mem, f->loop, QUEUES, SIZE, config_len);

	assert_int_equal(virtio_pci_attach(&t->v, f->bus, slot, &f->fw.wiring, NULL), 0);
	return t;
}

static int set_up_with(void **state, unsigned config_len)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct pci_bus_config c = { .mmio = &f->mmio,
				    .ecam_base = ECAM,
				    .ecam_size = 1 << 20,
				    .bars_base = BARS,
				    .bars_size = BARS_SIZE,
				    .wiring = &f->fw.wiring };

	log_set_level(LOG_ERR);
	vd_ram_init(&f->ram, 256 << 10);
	f->buf = vd_alloc(&f->ram, 4096, 4096);
	f->loop = loop_new(NULL);
	bus_init(&f->mmio);
	fake_wiring_init(&f->fw);
	f->ops = *f->fw.wiring.ops;
	f->ops.bind_kick = bind_some_kicks;
	f->fw.wiring.ops = &f->ops;
	f->kicks_left = INT32_MAX;
	f->bus = pci_bus_new(&c, NULL);
	assert_non_null(f->bus);
	f->t = add_toy(f, SLOT, config_len);
	f->v = &f->t->v;
	assert_int_equal(pci_bus_assign_bars(f->bus, NULL), 0);
	find_caps(f);
	*state = f;
	return 0;
}

static int set_up(void **state)
{
	return set_up_with(state, CONFIG_LEN);
}

static int set_up_without_config(void **state)
{
	return set_up_with(state, 0);
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	struct device *d = pci_bus_device(f->bus);

	f->v->dev.ops->free(&f->v->dev);
	d->ops->free(d);
	assert_true(fake_wiring_is_clean(&f->fw));
	bus_fini(&f->mmio);
	loop_free(f->loop);
	vd_ram_fini(&f->ram);
	free(f);
	return 0;
}

/* ---- the BAR ---- */

static uint64_t rd(struct fixture *f, uint32_t off, unsigned len)
{
	uint64_t v = 0;

	assert_int_equal(bus_read(&f->mmio, f->bar + off, &v, len), 0);
	return v;
}

static void wr(struct fixture *f, uint32_t off, unsigned len, uint64_t v)
{
	assert_int_equal(bus_write(&f->mmio, f->bar + off, &v, len), 0);
}

/* Common configuration. */
static uint64_t common_rd(struct fixture *f, uint32_t off, unsigned len)
{
	return rd(f, f->cap[COMMON].off + off, len);
}

static void common_wr(struct fixture *f, uint32_t off, unsigned len, uint64_t v)
{
	wr(f, f->cap[COMMON].off + off, len, v);
}

static void notify(struct fixture *f, unsigned q)
{
	common_wr(f, 0x16, 2, q);
	wr(f, f->cap[NOTIFY].off + (uint32_t)common_rd(f, 0x1e, 2) * f->cap[NOTIFY].more, 2, q);
}

static void poll_all(struct fixture *f)
{
	while (loop_poll(f->loop, 0) > 0)
		;
}

static void unmask(struct fixture *f, unsigned vector, bool open)
{
	uint32_t at = f->table + 16 * vector;

	wr(f, at, 4, MSI_ADDR);
	wr(f, at + 4, 4, 0);
	wr(f, at + 8, 4, 0x40 + vector);
	wr(f, at + 12, 4, !open);
}

static void enable_msix(struct fixture *f)
{
	for (unsigned i = 0; i < VECTORS; i++)
		unmask(f, i, true);
	cfg_wr(f, f->msix + 2, 2, 0x8000);
}

/* As Linux's virtio_pci_modern does it, by registers alone. Vector 0 is for changes. */
static void start(struct fixture *f, uint64_t features)
{
	features |= VIRTIO_F_VERSION_1;
	common_wr(f, 0x14, 1, 0);
	assert_int_equal(common_rd(f, 0x14, 1), 0);
	common_wr(f, 0x14, 1, VIRTIO_STATUS_ACKNOWLEDGE);
	common_wr(f, 0x14, 1, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	for (unsigned i = 0; i < 2; i++) {
		common_wr(f, 0x08, 4, i);
		common_wr(f, 0x0c, 4, (uint32_t)(features >> 32 * i));
		assert_int_equal(common_rd(f, 0x0c, 4), (uint32_t)(features >> 32 * i));
	}
	common_wr(f, 0x14, 1, UP & ~VIRTIO_STATUS_DRIVER_OK);
	assert_true(common_rd(f, 0x14, 1) & VIRTIO_STATUS_FEATURES_OK);
	common_wr(f, 0x10, 2, 0);
	assert_int_equal(common_rd(f, 0x10, 2), 0);
	for (unsigned i = 0; i < QUEUES; i++) {
		struct vd_queue *d = &f->d[i];

		common_wr(f, 0x16, 2, i);
		assert_int_equal(common_rd(f, 0x18, 2), SIZE);
		assert_int_equal(common_rd(f, 0x1c, 2), 0);
		vd_queue_init(d, &f->ram, (uint16_t)i, SIZE);
		d->event_idx = features & VIRTIO_F_EVENT_IDX;
		common_wr(f, 0x18, 2, SIZE);
		common_wr(f, 0x20, 4, (uint32_t)d->desc);
		common_wr(f, 0x24, 4, 0);
		common_wr(f, 0x28, 8, d->avail);
		common_wr(f, 0x30, 4, (uint32_t)d->used);
		common_wr(f, 0x34, 4, 0);
		common_wr(f, 0x1a, 2, i + 1);
		assert_int_equal(common_rd(f, 0x1a, 2), i + 1);
		common_wr(f, 0x1c, 2, 1);
		assert_int_equal(common_rd(f, 0x1c, 2), 1);
	}
	common_wr(f, 0x14, 1, UP);
	assert_int_equal(common_rd(f, 0x14, 1), UP);
	poll_all(f);
}

static void post(struct fixture *f, unsigned q)
{
	vd_add(&f->d[q], (struct vd_seg[]){ VD_OUT(f->buf, 8), VD_IN(f->buf + 64, 8) }, 2, 0);
	vd_publish(&f->d[q]);
}

static bool collect(struct fixture *f, unsigned q)
{
	uint32_t id, len;

	return vd_collect(&f->d[q], &id, &len);
}

/* ---- what enumeration sees ---- */

static void identity(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(cfg_rd(f, 0, 2), 0x1af4);
	assert_int_equal(cfg_rd(f, 2, 2), 0x1040 + TOY_ID);
	assert_int_equal(cfg_rd(f, 8, 1), 1);
	assert_true(cfg_rd(f, 0x2e, 2) >= 0x40);
	assert_int_equal(cfg_rd(f, 0x3d, 1), 0);      /* no INTx pin */
	assert_int_equal(cfg_rd(f, 0x10, 4) & 15, 4); /* 64-bit memory */
}

static void capabilities(void **state)
{
	struct fixture *f = *state;
	uint32_t size, end = 0;

	for (int i = COMMON; i <= PCI_CFG; i++)
		assert_int_not_equal(f->cap[i].at, 0);
	assert_true(f->cap[COMMON].len >= 0x38);
	assert_int_equal(f->cap[DEVICE].len, CONFIG_LEN);
	assert_int_equal(f->cap[NOTIFY].more, 4);
	assert_true(f->cap[NOTIFY].len >= QUEUES * 4);
	assert_true(f->cap[ISR].len >= 1);
	assert_int_equal(cfg_rd(f, f->msix + 2, 2) & 0x7ff, VECTORS - 1);

	cfg_wr(f, 0x10, 4, UINT32_MAX);
	size = ~(cfg_rd(f, 0x10, 4) & ~15u) + 1;
	cfg_wr(f, 0x10, 4, (uint32_t)f->bar);
	for (int i = COMMON; i <= DEVICE; i++)
		if (f->cap[i].off + f->cap[i].len > end)
			end = f->cap[i].off + f->cap[i].len;
	assert_true(end <= size);
	assert_true(f->table + 16 * VECTORS <= size && f->pba + 8 <= size);
	assert_int_equal((f->table | f->pba) & 7, 0); /* BAR 0, aligned */
}

static void no_device_capability_without_configuration(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(f->cap[DEVICE].at, 0);
	assert_int_not_equal(f->cap[NOTIFY].at, 0);
	start(f, 0);
	post(f, 0);
	notify(f, 0);
	poll_all(f);
	assert_true(collect(f, 0));
}

/* ---- requests and interrupts ---- */

static void requests_go_and_come(void **state)
{
	struct fixture *f = *state;

	enable_msix(f);
	start(f, VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC);
	for (unsigned i = 0; i < 3 * SIZE; i++) {
		unsigned q = i % QUEUES;

		post(f, q);
		notify(f, q);
		poll_all(f);
		assert_int_equal(fake_wiring_deliver(&f->fw), 1);
		assert_int_equal(f->fw.last_addr, MSI_ADDR);
		assert_int_equal(f->fw.last_data, 0x41 + q);
		assert_true(collect(f, q));
		vd_used_event(&f->d[q], f->d[q].last_used);
	}
	pthread_mutex_lock(&f->v->dev.lock);
	virtio_config_changed(f->v);
	pthread_mutex_unlock(&f->v->dev.lock);
	assert_int_equal(fake_wiring_deliver(&f->fw), 1);
	assert_int_equal(f->fw.last_data, 0x40);
}

/* A driver that polls, or reads ISR: nothing is sent and nothing lost. */
static void without_msix(void **state)
{
	struct fixture *f = *state;

	start(f, 0);
	post(f, 1);
	notify(f, 1);
	poll_all(f);
	assert_true(collect(f, 1));
	assert_int_equal(f->fw.msi_sent, 0);
	virtio_config_changed(f->v);
	assert_int_equal(rd(f, f->cap[ISR].off, 1), VIRTIO_ISR_QUEUE | VIRTIO_ISR_CONFIG);
	assert_int_equal(rd(f, f->cap[ISR].off, 1), 0); /* read clears */
}

static void a_masked_vector_is_pending(void **state)
{
	struct fixture *f = *state;

	enable_msix(f);
	start(f, 0);
	unmask(f, 2, false);
	post(f, 1);
	notify(f, 1);
	poll_all(f);
	assert_int_equal(fake_wiring_deliver(&f->fw), 0);
	assert_int_equal(rd(f, f->pba, 8), 1 << 2);
	wr(f, f->table + 16 * 2 + 12, 4, 0);
	assert_int_equal(f->fw.msi_sent, 1);
	assert_int_equal(f->fw.last_data, 0x42);
	assert_int_equal(rd(f, f->pba, 8), 0);
}

/* A kernel that works on a queue signals its vector's event; masking, pending bits and saved state hold. */
static void a_queue_is_its_vectors_event(void **state)
{
	struct fixture *f = *state;
	const struct virtio_transport_ops *ops = f->v->transport;
	const struct pci_msix_regs *saved = f->v->dev.parts[f->v->dev.nparts - 1].regs;
	struct event *e;

	assert_null(ops->queue_event(f->v, 1));
	enable_msix(f);
	start(f, 0);
	e = ops->queue_event(f->v, 1);
	assert_non_null(e);
	event_signal(e);
	assert_int_equal(fake_wiring_deliver(&f->fw), 1);
	assert_int_equal(f->fw.last_data, 0x42);
	unmask(f, 2, false);
	event_signal(e);
	assert_int_equal(fake_wiring_deliver(&f->fw), 0);
	assert_int_equal(rd(f, f->pba, 8), 1 << 2);
	ops->settle(f->v);
	assert_string_equal(f->v->dev.parts[f->v->dev.nparts - 1].desc->name, "msix");
	for (unsigned i = 0; i < VECTORS; i++)
		assert_int_equal(saved->pending[i], i == 2);
	unmask(f, 2, true);
	assert_int_equal(f->fw.msi_sent, 2);
	ops->settle(f->v);
	assert_int_equal(saved->pending[2], 0);
	common_wr(f, 0x16, 2, 1);
	common_wr(f, 0x1a, 2, VIRTIO_NO_VECTOR);
	assert_null(ops->queue_event(f->v, 1));
}

static void vectors_that_do_not_exist(void **state)
{
	struct fixture *f = *state;
	static const uint16_t bad[] = { VECTORS, 0x100, 0x7fff, 0xfffe, 0xffff };

	enable_msix(f);
	start(f, 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		common_wr(f, 0x10, 2, bad[i]);
		assert_int_equal(common_rd(f, 0x10, 2), VIRTIO_NO_VECTOR);
		common_wr(f, 0x16, 2, 0);
		common_wr(f, 0x1a, 2, bad[i]);
		assert_int_equal(common_rd(f, 0x1a, 2), VIRTIO_NO_VECTOR);
		post(f, 0);
		notify(f, 0);
		virtio_config_changed(f->v);
		poll_all(f);
		assert_true(collect(f, 0));
		assert_int_equal(fake_wiring_deliver(&f->fw), 0);
	}
	common_wr(f, 0x16, 2, 0);
	common_wr(f, 0x1a, 2, VECTORS - 1);
	assert_int_equal(common_rd(f, 0x1a, 2), VECTORS - 1);
	/* Table and PBA past their ends. */
	for (uint32_t off = f->table + 16 * VECTORS; off < f->table + 0x1000; off += 8) {
		wr(f, off, 8, UINT64_MAX);
		assert_int_equal(rd(f, off, 8), 0);
	}
	assert_int_equal(rd(f, f->pba + 8, 8), 0);
}

/* ---- registers ---- */

static void queues_that_do_not_exist(void **state)
{
	struct fixture *f = *state;
	static const uint16_t bad[] = { QUEUES, 0x100, 0xffff };

	assert_int_equal(common_rd(f, 0x12, 2), QUEUES);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		common_wr(f, 0x16, 2, bad[i]);
		assert_int_equal(common_rd(f, 0x16, 2), bad[i]);
		assert_int_equal(common_rd(f, 0x18, 2), 0);
		assert_int_equal(common_rd(f, 0x1a, 2), VIRTIO_NO_VECTOR);
		common_wr(f, 0x18, 2, 4);
		common_wr(f, 0x1a, 2, 0);
		common_wr(f, 0x1c, 2, 1);
		common_wr(f, 0x20, 8, UINT64_MAX);
		assert_int_equal(common_rd(f, 0x20, 8), 0);
		assert_int_equal(common_rd(f, 0x1c, 2), 0);
	}
	start(f, 0);
	unsigned kicks = f->t->kicks;

	for (uint32_t off = QUEUES * 4; off < 0x1000; off += 4)
		wr(f, f->cap[NOTIFY].off + off, 2, 0); /* the address counts, not the value */
	wr(f, f->cap[NOTIFY].off + 1, 1, 0);
	wr(f, f->cap[NOTIFY].off + 2, 2, 0);
	poll_all(f);
	assert_int_equal(f->t->kicks, kicks);
}

static void fields_are_written_whole(void **state)
{
	struct fixture *f = *state;

	common_wr(f, 0x14, 4, VIRTIO_STATUS_ACKNOWLEDGE);
	common_wr(f, 0x14, 2, VIRTIO_STATUS_ACKNOWLEDGE);
	common_wr(f, 0x10, 8, VIRTIO_STATUS_ACKNOWLEDGE);
	assert_int_equal(common_rd(f, 0x14, 1), 0);
	common_wr(f, 0x16, 1, 1);
	common_wr(f, 0x16, 4, 1);
	common_wr(f, 0x15, 1, 1); /* generation */
	common_wr(f, 0x12, 2, 1); /* number of queues */
	common_wr(f, 0x1e, 2, 1); /* notify offset */
	common_wr(f, 0x04, 4, 1); /* device features */
	assert_int_equal(common_rd(f, 0x16, 2), 0);
	assert_int_equal(common_rd(f, 0x12, 2), QUEUES);
	/* Any width may be read. */
	assert_int_equal(common_rd(f, 0x10, 8), 0xffffu | (uint64_t)QUEUES << 16);
	assert_int_equal(common_rd(f, 0x13, 1), 0);
	/* queue_reset: not offered */
	common_wr(f, 0x3a, 2, 1);
	assert_int_equal(common_rd(f, 0x3a, 2), 0);
	assert_int_equal(common_rd(f, 0x38, 8), 0); /* past the structure's end */
	for (uint32_t off = 0x3c; off < 0x1000; off += 4) {
		common_wr(f, off, 4, UINT32_MAX);
		assert_int_equal(common_rd(f, off, 4), 0);
	}
}

static void queue_size_after_driver_ok(void **state)
{
	struct fixture *f = *state;

	start(f, 0);
	common_wr(f, 0x16, 2, 0);
	common_wr(f, 0x18, 2, 4);
	common_wr(f, 0x18, 2, 0x100);
	common_wr(f, 0x1c, 2, 0);
	common_wr(f, 0x20, 8, 0);
	assert_int_equal(common_rd(f, 0x18, 2), SIZE);
	assert_int_equal(common_rd(f, 0x1c, 2), 1);
	assert_int_equal(common_rd(f, 0x20, 8), f->d[0].desc);
	common_wr(f, 0x14, 1, 0);
	common_wr(f, 0x18, 2, 4);
	assert_int_equal(common_rd(f, 0x18, 2), 4);
}

static void configuration(void **state)
{
	struct fixture *f = *state;
	const uint32_t at = f->cap[DEVICE].off;

	assert_int_equal(rd(f, at, 4), 0x83828180);
	assert_int_equal(rd(f, at + CONFIG_LEN - 2, 4), 0xffff8988);
	assert_int_equal(rd(f, at + 0xff8, 8), UINT64_MAX);
	wr(f, at + 4, 2, 0x1234);
	assert_int_equal(rd(f, at + 4, 2), 0x1234);
	wr(f, at + CONFIG_LEN - 1, 2, 0);
	wr(f, at + 0xff8, 8, 0);
	assert_int_equal(f->t->writes, 1);
}

/* ---- kicks and the BAR ---- */

static void expect_kicks_at(struct fixture *f, uint64_t bar)
{
	assert_int_equal(f->fw.nkick, QUEUES);
	for (unsigned i = 0; i < QUEUES; i++) {
		unsigned seen = 0;

		for (unsigned k = 0; k < QUEUES; k++) {
			const struct wire_kick *w = f->fw.kick[k];

			if (w->event != &f->v->queues[i].kick)
				continue;
			seen++;
			assert_int_equal(w->addr, bar + f->cap[NOTIFY].off + 4 * i);
			assert_int_equal(w->len, 0);
			assert_false(w->match || w->pio);
		}
		assert_int_equal(seen, 1);
	}
}

static void move_bar(struct fixture *f, uint64_t to)
{
	cfg_wr(f, 0x04, 2, 0);
	cfg_wr(f, 0x10, 4, (uint32_t)to);
	cfg_wr(f, 0x14, 4, (uint32_t)(to >> 32));
	cfg_wr(f, 0x04, 2, 6);
}

static void kicks_move_with_the_bar(void **state)
{
	struct fixture *f = *state;
	uint64_t was = f->bar;
	uint32_t v;

	expect_kicks_at(f, f->bar);
	start(f, 0);
	cfg_wr(f, 0x04, 2, 0);
	assert_int_equal(f->fw.nkick, 0);
	assert_int_equal(bus_read(&f->mmio, was, &v, 4), -ENXIO);
	move_bar(f, BARS + (1 << 24));
	f->bar = BARS + (1 << 24);
	expect_kicks_at(f, f->bar);
	assert_int_equal(bus_read(&f->mmio, was, &v, 4), -ENXIO);
	post(f, 1);
	notify(f, 1);
	poll_all(f);
	assert_true(collect(f, 1));
	/* Onto ECAM: refused by the bus; nothing is bound there. */
	move_bar(f, ECAM);
	assert_int_equal(f->fw.nkick, 0);
	move_bar(f, f->bar);
	expect_kicks_at(f, f->bar);
}

static void a_kick_that_cannot_be_bound_takes_all_back(void **state)
{
	struct fixture *f = *state;

	start(f, 0);
	for (int n = 0; n < QUEUES; n++) {
		f->kicks_left = n;
		f->bar = BARS + ((uint64_t)(n + 1) << 24);
		move_bar(f, f->bar);
		assert_int_equal(f->fw.nkick, 0);
		/* The stores arrive at the BAR instead. */
		post(f, (unsigned)n);
		notify(f, (unsigned)n);
		poll_all(f);
		assert_true(collect(f, (unsigned)n));
	}
	f->kicks_left = INT32_MAX;
	f->bar = BARS;
	move_bar(f, f->bar);
	expect_kicks_at(f, f->bar);
}

static void attach_that_fails_leaves_nothing(void **state)
{
	struct fixture *f = *state;
	struct toy *t = toy_new(f->ram.mem, f->loop, 1, SIZE, 0);
	struct err err = { 0 };
	unsigned parts = t->v.dev.nparts;

	assert_int_equal(virtio_pci_attach(&t->v, f->bus, SLOT, &f->fw.wiring, &err), -EEXIST);
	assert_non_null(strstr(err.msg, "toy0"));
	assert_int_equal(virtio_pci_attach(&t->v, f->bus, 99, &f->fw.wiring, &err), -EINVAL);
	assert_null(t->v.transport);
	assert_int_equal(t->v.dev.nparts, parts);
	assert_int_equal(virtio_pci_attach(&t->v, f->bus, SLOT + 1, &f->fw.wiring, &err), 0);
	t->v.dev.ops->free(&t->v.dev);
}

/* ---- the window ---- */

static void window(struct fixture *f, uint8_t bar, uint32_t off, uint32_t len)
{
	unsigned at = f->cap[PCI_CFG].at;

	cfg_wr(f, at + 4, 1, bar);
	cfg_wr(f, at + 8, 4, off);
	cfg_wr(f, at + 12, 4, len);
}

static void the_window_reaches_registers(void **state)
{
	struct fixture *f = *state;
	const unsigned data = f->cap[PCI_CFG].at + 16;

	window(f, 0, f->cap[COMMON].off + 0x14, 1);
	cfg_wr(f, data, 1, VIRTIO_STATUS_ACKNOWLEDGE);
	assert_int_equal(f->v->regs.status, VIRTIO_STATUS_ACKNOWLEDGE);
	assert_int_equal(cfg_rd(f, data, 1), VIRTIO_STATUS_ACKNOWLEDGE);
	window(f, 0, f->cap[DEVICE].off + 4, 4);
	assert_int_equal(cfg_rd(f, data, 4), 0x87868584);
	window(f, 0, f->cap[COMMON].off + 0x12, 2);
	assert_int_equal(cfg_rd(f, data, 2), QUEUES);
	/* Without memory decoding too: that is what it is for. */
	cfg_wr(f, 0x04, 2, 0);
	window(f, 0, f->cap[COMMON].off + 0x14, 1);
	cfg_wr(f, data, 1, 0);
	assert_int_equal(f->v->regs.status, 0);
}

static void the_window_kicks_without_nesting(void **state)
{
	struct fixture *f = *state;
	const unsigned data = f->cap[PCI_CFG].at + 16;

	start(f, 0);
	post(f, 2);
	window(f, 0, f->cap[NOTIFY].off + 8, 2);
	cfg_wr(f, data, 2, 2);
	assert_false(collect(f, 2)); /* not on this thread */
	poll_all(f);
	assert_true(collect(f, 2));
	/* Reset with requests in flight, which drops the device's lock in here. */
	f->t->mode = TOY_LATER;
	post(f, 2);
	cfg_wr(f, data, 2, 2);
	loop_poll(f->loop, 0);
	assert_int_equal(f->v->in_flight, 1);
	window(f, 0, f->cap[COMMON].off + 0x14, 1);
	cfg_wr(f, data, 1, 0);
	assert_int_equal(f->v->in_flight, 0);
	assert_int_equal(f->v->regs.status, 0);
}

static void the_window_points_anywhere(void **state)
{
	struct fixture *f = *state;
	const unsigned data = f->cap[PCI_CFG].at + 16;
	static const uint32_t offs[] = { 0x7ffd, 0x7ffe,     0x7fff,     0x8000,
					 0xffff, 0x80000000, 0xfffffffc, 0xffffffff };
	static const uint32_t lens[] = { 0, 3, 5, 8, 64, 0x80000000, 0xffffffff };
	const struct virtio_regs before = f->v->regs;

	for (size_t i = 0; i < sizeof(offs) / sizeof(offs[0]); i++) {
		window(f, 0, offs[i], 4);
		cfg_wr(f, data, 4, 0x0f0f0f0f);
		cfg_rd(f, data, 4);
	}
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		window(f, 0, f->cap[COMMON].off + 0x14, lens[i]);
		cfg_wr(f, data, 4, 0x0f0f0f0f);
		cfg_rd(f, data, 4);
	}
	for (unsigned bar = 1; bar < 256; bar++) {
		window(f, (uint8_t)bar, f->cap[COMMON].off + 0x14, 1);
		cfg_wr(f, data, 1, 1);
		cfg_rd(f, data, 1);
	}
	window(f, 0, f->cap[COMMON].off + 0x15, 2); /* not aligned */
	cfg_wr(f, data, 2, 0x0101);
	assert_memory_equal(&f->v->regs, &before, sizeof(before));
	/* Reading configuration space, as a dump does, touches nothing: ISR keeps its bits. */
	start(f, 0);
	virtio_config_changed(f->v);
	for (unsigned off = 0; off < 256; off += 4)
		cfg_rd(f, off, 4);
	assert_int_equal(f->v->regs.isr, VIRTIO_ISR_CONFIG);
}

/* ---- reset, power-on, load ---- */

static void a_device_reset_leaves_the_function(void **state)
{
	struct fixture *f = *state;

	enable_msix(f);
	start(f, 0);
	common_wr(f, 0x14, 1, 0);
	assert_int_equal(common_rd(f, 0x10, 2), VIRTIO_NO_VECTOR);
	expect_kicks_at(f, f->bar);
	assert_int_equal(cfg_rd(f, f->msix + 2, 2) & 0x8000, 0x8000);
	assert_int_equal(rd(f, f->table + 8, 4), 0x40);
	start(f, 0);
	post(f, 0);
	notify(f, 0);
	poll_all(f);
	assert_int_equal(fake_wiring_deliver(&f->fw), 1);
}

static void power_on_resets_the_function(void **state)
{
	struct fixture *f = *state;
	uint32_t v;

	enable_msix(f);
	start(f, 0);
	virtio_config_changed(f->v);
	f->v->dev.ops->quiesce(&f->v->dev);
	f->v->dev.ops->reset(&f->v->dev);
	assert_int_equal(f->fw.nkick, 0);
	assert_int_equal(f->fw.nmsi, 0);
	assert_int_equal(bus_read(&f->mmio, f->bar, &v, 4), -ENXIO);
	assert_int_equal(cfg_rd(f, f->msix + 2, 2) & 0xc000, 0);
	assert_int_equal(pci_bus_assign_bars(f->bus, NULL), 0);
	f->v->dev.ops->resume(&f->v->dev);
	expect_kicks_at(f, f->bar);
	enable_msix(f);
	start(f, 0);
	post(f, 0);
	notify(f, 0);
	poll_all(f);
	fake_wiring_deliver(&f->fw);
	assert_int_equal(f->fw.last_data, 0x41);
}

static void saved_and_continued_elsewhere(void **state)
{
	struct fixture *f = *state;
	struct fixture *g;
	void *fresh;

	enable_msix(f);
	start(f, VIRTIO_F_EVENT_IDX);
	unmask(f, 3, false);
	post(f, 2);
	notify(f, 2);
	poll_all(f); /* vector 3 is pending */
	move_bar(f, BARS + (1 << 20));
	f->v->dev.ops->quiesce(&f->v->dev);
	post(f, 0);

	set_up(&fresh);
	g = fresh;
	cfg_wr(g, 0x04, 2, 0);
	/* The same guest: its RAM, its driver's memory of what it did. */
	struct gmem *own = g->ram.mem;

	g->v->mem = f->ram.mem;
	for (unsigned i = 0; i < QUEUES; i++)
		g->v->queues[i].mem = f->ram.mem;
	assert_int_equal(f->v->dev.nparts, g->v->dev.nparts);
	for (unsigned i = 0; i < f->v->dev.nparts; i++) {
		const struct state_part *a = &f->v->dev.parts[i], *b = &g->v->dev.parts[i];
		struct state_buf buf = { 0 };
		struct err err = { 0 };

		assert_int_equal(state_save(a->desc, a->regs, &buf), 0);
		if (state_load(b->desc, b->regs, b->device, buf.data, buf.len, &err))
			fail_msg("%s", err.msg);
		state_buf_fini(&buf);
	}
	g->v->dev.ops->resume(&g->v->dev);
	g->bar = BARS + (1 << 20);
	expect_kicks_at(g, g->bar);
	assert_int_equal(fake_wiring_deliver(&g->fw), 1);
	assert_int_equal(g->fw.last_data, 0x41);
	assert_int_equal(rd(g, g->pba, 8), 1 << 3);
	wr(g, g->table + 16 * 3 + 12, 4, 0);
	assert_int_equal(g->fw.last_data, 0x43);
	assert_true(collect(f, 0));
	assert_true(collect(f, 2));

	/* A plain pause afterwards changes no binding. */
	unsigned binds = g->fw.kick_binds + g->fw.msi_binds;

	g->v->dev.ops->quiesce(&g->v->dev);
	g->v->dev.ops->resume(&g->v->dev);
	assert_int_equal(g->fw.kick_binds + g->fw.msi_binds, binds);
	g->v->mem = own;
	tear_down(&fresh);
}

static void state_with_a_wrong_vector_is_refused(void **state)
{
	struct fixture *f = *state;
	struct virtq_regs q = f->v->queues[0].regs;
	struct state_buf buf = { 0 };
	struct err err = { 0 };

	q.vector = VECTORS;
	assert_int_equal(state_save(&virtq_state, &q, &buf), 0);
	assert_int_equal(state_load(&virtq_state, &q, &f->v->queues[0], buf.data, buf.len, &err),
			 -EINVAL);
	assert_non_null(strstr(err.msg, "vector"));
	state_buf_fini(&buf);
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(identity),
		T(capabilities),
		cmocka_unit_test_setup_teardown(no_device_capability_without_configuration,
						set_up_without_config, tear_down),
		T(requests_go_and_come),
		T(without_msix),
		T(a_masked_vector_is_pending),
		T(a_queue_is_its_vectors_event),
		T(vectors_that_do_not_exist),
		T(queues_that_do_not_exist),
		T(fields_are_written_whole),
		T(queue_size_after_driver_ok),
		T(configuration),
		T(kicks_move_with_the_bar),
		T(a_kick_that_cannot_be_bound_takes_all_back),
		T(attach_that_fails_leaves_nothing),
		T(the_window_reaches_registers),
		T(the_window_kicks_without_nesting),
		T(the_window_points_anywhere),
		T(a_device_reset_leaves_the_function),
		T(power_on_resets_the_function),
		T(saved_and_continued_elsewhere),
		T(state_with_a_wrong_vector_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
