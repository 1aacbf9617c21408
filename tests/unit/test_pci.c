/*
 * test_pci.c - configuration space as a guest reaches it: enumeration, BARs, capabilities, resets
 */
#include "tests/unit/fake_wiring.h"
#include "tests/unit/state_check.h"

#include "devices/pci.h"

#define ECAM      0xe0000000ull
#define ECAM_SIZE 0x100000ull
#define WINDOW    0x4000000000ull
#define BAR_SIZE  0x4000ull
#define TAKEN     0xfed00000ull /* another region on the bus */

/* A device with one 64-bit BAR in slot @slot. */
struct gadget {
	struct device dev;
	struct pci_function f;
	struct bus *mmio;
	uint64_t moved_to;
	unsigned maps, unmaps, bar_reads, cfg_reads, cfg_writes;
	uint8_t stored;
	bool shared; /* other threads use the bus */
};

struct machine {
	struct bus mmio, pio;
	struct fake_wiring fw;
	struct pci_bus *pci;
	struct gadget g[2];
};

static const struct device_ops gadget_ops = { .type = "gadget" };

static void bar_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	struct gadget *g = opaque;

	g->bar_reads++;
	memset(data, g->f.slot, len);
}

static void bar_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	((struct gadget *)opaque)->stored = *(const uint8_t *)data;
}

static const struct region_ops bar_ops = { bar_read, bar_write };

/* The device's lock is held, the bus is free: whoever binds kicks here may take what it needs. */
static void bar_moved(struct pci_function *f, unsigned bar, uint64_t base, bool mapped)
{
	struct gadget *g = f->opaque;

	assert_int_equal(bar, 0);
	if (!g->shared) { /* nobody else may hold them for a moment */
		assert_int_equal(pthread_mutex_trylock(f->lock), EBUSY);
		assert_int_equal(pthread_rwlock_trywrlock(&g->mmio->lock), 0);
		pthread_rwlock_unlock(&g->mmio->lock);
	}
	g->moved_to = mapped ? base : 0;
	*(mapped ? &g->maps : &g->unmaps) += 1;
}

static void cfg_read(struct pci_function *f, unsigned off, unsigned len)
{
	((struct gadget *)f->opaque)->cfg_reads++;
}

static void cfg_write(struct pci_function *f, unsigned off, unsigned len)
{
	((struct gadget *)f->opaque)->cfg_writes++;
}

static void gadget_init(struct machine *m, struct gadget *g, unsigned slot)
{
	static const struct pci_id id = { .vendor = 0x1af4,
					  .device = 0x1042,
					  .subvendor = 0x1af4,
					  .subdevice = 0x1100,
					  .revision = 1,
					  .class_code = 0x010000 };
	static const uint8_t body[14] = { 16, 1 }, wmask[14] = { [12] = 0xff, [13] = 0x0f };
	struct err err = { 0 };

	assert_int_equal(device_init(&g->dev, &gadget_ops, "gadget"), 0);
	g->mmio = &m->mmio;
	pci_function_init(&g->f, &id, &g->dev.lock);
	g->f.opaque = g;
	g->f.bar_moved = bar_moved;
	g->f.cfg_read = cfg_read;
	g->f.cfg_write = cfg_write;
	pci_add_bar64(&g->f, 0, BAR_SIZE, &bar_ops, g, g->dev.name);
	assert_int_equal(pci_add_cap(&g->f, 0x09, body, sizeof(body), wmask), 0x40);
	assert_int_equal(pci_add_cap(&g->f, 0x09, body, 9, NULL), 0x50);
	assert_int_equal(pci_add_msix(&g->f, &m->fw.wiring, 3, 0, 0x1000, 0x2000, &err), 0);
	assert_int_equal(pci_bus_add(m->pci, &g->f, slot, &err), 0);
	device_add_state(&g->dev, &pci_state, &g->f.regs, &g->f);
	device_add_state(&g->dev, &msix_state, &g->f.msix, &g->f);
}

