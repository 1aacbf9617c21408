/*
 * delete.c - `delete`: nothing of a container may be left
 *
 * containerd runs this after each container's end, when the daemon has cleared everything away and there
 * is nothing to do, and when the daemon does not answer any more: then the machine has died with it (see
 * machine.c) or is about to, and what it had is found by names that are made from the container's. Only
 * what is this container's own is touched: its siblings in the pod may live.
 *
 * Everything that is missing is fine; so may be the bundle itself.
 */
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/bundle.h"
#include "k8s-shim/cgroup.h"
#include "k8s-shim/net.h"
#include "k8s-shim/proto/task.pb-c.h"
#include "k8s-shim/rootfs.h"
#include "k8s-shim/shim.h"
#include "k8s-shim/shim_socket.h"
#include "k8s-shim/state_dir.h"

#define KILLED 137

/* Processes that were killed take a moment to go; containerd waits 5 s at most. */
static void clear_cgroup(const struct bundle *b)
{
	struct err err = { 0 };
	struct cgroup cg;
	int rc = -EBUSY;

	if (cgroup_init(&cg, b->cgroup, &err))
		return;
	for (unsigned i = 0; i < 200 && rc; i++) {
		cgroup_kill(&cg);
		rc = cgroup_remove(&cg);
		if (rc)
			nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	}
	cgroup_fini(&cg);
}

/* The daemon of a pod. false: it has gone, and its socket has, now. */
static bool daemon_lives(const struct shim_args *a, const char *pod)
{
	struct err err = { 0 };
	cleanup_free char *path = shim_socket_path(a->address, a->ns, pod, &err);

	if (!path || shim_socket_answers(path))
		return true;
	unlink(path);
	return false;
}

/*
 * A daemon that lives has taken its rules out of the namespace, and may have made new ones for the next
 * container.
 */
static void clear_network(const struct shim_args *a, const struct bundle *b)
{
	if (b->netns && !b->sandbox && !daemon_lives(a, b->in_pod ? b->sandbox_id : a->id))
		pod_net_sweep(b->netns);
}

static void clear(const struct shim_args *a, const char *dir)
{
	cleanup_free char *state = state_dir_path(a->address, a->ns, a->id);
	struct err err = { 0 };
	struct bundle b;

	if (!bundle_load(&b, dir, &err)) {
		clear_cgroup(&b);
		clear_network(a, &b);
		bundle_fini(&b);
	}
	rootfs_unmount(dir);
	if (state)
		state_dir_remove(state);
	daemon_lives(a, a->id);
}

static int print_response(struct err *err)
{
	Pb__DeleteResponse r = PB__DELETE_RESPONSE__INIT;
	Pb__Timestamp at = PB__TIMESTAMP__INIT;
	struct timespec now;
	uint8_t bytes[64];

	clock_gettime(CLOCK_REALTIME, &now);
	at.seconds = now.tv_sec;
	at.nanos = (int32_t)now.tv_nsec;
	r.exit_status = KILLED;
	r.exited_at = &at;
	if (pb__delete_response__get_packed_size(&r) > sizeof(bytes))
		return 1;
	size_t n = pb__delete_response__pack(&r, bytes);
	int rc = fd_write_all(STDOUT_FILENO, bytes, n);

	return rc ? err_set_sys(err, rc, "standard output"), 1 : 0;
}

int shim_delete(const struct shim_args *a, struct err *err)
{
	char dir[PATH_MAX];

	if (*a->bundle)
		snprintf(dir, sizeof(dir), "%s", a->bundle);
	else if (!getcwd(dir, sizeof(dir)))
		dir[0] = '\0';
	log_set_level(LOG_ERR);
	if (*dir)
		clear(a, dir);
	return print_response(err);
}
