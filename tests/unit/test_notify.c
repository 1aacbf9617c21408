/*
 * test_notify.c - in which order KVM hears of kicks and interrupts
 *
 * ioctl() is this program's own: it plays a KVM that checks the order a host kernel relies on. An irqfd
 * on a GSI without a route panicked hosts once (Firecracker #3827).
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "vmm/arch.h"
#include "vmm/notify.h"

#define VM_FD    1000 /* no descriptor of ours */
#define GSIS     4096
#define KICKS    8
#define KICK(n)  (0xd0000050u + 0x1000u * (n))
#define ADDR     0xfee00000u
#define EVENT(n) ((struct event){ .fd = 2000 + (n) }) /* never signalled here */

static struct kernel {
	bool routed[GSIS];
	uint32_t data[GSIS];
	int irqfd[GSIS]; /* 0: none */
	struct kvm_ioeventfd kick[KICKS];
	unsigned kicks, tables, orders;
	struct kvm_irq_level level;
	unsigned long refuse; /* this request fails once */
} kernel;

static int set_table(const struct kvm_irq_routing *t)
{
	memset(kernel.routed, 0, sizeof(kernel.routed));
	for (uint32_t i = 0; i < t->nr; i++) {
		assert_in_range(t->entries[i].gsi, 0, GSIS - 1);
		kernel.routed[t->entries[i].gsi] = true;
		if (t->entries[i].type == KVM_IRQ_ROUTING_MSI)
			kernel.data[t->entries[i].gsi] = t->entries[i].u.msi.data;
	}
	/* A vector that is connected keeps its route. */
	for (unsigned gsi = 0; gsi < GSIS; gsi++)
		assert_true(!kernel.irqfd[gsi] || kernel.routed[gsi]);
	kernel.tables++;
	return 0;
}

static int set_irqfd(const struct kvm_irqfd *q)
{
	assert_in_range(q->gsi, 0, GSIS - 1);
	assert_true(kernel.routed[q->gsi]);
	if (q->flags & KVM_IRQFD_FLAG_DEASSIGN) {
		assert_int_equal(kernel.irqfd[q->gsi], q->fd);
		kernel.irqfd[q->gsi] = 0;
		return 0;
	}
	assert_int_equal(kernel.irqfd[q->gsi], 0); /* never twice */
	kernel.irqfd[q->gsi] = (int)q->fd;
	return 0;
}

static int set_kick(const struct kvm_ioeventfd *e)
{
	for (unsigned i = 0; i < kernel.kicks; i++) {
		struct kvm_ioeventfd *k = &kernel.kick[i];

		if (k->addr != e->addr)
			continue;
		if (!(e->flags & KVM_IOEVENTFD_FLAG_DEASSIGN)) {
			errno = EEXIST;
			return -1;
		}
		assert_int_equal(k->fd, e->fd);
		assert_int_equal(k->len, e->len);
		*k = kernel.kick[--kernel.kicks];
		return 0;
	}
	assert_false(e->flags & KVM_IOEVENTFD_FLAG_DEASSIGN);
	assert_true(kernel.kicks < KICKS);
	kernel.kick[kernel.kicks++] = *e;
	return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;

	va_start(ap, request);
	const void *arg = va_arg(ap, const void *);

	va_end(ap);
	assert_int_equal(fd, VM_FD);
	kernel.orders++;
	if (kernel.refuse == request) {
		kernel.refuse = 0;
		errno = ENOSPC;
		return -1;
	}
	switch (request) {
	case KVM_SET_GSI_ROUTING:
		return set_table(arg);
	case KVM_IRQFD:
		return set_irqfd(arg);
	case KVM_IOEVENTFD:
		return set_kick(arg);
	case KVM_IRQ_LINE:
		kernel.level = *(const struct kvm_irq_level *)arg;
		return 0;
	}
	fail_msg("an ioctl 0x%lx", request);
	return -1;
}

/* ---- */

static void no_power(void *opaque, enum wire_power what, int status)
{
	fail();
}

static struct notify n;

static int setup(void **state)
{
	struct err err = { 0 };

	memset(&kernel, 0, sizeof(kernel));
	return notify_init(&n, true, no_power, NULL, &err);
}

static int teardown(void **state)
{
	notify_fini(&n);
	return 0;
}

static void power_on(void)
{
	struct err err = { 0 };

	/* A VM is new: it knows nothing. */
	memset(&kernel, 0, sizeof(kernel));
	assert_int_equal(notify_set_vm(&n, VM_FD, &err), 0);
}

static int bind(struct wire_msi *m)
{
	return n.wiring.ops->bind_msi(&n.wiring, m);
}

static void unbind(struct wire_msi *m)
{
	n.wiring.ops->unbind_msi(&n.wiring, m);
}

/* Unmask: the route first, then the irqfd. Mask: the irqfd goes first. */
static void test_route_before_irqfd(void **state)
{
	struct event e[2] = { EVENT(0), EVENT(1) };
	struct wire_msi m[2] = { { ADDR, 0x31, &e[0], -1, false },
				 { ADDR, 0x32, &e[1], -1, false } };

	power_on();
	assert_int_equal(bind(&m[0]), 0);
	assert_int_equal(bind(&m[1]), 0);
	assert_int_equal(kernel.irqfd[m[0].gsi], e[0].fd);
	assert_int_equal(kernel.data[m[0].gsi], 0x31);
	int gsi = m[0].gsi;

	unbind(&m[0]);
	assert_int_equal(kernel.irqfd[gsi], 0);
	m[0].data = 0x41; /* the guest moved it while it was masked */
	assert_int_equal(bind(&m[0]), 0);
	assert_int_equal(m[0].gsi, gsi);
	assert_int_equal(kernel.data[gsi], 0x41);
	assert_int_equal(kernel.irqfd[m[1].gsi], e[1].fd);
}

