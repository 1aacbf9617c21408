/*
 * migrate_source.c - the machine leaves
 *
 * A worker does the talking; what touches the machine it does on the main thread. Cancelling shuts the
 * sockets down, so that nothing here waits for a peer any longer.
 *
 * RAM goes in rounds until what the guest has written meanwhile can be sent within the downtime the
 * user allows, by the bandwidth of the round before. That bandwidth is bytes by the time spent in
 * writing and in waiting for the target's word that it has everything, so buffers in between do not
 * flatter it. Scanning pages for zeroes is left out: the last round has few of them.
 *
 * In the switch-over the devices' and processors' state is saved before the last look at the dirty log,
 * because KVM itself writes to guest memory (clocks, stolen time) when it is asked for that state.
 *
 * The point of no return is COMMIT. Before it every failure lets the guest run on here. After it the
 * answer may be lost, and nobody can know whether the target has started. Then a disk's lock decides,
 * the judge's: given up before COMMIT, taken by the target, behind all others, before it says that it
 * runs, and looked at all the while we wait. Locks carry this migration's mark (backends/block.h), so
 * neither side takes a stranger's for the other's. If the target never took it we take it back, before
 * all others, which it will find out; if it did, we have ended. A machine without a disk whose lock
 * both sides see has no judge: it stays paused and its user is asked.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "backends/block.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/exit_status.h"
#include "vmm/json_util.h"
#include "vmm/migrate.h"
#include "vmm/migrate_wire.h"
#include "vmm/sections.h"
#include "vmm/vm.h"

#define PAGE            4096u
#define SWITCH_SLACK_NS 5000000000u /* on top of what it should take: then the guest runs on here */
#define ANSWER_MS       10000       /* to COMMIT */
#define LOOK_MS         1           /* between looks at the locks meanwhile */
#define LAST_WORDS_MS   1000        /* of a target whose connection broke */

struct migrate {
	struct vm *vm;
	struct migrate_options o;
	struct job *job;
	const struct transfer_watch *w;
	struct transfer_progress p;

	struct stream *out[RAM_CONNECTIONS_MAX];
	struct stream *in;    /* the first connection's other direction */
	struct stream *state; /* the machine's, until it is sent */
	struct dirty *dirty;
	struct ram_sender *sender;
	uint8_t session[MIGRATE_SESSION_SIZE];
	unsigned judge; /* 1 + the number of the disk whose lock both sides see, 0: there is none */
	bool held, given;
	uint64_t started, held_at, downtime_ns, fetched_at;
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void enter(struct migrate *m, enum migrate_stage stage)
{
	m->p.stage = migrate_stages[stage].name;
	m->w->progress(m->w->opaque, &m->p);
}

/* Run fn(m) on the main thread; what it returns. */
struct call {
	struct migrate *m;
	int (*fn)(struct migrate *m, struct err *err);
	struct err *err;
	int rc;
};

static void call(void *arg)
{
	struct call *c = arg;

	c->rc = c->fn(c->m, c->err);
}

static int on_main(struct migrate *m, int (*fn)(struct migrate *m, struct err *err),
		   struct err *err)
{
	struct call c = { m, fn, err, 0 };

