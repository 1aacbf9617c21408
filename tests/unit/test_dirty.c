/*
 * test_dirty.c - KVM's dirty log and ours, joined
 *
 * A guest of a few instructions adds one to the first byte of each page on a list; devices' stores go
 * through gmem. Both ways of KVM's log are run: cleared by hand, and (with no /dev/kvm to ask for the
 * capability) by the fetch. Skipped where /dev/kvm cannot be opened.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/dirty.h"
#include "vmm/memslots.h"
#include "vmm/vm.h"

#define PAGE     4096ull
#define LOW      (40ull << 20) /* 2.5 of the pieces that are protected at once */
#define HIGH_GPA (1ull << 30)
#define HIGH     ((4ull << 20) + 3 * PAGE) /* not a multiple of 64 pages */
#define CODE     0x1000
#define LIST     0x2000
#define LIST_MAX 1024

/* again: mov esi, LIST; next: lodsd; test eax, eax; jz done; inc byte [eax]; jmp next
 * done: out 0x10, al; jmp again */
static const uint8_t code[] = { 0xbe, 0x00, 0x20, 0x00, 0x00, 0xad, 0x85, 0xc0, 0x74,
				0x04, 0xfe, 0x00, 0xeb, 0xf7, 0xe6, 0x10, 0xeb, 0xee };

struct rig {
	struct vm vm;
	int vcpu;
	struct kvm_run *run;
	int run_size;
};

static struct rig *untouched_rig_or_skip(bool manual)
{
	static struct rig r;
	struct err err = { 0 };

	memset(&r, 0, sizeof(r));
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0) {
		print_message("SKIP: /dev/kvm cannot be opened\n");
		skip();
	}
	r.vm.fd = ioctl(kvm, KVM_CREATE_VM, 0);
	assert_true(r.vm.fd >= 0);
	r.vm.mem = gmem_new(&err);
	assert_int_equal(gmem_add_ram(r.vm.mem, 0, LOW, GMEM_PAGES_SMALL, &err), 0);
	assert_int_equal(gmem_add_ram(r.vm.mem, HIGH_GPA, HIGH, GMEM_PAGES_SMALL, &err), 0);
	assert_int_equal(memslots_set(r.vm.fd, r.vm.mem, &err), 0);
	r.vcpu = ioctl(r.vm.fd, KVM_CREATE_VCPU, 0);
	assert_true(r.vcpu >= 0);
	r.run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	r.run = mmap(NULL, (size_t)r.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, r.vcpu, 0);
	assert_ptr_not_equal(r.run, MAP_FAILED);
	assert_int_equal(gmem_write(r.vm.mem, CODE, code, sizeof(code)), 0);

	struct kvm_sregs s;

	assert_int_equal(ioctl(r.vcpu, KVM_GET_SREGS, &s), 0);
	struct kvm_segment flat = { .limit = 0xffffffff,
				    .type = 3,
				    .present = 1,
				    .db = 1,
				    .s = 1,
				    .g = 1,
				    .selector = 16 };

	s.ds = s.es = s.ss = s.fs = s.gs = flat;
	flat.type = 11;
	flat.selector = 8;
	s.cs = flat;
	s.cr0 |= 1;
	assert_int_equal(ioctl(r.vcpu, KVM_SET_SREGS, &s), 0);
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };

	assert_int_equal(ioctl(r.vcpu, KVM_SET_REGS, &regs), 0);
	if (manual) {
		r.vm.kvm.fd = kvm;
	} else {
		close(kvm);
		r.vm.kvm.fd = -1;
	}
	return &r;
}

/* All of its memory has been touched. */
static struct rig *rig_or_skip(bool manual)
{
	struct rig *r = untouched_rig_or_skip(manual);
	const uint8_t zero = 0;

	for (uint64_t at = 4 * PAGE; at < LOW; at += PAGE)
		assert_int_equal(gmem_write(r->vm.mem, at, &zero, 1), 0);
	assert_int_equal(gmem_write(r->vm.mem, 0, &zero, 1), 0);
	assert_int_equal(gmem_write(r->vm.mem, LIST, &zero, 1), 0);
	assert_int_equal(gmem_write(r->vm.mem, 3 * PAGE, &zero, 1), 0);
	for (uint64_t at = 0; at < HIGH; at += PAGE)
		assert_int_equal(gmem_write(r->vm.mem, HIGH_GPA + at, &zero, 1), 0);
	return r;
}

static void rig_end(struct rig *r)
{
	munmap(r->run, (size_t)r->run_size);
	close(r->vcpu);
	close(r->vm.fd);
	if (r->vm.kvm.fd >= 0)
		close(r->vm.kvm.fd);
	gmem_free(r->vm.mem);
}

