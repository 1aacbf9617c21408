/*
 * fake_wiring.h - devices/wiring.h without KVM: counts, remembers and can refuse
 *
 *	struct fake_wiring fw;
 *	fake_wiring_init(&fw);
 *	d = some_new(..., &fw.wiring, ...);
 *	assert_int_equal(fake_wiring_deliver(&fw), 1);
 *
 * Takes the interrupt controller's part: what is signalled while bound is "delivered" (and the event
 * consumed) by fake_wiring_deliver(), or at once by a bind that finds it signalled, as KVM does.
 * Binding twice is misuse; unbinding what is not bound does nothing, as over KVM. A test with threads
 * holds the device's lock around the calls here.
 */
#ifndef TESTS_UNIT_FAKE_WIRING_H
#define TESTS_UNIT_FAKE_WIRING_H

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "devices/wiring.h"

#define FAKE_WIRING_MAX 512

struct fake_wiring {
	struct wiring wiring; /* what devices hold */

	struct wire_kick *kick[FAKE_WIRING_MAX]; /* bound now */
	struct wire_msi *msi[FAKE_WIRING_MAX];
	struct wire_line *line[FAKE_WIRING_MAX];
	size_t nkick, nmsi, nline;

	unsigned kick_binds, kick_unbinds, msi_binds, msi_unbinds, line_binds, line_unbinds;
	int refuse_kick, refuse_msi, refuse_line; /* negative errno: the next calls fail so */
	unsigned misuse;
	int next_gsi;

	unsigned msi_sent, line_edges;
	uint64_t last_addr; /* of the last message sent */
	uint32_t last_data;
	unsigned last_line; /* GSI of the last edge */
	uint32_t lines_up;  /* by set_line, a bit each GSI */
	unsigned line_sets;

	unsigned power_calls;
	enum wire_power power_what;
	int power_status;
};

static inline struct fake_wiring *fake_wiring_of_(struct wiring *w)
{
	return (struct fake_wiring *)w; /* first member */
}

static inline int fake_wiring_add_(struct fake_wiring *f, void *items, size_t *n, void *item,
				   bool *bound, int refuse)
{
	if (*bound || *n == FAKE_WIRING_MAX) {
		f->misuse++;
		return -EINVAL;
	}
	if (refuse)
		return refuse;
	((void **)items)[(*n)++] = item;
	*bound = true;
	return 0;
}

static inline void fake_wiring_remove_(struct fake_wiring *f, void *items, size_t *n, void *item,
				       bool *bound)
{
	void **p = items;

	for (size_t i = 0; i < *n; i++) {
		if (p[i] == item) {
			p[i] = p[--*n];
			*bound = false;
			return;
		}
	}
	f->misuse++;
}

static inline int fake_wiring_bind_kick_(struct wiring *w, struct wire_kick *k)
{
	struct fake_wiring *f = fake_wiring_of_(w);

	f->kick_binds++;
	return fake_wiring_add_(f, f->kick, &f->nkick, k, &k->bound, f->refuse_kick);
}

static inline void fake_wiring_unbind_kick_(struct wiring *w, struct wire_kick *k)
{
	struct fake_wiring *f = fake_wiring_of_(w);

	if (!k->bound)
		return;
	f->kick_unbinds++;
	fake_wiring_remove_(f, f->kick, &f->nkick, k, &k->bound);
}

static inline void fake_wiring_send_(struct fake_wiring *f, struct wire_msi *m)
{
	if (!event_clear(m->event))
		return;
	f->msi_sent++;
	f->last_addr = m->addr;
	f->last_data = m->data;
}

static inline int fake_wiring_bind_msi_(struct wiring *w, struct wire_msi *m)
{
	struct fake_wiring *f = fake_wiring_of_(w);
	int rc;

	f->msi_binds++;
	if (m->gsi < 0)
		m->gsi = f->next_gsi++;
	rc = fake_wiring_add_(f, f->msi, &f->nmsi, m, &m->bound, f->refuse_msi);
	if (!rc)
		fake_wiring_send_(f, m);
	return rc;
}

static inline void fake_wiring_unbind_msi_(struct wiring *w, struct wire_msi *m)
{
	struct fake_wiring *f = fake_wiring_of_(w);

	if (!m->bound)
		return;
	f->msi_unbinds++;
	fake_wiring_send_(f, m); /* KVM has taken what was signalled before the irqfd goes */
	fake_wiring_remove_(f, f->msi, &f->nmsi, m, &m->bound);
}

static inline void fake_wiring_edge_(struct fake_wiring *f, struct wire_line *l)
{
	if (!event_clear(l->trigger))
		return;
	f->line_edges++;
	f->last_line = l->gsi;
}

static inline int fake_wiring_bind_line_(struct wiring *w, struct wire_line *l)
{
	struct fake_wiring *f = fake_wiring_of_(w);
	int rc;

	f->line_binds++;
	rc = fake_wiring_add_(f, f->line, &f->nline, l, &l->bound, f->refuse_line);
	if (!rc)
		fake_wiring_edge_(f, l);
	return rc;
}

static inline void fake_wiring_unbind_line_(struct wiring *w, struct wire_line *l)
{
	struct fake_wiring *f = fake_wiring_of_(w);

	if (!l->bound)
		return;
	f->line_unbinds++;
	fake_wiring_remove_(f, f->line, &f->nline, l, &l->bound);
}

static inline int fake_wiring_set_line_(struct wiring *w, unsigned gsi, bool up)
{
	struct fake_wiring *f = fake_wiring_of_(w);

	f->line_sets++;
	if (gsi > 31)
		f->misuse++;
	else if (!f->refuse_line)
		f->lines_up = up ? f->lines_up | 1u << gsi : f->lines_up & ~(1u << gsi);
	return f->refuse_line;
}

static inline void fake_wiring_power_(struct wiring *w, enum wire_power what, int status)
{
	struct fake_wiring *f = fake_wiring_of_(w);

	f->power_calls++;
	f->power_what = what;
	f->power_status = status;
}

static inline void fake_wiring_init(struct fake_wiring *f)
{
	static const struct wiring_ops ops = {
		.bind_kick = fake_wiring_bind_kick_,
		.unbind_kick = fake_wiring_unbind_kick_,
		.bind_msi = fake_wiring_bind_msi_,
		.unbind_msi = fake_wiring_unbind_msi_,
		.bind_line = fake_wiring_bind_line_,
		.unbind_line = fake_wiring_unbind_line_,
		.set_line = fake_wiring_set_line_,
		.power = fake_wiring_power_,
	};

	memset(f, 0, sizeof(*f));
	f->wiring.ops = &ops;
	f->next_gsi = 24;
}

/* Take what bound events carry. Messages and edges delivered by this call. */
static inline unsigned fake_wiring_deliver(struct fake_wiring *f)
{
	unsigned before = f->msi_sent + f->line_edges;

	for (size_t i = 0; i < f->nmsi; i++)
		fake_wiring_send_(f, f->msi[i]);
	for (size_t i = 0; i < f->nline; i++)
		fake_wiring_edge_(f, f->line[i]);
	return f->msi_sent + f->line_edges - before;
}

/* Nothing bound, nothing misused: a device that is gone left no wire behind. */
static inline bool fake_wiring_is_clean(const struct fake_wiring *f)
{
	return !f->nkick && !f->nmsi && !f->nline && !f->misuse;
}

#endif
