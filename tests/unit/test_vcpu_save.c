/*
 * test_vcpu_save.c - processors, chips and clock of a real KVM, saved and loaded into another VM
 *
 * Every register gets a value of its own, KVM is asked for it in its own words on both sides, and the
 * two have to be equal. Skipped where /dev/kvm cannot be opened; no guest code runs.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "vmm/x86_64/cpu.h"
#include "vmm/x86_64/regs.h"

#define CPUS 2

static struct arch_clock no_clock; /* counters as they are when they are read */

struct machine {
	int kvm, vm, vcpu[CPUS];
	struct arch_cpu *cpu;
};

/* With @cpu: its vCPUs are as KVM makes them, for a state to be loaded. */
static void machine_begin(struct machine *m, struct arch_cpu *cpu)
{
	struct err err = { 0 };

	m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (m->kvm < 0) {
		print_message("SKIP: /dev/kvm cannot be opened\n");
		skip();
	}
	m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	assert_true(m->vm >= 0);
	assert_int_equal(arch_vm_init(m->vm, &err), 0);
	m->cpu = cpu ? cpu : arch_cpu_new(m->kvm, "host", CPUS, &err);
	assert_non_null(m->cpu);
	for (unsigned i = 0; i < CPUS; i++) {
		m->vcpu[i] = ioctl(m->vm, KVM_CREATE_VCPU, i);
		assert_true(m->vcpu[i] >= 0);
		if (!cpu)
			assert_int_equal(arch_vcpu_init(m->vcpu[i], m->cpu, i, &err), 0);
	}
}

static void machine_end(struct machine *m)
{
	arch_cpu_free(m->cpu);
	for (unsigned i = 0; i < CPUS; i++)
		close(m->vcpu[i]);
	close(m->vm);
	close(m->kvm);
}

/* The processor as another host would make it: from what was saved. */
static struct arch_cpu *cpu_again(const struct machine *m)
{
	struct state_buf b = { 0 };
	struct err err = { 0 };

	assert_int_equal(arch_cpu_save(m->cpu, &b, &err), 0);
	struct arch_cpu *c = arch_cpu_load(CPUS, b.data, b.len, &err);

	if (!c || arch_cpu_check(c, m->kvm, &err))
		fail_msg("%s", err.msg);
	assert_memory_equal(&c->leaves, &m->cpu->leaves, sizeof(c->leaves.n));
	assert_int_equal(c->phys_bits, m->cpu->phys_bits);
	state_buf_fini(&b);
	return c;
}

static const uint32_t msr_index[] = { 0x174,      0x175,      0x176,      0x277,
				      0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084,
				      0xc0000102, 0x200,      0x201,      0x250,
				      0x2ff,      0x4b564d01, 0x3b,       0x400 };
#define NMSRS (sizeof(msr_index) / sizeof(msr_index[0]))

struct msr_list {
	struct kvm_msrs head;
	struct kvm_msr_entry e[NMSRS];
};

/* All that KVM says, with zeroes where time goes on. */
struct picture {
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	uint8_t fpu[4096];
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debug;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct msr_list msrs;
};

static void take(int fd, struct picture *p)
{
	memset(p, 0, sizeof(*p));
	p->msrs.head.nmsrs = NMSRS;
	for (size_t i = 0; i < NMSRS; i++)
		p->msrs.e[i].index = msr_index[i];
	assert_int_equal(ioctl(fd, KVM_GET_MP_STATE, &p->mp), 0);
	assert_int_equal(ioctl(fd, KVM_GET_REGS, &p->regs), 0);
	assert_int_equal(ioctl(fd, KVM_GET_SREGS, &p->sregs), 0);
	assert_int_equal(ioctl(fd, KVM_GET_XSAVE, p->fpu), 0);
	assert_int_equal(ioctl(fd, KVM_GET_XCRS, &p->xcrs), 0);
	assert_int_equal(ioctl(fd, KVM_GET_DEBUGREGS, &p->debug), 0);
	assert_int_equal(ioctl(fd, KVM_GET_LAPIC, &p->lapic), 0);
	assert_int_equal(ioctl(fd, KVM_GET_VCPU_EVENTS, &p->events), 0);
	assert_int_equal(ioctl(fd, KVM_GET_MSRS, &p->msrs), NMSRS);
	memset(p->lapic.regs + 0x390, 0, 4);
}

