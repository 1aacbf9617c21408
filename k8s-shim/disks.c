/*
 * disks.c - block devices of the pod and images in its container become the machine's disks
 *
 * A volume of mode Block arrives as a device node that the runtime is to make: a number, not a path. The
 * node's own file for that number is looked up, so that locks and messages are about the file everybody
 * else uses.
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/disks.h"
#include "k8s-shim/holder.h"
#include "k8s-shim/rootfs.h"

#define ROOT_DEVICE "/dev/rootdisk"
#define SERIAL_MAX  20 /* virtio 1.2, 5.2.6 */

const char *pod_annotation(const struct bundle *b, const struct node_config *c, const char *name,
			   struct err *err)
{
	char full[128];

	err->code = 0;
	snprintf(full, sizeof(full), ANNOTATION "%s", name);
	const char *value = bundle_annotation(b, full);

	if (value && !node_config_allows(c, name)) {
		err_set(err, EPERM,
			"annotation %s is not allowed on this node (\"annotations\" in its "
			"coracle.json)",
			full);
		return NULL;
	}
	return value;
}

static struct disk *next(struct disks *d, const char *name, struct err *err)
{
	struct disk *disk = &d->list[d->count];

	if (d->count == DISKS_MAX) {
		err_set(err, E2BIG, "disk %s: a machine has at most %d disks", name, DISKS_MAX);
		return NULL;
	}
	memset(disk, 0, sizeof(*disk));
	disk->fd = -1;
	snprintf(disk->name, sizeof(disk->name), "%s", name);
	d->count++;
	return disk;
}

/* ---- block devices ---- */

/* The node's own file of a block device, or NULL. */
static char *device_file(unsigned major, unsigned minor)
{
	char path[64], line[256], *out = NULL;
	struct stat st;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/uevent", major, minor);
	FILE *f = fopen(path, "re");

	while (f && !out && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		if (!strncmp(line, "DEVNAME=", 8) && asprintf(&out, "/dev/%s", line + 8) < 0)
			out = NULL;
	}
	if (f)
		fclose(f);
	if (out && (stat(out, &st) || !S_ISBLK(st.st_mode) || st.st_rdev != makedev(major, minor)))
		ptr_free(&out);
	return out;
}

static char *make_node(const char *dir, const char *name, unsigned major, unsigned minor,
		       struct err *err)
{
	char *path;

	if (asprintf(&path, "%s/%s", dir, name) < 0) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	if (mknod(path, S_IFBLK | 0600, makedev(major, minor))) {
		err_set_sys(err, errno, "cannot make device node %u:%u for disk %s", major, minor,
			    name);
		free(path);
		return NULL;
	}
	return path;
}

/* A name that coracle takes as an id and virtio as a serial number */
static int check_name(const char *name, struct err *err)
{
	size_t n = strlen(name);
	bool good = n && n <= SERIAL_MAX && isalnum((unsigned char)*name);

	for (const char *s = name; *s; s++)
		good = good && (isalnum((unsigned char)*s) || strchr("._-", *s));
	return good ? 0 :
		      err_set(err, EINVAL,
			      "devicePath .../%s: the last part is the disk's serial number, 1 to "
			      "%d "
			      "letters, digits, '.', '_' or '-'",
			      name, SERIAL_MAX);
}

static int add_device(struct disks *d, const struct bundle_device *dev, const struct node_config *c,
		      const char *state_dir, struct err *err)
{
	const char *slash = strrchr(dev->path, '/'), *name = slash ? slash + 1 : dev->path;
	int rc = check_name(name, err);
	struct disk *disk = rc ? NULL : next(d, name, err);

	if (!disk)
		return err->code;
	disk->has_serial = true;
	disk->direct = c->disk_direct;
	disk->read_only = dev->read_only;
	disk->path = device_file(dev->major, dev->minor);
	if (!disk->path)
		disk->path = make_node(state_dir, name, dev->major, dev->minor, err);
	return disk->path ? 0 : err->code;
}

