/*
 * blk.c - virtio block device
 *
 * The way of a batch. A kick takes every chain there is, hands the requests to the backend, and submits
 * once. Completions come in passes (block.h): pass_begin takes dev.lock, done() only stores statuses and
 * used entries, pass_end publishes each touched queue once and signals it at most once. So a batch of
 * requests costs one system call down and one interrupt up, whatever its size.
 *
 * Memory. A request's room for ranges is small, as most requests have few; one with more gets a full
 * array from a list of spare ones. Requests come in slabs when more are in flight than ever before. So
 * in steady state nothing is allocated, and an idle disk of 64 queues costs no more than one with a
 * single queue. When the host is out of memory chains stay in the ring until a request ends: one request
 * and one array exist from the start, so there is always one that will.
 *
 * Durability. The guest sees a write cache unless it has turned it off, or cannot flush (5.2.6.2): then
 * a write is followed by a flush before it is answered, unless the host does that by itself (O_DSYNC).
 * Zeroes always are, since O_DSYNC does not speak of fallocate().
 *
 * A failed request tells the guest "I/O error", the log and the listener once each; what to do about it
 * is the guest's decision, as with any disk.
 */
#include <endian.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "virtio/blk.h"
#include "virtio/blk_parse.h"
#include "virtio/blk_wire.h"

#define WCE offsetof(struct blk_wire_config, wce)

#define FEW        8  /* ranges within a request */
#define SLAB       16 /* requests allocated together */
#define SPARE_MAX  16 /* arrays kept */
#define QUEUES_MAX 64 /* bits of touched and starved */

struct virtio_blk;

struct request {
	struct block_request io; /* first */
	struct virtio_blk *d;
	struct request *next; /* free */
	struct iovec *iov;    /* few, or a spare array; or NULL */
	uint8_t *status;      /* in guest memory */
	uint32_t room;        /* writable data bytes, without the status */
	uint32_t filled;      /* leading ones we stored to */
	uint16_t head;
	uint8_t queue;
	bool sync;              /* a flush must follow */
	uint8_t range, nranges; /* discard, write zeroes: in iov's memory */
	union {
		struct iovec few[FEW];
		struct blk_range few_ranges[FEW];
	};
};

struct slab {
	struct slab *next;
	struct request requests[SLAB];
};

struct spare {
	struct spare *next;
};
_Static_assert(sizeof(struct blk_range) <= sizeof(struct iovec), "ranges live where iovecs do");

struct counters {
	uint64_t read_ops, read_bytes, write_ops, write_bytes, flush_ops, discard_ops, errors;
};

struct virtio_blk {
	struct virtio v; /* first */
	struct block *disk;
	struct blk_limits limits; /* features as offered */
	bool durable;             /* the host's writes are: O_DSYNC */
	uint16_t queue_size;
	char serial[BLK_ID_LEN];
	struct slab *slabs;
	struct request *free;
	struct spare *spares;
	unsigned nspares;
	uint64_t touched; /* queues with something to publish */
	uint64_t starved; /* queues left for lack of memory */
	bool queued;      /* the backend has something to submit */
	struct counters count;
	struct iovec scratch[VIRTQ_SEGS_MAX];
	struct blk_parsed parsed;
};

static struct virtio_blk *of(struct virtio *v)
{
	return (struct virtio_blk *)v;
}

/* ---- memory ---- */

static bool add_slab(struct virtio_blk *d)
{
	struct slab *s = calloc(1, sizeof(*s));

	if (!s)
		return false;
	s->next = d->slabs;
	d->slabs = s;
	for (unsigned i = 0; i < SLAB; i++) {
		s->requests[i].d = d;
		s->requests[i].next = d->free;
		d->free = &s->requests[i];
	}
	return true;
}

static struct request *get_request(struct virtio_blk *d)
{
	if (!d->free && !add_slab(d))
		return NULL;
	struct request *r = d->free;

	d->free = r->next;
	r->iov = NULL;
	return r;
}

static void put_spare(struct virtio_blk *d, struct spare *s)
{
	if (d->nspares == SPARE_MAX) {
		free(s);
		return;
	}
	s->next = d->spares;
	d->spares = s;
	d->nspares++;
}

/* The last one is handed out as well: it comes back. */
static struct iovec *get_spare(struct virtio_blk *d)
{
	struct spare *s = d->spares;

	if (!s)
		return malloc(VIRTQ_SEGS_MAX * sizeof(struct iovec));
	d->spares = s->next;
	d->nspares--;
	return (struct iovec *)s;
}

static void put_request(struct virtio_blk *d, struct request *r)
{
	if (r->iov && r->iov != r->few)
		put_spare(d, (struct spare *)r->iov);
	r->iov = NULL;
	r->next = d->free;
	d->free = r;
}

