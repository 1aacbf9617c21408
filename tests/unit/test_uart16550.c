/*
 * test_uart16550.c - the serial port as drivers use and probe it
 */
#include "tests/unit/fake_wiring.h"
#include "tests/unit/state_check.h"

#include "devices/uart16550.h"

#define BASE 0x3f8
#define GSI  4

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR };
#define FCR IIR

struct fixture {
	struct bus pio;
	struct fake_wiring fw;
	struct uart16550 *u;
	uint8_t sent[64]; /* the last of them */
	size_t nsent;
	unsigned ready;
};

static void transmit(void *opaque, const uint8_t *data, size_t len)
{
	struct fixture *x = opaque;

	for (size_t i = 0; i < len; i++)
		x->sent[x->nsent++ % sizeof(x->sent)] = data[i];
}

static void receive_ready(void *opaque)
{
	((struct fixture *)opaque)->ready++;
}

static int setup(void **state)
{
	struct fixture *x = calloc(1, sizeof(*x));
	struct err err = { 0 };

	bus_init(&x->pio);
	fake_wiring_init(&x->fw);
	x->u = uart16550_new("serial0", &x->pio, BASE, GSI, &x->fw.wiring, &err);
	assert_non_null(x->u);
	uart16550_connect(x->u, &(struct uart16550_host){ transmit, receive_ready, x });
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;
	struct device *d = uart16550_device(x->u);

	d->ops->free(d);
	assert_true(fake_wiring_is_clean(&x->fw));
	assert_int_equal(x->pio.count, 0);
	bus_fini(&x->pio);
	free(x);
	return 0;
}

static uint8_t in(struct fixture *x, unsigned reg)
{
	uint8_t v;

	assert_int_equal(bus_read(&x->pio, BASE + reg, &v, 1), 0);
	return v;
}

static void out(struct fixture *x, unsigned reg, uint8_t v)
{
	assert_int_equal(bus_write(&x->pio, BASE + reg, &v, 1), 0);
}

static void type(struct fixture *x, const char *s)
{
	uart16550_input(x->u, (const uint8_t *)s, strlen(s));
}

static unsigned edges(struct fixture *x)
{
	return fake_wiring_deliver(&x->fw);
}

/* ---- probing ---- */

static void test_power_on(void **state)
{
	struct fixture *x = *state;

	assert_int_equal(in(x, IER), 0);
	assert_int_equal(in(x, IIR), 0x01);
	assert_int_equal(in(x, LCR), 0);
	assert_int_equal(in(x, MCR), 0);
	assert_int_equal(in(x, LSR), 0x60);
	assert_int_equal(in(x, MSR), 0xb0);
	assert_int_equal(in(x, DATA), 0);
	out(x, LSR, 0xff);
	out(x, MSR, 0xff);
	assert_int_equal(in(x, LSR), 0x60);
	assert_int_equal(in(x, MSR), 0xb0);
	assert_int_equal(edges(x), 0);
}

/* What Linux does in autoconfig() to call it a 16550A and nothing better. */
static void test_linux_autoconfig(void **state)
{
	struct fixture *x = *state;

	out(x, IER, 0x00);
	assert_int_equal(in(x, IER) & 0x0f, 0x00);
	out(x, IER, 0xff);
	assert_int_equal(in(x, IER), 0x0f);
	out(x, IER, 0x00);
	out(x, MCR, 0x1a); /* loop, OUT2, RTS */
	assert_int_equal(in(x, MSR) & 0xf0, 0x90);
	out(x, MCR, 0x00);
	out(x, LCR, 0xbf); /* no enhanced feature register behind this */
	out(x, LCR, 0x00);
	out(x, FCR, 0x01);
	assert_int_equal(in(x, IIR) >> 6, 3);
	out(x, FCR, 0x21); /* 64-byte FIFO of a 16750: not here */
	assert_int_equal(in(x, IIR) & 0xe0, 0xc0);
	out(x, FCR, 0x00);
	assert_int_equal(in(x, IIR) >> 6, 0);
	out(x, SCR, 0xa5);
	assert_int_equal(in(x, SCR), 0xa5);
}

