/*
 * test_guest_memory.c - bounds, dirty bits, and memory that goes back to the host
 *
 * The layout of most tests, small enough to try every edge:
 *
 *	LOW    0x0      .. 0x8000
 *	HIGH   0x10000  .. 0x18000	a hole before it
 *	NEXT   0x18000  .. 0x1a000	meets HIGH in the guest, and is another region
 *	TOP    2^64 - 0x2000 .. 2^64
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/guest_memory.h"

#define PAGE UINT64_C(4096)
#define TOP  (UINT64_MAX - 2 * PAGE + 1)
#define MIB  (UINT64_C(1) << 20)

static void ram(struct gmem *m, gpa_t at, uint64_t size)
{
	struct err err = { 0 };

	assert_int_equal(gmem_add_ram(m, at, size, GMEM_PAGES_SMALL, &err), 0);
}

static int setup(void **state)
{
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);

	if (!m)
		return -1;
	ram(m, TOP, 2 * PAGE); /* out of order */
	ram(m, 0x10000, 0x8000);
	ram(m, 0, 0x8000);
	ram(m, 0x18000, 0x2000);
	*state = m;
	return 0;
}

static int teardown(void **state)
{
	gmem_free(*state);
	return 0;
}

static void test_regions(void **state)
{
	struct gmem *m = *state;
	static const gpa_t want[] = { 0, 0x10000, 0x18000, TOP };

	assert_int_equal(gmem_count(m), 4);
	assert_int_equal(gmem_size(m), 0x8000 + 0x8000 + 0x2000 + 0x2000);
	for (unsigned i = 0; i < 4; i++) {
		const struct gmem_region *r = gmem_region(m, i);

		assert_int_equal(r->gpa, want[i]);
		for (uint64_t at = 0; at < r->size; at += 64)
			assert_int_equal(r->host[at], 0);
	}
	assert_null(gmem_region(m, 4));
	gmem_free(NULL);
}

static void refused(struct gmem *m, gpa_t at, uint64_t size, int rc)
{
	static _Alignas(16) char host[PAGE];
	struct err err = { 0 };

	assert_int_equal(gmem_add_ram(m, at, size, GMEM_PAGES_SMALL, &err), rc);
	assert_true(err.msg[0]);
	memset(&err, 0, sizeof(err));
	assert_int_equal(gmem_add_borrowed(m, at, size, host, &err), rc);
	assert_true(err.msg[0]);
	assert_int_equal(gmem_count(m), 4);
}

static void test_add_refused(void **state)
{
	struct gmem *m = *state;
	struct err err = { 0 };
	static _Alignas(16) char host[2 * PAGE];

	refused(m, 0x20000, 0, -EINVAL);
	refused(m, 0x20001, PAGE, -EINVAL);
	refused(m, 0x20000, PAGE + 1, -EINVAL);
	refused(m, TOP + PAGE, 2 * PAGE, -EINVAL); /* wraps */
	refused(m, PAGE, UINT64_MAX - PAGE + 1, -EEXIST);
	refused(m, 0x7000, PAGE, -EEXIST);
	refused(m, 0x7000, 2 * PAGE, -EEXIST);
	refused(m, 0x8000, 0x9000, -EEXIST);
	refused(m, 0x8000, 0x20000, -EEXIST); /* covers two */
	assert_int_equal(gmem_add_borrowed(m, 0x20000, PAGE, host + 1, &err), -EINVAL);
	/* 2 MiB pages want 2 MiB units. */
	assert_int_equal(gmem_add_ram(m, 4 * MIB, MIB, GMEM_PAGES_HUGE, &err), -EINVAL);
	/* More than any host's address space. */
	assert_true(gmem_add_ram(m, MIB, UINT64_C(1) << 62, GMEM_PAGES_SMALL, &err) < 0);
	assert_non_null(strstr(err.msg, "MiB"));
	for (unsigned i = 0; i < 60; i++)
		assert_int_equal(gmem_add_borrowed(m, MIB + i * 2 * PAGE, PAGE, host, &err), 0);
	assert_int_equal(gmem_add_borrowed(m, 2 * MIB, PAGE, host, &err), -ENOSPC);
}

