/*
 * pause.c - a process that does nothing, in the pod's network namespace
 *
 * kubelet, containerd and CNI plugins look at the pod through a process id: /proc/PID/ns/net, the control
 * group, whether the pod lives at all. An ordinary pod has the pause image's program for that; here it is
 * a fork of the shim, which shares the shim's memory and needs no program in any image. It ends with
 * SIGTERM, and with the shim.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/pause.h"

static int join(const struct bundle *b, const struct cgroup *cg, struct err *err)
{
	int rc = cgroup_join(cg, err);

	if (rc)
		return rc;
	if (b->has_oom_score) {
		cleanup_fd int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

		if (fd >= 0) /* lower than it may be set is left as it is */
			dprintf(fd, "%d", b->oom_score);
	}
	if (!b->netns)
		return 0;
	cleanup_fd int ns = open(b->netns, O_RDONLY | O_CLOEXEC);

	if (ns < 0 || setns(ns, CLONE_NEWNET))
		return err_set_sys(err, errno, "cannot enter the pod's network namespace %s",
				   b->netns);
	return 0;
}

static _Noreturn void run(const struct bundle *b, const struct cgroup *cg, int report, pid_t shim)
{
	struct err err = { 0 };
	sigset_t none;
	char *const name = (char *)"coracle-pause";

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, name);
	if (getppid() != shim)
		_exit(1);
	setsid();
	join(b, cg, &err);
	if (write(report, &err, sizeof(err)) != (ssize_t)sizeof(err) || err.code)
		_exit(1);
	syscall(SYS_close_range, 0u, ~0u, 0u);
	for (int sig = 1; sig < SIGRTMIN; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (;;)
		pause();
}

pid_t pause_start(const struct bundle *b, const struct cgroup *cg, struct err *err)
{
	pid_t shim = getpid();
	int report[2];

	if (pipe2(report, O_CLOEXEC))
		return err_set_sys(err, errno, "cannot make a pipe");
	cleanup_fd int from = report[0];
	cleanup_fd int to = report[1];
	pid_t pid = fork();

	if (pid < 0)
		return err_set_sys(err, errno, "cannot start a process");
	if (pid == 0)
		run(b, cg, to, shim);
	fd_close(&to);
	struct err said = { 0 };
	ssize_t n;

	do
		n = read(from, &said, sizeof(said));
	while (n < 0 && errno == EINTR);
	if (n == (ssize_t)sizeof(said) && !said.code)
		return pid;
	waitpid(pid, NULL, 0);
	if (n != (ssize_t)sizeof(said))
		return err_set(err, EIO, "the pod's process ended at its start");
	return err_set(err, said.code, "%s", said.msg);
}
