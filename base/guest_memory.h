/*
 * guest_memory.h - guest-physical RAM
 *
 * The only place that bounds-checks a guest address. Knows nothing of KVM: vmm/memslots.c gives
 * these regions to the kernel, tests back them with malloc.
 *
 * vCPUs write this memory while we read it, so anything a decision depends on is copied out once
 * (gmem_read); only bulk data is used in place (gmem_iov). An access that starts in one region and
 * ends in another, or outside, is refused whole: regions that meet in host memory by accident do not
 * meet in the guest (Firecracker and Cloud Hypervisor, CVE-2019-18960).
 */
#ifndef BASE_GUEST_MEMORY_H
#define BASE_GUEST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

typedef uint64_t gpa_t; /* never cast to a pointer outside guest_memory.c */

struct gmem; /* owned by struct vm; devices borrow it */

struct gmem_region {
	gpa_t gpa;     /* page aligned */
	uint64_t size; /* bytes, page aligned, not 0 */
	uint8_t *host;
};

enum gmem_pages {
	GMEM_PAGES_TRANSPARENT, /* anonymous memory, MADV_HUGEPAGE; untouched until used */
	GMEM_PAGES_SMALL,       /* anonymous memory, MADV_NOHUGEPAGE */
	GMEM_PAGES_HUGE,        /* MAP_HUGETLB 2 MiB; refused when the host has too few */
};

/* Before the process's first thread: what dirty logging wants of the kernel takes milliseconds later. */
void gmem_prepare(void);

struct gmem *gmem_new(struct err *err);
void gmem_free(struct gmem *m);

/* Map @size bytes of zeroed memory at @gpa; owned by @m. -EINVAL unaligned, -EEXIST overlap, ... */
int gmem_add_ram(struct gmem *m, gpa_t gpa, uint64_t size, enum gmem_pages pages, struct err *err);

/*
 * The same, filled with @size bytes of a file from @off (page aligned): read when touched, written only
 * here. @fd may be closed afterwards (a copy is kept); the file must not become shorter while @m lives.
 */
int gmem_add_file(struct gmem *m, gpa_t gpa, uint64_t size, int fd, uint64_t off, struct err *err);

/* The same with memory of the caller's, which must outlive @m. */
int gmem_add_borrowed(struct gmem *m, gpa_t gpa, uint64_t size, void *host, struct err *err);

unsigned gmem_count(const struct gmem *m);
const struct gmem_region *gmem_region(const struct gmem *m, unsigned i); /* sorted by gpa */
uint64_t gmem_size(const struct gmem *m);                                /* bytes of RAM in all */

/* Is [at, at + len) RAM, whole, in one region? len 0 asks whether @at is RAM. */
bool gmem_contains(const struct gmem *m, gpa_t at, uint64_t len);

/* Copy @len bytes. 0, or -EFAULT with nothing copied if any byte is not RAM. */
int gmem_read(const struct gmem *m, gpa_t at, void *dst, size_t len);
int gmem_write(struct gmem *m, gpa_t at, const void *src, size_t len); /* marks dirty */
int gmem_fill(struct gmem *m, gpa_t at, int byte, uint64_t len);       /* marks dirty */

/*
 * Ring indices: one little-endian access, ordered. load is an acquire, store a release and marks
 * dirty. @at is 2-byte aligned, else -EFAULT. (virtio 1.2, 2.7.13.3 and 2.7.14 ask for the barriers.)
 */
int gmem_load16(const struct gmem *m, gpa_t at, uint16_t *val);
int gmem_store16(struct gmem *m, gpa_t at, uint16_t val);

/* Bulk data in place: @iov describes the one host range. 0 or -EFAULT. */
int gmem_iov(const struct gmem *m, gpa_t at, uint64_t len, struct iovec *iov);

/* Fill guest memory from @fd at @off. 0; -EFAULT not RAM; -ENODATA file too short; -errno. */
int gmem_load_fd(struct gmem *m, gpa_t at, int fd, off_t off, uint64_t len);

/* Give the pages back to the host; the guest reads zeroes (reset, balloon). */
int gmem_discard(struct gmem *m, gpa_t at, uint64_t len);

/*
 * Tell migration that we stored to @iov (host ranges got from gmem_iov). KVM logs only vCPU stores:
 * a page missed here arrives stale on the target, with no error anywhere.
 */
void gmem_mark_dirty(struct gmem *m, const struct iovec *iov, unsigned n);

/* Start with a clean bitmap (one bit a 4 KiB page, atomic), or stop. */
int gmem_dirty_start(struct gmem *m, struct err *err);
void gmem_dirty_stop(struct gmem *m);

/*
 * For a kernel that stores to RAM itself (vhost): bit n stands for the 4 KiB page at guest address
 * n * 4096, and is set by anyone, atomically. What is there joins the next fetch. Valid as long as @m; NULL:
 * out of memory. Before the first writer, and on the main thread.
 */
void *gmem_dirty_log(struct gmem *m, struct err *err);

/* Fetch and clear region @i's bits into @bits (little-endian, @words 64-bit words). 0 or -EINVAL. */
int gmem_dirty_fetch(struct gmem *m, unsigned i, uint64_t *bits, size_t words);

/*
 * Clear in @bits (bit 0: page @first of region @i; 4 KiB pages, host order) each of @count pages that
 * takes no memory and reads as zero, since nobody ever touched it. Cheap, and maps nothing, as a look at
 * the pages themselves would. A page may be touched right afterwards: whoever relies on the answer has
 * writes logged from before the call. Without /proc, or with memory of others, no bit is cleared.
 */
void gmem_clear_untouched(const struct gmem *m, unsigned i, uint64_t first, uint64_t count,
			  uint64_t *bits);

#endif
