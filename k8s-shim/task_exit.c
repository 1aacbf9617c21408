/*
 * task_exit.c - the end of a task
 *
 * Order: take in the machine's last words, tell whoever waits, then take apart what it was made of.
 * Teardown may take a moment (a mount, a network), and nobody should wait for that to learn that a
 * container has ended.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/task.h"

static void reply_wait(const struct task *t, struct ttrpc_call *call)
{
	Pb__WaitResponse r = PB__WAIT_RESPONSE__INIT;
	Pb__Timestamp at = PB__TIMESTAMP__INIT;

	at.seconds = t->exited_at.tv_sec;
	at.nanos = (int32_t)t->exited_at.tv_nsec;
	r.exit_status = t->exit_status;
	r.exited_at = &at;
	ttrpc_reply(call, &r.base);
}

void task_wait(struct task *t, struct ttrpc_call *call)
{
	if (!t->creating && t->status == PB__TASK_STATUS__STOPPED) {
		reply_wait(t, call);
		return;
	}
	struct waiter *w = malloc(sizeof(*w));

	if (!w) {
		ttrpc_fail(call, TTRPC_RESOURCE_EXHAUSTED, "out of memory");
		return;
	}
	w->call = call;
	STAILQ_INSERT_TAIL(&t->waiters, w, link);
}

static void answer_waiters(struct task *t)
{
	struct waiter *w;

	while ((w = STAILQ_FIRST(&t->waiters))) {
		STAILQ_REMOVE_HEAD(&t->waiters, link);
		if (t->failed)
			ttrpc_fail(w->call, TTRPC_NOT_FOUND, "task %s did not start", t->id);
		else
			reply_wait(t, w->call);
		free(w);
	}
}

void task_free(struct task *t)
{
	struct err gone = { 0 };
	struct pod *p = t->pod;

	err_set(&gone, ENOENT, "task %s has gone", t->id ? t->id : "?");
	ttrpc_fail_err(t->create_call, &gone);
	ttrpc_fail_err(t->start_call, &gone);
	ttrpc_fail_err(t->delete_call, &gone);
	answer_waiters(t);
	LIST_REMOVE(t, link);
	vm_free(t->vm);
	int rc = cgroup_remove(&t->cgroup);

	if (rc)
		log_warn("%s: its control group cannot be removed: %s", t->id, strerror(-rc));
	cgroup_fini(&t->cgroup);
	bundle_fini(&t->bundle);
	free(t->id);
	free(t->in);
	free(t->out);
	free(t->err);
	free(t);
	if (p->on_change)
		p->on_change(p);
}

/* ---- delete ---- */

static void finish_delete(struct task *t, struct ttrpc_call *call)
{
	Pb__DeleteResponse r = PB__DELETE_RESPONSE__INIT;
	Pb__Timestamp at = PB__TIMESTAMP__INIT;

	at.seconds = t->exited_at.tv_sec;
	at.nanos = (int32_t)t->exited_at.tv_nsec;
	r.pid = (uint32_t)t->pid;
	r.exit_status = t->exit_status;
	r.exited_at = &at;
	task_publish_delete(t);
	t->delete_call = NULL;
	ttrpc_reply(call, &r.base);
	task_free(t);
}

void task_delete(struct task *t, struct ttrpc_call *call)
{
	if (t->delete_call || t->status == PB__TASK_STATUS__RUNNING ||
	    t->status == PB__TASK_STATUS__PAUSED) {
		ttrpc_fail(call, TTRPC_FAILED_PRECONDITION, "task %s has not ended yet", t->id);
		return;
	}
	if (t->status == PB__TASK_STATUS__STOPPED) {
		finish_delete(t, call);
		return;
	}
	/*
	 * Created, never started; or not even that yet: the containerd that asked for it has been killed,
	 * and the next one, from 1.7 on, asks for its end, and asks only once.
	 */
	t->delete_call = call;
	t->killed = true;
	kill(t->pid, SIGKILL);
}

/* ---- the process has ended ---- */

/* Where kubelet looks for why a container ended: `kubectl describe pod` shows it. */
static void write_termination_log(const struct task *t, const char *reason)
{
	const struct bundle_mount *m = bundle_mount_at(&t->bundle, "/dev/termination-log");
	cleanup_fd int fd = m ? open(m->source, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK) :
				-1;

	if (fd >= 0 && write(fd, reason, strlen(reason)) < 0)
		log_debug("termination log: %s", strerror(errno));
}

static void tell_reason(struct task *t)
{
	const char *reason = machine_reason(vm_machine(t->vm));
	char line[1200]; /* kubelet takes 4096 bytes at most */

	if (!t->exit_status || t->killed)
		return;
	snprintf(line, sizeof(line), "coracle: %s (exit status %u)",
		 *reason ? reason : "the machine ended", t->exit_status);
	vm_explain(t->vm, line, sizeof(line));
	io_note(vm_io(t->vm), line);
	write_termination_log(t, line);
}

static void task_ended(struct task *t)
{
	clock_gettime(CLOCK_REALTIME, &t->exited_at);
	t->status = PB__TASK_STATUS__STOPPED;
	t->creating = false;
	log_info("%s: ended with status %u", t->id, t->exit_status);
	if (!t->killed && t->exit_status && cgroup_oom_killed(&t->cgroup))
		task_publish(t, "oom");
	task_publish_exit(t);
	answer_waiters(t);
}

static void machine_task_reaped(struct task *t, int wait_status)
{
	int status = machine_ended(vm_machine(t->vm), wait_status);

	if (t->failed || t->creating) {
		t->failed = true;
		task_free(t);
		return;
	}
	t->exit_status = (uint32_t)status;
	tell_reason(t);
	task_ended(t);
	io_finish(vm_io(t->vm));
	vm_release(t->vm);
	if (t->delete_call)
		finish_delete(t, t->delete_call);
}

void task_reaped(struct pod *p, pid_t pid, int wait_status)
{
	struct task *t;

	LIST_FOREACH(t, &p->tasks, link)
	if (t->pid == pid && (t->creating || t->failed || t->status != PB__TASK_STATUS__STOPPED))
		break;
	if (!t)
		return;
	if (t->vm) {
		machine_task_reaped(t, wait_status);
		return;
	}
	t->exit_status = (uint32_t)(WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) :
							       WEXITSTATUS(wait_status));
	task_ended(t);
	if (t->delete_call)
		finish_delete(t, t->delete_call);
}
