/*
 * event.c - a kick or an interrupt line
 *
 * An eventfd whose only question is "zero or not". Its count is never used as a number: KVM's
 * ioeventfd and a second signal before the first is read merge into one.
 */
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/event.h"
#include "base/fd.h"

int event_init(struct event *e, struct err *err)
{
	event_init_counter(e);
	e->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (e->fd < 0)
		return err_set_sys(err, errno, "cannot make an eventfd (see ulimit -n)");
	return 0;
}

void event_init_counter(struct event *e)
{
	e->fd = -1;
	atomic_init(&e->count, 0);
}

void event_fini(struct event *e)
{
	fd_close(&e->fd);
}

void event_signal(struct event *e)
{
	const uint64_t one = 1;
	int saved = errno;

	if (e->fd < 0) {
		atomic_fetch_add(&e->count, 1);
		return;
	}
	/* EAGAIN: the count is full, so it is signalled. */
	while (write(e->fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	errno = saved;
}

bool event_pending(const struct event *e)
{
	struct pollfd p = { .fd = e->fd, .events = POLLIN };

	if (e->fd < 0)
		return atomic_load(&e->count) != 0;
	return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

bool event_clear(struct event *e)
{
	uint64_t n;
	ssize_t got;

	if (e->fd < 0)
		return atomic_exchange(&e->count, 0) != 0;
	do {
		got = read(e->fd, &n, sizeof(n));
	} while (got < 0 && errno == EINTR);
	return got == (ssize_t)sizeof(n);
}
