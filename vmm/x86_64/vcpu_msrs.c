/*
 * vcpu_msrs.c - which MSRs are a vCPU's state, reading and setting them
 *
 * KVM lists what it thinks a guest's state is, and the list grows with the kernel; so it is taken as
 * it is, with what KVM leaves to other ioctls or forgets (MTRRs, machine check banks), and without
 * what is not the guest's: Hyper-V's (not offered; setting one to 0 would switch it on) and VMX's.
 * Firecracker lost MSRs more than once by keeping a list of its own (its issues 5738, 6120).
 *
 * On load the order matters twice: the time stamp counter before its deadline, and the deadline after
 * the local APIC. An MSR that this KVM does not take is only an error if the guest had something in it.
 *
 * The wall clock MSR is saved but not set: a store to it is a command (KVM writes the time into guest
 * memory), and the guest may long use that memory for something else.
 */
#include <asm/kvm_para.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/fd.h"
#include "base/log.h"
#include "vmm/x86_64/cpu.h"
#include "vmm/x86_64/vcpu_msrs.h"

#define MSR_TSC          0x10
#define MSR_TSC_DEADLINE 0x6e0

_Static_assert(CPU_MSRS_MAX == REGS_MSRS_MAX, "every list of MSRs can be saved");

struct range {
	uint32_t first, last;
};

static const struct range not_state[] = {
	{ 0x480, 0x4ff },           /* VMX capabilities */
	{ 0x40000000, 0x400001ff }, /* Hyper-V */
	{ 0x9e, 0x9e },             /* SMBASE: no firmware of ours uses SMM */
};

static const struct range more_state[] = {
	{ 0x200, 0x20f },
	{ 0x250, 0x250 },
	{ 0x258, 0x259 },
	{ 0x268, 0x26f }, /* MTRRs */
	{ 0x277, 0x277 }, /* PAT */
	{ 0x2ff, 0x2ff }, /* MTRR_DEF_TYPE */
	{ 0x174, 0x176 },
	{ 0xc0000081, 0xc0000084 },
	{ 0xc0000102, 0xc0000103 }, /* entry points */
	{ 0x1a0, 0x1a0 },           /* MISC_ENABLE */
	{ 0x17a, 0x17b },
	{ 0x400, 0x47f }, /* machine checks */
	{ MSR_TSC, MSR_TSC },
	{ 0x3b, 0x3b },
	{ MSR_TSC_DEADLINE, MSR_TSC_DEADLINE },
	{ 0x11, 0x12 }, /* KVM's clocks by their old numbers */
	{ 0x4b564d00,
	  0x4b564d0f }, /* KVM's own; numbers to ff are reserved for it, and in its list */
};

static bool is_state(uint32_t msr)
{
	for (size_t i = 0; i < sizeof(not_state) / sizeof(not_state[0]); i++)
		if (msr >= not_state[i].first && msr <= not_state[i].last)
			return false;
	return true;
}

static void add(struct arch_cpu *c, uint32_t msr)
{
	for (unsigned i = 0; i < c->nmsrs; i++)
		if (c->msrs[i] == msr)
			return;
	if (c->nmsrs < CPU_MSRS_MAX && is_state(msr))
		c->msrs[c->nmsrs++] = msr;
}

int cpu_list_msrs(int kvm_fd, struct arch_cpu *c, struct err *err)
{
	enum { ROOM = 4096 };
	cleanup_free struct kvm_msr_list *l = calloc(1, sizeof(*l) + ROOM * sizeof(l->indices[0]));

	if (!l)
		return err_set(err, ENOMEM, "out of memory");
	l->nmsrs = ROOM;
	if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, l) < 0)
		return err_set_sys(err, errno, "KVM cannot list the vCPU's MSRs");
	for (size_t i = 0; i < sizeof(more_state) / sizeof(more_state[0]); i++)
		for (uint32_t m = more_state[i].first; m <= more_state[i].last; m++)
			add(c, m);
	for (unsigned i = 0; i < l->nmsrs; i++)
		add(c, l->indices[i]);
	if (c->nmsrs == CPU_MSRS_MAX)
		return err_set(err, E2BIG, "KVM has more MSRs than can be saved");
	return 0;
}

struct msr_list {
	struct kvm_msrs head;
	struct kvm_msr_entry entries[CPU_MSRS_MAX];
};