static void set_segment(struct kvm_segment *s, uint16_t selector)
{
	s->selector = selector;
	s->base = 0x10000u * selector;
	s->limit = 0xfffff;
	s->g = s->db = 1;
}

static void set_msrs(int fd)
{
	static const uint64_t values[NMSRS] = {
		0x10,
		0xffff800000001000,
		0xffff800000002000,
		0x0407040600070106,
		0x0023001000000000,
		0xffff800000003000,
		0xffff800000004000,
		0x47700,
		0xffff800000005000,
		6,
		0xff0000800,
		0x0606060606060606,
		0xc06,
		0,
		0x1234,
		0,
	};
	struct msr_list l = { .head.nmsrs = NMSRS };

	for (size_t i = 0; i < NMSRS; i++)
		l.e[i] = (struct kvm_msr_entry){ .index = msr_index[i], .data = values[i] };
	assert_int_equal(ioctl(fd, KVM_SET_MSRS, &l), NMSRS);
}

/* Something in everything that may be set at random. */
static void fill(int fd, uint64_t seed)
{
	struct picture p;

	take(fd, &p);
	uint64_t *r = (uint64_t *)&p.regs;

	for (size_t i = 0; i < sizeof(p.regs) / 8; i++)
		r[i] = seed * 0x0101010101010101 + i;
	p.regs.rflags = 0x246;
	set_segment(&p.sregs.ds, 0x18);
	set_segment(&p.sregs.es, 0x20);
	set_segment(&p.sregs.fs, 0x28);
	set_segment(&p.sregs.gs, 0x30);
	p.sregs.gdt.base = 0x1234000 + seed;
	p.sregs.gdt.limit = 0x7f;
	p.sregs.idt.base = 0x5678000;
	p.sregs.cr2 = 0xdeadbeef000 + seed;
	p.sregs.cr8 = 3;
	for (unsigned i = 0; i < 512; i++) /* x87 and SSE registers of the legacy area */
		if (i >= 32 && i < 416)
			p.fpu[i] = (uint8_t)(i * 3 + seed);
	p.fpu[512] |= 3; /* XSTATE_BV */
	for (unsigned i = 0; i < 4; i++)
		p.debug.db[i] = 0x1000 * (i + seed);
	p.debug.dr7 = 0x401;
	memcpy(p.lapic.regs + 0x320, &(uint32_t){ 0x10033 }, 4);
	memcpy(p.lapic.regs + 0x360, &(uint32_t){ 0x10400 }, 4);
	memcpy(p.lapic.regs + 0x230, &(uint32_t){ 1u << 7 }, 4); /* an interrupt waits */
	memcpy(p.lapic.regs + 0xf0, &(uint32_t){ 0x1ff }, 4);
	p.events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
	p.events.nmi.pending = 1;
	assert_int_equal(ioctl(fd, KVM_SET_REGS, &p.regs), 0);
	assert_int_equal(ioctl(fd, KVM_SET_SREGS, &p.sregs), 0);
	assert_int_equal(ioctl(fd, KVM_SET_XSAVE, p.fpu), 0);
	assert_int_equal(ioctl(fd, KVM_SET_DEBUGREGS, &p.debug), 0);
	assert_int_equal(ioctl(fd, KVM_SET_LAPIC, &p.lapic), 0);
	set_msrs(fd);
	assert_int_equal(ioctl(fd, KVM_SET_VCPU_EVENTS, &p.events), 0);
}

