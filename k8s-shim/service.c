/*
 * service.c - one small function a method
 *
 * Each gets its message decoded and sees to the answer. There are no processes beside the first one in a
 * task: those that name an exec_id are told so.
 */
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "k8s-shim/service.h"

#define NO_EXEC "no guest agent; use kubectl attach or ssh"

static const Pb__Empty empty = PB__EMPTY__INIT;

/* The task, or NULL with @call answered. */
static struct task *find(struct service *s, const char *id, const char *exec_id,
			 struct ttrpc_call *call)
{
	struct task *t = task_find(s->pod, id);

	if (t && exec_id && *exec_id) {
		ttrpc_fail(call, TTRPC_NOT_FOUND, "task %s has no process \"%s\"", id, exec_id);
		return NULL;
	}
	if (!t)
		ttrpc_fail(call, TTRPC_NOT_FOUND, "there is no task \"%s\"", id);
	return t;
}

static void do_state(struct service *s, const Pb__StateRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, r->exec_id, call);
	Pb__StateResponse out = PB__STATE_RESPONSE__INIT;
	Pb__Timestamp at = PB__TIMESTAMP__INIT;

	if (!t)
		return;
	at.seconds = t->exited_at.tv_sec;
	at.nanos = (int32_t)t->exited_at.tv_nsec;
	out.id = t->id;
	out.bundle = t->bundle.path;
	out.pid = (uint32_t)t->pid;
	out.status = t->creating ? PB__TASK_STATUS__UNKNOWN : t->status;
	out.stdin = t->in;
	out.stdout = t->out;
	out.stderr = t->err;
	out.terminal = t->terminal;
	out.exit_status = t->exit_status;
	if (t->status == PB__TASK_STATUS__STOPPED)
		out.exited_at = &at;
	ttrpc_reply(call, &out.base);
}

static void do_create(struct service *s, const Pb__CreateTaskRequest *r, struct ttrpc_call *call)
{
	task_create(s->pod, r, call);
}

static void do_start(struct service *s, const Pb__StartRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, r->exec_id, call);

	if (t)
		task_start(t, call);
}

static void do_delete(struct service *s, const Pb__DeleteRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, r->exec_id, call);

	if (t)
		task_delete(t, call);
}

/*
 * A task that has ended has its process, too, until Delete: one without any is for containerd (1.7 and
 * later, when it is started again) one that was never made, and it forgets how that has ended.
 */
static void do_pids(struct service *s, const Pb__PidsRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, NULL, call);
	Pb__PidsResponse out = PB__PIDS_RESPONSE__INIT;
	Pb__ProcessInfo info = PB__PROCESS_INFO__INIT, *list[1] = { &info };

	if (!t)
		return;
	info.pid = (uint32_t)t->pid;
	if (!t->creating) {
		out.processes = list;
		out.n_processes = 1;
	}
	ttrpc_reply(call, &out.base);
}

static void do_pause(struct service *s, const Pb__PauseRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, NULL, call);

	if (t)
		task_pause(t, call);
}

static void do_resume(struct service *s, const Pb__ResumeRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, NULL, call);

	if (t)
		task_resume(t, call);
}

static void do_checkpoint(struct service *s, const Pb__CheckpointTaskRequest *r,
			  struct ttrpc_call *call)
{
	ttrpc_fail(call, TTRPC_UNIMPLEMENTED, "checkpoints of machines are not possible this way");
}

static void do_kill(struct service *s, const Pb__KillRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, r->exec_id, call);

	if (t)
		task_kill(t, (int)r->signal, call);
}

static void do_exec(struct service *s, const Pb__ExecProcessRequest *r, struct ttrpc_call *call)
{
	if (find(s, r->id, NULL, call))
		ttrpc_fail(call, TTRPC_UNIMPLEMENTED, NO_EXEC);
}

static void do_resize_pty(struct service *s, const Pb__ResizePtyRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, r->exec_id, call);

	if (t)
		task_resize(t, r->width, r->height, call);
}

static void do_close_io(struct service *s, const Pb__CloseIORequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, r->exec_id, call);

	if (!t)
		return;
	if (r->stdin && t->vm)
		io_close_in(vm_io(t->vm));
	ttrpc_reply(call, &empty.base);
}

