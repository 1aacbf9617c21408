/*
 * job.h - one long operation at a time: a snapshot, a migration
 *
 * It runs on a worker thread while the machine lives on. What it does to the machine's life it does on
 * the main thread (transfer_watch.on_main). The machine tells who watches: job-progress, then job-done
 * or job-failed. Whoever asked for it may go away: then it is cancelled.
 *
 * Whatever ends or resets the machine ends the job first (job_end). What the guest itself asks for is
 * thereby carried out here, after the job has failed; a job that has committed runs to its end.
 *
 * Main thread unless said.
 */
#ifndef VMM_JOB_H
#define VMM_JOB_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "vmm/transfer.h"

struct job;
struct vm;

struct job_task {
	const char *name; /* "migrate" */
	/* On the worker: 0, or -errno. Members added to @result go into job-done. */
	int (*run)(struct job *j, void *arg, const struct transfer_watch *w,
		   struct json_object *result, struct err *err);
	/* Make run() return soon: it may be waiting for a peer. Short; the job's lock is held. */
	void (*cancel)(void *arg);
	/* run() has returned @rc and everybody was told. Frees @arg. */
	void (*end)(struct vm *vm, void *arg, int rc);
};

struct job *job_new(struct vm *vm, struct err *err); /* before the sandbox */
void job_free(struct job *j);                        /* ends what runs; NULL is fine */

/*
 * @owner: a client's number, 0: nobody's. Takes @arg when it returns 0; -EBUSY: one runs. *@id, from 1,
 * is what events call it.
 */
int job_start(struct job *j, const struct job_task *t, void *arg, uint64_t owner, uint64_t *id,
	      struct err *err);
const char *job_running(const struct job *j); /* its name; NULL: none */

/* @why completes "cancelled: ". False: nothing runs, or it can no longer be stopped. */
bool job_cancel(struct job *j, const char *why);
void job_owner_gone(struct job *j, uint64_t owner);

/*
 * The machine is about to end or to be reset: cancel, and wait for run() and end(). From within a call
 * that the job itself makes on the main thread it does nothing. NULL is fine.
 */
void job_end(struct job *j, const char *why);

/* ---- for run(), on the worker ---- */

/* Cancel by itself in @ns from now with the message @why (static); 0: no limit any more. */
void job_limit(struct job *j, uint64_t ns, const char *why);

/* From here on it cannot be cancelled. False: it has been already. */
bool job_commit(struct job *j);

/* If it was cancelled: -ECANCELED with the reason in @err (-ETIMEDOUT for job_limit()), else @rc. */
int job_why(struct job *j, int rc, struct err *err);

#endif