/* Every way in agrees on what is RAM; @good tells which. */
static void check_range(struct gmem *m, gpa_t at, uint64_t len, bool good)
{
	char buf[0x9000];
	struct iovec iov = { buf, 77 };
	const int rc = good ? 0 : -EFAULT;

	assert_int_equal(gmem_contains(m, at, len), good);
	assert_int_equal(gmem_iov(m, at, len, &iov), rc);
	assert_int_equal(iov.iov_len, good ? len : 0);
	if (!good)
		assert_null(iov.iov_base);
	if (len > sizeof(buf))
		return;
	memset(buf, 0x77, sizeof(buf));
	assert_int_equal(gmem_read(m, at, buf, len), rc);
	if (!good)
		assert_int_equal((uint8_t)buf[0], 0x77); /* nothing copied */
	assert_int_equal(gmem_write(m, at, buf, len), rc);
	assert_int_equal(gmem_fill(m, at, 1, len), rc);
	assert_int_equal(gmem_discard(m, at, len), rc);
	assert_int_equal(gmem_load_fd(m, at, -1, 0, len), good ? -EBADF : -EFAULT);
}

static void test_bounds(void **state)
{
	struct gmem *m = *state;

	check_range(m, 0, 1, true);
	check_range(m, 0, 0x8000, true);
	check_range(m, 0x7fff, 1, true);
	check_range(m, 0, 0x8001, false);
	check_range(m, 0x7fff, 2, false);
	check_range(m, 0x8000, 1, false);
	check_range(m, 0xffff, 1, false);
	check_range(m, 0xffff, 2, false); /* begins in the hole */
	check_range(m, 0x10000, 0x8000, true);
	check_range(m, 0x17fff, 2, false); /* CVE-2019-18960: over the seam of two regions */
	check_range(m, 0x18000, 0x2000, true);
	check_range(m, 0x1a000, 1, false);
	check_range(m, TOP, 0x2000, true);
	check_range(m, UINT64_MAX, 1, true);
	check_range(m, UINT64_MAX, 2, false); /* past 2^64 */
	check_range(m, TOP, UINT64_MAX, false);
	check_range(m, 0, UINT64_MAX, false);
	check_range(m, 0x7fff, UINT64_MAX, false);
	check_range(m, 1, UINT64_MAX - 1, false);
	check_range(m, UINT64_MAX - 1, UINT64_MAX, false);
}

static void test_empty(void **state)
{
	struct gmem *m = *state;
	struct iovec iov = { m, 5 };

	assert_true(gmem_contains(m, 0, 0));
	assert_true(gmem_contains(m, UINT64_MAX, 0));
	assert_false(gmem_contains(m, 0x8000, 0));
	/* Nothing is asked for, so nothing can be wrong with where. */
	assert_int_equal(gmem_iov(m, 0x8000, 0, &iov), 0);
	assert_int_equal(iov.iov_len, 0);
	assert_null(iov.iov_base);
	assert_int_equal(gmem_read(m, 0x8000, NULL, 0), 0);
	assert_int_equal(gmem_write(m, 0x8000, NULL, 0), 0);
	assert_int_equal(gmem_fill(m, 0x8000, 0, 0), 0);
	assert_int_equal(gmem_discard(m, 0x8000, 0), 0);
}

static void test_copy(void **state)
{
	struct gmem *m = *state;
	char buf[8];
	struct iovec iov;

	assert_int_equal(gmem_write(m, 0x10ffd, "abcdef", 6), 0);
	assert_int_equal(gmem_read(m, 0x10ffd, buf, 6), 0);
	assert_memory_equal(buf, "abcdef", 6);
	assert_int_equal(gmem_iov(m, 0x10ffe, 4, &iov), 0);
	assert_memory_equal(iov.iov_base, "bcde", 4);
	assert_int_equal(gmem_fill(m, 0x10ffe, 'x', 2), 0);
	assert_int_equal(gmem_read(m, 0x10ffd, buf, 6), 0);
	assert_memory_equal(buf, "axxdef", 6);
}

