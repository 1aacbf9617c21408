/*
 * io.h - between the machine's serial port or console and the container's FIFOs
 *
 * containerd makes the FIFOs and reads and writes their other ends. It may stop to (a restart, a slow
 * log); the machine must not notice: what is not read goes through a ring whose oldest bytes are
 * dropped.
 */
#ifndef K8S_SHIM_IO_H
#define K8S_SHIM_IO_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "base/loop.h"

#define IO_RING 65536

struct io;

struct io_paths {
	const char *in, *out, *err; /* NULL or "": none. file:///path for out is a regular file */
	bool terminal;              /* false: CR before LF is left out, this is a log */
};

/* Open the FIFOs. NULL on error. */
struct io *io_new(struct loop *loop, const struct io_paths *p, struct err *err);
void io_free(struct io *io); /* what is still unread is lost; NULL is fine */

/* @fd: a non-blocking stream socket to the serial port or console, taken over. 0 or -errno. */
int io_attach(struct io *io, int fd, struct err *err);

/*
 * The serial port of a machine that has a console, @fd as above: what it says counts until the console
 * says something. A kernel has its serial port long before it has the console's driver, if it ever has.
 */
int io_attach_early(struct io *io, int fd, struct err *err);
void io_restarted(struct io *io); /* the guest starts again, and its kernel with its serial port */

/* Take what the sockets still hold and let go of it: the machine has ended. */
void io_detach(struct io *io);

/* A line of our own to the log: why the machine ended. */
void io_note(struct io *io, const char *text);

void io_close_in(struct io *io); /* no more input (CloseIO) */

/*
 * Close the FIFOs once the ring is empty, so that containerd sees the end of the output; at once if it
 * is. Nothing may be written afterwards.
 */
void io_finish(struct io *io);

#endif
