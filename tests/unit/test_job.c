/*
 * test_job.c - one long operation at a time: its calls, its end, and who may end it when
 *
 * The machine is a struct vm without KVM; the loop is turned by hand. Workers wait for a gate, never
 * for time.
 */
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vmm/job.h"
#include "vmm/vm.h"

struct bench {
	struct vm vm;
	struct loop *loop;
	struct job *job;
	char events[2048]; /* "name:message ", in order */
	/* what the worker does */
	sem_t gate;
	bool call_main, fails, commits, wait_for_cancel;
	void (*at_main)(struct bench *b);
	/* what was seen */
	int calls, ends, end_rc;
	bool cancel_seen, committed;
};

static void on_event(void *opaque, const char *event, struct json_object *params)
{
	struct bench *b = opaque;
	size_t len = strlen(b->events);
	struct json_object *m = json_object_object_get(params, "message");
	struct json_object *stage = json_object_object_get(params, "stage");

	snprintf(b->events + len, sizeof(b->events) - len, "%s:%s ", event,
		 m     ? json_object_get_string(m) :
		 stage ? json_object_get_string(stage) :
			 "");
}

static void at_main(void *arg)
{
	struct bench *b = arg;

	b->calls++;
	if (b->at_main)
		b->at_main(b);
}

static int task_run(struct job *j, void *arg, const struct transfer_watch *w,
		    struct json_object *result, struct err *err)
{
	struct bench *b = arg;
	struct transfer_progress p = { .stage = "first", .total = 7 };
	int rc = 0;

	w->progress(w->opaque, &p);
	if (b->commits)
		b->committed = job_commit(j);
	if (b->call_main)
		w->on_main(w->opaque, at_main, b);
	sem_wait(&b->gate);
	b->cancel_seen = w->cancelled(w->opaque);
	if (b->call_main) /* cleaning up needs the main thread, cancelled or not */
		w->on_main(w->opaque, at_main, b);
	if (b->cancel_seen && !b->committed)
		return job_why(j, err_set(err, EPIPE, "peer gone"), err);
	if (b->fails)
		rc = err_set(err, ENOSPC, "disk full");
	json_object_object_add(result, "bytes", json_object_new_int(5));
	return job_why(j, rc, err);
}

static void task_cancel(void *arg)
{
	sem_post(&((struct bench *)arg)->gate);
}

static void task_end(struct vm *vm, void *arg, int rc)
{
	struct bench *b = arg;

	b->ends++;
	b->end_rc = rc;
}

static const struct job_task task = { "toy", task_run, task_cancel, task_end };

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));
	struct err err;

	b->loop = loop_new(&err);
	b->vm.loop = b->loop;
	b->vm.on_event = on_event;
	b->vm.opaque = b;
	sem_init(&b->gate, 0, 0);
	b->job = b->vm.job = job_new(&b->vm, &err);
	*state = b;
	return b->loop && b->job ? 0 : -1;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	job_free(b->job);
	loop_free(b->loop);
	sem_destroy(&b->gate);
	free(b);
	return 0;
}

static void start(struct bench *b)
{
	struct err err = { 0 };
	uint64_t id = 0;

	assert_int_equal(job_start(b->job, &task, b, 3, &id, &err), 0);
	assert_true(id >= 1);
	assert_string_equal(job_running(b->job), "toy");
}

static void turn_until_end(struct bench *b, int ends)
{
	while (b->ends < ends)
		loop_poll(b->loop, 10000);
}

static void test_done(void **state)
{
	struct bench *b = *state;
	struct err err = { 0 };
	uint64_t id;

	b->call_main = true;
	start(b);
	assert_int_equal(job_start(b->job, &task, b, 3, &id, &err), -EBUSY);
	assert_non_null(strstr(err.msg, "toy"));
	while (b->calls < 1)
		loop_poll(b->loop, 10000);
	assert_int_equal(b->ends, 0);
	sem_post(&b->gate);
	turn_until_end(b, 1);
	assert_int_equal(b->calls, 2);
	assert_int_equal(b->end_rc, 0);
	assert_false(b->cancel_seen);
	assert_string_equal(b->events, "job-progress:first job-done: ");
	assert_null(job_running(b->job));
	assert_false(job_cancel(b->job, "nothing"));
	/* and once more */
	sem_post(&b->gate);
	start(b);
	turn_until_end(b, 2);
}

