/*
 * snapshot.c - a machine to files while it runs
 *
 * RAM goes first, in rounds, while the guest runs: all of it, then what was written meanwhile, until what
 * is left is so little that writing it takes a moment, or it does not get less. Then the machine
 * stands still, the rest and the state of everything else are written, and it goes on; only then are
 * the files forced to the disk, which may take long. RAM is written from where it is: a page that the
 * guest changes while we do so is dirty again and is written once more.
 *
 * The file is as large as RAM and begins as one hole. Pages of zeroes are left out of the first
 * round; in later ones they may have been something else before, so the hole is punched. Memory that the
 * guest never touched is not even looked at (dirty.c).
 *
 * The kernel is told to begin with what was written while we go on, so that the disk works all the time
 * and not only in the fsync() at the end.
 *
 * It always comes to an end: a guest that writes faster than the disk only stands still for longer.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/zero.h"
#include "vmm/dirty.h"
#include "vmm/exit_status.h"
#include "vmm/machine_desc.h"
#include "vmm/snapshot.h"
#include "vmm/vm.h"

#define PAGE        UINT64_C(4096)
#define PIECE       1024                /* pages a look at cancel and progress: 4 MiB */
#define REST        (UINT64_C(2) << 20) /* bytes that may be left for the pause */
#define PAUSE_NS    UINT64_C(5000000)   /* or as many as are written in this time */
#define ROUNDS_MAX  8
#define PROGRESS_NS UINT64_C(100000000)
#define NS          UINT64_C(1000000000)

