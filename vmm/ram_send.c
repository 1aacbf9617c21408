/*
 * ram_send.c - guest RAM to one or more streams, in rounds
 *
 * Each connection has a thread; the first one's is the caller's. They take runs of dirty pages from one
 * cursor, so a slow connection just takes fewer. A run becomes ranges of zeroes and of data; a section
 * has up to 512 KiB of data, written straight from guest memory: what was looked through for zeroes is still
 * in the processor's cache then. The guest may write to it meanwhile: the page then is dirty again,
 * since dirty_take() had KVM protect it first, and comes in a later round.
 *
 * The bandwidth limit is a debt: a piece is sent, then all wait until it is paid for, so that pieces
 * may be large and the rate still holds over any second. In the last round the guest stands still and
 * waits for us: no limit there.
 *
 * Threads live from round to round: making one takes longer than the last round should.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/zero.h"
#include "vmm/ram.h"
#include "vmm/sections.h"

#define PAGE       4096u
#define PIECE      (512u << 10) /* bytes of data in a section, from which on it is sent */
#define RUN_MAX    512          /* pages taken at once */
#define SLEEP_MAX  20000000u    /* ns without a look at whether it was cancelled */
#define RANGE_SIZE 16

struct range {
	uint64_t gpa, len;
};

struct list {
	struct range r[RAM_RANGES_MAX];
	unsigned n;
	uint64_t bytes;
};

struct connection {
	struct ram_sender *s;
	struct stream *out;
	pthread_t thread;
	bool started;
	struct list zero, data;
	uint64_t send_ns; /* in this round */
	int rc;
	struct err err;
};

struct ram_sender {
	struct ram_sender_options o;
	_Atomic uint64_t sent;
	_Atomic bool failed; /* some thread has: the others stop */

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t changed;
	unsigned generation; /* of rounds: helpers wait for the next */
	unsigned busy;       /* helpers in the round */
	bool stop;
	unsigned region; /* the cursor */
	uint64_t page;
	uint64_t paid_until; /* ns: what was sent is within the limit from then on */

	uint32_t round; /* fixed during a round */
	bool last;
	struct transfer_progress *progress; /* the caller's thread */

