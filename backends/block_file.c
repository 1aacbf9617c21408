/*
 * block_file.c - a raw file or block device: opening it, and what I/O on it consists of
 *
 * Two machines that write one disk destroy it, so the disk is locked before anything else is known
 * about it: an open file description lock, which belongs to the descriptor and not to the process (a
 * POSIX lock vanishes when any descriptor of the file is closed), and O_EXCL on block devices, which
 * also keeps a mounted one away and works when two containers have device nodes of their own. The lock
 * is dropped by hand at the end: the descriptor's last reference may be io_uring's, which the kernel
 * lets go of only some time after the ring is closed.
 *
 * A lock says that it is there, not whose it is. In a migration each side has to recognize the other's:
 * then it is in two parts with one free byte between them, at a place far beyond the end that only the
 * two know. Anybody else's lock, which is of everything, still meets both. The part above that place is
 * taken first: it decides, since nobody can have everything then, and is what the other side looks for.
 *
 * The file's size is taken once. If it shrinks under us, reads there find the end of the file and fail
 * with -EIO; nothing is ever made up.
 *
 * O_DIRECT wants memory and lengths aligned, a guest's buffers may lie anywhere (virtio has no such
 * rule). Such a request goes through a bounce buffer, piece by piece. The number of these buffers is
 * bounded, since a hostile guest can make every request need one.
 *
 * Zeroes: ZERO_RANGE where the file system has it, PUNCH_HOLE when the guest allows giving the space
 * back, and written zeroes where neither works (found out by trying, as a try that works costs
 * nothing). Discard is advice: where it turns out not to work it counts as done.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backends/block_file.h"
#include "base/fd.h"
#include "base/log.h"

#define BOUNCE_LEN   (128 << 10)
#define BOUNCE_ALIGN 4096
#define BOUNCES_MAX  16

/* A step's transfer: a multiple of every block size that stays below what one call moves. */
#define TRANSFER_MAX (1u << 30)

/* ---- opening ---- */

static short lock_type(const struct block *b)
{
	return b->read_only ? F_RDLCK : F_WRLCK;
}

/* @len 0: up to the end of all files. */
static int set_lock(struct block *b, short type, uint64_t from, uint64_t len)
{
	struct flock l = {
		.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)from, .l_len = (off_t)len
	};

	return fcntl(((struct block_file *)b)->fd, F_OFD_SETLK, &l);
}

static int take_marked(struct block *b, uint64_t mark)
{
	if (set_lock(b, lock_type(b), mark + 1, 0))
		return -1;
	if (!set_lock(b, lock_type(b), 0, mark))
		return set_lock(b, F_UNLCK, mark, 1); /* if all was ours before */
	int error = errno;

	set_lock(b, F_UNLCK, 0, 0);
	errno = error;
	return -1;
}

int block_file_lock(struct block *b, bool hold, uint64_t mark, struct err *err)
{
	struct block_file *f = (struct block_file *)b;
	int rc;

	if (hold && mark)
		rc = take_marked(b, mark);
	else
		rc = set_lock(b, hold ? lock_type(b) : F_UNLCK, 0, 0);
	if (!rc) {
		/* A device's pages that were read before another host wrote to it. Advice: it may fail. */
		if (hold && f->is_device)
			posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
		return 0;
	}
	if (errno == EAGAIN || errno == EACCES)
		return err_set(err, EBUSY, "disk %s is in use by another virtual machine%s",
			       b->path,
			       b->read_only ? " that writes to it" :
					      ": stop it first (only machines that all have it "
					      "read-only may share a disk)");
	return err_set_sys(err, errno, "cannot lock disk %s", b->path);
}

bool block_file_marked(struct block *b, uint64_t mark)
{
	struct flock l = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)mark + 1, .l_len = 1
	};

	/* The kernel (and a file server) tell where the lock in the way begins. */
	return !fcntl(((struct block_file *)b)->fd, F_OFD_GETLK, &l) && l.l_type != F_UNLCK &&
	       l.l_start == (off_t)mark + 1;
}