struct snapshot {
	struct vm *vm;
	const struct snapshot_files *f;
	const struct transfer_watch *w;
	struct dirty *dirty;
	struct snapshot_result *r;
	struct transfer_progress p;
	uint64_t told_ns;
	bool held;
	int rc; /* of what ran on the main thread */
	struct err *err;
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

/* ---- what is done on the main thread ---- */

static int on_main(struct snapshot *s, void (*fn)(void *arg))
{
	s->rc = 0;
	s->w->on_main(s->w->opaque, fn, s);
	return s->rc;
}

static void start_logging(void *arg)
{
	struct snapshot *s = arg;

	s->dirty = dirty_start(s->vm, s->err);
	s->rc = s->dirty ? 0 : s->err->code;
}

static void stop_logging(void *arg)
{
	struct snapshot *s = arg;

	dirty_stop(s->dirty);
	s->dirty = NULL;
}

static void hold(void *arg)
{
	struct snapshot *s = arg;

	s->rc = vm_hold(s->vm, s->err);
	s->held = !s->rc;
}

static void release(void *arg)
{
	struct snapshot *s = arg;

	vm_release(s->vm);
	s->held = false;
}

static int save_to(struct snapshot *s,
		   int (*save)(struct vm *vm, struct stream *t, struct err *err))
{
	struct stream *t = stream_fd_new(s->f->state, "the snapshot's file state", s->err);
	int rc = t ? save(s->vm, t, s->err) : s->err->code;

	stream_free(t);
	return rc;
}

static int header(struct vm *vm, struct stream *t, struct err *err)
{
	return vm_header_save(vm, t, err);
}

static void save_header(void *arg)
{
	struct snapshot *s = arg;

	s->rc = save_to(s, header);
}

static void save_state(void *arg)
{
	struct snapshot *s = arg;

	s->rc = save_to(s, vm_state_save);
}

static void stop_machine(void *arg)
{
	struct snapshot *s = arg;

	vm_stop(s->vm, EXIT_OK, "snapshot");
	s->held = false;
}

/* ---- RAM ---- */

static int write_at(struct snapshot *s, const uint8_t *from, uint64_t at, uint64_t len)
{
	while (len) {
		ssize_t n = pwrite(s->f->memory, from, (size_t)len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return err_set_sys(s->err, n ? errno : EIO,
					   "cannot write the snapshot's file memory");
		from += n;
		at += (uint64_t)n;
		len -= (uint64_t)n;
		s->r->written += (uint64_t)n;
	}
	return 0;
}

/* Not every file system can: then zeroes are data as any other. */
static int write_zeroes(struct snapshot *s, const uint8_t *from, uint64_t at, uint64_t len)
{
	if (s->p.round == 1 || !fallocate(s->f->memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					  (off_t)at, (off_t)len))
		return 0;
	return write_at(s, from, at, len);
}

/* @count pages from @from on belong at @at: as few calls as there are changes from zero to not. */
static int write_pages(struct snapshot *s, const uint8_t *from, uint64_t at, uint64_t count)
{
	for (uint64_t i = 0; i < count;) {
		bool zero = is_zero(from + i * PAGE, PAGE);
		uint64_t end = i + 1;

		while (end < count && is_zero(from + end * PAGE, PAGE) == zero)
			end++;
		/* Once: the guest may write to it while we look. What it writes is dirty again. */
		int rc = (zero ? write_zeroes : write_at)(s, from + i * PAGE, at + i * PAGE,
							  (end - i) * PAGE);

		if (rc)
			return rc;
		i = end;
	}
	return 0;
}

/* Where in the file region @i begins. */
static uint64_t offset_of(const struct snapshot *s, unsigned i)
{
	uint64_t at = 0;

	while (i--)
		at += gmem_region(s->vm->mem, i)->size;
	return at;
}

static int look(struct snapshot *s)
{
	uint64_t now = now_ns();

	if (s->w->cancelled(s->w->opaque))
		return err_set(s->err, ECANCELED, "the snapshot was cancelled");
	if (now - s->told_ns >= PROGRESS_NS) {
		s->told_ns = now;
		s->p.remaining = dirty_pages(s->dirty) * PAGE;
		s->w->progress(s->w->opaque, &s->p);
	}
	return 0;
}

/* Advice: a kernel or file system that does not take it writes everything in the end. */
static void begin_writing(struct snapshot *s, uint64_t at, uint64_t len)
{
	if (!s->held && sync_file_range(s->f->memory, (off_t)at, (off_t)len, SYNC_FILE_RANGE_WRITE))
		return;
}

/* Everything in the set. */
static int write_round(struct snapshot *s)
{
	uint64_t before = s->p.sent, start = now_ns(), page = 0, first, count;
	unsigned region = 0;
	int rc = 0;

	s->p.round++;
	while (!rc && dirty_take(s->dirty, &region, &page, PIECE, &first, &count)) {
		const struct gmem_region *r = gmem_region(s->vm->mem, region);
		uint64_t at = offset_of(s, region) + first * PAGE;

		rc = look(s);
		if (!rc)
			rc = write_pages(s, r->host + first * PAGE, at, count);
		if (!rc)
			begin_writing(s, at, count * PAGE);
		s->p.sent += count * PAGE;
	}
	uint64_t ns = now_ns() - start + 1;

	s->p.bandwidth = (uint64_t)((unsigned __int128)(s->p.sent - before) * NS / ns);
	return rc;
}

/* May the rest be written while the machine stands still? */
static bool is_little(const struct snapshot *s, uint64_t left)
{
	return left <= REST ||
	       (unsigned __int128)left * NS <= (unsigned __int128)s->p.bandwidth * PAUSE_NS;
}

static int write_running(struct snapshot *s)
{
	uint64_t left = UINT64_MAX;

	for (;;) {
		uint64_t start = now_ns();
		int rc = write_round(s);

		if (!rc)
			rc = dirty_fetch(s->dirty, s->err);
		if (rc)
			return rc;
		uint64_t before = left, ns = now_ns() - start + 1;

		left = dirty_pages(s->dirty) * PAGE;
		s->p.dirty_rate = (uint64_t)((unsigned __int128)left * NS / ns);
		if (is_little(s, left) || s->p.round >= ROUNDS_MAX || left > before - before / 4)
			return 0;
	}
}

/* ---- the whole ---- */

static int write_machine(struct snapshot *s)
{
	cleanup_free char *text = machine_desc_text(s->vm, s->err);

	if (!text)
		return s->err->code;
	size_t len = strlen(text);

	text[len] = '\n'; /* in the place of the NUL */
	for (size_t at = 0; at <= len;) {
		ssize_t n = write(s->f->machine, text + at, len + 1 - at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_set_sys(s->err, errno,
					   "cannot write the snapshot's file machine.json");
		at += (size_t)n;
	}
	return 0;
}

static int sync_file(int fd, const char *name, struct err *err)
{
	return fsync(fd) < 0 ?
		       err_set_sys(err, errno, "cannot write the snapshot's file %s", name) :
		       0;
}

static int sync_all(struct snapshot *s)
{
	int rc = sync_file(s->f->memory, "memory", s->err);

	if (!rc)
		rc = sync_file(s->f->state, "state", s->err);
	return rc ? rc : sync_file(s->f->machine, "machine.json", s->err);
}

static void enter(struct snapshot *s, const char *stage)
{
	s->p.stage = stage;
	s->p.remaining = s->dirty ? dirty_pages(s->dirty) * PAGE : 0;
	s->told_ns = now_ns();
	s->w->progress(s->w->opaque, &s->p);
}

static int prepare(struct snapshot *s)
{
	int rc;

	s->p.total = gmem_size(s->vm->mem);
	if (ftruncate(s->f->memory, (off_t)s->p.total) < 0)
		return err_set_sys(s->err, errno, "cannot write the snapshot's file memory");
	rc = on_main(s, save_header);
	if (!rc)
		rc = write_machine(s);
	return rc ? rc : on_main(s, start_logging);
}

static int save_still(struct snapshot *s)
{
	int rc = dirty_fetch(s->dirty, s->err);

	if (!rc)
		rc = write_round(s);
	return rc ? rc : on_main(s, save_state);
}

static int save(struct snapshot *s, bool stop)
{
	int rc = prepare(s);

	if (rc)
		return rc;
	enter(s, "memory");
	rc = write_running(s);
	/* The most of it in advance: a machine that stops shall not wait long for its end. */
	if (!rc && stop)
		rc = sync_file(s->f->memory, "memory", s->err);
	if (rc)
		return rc;
	enter(s, "state");
	uint64_t start = now_ns();

	rc = on_main(s, hold);
	if (!rc)
		rc = save_still(s);
	if (!rc && !stop)
		rc = on_main(s, release);
	s->r->pause_ns = now_ns() - start;
	if (rc)
		return rc;
	enter(s, "sync");
	rc = sync_all(s);
	if (!rc)
		rc = look(s);
	if (!rc && stop)
		rc = on_main(s, stop_machine);
	return rc;
}

int snapshot_save(struct vm *vm, const struct snapshot_files *f, bool stop,
		  const struct transfer_watch *w, struct snapshot_result *r, struct err *err)
{
	struct snapshot s = { .vm = vm, .f = f, .w = w, .r = r, .err = err };
	uint64_t start = now_ns();

	*r = (struct snapshot_result){ 0 };
	int rc = save(&s, stop);

	if (s.held)
		s.w->on_main(s.w->opaque, release, &s);
	if (s.dirty)
		s.w->on_main(s.w->opaque, stop_logging, &s);
	r->ram = s.p.total;
	r->rounds = s.p.round;
	r->total_ns = now_ns() - start;
	return rc;
}
