/*
 * test_block_file.c - raw files and block devices, by io_uring and by threads
 *
 * Real files: on the file system of TMPDIR, on tmpfs (which has no ZERO_RANGE), and a loop device
 * where root may make one. Every test that does I/O runs once per way of doing it.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/loop.h>
#include <seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/block_file.h"
#include "base/fd.h"
#include "vmm/sandbox.h"

#define MIB (1u << 20)

struct rig {
	struct loop *loop;
	struct block *b;
	char path[128];
	unsigned in_flight, passes;
	bool in_call; /* queue() or submit() is on the stack */
	bool in_pass;
};

struct req {
	struct block_request r;
	struct rig *rig;
	struct iovec iov[8];
	bool done;
	int result;
	void (*then)(struct req *q);
};

static enum block_aio aio_of(void **state)
{
	return *(const enum block_aio *)*state;
}

static const char *tmp(void)
{
	return getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
}

static void make_file(char path[128], const char *dir, off_t size)
{
	snprintf(path, 128, "%s/coracle-block.XXXXXX", dir);
	cleanup_fd int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, size), 0);
}

static void fill_random(uint8_t *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++) {
		seed = seed * 1103515245 + 12345;
		p[i] = (uint8_t)(seed >> 16);
	}
}

/* ---- the user of a block ---- */

static void on_pass_begin(struct block *b)
{
	struct rig *g = b->user;

	assert_false(g->in_pass);
	g->in_pass = true;
	g->passes++;
}

static void on_pass_end(struct block *b)
{
	struct rig *g = b->user;

	assert_true(g->in_pass);
	g->in_pass = false;
}

static void on_done(struct block_request *r, int result)
{
	struct req *q = (struct req *)r;

	assert_false(q->rig->in_call);
	assert_true(q->rig->in_pass);
	assert_false(q->done);
	q->done = true;
	q->result = result;
	q->rig->in_flight--;
	if (q->then)
		q->then(q);
}

static void put(struct rig *g, struct req *q)
{
	q->rig = g;
	q->r.done = on_done;
	q->r.iov = q->iov;
	q->done = false;
	g->in_flight++;
	g->in_call = true;
	g->b->ops->queue(g->b, &q->r);
	g->in_call = false;
}

static void submit(struct rig *g)
{
	g->in_call = true;
	g->b->ops->submit(g->b);
	g->in_call = false;
}

static void wait_all(struct rig *g)
{
	while (g->in_flight)
		assert_true(loop_poll(g->loop, 10000) >= 0);
}

static int run(struct rig *g, struct req *q)
{
	put(g, q);
	submit(g);
	wait_all(g);
	return q->result;
}

static int io(struct rig *g, enum block_op op, void *buf, uint64_t off, uint64_t len)
{
	struct req q = { .r = { .op = op, .offset = off, .len = len, .niov = buf ? 1 : 0 } };

	q.iov[0] = (struct iovec){ buf, len };
	return run(g, &q);
}

static void rig_open(struct rig *g, struct block_options *o)
{
	struct err err = { 0 };

	g->loop = loop_new(&err);
	assert_non_null(g->loop);
	if (!o->path)
		o->path = g->path;
	if (!o->depth)
		o->depth = 64;
	g->b = block_file_open(o, &err);
	if (!g->b)
		fail_msg("%s", err.msg);
	if (o->aio != BLOCK_AIO_AUTO)
		assert_string_equal(g->b->ops->name,
				    o->aio == BLOCK_AIO_URING ? "io_uring" : "threads");
	g->b->user = g;
	g->b->pass_begin = on_pass_begin;
	g->b->pass_end = on_pass_end;
	assert_int_equal(g->b->ops->attach(g->b, g->loop, &err), 0);
}

static void rig_close(struct rig *g)
{
	assert_int_equal(g->in_flight, 0);
	assert_false(g->in_pass);
	g->b->ops->free(g->b);
	loop_free(g->loop);
	unlink(g->path);
}

/* ---- transfers ---- */

