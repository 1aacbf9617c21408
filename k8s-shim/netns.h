/*
 * netns.h - do something inside a network namespace
 */
#ifndef K8S_SHIM_NETNS_H
#define K8S_SHIM_NETNS_H

#include "base/err.h"

/*
 * Call fn(arg, err) in the namespace at @path, on a thread that ends with the call, and wait for
 * it. fn's result; -ENOENT: the namespace has gone; -EINVAL: it is the caller's own (a pod of the
 * host's network, whose links are not ours to take).
 */
int netns_call(const char *path, int (*fn)(void *arg, struct err *err), void *arg, struct err *err);

#endif
