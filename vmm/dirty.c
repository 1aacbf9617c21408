/*
 * dirty.c - which guest pages were written since we last looked
 *
 * The set of pages still to be sent is our own bitmap. dirty_fetch() adds the logs to it,
 * dirty_take() hands it out in runs and makes KVM look at their pages again.
 *
 * With manual protection KVM's log only grows until we clear it. Clearing costs a system call, a lock
 * that page faults of vCPUs want, and a TLB flush, so it is done for a piece of CHUNK pages when the
 * first page of it is taken; clearing early is never wrong: a page written between the clearing and
 * our reading of it is in the log again and is sent once more. Clearing late would be: so it all
 * happens under one lock, before any run of the piece leaves dirty_take(). Bits that came into the set
 * by other ways (a device's store) are cleared with the rest, which KVM does not mind.
 *
 * INITIALLY_SET starts with a full log and nothing protected: turning the log on then costs no sweep
 * over all RAM with the guest waiting, and pages stay huge until we come to them. Where KVM has no
 * manual protection, the fetch itself clears and protects everything.
 *
 * In the first round, pages that nobody ever touched leave the set unseen: to read them costs more than
 * all else, since the kernel maps a page for each. That look comes after the clearing, so a page that is
 * touched meanwhile is in the log. In later rounds such a page is one that was given back: it may have
 * been sent before, and goes again.
 *
 * A failed clearing means that stores may go by unseen. It is kept and told by the next fetch, which
 * every user makes before it believes that it has everything.
 */
#include <endian.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/dirty.h"
#include "vmm/memslots.h"
#include "vmm/vm.h"

#define PAGE_SHIFT 12
#define CHUNK      4096 /* pages protected by one call: 16 MiB; a multiple of 64 */

struct map {
	uint64_t pages;
	size_t words;
	uint64_t *set;   /* what is dirty; host order */
	uint64_t *stale; /* one bit a chunk: it still has to be made ready, see come_to() */
};

struct dirty {
	struct vm *vm;
	bool manual; /* KVM protects when it is told to */
	pthread_mutex_t lock;
	bool first; /* round: nothing has been fetched. Under lock from here on */
	int failed;
	uint64_t count;
	uint64_t *log; /* room for the largest region's */
	unsigned nmaps;
	struct map maps[];
};

static size_t words_of(uint64_t bits)
{
	return (size_t)((bits + 63) / 64);
}

static bool get_bit(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> i % 64 & 1;
}

/* The first bit from @at on that is @value; @end if none. */
static uint64_t find_bit(const uint64_t *bits, uint64_t at, uint64_t end, bool value)
{
	while (at < end) {
		uint64_t w = (value ? bits[at / 64] : ~bits[at / 64]) >> at % 64;

		if (w) {
			at += (unsigned)__builtin_ctzll(w);
			break;
		}
		at = (at / 64 + 1) * 64;
	}
	return at < end ? at : end;
}

static void clear_bits(uint64_t *bits, uint64_t at, uint64_t n)
{
	for (uint64_t end = at + n; at < end;) {
		uint64_t step = 64 - at % 64 < end - at ? 64 - at % 64 : end - at;

		bits[at / 64] &= ~(UINT64_MAX >> (64 - step) << at % 64);
		at += step;
	}
}

static void fill_bits(uint64_t *bits, uint64_t n)
{
	memset(bits, 0xff, words_of(n) * sizeof(*bits));
	if (n % 64)
		bits[n / 64] = UINT64_MAX >> (64 - n % 64);
}

/* ---- KVM ---- */