static void scattered_data_comes_back(void **state)
{
	struct rig g = { 0 };
	static uint8_t in[8192], out[8192];

	make_file(g.path, tmp(), MIB);
	rig_open(&g, &(struct block_options){ .aio = aio_of(state) });
	assert_int_equal(g.b->size, MIB);
	assert_int_equal(g.b->logical_block, 512);
	fill_random(in, sizeof(in), 1);

	struct req w = {
		.r = { .op = BLOCK_WRITE, .offset = 512 * 7, .len = 4096, .niov = 4 },
		.iov = { { in, 1 }, { in + 1, 1000 }, { in + 1001, 0 }, { in + 1001, 3095 } }
	};
	struct req r = { .r = { .op = BLOCK_READ, .offset = 512 * 7, .len = 4096, .niov = 3 },
			 .iov = { { out + 5, 2000 }, { out + 2005, 95 }, { out + 2100, 2001 } } };

	assert_int_equal(run(&g, &w), 0);
	assert_int_equal(run(&g, &r), 0);
	assert_memory_equal(out + 5, in, 4096);
	assert_int_equal(io(&g, BLOCK_FLUSH, NULL, 0, 0), 0);
	/* And nothing else was touched. */
	assert_int_equal(io(&g, BLOCK_READ, out, 512 * 6, 512), 0);
	for (int i = 0; i < 512; i++)
		assert_int_equal(out[i], 0);
	rig_close(&g);
}

static void more_requests_than_depth(void **state)
{
	enum { N = 100 };
	struct rig g = { 0 };
	struct req *q = calloc(N, sizeof(*q));
	uint8_t *data = malloc(N * 4096), *back = calloc(N, 4096);

	make_file(g.path, tmp(), MIB);
	rig_open(&g, &(struct block_options){ .aio = aio_of(state), .depth = 4 });
	fill_random(data, N * 4096, 2);
	for (int pass = 0; pass < 2; pass++) {
		for (int i = 0; i < N; i++) {
			q[i] = (struct req){ .r = { .op = pass ? BLOCK_READ : BLOCK_WRITE,
						    .offset = (uint64_t)i * 4096,
						    .len = 4096,
						    .niov = 1 } };
			q[i].iov[0] = (struct iovec){ (pass ? back : data) + i * 4096, 4096 };
			put(&g, &q[i]);
		}
		submit(&g);
		wait_all(&g);
		for (int i = 0; i < N; i++)
			assert_int_equal(q[i].result, 0);
	}
	assert_memory_equal(data, back, N * 4096);
	free(q);
	free(data);
	free(back);
	rig_close(&g);
}

static void nothing_moves_before_submit(void **state)
{
	struct rig g = { 0 };
	uint8_t buf[512];
	struct req q = { .r = { .op = BLOCK_READ, .len = 512, .niov = 1 },
			 .iov = { { buf, 512 } } };

	make_file(g.path, tmp(), MIB);
	rig_open(&g, &(struct block_options){ .aio = aio_of(state) });
	put(&g, &q);
	assert_int_equal(loop_poll(g.loop, 0), 0);
	assert_false(q.done);
	submit(&g);
	wait_all(&g);
	assert_int_equal(q.result, 0);
	rig_close(&g);
}