/* Have the guest write to these addresses. */
static void guest_writes(struct rig *r, const uint32_t *at, unsigned n)
{
	const uint32_t end = 0;

	assert_true(n < LIST_MAX);
	struct iovec list;

	/* behind gmem's back: this store is no device's */
	assert_int_equal(gmem_iov(r->vm.mem, LIST, (n + 1) * 4, &list), 0);
	memcpy(list.iov_base, at, n * 4);
	memcpy((uint8_t *)list.iov_base + n * 4, &end, 4);
	assert_int_equal(ioctl(r->vcpu, KVM_RUN, 0), 0);
	assert_int_equal(r->run->exit_reason, KVM_EXIT_IO);
	assert_int_equal(r->run->io.port, 0x10);
}

/* Take everything; every page taken counts one in @seen (low region, then high). */
static uint64_t take_all(struct dirty *d, uint8_t *seen, uint64_t most)
{
	unsigned region = 0;
	uint64_t page = 0, first, count, sum = 0;

	while (dirty_take(d, &region, &page, most, &first, &count)) {
		assert_true(count && count <= most);
		assert_true(first + count <= (region ? HIGH : LOW) / PAGE);
		assert_int_equal(page, first + count);
		for (uint64_t i = 0; i < count; i++)
			seen[(region ? LOW / PAGE : 0) + first + i]++;
		sum += count;
	}
	assert_int_equal(region, 2);
	return sum;
}

#define ALL ((LOW + HIGH) / PAGE)

static uint64_t index_of(uint64_t gpa)
{
	return gpa < LOW ? gpa / PAGE : LOW / PAGE + (gpa - HIGH_GPA) / PAGE;
}

static void expect_only(struct dirty *d, const uint32_t *at, unsigned n)
{
	static uint8_t seen[ALL], want[ALL];
	struct err err = { 0 };
	uint64_t sum = 0;

	memset(seen, 0, sizeof(seen));
	memset(want, 0, sizeof(want));
	for (unsigned i = 0; i < n; i++)
		want[index_of(at[i])] = 1;
	for (unsigned i = 0; i < ALL; i++)
		sum += want[i];
	assert_int_equal(dirty_fetch(d, &err), 0);
	assert_int_equal(dirty_pages(d), sum);
	assert_int_equal(take_all(d, seen, 64), sum);
	assert_int_equal(dirty_pages(d), 0);
	assert_memory_equal(seen, want, sizeof(seen));
}

static void rounds(bool manual)
{
	static const uint32_t some[] = { 0x5000,         0x6000,
					 0x105004,       16 << 20,
					 (16 << 20) - 1, (uint32_t)LOW - 1,
					 HIGH_GPA,       HIGH_GPA + (uint32_t)HIGH - 1 };
	static const uint32_t other[] = { 0x9fff, 0x6000, (33 << 20) + 5 };
	static uint8_t seen[ALL];
	const unsigned nsome = sizeof(some) / sizeof(some[0]);
	struct rig *r = rig_or_skip(manual);
	struct err err = { 0 };
	struct dirty *d = dirty_start(&r->vm, &err);

	assert_non_null(d);
	/* at first everything, each page once */
	memset(seen, 0, sizeof(seen));
	assert_int_equal(dirty_pages(d), ALL);
	assert_int_equal(take_all(d, seen, 512), ALL);
	for (unsigned i = 0; i < ALL; i++)
		assert_int_equal(seen[i], 1);
	assert_int_equal(dirty_pages(d), 0);

	expect_only(d, NULL, 0);
	guest_writes(r, some, nsome);
	expect_only(d, some, nsome);
	/* the same pages are seen again, and others */
	guest_writes(r, some, nsome);
	guest_writes(r, other, 3);
	uint32_t both[16];

	memcpy(both, some, sizeof(some));
	memcpy(both + nsome, other, sizeof(other));
	expect_only(d, both, nsome + 3);
	expect_only(d, NULL, 0);

	/* devices' stores, and a page that both wrote */
	uint8_t byte = 7;

	assert_int_equal(gmem_write(r->vm.mem, 0x7fff, &byte, 1), 0);
	assert_int_equal(gmem_store16(r->vm.mem, HIGH_GPA + 0x1000, 9), 0);
	assert_int_equal(gmem_fill(r->vm.mem, 0x6000, 1, 16), 0);
	guest_writes(r, other, 3);
	memcpy(both, other, sizeof(other));
	both[3] = 0x7fff;
	both[4] = HIGH_GPA + 0x1000;
	expect_only(d, both, 5);
	dirty_stop(d);

	/* again from the start: nothing of before is left over */
	guest_writes(r, some, nsome);
	d = dirty_start(&r->vm, &err);
	assert_non_null(d);
	memset(seen, 0, sizeof(seen));
	assert_int_equal(take_all(d, seen, UINT64_MAX), ALL);
	expect_only(d, NULL, 0);
	dirty_stop(d);
	rig_end(r);
}

static void test_by_hand(void **state)
{
	rounds(true);
}

static void test_by_fetch(void **state)
{
	rounds(false);
}

