/*
 * rootfs.h - the container image's file system, and opening files in it that are not to be trusted
 */
#ifndef K8S_SHIM_ROOTFS_H
#define K8S_SHIM_ROOTFS_H

#include <stddef.h>

#include "base/err.h"
#include "k8s-shim/proto/task.pb-c.h"

/* Mount what containerd says on DIR/rootfs. Nothing to mount is fine. */
int rootfs_mount(const char *dir, Pb__Mount *const *mounts, size_t n, struct err *err);
void rootfs_unmount(const char *dir); /* not mounted is fine */

/*
 * Open @path (relative) below directory @dirfd, whatever links there are in it. O_CLOEXEC.
 * Descriptor or -errno.
 */
int open_inside(int dirfd, const char *path, int flags);
/* The same where no link at all is followed. */
int open_inside_plain(int dirfd, const char *path, int flags);

#endif
