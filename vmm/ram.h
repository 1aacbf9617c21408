/*
 * ram.h - guest RAM over one or more streams, in rounds
 *
 * A round goes over all connections at once, each with its share of the pages, and ends on each of
 * them. The receiver waits at that end for all connections, so a page sent again in a later round lands
 * later. Within a round no page is sent twice.
 *
 *	RAM_ZERO	{ u64 gpa, u64 bytes }...		these are zeroes
 *	RAM_DATA	u32 n, u32 0, n of the same, the bytes	bulk
 *	ROUND_END	u32 round (from 1), u32 last
 */
#ifndef VMM_RAM_H
#define VMM_RAM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/guest_memory.h"
#include "base/stream.h"
#include "vmm/dirty.h"
#include "vmm/transfer.h"

#define RAM_RANGES_MAX      256 /* in one section */
#define RAM_CONNECTIONS_MAX 16

/* ---- sending ---- */

struct ram_sender;

struct ram_sender_options {
	struct gmem *mem;
	struct dirty *dirty;
	struct stream *const
		*out; /* one a connection; borrowed, used by the sender's threads alone */
	unsigned connections;
	uint64_t bandwidth; /* bytes a second at most, 0: no limit */
	const struct transfer_watch *watch;
	/* Asked between pieces, on the caller's thread: stop, the other side has said something? */
	bool (*interrupted)(void *opaque);
	void *opaque;
};

struct ram_sender *ram_sender_new(const struct ram_sender_options *o, struct err *err);
void ram_sender_free(struct ram_sender *s); /* NULL is fine */

/*
 * Send everything in the dirty set, on this thread and the sender's own. @p is filled in and told as it
 * goes (round, sent, remaining). @last: nothing comes after it, and no bandwidth limit holds.
 * -ECANCELED; -EINTR: interrupted(); -errno of writing.
 */
int ram_send_round(struct ram_sender *s, struct transfer_progress *p, bool last, struct err *err);

uint64_t ram_sent(const struct ram_sender *s); /* bytes on the wire */
uint64_t
ram_send_ns(const struct ram_sender *s); /* the slowest connection's time in writing, last round */

/* ---- receiving ---- */

struct ram_round_end {
	uint32_t round;
	bool last;
};

/*
 * Take one connection's sections up to the end of round @round. Trusts nothing: every range is whole
 * pages inside RAM, or -EPROTO. Ranges of zeroes in the first round are left alone, as RAM starts as
 * zeroes. 0 with @end filled.
 */
int ram_receive_round(struct gmem *mem, struct stream *in, uint32_t round,
		      struct ram_round_end *end, struct err *err);

#endif