static void round_trip(void **state)
{
	struct machine a, b;
	struct picture before, after;
	struct err err = { 0 };

	machine_begin(&a, NULL);
	machine_begin(&b, cpu_again(&a));
	for (unsigned i = 0; i < CPUS; i++) {
		struct state_buf buf = { 0 };

		fill(a.vcpu[i], i + 1);
		take(a.vcpu[i], &before);
		assert_int_equal(arch_vcpu_save(a.vcpu[i], a.cpu, i, &no_clock, &buf, &err), 0);
		if (arch_vcpu_load(b.vcpu[i], b.cpu, &no_clock, buf.data, buf.len, &err))
			fail_msg("%s", err.msg);
		take(b.vcpu[i], &after);
		assert_memory_equal(&before.mp, &after.mp, sizeof(before.mp));
		assert_memory_equal(&before.regs, &after.regs, sizeof(before.regs));
		assert_memory_equal(&before.sregs, &after.sregs, sizeof(before.sregs));
		assert_memory_equal(before.fpu, after.fpu, sizeof(before.fpu));
		assert_memory_equal(&before.xcrs, &after.xcrs, sizeof(before.xcrs));
		assert_memory_equal(&before.debug, &after.debug, sizeof(before.debug));
		assert_memory_equal(&before.lapic, &after.lapic, sizeof(before.lapic));
		assert_memory_equal(&before.events, &after.events, sizeof(before.events));
		assert_memory_equal(&before.msrs, &after.msrs, sizeof(before.msrs));
		state_buf_fini(&buf);
	}
	machine_end(&b);
	machine_end(&a);
}

static uint64_t tsc(int fd)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e;
	} one = { .head.nmsrs = 1, .e = { .index = 0x10 } };

	assert_int_equal(ioctl(fd, KVM_GET_MSRS, &one), 1);
	return one.e.data;
}

static bool tsc_can_be_set(int fd)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e;
	} one = { .head.nmsrs = 1, .e = { .index = 0x10, .data = 1ull << 60 } };

	assert_int_equal(ioctl(fd, KVM_SET_MSRS, &one), 1);
	return tsc(fd) >= 1ull << 60;
}

/* The time stamp counter goes on, by the time that the guest was on its way. */
static void tsc_goes_on(void **state)
{
	struct arch_clock an_hour = { .elapsed_ns = 3600ull * 1000000000 };
	struct machine a, b;
	struct state_buf buf = { 0 };
	struct err err = { 0 };

	machine_begin(&a, NULL);
	uint64_t khz = (uint64_t)ioctl(a.vcpu[0], KVM_GET_TSC_KHZ, 0), then = tsc(a.vcpu[0]);

	assert_int_equal(arch_vcpu_save(a.vcpu[0], a.cpu, 0, &no_clock, &buf, &err), 0);
	machine_begin(&b, cpu_again(&a));
	bool can = tsc_can_be_set(b.vcpu[1]); /* software KVM: it is the host's */

	assert_int_equal(arch_vcpu_load(b.vcpu[0], b.cpu, &an_hour, buf.data, buf.len, &err), 0);
	if (!can)
		then -= khz * 3600000;
	assert_true(tsc(b.vcpu[0]) >= then + khz * 3600000);
	assert_true(tsc(b.vcpu[0]) < then + khz * 3600000 * 2);
	state_buf_fini(&buf);
	machine_end(&b);
	machine_end(&a);
}

static uint64_t *offset_of(int fd, unsigned long request, uint64_t *offset)
{
	struct kvm_device_attr a = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)offset,
	};

	return ioctl(fd, request, &a) ? NULL : offset;
}

