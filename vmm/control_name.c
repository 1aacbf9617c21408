/*
 * control_name.c - where a machine's control socket is found
 *
 * A machine with a name has a socket of that name in its user's directory. One that was given a path
 * as well listens there, and the name becomes a link to it, so that both work. The directory belongs
 * to the user alone: whoever could write there could put a socket of their own under a machine's
 * name.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/unix_socket.h"
#include "base/fd.h"
#include "vmm/control.h"
#include "vmm/control_name.h"

char *control_directory(void)
{
	const char *own = getenv("CORACLE_RUNTIME_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
	char *path;
	int n;

	if (own && *own)
		n = asprintf(&path, "%s", own);
	else if (!geteuid())
		n = asprintf(&path, "/run/coracle");
	else if (xdg && *xdg)
		n = asprintf(&path, "%s/coracle", xdg);
	else
		n = asprintf(&path, "/run/user/%u/coracle", (unsigned)geteuid());
	return n < 0 ? NULL : path;
}

char *control_path_of(const char *vm_id)
{
	cleanup_free char *dir = control_directory();
	char *path;

	return dir && asprintf(&path, "%s/%s.sock", dir, vm_id) >= 0 ? path : NULL;
}

static int make_directory(struct err *err)
{
	cleanup_free char *dir = control_directory();
	struct stat st;

	if (!dir)
		return err_set(err, ENOMEM, "out of memory");
	if (mkdir(dir, 0700) && errno != EEXIST)
		return err_set_sys(err, errno, "cannot make %s, where named machines are found",
				   dir);
	if (stat(dir, &st))
		return err_set_sys(err, errno, "cannot look at %s", dir);
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022))
		return err_set(err, EPERM,
			       "%s must be a directory that belongs to you and that nobody else "
			       "may write to",
			       dir);
	return 0;
}

/* A link that leads nowhere any more is removed. */
static int check_name(const char *link, const char *vm_id, struct err *err)
{
	struct stat st;

	if (lstat(link, &st))
		return errno == ENOENT ? 0 : err_set_sys(err, errno, "cannot look at %s", link);
	if (!S_ISLNK(st.st_mode) && !S_ISSOCK(st.st_mode))
		return err_set(err, EEXIST, "%s is in the way: it is no socket; remove it", link);
	cleanup_fd int fd = unix_connect(link, 0, NULL);

	if (fd >= 0 || fd == -EAGAIN)
		return err_set(err, EADDRINUSE,
			       "a machine named %s runs already: choose another --id, or stop it "
			       "with coracle ctl %s quit",
			       vm_id, vm_id);
	if (unlink(link) && errno != ENOENT)
		return err_set_sys(err, errno, "cannot remove the stale %s", link);
	return 0;
}

int control_name_take(struct control_name *n, const char *path, const char *vm_id, struct err *err)
{
	cleanup_free char *named = NULL;
	int rc;

	*n = (struct control_name){ 0 };
	if (vm_id) {
		rc = make_directory(err);
		if (rc)
			return rc;
		named = control_path_of(vm_id);
		rc = named ? check_name(named, vm_id, err) : err_set(err, ENOMEM, "out of memory");
		if (rc)
			return rc;
	}
	if (path)
		n->socket = strdup(path);
	if (path)
		n->link = named;
	else
		n->socket = named;
	named = NULL;
	return n->socket ? 0 : err_set(err, ENOMEM, "out of memory");
}

int control_name_link(struct control_name *n, struct err *err)
{
	cleanup_free char *target = NULL;
	struct stat st, st_socket;

	if (!n->link || (!stat(n->link, &st) && !stat(n->socket, &st_socket) &&
			 st.st_ino == st_socket.st_ino && st.st_dev == st_socket.st_dev))
		return 0;
	/* The link lies elsewhere, so a relative path means something else there. */
	target = realpath(n->socket, NULL);
	if (!target || symlink(target, n->link) || lstat(n->link, &st))
		return err_set_sys(err, errno, "cannot make %s a link to %s", n->link, n->socket);
	n->linked = true;
	n->dev = st.st_dev;
	n->ino = st.st_ino;
	return 0;
}

void control_name_release(struct control_name *n)
{
	struct stat st;

	if (n->linked && !lstat(n->link, &st) && st.st_dev == n->dev && st.st_ino == n->ino)
		unlink(n->link);
	ptr_free(&n->socket);
	ptr_free(&n->link);
	n->linked = false;
}