/* Memory anywhere, more at a time than there are bounce buffers, longer than one of them. */
static void direct_io_takes_any_memory(void **state)
{
	enum { N = 40, LEN = 300 * 1024 };
	struct rig g = { 0 };
	struct req *q = calloc(N, sizeof(*q));
	uint8_t *data = malloc(N * LEN + 1), *back = calloc(1, N * LEN + 3);
	struct block_options o = { .aio = aio_of(state), .direct = true };
	struct err err = { 0 };

	make_file(g.path, tmp(), N * LEN);
	o.path = g.path;
	struct block *try = block_file_open(&o, &err);

	if (!try) {
		print_message("SKIP: %s\n", err.msg);
		unlink(g.path);
		skip();
	}
	try->ops->free(try);
	rig_open(&g, &o);
	fill_random(data, N * LEN + 1, 3);
	for (int pass = 0; pass < 2; pass++) {
		for (int i = 0; i < N; i++) {
			uint8_t *at = pass ? back + 3 + i * LEN : data + 1 + i * LEN;

			q[i] = (struct req){ .r = { .op = pass ? BLOCK_READ : BLOCK_WRITE,
						    .offset = (uint64_t)i * LEN,
						    .len = LEN,
						    .niov = 3 } };
			q[i].iov[0] = (struct iovec){ at, 7 };
			q[i].iov[1] = (struct iovec){ at + 7, LEN - 4096 };
			q[i].iov[2] = (struct iovec){ at + 7 + LEN - 4096, 4089 };
			put(&g, &q[i]);
		}
		submit(&g);
		wait_all(&g);
		for (int i = 0; i < N; i++)
			assert_int_equal(q[i].result, 0);
	}
	assert_memory_equal(back + 3, data + 1, N * LEN);
	assert_int_equal(((struct block_file *)g.b)->bounces, 0);

	/* Aligned memory needs no bounce buffer. */
	void *page = aligned_alloc(4096, 4096);

	assert_int_equal(io(&g, BLOCK_READ, page, 0, 4096), 0);
	assert_memory_equal(page, data + 1, 4096);
	free(page);
	free(q);
	free(data);
	free(back);
	rig_close(&g);
}

static void then_flush(struct req *q)
{
	q->then = NULL;
	q->r.op = BLOCK_FLUSH;
	q->r.niov = 0;
	put(q->rig, q);
	submit(q->rig);
}

static void done_may_queue_more(void **state)
{
	struct rig g = { 0 };
	uint8_t buf[512] = { 1 };
	struct req q = { .r = { .op = BLOCK_WRITE, .len = 512, .niov = 1 },
			 .iov = { { buf, 512 } },
			 .then = then_flush };

	make_file(g.path, tmp(), MIB);
	rig_open(&g, &(struct block_options){ .aio = aio_of(state) });
	assert_int_equal(run(&g, &q), 0);
	assert_int_equal(q.r.op, BLOCK_FLUSH);
	assert_true(g.passes >= 2);
	rig_close(&g);
}

/* ---- zeroes and discard ---- */

static void check_zeroes(struct rig *g, bool unmap)
{
	uint8_t *buf = malloc(MIB), *back = malloc(MIB);

	fill_random(buf, MIB, 4);
	assert_int_equal(io(g, BLOCK_WRITE, buf, 0, MIB), 0);
	struct req z = {
		.r = { .op = BLOCK_WRITE_ZEROES, .unmap = unmap, .offset = 1024, .len = 700 * 1024 }
	};

	assert_int_equal(run(g, &z), 0);
	assert_int_equal(io(g, BLOCK_READ, back, 0, MIB), 0);
	memset(buf + 1024, 0, 700 * 1024);
	assert_memory_equal(buf, back, MIB);
	free(buf);
	free(back);
}

static void zeroes_are_zero(void **state)
{
	for (int i = 0; i < 6; i++) {
		struct rig g = { 0 };

		make_file(g.path, i & 1 ? "/dev/shm" : tmp(), MIB);
		rig_open(&g, &(struct block_options){ .aio = aio_of(state), .discard = true });
		assert_true(g.b->can_write_zeroes);
		if (i >= 4) {
			/* A file system that can do nothing of the kind. */
			((struct block_file *)g.b)->no_punch = true;
			((struct block_file *)g.b)->no_zero_range = true;
		}
		check_zeroes(&g, i & 2);
		rig_close(&g);
	}
}

static blkcnt_t blocks_of(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return st.st_blocks;
}

static void discard_gives_space_back(void **state)
{
	struct rig g = { 0 };
	uint8_t *buf = malloc(MIB);

	make_file(g.path, tmp(), MIB);
	rig_open(&g, &(struct block_options){ .aio = aio_of(state), .discard = true });
	if (!g.b->can_discard) {
		rig_close(&g);
		free(buf);
		print_message("SKIP: %s cannot punch holes\n", tmp());
		skip();
	}
	fill_random(buf, MIB, 5);
	assert_int_equal(io(&g, BLOCK_WRITE, buf, 0, MIB), 0);
	assert_int_equal(io(&g, BLOCK_FLUSH, NULL, 0, 0), 0);
	blkcnt_t full = blocks_of(g.path);

	assert_int_equal(io(&g, BLOCK_DISCARD, NULL, 0, MIB / 2), 0);
	assert_true(blocks_of(g.path) <= full - MIB / 2 / 512);
	assert_int_equal(g.b->size, MIB);
	free(buf);
	rig_close(&g);

	/* Not offered unless asked for. */
	make_file(g.path, tmp(), MIB);
	rig_open(&g, &(struct block_options){ .aio = aio_of(state), .path = g.path });
	assert_false(g.b->can_discard);
	rig_close(&g);
}