/* Counters of a machine that nobody has run, at the moment of @c. */
static void counters(const struct machine *m, struct kvm_clock_data *c, uint64_t *tsc)
{
	*c = (struct kvm_clock_data){ 0 };
	assert_int_equal(ioctl(m->vm, KVM_GET_CLOCK, c), 0);
	if (!(c->flags & KVM_CLOCK_HOST_TSC)) {
		print_message("SKIP: this host's clock is not its time stamp counter\n");
		skip();
	}
	for (unsigned i = 0; i < CPUS; i++) {
		assert_non_null(offset_of(m->vcpu[i], KVM_GET_DEVICE_ATTR, &tsc[i]));
		tsc[i] += c->host_tsc;
	}
}

static void be_put_aside(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
}

static void save_and_load(const struct machine *a, const struct machine *b, bool ran)
{
	struct state_buf buf[CPUS + 1] = { 0 };
	struct arch_clock from, to;
	struct err err = { 0 };

	assert_int_equal(arch_clock_save(a->vm, a->vcpu[0], &from, &buf[CPUS], &err), 0);
	for (unsigned i = 0; i < CPUS; i++) {
		be_put_aside();
		assert_int_equal(arch_vcpu_save(a->vcpu[i], a->cpu, i, &from, &buf[i], &err), 0);
	}
	assert_int_equal(arch_clock_load(b->vm, ran, buf[CPUS].data, buf[CPUS].len, &to, &err), 0);
	for (unsigned i = 0; i < CPUS; i++) {
		be_put_aside();
		assert_int_equal(
			arch_vcpu_load(b->vcpu[i], b->cpu, &to, buf[i].data, buf[i].len, &err), 0);
	}
	for (unsigned i = 0; i <= CPUS; i++)
		state_buf_fini(&buf[i]);
}

/* However long we were put aside: each went on by what the clock did. */
static void counters_and_clock_stay_together(void **state)
{
	for (int ran = 0; ran < 2; ran++) {
		struct machine a, b;
		struct kvm_clock_data c, d, start = { .clock = 12345678901 };
		uint64_t own = -1ull << 50, was[CPUS], is[CPUS];

		machine_begin(&a, NULL);
		if (!tsc_can_be_set(a.vcpu[1]) ||
		    !offset_of(a.vcpu[0], KVM_SET_DEVICE_ATTR, &(uint64_t){ 5 })) {
			machine_end(&a);
			print_message("SKIP: this KVM does not set time stamp counters\n");
			skip();
		}
		for (unsigned i = 0; i < CPUS; i++)
			assert_non_null(offset_of(a.vcpu[i], KVM_SET_DEVICE_ATTR, &own));
		assert_int_equal(ioctl(a.vm, KVM_SET_CLOCK, &start), 0);
		uint64_t khz = (uint64_t)ioctl(a.vcpu[0], KVM_GET_TSC_KHZ, 0);

		counters(&a, &c, was);
		machine_begin(&b, cpu_again(&a));
		save_and_load(&a, &b, ran);
		counters(&b, &d, is);
		for (unsigned i = 0; i < CPUS; i++) {
			int64_t error =
				(int64_t)(is[i] - was[i] - (d.clock - c.clock) * khz / 1000000);

			if (llabs(error) > 200) /* KVM's clock has whole ns and a rate of its own */
				fail_msg("vCPU %u: %lld ticks too far", i, (long long)error);
			assert_int_equal(is[i] - is[0], was[i] - was[0]);
		}
		if (ran)
			assert_true(llabs((int64_t)(d.clock - c.clock) -
					  (int64_t)(d.realtime - c.realtime)) < 20000);
		machine_end(&b);
		machine_end(&a);
	}
}

