/*
 * test_msix.c - vectors, masks and pending bits (PCI 3.0, 6.8.2)
 */
#include "tests/unit/fake_wiring.h"
#include "tests/unit/state_check.h"

#include "devices/pci.h"

#define VECTORS  5
#define ADDR(v)  (0xfee00000ull + ((uint64_t)(v) << 12))
#define ENABLE   0x8000
#define MASK_ALL 0x4000

struct fixture {
	struct fake_wiring fw;
	pthread_mutex_t lock;
	struct pci_function f;
};

static int setup(void **state)
{
	static const struct pci_id id = { .vendor = 0x1af4, .device = 0x1041 };
	struct fixture *x = calloc(1, sizeof(*x));
	struct err err = { 0 };

	fake_wiring_init(&x->fw);
	pthread_mutex_init(&x->lock, NULL);
	pci_function_init(&x->f, &id, &x->lock);
	assert_int_equal(pci_add_msix(&x->f, &x->fw.wiring, VECTORS, 0, 0x1000, 0x2000, &err), 0);
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;

	pci_function_fini(&x->f);
	assert_true(fake_wiring_is_clean(&x->fw));
	pthread_mutex_destroy(&x->lock);
	free(x);
	return 0;
}

/* ---- the guest's accesses ---- */

static void control(struct fixture *x, uint16_t value)
{
	pci_function_cfg_write(&x->f, x->f.msix_cap + 2u, &value, 2);
}

static void write32(struct fixture *x, uint64_t off, uint32_t value)
{
	pci_msix_table_write(&x->f, off, &value, 4);
}

static uint64_t table(struct fixture *x, uint64_t off, unsigned len)
{
	uint64_t v = 0;

	pci_msix_table_read(&x->f, off, &v, len);
	return v;
}

static uint64_t pba(struct fixture *x, uint64_t off, unsigned len)
{
	uint64_t v = 0;

	pci_msix_pba_read(&x->f, off, &v, len);
	return v;
}

/* Address and data as a driver programs them, the vector still masked. */
static void program(struct fixture *x, unsigned v)
{
	write32(x, 16 * v, (uint32_t)ADDR(v));
	write32(x, 16 * v + 4, 0);
	write32(x, 16 * v + 8, 0x4040 + v);
}

static void mask(struct fixture *x, unsigned v, bool on)
{
	write32(x, 16 * v + 12, on);
}

static void open_all(struct fixture *x)
{
	control(x, ENABLE);
	for (unsigned v = 0; v < VECTORS; v++) {
		program(x, v);
		mask(x, v, false);
	}
}

/* ---- tests ---- */

static void test_power_on(void **state)
{
	struct fixture *x = *state;
	unsigned cap = x->f.msix_cap;
	uint32_t word;

	memcpy(&word, x->f.regs.cfg + cap, 4);
	assert_int_equal(word & 0xff, 0x11);
	assert_int_equal(word >> 16, VECTORS - 1); /* off, not masked, size less one */
	memcpy(&word, x->f.regs.cfg + cap + 4, 4);
	assert_int_equal(word, 0x1000);
	memcpy(&word, x->f.regs.cfg + cap + 8, 4);
	assert_int_equal(word, 0x2000);
	for (unsigned v = 0; v < VECTORS; v++)
		assert_int_equal(table(x, 16 * v + 12, 4), 1);
	assert_int_equal(x->fw.msi_binds, 0);
}

static void test_delivery(void **state)
{
	struct fixture *x = *state;

	open_all(x);
	assert_int_equal(x->fw.nmsi, VECTORS);
	pci_msix_signal(&x->f, 3);
	assert_int_equal(fake_wiring_deliver(&x->fw), 1);
	assert_true(x->fw.last_addr == ADDR(3));
	assert_int_equal(x->fw.last_data, 0x4043);
	assert_int_equal(pba(x, 0, 8), 0);
	assert_int_equal(x->f.msix.pending[3], 0);
}

static void test_masked_is_pending(void **state)
{
	struct fixture *x = *state;

	open_all(x);
	mask(x, 2, true);
	assert_int_equal(x->fw.nmsi, VECTORS - 1);
	pci_msix_signal(&x->f, 2);
	pci_msix_signal(&x->f, 2);
	assert_int_equal(fake_wiring_deliver(&x->fw), 0);
	assert_int_equal(pba(x, 0, 8), 1 << 2);
	assert_int_equal(pba(x, 0, 1), 1 << 2);

	mask(x, 2, false); /* once, however often it was signalled */
	assert_int_equal(x->fw.msi_sent, 1);
	assert_int_equal(x->fw.last_data, 0x4042);
	assert_int_equal(pba(x, 0, 8), 0);
	assert_int_equal(fake_wiring_deliver(&x->fw), 0);
}

