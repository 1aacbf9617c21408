/*
 * sandbox_gen.c - the system call filter, made when coracle is built
 *
 *	sandbox_gen > sandbox.inc
 *
 * A program of its own that links libseccomp and prints the filter as the instructions of an array, which
 * sandbox.c includes. libseccomp takes longer to make the filter than the kernel to make the machine's
 * interrupt controllers, and would do so at every start, with the same result.
 *
 * Every call on the list has its reason beside it. One number is only known when the filter is loaded:
 * the process's own, of which the array speaks as SANDBOX_PID.
 */
#include <asm/ioctls.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/vhost.h>
#include <sched.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define PID UINT32_C(0x7fffc0de) /* no process has it: there are at most 2^22 */

/* clang-format off */
static const int calls[] = {
	/* loops and events */
	SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_pwait2), SCMP_SYS(epoll_ctl),
	SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(timerfd_settime), SCMP_SYS(read),
	SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(close), SCMP_SYS(eventfd2),
	/* disks */
	SCMP_SYS(io_uring_enter), SCMP_SYS(pread64), SCMP_SYS(pwrite64), SCMP_SYS(preadv),
	SCMP_SYS(pwritev), SCMP_SYS(preadv2), SCMP_SYS(pwritev2), SCMP_SYS(fdatasync),
	SCMP_SYS(fsync), SCMP_SYS(fallocate), SCMP_SYS(lseek), SCMP_SYS(fstat),
	SCMP_SYS(newfstatat), SCMP_SYS(statx), SCMP_SYS(fcntl), SCMP_SYS(fadvise64),
	SCMP_SYS(ftruncate), SCMP_SYS(sync_file_range), /* the file of a snapshot's RAM */
	/* control socket and console clients: existing sockets only */
	SCMP_SYS(accept4), SCMP_SYS(accept), SCMP_SYS(sendto), SCMP_SYS(sendmsg),
	SCMP_SYS(recvfrom), SCMP_SYS(recvmsg), SCMP_SYS(shutdown), SCMP_SYS(getsockopt),
	SCMP_SYS(getsockname), SCMP_SYS(getpeername), SCMP_SYS(unlink), SCMP_SYS(unlinkat),
	/* threads: a reset makes new vCPUs, the block pool grows */
	SCMP_SYS(set_robust_list), SCMP_SYS(rseq), /* and clone: add_rules() */
	SCMP_SYS(set_tid_address), SCMP_SYS(futex), SCMP_SYS(exit), SCMP_SYS(exit_group),
	SCMP_SYS(sched_yield), SCMP_SYS(sched_getaffinity), SCMP_SYS(gettid),
	SCMP_SYS(getpid), SCMP_SYS(restart_syscall),
	/* memory: malloc, stacks, vCPU run areas, RAM given back */
	SCMP_SYS(mmap), SCMP_SYS(munmap), SCMP_SYS(mprotect), SCMP_SYS(mremap), SCMP_SYS(madvise),
	SCMP_SYS(brk), SCMP_SYS(membarrier), /* when dirty logging starts */
	/* signals: stopping vCPUs, the terminal's */
	SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn),
	SCMP_SYS(sigaltstack), /* and tgkill: add_rules() */
	/* time and randomness: RTC, rate limits, virtio-rng */
	SCMP_SYS(clock_gettime), SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep),
	SCMP_SYS(gettimeofday), SCMP_SYS(time), SCMP_SYS(getrandom),
	/* stats */
	SCMP_SYS(getrusage),
};
/* clang-format on */

