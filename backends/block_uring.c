/*
 * block_uring.c - file I/O by io_uring
 *
 * submit() turns all that is queued into entries and makes one io_uring_enter(); the ring's own
 * descriptor is watched by the loop (no eventfd to read), and one wake-up reaps all there is in one
 * pass. What a pass queues again, short transfers included, goes out together at its end.
 *
 * More may be queued than the ring has room for (many queues): the rest waits in a list and moves up
 * as completions come. The same holds when there is no bounce buffer, and when the kernel is short
 * of memory and takes nothing: if then nothing is in flight that would wake us, a timer does.
 *
 * BLKDISCARD is no io_uring operation on the kernels we run on (fallocate() on a block device means
 * "write zeroes", which many SSDs cannot do by unmapping), so a device's discards go to a thread.
 *
 * Everything is set up before the sandbox is entered; at run time only io_uring_enter() is called.
 *
 * Roads not taken. SINGLE_ISSUER and DEFER_TASKRUN bind the ring to one thread, which would have to
 * enable it after it starts and before the sandbox, for one interrupt less when it is busy; with
 * COOP_TASKRUN there is none either. A registered file keeps the disk's lock and O_EXCL until the
 * kernel gets round to tear down the ring, so the next machine would find the disk in use.
 */
#include <liburing.h>
#include <stddef.h>
#include <stdlib.h>

#include "backends/block_file.h"
#include "base/log.h"

#define DEPTH_MAX 256 /* in flight at most; no disk gets faster with more */
#define REAP      32  /* completions looked at together */
#define RETRY_NS  UINT64_C(2000000)

struct slot {
	struct block_request *r;
	struct slot *next; /* free */
	struct block_step step;
};

struct block_uring {
	struct block_file f; /* first */
	struct io_uring ring;
	struct loop_watch watch;
	struct loop_timer retry;
	bool attached;
	bool in_pass;
	unsigned depth, in_flight; /* entries made and not reaped; at most depth */
	struct slot *free_slots;
	struct slot *slots;
	struct block_list pending;  /* waiting for an entry */
	struct block_list discards; /* queued for the pool */
	struct block_pool pool;     /* is_device and discard only */
};

static struct block_uring *of(struct block *b)
{
	return (struct block_uring *)b;
}

/* ---- the way down ---- */

static void prepare(const struct block_uring *u, struct io_uring_sqe *sqe,
		    const struct block_step *s)
{
	int fd = u->f.fd;

	switch (s->call) {
	case BLOCK_CALL_READ:
		if (s->niov == 1)
			io_uring_prep_read(sqe, fd, s->iov->iov_base, (unsigned)s->iov->iov_len,
					   s->offset);
		else
			io_uring_prep_readv(sqe, fd, s->iov, s->niov, s->offset);
		break;
	case BLOCK_CALL_WRITE:
		if (s->niov == 1)
			io_uring_prep_write(sqe, fd, s->iov->iov_base, (unsigned)s->iov->iov_len,
					    s->offset);
		else
			io_uring_prep_writev(sqe, fd, s->iov, s->niov, s->offset);
		break;
	case BLOCK_CALL_SYNC:
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
		break;
	case BLOCK_CALL_FALLOCATE:
		io_uring_prep_fallocate(sqe, fd, s->mode, (off_t)s->offset, (off_t)s->len);
		break;
	case BLOCK_CALL_DISCARD: /* queue() sends these to the pool */
		io_uring_prep_nop(sqe);
		break;
	}
}

static void fill(struct block_uring *u)
{
	while (u->pending.first && u->in_flight < u->depth) {
		struct slot *s = u->free_slots;
		/* Whatever step() has against it now, it may be over when it is tried again. */
		if (block_file_step(&u->f, u->pending.first, &s->step))
			break;
		/* Never NULL: the ring has depth entries, and no more are made and not reaped. */
		struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

		BUG_ON(!sqe);
		u->free_slots = s->next;
		s->r = block_list_take(&u->pending);
		prepare(u, sqe, &s->step);
		io_uring_sqe_set_data(sqe, s);
		u->in_flight++;
	}
}

static void go(struct block_uring *u)
{
	fill(u);

	unsigned ready = io_uring_sq_ready(&u->ring);

	/* EINTR, or an entry refused for lack of memory: the kernel has taken some, we ask again. */
	for (int n = 1; ready && n > 0; ready = io_uring_sq_ready(&u->ring)) {
		do {
			n = io_uring_submit(&u->ring);
		} while (n == -EINTR);
	}
	if ((ready || u->pending.first) && u->in_flight == ready)
		loop_timer_arm(&u->retry, RETRY_NS, 0);
	block_pool_put(&u->pool, &u->discards);
}

static void uring_submit(struct block *b)
{
	struct block_uring *u = of(b);

	if (!u->in_pass)
		go(u);
}

static void uring_queue(struct block *b, struct block_request *r)
{
	struct block_uring *u = of(b);

	r->progress = 0;
	r->backend_data = NULL;
	if (r->op == BLOCK_DISCARD && u->f.is_device)
		block_list_add(&u->discards, r);
	else
		block_list_add(&u->pending, r);
}

static void on_retry(struct loop_timer *t)
{
	go((struct block_uring *)((char *)t - offsetof(struct block_uring, retry)));
}

