/*
 * job.c - one long operation at a time: a snapshot, a migration
 *
 * The worker and the main thread wait for each other: the worker for its calls (on_main), the main
 * thread, when it ends the machine, for the worker. loop_call() would deadlock there, so calls go
 * through a mailbox of ours, which job_end() serves while it waits. The event wakes the main loop for
 * everything else: a call, progress, the end.
 *
 * Cancelling sets a flag and has the task unblock itself (it shuts its sockets down). Committing is the
 * other side of it: under the same lock, so that exactly one of the two wins.
 *
 * The timer is made with the job, before the sandbox, which allows setting timers but not making them.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/event.h"
#include "base/log.h"
#include "base/loop.h"
#include "vmm/job.h"
#include "vmm/json_util.h"
#include "vmm/vm.h"

#define PROGRESS_NS 100000000u /* between events, unless the stage or the round changes */

enum phase { IDLE, RUNS, RETURNED };

struct job {
	struct vm *vm;
	struct event wake;
	struct loop_watch watch;
	struct loop_timer timer;
	uint64_t last_id;
	uint64_t owner;
	bool in_call; /* main thread: in a call of the worker's */

	const struct job_task *task;
	void *arg;
	pthread_t thread;

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	enum phase phase;
	void (*call)(void *arg);
	void *call_arg;
	bool cancelled, committed;
	int why_code;
	char why[ERR_MSG_MAX];
	const char *limit_why;
	struct transfer_progress progress;
	uint64_t progress_at;
	bool progress_new;

	int rc; /* the worker's until it returned */
	struct err err;
	struct json_object *result;
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* ---- telling ---- */

static struct json_object *about(const struct job *j)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "job", json_object_new_string(j->task->name));
	json_object_object_add(o, "id", json_object_new_uint64(j->last_id));
	return o;
}

static void tell_progress(struct job *j)
{
	pthread_mutex_lock(&j->lock);
	struct transfer_progress p = j->progress;
	bool new = j->progress_new;

	j->progress_new = false;
	pthread_mutex_unlock(&j->lock);
	if (!new)
		return;
	struct json_object *o = about(j);

	json_object_object_add(o, "stage", json_object_new_string(p.stage));
	json_add_u64(o, "round", p.round);
	json_add_u64(o, "sent", p.sent);
	json_add_u64(o, "remaining", p.remaining);
	json_add_u64(o, "total", p.total);
	json_add_u64(o, "bandwidth", p.bandwidth);
	json_add_u64(o, "dirty-rate", p.dirty_rate);
	json_add_u64(o, "expected-downtime-us", p.expected_downtime_ns / 1000);
	vm_emit(j->vm, "job-progress", o);
}

static void tell_end(struct job *j)
{
	struct json_object *o = about(j);

	if (!j->rc) {
		json_object_object_foreach (j->result, key, value)
			json_object_object_add(o, key, json_object_get(value));
		vm_emit(j->vm, "job-done", o);
		return;
	}
	if (j->progress.stage)
		json_object_object_add(o, "stage", json_object_new_string(j->progress.stage));
	json_object_object_add(o, "cancelled", json_object_new_boolean(j->rc == -ECANCELED));
	json_object_object_add(o, "message", json_object_new_string(j->err.msg));
	log_info("%s: %s", j->task->name, j->err.msg);
	vm_emit(j->vm, "job-failed", o);
}

/* ---- the main thread's side ---- */

/* Serve a call of the worker's. True: there was one. */
static bool serve(struct job *j)
{
	pthread_mutex_lock(&j->lock);
	void (*call)(void *) = j->call;
	void *arg = j->call_arg;

	pthread_mutex_unlock(&j->lock);
	if (!call)
		return false;
	j->in_call = true;
	call(arg);
	j->in_call = false;
	pthread_mutex_lock(&j->lock);
	j->call = NULL;
	pthread_cond_broadcast(&j->changed);
	pthread_mutex_unlock(&j->lock);
	return true;
}