static void test_divisor(void **state)
{
	struct fixture *x = *state;

	out(x, IER, 0x05);
	out(x, LCR, 0x83);
	out(x, DATA, 0x0c);
	out(x, IER, 0x34);
	assert_int_equal(in(x, DATA), 0x0c);
	assert_int_equal(in(x, IER), 0x34);
	assert_int_equal(x->nsent, 0);
	out(x, LCR, 0x03);
	assert_int_equal(in(x, IER), 0x05);
	out(x, DATA, 'x');
	assert_int_equal(x->nsent, 1);
}

/* ---- sending ---- */

/* serial8250_do_startup: the interrupt must come again each time it is enabled. */
static void test_linux_thre_test(void **state)
{
	struct fixture *x = *state;

	for (unsigned i = 0; i < 2; i++) {
		out(x, IER, 0x02);
		assert_int_equal(edges(x), 1);
		assert_int_equal(in(x, IIR), 0x02);
		assert_int_equal(in(x, IIR), 0x01); /* reading took it back */
		out(x, IER, 0x00);
	}
	out(x, IER, 0x02);
	out(x, IER, 0x02); /* enabled already: nothing new */
	assert_int_equal(edges(x), 1);
}

static void test_transmit_interrupts(void **state)
{
	struct fixture *x = *state;

	out(x, DATA, 'a');
	assert_int_equal(edges(x), 0); /* not enabled */
	out(x, IER, 0x02);
	in(x, IIR);
	edges(x);
	out(x, DATA, 'b');
	assert_int_equal(edges(x), 1);
	out(x, DATA, 'c'); /* not acknowledged, and yet a new edge */
	assert_int_equal(edges(x), 1);
	assert_int_equal(in(x, IIR), 0x02);
	assert_memory_equal(x->sent, "abc", 3);
	assert_int_equal(in(x, LSR), 0x60);
}

/* Firecracker CVE-2020-27174, our half: nothing is kept. */
static void test_endless_output(void **state)
{
	struct fixture *x = *state;

	uart16550_connect(x->u, &(struct uart16550_host){ NULL, NULL, NULL });
	for (unsigned i = 0; i < 200000; i++)
		out(x, DATA, (uint8_t)i);
	uart16550_connect(x->u, &(struct uart16550_host){ transmit, NULL, x });
	out(x, DATA, 'z');
	assert_int_equal(x->nsent, 1);
	assert_int_equal(x->sent[0], 'z');
}

/* ---- receiving ---- */

static void test_receive_without_fifo(void **state)
{
	struct fixture *x = *state;

	out(x, IER, 0x01);
	assert_int_equal(uart16550_room(x->u), 1);
	type(x, "a");
	assert_int_equal(edges(x), 1);
	assert_int_equal(in(x, IIR), 0x04);
	assert_int_equal(in(x, LSR), 0x61);
	assert_int_equal(uart16550_room(x->u), 0);
	assert_int_equal(x->ready, 0);
	assert_int_equal(in(x, DATA), 'a');
	assert_int_equal(x->ready, 1);
	assert_int_equal(in(x, IIR), 0x01);
	assert_int_equal(in(x, LSR), 0x60);
	type(x, "b"); /* the pin fell, so it rises again */
	assert_int_equal(edges(x), 1);
}

static void test_receive_fifo(void **state)
{
	struct fixture *x = *state;

	out(x, FCR, 0x81); /* trigger at 8 */
	out(x, IER, 0x01);
	assert_int_equal(uart16550_room(x->u), 16);
	type(x, "1234567");
	assert_int_equal(edges(x), 1);
	assert_int_equal(in(x, IIR), 0xcc); /* below the trigger: as after a silence */
	type(x, "8");
	assert_int_equal(edges(x), 0); /* the pin was high all the time */
	assert_int_equal(in(x, IIR), 0xc4);
	for (char c = '1'; c <= '8'; c++)
		assert_int_equal(in(x, DATA), c);
	assert_int_equal(in(x, IIR), 0xc1);
	assert_int_equal(x->ready, 0); /* nobody was turned away */
}

