/*
 * test_loop.c - callbacks come when they should, and never when they should not
 *
 * Nothing here sleeps: what must come is waited for, what must not come is made due first and then
 * the loop is polled.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/event.h"
#include "base/loop.h"

static int setup(void **state)
{
	struct err err = { 0 };

	*state = loop_new(&err);
	return *state ? 0 : -1;
}

static int teardown(void **state)
{
	loop_free(*state);
	return 0;
}

/* A watched event that counts, and may do something to another source when it is called. */
struct source {
	struct loop_watch watch;
	struct event event;
	unsigned calls;
	uint32_t last;
	void (*then)(struct source *s);
	struct source *other;
};

static void on_source(struct loop_watch *w, uint32_t events)
{
	struct source *s = (struct source *)w; /* watch comes first */

	s->calls++;
	s->last = events;
	event_clear(&s->event);
	if (s->then)
		s->then(s);
}

static void source_init(struct loop *l, struct source *s)
{
	struct err err = { 0 };

	memset(s, 0, sizeof(*s));
	assert_int_equal(event_init(&s->event, &err), 0);
	assert_int_equal(loop_add(l, &s->watch, s->event.fd, EPOLLIN, on_source), 0);
}

static void source_fini(struct source *s)
{
	loop_remove(&s->watch);
	loop_remove(&s->watch); /* idempotent */
	event_fini(&s->event);
}

static void test_watch(void **state)
{
	struct loop *l = *state;
	struct source s;

	source_init(l, &s);
	assert_int_equal(loop_poll(l, 0), 0);
	event_signal(&s.event);
	assert_int_equal(loop_poll(l, 0), 1);
	assert_int_equal(s.calls, 1);
	assert_int_equal(s.last, EPOLLIN);
	assert_int_equal(loop_poll(l, 0), 0);
	event_signal(&s.event);
	loop_remove(&s.watch);
	assert_int_equal(loop_poll(l, 0), 0);
	assert_int_equal(s.watch.fd, -1);
	/* Again, and level triggered. */
	assert_int_equal(loop_add(l, &s.watch, s.event.fd, EPOLLIN, on_source), 0);
	assert_int_equal(loop_poll(l, 0), 1);
	source_fini(&s);
}

static void test_add_fails(void **state)
{
	struct loop_watch w, zero = { 0 };
	int p[2];

	assert_int_equal(loop_add(*state, &w, -1, EPOLLIN, on_source), -EBADF);
	assert_int_equal(w.fd, -1);
	loop_remove(&w);
	loop_remove(&zero); /* never added: not descriptor 0 */
	assert_int_equal(loop_modify(&zero, EPOLLIN), -EBADF);
	assert_int_equal(pipe(p), 0);
	assert_int_equal(loop_add(*state, &w, p[0], EPOLLIN, on_source), 0);
	assert_int_equal(loop_add(*state, &zero, p[0], EPOLLIN, on_source), -EEXIST);
	loop_remove(&w);
	close(p[0]);
	close(p[1]);
}

/* events 0 is silent even where epoll insists on telling of a hang-up. */
static void on_stream(struct loop_watch *w, uint32_t events)
{
}

