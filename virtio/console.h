/*
 * console.h - virtio console device (virtio 1.2 chapter 5.3), one port
 *
 * What a serial port cannot do: the guest sees the size of its terminal, and hears when it changes.
 * Knows nothing of where the bytes go, as the serial port: the machine joins it to a console.
 */
#ifndef VIRTIO_CONSOLE_H
#define VIRTIO_CONSOLE_H

#include "virtio/device.h"

struct virtio_console_host {
	/* The guest sent bytes. Under the device's lock; must not block. */
	void (*transmit)(void *opaque, const uint8_t *data, size_t len);
	/* There are buffers again after virtio_console_room() said 0. Under the lock; must not call back. */
	void (*receive_ready)(void *opaque);
	void *opaque;
};

/* @loop is the one the console's input comes from. @host is copied. NULL on error. */
struct virtio *virtio_console_new(const char *name, const struct virtio_console_host *host,
				  struct gmem *mem, struct loop *loop, struct err *err);

/*
 * The line's other end, on @loop's thread: bytes that input() takes now, and at most as many of them. A
 * driver that resets the device in between loses them, as on a line that was just plugged in.
 */
size_t virtio_console_room(struct virtio *v);
void virtio_console_input(struct virtio *v, const uint8_t *data, size_t len);

/* The terminal has this many columns and rows; @loop's thread. A machine at rest hears of it later. */
void virtio_console_resize(struct virtio *v, uint16_t cols, uint16_t rows);

extern const struct state_desc virtio_console_state;

#endif
