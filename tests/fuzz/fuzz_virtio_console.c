/*
 * fuzz_virtio_console.c - a hostile driver and an eager typist against the virtio console
 *
 * Steps as in virtio_storm.h, by the calls that transports make. Beside what the sanitizers and the storm
 * see: no turn sends more than it may, and input is taken in pieces of what room there was said to be.
 */
#include "tests/fuzz/virtio_storm.h"
#include "tests/unit/counting_transport.h"
#include "virtio/console.h"

#define TURN_MAX (256u << 10)
#define RX       0

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct line {
	uint64_t sent; /* in this turn of the loop */
	volatile uint8_t seen;
};

static void on_transmit(void *opaque, const uint8_t *data, size_t len)
{
	struct line *l = opaque;

	BUG_ON(!len);
	l->sent += len;
	l->seen = data[0] ^ data[len - 1]; /* all of it is RAM, says the sanitizer */
}

static void on_ready(void *opaque)
{
}

/* Mostly in the direction its queue wants. */
static void add(struct storm *s)
{
	const unsigned q = storm_take(s, 1) % s->v->nqueues, how = storm_take(s, 1),
		       n = 1 + how % 4;
	struct vd_queue *d = &s->d[q];
	struct vd_seg seg[4];
	bool fits = false;

	for (unsigned i = 0; i < n; i++) {
		const bool write = how & 0x10 ? i >= (how >> 5) % 4 : q == RX;

		seg[i] = (struct vd_seg){ STORM_BUFFERS + storm_take(s, 1) * 64,
					  1 + storm_take(s, 2) % 4096, write };
		fits |= write == (q == RX);
	}
	if (d->size && vd_add(d, seg, n, 0) >= 0)
		s->honest &= fits;
}

static void type(struct storm *s)
{
	static const uint8_t bytes[64];
	const size_t room = virtio_console_room(s->v), want = 1 + storm_take(s, 1) % 64;

	if (storm_take(s, 1) & 1) /* the driver resets in between */
		vd_set_status(s->v, 0);
	if (room)
		virtio_console_input(s->v, bytes, want < room ? want : room);
}

static void turn(struct storm *s, struct line *l)
{
	unsigned turns = 0;

	do {
		l->sent = 0;
		BUG_ON(++turns > STORM_TURNS_MAX);
	} while (loop_poll(s->loop, 0) > 0 && l->sent <= TURN_MAX);
	BUG_ON(l->sent > TURN_MAX);
	storm_collect(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct line line = { 0 };
	const struct virtio_console_host host = { on_transmit, on_ready, &line };
	struct counting signals;
	struct storm s;
	uint8_t b[8] = { 0 };

	storm_init_bare(&s, data, size);
	s.v = virtio_console_new("console", &host, s.ram.mem, s.loop, NULL);
	BUG_ON(!s.v);
	counting_attach(&signals, s.v);
	storm_start(&s);
	for (unsigned i = 0; i < STORM_STEPS_MAX && s.left; i++) {
		const unsigned what = storm_take(&s, 1) % (STORM_STEPS + 3);

		switch (what) {
		case 1:
			add(&s);
			break;
		case 3:
			turn(&s, &line);
			break;
		case STORM_STEPS:
			type(&s);
			break;
		case STORM_STEPS + 1:
			virtio_console_resize(s.v, (uint16_t)storm_take(&s, 1), 24);
			break;
		case STORM_STEPS + 2:
			pthread_mutex_lock(&s.v->dev.lock);
			virtio_write_config(s.v, storm_take(&s, 1), b, storm_take(&s, 1) % 9);
			virtio_read_config(s.v, storm_take(&s, 1), b, storm_take(&s, 1) % 9);
			pthread_mutex_unlock(&s.v->dev.lock);
			break;
		default:
			storm_step(&s, what);
		}
		storm_check(&s);
	}
	storm_free_device(&s);
	storm_fini(&s);
	return 0;
}
