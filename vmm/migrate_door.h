/*
 * migrate_door.h - who knocks where a machine is awaited
 *
 * Anybody can connect to a waiting target. A source is whoever has said, on all of its connections, who
 * it is and what machine it brings; until then it is somebody among others, who costs a bounded amount
 * of memory and time and cannot keep the others out.
 */
#ifndef VMM_MIGRATE_DOOR_H
#define VMM_MIGRATE_DOOR_H

#include "base/err.h"
#include "base/loop.h"
#include "vmm/migrate_wire.h"
#include "vmm/peer.h"
#include "vmm/ram.h"
#include "vmm/vm_state.h"

struct door;

/* A source. Whoever takes it owns the descriptors and the header. */
struct door_guest {
	unsigned connections;
	int fds[RAM_CONNECTIONS_MAX]; /* blocking; the first @connections, in order */
	struct vm_header header;      /* read from the first */
	uint8_t session[MIGRATE_SESSION_SIZE];
};

/*
 * Listen, and look at who comes while @loop runs. @on_guest is called once, when a source is there:
 * nobody else is let in from then on. NULL on error.
 */
struct door *door_new(const struct peer_address *a, struct loop *loop,
		      void (*on_guest)(void *opaque), void *opaque, struct err *err);
void door_take(struct door *d, struct door_guest *g); /* after @on_guest, once */
void door_free(struct door *d);                       /* NULL is fine */

#endif
