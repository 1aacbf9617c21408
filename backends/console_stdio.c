/*
 * console_stdio.c - the console on standard input and output
 *
 * Standard output must never be waited for, but O_NONBLOCK belongs to the open file description,
 * which we share with the parent shell: setting it there makes other programs' writes fail, and
 * after a crash for good. So a pipe or terminal is opened a second time through /proc/self/fd, which
 * gives a description of our own; a socket is asked call by call (MSG_DONTWAIT); a regular file
 * never waits. Where the second open is refused (a terminal of another user, after su; no /proc), we
 * ask poll() before each small piece: PIPE_BUF bytes of a pipe, one of a terminal.
 *
 * On a terminal, Ctrl-A starts a command to us; all else goes to the guest, Ctrl-C too. Commands act
 * when they are typed, ahead of what the port has not taken yet: that is what one needs when the
 * guest hangs. A pipe is taken as it is: bytes of a file that happen to be 1 must not end a machine.
 *
 * In the background the terminal is not read. The shell says nothing to a running job that it brings to
 * the foreground, so we look every now and then, as long as we are in the background.
 */
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backends/console_io.h"
#include "backends/terminal.h"
#include "base/fd.h"
#include "base/log.h"

#define CTRL_A  1
#define LOOK_NS 500000000ull

static const char help[] = "\r\n"
			   "Ctrl-A x       quit\r\n"
			   "Ctrl-A c       command prompt\r\n"
			   "Ctrl-A b       send a break\r\n"
			   "Ctrl-A h       this list\r\n"
			   "Ctrl-A Ctrl-A  send one Ctrl-A (Ctrl-A a, too)\r\n";

struct console_stdio {
	struct console_io io; /* first */
	bool terminal;
	bool escaped; /* the last byte was Ctrl-A */
	bool complained;
	bool in_background;
	struct loop_timer look;
};

static bool is_ptmx(const struct stat *st)
{
	/* opening this again would make another terminal (Documentation/admin-guide/devices.txt) */
	return S_ISCHR(st->st_mode) && st->st_rdev == makedev(5, 2);
}

/* A descriptor for what @fd is open on, that can be used without waiting. 0 or -errno. */
static int open_end(int fd, int access, struct console_end *e)
{
	struct stat st;
	char path[40];

	*e = (struct console_end){ .fd = -1, .way = CONSOLE_NONBLOCK };
	if (fstat(fd, &st))
		return -errno;
	if ((S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)) && !is_ptmx(&st)) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		e->fd = open(path, access | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
		if (e->fd >= 0)
			return 0;
	}
	e->fd = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (e->fd < 0)
		return -errno;
	e->way = S_ISSOCK(st.st_mode) ? CONSOLE_SOCKET :
		 S_ISREG(st.st_mode)  ? CONSOLE_FILE :
					CONSOLE_POLLED;
	e->piece = S_ISFIFO(st.st_mode) ? PIPE_BUF : 1;
	return 0;
}

/* ---- escapes ---- */

static void escape(struct console_stdio *s, enum console_escape what)
{
	if (s->io.user.escape)
		s->io.user.escape(s->io.user.opaque, what);
}

/* What follows Ctrl-A. True: @byte goes to the guest. */
static bool command(struct console_stdio *s, uint8_t *byte)
{
	switch (*byte) {
	case CTRL_A:
	case 'a':
		*byte = CTRL_A;
		return true;
	case 'x':
		escape(s, CONSOLE_ESCAPE_QUIT);
		break;
	case 'c':
		escape(s, CONSOLE_ESCAPE_COMMAND);
		break;
	case 'b':
		escape(s, CONSOLE_ESCAPE_BREAK);
		break;
	case 'h':
	case '?':
		console_io_write(&s->io.console, help, sizeof(help) - 1);
		break;
	}
	return false;
}

