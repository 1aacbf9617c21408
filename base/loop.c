/*
 * loop.c - an epoll loop and the thread that runs it
 *
 * epoll hands out events in batches, and a callback may remove a watch whose event is still in the
 * batch. Batches in hand are linked to the loop, and removal wipes the watch from them; that is all
 * it takes, since only the loop's own thread does either. A misuse from another thread is stopped by
 * BUG_ON, as the race it makes would show itself somewhere else, much later.
 *
 * Calls from other threads wait in one first-in first-out queue, so a loop_call() also waits for
 * every loop_post() before it. A loop that stops first serves everyone who waits, while it still
 * counts as running: once it does not, loop_call() calls directly.
 *
 * A stop that arrives before loop_run() (a signal while the machine is built) is kept for it.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/event.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/loop.h"

#define BATCH 64
#define NSEC  UINT64_C(1000000000)

struct call {
	void (*fn)(void *arg);
	void *arg;
	bool wait, done; /* wait: on the stack of a thread in loop_call() */
	struct call *next;
};

struct batch {
	struct epoll_event events[BATCH];
	int count;
	struct batch *outer; /* a callback called loop_poll() */
};

struct loop {
	int fd;
	struct event wake;
	struct loop_watch wake_watch;
	atomic_bool stop;
	struct batch *batch;

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t called;
	struct call *first, **last;
	bool running;
	bool has_owner; /* false for the moment between starting a thread and its first step */
	pthread_t owner;

	bool has_thread; /* of whoever starts and stops it */
	pthread_t thread;
	char name[16];
};

/* Is it wrong for the calling thread to touch the loop's watches? */
static bool running_elsewhere(struct loop *l)
{
	pthread_mutex_lock(&l->lock);
	bool elsewhere = l->running && !(l->has_owner && pthread_equal(l->owner, pthread_self()));

	pthread_mutex_unlock(&l->lock);
	return elsewhere;
}

bool loop_is_here(struct loop *l)
{
	return !running_elsewhere(l);
}

static void on_wake(struct loop_watch *w, uint32_t events);

struct loop *loop_new(struct err *err)
{
	struct loop *l = calloc(1, sizeof(*l));

	if (!l) {
		err_set(err, ENOMEM, "out of memory for an event loop");
		return NULL;
	}
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->called, NULL);
	l->last = &l->first;
	l->wake.fd = -1;
	l->fd = epoll_create1(EPOLL_CLOEXEC);
	int rc = l->fd < 0 ? err_set_sys(err, errno, "cannot make an event loop (see ulimit -n)") :
			     event_init(&l->wake, err);

	if (!rc) {
		rc = loop_add(l, &l->wake_watch, l->wake.fd, EPOLLIN, on_wake);
		if (rc)
			err_set_sys(err, rc, "cannot watch an event loop's own wake-up");
	}
	if (rc) {
		loop_free(l);
		return NULL;
	}
	return l;
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	loop_thread_stop(l);
	BUG_ON(l->running);
	for (struct call *c = l->first, *next; c; c = next) {
		next = c->next;
		free(c); /* its arg may point to what is gone already: not called */
	}
	event_fini(&l->wake);
	fd_close(&l->fd);
	pthread_cond_destroy(&l->called);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

static void run_call(struct loop *l, struct call *c)
{
	c->fn(c->arg);
	if (!c->wait) {
		free(c);
		return;
	}
	pthread_mutex_lock(&l->lock);
	c->done = true;
	pthread_cond_broadcast(&l->called);
	pthread_mutex_unlock(&l->lock);
}

static size_t queued(struct loop *l)
{
	size_t n = 0;

	pthread_mutex_lock(&l->lock);
	for (const struct call *c = l->first; c; c = c->next)
		n++;
	pthread_mutex_unlock(&l->lock);
	return n;
}

/* The first of the queue; the wake-up goes with the last. */
static struct call *take(struct loop *l)
{
	pthread_mutex_lock(&l->lock);
	struct call *c = l->first;

	if (c)
		l->first = c->next;
	if (!l->first) {
		l->last = &l->first;
		event_clear(&l->wake);
	}
	pthread_mutex_unlock(&l->lock);
	return c;
}

/*
 * What is queued now; what these queue in turn is for the next round, so that watches get theirs. One
 * at a time: a call that polls the loop, waiting for one behind it, must find that one in the queue.
 */
static int run_queue(struct loop *l)
{
	size_t n = queued(l) ?: 1; /* none: loop_stop() woke us, and that is to be consumed */
	int count = 0;

	do {
		struct call *c = take(l);

		if (!c)
			break;
		run_call(l, c);
		count++;
	} while (--n);
	return count;
}

static void enqueue(struct loop *l, struct call *c)
{
	c->next = NULL;
	*l->last = c;
	l->last = &c->next;
	event_signal(&l->wake);
}

