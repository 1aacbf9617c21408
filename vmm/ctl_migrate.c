/*
 * ctl_migrate.c - `coracle ctl VM migrate tcp:HOST:PORT|unix:PATH`
 *
 * The machine can connect to nothing, so the connections are made here, with the rights of whoever
 * asks, and handed over. Then it is watched; Ctrl-C, or the end of this command for any other reason,
 * cancels the migration, and the guest runs on where it was.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "vmm/ctl_verbs.h"
#include "vmm/json_util.h"
#include "vmm/migrate.h"

#define USAGE                                                                                     \
	"migrate tcp:HOST:PORT|unix:PATH [--downtime-ms MS] [--bandwidth SIZE/s] [--parallel N] " \
	"[--timeout TIME]"
#define CONNECT_MS 10000
#define BAR        20

struct leaving {
	const struct ctl_call *call;
	const char *to;
	struct peer_address address;
	uint64_t downtime_ms, bandwidth, parallel, timeout_ms;
	int fds[RAM_CONNECTIONS_MAX];
};

/* ---- the words ---- */

/* A number from @min to @max with one of the suffixes, whose factors stand beside them. */
struct suffix {
	const char *text;
	double factor;
};

static int parse_number(const char *option, const char *text, const struct suffix *suffixes,
			uint64_t min, uint64_t max, uint64_t *to, struct err *err)
{
	char *end = NULL;
	double v = text && *text >= '0' && *text <= '9' ? strtod(text, &end) : -1;

	for (const struct suffix *s = suffixes; end && s->text; s++) {
		if (strcmp(end, s->text))
			continue;
		v *= s->factor;
		if (v < (double)min || v > (double)max)
			break;
		*to = (uint64_t)v;
		return 0;
	}
	return err_set(err, EINVAL, "%s %.40s: no such value; it goes as in 10%s", option,
		       text ? text : "(nothing)", suffixes[0].text);
}

static const struct suffix plain[] = { { "", 1 }, { NULL, 0 } };
static const struct suffix times[] = { { "s", 1e3 },  { "", 1e3 },     { "ms", 1 },
				       { "m", 60e3 }, { "h", 3600e3 }, { NULL, 0 } };
static const struct suffix rates[] = { { "MiB/s", 1 << 20 },
				       { "KiB/s", 1 << 10 },
				       { "GiB/s", 1 << 30 },
				       { "B/s", 1 },
				       { "MB/s", 1e6 },
				       { "kB/s", 1e3 },
				       { "GB/s", 1e9 },
				       { "K", 1 << 10 },
				       { "M", 1 << 20 },
				       { "G", 1 << 30 },
				       { "", 1 },
				       { NULL, 0 } };

static int parse_option(struct leaving *l, const char *name, const char *value, struct err *err)
{
	if (!strcmp(name, "--downtime-ms"))
		return parse_number(name, value, plain, 0, 60000, &l->downtime_ms, err);
	if (!strcmp(name, "--parallel"))
		return parse_number(name, value, plain, 1, RAM_CONNECTIONS_MAX, &l->parallel, err);
	if (!strcmp(name, "--bandwidth"))
		return parse_number(name, value, rates, MIGRATE_BANDWIDTH_MIN, INT64_MAX / 2,
				    &l->bandwidth, err);
	if (!strcmp(name, "--timeout"))
		return parse_number(name, value, times, 1, 1000000000, &l->timeout_ms, err);
	return err_set(err, EINVAL, "no option %.64s: " USAGE, name);
}

static int parse(struct leaving *l, struct err *err)
{
	const struct ctl_call *c = l->call;
	int rc = 0;

	for (unsigned i = 0; i < c->nwords && !rc; i++) {
		const char *w = c->words[i], *equals = strchr(w, '=');
		char name[32];

		if (w[0] != '-' && l->to)
			return err_set(err, EINVAL, "%.64s is one word too many: " USAGE, w);
		if (w[0] != '-') {
			l->to = w;
		} else if (equals && (size_t)(equals - w) < sizeof(name)) {
			memcpy(name, w, (size_t)(equals - w));
			name[equals - w] = '\0';
			rc = parse_option(l, name, equals + 1, err);
		} else {
			rc = parse_option(l, w, c->words[i + 1], err);
			i++;
		}
	}
	if (!rc && !l->to)
		rc = err_set(err, EINVAL, "where to? " USAGE);
	return rc ? rc : peer_parse(&l->address, l->to, err);
}