	m->w->on_main(m->w->opaque, call, &c);
	return c.rc;
}

/* ---- the target's word ---- */

static bool readable(struct migrate *m, int timeout_ms)
{
	struct pollfd p = { .fd = m->o.fds[0], .events = POLLIN };

	return poll(&p, 1, timeout_ms) > 0;
}

static bool target_speaks(void *opaque)
{
	return readable(opaque, 0);
}

static int await(struct migrate *m, enum migrate_answer what, uint32_t *arg, struct err *err)
{
	struct migrate_reply r;
	int rc = migrate_get_reply(m->in, &r, err);

	if (rc == -ENODATA)
		return err_set(err, ECONNRESET, "the target has gone");
	if (rc)
		return err_prefix(err, "the target");
	if (r.what == MIGRATE_FAILED)
		return err_set(err, EREMOTEIO, "the target refuses: %s", r.text);
	if (r.what != (uint32_t)what)
		return err_set(err, EPROTO, "the target answers %u where %u should be", r.what,
			       what);
	if (arg)
		*arg = r.arg;
	return 0;
}

/* A connection failed, or the target speaks out of turn: it may have said why. */
static int last_words(struct migrate *m, int rc, struct err *err)
{
	struct migrate_reply r;
	struct err ignored;

	if ((rc == -EINTR || rc == -EPIPE || rc == -ECONNRESET) && readable(m, LAST_WORDS_MS) &&
	    !migrate_get_reply(m->in, &r, &ignored) && r.what == MIGRATE_FAILED)
		return err_set(err, EREMOTEIO, "the target refuses: %s", r.text);
	if (rc == -EINTR)
		return err_set(err, ECONNRESET, "the target has gone");
	return rc;
}

/* ---- connect, check ---- */

static int greet(struct migrate *m, struct err *err)
{
	struct migrate_hello h = { .protocol = MIGRATE_PROTOCOL, .connections = m->o.connections };
	int rc = 0;

	enter(m, MIGRATE_CONNECT);
	if (getrandom(m->session, sizeof(m->session), 0) != sizeof(m->session))
		return err_set_sys(err, errno, "no random bytes");
	memcpy(h.session, m->session, sizeof(h.session));
	for (; h.index < m->o.connections && !rc; h.index++)
		rc = migrate_put_hello(m->out[h.index], &h, err);
	return rc;
}

/* If nothing comes of it the mark stays, to no harm, until the next one. */
static int mark_disks(struct migrate *m, struct err *err)
{
	return vm_lock_disks(m->vm, 0, migrate_mark(m->session), err);
}

static int check(struct migrate *m, struct err *err)
{
	enter(m, MIGRATE_CHECK);
	int rc = on_main(m, mark_disks, err);

	if (!rc)
		rc = vm_header_save(m->vm, m->out[0], err);
	if (!rc)
		rc = await(m, MIGRATE_ACCEPT, &m->judge, err);
	if (!rc && m->judge > m->vm->ndisks)
		rc = err_set(err, EPROTO, "the target sees disk %u of %u locked", m->judge,
			     m->vm->ndisks);
	return rc;
}

/* ---- precopy ---- */

static int start_log(struct migrate *m, struct err *err)
{
	m->dirty = dirty_start(m->vm, err);
	return m->dirty ? 0 : err->code;
}

/* What is left to send, and what that would mean. */
static int fetch(struct migrate *m, struct err *err)
{
	struct transfer_progress *p = &m->p;
	uint64_t before = dirty_pages(m->dirty) * PAGE;
	int rc = dirty_fetch(m->dirty, err);
	uint64_t now = now_ns();

	p->remaining = dirty_pages(m->dirty) * PAGE;
	p->dirty_rate = (uint64_t)((double)(p->remaining - before) * 1e9 /
				   (double)(now - m->fetched_at + 1));
	p->expected_downtime_ns =
		p->bandwidth ? (uint64_t)((double)p->remaining * 1e9 / (double)p->bandwidth) : 0;
	m->fetched_at = now;
	return rc;
}

static bool little_left(const struct migrate *m)
{
	return m->p.expected_downtime_ns <= m->o.downtime_ns;
}

static int send_round(struct migrate *m, struct err *err)
{
	uint64_t before = ram_sent(m->sender);
	int rc = ram_send_round(m->sender, &m->p, false, err);
	uint64_t sent_at = now_ns();
	uint32_t round;

	if (!rc)
		rc = await(m, MIGRATE_ROUND, &round, err);
	if (!rc && round != m->p.round)
		rc = err_set(err, EPROTO, "the target has round %u, not %u", round, m->p.round);
	if (rc)
		return rc;
	uint64_t ns = ram_send_ns(m->sender) + now_ns() - sent_at;

	m->p.bandwidth =
		(uint64_t)((double)(ram_sent(m->sender) - before) * 1e9 / (double)(ns + 1));
	return fetch(m, err);
}

/* What the host holds back of the disks' writes; most of it goes now, while the guest runs. */
static int sync_disks(struct migrate *m, struct err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < m->vm->ndisks && !rc; i++) {
		struct block *b = m->vm->disks[i];

		rc = b->ops->sync ? b->ops->sync(b, err) : 0;
	}
	return rc;
}

/* Stop the guest, unless the rest has become too much: m->held tells. */
static int hold(struct migrate *m, struct err *err)
{
	m->held_at = now_ns();
	int rc = vm_hold(m->vm, err);

	if (rc)
		return rc;
	m->held = true;
	rc = fetch(m, err);
	if (!rc && !little_left(m)) {
		m->held = false;
		vm_release(m->vm);
	}
	return rc;
}

/* Rounds until the guest stands still with little left to send. */
static int send_rounds(struct migrate *m, struct err *err)
{
	bool synced = false;
	int rc = 0;

	while (!rc && !m->held) {
		rc = send_round(m, err);
		if (rc)
			return rc;
		m->w->progress(m->w->opaque, &m->p);
		if (little_left(m) && !synced) {
			synced = true;
			rc = sync_disks(m, err);
			if (!rc)
				rc = fetch(m, err);
		}
		if (!rc && little_left(m))
			rc = on_main(m, hold, err);
	}
	return rc;
}