static const struct bundle_device *root_device(const struct bundle *b)
{
	for (unsigned i = 0; i < b->ndevices; i++)
		if (b->devices[i].block && !strcmp(b->devices[i].path, ROOT_DEVICE))
			return &b->devices[i];
	return NULL;
}

static int add_devices(struct disks *d, const struct bundle *b, const struct node_config *c,
		       const char *state_dir, struct err *err)
{
	const struct bundle_device *root = root_device(b);
	int rc = root && d->mode == MODE_BLOCK ? add_device(d, root, c, state_dir, err) : 0;

	for (unsigned i = 0; i < b->ndevices && !rc; i++)
		if (b->devices[i].block && &b->devices[i] != root)
			rc = add_device(d, &b->devices[i], c, state_dir, err);
	return rc;
}

/* ---- an image in /disk ---- */

static bool ends_in(const char *name, const char *end)
{
	size_t n = strlen(name), e = strlen(end);

	return n > e && !strcasecmp(name + n - e, end);
}

/* The one image in the directory. 0 with *out NULL: there is none. */
static int find_image(int dir, char **out, struct err *err)
{
	cleanup_fd int again = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = again < 0 ? NULL : fdopendir(again);
	struct dirent *e;
	int rc = 0;

	*out = NULL;
	if (!d)
		return err_set_sys(err, errno, "cannot read /disk");
	fd_steal(&again);
	while (!rc && (e = readdir(d))) {
		bool qcow2 = ends_in(e->d_name, ".qcow2");

		if (e->d_name[0] == '.' ||
		    !(qcow2 || ends_in(e->d_name, ".raw") || ends_in(e->d_name, ".img")))
			continue;
		if (qcow2)
			rc = err_set(err, ENOTSUP,
				     "/disk/%s: qcow2 disks are not possible yet; convert it: "
				     "qemu-img convert -O raw",
				     e->d_name);
		else if (*out)
			rc = err_set(err, EINVAL, "/disk has two images, %s and %s; one is needed",
				     *out, e->d_name);
		else if (!(*out = strdup(e->d_name)))
			rc = err_set(err, ENOMEM, "out of memory");
	}
	closedir(d);
	if (rc)
		ptr_free(out);
	return rc;
}

