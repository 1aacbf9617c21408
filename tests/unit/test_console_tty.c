/*
 * test_console_tty.c - the console on the user's terminal: escapes, and raw mode undone on every way out
 *
 * A pseudo-terminal pair stands in for the terminal. Processes that die with it are children.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "tests/unit/console_port.h"

struct tty {
	int master, slave;
	struct termios before;
};

static void tty_open(struct tty *t)
{
	char name[64];

	t->master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	assert_true(t->master >= 0);
	assert_int_equal(grantpt(t->master), 0);
	assert_int_equal(unlockpt(t->master), 0);
	assert_int_equal(ptsname_r(t->master, name, sizeof(name)), 0);
	t->slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	assert_true(t->slave >= 0);
	assert_int_equal(tcgetattr(t->slave, &t->before), 0);
	assert_true(t->before.c_lflag & ICANON);
}

static void tty_close(struct tty *t)
{
	fd_close(&t->master);
	fd_close(&t->slave);
}

static bool tty_is_raw(const struct tty *t)
{
	struct termios now;

	assert_int_equal(tcgetattr(t->slave, &now), 0);
	return !(now.c_lflag & (ICANON | ECHO | ISIG));
}

static void tty_assert_restored(const struct tty *t)
{
	struct termios now;

	assert_int_equal(tcgetattr(t->slave, &now), 0);
	assert_int_equal(now.c_iflag, t->before.c_iflag);
	assert_int_equal(now.c_oflag, t->before.c_oflag);
	assert_int_equal(now.c_lflag, t->before.c_lflag);
	assert_int_equal(now.c_cflag, t->before.c_cflag);
}

static void tty_console(struct port *p, struct tty *t)
{
	struct console_user user = user_of(p);
	struct err err = { 0 };

	p->console = console_stdio_open(t->slave, t->slave, p->loop, &user, &err);
	if (!p->console)
		fail_msg("%s", err.msg);
}

static void test_tty(void **state)
{
	struct port *p = *state;
	struct console_user user = user_of(p);
	struct err err = { 0 };
	struct tty t;

	tty_open(&t);
	tty_console(p, &t);
	assert_true(tty_is_raw(&t));
	say(p, "login: ");
	expect(p, t.master, "login: ");
	assert_int_equal(write(t.master, "r\3\32\177\r", 5),
			 5); /* Ctrl-C, Ctrl-Z, delete, return */
	wait_for(p, 5);
	assert_memory_equal(p->got, "r\3\32\177\r", 5);
	expect_nothing(p, t.master); /* no echo */
	assert_null(console_stdio_open(t.slave, t.slave, p->loop, &user, &err));
	assert_int_equal(err.code, -EBUSY);
	assert_true(tty_is_raw(&t));
	p->console->ops->free(p->console);
	p->console = NULL;
	tty_assert_restored(&t);
	struct sigaction sa;

	assert_int_equal(sigaction(SIGTERM, NULL, &sa), 0);
	assert_true(sa.sa_handler == SIG_DFL);
	tty_console(p, &t); /* can be had again */
	assert_true(tty_is_raw(&t));
	p->console->ops->free(p->console);
	p->console = NULL;
	tty_close(&t);
}

static void test_tty_escapes(void **state)
{
	struct port *p = *state;
	char buf[512];
	struct tty t;

	tty_open(&t);
	tty_console(p, &t);
	assert_int_equal(write(t.master, "a\1xb\1", 5), 5);
	wait_for(p, 2);
	assert_int_equal(p->quits, 1);
	assert_int_equal(write(t.master, "\1c\1ad\1be\1qf", 11), 11); /* Ctrl-A over two reads */
	wait_for(p, 8);
	assert_memory_equal(p->got, "ab\1c\1def", 8);
	assert_int_equal(p->commands, 0);
	assert_int_equal(p->breaks, 1);
	assert_int_equal(write(t.master, "\1c.", 3), 3);
	wait_for(p, 9);
	assert_int_equal(p->commands, 1);
	assert_int_equal(write(t.master, "\1h.", 3), 3);
	wait_for(p, 10);
	buf[0] = '\0';
	for (size_t len = 0; !strstr(buf, "Ctrl-A Ctrl-A"); len++) {
		assert_true(len < sizeof(buf) - 1);
		read_all(p, t.master, buf + len, 1);
		buf[len + 1] = '\0';
	}
	assert_non_null(strstr(buf, "Ctrl-A x"));
	/* a guest that takes nothing does not keep one from leaving */
	p->room = 0;
	assert_int_equal(write(t.master, "typed\1x", 7), 7);
	while (p->quits < 2)
		assert_true(loop_poll(p->loop, 10000) > 0);
	assert_int_equal(p->len, 10);
	p->console->ops->free(p->console);
	p->console = NULL;
	tty_close(&t);
}