int block_file_sync(struct block *b, struct err *err)
{
	if (b->read_only || !fdatasync(((struct block_file *)b)->fd))
		return 0;
	return err_set_sys(err, errno, "disk %s: what was written does not reach it", b->path);
}

static int open_failed(const struct block_file *f, bool direct, int error, struct err *err)
{
	const char *path = f->b.path;

	switch (error) {
	case EBUSY:
		return err_set(
			err, EBUSY,
			"disk %s is in use by another virtual machine, or mounted on this host",
			path);
	case EINVAL:
		if (direct)
			return err_set(
				err, EINVAL,
				"the file system of disk %s does not support direct I/O: use "
				"direct=off",
				path);
		break;
	case EROFS:
	case EACCES:
		if (!f->b.read_only)
			return err_set_sys(err, error,
					   "cannot write disk %s (read-only=on only reads)", path);
		break;
	}
	return err_set_sys(err, error, "cannot open disk %s", path);
}

/* Looked at before it is opened: opening a FIFO waits, opening a tape rewinds it. */
static int check_type(struct block_file *f, const struct stat *st, struct err *err)
{
	f->is_device = S_ISBLK(st->st_mode);
	if (f->is_device || S_ISREG(st->st_mode))
		return 0;
	return err_set(err, EINVAL, "disk %s is neither a regular file nor a block device",
		       f->b.path);
}

static int open_disk(struct block_file *f, const struct block_options *o, struct err *err)
{
	int flags = O_CLOEXEC | (o->read_only ? O_RDONLY : O_RDWR);
	struct stat st;

	if (stat(o->path, &st))
		return err_set_sys(err, errno, "cannot open disk %s", o->path);
	int rc = check_type(f, &st, err);

	if (rc)
		return rc;
	if (o->direct)
		flags |= O_DIRECT;
	if (o->writethrough)
		flags |= O_DSYNC;
	if (f->is_device && !o->read_only && !o->unlocked)
		flags |= O_EXCL;
	f->fd = open(o->path, flags);
	if (f->fd < 0)
		return open_failed(f, o->direct, errno, err);
	if (fstat(f->fd, &st))
		return err_set_sys(err, errno, "cannot look at disk %s", o->path);
	rc = check_type(f, &st, err);
	return rc || o->unlocked ? rc : block_file_lock(&f->b, true, 0, err);
}

/* The smallest block that O_DIRECT reads here; what is asked for is read, nothing else tells for sure. */
static int probe_direct(struct block_file *f, struct err *err)
{
	cleanup_free void *buf = aligned_alloc(BOUNCE_ALIGN, BOUNCE_ALIGN);
	uint32_t block = f->b.logical_block;
	ssize_t n;

	if (!buf)
		return err_set(err, ENOMEM, "out of memory for disk %s", f->b.path);
	while ((n = pread(f->fd, buf, block, 0)) < 0 && errno == EINVAL && block < BOUNCE_ALIGN)
		block *= 2;
	if (n < 0)
		return errno == EINVAL ? open_failed(f, true, EINVAL, err) :
					 err_set_sys(err, errno, "cannot read disk %s", f->b.path);
	if (block > 512 && !f->is_device)
		log_warn("disk %s: direct I/O works in units of 4096 bytes here, so the guest sees "
			 "4096-byte sectors; an image partitioned for 512 needs direct=off",
			 f->b.path);
	f->b.logical_block = block > 512 ? 4096 : 512;
	f->mem_align = f->b.logical_block;
	return 0;
}

static int device_geometry(struct block_file *f, uint64_t *size, struct err *err)
{
	unsigned physical = 0;
	int logical = 0;

	if (ioctl(f->fd, BLKGETSIZE64, size) || ioctl(f->fd, BLKSSZGET, &logical) ||
	    ioctl(f->fd, BLKPBSZGET, &physical))
		return err_set_sys(err, errno, "cannot get the size of disk %s", f->b.path);
	if (logical != 512 && logical != 4096)
		return err_set(err, EINVAL,
			       "disk %s has sectors of %d bytes; only 512 and 4096 are supported",
			       f->b.path, logical);
	f->b.logical_block = (uint32_t)logical;
	f->b.physical_block = physical;
	return 0;
}