/* A volume at /disk, else the image's directory. -1: neither is there. */
static int open_disk_dir(const struct bundle *b, int rootfs, bool *volume, bool *read_only)
{
	const struct bundle_mount *m = bundle_mount_at(b, "/disk");

	*volume = m && *m->source;
	*read_only = *volume && m->read_only;
	if (*volume)
		return open(m->source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return rootfs < 0 ? -1 : open_inside(rootfs, "disk", O_RDONLY | O_DIRECTORY);
}

/*
 * The image's own file lies below the container's overlay, so the first one who opens it for writing
 * (the VMM) gets a copy of its own in the container's layer, which goes with the container. The layer of
 * the image stays as it is for other pods. A volume at /disk is written itself.
 */
static int add_image(struct disks *d, const struct bundle *b, int rootfs, bool *found,
		     struct err *err)
{
	bool volume, read_only;
	cleanup_fd int dir = open_disk_dir(b, rootfs, &volume, &read_only);
	cleanup_free char *name = NULL;
	struct stat st;

	*found = false;
	if (dir < 0)
		return 0;
	int rc = find_image(dir, &name, err);

	if (rc || !name)
		return rc;
	cleanup_fd int fd = open_inside_plain(dir, name, O_RDONLY | O_NONBLOCK);

	if (fd < 0)
		return err_set_sys(err, fd, "cannot open /disk/%s", name);
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return err_set(err, EINVAL, "/disk/%s is not a regular file", name);
	struct disk *disk = next(d, "rootdisk", err);

	if (!disk)
		return err->code;
	*found = disk->has_serial = true;
	disk->read_only = read_only;
	disk->fd = fd_steal(&fd);
	if (asprintf(&disk->path, "/proc/self/fd/%d", disk->fd) < 0)
		disk->path = NULL;
	if (asprintf(&disk->shown, "/disk/%s", name) < 0)
		disk->shown = NULL;
	return disk->path && disk->shown ? 0 : err_set(err, ENOMEM, "out of memory");
}

/* ---- which mode ---- */

static int no_disk(const char *mode, struct err *err)
{
	if (mode && !strcmp(mode, "block"))
		return err_set(err, EINVAL,
			       "mode block: no volumeDevices entry has devicePath " ROOT_DEVICE);
	if (mode && !strcmp(mode, "disk"))
		return err_set(err, EINVAL,
			       "mode disk: there is no /disk/*.raw or *.img in the image");
	if (mode && strcmp(mode, "container"))
		return err_set(err, EINVAL,
			       "annotation " ANNOTATION "mode is \"%s\": it can be block or disk",
			       mode);
	return err_set(err, ENOTSUP,
		       "running an ordinary image in a machine is not possible yet: give the "
		       "container a volumeDevices entry with devicePath " ROOT_DEVICE
		       ", or an image with /disk/*.raw or *.img");
}

int disks_find(struct disks *d, const struct bundle *b, const struct node_config *c, int rootfs,
	       const char *state_dir, struct err *err)
{
	const char *mode = pod_annotation(b, c, "mode", err);
	bool found = false;
	int rc = err->code;

	memset(d, 0, sizeof(*d));
	if (rc)
		return rc;
	if (root_device(b) && (!mode || !strcmp(mode, "block"))) {
		d->mode = MODE_BLOCK;
		found = true;
	} else if (!mode || !strcmp(mode, "disk")) {
		d->mode = MODE_DISK;
		rc = add_image(d, b, rootfs, &found, err);
	}
	if (!rc && !found)
		rc = no_disk(mode, err);
	if (!rc)
		rc = add_devices(d, b, c, state_dir, err);
	if (rc)
		disks_fini(d);
	return rc;
}

int disks_add_file(struct disks *d, const char *name, const char *path, struct err *err)
{
	struct disk *disk = next(d, name, err);

	if (!disk)
		return err->code;
	disk->read_only = disk->has_serial = true;
	disk->path = strdup(path);
	return disk->path ? 0 : err_set(err, ENOMEM, "out of memory");
}

#define IN_USE " is in use by another virtual machine"

/* @disk's path, if @text has it, is followed by IN_USE: say whose it is. */
static void name_holder(const struct disk *disk, const char *state_dir, char *text, size_t room)
{
	char *at = strstr(text, IN_USE);
	size_t n = strlen(disk->path);

	if (!at || (size_t)(at - text) < n || memcmp(at - n, disk->path, n))
		return;
	at += strlen(IN_USE);
	cleanup_free char *name = holder_find(disk->path, state_dir), *rest = strdup(at);

	/* What else it might have been ends the other sentence that the VMM has for this. */
	if (name && rest)
		snprintf(at, room - (size_t)(at - text), " (%s)%s", name, *rest == ',' ? "" : rest);
}

void disks_explain(const struct disks *d, const char *state_dir, char *text, size_t room)
{
	for (unsigned i = 0; i < d->count; i++) {
		const struct disk *disk = &d->list[i];

		name_holder(disk, state_dir, text, room);
		char *at = disk->shown ? strstr(text, disk->path) : NULL;
		size_t n = at ? strlen(disk->path) : 0;
		cleanup_free char *rest = at ? strdup(at + n) : NULL;

		if (rest && (*rest < '0' || *rest > '9'))
			snprintf(at, room - (size_t)(at - text), "%s%s", disk->shown, rest);
	}
}

void disks_fini(struct disks *d)
{
	for (unsigned i = 0; i < d->count; i++) {
		free(d->list[i].path);
		free(d->list[i].shown);
		fd_close(&d->list[i].fd);
	}
	d->count = 0;
}
