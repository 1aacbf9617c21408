/*
 * event.h - a kick or an interrupt line
 *
 * In production an eventfd, so that KVM (ioeventfd, irqfd) and our loops meet in it without a system
 * call of ours in between; in tests and fuzzers a counter, so that no kernel is needed.
 */
#ifndef BASE_EVENT_H
#define BASE_EVENT_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/err.h"

struct event {
	int fd;                 /* non-blocking, close-on-exec; -1: the counter counts */
	_Atomic unsigned count; /* signals not yet cleared, in counter mode */
};

int event_init(struct event *e, struct err *err);
void event_init_counter(struct event *e);
void event_fini(struct event *e);

/* From any thread. Never blocks: a full eventfd is signalled already. */
void event_signal(struct event *e);

/* Signalled and not cleared. Does not consume: MSI-X pending bits are read this way. */
bool event_pending(const struct event *e);

/* Consume; true if it was pending. */
bool event_clear(struct event *e);

#endif