/* Keep what was parsed as long as the request is in flight. */
static bool keep(struct virtio_blk *d, struct request *r, const void *from, size_t len)
{
	r->iov = len <= sizeof(r->few) ? r->few : get_spare(d);
	if (!r->iov)
		return false;
	if (len)
		memcpy(r->iov, from, len);
	return true;
}

/* ---- completion ---- */

static const char *op_name(enum block_op op)
{
	static const char *const names[] = { "read", "write", "flush", "discard", "write-zeroes" };

	return names[op];
}

static void io_failed(struct virtio_blk *d, const struct request *r, int error)
{
	const struct device_listener *l = d->v.dev.listener;

	d->count.errors++;
	log_guest(&d->v.complaints,
		  "%s: %s of %" PRIu64 " bytes at offset %" PRIu64 " failed: %s (disk %s)",
		  d->v.dev.name, op_name(r->io.op), r->io.len, r->io.offset, strerror(-error),
		  d->disk->path);
	if (l && l->io_error)
		l->io_error(l->opaque, &d->v.dev, op_name(r->io.op), r->io.offset, r->io.len,
			    error);
}

/*
 * The used length counts leading bytes, and the status is the last one: it counts when all before it
 * were stored to (2.7.8.2).
 */
static void answer(struct virtio_blk *d, struct request *r, uint8_t status)
{
	const struct iovec at = { r->status, 1 };

	*r->status = status;
	gmem_mark_dirty(d->v.mem, &at, 1);
	virtq_push(&d->v.queues[r->queue], r->head, r->filled == r->room ? r->room + 1 : r->filled);
	d->touched |= UINT64_C(1) << r->queue;
	put_request(d, r);
	virtio_end(&d->v);
}

static void put_to_disk(struct virtio_blk *d, struct request *r)
{
	d->disk->ops->queue(d->disk, &r->io);
	d->queued = true;
}

static void submit(struct virtio_blk *d)
{
	if (!d->queued)
		return;
	d->queued = false;
	d->disk->ops->submit(d->disk);
}

static void count(struct virtio_blk *d, const struct request *r)
{
	switch (r->io.op) {
	case BLOCK_READ:
		d->count.read_ops++;
		d->count.read_bytes += r->io.len;
		break;
	case BLOCK_WRITE:
	case BLOCK_WRITE_ZEROES:
		d->count.write_ops++;
		d->count.write_bytes += r->io.len;
		break;
	case BLOCK_FLUSH:
		d->count.flush_ops++;
		break;
	case BLOCK_DISCARD:
		d->count.discard_ops++;
		break;
	}
}

static void set_range(struct request *r)
{
	const struct blk_range *range = (const struct blk_range *)r->iov + r->range;

	r->io.offset = range->offset;
	r->io.len = (uint64_t)range->sectors * BLK_SECTOR;
	r->io.unmap = range->unmap;
}

/* A request that is several to the backend: true if there is another one, which is queued. */
static bool go_on(struct virtio_blk *d, struct request *r)
{
	if (r->range + 1 < r->nranges) {
		r->range++;
		set_range(r);
	} else if (r->sync) {
		r->sync = false;
		r->nranges = 0;
		r->io.op = BLOCK_FLUSH;
	} else {
		return false;
	}
	put_to_disk(d, r);
	return true;
}

static void on_done(struct block_request *io, int result)
{
	struct request *r = (struct request *)io;
	struct virtio_blk *d = r->d;

	/* Even a read that failed may have stored some. */
	if (io->op == BLOCK_READ)
		gmem_mark_dirty(d->v.mem, r->iov, io->niov);
	if (result) {
		io_failed(d, r, result);
		answer(d, r, BLK_S_IOERR);
		return;
	}
	count(d, r);
	if (go_on(d, r))
		return;
	if (io->op == BLOCK_READ)
		r->filled = (uint32_t)io->len;
	answer(d, r, BLK_S_OK);
}

/* ---- taking requests ---- */

static bool writes_through(const struct virtio_blk *d)
{
	if (virtio_has(&d->v, BLK_F_CONFIG_WCE))
		return !d->v.regs.config[WCE];
	return !virtio_has(&d->v, BLK_F_FLUSH);
}

static uint32_t give_id(struct virtio_blk *d, const struct blk_parsed *p)
{
	uint32_t given = 0;

	for (unsigned i = 0; i < p->niov && given < BLK_ID_LEN; i++) {
		const size_t left = BLK_ID_LEN - given;
		const struct iovec part = {
			p->iov[i].iov_base,
			p->iov[i].iov_len < left ? p->iov[i].iov_len : left,
		};

		memcpy(part.iov_base, d->serial + given, part.iov_len);
		gmem_mark_dirty(d->v.mem, &part, 1);
		given += (uint32_t)part.iov_len;
	}
	return given;
}

