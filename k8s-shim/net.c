/*
 * net.c - the pod's NICs: none yet
 *
 * TODO of the same issue: taps, redirections and responders. Until then a machine starts without NICs.
 */
#include <stdlib.h>

#include "k8s-shim/net.h"

struct pod_net {
	unsigned count;
};

int pod_net_open(const struct pod_net_options *o, struct loop *loop, struct pod_net **out,
		 struct err *err)
{
	*out = calloc(1, sizeof(**out));
	return *out ? 0 : err_set(err, ENOMEM, "out of memory");
}

unsigned pod_net_count(const struct pod_net *n)
{
	return n->count;
}

const struct pod_nic *pod_net_nic(const struct pod_net *n, unsigned i)
{
	return NULL;
}

void pod_net_close(struct pod_net *n)
{
	free(n);
}

void pod_net_sweep(const char *netns)
{
}
