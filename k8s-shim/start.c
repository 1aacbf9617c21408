/*
 * start.c - `start`: the pod's daemon is made, or found
 *
 * containerd reads standard output and error together to their end and takes all of it for the address,
 * so nothing else may be printed, and the daemon must not keep either open. The socket listens before the
 * daemon is there: who connects early waits in its backlog.
 *
 * The daemon is a fork: it needs nothing that another program would have, and costs the node only the
 * pages it changes.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/bundle.h"
#include "k8s-shim/sha256.h"
#include "k8s-shim/shim.h"
#include "k8s-shim/shim_socket.h"

static int bundle_dir(const struct shim_args *a, char *out, size_t room, struct err *err)
{
	if (*a->bundle) {
		snprintf(out, room, "%s", a->bundle);
		return 0;
	}
	return getcwd(out, room) ? 0 : err_set_sys(err, errno, "cannot tell the bundle");
}

/* The pod a container belongs to; a container without one is a pod by itself. malloc'ed. */
static char *group_of(const struct shim_args *a, struct err *err)
{
	char dir[PATH_MAX];
	struct bundle b;

	if (bundle_dir(a, dir, sizeof(dir), err) || bundle_load(&b, dir, err))
		return NULL;
	char *group = strdup(b.in_pod ? b.sandbox_id : a->id);

	bundle_fini(&b);
	if (!group)
		err_set(err, ENOMEM, "out of memory");
	return group;
}

/* containerd asks here for the pod when it has been started again. */
static int write_address(const char *path, struct err *err)
{
	cleanup_fd int fd = open("address.tmp", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	int rc = fd < 0 ? -errno : fd_write_all(fd, "unix://", 7);

	if (!rc)
		rc = fd_write_all(fd, path, strlen(path));
	if (!rc && rename("address.tmp", "address"))
		rc = -errno;
	return rc ? err_set_sys(err, rc, "cannot write the file address in the bundle") : 0;
}

/* Standard output and error become the log that containerd reads, or nothing. */
static int leave_stdio(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int log = open("log", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (null < 0)
		return -errno;
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(log < 0 ? null : log, STDERR_FILENO);
	close(null);
	if (log >= 0)
		close(log);
	return 0;
}

static int make_daemon(const struct shim_args *a, int fd, const char *path, struct err *err)
{
	cleanup_fd int listening = fd;
	pid_t pid = fork();

	if (pid < 0)
		return err_set_sys(err, errno, "cannot start a process");
	if (pid > 0)
		return 0;
	setsid();
	if (leave_stdio() || chdir("/"))
		_exit(1);
	exit(shim_serve(a, fd_steal(&listening), path)); /* nothing is printed yet */
}

int shim_start(const struct shim_args *a, struct err *err)
{
	cleanup_free char *group = group_of(a, err), *path = NULL;

	if (group)
		path = shim_socket_path(a->address, a->ns, group, err);
	if (!path)
		return 1;
	if (!shim_socket_answers(path)) {
		if (strcmp(group, a->id)) {
			err_set(err, ESRCH, "pod %.12s has no shim any more", group);
			return 1;
		}
		int fd = shim_socket_listen(path, err);

		if (fd < 0)
			return 1;
		if (make_daemon(a, fd, path, err)) {
			unlink(path);
			return 1;
		}
	}
	if (write_address(path, err))
		return 1;
	printf("unix://%s", path);
	return fflush(stdout) ? 1 : 0;
}
