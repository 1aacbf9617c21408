/*
 * moment.c - one moment of a machine that stands still, by all of its clocks
 *
 * kvmclock, the time stamp counters and the real time go on while we look at them one after another, and
 * we may be put aside for a long time between two looks. A guest that is loaded with such clocks has them
 * apart for the rest of its life. KVM tells real time and its own counter together with kvmclock (Linux
 * 5.16, on a host whose clock is the counter), and each vCPU's counter as an offset to that, which does
 * not change while we look: guest = host + offset, exactly (Documentation/virt/kvm/devices/vcpu.rst).
 *
 * That leaves two cases. A counter that KVM scales is guest = scale(host) + offset, and KVM does not say
 * what it scales by; and where the host's clock is something else, nothing is told together. Then the
 * counter is read between two looks at the real time that are close together, and what remains is how
 * close. Whether it is scaled shows by the same reading: host + offset is within what that leaves open, or
 * not. For the other vCPUs their offsets are enough, so among them nothing is lost in any case.
 */
#include <asm/kvm.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

#include "vmm/x86_64/moment.h"

#define NS       UINT64_C(1000000000)
#define CLOSE_NS 20000 /* and more than it takes */
/* Enough to see scaling, by 250 millionths at least, on a host that is up for 4 s. */
#define SCALED_NS 1000000
#define TRIES     20
#define MSR_TSC   0x10

uint64_t moment_realtime(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

static int64_t ticks(int64_t ns, uint32_t khz)
{
	return (int64_t)((__int128)ns * khz / 1000000);
}

static int offset_request(int vcpu_fd, unsigned long request, uint64_t *offset)
{
	struct kvm_device_attr a = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)offset,
	};

	return ioctl(vcpu_fd, request, &a) < 0 ? -errno : 0;
}

/* The vCPU's counter without its offset: the host's, as often as the guest's ticks. */
static bool read_base(int vcpu_fd, uint64_t *base)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} tsc = { .head.nmsrs = 1, .entry = { .index = MSR_TSC } };
	uint64_t offset = 0;

	if (offset_request(vcpu_fd, KVM_GET_DEVICE_ATTR, &offset) ||
	    ioctl(vcpu_fd, KVM_GET_MSRS, &tsc) != 1)
		return false;
	*base = tsc.entry.data - offset;
	return true;
}

/* @width: nanoseconds that it took, which is how far what was read one after another can be apart */
static int look(int vm_fd, int vcpu_fd, struct arch_moment *m, uint64_t *width, bool *exact)
{
	struct kvm_clock_data c = { 0 };
	int khz = vcpu_fd < 0 ? 0 : ioctl(vcpu_fd, KVM_GET_TSC_KHZ, 0);
	uint64_t before = moment_realtime(), base;

	if (ioctl(vm_fd, KVM_GET_CLOCK, &c) < 0)
		return -errno;
	uint64_t between = moment_realtime();
	bool told = c.flags & KVM_CLOCK_REALTIME;

	*m = (struct arch_moment){
		.guest_ns = c.clock,
		.realtime_ns = told ? c.realtime : before + (between - before) / 2,
	};
	*exact = told;
	*width = told ? 0 : between - before;
	if (khz <= 0 || !read_base(vcpu_fd, &base))
		return 0;
	uint64_t after = moment_realtime(), then = between + (after - between) / 2;

	*width = after - before;
	m->tsc_khz = (uint32_t)khz;
	m->tsc_base = base - (uint64_t)ticks((int64_t)(then - m->realtime_ns), m->tsc_khz);
	*exact = c.flags & KVM_CLOCK_HOST_TSC &&
		 llabs((int64_t)(m->tsc_base - c.host_tsc)) <= ticks((int64_t)*width, m->tsc_khz);
	if (*exact)
		m->tsc_base = c.host_tsc;
	return 0;
}

int moment_look(int vm_fd, int vcpu_fd, struct arch_moment *m)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < TRIES; i++) {
		struct arch_moment one;
		uint64_t width = 0;
		bool exact = false;
		int rc = look(vm_fd, vcpu_fd, &one, &width, &exact);

		if (rc)
			return rc;
		if (width < best || !i) {
			best = width;
			*m = one;
		}
		if (width <= (exact ? SCALED_NS : CLOSE_NS))
			break;
	}
	return 0;
}

int moment_tsc(const struct arch_moment *m, int vcpu_fd, uint64_t *tsc)
{
	uint64_t offset = 0;
	int rc = offset_request(vcpu_fd, KVM_GET_DEVICE_ATTR, &offset);

	*tsc = m->tsc_base + offset;
	return rc;
}

/*
 * Only if they were saved as they were at one moment. Those that were read one after another differ by what
 * passed between, and KVM makes one of them when they are written as MSRs; offsets would keep it.
 */
bool moment_set_tsc(struct arch_clock *k, int vcpu_fd, uint64_t tsc, uint32_t khz)
{
	int rate = ioctl(vcpu_fd, KVM_GET_TSC_KHZ, 0);

	if (!k->together || !khz || rate <= 0)
		return false;
	if (k->now.tsc_khz != (uint32_t)rate && moment_look(k->vm_fd, vcpu_fd, &k->now))
		return false;
	int64_t passed = (int64_t)(k->now.guest_ns - k->saved.guest_ns);
	uint64_t offset = tsc + (uint64_t)ticks(passed, khz) - k->now.tsc_base;

	return k->now.tsc_khz && !offset_request(vcpu_fd, KVM_SET_DEVICE_ATTR, &offset);
}
