/*
 * migrate_target.c - the machine arrives
 *
 * Its source has come in by the door (migrate_door.c), its header was read and the machine was made. A
 * job of the new machine receives: a thread a connection, all waiting for each other at the end of a
 * round. The state is copied to memory whole before the main thread loads it: a source that stalls holds
 * up a worker, never the main loop.
 *
 * The machine runs when three things are true: its state is loaded, the source has said COMMIT, and
 * the locks of its disks are ours. We say that it runs before it does: if we died in between, the
 * source must not start again a machine whose disks we may have written to.
 *
 * Whatever goes wrong before is told to the source, which may be sending at full speed then: we say it,
 * and go on reading for a moment, since closing a socket with unread data resets the connection and
 * takes our words with it.
 */
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "backends/block.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/exit_status.h"
#include "vmm/migrate.h"
#include "vmm/migrate_wire.h"
#include "vmm/sections.h"
#include "vmm/vm.h"

#define STATE_MAX (64u << 20) /* bytes of a machine's state without RAM */
#define LINGER_MS 2000        /* reading on, so that our last words arrive */
#define SILENCE_S \
	600 /* of a source, which may be writing back its disks; then it is taken for dead */

struct arrival {
	struct incoming *in;
	struct stream *stream;
	int fd;
	pthread_t thread;
	bool started;
	struct err err;
};

struct incoming {
	struct vm *vm;
	struct job *job;
	const struct transfer_watch *w;
	struct transfer_progress p;
	struct stream *out; /* to the source, on the first connection */
	struct stream *state;
	bool paused; /* the guest stood still at the source, and shall here */

	uint8_t session[MIGRATE_SESSION_SIZE];
	unsigned connections;
	unsigned judge; /* find_judge() */
	struct arrival a[RAM_CONNECTIONS_MAX];

	pthread_mutex_t lock; /* guards what follows: where connections meet */
	pthread_cond_t changed;
	unsigned waiting, generation;
	bool last, failed;
	struct err err; /* the first failure's; others are its echoes */
};

/* ---- before the sandbox ---- */

static void limit_waiting(int fd, unsigned seconds)
{
	struct timeval t = { .tv_sec = seconds };

	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)))
		log_debug("migration: a silent source is not noticed");
}

static bool make_streams(struct incoming *in, struct err *err)
{
	in->out = stream_fd_new(in->a[0].fd, "the source", err);
	for (unsigned i = 0; i < in->connections; i++) {
		in->a[i].stream = stream_fd_new(in->a[i].fd, "the source", err);
		if (!in->a[i].stream)
			return false;
		stream_name_types(in->a[i].stream, section_name);
		limit_waiting(in->a[i].fd, SILENCE_S);
	}
	return in->out;
}

struct incoming *incoming_new(const struct door_guest *g, struct err *err)
{
	struct incoming *in = calloc(1, sizeof(*in));