/* A mask and unmask storm takes no second GSI, and repeating either costs nothing. */
static void test_storm(void **state)
{
	struct event e = EVENT(0);
	struct wire_msi m = { ADDR, 0x31, &e, -1, false };

	power_on();
	kernel.orders = 0;
	for (unsigned i = 0; i < 10 * NOTIFY_MSI_MAX; i++) {
		assert_int_equal(bind(&m), 0);
		assert_int_equal(bind(&m), 0);
		unbind(&m);
		unbind(&m);
	}
	assert_int_equal(n.nmsi, 1);
	assert_int_equal(kernel.orders, 3 * 10 * NOTIFY_MSI_MAX);
}

static void test_too_many(void **state)
{
	static struct wire_msi m[NOTIFY_MSI_MAX + 1];
	struct event e = EVENT(0);
	unsigned refused = 0;

	for (unsigned i = 0; i <= NOTIFY_MSI_MAX; i++) {
		m[i] = (struct wire_msi){ ADDR, i, &e, -1, false };
		int rc = bind(&m[i]);

		assert_true(rc == 0 || rc == -ENOSPC);
		assert_int_equal(m[i].bound, !rc);
		refused += rc != 0;
	}
	assert_int_equal(refused, 1);
}

/* What KVM refuses is not bound, and can be tried again. */
static void test_refused(void **state)
{
	static const unsigned long requests[] = { KVM_SET_GSI_ROUTING, KVM_IRQFD };
	struct event e = EVENT(0);
	struct wire_msi m = { ADDR, 0x31, &e, -1, false };
	struct wire_kick k = { .addr = KICK(0), .event = &e };

	power_on();
	for (size_t i = 0; i < 2; i++) {
		kernel.refuse = requests[i];
		assert_int_equal(bind(&m), -ENOSPC);
		assert_false(m.bound);
	}
	assert_int_equal(bind(&m), 0);
	kernel.refuse = KVM_IOEVENTFD;
	assert_int_equal(n.wiring.ops->bind_kick(&n.wiring, &k), -ENOSPC);
	assert_false(k.bound);
	assert_int_equal(n.wiring.ops->bind_kick(&n.wiring, &k), 0);
	assert_int_equal(kernel.kicks, 1);
	n.wiring.ops->unbind_kick(&n.wiring, &k);
	assert_int_equal(kernel.kicks, 0);
}

/* Bound before the machine starts, or kept over a reset: the new VM is told, in the same order. */
static void test_new_vm(void **state)
{
	struct event e[4] = { EVENT(0), EVENT(1), EVENT(2), EVENT(3) };
	struct wire_msi m = { ADDR, 0x31, &e[0], -1, false };
	struct wire_msi masked = { ADDR, 0x32, &e[1], -1, false };
	struct wire_line l = { .gsi = 4, .trigger = &e[2] };
	struct wire_kick k = { .addr = KICK(0), .len = 2, .event = &e[3] };
	struct err err = { 0 };

	assert_int_equal(bind(&m), 0);
	assert_int_equal(bind(&masked), 0);
	unbind(&masked);
	assert_int_equal(n.wiring.ops->bind_line(&n.wiring, &l), 0);
	assert_int_equal(n.wiring.ops->bind_kick(&n.wiring, &k), 0);
	assert_int_equal(kernel.orders, 0);
	for (int i = 0; i < 3; i++) {
		power_on();
		assert_int_equal(kernel.irqfd[m.gsi], e[0].fd);
		assert_int_equal(kernel.irqfd[masked.gsi], 0);
		assert_int_equal(kernel.irqfd[4], e[2].fd);
		assert_int_equal(kernel.kicks, 1);
		assert_int_equal(kernel.kick[0].fd, e[3].fd);
		assert_int_equal(notify_set_vm(&n, -1, &err), 0);
	}
	/* While there is none nothing is told to anybody. */
	kernel.orders = 0;
	unbind(&m);
	n.wiring.ops->unbind_line(&n.wiring, &l);
	n.wiring.ops->unbind_kick(&n.wiring, &k);
	assert_int_equal(kernel.orders, 0);
	power_on();
	assert_int_equal(kernel.irqfd[m.gsi] | kernel.irqfd[4], 0);
	assert_int_equal(kernel.kicks, 0);
}

static void test_set_line(void **state)
{
	/* No VM, nobody to tell. */
	assert_int_equal(n.wiring.ops->set_line(&n.wiring, 5, true), 0);
	assert_int_equal(kernel.orders, 0);
	power_on();
	for (unsigned up = 0; up < 2; up++) {
		assert_int_equal(n.wiring.ops->set_line(&n.wiring, 5 + up, up), 0);
		assert_int_equal(kernel.level.irq, 5 + up);
		assert_int_equal(kernel.level.level, up);
	}
	kernel.refuse = KVM_IRQ_LINE;
	assert_int_equal(n.wiring.ops->set_line(&n.wiring, 5, true), -ENOSPC);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_route_before_irqfd),
		TEST(test_storm),
		TEST(test_too_many),
		TEST(test_refused),
		TEST(test_new_vm),
		TEST(test_set_line),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
