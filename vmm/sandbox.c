/*
 * sandbox.c - the guest's way to the host, made narrow
 *
 * Whoever takes over this process from inside a guest finds: no capability, no way to gain one
 * (no_new_privs), no way to open a file, start a program or make a socket, and only the ioctls that
 * the machine needs on descriptors it already has. It is entered when everything is open; a reset
 * works inside it because /dev/kvm and the kernel files stay open.
 *
 * The list of calls is in sandbox_gen.c. One that is missing there ends the process with a line that
 * names it (SIGSYS handler): silence would look like a crash. Sanitizer builds read /proc while they
 * report and run without the filter.
 *
 * Of what takes a path only unlink() and stat() are left, for the sockets at the end. Landlock narrows
 * the first to the directories of those sockets; a kernel without it leaves what the process's user may
 * remove. The filter cannot: a path lies in memory.
 */
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/psx_syscall.h>
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
	const uint32_t SANDBOX_PID = (uint32_t)getpid();
	struct sock_filter code[] = {
#include "vmm/sandbox.inc"
	};
	struct sock_fprog filter = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	sigaction(SIGSYS, &sa, NULL);
	/* 0, -1, or the number of a thread that has another filter */
	long rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter);

	return rc ? err_set_sys(err, rc < 0 ? errno : EBUSY,
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
	/* Every thread has it from its maker: to tell those that are there takes 0.1 ms. */
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

int sandbox_drop(const char *const *sockets, unsigned n, struct err *err)
{
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
		return err_set(err, EPERM, "cannot set no_new_privs");
	int rc = drop_capabilities(err);

	return rc || !SANDBOX_FILTER ? rc : sandbox_paths(sockets, n, err);
}

int sandbox_close(struct err *err)
{
	if (SANDBOX_FILTER)
		return sandbox_filter(err);
	log_debug("sanitizer build: no system call filter");
	return 0;
}