/* ---- errors ---- */

static void a_file_cut_shorter_gives_eio(void **state)
{
	struct rig g = { 0 };
	uint8_t *buf = malloc(MIB);

	make_file(g.path, tmp(), MIB);
	rig_open(&g, &(struct block_options){ .aio = aio_of(state) });
	assert_int_equal(truncate(g.path, MIB / 2 + 100), 0);
	assert_int_equal(io(&g, BLOCK_READ, buf, 0, MIB / 2), 0);
	assert_int_equal(io(&g, BLOCK_READ, buf, 0, MIB), -EIO);
	assert_int_equal(io(&g, BLOCK_READ, buf, MIB - 512, 512), -EIO);
	free(buf);
	rig_close(&g);
}

/* The size limit cuts the write that crosses it and fails what is left. */
static void a_short_write_goes_on_and_fails(void **state)
{
	struct rig g = { 0 };
	const struct rlimit limit = { MIB / 2, RLIM_INFINITY };
	struct rlimit before;
	uint8_t *buf = malloc(MIB), *back = malloc(MIB);

	make_file(g.path, tmp(), MIB);
	rig_open(&g, &(struct block_options){ .aio = aio_of(state) });
	fill_random(buf, MIB, 6);
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &before);
	setrlimit(RLIMIT_FSIZE, &limit);
	int rc = io(&g, BLOCK_WRITE, buf, 0, MIB);

	setrlimit(RLIMIT_FSIZE, &before);
	signal(SIGXFSZ, SIG_DFL);
	assert_int_equal(rc, -EFBIG);
	assert_int_equal(io(&g, BLOCK_READ, back, 0, MIB / 2), 0);
	assert_memory_equal(buf, back, MIB / 2);
	/* And works again. */
	assert_int_equal(io(&g, BLOCK_WRITE, buf, 0, MIB), 0);
	free(buf);
	free(back);
	rig_close(&g);
}

static void a_read_only_disk_is_not_written(void **state)
{
	struct rig g = { 0 };
	uint8_t buf[512];

	make_file(g.path, tmp(), MIB);
	rig_open(&g, &(struct block_options){
			     .aio = aio_of(state), .read_only = true, .discard = true });
	assert_false(g.b->can_discard || g.b->can_write_zeroes);
	assert_int_equal(io(&g, BLOCK_READ, buf, 0, 512), 0);
	assert_int_equal(io(&g, BLOCK_WRITE, buf, 0, 512), -EBADF);
	rig_close(&g);
}

/* ---- steps, without a file ---- */

static void steps_resume_where_a_transfer_ended(void **state)
{
	uint8_t m[100];
	struct block_file f = { .mem_align = 1 };
	struct iovec iov[] = { { m, 10 }, { m + 10, 0 }, { m + 20, 30 }, { m + 60, 24 } };
	struct block_request r = {
		.op = BLOCK_READ, .offset = 1000, .len = 64, .iov = iov, .niov = 4
	};
	struct block_step s;

	(void)state;
	assert_int_equal(block_file_step(&f, &r, &s), 0);
	assert_int_equal(s.offset, 1000);
	assert_int_equal(s.niov, 4);
	assert_ptr_equal(s.iov, iov);
	assert_int_equal(block_file_advance(&f, &r, &s, -EINTR), 1);
	assert_int_equal(block_file_advance(&f, &r, &s, 15), 1);
	assert_int_equal(block_file_step(&f, &r, &s), 0);
	assert_int_equal(s.offset, 1015);
	assert_int_equal(s.niov, 1);
	assert_ptr_equal(s.iov->iov_base, m + 25);
	assert_int_equal(s.iov->iov_len, 25);
	assert_int_equal(block_file_advance(&f, &r, &s, 25), 1);
	assert_int_equal(block_file_step(&f, &r, &s), 0);
	assert_int_equal(s.offset, 1040);
	assert_ptr_equal(s.iov->iov_base, m + 60);
	assert_int_equal(s.len, 24);
	assert_int_equal(block_file_advance(&f, &r, &s, 24), 0);

	/* The end of the file, an error, and more than was asked for. */
	r.progress = 40;
	assert_int_equal(block_file_step(&f, &r, &s), 0);
	assert_int_equal(block_file_advance(&f, &r, &s, 0), -EIO);
	assert_int_equal(block_file_advance(&f, &r, &s, -ENOSPC), -ENOSPC);
	assert_int_equal(block_file_advance(&f, &r, &s, 25), -EIO);
}

