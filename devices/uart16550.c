/*
 * uart16550.c - a serial port that is always ready to send
 *
 * A byte the guest sends is handed on before its store returns, so the transmitter is always empty and
 * a guest that prints for ever costs the host no memory here. "Empty" becomes an interrupt when the
 * guest enables it and after each byte, and reading the identification register takes it back: drivers
 * probe for exactly this (Linux serial8250_do_startup, the THRE test).
 *
 * The chip's interrupt pin is a level; the line to the guest is an edge. So the pin is computed after
 * every access, and only its rise is signalled. A byte sent while "empty" is pending lowers the pin and
 * raises it again, as the chip does, so the driver that waits for one interrupt a batch gets it.
 *
 * There are no timers. Received bytes below the FIFO's trigger level are what the chip reports after
 * four character times of silence; here the silence is immediate. The baud rate is remembered and means
 * nothing. As on most emulated boards OUT2 does not gate the interrupt: guests too simple to set it
 * exist, guests that rely on the gate do not.
 */
#include <stdlib.h>
#include <string.h>

#include "devices/uart16550.h"

#define PORTS     8
#define FIFO_SIZE 16

enum { REG_DATA, REG_IER, REG_IIR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };
#define REG_FCR REG_IIR /* written */

#define IER_RX    0x01
#define IER_THRE  0x02
#define IER_LINE  0x04
#define IER_MODEM 0x08
#define IER_ALL   0x0f

#define IIR_MODEM   0x00
#define IIR_NONE    0x01
#define IIR_THRE    0x02
#define IIR_RX      0x04
#define IIR_LINE    0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFO    0xc0

#define FCR_ENABLE   0x01
#define FCR_CLEAR_RX 0x02
#define FCR_KEEP     0xc9 /* enable, DMA mode, trigger level; the rest clears itself */

#define LCR_DLAB 0x80

#define MCR_DTR  0x01
#define MCR_RTS  0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define MCR_ALL  0x1f

#define LSR_READY       0x01
#define LSR_OVERRUN     0x02
#define LSR_BREAK       0x10
#define LSR_EMPTY       0x60 /* holding register and transmitter */
#define LSR_FIFO_ERROR  0x80
#define LSR_CHAR_ERRORS 0x1c /* what comes with a character: parity, framing, break */

#define MSR_CTS     0x10
#define MSR_DSR     0x20
#define MSR_RI      0x40
#define MSR_DCD     0x80
#define MSR_RI_FELL 0x04

/* Guest-visible state. */
struct uart_regs {
	uint8_t ier, fcr, lcr, mcr, scr, dll, dlm;
	uint8_t overrun;   /* LSR_OVERRUN until the line status is read */
	uint8_t msr_delta; /* low half of the modem status */
	uint8_t thre;      /* 1: "empty" not yet seen in the identification register */
	uint8_t rx_len;
	uint8_t rx[FIFO_SIZE];
	uint8_t rx_status[FIFO_SIZE]; /* LSR_CHAR_ERRORS of each */
};

struct uart16550 {
	struct device dev;
	struct bus *pio;
	uint64_t base;
	struct wiring *wiring;
	struct wire_line line;
	struct event trigger;
	struct uart16550_host host;
	struct uart_regs regs;
	bool pin;     /* the interrupt pin as last computed */
	bool starved; /* room() said 0 */
	bool stopped; /* quiesced: the line is quiet */
	uint64_t rx_bytes, tx_bytes, overruns;
};

static int uart_validate(const void *regs, const void *device, struct err *err)
{
	const struct uart_regs *r = regs;

	if (r->rx_len > FIFO_SIZE)
		return err_set(err, EINVAL, "rx_len: %u bytes in a FIFO of %u", r->rx_len,
			       FIFO_SIZE);
	if (r->ier & ~IER_ALL || r->mcr & ~MCR_ALL || r->fcr & ~FCR_KEEP)
		return err_set(err, EINVAL, "ier, mcr, fcr: 0x%x, 0x%x, 0x%x", r->ier, r->mcr,
			       r->fcr);
	if (r->overrun & ~LSR_OVERRUN || r->msr_delta & 0xf0 || r->thre > 1)
		return err_set(err, EINVAL, "overrun, msr_delta, thre: 0x%x, 0x%x, 0x%x",
			       r->overrun, r->msr_delta, r->thre);
	for (unsigned i = 0; i < FIFO_SIZE; i++) {
		if (r->rx_status[i] & ~LSR_CHAR_ERRORS)
			return err_set(err, EINVAL, "rx_status: element %u is 0x%x", i,
				       r->rx_status[i]);
	}
	return 0;
}