static void test_function_mask_and_enable(void **state)
{
	struct fixture *x = *state;

	open_all(x);
	control(x, ENABLE | MASK_ALL);
	assert_int_equal(x->fw.nmsi, 0);
	pci_msix_signal(&x->f, 0);
	pci_msix_signal(&x->f, 4);
	assert_int_equal(pba(x, 0, 4), 0x11);
	mask(x, 4, true);
	control(x, ENABLE);
	assert_int_equal(x->fw.msi_sent, 1);
	assert_int_equal(x->fw.last_data, 0x4040);
	assert_int_equal(pba(x, 0, 4), 0x10);

	control(x, 0);
	assert_int_equal(x->fw.nmsi, 0);
	pci_msix_signal(&x->f, 1);
	assert_int_equal(fake_wiring_deliver(&x->fw), 0);
}

/* A vector that moves while it is open (interrupt affinity) follows its table entry. */
static void test_retarget(void **state)
{
	struct fixture *x = *state;

	open_all(x);
	write32(x, 16, (uint32_t)ADDR(7));
	pci_msix_signal(&x->f, 1);
	assert_int_equal(fake_wiring_deliver(&x->fw), 1);
	assert_true(x->fw.last_addr == ADDR(7));

	unsigned binds = x->fw.msi_binds;

	write32(x, 16, (uint32_t)ADDR(7)); /* the same again costs nothing */
	mask(x, 1, false);
	assert_int_equal(x->fw.msi_binds, binds);
}

static void test_widths(void **state)
{
	struct fixture *x = *state;
	uint64_t wide = 0x1122334455667788;
	uint64_t data_and_control = 0xffffffff00000042;

	pci_msix_table_write(&x->f, 16, &wide, 8);
	assert_true(table(x, 16, 8) == wide);
	assert_int_equal(table(x, 20, 4), 0x11223344);
	assert_int_equal(table(x, 17, 1), 0x77);
	assert_int_equal(table(x, 18, 2), 0x5566);
	pci_msix_table_write(&x->f, 24, &data_and_control, 8);
	assert_true(table(x, 24, 8) == 0x100000042); /* of control only the mask exists */

	pci_msix_table_write(&x->f, 16, &(uint64_t){ 0 }, 1);
	pci_msix_table_write(&x->f, 16, &(uint64_t){ 0 }, 2);
	pci_msix_table_write(&x->f, 18, &(uint64_t){ 0 }, 4);
	pci_msix_table_write(&x->f, 20, &(uint64_t){ 0 }, 8);
	assert_true(table(x, 16, 8) == wide);
}

/* Cloud Hypervisor 082fdc4d0, 3b431afba. */
static void test_past_the_end(void **state)
{
	struct fixture *x = *state;
	static const uint64_t offs[] = { 16 * VECTORS, 16 * PCI_MSIX_MAX, 0xff0,
					 0xfffffff0,   UINT64_MAX - 7,    UINT64_MAX - 3 };
	struct pci_msix_regs before = x->f.msix;

	for (unsigned i = 0; i < sizeof(offs) / sizeof(offs[0]); i++) {
		uint64_t ones = UINT64_MAX;

		pci_msix_table_write(&x->f, offs[i], &ones, 4);
		pci_msix_table_write(&x->f, offs[i], &ones, 8);
		assert_true(table(x, offs[i], 4) == 0);
		assert_true(table(x, offs[i], 8) == 0);
		assert_true(pba(x, offs[i], 8) == 0);
	}
	assert_memory_equal(&before, &x->f.msix, sizeof(before));
	pci_msix_signal(&x->f, VECTORS);
	pci_msix_signal(&x->f, 0xffff);
	pci_msix_signal(&x->f, UINT32_MAX);
	assert_int_equal(fake_wiring_deliver(&x->fw), 0);
	assert_true(table(x, 16 * VECTORS - 4, 8) == 1); /* half in, half out */
}

static void test_refused_bind(void **state)
{
	struct fixture *x = *state;

	x->fw.refuse_msi = -EINVAL;
	open_all(x);
	assert_int_equal(x->fw.nmsi, 0);
	pci_msix_signal(&x->f, 0);
	assert_int_equal(fake_wiring_deliver(&x->fw), 0);
	assert_int_equal(pba(x, 0, 8), 1);
	assert_int_equal(x->f.msix.pending[0], 1);

	x->fw.refuse_msi = 0;
	pci_msix_signal(&x->f, 0); /* tries again; both signals are one message */
	assert_int_equal(x->fw.msi_sent, 1);
	assert_int_equal(pba(x, 0, 8), 0);
}

