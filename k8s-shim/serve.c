/*
 * serve.c - the pod's daemon
 *
 * One thread, one loop. Children are reaped on SIGCHLD, whichever they are, so none can be missed;
 * SIGTERM, which a node sends to everything when it shuts down, presses the power buttons.
 *
 * A daemon without any task is one that containerd has forgotten: it was killed between `start` and
 * Create, or between Delete and Shutdown, and will never ask for either again. So it ends by itself after
 * a while.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/service.h"
#include "k8s-shim/shim.h"

#define SEC  UINT64_C(1000000000)
#define IDLE (15 * SEC)

struct daemon {
	struct loop *loop;
	struct ttrpc_server *server;
	struct pod pod;
	struct service service;
	int signal_fd;
	struct loop_watch signal_watch;
	struct loop_timer last, idle;
};

static void reap(struct daemon *d)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		task_reaped(&d->pod, pid, status);
}

static void on_signal(struct loop_watch *w, uint32_t events)
{
	struct daemon *d = (struct daemon *)((char *)w - offsetof(struct daemon, signal_watch));
	struct signalfd_siginfo info;
	struct task *t;

	while (read(d->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGCHLD) {
			reap(d);
			continue;
		}
		log_info("signal %u", info.ssi_signo);
		LIST_FOREACH(t, &d->pod.tasks, link)
		if (t->vm && task_is_alive(t))
			task_kill(t, SIGTERM, NULL);
	}
}

static int watch_signals(struct daemon *d, struct err *err)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	d->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (d->signal_fd < 0)
		return err_set_sys(err, errno, "cannot watch signals");
	int rc = loop_add(d->loop, &d->signal_watch, d->signal_fd, EPOLLIN, on_signal);

	return rc ? err_set_sys(err, rc, "cannot watch signals") : 0;
}

/* ---- the end ---- */

static void stop(void *opaque)
{
	loop_stop(((struct daemon *)opaque)->loop);
}

static void on_last(struct loop_timer *t)
{
	stop((struct daemon *)((char *)t - offsetof(struct daemon, last)));
}

/* The last events are worth a moment, but containerd may have gone for good. */
static void shut_down(void *opaque)
{
	struct daemon *d = opaque;

	loop_timer_arm(&d->last, 2 * SEC, 0);
	events_when_drained(d->pod.events, stop, d);
}

static void on_idle(struct loop_timer *t)
{
	log_info("no task for a while: nobody needs this shim");
	stop((struct daemon *)((char *)t - offsetof(struct daemon, idle)));
}

static void on_change(struct pod *p)
{
	struct daemon *d = (struct daemon *)((char *)p - offsetof(struct daemon, pod));

	if (LIST_EMPTY(&p->tasks) && p->not_needed)
		shut_down(d);
	else if (LIST_EMPTY(&p->tasks))
		loop_timer_arm(&d->idle, IDLE, 0);
	else
		loop_timer_disarm(&d->idle);
}

static char *events_address(const struct shim_args *a)
{
	const char *given = getenv("TTRPC_ADDRESS");
	size_t room = strlen(a->address) + sizeof(".ttrpc");
	char *out;

	if (given && *given)
		return strdup(given);
	out = malloc(room);
	if (out) {
		strcpy(out, a->address);
		strcat(out, ".ttrpc");
	}
	return out;
}

static int set_up(struct daemon *d, const struct shim_args *a, int fd, struct err *err)
{
	cleanup_free char *address = events_address(a);

	d->loop = loop_new(err);
	if (!d->loop || !address)
		return err_set(err, ENOMEM, "out of memory");
	d->pod.loop = d->loop;
	d->pod.address = a->address;
	d->pod.ns = a->ns;
	LIST_INIT(&d->pod.tasks);
	d->pod.events = events_new(d->loop, address, a->ns, err);
	if (!d->pod.events)
		return err->code;
	d->service = (struct service){ .pod = &d->pod, .shut_down = shut_down, .opaque = d };
	d->server = ttrpc_server_new(fd, d->loop, service_handle, &d->service, err);
	if (!d->server)
		return err->code;
	int rc = loop_timer_init(d->loop, &d->last, on_last, err);

	if (!rc)
		rc = loop_timer_init(d->loop, &d->idle, on_idle, err);
	if (rc)
		return rc;
	d->pod.on_change = on_change;
	on_change(&d->pod);
	return watch_signals(d, err);
}

static void tear_down(struct daemon *d)
{
	struct task *t;

	d->pod.on_change = NULL;
	while ((t = LIST_FIRST(&d->pod.tasks)))
		task_free(t);
	ttrpc_server_free(d->server);
	events_free(d->pod.events);
	if (d->last.fd >= 0)
		loop_timer_fini(&d->last);
	if (d->idle.fd >= 0)
		loop_timer_fini(&d->idle);
	if (d->loop) {
		loop_remove(&d->signal_watch);
		loop_free(d->loop);
	}
	fd_close(&d->signal_fd);
}

int shim_serve(const struct shim_args *a, int fd, const char *path)
{
	struct daemon d = { .signal_fd = -1,
			    .signal_watch = { .fd = -1 },
			    .last = { .fd = -1 },
			    .idle = { .fd = -1 } };
	struct err err = { 0 };

	log_set_level(a->debug ? LOG_DEBUG : LOG_INFO);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_NAME, "coracle-shim");
	int rc = set_up(&d, a, fd, &err);

	if (!rc)
		rc = loop_run(d.loop);
	else
		log_err("%s", err.msg);
	unlink(path); /* first: nobody may find a daemon that is on its way out */
	tear_down(&d);
	return rc ? 1 : 0;
}