/* ---- asking ---- */

static int connect_all(struct leaving *l, struct err *err)
{
	for (uint64_t i = 0; i < l->parallel; i++) {
		l->fds[i] = peer_connect(&l->address, CONNECT_MS, err);
		if (l->fds[i] == -ECONNREFUSED || l->fds[i] == -ENOENT)
			return err_set(err, ECONNREFUSED,
				       "nobody waits at %s: start `coracle run --incoming` there",
				       l->to);
		if (l->fds[i] < 0)
			return l->fds[i];
	}
	return 0;
}

static int begin(struct leaving *l, uint64_t *id, struct err *err)
{
	struct json_object *params = json_object_new_object();

	json_add_u64(params, "downtime-ms", l->downtime_ms);
	json_add_u64(params, "bandwidth", l->bandwidth);
	json_add_u64(params, "timeout-ms", l->timeout_ms);
	return ctl_start_job(l->call, "migrate", params, l->fds, (unsigned)l->parallel, id, err);
}

/* ---- showing ---- */

/* [#######.............] precopy, round 1: 350 MiB sent, guest writes 12 MiB/s, downtime 8 ms */
static void draw(FILE *f, struct json_object *p)
{
	uint64_t total = json_get_u64(p, "total"), left = json_get_u64(p, "remaining");
	unsigned full = total && left <= total ? (unsigned)((total - left) * BAR / total) : 0;
	struct json_object *stage = NULL;
	char bar[BAR + 1];

	memset(bar, '.', BAR);
	memset(bar, '#', full);
	bar[BAR] = '\0';
	json_object_object_get_ex(p, "stage", &stage);
	fprintf(f,
		"[%s] %.12s, round %" PRIu64 ": %" PRIu64 " MiB sent at %" PRIu64
		" MiB/s, guest writes %" PRIu64 " MiB/s, downtime %.1f ms",
		bar, stage ? json_object_get_string(stage) : "", json_get_u64(p, "round"),
		json_get_u64(p, "sent") >> 20, json_get_u64(p, "bandwidth") >> 20,
		json_get_u64(p, "dirty-rate") >> 20,
		(double)json_get_u64(p, "expected-downtime-us") / 1e3);
}

static void print_done(const struct leaving *l, struct json_object *done)
{
	printf("%.64s runs at %s now: %.2f s in all, the guest stood still for %.1f ms, %.1f MiB "
	       "sent in %" PRIu64 " rounds\n",
	       l->call->machine, l->to, (double)json_get_u64(done, "total-us") / 1e6,
	       (double)json_get_u64(done, "downtime-us") / 1e3,
	       (double)json_get_u64(done, "sent") / (1 << 20), json_get_u64(done, "rounds"));
}

static int leave(struct leaving *l, struct err *err)
{
	struct json_object *done = NULL;
	cleanup_fd int signal_fd = ctl_catch_signals(err);
	uint64_t id = 0;
	int rc = signal_fd < 0 ? signal_fd : connect_all(l, err);

	if (!rc)
		rc = begin(l, &id, err);
	/* The machine has its own; ours would keep the connections open when it closes them. */
	for (unsigned i = 0; i < RAM_CONNECTIONS_MAX; i++)
		fd_close(&l->fds[i]);
	if (!rc)
		rc = ctl_follow_job(l->call, id, signal_fd, draw, &done, err);
	if (!rc && !l->call->json)
		print_done(l, done);
	json_object_put(done);
	return rc;
}

int ctl_migrate(const struct ctl_call *c, struct err *err)
{
	struct leaving l = {
		.call = c,
		.downtime_ms = MIGRATE_DOWNTIME_DEFAULT_NS / 1000000,
		.parallel = 1,
	};
	int rc;

	for (unsigned i = 0; i < RAM_CONNECTIONS_MAX; i++)
		l.fds[i] = -1;
	rc = parse(&l, err);
	if (rc)
		return rc;
	rc = leave(&l, err);
	/* -EINVAL is for wrong words; nothing else may look like it. */
	return rc == -EINVAL ? -EIO : rc;
}
