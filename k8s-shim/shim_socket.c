/*
 * shim_socket.c - the daemon's socket
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/proto/ttrpc.pb-c.h"
#include "k8s-shim/sha256.h"
#include "k8s-shim/shim_socket.h"
#include "k8s-shim/ttrpc_frame.h"

#define DIRECTORY   "/run/containerd/s"
#define PATIENCE_MS 500

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

static int ask(int fd)
{
	Pb__Request r = PB__REQUEST__INIT;
	struct ttrpc_frame f = { .stream = 1, .type = TTRPC_REQUEST };
	uint8_t bytes[128];

	r.service = (char *)"containerd.task.v2.Task";
	r.method = (char *)"Connect";
	f.len = (uint32_t)pb__request__get_packed_size(&r);
	if (TTRPC_HEADER + f.len > sizeof(bytes))
		return -E2BIG;
	ttrpc_header(bytes, &f);
	pb__request__pack(&r, bytes + TTRPC_HEADER);
	return send(fd, bytes, TTRPC_HEADER + f.len, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/*
 * A daemon that was killed closes its files one after the other, so this one may still listen when
 * containerd has seen the end of another; and a child of its may have them a little longer. Such a
 * connection ends. One that does neither that nor answer has a daemon that is busy.
 */
bool shim_socket_answers(const char *path)
{
	struct sockaddr_un a;
	cleanup_fd int fd = make_socket(path, &a);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint8_t byte;

	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) || ask(fd))
		return false;
	while (poll(&p, 1, PATIENCE_MS) < 0)
		if (errno != EINTR)
			return true;
	return !p.revents || recv(fd, &byte, 1, 0) > 0;
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
