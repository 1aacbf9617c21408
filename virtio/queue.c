/*
 * queue.c - split virtqueues
 *
 * The other side of the ring is hostile and runs while we look. So a descriptor is copied out once and
 * only the copy is believed; an index is compared with what we remember, never with what we read before;
 * and every loop here is bounded by the size of a table. A chain is refused whole: nothing of it has
 * been used when a rule turns out to be broken, and next_avail still points at it.
 *
 * Two facts bound what a device can be made to hold. A head that is in flight is refused when it comes
 * again (a driver may post it twice while a disk is slow, and the second completion would then free
 * what the first one has freed), and the driver may never offer more than the ring has room for. So
 * requests in flight never exceed the ring, and a device's own table indexed by head is enough.
 *
 * The ring's two sleeping hand-shakes are store, full fence, load on each side. Ours: publish the used
 * index, then look whether an interrupt is wanted; ask for kicks, then look for buffers once more.
 * Without the fence both sides can miss each other and the queue hangs (virtio 1.2, 2.7.13.3, 2.7.10).
 */
#include <endian.h>
#include <stdatomic.h>
#include <string.h>

#include "base/log.h"
#include "virtio/queue.h"

#define DESC_F_NEXT     1
#define DESC_F_WRITE    2
#define DESC_F_INDIRECT 4
#define DESC_SIZE       16

#define AVAIL_F_NO_INTERRUPT 1
#define USED_F_NO_NOTIFY     1

#define CHAIN_BYTES_MAX (UINT64_C(1) << 32) /* 2.7.4.2 */

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};
_Static_assert(sizeof(struct desc) == DESC_SIZE, "as in the ring");

/* Where things are in the driver's (available) and the device's (used) area: 2.7.6, 2.7.8. */
static gpa_t avail_idx(const struct virtq *q)
{
	return q->regs.driver + 2;
}

static gpa_t avail_entry(const struct virtq *q, uint16_t i)
{
	return q->regs.driver + 4 + 2ull * (i & (q->regs.size - 1));
}

static gpa_t used_event(const struct virtq *q)
{
	return q->regs.driver + 4 + 2ull * q->regs.size;
}

static gpa_t used_idx(const struct virtq *q)
{
	return q->regs.device + 2;
}

static gpa_t used_entry(const struct virtq *q, uint16_t i)
{
	return q->regs.device + 4 + 8ull * (i & (q->regs.size - 1));
}

static gpa_t avail_event(const struct virtq *q)
{
	return q->regs.device + 4 + 8ull * q->regs.size;
}

/* ---- life ---- */

int virtq_init(struct virtq *q, struct gmem *mem, uint16_t index, uint16_t max, struct err *err)
{
	*q = (struct virtq){ .mem = mem, .index = index, .max = max };
	event_init_counter(&q->kick);
	if (!max || max > VIRTQ_SIZE_MAX || max & (max - 1))
		return err_set(err, EINVAL, "a queue of %u entries: give a power of two up to %d",
			       max, VIRTQ_SIZE_MAX);
	virtq_reset(q);
	return event_init(&q->kick, err);
}

void virtq_fini(struct virtq *q)
{
	event_fini(&q->kick);
}

void virtq_reset(struct virtq *q)
{
	q->regs = (struct virtq_regs){ .size = q->max, .vector = 0xffff };
	q->event_idx = q->indirect = q->broken = false;
	q->in_flight = 0;
	memset(q->busy, 0, sizeof(q->busy));
}

int virtq_check(const struct virtq *q)
{
	const struct virtq_regs *r = &q->regs;
	const uint64_t size = r->size;

	if (!size || size > q->max || size & (size - 1))
		return -EPROTO;
	if (r->desc % 16 || r->driver % 2 || r->device % 4)
		return -EPROTO;
	if (!gmem_contains(q->mem, r->desc, DESC_SIZE * size) ||
	    !gmem_contains(q->mem, r->driver, 6 + 2 * size) ||
	    !gmem_contains(q->mem, r->device, 6 + 8 * size))
		return -EPROTO;
	return 0;
}

/* ---- chains ---- */

