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
#include "vmm/vm.h"

/* Start @t for the client that asks. Takes @arg only on success. 0 or an error code. */

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
