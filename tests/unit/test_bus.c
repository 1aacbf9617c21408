/*
 * test_bus.c - what answers at an address, and what does not
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <stdatomic.h>

#include "base/bus.h"

struct probe {
	struct bus *bus;
	pthread_mutex_t lock;
	bool locked; /* was @lock held during the last call? */
	unsigned calls, len;
	uint64_t off;
	uint8_t data[8];
};

static bool is_held(pthread_mutex_t *lock)
{
	if (pthread_mutex_trylock(lock))
		return true;
	pthread_mutex_unlock(lock);
	return false;
}

static void note(struct probe *p, uint64_t off, unsigned len)
{
	p->locked = is_held(&p->lock);
	p->calls++;
	p->off = off;
	p->len = len;
}

static void probe_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	note(opaque, off, len);
	memset(data, 0x5a, len);
}

static void probe_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct probe *p = opaque;

	note(p, off, len);
	memcpy(p->data, data, len);
}

static const struct region_ops ops = { probe_read, probe_write };

static struct region at(uint64_t base, uint64_t size, struct probe *p, const char *name)
{
	return (struct region){
		.base = base, .size = size, .ops = &ops, .opaque = p, .name = name
	};
}

static void add(struct bus *b, uint64_t base, uint64_t size, struct probe *p)
{
	struct region r = at(base, size, p, "probe");
	struct err err = { 0 };

	assert_int_equal(bus_add(b, &r, &err), 0);
}

static void refused(struct bus *b, uint64_t base, uint64_t size, int rc, const char *names)
{
	struct region r = at(base, size, NULL, "newcomer");
	struct err err = { 0 };
	size_t before = b->count;

	assert_int_equal(bus_add(b, &r, &err), rc);
	assert_non_null(strstr(err.msg, "newcomer"));
	assert_non_null(strstr(err.msg, names));
	assert_int_equal(b->count, before);
}

/* 0 and @off seen by @p, or nothing called and all-ones. */
static void hits(struct bus *b, uint64_t addr, unsigned len, struct probe *p, uint64_t off)
{
	uint8_t data[8] = { 0 };
	unsigned before = p->calls;

	assert_int_equal(bus_read(b, addr, data, len), 0);
	assert_int_equal(p->calls, before + 1);
	assert_int_equal(p->off, off);
	assert_int_equal(p->len, len);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(data[i], i < len ? 0x5a : 0);
	assert_int_equal(bus_write(b, addr, "abcdefgh", len), 0);
	assert_int_equal(p->calls, before + 2);
	assert_memory_equal(p->data, "abcdefgh", len);
}

static void misses(struct bus *b, uint64_t addr, unsigned len, const struct probe *p)
{
	uint8_t data[8] = { 0 };
	unsigned before = p->calls;

	assert_int_equal(bus_read(b, addr, data, len), -ENXIO);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(data[i], i < len ? 0xff : 0);
	assert_int_equal(bus_write(b, addr, data, len), -ENXIO);
	assert_int_equal(p->calls, before);
}

static void test_look_up(void **state)
{
	struct probe p = { .lock = PTHREAD_MUTEX_INITIALIZER }, q = p;
	struct bus b;

	bus_init(&b);
	misses(&b, 0, 4, &p);
	add(&b, 0x1000, 0x10, &p);
	add(&b, 0x1010, 0x10, &q); /* meets the first */
	hits(&b, 0x1000, 8, &p, 0);
	hits(&b, 0x100f, 1, &p, 0xf);
	hits(&b, 0x1010, 4, &q, 0);
	hits(&b, 0x1018, 8, &q, 8);
	misses(&b, 0xfff, 1, &p);
	misses(&b, 0xfff, 2, &p);  /* begins before */
	misses(&b, 0x100e, 4, &p); /* from one into the next */
	misses(&b, 0x101e, 4, &q); /* ends past */
	misses(&b, 0x1020, 1, &q);
	misses(&b, 0x1000, 3, &p); /* a width no register has */
	misses(&b, 0x1000, 0, &p);
	misses(&b, UINT64_MAX, 8, &p);
	bus_fini(&b);
}

