/*
 * task_steer.c - pause, resume, signals, limits, figures
 *
 * A machine is no process that one could send signals to. What asks a container to end (SIGTERM, or
 * whatever an image has chosen as its stop signal) presses the power button, SIGKILL pulls the plug, and
 * the rest has no meaning and is refused.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/json.h"
#include "k8s-shim/task.h"
#include "k8s-shim/vm_config.h"

static const Pb__Empty empty = PB__EMPTY__INIT;

/* A call that the machine is about to answer. The machine's end answers it, so the task outlives it. */
struct op {
	struct task *task;
	struct ttrpc_call *call;
	Pb__TaskStatus then;
	const char *event;
};

static void on_done(void *opaque, struct json_object *result, const struct err *err)
{
	struct op *op = opaque;
	struct task *t = op->task;

	if (!result) {
		if (!op->call && err->code != -ESHUTDOWN)
			log_warn("%s: %s", t->id, err->msg);
		ttrpc_fail_err(op->call, err);
	} else {
		if (op->event && t->status != op->then) {
			t->status = op->then;
			task_publish(t, op->event);
		}
		ttrpc_reply(op->call, &empty.base);
	}
	free(op);
}

static void ask(struct task *t, const char *method, Pb__TaskStatus then, const char *event,
		struct ttrpc_call *call)
{
	struct op *op = malloc(sizeof(*op));

	if (!op) {
		ttrpc_fail(call, TTRPC_RESOURCE_EXHAUSTED, "out of memory");
		return;
	}
	*op = (struct op){ .task = t, .call = call, .then = then, .event = event };
	machine_call(vm_machine(t->vm), method, NULL, on_done, op);
}

void task_pause(struct task *t, struct ttrpc_call *call)
{
	if (!t->vm)
		ttrpc_fail(call, TTRPC_UNIMPLEMENTED, "the pod itself cannot be paused");
	else if (t->creating || t->status != PB__TASK_STATUS__RUNNING)
		ttrpc_fail(call, TTRPC_FAILED_PRECONDITION, "task %s does not run", t->id);
	else
		ask(t, "pause", PB__TASK_STATUS__PAUSED, "paused", call);
}

void task_resume(struct task *t, struct ttrpc_call *call)
{
	if (!t->vm)
		ttrpc_fail(call, TTRPC_UNIMPLEMENTED, "the pod itself cannot be paused");
	else if (t->creating || t->status != PB__TASK_STATUS__PAUSED)
		ttrpc_fail(call, TTRPC_FAILED_PRECONDITION, "task %s is not paused", t->id);
	else
		ask(t, "resume", PB__TASK_STATUS__RUNNING, "resumed", call);
}

/* ---- signals ---- */

static bool asks_to_end(int sig)
{
	/* systemd's own stop signal is SIGRTMIN+3 by the kernel's count, which C libraries shift */
	return sig == SIGTERM || sig == SIGINT || sig == SIGQUIT || sig == SIGHUP ||
	       sig == SIGPWR || sig == SIGRTMIN + 3 || sig == 37;
}

static void press_button(struct task *t, struct ttrpc_call *call)
{
	if (t->creating || t->status == PB__TASK_STATUS__CREATED) {
		machine_kill(vm_machine(t->vm)); /* no guest that could shut down */
		ttrpc_reply(call, &empty.base);
		return;
	}
	/* A guest that stands still cannot see it. */
	if (t->status == PB__TASK_STATUS__PAUSED)
		ask(t, "resume", PB__TASK_STATUS__RUNNING, "resumed", NULL);
	ask(t, "power-button", PB__TASK_STATUS__UNKNOWN, NULL, NULL);
	/* Answered at once: containerd counts the grace period from here, also if the VMM hangs. */
	ttrpc_reply(call, &empty.base);
}

