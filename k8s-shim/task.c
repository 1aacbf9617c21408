/*
 * task.c - from CreateTask to a running machine
 *
 * Create answers when the machine is assembled and waits, so everything that can be wrong with a pod is
 * said in the answer to Create, which ends up in the pod's events. Start lets it run.
 */
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/pause.h"
#include "k8s-shim/state_dir.h"
#include "k8s-shim/task.h"

#define CONTAINER_NAME "io.kubernetes.cri.container-name"
#define SANDBOX_NAME   "io.kubernetes.cri.sandbox-name"

struct task *task_find(const struct pod *p, const char *id)
{
	struct task *t;

	LIST_FOREACH(t, &p->tasks, link)
	if (!strcmp(t->id, id))
		return t;
	return NULL;
}

static void reply_created(struct task *t)
{
	Pb__CreateTaskResponse r = PB__CREATE_TASK_RESPONSE__INIT;
	struct ttrpc_call *call = t->create_call;

	t->create_call = NULL;
	t->creating = false;
	t->status = PB__TASK_STATUS__CREATED;
	r.pid = (uint32_t)t->pid;
	ttrpc_reply(call, &r.base);
}

/* The machine is there and waits, or not. */
static void on_vm_ready(void *opaque, const struct err *err)
{
	struct task *t = opaque;
	struct err why;

	if (!err) {
		task_tell_size(t);
		task_publish_create(t, NULL);
		reply_created(t);
		return;
	}
	why = *err;
	vm_explain(t->vm, why.msg, sizeof(why.msg));
	log_err("%s: %s", t->id, why.msg);
	ttrpc_fail_err(t->create_call, &why);
	t->create_call = NULL;
	t->failed = true; /* task_reaped() takes it away */
	machine_kill(vm_machine(t->vm));
}

/* ---- create ---- */

/* The options of the runtime in containerd's configuration: its ConfigPath. malloc'ed, or NULL. */
static char *config_path(const Pb__CreateTaskRequest *r)
{
	const Pb__Any *any = r->options;
	const char *dot = any ? strrchr(any->type_url, '/') : NULL;
	char *path = NULL;

	if (!any || strcmp(dot ? dot + 1 : any->type_url, "runtimeoptions.v1.Options"))
		return NULL;
	Pb__RuntimeOptions *o = pb__runtime_options__unpack(NULL, any->value.len, any->value.data);

	if (o && *o->config_path)
		path = strdup(o->config_path);
	if (o)
		pb__runtime_options__free_unpacked(o, NULL);
	return path;
}

static struct task *other_machine(const struct pod *p)
{
	struct task *t;

	LIST_FOREACH(t, &p->tasks, link)
	if (t->vm && (t->creating || t->status != PB__TASK_STATUS__STOPPED))
		return t;
	return NULL;
}

/*
 * A container's own configuration has none: all of a pod have the sandbox's, which is the pod's name unless
 * its spec says otherwise.
 */
static const char *hostname(const struct task *t)
{
	const struct task *other;

	if (t->bundle.hostname)
		return t->bundle.hostname;
	LIST_FOREACH(other, &t->pod->tasks, link)
	if (other->bundle.sandbox && other->bundle.hostname)
		return other->bundle.hostname;
	return bundle_annotation(&t->bundle, SANDBOX_NAME);
}

static int create_machine(struct task *t, const Pb__CreateTaskRequest *r, struct err *err)
{
	cleanup_free char *dir = state_dir_path(t->pod->address, t->pod->ns, t->id);
	cleanup_free char *config = config_path(r);
	struct task *other = other_machine(t->pod);
	const char *name = other ? bundle_annotation(&other->bundle, CONTAINER_NAME) : NULL;
	struct vm_options o = { .loop = t->pod->loop,
				.state_dir = dir,
				.bundle = &t->bundle,
				.cgroup = &t->cgroup,
				.request = r,
				.hostname = hostname(t),
				.config_path = config };

	if (!dir)
		return err_set(err, ENOMEM, "out of memory");
	if (other)
		return err_set(
			err, EBUSY,
			"the pod has a machine already (container %.63s): a pod of this "
			"runtime class has one container, without sidecars or ephemeral ones",
			name ? name : other->id);
	t->vm = vm_new(&o, on_vm_ready, t, err);
	if (!t->vm)
		return err->code;
	t->pid = machine_pid(vm_machine(t->vm));
	t->creating = true;
	return 0;
}