/* Load @saved with another counter; was a warning given? */
static bool warns(const struct machine *m, unsigned vcpu, const struct state_buf *saved,
		  uint64_t counter)
{
	struct vcpu_regs *r = calloc(1, sizeof(*r));
	struct state_buf buf = { 0 };
	struct err err = { 0 };
	char said[4096] = "";
	int pipes[2], old = dup(STDERR_FILENO);

	assert_int_equal(state_decode(&vcpu_state, r, saved->data, saved->len, &err), 0);
	for (unsigned i = 0; i < r->msr_count; i++)
		if (r->msr[i] == 0x10)
			r->msr_value[i] = counter;
	assert_int_equal(state_save(&vcpu_state, r, &buf), 0);
	assert_int_equal(pipe2(pipes, O_NONBLOCK), 0);
	dup2(pipes[1], STDERR_FILENO);
	int rc = arch_vcpu_load(m->vcpu[vcpu], m->cpu, &no_clock, buf.data, buf.len, &err);

	dup2(old, STDERR_FILENO);
	close(old);
	close(pipes[1]);
	if (rc)
		fail_msg("%s", err.msg);
	if (read(pipes[0], said, sizeof(said) - 1) < 0)
		said[0] = '\0';
	close(pipes[0]);
	state_buf_fini(&buf);
	free(r);
	return strstr(said, "goes back");
}

/* KVM makes counters that are set close together one: no reason to alarm anybody. */
static void tsc_of_two_read_apart(void **state)
{
	struct machine m;
	struct state_buf buf = { 0 };
	struct err err = { 0 };

	machine_begin(&m, NULL);
	uint64_t hz = (uint64_t)ioctl(m.vcpu[0], KVM_GET_TSC_KHZ, 0) * 1000, now = tsc(m.vcpu[0]);

	assert_int_equal(arch_vcpu_save(m.vcpu[0], m.cpu, 0, &no_clock, &buf, &err), 0);
	assert_false(warns(&m, 0, &buf, now));
	assert_false(warns(&m, 1, &buf, now + hz / 2));
	if (!tsc_can_be_set(m.vcpu[1]))
		assert_true(warns(&m, 1, &buf, now + hz * 1000));
	state_buf_fini(&buf);
	machine_end(&m);
}

static void hostile_vcpu(void **state)
{
	struct machine m;
	struct vcpu_regs *r = calloc(1, sizeof(*r));
	struct state_buf good = { 0 }, bad = { 0 };
	struct err err = { 0 };

	machine_begin(&m, NULL);
	assert_int_equal(arch_vcpu_save(m.vcpu[0], m.cpu, 0, &no_clock, &good, &err), 0);
	assert_int_equal(state_decode(&vcpu_state, r, good.data, good.len, &err), 0);

	/* a feature nobody has */
	for (unsigned i = 0; i < r->cpuid.count; i++)
		if (r->cpuid.function[i] == 7 && !r->cpuid.index[i])
			r->cpuid.ebx[i] = 0xffffffff;
	assert_int_equal(state_save(&vcpu_state, r, &bad), 0);
	assert_int_equal(arch_vcpu_load(m.vcpu[1], m.cpu, &no_clock, bad.data, bad.len, &err),
			 -EINVAL);
	assert_non_null(strstr(err.msg, "lacks"));
	bad.len = 0;

	/* an MSR that does not exist, with something in it; then with nothing */
	assert_int_equal(state_decode(&vcpu_state, r, good.data, good.len, &err), 0);
	r->msr[r->msr_count] = 0x12345678;
	r->msr_value[r->msr_count++] = 1;
	assert_int_equal(state_save(&vcpu_state, r, &bad), 0);
	assert_int_equal(arch_vcpu_load(m.vcpu[1], m.cpu, &no_clock, bad.data, bad.len, &err),
			 -EINVAL);
	assert_non_null(strstr(err.msg, "0x12345678"));
	bad.len = 0;
	r->msr_value[r->msr_count - 1] = 0;
	assert_int_equal(state_save(&vcpu_state, r, &bad), 0);
	assert_int_equal(arch_vcpu_load(m.vcpu[1], m.cpu, &no_clock, bad.data, bad.len, &err), 0);

	state_buf_fini(&good);
	state_buf_fini(&bad);
	free(r);
	machine_end(&m);
}

