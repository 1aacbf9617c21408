/*
 * service.h - containerd.task.v2.Task: requests in, answers out
 */
#ifndef K8S_SHIM_SERVICE_H
#define K8S_SHIM_SERVICE_H

#include "k8s-shim/task.h"
#include "k8s-shim/ttrpc.h"

#define SERVICE_NAME "containerd.task.v2.Task"

struct service {
	struct pod *pod;
	void (*shut_down)(void *opaque); /* containerd has no more use for this shim */
	void *opaque;
};

/* A ttrpc_handler; @opaque is a struct service. */
void service_handle(void *opaque, struct ttrpc_call *call, const struct ttrpc_request *r);

#endif
