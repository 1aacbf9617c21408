/*
 * task.h - what containerd calls a task: a container's machine, or the pod's own process
 *
 *	creating -> created -> running <-> paused -> stopped -> gone
 *
 * One shim has all tasks of a pod. Calls that take time (the machine has to do something) are answered
 * when it is done; everything happens on the one loop.
 */
#ifndef K8S_SHIM_TASK_H
#define K8S_SHIM_TASK_H

#include <sys/queue.h>
#include <time.h>

#include "k8s-shim/bundle.h"
#include "k8s-shim/cgroup.h"
#include "k8s-shim/events.h"
#include "k8s-shim/proto/task.pb-c.h"
#include "k8s-shim/ttrpc.h"
#include "k8s-shim/vm.h"

struct waiter {
	struct ttrpc_call *call;
	STAILQ_ENTRY(waiter) link;
};

struct task {
	struct pod *pod;
	char *id;
	struct bundle bundle;
	struct cgroup cgroup;
	char *in, *out, *err;
	bool terminal;
	uint16_t cols, rows; /* of whoever is attached; 0: nobody has said */

	Pb__TaskStatus status;
	bool creating; /* the machine is not there yet; status means nothing */
	bool failed;   /* it never will be: gone as soon as its process is */
	bool killed;   /* by SIGKILL of containerd's */
	pid_t pid;     /* kept when it has ended */
	uint32_t exit_status;
	struct timespec exited_at;

	struct vm *vm; /* NULL: the pod's own process */
	struct ttrpc_call *create_call, *start_call, *delete_call;
	STAILQ_HEAD(, waiter) waiters;
	LIST_ENTRY(task) link;
};

struct pod {
	struct loop *loop;
	struct events *events;
	const char *address, *ns; /* containerd's */
	LIST_HEAD(, task) tasks;
	void (*on_change)(struct pod *p); /* there is one task more or less; NULL: nobody minds */
	bool not_needed; /* says containerd: once there is no task any more, the shim may go */
};

struct task *task_find(const struct pod *p, const char *id); /* NULL: none */
static inline bool task_is_alive(const struct task *t)
{
	return !t->creating && t->status != PB__TASK_STATUS__STOPPED;
}

/* ---- task.c: from nothing to running ---- */

void task_create(struct pod *p, const Pb__CreateTaskRequest *r, struct ttrpc_call *call);
void task_start(struct task *t, struct ttrpc_call *call);

/* ---- task_steer.c: while it runs ---- */

void task_pause(struct task *t, struct ttrpc_call *call);
void task_resume(struct task *t, struct ttrpc_call *call);
void task_kill(struct task *t, int signal, struct ttrpc_call *call); /* @call may be NULL */
/* The terminal has this size now. Remembered where there is no console that could be told. */
void task_resize(struct task *t, uint32_t cols, uint32_t rows, struct ttrpc_call *call);
void task_tell_size(struct task *t); /* to a machine that has just come */
void task_update(struct task *t, const Pb__Any *resources, struct ttrpc_call *call);
void task_stats(struct task *t, struct ttrpc_call *call);

/* ---- task_exit.c: the end ---- */

void task_wait(struct task *t, struct ttrpc_call *call);
void task_delete(struct task *t, struct ttrpc_call *call);
void task_reaped(struct pod *p, pid_t pid, int wait_status);
void task_free(struct task *t);

/* ---- task_events.c ---- */

void task_publish_create(const struct task *t, const Pb__CreateTaskRequest *r);
void task_publish(const struct task *t, const char *what); /* "start", "paused", "resumed", "oom" */
void task_publish_exit(const struct task *t);
void task_publish_delete(const struct task *t);

#endif
