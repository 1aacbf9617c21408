/*
 * ctl_verbs.h - verbs of `coracle ctl` that are more than a question and its answer
 */
#ifndef VMM_CTL_VERBS_H
#define VMM_CTL_VERBS_H

#include <stdbool.h>
#include <stdio.h>

#include "base/err.h"
#include "vmm/control_client.h"

#define CTL_WORDS_MAX 32

struct ctl_call {
	struct control_client *client;        /* connected */
	const char *machine;                  /* as the user named it */
	const char *words[CTL_WORDS_MAX + 1]; /* what stands behind the verb; ended by NULL */
	unsigned nwords;
	bool json;
	unsigned timeout_ms; /* for an answer */
};

/* 0, or -errno with @err; -EINVAL before anything was asked: the words are wrong. */
int ctl_snapshot(const struct ctl_call *c, struct err *err);
int ctl_migrate(const struct ctl_call *c, struct err *err);
int ctl_console_resize(const struct ctl_call *c, struct err *err);

/* ---- for verbs that start a job ---- */

/*
 * Ask for @method with @params (taken) and descriptors @fds: 0 with the job's number in *@id. The client
 * is what the job lives by: closing it cancels.
 */
int ctl_start_job(const struct ctl_call *c, const char *method, struct json_object *params,
		  const int *fds, unsigned nfds, uint64_t *id, struct err *err);

/*
 * Show job @id's events until it is done: as lines with --json, else, on a terminal, by @draw, which
 * writes a line without its end. 0 with the last event in *@done (the caller's), -EREMOTEIO with its
 * message if it failed; -EINTR: a signal came. @signal_fd is watched, -1: none.
 */
int ctl_follow_job(const struct ctl_call *c, uint64_t id, int signal_fd,
		   void (*draw)(FILE *f, struct json_object *params), struct json_object **done,
		   struct err *err);

/* SIGINT, SIGTERM and SIGHUP blocked, and readable here instead. -errno. */
int ctl_catch_signals(struct err *err);

#endif
