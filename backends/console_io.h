/*
 * console_io.h - what consoles with a descriptor share; internal to backends/console*.c
 *
 * A console has an end to read from and one to write to. They are different descriptors even where
 * both are one terminal or socket: epoll knows a descriptor once, and each end is watched only while
 * there is something to wait for.
 */
#ifndef BACKENDS_CONSOLE_IO_H
#define BACKENDS_CONSOLE_IO_H

#include <pthread.h>
#include <stdbool.h>

#include "backends/console.h"
#include "base/event.h"

#define CONSOLE_RING 65536 /* bytes of output kept for a reader that is slow or not there */
#define CONSOLE_HOLD 16384 /* bytes of input kept for a port that is slow */

/* The last @room bytes. */
struct console_ring {
	uint8_t *data;
	size_t room, at, len;
};

int console_ring_init(struct console_ring *r, size_t room);
void console_ring_fini(struct console_ring *r);
/* Returns how many bytes, oldest first, had to go. */
size_t console_ring_put(struct console_ring *r, const uint8_t *data, size_t len);
/* The oldest bytes that lie together: their number, 0 when empty. */
size_t console_ring_peek(const struct console_ring *r, const uint8_t **data);
void console_ring_take(struct console_ring *r, size_t len);

enum console_way {
	CONSOLE_NONBLOCK, /* an open file description of our own, O_NONBLOCK */
	CONSOLE_SOCKET,   /* shared: MSG_DONTWAIT */
	CONSOLE_POLLED,   /* shared: asked with poll() before each small piece */
	CONSOLE_FILE,     /* regular: never waits for a reader */
};

struct console_end {
	int fd; /* owned; -1: closed */
	enum console_way way;
	size_t piece; /* POLLED: as much can be written after poll() said yes */
};

struct console_io;

/* What one kind of console does its own way; all on the loop's thread, each may be NULL. */
struct console_hooks {
	/* Take out what is not for the port; returns the bytes left in @data. */
	size_t (*filter)(struct console_io *io, uint8_t *data, size_t len);
	bool (*may_read)(struct console_io *io);
	/* No more input. @events: EPOLLHUP, the other side has gone for good. */
	void (*eof)(struct console_io *io, uint32_t events);
	void (*lost)(struct console_io *io, int error); /* output failed; @error negative */
	void (*woken)(struct console_io *io); /* by console_io_poke() or a signal's handler */
};

struct console_io {
	struct console console; /* first */
	struct console_user user;
	const struct console_hooks *hooks;
	struct loop *loop;
	struct event wake; /* from any thread: look at everything again */
	struct loop_watch wake_watch;

	/* the loop's thread only */
	struct console_end in;
	struct loop_watch in_watch, out_watch;
	struct console_ring hold;
	bool eof;

	pthread_mutex_t lock; /* the following: vCPU threads write */
	struct console_end out;
	struct console_ring ring;
	uint64_t dropped; /* bytes of output nobody will see */
	bool draining;    /* the loop knows that the ring is not empty */
	int error;        /* negative: a write failed, lost() is due */
	char description[160];
};

/* @in and @out are set by the caller afterwards (console_io_connect). 0 or -ENOMEM, -errno. */
int console_io_init(struct console_io *io, const struct console_ops *ops,
		    const struct console_hooks *hooks, struct loop *loop,
		    const struct console_user *user, struct err *err);
void console_io_fini(struct console_io *io); /* flushes what goes at once */

/* Take over both ends, which may be closed ones. What is in the ring goes out first. */
void console_io_connect(struct console_io *io, struct console_end in, struct console_end out);
void console_io_disconnect(struct console_io *io);
void console_io_close_out(struct console_io *io);
void console_io_watch_hangup(struct console_io *io); /* after eof: tell when the other side goes */

void console_io_write(struct console *c, const void *data, size_t len);
void console_io_poke(struct console *c);

/* Ignore @sig for this process unless somebody handles it already. */
void console_ignore_signal(int sig);

typedef struct console *console_open_fn(const char *arg, struct loop *loop,
					const struct console_user *user, struct err *err);
console_open_fn console_stdio_new, console_file_new, console_pty_new, console_unix_new,
	console_null_new;

/* The stdio console on other descriptors, which stay the caller's. */
struct console *console_stdio_open(int in, int out, struct loop *loop,
				   const struct console_user *user, struct err *err);

#endif