static int setup(void **state)
{
	static const struct region_ops nothing = { NULL, NULL };
	struct machine *m = calloc(1, sizeof(*m));
	struct region taken = { .base = TAKEN, .size = 0x1000, .ops = &nothing, .name = "taken" };
	struct err err = { 0 };

	bus_init(&m->mmio);
	bus_init(&m->pio);
	fake_wiring_init(&m->fw);
	assert_int_equal(bus_add(&m->mmio, &taken, &err), 0);

	struct pci_bus_config c = { .mmio = &m->mmio,
				    .pio = &m->pio,
				    .ecam_base = ECAM,
				    .ecam_size = ECAM_SIZE,
				    .bars_base = WINDOW,
				    .bars_size = 4 * BAR_SIZE,
				    .wiring = &m->fw.wiring };

	m->pci = pci_bus_new(&c, &err);
	assert_non_null(m->pci);
	gadget_init(m, &m->g[0], 1);
	gadget_init(m, &m->g[1], 31);
	*state = m;
	return 0;
}

static int teardown(void **state)
{
	struct machine *m = *state;

	for (unsigned i = 0; i < 2; i++) {
		pci_function_fini(&m->g[i].f);
		device_fini(&m->g[i].dev);
	}
	pci_bus_device(m->pci)->ops->free(pci_bus_device(m->pci));
	assert_true(fake_wiring_is_clean(&m->fw));
	assert_int_equal(m->mmio.count, 1); /* only "taken" is left */
	assert_int_equal(m->pio.count, 0);
	bus_fini(&m->mmio);
	bus_fini(&m->pio);
	free(m);
	return 0;
}

/* ---- accesses ---- */

static uint64_t ecam(unsigned slot, unsigned fn, unsigned off)
{
	return ECAM + (slot << 15 | fn << 12 | off);
}

static uint64_t rd_at(struct machine *m, uint64_t at, unsigned len)
{
	uint64_t v = 0;

	bus_read(&m->mmio, at, &v, len);
	return v;
}

static uint32_t rd(struct machine *m, unsigned slot, unsigned off, unsigned len)
{
	return (uint32_t)rd_at(m, ecam(slot, 0, off), len);
}

static void wr(struct machine *m, unsigned slot, unsigned off, uint32_t v, unsigned len)
{
	assert_int_equal(bus_write(&m->mmio, ecam(slot, 0, off), &v, len), 0);
}

static uint32_t in(struct machine *m, uint64_t port, unsigned len)
{
	uint32_t v = 0;

	bus_read(&m->pio, port, &v, len);
	return v;
}

static void out(struct machine *m, uint64_t port, uint32_t v, unsigned len)
{
	bus_write(&m->pio, port, &v, len);
}

static void set_bar(struct machine *m, unsigned slot, uint64_t base)
{
	wr(m, slot, 0x04, 0, 2);
	wr(m, slot, 0x10, (uint32_t)base, 4);
	wr(m, slot, 0x14, (uint32_t)(base >> 32), 4);
	wr(m, slot, 0x04, 2, 2);
}

static bool answers(struct machine *m, uint64_t at, unsigned slot)
{
	return rd_at(m, at, 1) == slot && rd_at(m, at + BAR_SIZE - 1, 1) == slot;
}

/* Capability ids in the order of the chain; fails rather than loops. */
static unsigned chain(struct machine *m, unsigned slot, uint8_t ids[64])
{
	unsigned n = 0, at = rd(m, slot, 0x34, 1);

	while (at) {
		assert_in_range(at, 0x40, 0xfc);
		assert_true(n < 48);
		ids[n++] = (uint8_t)rd(m, slot, at, 1);
		at = rd(m, slot, at + 1, 1);
	}
	return n;
}

/* ---- tests ---- */

static void test_enumeration(void **state)
{
	struct machine *m = *state;

	assert_int_equal(rd(m, 0, 0x08, 4) >> 8, 0x060000);
	assert_int_not_equal(rd(m, 0, 0x00, 2), 0xffff);
	assert_int_equal(rd(m, 1, 0x00, 4), 0x10421af4);
	assert_int_equal(rd(m, 31, 0x08, 4), 0x01000001);
	assert_int_equal(rd(m, 1, 0x2c, 4), 0x11001af4);
	assert_int_equal(rd(m, 1, 0x0e, 1), 0); /* one function, a plain device */
	assert_int_equal(rd(m, 1, 0x3d, 1), 0); /* no INTx pin */
	for (unsigned slot = 2; slot < 31; slot++)
		assert_int_equal(rd(m, slot, 0, 4), 0xffffffff);
	for (unsigned fn = 1; fn < 8; fn++)
		assert_int_equal(rd_at(m, ecam(1, fn, 0), 4), 0xffffffff);
}