static int precopy(struct migrate *m, struct err *err)
{
	struct ram_sender_options o = {
		.mem = m->vm->mem,
		.out = m->out,
		.connections = m->o.connections,
		.bandwidth = m->o.bandwidth,
		.watch = m->w,
		.interrupted = target_speaks,
		.opaque = m,
	};

	m->p.total = gmem_size(m->vm->mem);
	enter(m, MIGRATE_PRECOPY);
	int rc = on_main(m, start_log, err);

	if (rc)
		return rc;
	m->fetched_at = now_ns();
	o.dirty = m->dirty;
	m->sender = ram_sender_new(&o, err);
	return m->sender ? send_rounds(m, err) : err->code;
}

/* ---- switch-over ---- */

static int save(struct migrate *m, struct err *err)
{
	m->state = stream_buffer_new(err);
	int rc = m->state ? vm_state_save(m->vm, m->state, err) : err->code;

	return rc ? rc : dirty_fetch(m->dirty, err);
}

static int send_rest(struct migrate *m, struct err *err)
{
	const uint8_t *state;
	size_t len;
	int rc = ram_send_round(m->sender, &m->p, true, err);

	if (rc)
		return rc;
	state = stream_buffer(m->state, &len);
	rc = fd_write_all(m->o.fds[0], state, len);
	if (rc)
		return err_set_sys(err, rc, "cannot send the machine's state");
	return await(m, MIGRATE_READY, NULL, err);
}

static int take_back(struct migrate *m, struct err *err)
{
	return vm_lock_disks(m->vm, m->judge ? m->judge - 1 : 0, 0, err);
}

/* Let go of the disks and say so. What was written is on them. */
static int give(struct migrate *m, struct err *err)
{
	int rc = sync_disks(m, err);

	if (rc)
		return rc;
	vm_unlock_disks(m->vm);
	m->given = true;
	return migrate_put_commit(m->out[0], m->vm->state == VM_PAUSED, err);
}

static bool target_has_disks(const struct migrate *m)
{
	struct block *b = m->judge ? m->vm->disks[m->judge - 1] : NULL;

	return b && b->ops->marked && b->ops->marked(b, migrate_mark(m->session));
}

/* Does the target run? 0: yes. -EREMOTEIO: no, it says so. -ECONNRESET: nobody knows. */
static int await_running(struct migrate *m, struct err *err)
{
	uint64_t end = now_ns() + ANSWER_MS * UINT64_C(1000000);
	struct migrate_reply r = { 0 };
	bool seen = false, ready = false;

	while (!ready && now_ns() < end) {
		ready = readable(m, LOOK_MS);
		if (!seen && target_has_disks(m)) {
			log_debug("migration: the target has the disks");
			seen = true;
		}
	}
	if (ready && !migrate_get_reply(m->in, &r, err) && r.what == MIGRATE_RUNNING)
		return 0;
	if (r.what == MIGRATE_FAILED)
		return err_set(err, EREMOTEIO, "the target could not take over: %s", r.text);
	if (!seen)
		return err_set(err, ECONNRESET, "the target's last answer is lost");
	log_warn("migration: the target's last answer is lost, but it has the disks");
	return 0;
}

static int stay_paused(struct migrate *m, struct err *err)
{
	take_back(m, NULL); /* `resume` tries again */
	vm_pause(m->vm);
	return err_set(
		err, EOWNERDEAD,
		"the connection broke in the moment of the hand-over, and no disk's lock tells "
		"whether the target runs: this machine stays paused. If the target does not "
		"run, `resume` it; if it does, `quit`");
}

/*
 * The disks' locks again. While we have the judge's the target cannot start, but for a moment it may
 * hold others that it has to find that out.
 */
static int regain(struct migrate *m, struct err *err)
{
	uint64_t end = now_ns() + ANSWER_MS * UINT64_C(1000000);
	int rc;

	while ((rc = on_main(m, take_back, err)) == -EBUSY && !target_has_disks(m) &&
	       now_ns() < end)
		poll(NULL, 0, LOOK_MS);
	return rc;
}

/* COMMIT is out: whose is the machine? 0: the target's. */
static int settle(struct migrate *m, struct err *err)
{
	struct err why;
	int rc = await_running(m, err);

	if (!rc)
		return 0;
	if (rc == -ECONNRESET && !m->judge)
		return on_main(m, stay_paused, err);
	why = *err;
	rc = regain(m, err);
	if (rc == -EBUSY && why.code == -ECONNRESET && target_has_disks(m)) {
		log_warn("migration: %s, but it has the disks", why.msg);
		return 0;
	}
	if (rc) {
		/* Not to be run without its disks. */
		log_err("%s", err->msg);
		on_main(m, stay_paused, &(struct err){ 0 });
		return err_set(err, EOWNERDEAD, "%s; this machine stays paused", why.msg);
	}
	*err = why;
	return why.code;
}

