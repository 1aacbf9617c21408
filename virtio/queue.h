/*
 * queue.h - the only ring parser (split virtqueues, virtio 1.2 chapter 2.7)
 *
 * virtq_pop() copies each descriptor out of guest memory once and checks the copy; what it returns
 * are host ranges that lie in RAM, readable part first, with their total lengths. After any rule is
 * broken the queue is broken until reset: pop returns -EPROTO and the device sets
 * DEVICE_NEEDS_RESET. Work per call is bounded by the queue's size whatever the guest writes.
 */
#ifndef VIRTIO_QUEUE_H
#define VIRTIO_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/event.h"
#include "base/guest_memory.h"
#include "base/state.h"

#define VIRTQ_SIZE_MAX 256 /* descriptors; a power of two */
#define VIRTQ_SEGS_MAX 256 /* host ranges in one chain, indirect ones included */

/* Guest-visible state (table virtq_state). Changes only before the queue is ready. */
/* The three parts of a queue in guest memory, in the order of either transport's registers. */
enum virtq_area { VIRTQ_DESC, VIRTQ_DRIVER, VIRTQ_DEVICE };

struct virtq_regs {
	gpa_t desc, driver, device; /* 16-, 2- and 4-byte aligned */
	uint16_t size;              /* 1..max, a power of two */
	uint16_t next_avail;        /* free running, as in the ring */
	uint16_t next_used;
	uint16_t signalled_used; /* used index when we last signalled (EVENT_IDX) */
	uint16_t vector;         /* MSI-X vector or 0xffff */
	uint8_t ready;
	uint8_t signalled_valid;
	uint8_t pad_[4];
};
extern const struct state_desc virtq_state;

struct virtq {
	struct virtq_regs regs;
	struct gmem *mem;
	uint16_t max;     /* size offered */
	uint16_t index;   /* in its device */
	uint16_t vectors; /* MSI-X vectors its transport has */
	bool event_idx;   /* VIRTIO_F_EVENT_IDX negotiated */
	bool indirect;    /* VIRTIO_F_INDIRECT_DESC negotiated */
	bool broken;      /* until reset */
	struct event kick;
	uint16_t in_flight;                 /* popped and not pushed; never above size */
	uint64_t busy[VIRTQ_SIZE_MAX / 64]; /* heads in flight: the same one twice is refused */
};

struct virtq_chain {
	uint16_t head;
	uint16_t nout, nin;       /* iov[0..nout) device-readable, then nin device-writable */
	uint64_t out_len, in_len; /* bytes; each range is at most 4 GiB - 1 */
	struct iovec *iov;        /* the caller's array of VIRTQ_SEGS_MAX (or @room) */
	uint16_t room;
};

int virtq_init(struct virtq *q, struct gmem *mem, uint16_t index, uint16_t max, struct err *err);
void virtq_fini(struct virtq *q);
void virtq_reset(struct virtq *q); /* nothing may be in flight */

/* Rings lie in RAM, are aligned, size is valid? Called when the driver sets ready. 0 or -EPROTO. */
int virtq_check(const struct virtq *q);

/* 1: @c filled; 0: nothing there; -EPROTO: the driver broke a rule, @why (may be NULL) says which. */
int virtq_pop(struct virtq *q, struct virtq_chain *c, const char **why);

/* Give back the most recently popped chain (net: not enough buffers). Only if none was popped since. */
void virtq_unpop(struct virtq *q, const struct virtq_chain *c);

/*
 * Return @head with @written bytes stored in its writable part (marks those pages dirty is the
 * caller's business through virtq_mark_written). The used index is published by virtq_flush().
 */
void virtq_push(struct virtq *q, uint16_t head, uint32_t written);

/* Mark the first @written bytes of the chain's writable part dirty. */
void virtq_mark_written(struct virtq *q, const struct virtq_chain *c, uint64_t written);

/*
 * After a load: might the driver wait for an interrupt that was on its way when the machine was saved?
 * Not when it has told (EVENT_IDX) that it has seen everything, or that it wants none.
 */
bool virtq_may_wait(const struct virtq *q);

/* Publish what was pushed; true if the driver wants an interrupt for it. Once a batch. */
bool virtq_flush(struct virtq *q);

/*
 * Ask to be kicked for the next buffer; true if one came meanwhile (look again). Suppress kicks.
 * The batch loop: do { suppress; while (pop) ...; } while (virtq_want_kick(q)).
 */
bool virtq_want_kick(struct virtq *q);
void virtq_no_kick(struct virtq *q);

/* Scatter and gather over a chain's parts; @off within the part. Bytes copied (short at the end). */
size_t virtq_copy_out(const struct virtq_chain *c, uint64_t off, void *dst, size_t len);
size_t virtq_copy_in(const struct virtq_chain *c, uint64_t off, const void *src, size_t len);

#endif