static const struct state_field uart_fields[] = {
	STATE_U8(1, struct uart_regs, ier),
	STATE_U8(2, struct uart_regs, fcr),
	STATE_U8(3, struct uart_regs, lcr),
	STATE_U8(4, struct uart_regs, mcr),
	STATE_U8(5, struct uart_regs, scr),
	STATE_U8(6, struct uart_regs, dll),
	STATE_U8(7, struct uart_regs, dlm),
	STATE_U8(8, struct uart_regs, overrun),
	STATE_U8(9, struct uart_regs, msr_delta),
	STATE_U8(10, struct uart_regs, thre),
	STATE_U8(11, struct uart_regs, rx_len),
	STATE_BYTES(12, struct uart_regs, rx),
	STATE_U8_ARRAY(13, struct uart_regs, rx_status, FIFO_SIZE),
};
const struct state_desc uart16550_state =
	STATE_DESC("uart16550", struct uart_regs, uart_fields, uart_validate);

static struct uart16550 *of(struct device *d)
{
	return (struct uart16550 *)d; /* first member */
}

/* ---- what the registers mean ---- */

static bool fifo_on(const struct uart_regs *r)
{
	return r->fcr & FCR_ENABLE;
}

static unsigned capacity(const struct uart_regs *r)
{
	return fifo_on(r) ? FIFO_SIZE : 1;
}

static unsigned trigger_level(const struct uart_regs *r)
{
	static const uint8_t level[] = { 1, 4, 8, 14 };

	return fifo_on(r) ? level[r->fcr >> 6] : 1;
}

