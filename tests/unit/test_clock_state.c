/*
 * test_clock_state.c - a guest that moves loses no time, though its VMM was put aside meanwhile
 *
 * The C library's clock_gettime() is replaced by one that takes its time to return when told so: that
 * is what it looks like to lose the processor between two system calls. Needs /dev/kvm; any will do.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/arch.h"
#include "vmm/x86_64/regs.h"

#define ASIDE_NS   200000000
#define ALLOWED_NS 100000000

static unsigned slow_calls; /* so many of the next ones */

int clock_gettime(clockid_t id, struct timespec *t)
{
	int rc = (int)syscall(SYS_clock_gettime, id, t);

	if (slow_calls) {
		slow_calls--;
		nanosleep(&(struct timespec){ .tv_nsec = ASIDE_NS }, NULL);
	}
	return rc;
}

static uint64_t realtime(void)
{
	struct timespec t;

	syscall(SYS_clock_gettime, CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static int new_vm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0) {
		print_message("SKIP: /dev/kvm cannot be opened\n");
		skip();
	}
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	close(kvm);
	assert_true(vm >= 0);
	return vm;
}

/* How far the guest's clock is ahead of the real time: two looks around, so at least and at most. */
struct ahead {
	int64_t least, most;
};

static struct ahead look(int vm)
{
	struct kvm_clock_data c = { 0 };
	uint64_t before = realtime();

	assert_int_equal(ioctl(vm, KVM_GET_CLOCK, &c), 0);
	return (struct ahead){ (int64_t)(c.clock - realtime()), (int64_t)(c.clock - before) };
}

static void check(struct ahead a, struct ahead b)
{
	if (b.least > a.most + ALLOWED_NS || b.most < a.least - ALLOWED_NS)
		fail_msg("was ahead by %lld ns, is by %lld", (long long)a.least,
			 (long long)b.least);
}

static void nothing_is_lost_by_being_put_aside(void **state)
{
	for (unsigned saving = 0; saving < 4; saving++)
		for (unsigned loading = 0; loading < 4; loading++) {
			int from = new_vm(), to = new_vm();
			struct state_buf buf = { 0 };
			struct err err = { 0 };
			struct arch_clock clock = { 0 };
			struct ahead was = look(from);

			slow_calls = saving;
			assert_int_equal(arch_clock_save(from, -1, &clock, &buf, &err), 0);
			slow_calls = loading;
			assert_int_equal(arch_clock_load(to, true, buf.data, buf.len, &clock, &err),
					 0);
			slow_calls = 0;
			check(was, look(to));
			state_buf_fini(&buf);
			close(from);
			close(to);
		}
}

/* A snapshot's guest goes on where it stood. */
static void what_stood_goes_on_from_there(void **state)
{
	int from = new_vm(), to = new_vm();
	struct state_buf buf = { 0 };
	struct err err = { 0 };
	struct kvm_clock_data c = { .clock = 123456789000000 };
	struct clock_regs r = { 0 };
	struct arch_clock clock = { 0 };

	assert_int_equal(ioctl(from, KVM_SET_CLOCK, &c), 0);
	assert_int_equal(arch_clock_save(from, -1, &clock, &buf, &err), 0);
	assert_int_equal(state_load(&clock_state, &r, NULL, buf.data, buf.len, &err), 0);
	nanosleep(&(struct timespec){ .tv_nsec = ASIDE_NS }, NULL);
	uint64_t before = realtime();

	assert_int_equal(arch_clock_load(to, false, buf.data, buf.len, &clock, &err), 0);
	assert_int_equal(clock.elapsed_ns, 0);
	assert_int_equal(ioctl(to, KVM_GET_CLOCK, &c), 0);
	assert_true(c.clock >= r.guest_ns);
	assert_true(c.clock - r.guest_ns <= realtime() - before + ALLOWED_NS);
	state_buf_fini(&buf);
	close(from);
	close(to);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_is_lost_by_being_put_aside),
		cmocka_unit_test(what_stood_goes_on_from_there),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