static void test_index(void **state)
{
	struct gmem *m = *state;
	uint16_t v = 0;

	assert_int_equal(gmem_store16(m, 0x7ffe, 0x1234), 0);
	assert_int_equal(gmem_load16(m, 0x7ffe, &v), 0);
	assert_int_equal(v, 0x1234);
	assert_memory_equal(gmem_region(m, 0)->host + 0x7ffe, "\x34\x12", 2);
	assert_int_equal(gmem_store16(m, UINT64_MAX - 1, 7), 0);
	assert_int_equal(gmem_load16(m, UINT64_MAX - 1, &v), 0);
	assert_int_equal(v, 7);
	static const gpa_t bad[] = { 0x7fff, 0x8000, 0x17fff, 1, UINT64_MAX };

	for (unsigned i = 0; i < 5; i++) {
		v = 99;
		assert_int_equal(gmem_load16(m, bad[i], &v), -EFAULT);
		assert_int_equal(gmem_store16(m, bad[i], 1), -EFAULT);
		assert_int_equal(v, 99);
	}
}

/* The bits of region 1 (HIGH, eight pages) since the last look. */
static uint64_t dirty(struct gmem *m)
{
	uint64_t bits = 0;

	assert_int_equal(gmem_dirty_fetch(m, 1, &bits, 1), 0);
	return bits;
}

static void test_dirty(void **state)
{
	struct gmem *m = *state;
	const gpa_t high = 0x10000;
	struct err err = { 0 };
	struct iovec iov[4];
	uint64_t bits[2] = { 7, 7 };

	assert_int_equal(gmem_write(m, high, "x", 1), 0);
	assert_int_equal(gmem_dirty_fetch(m, 1, bits, 1), -EINVAL); /* not started */
	assert_int_equal(gmem_dirty_start(m, &err), 0);
	assert_int_equal(dirty(m), 0);
	gmem_write(m, high + PAGE - 1, "ab", 2); /* over a page's edge */
	assert_int_equal(dirty(m), 0x3);
	assert_int_equal(dirty(m), 0); /* fetched is cleared */
	gmem_fill(m, high + 3 * PAGE, 0, PAGE);
	assert_int_equal(dirty(m), 0x8);
	gmem_store16(m, high + 5 * PAGE - 2, 1);
	assert_int_equal(dirty(m), 0x10);
	gmem_discard(m, high + 6 * PAGE, 2 * PAGE);
	assert_int_equal(dirty(m), 0xc0);
	/* Reading, and what is refused, leave no mark. */
	gmem_read(m, high, bits, 8);
	gmem_load16(m, high, (uint16_t *)bits);
	gmem_write(m, high + 8 * PAGE - 1, "ab", 2);
	gmem_iov(m, high, PAGE, &iov[0]);
	assert_int_equal(dirty(m), 0);
	/* In place: whole ranges, empty ones, and memory that is not the guest's. */
	gmem_iov(m, high + 2 * PAGE + 5, 1, &iov[0]);
	iov[1] = (struct iovec){ bits, sizeof(bits) };
	gmem_iov(m, high + 4 * PAGE + 1, 2 * PAGE, &iov[2]);
	iov[3] = (struct iovec){ 0 };
	gmem_mark_dirty(m, iov, 4);
	assert_int_equal(dirty(m), 0x74);
	/* Other regions have their own bits. */
	gmem_write(m, 0x18000, "x", 1);
	gmem_write(m, UINT64_MAX, "x", 1);
	assert_int_equal(dirty(m), 0);
	assert_int_equal(gmem_dirty_fetch(m, 3, bits, 2), 0);
	assert_int_equal(bits[0], 2);
	assert_int_equal(bits[1], 0); /* room that is not needed */
	assert_int_equal(gmem_dirty_fetch(m, 2, bits, 0), -EINVAL);
	assert_int_equal(gmem_dirty_fetch(m, 4, bits, 2), -EINVAL);
	/* Starting again starts clean. */
	gmem_write(m, high, "x", 1);
	gmem_dirty_stop(m);
	gmem_write(m, high, "x", 1);
	assert_int_equal(gmem_dirty_start(m, &err), 0);
	assert_int_equal(dirty(m), 0);
}

