/*
 * clock_state.c - the guest's clock, saved and set
 *
 * kvmclock is what Linux guests read; it counts from the VM's creation. A snapshot's guest goes on
 * where it stood. A migrated one must not lose the time it was on its way: both hosts know the real
 * time, so the difference is added, to the time stamp counters too (vcpu_save.c).
 *
 * We may be put aside for a long time between two system calls, and what passes then must not become
 * the guest's error: a guest that is moved ten times would be wrong by ten of them. So all clocks are read
 * at one moment (moment.c). KVM adds the elapsed time itself where it can (Linux 5.16); elsewhere we look
 * whether the clock came out right, and set it again if not.
 *
 * The elapsed time comes from a peer: it is taken only within reason.
 */
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "vmm/arch.h"
#include "vmm/x86_64/moment.h"
#include "vmm/x86_64/regs.h"

#define NS          UINT64_C(1000000000)
#define ELAPSED_MAX (3600 * NS)
#define ERROR_NS    20000 /* good enough, and more than it takes */
#define TRIES       20

int arch_clock_save(int vm_fd, int vcpu_fd, struct arch_clock *k, struct state_buf *out,
		    struct err *err)
{
	int rc = moment_look(vm_fd, vcpu_fd, &k->saved);

	if (rc)
		return err_set_sys(err, rc, "KVM cannot read the guest's clock");
	const struct clock_regs r = {
		.guest_ns = k->saved.guest_ns,
		.realtime_ns = k->saved.realtime_ns,
		.with_tsc = !!k->saved.tsc_khz,
	};

	return state_save(&clock_state, &r, out) ?
		       err_set(err, ENOMEM, "out of memory for the clock's state") :
		       0;
}

static uint64_t elapsed_since(uint64_t then)
{
	uint64_t now = moment_realtime();

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
	struct kvm_clock_data c = {
		.clock = guest_ns,
		.realtime = then,
		.flags = KVM_CLOCK_REALTIME,
	};
	int64_t error = 0;

	if (!ioctl(vm_fd, KVM_SET_CLOCK, &c))
		return 0;
	for (int i = 0; i < TRIES; i++) {
		struct arch_moment is;
		int rc = set_clock(vm_fd, guest_ns + (moment_realtime() - then));

		if (!rc)
			rc = moment_look(vm_fd, -1, &is);
		if (rc)
			return rc;
		error = (int64_t)(is.guest_ns - guest_ns) - (int64_t)(is.realtime_ns - then);
		if (llabs(error) < ERROR_NS)
			return 0;
	}
	log_debug("the guest's clock is wrong by %lld us", (long long)error / 1000);
	return 0;
}

int arch_clock_load(int vm_fd, bool ran, const void *data, size_t len, struct arch_clock *k,
		    struct err *err)
{
	struct clock_regs r = { 0 };
	int rc = state_load_new(&clock_state, &r, NULL, data, len, err);

	if (rc)
		return rc;
	*k = (struct arch_clock){
		.vm_fd = vm_fd,
		.saved = { .guest_ns = r.guest_ns, .realtime_ns = r.realtime_ns },
		.together = r.with_tsc,
		.elapsed_ns = ran ? elapsed_since(r.realtime_ns) : 0,
	};
	rc = k->elapsed_ns ? set_running(vm_fd, r.guest_ns, r.realtime_ns) :
			     set_clock(vm_fd, r.guest_ns);
	return rc ? err_set_sys(err, rc, "KVM cannot set the guest's clock") : 0;
}