static bool is_busy(const struct virtq *q, uint16_t head)
{
	return q->busy[head / 64] >> head % 64 & 1;
}

static void set_busy(struct virtq *q, uint16_t head)
{
	q->busy[head / 64] |= UINT64_C(1) << head % 64;
	q->in_flight++;
}

static void clear_busy(struct virtq *q, uint16_t head)
{
	BUG_ON(head >= VIRTQ_SIZE_MAX || !is_busy(q, head));
	q->busy[head / 64] &= ~(UINT64_C(1) << head % 64);
	q->in_flight--;
}

static int read_desc(const struct virtq *q, gpa_t table, uint16_t i, struct desc *d)
{
	int rc = gmem_read(q->mem, table + (uint64_t)DESC_SIZE * i, d, sizeof(*d));

	d->addr = le64toh(d->addr);
	d->len = le32toh(d->len);
	d->flags = le16toh(d->flags);
	d->next = le16toh(d->next);
	return rc;
}

/* These return what is wrong, or NULL. */

static const char *add_range(const struct virtq *q, struct virtq_chain *c, const struct desc *d)
{
	if (!d->len)
		return "a descriptor has length 0";
	if (c->nout + c->nin == c->room)
		return "a chain has more descriptors than the device takes";
	if (gmem_iov(q->mem, d->addr, d->len, &c->iov[c->nout + c->nin]))
		return "a descriptor points outside RAM";
	if (d->flags & DESC_F_WRITE) {
		c->nin++;
		c->in_len += d->len;
	} else if (c->nin) {
		return "a device-readable descriptor follows a device-writable one";
	} else {
		c->nout++;
		c->out_len += d->len;
	}
	return c->out_len + c->in_len > CHAIN_BYTES_MAX ? "a chain is longer than 4 GiB" : NULL;
}

/*
 * Follow a chain through a table of @count descriptors. One that takes more than @count steps runs in
 * a circle. Stops at a descriptor that refers to an indirect table and leaves it in @indirect (len 0:
 * there was none), since only the queue's own table may hold one, as the last of its chain (2.7.5.3).
 */
static const char *walk(const struct virtq *q, struct virtq_chain *c, gpa_t table, unsigned count,
			uint16_t i, struct desc *indirect)
{
	struct desc d;

	for (unsigned steps = 0; steps < count; steps++) {
		if (read_desc(q, table, i, &d))
			return "a descriptor table lies outside RAM";
		if (d.flags & DESC_F_INDIRECT) {
			*indirect = d;
			return NULL;
		}
		const char *wrong = add_range(q, c, &d);

		if (wrong || !(d.flags & DESC_F_NEXT))
			return wrong;
		if (d.next >= count)
			return "a descriptor's next one is outside its table";
		i = d.next;
	}
	return "a chain of descriptors runs in a circle";
}

static const char *walk_indirect(const struct virtq *q, struct virtq_chain *c, const struct desc *d)
{
	const unsigned count = d->len / DESC_SIZE;
	struct desc nested = { 0 };

	if (!q->indirect)
		return "an indirect descriptor without the feature";
	if (d->flags & DESC_F_NEXT)
		return "an indirect descriptor has a next one";
	if (!d->len || d->len % DESC_SIZE)
		return "an indirect table's length is not a whole number of descriptors";
	if (count > VIRTQ_SEGS_MAX)
		return "an indirect table is larger than the device takes";
	if (!gmem_contains(q->mem, d->addr, d->len))
		return "an indirect table lies outside RAM";
	const char *wrong = walk(q, c, d->addr, count, 0, &nested);

	if (!wrong && nested.flags & DESC_F_INDIRECT)
		return "an indirect table inside an indirect table";
	return wrong;
}

static const char *read_chain(const struct virtq *q, struct virtq_chain *c)
{
	struct desc indirect = { 0 };

	if (gmem_load16(q->mem, avail_entry(q, q->regs.next_avail), &c->head))
		return "the available ring lies outside RAM";
	if (c->head >= q->regs.size)
		return "an available entry is outside the descriptor table";
	if (is_busy(q, c->head))
		return "a chain was made available again before it was used";
	const char *wrong = walk(q, c, q->regs.desc, q->regs.size, c->head, &indirect);

	if (!wrong && indirect.flags & DESC_F_INDIRECT)
		wrong = walk_indirect(q, c, &indirect);
	return wrong;
}

