/*
 * console_io.c - bytes out without ever waiting, bytes in as fast as the port takes them
 *
 * Output: a write goes to the descriptor at once as long as nothing waits before it. What does not
 * fit goes into a ring that the loop drains when the descriptor has room; a full ring drops its
 * oldest bytes, since the last thing a guest said is worth more than the first. So a vCPU never
 * waits for a reader, and a guest that prints for ever costs CONSOLE_RING bytes (Firecracker
 * CVE-2020-27174).
 *
 * Input: read ahead into a second bounded ring, so that a client which sends a line and leaves loses
 * nothing and an escape typed at a hung guest is still seen; when that is full we stop reading, and
 * the other side waits as on any pipe.
 *
 * Descriptors that epoll refuses (regular files, /dev/null) are always ready: the wake event stands
 * in for them.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/console_io.h"
#include "base/fd.h"
#include "base/log.h"

#define READ_PIECE 4096

/* ---- the ring ---- */

int console_ring_init(struct console_ring *r, size_t room)
{
	*r = (struct console_ring){ .data = malloc(room), .room = room };
	return r->data ? 0 : -ENOMEM;
}

void console_ring_fini(struct console_ring *r)
{
	free(r->data);
	*r = (struct console_ring){ 0 };
}

void console_ring_take(struct console_ring *r, size_t len)
{
	r->at = (r->at + len) % r->room;
	r->len -= len;
}

size_t console_ring_put(struct console_ring *r, const uint8_t *data, size_t len)
{
	size_t dropped = 0;

	if (len > r->room) {
		dropped = len - r->room;
		data += dropped;
		len = r->room;
	}
	if (len > r->room - r->len) {
		size_t old = len - (r->room - r->len);

		console_ring_take(r, old);
		dropped += old;
	}
	size_t end = (r->at + r->len) % r->room;
	size_t first = len < r->room - end ? len : r->room - end;

	memcpy(r->data + end, data, first);
	memcpy(r->data, data + first, len - first);
	r->len += len;
	return dropped;
}

size_t console_ring_peek(const struct console_ring *r, const uint8_t **data)
{
	*data = r->data + r->at;
	return r->len < r->room - r->at ? r->len : r->room - r->at;
}

/* ---- one end ---- */

static bool ready(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };

	return poll(&p, 1, 0) > 0;
}

static ssize_t write_once(const struct console_end *e, const uint8_t *data, size_t len)
{
	if (e->way == CONSOLE_SOCKET)
		return send(e->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (e->way == CONSOLE_POLLED) {
		if (!ready(e->fd, POLLOUT)) {
			errno = EAGAIN;
			return -1;
		}
		len = len < e->piece ? len : e->piece;
	}
	return write(e->fd, data, len);
}

/* As much as goes without waiting. Bytes written, or -errno if there was none (-EAGAIN). */
static ssize_t end_write(const struct console_end *e, const uint8_t *data, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = write_once(e, data + done, len - done);

		if (n > 0)
			done += (size_t)n;
		else if (n == 0 || errno != EINTR)
			return done ? (ssize_t)done : n == 0 ? -EAGAIN : -errno;
	}
	return (ssize_t)done;
}