static void long_ranges_are_cut(void **state)
{
	struct block_file f = { .mem_align = 1 };
	struct iovec iov = { NULL, UINT64_C(5) << 30 }; /* never touched */
	struct block_request r = {
		.op = BLOCK_WRITE, .len = UINT64_C(5) << 30, .iov = &iov, .niov = 1
	};
	struct block_step s;
	int calls = 0, rc;

	(void)state;
	do {
		assert_int_equal(block_file_step(&f, &r, &s), 0);
		assert_true(s.len <= 1u << 30);
		rc = block_file_advance(&f, &r, &s, (int64_t)s.len);
		calls++;
	} while (rc == 1);
	assert_int_equal(rc, 0);
	assert_int_equal(calls, 5);
}

static void discard_is_advice_zeroes_are_not(void **state)
{
	struct block_file f = { .mem_align = 1, .discard = true };
	struct block_request r = { .op = BLOCK_DISCARD, .len = 4096 };
	struct block_step s;

	(void)state;
	assert_int_equal(block_file_step(&f, &r, &s), 0);
	assert_int_equal(block_file_advance(&f, &r, &s, -EOPNOTSUPP), 0);
	assert_int_equal(block_file_advance(&f, &r, &s, -EIO), -EIO);

	r.op = BLOCK_WRITE_ZEROES;
	r.unmap = true;
	assert_int_equal(block_file_step(&f, &r, &s), 0);
	assert_int_equal(s.mode, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
	assert_int_equal(block_file_advance(&f, &r, &s, -EOPNOTSUPP), 1);
	assert_int_equal(block_file_step(&f, &r, &s), 0);
	assert_int_equal(s.mode, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE);
	assert_int_equal(block_file_advance(&f, &r, &s, -EOPNOTSUPP), 1);
	assert_int_equal(block_file_step(&f, &r, &s), 0);
	assert_int_equal(s.call, BLOCK_CALL_WRITE);
	assert_int_equal(f.bounces, 1);
	assert_int_equal(block_file_advance(&f, &r, &s, 4096), 0);
	assert_int_equal(f.bounces, 0);
}

/* ---- opening ---- */

static void refused(const struct block_options *o, int code, const char *text)
{
	struct err err = { 0 };
	struct block *b = block_file_open(o, &err);

	assert_null(b);
	assert_int_equal(err.code, code);
	if (!strstr(err.msg, o->path) || !strstr(err.msg, text))
		fail_msg("\"%s\" does not name %s and say \"%s\"", err.msg, o->path, text);
}

static struct block *opened(const struct block_options *o)
{
	struct err err = { 0 };
	struct block *b = block_file_open(o, &err);

	if (!b)
		fail_msg("%s", err.msg);
	return b;
}

static void a_disk_in_use_is_refused(void **state)
{
	char path[128];
	struct err err = { 0 };

	make_file(path, tmp(), MIB);
	struct block_options w = { .path = path, .aio = aio_of(state) };
	struct block_options r = w, u = w;

	r.read_only = true;
	u.unlocked = true;
	for (int i = 0; i < 20; i++) { /* the lock is gone as soon as the disk is */
		struct block *b = opened(&w);

		refused(&w, -EBUSY, "in use by another virtual machine");
		refused(&r, -EBUSY, "in use by another virtual machine");
		b->ops->free(b);
	}
	struct block *a = opened(&r), *b = opened(&r);

	refused(&w, -EBUSY, "in use by another virtual machine");
	a->ops->free(a);
	b->ops->free(b);

	/* Handed over: the target opens unlocked, takes the lock when the source lets go. */
	const uint64_t mark = BLOCK_MARK_MIN + 12345, other = BLOCK_MARK_MIN + 54321;

	a = opened(&w);
	b = opened(&u);
	assert_int_equal(b->ops->lock(b, true, 0, &err), -EBUSY);
	assert_non_null(strstr(err.msg, path));
	assert_false(b->ops->marked(b, mark)); /* a lock, but anybody's */
	assert_int_equal(a->ops->lock(a, true, other, &err), 0);
	assert_int_equal(a->ops->lock(a, true, mark, &err), 0); /* instead */
	assert_true(b->ops->marked(b, mark));
	assert_false(b->ops->marked(b, other));
	assert_false(a->ops->marked(a, mark)); /* its own */
	refused(&w, -EBUSY, "in use by another virtual machine");
	refused(&r, -EBUSY, "in use by another virtual machine");
	assert_int_equal(b->ops->lock(b, true, mark, &err), -EBUSY);
	assert_int_equal(b->ops->lock(b, true, other, &err), -EBUSY);
	assert_int_equal(a->ops->sync(a, &err), 0);
	assert_int_equal(a->ops->lock(a, false, 0, &err), 0);
	assert_false(b->ops->marked(b, mark)); /* looking, and failing, take nothing */
	assert_int_equal(b->ops->lock(b, true, mark, &err), 0);
	assert_true(a->ops->marked(a, mark));
	assert_int_equal(a->ops->lock(a, true, 0, &err), -EBUSY);
	assert_int_equal(a->ops->lock(a, true, mark, &err), -EBUSY);
	a->ops->free(a);
	refused(&w, -EBUSY, "in use");
	b->ops->free(b);
	unlink(path);
}

static void what_is_no_disk_is_refused(void **state)
{
	char path[128];
	struct block_options o = { .path = path, .aio = aio_of(state) };

	make_file(path, tmp(), 511);
	refused(&o, -EINVAL, "at least 512");
	unlink(path);
	refused(&o, -ENOENT, "No such file");
	assert_int_equal(mkfifo(path, 0600), 0);
	refused(&o, -EINVAL, "neither a regular file nor a block device");
	unlink(path);
	assert_int_equal(mkdir(path, 0700), 0);
	refused(&o, -EINVAL, "neither a regular file nor a block device");
	rmdir(path);
	o.path = "/dev/zero";
	refused(&o, -EINVAL, "neither a regular file nor a block device");
}

static void a_ragged_tail_is_left_out(void **state)
{
	char path[128];
	struct block_options o = { .path = path, .aio = aio_of(state) };

	make_file(path, tmp(), 512 * 3 + 511);
	struct block *b = opened(&o);

	assert_int_equal(b->size, 512 * 3);
	b->ops->free(b);
	unlink(path);
}

/* In a child, as a filter cannot be taken off again. 0: as it should be. */
static int without_io_uring(const char *path)
{
	scmp_filter_ctx f = seccomp_init(SCMP_ACT_ALLOW);
	struct block_options o = { .path = path };
	struct err err = { 0 };

	if (!f || seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(io_uring_setup), 0) ||
	    seccomp_load(f))
		return 2;
	seccomp_release(f);
	struct block *b = block_file_open(&o, &err);

	if (!b || strcmp(b->ops->name, "threads"))
		return 3;
	b->ops->free(b);
	o.aio = BLOCK_AIO_URING;
	b = block_file_open(&o, &err);
	if (b || err.code != -EPERM || !strstr(err.msg, "aio=threads") || !strstr(err.msg, path))
		return 4;
	return 0;
}

