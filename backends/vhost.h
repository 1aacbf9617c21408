/*
 * vhost.h - the kernel's own hands on a NIC's rings (/dev/vhost-net, linux/vhost.h)
 *
 * One struct vhost serves one pair of queues, receive (ring 0) and transmit (ring 1). While a ring runs
 * a thread of the kernel takes its buffers, moves frames between guest RAM and the tap, and signals:
 * nothing of ours runs per frame. The ring's registers are not ours meanwhile; vhost_stop() tells how
 * far it got, with nothing in flight.
 *
 * Any thread may call, one at a time. All calls but vhost_open() return 0 or -errno.
 */
#ifndef BACKENDS_VHOST_H
#define BACKENDS_VHOST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/guest_memory.h"

enum { VHOST_RX, VHOST_TX, VHOST_RINGS };

/* Of what a driver may negotiate, the features that change what is done to rings and frames. */
extern const uint64_t vhost_features;

struct vhost;

struct vhost_ops {
	int (*request)(struct vhost *h, unsigned long request, void *arg); /* an ioctl */
	void (*free)(struct vhost *h);
};

struct vhost {
	const struct vhost_ops *ops;
	int fd;
	uint64_t features; /* as last told; without the log's */
	void *log;         /* as last told; NULL: stores are not logged */
	bool on[VHOST_RINGS];
	struct {
		uint64_t desc, avail, used; /* where it lies in this process */
		gpa_t used_gpa;
	} place[VHOST_RINGS];
};

/* Where a ring is, as checked by virtq_check(), and who is told; all borrowed. */
struct vhost_ring {
	gpa_t desc, driver, device;
	uint16_t size;
	uint16_t next;         /* the available entry to go on from */
	int kick, call, error; /* eventfds: from the driver, to it, something is wrong */
	int tap;
};

/*
 * @fd: inherited and then owned, or -1 to open one. Refuses by name a host without it and a kernel
 * that lacks what it has to know.
 */
int vhost_open(int fd, struct vhost **h, struct err *err);

/*
 * The kernel makes its thread, charged to the caller's control group and, from Linux 6.4 on, a thread of
 * this process with the caller's credentials. Once, before any ring. -EBUSY: it has served somebody else.
 */
int vhost_own(struct vhost *h, struct err *err);

/* What was negotiated, and where RAM is. No ring runs. */
int vhost_set_up(struct vhost *h, uint64_t features, const struct gmem *mem);

/* On error the ring does not run. Kicks from before may have been missed: signal @r->kick once more. */
int vhost_start(struct vhost *h, unsigned ring, const struct vhost_ring *r, const struct gmem *mem);

/* Touches no guest memory afterwards. @next: the entry to go on from; it used all before that. */
int vhost_stop(struct vhost *h, unsigned ring, uint16_t *next);

/* Signal @fd from now on. */
int vhost_set_call(struct vhost *h, unsigned ring, int fd);

/*
 * From the return on a bit is set in @log (gmem_dirty_log()) for each page stored to; NULL: no more.
 * Rings may run.
 */
int vhost_set_log(struct vhost *h, void *log);

#endif