static void test_modify(void **state)
{
	struct loop *l = *state;
	struct loop_watch w;
	int s[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	assert_int_equal(loop_add(l, &w, s[0], 0, on_stream), 0);
	assert_int_equal(loop_poll(l, 0), 0);
	assert_int_equal(loop_modify(&w, EPOLLOUT), 0);
	assert_int_equal(loop_poll(l, 0), 1);
	assert_int_equal(loop_modify(&w, EPOLLOUT), 0);
	assert_int_equal(loop_modify(&w, EPOLLIN), 0);
	assert_int_equal(loop_poll(l, 0), 0);
	close(s[1]);
	assert_int_equal(loop_poll(l, 0), 1);
	assert_int_equal(loop_modify(&w, 0), 0);
	assert_int_equal(loop_poll(l, 0), 0);
	assert_int_equal(loop_modify(&w, EPOLLIN), 0);
	assert_int_equal(loop_poll(l, 0), 1);
	loop_modify(&w, 0);
	loop_remove(&w);
	close(s[0]);
}

static void remove_other(struct source *s)
{
	loop_remove(&s->other->watch);
	memset(&s->other->watch, 0xee, sizeof(s->other->watch)); /* its memory may be reused */
}

static void silence_other(struct source *s)
{
	loop_modify(&s->other->watch, 0);
}

static void readd_other(struct source *s)
{
	loop_remove(&s->other->watch);
	loop_add(s->watch.loop, &s->other->watch, s->other->event.fd, 0, on_source);
}

static void remove_self(struct source *s)
{
	loop_remove(&s->watch);
}

static void poll_again(struct source *s)
{
	s->other->then = remove_self;
	assert_int_equal(loop_poll(s->watch.loop, 0), 1);
}

/* Two ready at once; whichever comes first does @then to the other, which must stay silent. */
static void one_of_two(struct loop *l, void (*then)(struct source *s))
{
	struct source a, b;

	source_init(l, &a);
	source_init(l, &b);
	a.then = b.then = then;
	a.other = &b;
	b.other = &a;
	event_signal(&a.event);
	event_signal(&b.event);
	assert_int_equal(loop_poll(l, 0), 1);
	assert_int_equal(a.calls + b.calls, 1);
	assert_int_equal(loop_poll(l, 0), 0);
	if (then == remove_other)
		memset(a.calls ? &b.watch : &a.watch, 0, sizeof(a.watch));
	source_fini(&a);
	source_fini(&b);
}

static void test_same_batch(void **state)
{
	one_of_two(*state, remove_other);
	one_of_two(*state, silence_other);
	one_of_two(*state, readd_other);
}

/*
 * Two ready at once, and the first polls: the second is called in there and removes itself, while its
 * event still waits in the outer batch.
 */
static void test_nested(void **state)
{
	struct loop *l = *state;
	struct source a, b;

	source_init(l, &a);
	source_init(l, &b);
	a.then = b.then = poll_again;
	a.other = &b;
	b.other = &a;
	event_signal(&a.event);
	event_signal(&b.event);
	assert_int_equal(loop_poll(l, 0), 1);
	assert_int_equal(a.calls, 1);
	assert_int_equal(b.calls, 1);
	source_fini(&a);
	source_fini(&b);
}

static void stop_after(struct source *s)
{
	if (s->calls == 3)
		loop_stop(s->watch.loop);
	else
		event_signal(&s->event);
}

static void test_run_stop(void **state)
{
	struct loop *l = *state;
	struct source s;

	source_init(l, &s);
	s.then = stop_after;
	event_signal(&s.event);
	assert_int_equal(loop_run(l), 0);
	assert_int_equal(s.calls, 3);
	/* A stop that came too early is not lost; one stop ends one run. */
	loop_stop(l);
	assert_int_equal(loop_run(l), 0);
	s.calls = 0;
	event_signal(&s.event);
	assert_int_equal(loop_run(l), 0);
	assert_int_equal(s.calls, 3);
	source_fini(&s);
}

static struct loop *of_signal; /* a handler has no argument */

static void on_alarm(int sig)
{
	loop_stop(of_signal);
}

static void test_stop_in_signal(void **state)
{
	of_signal = *state;
	signal(SIGALRM, on_alarm);
	ualarm(1000, 0);
	assert_int_equal(loop_run(*state), 0);
	signal(SIGALRM, SIG_DFL);
}

struct shot {
	struct loop_timer timer;
	unsigned fires, stop_at;
};

static void on_fire(struct loop_timer *t)
{
	struct shot *s = (struct shot *)t;

	if (++s->fires == s->stop_at)
		loop_stop(t->watch.loop);
}

static void test_timer(void **state)
{
	struct loop *l = *state;
	struct shot s = { .stop_at = 1 };
	struct err err = { 0 };

	assert_int_equal(loop_timer_init(l, &s.timer, on_fire, &err), 0);
	assert_int_equal(loop_poll(l, 0), 0);
	loop_timer_arm(&s.timer, 0, 0); /* at once, not never */
	assert_int_equal(loop_run(l), 0);
	assert_int_equal(s.fires, 1);
	assert_int_equal(loop_poll(l, 0), 0); /* once */
	s.stop_at = 4;
	loop_timer_arm(&s.timer, 1000, 1000);
	assert_int_equal(loop_run(l), 0);
	assert_int_equal(s.fires, 4);
	loop_timer_disarm(&s.timer);
	assert_int_equal(loop_poll(l, 0), 0);
	loop_timer_arm(&s.timer, UINT64_MAX, UINT64_MAX); /* far away, and nothing wraps */
	assert_int_equal(loop_poll(l, 0), 0);
	loop_timer_fini(&s.timer);
	loop_timer_fini(&s.timer);
	assert_int_equal(s.timer.fd, -1);
}

/* Both are due before either is served; the first to fire takes the other back. */
struct pair {
	struct shot shot;
	struct pair *other;
};

static void disarm_other(struct loop_timer *t)
{
	struct pair *p = (struct pair *)t; /* a timer comes first in a shot, a shot in a pair */

	p->shot.fires++;
	loop_timer_disarm(&p->other->shot.timer);
}

static void wait_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	assert_int_equal(poll(&p, 1, -1), 1);
}