static void test_odd_accesses(void **state)
{
	struct machine *m = *state;
	uint64_t v = 0;

	assert_int_equal(rd(m, 1, 0x100, 4), 0xffffffff);
	assert_int_equal(rd(m, 1, 0xfff, 1), 0xff);
	assert_int_equal(rd(m, 1, 0x01, 2), 0xffff);
	assert_int_equal(rd(m, 1, 0x02, 4), 0xffffffff);
	assert_int_equal(rd(m, 1, 0xfe, 4), 0xffffffff);
	assert_true(rd_at(m, ecam(1, 0, 0), 8) == UINT64_MAX);
	assert_int_equal(bus_write(&m->mmio, ecam(1, 0, 0x10), &v, 8), 0);
	wr(m, 1, 0x05, 0xffff, 2);
	assert_int_equal(rd(m, 1, 0x04, 2), 0);
	assert_int_equal(rd(m, 1, 0x02, 2), 0x1042);
	assert_int_equal(rd(m, 1, 0x03, 1), 0x10);
	/* The last byte of the window, and an access that would leave it. */
	assert_int_equal(rd_at(m, ECAM + ECAM_SIZE - 1, 1), 0xff);
	assert_int_equal(bus_read(&m->mmio, ECAM + ECAM_SIZE - 2, &v, 4), -ENXIO);
}

static void test_ports(void **state)
{
	struct machine *m = *state;

	assert_int_equal(in(m, 0xcfc, 4), 0xffffffff); /* no address yet */
	out(m, 0xcf8, 0x80000800, 4);
	assert_int_equal(in(m, 0xcf8, 4), 0x80000800);
	assert_int_equal(in(m, 0xcfc, 4), 0x10421af4);
	assert_int_equal(in(m, 0xcfe, 2), 0x1042);
	assert_int_equal(in(m, 0xcff, 1), 0x10);
	assert_int_equal(in(m, 0xcfd, 2), 0xffff);
	out(m, 0xcf8, 0x8000083c, 4);
	out(m, 0xcfc, 0x0b, 1);
	assert_int_equal(rd(m, 1, 0x3c, 1), 0x0b);

	out(m, 0xcf8, 0x00000800, 4); /* not enabled */
	assert_int_equal(in(m, 0xcfc, 4), 0xffffffff);
	out(m, 0xcf8, 0x80010800, 4); /* bus 1 */
	assert_int_equal(in(m, 0xcfc, 4), 0xffffffff);
	out(m, 0xcf8, 0x80000900, 4); /* function 1 */
	assert_int_equal(in(m, 0xcfc, 4), 0xffffffff);
	out(m, 0xcf8, 0xffffffff, 4); /* reserved bits are not kept */
	assert_int_equal(in(m, 0xcf8, 4), 0x80fffffc);
	out(m, 0xcf8, 0x1234, 2); /* only a whole store sets the address */
	out(m, 0xcfa, 0x12, 1);
	assert_int_equal(in(m, 0xcf8, 4), 0x80fffffc);
	assert_int_equal(in(m, 0xcf8, 2), 0xffff);
}

static void test_reset_control(void **state)
{
	struct machine *m = *state;

	out(m, 0xcf9, 0x02, 1);
	assert_int_equal(m->fw.power_calls, 0);
	assert_int_equal(in(m, 0xcf9, 1), 0x02);
	out(m, 0xcf9, 0x06, 1);
	assert_int_equal(m->fw.power_calls, 1);
	assert_int_equal(m->fw.power_what, WIRE_POWER_RESET);
	out(m, 0xcf9, 0x0e, 1);
	assert_int_equal(m->fw.power_calls, 2);
	out(m, 0xcf8, 0x06060606, 4); /* an address, not a reset */
	assert_int_equal(m->fw.power_calls, 2);
}

static void test_bar_sizing(void **state)
{
	struct machine *m = *state;

	assert_int_equal(rd(m, 1, 0x10, 4), 0x4); /* 64-bit memory, not prefetchable */
	wr(m, 1, 0x10, 0xffffffff, 4);
	wr(m, 1, 0x14, 0xffffffff, 4);
	assert_int_equal(rd(m, 1, 0x10, 4), (uint32_t) ~(BAR_SIZE - 1) | 4);
	assert_int_equal(rd(m, 1, 0x14, 4), 0xffffffff);
	wr(m, 1, 0x18, 0xffffffff, 4); /* not there */
	assert_int_equal(rd(m, 1, 0x18, 4), 0);
	wr(m, 1, 0x30, 0xffffffff, 4); /* no expansion ROM */
	assert_int_equal(rd(m, 1, 0x30, 4), 0);

	wr(m, 1, 0x04, 2, 2); /* decoding on while all ones are there: nowhere */
	assert_int_equal(m->g[0].maps, 0);
	set_bar(m, 1, 0); /* RAM lies there */
	assert_int_equal(m->g[0].maps, 0);
}

