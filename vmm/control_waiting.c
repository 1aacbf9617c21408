/*
 * control_waiting.c - what a client may ask where a machine is awaited
 *
 * The same socket, before its machine has come: info and quit have to work at any time.
 */
#include <unistd.h>

#include "vmm/control.h"
#include "vmm/control_methods.h"

static const struct control_waiting *waiting(void *opaque)
{
	return ((struct control_target *)opaque)->waiting;
}

static void add(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, text ? jsonrpc_string(text) : NULL);
}

static int info(void *opaque, struct json_object *params, struct json_object **result,
		struct err *err)
{
	const struct control_waiting *w = waiting(opaque);
	int code = jsonrpc_no_params(params, err);

	if (code)
		return code;
	*result = json_object_new_object();
	add(*result, "id", w->id);
	add(*result, "state", "incoming");
	add(*result, "version", CORACLE_VERSION);
	json_object_object_add(*result, "pid", json_object_new_int(getpid()));
	add(*result, "incoming", w->from);
	return 0;
}

static int quit(void *opaque, struct json_object *params, struct json_object **result,
		struct err *err)
{
	const struct control_waiting *w = waiting(opaque);
	int code = jsonrpc_no_params(params, err);

	if (code)
		return code;
	w->quit(w->opaque);
	*result = json_object_new_object();
	add(*result, "state", "stopped");
	return 0;
}

static int not_yet(void *opaque, struct json_object *params, struct json_object **result,
		   struct err *err)
{
	err_set(err, EBUSY, "no machine has come yet: it is awaited at %s", waiting(opaque)->from);
	return CONTROL_WRONG_STATE;
}

const struct jsonrpc_method control_waiting_methods[] = {
	{ "info", info },
	{ "quit", quit },
	{ NULL, not_yet },
};