static void threads_stand_in_for_io_uring(void **state)
{
	char path[128];
	int status;

	(void)state;
	make_file(path, tmp(), MIB);
	pid_t child = fork();

	if (!child)
		_exit(without_io_uring(path));
	assert_true(child > 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	unlink(path);
}

static unsigned open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void nothing_stays_open(void **state)
{
	unsigned before = open_fds();

	scattered_data_comes_back(state);
	what_is_no_disk_is_refused(state);
	assert_int_equal(open_fds(), before);
}

/* ---- block devices ---- */

/* A loop device on @path, detached when its last descriptor is closed. -1: not here. */
static int make_loop(const char *path, char dev[32])
{
	cleanup_fd int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	cleanup_fd int file = open(path, O_RDWR | O_CLOEXEC);

	for (int tries = 0; control >= 0 && tries < 20; tries++) {
		int n = ioctl(control, LOOP_CTL_GET_FREE);
		struct loop_config config = { .fd = (unsigned)file,
					      .info.lo_flags = LO_FLAGS_AUTOCLEAR };

		if (n < 0)
			return -1;
		snprintf(dev, 32, "/dev/loop%d", n);
		int fd = open(dev, O_RDWR | O_CLOEXEC);

		if (fd >= 0 && !ioctl(fd, LOOP_CONFIGURE, &config))
			return fd;
		fd_close(&fd);
	}
	return -1;
}

static void block_devices_work(void **state)
{
	struct rig g = { 0 };
	char dev[32];
	struct stat st;
	uint8_t *buf = malloc(MIB);

	make_file(g.path, tmp(), 4 * MIB);
	cleanup_fd int keep = make_loop(g.path, dev);

	if (keep < 0) {
		unlink(g.path);
		free(buf);
		print_message("SKIP: cannot make a loop device (root and the loop module)\n");
		skip();
	}
	struct block_options o = { .path = dev, .aio = aio_of(state), .discard = true, .depth = 8 };

	rig_open(&g, &o);
	assert_int_equal(g.b->size, 4 * MIB);
	assert_int_equal(g.b->logical_block, 512);
	refused(&o, -EBUSY, "in use by another virtual machine");
	check_zeroes(&g, false);
	check_zeroes(&g, true);
	assert_int_equal(io(&g, BLOCK_FLUSH, NULL, 0, 0), 0);
	assert_true(g.b->can_discard);
	memset(buf, 7, MIB);
	assert_int_equal(io(&g, BLOCK_WRITE, buf, MIB, MIB), 0);
	assert_int_equal(io(&g, BLOCK_FLUSH, NULL, 0, 0), 0);
	stat(g.path, &st);
	blkcnt_t full = st.st_blocks;

	assert_int_equal(io(&g, BLOCK_DISCARD, NULL, MIB, MIB), 0);
	stat(g.path, &st);
	assert_true(st.st_blocks <= full - MIB / 512);
	rig_close(&g);

	/* Direct, and read-only, which several may have. */
	make_file(g.path, tmp(), 512);
	o.direct = true;
	o.read_only = true;
	struct block *other = opened(&o);

	rig_open(&g, &o);
	assert_int_equal(io(&g, BLOCK_READ, buf + 1, 0, MIB - 512), 0);
	assert_int_equal(io(&g, BLOCK_WRITE, buf, 0, 512), -EBADF);
	other->ops->free(other);
	rig_close(&g);
	free(buf);
}

/*
 * ---- inside the sandbox, which is entered when everything is open ----
 *
 * In a program of its own, this one started anew: libpsx does not survive the fork of a process that
 * had threads.
 */

/* 0: every kind of request worked; the file's or the loop device's. */
static int work_sandboxed(const char *path, enum block_aio aio, bool direct)
{
	struct rig g = { 0 };
	struct err err = { 0 };
	uint8_t *buf = malloc(MIB);

	sandbox_prepare();
	rig_open(&g, &(struct block_options){
			     .path = path, .aio = aio, .discard = true, .direct = direct });
	if (loop_thread_start(g.loop, "io", &err) || sandbox_drop(NULL, 0, &err) ||
	    sandbox_close(&err))
		return 2;
	loop_thread_stop(g.loop);
	memset(buf, 5, MIB);
	if (io(&g, BLOCK_WRITE, buf, 0, MIB) || io(&g, BLOCK_FLUSH, NULL, 0, 0) ||
	    io(&g, BLOCK_READ, buf + 1, 0, MIB - 512) || io(&g, BLOCK_DISCARD, NULL, 0, 65536) ||
	    io(&g, BLOCK_WRITE_ZEROES, NULL, 65536, 65536))
		return 3;
	struct req z = { .r = { .op = BLOCK_WRITE_ZEROES, .unmap = true, .len = 4096 } };

	if (run(&g, &z))
		return 4;
	((struct block_file *)g.b)->no_zero_range = true;
	if (io(&g, BLOCK_WRITE_ZEROES, NULL, 65536, 65536))
		return 5;
	rig_close(&g);
	free(buf);
	return 0;
}

static void the_sandbox_lets_disks_work(void **state)
{
	char path[128], dev[32];

	make_file(path, tmp(), 4 * MIB);
	cleanup_fd int keep = make_loop(path, dev);

	for (int i = 0; i < 4; i++) {
		const bool device = i & 1, direct = i & 2;
		int status;

		if (device && keep < 0) {
			print_message("without a loop device\n");
			continue;
		}
		char aio[2] = { (char)('0' + aio_of(state)), 0 };
		pid_t child = fork();

		if (!child) {
			execl("/proc/self/exe", "test_block_file", device ? dev : path, aio,
			      direct ? "direct" : "cached", NULL);
			_exit(127);
		}
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), 0);
	}
	unlink(path);
}

