/*
 * clock_state.c - the guest's clock, saved and set
 *
 * kvmclock is what Linux guests read; it counts from the VM's creation. A snapshot's guest goes on
 * where it stood. A migrated one must not lose the time it was on its way: both hosts know the real
 * time, so the difference is added, to the time stamp counters too (vcpu_save.c).
 *
 * We may be put aside for a long time between two system calls, and what passes then must not become
 * the guest's error: a guest that is moved ten times would be wrong by ten of them. So guest and real
 * time are read at one moment, by KVM where it can (Linux 5.16) and else between two looks at the real
 * time that are close together. When the clock is set we look whether it came out right, and set it
 * again if not.
 *
 * The elapsed time comes from a peer: it is taken only within reason.
 */
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

#include "base/log.h"
#include "vmm/arch.h"
#include "vmm/x86_64/regs.h"

#define NS          UINT64_C(1000000000)
#define ELAPSED_MAX (3600 * NS)
#define ERROR_NS    20000 /* good enough, and more than it takes */
#define TRIES       20

static uint64_t realtime_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

/* The guest's clock and the real time of one moment. */
static int read_pair(int vm_fd, struct clock_regs *r)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < TRIES && best > ERROR_NS; i++) {
		struct kvm_clock_data c = { 0 };
		uint64_t before = realtime_ns();

		if (ioctl(vm_fd, KVM_GET_CLOCK, &c) < 0)
			return -errno;
		uint64_t after = realtime_ns();

		if (c.flags & KVM_CLOCK_REALTIME) {
			*r = (struct clock_regs){ c.clock, c.realtime };
			return 0;
		}
		if (after - before < best) {
			best = after - before;
			*r = (struct clock_regs){ c.clock, before + best / 2 };
		}
	}
	return 0;
}

int arch_clock_save(int vm_fd, struct state_buf *out, struct err *err)
{
	struct clock_regs r;
	int rc = read_pair(vm_fd, &r);

	if (rc)
		return err_set_sys(err, rc, "KVM cannot read the guest's clock");
	return state_save(&clock_state, &r, out) ?
		       err_set(err, ENOMEM, "out of memory for the clock's state") :
		       0;
}

static uint64_t elapsed_since(uint64_t then)
{
	uint64_t now = realtime_ns();

	if (now >= then && now - then <= ELAPSED_MAX)
		return now - then;
	log_warn("the clocks of the two hosts differ by more than the guest can have been on its "
		 "way: its clock stands still for that time");
	return 0;
}

static int set_clock(int vm_fd, uint64_t guest_ns)
{
	struct kvm_clock_data c = { .clock = guest_ns };

	return ioctl(vm_fd, KVM_SET_CLOCK, &c) < 0 ? -errno : 0;
}

/* At the time @then it is @guest_ns, now it is later. */
static int set_running(int vm_fd, uint64_t guest_ns, uint64_t then)
{
	int64_t error = 0;

	for (int i = 0; i < TRIES; i++) {
		struct clock_regs is;
		int rc = set_clock(vm_fd, guest_ns + (realtime_ns() - then));

		if (!rc)
			rc = read_pair(vm_fd, &is);
		if (rc)
			return rc;
		error = (int64_t)(is.guest_ns - guest_ns) - (int64_t)(is.realtime_ns - then);
		if (llabs(error) < ERROR_NS)
			return 0;
	}
	log_debug("the guest's clock is wrong by %lld us", (long long)error / 1000);
	return 0;
}

int arch_clock_load(int vm_fd, bool ran, const void *data, size_t len, uint64_t *elapsed_ns,
		    struct err *err)
{
	struct clock_regs r = { 0 };
	int rc = state_load_new(&clock_state, &r, NULL, data, len, err);

	if (rc)
		return rc;
	*elapsed_ns = ran ? elapsed_since(r.realtime_ns) : 0;
	rc = *elapsed_ns ? set_running(vm_fd, r.guest_ns, r.realtime_ns) :
			   set_clock(vm_fd, r.guest_ns);
	return rc ? err_set_sys(err, rc, "KVM cannot set the guest's clock") : 0;
}