static void test_bar_moves(void **state)
{
	struct machine *m = *state;

	set_bar(m, 1, WINDOW);
	assert_true(answers(m, WINDOW, 1));
	assert_int_equal(rd_at(m, WINDOW + BAR_SIZE, 1), 0xff);
	assert_true(m->g[0].moved_to == WINDOW);

	/* Half by half, decoding on: both halves take effect at once. */
	wr(m, 1, 0x10, 0xd0000000, 4);
	assert_int_equal(rd_at(m, WINDOW, 1), 0xff);
	wr(m, 1, 0x14, 0, 4);
	assert_true(answers(m, 0xd0000000, 1));
	assert_int_equal(m->g[0].maps, 3);
	assert_int_equal(m->g[0].unmaps, 2);

	wr(m, 1, 0x04, 0, 2);
	assert_int_equal(rd_at(m, 0xd0000000, 1), 0xff);
	assert_int_equal(m->g[0].unmaps, 3);
	wr(m, 1, 0x04, 2, 1);
	assert_true(answers(m, 0xd0000000, 1));
	wr(m, 1, 0x04, 6, 1); /* nothing about the BAR changes */
	assert_int_equal(m->g[0].maps, 4);
}

static void test_bar_overlap(void **state)
{
	struct machine *m = *state;

	set_bar(m, 1, TAKEN & ~(BAR_SIZE - 1));
	assert_int_equal(m->g[0].maps, 0);
	set_bar(m, 1, ECAM); /* it would hide configuration space itself */
	assert_int_equal(m->g[0].maps, 0);
	assert_int_equal(rd(m, 1, 0, 4), 0x10421af4);
	set_bar(m, 1, 0xffffffffffffc000); /* the end of the address space is out of reach */
	assert_int_equal(m->g[0].maps, 0);

	set_bar(m, 1, WINDOW);
	set_bar(m, 31, WINDOW);
	assert_true(answers(m, WINDOW, 1));
	assert_int_equal(m->g[1].maps, 0);
	set_bar(m, 1, WINDOW + BAR_SIZE); /* now there is room for the other */
	assert_true(answers(m, WINDOW, 31));
	assert_true(answers(m, WINDOW + BAR_SIZE, 1));
}

static void test_capabilities(void **state)
{
	struct machine *m = *state;
	uint8_t before[64], after[64];
	unsigned n = chain(m, 1, before);

	assert_int_equal(rd(m, 1, 0x06, 2), 0x10);
	assert_int_equal(n, 3);
	assert_int_equal(before[0], 0x09);
	assert_int_equal(before[2], 0x11);
	assert_int_equal(chain(m, 0, after), 0);
	assert_int_equal(rd(m, 0, 0x06, 2), 0);

	for (unsigned i = 0; i < 2; i++) {
		for (unsigned off = 0; off < 256; off++)
			wr(m, 1, off, i ? 0x00 : 0xff, 1);
		assert_int_equal(chain(m, 1, after), n);
		assert_memory_equal(before, after, n);
		assert_int_equal(rd(m, 1, 0, 4), 0x10421af4);
		assert_int_equal(rd(m, 1, 0x4e, 2), i ? 0 : 0x0fff); /* the writable part */
	}
	assert_int_equal(rd(m, 1, 0x04, 2), 0);
}

static void test_hooks(void **state)
{
	struct machine *m = *state;
	struct gadget *g = &m->g[0];

	rd(m, 1, 0x3c, 4);
	wr(m, 1, 0x3c, 1, 4);
	assert_int_equal(g->cfg_reads + g->cfg_writes, 0);
	rd(m, 1, 0x4c, 4);
	wr(m, 1, 0x4c, 1, 4);
	assert_int_equal(g->cfg_reads, 1);
	assert_int_equal(g->cfg_writes, 1);
}