static int file_geometry(struct block_file *f, uint64_t *size, struct err *err)
{
	struct stat st;

	if (fstat(f->fd, &st))
		return err_set_sys(err, errno, "cannot get the size of disk %s", f->b.path);
	*size = (uint64_t)st.st_size;
	f->b.logical_block = 512;
	f->b.physical_block = 4096; /* page cache and file systems work in these */
	return 0;
}

static int measure(struct block_file *f, const struct block_options *o, struct err *err)
{
	uint64_t size = 0;
	int rc = f->is_device ? device_geometry(f, &size, err) : file_geometry(f, &size, err);

	if (!rc && size < 512)
		rc = err_set(err, EINVAL, "disk %s has %" PRIu64 " bytes; a disk has at least 512",
			     f->b.path, size);
	if (!rc && o->direct)
		rc = probe_direct(f, err);
	if (rc)
		return rc;
	f->b.size = size & ~(uint64_t)(f->b.logical_block - 1);
	if (!f->b.size)
		return err_set(err, EINVAL, "disk %s is smaller than one sector of %u bytes",
			       f->b.path, f->b.logical_block);
	if (f->b.size != size)
		log_warn("disk %s: its size is not a multiple of %u bytes; the last %" PRIu64
			 " bytes are not seen by the guest",
			 f->b.path, f->b.logical_block, size - f->b.size);
	if (f->b.physical_block < f->b.logical_block ||
	    f->b.physical_block & (f->b.physical_block - 1))
		f->b.physical_block = f->b.logical_block;
	return 0;
}

/* A disk has queue/ in its own folder, a partition in the one above. */
static bool device_discards(const struct block_file *f)
{
	static const char *const up[] = { "", "../" };
	struct stat st;
	bool can = false;

	if (fstat(f->fd, &st))
		return false;
	for (size_t i = 0; i < 2 && !can; i++) {
		char path[128], text[32] = "";

		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/discard_max_bytes",
			 major(st.st_rdev), minor(st.st_rdev), up[i]);
		cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);

		can = fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 && strtoull(text, NULL, 10);
	}
	return can;
}

static void probe_discard(struct block_file *f, const struct block_options *o)
{
	struct block *b = &f->b;

	b->can_write_zeroes = !b->read_only;
	if (b->read_only || !o->discard)
		return;
	if (f->is_device) {
		b->can_discard = device_discards(f);
	} else {
		/* Past the end there is nothing to lose. */
		uint64_t end = (b->size + 2 * 4096) & ~UINT64_C(4095);

		b->can_discard = !fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					    (off_t)end, 4096);
	}
	f->discard = b->can_discard;
}

static int set_up(struct block_file *f, const struct block_options *o, struct err *err)
{
	f->b.path = strdup(o->path);
	if (!f->b.path)
		return err_set(err, ENOMEM, "out of memory for disk %s", o->path);
	f->b.read_only = o->read_only;
	f->mem_align = 1;
	int rc = open_disk(f, o, err);

	if (!rc)
		rc = measure(f, o, err);
	if (!rc)
		probe_discard(f, o);
	return rc;
}

struct block *block_file_open(const struct block_options *o, struct err *err)
{
	struct block_file *f = NULL;
	struct err why = { 0 };

	if (o->aio != BLOCK_AIO_THREADS)
		f = block_uring_new(o->depth, &why);
	if (!f && o->aio == BLOCK_AIO_URING) {
		err_set(err, why.code, "disk %s: %s: use aio=threads", o->path, why.msg);
		return NULL;
	}
	if (!f && o->aio == BLOCK_AIO_AUTO)
		log_debug("disk %s: %s; taking threads", o->path, why.msg);
	if (!f)
		f = block_threads_new(err);
	if (f && set_up(f, o, err)) {
		f->b.ops->free(&f->b);
		f = NULL;
	}
	return f ? &f->b : NULL;
}