static void test_overrun(void **state)
{
	struct fixture *x = *state;

	out(x, FCR, 0x01);
	out(x, IER, 0x05);
	type(x, "0123456789abcdefgh");
	assert_int_equal(uart16550_room(x->u), 0);
	assert_int_equal(edges(x), 1);
	assert_int_equal(in(x, IIR), 0xc6); /* line status is the most urgent */
	assert_int_equal(in(x, LSR), 0x63);
	assert_int_equal(in(x, LSR), 0x61);
	assert_int_equal(in(x, IIR), 0xc4);
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(in(x, DATA), "0123456789abcdef"[i]);
	assert_int_equal(in(x, LSR), 0x60);
	assert_int_equal(x->ready, 1);
}

static void test_fifo_reset(void **state)
{
	struct fixture *x = *state;

	out(x, FCR, 0x01);
	type(x, "0123456789abcdef");
	assert_int_equal(uart16550_room(x->u), 0);
	out(x, FCR, 0x03);
	assert_int_equal(in(x, LSR), 0x60);
	assert_int_equal(x->ready, 1);
	type(x, "xy");
	out(x, FCR, 0x00); /* off: emptied too */
	assert_int_equal(in(x, LSR), 0x60);
	type(x, "z");
	out(x, FCR, 0x02); /* without the enable bit no other counts */
	assert_int_equal(in(x, DATA), 'z');
}

/* The break belongs to its place among the bytes, or Linux applies sysrq to the wrong one. */
static void test_break(void **state)
{
	struct fixture *x = *state;

	out(x, FCR, 0x01);
	out(x, IER, 0x05);
	type(x, "a");
	uart16550_break(x->u);
	type(x, "h");
	assert_int_equal(in(x, LSR), 0xe1); /* somewhere in the FIFO, not at its head */
	assert_int_equal(in(x, IIR), 0xc4);
	assert_int_equal(in(x, DATA), 'a');
	assert_int_equal(in(x, IIR), 0xc6);
	assert_int_equal(in(x, LSR), 0xf1);
	assert_int_equal(in(x, LSR), 0x61);
	assert_int_equal(in(x, DATA), 0);
	assert_int_equal(in(x, DATA), 'h');
}

/* ---- modem lines and loop mode ---- */

static void test_loopback(void **state)
{
	struct fixture *x = *state;

	out(x, FCR, 0x01);
	out(x, MCR, 0x10);
	out(x, DATA, 'q');
	assert_int_equal(x->nsent, 0);
	assert_int_equal(uart16550_room(x->u), 0); /* the line is cut off */
	type(x, "lost");
	assert_int_equal(in(x, DATA), 'q');
	assert_int_equal(in(x, LSR), 0x60);
	for (unsigned i = 0; i < 100; i++)
		out(x, DATA, 'r');
	assert_int_equal(in(x, LSR) & 0x03, 0x03);
	assert_int_equal(x->ready, 0);
	out(x, MCR, 0x00);
	assert_int_equal(uart16550_room(x->u), 0);
	out(x, FCR, 0x03);
	assert_int_equal(x->ready, 1);
}

static void test_modem_status(void **state)
{
	struct fixture *x = *state;

	out(x, MCR, 0x1b);
	in(x, MSR);
	out(x, IER, 0x08);
	assert_int_equal(edges(x), 0);
	out(x, MCR, 0x19); /* RTS falls: CTS with it */
	assert_int_equal(edges(x), 1);
	assert_int_equal(in(x, IIR), 0x00);
	assert_int_equal(in(x, MSR), 0xa1);
	assert_int_equal(in(x, MSR), 0xa0);
	assert_int_equal(in(x, IIR), 0x01);
	out(x, MCR, 0x1d); /* OUT1 rises: RI, whose beginning does not count */
	assert_int_equal(in(x, MSR), 0xe0);
	out(x, MCR, 0x19);
	assert_int_equal(in(x, MSR), 0xa4);
}