	struct connection c[];
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* ---- the limit ---- */

static bool cancelled(struct ram_sender *s)
{
	return s->o.watch->cancelled(s->o.watch->opaque);
}

/* Owe for @bytes, and wait until it is paid. */
static void pay(struct ram_sender *s, uint64_t bytes)
{
	if (!s->o.bandwidth || s->last)
		return;
	uint64_t now = now_ns();

	pthread_mutex_lock(&s->lock);
	if (s->paid_until < now)
		s->paid_until = now;
	s->paid_until += (uint64_t)((double)bytes * 1e9 / (double)s->o.bandwidth);
	uint64_t until = s->paid_until;

	pthread_mutex_unlock(&s->lock);
	while ((now = now_ns()) < until && !atomic_load(&s->failed) && !cancelled(s)) {
		uint64_t ns = until - now < SLEEP_MAX ? until - now : SLEEP_MAX;
		struct timespec t = { .tv_nsec = (long)ns };

		clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
	}
}

/* ---- sections ---- */

static int sent(struct connection *c, int rc, uint64_t before, uint64_t start)
{
	struct ram_sender *s = c->s;
	uint64_t bytes = stream_bytes(c->out) - before;

	if (!rc) {
		atomic_fetch_add(&s->sent, bytes);
		pay(s, bytes);
	}
	c->send_ns += now_ns() - start;
	return rc;
}

static int send_zero(struct connection *c)
{
	uint64_t before = stream_bytes(c->out), start = now_ns();
	unsigned n = c->zero.n;

	c->zero.n = 0;
	c->zero.bytes = 0;
	if (!n)
		return 0;
	return sent(c,
		    stream_put(c->out, SECTION_RAM_ZERO, 0, NULL, c->zero.r, n * RANGE_SIZE,
			       &c->err),
		    before, start);
}

static int send_data(struct connection *c)
{
	uint64_t before = stream_bytes(c->out), start = now_ns();
	struct iovec iov[RAM_RANGES_MAX + 2];
	uint32_t head[2] = { c->data.n, 0 };
	unsigned n = c->data.n;

	if (!n)
		return 0;
	iov[0] = (struct iovec){ head, sizeof(head) };
	iov[1] = (struct iovec){ c->data.r, n * RANGE_SIZE };
	for (unsigned i = 0; i < n; i++)
		if (gmem_iov(c->s->o.mem, c->data.r[i].gpa, c->data.r[i].len, &iov[2 + i]))
			return err_set(&c->err, EFAULT, "guest RAM is not where it was");
	c->data.n = 0;
	c->data.bytes = 0;
	return sent(c,
		    stream_putv(c->out, SECTION_RAM_DATA, STREAM_BULK, NULL, iov, n + 2, &c->err),
		    before, start);
}

static int send_end(struct connection *c)
{
	uint64_t before = stream_bytes(c->out), start = now_ns();
	uint32_t words[2] = { c->s->round, c->s->last };

	return sent(c,
		    stream_put(c->out, SECTION_ROUND_END, 0, NULL, words, sizeof(words), &c->err),
		    before, start);
}

/* ---- pages ---- */

/* Append, joining what adjoins. The list has room. */
static void add(struct list *l, uint64_t gpa, uint64_t len)
{
	struct range *last = l->n ? &l->r[l->n - 1] : NULL;

	l->bytes += len;
	if (last && last->gpa + last->len == gpa)
		last->len += len;
	else
		l->r[l->n++] = (struct range){ gpa, len };
}

static int add_run(struct connection *c, unsigned region, uint64_t first, uint64_t count)
{
	const struct gmem_region *r = gmem_region(c->s->o.mem, region);
	int rc = 0;

	for (uint64_t page = first; page < first + count && !rc; page++) {
		uint64_t off = page * PAGE;

		if (is_zero(r->host + off, PAGE))
			add(&c->zero, r->gpa + off, PAGE);
		else
			add(&c->data, r->gpa + off, PAGE);
		if (c->data.n == RAM_RANGES_MAX || c->data.bytes >= PIECE)
			rc = send_data(c);
		if (!rc && c->zero.n == RAM_RANGES_MAX)
			rc = send_zero(c);
	}
	return rc;
}

static bool take(struct ram_sender *s, unsigned *region, uint64_t *first, uint64_t *count)
{
	pthread_mutex_lock(&s->lock);
	bool found = dirty_take(s->o.dirty, &s->region, &s->page, RUN_MAX, first, count);

	*region = s->region;
	pthread_mutex_unlock(&s->lock);
	return found;
}

/* Between runs: tell, and is there a reason to stop? */
static int look_up(struct connection *c, unsigned runs)
{
	struct ram_sender *s = c->s;

	if (cancelled(s))
		return err_set(&c->err, ECANCELED, "cancelled");
	if (c != s->c || runs % 8)
		return 0;
	s->progress->sent = ram_sent(s);
	s->progress->remaining = dirty_pages(s->o.dirty) * PAGE;
	s->o.watch->progress(s->o.watch->opaque, s->progress);
	if (s->o.interrupted && s->o.interrupted(s->o.opaque))
		return err_set(&c->err, EINTR, "the other side has stopped");
	return 0;
}

static int send_all(struct connection *c)
{
	int rc = send_data(c);

	return rc ? rc : send_zero(c);
}

/* One connection's share of a round. */
static void share(struct connection *c)
{
	struct ram_sender *s = c->s;
	uint64_t first, count;
	unsigned region, before = 0, runs = 0;
	int rc;

	c->send_ns = 0;
	while (!(rc = look_up(c, runs++)) && !atomic_load(&s->failed)) {
		if (!take(s, &region, &first, &count))
			break;
		/* Regions may adjoin, a range must not reach from one into the next. */
		rc = region != before ? send_all(c) : 0;
		before = region;
		if (!rc)
			rc = add_run(c, region, first, count);
		if (rc)
			break;
	}
	if (!rc)
		rc = send_all(c);
	if (!rc && !atomic_load(&s->failed))
		rc = send_end(c);
	c->rc = rc;
	if (rc)
		atomic_store(&s->failed, true);
}

/* ---- threads ---- */

static void *helper(void *arg)
{
	struct connection *c = arg;
	struct ram_sender *s = c->s;
	unsigned seen = 0;

	pthread_mutex_lock(&s->lock);
	for (;;) {
		while (s->generation == seen && !s->stop)
			pthread_cond_wait(&s->changed, &s->lock);
		if (s->stop)
			break;
		seen = s->generation;
		pthread_mutex_unlock(&s->lock);
		share(c);
		pthread_mutex_lock(&s->lock);
		s->busy--;
		pthread_cond_broadcast(&s->changed);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static int result(struct ram_sender *s, struct err *err)
{
	/* What went wrong first is not known; what only stopped for another's sake says so. */
	for (unsigned i = 0; i < s->o.connections; i++) {
		if (!s->c[i].rc)
			continue;
		*err = s->c[i].err;
		return s->c[i].rc;
	}
	return 0;
}

int ram_send_round(struct ram_sender *s, struct transfer_progress *p, bool last, struct err *err)
{
	s->round++;
	s->last = last;
	s->progress = p;
	s->region = 0;
	s->page = 0;
	p->round = s->round;
	for (unsigned i = 0; i < s->o.connections; i++)
		s->c[i].rc = 0;
	pthread_mutex_lock(&s->lock);
	s->busy = s->o.connections - 1;
	s->generation++;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	share(&s->c[0]);
	pthread_mutex_lock(&s->lock);
	while (s->busy)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
	p->sent = ram_sent(s);
	p->remaining = 0;
	return result(s, err);
}

struct ram_sender *ram_sender_new(const struct ram_sender_options *o, struct err *err)
{
	struct ram_sender *s = calloc(1, sizeof(*s) + o->connections * sizeof(s->c[0]));

	if (!s) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	s->o = *o;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	for (unsigned i = 0; i < o->connections; i++) {
		struct connection *c = &s->c[i];
		int rc;

		c->s = s;
		c->out = o->out[i];
		if (!i)
			continue;
		rc = pthread_create(&c->thread, NULL, helper, c);
		if (rc) {
			err_set_sys(err, rc, "cannot start a thread for connection %u", i);
			ram_sender_free(s);
			return NULL;
		}
		c->started = true;
	}
	return s;
}

void ram_sender_free(struct ram_sender *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	for (unsigned i = 0; i < s->o.connections; i++)
		if (s->c[i].started)
			pthread_join(s->c[i].thread, NULL);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

uint64_t ram_sent(const struct ram_sender *s)
{
	return atomic_load(&((struct ram_sender *)s)->sent);
}

uint64_t ram_send_ns(const struct ram_sender *s)
{
	uint64_t most = 0;

	for (unsigned i = 0; i < s->o.connections; i++)
		most = s->c[i].send_ns > most ? s->c[i].send_ns : most;
	return most;
}