static int switch_over(struct migrate *m, struct err *err)
{
	int rc;

	enter(m, MIGRATE_SWITCHOVER);
	job_limit(m->job, m->o.downtime_ns * 2 + SWITCH_SLACK_NS,
		  "the switch-over took too long; the guest runs on here");
	rc = on_main(m, save, err);
	if (!rc)
		rc = send_rest(m, err);
	if (!rc && !job_commit(m->job))
		rc = err_set(err, ECANCELED, "cancelled");
	if (rc)
		return rc;
	rc = on_main(m, give, err);
	if (rc && m->given) {
		/* COMMIT did not get out whole: nobody can act on it. */
		struct err why = *err;

		rc = regain(m, err);
		if (rc)
			return on_main(m, stay_paused, err);
		*err = why;
		return why.code;
	}
	if (rc)
		return rc;
	rc = settle(m, err);
	m->downtime_ns = now_ns() - m->held_at;
	return rc;
}

/* ---- the job ---- */

static int undo(struct migrate *m, struct err *err)
{
	dirty_stop(m->dirty);
	m->dirty = NULL;
	if (m->held)
		vm_release(m->vm);
	m->held = false;
	return 0;
}

static int end_log(struct migrate *m, struct err *err)
{
	dirty_stop(m->dirty);
	m->dirty = NULL;
	return 0;
}

static void tell_result(struct migrate *m, struct json_object *o)
{
	json_add_u64(o, "total-us", (now_ns() - m->started) / 1000);
	json_add_u64(o, "downtime-us", m->downtime_ns / 1000);
	json_add_u64(o, "sent", ram_sent(m->sender));
	json_add_u64(o, "memory", m->p.total);
	json_add_u64(o, "rounds", m->p.round);
}

/* Why it did not end in time, with what the user can do about it. */
static void explain_timeout(const struct migrate *m, struct err *err)
{
	if (m->p.round > 1 && !m->held)
		snprintf(err->msg, sizeof(err->msg),
			 "not done within %llu s: the guest writes %llu MiB/s and %llu MiB/s get "
			 "through, so the downtime would be %llu ms; allow a longer --downtime-ms, "
			 "more "
			 "--bandwidth or --timeout",
			 (unsigned long long)m->o.timeout_ns / 1000000000,
			 (unsigned long long)m->p.dirty_rate >> 20,
			 (unsigned long long)m->p.bandwidth >> 20,
			 (unsigned long long)m->p.expected_downtime_ns / 1000000);
}

static int make_streams(struct migrate *m, struct err *err)
{
	for (unsigned i = 0; i < m->o.connections; i++) {
		m->out[i] = stream_fd_new(m->o.fds[i], "the target", err);
		if (!m->out[i])
			return err->code;
	}
	m->in = stream_fd_new(m->o.fds[0], "the target", err);
	return m->in ? 0 : err->code;
}

static int run(struct job *j, void *arg, const struct transfer_watch *w, struct json_object *result,
	       struct err *err)
{
	struct migrate *m = arg;
	int rc = make_streams(m, err);

	m->job = j;
	m->w = w;
	m->started = now_ns();
	if (m->o.timeout_ns)
		job_limit(j, m->o.timeout_ns, "not done within the time allowed");
	if (!rc)
		rc = greet(m, err);
	if (!rc)
		rc = check(m, err);
	if (!rc)
		rc = precopy(m, err);
	if (!rc)
		rc = switch_over(m, err);
	if (rc) {
		rc = job_why(j, last_words(m, rc, err), err);
		if (rc == -ETIMEDOUT)
			explain_timeout(m, err);
		on_main(m, undo, err);
		return rc;
	}
	enter(m, MIGRATE_RESUMED);
	on_main(m, end_log, err);
	enter(m, MIGRATE_DONE);
	tell_result(m, result);
	return 0;
}

static void unblock(void *arg)
{
	struct migrate *m = arg;

	for (unsigned i = 0; i < m->o.connections; i++)
		shutdown(m->o.fds[i], SHUT_RDWR);
}

void migrate_free(struct migrate *m)
{
	if (!m)
		return;
	ram_sender_free(m->sender);
	for (unsigned i = 0; i < m->o.connections; i++) {
		stream_free(m->out[i]);
		fd_close(&m->o.fds[i]);
	}
	stream_free(m->in);
	stream_free(m->state);
	free(m);
}

static void end(struct vm *vm, void *arg, int rc)
{
	migrate_free(arg);
	if (!rc)
		vm_stop(vm, EXIT_OK, "migrated");
}

const struct job_task migrate_task = { "migrate", run, unblock, end };

struct migrate *migrate_new(struct vm *vm, const struct migrate_options *o, struct err *err)
{
	struct migrate *m = calloc(1, sizeof(*m));

	if (!m) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	m->vm = vm;
	m->o = *o;
	return m;
}
