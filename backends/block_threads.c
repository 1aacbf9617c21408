/*
 * block_threads.c - file I/O by a few threads, where io_uring is refused
 *
 * Container runtimes and hardened hosts often forbid io_uring. Then plain system calls are made by a
 * small pool. A thread takes a request and makes all of its calls; what is finished goes to a list, and
 * the loop is woken once however many are in it.
 *
 * Threads start when work waits and nobody is idle, up to a fixed number, and stay: an idle one costs
 * its small stack. When the host refuses a new one, those that are there do the work.
 */
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>

#include "backends/block_file.h"
#include "base/log.h"

#define STACK (128 << 10)

/* ---- the pool ---- */

/* All of a request's calls. */
static int run_request(struct block_file *f, struct block_request *r)
{
	const struct timespec wait = { .tv_nsec = 1000000 };
	struct block_step s;
	int rc;

	do {
		/* No bounce buffer: other threads are about to give theirs back. */
		while ((rc = block_file_step(f, r, &s)) == -EAGAIN)
			nanosleep(&wait, NULL);
		if (rc) {
			block_file_drop(f, r);
			return rc;
		}
		int64_t result = block_file_call(f, &s);

		if (result == -EAGAIN)
			nanosleep(&wait, NULL);
		rc = block_file_advance(f, r, &s, result);
	} while (rc > 0);
	return rc;
}

/* The result travels in progress, which a finished request does not need any more. */
static void finish(struct block_pool *p, struct block_request *r, int result)
{
	r->progress = (uint64_t)(int64_t)result;

	bool first = !p->finished.first;

	block_list_add(&p->finished, r);
	if (first)
		event_signal(&p->wake);
}

static void *worker(void *arg)
{
	struct block_pool *p = arg;

	pthread_mutex_lock(&p->lock);
	while (!p->stop) {
		struct block_request *r = block_list_take(&p->waiting);

		if (!r) {
			p->nidle++;
			pthread_cond_wait(&p->work, &p->lock);
			p->nidle--;
			continue;
		}
		p->nwaiting--;
		pthread_mutex_unlock(&p->lock);
		int rc = run_request(p->f, r);

		pthread_mutex_lock(&p->lock);
		finish(p, r, rc);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* Signals are for others, except those that speak of the thread's own faults and of the sandbox. */
static void signals_for_thread(sigset_t *set)
{
	static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS };

	sigfillset(set);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(set, own[i]);
}

static int start_thread(struct block_pool *p)
{
	sigset_t blocked, before;
	pthread_attr_t attr;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	signals_for_thread(&blocked);
	pthread_sigmask(SIG_SETMASK, &blocked, &before);
	int rc = pthread_create(&p->threads[p->nthreads], &attr, worker, p);

	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (!rc)
		p->nthreads++;
	return -rc;
}

/* No thread can be had at all: this one does the work, slow but true. */
static void run_here(struct block_pool *p)
{
	struct block_request *r;

	while ((r = block_list_take(&p->waiting))) {
		p->nwaiting--;
		pthread_mutex_unlock(&p->lock);
		int rc = run_request(p->f, r);

		pthread_mutex_lock(&p->lock);
		finish(p, r, rc);
	}
}

void block_pool_put(struct block_pool *p, struct block_list *l)
{
	unsigned ready;

	if (!l->first)
		return;
	pthread_mutex_lock(&p->lock);
	for (struct block_request *r = l->first; r; r = r->next)
		p->nwaiting++;
	block_list_move(&p->waiting, l);
	for (unsigned i = 0; i < p->nidle && i < p->nwaiting; i++)
		pthread_cond_signal(&p->work);
	ready = p->nidle;
	while (ready < p->nwaiting && p->nthreads < BLOCK_POOL_THREADS && !start_thread(p))
		ready++;
	if (!p->nthreads)
		run_here(p);
	pthread_mutex_unlock(&p->lock);
}

static void on_finished(struct loop_watch *w, uint32_t events)
{
	struct block_pool *p =
		(struct block_pool *)((char *)w - offsetof(struct block_pool, watch));
	struct block_list l = { 0 };
	struct block_request *r;

	event_clear(&p->wake);
	pthread_mutex_lock(&p->lock);
	block_list_move(&l, &p->finished);
	pthread_mutex_unlock(&p->lock);

	block_pass_begin(&p->f->b);
	while ((r = block_list_take(&l)))
		r->done(r, (int)(int64_t)r->progress);
	block_pass_end(&p->f->b);
}

int block_pool_init(struct block_pool *p, struct block_file *f, struct loop *loop, struct err *err)
{
	int rc = event_init(&p->wake, err);

	if (rc)
		return err_prefix(err, "disk %s", f->b.path);
	rc = loop_add(loop, &p->watch, p->wake.fd, EPOLLIN, on_finished);
	if (rc) {
		event_fini(&p->wake);
		return err_set_sys(err, rc, "disk %s: cannot watch its threads", f->b.path);
	}
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	p->f = f;
	return 0;
}

void block_pool_fini(struct block_pool *p)
{
	if (!p->f)
		return;
	BUG_ON(p->waiting.first || p->finished.first);
	loop_remove(&p->watch);
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->nthreads; i++)
		pthread_join(p->threads[i], NULL);
	event_fini(&p->wake);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->work);
	p->f = NULL;
}

/* ---- the block ---- */

struct block_threads {
	struct block_file f; /* first */
	struct block_pool pool;
	struct block_list queued; /* not submitted yet */
};

static struct block_threads *of(struct block *b)
{
	return (struct block_threads *)b;
}

static int threads_attach(struct block *b, struct loop *loop, struct err *err)
{
	return block_pool_init(&of(b)->pool, &of(b)->f, loop, err);
}

static void threads_queue(struct block *b, struct block_request *r)
{
	r->progress = 0;
	r->backend_data = NULL;
	block_list_add(&of(b)->queued, r);
}

static void threads_submit(struct block *b)
{
	block_pool_put(&of(b)->pool, &of(b)->queued);
}

static void threads_free(struct block *b)
{
	struct block_threads *t = of(b);

	block_pool_fini(&t->pool);
	block_file_fini(&t->f);
	free(t);
}

static const struct block_ops threads_ops = {
	.name = "threads",
	.attach = threads_attach,
	.queue = threads_queue,
	.submit = threads_submit,
	.free = threads_free,
	.lock = block_file_lock,
	.marked = block_file_marked,
	.sync = block_file_sync,
};

struct block_file *block_threads_new(struct err *err)
{
	struct block_threads *t = calloc(1, sizeof(*t));

	if (!t) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	t->f.fd = -1;
	t->f.b.ops = &threads_ops;
	return &t->f;
}