/* False: no memory to keep it in. */
static bool start_io(struct virtio_blk *d, struct request *r, const struct blk_parsed *p)
{
	static const enum block_op ops[] = {
		[BLK_READ] = BLOCK_READ,
		[BLK_WRITE] = BLOCK_WRITE,
		[BLK_FLUSH] = BLOCK_FLUSH,
		[BLK_DISCARD] = BLOCK_DISCARD,
		[BLK_WRITE_ZEROES] = BLOCK_WRITE_ZEROES,
	};

	r->io = (struct block_request){
		.op = ops[p->kind],
		.offset = p->offset,
		.len = p->len,
		.niov = p->niov,
		.done = on_done,
	};
	r->range = 0;
	r->nranges = (uint8_t)p->nranges;
	r->sync = writes_through(d) &&
		  ((p->kind == BLK_WRITE && !d->durable) || p->kind == BLK_WRITE_ZEROES);
	if (p->nranges) {
		if (!keep(d, r, p->ranges, p->nranges * sizeof(p->ranges[0])))
			return false;
		set_range(r);
	} else if (!keep(d, r, p->iov, p->niov * sizeof(*p->iov))) {
		return false;
	}
	r->io.iov = r->iov;
	put_to_disk(d, r);
	return true;
}

/* False: no memory, the chain stays in the ring. */
static bool start(struct virtio_blk *d, struct request *r, const struct blk_parsed *p)
{
	switch (p->kind) {
	case BLK_NONE:
		if (p->wrong)
			log_guest(&d->v.complaints, "%s: a request of the guest %s", d->v.dev.name,
				  p->wrong);
		answer(d, r, p->status);
		return true;
	case BLK_GET_ID:
		r->filled = give_id(d, p);
		answer(d, r, BLK_S_OK);
		return true;
	default:
		return start_io(d, r, p);
	}
}

static struct blk_limits limits_now(const struct virtio_blk *d)
{
	struct blk_limits l = d->limits;

	l.discard = virtio_has(&d->v, BLK_F_DISCARD);
	l.write_zeroes = virtio_has(&d->v, BLK_F_WRITE_ZEROES);
	return l;
}

/* One chain. False: there was none, or it could not be taken. */
static bool take(struct virtio_blk *d, unsigned queue, const struct blk_limits *l)
{
	struct virtq *q = &d->v.queues[queue];
	struct virtq_chain c = { .iov = d->scratch, .room = VIRTQ_SEGS_MAX };
	struct request *r = get_request(d);
	const char *why = NULL;

	if (!r) {
		d->starved |= UINT64_C(1) << queue;
		return false;
	}
	int n = virtq_pop(q, &c, &why);

	if (n == 1 && blk_parse(l, &c, &d->parsed)) {
		virtq_unpop(q, &c);
		why = "a disk request has no room for its status";
		n = -EPROTO;
	}
	if (n != 1) {
		put_request(d, r);
		if (n < 0)
			virtio_fail(&d->v, why);
		return false;
	}
	r->head = c.head;
	r->queue = (uint8_t)queue;
	r->status = d->parsed.status_byte;
	r->room = (uint32_t)c.in_len;
	r->filled = 0;
	virtio_begin(&d->v);
	if (start(d, r, &d->parsed))
		return true;
	virtio_end(&d->v);
	virtq_unpop(q, &c);
	put_request(d, r);
	d->starved |= UINT64_C(1) << queue;
	return false;
}

/*
 * All there is, but not for ever: a driver that goes on adding requests which are answered at once would
 * keep the lock. What is left then comes with the next turn of the loop.
 */
static void take_all(struct virtio_blk *d, unsigned queue)
{
	struct virtq *q = &d->v.queues[queue];
	const struct blk_limits l = limits_now(d);
	unsigned budget = 2 * d->queue_size;

	d->starved &= ~(UINT64_C(1) << queue);
	while (budget) {
		virtq_no_kick(q);
		while (budget && take(d, queue, &l))
			budget--;
		if (!budget)
			break;
		/* Starved: its own completions will look again. */
		if (d->starved >> queue & 1 || !virtio_running(&d->v) || !virtq_want_kick(q))
			return;
		budget--; /* an index that goes to and fro is work, too */
	}
	event_signal(&q->kick); /* the turn is over, there may be more */
}

static void publish(struct virtio_blk *d)
{
	while (d->touched) {
		const unsigned queue = (unsigned)__builtin_ctzll(d->touched);

		d->touched &= d->touched - 1;
		virtio_flush(&d->v, queue);
	}
}

static void blk_kick(struct virtio *v, unsigned queue)
{
	struct virtio_blk *d = of(v);

	take_all(d, queue);
	submit(d);
	publish(d);
}

/* ---- passes of completions ---- */

static void on_pass_begin(struct block *b)
{
	struct virtio_blk *d = b->user;

	pthread_mutex_lock(&d->v.dev.lock);
}

