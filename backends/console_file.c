/*
 * console_file.c - the console's output appended to a file
 *
 * Nothing is read. A full disk is said once and what does not fit is lost; the machine goes on, and
 * output that fits later is written again. A FIFO or device is fine, too: it is drained through the
 * ring as a slow reader.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backends/console_io.h"
#include "base/log.h"

struct console_file {
	struct console_io io; /* first */
	bool complained;
};

static void on_lost(struct console_io *io, int error)
{
	struct console_file *f = (struct console_file *)io;

	if (!f->complained)
		log_warn("console %s: %s; the guest's output is lost until that changes",
			 io->description, strerror(-error));
	f->complained = true;
}

static const struct console_hooks hooks = { .lost = on_lost };

static void file_free(struct console *c)
{
	console_io_fini((struct console_io *)c);
	free(c);
}

static const struct console_ops ops = {
	.name = "file",
	.write = console_io_write,
	.poke = console_io_poke,
	.free = file_free,
};

static int open_file(struct console_file *f, const char *path, struct err *err)
{
	struct console_end in = { .fd = -1 }, out = { .way = CONSOLE_NONBLOCK };
	struct stat st;

	out.fd =
		open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
	if (out.fd < 0 && errno == ENXIO)
		return err_set(err, ENXIO, "console file %s: a pipe that nobody reads", path);
	if (out.fd < 0)
		return err_set_sys(err, errno, "cannot open console file %s", path);
	if (!fstat(out.fd, &st) && S_ISREG(st.st_mode))
		out.way = CONSOLE_FILE;
	console_io_connect(&f->io, in, out);
	return 0;
}

struct console *console_file_new(const char *path, struct loop *loop,
				 const struct console_user *user, struct err *err)
{
	struct console_file *f = calloc(1, sizeof(*f));

	if (!f) {
		err_set(err, ENOMEM, "out of memory for the console");
		return NULL;
	}
	int rc = console_io_init(&f->io, &ops, &hooks, loop, user, err);

	if (!rc)
		rc = open_file(f, path, err);
	if (rc) {
		file_free(&f->io.console);
		return NULL;
	}
	snprintf(f->io.description, sizeof(f->io.description), "file %s", path);
	/* What these say arrives as the error of a write as well. */
	console_ignore_signal(SIGPIPE);
	console_ignore_signal(SIGXFSZ);
	return &f->io.console;
}
