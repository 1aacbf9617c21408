/*
 * machine.h - one `coracle run`: its process, its control socket, its serial port or console
 *
 * The machine is assembled and waits (--paused on) before machine_start()'s ready is called; it runs
 * after a "resume". The pod reaps its processes and tells the machine of its end (machine_ended()).
 */
#ifndef K8S_SHIM_MACHINE_H
#define K8S_SHIM_MACHINE_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/loop.h"
#include "k8s-shim/cgroup.h"
#include "k8s-shim/control_client.h"
#include "k8s-shim/io.h"

struct machine;

struct machine_options {
	const char *vmm;       /* program */
	const char *state_dir; /* has the configuration vm.json; sockets are made there */
	const char *netns;     /* NULL: stay */
	const struct cgroup *cgroup;
	const int *fds;       /* to inherit under the same numbers, -1 terminated */
	const int *oom_score; /* NULL: stay */
	struct io *io;        /* borrowed */
	bool console;         /* it has a virtio console, which is what @io shows */
};

/* @err NULL: it is there and waits. Otherwise why not, and its process has ended or is about to. */
typedef void machine_ready(void *opaque, const struct err *err);

/* NULL: could not be started. @ready is called later, once. Everything in @o but io is copied or used. */
struct machine *machine_start(struct loop *loop, const struct machine_options *o,
			      machine_ready *ready, void *opaque, struct err *err);

pid_t machine_pid(const struct machine *m);
void machine_call(struct machine *m, const char *method, const char *params, control_answer *fn,
		  void *opaque);
void machine_kill(struct machine *m); /* SIGKILL */

/*
 * The process has been reaped: take in what it has left to say, and fail what waits for an answer. The
 * exit status, as a shell gives it.
 */
int machine_ended(struct machine *m, int wait_status);

/* Why it ended, in its own words; "" if it said nothing. */
const char *machine_reason(const struct machine *m);

void machine_free(struct machine *m); /* kills it if it runs; NULL is fine */

/* ---- names in the state directory ---- */

#define MACHINE_CONFIG  "vm.json"
#define MACHINE_CONTROL "control"
#define MACHINE_SERIAL  "serial"
#define MACHINE_CONSOLE "console"

#endif