static void do_update(struct service *s, const Pb__UpdateTaskRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, NULL, call);

	if (t)
		task_update(t, r->resources, call);
}

static void do_wait(struct service *s, const Pb__WaitRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, r->exec_id, call);

	if (t)
		task_wait(t, call);
}

static void do_stats(struct service *s, const Pb__StatsRequest *r, struct ttrpc_call *call)
{
	struct task *t = find(s, r->id, NULL, call);

	if (t)
		task_stats(t, call);
}

static void do_connect(struct service *s, const Pb__ConnectRequest *r, struct ttrpc_call *call)
{
	struct task *t = task_find(s->pod, r->id);
	Pb__ConnectResponse out = PB__CONNECT_RESPONSE__INIT;

	out.shim_pid = (uint32_t)getpid();
	out.task_pid = t ? (uint32_t)t->pid : 0;
	ttrpc_reply(call, &out.base);
}

static void do_shutdown(struct service *s, const Pb__ShutdownRequest *r, struct ttrpc_call *call)
{
	struct task *t;

	ttrpc_reply(call, &empty.base);
	/* Asked for each container that goes; the pod's others still need us. */
	LIST_FOREACH(t, &s->pod->tasks, link)
	if (!t->failed)
		return;
	s->pod->not_needed = true; /* but for processes that have not ended yet */
	if (LIST_EMPTY(&s->pod->tasks))
		s->shut_down(s->opaque);
}

struct method {
	const char *name;
	const ProtobufCMessageDescriptor *request;
	void (*fn)(struct service *s, const void *request, struct ttrpc_call *call);
};

/* C's function pointer types do not convert, so each method has a small function that does. */
#define METHODS(X)                                                                \
	X(State, state, StateRequest, state_request)                              \
	X(Create, create, CreateTaskRequest, create_task_request)                 \
	X(Start, start, StartRequest, start_request)                              \
	X(Delete, delete, DeleteRequest, delete_request)                          \
	X(Pids, pids, PidsRequest, pids_request)                                  \
	X(Pause, pause, PauseRequest, pause_request)                              \
	X(Resume, resume, ResumeRequest, resume_request)                          \
	X(Checkpoint, checkpoint, CheckpointTaskRequest, checkpoint_task_request) \
	X(Kill, kill, KillRequest, kill_request)                                  \
	X(Exec, exec, ExecProcessRequest, exec_process_request)                   \
	X(ResizePty, resize_pty, ResizePtyRequest, resize_pty_request)            \
	X(CloseIO, close_io, CloseIORequest, close_iorequest)                     \
	X(Update, update, UpdateTaskRequest, update_task_request)                 \
	X(Wait, wait, WaitRequest, wait_request)                                  \
	X(Stats, stats, StatsRequest, stats_request)                              \
	X(Connect, connect, ConnectRequest, connect_request)                      \
	X(Shutdown, shutdown, ShutdownRequest, shutdown_request)

#define ADAPT(Name, fn, Type, type)                                                      \
	static void call_##fn(struct service *s, const void *r, struct ttrpc_call *call) \
	{                                                                                \
		do_##fn(s, (const Pb__##Type *)r, call);                                 \
	}
METHODS(ADAPT)

#define ENTRY(Name, fn, Type, type) { #Name, &pb__##type##__descriptor, call_##fn },
static const struct method methods[] = { METHODS(ENTRY) };

void service_handle(void *opaque, struct ttrpc_call *call, const struct ttrpc_request *r)
{
	const struct method *m = NULL;

	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
		if (!strcmp(methods[i].name, r->method))
			m = &methods[i];
	if (!m || strcmp(r->service, SERVICE_NAME)) {
		ttrpc_fail(call, TTRPC_UNIMPLEMENTED, "no method %.64s of service %.64s", r->method,
			   r->service);
		return;
	}
	ProtobufCMessage *request = protobuf_c_message_unpack(m->request, NULL, r->len, r->payload);

	if (!request) {
		ttrpc_fail(call, TTRPC_INVALID_ARGUMENT, "%s: not a valid request", m->name);
		return;
	}
	log_debug("%s", m->name);
	m->fn(opaque, request, call);
	protobuf_c_message_free_unpacked(request, NULL);
}
