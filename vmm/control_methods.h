/*
 * control_methods.h - what a client may ask of the machine; docs/control.md is the same list
 */
#ifndef VMM_CONTROL_METHODS_H
#define VMM_CONTROL_METHODS_H

#include "vmm/jsonrpc.h"

struct vm;

/* Codes of our own. */
#define CONTROL_WRONG_STATE -32001 /* not possible in the machine's state */
#define CONTROL_FAILED      -32002 /* the host could not do it; the message says why */
#define CONTROL_UNSUPPORTED -32003 /* this machine has no such thing */
#define CONTROL_LIMIT       -32004 /* too many clients */

/* What the methods' opaque points to. */
struct control_target {
	struct vm *vm;
	int statm_fd; /* /proc/self/statm, opened before the sandbox; -1: not there */
};

extern const struct jsonrpc_method control_methods[]; /* ended by a NULL name */

#endif