	if (!in) {
		for (unsigned i = 0; i < g->connections; i++)
			close(g->fds[i]);
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	in->connections = g->connections;
	memcpy(in->session, g->session, sizeof(in->session));
	for (unsigned i = 0; i < in->connections; i++)
		in->a[i] = (struct arrival){ .in = in, .fd = g->fds[i] };
	pthread_mutex_init(&in->lock, NULL);
	pthread_cond_init(&in->changed, NULL);
	if (!make_streams(in, err)) {
		incoming_free(in);
		return NULL;
	}
	return in;
}

void incoming_free(struct incoming *in)
{
	if (!in)
		return;
	for (unsigned i = 0; i < in->connections; i++) {
		stream_free(in->a[i].stream);
		fd_close(&in->a[i].fd);
	}
	stream_free(in->out);
	stream_free(in->state);
	pthread_cond_destroy(&in->changed);
	pthread_mutex_destroy(&in->lock);
	free(in);
}

/* Read on for a moment: see above. */
static void linger(struct incoming *in)
{
	struct pollfd p = { .fd = in->a[0].fd, .events = POLLIN };
	struct timespec start, now;
	static const size_t piece = 64 << 10;
	cleanup_free char *drain = malloc(piece);
	int64_t left = LINGER_MS;

	shutdown(p.fd, SHUT_WR);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (drain && left > 0 && poll(&p, 1, (int)left) > 0) {
		if (recv(p.fd, drain, piece, MSG_DONTWAIT) <= 0)
			break;
		clock_gettime(CLOCK_MONOTONIC, &now);
		left = LINGER_MS - (now.tv_sec - start.tv_sec) * 1000 -
		       (now.tv_nsec - start.tv_nsec) / 1000000;
	}
}

void incoming_refuse(struct incoming *in, const char *why)
{
	struct err ignored;

	if (in->out && !migrate_put_reply(in->out, MIGRATE_FAILED, 0, why, &ignored))
		linger(in);
}

/* ---- RAM ---- */

/*
 * From any connection's thread: nobody goes on. The source is told at once; it closes all connections
 * then, which ends whoever still reads.
 */
static void fail(struct incoming *in, const struct err *why)
{
	struct err ignored;

	pthread_mutex_lock(&in->lock);
	if (!in->failed) {
		in->failed = true;
		in->err = *why;
		migrate_put_reply(in->out, MIGRATE_FAILED, 0, why->msg, &ignored);
	}
	pthread_cond_broadcast(&in->changed);
	pthread_mutex_unlock(&in->lock);
}

/* All connections have ended the round, and agree whether it was the last. */
static int meet(struct arrival *a, const struct ram_round_end *end)
{
	struct incoming *in = a->in;
	int rc = 0;

	pthread_mutex_lock(&in->lock);
	unsigned generation = in->generation;

	if (!in->waiting)
		in->last = end->last;
	else if (in->last != end->last)
		rc = err_set(&a->err, EPROTO, "connections end round %u differently", end->round);
	if (!rc && ++in->waiting == in->connections) {
		in->waiting = 0;
		in->generation++;
		pthread_cond_broadcast(&in->changed);
	}
	while (!rc && in->generation == generation && !in->failed)
		pthread_cond_wait(&in->changed, &in->lock);
	if (!rc && in->generation == generation)
		rc = err_set(&a->err, ECONNRESET, "another connection has failed");
	pthread_mutex_unlock(&in->lock);
	return rc;
}

static void progress(struct incoming *in, enum migrate_stage stage)
{
	in->p.stage = migrate_stages[stage].name;
	in->w->progress(in->w->opaque, &in->p);
}

/* Rounds of one connection up to the last. */
static int receive(struct arrival *a)
{
	struct incoming *in = a->in;
	struct ram_round_end end = { 0 };
	int rc = 0;

	for (uint32_t round = 1; !rc && !end.last; round++) {
		rc = ram_receive_round(in->vm->mem, a->stream, round, &end, &a->err);
		if (!rc)
			rc = meet(a, &end);
		if (rc || a != in->a)
			continue;
		in->p.round = round;
		in->p.sent = stream_bytes(a->stream);
		progress(in, MIGRATE_PRECOPY);
		pthread_mutex_lock(&in->lock);
		if (!end.last && !in->failed)
			rc = migrate_put_reply(in->out, MIGRATE_ROUND, round, NULL, &a->err);
		pthread_mutex_unlock(&in->lock);
	}
	return rc;
}

static void *receiver(void *arg)
{
	struct arrival *a = arg;

	if (receive(a))
		fail(a->in, &a->err);
	return NULL;
}

static int receive_ram(struct incoming *in, struct err *err)
{
	int rc = 0;

	for (unsigned i = 1; i < in->connections && !rc; i++) {
		rc = pthread_create(&in->a[i].thread, NULL, receiver, &in->a[i]);
		in->a[i].started = !rc;
		if (rc) {
			err_set_sys(err, rc, "cannot start a thread for connection %u", i);
			fail(in, err);
		}
	}
	if (!rc)
		receiver(&in->a[0]);
	for (unsigned i = 1; i < in->connections; i++)
		if (in->a[i].started)
			pthread_join(in->a[i].thread, NULL);
	if (in->failed)
		*err = in->err;
	return in->failed ? in->err.code : 0;
}

/* ---- state ---- */

static bool is_state(const struct stream_section *s)
{
	return !(s->flags & STREAM_BULK) && s->type >= SECTION_CLOCK && s->type < SECTION_HELLO;
}

/* Copy it to memory, up to its end. */
static int receive_state(struct incoming *in, struct err *err)
{
	struct stream *from = in->a[0].stream;
	struct stream_section s = { 0 };

	in->state = stream_buffer_new(err);
	if (!in->state)
		return err->code;
	while (s.type != SECTION_END) {
		int rc = stream_get(from, &s, err);

		if (rc == 0)
			return err_set(err, ENODATA, "it ends within the machine's state");
		if (rc > 0 && !is_state(&s))
			rc = err_set(err, EPROTO, "a section of type %u within the machine's state",
				     s.type);
		if (rc > 0 && stream_bytes(in->state) > STATE_MAX)
			rc = err_set(err, EPROTO, "the machine's state has no end");
		if (rc > 0)
			rc = stream_put(in->state, s.type, s.flags, s.name, s.data, (size_t)s.len,
					err);
		if (rc < 0)
			return rc;
	}
	return 0;
}

struct call {
	struct incoming *in;
	int (*fn)(struct incoming *in, struct err *err);
	struct err *err;
	int rc;
};

static void call(void *arg)
{
	struct call *c = arg;

	c->rc = c->fn(c->in, c->err);
}

static int on_main(struct incoming *in, int (*fn)(struct incoming *in, struct err *err),
		   struct err *err)
{
	struct call c = { in, fn, err, 0 };

