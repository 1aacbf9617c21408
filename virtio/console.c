/*
 * console.c - virtio console device, one port
 *
 * Nothing is ever in flight. Output goes to the host before its buffer is given back, and the host's side
 * never waits (backends/console.h). A turn of it is bounded: what is left of a buffer stays in the ring,
 * with a note of how far it has gone, so a guest that prints 4 GiB in one request neither holds the main
 * loop nor loses a byte, and a save may come between two pieces. Input is asked for by the bytes: the
 * next free buffer says how many may come, and it is taken when they do.
 *
 * The size belongs to the host's side, not to the guest's driver: it stays over resets, and the one this
 * process knows replaces the one that a loaded state brings. Linux reads it only when told of a change, so
 * whoever starts the device with a size set is told.
 *
 * MULTIPORT is not offered: a second port would be a second console, and there is a serial port for that.
 */
#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "virtio/console.h"

#define QUEUE_SIZE  64
#define TURN_MAX    (256u << 10) /* bytes of output */
#define BUFFER_COST 1024u        /* counted for each, so that tiny ones do not make a long turn */

#define F_SIZE        (1ull << 0)
#define F_EMERG_WRITE (1ull << 2)

enum { RECEIVE, TRANSMIT, QUEUES };

/* 5.3.4, little-endian. */
struct wire_config {
	uint16_t cols, rows;
	uint32_t max_nr_ports;
	uint32_t emerg_wr;
};

/* Guest-visible state beside the queues' (table virtio_console_state). */
struct virtio_console_regs {
	uint64_t sent; /* bytes of the next buffer to transmit that the host has already */
};

struct virtio_console {
	struct virtio v; /* first */
	struct virtio_console_host host;
	struct virtio_console_regs regs;
	bool starved; /* room() said 0 */
	bool sized;   /* this process knows a size: */
	uint16_t cols, rows;
	uint64_t rx_bytes, tx_bytes;
	struct iovec iov[VIRTQ_SEGS_MAX];
};

/* Any value will do: past the buffer's end means that all of it was sent. */
static const struct state_field console_fields[] = {
	STATE_U64(1, struct virtio_console_regs, sent),
};
const struct state_desc virtio_console_state =
	STATE_DESC("virtio-console", struct virtio_console_regs, console_fields, NULL);

static struct virtio_console *of(struct virtio *v)
{
	return (struct virtio_console *)v;
}

/* The next buffer of @queue, which must have a part in the right direction. */
static bool take(struct virtio_console *d, unsigned queue, struct virtq_chain *c)
{
	struct virtq *q = &d->v.queues[queue];
	const char *why = NULL;

	*c = (struct virtq_chain){ .iov = d->iov, .room = VIRTQ_SEGS_MAX };
	int n = virtq_pop(q, c, &why);

	if (n == 1 && !(queue == RECEIVE ? c->nin : c->nout)) {
		virtq_unpop(q, c);
		why = queue == RECEIVE ? "a buffer for the console's input is not writable" :
					 "a buffer of the console's output is not readable";
		n = -EPROTO;
	}
	if (n < 0)
		virtio_fail(&d->v, why);
	return n == 1;
}

/* ---- output ---- */

/* At most @max bytes of @c from where the last piece ended. How many. */
static uint64_t send_piece(struct virtio_console *d, const struct virtq_chain *c, uint64_t max)
{
	uint64_t skip = d->regs.sent, done = 0;

	for (unsigned i = 0; i < c->nout && done < max; i++) {
		uint64_t len = c->iov[i].iov_len;

		if (skip >= len) {
			skip -= len;
			continue;
		}
		len = len - skip < max - done ? len - skip : max - done;
		d->host.transmit(d->host.opaque, (const uint8_t *)c->iov[i].iov_base + skip,
				 (size_t)len);
		skip = 0;
		done += len;
	}
	return done;
}

/* One buffer, or what the turn has left for it. False: there is none. */
static bool transmit(struct virtio_console *d, uint64_t *turn)
{
	struct virtq *q = &d->v.queues[TRANSMIT];
	struct virtq_chain c;

	if (!take(d, TRANSMIT, &c))
		return false;
	const uint64_t n = send_piece(d, &c, TURN_MAX - *turn);

	*turn += n;
	d->tx_bytes += n;
	d->regs.sent += n;
	if (d->regs.sent < c.out_len) {
		virtq_unpop(q, &c);
	} else {
		d->regs.sent = 0;
		virtq_push(q, c.head, 0);
	}
	return true;
}

static void transmit_turn(struct virtio_console *d)
{
	struct virtq *q = &d->v.queues[TRANSMIT];
	uint64_t turn = 0;
	bool more = true;

	virtq_no_kick(q);
	for (; more && turn < TURN_MAX; turn += BUFFER_COST)
		more = transmit(d, &turn) || (virtio_running(&d->v) && virtq_want_kick(q));
	if (more)
		event_signal(&q->kick);
	virtio_flush(&d->v, TRANSMIT);
}

/* ---- input ---- */