void block_file_fini(struct block_file *f)
{
	if (f->fd >= 0)
		block_file_lock(&f->b, false, 0, NULL);
	fd_close(&f->fd);
	ptr_free(&f->b.path);
}

/* ---- bounce buffers ---- */

static int get_bounce(struct block_file *f, struct block_request *r)
{
	if (r->backend_data)
		return 0;
	if (atomic_fetch_add(&f->bounces, 1) >= BOUNCES_MAX) {
		atomic_fetch_sub(&f->bounces, 1);
		return -EAGAIN;
	}
	r->backend_data = aligned_alloc(BOUNCE_ALIGN, BOUNCE_LEN);
	if (!r->backend_data) {
		atomic_fetch_sub(&f->bounces, 1);
		return -ENOMEM;
	}
	if (r->op == BLOCK_WRITE_ZEROES)
		memset(r->backend_data, 0, BOUNCE_LEN);
	return 0;
}

void block_file_drop(struct block_file *f, struct block_request *r)
{
	if (!r->backend_data)
		return;
	free(r->backend_data);
	r->backend_data = NULL;
	atomic_fetch_sub(&f->bounces, 1);
}

/* Copy between @buf and the request's memory from byte @at on. */
static void copy(const struct block_request *r, uint64_t at, uint8_t *buf, size_t len, bool to_buf)
{
	for (unsigned i = 0; i < r->niov && len; i++) {
		const struct iovec *v = &r->iov[i];

		if (at >= v->iov_len) {
			at -= v->iov_len;
			continue;
		}
		size_t n = v->iov_len - at < len ? v->iov_len - at : len;
		uint8_t *p = (uint8_t *)v->iov_base + at;

		memcpy(to_buf ? buf : p, to_buf ? p : buf, n);
		buf += n;
		len -= n;
		at = 0;
	}
}

static bool is_aligned(const struct block_file *f, const struct block_request *r)
{
	uintptr_t bits = 0;

	if (f->mem_align == 1)
		return true;
	for (unsigned i = 0; i < r->niov; i++)
		bits |= (uintptr_t)r->iov[i].iov_base | r->iov[i].iov_len;
	return !(bits & (f->mem_align - 1));
}

/* ---- a request's steps ---- */

static int bounce_step(struct block_file *f, struct block_request *r, struct block_step *s)
{
	int rc = get_bounce(f, r);

	if (rc)
		return rc;
	s->len = r->len - r->progress < BOUNCE_LEN ? r->len - r->progress : BOUNCE_LEN;
	s->one = (struct iovec){ r->backend_data, s->len };
	s->iov = &s->one;
	s->niov = 1;
	if (r->op == BLOCK_WRITE)
		copy(r, r->progress, r->backend_data, s->len, true);
	return 0;
}

/*
 * The rest of a request whose first call came back short: range by range, as that needs no second iovec
 * array. Also how a range that is too long for one call is cut.
 */
static void rest_step(const struct block_request *r, struct block_step *s)
{
	uint64_t at = r->progress;
	unsigned i = 0;

	while (at >= r->iov[i].iov_len)
		at -= r->iov[i++].iov_len;
	s->len = r->iov[i].iov_len - at;
	if (s->len > TRANSFER_MAX)
		s->len = TRANSFER_MAX;
	s->one = (struct iovec){ (uint8_t *)r->iov[i].iov_base + at, s->len };
	s->iov = &s->one;
	s->niov = 1;
}

static int transfer_step(struct block_file *f, struct block_request *r, struct block_step *s)
{
	s->call = r->op == BLOCK_READ ? BLOCK_CALL_READ : BLOCK_CALL_WRITE;
	if (r->backend_data || !is_aligned(f, r))
		return bounce_step(f, r, s);
	if (r->progress || r->len > TRANSFER_MAX) {
		rest_step(r, s);
	} else {
		s->iov = r->iov;
		s->niov = r->niov;
	}
	return 0;
}

