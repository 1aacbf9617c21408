/*
 * control_snapshot.c - the method `snapshot`: three files come along, the job fills them
 *
 * The client could hand in anything. Only empty regular files that can be written are taken: a pipe
 * would hold the job, a file in use would be damaged.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "vmm/control_methods.h"
#include "vmm/job.h"
#include "vmm/json_util.h"
#include "vmm/snapshot.h"
#include "vmm/vm.h"

#define NFILES 3

struct task {
	struct vm *vm;
	int fds[NFILES]; /* machine, state, memory */
	bool stop;
};

static void task_free(struct task *t)
{
	for (unsigned i = 0; i < NFILES; i++)
		fd_close(&t->fds[i]);
	free(t);
}

static int run(struct job *j, void *arg, const struct transfer_watch *w, struct json_object *result,
	       struct err *err)
{
	struct task *t = arg;
	const struct snapshot_files f = { t->fds[0], t->fds[1], t->fds[2] };
	struct snapshot_result r;
	int rc = snapshot_save(t->vm, &f, t->stop, w, &r, err);

	if (rc)
		return job_why(j, rc, err);
	json_add_u64(result, "ram", r.ram);
	json_add_u64(result, "written", r.written);
	json_add_u64(result, "rounds", r.rounds);
	json_add_u64(result, "total-us", r.total_ns / 1000);
	json_add_u64(result, "pause-us", r.pause_ns / 1000);
	return 0;
}

static void end(struct vm *vm, void *arg, int rc)
{
	task_free(arg);
}

static const struct job_task snapshot_task = { .name = "snapshot", .run = run, .end = end };

static int check_file(int fd, struct err *err)
{
	struct stat st;
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size ||
	    (flags & O_ACCMODE) == O_RDONLY || flags & O_APPEND)
		return err_set(
			err, EINVAL,
			"three empty files open for writing have to come along: machine.json, "
			"state, memory");
	return 0;
}

/* 0 or an error code. */
static int take_files(struct control_peer *p, struct task *t, struct err *err)
{
	int fds[CONTROL_FDS_MAX], n = control_peer_take_fds(p, fds), rc = n == NFILES ? 0 : -EINVAL;

	for (int i = 0; i < n; i++) {
		if (i < NFILES)
			t->fds[i] = fds[i];
		else
			fd_close(&fds[i]);
	}
	if (rc)
		err_set(err, EINVAL, "three files have to come along: machine.json, state, memory");
	for (unsigned i = 0; i < NFILES && !rc; i++)
		rc = check_file(t->fds[i], err);
	return rc ? JSONRPC_INVALID_PARAMS : 0;
}

/* {"stop": bool}, which may be left out. 0 or an error code. */
static int parse(struct json_object *params, bool *stop, struct err *err)
{
	*stop = false;
	if (!params)
		return 0;
	if (!json_object_is_type(params, json_type_object))
		goto wrong;
	json_object_object_foreach (params, key, value) {
		if (strcmp(key, "stop") || !json_object_is_type(value, json_type_boolean))
			goto wrong;
		*stop = json_object_get_boolean(value);
	}
	return 0;

wrong:
	err_set(err, EINVAL, "snapshot takes {\"stop\": true or false}");
	return JSONRPC_INVALID_PARAMS;
}

static int start(struct control_target *target, bool stop, struct json_object **result,
		 struct err *err)
{
	struct task *t = calloc(1, sizeof(*t));
	int code;

	if (!t) {
		err_set(err, ENOMEM, "out of memory");
		return CONTROL_FAILED;
	}
	*t = (struct task){ .vm = target->vm, .fds = { -1, -1, -1 }, .stop = stop };
	code = take_files(target->peer, t, err);
	if (!code)
		code = control_start_job(target, &snapshot_task, t, result, err);
	if (code)
		task_free(t);
	return code;
}

int control_snapshot(void *opaque, struct json_object *params, struct json_object **result,
		     struct err *err)
{
	struct control_target *target = opaque;
	bool stop;
	int code = parse(params, &stop, err);

	if (code)
		return code;
	if (target->vm->state != VM_RUNNING && target->vm->state != VM_PAUSED) {
		err_set(err, EBUSY, "the machine is %s", vm_state_name(target->vm));
		return CONTROL_WRONG_STATE;
	}
	return start(target, stop, result, err);
}
