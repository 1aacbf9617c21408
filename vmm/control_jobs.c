/*
 * control_jobs.c - long operations a client may ask for: migrate, snapshot, cancel
 *
 * The answer says that the job has begun; how it goes and ends comes as events. The files and sockets
 * it needs come along with the request, opened with the client's rights, since this process can open
 * nothing. If the client goes away, so does the job.
 */
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "vmm/control_methods.h"
#include "vmm/job.h"
#include "vmm/json_util.h"
#include "vmm/migrate.h"
#include "vmm/vm.h"

int control_start_job(struct control_target *c, const struct job_task *t, void *arg,
		      struct json_object **result, struct err *err)
{
	uint64_t id;
	int rc = job_start(c->vm->job, t, arg, c->peer->number, &id, err);

	if (rc)
		return rc == -EBUSY ? CONTROL_WRONG_STATE : CONTROL_FAILED;
	*result = json_object_new_object();
	json_object_object_add(*result, "job", json_object_new_string(t->name));
	json_add_u64(*result, "id", id);
	return 0;
}

static int want_standing(const struct vm *vm, struct err *err)
{
	if (vm->state == VM_RUNNING || vm->state == VM_PAUSED)
		return 0;
	err_set(err, EBUSY, "the machine is %s", vm_state_name(vm));
	return CONTROL_WRONG_STATE;
}

/* ---- migrate ---- */

#define MS_NS  UINT64_C(1000000)
#define MS_MAX UINT64_C(1000000000) /* 11 days: sums of it in ns stay in 64 bits */

/* The connections that came along. @o owns them from success on. */
static int take_connections(struct control_target *c, struct migrate_options *o, struct err *err)
{
	int fds[CONTROL_FDS_MAX], n = control_peer_take_fds(c->peer, fds);

	if (n > 0 && n <= RAM_CONNECTIONS_MAX) {
		memcpy(o->fds, fds, (unsigned)n * sizeof(*fds));
		o->connections = (unsigned)n;
		return 0;
	}
	while (n > 0)
		fd_close(&fds[--n]);
	err_set(err, EINVAL,
		"migrate wants 1 to %u connected sockets with the request (SCM_RIGHTS)",
		RAM_CONNECTIONS_MAX);
	return JSONRPC_INVALID_PARAMS;
}

int control_migrate(void *opaque, struct json_object *params, struct json_object **result,
		    struct err *err)
{
	struct control_target *c = opaque;
	struct migrate_options o = { .downtime_ns = MIGRATE_DOWNTIME_DEFAULT_NS };
	uint64_t downtime = MIGRATE_DOWNTIME_DEFAULT_NS / MS_NS, timeout = 0;
	const struct jsonrpc_number all[] = { { "downtime-ms", 0, 60000, &downtime },
					      { "bandwidth", 0, INT64_MAX / 2, &o.bandwidth },
					      { "timeout-ms", 0, MS_MAX, &timeout },
					      { NULL, 0, 0, NULL } };
	int code = want_standing(c->vm, err);

	if (!code)
		code = jsonrpc_numbers(params, all, err);
	if (!code)
		code = take_connections(c, &o, err);
	if (code)
		return code;
	if (o.bandwidth && o.bandwidth < MIGRATE_BANDWIDTH_MIN)
		o.bandwidth = MIGRATE_BANDWIDTH_MIN;
	o.downtime_ns = downtime * MS_NS;
	o.timeout_ns = timeout * MS_NS;
	struct migrate *m = migrate_new(c->vm, &o, err);

	code = m ? control_start_job(c, &migrate_task, m, result, err) : CONTROL_FAILED;
	if (!m) /* nobody has taken them */
		while (o.connections)
			fd_close(&o.fds[--o.connections]);
	if (code)
		migrate_free(m);
	return code;
}

int control_cancel(void *opaque, struct json_object *params, struct json_object **result,
		   struct err *err)
{
	struct vm *vm = ((struct control_target *)opaque)->vm;
	const char *name = job_running(vm->job);
	int code = jsonrpc_no_params(params, err);

	if (code)
		return code;
	if (!name) {
		err_set(err, EINVAL, "there is nothing to cancel");
		return CONTROL_WRONG_STATE;
	}
	if (!job_cancel(vm->job, "as a client asked")) {
		err_set(err, EBUSY, "the %s can no longer be cancelled", name);
		return CONTROL_WRONG_STATE;
	}
	*result = json_object_new_object();
	json_object_object_add(*result, "job", json_object_new_string(name));
	return 0;
}
