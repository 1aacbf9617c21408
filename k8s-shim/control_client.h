/*
 * control_client.h - the machine's control socket (docs/control.md) from the other side
 */
#ifndef K8S_SHIM_CONTROL_CLIENT_H
#define K8S_SHIM_CONTROL_CLIENT_H

#include <json-c/json.h>

#include "base/err.h"
#include "base/loop.h"

struct control_client;

/* @result on success; otherwise NULL and @err set. Both valid within. */
typedef void control_answer(void *opaque, struct json_object *result, const struct err *err);

/* @params may be NULL. */
typedef void control_event(void *opaque, const char *method, struct json_object *params);

/* @fd: connected, non-blocking, taken over. NULL on error. */
struct control_client *control_client_new(int fd, struct loop *loop, control_event *on_event,
					  void *opaque, struct err *err);

/* Nobody who waits for an answer is called any more. NULL is fine. Not from a callback of its own. */
void control_client_free(struct control_client *c);

/* @params: a short JSON object, NULL: none. @fn is called once, possibly before this returns. */
void control_client_call(struct control_client *c, const char *method, const char *params,
			 control_answer *fn, void *opaque);

/* The machine's process has ended: read what it left, then fail what is still not answered. */
void control_client_end(struct control_client *c);

#endif