/* Modem lines: a terminal that is always there, or in loop mode our own outputs. */
static uint8_t modem_lines(const struct uart_regs *r)
{
	if (!(r->mcr & MCR_LOOP))
		return MSR_DCD | MSR_DSR | MSR_CTS;
	return (uint8_t)((r->mcr & MCR_RTS ? MSR_CTS : 0) | (r->mcr & MCR_DTR ? MSR_DSR : 0) |
			 (r->mcr & MCR_OUT1 ? MSR_RI : 0) | (r->mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static uint8_t line_status(const struct uart_regs *r)
{
	uint8_t s = LSR_EMPTY | r->overrun;

	if (r->rx_len)
		s |= LSR_READY | r->rx_status[0];
	for (unsigned i = 0; fifo_on(r) && i < r->rx_len; i++)
		s |= r->rx_status[i] ? LSR_FIFO_ERROR : 0;
	return s;
}

/* The most urgent enabled cause (data sheet, table IV). */
static uint8_t cause(const struct uart_regs *r)
{
	if ((r->ier & IER_LINE) && (line_status(r) & (LSR_OVERRUN | LSR_CHAR_ERRORS)))
		return IIR_LINE;
	if ((r->ier & IER_RX) && r->rx_len)
		return r->rx_len >= trigger_level(r) ? IIR_RX : IIR_TIMEOUT;
	if ((r->ier & IER_THRE) && r->thre)
		return IIR_THRE;
	if ((r->ier & IER_MODEM) && r->msr_delta)
		return IIR_MODEM;
	return IIR_NONE;
}

static void update_pin(struct uart16550 *u)
{
	bool high = cause(&u->regs) != IIR_NONE;

	if (high && !u->pin)
		event_signal(&u->trigger);
	u->pin = high;
}

/* ---- bytes ---- */

static void put_rx(struct uart16550 *u, uint8_t byte, uint8_t status)
{
	struct uart_regs *r = &u->regs;

	if (r->rx_len >= capacity(r)) {
		r->overrun = LSR_OVERRUN;
		u->overruns++;
		return;
	}
	r->rx[r->rx_len] = byte;
	r->rx_status[r->rx_len++] = status;
}

static size_t room(const struct uart16550 *u)
{
	const struct uart_regs *r = &u->regs;

	if (u->stopped || (r->mcr & MCR_LOOP) || r->rx_len >= capacity(r))
		return 0;
	return capacity(r) - r->rx_len;
}

static void tell_room(struct uart16550 *u)
{
	if (!u->starved || !room(u))
		return;
	u->starved = false;
	if (u->host.receive_ready)
		u->host.receive_ready(u->host.opaque);
}

static void drop_rx(struct uart_regs *r, unsigned n)
{
	r->rx_len = (uint8_t)(r->rx_len - n);
	memmove(r->rx, r->rx + n, r->rx_len);
	memmove(r->rx_status, r->rx_status + n, r->rx_len);
}

static uint8_t get_rx(struct uart16550 *u)
{
	uint8_t byte = u->regs.rx[0];

	if (!u->regs.rx_len)
		return 0;
	drop_rx(&u->regs, 1);
	return byte;
}

static void transmit(struct uart16550 *u, uint8_t byte)
{
	u->regs.thre = 0;
	update_pin(u);
	if (u->regs.mcr & MCR_LOOP) {
		put_rx(u, byte, 0);
	} else {
		u->tx_bytes++;
		if (u->host.transmit)
			u->host.transmit(u->host.opaque, &byte, 1);
	}
	u->regs.thre = 1;
}

/* ---- register accesses ---- */

static uint8_t read_iir(struct uart_regs *r)
{
	uint8_t id = cause(r);

	if (id == IIR_THRE)
		r->thre = 0;
	return id | (fifo_on(r) ? IIR_FIFO : 0);
}

static uint8_t read_lsr(struct uart_regs *r)
{
	uint8_t s = line_status(r);

	r->overrun = 0;
	if (r->rx_len)
		r->rx_status[0] = 0;
	return s;
}

static uint8_t read_msr(struct uart_regs *r)
{
	uint8_t s = modem_lines(r) | r->msr_delta;

	r->msr_delta = 0;
	return s;
}

static uint8_t read_reg(struct uart16550 *u, unsigned reg)
{
	struct uart_regs *r = &u->regs;

	switch (reg) {
	case REG_DATA:
		return r->lcr & LCR_DLAB ? r->dll : get_rx(u);
	case REG_IER:
		return r->lcr & LCR_DLAB ? r->dlm : r->ier;
	case REG_IIR:
		return read_iir(r);
	case REG_LCR:
		return r->lcr;
	case REG_MCR:
		return r->mcr;
	case REG_LSR:
		return read_lsr(r);
	case REG_MSR:
		return read_msr(r);
	default:
		return r->scr;
	}
}

static void write_ier(struct uart_regs *r, uint8_t value)
{
	value &= IER_ALL;
	if ((value & IER_THRE) && !(r->ier & IER_THRE))
		r->thre = 1; /* it is empty: say so */
	r->ier = value;
}

/* Turning the FIFO on or off empties it (data sheet, 8.6.4). */
static void write_fcr(struct uart_regs *r, uint8_t value)
{
	if ((value ^ r->fcr) & FCR_ENABLE ||
	    (value & (FCR_ENABLE | FCR_CLEAR_RX)) == (FCR_ENABLE | FCR_CLEAR_RX))
		drop_rx(r, r->rx_len);
	r->fcr = value & FCR_ENABLE ? value & FCR_KEEP : 0;
}

static void write_mcr(struct uart_regs *r, uint8_t value)
{
	uint8_t before = modem_lines(r), after, changed;

	r->mcr = value & MCR_ALL;
	after = modem_lines(r);
	changed = before ^ after;
	if (after & MSR_RI)
		changed &= (uint8_t)~MSR_RI; /* only the end of a ring counts */
	r->msr_delta |= changed >> 4;
}

static void write_reg(struct uart16550 *u, unsigned reg, uint8_t value)
{
	struct uart_regs *r = &u->regs;

	switch (reg) {
	case REG_DATA:
		if (r->lcr & LCR_DLAB)
			r->dll = value;
		else
			transmit(u, value);
		break;
	case REG_IER:
		if (r->lcr & LCR_DLAB)
			r->dlm = value;
		else
			write_ier(r, value);
		break;
	case REG_FCR:
		write_fcr(r, value);
		break;
	case REG_LCR:
		r->lcr = value;
		break;
	case REG_MCR:
		write_mcr(r, value);
		break;
	case REG_SCR:
		r->scr = value;
		break;
	default: /* line and modem status are the chip's to say */
		break;
	}
}

/* Wider accesses are as many byte accesses, which is how the bus splits them for an 8-bit chip. */
static void uart_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	struct uart16550 *u = opaque;

	for (unsigned i = 0; i < len; i++)
		((uint8_t *)data)[i] = read_reg(u, (unsigned)off + i);
	update_pin(u);
	tell_room(u);
}

static void uart_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct uart16550 *u = opaque;

	for (unsigned i = 0; i < len; i++)
		write_reg(u, (unsigned)off + i, ((const uint8_t *)data)[i]);
	update_pin(u);
	tell_room(u);
}

static const struct region_ops uart_ops = { uart_read, uart_write };

/* ---- the line's other end ---- */

void uart16550_connect(struct uart16550 *u, const struct uart16550_host *host)
{
	u->host = *host;
}

size_t uart16550_room(struct uart16550 *u)
{
	size_t n;

	pthread_mutex_lock(&u->dev.lock);
	n = room(u);
	if (!n)
		u->starved = true;
	pthread_mutex_unlock(&u->dev.lock);
	return n;
}

/* In loop mode the chip does not listen to the line. */
static void input(struct uart16550 *u, const uint8_t *data, size_t len, uint8_t status)
{
	pthread_mutex_lock(&u->dev.lock);
	if (!u->stopped && !(u->regs.mcr & MCR_LOOP)) {
		for (size_t i = 0; i < len; i++)
			put_rx(u, data[i], status);
		u->rx_bytes += len;
		update_pin(u);
	}
	pthread_mutex_unlock(&u->dev.lock);
}

void uart16550_input(struct uart16550 *u, const uint8_t *data, size_t len)
{
	input(u, data, len, 0);
}

void uart16550_break(struct uart16550 *u)
{
	static const uint8_t nul;

	input(u, &nul, 1, LSR_BREAK);
}

/* ---- the device ---- */

static void uart_reset(struct device *d)
{
	struct uart16550 *u = of(d);

	pthread_mutex_lock(&d->lock);
	u->regs = (struct uart_regs){ 0 };
	u->pin = false;
	event_clear(&u->trigger);
	tell_room(u);
	pthread_mutex_unlock(&d->lock);
}

static void uart_quiesce(struct device *d)
{
	pthread_mutex_lock(&d->lock);
	of(d)->stopped = true;
	pthread_mutex_unlock(&d->lock);
}

/*
 * The pin may have risen while no guest was there to see it, and one interrupt too many only makes a
 * driver look. Whoever holds bytes for us looks again too.
 */
static void uart_resume(struct device *d)
{
	struct uart16550 *u = of(d);

	pthread_mutex_lock(&d->lock);
	u->stopped = false;
	u->pin = false;
	update_pin(u);
	u->starved = true;
	tell_room(u);
	pthread_mutex_unlock(&d->lock);
}

static void uart_stats(struct device *d, device_stat_fn put, void *arg)
{
	struct uart16550 *u = of(d);

	pthread_mutex_lock(&d->lock);
	put(arg, "rx-bytes", u->rx_bytes);
	put(arg, "tx-bytes", u->tx_bytes);
	put(arg, "overruns", u->overruns);
	pthread_mutex_unlock(&d->lock);
}

static void uart_free(struct device *d)
{
	struct uart16550 *u = of(d);

	bus_remove(u->pio, u->base, u);
	u->wiring->ops->unbind_line(u->wiring, &u->line);
	event_fini(&u->trigger);
	device_fini(d);
	free(u);
}

static const struct device_ops uart_device_ops = {
	.type = "uart16550",
	.reset = uart_reset,
	.quiesce = uart_quiesce,
	.resume = uart_resume,
	.stats = uart_stats,
	.free = uart_free,
};

static int attach(struct uart16550 *u, unsigned gsi, struct err *err)
{
	struct region r = { .base = u->base,
			    .size = PORTS,
			    .ops = &uart_ops,
			    .opaque = u,
			    .lock = &u->dev.lock,
			    .name = u->dev.name };
	int rc = event_init(&u->trigger, err);

	if (rc)
		return rc;
	u->line = (struct wire_line){ .gsi = gsi, .trigger = &u->trigger };
	rc = u->wiring->ops->bind_line(u->wiring, &u->line);
	if (rc)
		return err_set_sys(err, rc, "%s: interrupt %u", u->dev.name, gsi);
	return bus_add(u->pio, &r, err);
}

struct uart16550 *uart16550_new(const char *name, struct bus *pio, uint64_t base, unsigned gsi,
				struct wiring *wiring, struct err *err)
{
	struct uart16550 *u = calloc(1, sizeof(*u));

	if (!u || device_init(&u->dev, &uart_device_ops, name)) {
		free(u);
		err_set(err, ENOMEM, "out of memory for %s", name);
		return NULL;
	}
	u->pio = pio;
	u->base = base;
	u->wiring = wiring;
	u->trigger.fd = -1;
	device_add_state(&u->dev, &uart16550_state, &u->regs, u);
	if (attach(u, gsi, err)) {
		uart_free(&u->dev);
		return NULL;
	}
	return u;
}

struct device *uart16550_device(struct uart16550 *u)
{
	return &u->dev;
}
