/*
 * guest_memory.c - guest-physical RAM
 *
 * A handful of regions in a sorted array that is complete before anything runs; look-up is a short
 * scan. All bounds arithmetic is "offset from the region's start" and "room left in it", which
 * cannot wrap wherever the guest points.
 *
 * RAM is mapped inside a larger reservation without access, so that a host overrun faults instead of
 * landing in a neighbour, and at the guest address's offset within 2 MiB, without which KVM cannot
 * use huge pages for it. It is kept out of core dumps: a crash must not write the guest's secrets
 * to a disk.
 *
 * Memory that nobody ever touched is neither present nor swapped out: /proc/self/pagemap tells, eight
 * bytes a page, where a look at the page itself would make the kernel map one. It is opened first,
 * since the sandbox opens nothing. A private mapping of a file reads as the file there, so the file has
 * to have a hole as well; a hole behind fresh memory (give_back()) reads as zero all the same.
 *
 * Dirty bits are set after the store they speak of: a fetch in between sends the page too early and
 * then once more, while the other order would lose it. Bitmaps live as long as their region, so that
 * a device may mark while another thread stops logging; mapped and untouched they cost no memory, where
 * calloc() would clear 96 KiB for 3 GiB of RAM.
 */
#include <endian.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/membarrier.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/guest_memory.h"

#define REGIONS_MAX 64
#define PAGE_SHIFT  12 /* of the bitmap, whatever the host's pages are */
#define HUGE        (UINT64_C(2) << 20)
#define LOAD_CHUNK  (UINT64_C(1) << 20) /* one pread(2) is not longer, so a signal gets through */
#define LOOK_PAGES  512                 /* of pagemap, at once */

/* Of an entry of pagemap: present, or swapped out (Documentation/admin-guide/mm/pagemap.rst). */
#define PAGEMAP_TOUCHED (UINT64_C(3) << 62)

struct area {
	struct gmem_region r;
	bool owned;
	int file; /* a private mapping of it, from @file_off on; -1: of none */
	uint64_t file_off;
	uint64_t unit; /* what madvise() can give back: the size of its pages */
	void *map;     /* the whole reservation; NULL when borrowed */
	size_t map_size;
	_Atomic uint64_t *dirty;
	size_t words;
};

struct gmem {
	struct area areas[REGIONS_MAX];
	unsigned count;
	int pagemap; /* of this process; -1: not there */
	atomic_bool logging;
	_Atomic uint64_t
		*log;    /* by guest address, from 0 to the end of RAM; NULL: nobody uses it */
	size_t log_size; /* bytes, whole pages */
};

static int register_barrier(void)
{
	return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) < 0 ?
		       -errno :
		       0;
}

void gmem_prepare(void)
{
	register_barrier(); /* if it fails, so does the next try, which tells */
}

struct gmem *gmem_new(struct err *err)
{
	struct gmem *m = calloc(1, sizeof(*m));

	if (!m) {
		err_set(err, ENOMEM, "out of memory for the table of guest RAM");
		return NULL;
	}
	m->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	return m;
}

/* What an area holds that is not in the table. */
static void release(struct area *a)
{
	if (a->owned)
		munmap(a->map, a->map_size);
	fd_close(&a->file);
}

void gmem_free(struct gmem *m)
{
	if (!m)
		return;
	for (unsigned i = 0; i < m->count; i++) {
		release(&m->areas[i]);
		munmap((void *)m->areas[i].dirty, m->areas[i].words * sizeof(*m->areas[i].dirty));
	}
	fd_close(&m->pagemap);
	if (m->log)
		munmap((void *)m->log, m->log_size);
	free(m);
}

