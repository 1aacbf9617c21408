/*
 * test_event.c - both kinds of event keep the same promises
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/event.h"

static void promises(struct event *e)
{
	assert_false(event_pending(e));
	assert_false(event_clear(e));
	event_signal(e);
	assert_true(event_pending(e));
	assert_true(event_pending(e)); /* a look does not consume */
	assert_true(event_clear(e));
	assert_false(event_pending(e));
	assert_false(event_clear(e));
	for (int i = 0; i < 5; i++)
		event_signal(e); /* merge into one */
	assert_true(event_clear(e));
	assert_false(event_clear(e));
}

static void test_fd(void **state)
{
	struct event e;
	struct err err = { 0 };

	assert_int_equal(event_init(&e, &err), 0);
	assert_true(e.fd >= 0);
	assert_true(fcntl(e.fd, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(e.fd, F_GETFL) & O_NONBLOCK);
	promises(&e);
	/* A loop sees it. */
	struct pollfd p = { .fd = e.fd, .events = POLLIN };

	event_signal(&e);
	assert_int_equal(poll(&p, 1, 0), 1);
	event_fini(&e);
	assert_int_equal(e.fd, -1);
	event_fini(&e);
}

static void test_counter(void **state)
{
	struct event e;

	event_init_counter(&e);
	assert_int_equal(e.fd, -1);
	promises(&e);
	event_signal(&e);
	event_signal(&e);
	assert_int_equal(atomic_load(&e.count), 2);
	event_fini(&e);
}

/* A full eventfd (a guest cannot fill one, a bug could) neither blocks nor loses the signal. */
static void test_full(void **state)
{
	const uint64_t most = UINT64_MAX - 1;
	struct event e;
	struct err err = { 0 };

	assert_int_equal(event_init(&e, &err), 0);
	assert_int_equal(write(e.fd, &most, sizeof(most)), sizeof(most));
	errno = 1234;
	event_signal(&e);
	assert_int_equal(errno, 1234);
	assert_true(event_clear(&e));
	assert_false(event_pending(&e));
	event_fini(&e);
}

static void test_no_descriptors(void **state)
{
	struct rlimit before, none;
	struct event e;
	struct err err = { 0 };

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = before;
	none.rlim_cur = 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	int rc = event_init(&e, &err);

	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(rc, -EMFILE);
	assert_non_null(strstr(err.msg, "ulimit -n"));
	event_fini(&e);
}

static void *signal_it(void *arg)
{
	event_signal(arg);
	return NULL;
}

static void test_thread(void **state)
{
	struct event e;
	struct err err = { 0 };
	pthread_t t;

	assert_int_equal(event_init(&e, &err), 0);
	struct pollfd p = { .fd = e.fd, .events = POLLIN };

	assert_int_equal(pthread_create(&t, NULL, signal_it, &e), 0);
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_true(event_clear(&e));
	pthread_join(t, NULL);
	event_fini(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fd),     cmocka_unit_test(test_counter),
		cmocka_unit_test(test_full),   cmocka_unit_test(test_no_descriptors),
		cmocka_unit_test(test_thread),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
