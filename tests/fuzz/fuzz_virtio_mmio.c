/*
 * fuzz_virtio_mmio.c - register storms on virtio over MMIO
 *
 * Accesses of any width and offset, also across the window's end, between steps that make the device
 * work: so registers change under requests in flight and reset comes at every moment.
 */
#include "tests/fuzz/virtio_storm.h"
#include "virtio/mmio.h"

#define BASE 0xc0001000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void access_any(struct storm *s, bool write)
{
	const uint64_t at = BASE - 8 + storm_take(s, 2) % (VIRTIO_MMIO_SIZE + 16);
	const unsigned len = 1u << storm_take(s, 1) % 4;
	uint8_t b[8];

	for (unsigned i = 0; i < len; i++)
		b[i] = (uint8_t)(write ? storm_take(s, 1) : 0);
	if (write) {
		bus_write(&s->mmio, at, b, len);
		s->honest = false;
	} else {
		bus_read(&s->mmio, at, b, len);
	}
}

/* A register as a driver writes it, with a value that may be anything. */
static void write_register(struct storm *s)
{
	const uint64_t at = BASE + storm_take(s, 1) % 64 * 4;
	const uint32_t how = storm_take(s, 1), value = storm_take(s, how % 5);

	bus_write(&s->mmio, at, &value, 4);
	s->honest = false;
}

/* What keeps the rules: notify and acknowledge. */
static void write_harmless(struct storm *s)
{
	const uint32_t what = storm_take(s, 1), value = what >> 2;

	bus_write(&s->mmio, BASE + (what & 1 ? 0x050 : 0x064), &value, 4);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct storm s;

	storm_init(&s, data, size);
	s.fw.refuse_kick = storm_take(&s, 1) & 1 ? -ENOSPC : 0;
	BUG_ON(virtio_mmio_attach(s.v, &s.mmio, BASE, 5, &s.fw.wiring, NULL));
	for (unsigned i = 0; i < STORM_STEPS_MAX && s.left; i++) {
		unsigned what = storm_take(&s, 1) % (STORM_STEPS + 5);

		switch (what) {
		case STORM_STEPS:
			access_any(&s, true);
			break;
		case STORM_STEPS + 1:
			access_any(&s, false);
			break;
		case STORM_STEPS + 2:
			write_register(&s);
			break;
		case STORM_STEPS + 3:
			write_harmless(&s);
			break;
		case STORM_STEPS + 4:
			s.v->dev.ops->reset(&s.v->dev);
			BUG_ON(s.v->regs.status || s.v->in_flight);
			s.honest = false;
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
