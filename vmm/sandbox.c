/*
 * sandbox.c - the guest's way to the host, made narrow
 *
 * Whoever takes over this process from inside a guest finds: no capability, no way to gain one
 * (no_new_privs), no way to open a file, start a program or make a socket, and only the ioctls that
 * the machine needs on descriptors it already has. It is entered when everything is open; a reset
 * works inside it because /dev/kvm and the kernel files stay open.
 *
 * Every call on the list has its reason beside it. One that is missing ends the process with a line
 * that names it (SIGSYS handler): silence would look like a crash. Sanitizer builds read /proc while
 * they report and run without the filter.
 *
 * Of what takes a path only unlink() and stat() are left, for the sockets at the end. Landlock narrows
 * the first to the directories of those sockets; a kernel without it leaves what the process's user may
 * remove. The filter cannot: a path lies in memory.
 */
#include <asm/ioctls.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/vhost.h>
#include <linux/landlock.h>
#include <malloc.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/psx_syscall.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backends/terminal.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/sandbox.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANDBOX_FILTER 0
#else
#define SANDBOX_FILTER 1
#endif

/* All that Linux 5.13 knows; an open descriptor keeps what it can. */
#define LANDLOCK_ALL (LANDLOCK_ACCESS_FS_MAKE_SYM | (LANDLOCK_ACCESS_FS_MAKE_SYM - 1))

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

static void on_refused(int sig, siginfo_t *info, void *context)
{
	char text[160];
	int n = snprintf(text, sizeof(text),
			 "coracle: system call %d is not on the sandbox's list; stopping. Please "
			 "report it; --sandbox off runs without\r\n",
			 info->si_syscall);

	terminal_restore();
	if (write(STDERR_FILENO, text, (size_t)n) < 0)
		_exit(128 + SIGSYS);
	signal(SIGSYS, SIG_DFL);
	signal(SIGABRT, SIG_DFL);
	_exit(128 + SIGSYS);
}

/*
 * In every thread: capabilities are each thread's own, and the I/O threads run already. cap_set_proc() does
 * so only if the dynamic linker happens to look into libpsx before it looks into libcap.
 */
static int drop_capabilities(struct err *err)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };

	if (psx_syscall(SYS_capset, (long)&head, (long)none) < 0)
		return err_set_sys(err, errno, "cannot drop capabilities");
	return 0;
}

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
				      SCMP_A0(SCMP_CMP_EQ, (uint64_t)getpid()));
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

/* Files may be removed in the directory of @path. */
static int allow_removal(int ruleset, const char *path, struct err *err)
{
	const char *slash = strrchr(path, '/');
	cleanup_free char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
	struct landlock_path_beneath_attr rule = { .allowed_access =
							   LANDLOCK_ACCESS_FS_REMOVE_FILE };

	if (!dir)
		return err_set(err, ENOMEM, "out of memory");
	cleanup_fd int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

	rule.parent_fd = fd;
	if (fd < 0 || syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0))
		return err_set_sys(err, errno, "cannot keep the sandbox's way to %s", dir);
	return 0;
}

int sandbox_paths(const char *const *sockets, unsigned n, struct err *err)
{
	const struct landlock_ruleset_attr all = { .handled_access_fs = LANDLOCK_ALL };
	cleanup_fd int ruleset = (int)syscall(SYS_landlock_create_ruleset, &all, sizeof(all), 0);

	if (ruleset < 0) {
		log_debug("no Landlock in this kernel: files may be removed inside the sandbox");
		return 0;
	}
	for (unsigned i = 0; i < n; i++) {
		int rc = sockets[i] ? allow_removal(ruleset, sockets[i], err) : 0;

		if (rc)
			return rc;
	}
	/* in every thread, as above */
	if (psx_syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
		return err_set_sys(err, errno,
				   "cannot restrict paths (--sandbox off runs without)");
	return 0;
}

int sandbox_filter(struct err *err)
{
	struct sigaction sa = { .sa_sigaction = on_refused, .sa_flags = SA_SIGINFO };
	scmp_filter_ctx f = seccomp_init(SCMP_ACT_TRAP);

	if (!f)
		return err_set(err, ENOMEM, "out of memory for the system call filter");
	sigaction(SIGSYS, &sa, NULL);
	int rc = seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, 1);

	if (!rc)
		rc = seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!rc)
		rc = add_rules(f);
	if (!rc)
		rc = seccomp_load(f);
	seccomp_release(f);
	return rc ? err_set_sys(err, rc,
				"cannot install the system call filter (--sandbox off "
				"runs without)") :
		    0;
}

/*
 * glibc's malloc opens files when a thread's own arena is made (/sys/devices/system/cpu/online) and when
 * one shrinks (/proc/sys/vm/overcommit_memory), in a moment when a refusal ends the process without a
 * word. One arena for all never does; nothing of ours allocates per request.
 */
void sandbox_prepare(void)
{
	mallopt(M_ARENA_MAX, 1);
}

int sandbox_enter(const char *const *sockets, unsigned n, struct err *err)
{
	if (psx_syscall(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return err_set_sys(err, errno, "cannot set no_new_privs");
	int rc = drop_capabilities(err);

	if (rc)
		return rc;
	if (!SANDBOX_FILTER) {
		log_debug("sanitizer build: no system call filter");
		return 0;
	}
	rc = sandbox_paths(sockets, n, err);
	return rc ? rc : sandbox_filter(err);
}