static void test_assign_and_reset(void **state)
{
	struct machine *m = *state;
	struct err err = { 0 };

	assert_int_equal(pci_bus_assign_bars(m->pci, &err), 0);
	assert_true(answers(m, WINDOW, 1));
	assert_true(answers(m, WINDOW + BAR_SIZE, 31));
	assert_int_equal(rd(m, 1, 0x04, 2), 2);

	out(m, 0xcf8, 0x80000800, 4);
	wr(m, 1, 0x3c, 7, 1);
	pci_bus_device(m->pci)->ops->reset(pci_bus_device(m->pci));
	for (unsigned i = 0; i < 2; i++) {
		pthread_mutex_lock(&m->g[i].dev.lock);
		pci_function_reset(&m->g[i].f);
		pthread_mutex_unlock(&m->g[i].dev.lock);
	}
	assert_int_equal(in(m, 0xcf8, 4), 0);
	assert_int_equal(rd_at(m, WINDOW, 1), 0xff);
	assert_int_equal(rd(m, 1, 0x10, 4), 0x4);
	assert_int_equal(rd(m, 1, 0x3c, 1), 0);
	assert_int_equal(rd(m, 1, 0x04, 2), 0);
	assert_int_equal(pci_bus_assign_bars(m->pci, &err), 0);
	assert_true(answers(m, WINDOW + BAR_SIZE, 31));
}

static void test_window_too_small(void **state)
{
	struct bus mmio;
	struct fake_wiring fw;
	struct err err = { 0 };
	struct pci_bus_config c = { .mmio = &mmio,
				    .ecam_base = ECAM,
				    .ecam_size = ECAM_SIZE,
				    .bars_base = WINDOW + 1, /* alignment costs the rest */
				    .bars_size = BAR_SIZE,
				    .wiring = &fw.wiring };
	static const struct pci_id id = { .vendor = 1 };
	struct gadget g = { .mmio = &mmio };

	bus_init(&mmio);
	fake_wiring_init(&fw);
	struct pci_bus *b = pci_bus_new(&c, &err); /* no ports: not a PC */

	assert_non_null(b);
	assert_int_equal(device_init(&g.dev, &gadget_ops, "big"), 0);
	pci_function_init(&g.f, &id, &g.dev.lock);
	pci_add_bar64(&g.f, 0, BAR_SIZE, &bar_ops, &g, "big");
	assert_int_equal(pci_bus_add(b, &g.f, 0, &err), -EEXIST);
	assert_int_equal(pci_bus_add(b, &g.f, 32, &err), -EINVAL);
	assert_int_equal(pci_bus_add(b, &g.f, 2, &err), 0);
	assert_int_equal(pci_bus_assign_bars(b, &err), -ENOSPC);
	assert_non_null(strstr(err.msg, "big"));
	pci_function_fini(&g.f);
	device_fini(&g.dev);
	pci_bus_device(b)->ops->free(pci_bus_device(b));
	bus_fini(&mmio);
}

/* ---- state ---- */

static void test_state_complete(void **state)
{
	struct machine *m = *state;
	const struct device *host = pci_bus_device(m->pci);

	state_check_complete(&pci_state, sizeof(struct pci_regs));
	assert_int_equal(host->nparts, 2);
	for (unsigned i = 0; i < host->nparts; i++)
		state_check_complete(host->parts[i].desc, host->parts[i].desc->size);
}

static void test_state_moves_bars(void **state)
{
	struct machine *m = *state;
	struct gadget *g = &m->g[0];
	struct state_buf buf = { 0 };
	struct err err = { 0 };

	set_bar(m, 1, WINDOW);
	assert_int_equal(state_save(&pci_state, &g->f.regs, &buf), 0);
	pthread_mutex_lock(&g->dev.lock);
	pci_function_reset(&g->f);
	pthread_mutex_unlock(&g->dev.lock);
	assert_int_equal(rd_at(m, WINDOW, 1), 0xff);

	assert_int_equal(state_load(&pci_state, &g->f.regs, &g->f, buf.data, buf.len, &err), 0);
	pthread_mutex_lock(&g->dev.lock);
	pci_function_restore(&g->f);
	pci_function_restore(&g->f); /* a resume without a load changes nothing */
	pthread_mutex_unlock(&g->dev.lock);
	assert_true(answers(m, WINDOW, 1));
	assert_int_equal(g->maps, 2);
	state_buf_fini(&buf);
}