static void test_failed(void **state)
{
	struct bench *b = *state;

	b->fails = true;
	sem_post(&b->gate);
	start(b);
	turn_until_end(b, 1);
	assert_int_equal(b->end_rc, -ENOSPC);
	assert_string_equal(b->events, "job-progress:first job-failed:disk full ");
}

static void test_cancel(void **state)
{
	struct bench *b = *state;

	b->call_main = true;
	start(b);
	assert_true(job_cancel(b->job, "why not"));
	assert_false(job_cancel(b->job, "again"));
	turn_until_end(b, 1);
	assert_true(b->cancel_seen);
	assert_int_equal(b->end_rc, -ECANCELED);
	assert_non_null(strstr(b->events, "job-failed:cancelled: why not "));
}

static void test_owner_gone(void **state)
{
	struct bench *b = *state;

	start(b);
	job_owner_gone(b->job, 2);
	job_owner_gone(b->job, 0);
	job_owner_gone(b->job, 3);
	turn_until_end(b, 1);
	assert_non_null(strstr(b->events, "has gone"));
}

/* The machine ends: the main thread waits here, and the worker's calls are served meanwhile. */
static void test_end(void **state)
{
	struct bench *b = *state;

	job_end(NULL, "nothing");
	job_end(b->job, "nothing");
	b->call_main = true;
	start(b);
	job_end(b->job, "the machine ends");
	assert_int_equal(b->ends, 1);
	assert_int_equal(b->calls, 2);
	assert_non_null(strstr(b->events, "job-failed:cancelled: the machine ends "));
	assert_null(job_running(b->job));
	while (loop_poll(b->loop, 0))
		;
	assert_int_equal(b->ends, 1);
}

static void test_committed(void **state)
{
	struct bench *b = *state;

	b->commits = b->call_main = true;
	start(b);
	while (b->calls < 1)
		loop_poll(b->loop, 10000);
	assert_true(b->committed);
	assert_false(job_cancel(b->job, "too late"));
	job_owner_gone(b->job, 3);
	sem_post(&b->gate);
	job_end(b->job, "the machine ends"); /* waits, does not break */
	assert_false(b->cancel_seen);
	assert_int_equal(b->end_rc, 0);
}

static void ends_machine(struct bench *b)
{
	job_end(b->job, "the machine ends");
}

/* The job itself ends the machine. */
static void test_end_in_call(void **state)
{
	struct bench *b = *state;

	b->call_main = true;
	b->at_main = ends_machine;
	sem_post(&b->gate);
	start(b);
	turn_until_end(b, 1);
	assert_int_equal(b->end_rc, 0);
	assert_false(b->cancel_seen);
}

static int limited_run(struct job *j, void *arg, const struct transfer_watch *w,
		       struct json_object *result, struct err *err)
{
	struct bench *b = arg;

	job_limit(j, 3600ull * 1000000000, "an hour is over");
	job_limit(j, 1000000, "a moment is over");
	sem_wait(&b->gate);
	return job_why(j, -EPIPE, err);
}

static const struct job_task limited = { "limited", limited_run, task_cancel, task_end };

static void test_limit(void **state)
{
	struct bench *b = *state;
	struct err err;
	uint64_t id;

	assert_int_equal(job_start(b->job, &limited, b, 0, &id, &err), 0);
	turn_until_end(b, 1);
	assert_int_equal(b->end_rc, -ETIMEDOUT);
	assert_string_equal(b->events, "job-failed:a moment is over ");
}

/* Freed while it runs. */
static void test_freed_running(void **state)
{
	struct bench *b = *state;

	b->call_main = true;
	start(b);
	job_free(b->job);
	b->job = b->vm.job = NULL;
	assert_int_equal(b->ends, 1);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_done),        TEST(test_failed), TEST(test_cancel),
		TEST(test_owner_gone),  TEST(test_end),    TEST(test_committed),
		TEST(test_end_in_call), TEST(test_limit),  TEST(test_freed_running),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