static void on_wake(struct loop_watch *w, uint32_t events)
{
	/* dispatch() runs the queue itself, to count the calls */
}

/* One batch. Number of callbacks made or -errno. */
static int dispatch(struct loop *l, int timeout_ms)
{
	struct batch b = { .outer = l->batch };
	int made = 0;

	b.count = epoll_wait(l->fd, b.events, BATCH, timeout_ms);
	if (b.count < 0)
		return errno == EINTR ? 0 : -errno;
	l->batch = &b;
	for (int i = 0; i < b.count; i++) {
		struct loop_watch *w = b.events[i].data.ptr;

		if (!w)
			continue; /* removed by a callback before it */
		if (w == &l->wake_watch) {
			made += run_queue(l);
			continue;
		}
		/* A callback before it may have asked for less. */
		uint32_t events = b.events[i].events & (w->events | EPOLLERR | EPOLLHUP);

		if (events) {
			made++;
			w->on_ready(w, events);
		}
	}
	l->batch = b.outer;
	return made;
}

static struct call *take_waiter(struct loop *l)
{
	for (struct call **p = &l->first; *p; p = &(*p)->next) {
		struct call *c = *p;

		if (!c->wait)
			continue;
		*p = c->next;
		if (!*p)
			l->last = p;
		return c;
	}
	return NULL;
}

/*
 * Serve what is queued, then whoever still waits. Posts that these make are kept for the next run: one
 * that posts itself again must not keep the loop from stopping.
 */
static void finish(struct loop *l)
{
	struct call *c;

	run_queue(l);
	pthread_mutex_lock(&l->lock);
	while ((c = take_waiter(l))) {
		pthread_mutex_unlock(&l->lock);
		run_call(l, c);
		pthread_mutex_lock(&l->lock);
	}
	if (l->first)
		event_signal(&l->wake);
	l->running = l->has_owner = false;
	atomic_store(&l->stop, false);
	pthread_mutex_unlock(&l->lock);
}

static int run(struct loop *l)
{
	int rc = 0;

	pthread_mutex_lock(&l->lock);
	l->owner = pthread_self();
	l->has_owner = true;
	pthread_mutex_unlock(&l->lock);
	while (rc >= 0 && !atomic_load(&l->stop))
		rc = dispatch(l, -1);
	finish(l);
	return rc < 0 ? rc : 0;
}

int loop_run(struct loop *l)
{
	pthread_mutex_lock(&l->lock);
	BUG_ON(l->running);
	l->running = true;
	pthread_mutex_unlock(&l->lock);
	return run(l);
}

void loop_stop(struct loop *l)
{
	atomic_store(&l->stop, true);
	event_signal(&l->wake);
}

int loop_poll(struct loop *l, int timeout_ms)
{
	BUG_ON(running_elsewhere(l));
	return dispatch(l, timeout_ms);
}

static void *thread_main(void *arg)
{
	struct loop *l = arg;

	/* Not pthread_setname_np() by the starter: that opens a file, which the sandbox refuses. */
	prctl(PR_SET_NAME, l->name);
	int rc = run(l);

	if (rc)
		log_err("the event loop of thread %s ended: %s", l->name, strerror(-rc));
	return NULL;
}

/*
 * Signals are for the main thread, except those that speak of this thread's own faults, and SIGSYS,
 * by which libpsx reaches every thread.
 */
static void signals_for_thread(sigset_t *set)
{
	static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS };

	sigfillset(set);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(set, own[i]);
}

int loop_thread_start(struct loop *l, const char *name, struct err *err)
{
	sigset_t blocked, before;

	pthread_mutex_lock(&l->lock);
	BUG_ON(l->running || l->has_thread);
	l->running = true; /* from now on loop_call() waits for the thread */
	pthread_mutex_unlock(&l->lock);
	strncpy(l->name, name, sizeof(l->name) - 1);
	signals_for_thread(&blocked);
	pthread_sigmask(SIG_SETMASK, &blocked, &before);
	int rc = pthread_create(&l->thread, NULL, thread_main, l);

	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc) {
		finish(l);
		return err_set_sys(err, rc, "cannot start thread %s", l->name);
	}
	l->has_thread = true;
	return 0;
}

void loop_thread_stop(struct loop *l)
{
	if (!l->has_thread)
		return;
	BUG_ON(pthread_equal(l->thread, pthread_self()));
	loop_stop(l);
	pthread_join(l->thread, NULL);
	l->has_thread = false;
	atomic_store(&l->stop, false); /* it may have ended before it was asked to */
}

