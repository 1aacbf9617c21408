/*
 * test_moment.c - clocks that are saved and loaded one after another stay together
 *
 * ioctl() and clock_gettime() are a KVM and a host of the test's own, with a time of their own that goes
 * on while they work and, when told so, for long at one call: that is what it looks like to be put aside.
 * It is told so at every call in turn. No /dev/kvm is needed.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include <cmocka.h>

#include "vmm/x86_64/moment.h"
#include "vmm/x86_64/regs.h"

#define CPUS   3
#define NS     1000000000
#define ASIDE  200000000 /* ns */
#define NEVER  UINT64_MAX
#define ALWAYS (20ull * ASIDE) /* at most, for one look */
#define FIRST  100 /* descriptors: a host's machine is FIRST + 10 * host, vCPUs follow */

struct host {
	bool together;           /* KVM_GET_CLOCK tells all at one moment */
	bool offsets;            /* KVM_VCPU_TSC_OFFSET is there */
	uint64_t khz, tsc, real; /* counter and real time at 0 */
	uint64_t clock;          /* the guest's, at 0 */
	struct {
		uint32_t khz;
		uint64_t offset;
	} vcpu[CPUS];
};

static struct host hosts[2];
static uint64_t now_ns; /* the world's time */
static uint64_t calls, aside_at;
static bool always_aside;

/* No two calls take the same time. */
static void pass(void)
{
	bool aside = always_aside || calls == aside_at;

	now_ns += (aside ? ASIDE : 150) * (1 + calls * 5 % 3);
	calls++;
}

static uint64_t host_tsc(const struct host *h)
{
	return h->tsc + (uint64_t)((unsigned __int128)now_ns * h->khz / 1000000);
}

static uint64_t guest_tsc(const struct host *h, unsigned i)
{
	const unsigned __int128 ratio = ((unsigned __int128)h->vcpu[i].khz << 32) / h->khz;

	return (uint64_t)(host_tsc(h) * ratio >> 32) + h->vcpu[i].offset;
}

static int get_clock(const struct host *h, struct kvm_clock_data *c)
{
	*c = (struct kvm_clock_data){ .clock = h->clock + now_ns };
	if (h->together) {
		c->flags = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
		c->realtime = h->real + now_ns;
		c->host_tsc = host_tsc(h);
	}
	return 0;
}

static int set_clock(struct host *h, const struct kvm_clock_data *c)
{
	if (c->flags && !h->together)
		return EINVAL;
	h->clock = c->clock - now_ns;
	if (c->flags & KVM_CLOCK_REALTIME && h->real + now_ns > c->realtime)
		h->clock += h->real + now_ns - c->realtime;
	return 0;
}

static int request(int fd, unsigned long what, void *arg)
{
	struct host *h = &hosts[(fd - FIRST) / 10];
	unsigned i = (unsigned)(fd - FIRST) % 10 - 1;
	struct kvm_device_attr *a = arg;
	struct kvm_msrs *m = arg;

	switch (what) {
	case KVM_GET_CLOCK:
		return get_clock(h, arg);
	case KVM_SET_CLOCK:
		return set_clock(h, arg);
	case KVM_GET_TSC_KHZ:
		return -(int)h->vcpu[i].khz;
	case KVM_GET_DEVICE_ATTR:
	case KVM_SET_DEVICE_ATTR:
		if (!h->offsets || a->group != KVM_VCPU_TSC_CTRL || a->attr != KVM_VCPU_TSC_OFFSET)
			return ENXIO;
		if (what == KVM_GET_DEVICE_ATTR)
			memcpy((void *)(uintptr_t)a->addr, &h->vcpu[i].offset, 8);
		else
			memcpy(&h->vcpu[i].offset, (void *)(uintptr_t)a->addr, 8);
		return 0;
	case KVM_GET_MSRS:
		assert_int_equal(m->entries[0].index, 0x10);
		m->entries[0].data = guest_tsc(h, i);
		return -1;
	default:
		return ENOTTY;
	}
}

/* What request() says: an errno, or the negative of what the call returns. */
int ioctl(int fd, unsigned long what, ...)
{
	va_list ap;

	va_start(ap, what);
	void *arg = va_arg(ap, void *);

	va_end(ap);
	pass();
	int rc = request(fd, what, arg);

	pass();
	if (rc > 0)
		errno = rc;
	return rc > 0 ? -1 : -rc;
}

int clock_gettime(clockid_t id, struct timespec *t)
{
	pass();
	const uint64_t real = hosts[0].real + now_ns; /* the hosts agree */

	t->tv_sec = (time_t)(real / NS);
	t->tv_nsec = (long)(real % NS);
	pass();
	return 0;
}

/* ---- a machine moves ---- */

enum { EXACT = 10 }; /* ticks: what integers lose */

static const struct host tsc_of_its_own = {
	.together = true,
	.offsets = true,
	.khz = 2596079,
	.tsc = 864000ull * 2596079000, /* up for ten days */
	.real = 1795528030ull * NS,
	.clock = 77ull * NS,
	.vcpu = { { 2596079, -5000000000ull }, { 2596079, -5000000000ull }, { 2596079, 12345 } },
};

static void begin(void)
{
	now_ns = 3600ull * NS;
	calls = 0;
	aside_at = NEVER;
	always_aside = false;
	hosts[0] = hosts[1] = tsc_of_its_own;
	hosts[1].tsc = 5ull << 50;
	hosts[1].clock = 3;
	memset(hosts[1].vcpu, 0, sizeof(hosts[1].vcpu));
	for (unsigned i = 0; i < CPUS; i++)
		hosts[1].vcpu[i].khz = hosts[0].vcpu[i].khz;
}

