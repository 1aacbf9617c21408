/*
 * console_pty.c - the console as a pseudo-terminal to attach a terminal program to
 *
 * We keep the other side open, too: otherwise the last program that closes it leaves us with EIO and
 * EPOLLHUP without end (pty(7)), and what its kernel buffer still holds would be lost. It is put in
 * raw mode first, since its echo would feed the guest's output back to the guest. While nobody
 * reads, the kernel's buffer fills and the ring drops what is oldest.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include "backends/console_io.h"
#include "base/fd.h"

struct console_pty {
	struct console_io io; /* first */
	int other;            /* the side of whoever attaches */
};

static const struct console_hooks hooks = { NULL };

static void pty_free(struct console *c)
{
	struct console_pty *p = (struct console_pty *)c;

	console_io_fini(&p->io);
	fd_close(&p->other);
	free(p);
}

static const struct console_ops ops = {
	.name = "pty",
	.write = console_io_write,
	.poke = console_io_poke,
	.free = pty_free,
};

static int open_pty(struct console_pty *p, struct err *err)
{
	cleanup_fd int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	char name[64];
	struct termios modes;

	if (fd < 0 || grantpt(fd) || unlockpt(fd) || ptsname_r(fd, name, sizeof(name)))
		return err_set_sys(err, errno, "cannot make a pseudo-terminal");
	p->other = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (p->other < 0 || tcgetattr(p->other, &modes))
		return err_set_sys(err, errno, "cannot open %s", name);
	cfmakeraw(&modes);
	if (tcsetattr(p->other, TCSANOW, &modes))
		return err_set_sys(err, errno, "cannot set up %s", name);
	cleanup_fd int again = fcntl(fd, F_DUPFD_CLOEXEC, 3);

	if (again < 0 || fd_set_nonblock(fd))
		return err_set_sys(err, errno, "cannot set up %s", name);
	snprintf(p->io.description, sizeof(p->io.description), "pty %s", name);
	console_io_connect(&p->io, (struct console_end){ .fd = fd_steal(&fd) },
			   (struct console_end){ .fd = fd_steal(&again) });
	return 0;
}

struct console *console_pty_new(const char *arg, struct loop *loop, const struct console_user *user,
				struct err *err)
{
	struct console_pty *p = calloc(1, sizeof(*p));

	if (!p) {
		err_set(err, ENOMEM, "out of memory for the console");
		return NULL;
	}
	p->other = -1;
	int rc = console_io_init(&p->io, &ops, &hooks, loop, user, err);

	if (!rc)
		rc = open_pty(p, err);
	if (rc) {
		pty_free(&p->io.console);
		return NULL;
	}
	return &p->io.console;
}