/* Ranges over words of the bitmap: every start and end, against one bit at a time. */
static void test_dirty_words(void **state)
{
	enum { PAGES = 200, WORDS = 4 };
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);
	uint64_t got[WORDS], want[WORDS];
	struct iovec iov;

	assert_non_null(m);
	ram(m, 0, PAGES * PAGE);
	assert_int_equal(gmem_dirty_start(m, &err), 0);
	for (unsigned from = 0; from < PAGES; from += 7) {
		for (unsigned to = from; to < PAGES; to += 5) {
			memset(want, 0, sizeof(want));
			for (unsigned i = from; i <= to; i++)
				want[i / 64] |= UINT64_C(1) << i % 64;
			gmem_iov(m, from * PAGE, (to - from) * PAGE + 1, &iov);
			gmem_mark_dirty(m, &iov, 1);
			assert_int_equal(gmem_dirty_fetch(m, 0, got, WORDS), 0);
			assert_memory_equal(got, want, sizeof(want));
		}
	}
	gmem_free(m);
}

/* A log by guest address, in which regions share words, has what somebody else wrote. */
static void test_dirty_log(void **state)
{
	const struct {
		gpa_t at;
		unsigned pages;
	} part[] = { { 0, 3 }, { 3 * PAGE, 70 }, { 100 * PAGE, 28 }, { 0x100000000, 130 } };
	enum { PARTS = sizeof(part) / sizeof(part[0]), WORDS = 3 };
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);
	uint64_t got[WORDS], want[WORDS];

	assert_non_null(m);
	assert_null(gmem_dirty_log(m, &err)); /* of nothing */
	for (unsigned i = 0; i < PARTS; i++)
		ram(m, part[i].at, part[i].pages * PAGE);
	assert_int_equal(gmem_dirty_start(m, &err), 0);
	uint64_t *log = gmem_dirty_log(m, &err);

	assert_non_null(log);
	assert_ptr_equal(gmem_dirty_log(m, &err), log);
	for (unsigned step = 1; step < 40; step += 3) {
		for (unsigned i = 0; i < PARTS; i++)
			for (uint64_t p = 0; p < part[i].pages; p += step)
				log[(part[i].at / PAGE + p) / 64] |=
					UINT64_C(1) << (part[i].at / PAGE + p) % 64;
		for (unsigned i = 0; i < PARTS; i++) {
			memset(want, 0, sizeof(want));
			for (unsigned p = 0; p < part[i].pages; p += step)
				want[p / 64] |= UINT64_C(1) << p % 64;
			assert_int_equal(gmem_dirty_fetch(m, i, got, WORDS), 0);
			assert_memory_equal(got, want, sizeof(want));
			assert_int_equal(gmem_dirty_fetch(m, i, got, WORDS), 0);
			memset(want, 0, sizeof(want));
			assert_memory_equal(got, want, sizeof(want));
		}
	}
	log[0] = 1; /* too late */
	gmem_dirty_stop(m);
	assert_int_equal(gmem_dirty_start(m, &err), 0);
	assert_int_equal(gmem_dirty_fetch(m, 0, got, WORDS), 0);
	assert_int_equal(got[0], 0);
	gmem_free(m);
}

static unsigned resident(const struct gmem_region *r)
{
	static unsigned char map[4096];
	unsigned n = 0;

	assert_true(r->size / PAGE <= sizeof(map));
	assert_int_equal(mincore(r->host, r->size, map), 0);
	for (uint64_t i = 0; i < r->size / PAGE; i++)
		n += map[i] & 1;
	return n;
}