static ssize_t end_read(const struct console_end *e, uint8_t *data, size_t len)
{
	ssize_t n;

	if (e->way == CONSOLE_POLLED && !ready(e->fd, POLLIN))
		return -EAGAIN;
	do
		n = e->way == CONSOLE_SOCKET ? recv(e->fd, data, len, MSG_DONTWAIT) :
					       read(e->fd, data, len);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

/* ---- input, on the loop's thread ---- */

static void on_in(struct loop_watch *w, uint32_t events);

static void deliver(struct console_io *io)
{
	while (io->hold.len) {
		const uint8_t *data;
		size_t room = io->user.room(io->user.opaque);
		size_t n = console_ring_peek(&io->hold, &data);

		if (!room)
			return;
		n = n < room ? n : room;
		io->user.input(io->user.opaque, data, n);
		console_ring_take(&io->hold, n);
	}
}

/* One piece into the hold. False: there is no more for now. */
static bool read_piece(struct console_io *io, uint32_t events)
{
	uint8_t buf[READ_PIECE];
	size_t room = io->hold.room - io->hold.len;
	ssize_t n = end_read(&io->in, buf, room < sizeof(buf) ? room : sizeof(buf));

	if (n == -EAGAIN && !(events & (EPOLLHUP | EPOLLERR)))
		return false;
	if (n > 0) {
		size_t len = (size_t)n;

		if (io->hooks->filter)
			len = io->hooks->filter(io, buf, len);
		console_ring_put(&io->hold, buf, len);
		return true;
	}
	loop_remove(&io->in_watch);
	io->eof = true;
	if (io->hooks->eof)
		io->hooks->eof(io, events);
	return false;
}

static void watch_in(struct console_io *io)
{
	bool want = io->in.fd >= 0 && !io->eof && io->hold.len < io->hold.room &&
		    (!io->hooks->may_read || io->hooks->may_read(io));

	if (!want) {
		if (!io->eof)
			loop_remove(&io->in_watch);
		return;
	}
	if (io->in_watch.fd >= 0)
		return;
	int rc = loop_add(io->loop, &io->in_watch, io->in.fd, EPOLLIN, on_in);

	/* A regular file or /dev/null: read on the next turn as well. */
	if (rc == -EPERM) {
		if (read_piece(io, 0))
			event_signal(&io->wake);
	} else if (rc) {
		log_err("console %s: cannot watch for input: %s", io->description, strerror(-rc));
		io->eof = true;
	}
}

/* ---- output ---- */

static void on_out(struct loop_watch *w, uint32_t events);

/* Under the lock: what goes at once. */
static void drain_locked(struct console_io *io)
{
	while (io->ring.len && io->out.fd >= 0 && !io->error) {
		const uint8_t *data;
		size_t len = console_ring_peek(&io->ring, &data);
		ssize_t n = end_write(&io->out, data, len);

		if (n == -EAGAIN)
			return;
		if (n < 0)
			io->error = (int)n;
		else
			console_ring_take(&io->ring, (size_t)n);
	}
}

static void drain(struct console_io *io)
{
	pthread_mutex_lock(&io->lock);
	drain_locked(io);
	bool more = io->ring.len && io->out.fd >= 0 && !io->error;
	int error = io->error, fd = io->out.fd;

	io->draining = more;
	io->error = 0;
	pthread_mutex_unlock(&io->lock);
	if (!more)
		loop_remove(&io->out_watch);
	else if (io->out_watch.fd < 0)
		loop_add(io->loop, &io->out_watch, fd, EPOLLOUT, on_out);
	if (error && io->hooks->lost)
		io->hooks->lost(io, error);
}

void console_io_write(struct console *c, const void *data, size_t len)
{
	struct console_io *io = (struct console_io *)c;
	const uint8_t *p = data;
	bool wake = false;

	pthread_mutex_lock(&io->lock);
	if (!io->ring.len && io->out.fd >= 0 && !io->error) {
		ssize_t n = end_write(&io->out, p, len);

		if (n < 0 && n != -EAGAIN) {
			io->error = (int)n;
			wake = true;
		} else if (n > 0) {
			p += n;
			len -= (size_t)n;
		}
	}
	if (io->out.way == CONSOLE_FILE && io->out.fd >= 0)
		io->dropped += len; /* a full disk: what comes next may fit again */
	else
		io->dropped += console_ring_put(&io->ring, p, len);
	if (io->ring.len && io->out.fd >= 0 && !io->draining)
		wake = io->draining = true;
	pthread_mutex_unlock(&io->lock);
	if (wake)
		event_signal(&io->wake);
}

void console_io_poke(struct console *c)
{
	event_signal(&((struct console_io *)c)->wake);
}

/* ---- the loop's callbacks ---- */

static void service(struct console_io *io)
{
	deliver(io);
	watch_in(io);
	drain(io);
}

static void on_wake(struct loop_watch *w, uint32_t events)
{
	struct console_io *io =
		(struct console_io *)((char *)w - offsetof(struct console_io, wake_watch));

	event_clear(&io->wake);
	if (io->hooks->woken)
		io->hooks->woken(io);
	service(io);
}

static void on_in(struct loop_watch *w, uint32_t events)
{
	struct console_io *io =
		(struct console_io *)((char *)w - offsetof(struct console_io, in_watch));

	if (io->hooks->may_read && !io->hooks->may_read(io))
		loop_remove(w);
	else
		read_piece(io, events);
	service(io);
}

static void on_out(struct loop_watch *w, uint32_t events)
{
	service((struct console_io *)((char *)w - offsetof(struct console_io, out_watch)));
}

void console_io_watch_hangup(struct console_io *io)
{
	/* EPOLLHUP and EPOLLERR always come; EPOLLPRI never does, on a socket of this kind */
	if (io->in.fd >= 0 && io->in_watch.fd < 0)
		loop_add(io->loop, &io->in_watch, io->in.fd, EPOLLPRI, on_in);
}

/* ---- making and freeing ---- */

void console_io_connect(struct console_io *io, struct console_end in, struct console_end out)
{
	io->in = in;
	io->eof = false;
	pthread_mutex_lock(&io->lock);
	io->out = out;
	io->error = 0;
	pthread_mutex_unlock(&io->lock);
	event_signal(&io->wake);
}

void console_io_close_out(struct console_io *io)
{
	loop_remove(&io->out_watch);
	pthread_mutex_lock(&io->lock);
	fd_close(&io->out.fd);
	io->draining = false;
	io->error = 0;
	pthread_mutex_unlock(&io->lock);
}

void console_io_disconnect(struct console_io *io)
{
	loop_remove(&io->in_watch);
	fd_close(&io->in.fd);
	console_io_close_out(io);
}

int console_io_init(struct console_io *io, const struct console_ops *ops,
		    const struct console_hooks *hooks, struct loop *loop,
		    const struct console_user *user, struct err *err)
{
	io->console = (struct console){ ops, io->description };
	io->user = *user;
	io->hooks = hooks;
	io->loop = loop;
	io->in.fd = io->out.fd = -1;
	io->wake.fd = io->wake_watch.fd = io->in_watch.fd = io->out_watch.fd = -1;
	pthread_mutex_init(&io->lock, NULL);
	if (console_ring_init(&io->ring, CONSOLE_RING) ||
	    console_ring_init(&io->hold, CONSOLE_HOLD))
		return err_set(err, ENOMEM, "out of memory for the console");
	int rc = event_init(&io->wake, err);

	if (rc)
		return rc;
	rc = loop_add(loop, &io->wake_watch, io->wake.fd, EPOLLIN, on_wake);
	return rc ? err_set_sys(err, rc, "cannot watch the console") : 0;
}

static void detach(void *arg)
{
	struct console_io *io = arg;

	pthread_mutex_lock(&io->lock);
	drain_locked(io);
	io->dropped += io->ring.len;
	pthread_mutex_unlock(&io->lock);
	console_io_disconnect(io);
	loop_remove(&io->wake_watch);
}

void console_io_fini(struct console_io *io)
{
	loop_call(io->loop, detach, io);
	if (io->dropped)
		log_debug("console %s: %llu bytes of output were not read by anybody",
			  io->description, (unsigned long long)io->dropped);
	event_fini(&io->wake);
	console_ring_fini(&io->ring);
	console_ring_fini(&io->hold);
	pthread_mutex_destroy(&io->lock);
}

void console_ignore_signal(int sig)
{
	struct sigaction sa;

	if (!sigaction(sig, NULL, &sa) && !(sa.sa_flags & SA_SIGINFO) && sa.sa_handler == SIG_DFL)
		signal(sig, SIG_IGN);
}
