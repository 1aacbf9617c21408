/*
 * shim.h - the shim's own subcommands
 */
#ifndef K8S_SHIM_SHIM_H
#define K8S_SHIM_SHIM_H

#include <stdbool.h>

#include "base/err.h"

/* As containerd gives them. */
struct shim_args {
	const char *ns, *address, *id, *bundle; /* "" where not given */
	bool debug;
};

/* The process's exit status; each prints what containerd reads, and nothing else. */
int shim_start(const struct shim_args *a, struct err *err);
int shim_delete(const struct shim_args *a, struct err *err);
/* @in: the runtime's options as in CreateTaskRequest, or nothing; @out: where the answer goes. */
int shim_info(int in, int out, struct err *err);

/* Serve the pod until containerd sends Shutdown. @fd: listening, taken over; @path: its file. */
int shim_serve(const struct shim_args *a, int fd, const char *path);

#endif