/* Hostile bytes: a pointer into nowhere, a BAR of another size, another device. */
static void test_state_refused(void **state)
{
	static const struct {
		unsigned at;
		uint8_t value;
	} bad[] = {
		{ 0x00, 0xf5 }, { 0x10, 0x14 }, { 0x34, 0xff }, { 0x41, 0x40 },
		{ 0x5f, 0x11 }, { 0x18, 0x01 }, { 0x04, 0x01 }, { 0x06, 0x00 },
	};
	struct machine *m = *state;
	struct gadget *g = &m->g[0];

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct pci_regs regs = g->f.regs, before = g->f.regs;
		struct state_buf buf = { 0 };
		struct err err = { 0 };

		regs.cfg[bad[i].at] = bad[i].value;
		assert_int_equal(state_save(&pci_state, &regs, &buf), 0);
		assert_int_equal(state_load(&pci_state, &g->f.regs, &g->f, buf.data, buf.len, &err),
				 -EINVAL);
		assert_non_null(strstr(err.msg, "cfg"));
		assert_memory_equal(&before, &g->f.regs, sizeof(before));
		state_buf_fini(&buf);
	}
}

static void test_host_state_refused(void **state)
{
	struct machine *m = *state;
	struct device *d = pci_bus_device(m->pci);
	const struct state_part *p = &d->parts[0];
	static const uint32_t bad[][2] = { { 0x80000003, 0 }, { 0x40000000, 0 }, { 0, 0x04 } };

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct state_buf buf = { 0 };
		struct err err = { 0 };

		assert_int_equal(state_save(p->desc, bad[i], &buf), 0);
		assert_int_equal(state_load(p->desc, p->regs, d, buf.data, buf.len, &err), -EINVAL);
		state_buf_fini(&buf);
	}
	assert_int_equal(in(m, 0xcf8, 4), 0);
}

/* ---- anything, in any order ---- */

static uint32_t next_random(uint32_t *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	return *seed >> 8;
}

static void test_storm(void **state)
{
	struct machine *m = *state;
	uint32_t seed = 1;

	for (unsigned i = 0; i < 20000; i++) {
		static const uint8_t lens[] = { 1, 2, 4, 8 };
		unsigned len = lens[next_random(&seed) % 4], slot = i & 1 ? 1 : 31;
		/* Mostly the header; junk, or an address that two BARs may want. */
		unsigned off = next_random(&seed) % (i % 3 ? 0x40 : 0x120);
		uint64_t v = next_random(&seed) % 3 ? next_random(&seed) :
						      TAKEN - BAR_SIZE * (next_random(&seed) % 4);

		if (next_random(&seed) % 8 == 0)
			off = 0x14, len = 4, v = 0;
		bus_write(&m->mmio, ecam(slot, 0, off), &v, len);
		out(m, 0xcf8 + next_random(&seed) % 8, (uint32_t)v, len & 7);
		rd_at(m, ecam(slot, 0, off), len);
	}
	for (unsigned i = 0; i < 2; i++) {
		struct gadget *g = &m->g[i];
		uint8_t ids[64];

		assert_int_equal(chain(m, g->f.slot, ids), 3);
		assert_int_equal(g->maps - g->unmaps, g->f.bar_mapped[0]);
		assert_true(g->maps > 10);
		if (g->f.bar_mapped[0])
			assert_true(answers(m, g->f.bar[0].base, g->f.slot));
	}
}

/* One vCPU moves a BAR, another uses it, a third does configuration cycles of its own. */
static void *use_bar(void *opaque)
{
	struct machine *m = opaque;

	for (unsigned i = 0; i < 5000; i++) {
		rd_at(m, WINDOW + (i & 1) * BAR_SIZE, 4);
		rd(m, 31, 0x10, 4);
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct machine *m = *state;
	pthread_t t[2];

	m->g[0].shared = true;
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&t[i], NULL, use_bar, m), 0);
	for (unsigned i = 0; i < 2000; i++)
		set_bar(m, 1, WINDOW + (i & 1) * BAR_SIZE);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(m->g[0].maps, 2000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_enumeration),
		TEST(test_odd_accesses),
		TEST(test_ports),
		TEST(test_reset_control),
		TEST(test_bar_sizing),
		TEST(test_bar_moves),
		TEST(test_bar_overlap),
		TEST(test_capabilities),
		TEST(test_hooks),
		TEST(test_assign_and_reset),
		cmocka_unit_test(test_window_too_small),
		TEST(test_state_complete),
		TEST(test_state_moves_bars),
		TEST(test_state_refused),
		TEST(test_host_state_refused),
		TEST(test_storm),
		TEST(test_threads),
	};

	log_set_level(LOG_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
