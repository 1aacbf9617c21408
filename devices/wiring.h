/*
 * wiring.h - what a device may ask of the machine it is soldered into
 *
 * vmm/ implements these few operations over KVM (ioeventfd, irqfd, GSI routing); tests and fuzzers
 * count calls. Devices own the events; the wiring only connects them. All operations may be called
 * from any thread with the device's lock held, do not call back, and are undone by their partner.
 */
#ifndef DEVICES_WIRING_H
#define DEVICES_WIRING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/event.h"

/* A guest store to this address signals @event without a trip through us (KVM_IOEVENTFD). */
struct wire_kick {
	uint64_t addr;
	uint8_t len; /* 0: any width (needs KVM_CAP_IOEVENTFD_ANY_LENGTH); 1, 2, 4, 8 */
	bool pio;
	bool match; /* only when the value equals @value: virtio-mmio's one notify register */
	uint32_t value;
	struct event *event;
	bool bound; /* the wiring's */
};

/*
 * A message-signalled interrupt: signalling @event sends (addr, data). Binding one that is already
 * signalled sends it at once: that is how a masked vector's pending bit is delivered on unmask.
 */
struct wire_msi {
	uint64_t addr;
	uint32_t data;
	struct event *event;
	int gsi; /* the wiring's; start with -1; kept from the first bind on */
	bool bound;
};

/*
 * A wired interrupt. Edge: a signal on @trigger is one edge. Level: a signal raises the line; when
 * the guest acknowledges (EOI) KVM lowers it and signals @resample, and the device signals again if
 * its condition still holds.
 */
struct wire_line {
	unsigned gsi;
	bool level;
	struct event *trigger;
	struct event *resample; /* level only */
	bool bound;
};

enum wire_power {
	WIRE_POWER_OFF,          /* ACPI S5 */
	WIRE_POWER_RESET,        /* reset register, i8042, CF9 */
	WIRE_POWER_EXIT,         /* test device: @status is the exit status */
	WIRE_POWER_PANIC,        /* the guest's kernel has come to its end */
	WIRE_POWER_CRASH_KERNEL, /* it has, and another one takes over: nothing stops */
};

struct wiring;

struct wiring_ops {
	/* 0 or -errno; the caller carries on without (the store then arrives as a bus write) */
	int (*bind_kick)(struct wiring *w, struct wire_kick *k);
	void (*unbind_kick)(struct wiring *w, struct wire_kick *k);
	int (*bind_msi)(struct wiring *w, struct wire_msi *m);
	void (*unbind_msi)(struct wiring *w, struct wire_msi *m);
	int (*bind_line)(struct wiring *w, struct wire_line *l);
	void (*unbind_line)(struct wiring *w, struct wire_line *l);
	/*
	 * Put a wired interrupt's pin up or down, done when the call returns: a system call each time,
	 * for test devices. A bound line of the same GSI is a wire beside it. 0 or -errno.
	 */
	int (*set_line)(struct wiring *w, unsigned gsi, bool up);
	/* The guest asked the machine to stop or restart; takes effect soon after the call returns. */
	void (*power)(struct wiring *w, enum wire_power what, int status);
};

struct wiring {
	const struct wiring_ops *ops;
};

#endif