/* Entries between what we have taken and what the driver says. */
static const char *count_available(const struct virtq *q, uint16_t *n)
{
	uint16_t idx;

	if (gmem_load16(q->mem, avail_idx(q), &idx))
		return "the available ring lies outside RAM";
	*n = (uint16_t)(idx - q->regs.next_avail);
	if (*n > q->regs.size - q->in_flight)
		return "the available index is further ahead than the ring has entries";
	return NULL;
}

static int broken(struct virtq *q, const char *wrong, const char **why)
{
	q->broken = true;
	if (why)
		*why = wrong;
	return -EPROTO;
}

int virtq_pop(struct virtq *q, struct virtq_chain *c, const char **why)
{
	uint16_t n;

	if (q->broken)
		return broken(q, "the queue is broken until the device is reset", why);
	if (!q->regs.ready)
		return 0;
	const char *wrong = count_available(q, &n);

	if (wrong)
		return broken(q, wrong, why);
	if (!n)
		return 0;
	if (!c->room || c->room > VIRTQ_SEGS_MAX)
		c->room = VIRTQ_SEGS_MAX;
	c->nout = c->nin = 0;
	c->out_len = c->in_len = 0;
	wrong = read_chain(q, c);
	if (wrong)
		return broken(q, wrong, why);
	q->regs.next_avail++;
	set_busy(q, c->head);
	return 1;
}

void virtq_unpop(struct virtq *q, const struct virtq_chain *c)
{
	clear_busy(q, c->head);
	q->regs.next_avail--;
}

/* ---- giving back ---- */

void virtq_push(struct virtq *q, uint16_t head, uint32_t written)
{
	const struct {
		uint32_t id, len;
	} e = { htole32(head), htole32(written) };

	clear_busy(q, head);
	/* The area was RAM when the queue became ready, and RAM stays. */
	if (gmem_write(q->mem, used_entry(q, q->regs.next_used), &e, sizeof(e)))
		q->broken = true;
	q->regs.next_used++;
}

void virtq_mark_written(struct virtq *q, const struct virtq_chain *c, uint64_t written)
{
	for (unsigned i = c->nout; written && i < c->nout + c->nin; i++) {
		struct iovec v = c->iov[i];

		if (v.iov_len > written)
			v.iov_len = written;
		gmem_mark_dirty(q->mem, &v, 1);
		written -= v.iov_len;
	}
}

/* Did the index move past @event on its way from @old to @now? 2.7.7.1, 2.7.10. */
static bool passed(uint16_t event, uint16_t now, uint16_t old)
{
	return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

bool virtq_flush(struct virtq *q)
{
	struct virtq_regs *r = &q->regs;
	const uint16_t old = r->signalled_used;
	const bool first = !r->signalled_valid;
	uint16_t v = 0;

	if (!r->ready || r->next_used == old)
		return false;
	if (gmem_store16(q->mem, used_idx(q), r->next_used)) {
		q->broken = true;
		return false;
	}
	r->signalled_used = r->next_used;
	r->signalled_valid = 1;
	atomic_thread_fence(memory_order_seq_cst);
	if (!q->event_idx)
		return !gmem_load16(q->mem, r->driver, &v) && !(v & AVAIL_F_NO_INTERRUPT);
	return !gmem_load16(q->mem, used_event(q), &v) && (first || passed(v, r->next_used, old));
}

bool virtq_may_wait(const struct virtq *q)
{
	uint16_t v = 0;

	if (!q->regs.ready || !q->regs.signalled_valid)
		return false;
	if (q->event_idx)
		return !gmem_load16(q->mem, used_event(q), &v) && v != q->regs.next_used;
	return !gmem_load16(q->mem, q->regs.driver, &v) && !(v & AVAIL_F_NO_INTERRUPT);
}

/* ---- kicks ---- */

bool virtq_want_kick(struct virtq *q)
{
	uint16_t n = 0;

	if (!q->regs.ready || q->broken)
		return false;
	if (q->event_idx)
		gmem_store16(q->mem, avail_event(q), q->regs.next_avail);
	else
		gmem_store16(q->mem, q->regs.device, 0);
	atomic_thread_fence(memory_order_seq_cst);
	/* An impossible index counts as something to look at: pop says what is wrong. */
	return count_available(q, &n) || n;
}

void virtq_no_kick(struct virtq *q)
{
	/* With EVENT_IDX there is nothing to switch off: the event index simply stays behind. */
	if (q->regs.ready && !q->broken && !q->event_idx)
		gmem_store16(q->mem, q->regs.device, USED_F_NO_NOTIFY);
}

/* ---- bytes ---- */

/* To (@in) or from the ranges; @off from the first one's start. Bytes copied. */
static size_t copy(const struct iovec *iov, unsigned n, uint64_t off, void *buf, size_t len,
		   bool in)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		uint8_t *host = (uint8_t *)iov[i].iov_base + off;
		size_t part = iov[i].iov_len - off;

		if (part > len - done)
			part = len - done;
		if (in)
			memcpy(host, (uint8_t *)buf + done, part);
		else
			memcpy((uint8_t *)buf + done, host, part);
		done += part;
		off = 0;
	}
	return done;
}

