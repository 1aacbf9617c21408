/*
 * runner.h - the process around a machine: main loop, signals, control socket, sandbox
 *
 * What `coracle run` and `coracle restore` have in common. A machine is made and started in between:
 *
 *	runner_open -> vm_new... -> runner_enter -> vm_start... -> runner_run -> runner_close
 *
 * Whatever fails, runner_close() undoes what came before it.
 */
#ifndef VMM_RUNNER_H
#define VMM_RUNNER_H

#include <stdbool.h>

#include "base/err.h"
#include "base/loop.h"
#include "vmm/config.h"
#include "vmm/vm.h"

struct control;
struct last_signal;

struct runner {
	const struct config *config; /* borrowed */
	struct loop *loop;
	struct control *control; /* NULL: none was asked for */
	struct vm *vm;           /* the user's to make; owned from then on */
	struct last_signal *signals;
	bool button_pressed;
	int stopped_by; /* a signal while there was no machine; it ended the loop, 0: none */
};

/* Before any thread and any large allocation of the process. */
void runner_prepare(void);

/* Main loop, signals, control socket (its name is taken from here on). 0 or -errno. */
int runner_open(struct runner *r, const struct config *c, struct err *err);

/* Where the machine's events go: for vm_new(). */
vm_event_fn runner_on_event(const struct runner *r);
void *runner_opaque(const struct runner *r);

/* Everything is open: give up what is no longer needed, as configured. 0 or -errno. */
int runner_enter(struct runner *r, struct err *err);

/* The machine was started: serve it until it ends. An exit status. */
int runner_run(struct runner *r, struct err *err);

void runner_close(struct runner *r);

#endif