static int check_place(const struct gmem *m, gpa_t gpa, uint64_t size, uint64_t unit,
		       struct err *err)
{
	if (!size || gpa % unit || size % unit || gpa > UINT64_MAX - (size - 1))
		return err_set(err, EINVAL,
			       "0x%" PRIx64 " bytes of RAM cannot be at 0x%" PRIx64
			       ": give whole pages of %" PRIu64 " KiB",
			       size, gpa, unit >> 10);
	if (m->count == REGIONS_MAX)
		return err_set(err, ENOSPC, "more than %d regions of RAM", REGIONS_MAX);
	for (unsigned i = 0; i < m->count; i++) {
		const struct gmem_region *r = &m->areas[i].r;

		if (gpa <= r->gpa + (r->size - 1) && r->gpa <= gpa + (size - 1))
			return err_set(err, EEXIST,
				       "RAM at 0x%" PRIx64 " overlaps RAM at 0x%" PRIx64, gpa,
				       r->gpa);
	}
	return 0;
}

static void *map_zeroes(size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		    -1, 0);
}

/* Takes over what @a holds only when it succeeds. */
static int insert(struct gmem *m, struct area *a, struct err *err)
{
	unsigned at = 0;

	a->words = ((a->r.size >> PAGE_SHIFT) + 63) / 64;
	void *dirty = map_zeroes(a->words * sizeof(*a->dirty));

	if (dirty == MAP_FAILED)
		return err_set_sys(err, errno, "cannot map the dirty bitmap of RAM at 0x%" PRIx64,
				   a->r.gpa);
	a->dirty = dirty;
	while (at < m->count && m->areas[at].r.gpa < a->r.gpa)
		at++;
	memmove(&m->areas[at + 1], &m->areas[at], (m->count - at) * sizeof(*a));
	m->areas[at] = *a;
	m->count++;
	return 0;
}

static int explain_map(uint64_t size, enum gmem_pages pages, int e, struct err *err)
{
	if (pages == GMEM_PAGES_HUGE)
		return err_set_sys(
			err, e,
			"the host cannot give %" PRIu64
			" huge pages of 2 MiB: raise vm.nr_hugepages or choose other pages",
			size / HUGE);
	return err_set_sys(err, e,
			   "the host cannot map %" PRIu64
			   " MiB of guest RAM (see ulimit -v, vm.overcommit_memory)",
			   size >> 20);
}