static void test_priorities(void **state)
{
	struct fixture *x = *state;

	out(x, MCR, 0x10);
	out(x, MCR, 0x00); /* deltas */
	out(x, DATA, 'x');
	type(x, "ab"); /* no FIFO: one and an overrun */
	out(x, IER, 0x0f);
	assert_int_equal(edges(x), 1);
	assert_int_equal(in(x, IIR), 0x06);
	in(x, LSR);
	assert_int_equal(in(x, IIR), 0x04);
	in(x, DATA);
	assert_int_equal(in(x, IIR), 0x02);
	assert_int_equal(in(x, IIR), 0x00);
	assert_int_equal(in(x, IIR), 0x00); /* only reading the modem status takes this back */
	in(x, MSR);
	assert_int_equal(in(x, IIR), 0x01);
}

/* ---- odd accesses ---- */

static void test_wide_accesses(void **state)
{
	struct fixture *x = *state;
	uint32_t v = 0x00030341; /* 'A', IER 3, FCR 3, LCR 0 */
	uint64_t all;

	assert_int_equal(bus_write(&x->pio, BASE, &v, 4), 0);
	assert_int_equal(x->sent[0], 'A');
	assert_int_equal(in(x, IER), 3);
	assert_int_equal(bus_read(&x->pio, BASE, &all, 8), 0);
	assert_int_equal(all >> 40 & 0xff, 0x60);
	assert_int_equal(bus_write(&x->pio, BASE + 6, &v, 4), -ENXIO);
	assert_int_equal(bus_read(&x->pio, BASE + 8, &v, 1), -ENXIO);
}

static void test_storm(void **state)
{
	struct fixture *x = *state;
	uint32_t seed = 3;

	for (unsigned i = 0; i < 50000; i++) {
		seed = seed * 1664525u + 1013904223u;
		if (seed >> 31)
			out(x, seed >> 8 & 7, (uint8_t)(seed >> 16));
		else
			in(x, seed >> 8 & 7);
		if (seed >> 28 == 5)
			type(x, "0123456789abcdefghij");
		assert_true(uart16550_room(x->u) <= 16);
		edges(x);
	}
	assert_true(x->fw.line_edges > 100);
	assert_int_equal(x->fw.last_line, GSI);
}

/* ---- state ---- */

static void put_stat(void *arg, const char *key, uint64_t value)
{
	if (!strcmp(key, arg))
		memcpy((char *)arg + 16, &value, sizeof(value));
}

static uint64_t counter(struct fixture *x, const char *key)
{
	char buf[24] = { 0 };
	uint64_t value;

	strncpy(buf, key, 15);
	uart16550_device(x->u)->ops->stats(uart16550_device(x->u), put_stat, buf);
	memcpy(&value, buf + 16, sizeof(value));
	return value;
}

static void test_stats(void **state)
{
	struct fixture *x = *state;

	type(x, "abc"); /* no FIFO: two are lost */
	out(x, DATA, 'x');
	assert_int_equal(counter(x, "rx-bytes"), 3);
	assert_int_equal(counter(x, "overruns"), 2);
	assert_int_equal(counter(x, "tx-bytes"), 1);
}

static void test_quiesce(void **state)
{
	struct fixture *x = *state;
	struct device *d = uart16550_device(x->u);

	out(x, FCR, 0x01);
	d->ops->quiesce(d);
	assert_int_equal(uart16550_room(x->u), 0);
	type(x, "no");
	d->ops->resume(d);
	assert_true(x->ready >= 1);
	assert_int_equal(uart16550_room(x->u), 16);
	assert_int_equal(in(x, LSR), 0x60);
}