/* ---- the way up ---- */

/* @again collects what has more to do: it goes before what waits. */
static void complete(struct block_uring *u, struct slot *s, int result, struct block_list *again)
{
	struct block_request *r = s->r;
	int rc = block_file_advance(&u->f, r, &s->step, result);

	s->next = u->free_slots;
	u->free_slots = s;
	u->in_flight--;
	if (rc > 0)
		block_list_add(again, r);
	else
		r->done(r, rc);
}

static void on_ring(struct loop_watch *w, uint32_t events)
{
	struct block_uring *u =
		(struct block_uring *)((char *)w - offsetof(struct block_uring, watch));
	struct block_list again = { 0 };
	struct io_uring_cqe *cqes[REAP];
	bool refused = false;
	unsigned n;

	u->in_pass = true;
	block_pass_begin(&u->f.b);
	/* Ends: nothing is submitted in here, so at most depth completions come. */
	while ((n = io_uring_peek_batch_cqe(&u->ring, cqes, REAP))) {
		for (unsigned i = 0; i < n; i++) {
			refused |= cqes[i]->res == -EAGAIN;
			complete(u, io_uring_cqe_get_data(cqes[i]), cqes[i]->res, &again);
		}
		io_uring_cq_advance(&u->ring, n);
	}
	block_list_move(&again, &u->pending);
	u->pending = again;
	block_pass_end(&u->f.b);
	u->in_pass = false;
	/* A host that says "not now" is not asked again at once. */
	if (refused)
		loop_timer_arm(&u->retry, RETRY_NS, 0);
	else
		go(u);
}

/* ---- coming and going ---- */

static int uring_attach(struct block *b, struct loop *loop, struct err *err)
{
	struct block_uring *u = of(b);
	int rc = loop_timer_init(loop, &u->retry, on_retry, err);

	if (rc)
		return err_prefix(err, "disk %s", b->path);
	rc = loop_add(loop, &u->watch, u->ring.ring_fd, EPOLLIN, on_ring);
	if (rc) {
		err_set_sys(err, rc, "disk %s: cannot watch io_uring", b->path);
	} else if (u->f.is_device && b->can_discard) {
		rc = block_pool_init(&u->pool, &u->f, loop, err);
		if (rc)
			loop_remove(&u->watch);
	}
	if (rc) {
		loop_timer_fini(&u->retry);
		return rc;
	}
	u->attached = true;
	return 0;
}

static void uring_free(struct block *b)
{
	struct block_uring *u = of(b);

	if (u->attached) {
		BUG_ON(u->in_flight || u->pending.first);
		loop_remove(&u->watch);
		loop_timer_fini(&u->retry);
	}
	block_pool_fini(&u->pool);
	io_uring_queue_exit(&u->ring);
	block_file_fini(&u->f);
	free(u->slots);
	free(u);
}

static const struct block_ops uring_ops = {
	.name = "io_uring",
	.attach = uring_attach,
	.queue = uring_queue,
	.submit = uring_submit,
	.free = uring_free,
	.lock = block_file_lock,
	.marked = block_file_marked,
	.sync = block_file_sync,
};

/* Newest flags first; a kernel that does not know one says EINVAL. */
static int set_up_ring(struct io_uring *ring, unsigned depth)
{
	static const unsigned flags[] = {
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL, /* 5.19 */
		IORING_SETUP_SUBMIT_ALL,                             /* 5.18 */
		0,
	};
	int rc = -EINVAL;

	for (size_t i = 0; rc == -EINVAL && i < sizeof(flags) / sizeof(flags[0]); i++)
		rc = io_uring_queue_init(depth, ring, flags[i]);
	return rc;
}

static bool has_operations(struct io_uring *ring)
{
	static const int wanted[] = {
		IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ,
		IORING_OP_WRITE, IORING_OP_FSYNC,  IORING_OP_FALLOCATE,
	};
	struct io_uring_probe *p = io_uring_get_probe_ring(ring);
	bool has = p;

	for (size_t i = 0; has && i < sizeof(wanted) / sizeof(wanted[0]); i++)
		has = io_uring_opcode_supported(p, wanted[i]);
	io_uring_free_probe(p);
	return has;
}

struct block_file *block_uring_new(unsigned depth, struct err *err)
{
	struct block_uring *u = calloc(1, sizeof(*u));

	depth = !depth || depth > DEPTH_MAX ? DEPTH_MAX : depth;
	if (u)
		u->slots = calloc(depth, sizeof(*u->slots));
	if (!u || !u->slots) {
		free(u);
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	int rc = set_up_ring(&u->ring, depth);

	if (rc) {
		err_set_sys(err, rc, "the host refuses io_uring");
	} else if (!has_operations(&u->ring)) {
		io_uring_queue_exit(&u->ring);
		rc = err_set(err, ENOSYS, "the host's kernel has too old an io_uring");
	}
	if (rc) {
		free(u->slots);
		free(u);
		return NULL;
	}
	for (unsigned i = depth; i-- > 0;) {
		u->slots[i].next = u->free_slots;
		u->free_slots = &u->slots[i];
	}
	u->depth = depth;
	u->f.fd = -1;
	u->f.b.ops = &uring_ops;
	return &u->f;
}
