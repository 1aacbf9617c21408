/*
 * unix_socket.h - a listening Unix stream socket with a name in the file system
 *
 * Shared by the control socket and the console's: mode 0600, a socket file nobody answers on is
 * replaced, a live one is refused, and only our own is removed at the end.
 */
#ifndef BACKENDS_UNIX_SOCKET_H
#define BACKENDS_UNIX_SOCKET_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"

struct unix_listener {
	int fd;    /* non-blocking, close-on-exec; -1: closed */
	int spare; /* given up to turn a client away when there is no descriptor left */
	char *path;
	dev_t dev;
	ino_t ino;
};

/*
 * -EADDRINUSE: somebody answers there; -EEXIST: not a socket; -ENAMETOOLONG; -errno. @l is closed
 * on error.
 */
int unix_listen(struct unix_listener *l, const char *path, int backlog, struct err *err);

/*
 * The next client's descriptor, non-blocking and close-on-exec, or -errno. -EAGAIN: nobody waits;
 * -EMFILE: the client was turned away, so that a loop which watches @l does not spin.
 */
int unix_accept(struct unix_listener *l);

/* Close, and remove the file if it is still ours. Idempotent; works inside the sandbox. */
void unix_listener_close(struct unix_listener *l);

/*
 * A blocking descriptor or -errno. -ECONNREFUSED, -ENOENT: nobody is there; -EAGAIN: somebody is, but
 * took nobody in for @timeout_ms.
 */
int unix_connect(const char *path, unsigned timeout_ms, struct err *err);

#endif