	in->w->on_main(in->w->opaque, call, &c);
	return c.rc;
}

static int load(struct incoming *in, struct err *err)
{
	size_t len;
	const uint8_t *data = stream_buffer(in->state, &len);
	struct stream *s = stream_read_new(data, len, err);
	int rc = s ? vm_start_loaded(in->vm, s, VM_CLOCK_RAN, true, err) : err->code;

	stream_free(s);
	/* Whatever a client says now, it runs when it is ours. */
	return rc ? rc : vm_hold(in->vm, err);
}

/* ---- the hand-over ---- */

/*
 * The judge is a disk whose lock can decide between us: it is the source's, which we know by its mark,
 * and not a stranger's on another disk, who would let go of it when he likes. 1 + its number, or 0.
 */
static unsigned find_judge(const struct incoming *in)
{
	uint64_t mark = migrate_mark(in->session);

	for (unsigned i = 0; i < in->vm->ndisks; i++) {
		struct block *b = in->vm->disks[i];

		if (!b->read_only && b->ops->marked && b->ops->marked(b, mark))
			return i + 1;
	}
	return 0;
}

/* The judge's lock comes last: who sees it in our hands knows that we run. */
static int take_over(struct incoming *in, struct err *err)
{
	struct err ignored;
	int rc = vm_lock_disks(in->vm, in->judge, migrate_mark(in->session), err);

	if (rc) {
		vm_unlock_disks(in->vm);
		return rc;
	}
	/* From here it is ours, whether the source hears it or not. */
	migrate_put_reply(in->out, MIGRATE_RUNNING, 0, NULL, &ignored);
	if (!in->paused && !in->vm->config->paused)
		vm_resume(in->vm);
	vm_release(in->vm);
	vm_announce(in->vm);
	return 0;
}

static int arrive(struct incoming *in, struct err *err)
{
	in->judge = find_judge(in);
	int rc = migrate_put_reply(in->out, MIGRATE_ACCEPT, in->judge, NULL, err);

	progress(in, MIGRATE_PRECOPY);
	if (!rc)
		rc = receive_ram(in, err);
	if (rc)
		return rc;
	progress(in, MIGRATE_SWITCHOVER);
	rc = receive_state(in, err);
	if (!rc)
		rc = on_main(in, load, err);
	if (!rc)
		rc = migrate_put_reply(in->out, MIGRATE_READY, 0, NULL, err);
	if (!rc)
		rc = migrate_get_commit(in->a[0].stream, &in->paused, err);
	if (!rc && !job_commit(in->job))
		rc = err_set(err, ECANCELED, "cancelled");
	if (!rc)
		rc = on_main(in, take_over, err);
	if (!rc)
		progress(in, MIGRATE_RESUMED);
	return rc;
}

/* ---- the job ---- */

static int run(struct job *j, void *arg, const struct transfer_watch *w, struct json_object *result,
	       struct err *err)
{
	struct incoming *in = arg;

	in->job = j;
	in->w = w;
	in->p.total = gmem_size(in->vm->mem);
	int rc = arrive(in, err);

	if (rc == -ENODATA || rc == -ECONNRESET)
		rc = err_prefix(err, "the source has gone");
	if (rc == -EAGAIN)
		rc = err_set(err, ETIMEDOUT, "the source has been silent for %u s", SILENCE_S);
	rc = job_why(j, rc, err);
	if (rc) {
		fail(in, err);
		in->err = *err;
		linger(in);
	}
	return rc;
}

static void unblock(void *arg)
{
	struct incoming *in = arg;

	for (unsigned i = 0; i < in->connections; i++)
		shutdown(in->a[i].fd, SHUT_RDWR);
}

static void end(struct vm *vm, void *arg, int rc)
{
	struct incoming *in = arg;

	if (rc) {
		log_err("migration: %s", in->err.msg);
		vm_stop(vm, EXIT_HOST, "migration-failed");
	}
	incoming_free(in);
}

static const struct job_task incoming_task = { "incoming", run, unblock, end };

int incoming_start(struct incoming *in, struct vm *vm, struct err *err)
{
	uint64_t id;

	in->vm = vm;
	return job_start(vm->job, &incoming_task, in, 0, &id, err);
}