/* Cloud Hypervisor e1bb5e71b: whatever a guest does to the table. */
static void test_storm(void **state)
{
	struct fixture *x = *state;
	uint32_t seed = 7;

	for (unsigned i = 0; i < 50000; i++) {
		uint64_t value;

		seed = seed * 1664525u + 1013904223u;
		value = (uint64_t)seed << 32 | (seed >> 7);
		x->fw.refuse_msi = seed >> 28 == 3 ? -ENOSPC : 0;
		switch (seed >> 29) {
		case 0:
			control(x, (uint16_t)(seed >> 8));
			break;
		case 1:
			pci_msix_signal(&x->f, (seed >> 8) % 8);
			break;
		case 2:
			pba(x, (seed >> 8) % 32, 8);
			break;
		default:
			pci_msix_table_write(&x->f, (seed >> 8) % 128, &value,
					     4 << (seed >> 20 & 1));
			break;
		}
		fake_wiring_deliver(&x->fw);
	}
	assert_int_equal(x->fw.misuse, 0);
	assert_true(x->fw.msi_sent > 100);
	assert_true(x->fw.next_gsi <= 24 + VECTORS); /* a GSI once per vector, not per unmask */

	x->fw.refuse_msi = 0;
	pci_function_reset(&x->f);
	assert_int_equal(x->fw.nmsi, 0);
	assert_int_equal(pba(x, 0, 8), 0);
	open_all(x);
	assert_int_equal(fake_wiring_deliver(&x->fw), 0);
	pci_msix_signal(&x->f, 0);
	assert_int_equal(fake_wiring_deliver(&x->fw), 1);
}

/* ---- state ---- */

static void test_state_complete(void **state)
{
	state_check_complete(&msix_state, sizeof(struct pci_msix_regs));
}

/* A pending bit travels and is delivered on the other side. */
static void test_state_pending(void **state)
{
	struct fixture *x = *state, *y;
	struct state_buf buf = { 0 }, cfg = { 0 };
	struct err err = { 0 };

	open_all(x);
	mask(x, 1, true);
	pci_msix_signal(&x->f, 1);
	assert_int_equal(state_save(&msix_state, &x->f.msix, &buf), 0);
	assert_int_equal(state_save(&pci_state, &x->f.regs, &cfg), 0);

	setup((void **)&y);
	assert_int_equal(state_load(&msix_state, &y->f.msix, &y->f, buf.data, buf.len, &err), 0);
	assert_int_equal(state_load(&pci_state, &y->f.regs, &y->f, cfg.data, cfg.len, &err), 0);
	pci_function_restore(&y->f);
	pci_function_restore(&y->f);
	assert_int_equal(y->fw.nmsi, VECTORS - 1);
	assert_int_equal(y->fw.msi_sent, 0);
	assert_int_equal(pba(y, 0, 8), 2);
	mask(y, 1, false);
	assert_int_equal(y->fw.msi_sent, 1);
	assert_int_equal(y->fw.last_data, 0x4041);
	teardown((void **)&y);
	state_buf_fini(&buf);
	state_buf_fini(&cfg);
}

static void refuse(struct fixture *x, const struct pci_msix_regs *regs, const char *field)
{
	struct pci_msix_regs before = x->f.msix;
	struct state_buf buf = { 0 };
	struct err err = { 0 };

	assert_int_equal(state_save(&msix_state, regs, &buf), 0);
	assert_int_equal(state_load(&msix_state, &x->f.msix, &x->f, buf.data, buf.len, &err),
			 -EINVAL);
	assert_non_null(strstr(err.msg, field));
	assert_memory_equal(&before, &x->f.msix, sizeof(before));
	state_buf_fini(&buf);
}

/* Firecracker 9c70d1532: other sizes than the device's. */
static void test_state_refused(void **state)
{
	struct fixture *x = *state;
	struct pci_msix_regs regs = x->f.msix;

	regs.count = VECTORS + 1;
	refuse(x, &regs, "count");
	regs.count = UINT32_MAX;
	refuse(x, &regs, "count");
	regs = x->f.msix;
	regs.pending[0] = 2;
	refuse(x, &regs, "pending");
	regs = x->f.msix;
	regs.entry[PCI_MSIX_MAX - 1].ctrl = 2;
	refuse(x, &regs, "entry");
}

static void test_limits(void **state)
{
	static const struct pci_id id = { .vendor = 1 };
	struct fixture *x = *state;
	struct pci_function f;
	struct err err = { 0 };

	pci_function_init(&f, &id, &x->lock);
	assert_int_equal(pci_add_msix(&f, &x->fw.wiring, 0, 0, 0, 0x800, &err), -EINVAL);
	assert_int_equal(pci_add_msix(&f, &x->fw.wiring, PCI_MSIX_MAX + 1, 0, 0, 0x800, &err),
			 -EINVAL);
	assert_int_equal(pci_add_msix(&f, &x->fw.wiring, PCI_MSIX_MAX, 0, 0, 0x800, &err), 0);
	pci_msix_signal(&f, PCI_MSIX_MAX - 1);

	uint64_t bits = 0;

	pci_msix_pba_read(&f, 8, &bits, 8);
	assert_true(bits == 1ull << (PCI_MSIX_MAX - 1 - 64));
	pci_function_fini(&f);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_power_on),
		TEST(test_delivery),
		TEST(test_masked_is_pending),
		TEST(test_function_mask_and_enable),
		TEST(test_retarget),
		TEST(test_widths),
		TEST(test_past_the_end),
		TEST(test_refused_bind),
		TEST(test_storm),
		TEST(test_state_complete),
		TEST(test_state_pending),
		TEST(test_state_refused),
		TEST(test_limits),
	};

	log_set_level(LOG_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
