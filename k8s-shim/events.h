/*
 * events.h - what the shim tells containerd by itself
 *
 * Events go out in the order they were published, one after the other, each until containerd has said
 * that it has it. While containerd is away they wait.
 */
#ifndef K8S_SHIM_EVENTS_H
#define K8S_SHIM_EVENTS_H

#include <protobuf-c/protobuf-c.h>
#include <time.h>

#include "base/err.h"
#include "base/loop.h"

struct events;

/* @address: containerd's ttrpc socket, with or without unix://. @ns: containerd's namespace. */
struct events *events_new(struct loop *loop, const char *address, const char *ns, struct err *err);
void events_free(struct events *e); /* drops what waits; NULL is fine */

/* @topic "/tasks/exit", @type "containerd.events.TaskExit". */
void events_publish(struct events *e, const char *topic, const char *type,
		    const ProtobufCMessage *m);

/* Call @fn once when nothing waits any more; at once if that is so. */
void events_when_drained(struct events *e, void (*fn)(void *opaque), void *opaque);

#endif