static int zeroes_step(struct block_file *f, struct block_request *r, struct block_step *s)
{
	s->call = BLOCK_CALL_FALLOCATE;
	if (r->unmap && f->discard && !f->no_punch) {
		s->mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
		return 0;
	}
	if (!f->no_zero_range) {
		s->mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
		return 0;
	}
	s->call = BLOCK_CALL_WRITE;
	return bounce_step(f, r, s);
}

int block_file_step(struct block_file *f, struct block_request *r, struct block_step *s)
{
	*s = (struct block_step){
		.offset = r->offset + r->progress,
		.len = r->len - r->progress,
	};
	switch (r->op) {
	case BLOCK_READ:
	case BLOCK_WRITE:
		return transfer_step(f, r, s);
	case BLOCK_FLUSH:
		s->call = BLOCK_CALL_SYNC;
		return 0;
	case BLOCK_DISCARD:
		s->call = f->is_device ? BLOCK_CALL_DISCARD : BLOCK_CALL_FALLOCATE;
		s->mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
		return 0;
	case BLOCK_WRITE_ZEROES:
		return zeroes_step(f, r, s);
	}
	return -ENOTSUP;
}

/* The host has no such call for this file: another way, or none is needed. */
static int fall_back(struct block_file *f, struct block_request *r, const struct block_step *s)
{
	if (r->op == BLOCK_DISCARD)
		return 0;
	if (s->mode & FALLOC_FL_PUNCH_HOLE)
		f->no_punch = true;
	else
		f->no_zero_range = true;
	return 1;
}

static int advance(struct block_file *f, struct block_request *r, const struct block_step *s,
		   int64_t result)
{
	bool moves = s->call == BLOCK_CALL_READ || s->call == BLOCK_CALL_WRITE;

	if (result == -EINTR || result == -EAGAIN)
		return 1;
	if (!moves) {
		bool lacks = s->call == BLOCK_CALL_FALLOCATE || s->call == BLOCK_CALL_DISCARD;

		if (lacks && (result == -EOPNOTSUPP || result == -ENOSYS))
			return fall_back(f, r, s);
		return result < 0 ? (int)result : 0;
	}
	if (result < 0)
		return (int)result;
	/* The end of a file that was cut shorter; a device cannot say it otherwise either. */
	if (!result || (uint64_t)result > s->len || (result & (f->mem_align - 1)))
		return -EIO;
	if (r->backend_data && r->op == BLOCK_READ)
		copy(r, r->progress, r->backend_data, (size_t)result, false);
	r->progress += (uint64_t)result;
	return r->progress < r->len;
}

int block_file_advance(struct block_file *f, struct block_request *r, const struct block_step *s,
		       int64_t result)
{
	int rc = advance(f, r, s, result);

	if (rc <= 0)
		block_file_drop(f, r);
	return rc;
}

int64_t block_file_call(struct block_file *f, const struct block_step *s)
{
	uint64_t range[2] = { s->offset, s->len };
	int64_t n = -1;

	switch (s->call) {
	case BLOCK_CALL_READ:
		n = preadv(f->fd, s->iov, (int)s->niov, (off_t)s->offset);
		break;
	case BLOCK_CALL_WRITE:
		n = pwritev(f->fd, s->iov, (int)s->niov, (off_t)s->offset);
		break;
	case BLOCK_CALL_SYNC:
		n = fdatasync(f->fd);
		break;
	case BLOCK_CALL_FALLOCATE:
		n = fallocate(f->fd, s->mode, (off_t)s->offset, (off_t)s->len);
		break;
	case BLOCK_CALL_DISCARD:
		n = ioctl(f->fd, BLKDISCARD, range);
		break;
	}
	return n < 0 ? -errno : n;
}