/* Reserve, then put the RAM inside with something inaccessible on both sides. */
static int map_ram(struct area *a, enum gmem_pages pages, struct err *err)
{
	const bool huge = pages == GMEM_PAGES_HUGE;
	const size_t size = a->r.size;
	/* Huge pages are reserved now: without, the guest dies of SIGBUS when they run out. */
	const int flags = MAP_PRIVATE | MAP_FIXED | (a->file < 0 ? MAP_ANONYMOUS : 0) |
			  (huge ? MAP_HUGETLB | (21 << MAP_HUGE_SHIFT) : MAP_NORESERVE);

	if (size > SIZE_MAX - 3 * HUGE)
		return explain_map(size, pages, ENOMEM, err);
	a->map_size = size + 3 * HUGE;
	a->map = mmap(NULL, a->map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		      0);
	if (a->map == MAP_FAILED)
		return explain_map(size, pages, errno, err);
	uintptr_t want = (((uintptr_t)a->map + HUGE) & ~(uintptr_t)(HUGE - 1)) + a->r.gpa % HUGE;

	a->r.host = mmap((void *)want, size, PROT_READ | PROT_WRITE, flags, a->file,
			 (off_t)a->file_off);
	if (a->r.host == MAP_FAILED) {
		int e = errno;

		munmap(a->map, a->map_size);
		return explain_map(size, pages, e, err);
	}
	/* Advice: a kernel without transparent huge pages works as well. */
	if (!huge)
		madvise(a->r.host, size,
			pages == GMEM_PAGES_SMALL ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	madvise(a->r.host, size, MADV_DONTDUMP);
	return 0;
}

static int add_owned(struct gmem *m, struct area a, enum gmem_pages pages, struct err *err)
{
	a.owned = true;
	a.unit = pages == GMEM_PAGES_HUGE ? HUGE : (uint64_t)sysconf(_SC_PAGESIZE);
	int rc = check_place(m, a.r.gpa, a.r.size, a.unit, err);

	if (!rc)
		rc = map_ram(&a, pages, err);
	if (rc)
		return rc;
	rc = insert(m, &a, err);
	if (rc)
		munmap(a.map, a.map_size);
	return rc;
}

int gmem_add_ram(struct gmem *m, gpa_t gpa, uint64_t size, enum gmem_pages pages, struct err *err)
{
	struct area a = { .r = { .gpa = gpa, .size = size }, .file = -1 };

	return add_owned(m, a, pages, err);
}

/* Behind a file's end there is SIGBUS, not zeroes. */
static int check_file(int fd, uint64_t off, uint64_t size, struct err *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return err_set_sys(err, errno, "cannot look at the file of guest RAM");
	if (!S_ISREG(st.st_mode))
		return err_set(err, EINVAL, "guest RAM can only be a regular file");
	if (off > (uint64_t)st.st_size || size > (uint64_t)st.st_size - off)
		return err_set(err, ENODATA,
			       "the file of guest RAM has %" PRIu64 " bytes, %" PRIu64
			       " are needed",
			       (uint64_t)st.st_size, off + size);
	return 0;
}

int gmem_add_file(struct gmem *m, gpa_t gpa, uint64_t size, int fd, uint64_t off, struct err *err)
{
	struct area a = { .r = { .gpa = gpa, .size = size }, .file_off = off };
	int rc = check_file(fd, off, size, err);

	if (rc)
		return rc;
	a.file = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (a.file < 0)
		return err_set_sys(err, errno, "cannot keep the file of guest RAM");
	rc = add_owned(m, a, GMEM_PAGES_TRANSPARENT, err);
	if (rc)
		fd_close(&a.file);
	return rc;
}

int gmem_add_borrowed(struct gmem *m, gpa_t gpa, uint64_t size, void *host, struct err *err)
{
	const uint64_t page = UINT64_C(1) << PAGE_SHIFT;
	struct area a = { .r = { .gpa = gpa, .size = size, .host = host },
			  .file = -1,
			  .unit = page };
	int rc = check_place(m, gpa, size, page, err);

	if (rc)
		return rc;
	/* gmem_load16() and the rings count on it. */
	if ((uintptr_t)host % 16)
		return err_set(err, EINVAL, "borrowed RAM is not aligned to 16 bytes");
	return insert(m, &a, err);
}

unsigned gmem_count(const struct gmem *m)
{
	return m->count;
}

const struct gmem_region *gmem_region(const struct gmem *m, unsigned i)
{
	return i < m->count ? &m->areas[i].r : NULL;
}

uint64_t gmem_size(const struct gmem *m)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < m->count; i++)
		sum += m->areas[i].r.size;
	return sum;
}

/* The area that holds [at, at + len) whole, and where in it; len 0 counts as the byte at @at. */
static const struct area *find(const struct gmem *m, gpa_t at, uint64_t len, uint64_t *off)
{
	for (unsigned i = 0; i < m->count; i++) {
		const struct area *a = &m->areas[i];
		uint64_t o = at - a->r.gpa;

		if (at < a->r.gpa)
			return NULL;
		if (o < a->r.size) {
			*off = o;
			return len <= a->r.size - o ? a : NULL;
		}
	}
	return NULL;
}

/* 1: [at, at + len) is in @a from @off on; 0: there is nothing to do; else -EFAULT. */
static int place(const struct gmem *m, gpa_t at, uint64_t len, const struct area **a, uint64_t *off)
{
	if (!len)
		return 0;
	*a = find(m, at, len, off);
	return *a ? 1 : -EFAULT;
}

bool gmem_contains(const struct gmem *m, gpa_t at, uint64_t len)
{
	uint64_t off;

	return find(m, at, len, &off) != NULL;
}

static bool logging(const struct gmem *m)
{
	/*
	 * Our stores come before this look; the compiler may not turn them. The processor may, but
	 * gmem_dirty_start() makes every thread pass a barrier, which is cheaper than one here.
	 */
	atomic_signal_fence(memory_order_seq_cst);
	return atomic_load_explicit(&m->logging, memory_order_relaxed);
}