static void test_timer_taken_back(void **state)
{
	struct loop *l = *state;
	struct pair p[2] = { { .other = &p[1] }, { .other = &p[0] } };
	struct err err = { 0 };

	for (int i = 0; i < 2; i++) {
		assert_int_equal(loop_timer_init(l, &p[i].shot.timer, disarm_other, &err), 0);
		loop_timer_arm(&p[i].shot.timer, 1, 0);
	}
	wait_readable(p[0].shot.timer.fd);
	wait_readable(p[1].shot.timer.fd);
	loop_poll(l, 0);
	assert_int_equal(p[0].shot.fires + p[1].shot.fires, 1);
	assert_int_equal(loop_poll(l, 0), 0);
	for (int i = 0; i < 2; i++)
		loop_timer_fini(&p[i].shot.timer);
}

struct seen {
	struct loop *loop;
	pthread_t thread;
	unsigned n;
	int order[8];
	char name[16];
	sigset_t blocked;
};

static void see(void *arg)
{
	struct seen *s = arg;

	s->thread = pthread_self();
	s->n++;
	prctl(PR_GET_NAME, s->name);
	pthread_sigmask(SIG_BLOCK, NULL, &s->blocked);
}

static void see_within(void *arg)
{
	struct seen *s = arg;

	loop_call(s->loop, see, s); /* already there: directly */
}

static void test_thread(void **state)
{
	struct loop *l = *state;
	struct seen s = { .loop = l };
	struct err err = { 0 };

	loop_call(l, see, &s);
	assert_int_equal(s.n, 1);
	assert_true(pthread_equal(s.thread, pthread_self())); /* not running: here */
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(loop_thread_start(l, "a-name-of-19-letters", &err), 0);
		loop_call(l, see, &s);
		loop_call(l, see_within, &s);
		assert_int_equal(s.n, 3 + 2 * i);
		assert_false(pthread_equal(s.thread, pthread_self()));
		assert_string_equal(s.name, "a-name-of-19-le");
		loop_thread_stop(l);
		loop_thread_stop(l);
	}
	/* Signals go to the main thread, but not those libpsx and faults need. */
	assert_true(sigismember(&s.blocked, SIGTERM) && sigismember(&s.blocked, SIGUSR1));
	assert_false(sigismember(&s.blocked, SIGSYS) || sigismember(&s.blocked, SIGSEGV));
	sigset_t here;

	pthread_sigmask(SIG_BLOCK, NULL, &here);
	assert_false(sigismember(&here, SIGTERM));
}

static void stop_self(void *arg)
{
	loop_stop(arg);
}

/* A thread whose loop ended by itself is still joined, and the loop can be used again. */
static void test_thread_ends_itself(void **state)
{
	struct loop *l = *state;
	struct seen s = { .loop = l };
	struct err err = { 0 };

	assert_int_equal(loop_thread_start(l, "t", &err), 0);
	loop_call(l, stop_self, l);
	loop_thread_stop(l);
	assert_int_equal(loop_thread_start(l, "t", &err), 0);
	loop_call(l, see, &s);
	assert_string_equal(s.name, "t");
	loop_thread_stop(l);
}

struct step {
	struct seen *s;
	int id;
};

static void take_step(void *arg)
{
	struct step *t = arg;

	t->s->order[t->s->n++] = t->id;
}

static void post_another(void *arg)
{
	struct step *t = arg;

	take_step(t);
	if (t->s->n < 8)
		loop_post(t->s->loop, post_another, t);
}

static void test_post(void **state)
{
	struct loop *l = *state;
	struct seen s = { .loop = l };
	struct step steps[4];

	for (int i = 0; i < 4; i++) {
		steps[i] = (struct step){ &s, i };
		assert_int_equal(loop_post(l, take_step, &steps[i]), 0);
	}
	assert_int_equal(s.n, 0);
	assert_int_equal(loop_poll(l, 0), 4);
	for (int i = 0; i < 4; i++)
		assert_int_equal(s.order[i], i);
	/* One that posts itself gets one turn a round. */
	loop_post(l, post_another, &steps[0]);
	assert_int_equal(loop_poll(l, 0), 1);
	assert_int_equal(s.n, 5);
	assert_int_equal(loop_poll(l, 0), 1);
	assert_int_equal(loop_poll(l, 0), 1);
	assert_int_equal(loop_poll(l, 0), 1);
	assert_int_equal(loop_poll(l, 0), 0);
	/* What nobody ran is freed with the loop (LeakSanitizer). */
	loop_post(l, take_step, &steps[0]);
}

/* Posted before: done before the call returns. Posted before the stop: done before it is joined. */
static void test_order(void **state)
{
	struct loop *l = *state;
	struct seen s = { .loop = l };
	struct step steps[4];
	struct err err = { 0 };

	for (int i = 0; i < 4; i++)
		steps[i] = (struct step){ &s, i };
	assert_int_equal(loop_thread_start(l, "t", &err), 0);
	loop_post(l, take_step, &steps[0]);
	loop_post(l, take_step, &steps[1]);
	loop_call(l, take_step, &steps[2]);
	assert_int_equal(s.n, 3);
	for (int i = 0; i < 3; i++)
		assert_int_equal(s.order[i], i);
	loop_post(l, take_step, &steps[3]);
	loop_thread_stop(l);
	assert_int_equal(s.n, 4);
}