static void test_state_and_reset(void **state)
{
	struct fixture *x = *state, *y;
	struct device *d = uart16550_device(x->u), *e;
	struct state_buf buf = { 0 };
	struct err err = { 0 };

	assert_int_equal(d->nparts, 1);
	state_check_complete(d->parts[0].desc, d->parts[0].desc->size);

	out(x, FCR, 0x01);
	out(x, IER, 0x01);
	type(x, "hello");
	d->ops->quiesce(d);
	assert_int_equal(state_save(d->parts[0].desc, d->parts[0].regs, &buf), 0);

	setup((void **)&y);
	e = uart16550_device(y->u);
	assert_int_equal(state_load(e->parts[0].desc, e->parts[0].regs, e, buf.data, buf.len, &err),
			 0);
	e->ops->resume(e);
	assert_int_equal(edges(y), 1); /* somebody waits for these bytes */
	for (const char *c = "hello"; *c; c++)
		assert_int_equal(in(y, DATA), *c);

	e->ops->reset(e);
	assert_int_equal(in(y, IER), 0);
	assert_int_equal(in(y, IIR), 0x01);
	assert_int_equal(edges(y), 0);
	teardown((void **)&y);
	state_buf_fini(&buf);
}

/* QEMU CVE-2017-16845 in our terms: an index beyond its array. */
static void test_state_refused(void **state)
{
	struct fixture *x = *state;
	struct device *d = uart16550_device(x->u);
	const struct state_part *p = &d->parts[0];

	for (unsigned i = 0; i < p->desc->count; i++) {
		const struct state_field *f = &p->desc->fields[i];
		bool free_value = !strcmp(f->name, "lcr") || !strcmp(f->name, "scr") ||
				  !strcmp(f->name, "dll") || !strcmp(f->name, "dlm") ||
				  !strcmp(f->name, "rx");
		uint8_t *regs = test_calloc(1, p->desc->size), *before = test_malloc(p->desc->size);
		struct state_buf buf = { 0 };
		struct err err = { 0 };

		memcpy(before, p->regs, p->desc->size);
		regs[f->offset] = 0xff;
		assert_int_equal(state_save(p->desc, regs, &buf), 0);
		assert_int_equal(state_load(p->desc, p->regs, d, buf.data, buf.len, &err),
				 free_value ? 0 : -EINVAL);
		if (!free_value) {
			assert_non_null(strstr(err.msg, f->name));
			assert_memory_equal(before, p->regs, p->desc->size);
		}
		state_buf_fini(&buf);
		test_free(regs);
		test_free(before);
	}
}

static void test_refused_line(void **state)
{
	struct fixture *x = *state;
	struct err err = { 0 };

	x->fw.refuse_line = -EBUSY;
	assert_null(uart16550_new("serial1", &x->pio, 0x2f8, 3, &x->fw.wiring, &err));
	assert_int_equal(err.code, -EBUSY);
	assert_non_null(strstr(err.msg, "serial1"));
	x->fw.refuse_line = 0;
	assert_null(uart16550_new("serial1", &x->pio, BASE + 4, 3, &x->fw.wiring, &err));
	assert_int_equal(err.code, -EEXIST);
	assert_int_equal(x->pio.count, 1);
	assert_int_equal(x->fw.nline, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_power_on),
		TEST(test_linux_autoconfig),
		TEST(test_divisor),
		TEST(test_linux_thre_test),
		TEST(test_transmit_interrupts),
		TEST(test_endless_output),
		TEST(test_receive_without_fifo),
		TEST(test_receive_fifo),
		TEST(test_overrun),
		TEST(test_fifo_reset),
		TEST(test_break),
		TEST(test_loopback),
		TEST(test_modem_status),
		TEST(test_priorities),
		TEST(test_wide_accesses),
		TEST(test_storm),
		TEST(test_stats),
		TEST(test_quiesce),
		TEST(test_state_and_reset),
		TEST(test_state_refused),
		TEST(test_refused_line),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
