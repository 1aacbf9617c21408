/*
 * clock_state.c - the guest's clock, saved and set
 *
 * kvmclock is what Linux guests read; it counts from the VM's creation. A snapshot's guest goes on
 * where it stood. A migrated one must not lose the time it was on its way: both hosts know the real
 * time, so the difference is added, to the time stamp counters too (vcpu_save.c). KVM could add it to
 * kvmclock by itself (KVM_CLOCK_REALTIME), but then the two would differ by what lies between.
 *
 * The elapsed time comes from a peer: it is taken only within reason.
 */
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <time.h>

#include "base/log.h"
#include "vmm/arch.h"
#include "vmm/x86_64/regs.h"

#define NS          UINT64_C(1000000000)
#define ELAPSED_MAX (3600 * NS)

static uint64_t realtime_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

int arch_clock_save(int vm_fd, struct state_buf *out, struct err *err)
{
	struct kvm_clock_data c = { 0 };

	if (ioctl(vm_fd, KVM_GET_CLOCK, &c) < 0)
		return err_set_sys(err, errno, "KVM cannot read the guest's clock");
	/* Since Linux 5.16 both come from one moment. */
	struct clock_regs r = {
		.guest_ns = c.clock,
		.realtime_ns = c.flags & KVM_CLOCK_REALTIME ? c.realtime : realtime_ns(),
	};

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

int arch_clock_load(int vm_fd, bool ran, const void *data, size_t len, uint64_t *elapsed_ns,
		    struct err *err)
{
	struct clock_regs r = { 0 };
	int rc = state_load(&clock_state, &r, NULL, data, len, err);

	if (rc)
		return rc;
	*elapsed_ns = ran ? elapsed_since(r.realtime_ns) : 0;

	struct kvm_clock_data c = { .clock = r.guest_ns + *elapsed_ns };

	if (ioctl(vm_fd, KVM_SET_CLOCK, &c) < 0)
		return err_set_sys(err, errno, "KVM cannot set the guest's clock");
	return 0;
}
