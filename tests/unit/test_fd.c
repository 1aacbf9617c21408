/*
 * test_fd.c - ownership, short transfers, ends of files
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static void test_ownership(void **state)
{
	int kept, closed;

	{
		cleanup_fd int a = memfd_create("a", MFD_CLOEXEC);
		cleanup_fd int b = memfd_create("b", MFD_CLOEXEC);

		closed = b;
		kept = fd_steal(&a);
		assert_int_equal(a, -1);
		errno = 1234;
		fd_close(&a); /* nothing to close */
		assert_true(is_open(kept) && is_open(closed));
	}
	assert_true(is_open(kept));
	assert_false(is_open(closed));
	errno = 1234;
	fd_close(&kept);
	assert_int_equal(kept, -1);
	kept = 1 << 20;
	fd_close(&kept); /* EBADF is kept to itself */
	assert_int_equal(errno, 1234);
}

static void test_heap(void **state)
{
	cleanup_free char *scope = malloc(8); /* LeakSanitizer sees it if it stays */
	char *p = malloc(8);

	assert_non_null(scope);
	ptr_free(&p);
	assert_null(p);
	ptr_free(&p);
}

static void test_nonblock(void **state)
{
	int p[2];
	char c;

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(fd_set_nonblock(p[0]), 0);
	assert_int_equal(read(p[0], &c, 1), -1);
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(fd_set_nonblock(-1), -EBADF);
	close(p[0]);
	signal(SIGPIPE, SIG_IGN);
	assert_int_equal(fd_write_all(p[1], "x", 1), -EPIPE);
	close(p[1]);
}

#define AMOUNT ((size_t)1 << 20)

static void *drain(void *arg)
{
	int fd = *(int *)arg;
	char *buf = malloc(AMOUNT);
	size_t have = 0;

	while (buf && have < AMOUNT) {
		ssize_t n = read(fd, buf + have, 1000);

		if (n <= 0)
			break;
		have += (size_t)n;
	}
	return buf;
}

/* More than a pipe holds: write(2) blocks and comes back short, and nothing is lost or doubled. */
static void test_write_all(void **state)
{
	unsigned char *src = malloc(AMOUNT);
	void *got = NULL;
	pthread_t t;
	int p[2];

	assert_non_null(src);
	for (size_t i = 0; i < AMOUNT; i++)
		src[i] = (unsigned char)(i * 7 + i / 4096);
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(pthread_create(&t, NULL, drain, &p[0]), 0);
	assert_int_equal(fd_write_all(p[1], src, AMOUNT), 0);
	pthread_join(t, &got);
	assert_non_null(got);
	assert_memory_equal(got, src, AMOUNT);
	free(got);
	free(src);
	/* A full pipe that may not be waited for. */
	assert_int_equal(fd_set_nonblock(p[1]), 0);
	int rc;

	do {
		rc = fd_write_all(p[1], "0123456789", 10);
	} while (!rc);
	assert_int_equal(rc, -EAGAIN);
	close(p[0]);
	close(p[1]);
}

static void test_pread_all(void **state)
{
	cleanup_fd int fd = memfd_create("f", MFD_CLOEXEC);
	char buf[8] = "";

	assert_int_equal(fd_write_all(fd, "0123456789", 10), 0);
	assert_int_equal(fd_pread_all(fd, buf, 4, 6), 0);
	assert_memory_equal(buf, "6789", 4);
	assert_int_equal(fd_pread_all(fd, buf, 4, 7), -ENODATA);
	assert_int_equal(fd_pread_all(fd, buf, 4, 1000), -ENODATA);
	assert_int_equal(fd_pread_all(fd, buf, 0, 1000), 0);
	assert_int_equal(fd_pread_all(fd, buf, 4, -1), -EINVAL);
	assert_int_equal(fd_pread_all(-1, buf, 4, 0), -EBADF);
}

/* In a child, as these are this program's own. */
static int status_of(int (*fn)(void))
{
	pid_t child = fork();
	int status;

	if (!child)
		_exit(fn());
	assert_int_equal(waitpid(child, &status, 0), child);
	return status;
}

static int fill_all(void)
{
	close(STDIN_FILENO);
	close(STDOUT_FILENO);
	close(STDERR_FILENO);
	if (fd_fill_standard())
		return 1;
	int next = open("/dev/null", O_RDWR | O_CLOEXEC);
	char c;

	if (next <= STDERR_FILENO)
		return 2;
	/* Using one fails as a closed one does. */
	if (read(STDIN_FILENO, &c, 1) >= 0 || errno != EBADF)
		return 3;
	return write(STDOUT_FILENO, &c, 1) >= 0 || write(STDERR_FILENO, &c, 1) >= 0;
}

static int fill_middle(void)
{
	struct stat before, after;

	if (fstat(STDERR_FILENO, &before))
		return 1;
	close(STDOUT_FILENO);
	if (fd_fill_standard() || !is_open(STDOUT_FILENO))
		return 2;
	return fstat(STDERR_FILENO, &after) || after.st_ino != before.st_ino;
}

static void test_fill_standard(void **state)
{
	assert_int_equal(status_of(fill_all), 0);
	assert_int_equal(status_of(fill_middle), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ownership), cmocka_unit_test(test_heap),
		cmocka_unit_test(test_nonblock),  cmocka_unit_test(test_write_all),
		cmocka_unit_test(test_pread_all), cmocka_unit_test(test_fill_standard),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