static void assert_refused(const struct machine *m, const struct state_buf *b, const char *word)
{
	struct err err = { 0 };
	struct arch_cpu *c = arch_cpu_load(1, b->data, b->len, &err);

	assert_non_null(c);
	assert_int_equal(arch_cpu_check(c, m->kvm, &err), -EINVAL);
	assert_non_null(strstr(err.msg, word));
	arch_cpu_free(c);
}

/* Every register of feature bits: one that this host lacks is refused by name. */
static void cpu_check(void **state)
{
	struct machine m;
	struct cpuid_regs *r = calloc(1, sizeof(*r)), *bad = calloc(1, sizeof(*r));
	struct state_buf good = { 0 }, buf = { 0 };
	struct err err = { 0 };
	unsigned tried = 0;

	machine_begin(&m, NULL);
	assert_int_equal(arch_cpu_save(m.cpu, &good, &err), 0);
	assert_int_equal(state_decode(&cpuid_state, r, good.data, good.len, &err), 0);
	for (unsigned i = 0; i < r->count; i++) {
		if (r->function[i] != 7 && r->function[i] != 0x80000001)
			continue;
		for (unsigned bit = 0; bit < 32; bit++) {
			if (r->index[i] || r->edx[i] >> bit & 1 ||
			    (r->function[i] == 0x80000001 && bit == 9))
				continue;
			*bad = *r;
			bad->edx[i] |= 1u << bit;
			buf.len = 0;
			assert_int_equal(state_save(&cpuid_state, bad, &buf), 0);
			assert_refused(&m, &buf, "lacks");
			tried++;
		}
	}
	assert_true(tried > 20);

	*bad = *r;
	for (unsigned i = 0; i < r->count; i++)
		if (!r->function[i])
			bad->ebx[i] ^= 1;
	buf.len = 0;
	assert_int_equal(state_save(&cpuid_state, bad, &buf), 0);
	assert_refused(&m, &buf, "vendor");

	for (size_t cut = 0; cut < good.len; cut += 7)
		assert_null(arch_cpu_load(1, good.data, cut, &err));
	state_buf_fini(&good);
	state_buf_fini(&buf);
	free(r);
	free(bad);
	machine_end(&m);
}

static void chips(void **state)
{
	struct machine a, b;
	struct kvm_irqchip c = { .chip_id = KVM_IRQCHIP_IOAPIC };
	struct kvm_pit_state2 pit;
	struct state_buf first = { 0 }, second = { 0 };
	struct chips_regs *r = calloc(2, sizeof(*r));
	struct err err = { 0 };

	machine_begin(&a, NULL);
	assert_int_equal(ioctl(a.vm, KVM_GET_IRQCHIP, &c), 0);
	for (unsigned i = 0; i < 24; i++)
		c.chip.ioapic.redirtbl[i].bits = 0x0100000000010030ull + i;
	c.chip.ioapic.ioregsel = 0x12;
	assert_int_equal(ioctl(a.vm, KVM_SET_IRQCHIP, &c), 0);
	c = (struct kvm_irqchip){ .chip_id = KVM_IRQCHIP_PIC_SLAVE };
	assert_int_equal(ioctl(a.vm, KVM_GET_IRQCHIP, &c), 0);
	c.chip.pic.imr = 0x5a;
	c.chip.pic.irq_base = 0x70;
	c.chip.pic.init4 = 1;
	assert_int_equal(ioctl(a.vm, KVM_SET_IRQCHIP, &c), 0);
	assert_int_equal(ioctl(a.vm, KVM_GET_PIT2, &pit), 0);
	pit.channels[2].count = 0x1234;
	pit.channels[2].mode = 3;
	pit.channels[2].rw_mode = 3;
	assert_int_equal(ioctl(a.vm, KVM_SET_PIT2, &pit), 0);

	assert_int_equal(arch_chips_save(a.vm, &first, &err), 0);
	machine_begin(&b, cpu_again(&a));
	assert_int_equal(arch_chips_load(b.vm, first.data, first.len, &err), 0);
	assert_int_equal(arch_chips_save(b.vm, &second, &err), 0);
	assert_int_equal(state_decode(&chips_state, &r[0], first.data, first.len, &err), 0);
	assert_int_equal(state_decode(&chips_state, &r[1], second.data, second.len, &err), 0);
	assert_int_equal(r[0].ioapic.redirection[7], 0x0100000000010037ull);
	assert_int_equal(r[0].pic[1].imr, 0x5a);
	assert_int_equal(r[0].pit[2].count, 0x1234);
	for (unsigned i = 0; i < 3; i++) /* when KVM began to count, by its own clock */
		r[0].pit[i].count_load_time = r[1].pit[i].count_load_time = 0;
	assert_memory_equal(&r[0], &r[1], sizeof(r[0]));
	state_buf_fini(&first);
	state_buf_fini(&second);
	free(r);
	machine_end(&b);
	machine_end(&a);
}

