/*
 * block.h - where a disk's bytes are
 *
 * A struct block answers requests asynchronously on one loop's thread: queue as many as there are,
 * submit once, done() comes later from the loop. Offsets and lengths are bytes, multiples of the
 * logical block size (the device has checked), inside the disk; memory may lie at any address.
 * Implementations: block_uring.c, block_threads.c (where io_uring is refused), block_ram.c (tests,
 * fuzzers).
 *
 * All completions that are there at once make one pass: pass_begin(), done() for each, pass_end(), so
 * that the user takes its lock and signals its guest once. Whatever done() and pass_end() queue and
 * submit goes out together after the pass.
 */
#ifndef BACKENDS_BLOCK_H
#define BACKENDS_BLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "base/loop.h"

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES };

struct block_request {
	enum block_op op;
	bool unmap; /* WRITE_ZEROES: space may be given back */
	uint64_t offset, len;
	const struct iovec *iov; /* READ and WRITE; the owner's, until done */
	unsigned niov;
	/* On the loop's thread, never from within queue(). result 0 or -errno; never short. */
	void (*done)(struct block_request *r, int result);
	struct block_request *next; /* the backend's while in flight */
	uint64_t progress;          /* the backend's: bytes already moved, after a short transfer */
	void *backend_data;         /* the backend's */
};

struct block;

struct block_ops {
	const char *name; /* "io_uring", "threads", "ram" */
	int (*attach)(struct block *b, struct loop *loop,
		      struct err *err); /* once, before requests */
	void (*queue)(struct block *b, struct block_request *r);
	void (*submit)(struct block *b); /* everything queued, in as few system calls as it takes */
	void (*free)(struct block *b);   /* nothing in flight; closes and unlocks */
	/*
	 * Give the disk's lock up, nothing in flight, or take it (again): a migration hands it over.
	 * @mark: 0, or a place that whoever was told of it recognizes this lock by, with marked().
	 * 0 or -errno, -EBUSY. NULL: nothing to lock.
	 */
	int (*lock)(struct block *b, bool hold, uint64_t mark, struct err *err);
	/* Is there somebody else's lock with this mark? Any thread. NULL with lock. */
	bool (*marked)(struct block *b, uint64_t mark);
	/* What the host holds back goes to stable storage; waits. Any thread. 0 or -errno. NULL: none */
	int (*sync)(struct block *b, struct err *err);
};

struct block {
	const struct block_ops *ops;
	char *path;              /* as configured, for messages */
	uint64_t size;           /* bytes, multiple of logical_block */
	uint32_t logical_block;  /* 512 or 4096 */
	uint32_t physical_block; /* preferred write size, >= logical_block */
	bool read_only;
	bool can_discard, can_write_zeroes;
	/* The user's, on the loop's thread; both may be NULL. */
	void (*pass_begin)(struct block *b);
	void (*pass_end)(struct block *b);
	void *user;
};

/* Marks lie beyond the end of any disk: [min, 2 * min - 2). */
#define BLOCK_MARK_MIN (UINT64_C(1) << 62)

enum block_aio { BLOCK_AIO_AUTO, BLOCK_AIO_URING, BLOCK_AIO_THREADS };

struct block_options {
	const char *path;
	bool read_only;
	bool direct;       /* O_DIRECT */
	bool writethrough; /* O_DSYNC: a write is done when it is on stable storage */
	bool discard;      /* offer discard and unmapping write-zeroes where the host can */
	/*
	 * A migration comes in: its source holds the lock, ops->lock() comes later. A block device is
	 * then open without O_EXCL, which cannot be had afterwards.
	 */
	bool unlocked;
	enum block_aio aio;
	unsigned depth; /* requests in flight at most */
};

/*
 * A raw file or block device (block_file.c). Takes an OFD lock (exclusive; shared when read-only) and
 * for block devices O_EXCL as well: a disk another machine has open is refused by name, -EBUSY. A
 * file whose size is not a multiple of 512 loses its tail, which is logged; smaller than that: -EINVAL.
 */
struct block *block_file_open(const struct block_options *o, struct err *err);

/* Memory, for tests and fuzzers: completes on loop_poll(). @fail_at: an offset that gives -EIO, or
 * UINT64_MAX. */
struct block *block_ram_new(uint64_t size, uint64_t fail_at, struct err *err);

#endif
