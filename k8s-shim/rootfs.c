/*
 * rootfs.c - mounting the image, and what is in it
 *
 * An image, or a volume that other pods write, may have a link to anywhere where a disk is expected.
 * Such files are opened here once, with openat2() holding the way below their root, and handed to the
 * VMM as descriptors: a path could be another file the second time.
 */
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/rootfs.h"

static const struct {
	const char *name;
	unsigned long set, clear;
} flags[] = {
	{ "async", 0, MS_SYNCHRONOUS },   { "atime", 0, MS_NOATIME },
	{ "bind", MS_BIND, 0 },           { "defaults", 0, 0 },
	{ "dev", 0, MS_NODEV },           { "diratime", 0, MS_NODIRATIME },
	{ "dirsync", MS_DIRSYNC, 0 },     { "exec", 0, MS_NOEXEC },
	{ "mand", MS_MANDLOCK, 0 },       { "noatime", MS_NOATIME, 0 },
	{ "nodev", MS_NODEV, 0 },         { "nodiratime", MS_NODIRATIME, 0 },
	{ "noexec", MS_NOEXEC, 0 },       { "nomand", 0, MS_MANDLOCK },
	{ "norelatime", 0, MS_RELATIME }, { "nosuid", MS_NOSUID, 0 },
	{ "rbind", MS_BIND | MS_REC, 0 }, { "relatime", MS_RELATIME, 0 },
	{ "remount", MS_REMOUNT, 0 },     { "ro", MS_RDONLY, 0 },
	{ "rw", 0, MS_RDONLY },           { "strictatime", MS_STRICTATIME, 0 },
	{ "suid", 0, MS_NOSUID },         { "sync", MS_SYNCHRONOUS, 0 },
};

static bool take_flag(const char *option, unsigned long *f)
{
	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
		if (!strcmp(flags[i].name, option)) {
			*f = (*f & ~flags[i].clear) | flags[i].set;
			return true;
		}
	return false;
}

/* Options that are no flags, comma by comma; malloc'ed. */
static char *data_of(const Pb__Mount *m, unsigned long *f)
{
	size_t room = 1, n = 0;

	for (size_t i = 0; i < m->n_options; i++)
		room += strlen(m->options[i]) + 1;
	char *data = malloc(room);

	if (!data)
		return NULL;
	data[0] = '\0';
	for (size_t i = 0; i < m->n_options; i++)
		if (!take_flag(m->options[i], f))
			n += (size_t)sprintf(data + n, "%s%s", n ? "," : "", m->options[i]);
	return data;
}

static int mount_one(const char *target, const Pb__Mount *m, struct err *err)
{
	unsigned long f = 0;
	cleanup_free char *data = data_of(m, &f);

	if (!data)
		return err_set(err, ENOMEM, "out of memory");
	/* mount(2) takes a page of options at most */
	if (strlen(data) >= (size_t)sysconf(_SC_PAGESIZE))
		return err_set(
			err, EINVAL,
			"the image has too many layers: its mount options are %zu bytes long",
			strlen(data));
	if (mount(m->source, target, m->type, f, data))
		return err_set_sys(err, errno, "cannot mount the image (%s)", m->type);
	if ((f & MS_BIND) && (f & ~(unsigned long)(MS_BIND | MS_REC)) &&
	    mount(NULL, target, NULL, f | MS_REMOUNT, NULL)) {
		err_set_sys(err, errno, "cannot set the options of the image's mount");
		umount2(target, MNT_DETACH);
		return err->code;
	}
	return 0;
}

int rootfs_mount(const char *dir, Pb__Mount *const *mounts, size_t n, struct err *err)
{
	cleanup_free char *target = NULL;

	if (asprintf(&target, "%s/rootfs", dir) < 0) {
		target = NULL;
		return err_set(err, ENOMEM, "out of memory");
	}
	if (n && mkdir(target, 0711) && errno != EEXIST)
		return err_set_sys(err, errno, "cannot make %s", target);
	for (size_t i = 0; i < n; i++) {
		int rc = mount_one(target, mounts[i], err);

		if (rc) {
			rootfs_unmount(dir);
			return rc;
		}
	}
	return 0;
}

void rootfs_unmount(const char *dir)
{
	cleanup_free char *target = NULL;

	if (asprintf(&target, "%s/rootfs", dir) < 0) {
		target = NULL;
		return;
	}
	for (unsigned i = 0; i < 64 && !umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW); i++)
		;
}

static int open_how(int dirfd, const char *path, int oflags, uint64_t resolve)
{
	struct open_how how = { .flags = (uint64_t)(oflags | O_CLOEXEC), .resolve = resolve };
	long fd = syscall(SYS_openat2, dirfd, path, &how, sizeof(how));

	return fd < 0 ? -errno : (int)fd;
}

int open_inside(int dirfd, const char *path, int oflags)
{
	return open_how(dirfd, path, oflags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
}

int open_inside_plain(int dirfd, const char *path, int oflags)
{
	return open_how(dirfd, path, oflags, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
}