struct picture {
	uint64_t clock, real, tsc[CPUS];
};

static struct picture take(const struct host *h)
{
	struct picture p = { .clock = h->clock + now_ns, .real = h->real + now_ns };

	for (unsigned i = 0; i < CPUS; i++)
		p.tsc[i] = guest_tsc(h, i);
	return p;
}

/* From host 0 to host 1; on the way for @ns. Were counters told together? */
static bool move(bool ran, uint64_t ns)
{
	struct arch_clock from = { 0 }, to = { 0 };
	struct state_buf b = { 0 };
	struct err err = { 0 };
	uint64_t tsc[CPUS];

	assert_int_equal(arch_clock_save(FIRST, FIRST + 1, &from, &b, &err), 0);
	for (unsigned i = 0; i < CPUS && from.saved.tsc_khz; i++)
		assert_int_equal(moment_tsc(&from.saved, FIRST + 1 + (int)i, &tsc[i]), 0);
	now_ns += ns;
	assert_int_equal(arch_clock_load(FIRST + 10, ran, b.data, b.len, &to, &err), 0);
	for (unsigned i = 0; i < CPUS && from.saved.tsc_khz; i++)
		assert_true(moment_set_tsc(&to, FIRST + 11 + (int)i, tsc[i], hosts[0].vcpu[i].khz));
	state_buf_fini(&b);
	return from.saved.tsc_khz;
}

static void near(const char *what, uint64_t is, uint64_t want, uint64_t allowed)
{
	if (llabs((int64_t)(is - want)) > (int64_t)allowed)
		fail_msg("call %llu: %s is %lld too far", (unsigned long long)aside_at, what,
			 (long long)(is - want));
}

/* Every counter went on by as much as the guest's clock did, within @allowed ticks. */
static void together(const struct picture *was, uint64_t allowed)
{
	struct picture is = take(&hosts[1]);
	uint64_t khz = hosts[0].vcpu[0].khz, passed = is.clock - was->clock;

	for (unsigned i = 0; i < CPUS; i++) {
		near("a counter", is.tsc[i], was->tsc[i] + passed * khz / 1000000, allowed);
		assert_int_equal(is.tsc[i] - is.tsc[0], was->tsc[i] - was->tsc[0]);
	}
}

/* Put aside at each call in turn, and once at all of them. @tell sets the hosts up. */
static void everywhere(void (*tell)(void), uint64_t allowed, uint64_t allowed_always)
{
	for (int ran = 0; ran < 2; ran++) {
		uint64_t n = 200;

		for (uint64_t at = 0; at <= n; at++) {
			begin();
			tell();
			struct picture was = take(&hosts[0]);

			aside_at = at;
			always_aside = at == n;
			assert_true(move(ran, 2ull * NS));
			if (calls > 0 && calls < n)
				n = calls;
			aside_at = at;
			always_aside = false;
			together(&was, at == n ? allowed_always : allowed);
			struct picture is = take(&hosts[1]);

			if (ran && hosts[0].together)
				near("the clock", is.clock - was.clock, is.real - was.real, 1000);
		}
	}
}

static void another_host(void)
{
}

static void the_same_host(void)
{
	hosts[1].tsc = hosts[0].tsc;
}

/* The target's counter runs at another rate, and KVM scales it. */
static void scaled_there(void)
{
	hosts[1].khz = 3000000;
}

static void scaled_here(void)
{
	hosts[0].khz = 2100123;
}

static void by_the_clock(void)
{
	hosts[0].together = hosts[1].together = false;
}

static void told_by_kvm(void **state)
{
	everywhere(another_host, EXACT, EXACT);
	everywhere(the_same_host, EXACT, EXACT);
}

/* Two looks that are close together, 20 us, at each end; at best while always put aside, as long as that. */
static void told_one_after_another(void **state)
{
	const uint64_t us = 2597, always = ALWAYS * us / 1000;

	everywhere(scaled_there, 20 * us, always);
	everywhere(scaled_here, 20 * us, always);
	everywhere(by_the_clock, 40 * us, always * 2);
}

/* Before Linux 5.16: nothing is claimed. */
static void without_offsets(void **state)
{
	begin();
	hosts[0].offsets = hosts[0].together = false;
	assert_false(move(true, NS));
	begin();
	hosts[0].offsets = false;
	assert_false(move(true, NS));
}

/* The state comes from one that can and goes to one that cannot: the caller writes MSRs. */
static void target_without_offsets(void **state)
{
	struct arch_clock k = { .vm_fd = FIRST + 10, .together = true };

	begin();
	hosts[1].offsets = false;
	assert_false(moment_set_tsc(&k, FIRST + 11, 5, 2596079));
	k.together = false;
	hosts[1].offsets = true;
	assert_false(moment_set_tsc(&k, FIRST + 11, 5, 2596079)); /* read one after another */
	k.together = true;
	assert_true(moment_set_tsc(&k, FIRST + 11, 5, 2596079));
	assert_false(moment_set_tsc(&k, FIRST + 11, 5, 0)); /* at an unknown rate */
}

/* A host that has just been started: a scaled counter is still close to the one that it is made of. */
static void scaled_and_young(void)
{
	now_ns = 5ull * NS;
	hosts[1].tsc = 0;
	hosts[1].khz = 2596079 + 2596079 / 3000;
}

static void young_host(void **state)
{
	everywhere(scaled_and_young, 1000 * 2597, ALWAYS * 2597 / 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(told_by_kvm),     cmocka_unit_test(told_one_after_another),
		cmocka_unit_test(without_offsets), cmocka_unit_test(target_without_offsets),
		cmocka_unit_test(young_host),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
