/*
 * test_log.c - lines as they reach stderr
 *
 * stderr is a pipe for the length of one test. Time is not waited for: the window of a limit is moved
 * into the past instead.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <termios.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"

struct fixture {
	int real_stderr, out;
	char text[65536];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int p[2];

	if (!f || pipe2(p, O_CLOEXEC))
		return -1;
	f->real_stderr = dup(STDERR_FILENO);
	dup2(p[1], STDERR_FILENO);
	close(p[1]);
	f->out = p[0];
	fcntl(f->out, F_SETFL, O_NONBLOCK);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	dup2(f->real_stderr, STDERR_FILENO);
	close(f->real_stderr);
	close(f->out);
	free(f);
	log_set_level(LOG_INFO);
	return 0;
}

/* What was logged since the last look, without the program's name at the start. */
static const char *logged(struct fixture *f)
{
	ssize_t n = read(f->out, f->text, sizeof(f->text) - 1);

	f->text[n > 0 ? n : 0] = '\0';
	if (n <= 0)
		return "";
	assert_memory_equal(f->text, "test_log: ", 10);
	return f->text + 10;
}

static void test_levels(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(log_get_level(), LOG_INFO);
	log_debug("not seen");
	assert_string_equal(logged(f), "");
	log_info("fact %d", 1);
	assert_string_equal(logged(f), "fact 1\n");
	log_warn("w");
	assert_string_equal(logged(f), "warning: w\n");
	log_set_level(LOG_ERR);
	log_warn("not seen");
	log_err("e");
	assert_string_equal(logged(f), "error: e\n");
	log_set_level(LOG_DEBUG);
	errno = ENOTTY + 1000;
	log_debug("d");
	assert_int_equal(errno, ENOTTY + 1000);
	assert_string_equal(logged(f), "debug: d\n");
}

static void test_hostile_text(void **state)
{
	struct fixture *f = *state;
	char text[5000];

	log_info("a\nb\r\033[2Jc\x7f\td");
	assert_string_equal(logged(f), "a?b??[2Jc?\td\n");
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	log_info("%s", text);
	const char *line = logged(f);

	assert_true(strlen(line) < 1024);
	assert_string_equal(line + strlen(line) - 5, "x...\n");
}

/* On a terminal a line also returns the carriage. */
static void test_terminal(void **state)
{
	struct fixture *f = *state;
	int pty = posix_openpt(O_RDWR | O_NOCTTY);
	char text[64];

	if (pty < 0 || grantpt(pty) || unlockpt(pty))
		skip();
	int tty = open(ptsname(pty), O_RDWR | O_NOCTTY);

	struct termios raw;

	assert_true(tty >= 0);
	assert_int_equal(tcgetattr(tty, &raw), 0);
	cfmakeraw(&raw); /* as a console does; else the kernel adds the CR */
	assert_int_equal(tcsetattr(tty, TCSANOW, &raw), 0);
	dup2(tty, STDERR_FILENO);
	log_info("x");
	ssize_t n = read(pty, text, sizeof(text) - 1);

	assert_true(n > 0);
	text[n] = '\0';
	assert_string_equal(text, "test_log: x\r\n");
	close(tty);
	close(pty);
	dup2(f->real_stderr, STDERR_FILENO);
}

static unsigned lines(const char *text)
{
	unsigned n = 0;

	for (; *text; text++)
		n += *text == '\n';
	return n;
}

static void test_limit(void **state)
{
	struct fixture *f = *state;
	struct log_limit l = { 0 }, other = { 0 };

	/* The window begins far enough in the future of this test that no second passes in it. */
	log_guest(&l, "flood");
	atomic_store(&l.window_ns, UINT64_MAX);
	for (int i = 1; i < 1000; i++)
		log_guest(&l, "flood");
	assert_int_equal(lines(logged(f)), 10);
	assert_int_equal(atomic_load(&l.dropped), 990);
	log_guest(&other, "another's budget is its own");
	assert_int_equal(lines(logged(f)), 1);
}

static void test_limit_recovers(void **state)
{
	struct fixture *f = *state;
	struct log_limit l = { 0 };
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	/* Spent, and 1.5 seconds ago: one line is earned, and says what was left out. */
	atomic_store(&l.used, 10);
	atomic_store(&l.dropped, 7);
	atomic_store(&l.window_ns,
		     (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec - 1500000000);
	log_guest(&l, "line");
	assert_string_equal(logged(f), "warning: line (7 such lines left out)\n");
	assert_int_equal(atomic_load(&l.dropped), 0);
	/* An hour of silence earns the burst back, not more. */
	atomic_store(&l.used, 10);
	atomic_store(&l.window_ns, 1);
	log_guest(&l, "line");
	assert_string_equal(logged(f), "warning: line\n");
	assert_int_equal(atomic_load(&l.used), 1);
}

#define THREADS 4
#define EACH    25

static void *talk(void *arg)
{
	for (int i = 0; i < EACH; i++)
		log_info("%s", (const char *)arg);
	return NULL;
}

/* Lines of threads come out whole. */
static void test_threads(void **state)
{
	struct fixture *f = *state;
	pthread_t t[THREADS];
	char text[100];
	unsigned whole = 0;

	memset(text, 'y', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, talk, text), 0);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	logged(f);
	for (char *save, *line = strtok_r(f->text, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save), whole++) {
		assert_memory_equal(line, "test_log: ", 10);
		assert_string_equal(line + 10, text);
	}
	assert_int_equal(whole, THREADS * EACH);
}

static void test_bug(void **state)
{
	struct fixture *f = *state;
	pid_t child = fork();
	int status;

	if (!child) {
		BUG_ON(1 + 1 == 2);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	assert_non_null(strstr(logged(f), "1 + 1 == 2"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_levels, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_text, setup, teardown),
		cmocka_unit_test_setup_teardown(test_terminal, setup, teardown),
		cmocka_unit_test_setup_teardown(test_limit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_limit_recovers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bug, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