static void check_zero(struct gmem *m, gpa_t at, uint64_t len)
{
	struct iovec iov;

	assert_int_equal(gmem_iov(m, at, len, &iov), 0);
	for (uint64_t i = 0; i < len; i++)
		assert_int_equal(((uint8_t *)iov.iov_base)[i], 0);
}

/* Memory is untouched until used, and goes back whole; edges inside a page are cleared. */
static void test_discard(void **state)
{
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);
	uint8_t b;

	assert_non_null(m);
	ram(m, 0, 8 * MIB);
	assert_int_equal(resident(gmem_region(m, 0)), 0);
	gmem_fill(m, 0, 0xaa, 8 * PAGE);
	assert_int_equal(resident(gmem_region(m, 0)), 8);
	assert_int_equal(gmem_discard(m, PAGE + 10, 3 * PAGE), 0);
	assert_int_equal(resident(gmem_region(m, 0)), 6); /* two were whole */
	check_zero(m, PAGE + 10, 3 * PAGE);
	gmem_read(m, PAGE + 9, &b, 1);
	assert_int_equal(b, 0xaa);
	gmem_read(m, 4 * PAGE + 10, &b, 1);
	assert_int_equal(b, 0xaa);
	assert_int_equal(gmem_discard(m, 5 * PAGE + 1, 10), 0); /* within one page */
	check_zero(m, 5 * PAGE + 1, 10);
	gmem_read(m, 5 * PAGE + 11, &b, 1);
	assert_int_equal(b, 0xaa);
	/* Gigabytes of zeroes, here megabytes, are not written. */
	assert_int_equal(gmem_fill(m, 100, 0, 8 * MIB - 100), 0);
	check_zero(m, 100, 8 * PAGE);
	gmem_read(m, 99, &b, 1);
	assert_int_equal(b, 0xaa);
	assert_true(resident(gmem_region(m, 0)) <= 10);
	gmem_free(m);
}

/* Borrowed memory may be anything: it is cleared in place, and stays the caller's. */
static void test_borrowed(void **state)
{
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);
	/* Shared: had it been given back as private memory is, its bytes would still be there. */
	uint8_t *host =
		mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(m && host != MAP_FAILED);
	memset(host, 0xaa, 4 * PAGE);
	assert_int_equal(gmem_add_borrowed(m, MIB, 4 * PAGE, host, &err), 0);
	assert_int_equal(gmem_discard(m, MIB + PAGE, 2 * PAGE), 0);
	for (uint64_t i = 0; i < 4 * PAGE; i++)
		assert_int_equal(host[i], i >= PAGE && i < 3 * PAGE ? 0 : 0xaa);
	gmem_free(m);
	host[0] = 1;
	munmap(host, 4 * PAGE);
}

static void test_load_fd(void **state)
{
	const uint64_t len = 3 * MIB + 123; /* more than one chunk */
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);
	uint8_t *src = malloc(len);
	cleanup_fd int fd = memfd_create("f", MFD_CLOEXEC);
	struct iovec iov;
	int p[2];

	assert_true(m && src);
	ram(m, MIB, 4 * MIB);
	for (uint64_t i = 0; i < len; i++)
		src[i] = (uint8_t)(i * 31 + i / 4096);
	assert_int_equal(fd_write_all(fd, src, len), 0);
	assert_int_equal(gmem_dirty_start(m, &err), 0);
	assert_int_equal(gmem_load_fd(m, MIB + 5, fd, 10, len - 10), 0);
	gmem_iov(m, MIB, 4 * MIB, &iov);
	assert_memory_equal((uint8_t *)iov.iov_base + 5, src + 10, len - 10);
	assert_int_equal(*((uint8_t *)iov.iov_base + 5 + len - 10), 0);
	uint64_t bits[16];

	assert_int_equal(gmem_dirty_fetch(m, 0, bits, 16), 0);
	for (unsigned i = 0; i < 12; i++)
		assert_true(bits[i] == UINT64_MAX);
	assert_int_equal(bits[12], 1);
	/* Too short, by a byte and by far; offsets that make no sense; what cannot be read. */
	assert_int_equal(gmem_load_fd(m, MIB, fd, 11, len - 10), -ENODATA);
	assert_int_equal(gmem_load_fd(m, MIB, fd, 1 << 30, 1), -ENODATA);
	assert_int_equal(gmem_load_fd(m, MIB, fd, -1, 1), -EINVAL);
	assert_int_equal(gmem_load_fd(m, MIB, fd, INT64_MAX, 1), -EINVAL);
	assert_int_equal(gmem_load_fd(m, MIB, -1, 0, 1), -EBADF);
	assert_int_equal(gmem_load_fd(m, MIB, fd, 0, 5 * MIB), -EFAULT);
	assert_int_equal(pipe(p), 0);
	assert_int_equal(gmem_load_fd(m, MIB, p[0], 0, 1), -ESPIPE);
	close(p[0]);
	close(p[1]);
	free(src);
	gmem_free(m);
}