/* The first round is what was ever touched, whoever did; later rounds are what was written. */
static void untouched(bool manual)
{
	static const uint32_t guests[] = { 0x9000, (17 << 20), HIGH_GPA + 5 * PAGE };
	static const uint32_t late[] = { (16 << 20) - 1, HIGH_GPA + (uint32_t)HIGH - 1 };
	static uint8_t seen[ALL], want[ALL];
	struct rig *r = untouched_rig_or_skip(manual);
	struct err err = { 0 };
	uint8_t byte = 1;

	guest_writes(r, guests, 3);
	assert_int_equal(gmem_write(r->vm.mem, 33 << 20, &byte, 1), 0);
	struct dirty *d = dirty_start(&r->vm, &err);

	assert_non_null(d);
	memset(want, 0, sizeof(want));
	for (unsigned i = 0; i < 3; i++)
		want[index_of(guests[i])] = 1;
	want[index_of(33 << 20)] = want[index_of(CODE)] = want[index_of(LIST)] = 1;
	memset(seen, 0, sizeof(seen));
	assert_int_equal(dirty_pages(d), ALL);
	assert_int_equal(take_all(d, seen, 64), 6);
	assert_memory_equal(seen, want, sizeof(seen));
	assert_int_equal(dirty_pages(d), 0);

	guest_writes(r, late, 2);
	expect_only(d, late, 2);
	/* what was given back may have been sent: it goes again */
	const uint32_t back[] = { 0x9000 };

	assert_int_equal(gmem_discard(r->vm.mem, 0x9000, PAGE), 0);
	expect_only(d, back, 1);
	dirty_stop(d);
	rig_end(r);
}

static void test_untouched_by_hand(void **state)
{
	untouched(true);
}

static void test_untouched_by_fetch(void **state)
{
	untouched(false);
}

/* Pages written between the fetch and their being taken, and behind the one that takes. */
static void test_written_meanwhile(void **state)
{
	struct rig *r = rig_or_skip(true);
	struct err err = { 0 };
	static uint8_t seen[ALL];
	const uint32_t at[] = { 0x8000, 30 << 20 }, late[] = { 0x8000 };
	unsigned region = 0;
	uint64_t page = 0, first, count;
	struct dirty *d = dirty_start(&r->vm, &err);

	assert_non_null(d);
	take_all(d, seen, 512);
	guest_writes(r, at, 2);
	assert_int_equal(dirty_fetch(d, &err), 0);
	assert_true(dirty_take(d, &region, &page, 64, &first, &count));
	assert_int_equal(first, 8);
	assert_int_equal(count, 1);
	guest_writes(r, late, 1); /* after it was taken */
	assert_true(dirty_take(d, &region, &page, 64, &first, &count));
	assert_int_equal(first, (30 << 20) / PAGE);
	assert_false(dirty_take(d, &region, &page, 64, &first, &count));
	expect_only(d, late, 1);
	dirty_stop(d);
	rig_end(r);
}

/* Runs of many callers at once: each page once. */
struct taker {
	struct dirty *d;
	uint8_t *seen;
	unsigned region;
	uint64_t page;
};

static void *taker(void *arg)
{
	struct taker *t = arg;
	uint64_t first, count;

	while (dirty_take(t->d, &t->region, &t->page, 7, &first, &count))
		for (uint64_t i = 0; i < count; i++)
			__atomic_fetch_add(&t->seen[(t->region ? LOW / PAGE : 0) + first + i], 1,
					   __ATOMIC_RELAXED);
	return NULL;
}

static void test_threads(void **state)
{
	struct rig *r = rig_or_skip(true);
	struct err err = { 0 };
	static uint8_t seen[ALL];
	struct taker t[4];
	pthread_t thread[4];
	struct dirty *d = dirty_start(&r->vm, &err);

	assert_non_null(d);
	memset(seen, 0, sizeof(seen));
	for (int i = 0; i < 4; i++) {
		t[i] = (struct taker){ d, seen, 0, 0 };
		assert_int_equal(pthread_create(&thread[i], NULL, taker, &t[i]), 0);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
	for (unsigned i = 0; i < ALL; i++)
		assert_int_equal(seen[i], 1);
	assert_int_equal(dirty_pages(d), 0);
	dirty_stop(d);
	rig_end(r);
}

/* Someone else's VM under our feet: told, not passed over. */
static void test_lost(void **state)
{
	struct rig *r = rig_or_skip(true);
	struct err err = { 0 };
	struct dirty *d = dirty_start(&r->vm, &err);
	int fd = r->vm.fd;

	assert_non_null(d);
	r->vm.fd = -1;
	assert_true(dirty_fetch(d, &err) < 0);
	assert_non_null(strstr(err.msg, "KVM"));
	r->vm.fd = fd;
	dirty_stop(d);
	rig_end(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_by_hand),
		cmocka_unit_test(test_by_fetch),
		cmocka_unit_test(test_untouched_by_hand),
		cmocka_unit_test(test_untouched_by_fetch),
		cmocka_unit_test(test_written_meanwhile),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_lost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
