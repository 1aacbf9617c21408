/*
 * migrate.h - a running machine moves to another process, on this host or another
 *
 * Exactly one of the two runs. The source keeps a machine that can run until it has said COMMIT, and
 * the target runs only when it has heard it and holds the locks of all disks. docs/migration.md says
 * what each side does when the other falls silent, at every step.
 */
#ifndef VMM_MIGRATE_H
#define VMM_MIGRATE_H

#include <stdint.h>

#include "vmm/job.h"
#include "vmm/migrate_door.h"
#include "vmm/ram.h"

struct machine_overrides;
struct run;
struct vm;

/* As the user sees them, in order. */
enum migrate_stage {
	MIGRATE_CONNECT,
	MIGRATE_CHECK,
	MIGRATE_PRECOPY,
	MIGRATE_SWITCHOVER,
	MIGRATE_RESUMED,
	MIGRATE_DONE,
	MIGRATE_STAGES
};

struct migrate_stage_info {
	const char *name, *what;
};
extern const struct migrate_stage_info migrate_stages[MIGRATE_STAGES];

/* ---- source: a job ---- */

#define MIGRATE_DOWNTIME_DEFAULT_NS 50000000u
#define MIGRATE_BANDWIDTH_MIN       (1u << 20) /* less would look like silence to the target */

struct migrate_options {
	int fds[RAM_CONNECTIONS_MAX]; /* connected; the job's from job_start() on */
	unsigned connections;
	uint64_t downtime_ns; /* switch over when the rest takes no longer */
	uint64_t bandwidth;   /* bytes a second at most, 0: no limit */
	uint64_t timeout_ns;  /* give up then, 0: never */
};

struct migrate *migrate_new(struct vm *vm, const struct migrate_options *o, struct err *err);
void migrate_free(struct migrate *m);      /* one that was not started; closes the descriptors */
extern const struct job_task migrate_task; /* its argument is a struct migrate */

/* ---- target: a job of the machine that is to be ---- */

struct incoming;

/* Takes over the descriptors of @g, also when it fails. Before the sandbox. */
struct incoming *incoming_new(const struct door_guest *g, struct err *err);
void incoming_free(struct incoming *in);

/* Tell the source that we will not, and why. */
void incoming_refuse(struct incoming *in, const char *why);

/* The machine is made and prepared: receive and run it. From success on the job owns @in. */
int incoming_start(struct incoming *in, struct vm *vm, struct err *err);

#endif
