/*
 * pause.h - the process that stands for the pod itself
 */
#ifndef K8S_SHIM_PAUSE_H
#define K8S_SHIM_PAUSE_H

#include <sys/types.h>

#include "k8s-shim/bundle.h"
#include "k8s-shim/cgroup.h"

/* It is in the pod's network namespace and group when this returns. Its pid, or -errno. */
pid_t pause_start(const struct bundle *b, const struct cgroup *cg, struct err *err);

#endif