static size_t room(struct virtio_console *d)
{
	struct virtq *q = &d->v.queues[RECEIVE];
	struct virtq_chain c;

	if (!virtio_running(&d->v) || !q->regs.ready)
		return 0;
	if (!take(d, RECEIVE, &c) &&
	    (!virtio_running(&d->v) || !virtq_want_kick(q) || !take(d, RECEIVE, &c)))
		return 0;
	virtq_unpop(q, &c);
	return c.in_len;
}

size_t virtio_console_room(struct virtio *v)
{
	pthread_mutex_lock(&v->dev.lock);
	const size_t n = room(of(v));

	of(v)->starved = !n;
	pthread_mutex_unlock(&v->dev.lock);
	return n;
}

void virtio_console_input(struct virtio *v, const uint8_t *data, size_t len)
{
	struct virtio_console *d = of(v);
	struct virtq *q = &v->queues[RECEIVE];
	struct virtq_chain c;

	pthread_mutex_lock(&v->dev.lock);
	if (virtio_running(v) && q->regs.ready && take(d, RECEIVE, &c)) {
		const size_t n = virtq_copy_in(&c, 0, data, len);

		virtq_mark_written(q, &c, n);
		virtq_push(q, c.head, (uint32_t)n);
		d->rx_bytes += n;
		virtio_flush(v, RECEIVE);
	}
	pthread_mutex_unlock(&v->dev.lock);
}

static void tell_room(struct virtio_console *d)
{
	virtq_no_kick(&d->v.queues[RECEIVE]);
	if (d->starved)
		d->host.receive_ready(d->host.opaque);
	d->starved = false;
}

/* ---- size and emergency writes ---- */

/* What the guest reads as its size now. */
static uint8_t *told_size(struct virtio_console *d)
{
	return d->v.regs.config + offsetof(struct wire_config, cols);
}

static void apply_size(struct virtio_console *d)
{
	const uint16_t size[] = { htole16(d->cols), htole16(d->rows) };

	if (!d->sized || d->v.stopped || !memcmp(told_size(d), size, sizeof(size)))
		return;
	memcpy(told_size(d), size, sizeof(size));
	virtio_config_changed(&d->v);
}

void virtio_console_resize(struct virtio *v, uint16_t cols, uint16_t rows)
{
	struct virtio_console *d = of(v);

	pthread_mutex_lock(&v->dev.lock);
	d->sized = true;
	d->cols = cols;
	d->rows = rows;
	apply_size(d);
	pthread_mutex_unlock(&v->dev.lock);
}

/* 5.3.4: one character, from a driver that may not even have started the device. */
static void console_write_config(struct virtio *v, unsigned off, const void *data, unsigned len)
{
	struct virtio_console *d = of(v);

	if (off != offsetof(struct wire_config, emerg_wr) || !len)
		return;
	d->host.transmit(d->host.opaque, data, 1);
	d->tx_bytes++;
}

/* ---- the core's calls ---- */

static int console_activate(struct virtio *v)
{
	static const uint16_t none[2];

	if (virtio_has(v, F_SIZE) && memcmp(told_size(of(v)), none, sizeof(none)))
		virtio_config_changed(v);
	return 0;
}

static void console_kick(struct virtio *v, unsigned queue)
{
	if (queue == TRANSMIT)
		transmit_turn(of(v));
	else
		tell_room(of(v));
}

static void console_reset(struct virtio *v)
{
	of(v)->regs.sent = 0;
}

static void console_start(struct virtio *v)
{
	apply_size(of(v));
}

static void console_stats(struct device *dev, device_stat_fn put, void *arg)
{
	struct virtio_console *d = (struct virtio_console *)dev;

	pthread_mutex_lock(&dev->lock);
	const uint64_t rx = d->rx_bytes, tx = d->tx_bytes;

	pthread_mutex_unlock(&dev->lock);
	put(arg, "rx-bytes", rx);
	put(arg, "tx-bytes", tx);
}

static void console_free(struct device *dev)
{
	struct virtio_console *d = (struct virtio_console *)dev;

	virtio_fini(&d->v);
	free(d);
}

static const struct virtio_ops console_ops = {
	.dev = { .type = "virtio-console", .stats = console_stats, .free = console_free },
	.id = 3,
	.activate = console_activate,
	.kick = console_kick,
	.reset = console_reset,
	.write_config = console_write_config,
	.start = console_start,
};

struct virtio *virtio_console_new(const char *name, const struct virtio_console_host *host,
				  struct gmem *mem, struct loop *loop, struct err *err)
{
	struct virtio_console *d = calloc(1, sizeof(*d));

	if (!d) {
		err_set(err, ENOMEM, "%s: out of memory", name);
		return NULL;
	}
	if (virtio_init(&d->v, &console_ops, name, mem, loop, F_SIZE | F_EMERG_WRITE, QUEUES,
			QUEUE_SIZE, err)) {
		free(d);
		return NULL;
	}
	const struct wire_config config = { .max_nr_ports = htole32(1) };

	d->host = *host;
	d->v.config_len = sizeof(config);
	memcpy(d->v.regs.config, &config, sizeof(config));
	device_add_state(&d->v.dev, &virtio_console_state, &d->regs, d);
	return &d->v;
}