/* Set the bits of [off, off + len), a word at a time; len is not 0 and lies in the area. */
static void mark(const struct area *a, uint64_t off, uint64_t len)
{
	uint64_t first = off >> PAGE_SHIFT, last = (off + (len - 1)) >> PAGE_SHIFT;

	for (uint64_t w = first / 64; w <= last / 64; w++) {
		uint64_t bits = UINT64_MAX;

		if (w == first / 64)
			bits &= UINT64_MAX << first % 64;
		if (w == last / 64)
			bits &= UINT64_MAX >> (63 - last % 64);
		atomic_fetch_or_explicit(&a->dirty[w], bits, memory_order_release);
	}
}

static void stored(const struct gmem *m, const struct area *a, uint64_t off, uint64_t len)
{
	if (len && logging(m))
		mark(a, off, len);
}

int gmem_read(const struct gmem *m, gpa_t at, void *dst, size_t len)
{
	const struct area *a;
	uint64_t off;
	int rc = place(m, at, len, &a, &off);

	if (rc <= 0)
		return rc;
	memcpy(dst, a->r.host + off, len);
	return 0;
}

int gmem_write(struct gmem *m, gpa_t at, const void *src, size_t len)
{
	const struct area *a;
	uint64_t off;
	int rc = place(m, at, len, &a, &off);

	if (rc <= 0)
		return rc;
	memcpy(a->r.host + off, src, len);
	stored(m, a, off, len);
	return 0;
}