/* The worker has returned: tell, and be ready for the next. */
static void finish(struct job *j)
{
	const struct job_task *t = j->task;
	void *arg = j->arg;
	int rc = j->rc;

	pthread_join(j->thread, NULL);
	loop_timer_disarm(&j->timer);
	tell_progress(j);
	tell_end(j);
	json_object_put(j->result);
	j->result = NULL;
	j->task = NULL;
	j->arg = NULL;
	j->phase = IDLE;
	t->end(j->vm, arg, rc);
}

static enum phase phase_of(struct job *j)
{
	pthread_mutex_lock(&j->lock);
	enum phase p = j->phase;

	pthread_mutex_unlock(&j->lock);
	return p;
}

static void on_wake(struct loop_watch *w, uint32_t events)
{
	struct job *j = (struct job *)((char *)w - offsetof(struct job, watch));

	event_clear(&j->wake);
	if (phase_of(j) == IDLE)
		return;
	tell_progress(j);
	serve(j);
	if (phase_of(j) == RETURNED)
		finish(j);
}

static bool cancel(struct job *j, int code, const char *why)
{
	bool done = false;

	pthread_mutex_lock(&j->lock);
	if (j->phase != IDLE && !j->committed && !j->cancelled) {
		j->cancelled = done = true;
		j->why_code = code;
		snprintf(j->why, sizeof(j->why), "%s", why);
		if (j->task->cancel && j->phase == RUNS)
			j->task->cancel(j->arg);
	}
	pthread_mutex_unlock(&j->lock);
	return done;
}

bool job_cancel(struct job *j, const char *why)
{
	char text[ERR_MSG_MAX];

	snprintf(text, sizeof(text), "cancelled: %s", why);
	return cancel(j, -ECANCELED, text);
}

void job_owner_gone(struct job *j, uint64_t owner)
{
	if (owner && job_running(j) && j->owner == owner)
		job_cancel(j, "whoever asked for it has gone");
}

static void on_limit(struct loop_timer *t)
{
	struct job *j = (struct job *)((char *)t - offsetof(struct job, timer));

	cancel(j, -ETIMEDOUT, j->limit_why);
}

void job_end(struct job *j, const char *why)
{
	if (!j || phase_of(j) == IDLE)
		return;
	if (j->in_call) {
		/* The job ends the machine itself, as it was asked to. */
		pthread_mutex_lock(&j->lock);
		j->committed = true;
		pthread_mutex_unlock(&j->lock);
		return;
	}
	job_cancel(j, why);
	for (;;) {
		pthread_mutex_lock(&j->lock);
		while (j->phase == RUNS && !j->call)
			pthread_cond_wait(&j->changed, &j->lock);
		pthread_mutex_unlock(&j->lock);
		if (!serve(j))
			break;
	}
	finish(j);
}

/* ---- the worker's side ---- */

static bool is_cancelled(void *opaque)
{
	struct job *j = opaque;

	pthread_mutex_lock(&j->lock);
	bool yes = j->cancelled;

	pthread_mutex_unlock(&j->lock);
	return yes;
}

static void on_main(void *opaque, void (*fn)(void *arg), void *arg)
{
	struct job *j = opaque;

	pthread_mutex_lock(&j->lock);
	j->call_arg = arg;
	j->call = fn;
	pthread_cond_broadcast(&j->changed);
	event_signal(&j->wake);
	while (j->call)
		pthread_cond_wait(&j->changed, &j->lock);
	pthread_mutex_unlock(&j->lock);
}

static void tell_now(void *arg)
{
	tell_progress(arg);
}

/* Every stage is told; of what happens within one, the latest. */
static void on_progress(void *opaque, const struct transfer_progress *p)
{
	struct job *j = opaque;
	uint64_t now = now_ns();

	pthread_mutex_lock(&j->lock);
	bool stage = p->stage != j->progress.stage;
	bool tell = stage || p->round != j->progress.round || now - j->progress_at >= PROGRESS_NS;

	if (tell) {
		j->progress = *p;
		j->progress_at = now;
		j->progress_new = true;
		event_signal(&j->wake);
	}
	pthread_mutex_unlock(&j->lock);
	if (stage)
		on_main(j, tell_now, j);
}