/* RAM lies at the guest address's offset within 2 MiB, or KVM cannot use huge pages for it. */
static void test_placement(void **state)
{
	static const gpa_t at[] = { 0, 0x100000, 0x1ff000, 0x40000000 };

	for (unsigned i = 0; i < 4; i++) {
		struct err err = { 0 };
		struct gmem *m = gmem_new(&err);

		assert_int_equal(gmem_add_ram(m, at[i], 4 * MIB, GMEM_PAGES_TRANSPARENT, &err), 0);
		const struct gmem_region *r = gmem_region(m, 0);

		assert_int_equal((uintptr_t)r->host % (2 * MIB), at[i] % (2 * MIB));
		gmem_free(m);
	}
}

/* A byte before or after RAM in host memory belongs to nobody. */
static void test_guards(void **state)
{
	const struct gmem_region *r = gmem_region(*state, 0);
	unsigned char map;

	for (int i = 0; i < 2; i++) {
		volatile uint8_t *beside = i ? r->host + r->size : r->host - 1;
		pid_t child = fork();
		int status;

		if (!child) {
			signal(SIGSEGV, SIG_DFL);
			*beside = 1;
			_exit(0);
		}
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	}
	assert_int_equal(mincore(r->host, 1, &map), 0);
}

/* Huge pages are got, or refused with what to do; never a guest that dies of SIGBUS later. */
static void test_huge(void **state)
{
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);
	int rc = gmem_add_ram(m, 2 * MIB, 4 * MIB, GMEM_PAGES_HUGE, &err);

	assert_non_null(m);
	if (rc) {
		assert_int_equal(rc, -ENOMEM);
		assert_non_null(strstr(err.msg, "nr_hugepages"));
	} else {
		assert_int_equal(gmem_fill(m, 2 * MIB, 0xaa, 4 * MIB), 0);
		assert_int_equal(gmem_discard(m, 2 * MIB + PAGE, 3 * MIB), 0);
		check_zero(m, 2 * MIB + PAGE, 3 * MIB);
	}
	gmem_free(m);
}

#define ROUNDS 2000

static void *write_on(void *arg)
{
	struct gmem *m = arg;

	/* A ring: data first, then the index that publishes it. */
	for (uint16_t i = 1; i <= ROUNDS; i++) {
		uint32_t v = i * 3;

		gmem_write(m, 0x10000 + i % 8 * PAGE + 8, &v, sizeof(v));
		gmem_store16(m, 0x18000, i);
		uint16_t seen = 0;

		while (seen != i) { /* wait until it was looked at */
			gmem_load16(m, 0x18002, &seen);
			sched_yield();
		}
	}
	return NULL;
}

/*
 * Two sides of a ring on two threads: whoever sees the index sees the data, and the page it is in is
 * marked by the time the writer goes on.
 */