/* The file's content would come back: put fresh memory in its place. */
static int give_back(const struct area *a, uint64_t from, uint64_t len)
{
	if (a->file < 0)
		return madvise(a->r.host + from, len, MADV_DONTNEED);
	return mmap(a->r.host + from, len, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED ?
		       -1 :
		       madvise(a->r.host + from, len, MADV_DONTDUMP);
}

/*
 * Make [off, off + len) read as zero, giving whole pages back. What madvise() refuses (locked memory,
 * huge pages before Linux 5.18) is cleared by hand; so is borrowed memory, which may be anything.
 */
static void clear(const struct area *a, uint64_t off, uint64_t len)
{
	uint64_t from = (off + a->unit - 1) / a->unit * a->unit;
	uint64_t to = (off + len) / a->unit * a->unit;
	uint8_t *host = a->r.host;

	if (!a->owned || from >= to || give_back(a, from, to - from) < 0) {
		memset(host + off, 0, len);
		return;
	}
	memset(host + off, 0, from - off);
	memset(host + to, 0, off + len - to);
}

int gmem_fill(struct gmem *m, gpa_t at, int byte, uint64_t len)
{
	const struct area *a;
	uint64_t off;
	int rc = place(m, at, len, &a, &off);

	if (rc <= 0)
		return rc;
	/* A kernel file can ask for gigabytes of zeroes: do not touch pages for them. */
	if ((uint8_t)byte == 0 && len >= HUGE)
		clear(a, off, len);
	else
		memset(a->r.host + off, byte, len);
	stored(m, a, off, len);
	return 0;
}

int gmem_discard(struct gmem *m, gpa_t at, uint64_t len)
{
	const struct area *a;
	uint64_t off;
	int rc = place(m, at, len, &a, &off);

	if (rc <= 0)
		return rc;
	clear(a, off, len);
	stored(m, a, off, len);
	return 0;
}

static _Atomic uint16_t *index_at(const struct area *a, uint64_t off)
{
	return (_Atomic uint16_t *)(void *)(a->r.host + off);
}

int gmem_load16(const struct gmem *m, gpa_t at, uint16_t *val)
{
	uint64_t off;
	const struct area *a = find(m, at, sizeof(*val), &off);

	if (!a || at % 2)
		return -EFAULT;
	*val = le16toh(atomic_load_explicit(index_at(a, off), memory_order_acquire));
	return 0;
}

int gmem_store16(struct gmem *m, gpa_t at, uint16_t val)
{
	uint64_t off;
	const struct area *a = find(m, at, sizeof(val), &off);

	if (!a || at % 2)
		return -EFAULT;
	atomic_store_explicit(index_at(a, off), htole16(val), memory_order_release);
	stored(m, a, off, sizeof(val));
	return 0;
}

int gmem_iov(const struct gmem *m, gpa_t at, uint64_t len, struct iovec *iov)
{
	const struct area *a;
	uint64_t off;
	int rc = place(m, at, len, &a, &off);

	*iov = (struct iovec){ 0 };
	if (rc <= 0)
		return rc;
	iov->iov_base = a->r.host + off;
	iov->iov_len = len;
	return 0;
}

int gmem_load_fd(struct gmem *m, gpa_t at, int fd, off_t file_off, uint64_t len)
{
	const struct area *a;
	uint64_t off, done = 0;
	int rc = place(m, at, len, &a, &off);

	if (rc <= 0)
		return rc;
	rc = 0;
	if (file_off < 0 || len > (uint64_t)INT64_MAX - (uint64_t)file_off)
		return -EINVAL;
	while (!rc && done < len) {
		uint64_t left = len - done;
		ssize_t n = pread(fd, a->r.host + off + done, left < LOAD_CHUNK ? left : LOAD_CHUNK,
				  file_off + (off_t)done);

		if (n > 0)
			done += (uint64_t)n;
		else if (n == 0)
			rc = -ENODATA;
		else if (errno != EINTR)
			rc = -errno;
	}
	/* Also what a failed pread(2) may have left of its chunk. */
	stored(m, a, off, len);
	return rc;
}

static const struct area *area_of_host(const struct gmem *m, const uint8_t *host, size_t len)
{
	for (unsigned i = 0; i < m->count; i++) {
		const struct area *a = &m->areas[i];
		uintptr_t o = (uintptr_t)host - (uintptr_t)a->r.host;

		if ((uintptr_t)host >= (uintptr_t)a->r.host && o < a->r.size)
			return len <= a->r.size - o ? a : NULL;
	}
	return NULL;
}

void gmem_mark_dirty(struct gmem *m, const struct iovec *iov, unsigned n)
{
	if (!logging(m))
		return;
	for (unsigned i = 0; i < n; i++) {
		const uint8_t *host = iov[i].iov_base;
		size_t len = iov[i].iov_len;
		const struct area *a = len ? area_of_host(m, host, len) : NULL;

		/* Not guest RAM (a device's own header buffer in the same array): nothing to send. */
		if (a)
			mark(a, (uint64_t)(host - a->r.host), len);
	}
}

int gmem_dirty_start(struct gmem *m, struct err *err)
{
	for (unsigned i = 0; i < m->count; i++)
		for (size_t w = 0; w < m->areas[i].words; w++)
			atomic_store_explicit(&m->areas[i].dirty[w], 0, memory_order_relaxed);
	/*
	 * A device thread stores and then looks whether it must mark. Once every thread has passed
	 * this barrier, one that missed the flag has its store visible to whoever copies RAM now.
	 */
	int rc = register_barrier();

	if (rc)
		return err_set_sys(err, rc, "cannot log writes to guest RAM: membarrier");
	atomic_store(&m->logging, true);
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) < 0) {
		int e = errno;

		atomic_store(&m->logging, false);
		return err_set_sys(err, e, "cannot log writes to guest RAM: membarrier");
	}
	return 0;
}

void gmem_dirty_stop(struct gmem *m)
{
	atomic_store(&m->logging, false);
	if (m->log) /* zeroes again, and the memory goes back */
		madvise((void *)m->log, m->log_size, MADV_DONTNEED);
}

void *gmem_dirty_log(struct gmem *m, struct err *err)
{
	const struct gmem_region *last = gmem_region(m, m->count - 1);
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);

	if (m->log || !last)
		return (void *)m->log;
	m->log_size = ((((last->gpa + last->size) >> PAGE_SHIFT) / 8 + 8) / page + 1) * page;
	void *p = map_zeroes(m->log_size);

	if (p == MAP_FAILED)
		err_set_sys(err, errno, "cannot map a log of writes to guest RAM");
	else
		m->log = p;
	return (void *)m->log;
}