static void enable_manual(struct dirty *d)
{
	int has = ioctl(d->vm->kvm.fd, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 };

	if (has <= 0 || !(has & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE))
		return;
	cap.args[0] = (unsigned)has &
		      (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
	d->manual = !ioctl(d->vm->fd, KVM_ENABLE_CAP, &cap);
}

static int fetch_kvm(struct dirty *d, unsigned i)
{
	struct kvm_dirty_log log = { .slot = i, .dirty_bitmap = d->log };

	return ioctl(d->vm->fd, KVM_GET_DIRTY_LOG, &log) < 0 ? -errno : 0;
}

/* Have KVM protect those of @n pages from @first on that are in the set. */
static void protect(struct dirty *d, unsigned region, uint64_t first, uint64_t n)
{
	struct map *m = &d->maps[region];

	for (size_t w = 0; w < words_of(n); w++)
		d->log[w] = htole64(m->set[first / 64 + w]);
	struct kvm_clear_dirty_log log = {
		.slot = region,
		.first_page = first,
		.num_pages = (uint32_t)n,
		.dirty_bitmap = d->log,
	};

	if (ioctl(d->vm->fd, KVM_CLEAR_DIRTY_LOG, &log) < 0 && !d->failed)
		d->failed = -errno;
}

static uint64_t count_bits(const uint64_t *bits, size_t words)
{
	uint64_t n = 0;

	for (size_t w = 0; w < words; w++)
		n += (unsigned)__builtin_popcountll(bits[w]);
	return n;
}

static void drop_untouched(struct dirty *d, unsigned region, uint64_t first, uint64_t n)
{
	uint64_t *set = d->maps[region].set + first / 64;

	d->count -= count_bits(set, words_of(n));
	gmem_clear_untouched(d->vm->mem, region, first, n, set);
	d->count += count_bits(set, words_of(n));
}

/* Before pages of a chunk are handed out. False: it had come earlier. Under the lock. */
static bool come_to(struct dirty *d, unsigned region, uint64_t chunk)
{
	struct map *m = &d->maps[region];
	uint64_t first = chunk * CHUNK, n = m->pages - first < CHUNK ? m->pages - first : CHUNK;

	if (!get_bit(m->stale, chunk))
		return false;
	clear_bits(m->stale, chunk, 1);
	if (d->manual)
		protect(d, region, first, n);
	if (d->first)
		drop_untouched(d, region, first, n);
	return true;
}

/* ---- making and freeing ---- */

static void free_maps(struct dirty *d)
{
	for (unsigned i = 0; i < d->nmaps; i++) {
		free(d->maps[i].set);
		free(d->maps[i].stale);
	}
	free(d->log);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

static bool make_maps(struct dirty *d)
{
	size_t most = words_of(CHUNK);

	for (unsigned i = 0; i < d->nmaps; i++) {
		struct map *m = &d->maps[i];
		uint64_t chunks;

		m->pages = gmem_region(d->vm->mem, i)->size >> PAGE_SHIFT;
		m->words = words_of(m->pages);
		chunks = (m->pages + CHUNK - 1) / CHUNK;
		m->set = calloc(m->words, sizeof(*m->set));
		m->stale = calloc(words_of(chunks), sizeof(*m->stale));
		if (!m->set || !m->stale)
			return false;
		fill_bits(m->set, m->pages);
		fill_bits(m->stale, chunks);
		d->count += m->pages;
		most = m->words > most ? m->words : most;
	}
	d->log = calloc(most, sizeof(*d->log));
	return d->log;
}

/* Those that have the kernel store for them. */
static int log_devices(struct vm *vm, struct err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < vm->ndevices && !rc; i++) {
		struct device *d = vm->devices[i];
		void *log = d->ops->log_writes ? gmem_dirty_log(vm->mem, err) : NULL;

		if (!d->ops->log_writes)
			continue;
		rc = log ? d->ops->log_writes(d, log) : -ENOMEM;
		if (rc && log)
			err_set_sys(err, rc, "%s: vhost-net does not log what it writes", d->name);
	}
	return rc;
}

struct dirty *dirty_start(struct vm *vm, struct err *err)
{
	unsigned n = gmem_count(vm->mem);
	struct dirty *d = calloc(1, sizeof(*d) + n * sizeof(d->maps[0]));

	if (!d) {
		err_set(err, ENOMEM, "out of memory for the bitmap of guest RAM");
		return NULL;
	}
	d->vm = vm;
	d->nmaps = n;
	d->first = true;
	pthread_mutex_init(&d->lock, NULL);
	if (!make_maps(d)) {
		err_set(err, ENOMEM, "out of memory for the bitmap of guest RAM");
		free_maps(d);
		return NULL;
	}
	enable_manual(d);
	if (gmem_dirty_start(vm->mem, err)) {
		free_maps(d);
		return NULL;
	}
	if (memslots_log(vm->fd, vm->mem, true, err) || log_devices(vm, err)) {
		dirty_stop(d);
		return NULL;
	}
	return d;
}

void dirty_stop(struct dirty *d)
{
	struct err ignored;

	if (!d)
		return;
	for (unsigned i = 0; i < d->vm->ndevices; i++)
		if (d->vm->devices[i]->ops->log_writes)
			d->vm->devices[i]->ops->log_writes(d->vm->devices[i], NULL);
	gmem_dirty_stop(d->vm->mem);
	memslots_log(d->vm->fd, d->vm->mem, false, &ignored);
	free_maps(d);
}

/* ---- the set ---- */

/* Add d->log, little-endian as KVM and gmem have it. */
static void add_log(struct dirty *d, struct map *m)
{
	for (size_t w = 0; w < m->words; w++) {
		uint64_t new = le64toh(d->log[w]) & ~m->set[w];

		if (!new)
			continue;
		m->set[w] |= new;
		d->count += (unsigned)__builtin_popcountll(new);
	}
}

static int fetch_region(struct dirty *d, unsigned i, struct err *err)
{
	struct map *m = &d->maps[i];
	int rc = fetch_kvm(d, i);

	if (rc)
		return err_set_sys(err, rc, "KVM does not tell which pages were written");
	add_log(d, m);
	rc = gmem_dirty_fetch(d->vm->mem, i, d->log, m->words);
	if (rc)
		return err_set(err, -rc, "logging writes of devices to guest RAM has ended");
	add_log(d, m);
	fill_bits(m->stale, (m->pages + CHUNK - 1) / CHUNK);
	return 0;
}

int dirty_fetch(struct dirty *d, struct err *err)
{
	int rc;

	pthread_mutex_lock(&d->lock);
	d->first = false;
	rc = d->failed ? err_set_sys(err, d->failed, "KVM cannot protect guest pages again") : 0;
	for (unsigned i = 0; i < d->nmaps && !rc; i++)
		rc = fetch_region(d, i, err);
	pthread_mutex_unlock(&d->lock);
	return rc;
}

uint64_t dirty_pages(const struct dirty *d)
{
	struct dirty *own = (struct dirty *)d;

	pthread_mutex_lock(&own->lock);
	uint64_t n = d->count;

	pthread_mutex_unlock(&own->lock);
	return n;
}

/* A run within one chunk from @*page on, under the lock. */
static bool take(struct dirty *d, unsigned region, uint64_t *page, uint64_t most, uint64_t *first,
		 uint64_t *count)
{
	struct map *m = &d->maps[region];
	uint64_t at = find_bit(m->set, *page, m->pages, true);

	while (at < m->pages && come_to(d, region, at / CHUNK))
		at = find_bit(m->set, at, m->pages, true);
	if (at == m->pages)
		return false;
	uint64_t end = (at / CHUNK + 1) * CHUNK;

	if (end > m->pages)
		end = m->pages;
	if (end - at > most)
		end = at + most;
	*first = at;
	*count = find_bit(m->set, at, end, false) - at;
	clear_bits(m->set, at, *count);
	d->count -= *count;
	*page = at + *count;
	return true;
}

bool dirty_take(struct dirty *d, unsigned *region, uint64_t *page, uint64_t most, uint64_t *first,
		uint64_t *count)
{
	bool found = false;

	pthread_mutex_lock(&d->lock);
	while (*region < d->nmaps && most) {
		found = take(d, *region, page, most, first, count);
		if (found)
			break;
		(*region)++;
		*page = 0;
	}
	pthread_mutex_unlock(&d->lock);
	return found;
}
