/*
 * netns.c - do something inside a network namespace
 *
 * A thread of its own enters the namespace and is gone afterwards. Entering and coming back on
 * the caller's thread would leave the shim in the pod's namespace when coming back fails, and
 * everything it did later would go to the wrong place.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "k8s-shim/netns.h"

struct visit {
	int ns;
	const char *path;
	int (*fn)(void *arg, struct err *err);
	void *arg;
	struct err *err;
	int rc;
};

static void *visit_thread(void *arg)
{
	struct visit *v = arg;

	if (setns(v->ns, CLONE_NEWNET))
		v->rc = err_set_sys(v->err, errno, "cannot enter the network namespace %s",
				    v->path);
	else
		v->rc = v->fn(v->arg, v->err);
	return NULL;
}

/* Deleted while its mount point stays: the path is an ordinary file then. */
static bool is_namespace(int fd)
{
	struct stat st, own;

	return !fstat(fd, &st) && !stat("/proc/thread-self/ns/net", &own) &&
	       st.st_dev == own.st_dev;
}

static bool is_own(int fd)
{
	struct stat st, own;

	return !fstat(fd, &st) && !stat("/proc/thread-self/ns/net", &own) &&
	       st.st_dev == own.st_dev && st.st_ino == own.st_ino;
}

int netns_call(const char *path, int (*fn)(void *arg, struct err *err), void *arg, struct err *err)
{
	cleanup_fd int ns = open(path, O_RDONLY | O_CLOEXEC);
	struct visit v = { .ns = ns, .path = path, .fn = fn, .arg = arg, .err = err };
	pthread_t thread;
	int rc;

	if (ns < 0)
		return err_set_sys(err, errno, "the pod's network namespace %s", path);
	if (!is_namespace(ns))
		return err_set(err, ENOENT, "the pod's network namespace %s is gone", path);
	if (is_own(ns))
		return err_set(
			err, EINVAL,
			"the pod uses the host's network, whose interfaces a virtual machine "
			"cannot take over: leave hostNetwork out of its spec");
	rc = pthread_create(&thread, NULL, visit_thread, &v);
	if (rc)
		return err_set_sys(err, rc, "no thread to enter the network namespace %s", path);
	pthread_join(thread, NULL);
	return v.rc;
}
