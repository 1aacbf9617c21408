/*
 * shim_socket.h - where a pod's daemon is found: /run/containerd/s/<hash>
 */
#ifndef K8S_SHIM_SHIM_SOCKET_H
#define K8S_SHIM_SHIM_SOCKET_H

#include <stdbool.h>

#include "base/err.h"

/* malloc'ed; NULL on error. */
char *shim_socket_path(const char *address, const char *ns, const char *group, struct err *err);
/* Is there a daemon, and will there be one in a moment? Takes half a second if it is busy. */
bool shim_socket_answers(const char *path);
/* A listening socket, mode 0600; a file that nobody listens on is replaced. Or -errno. */
int shim_socket_listen(const char *path, struct err *err);

#endif