static void on_pass_end(struct block *b)
{
	struct virtio_blk *d = b->user;

	/* Whoever found no memory may find what this pass gave back. */
	for (uint64_t again = d->starved; again && virtio_running(&d->v); again &= again - 1)
		take_all(d, (unsigned)__builtin_ctzll(again));
	submit(d);
	publish(d);
	pthread_mutex_unlock(&d->v.dev.lock);
}

/* ---- configuration ---- */

static void fill_config(struct virtio_blk *d)
{
	struct blk_wire_config c;

	blk_config_fill(&c, d->disk, d->v.nqueues, d->queue_size);
	c.wce = !d->durable;
	memcpy(d->v.regs.config, &c, sizeof(c));
}

/* The cache mode is all a driver may write (5.2.5). */
static void blk_write_config(struct virtio *v, unsigned off, const void *data, unsigned len)
{
	if (off <= WCE && WCE - off < len && virtio_has(v, BLK_F_CONFIG_WCE))
		v->regs.config[WCE] = ((const uint8_t *)data)[WCE - off] != 0;
}

static void blk_reset(struct virtio *v)
{
	of(v)->starved = of(v)->touched = 0;
	fill_config(of(v));
}

/* ---- coming and going ---- */

static void blk_stats(struct device *dev, device_stat_fn put, void *arg)
{
	struct virtio_blk *d = (struct virtio_blk *)dev;

	pthread_mutex_lock(&dev->lock);
	const struct counters c = d->count;

	pthread_mutex_unlock(&dev->lock);
	put(arg, "read-ops", c.read_ops);
	put(arg, "read-bytes", c.read_bytes);
	put(arg, "write-ops", c.write_ops);
	put(arg, "write-bytes", c.write_bytes);
	put(arg, "flush-ops", c.flush_ops);
	put(arg, "discard-ops", c.discard_ops);
	put(arg, "errors", c.errors);
}

static void free_memory(struct virtio_blk *d)
{
	for (struct slab *s = d->slabs, *next; s; s = next) {
		next = s->next;
		free(s);
	}
	for (struct spare *s = d->spares, *next; s; s = next) {
		next = s->next;
		free(s);
	}
	free(d);
}

static void free_disk(void *arg)
{
	struct block *b = arg;

	b->ops->free(b);
}

static void blk_free(struct device *dev)
{
	struct virtio_blk *d = (struct virtio_blk *)dev;

	dev->ops->quiesce(dev); /* a machine that ends in the middle of things */
	loop_call(d->v.loop, free_disk, d->disk);
	virtio_fini(&d->v);
	free_memory(d);
}

static const struct virtio_ops blk_ops = {
	.dev = { .type = "virtio-blk", .stats = blk_stats, .free = blk_free },
	.id = 2,
	.kick = blk_kick,
	.reset = blk_reset,
	.write_config = blk_write_config,
};

static int set_up(struct virtio_blk *d, const struct virtio_blk_options *o, struct loop *loop,
		  struct err *err)
{
	struct block *b = d->disk;
	struct iovec *first = get_spare(d);

	if (!first || (put_spare(d, (struct spare *)first), !add_slab(d)))
		return err_set(err, ENOMEM, "%s: out of memory for its requests", o->name);
	d->queue_size = o->queue_size;
	d->durable = o->writethrough;
	d->limits = (struct blk_limits){
		.sectors = b->size / BLK_SECTOR,
		.block = b->logical_block / BLK_SECTOR,
		.read_only = b->read_only,
	};
	if (o->serial)
		memcpy(d->serial, o->serial, strnlen(o->serial, BLK_ID_LEN));
	d->v.config_len = sizeof(struct blk_wire_config);
	fill_config(d);
	b->user = d;
	b->pass_begin = on_pass_begin;
	b->pass_end = on_pass_end;
	return b->ops->attach(b, loop, err);
}

struct virtio *virtio_blk_new(const struct virtio_blk_options *o, struct block *disk,
			      struct gmem *mem, struct loop *loop, struct err *err)
{
	struct virtio_blk *d;

	if (!o->queues || o->queues > QUEUES_MAX) {
		err_set(err, EINVAL, "%s: %u queues: give 1 to %d", o->name, o->queues, QUEUES_MAX);
		return NULL;
	}
	d = calloc(1, sizeof(*d));
	if (!d) {
		err_set(err, ENOMEM, "%s: out of memory", o->name);
		return NULL;
	}
	d->disk = disk;
	if (virtio_init(&d->v, &blk_ops, o->name, mem, loop, blk_features(disk, o->queues),
			o->queues, o->queue_size, err)) {
		free_memory(d);
		return NULL;
	}
	if (set_up(d, o, loop, err)) {
		virtio_fini(&d->v);
		free_memory(d);
		return NULL;
	}
	return &d->v;
}
