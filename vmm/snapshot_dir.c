/*
 * snapshot_dir.c - open a snapshot's directory
 *
 * O_NONBLOCK: a FIFO without a writer must not hold us. machine.json is for people and tools; the same
 * text is in the state file, under its checksum, and that is the one which counts.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "vmm/snapshot_dir.h"

static int open_file(int dir, const char *path, const char *name, uint64_t *size, struct err *err)
{
	cleanup_fd int fd =
		openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 && errno == ELOOP)
		return err_set(err, ELOOP, "%s/%s is a symbolic link: a snapshot has plain files",
			       path, name);
	if (fd < 0 && errno == ENOENT)
		return err_set(err, ENOENT, "%s is not a snapshot: it has no file %s", path, name);
	if (fd < 0)
		return err_set_sys(err, errno, "%s/%s", path, name);
	if (fstat(fd, &st) < 0)
		return err_set_sys(err, errno, "%s/%s", path, name);
	if (!S_ISREG(st.st_mode))
		return err_set(err, EINVAL, "%s/%s is not a plain file", path, name);
	*size = (uint64_t)st.st_size;
	return fd_steal(&fd);
}

static int open_state(struct snapshot_dir *d, int dir, const char *path, struct err *err)
{
	char peer[128];
	uint64_t size;
	int rc;

	d->state = open_file(dir, path, "state", &size, err);
	if (d->state < 0)
		return d->state;
	if (size > SNAPSHOT_STATE_MAX)
		return err_set(err, EFBIG,
			       "%s/state is no state of a machine: it has %" PRIu64 " bytes", path,
			       size);
	snprintf(peer, sizeof(peer), "%.100s/state", path);
	d->stream = stream_fd_new(d->state, peer, err);
	rc = d->stream ? vm_header_load(&d->header, d->stream, err) : err->code;
	return rc;
}

int snapshot_dir_open(struct snapshot_dir *d, const char *path, struct err *err)
{
	cleanup_fd int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc;

	*d = (struct snapshot_dir){ .state = -1, .memory = -1 };
	if (dir < 0)
		return err_set_sys(err, errno, "%s", path);
	rc = open_state(d, dir, path, err);
	if (!rc) {
		d->memory = open_file(dir, path, "memory", &d->memory_size, err);
		rc = d->memory < 0 ? d->memory : 0;
	}
	if (!rc && d->memory_size != d->header.ram)
		rc = err_set(err, EINVAL,
			     "%s/memory has %" PRIu64 " bytes, the machine has %" PRIu64 " of RAM",
			     path, d->memory_size, d->header.ram);
	if (rc)
		snapshot_dir_close(d);
	return rc;
}

void snapshot_dir_close(struct snapshot_dir *d)
{
	vm_header_fini(&d->header);
	stream_free(d->stream);
	d->stream = NULL;
	fd_close(&d->state);
	fd_close(&d->memory);
}