/* ioctl requests by (request & mask) == value. */
static const struct {
	uint64_t mask, value;
} ioctls[] = {
	{ 0xff00, 0xae00 },            /* KVM: everything on descriptors we hold */
	{ 0xffffffff, TUNSETOFFLOAD }, /* the guest negotiates offloads at run time */
	{ 0xffffffff, TUNSETQUEUE },
	{ 0xffffffff, TUNSETVNETHDRSZ },
	{ 0xffffffff, VHOST_SET_FEATURES },  /* rings go to the kernel and come back, */
	{ 0xffffffff, VHOST_SET_MEM_TABLE }, /* but whose they are is settled before */
	{ 0xffffffff, VHOST_SET_LOG_BASE },
	{ 0xffffffff, VHOST_SET_VRING_NUM },
	{ 0xffffffff, VHOST_SET_VRING_ADDR },
	{ 0xffffffff, VHOST_SET_VRING_BASE },
	{ 0xffffffff, VHOST_GET_VRING_BASE },
	{ 0xffffffff, VHOST_SET_VRING_KICK },
	{ 0xffffffff, VHOST_SET_VRING_CALL },
	{ 0xffffffff, VHOST_SET_VRING_ERR },
	{ 0xffffffff, VHOST_NET_SET_BACKEND },
	{ 0xffffffff, BLKDISCARD },
	{ 0xffffffff, BLKZEROOUT },
	{ 0xffffffff, TCGETS }, /* the terminal is put back as it was */
	{ 0xffffffff, TCSETS },
	{ 0xffffffff, TCSETSW },
	{ 0xffffffff, TCSETSF },
	{ 0xffffffff, TIOCGPGRP }, /* is it ours, or the shell's for now */
	{ 0xffffffff, TIOCGWINSZ },
	{ 0xffffffff, FIONREAD },
};

/*
 * New threads, but no processes and no namespaces: a user namespace would give all capabilities back.
 * The flags of clone3() lie in memory where a filter cannot look; told that it does not exist glibc
 * takes clone(). Signals go to our own process only.
 */
static int add_thread_rules(scmp_filter_ctx f)
{
	const uint64_t thread = CLONE_VM | CLONE_THREAD;
	const uint64_t spaces = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET |
				CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
	int rc = seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);

	if (!rc)
		rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
				      SCMP_A0(SCMP_CMP_MASKED_EQ, thread | spaces, thread));
	if (!rc)
		rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
				      SCMP_A0(SCMP_CMP_EQ, PID));
	return rc;
}

static int add_rules(scmp_filter_ctx f)
{
	int rc = add_thread_rules(f);

	for (size_t i = 0; !rc && i < sizeof(calls) / sizeof(calls[0]); i++) {
		/* negative: this architecture does not have it */
		if (calls[i] >= 0)
			rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, calls[i], 0);
	}
	for (size_t i = 0; !rc && i < sizeof(ioctls) / sizeof(ioctls[0]); i++)
		rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
				      SCMP_A1(SCMP_CMP_MASKED_EQ, ioctls[i].mask, ioctls[i].value));
	if (!rc)
		rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1,
				      SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
	if (!rc) /* RAM that comes by migration */
		rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(setsockopt), 2,
				      SCMP_A1(SCMP_CMP_EQ, SOL_SOCKET),
				      SCMP_A2(SCMP_CMP_EQ, SO_RCVLOWAT));
	return rc;
}

/* Instructions as their array's elements; false: the process's number is not there once. */
static bool print(FILE *from)
{
	struct sock_filter i;
	unsigned n = 0;

	while (fread(&i, sizeof(i), 1, from) == 1) {
		printf("{ 0x%02x, %u, %u, ", i.code, i.jt, i.jf);
		if (i.k == PID)
			puts("SANDBOX_PID },");
		else
			printf("0x%08x },\n", i.k);
		n += i.k == PID;
	}
	return n == 1;
}

static int make(scmp_filter_ctx f, FILE *to)
{
	int rc = seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2);

	if (!rc)
		rc = add_rules(f);
	return rc ? rc : seccomp_export_bpf(f, fileno(to));
}

int main(void)
{
	scmp_filter_ctx f = seccomp_init(SCMP_ACT_TRAP);
	FILE *file = tmpfile();
	int rc = f && file ? make(f, file) : -ENOMEM;

	if (rc) {
		fprintf(stderr, "sandbox_gen: %s\n", strerror(-rc));
		return 1;
	}
	rewind(file);
	if (!print(file) || fflush(stdout)) {
		fprintf(stderr, "sandbox_gen: the filter cannot be printed\n");
		return 1;
	}
	return 0;
}