static void test_tty_stalled(void **state)
{
	struct port *p = *state;
	char line[4096];
	struct tty t;

	memset(line, 'x', sizeof(line));
	tty_open(&t);
	tty_console(p, &t);
	for (int i = 0; i < 1000; i++)
		p->console->ops->write(p->console, line, sizeof(line)); /* nobody reads: no wait */
	/* how much the kernel moves on meanwhile is its own affair */
	assert_true(((struct console_io *)p->console)->dropped > 0);
	p->console->ops->free(p->console); /* does not wait either */
	p->console = NULL;
	tty_assert_restored(&t);
	tty_close(&t);
}

/* In a child: cmocka's handlers would run the other tests there. */
static void as_in_a_program(void)
{
	static const int sigs[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT };

	for (size_t i = 0; i < sizeof(sigs) / sizeof(sigs[0]); i++)
		signal(sigs[i], SIG_DFL);
}

/* A process with the terminal, which dies of @sig or, 0, of exit(). */
static void die_with_terminal(struct port *p, int sig)
{
	struct tty t;
	int status;

	tty_open(&t);
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		as_in_a_program();
		tty_console(p, &t);
		if (!tty_is_raw(&t))
			_exit(99);
		if (!sig) {
			close(STDOUT_FILENO); /* the parent's unwritten lines */
			exit(7);
		}
		if (sig == SIGABRT)
			abort();
		raise(sig);
		_exit(98);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (sig) {
		assert_true(WIFSIGNALED(status));
		assert_int_equal(WTERMSIG(status), sig);
	} else {
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), 7);
	}
	tty_assert_restored(&t);
	tty_close(&t);
}

static void test_tty_deaths(void **state)
{
	static const int sigs[] = { 0,       SIGSEGV, SIGBUS, SIGILL, SIGFPE,
				    SIGABRT, SIGTERM, SIGINT, SIGHUP, SIGQUIT };

	for (size_t i = 0; i < sizeof(sigs) / sizeof(sigs[0]); i++)
		die_with_terminal(*state, sigs[i]);
}

/* A real fault, on a thread that is not the main one. */
static void *fault(void *arg)
{
	volatile char *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	*page = 1;
	return NULL;
}

static void test_tty_fault(void **state)
{
	struct tty t;
	int status;

	tty_open(&t);
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		pthread_t thread;

		as_in_a_program();
		tty_console(*state, &t);
		pthread_create(&thread, NULL, fault, NULL);
		pthread_join(thread, NULL);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGSEGV);
	tty_assert_restored(&t);
	tty_close(&t);
}

static void test_tty_stop(void **state)
{
	struct port *p = *state;
	char byte;
	int status, told[2];
	struct tty t;

	tty_open(&t);
	assert_int_equal(pipe(told), 0);
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		setpgid(0, 0);
		tty_console(p, &t);
		if (write(told[1], "r", 1) != 1)
			_exit(1);
		while (!p->len)
			loop_poll(p->loop, -1);
		_exit(tty_is_raw(&t) ? 42 : 43);
	}
	assert_int_equal(read(told[0], &byte, 1), 1);
	assert_true(tty_is_raw(&t));
	assert_int_equal(kill(pid, SIGTSTP), 0);
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	tty_assert_restored(&t);
	assert_int_equal(kill(pid, SIGCONT), 0);
	assert_int_equal(write(t.master, "k\r", 2), 2);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 42);
	fd_close(&told[0]);
	fd_close(&told[1]);
	tty_close(&t);
}

static void set_size(const struct tty *t, unsigned short cols, unsigned short rows)
{
	const struct winsize size = { .ws_col = cols, .ws_row = rows };

	assert_int_equal(ioctl(t->master, TIOCSWINSZ, &size), 0);
}

/* Told at first, and after each SIGWINCH; nobody else wakes up for it. */
static void test_tty_size(void **state)
{
	struct port *p = *state;
	struct sigaction sa;
	struct tty t;

	tty_open(&t);
	set_size(&t, 90, 30);
	tty_console(p, &t);
	settle(p);
	assert_int_equal(p->resizes, 1);
	assert_int_equal(p->cols, 90);
	assert_int_equal(p->rows, 30);
	set_size(&t, 200, 50);
	say(p, "x");
	settle(p);
	assert_int_equal(p->resizes, 1); /* not our controlling terminal, so no signal */
	assert_int_equal(raise(SIGWINCH), 0);
	settle(p);
	assert_int_equal(p->resizes, 2);
	assert_int_equal(p->cols, 200);
	assert_int_equal(p->rows, 50);
	p->console->ops->free(p->console);
	p->console = NULL;
	assert_int_equal(sigaction(SIGWINCH, NULL, &sa), 0);
	assert_true(sa.sa_handler == SIG_DFL);
	tty_close(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_tty),       T(test_tty_escapes), T(test_tty_stalled), T(test_tty_deaths),
		T(test_tty_fault), T(test_tty_stop),    T(test_tty_size),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
