/*
 * io.c - FIFOs and a ring
 *
 * A FIFO is opened for reading and writing. Then it always has both ends: no EPIPE and no end of file
 * when containerd goes away, and what it has not read yet is still there when it is back. The one thing
 * this gives up is to know that nobody reads, which the ring makes harmless.
 *
 * Input is read only while there is room to keep it, so a guest that does not read its console
 * stops whoever types, as a real line would.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/io.h"

#define HOLD 4096

struct io {
	struct loop *loop;
	bool terminal, finishing;
	bool cr; /* the last byte was a CR that is kept back */

	int line; /* the serial port or the console */
	struct loop_watch line_watch;
	int early; /* the serial port of a machine whose line is its console */
	struct loop_watch early_watch;
	bool spoke; /* the console did, so the serial port is not wanted any more */

	int out;
	struct loop_watch out_watch;
	bool out_is_file;
	uint8_t *ring;
	size_t at, len;
	uint64_t dropped;

	int err_fd; /* held open so that its reader sees its end with that of the output */

	int in;
	struct loop_watch in_watch;
	uint8_t hold[HOLD];
	size_t held;
};

/* ---- out ---- */

static void put(struct io *io, const uint8_t *data, size_t len)
{
	if (io->out < 0 || io->finishing)
		return;
	for (size_t i = 0; i < len; i++) {
		if (io->len == IO_RING) {
			io->at = (io->at + 1) % IO_RING;
			io->len--;
			io->dropped++;
		}
		io->ring[(io->at + io->len++) % IO_RING] = data[i];
	}
}

/* A terminal gets everything; a log gets LF for CR LF. */
static void put_output(struct io *io, const uint8_t *data, size_t len)
{
	static const uint8_t cr = '\r';

	if (io->terminal) {
		put(io, data, len);
		return;
	}
	for (size_t i = 0; i < len; i++) {
		if (io->cr && data[i] != '\n')
			put(io, &cr, 1);
		io->cr = data[i] == '\r';
		if (!io->cr)
			put(io, &data[i], 1);
	}
}

static void close_out(struct io *io)
{
	loop_remove(&io->out_watch);
	fd_close(&io->out);
	fd_close(&io->err_fd);
	io->len = 0;
	if (io->dropped)
		log_warn("%llu bytes of console output were dropped: nobody read them in time",
			 (unsigned long long)io->dropped);
	io->dropped = 0;
}

static void drain(struct io *io)
{
	while (io->out >= 0 && io->len) {
		size_t n = io->at + io->len > IO_RING ? IO_RING - io->at : io->len;
		ssize_t w = write(io->out, io->ring + io->at, n);

		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0 && errno == EAGAIN)
			break;
		if (w <= 0) {
			log_warn("cannot write the console's output: %s", strerror(errno));
			close_out(io);
			return;
		}
		io->at = (io->at + (size_t)w) % IO_RING;
		io->len -= (size_t)w;
	}
	if (io->out >= 0 && io->finishing && !io->len)
		close_out(io);
	else if (io->out >= 0 && !io->out_is_file)
		loop_modify(&io->out_watch, io->len ? EPOLLOUT : 0);
}

static void on_out(struct loop_watch *w, uint32_t events)
{
	drain((struct io *)((char *)w - offsetof(struct io, out_watch)));
}

void io_note(struct io *io, const char *text)
{
	if (!io)
		return;
	put(io, (const uint8_t *)text, strlen(text));
	put(io, (const uint8_t *)(io->terminal ? "\r\n" : "\n"), io->terminal ? 2 : 1);
	drain(io);
}

void io_finish(struct io *io)
{
	if (!io)
		return;
	if (io->cr)
		put(io, (const uint8_t *)"\r", 1);
	io->cr = false;
	io->finishing = true;
	io_close_in(io);
	drain(io);
}

/* ---- in ---- */

static void watch_in(struct io *io)
{
	if (io->in >= 0)
		loop_modify(&io->in_watch, io->line >= 0 && io->held < HOLD ? EPOLLIN : 0);
	if (io->line >= 0)
		loop_modify(&io->line_watch, EPOLLIN | (io->held ? EPOLLOUT : 0));
}

static void type_in(struct io *io)
{
	while (io->line >= 0 && io->held) {
		ssize_t n = send(io->line, io->hold, io->held, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0)
			break; /* full, or gone, which reading it will tell */
		io->held -= (size_t)n;
		memmove(io->hold, io->hold + n, io->held);
	}
	watch_in(io);
}

static void on_in(struct loop_watch *w, uint32_t events)
{
	struct io *io = (struct io *)((char *)w - offsetof(struct io, in_watch));
	ssize_t n = read(io->in, io->hold + io->held, HOLD - io->held);

	if (n > 0)
		io->held += (size_t)n;
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		io_close_in(io);
	type_in(io);
}

void io_close_in(struct io *io)
{
	if (!io)
		return;
	loop_remove(&io->in_watch);
	fd_close(&io->in);
}

/* ---- the machine's line ---- */