size_t virtq_copy_out(const struct virtq_chain *c, uint64_t off, void *dst, size_t len)
{
	return copy(c->iov, c->nout, off, dst, len, false);
}

size_t virtq_copy_in(const struct virtq_chain *c, uint64_t off, const void *src, size_t len)
{
	return copy(c->iov + c->nout, c->nin, off, (void *)src, len, true);
}

/* ---- state ---- */

static const struct state_field virtq_fields[] = {
	STATE_U64(1, struct virtq_regs, desc),
	STATE_U64(2, struct virtq_regs, driver),
	STATE_U64(3, struct virtq_regs, device),
	STATE_U16(4, struct virtq_regs, size),
	STATE_U16(5, struct virtq_regs, next_avail),
	STATE_U16(6, struct virtq_regs, next_used),
	STATE_U16(7, struct virtq_regs, signalled_used),
	STATE_U16(8, struct virtq_regs, vector),
	STATE_U8(9, struct virtq_regs, ready),
	STATE_U8(10, struct virtq_regs, signalled_valid),
	STATE_PAD(struct virtq_regs, pad_),
};

static int virtq_validate(const void *regs, const void *device, struct err *err)
{
	const struct virtq *q = device;
	const struct virtq loaded = { .regs = *(const struct virtq_regs *)regs,
				      .mem = q->mem,
				      .max = q->max };
	const struct virtq_regs *r = &loaded.regs;

	if (!r->size || r->size > q->max || r->size & (r->size - 1))
		return err_set(err, EINVAL, "virtq.size: %u, while this queue has up to %u",
			       r->size, q->max);
	if (r->ready > 1)
		return err_set(err, EINVAL, "virtq.ready: %u", r->ready);
	if (r->signalled_valid > 1)
		return err_set(err, EINVAL, "virtq.signalled_valid: %u", r->signalled_valid);
	if (r->ready && virtq_check(&loaded))
		return err_set(err, EINVAL, "virtq.desc: a ring is not aligned or not in RAM");
	/* State is saved with nothing in flight and everything published. */
	if (r->next_used != r->next_avail)
		return err_set(err, EINVAL, "virtq.next_used: %u, with next_avail %u", r->next_used,
			       r->next_avail);
	if (r->signalled_used != r->next_used)
		return err_set(err, EINVAL, "virtq.signalled_used: %u, with next_used %u",
			       r->signalled_used, r->next_used);
	if (r->vector != 0xffff && r->vector >= q->vectors)
		return err_set(err, EINVAL, "virtq.vector: %u of %u", r->vector, q->vectors);
	return 0;
}

const struct state_desc virtq_state =
	STATE_DESC("virtq", struct virtq_regs, virtq_fields, virtq_validate);