static void test_threads(void **state)
{
	struct gmem *m = *state;
	struct err err = { 0 };
	uint64_t all = 0;
	pthread_t t;

	assert_int_equal(gmem_dirty_start(m, &err), 0);
	assert_int_equal(pthread_create(&t, NULL, write_on, m), 0);
	for (uint16_t i = 1; i <= ROUNDS; i++) {
		uint16_t now = 0;
		uint32_t v = 0;

		while (now != i) {
			gmem_load16(m, 0x18000, &now);
			sched_yield();
		}
		gmem_read(m, 0x10000 + i % 8 * PAGE + 8, &v, sizeof(v));
		assert_int_equal(v, i * 3);
		uint64_t bits = dirty(m);

		assert_true(bits & UINT64_C(1) << i % 8);
		all |= bits;
		gmem_store16(m, 0x18002, i);
	}
	pthread_join(t, NULL);
	assert_int_equal(all, 0xff);
}

static void *mark_on(void *arg)
{
	struct gmem *m = arg;

	for (unsigned i = 0; i < ROUNDS; i++)
		gmem_fill(m, 0x10000, 1, 1);
	return NULL;
}

/* Logging starts and stops while a device stores: its bitmap must not go away under it. */
static void test_start_stop(void **state)
{
	struct gmem *m = *state;
	struct err err = { 0 };
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, mark_on, m), 0);
	for (unsigned i = 0; i < 50; i++) {
		assert_int_equal(gmem_dirty_start(m, &err), 0);
		assert_int_equal(dirty(m) & ~UINT64_C(1), 0);
		gmem_dirty_stop(m);
	}
	pthread_join(t, NULL);
}

#define WITH_RAM(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

/* A file's bytes, written only here; what is given back is zero and never the file's again. */
static void test_file(void **state)
{
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);
	static uint8_t bytes[8 * 4096], page[4096];
	uint8_t byte;
	cleanup_fd int fd = memfd_create("ram", MFD_CLOEXEC);

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i / 4096 + 1);
	assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
	assert_int_equal(gmem_add_file(m, 0, 4 * PAGE, fd, 0, &err), 0);
	assert_int_equal(gmem_add_file(m, 64 * PAGE, 4 * PAGE, fd, 4 * PAGE, &err), 0);
	assert_int_equal(gmem_read(m, 3 * PAGE, &byte, 1), 0);
	assert_int_equal(byte, 4);
	assert_int_equal(gmem_read(m, 64 * PAGE, &byte, 1), 0);
	assert_int_equal(byte, 5);

	assert_int_equal(gmem_write(m, PAGE + 7, "x", 1), 0);
	assert_int_equal(gmem_discard(m, 2 * PAGE + 100, 2 * PAGE - 100), 0); /* a part, a whole */
	assert_int_equal(gmem_read(m, 2 * PAGE, page, PAGE), 0);
	for (size_t i = 0; i < PAGE; i++)
		assert_int_equal(page[i], i < 100 ? 3 : 0);
	assert_int_equal(gmem_read(m, 3 * PAGE, page, PAGE), 0);
	for (size_t i = 0; i < PAGE; i++)
		assert_int_equal(page[i], 0);
	assert_int_equal(gmem_write(m, 3 * PAGE, "y", 1), 0);
	assert_int_equal(gmem_read(m, 0, &byte, 1), 0);
	assert_int_equal(byte, 1);

	assert_int_equal(pread(fd, page, PAGE, PAGE), PAGE);
	assert_memory_equal(page, bytes + PAGE, PAGE); /* the file is as it was */

	assert_int_equal(gmem_add_file(m, 128 * PAGE, 4 * PAGE, fd, 5 * PAGE, &err), -ENODATA);
	assert_int_equal(gmem_add_file(m, 128 * PAGE, PAGE, fd, UINT64_MAX - 4095, &err), -ENODATA);
	assert_int_equal(gmem_add_file(m, 0, PAGE, fd, 0, &err), -EEXIST);
	int p[2];

	assert_int_equal(pipe(p), 0);
	assert_int_equal(gmem_add_file(m, 128 * PAGE, PAGE, p[0], 0, &err), -EINVAL);
	close(p[0]);
	close(p[1]);
	gmem_free(m);
}