/* A post that renews itself for ever does not keep a loop from stopping. */
static void post_for_ever(void *arg)
{
	loop_post(arg, post_for_ever, arg);
}

static void test_stop_despite_posts(void **state)
{
	struct loop *l = *state;
	struct err err = { 0 };

	assert_int_equal(loop_thread_start(l, "t", &err), 0);
	loop_post(l, post_for_ever, l);
	loop_thread_stop(l);
}

struct caller {
	struct loop *loop;
	unsigned made;
	unsigned *shared; /* touched on the loop's thread only: ThreadSanitizer watches */
};

static void add_one(void *arg)
{
	++*(unsigned *)arg;
}

static void *call_on(void *arg)
{
	struct caller *c = arg;

	for (c->made = 0; c->made < 200; c->made++) {
		loop_call(c->loop, add_one, c->shared);
		loop_post(c->loop, add_one, c->shared);
	}
	return NULL;
}

static void test_many_callers(void **state)
{
	struct loop *l = *state;
	unsigned shared = 0;
	struct caller c[3];
	struct err err = { 0 };
	pthread_t t[3];

	assert_int_equal(loop_thread_start(l, "t", &err), 0);
	for (int i = 0; i < 3; i++) {
		c[i] = (struct caller){ .loop = l, .shared = &shared };
		assert_int_equal(pthread_create(&t[i], NULL, call_on, &c[i]), 0);
	}
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	loop_thread_stop(l);
	assert_int_equal(shared, 3 * 2 * 200);
}

static void *call_once(void *arg)
{
	struct caller *c = arg;

	loop_call(c->loop, add_one, c->shared);
	return NULL;
}

/* Whoever waits in loop_call() when the loop stops is served, on the loop's thread or on its own. */
static void test_stop_serves_waiters(void **state)
{
	struct loop *l = *state;
	struct err err = { 0 };

	for (unsigned i = 0; i < 100; i++) {
		unsigned shared = 0;
		struct caller c = { .loop = l, .shared = &shared };
		pthread_t t;

		assert_int_equal(loop_thread_start(l, "t", &err), 0);
		assert_int_equal(pthread_create(&t, NULL, call_once, &c), 0);
		loop_thread_stop(l);
		pthread_join(t, NULL);
		assert_int_equal(shared, 1);
	}
}

/* A watch touched from another thread is our own bug, and is caught where it happens. */
static void test_misuse(void **state)
{
	struct loop *l = *state;
	struct seen seen = { .loop = l };
	struct source s;
	struct err err = { 0 };
	int status;

	source_init(l, &s);
	assert_int_equal(loop_thread_start(l, "t", &err), 0);
	loop_call(l, see,
		  &seen); /* now the thread waits, and holds no lock that fork() would copy */
	pid_t child = fork();

	if (!child) {
		const struct rlimit none = { 0, 0 };

		setrlimit(RLIMIT_CORE, &none);
		signal(SIGABRT, SIG_DFL);
		close(STDERR_FILENO); /* a test that passes prints no errors */
		loop_remove(&s.watch);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	loop_thread_stop(l);
	source_fini(&s);
}

static void test_no_descriptors(void **state)
{
	struct rlimit before, few;
	struct err err = { 0 };
	struct shot s = { 0 };

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	few = before;
	few.rlim_cur = 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	struct loop *l = loop_new(&err);
	int rc = loop_timer_init(*state, &s.timer, on_fire, NULL);

	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_null(l);
	assert_int_equal(err.code, -EMFILE);
	assert_int_equal(rc, -EMFILE);
	loop_timer_fini(&s.timer);
	loop_free(NULL);
}

#define WITH_LOOP(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_LOOP(test_watch),
		WITH_LOOP(test_add_fails),
		WITH_LOOP(test_modify),
		WITH_LOOP(test_same_batch),
		WITH_LOOP(test_nested),
		WITH_LOOP(test_run_stop),
		WITH_LOOP(test_stop_in_signal),
		WITH_LOOP(test_timer),
		WITH_LOOP(test_timer_taken_back),
		WITH_LOOP(test_thread),
		WITH_LOOP(test_thread_ends_itself),
		WITH_LOOP(test_post),
		WITH_LOOP(test_order),
		WITH_LOOP(test_stop_despite_posts),
		WITH_LOOP(test_many_callers),
		WITH_LOOP(test_stop_serves_waiters),
		WITH_LOOP(test_misuse),
		WITH_LOOP(test_no_descriptors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
