/*
 * forward.h - kubectl port-forward reaches the guest
 *
 * A port-forward is a connection that containerd makes to a port of 127.0.0.1 in the pod's network namespace. An
 * ordinary container listens there; a guest is on the other side of the pod's link. So what is
 * connected to there is accepted here and connected to the same port of the pod's address, from the node's
 * network, as kubelet's probes are.
 */
#ifndef K8S_SHIM_FORWARD_H
#define K8S_SHIM_FORWARD_H

#include <sys/socket.h>

#include "base/err.h"
#include "base/loop.h"

struct forward;

#define FORWARD_MAX 64 /* connections at a time; more are closed, or those half closed already */

/* @netns: path of the pod's; @to: its address, whose port does not matter. NULL on error. */
struct forward *forward_open(struct loop *loop, const char *netns,
			     const struct sockaddr_storage *to, struct err *err);
/* What is accepted from @listener, which is taken over, is connected to the same port of @to. */
struct forward *forward_new(struct loop *loop, int listener, const struct sockaddr_storage *to,
			    struct err *err);
void forward_close(struct forward *f); /* and all connections; NULL is fine */

#endif
