/*
 * console_unix.c - the console as a Unix socket that one client at a time may use
 *
 * A serial line has one other end. The next client waits in the socket's backlog until the first has
 * gone. Whoever connects first gets what the ring still holds: the last output that nobody has read.
 * A client that only shuts down its sending side goes on reading.
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/console_io.h"
#include "backends/unix_socket.h"
#include "base/fd.h"
#include "base/log.h"

struct console_unix {
	struct console_io io; /* first */
	struct unix_listener listener;
	struct loop_watch listen_watch;
	struct log_limit complaints;
};

static void on_client(struct loop_watch *w, uint32_t events);

static void listen_again(struct console_unix *u)
{
	int rc = loop_add(u->io.loop, &u->listen_watch, u->listener.fd, EPOLLIN, on_client);

	if (rc)
		log_err("console %s: cannot wait for clients: %s", u->io.description,
			strerror(-rc));
}

static void on_client(struct loop_watch *w, uint32_t events)
{
	struct console_unix *u =
		(struct console_unix *)((char *)w - offsetof(struct console_unix, listen_watch));
	cleanup_fd int fd = unix_accept(&u->listener);

	if (fd < 0) {
		if (fd != -EAGAIN)
			log_guest(&u->complaints, "console %s: no client: %s", u->io.description,
				  strerror(-fd));
		return;
	}
	cleanup_fd int again = fcntl(fd, F_DUPFD_CLOEXEC, 3);

	if (again < 0) {
		log_guest(&u->complaints, "console %s: no descriptor left for a client",
			  u->io.description);
		return;
	}
	loop_remove(w);
	console_io_connect(&u->io,
			   (struct console_end){ .fd = fd_steal(&fd), .way = CONSOLE_SOCKET },
			   (struct console_end){ .fd = fd_steal(&again), .way = CONSOLE_SOCKET });
}

static void drop_client(struct console_io *io)
{
	console_io_disconnect(io);
	listen_again((struct console_unix *)io);
}

static void on_eof(struct console_io *io, uint32_t events)
{
	if (events & (EPOLLHUP | EPOLLERR))
		drop_client(io);
	else
		console_io_watch_hangup(io);
}

/* It does not read any more, but what it has sent before it left is still to be had. */
static void on_lost(struct console_io *io, int error)
{
	if (io->eof)
		drop_client(io);
	else
		console_io_close_out(io);
}

static const struct console_hooks hooks = { .eof = on_eof, .lost = on_lost };

static void stop_listening(void *arg)
{
	loop_remove(&((struct console_unix *)arg)->listen_watch);
}

static void unix_free(struct console *c)
{
	struct console_unix *u = (struct console_unix *)c;

	loop_call(u->io.loop, stop_listening, u);
	unix_listener_close(&u->listener);
	console_io_fini(&u->io);
	free(u);
}

static const struct console_ops ops = {
	.name = "unix",
	.write = console_io_write,
	.poke = console_io_poke,
	.free = unix_free,
};

static int start(struct console_unix *u, const char *path, struct err *err)
{
	int rc = unix_listen(&u->listener, path, 8, err);

	if (rc)
		return err_prefix(err, "console");
	rc = loop_add(u->io.loop, &u->listen_watch, u->listener.fd, EPOLLIN, on_client);
	return rc ? err_set_sys(err, rc, "cannot watch socket %s", path) : 0;
}

struct console *console_unix_new(const char *path, struct loop *loop,
				 const struct console_user *user, struct err *err)
{
	struct console_unix *u = calloc(1, sizeof(*u));

	if (!u) {
		err_set(err, ENOMEM, "out of memory for the console");
		return NULL;
	}
	u->listener.fd = u->listener.spare = u->listen_watch.fd = -1;
	int rc = console_io_init(&u->io, &ops, &hooks, loop, user, err);

	snprintf(u->io.description, sizeof(u->io.description), "unix %s", path);
	if (!rc)
		rc = start(u, path, err);
	if (rc) {
		unix_free(&u->io.console);
		return NULL;
	}
	return &u->io.console;
}
