/*
 * transfer.h - how long operations (snapshot, migration) talk to whoever started them
 *
 * They run on a worker thread; what touches the machine's life they do on the main thread.
 */
#ifndef VMM_TRANSFER_H
#define VMM_TRANSFER_H

#include <stdbool.h>
#include <stdint.h>

struct transfer_progress {
	const char *stage;        /* static: its name in the one table of stages */
	unsigned round;           /* of RAM, from 1 */
	uint64_t sent, remaining; /* bytes of RAM: on the wire so far, left in this round */
	uint64_t total;           /* guest RAM */
	uint64_t bandwidth;       /* bytes a second, last round's */
	uint64_t dirty_rate;      /* bytes a second the guest wrote */
	uint64_t expected_downtime_ns;
};

struct transfer_watch {
	bool (*cancelled)(void *opaque); /* any thread; look often */
	void (*progress)(void *opaque, const struct transfer_progress *p); /* worker thread */
	/* Run fn(arg) on the main thread and wait for it (loop_call). */
	void (*on_main)(void *opaque, void (*fn)(void *arg), void *arg);
	void *opaque;
};

#endif