/* ---- memory ---- */

static void memory_behaves_as_a_file(void **state)
{
	struct rig g = { 0 };
	struct err err = { 0 };
	uint8_t a[1024], b[1024];

	(void)state;
	g.loop = loop_new(&err);
	g.b = block_ram_new(MIB, MIB - 512, &err);
	assert_non_null(g.b);
	g.b->user = &g;
	g.b->pass_begin = on_pass_begin;
	g.b->pass_end = on_pass_end;
	assert_int_equal(g.b->ops->attach(g.b, g.loop, &err), 0);
	fill_random(a, sizeof(a), 8);
	assert_int_equal(io(&g, BLOCK_WRITE, a, 4096, 1024), 0);
	assert_int_equal(io(&g, BLOCK_READ, b, 4096, 1024), 0);
	assert_memory_equal(a, b, 1024);
	assert_int_equal(io(&g, BLOCK_READ, b, MIB - 1024, 512), 0);
	assert_int_equal(io(&g, BLOCK_READ, b, MIB - 1024, 1024), -EIO);
	assert_int_equal(io(&g, BLOCK_FLUSH, NULL, 0, 0), 0);
	rig_close(&g);
}

static enum block_aio uring = BLOCK_AIO_URING, threads = BLOCK_AIO_THREADS;

