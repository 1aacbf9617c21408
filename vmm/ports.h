/*
 * ports.h - the machine's lines to a person: the serial port, and the virtio console if it has one
 *
 * Each has a console (backends/console.h) at its other end. What a person types there goes to the guest,
 * or to the monitor's prompt while that is open on this console.
 */
#ifndef VMM_PORTS_H
#define VMM_PORTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct console;
struct port_kind;
struct vm;

enum { PORT_SERIAL, PORT_VIRTIO, PORTS };

struct port {
	struct vm *vm;
	const struct port_kind *kind;
	struct console *console; /* owned; NULL: there is no such line */
};

/* Open @spec (--serial's or --console's value) as the other end of line @which, whose device is there. */
int port_connect(struct vm *vm, unsigned which, const char *spec, struct err *err);
void ports_free(struct vm *vm); /* restores the terminal */

/* "pty /dev/pts/4"; NULL: there is no such line. */
const char *port_description(const struct vm *vm, unsigned which);

/* For the devices: @opaque is the struct port. */
void port_transmit(void *opaque, const uint8_t *data, size_t len);
void port_receive_ready(void *opaque);

#endif
