/*
 * last_signal.c - signals that end the machine, heard whatever the main loop is doing
 *
 * A machine that ends waits for what its disks have in hand, and so does one that is paused or reset; on the
 * main thread, which then hears no signal either. A device of the host that never answers (a network block
 * device without its server, a suspended one) would make that for ever. So signals have a thread of their
 * own, which passes them on and, from the second on, counts the seconds.
 *
 * What the process can do is to end: the guest runs no more, and names are free. The kernel buries it when no
 * thread of it is in an uninterruptible wait. Reads and writes with io_uring and direct=on are none, they live
 * on in the kernel by themselves; a flush is one (blkdev_issue_flush() on a worker of io_uring's), and so are
 * reads and writes of aio=threads. Then it stays a zombie that keeps its memory and the disk's lock until the
 * device answers, or its error comes; a SIGKILL does no better.
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/terminal.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/exit_status.h"
#include "vmm/last_signal.h"

#define PATIENCE_NS UINT64_C(5000000000)
#define PATHS_MAX   4

struct last_signal {
	struct loop *main, *own;
	struct loop_watch watch;
	struct loop_timer patience;
	void (*on_signal)(void *opaque, int sig);
	void *opaque;
	int fd;
	unsigned heard;
	_Atomic int sig; /* the latest */
	struct {
		char *path;
		dev_t dev;
		ino_t ino;
	} remove[PATHS_MAX];
};

static void go(struct last_signal *s)
{
	const int sig = atomic_load(&s->sig);

	terminal_restore();
	for (unsigned i = 0; i < PATHS_MAX; i++) {
		struct stat st;

		if (s->remove[i].path && !lstat(s->remove[i].path, &st) &&
		    st.st_dev == s->remove[i].dev && st.st_ino == s->remove[i].ino)
			unlink(s->remove[i].path);
	}
	log_warn("signal %d: the end does not come by itself, what disks have in hand is left to "
		 "the host",
		 sig);
	_exit(EXIT_SIGNAL + sig);
}

static void on_patience(struct loop_timer *t)
{
	go((struct last_signal *)((char *)t - offsetof(struct last_signal, patience)));
}

static void pass_on(void *arg)
{
	struct last_signal *s = arg;

	s->on_signal(s->opaque, atomic_load(&s->sig));
}

static void on_ready(struct loop_watch *w, uint32_t events)
{
	struct last_signal *s =
		(struct last_signal *)((char *)w - offsetof(struct last_signal, watch));
	struct signalfd_siginfo info;

	if (read(s->fd, &info, sizeof(info)) != sizeof(info))
		return;
	atomic_store(&s->sig, (int)info.ssi_signo);
	s->heard++;
	if (s->heard == 2)
		loop_timer_arm(&s->patience, PATIENCE_NS, 0);
	if (s->heard > 2 || loop_post(s->main, pass_on, s))
		go(s);
}

static int watch(struct last_signal *s, struct err *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	int rc = pthread_sigmask(SIG_BLOCK, &set, NULL);

	if (rc)
		return err_set_sys(err, rc, "cannot block signals");
	s->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->fd < 0)
		return err_set_sys(err, errno, "cannot watch signals");
	rc = loop_timer_init(s->own, &s->patience, on_patience, err);
	if (rc)
		return rc;
	rc = loop_add(s->own, &s->watch, s->fd, EPOLLIN, on_ready);
	if (rc)
		return err_set_sys(err, rc, "cannot watch signals");
	return loop_thread_start(s->own, "signals", err);
}

struct last_signal *last_signal_new(struct loop *main, void (*on_signal)(void *opaque, int sig),
				    void *opaque, struct err *err)
{
	struct last_signal *s = calloc(1, sizeof(*s));

	if (!s) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	s->main = main;
	s->on_signal = on_signal;
	s->opaque = opaque;
	s->fd = s->watch.fd = s->patience.fd = s->patience.watch.fd = -1;
	s->own = loop_new(err);
	if (!s->own || watch(s, err)) {
		last_signal_free(s);
		return NULL;
	}
	return s;
}

void last_signal_free(struct last_signal *s)
{
	if (!s)
		return;
	if (s->own) {
		loop_thread_stop(s->own);
		loop_timer_fini(&s->patience);
		loop_remove(&s->watch);
		loop_free(s->own);
	}
	fd_close(&s->fd);
	for (unsigned i = 0; i < PATHS_MAX; i++)
		free(s->remove[i].path);
	free(s);
}

struct names {
	struct last_signal *s;
	const char *const *paths;
	unsigned n;
};

static void remember(void *arg)
{
	const struct names *names = arg;

	for (unsigned i = 0; i < names->n && i < PATHS_MAX; i++) {
		const char *path = names->paths[i];
		struct stat st;

		if (!path || lstat(path, &st))
			continue;
		names->s->remove[i].path = strdup(path);
		names->s->remove[i].dev = st.st_dev;
		names->s->remove[i].ino = st.st_ino;
	}
}

void last_signal_removes(struct last_signal *s, const char *const *paths, unsigned n)
{
	struct names names = { s, paths, n };

	loop_call(s->own, remember, &names);
}
