/*
 * shim_socket.c - the daemon's socket
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/sha256.h"
#include "k8s-shim/shim_socket.h"

#define DIRECTORY "/run/containerd/s"

char *shim_socket_path(const char *address, const char *ns, const char *group, struct err *err)
{
	cleanup_free char *all = NULL;
	char hex[SHA256_HEX + 1], *path = NULL;

	if (asprintf(&all, "%s/%s/%s", address, ns, group) < 0)
		all = NULL;
	if (all) {
		sha256_hex(all, strlen(all), hex);
		if (asprintf(&path, DIRECTORY "/%s", hex) < 0)
			path = NULL;
	}
	if (!path)
		err_set(err, ENOMEM, "out of memory");
	return path;
}

static int make_socket(const char *path, struct sockaddr_un *a)
{
	*a = (struct sockaddr_un){ .sun_family = AF_UNIX };
	strncpy(a->sun_path, path, sizeof(a->sun_path) - 1);
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

bool shim_socket_answers(const char *path)
{
	struct sockaddr_un a;
	cleanup_fd int fd = make_socket(path, &a);

	return fd >= 0 && !connect(fd, (struct sockaddr *)&a, sizeof(a));
}

int shim_socket_listen(const char *path, struct err *err)
{
	struct sockaddr_un a;
	cleanup_fd int fd = make_socket(path, &a);

	mkdir("/run/containerd", 0711);
	if (fd < 0 || (mkdir(DIRECTORY, 0711) && errno != EEXIST))
		return err_set_sys(err, errno, "cannot make %s", DIRECTORY);
	unlink(path);

	mode_t mask = umask(0177);
	int rc = bind(fd, (struct sockaddr *)&a, sizeof(a)) ? -errno : 0;

	umask(mask);
	if (!rc && listen(fd, 128))
		rc = -errno;
	return rc ? err_set_sys(err, rc, "cannot listen on %s", path) : fd_steal(&fd);
}