void task_kill(struct task *t, int sig, struct ttrpc_call *call)
{
	if (!t->creating && t->status == PB__TASK_STATUS__STOPPED) {
		ttrpc_fail(call, TTRPC_NOT_FOUND, "task %s has ended already", t->id);
	} else if (!t->vm) {
		if (kill(t->pid, sig))
			ttrpc_fail(call, TTRPC_INVALID_ARGUMENT, "signal %d: %s", sig,
				   strerror(errno));
		else
			ttrpc_reply(call, &empty.base);
	} else if (sig == SIGKILL) {
		t->killed = true;
		machine_kill(vm_machine(t->vm));
		ttrpc_reply(call, &empty.base);
	} else if (asks_to_end(sig)) {
		press_button(t, call);
	} else {
		ttrpc_fail(
			call, TTRPC_INVALID_ARGUMENT,
			"signal %d means nothing to a machine; SIGTERM presses its power button, "
			"SIGKILL ends it",
			sig);
	}
}

/* ---- the terminal ---- */

static void on_resized(void *opaque, struct json_object *result, const struct err *err)
{
	if (!result && err->code != -ESHUTDOWN)
		log_warn("the console's size: %s", err->msg);
}

void task_tell_size(struct task *t)
{
	char params[64];

	if (!t->cols || !vm_has_console(t->vm))
		return;
	snprintf(params, sizeof(params), "{\"cols\":%u,\"rows\":%u}", t->cols, t->rows);
	machine_call(vm_machine(t->vm), "console-resize", params, on_resized, t);
}

/* Answered at once: nobody attaches later because a guest has not drawn its window yet. */
void task_resize(struct task *t, uint32_t cols, uint32_t rows, struct ttrpc_call *call)
{
	if (cols && rows && cols <= UINT16_MAX && rows <= UINT16_MAX) {
		t->cols = (uint16_t)cols;
		t->rows = (uint16_t)rows;
		if (t->vm && task_is_alive(t))
			task_tell_size(t);
	}
	ttrpc_reply(call, &empty.base);
}

/* ---- limits ---- */

#define RESTART "; with resizePolicy RestartContainer for %s the machine starts again with it"

/* The pod's own group holds the machine to its CPU limit, so that may change as long as the vCPUs do. */
static int check_update(const struct task *t, struct json_object *r, struct err *err)
{
	uint64_t memory = json_u64(json_at(r, "memory", "limit", NULL));
	uint64_t quota = json_u64(json_at(r, "cpu", "quota", NULL));
	uint64_t period = json_u64(json_at(r, "cpu", "period", NULL));

	if (t->vm && memory && memory != t->bundle.memory)
		return err_set(
			err, ENOTSUP,
			"a machine's RAM cannot change while it runs (%llu bytes now)" RESTART,
			(unsigned long long)vm_memory(t->vm), "memory");
	if (t->vm && quota && period && vm_config_round_cpus(quota, period) != vm_cpus(t->vm))
		return err_set(
			err, ENOTSUP,
			"a machine's number of vCPUs cannot change while it runs (%u now)" RESTART,
			vm_cpus(t->vm), "cpu");
	return 0;
}

void task_update(struct task *t, const Pb__Any *resources, struct ttrpc_call *call)
{
	struct err err = { 0 };
	struct json_object *r = resources ? json_parse((const char *)resources->value.data,
						       resources->value.len, "resources", &err) :
					    NULL;

	if (!resources)
		err_set(&err, EINVAL, "nothing to update");
	if (r && !check_update(t, r, &err) &&
	    !cgroup_set_cpus(&t->cgroup, json_text(json_at(r, "cpu", "cpus", NULL)), &err))
		cgroup_set_shares(&t->cgroup, json_u64(json_at(r, "cpu", "shares", NULL)), &err);
	json_object_put(r);
	if (err.code)
		ttrpc_fail_err(call, &err);
	else
		ttrpc_reply(call, &empty.base);
}

/* ---- figures ---- */

void task_stats(struct task *t, struct ttrpc_call *call)
{
	Pb__StatsResponse r = PB__STATS_RESPONSE__INIT;
	Pb__Any any = PB__ANY__INIT;
	struct err err = { 0 };

	if (cgroup_metrics(&t->cgroup, &any, &err)) {
		ttrpc_fail_err(call, &err);
		return;
	}
	r.stats = &any;
	ttrpc_reply(call, &r.base);
	free(any.value.data);
}
