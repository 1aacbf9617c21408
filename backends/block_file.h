/*
 * block_file.h - what the ways of doing file I/O share (private to backends/block_*.c)
 *
 * A request becomes one or more steps, a step is one system call. block_file_step() says what the next
 * one is, whoever does I/O makes it, block_file_advance() takes its result. Short transfers, bounce
 * buffers and fall-backs are thereby in one place, and io_uring and threads differ only in how a call
 * is made.
 */
#ifndef BACKENDS_BLOCK_FILE_H
#define BACKENDS_BLOCK_FILE_H

#include <pthread.h>
#include <stdatomic.h>

#include "backends/block.h"
#include "base/event.h"

struct block_file {
	struct block b; /* first */
	int fd;
	bool is_device;
	bool discard;                         /* space may be given back */
	uint32_t mem_align;                   /* of memory and lengths: 1 unless O_DIRECT */
	_Atomic bool no_punch, no_zero_range; /* found out at run time */
	_Atomic unsigned bounces;             /* bounce buffers in use */
};

enum block_call {
	BLOCK_CALL_READ,
	BLOCK_CALL_WRITE,
	BLOCK_CALL_SYNC,
	BLOCK_CALL_FALLOCATE, /* @mode */
	BLOCK_CALL_DISCARD,   /* ioctl BLKDISCARD */
};

struct block_step {
	enum block_call call;
	int mode;
	uint64_t offset, len;
	const struct iovec *iov; /* may be &one, so a step stays where it was made */
	unsigned niov;
	struct iovec one;
};

/*
 * 0: @s is the next call for @r. -EAGAIN: no bounce buffer now, try again when another request has
 * ended; -ENOMEM: there is none at all. Any other -errno ends the request.
 */
int block_file_step(struct block_file *f, struct block_request *r, struct block_step *s);

/* The call's result (bytes, 0 or -errno). 1: another step; 0 or -errno: the request's result. */
int block_file_advance(struct block_file *f, struct block_request *r, const struct block_step *s,
		       int64_t result);

/* Make the call on this thread; result as for block_file_advance(). */
int64_t block_file_call(struct block_file *f, const struct block_step *s);

/* Drop what a request that ends early holds. */
void block_file_drop(struct block_file *f, struct block_request *r);

/* For the engines' ops tables. */
int block_file_lock(struct block *b, bool hold, uint64_t mark, struct err *err);
bool block_file_marked(struct block *b, uint64_t mark);
int block_file_sync(struct block *b, struct err *err);
void block_file_fini(struct block_file *f); /* closes, unlocks, frees what f holds but not f */

/* The engines, without a file yet: NULL and @err when refused. */
struct block_file *block_uring_new(unsigned depth, struct err *err);
struct block_file *block_threads_new(struct err *err);

static inline void block_pass_begin(struct block *b)
{
	if (b->pass_begin)
		b->pass_begin(b);
}

static inline void block_pass_end(struct block *b)
{
	if (b->pass_end)
		b->pass_end(b);
}

/* Requests in order, linked by next. */
struct block_list {
	struct block_request *first, *last;
};

static inline void block_list_add(struct block_list *l, struct block_request *r)
{
	r->next = NULL;
	if (l->last)
		l->last->next = r;
	else
		l->first = r;
	l->last = r;
}

static inline void block_list_add_first(struct block_list *l, struct block_request *r)
{
	r->next = l->first;
	l->first = r;
	if (!l->last)
		l->last = r;
}

static inline struct block_request *block_list_take(struct block_list *l)
{
	struct block_request *r = l->first;

	if (r) {
		l->first = r->next;
		if (!l->first)
			l->last = NULL;
		r->next = NULL;
	}
	return r;
}

/* Append all of @from, which is empty afterwards. */
static inline void block_list_move(struct block_list *l, struct block_list *from)
{
	if (!from->first)
		return;
	if (l->last)
		l->last->next = from->first;
	else
		l->first = from->first;
	l->last = from->last;
	*from = (struct block_list){ 0 };
}

/*
 * Threads that make a request's calls (block_threads.c). block_uring.c has a pool too, for the one
 * call that io_uring lacks. Threads start when there is work for them.
 */
#define BLOCK_POOL_THREADS 8

struct block_pool {
	struct block_file *f;
	struct event wake; /* the loop: something is in finished */
	struct loop_watch watch;

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t work;
	struct block_list waiting, finished;
	unsigned nwaiting, nthreads, nidle;
	bool stop;
	pthread_t threads[BLOCK_POOL_THREADS];
};

int block_pool_init(struct block_pool *p, struct block_file *f, struct loop *loop, struct err *err);
void block_pool_fini(struct block_pool *p);
/* Take all of @l; each request's done() comes from the loop. */
void block_pool_put(struct block_pool *p, struct block_list *l);

#endif