/* A piece of what @fd has, for the container if @keep: its size, 0: it has ended, -EAGAIN. */
static ssize_t take(struct io *io, int fd, bool keep)
{
	uint8_t bytes[16384];
	ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);

	if (n > 0 && keep)
		put_output(io, bytes, (size_t)n);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? -EAGAIN : 0;
	return n;
}

/* Bounded where the writer has gone: there is no more than a socket's buffer. */
static void take_rest(struct io *io, int fd, bool keep)
{
	while (fd >= 0 && take(io, fd, keep) > 0)
		;
}

static void on_line(struct loop_watch *w, uint32_t events)
{
	struct io *io = (struct io *)((char *)w - offsetof(struct io, line_watch));
	ssize_t n = -EAGAIN;

	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		if (io->early >= 0)
			take(io, io->early, !io->spoke); /* it came before */
		n = take(io, io->line, true);
		io->spoke |= n > 0;
	}
	if (n)
		type_in(io);
	else
		io_detach(io);
	drain(io);
}

static void on_early(struct loop_watch *w, uint32_t events)
{
	struct io *io = (struct io *)((char *)w - offsetof(struct io, early_watch));

	if (!take(io, io->early, !io->spoke)) {
		loop_remove(w);
		fd_close(&io->early);
	}
	drain(io);
}

static int attach(struct io *io, int *to, struct loop_watch *w, int fd,
		  void (*fn)(struct loop_watch *w, uint32_t events), struct err *err)
{
	int rc = loop_add(io->loop, w, fd, EPOLLIN, fn);

	if (rc) {
		close(fd);
		return err_set_sys(err, rc, "cannot watch the machine's console");
	}
	*to = fd;
	return 0;
}

int io_attach(struct io *io, int fd, struct err *err)
{
	int rc = attach(io, &io->line, &io->line_watch, fd, on_line, err);

	watch_in(io);
	return rc;
}

int io_attach_early(struct io *io, int fd, struct err *err)
{
	return attach(io, &io->early, &io->early_watch, fd, on_early, err);
}

void io_restarted(struct io *io)
{
	if (io->line >= 0)
		take(io, io->line, true); /* said by the guest that was */
	io->spoke = false;
	drain(io);
}

void io_detach(struct io *io)
{
	if (!io)
		return;
	take_rest(io, io->early, !io->spoke);
	take_rest(io, io->line, true);
	loop_remove(&io->early_watch);
	loop_remove(&io->line_watch);
	fd_close(&io->early);
	fd_close(&io->line);
	io->held = 0;
	watch_in(io);
	drain(io);
}

/* ---- open and close ---- */

static int open_fifo(const char *path, struct err *err)
{
	int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);

	return fd < 0 ? err_set_sys(err, errno, "cannot open %s", path) : fd;
}

static int open_out(struct io *io, const char *path, struct err *err)
{
	const char *scheme = strstr(path, "://");

	if (!scheme) {
		io->out = open_fifo(path, err);
	} else if (!strncmp(path, "file://", 7)) {
		io->out_is_file = true;
		io->out = open(path + 7, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		if (io->out < 0)
			err_set_sys(err, errno, "cannot open %s", path + 7);
	} else {
		return err_set(err, ENOTSUP, "standard output to %.*s:// is not possible",
			       (int)(scheme - path), path);
	}
	if (io->out < 0)
		return err->code;
	return io->out_is_file ? 0 : loop_add(io->loop, &io->out_watch, io->out, 0, on_out);
}

static int open_all(struct io *io, const struct io_paths *p, struct err *err)
{
	int rc = 0;

	if (p->out && *p->out)
		rc = open_out(io, p->out, err);
	if (!rc && p->err && *p->err && !strstr(p->err, "://")) {
		io->err_fd = open_fifo(p->err, err);
		rc = io->err_fd < 0 ? io->err_fd : 0;
	}
	if (!rc && p->in && *p->in) {
		io->in = open_fifo(p->in, err);
		rc = io->in < 0 ? io->in : loop_add(io->loop, &io->in_watch, io->in, 0, on_in);
	}
	return rc;
}

struct io *io_new(struct loop *loop, const struct io_paths *p, struct err *err)
{
	struct io *io = calloc(1, sizeof(*io));

	if (!io) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	io->loop = loop;
	io->terminal = p->terminal;
	io->line = io->early = io->out = io->err_fd = io->in = -1;
	io->line_watch.fd = io->early_watch.fd = io->out_watch.fd = io->in_watch.fd = -1;
	io->ring = malloc(IO_RING);
	err->code = 0;
	int rc = io->ring ? open_all(io, p, err) : err_set(err, ENOMEM, "out of memory");

	if (rc) {
		if (!err->code)
			err_set_sys(err, rc, "cannot watch the container's FIFOs");
		io_free(io);
		return NULL;
	}
	return io;
}

void io_free(struct io *io)
{
	if (!io)
		return;
	loop_remove(&io->line_watch);
	loop_remove(&io->early_watch);
	fd_close(&io->line);
	fd_close(&io->early);
	io_close_in(io);
	close_out(io);
	free(io->ring);
	free(io);
}
