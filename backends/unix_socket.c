/*
 * unix_socket.c - a listening Unix stream socket with a name in the file system
 *
 * The mode is set on the socket before bind(), which Linux carries over to the file (unix(7),
 * net/unix/af_unix.c: unix_bind): there is no moment at which others could connect, and no umask()
 * that other threads would notice.
 *
 * bind() makes the file and listen() comes later: in between a client, and another machine that starts,
 * would take it for a dead one's. So it is bound under another name in the same directory and renamed
 * when it listens. Where that name is too long for a socket, it is bound in place after all.
 *
 * A file left behind by a crash is told from a live one by connecting. Two programs that find the
 * same stale file at once must not remove each other's new one, so look and bind are done under a
 * lock on the directory; there is no lock file to be left behind in its turn. A directory that
 * others may write to is not locked: anybody could keep us waiting there.
 */
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/unix_socket.h"
#include "base/fd.h"

static int make_address(struct sockaddr_un *a, const char *path, struct err *err)
{
	size_t len = strlen(path);

	memset(a, 0, sizeof(*a));
	a->sun_family = AF_UNIX;
	if (!len)
		return err_set(err, EINVAL, "a socket needs a path");
	if (len >= sizeof(a->sun_path))
		return err_set(err, ENAMETOOLONG,
			       "socket %s: the path has %zu bytes, a socket's may have at most %zu",
			       path, len, sizeof(a->sun_path) - 1);
	memcpy(a->sun_path, path, len);
	return 0;
}

/* Lock the directory of @path until the descriptor is closed; -1: not locked. */
static int lock_directory(const char *path)
{
	cleanup_free char *copy = strdup(path);
	cleanup_fd int fd = -1;
	struct stat st;

	if (!copy)
		return -1;
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) || (st.st_mode & 022))
		return -1;
	while (flock(fd, LOCK_EX)) {
		if (errno != EINTR)
			return -1;
	}
	return fd_steal(&fd);
}

/* 0: nobody is there and the file is gone. */
static int remove_stale(const struct sockaddr_un *a, struct err *err)
{
	const char *path = a->sun_path;
	struct stat st;

	if (lstat(path, &st))
		return errno == ENOENT ? 0 : err_set_sys(err, errno, "socket %s", path);
	if (!S_ISSOCK(st.st_mode))
		return err_set(
			err, EEXIST,
			"socket %s: a file of that name exists and is no socket; remove it or "
			"choose another path",
			path);
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return err_set_sys(err, errno, "cannot make a socket");
	if (!connect(fd, (const struct sockaddr *)a, sizeof(*a)) || errno == EAGAIN)
		return err_set(err, EADDRINUSE,
			       "socket %s: another program listens there; choose another path",
			       path);
	if (errno != ECONNREFUSED && errno != ENOENT)
		return err_set_sys(err, errno, "socket %s: cannot tell whether it is in use", path);
	if (unlink(path) && errno != ENOENT)
		return err_set_sys(err, errno, "socket %s: cannot remove the stale file", path);
	return 0;
}

/* The name to bind first, in @path's directory. */
static void first_name(struct sockaddr_un *a, const char *path)
{
	const char *base = strrchr(path, '/');
	char text[sizeof(a->sun_path) + 32];
	int n = snprintf(text, sizeof(text), "%.*s.coracle-%d", base ? (int)(base - path + 1) : 0,
			 path, (int)getpid());

	if (n < (int)sizeof(a->sun_path))
		memcpy(a->sun_path, text, (size_t)n + 1);
}

static int rename_new(const char *from, const char *to)
{
	if (!renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE))
		return 0;
	/* not every file system has the flag */
	return errno == EINVAL || errno == ENOSYS ? rename(from, to) : -1;
}

/* Bind @fd at @path, listening from the first moment it is seen. */
static int bind_and_listen(int fd, const struct sockaddr_un *a, int backlog, struct err *err)
{
	struct sockaddr_un first = *a;
	int rc = 0;

	first_name(&first, a->sun_path);
	if (strcmp(first.sun_path, a->sun_path))
		unlink(first.sun_path); /* of a process that had our number */
	if (bind(fd, (struct sockaddr *)&first, sizeof(first)))
		return err_set_sys(err, errno, "cannot make socket %s", a->sun_path);
	if (listen(fd, backlog))
		rc = err_set_sys(err, errno, "cannot listen on socket %s", a->sun_path);
	else if (strcmp(first.sun_path, a->sun_path) && rename_new(first.sun_path, a->sun_path))
		rc = err_set_sys(err, errno, "cannot make socket %s", a->sun_path);
	if (rc)
		unlink(first.sun_path);
	return rc;
}

int unix_listen(struct unix_listener *l, const char *path, int backlog, struct err *err)
{
	struct sockaddr_un a;
	struct stat st;
	int rc;

	*l = (struct unix_listener){ .fd = -1, .spare = -1 };
	rc = make_address(&a, path, err);
	if (rc)
		return rc;
	cleanup_free char *copy = strdup(path);
	cleanup_fd int lock = lock_directory(path);
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (!copy)
		return err_set(err, ENOMEM, "out of memory");
	if (fd < 0 || fchmod(fd, 0600))
		return err_set_sys(err, errno, "cannot make a socket");
	rc = remove_stale(&a, err);
	if (rc)
		return rc;
	rc = bind_and_listen(fd, &a, backlog, err);
	if (rc)
		return rc;
	if (stat(path, &st)) {
		rc = err_set_sys(err, errno, "cannot look at socket %s", path);
		unlink(path);
		return rc;
	}
	*l = (struct unix_listener){ .fd = fd, .path = copy, .dev = st.st_dev, .ino = st.st_ino };
	l->spare = fcntl(fd_steal(&fd), F_DUPFD_CLOEXEC, 3);
	copy = NULL;
	return 0;
}

static int accept_one(int fd)
{
	int client;

	do
		client = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	while (client < 0 && (errno == EINTR || errno == ECONNABORTED));
	return client < 0 ? -errno : client;
}

int unix_accept(struct unix_listener *l)
{
	int fd = accept_one(l->fd);

	if (fd != -EMFILE && fd != -ENFILE)
		return fd;
	fd_close(&l->spare);
	fd = accept_one(l->fd);
	if (fd >= 0)
		close(fd);
	l->spare = fcntl(l->fd, F_DUPFD_CLOEXEC, 3); /* no open() in the sandbox */
	return -EMFILE;
}

void unix_listener_close(struct unix_listener *l)
{
	struct stat st;

	if (l->path && !lstat(l->path, &st) && st.st_dev == l->dev && st.st_ino == l->ino)
		unlink(l->path);
	fd_close(&l->fd);
	fd_close(&l->spare);
	ptr_free(&l->path);
}

int unix_connect(const char *path, unsigned timeout_ms, struct err *err)
{
	/* all zero would mean for ever */
	struct timeval t = { timeout_ms / 1000, timeout_ms % 1000 * 1000 + !timeout_ms };
	struct timeval none = { 0, 0 };
	struct sockaddr_un a;
	int rc = make_address(&a, path, err);

	if (rc)
		return rc;
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t)))
		return err_set_sys(err, errno, "cannot make a socket");
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)))
		return err_set_sys(err, errno, "cannot connect to %s", path);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof(none));
	return fd_steal(&fd);
}
