/*
 * console.h - where a serial port's or a virtio console's bytes go and come from
 *
 * The port never waits for the reader: what a slow one leaves unread goes through a bounded ring
 * whose oldest bytes are dropped (Firecracker CVE-2020-27174: a guest that prints for ever must not
 * cost the host memory). Input is offered only as fast as the port takes it.
 */
#ifndef BACKENDS_CONSOLE_H
#define BACKENDS_CONSOLE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/loop.h"

struct console;

/* What a person typed after the escape character Ctrl-A. */
enum console_escape { CONSOLE_ESCAPE_QUIT, CONSOLE_ESCAPE_COMMAND, CONSOLE_ESCAPE_BREAK };

/* The port's side, called on the loop's thread. */
struct console_user {
	/* How many bytes the port can take now; 0 stops reading until console_poke(). */
	size_t (*room)(void *opaque);
	void (*input)(void *opaque, const uint8_t *data, size_t len);
	void (*escape)(void *opaque, enum console_escape what); /* may be NULL */
	/* The terminal's size, at first and whenever it changes; may be NULL. Only a terminal tells. */
	void (*resize)(void *opaque, uint16_t cols, uint16_t rows);
	void *opaque;
};

struct console_ops {
	const char *name; /* "stdio", "file", "pty", "unix", "null" */
	void (*write)(struct console *c, const void *data,
		      size_t len);       /* any thread; never blocks */
	void (*poke)(struct console *c); /* any thread: the port has room again */
	void (*free)(struct console *c); /* flushes what it can at once; restores the terminal */
};

struct console {
	const struct console_ops *ops;
	const char *description; /* "pty /dev/pts/4", shown to the user; owned by the console */
};

/*
 * @spec: "stdio", "null", "pty", "file:PATH" (appended), "unix:PATH" (listens, one client at a time,
 * the next one waits). @user is copied. NULL on error.
 */
struct console *console_new(const char *spec, struct loop *loop, const struct console_user *user,
			    struct err *err);

#endif
