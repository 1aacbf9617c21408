/*
 * task_events.c - a task's events as containerd's messages
 */
#include <string.h>

#include "k8s-shim/proto/events.pb-c.h"
#include "k8s-shim/task.h"

#define TYPE(name) "containerd.events.Task" name

void task_publish_create(const struct task *t, const Pb__CreateTaskRequest *r)
{
	Pb__TaskCreate m = PB__TASK_CREATE__INIT;
	Pb__TaskIO io = PB__TASK_IO__INIT;

	io.stdin = t->in;
	io.stdout = t->out;
	io.stderr = t->err;
	io.terminal = t->terminal;
	m.container_id = t->id;
	m.bundle = t->bundle.path;
	m.io = &io;
	m.pid = (uint32_t)t->pid;
	if (r) {
		m.rootfs = r->rootfs;
		m.n_rootfs = r->n_rootfs;
	}
	events_publish(t->pod->events, "/tasks/create", TYPE("Create"), &m.base);
}

void task_publish(const struct task *t, const char *what)
{
	Pb__TaskStart start = PB__TASK_START__INIT;
	Pb__TaskPaused paused = PB__TASK_PAUSED__INIT;
	Pb__TaskResumed resumed = PB__TASK_RESUMED__INIT;
	Pb__TaskOOM oom = PB__TASK_OOM__INIT;
	struct events *e = t->pod->events;

	start.container_id = paused.container_id = resumed.container_id = oom.container_id = t->id;
	start.pid = (uint32_t)t->pid;
	if (!strcmp(what, "start"))
		events_publish(e, "/tasks/start", TYPE("Start"), &start.base);
	else if (!strcmp(what, "paused"))
		events_publish(e, "/tasks/paused", TYPE("Paused"), &paused.base);
	else if (!strcmp(what, "resumed"))
		events_publish(e, "/tasks/resumed", TYPE("Resumed"), &resumed.base);
	else if (!strcmp(what, "oom"))
		events_publish(e, "/tasks/oom", TYPE("OOM"), &oom.base);
}

void task_publish_exit(const struct task *t)
{
	Pb__TaskExit m = PB__TASK_EXIT__INIT;
	Pb__Timestamp at = PB__TIMESTAMP__INIT;

	at.seconds = t->exited_at.tv_sec;
	at.nanos = (int32_t)t->exited_at.tv_nsec;
	m.container_id = m.id = t->id;
	m.pid = (uint32_t)t->pid;
	m.exit_status = t->exit_status;
	m.exited_at = &at;
	events_publish(t->pod->events, "/tasks/exit", TYPE("Exit"), &m.base);
}

void task_publish_delete(const struct task *t)
{
	Pb__TaskDelete m = PB__TASK_DELETE__INIT;
	Pb__Timestamp at = PB__TIMESTAMP__INIT;

	at.seconds = t->exited_at.tv_sec;
	at.nanos = (int32_t)t->exited_at.tv_nsec;
	m.container_id = t->id;
	m.pid = (uint32_t)t->pid;
	m.exit_status = t->exit_status;
	m.exited_at = &at;
	events_publish(t->pod->events, "/tasks/delete", TYPE("Delete"), &m.base);
}
