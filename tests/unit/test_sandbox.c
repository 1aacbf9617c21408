/*
 * test_sandbox.c - what code that took over the process could still do
 *
 * Each try is a process of its own that has the filter on and makes one system call: it ends as the
 * filter's handler ends it, or by saying that the call was let through. The calls that a machine needs are
 * tried by machines (tests/e2e).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm/sandbox.h"

#define LET_THROUGH 1
#define REFUSED     (128 + SIGSYS)

static pid_t parent; /* getppid() is refused, too */

/* How a process ends that makes the call inside the filter. */
static int in_filter(void (*call)(void))
{
	int status;

	parent = getpid();

	pid_t child = fork();

	if (!child) {
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);
		struct err err = { 0 };

		dup2(null, STDERR_FILENO);
		sandbox_prepare();
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || sandbox_filter(&err))
			_exit(99);
		call();
		_exit(LET_THROUGH);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void open_a_file(void)
{
	syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY);
}

static void run_a_program(void)
{
	const char *const argv[] = { "true", NULL };

	syscall(SYS_execve, "/bin/true", argv, argv + 1);
}

static void make_a_socket(void)
{
	syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
}

static void connect_somewhere(void)
{
	syscall(SYS_connect, 0, NULL, 0);
}

static void bind_to_a_device(void)
{
	syscall(SYS_setsockopt, 0, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3);
}

static void make_a_process(void)
{
	if (!syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0))
		_exit(0);
}

static void make_a_user_namespace(void)
{
	if (!syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0))
		_exit(0);
}

static void leave_a_namespace(void)
{
	syscall(SYS_unshare, CLONE_NEWUSER);
}

static void signal_somebody(void)
{
	syscall(SYS_kill, parent, 0);
}

static void signal_a_thread_of_somebody(void)
{
	syscall(SYS_tgkill, parent, parent, 0);
}

static void look_into_somebody(void)
{
	syscall(SYS_process_vm_readv, parent, NULL, 0, NULL, 0, 0);
}

static void trace(void)
{
	syscall(SYS_ptrace, 0, 0, 0, 0);
}

static void type_into_a_terminal(void)
{
	ioctl(STDIN_FILENO, TIOCSTI, "x");
}

static void be_dumpable(void)
{
	prctl(PR_SET_DUMPABLE, 1);
}

static void make_a_ring(void)
{
	syscall(SYS_io_uring_setup, 1, NULL);
}

static void load_a_program(void)
{
	syscall(SYS_bpf, 0, NULL, 0);
}

static void test_refused(void **state)
{
	static const struct {
		const char *name;
		void (*call)(void);
	} calls[] = {
		{ "open", open_a_file },
		{ "execve", run_a_program },
		{ "socket", make_a_socket },
		{ "connect", connect_somewhere },
		{ "setsockopt", bind_to_a_device },
		{ "fork", make_a_process },
		{ "clone", make_a_user_namespace },
		{ "unshare", leave_a_namespace },
		{ "kill", signal_somebody },
		{ "tgkill", signal_a_thread_of_somebody },
		{ "process_vm_readv", look_into_somebody },
		{ "ptrace", trace },
		{ "TIOCSTI", type_into_a_terminal },
		{ "prctl", be_dumpable },
		{ "io_uring_setup", make_a_ring },
		{ "bpf", load_a_program },
	};
	int bad = 0;

	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		int status = in_filter(calls[i].call);

		if (status != REFUSED)
			print_error("%s: ended with %d\n", calls[i].name, status);
		bad += status != REFUSED;
	}
	assert_int_equal(bad, 0);
}

static void clone3_is_unknown(void)
{
	if (syscall(SYS_clone3, NULL, 0) == -1 && errno == ENOSYS)
		_exit(42);
}

static void *nothing(void *arg)
{
	return arg;
}

/* What resets and the pool of disk threads do. */
static void make_a_thread(void)
{
	pthread_t t;

	if (!pthread_create(&t, NULL, nothing, NULL) && !pthread_join(t, NULL))
		_exit(42);
}

static void abort_ourselves(void)
{
	signal(SIGABRT, SIG_DFL);
	raise(SIGABRT);
}

static void test_let_through(void **state)
{
	assert_int_equal(in_filter(clone3_is_unknown), 42);
	assert_int_equal(in_filter(make_a_thread), 42);
	assert_int_equal(in_filter(abort_ourselves), -SIGABRT);
}

/* One process's try: 0, or the number of the first step that was not as it should be. */
static int remove_files(const char *ours, const char *others, const char *socket)
{
	const char *const sockets[] = { NULL, socket };
	struct err err = { 0 };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || sandbox_paths(sockets, 2, &err))
		return 1;
	if (!unlink(others) || errno != EACCES)
		return 2;
	if (open(ours, O_RDONLY) >= 0 || errno != EACCES)
		return 3;
	if (unlink(ours))
		return 4;
	return 0;
}

static void make(char *path, size_t size, const char *dir)
{
	snprintf(path, size, "%s/file", dir);
	close(open(path, O_CREAT | O_WRONLY, 0600));
}

static void test_files_are_removed_beside_sockets_only(void **state)
{
	char here[] = "/tmp/coracle-test-XXXXXX", there[] = "/tmp/coracle-test-XXXXXX";
	char ours[64], others[64], socket[64];
	int status;

	if (syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) < 0)
		skip();
	assert_true(mkdtemp(here) && mkdtemp(there));
	make(ours, sizeof(ours), here);
	make(others, sizeof(others), there);
	snprintf(socket, sizeof(socket), "%s/socket", here);

	pid_t child = fork();

	if (!child)
		_exit(remove_files(ours, others, socket));
	assert_int_equal(waitpid(child, &status, 0), child);
	unlink(ours);
	unlink(others);
	rmdir(here);
	rmdir(there);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_let_through),
		cmocka_unit_test(test_files_are_removed_beside_sockets_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