static void test_top(void **state)
{
	struct probe p = { .lock = PTHREAD_MUTEX_INITIALIZER };
	struct bus b;

	bus_init(&b);
	add(&b, UINT64_MAX - 7, 8, &p);
	hits(&b, UINT64_MAX - 7, 8, &p, 0);
	hits(&b, UINT64_MAX, 1, &p, 7);
	misses(&b, UINT64_MAX, 2, &p); /* wraps */
	misses(&b, UINT64_MAX - 3, 8, &p);
	misses(&b, 0, 4, &p);
	bus_remove(&b, UINT64_MAX - 7, &p);
	struct region all = { .base = 0, .size = UINT64_MAX, .ops = &ops, .opaque = &p };
	struct err err = { 0 };

	assert_int_equal(bus_add(&b, &all, &err), 0);
	misses(&b, UINT64_MAX, 1, &p);
	hits(&b, UINT64_MAX - 8, 8, &p, UINT64_MAX - 8);
	bus_fini(&b);
}

static void test_refused(void **state)
{
	struct probe p = { .lock = PTHREAD_MUTEX_INITIALIZER };
	struct bus b;

	bus_init(&b);
	add(&b, 0x1000, 0x100, &p);
	refused(&b, 0x1000, 0x100, -EEXIST, "probe");
	refused(&b, 0x10ff, 1, -EEXIST, "probe");
	refused(&b, 0xfff, 2, -EEXIST, "probe");
	refused(&b, 0, UINT64_MAX, -EEXIST, "probe");
	refused(&b, 0x1080, 4, -EEXIST, "0x1000-0x10ff");
	refused(&b, 0x2000, 0, -EINVAL, "0x2000");
	refused(&b, UINT64_MAX, 2, -EINVAL, "");
	refused(&b, 1, UINT64_MAX, -EEXIST, "probe");
	refused(&b, 2, UINT64_MAX, -EINVAL, "");
	hits(&b, 0x1000, 4, &p, 0);
	bus_fini(&b);
}

/* Many, added in a scrambled order, and taken away again one by one. */
static void test_many(void **state)
{
	enum { N = 97 };
	struct probe p[N];
	struct bus b;

	bus_init(&b);
	for (unsigned i = 0; i < N; i++) {
		unsigned k = i * 31 % N;

		p[k] = (struct probe){ .lock = PTHREAD_MUTEX_INITIALIZER };
		add(&b, 0x1000 + 16 * k, 8, &p[k]);
	}
	for (unsigned k = 0; k < N; k++) {
		hits(&b, 0x1000 + 16 * k + 4, 4, &p[k], 4);
		misses(&b, 0x1000 + 16 * k + 8, 4, &p[k]);
	}
	bus_remove(&b, 0x1000, &p[1]);     /* another's */
	bus_remove(&b, 0x1001, &p[0]);     /* not its base */
	bus_remove(&b, 0xffffffff, &p[0]); /* nowhere */
	bus_remove(&b, 0, &p[0]);
	assert_int_equal(b.count, N);
	for (unsigned i = 0; i < N; i++) {
		unsigned k = i * 13 % N;

		bus_remove(&b, 0x1000 + 16 * k, &p[k]);
		bus_remove(&b, 0x1000 + 16 * k, &p[k]);
		assert_int_equal(b.count, N - 1 - i);
		misses(&b, 0x1000 + 16 * k, 8, &p[k]);
	}
	bus_fini(&b);
}

static void test_lock(void **state)
{
	struct probe p = { .lock = PTHREAD_MUTEX_INITIALIZER };
	struct region r = at(0, 8, &p, "r");
	struct err err = { 0 };
	uint32_t v = 0;
	struct bus b;

	bus_init(&b);
	assert_int_equal(bus_add(&b, &r, &err), 0);
	bus_read(&b, 0, &v, 4);
	assert_false(p.locked);
	bus_remove(&b, 0, &p);
	r.lock = &p.lock;
	assert_int_equal(bus_add(&b, &r, &err), 0);
	bus_read(&b, 0, &v, 4);
	assert_true(p.locked);
	p.locked = false;
	bus_write(&b, 0, &v, 4);
	assert_true(p.locked);
	assert_false(is_held(&p.lock));
	bus_fini(&b);
}

static void read_only_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	memset(data, 1, len);
}

