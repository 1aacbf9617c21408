/*
 * control_methods.h - what a client may ask of the machine; docs/control.md is the same list
 */
#ifndef VMM_CONTROL_METHODS_H
#define VMM_CONTROL_METHODS_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/jsonrpc.h"

struct control_waiting;
struct job_task;
struct vm;

/* Codes of our own. */
#define CONTROL_WRONG_STATE -32001 /* not possible in the machine's state */
#define CONTROL_FAILED      -32002 /* the host could not do it; the message says why */
#define CONTROL_UNSUPPORTED -32003 /* this machine has no such thing */
#define CONTROL_LIMIT       -32004 /* too many clients */

#define CONTROL_FDS_MAX 32 /* descriptors that come with a request */

/* Who asks, and the descriptors that came along and nobody has taken. */
struct control_peer {
	uint64_t number; /* from 1, never used again */
	int fds[CONTROL_FDS_MAX];
	unsigned nfds;
	bool fds_lost; /* there were more than fit */
};

/* What the methods' opaque points to. */
struct control_target {
	struct vm *vm;                         /* NULL: there is none yet, or no more */
	const struct control_waiting *waiting; /* for one; NULL: nobody is answered */
	int statm_fd;              /* /proc/self/statm, opened before the sandbox; -1: not there */
	struct control_peer *peer; /* while a request is answered */
};

extern const struct jsonrpc_method control_methods[];         /* ended by a NULL name */
extern const struct jsonrpc_method control_waiting_methods[]; /* control_waiting.c */

/* Close what is left; take them all into @fds: how many there were, or -EMFILE if some got lost. */
void control_peer_close_fds(struct control_peer *p);
int control_peer_take_fds(struct control_peer *p, int fds[CONTROL_FDS_MAX]);

/*
 * Start @t for the client that asks: 0 with the answer in *@result, or an error code. Takes @arg only on
 * success.
 */
int control_start_job(struct control_target *c, const struct job_task *t, void *arg,
		      struct json_object **result, struct err *err);

/* control_snapshot.c, control_jobs.c */
int control_snapshot(void *opaque, struct json_object *params, struct json_object **result,
		     struct err *err);
int control_migrate(void *opaque, struct json_object *params, struct json_object **result,
		    struct err *err);
int control_cancel(void *opaque, struct json_object *params, struct json_object **result,
		   struct err *err);

#endif
