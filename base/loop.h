/*
 * loop.h - an epoll loop and the thread that runs it
 *
 * One thread runs a loop. Watches and timers are embedded in their owners and touched only on the
 * loop's own thread, or before it starts; any other thread goes through loop_call(). That one rule
 * removes every race between a callback and the removal of its watch.
 *
 * Units: nanoseconds, CLOCK_MONOTONIC.
 */
#ifndef BASE_LOOP_H
#define BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "base/err.h"

struct loop;

struct loop *loop_new(struct err *err); /* NULL on error */
void loop_free(struct loop *l);         /* not while it runs */

int loop_run(struct loop *l);   /* on this thread until loop_stop(); 0 or -errno */
void loop_stop(struct loop *l); /* from any thread or signal-safe context */

/* May this thread touch the watches and poll? Its own thread, or nobody runs it. */
bool loop_is_here(struct loop *l);

/* Dispatch what is ready now without waiting (tests). Number of callbacks made. */
int loop_poll(struct loop *l, int timeout_ms);

/* Run the loop on a thread of its own, named @name (at most 15 bytes); stop and join it. */
int loop_thread_start(struct loop *l, const char *name, struct err *err);
void loop_thread_stop(struct loop *l);

/*
 * Call fn(arg) on the loop's thread and wait for it; directly when already there or when the loop is
 * not running. The caller holds no lock that a callback of this loop takes.
 */
void loop_call(struct loop *l, void (*fn)(void *arg), void *arg);

/* Call fn(arg) on the loop's thread soon, without waiting. 0 or -ENOMEM. */
int loop_post(struct loop *l, void (*fn)(void *arg), void *arg);

struct loop_watch {
	int fd; /* borrowed; -1 when not watched */
	uint32_t events;
	void (*on_ready)(struct loop_watch *w, uint32_t events);
	struct loop *loop;
};

/* @events: EPOLLIN | EPOLLOUT ..., level triggered. 0 or -errno. */
int loop_add(struct loop *l, struct loop_watch *w, int fd, uint32_t events,
	     void (*on_ready)(struct loop_watch *w, uint32_t events));
int loop_modify(struct loop_watch *w, uint32_t events); /* events 0: keep it, stay silent */
void loop_remove(struct loop_watch *w);                 /* idempotent; no callback afterwards */

struct loop_timer {
	struct loop_watch watch;
	int fd;
	void (*on_fire)(struct loop_timer *t);
};

int loop_timer_init(struct loop *l, struct loop_timer *t, void (*on_fire)(struct loop_timer *t),
		    struct err *err);
void loop_timer_arm(struct loop_timer *t, uint64_t in_ns, uint64_t every_ns); /* every 0: once */
void loop_timer_disarm(struct loop_timer *t);
void loop_timer_fini(struct loop_timer *t);

#endif