void loop_call(struct loop *l, void (*fn)(void *arg), void *arg)
{
	struct call c = { .fn = fn, .arg = arg, .wait = true };

	pthread_mutex_lock(&l->lock);
	if (!l->running || (l->has_owner && pthread_equal(l->owner, pthread_self()))) {
		pthread_mutex_unlock(&l->lock);
		fn(arg);
		return;
	}
	enqueue(l, &c);
	while (!c.done)
		pthread_cond_wait(&l->called, &l->lock);
	pthread_mutex_unlock(&l->lock);
}

int loop_post(struct loop *l, void (*fn)(void *arg), void *arg)
{
	struct call *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->fn = fn;
	c->arg = arg;
	pthread_mutex_lock(&l->lock);
	enqueue(l, c);
	pthread_mutex_unlock(&l->lock);
	return 0;
}

static int control(struct loop_watch *w, int op, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };

	return epoll_ctl(w->loop->fd, op, w->fd, &ev) < 0 ? -errno : 0;
}

/* No event of @w that is already in hand will be delivered. */
static void wipe(struct loop_watch *w)
{
	for (struct batch *b = w->loop->batch; b; b = b->outer)
		for (int i = 0; i < b->count; i++)
			if (b->events[i].data.ptr == w)
				b->events[i].data.ptr = NULL;
}

int loop_add(struct loop *l, struct loop_watch *w, int fd, uint32_t events,
	     void (*on_ready)(struct loop_watch *w, uint32_t events))
{
	BUG_ON(running_elsewhere(l));
	*w = (struct loop_watch){ .fd = fd, .events = events, .on_ready = on_ready, .loop = l };
	int rc = events ? control(w, EPOLL_CTL_ADD, events) : 0;

	if (rc)
		*w = (struct loop_watch){ .fd = -1 };
	return rc;
}

/* epoll reports hang-ups and errors to a watch that asks for nothing; silence is not to be in it. */
int loop_modify(struct loop_watch *w, uint32_t events)
{
	int rc = 0;

	if (!w->loop || w->fd < 0)
		return -EBADF;
	BUG_ON(running_elsewhere(w->loop));
	if (events == w->events)
		return 0;
	if (!w->events) {
		rc = control(w, EPOLL_CTL_ADD, events);
	} else if (events) {
		rc = control(w, EPOLL_CTL_MOD, events);
	} else {
		rc = control(w, EPOLL_CTL_DEL, 0);
		wipe(w);
	}
	if (!rc)
		w->events = events;
	return rc;
}

void loop_remove(struct loop_watch *w)
{
	if (!w->loop || w->fd < 0)
		return;
	BUG_ON(running_elsewhere(w->loop));
	if (w->events)
		control(w, EPOLL_CTL_DEL, 0);
	wipe(w);
	w->fd = -1;
	w->loop = NULL;
}

static void on_timer(struct loop_watch *w, uint32_t events)
{
	struct loop_timer *t =
		(struct loop_timer *)((char *)w - offsetof(struct loop_timer, watch));
	uint64_t times;

	/* EAGAIN: disarmed or armed anew by a callback of the same batch. */
	if (read(t->fd, &times, sizeof(times)) == (ssize_t)sizeof(times))
		t->on_fire(t);
}

int loop_timer_init(struct loop *l, struct loop_timer *t, void (*on_fire)(struct loop_timer *t),
		    struct err *err)
{
	*t = (struct loop_timer){ .watch.fd = -1, .on_fire = on_fire };
	t->fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (t->fd < 0)
		return err_set_sys(err, errno, "cannot make a timer (see ulimit -n)");
	int rc = loop_add(l, &t->watch, t->fd, EPOLLIN, on_timer);

	if (rc) {
		fd_close(&t->fd);
		return err_set_sys(err, rc, "cannot watch a timer");
	}
	return 0;
}

static struct timespec timespec_of(uint64_t ns)
{
	return (struct timespec){ .tv_sec = (time_t)(ns / NSEC), .tv_nsec = (long)(ns % NSEC) };
}

static void set_timer(struct loop_timer *t, uint64_t in_ns, uint64_t every_ns)
{
	const struct itimerspec when = {
		.it_value = timespec_of(in_ns),
		.it_interval = timespec_of(every_ns),
	};

	if (!t->watch.loop)
		return;
	BUG_ON(running_elsewhere(t->watch.loop));
	timerfd_settime(t->fd, 0, &when, NULL);
}

void loop_timer_arm(struct loop_timer *t, uint64_t in_ns, uint64_t every_ns)
{
	set_timer(t, in_ns ? in_ns : 1, every_ns); /* 0 would disarm it */
}

void loop_timer_disarm(struct loop_timer *t)
{
	set_timer(t, 0, 0);
}

void loop_timer_fini(struct loop_timer *t)
{
	if (!t->watch.loop)
		return;
	loop_remove(&t->watch);
	fd_close(&t->fd);
}
