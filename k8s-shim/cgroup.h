/*
 * cgroup.h - the control group a task runs in
 *
 * Version 2, or version 1 with a hierarchy per controller, whichever the node has mounted. The path is
 * config.json's linux.cgroupsPath, of either style ("/kubepods/pod1/id", "kubepods-pod1.slice:cri:id").
 */
#ifndef K8S_SHIM_CGROUP_H
#define K8S_SHIM_CGROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "k8s-shim/proto/ttrpc.pb-c.h"

#define CGROUP_MOUNTS_MAX 16

struct cgroup_mount {
	char *dir;         /* of this task's group in the hierarchy */
	char *controllers; /* ",cpu,cpuacct," of version 1; "" of version 2 */
};

struct cgroup {
	bool unified; /* version 2 */
	struct cgroup_mount mounts[CGROUP_MOUNTS_MAX];
	unsigned nmounts; /* 0: no group, everything below does nothing */
};

/* Work out where it is; touches nothing. @path NULL or "": no group. */
int cgroup_init(struct cgroup *cg, const char *path, struct err *err);
void cgroup_fini(struct cgroup *cg);

/* Make the directories, with the CPU weight of @shares (0: leave it). What is there already is fine. */
int cgroup_make(struct cgroup *cg, uint64_t shares, struct err *err);
int cgroup_join(const struct cgroup *cg, struct err *err); /* the calling process */
int cgroup_set_cpus(const struct cgroup *cg, const char *cpus,
		    struct err *err); /* NULL, "": as it is */
int cgroup_set_shares(const struct cgroup *cg, uint64_t shares, struct err *err);
void cgroup_kill(const struct cgroup *cg);  /* SIGKILL to every process in it */
int cgroup_remove(const struct cgroup *cg); /* 0 or -EBUSY; gone already is fine */

/* Has the kernel killed for want of memory in this group? */
bool cgroup_oom_killed(const struct cgroup *cg);

/* Metrics as containerd wants them, packed into @out, whose value is malloc'ed. */
int cgroup_metrics(const struct cgroup *cg, Pb__Any *out, struct err *err);

/* For the two parts of this and tests. */
int cgroup_expand(const char *path, char *out, size_t room, struct err *err);
const char *cgroup_dir(const struct cgroup *cg, const char *controller); /* NULL: not mounted */
/* The one number in DIR/NAME; @otherwise where there is none ("max"). */
uint64_t cgroup_number(const char *dir, const char *name, uint64_t otherwise);
/* "key value" lines of DIR/NAME; a key that is not there leaves its value. */
struct cgroup_value {
	const char *key;
	uint64_t *value;
};
void cgroup_values(const char *dir, const char *name, const struct cgroup_value *v, unsigned n);

#endif