static uint64_t guest_clock(int vm)
{
	struct kvm_clock_data c = { 0 };

	assert_int_equal(ioctl(vm, KVM_GET_CLOCK, &c), 0);
	return c.clock;
}

static void put_clock(struct state_buf *b, uint64_t guest_ns, uint64_t realtime_ns)
{
	struct clock_regs r = { .guest_ns = guest_ns, .realtime_ns = realtime_ns };

	b->len = 0;
	assert_int_equal(state_save(&clock_state, &r, b), 0);
}

static uint64_t realtime(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* A snapshot's clock goes on where it stood, a migration's by what passed; never by nonsense. */
static void clocks(void **state)
{
	const uint64_t s = 1000000000, day = 86400 * s;
	struct machine m;
	struct state_buf b = { 0 };
	struct err err = { 0 };
	struct arch_clock k = { 0 };

	machine_begin(&m, NULL);
	put_clock(&b, 500 * day, realtime() - 60 * s);
	assert_int_equal(arch_clock_load(m.vm, false, b.data, b.len, &k, &err), 0);
	assert_int_equal(k.elapsed_ns, 0);
	assert_true(guest_clock(m.vm) >= 500 * day && guest_clock(m.vm) < 500 * day + 30 * s);

	assert_int_equal(arch_clock_load(m.vm, true, b.data, b.len, &k, &err), 0);
	assert_true(k.elapsed_ns >= 60 * s && k.elapsed_ns < 90 * s);
	assert_true(guest_clock(m.vm) >= 500 * day + 60 * s);

	put_clock(&b, 3 * day, realtime() + 3600 * s); /* the other host's clock is ahead */
	assert_int_equal(arch_clock_load(m.vm, true, b.data, b.len, &k, &err), 0);
	assert_int_equal(k.elapsed_ns, 0);
	put_clock(&b, 3 * day, 1); /* since 1970 */
	assert_int_equal(arch_clock_load(m.vm, true, b.data, b.len, &k, &err), 0);
	assert_int_equal(k.elapsed_ns, 0);
	assert_true(guest_clock(m.vm) < 3 * day + 30 * s);

	b.len = 0;
	assert_int_equal(arch_clock_save(m.vm, m.vcpu[0], &k, &b, &err), 0);
	assert_int_equal(arch_clock_load(m.vm, true, b.data, b.len, &k, &err), 0);
	assert_true(k.elapsed_ns < 30 * s);
	state_buf_fini(&b);
	machine_end(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(tsc_goes_on),
		cmocka_unit_test(counters_and_clock_stay_together),
		cmocka_unit_test(tsc_of_two_read_apart),
		cmocka_unit_test(hostile_vcpu),
		cmocka_unit_test(cpu_check),
		cmocka_unit_test(chips),
		cmocka_unit_test(clocks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