static size_t filter(struct console_io *io, uint8_t *data, size_t len)
{
	struct console_stdio *s = (struct console_stdio *)io;
	size_t kept = 0;

	if (!s->terminal)
		return len;
	for (size_t i = 0; i < len; i++) {
		uint8_t byte = data[i];

		if (s->escaped) {
			s->escaped = false;
			if (command(s, &byte))
				data[kept++] = byte;
		} else if (byte == CTRL_A) {
			s->escaped = true;
		} else {
			data[kept++] = byte;
		}
	}
	return kept;
}

/* ---- */

static bool may_read(struct console_io *io)
{
	struct console_stdio *s = (struct console_stdio *)io;

	if (!s->terminal || terminal_is_ours())
		return true;
	if (!s->in_background)
		loop_timer_arm(&s->look, LOOK_NS, LOOK_NS);
	s->in_background = true;
	return false;
}

static void on_look(struct loop_timer *t)
{
	struct console_stdio *s =
		(struct console_stdio *)((char *)t - offsetof(struct console_stdio, look));

	if (!terminal_is_ours())
		return;
	loop_timer_disarm(t);
	s->in_background = false;
	terminal_retake();
	console_io_poke(&s->io.console);
}

static void on_lost(struct console_io *io, int error)
{
	struct console_stdio *s = (struct console_stdio *)io;

	if (!s->complained)
		log_warn("standard output: %s; the guest's output is lost from here on",
			 strerror(-error));
	s->complained = true;
	if (io->out.way != CONSOLE_FILE) /* a full disk may have room again */
		console_io_close_out(io);
}

static void on_woken(struct console_io *io)
{
	struct console_stdio *s = (struct console_stdio *)io;
	uint16_t cols, rows;

	if (s->terminal && io->user.resize && terminal_resized(&cols, &rows))
		io->user.resize(io->user.opaque, cols, rows);
}

static const struct console_hooks hooks = {
	.filter = filter,
	.may_read = may_read,
	.lost = on_lost,
	.woken = on_woken,
};

static void stop_looking(void *arg)
{
	loop_timer_fini(&((struct console_stdio *)arg)->look);
}

static void stdio_free(struct console *c)
{
	struct console_stdio *s = (struct console_stdio *)c;

	if (s->io.loop)
		loop_call(s->io.loop, stop_looking, s);
	if (s->terminal)
		terminal_release();
	console_io_fini(&s->io);
	free(s);
}

static const struct console_ops ops = {
	.name = "stdio",
	.write = console_io_write,
	.poke = console_io_poke,
	.free = stdio_free,
};

static int set_up(struct console_stdio *s, int in, int out, struct err *err)
{
	struct console_end from, to;
	int rc = open_end(out, O_WRONLY, &to);

	if (rc)
		return err_set_sys(err, rc, "standard output cannot be used for the console");
	/* Closed standard input is one that has ended. */
	open_end(in, O_RDONLY, &from);
	console_io_connect(&s->io, from, to);
	if (from.fd < 0 || !isatty(from.fd))
		return 0;
	rc = loop_timer_init(s->io.loop, &s->look, on_look, err);
	if (rc)
		return rc;
	rc = terminal_take(from.fd, &s->io.wake, err);
	s->terminal = !rc;
	return rc;
}

struct console *console_stdio_open(int in, int out, struct loop *loop,
				   const struct console_user *user, struct err *err)
{
	struct console_stdio *s = calloc(1, sizeof(*s));

	if (!s) {
		err_set(err, ENOMEM, "out of memory for the console");
		return NULL;
	}
	s->look.fd = s->look.watch.fd = -1;
	int rc = console_io_init(&s->io, &ops, &hooks, loop, user, err);

	if (!rc)
		rc = set_up(s, in, out, err);
	if (rc) {
		stdio_free(&s->io.console);
		return NULL;
	}
	snprintf(s->io.description, sizeof(s->io.description), "stdio");
	console_ignore_signal(SIGPIPE);
	return &s->io.console;
}

struct console *console_stdio_new(const char *arg, struct loop *loop,
				  const struct console_user *user, struct err *err)
{
	return console_stdio_open(STDIN_FILENO, STDOUT_FILENO, loop, user, err);
}