/* Bits left of pages [first, first + count) of region @i, all of them set before. */
static uint64_t touched(const struct gmem *m, unsigned i, uint64_t first, uint64_t count)
{
	uint64_t bits = UINT64_MAX >> (64 - count);

	gmem_clear_untouched(m, i, first, count, &bits);
	return bits;
}

/* Only what was never touched and reads as zero: in fresh memory, in a file's, in that of others. */
static void test_untouched(void **state)
{
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);
	uint8_t byte = 0;
	static uint8_t lent[2 * 4096] __attribute__((aligned(4096)));
	cleanup_fd int fd = memfd_create("ram", MFD_CLOEXEC);

	/* pages 0 to 7 are not the region's; 9 and 12 are data, the rest is holes */
	assert_int_equal(ftruncate(fd, 24 * PAGE), 0);
	assert_int_equal(pwrite(fd, "data", 4, 9 * PAGE), 4);
	assert_int_equal(pwrite(fd, "data", 4, 12 * PAGE), 4);
	assert_int_equal(gmem_add_ram(m, 0, 2048 * PAGE, GMEM_PAGES_SMALL, &err), 0);
	assert_int_equal(gmem_add_file(m, 16 * MIB, 16 * PAGE, fd, 8 * PAGE, &err), 0);
	assert_int_equal(gmem_add_borrowed(m, 32 * MIB, 2 * PAGE, lent, &err), 0);

	assert_int_equal(touched(m, 0, 0, 64), 0);
	assert_int_equal(gmem_write(m, 3 * PAGE, "x", 1), 0);
	assert_int_equal(gmem_read(m, 700 * PAGE, &byte, 1), 0); /* the kernel maps its zero page */
	assert_int_equal(touched(m, 0, 0, 64), 8);
	assert_int_equal(touched(m, 0, 1, 3), 4);
	assert_int_equal(touched(m, 0, 640, 64), UINT64_C(1) << 60);
	assert_int_equal(gmem_discard(m, 3 * PAGE, PAGE), 0);
	assert_int_equal(touched(m, 0, 0, 64), 0);
	/* more than is looked at in one go */
	uint64_t bits[32];

	memset(bits, 0xff, sizeof(bits));
	assert_int_equal(gmem_write(m, 1999 * PAGE, "x", 1), 0);
	gmem_clear_untouched(m, 0, 0, 2048, bits);
	for (unsigned i = 0; i < 32; i++)
		assert_int_equal(bits[i], i == 1999 / 64 ? UINT64_C(1) << 1999 % 64 :
					  i == 700 / 64  ? UINT64_C(1) << 700 % 64 :
							   0);

	assert_int_equal(touched(m, 1, 0, 16), 1 << 1 | 1 << 4);
	assert_int_equal(gmem_write(m, 16 * MIB + 2 * PAGE, "x", 1), 0);
	assert_int_equal(touched(m, 1, 0, 16), 1 << 1 | 1 << 2 | 1 << 4);
	assert_int_equal(touched(m, 1, 3, 2), 2);

	assert_int_equal(touched(m, 2, 0, 2), 3);
	gmem_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RAM(test_regions),
		WITH_RAM(test_add_refused),
		WITH_RAM(test_bounds),
		WITH_RAM(test_empty),
		WITH_RAM(test_copy),
		WITH_RAM(test_index),
		WITH_RAM(test_dirty),
		cmocka_unit_test(test_dirty_words),
		cmocka_unit_test(test_dirty_log),
		cmocka_unit_test(test_discard),
		cmocka_unit_test(test_borrowed),
		cmocka_unit_test(test_load_fd),
		cmocka_unit_test(test_placement),
		cmocka_unit_test(test_file),
		cmocka_unit_test(test_untouched),
		WITH_RAM(test_guards),
		cmocka_unit_test(test_huge),
		WITH_RAM(test_threads),
		WITH_RAM(test_start_stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
