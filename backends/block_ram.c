/*
 * block_ram.c - a disk in memory, for tests and fuzzers
 *
 * Behaves as a file would to its user: nothing completes before submit(), nothing from within it, and
 * what was submitted completes in one pass when the loop runs. Requests that touch one chosen byte
 * fail, so that error paths can be walked.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "backends/block_file.h"
#include "base/log.h"

struct block_ram {
	struct block b; /* first */
	uint8_t *data;
	uint64_t fail_at;
	struct event wake;
	struct loop_watch watch;
	struct block_list queued, submitted;
};

static struct block_ram *of(struct block *b)
{
	return (struct block_ram *)b;
}

static int run(struct block_ram *m, const struct block_request *r)
{
	uint8_t *at = m->data + r->offset;

	if (r->op == BLOCK_FLUSH)
		return 0;
	BUG_ON(r->offset > m->b.size || r->len > m->b.size - r->offset);
	if (m->fail_at >= r->offset && m->fail_at - r->offset < r->len)
		return -EIO;
	if (r->op == BLOCK_DISCARD || r->op == BLOCK_WRITE_ZEROES) {
		memset(at, 0, r->len);
		return 0;
	}
	for (unsigned i = 0; i < r->niov; i++) {
		const struct iovec *v = &r->iov[i];

		if (r->op == BLOCK_READ)
			memcpy(v->iov_base, at, v->iov_len);
		else
			memcpy(at, v->iov_base, v->iov_len);
		at += v->iov_len;
	}
	return 0;
}

static void on_wake(struct loop_watch *w, uint32_t events)
{
	struct block_ram *m = (struct block_ram *)((char *)w - offsetof(struct block_ram, watch));
	struct block_list l = { 0 };
	struct block_request *r;

	event_clear(&m->wake);
	block_list_move(&l, &m->submitted); /* what done() submits is for the next time */
	block_pass_begin(&m->b);
	while ((r = block_list_take(&l)))
		r->done(r, run(m, r));
	block_pass_end(&m->b);
}

static int ram_attach(struct block *b, struct loop *loop, struct err *err)
{
	int rc = loop_add(loop, &of(b)->watch, of(b)->wake.fd, EPOLLIN, on_wake);

	return rc ? err_set_sys(err, rc, "cannot watch a disk in memory") : 0;
}

static void ram_queue(struct block *b, struct block_request *r)
{
	block_list_add(&of(b)->queued, r);
}

static void ram_submit(struct block *b)
{
	struct block_ram *m = of(b);

	if (!m->queued.first)
		return;
	block_list_move(&m->submitted, &m->queued);
	event_signal(&m->wake);
}

static void ram_free(struct block *b)
{
	struct block_ram *m = of(b);

	loop_remove(&m->watch);
	event_fini(&m->wake);
	free(m->data);
	free(m->b.path);
	free(m);
}

static const struct block_ops ram_ops = {
	.name = "ram",
	.attach = ram_attach,
	.queue = ram_queue,
	.submit = ram_submit,
	.free = ram_free,
};

struct block *block_ram_new(uint64_t size, uint64_t fail_at, struct err *err)
{
	struct block_ram *m = calloc(1, sizeof(*m));

	if (!m) {
		err_set(err, ENOMEM, "out of memory for a disk");
		return NULL;
	}
	m->b.ops = &ram_ops;
	m->b.size = size & ~UINT64_C(511);
	m->b.logical_block = m->b.physical_block = 512;
	m->b.can_discard = m->b.can_write_zeroes = true;
	m->fail_at = fail_at;
	m->wake.fd = -1;
	m->data = calloc(1, m->b.size ? m->b.size : 1);
	m->b.path = strdup("(memory)");
	if (!m->data || !m->b.path)
		err_set(err, ENOMEM, "out of memory for a disk of %llu bytes",
			(unsigned long long)size);
	else if (!event_init(&m->wake, err))
		return &m->b;
	ram_free(&m->b);
	return NULL;
}