static void test_one_way(void **state)
{
	static const struct region_ops read_only = { .read = read_only_read };
	static const struct region_ops nothing = { 0 };
	struct region r = { .base = 0, .size = 4, .ops = &read_only }; /* no name either */
	struct err err = { 0 };
	uint32_t v = 0;
	struct bus b;

	bus_init(&b);
	assert_int_equal(bus_add(&b, &r, &err), 0);
	assert_int_equal(bus_add(&b, &r, &err), -EEXIST);
	assert_int_equal(bus_read(&b, 0, &v, 4), 0);
	assert_int_equal(v, 0x01010101);
	assert_int_equal(bus_write(&b, 0, &v, 4), -ENXIO);
	r.base = 8;
	r.ops = &nothing;
	assert_int_equal(bus_add(&b, &r, &err), 0);
	assert_int_equal(bus_read(&b, 8, &v, 4), -ENXIO);
	assert_int_equal(v, 0xffffffff);
	bus_fini(&b);
}

/* A BAR is reprogrammed by a write to a register on the same bus. */
static void move_write(void *opaque, uint64_t off, const void *data, unsigned len)
{
	struct probe *p = opaque;
	struct region r = at(0x9000, 8, p, "moved");
	struct err err = { 0 };

	bus_remove(p->bus, 0x5000, p);
	assert_int_equal(bus_add(p->bus, &r, &err), 0);
}

static void test_moves_itself(void **state)
{
	static const struct region_ops mover = { probe_read, move_write };
	struct bus b;
	struct probe p = { .lock = PTHREAD_MUTEX_INITIALIZER, .bus = &b };
	struct region r = { .base = 0x5000, .size = 8, .ops = &mover, .opaque = &p, .name = "bar" };
	struct err err = { 0 };
	uint32_t v = 0;

	bus_init(&b);
	assert_int_equal(bus_add(&b, &r, &err), 0);
	assert_int_equal(bus_write(&b, 0x5000, &v, 4), 0);
	misses(&b, 0x5000, 4, &p);
	hits(&b, 0x9000, 4, &p, 0);
	bus_fini(&b);
}

struct reader {
	struct bus *bus;
	atomic_bool started, stop;
	unsigned wrong;
};

static void const_read(void *opaque, uint64_t off, void *data, unsigned len)
{
	memcpy(data, opaque, len);
}

static void *read_on(void *arg)
{
	struct reader *r = arg;
	uint32_t v;

	while (!atomic_load(&r->stop)) {
		bus_read(r->bus, 0x2000, &v, 4); /* never moves */
		r->wrong += v != 0x22222222;
		int rc = bus_read(r->bus, 0x3000, &v, 4); /* comes and goes */

		r->wrong += v != (rc ? 0xffffffff : 0x33333333);
		atomic_store(&r->started, true);
	}
	return NULL;
}

/* Regions come and go while two vCPUs read without a pause: no torn look-up, and no starved writer. */
static void test_readers(void **state)
{
	static const struct region_ops constant = { .read = const_read };
	static uint32_t two = 0x22222222, three = 0x33333333;
	struct bus b;
	struct reader readers[2] = { { .bus = &b }, { .bus = &b } };
	struct region fixed = { .base = 0x2000, .size = 4, .ops = &constant, .opaque = &two };
	struct region moving = { .base = 0x3000, .size = 4, .ops = &constant, .opaque = &three };
	struct err err = { 0 };
	pthread_t t[2];

	bus_init(&b);
	assert_int_equal(bus_add(&b, &fixed, &err), 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&t[i], NULL, read_on, &readers[i]), 0);
	for (int i = 0; i < 2; i++)
		while (!atomic_load(&readers[i].started))
			sched_yield();
	for (unsigned i = 0; i < 300; i++) {
		assert_int_equal(bus_add(&b, &moving, &err), 0);
		bus_remove(&b, 0x3000, &three);
	}
	for (int i = 0; i < 2; i++)
		atomic_store(&readers[i].stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(readers[0].wrong + readers[1].wrong, 0);
	bus_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_look_up),      cmocka_unit_test(test_top),
		cmocka_unit_test(test_refused),      cmocka_unit_test(test_many),
		cmocka_unit_test(test_lock),         cmocka_unit_test(test_one_way),
		cmocka_unit_test(test_moves_itself), cmocka_unit_test(test_readers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