static int fill_in(struct task *t, const Pb__CreateTaskRequest *r, struct err *err)
{
	if (*r->checkpoint)
		return err_set(err, ENOTSUP, "starting from a checkpoint is not possible");
	t->id = strdup(r->id);
	t->in = strdup(r->stdin);
	t->out = strdup(r->stdout);
	t->err = strdup(r->stderr);
	t->terminal = r->terminal;
	if (!t->id || !t->in || !t->out || !t->err)
		return err_set(err, ENOMEM, "out of memory");
	int rc = bundle_load(&t->bundle, r->bundle, err);

	if (!rc)
		rc = cgroup_init(&t->cgroup, t->bundle.cgroup, err);
	if (!rc)
		rc = cgroup_make(&t->cgroup, t->bundle.cpu_shares, err);
	return rc ? rc : cgroup_set_cpus(&t->cgroup, t->bundle.cpus, err);
}

static int create(struct task *t, const Pb__CreateTaskRequest *r, struct err *err)
{
	int rc = fill_in(t, r, err);

	if (rc)
		return rc;
	if (!t->bundle.sandbox)
		return create_machine(t, r, err);
	t->pid = pause_start(&t->bundle, &t->cgroup, err);
	return t->pid < 0 ? t->pid : 0;
}

void task_create(struct pod *p, const Pb__CreateTaskRequest *r, struct ttrpc_call *call)
{
	struct err err = { 0 };

	if (!*r->id || task_find(p, r->id)) {
		ttrpc_fail(call, TTRPC_ALREADY_EXISTS, "task \"%s\" exists already", r->id);
		return;
	}
	struct task *t = calloc(1, sizeof(*t));

	if (!t) {
		ttrpc_fail(call, TTRPC_RESOURCE_EXHAUSTED, "out of memory");
		return;
	}
	t->pod = p;
	STAILQ_INIT(&t->waiters);
	LIST_INSERT_HEAD(&p->tasks, t, link);
	p->not_needed = false;
	if (p->on_change)
		p->on_change(p);
	if (create(t, r, &err)) {
		log_err("%s: %s", r->id, err.msg);
		ttrpc_fail_err(call, &err);
		t->pid = 0;
		task_free(t);
		return;
	}
	t->create_call = call;
	if (!t->vm) {
		task_publish_create(t, r);
		reply_created(t);
	}
}

/* ---- start ---- */

static void started(struct task *t, struct ttrpc_call *call)
{
	Pb__StartResponse r = PB__START_RESPONSE__INIT;

	t->status = PB__TASK_STATUS__RUNNING;
	task_publish(t, "start");
	r.pid = (uint32_t)t->pid;
	ttrpc_reply(call, &r.base);
}

static void on_started(void *opaque, struct json_object *result, const struct err *err)
{
	struct task *t = opaque;
	struct ttrpc_call *call = t->start_call;

	t->start_call = NULL;
	if (result)
		started(t, call);
	else
		ttrpc_fail_err(call, err);
}

void task_start(struct task *t, struct ttrpc_call *call)
{
	if (t->creating || t->start_call || t->status != PB__TASK_STATUS__CREATED) {
		ttrpc_fail(call, TTRPC_FAILED_PRECONDITION, "task %s is not waiting to be started",
			   t->id);
		return;
	}
	if (!t->vm) {
		started(t, call);
		return;
	}
	t->start_call = call;
	machine_call(vm_machine(t->vm), "resume", NULL, on_started, t);
}