static void *worker(void *arg)
{
	struct job *j = arg;
	struct transfer_watch w = { is_cancelled, on_progress, on_main, j };
	int rc = j->task->run(j, j->arg, &w, j->result, &j->err);

	pthread_mutex_lock(&j->lock);
	j->rc = rc;
	j->phase = RETURNED;
	pthread_cond_broadcast(&j->changed);
	event_signal(&j->wake);
	pthread_mutex_unlock(&j->lock);
	return NULL;
}

struct limit {
	struct job *j;
	uint64_t ns;
	const char *why;
};

static void set_limit(void *arg)
{
	struct limit *l = arg;

	l->j->limit_why = l->why;
	if (l->ns)
		loop_timer_arm(&l->j->timer, l->ns, 0);
	else
		loop_timer_disarm(&l->j->timer);
}

void job_limit(struct job *j, uint64_t ns, const char *why)
{
	struct limit l = { j, ns, why };

	on_main(j, set_limit, &l);
}

bool job_commit(struct job *j)
{
	pthread_mutex_lock(&j->lock);
	bool ours = !j->cancelled;

	j->committed = j->committed || ours;
	pthread_mutex_unlock(&j->lock);
	return ours;
}

int job_why(struct job *j, int rc, struct err *err)
{
	pthread_mutex_lock(&j->lock);
	if (j->cancelled && rc)
		rc = err_set(err, j->why_code, "%s", j->why);
	pthread_mutex_unlock(&j->lock);
	return rc;
}

/* ---- making, starting, freeing ---- */

struct job *job_new(struct vm *vm, struct err *err)
{
	struct job *j = calloc(1, sizeof(*j));
	int rc;

	if (!j) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	j->vm = vm;
	j->wake.fd = j->watch.fd = j->timer.fd = j->timer.watch.fd = -1;
	pthread_mutex_init(&j->lock, NULL);
	pthread_cond_init(&j->changed, NULL);
	if (event_init(&j->wake, err) || loop_timer_init(vm->loop, &j->timer, on_limit, err)) {
		job_free(j);
		return NULL;
	}
	rc = loop_add(vm->loop, &j->watch, j->wake.fd, EPOLLIN, on_wake);
	if (rc) {
		err_set_sys(err, rc, "cannot watch long operations");
		job_free(j);
		return NULL;
	}
	return j;
}

void job_free(struct job *j)
{
	if (!j)
		return;
	job_end(j, "the machine ends");
	loop_remove(&j->watch);
	if (j->timer.fd >= 0)
		loop_timer_fini(&j->timer);
	event_fini(&j->wake);
	pthread_cond_destroy(&j->changed);
	pthread_mutex_destroy(&j->lock);
	free(j);
}

int job_start(struct job *j, const struct job_task *t, void *arg, uint64_t owner, uint64_t *id,
	      struct err *err)
{
	if (phase_of(j) != IDLE)
		return err_set(err, EBUSY, "a %s is under way; cancel ends it", j->task->name);
	j->task = t;
	j->arg = arg;
	j->owner = owner;
	j->call = NULL;
	j->cancelled = j->committed = j->progress_new = false;
	j->progress = (struct transfer_progress){ 0 };
	j->err = (struct err){ 0 };
	j->result = json_object_new_object();
	j->phase = RUNS;
	int rc = pthread_create(&j->thread, NULL, worker, j);

	if (rc) {
		j->phase = IDLE;
		j->task = NULL;
		json_object_put(j->result);
		j->result = NULL;
		return err_set_sys(err, rc, "cannot start a thread for a %s", t->name);
	}
	*id = ++j->last_id;
	return 0;
}

const char *job_running(const struct job *j)
{
	return j && j->task ? j->task->name : NULL;
}
