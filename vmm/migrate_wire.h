/*
 * migrate_wire.h - what source and target of a migration say to each other beside RAM and state
 *
 *	source, each connection    HELLO
 *	source, first connection   HEADER MACHINE CPU
 *	target                     REPLY accept | failed
 *	source                     RAM, ROUND_END	again and again
 *	target                     REPLY round
 *	source                     the last round; CLOCK ... END
 *	target                     REPLY ready
 *	source                     COMMIT		the machine is the target's now
 *	target                     REPLY running | failed
 *
 * The target says failed, with a sentence for the user, at any time instead.
 */
#ifndef VMM_MIGRATE_WIRE_H
#define VMM_MIGRATE_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/stream.h"

#define MIGRATE_PROTOCOL     1
#define MIGRATE_SESSION_SIZE 16

struct migrate_hello {
	uint32_t protocol;
	uint32_t connections, index; /* index below connections, 0: the first */
	uint32_t zero;
	uint8_t session[MIGRATE_SESSION_SIZE]; /* random: connections of one migration */
};

enum migrate_answer {
	MIGRATE_ACCEPT = 1, /* arg: 1 + the judge's number, 0: there is none (migrate_target.c) */
	MIGRATE_ROUND,      /* arg: the round that has arrived whole */
	MIGRATE_READY,      /* everything is loaded; it would run if it owned the disks */
	MIGRATE_RUNNING,    /* it owns the disks and runs */
	MIGRATE_FAILED,     /* it does not and will not run */
};

struct migrate_reply {
	uint32_t what, arg;
	char text[ERR_MSG_MAX]; /* MIGRATE_FAILED; printable */
};

/* The mark of this migration's locks (backends/block.h): both sides know it, and nobody else. */
uint64_t migrate_mark(const uint8_t *session);

int migrate_put_hello(struct stream *s, const struct migrate_hello *h, struct err *err);
/* -EPROTO also for values that make no sense. */
int migrate_get_hello(struct stream *s, struct migrate_hello *h, struct err *err);

int migrate_put_reply(struct stream *s, enum migrate_answer what, uint32_t arg, const char *text,
		      struct err *err);
/* -ENODATA: the connection has ended. */
int migrate_get_reply(struct stream *s, struct migrate_reply *r, struct err *err);

int migrate_put_commit(struct stream *s, bool paused, struct err *err);
int migrate_get_commit(struct stream *s, bool *paused, struct err *err);

#endif