#define BOTH(f)                                        \
	{ #f "/io_uring", f, NULL, NULL, &uring },     \
	{                                              \
#f "/threads", f, NULL, NULL, &threads \
	}

int main(int argc, char **argv)
{
	if (argc == 4)
		return work_sandboxed(argv[1], (enum block_aio)atoi(argv[2]),
				      !strcmp(argv[3], "direct"));

	const struct CMUnitTest tests[] = {
		BOTH(scattered_data_comes_back),
		BOTH(more_requests_than_depth),
		BOTH(nothing_moves_before_submit),
		BOTH(direct_io_takes_any_memory),
		BOTH(done_may_queue_more),
		BOTH(zeroes_are_zero),
		BOTH(discard_gives_space_back),
		BOTH(a_file_cut_shorter_gives_eio),
		BOTH(a_short_write_goes_on_and_fails),
		BOTH(a_read_only_disk_is_not_written),
		BOTH(a_disk_in_use_is_refused),
		BOTH(what_is_no_disk_is_refused),
		BOTH(a_ragged_tail_is_left_out),
		BOTH(nothing_stays_open),
		BOTH(block_devices_work),
		BOTH(the_sandbox_lets_disks_work),
		cmocka_unit_test(steps_resume_where_a_transfer_ended),
		cmocka_unit_test(long_ranges_are_cut),
		cmocka_unit_test(discard_is_advice_zeroes_are_not),
		cmocka_unit_test(threads_stand_in_for_io_uring),
		cmocka_unit_test(memory_behaves_as_a_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