int vcpu_msrs_save(int fd, const struct arch_cpu *c, struct vcpu_regs *r, struct err *err)
{
	cleanup_free struct msr_list *l = calloc(1, sizeof(*l));

	if (!l)
		return err_set(err, ENOMEM, "out of memory for the vCPU's MSRs");
	/* KVM stops at the first that it does not have, and says how many it read. */
	for (unsigned done = 0; done < c->nmsrs; done++) {
		l->head.nmsrs = c->nmsrs - done;
		for (unsigned i = 0; i < l->head.nmsrs; i++)
			l->entries[i] = (struct kvm_msr_entry){ .index = c->msrs[done + i] };
		int n = ioctl(fd, KVM_GET_MSRS, l);

		if (n < 0)
			return err_set_sys(err, errno, "KVM cannot read the vCPU's MSRs");
		for (int i = 0; i < n; i++) {
			r->msr[r->msr_count] = l->entries[i].index;
			r->msr_value[r->msr_count++] = l->entries[i].data;
		}
		done += (unsigned)n;
	}
	return 0;
}

/* Does the vCPU have @value there already? */
static bool has_value(int fd, uint32_t msr, uint64_t value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = { .head.nmsrs = 1, .entry = { .index = msr } };

	return ioctl(fd, KVM_GET_MSRS, &one) == 1 && one.entry.data == value;
}

static int set_all(int fd, struct msr_list *all, struct err *err)
{
	cleanup_free struct msr_list *l = calloc(1, sizeof(*l));

	if (!l)
		return err_set(err, ENOMEM, "out of memory for the vCPU's MSRs");
	for (unsigned done = 0; done < all->head.nmsrs; done++) {
		l->head.nmsrs = all->head.nmsrs - done;
		memcpy(l->entries, all->entries + done, l->head.nmsrs * sizeof(l->entries[0]));
		int n = ioctl(fd, KVM_SET_MSRS, l);

		if (n < 0)
			return err_set_sys(err, errno, "KVM cannot set the vCPU's MSRs");
		done += (unsigned)n;
		if (done == all->head.nmsrs)
			break;
		const struct kvm_msr_entry *e = &all->entries[done];

		if (e->data && !has_value(fd, e->index, e->data))
			return err_set(
				err, EINVAL,
				"this host's KVM does not take the guest's MSR 0x%x (0x%llx)",
				e->index, (unsigned long long)e->data);
	}
	return 0;
}

/*
 * Software KVM shows the host's counter whatever is set. Ahead is harmless, back is not. Less than a
 * second is neither: counters that are set so close to one another KVM takes for one, the first's, and
 * what passed between reading two of them the stopped guest has not seen.
 */
static void look_at_tsc(int fd, const struct vcpu_regs *r, uint64_t want)
{
	uint64_t second = (uint64_t)r->tsc_khz * 1000;
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = { .head.nmsrs = 1, .entry = { .index = MSR_TSC } };

	if (ioctl(fd, KVM_GET_MSRS, &one) == 1 && one.entry.data + second < want)
		log_warn("this host's KVM does not set time stamp counters: the guest's goes back");
}

static bool is_command(uint32_t msr)
{
	return msr == MSR_KVM_WALL_CLOCK || msr == MSR_KVM_WALL_CLOCK_NEW;
}

uint64_t *vcpu_msrs_tsc(struct vcpu_regs *r)
{
	for (unsigned i = 0; i < r->msr_count; i++)
		if (r->msr[i] == MSR_TSC)
			return &r->msr_value[i];
	return NULL;
}

int vcpu_msrs_load(int fd, const struct vcpu_regs *r, uint64_t tsc_elapsed, bool tsc_is_set,
		   struct err *err)
{
	cleanup_free struct msr_list *l = calloc(1, sizeof(*l));
	uint64_t tsc = 0;
	unsigned n = 0;

	if (!l)
		return err_set(err, ENOMEM, "out of memory for the vCPU's MSRs");
	for (int pass = 0; pass < 3; pass++) {
		for (unsigned i = 0; i < r->msr_count; i++) {
			uint32_t msr = r->msr[i];
			int when = msr == MSR_TSC ? 0 : msr == MSR_TSC_DEADLINE ? 2 : 1;

			if (when != pass || !is_state(msr) || is_command(msr))
				continue;
			if (!pass)
				tsc = r->msr_value[i] + tsc_elapsed;
			if (pass || !tsc_is_set)
				l->entries[n++] = (struct kvm_msr_entry){
					.index = msr,
					.data = pass ? r->msr_value[i] : tsc,
				};
		}
	}
	l->head.nmsrs = n;
	int rc = set_all(fd, l, err);

	if (!rc && tsc)
		look_at_tsc(fd, r, tsc);
	return rc;
}