/* Move what others logged for @a into its bitmap. Two areas may share a word. */
static void collect(const struct gmem *m, const struct area *a)
{
	uint64_t first = a->r.gpa >> PAGE_SHIFT, end = first + (a->r.size >> PAGE_SHIFT);

	for (uint64_t w = first / 64; m->log && w <= (end - 1) / 64; w++) {
		uint64_t mine = UINT64_MAX;

		if (!atomic_load_explicit(&m->log[w], memory_order_relaxed))
			continue;
		if (w == first / 64)
			mine &= UINT64_MAX << first % 64;
		if (w == (end - 1) / 64)
			mine &= UINT64_MAX >> (63 - (end - 1) % 64);
		for (uint64_t v = mine & le64toh(atomic_fetch_and_explicit(
						 &m->log[w], htole64(~mine), memory_order_acquire));
		     v; v &= v - 1) {
			uint64_t at = w * 64 + (unsigned)__builtin_ctzll(v) - first;

			mark(a, at << PAGE_SHIFT, 1);
		}
	}
}

int gmem_dirty_fetch(struct gmem *m, unsigned i, uint64_t *bits, size_t words)
{
	if (i >= m->count || words < m->areas[i].words || !atomic_load(&m->logging))
		return -EINVAL;
	const struct area *a = &m->areas[i];

	collect(m, a);
	for (size_t w = 0; w < a->words; w++) {
		/* Most words are clean, and a look is cheaper than an exchange. */
		uint64_t v = atomic_load_explicit(&a->dirty[w], memory_order_relaxed);

		bits[w] = v ? htole64(atomic_exchange_explicit(&a->dirty[w], 0,
							       memory_order_acquire)) :
			      0;
	}
	memset(bits + a->words, 0, (words - a->words) * sizeof(*bits));
	return 0;
}

/* ---- untouched memory ---- */

struct look {
	const struct area *a;
	off_t from, to; /* of the area's file: known to be a hole, or not */
	bool hole;
};

/* Does the file of the area read as zero at its byte @off, as far as that is to be had cheaply? */
static bool is_hole(struct look *l, uint64_t off)
{
	off_t at = (off_t)(l->a->file_off + off);

	if (l->a->file < 0)
		return true;
	if (at >= l->from && at < l->to)
		return l->hole;
	off_t data = lseek(l->a->file, at, SEEK_DATA);

	l->from = at;
	l->hole = data > at || (data < 0 && errno == ENXIO);
	if (l->hole)
		l->to = data < 0 ? INT64_MAX : data;
	else
		l->to = data < 0 ? INT64_MAX : lseek(l->a->file, at, SEEK_HOLE);
	return l->hole;
}

void gmem_clear_untouched(const struct gmem *m, unsigned i, uint64_t first, uint64_t count,
			  uint64_t *bits)
{
	const struct area *a = &m->areas[i];
	struct look l = { .a = a };
	uint64_t seen[LOOK_PAGES];

	if (!a->owned || m->pagemap < 0 || sysconf(_SC_PAGESIZE) != 1 << PAGE_SHIFT)
		return;
	for (uint64_t done = 0; done < count;) {
		uint64_t n = count - done < LOOK_PAGES ? count - done : LOOK_PAGES;
		uint64_t page = ((uintptr_t)a->r.host >> PAGE_SHIFT) + first + done;

		if (pread(m->pagemap, seen, n * 8, (off_t)(page * 8)) != (ssize_t)(n * 8))
			return;
		for (uint64_t k = 0; k < n; k++, done++)
			if (!(seen[k] & PAGEMAP_TOUCHED) &&
			    is_hole(&l, (first + done) << PAGE_SHIFT))
				bits[done / 64] &= ~(UINT64_C(1) << done % 64);
	}
}
