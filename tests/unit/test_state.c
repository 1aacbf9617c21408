/*
 * test_state.c - tables to bytes and back, and bytes nobody of ours wrote
 */
#include "tests/unit/state_check.h"

struct inner {
	uint16_t a;
	uint8_t b, pad;
};

static int inner_validate(const void *regs, const void *device, struct err *err)
{
	const struct inner *r = regs;

	return r->b == 0xee ? err_set(err, EINVAL, "inner.b: %u is not allowed", r->b) : 0;
}

static const struct state_field inner_fields[] = {
	STATE_U16(1, struct inner, a),
	STATE_U8(2, struct inner, b),
	STATE_PAD(struct inner, pad),
};
static const struct state_desc inner_state =
	STATE_DESC("inner", struct inner, inner_fields, inner_validate);

struct outer {
	uint64_t big;
	uint32_t list[3];
	uint8_t raw[12];
	struct inner in[2];
	struct inner one;
	uint32_t late;
};

static int outer_validate(const void *regs, const void *device, struct err *err)
{
	const struct outer *r = regs;
	const uint64_t *limit = device;

	if (limit && r->big > *limit)
		return err_set(err, ERANGE, "outer.big: too big");
	return 0;
}

static const struct state_field outer_fields[] = {
	STATE_U64(1, struct outer, big),
	STATE_U32_ARRAY(2, struct outer, list, 3),
	STATE_BYTES(3, struct outer, raw),
	STATE_TABLE(4, struct outer, in, 2, &inner_state),
	STATE_TABLE(5, struct outer, one, 1, &inner_state),
	STATE_UINT_(6, struct outer, late, 4, 1, STATE_OPTIONAL),
};
static const struct state_desc outer_state =
	STATE_DESC("outer", struct outer, outer_fields, outer_validate);

/* A one-field table for bytes written by hand. */
struct small {
	uint32_t x;
	uint32_t y;
};
static const struct state_field small_fields[] = {
	STATE_U32(7, struct small, x),
	STATE_UINT_(9, struct small, y, 4, 1, STATE_OPTIONAL),
};
static const struct state_desc small_state = STATE_DESC("small", struct small, small_fields, NULL);

static const struct outer sample = {
	.big = 0x0102030405060708,
	.list = { 10, 20, 30 },
	.raw = "hello world",
	.in = { { 1, 2, 0 }, { 3, 4, 0 } },
	.one = { 5, 6, 0 },
	.late = 77,
};

static void put(struct state_buf *b, const void *src, size_t len)
{
	b->data = realloc(b->data, b->len + len + 1);
	assert_non_null(b->data);
	memcpy(b->data + b->len, src, len);
	b->len = b->room = b->len + len;
	b->room++;
}

static void put_field(struct state_buf *b, uint16_t id, uint16_t flags, uint32_t len,
		      const void *value)
{
	put(b, &id, 2);
	put(b, &flags, 2);
	put(b, &len, 4);
	put(b, value, len);
}

/* Load @b into small; it must be refused with @why in the message, and change nothing. */
static void refused(struct state_buf *b, const char *why)
{
	struct small r = { 0xaaaa, 0xbbbb };
	struct err err = { 0 };

	assert_int_equal(state_load(&small_state, &r, NULL, b->data, b->len, &err), -EINVAL);
	assert_int_equal(err.code, -EINVAL);
	if (!strstr(err.msg, why))
		fail_msg("\"%s\" does not say \"%s\"", err.msg, why);
	assert_int_equal(r.x, 0xaaaa);
	assert_int_equal(r.y, 0xbbbb);
	assert_int_equal(state_load(&small_state, &r, NULL, b->data, b->len, NULL), -EINVAL);
	state_buf_fini(b);
}

static void test_complete(void **state)
{
	state_check_complete(&outer_state, sizeof(struct outer));
	state_check_complete(&inner_state, sizeof(struct inner));
	state_check_complete(&small_state, sizeof(struct small));
}

static void wrong(const struct state_field *fields, size_t count, size_t size, const char *want)
{
	const struct state_desc d = {
		.name = "t", .size = sizeof(struct small), .fields = fields, .count = count
	};
	char why[STATE_CHECK_WHY] = "";

	assert_false(state_check(&d, size, why));
	assert_string_equal(why, want);
}

/* The check must find what it is there for. */
static void test_check_finds(void **state)
{
	static const struct state_field forgotten[] = { STATE_U32(1, struct small, x) };
	static const struct state_field narrow[] = {
		STATE_U32(1, struct small, x),
		{ .id = 2, .name = "y", .offset = 4, .elem = 2, .count = 1 },
	};
	static const struct state_field same_id[] = {
		STATE_U32(1, struct small, x),
		STATE_U32(1, struct small, y),
	};
	static const struct state_field same_member[] = {
		STATE_U32(1, struct small, x),
		STATE_U32(2, struct small, x),
	};
	static const struct state_field no_id[] = { STATE_U32(0, struct small, x) };
	static const struct state_field outside[] = {
		{ .id = 2, .name = "y", .offset = 4, .elem = 8, .count = 1 },
	};
	static const struct state_field other_sub[] = {
		STATE_TABLE(1, struct small, x, 2, &inner_state),
	};
	const size_t size = sizeof(struct small);

	wrong(forgotten, 1, size, "t: byte 4, in or after x, is not saved");
	wrong(narrow, 2, size, "t: byte 6, in or after y, is not saved");
	wrong(same_id, 2, size, "t: x and y have id 1");
	wrong(same_member, 2, size, "t: x and x overlap");
	wrong(no_id, 1, size, "t.x: id 0");
	wrong(outside, 1, size, "t.y: does not lie inside the struct");
	wrong(other_sub, 1, size, "t.x: is not an array of its sub-table's struct");
	wrong(forgotten, 1, size + 1, "t: the struct has 9 bytes, the table says 8");
}

static void test_round_trip(void **state)
{
	struct state_buf b = { 0 };
	struct outer r = { 0 };
	struct err err = { 0 };

	assert_int_equal(state_save(&outer_state, &sample, &b), 0);
	assert_int_equal(state_load(&outer_state, &r, NULL, b.data, b.len, &err), 0);
	assert_memory_equal(&r, &sample, sizeof(r));
	state_buf_fini(&b);
	assert_null(b.data);
}

/* The wire form is a promise: these bytes are what base/state.h describes. */
static void test_wire(void **state)
{
	static const uint8_t want[] = {
		7, 0, 1, 0, 4, 0, 0, 0, 0x44, 0x33, 0x22, 0x11, /* mandatory */
		9, 0, 0, 0, 4, 0, 0, 0, 1,    0,    0,    0,    /* optional */
	};
	static const uint8_t want_inner[] = {
		4,  0, 1, 0, 46, 0, 0, 0,       /* outer.in */
		19, 0, 0, 0,                    /* in[0] */
		1,  0, 1, 0, 2,  0, 0, 0, 1, 0, /* a */
		2,  0, 1, 0, 1,  0, 0, 0, 2,    /* b */
		19, 0, 0, 0,                    /* in[1] */
		1,  0, 1, 0, 2,  0, 0, 0, 3, 0, /* a */
		2,  0, 1, 0, 1,  0, 0, 0, 4,    /* b */
	};
	const struct small r = { 0x11223344, 1 };
	struct state_buf b = { 0 };

	assert_int_equal(state_save(&small_state, &r, &b), 0);
	assert_int_equal(b.len, sizeof(want));
	assert_memory_equal(b.data, want, sizeof(want));
	/* Appends. */
	assert_int_equal(state_save(&outer_state, &sample, &b), 0);
	assert_non_null(memmem(b.data + sizeof(want), b.len - sizeof(want), want_inner,
			       sizeof(want_inner)));
	state_buf_fini(&b);
}

static void test_unknown(void **state)
{
	struct state_buf b = { 0 };
	struct small r = { 0, 55 };
	struct err err = { 0 };
	uint32_t x = 3;

	put_field(&b, 8, 0, 3, "abc"); /* unknown, optional: skipped, even twice */
	put_field(&b, 7, 1, 4, &x);
	put_field(&b, 8, 0, 0, "");
	assert_int_equal(state_load(&small_state, &r, NULL, b.data, b.len, &err), 0);
	assert_int_equal(r.x, 3);
	assert_int_equal(r.y, 55); /* absent: keeps what it had */
	put_field(&b, 1234, 1, 3, "abc");
	refused(&b, "1234");
}

static void test_refused(void **state)
{
	struct state_buf b = { 0 };
	uint64_t x = 3;

	refused(&b, "small.x: missing");
	put_field(&b, 9, 0, 4, &x);
	refused(&b, "small.x: missing");
	put_field(&b, 7, 1, 4, &x);
	put_field(&b, 7, 1, 4, &x);
	refused(&b, "small.x: is there twice");
	put_field(&b, 7, 1, 3, &x);
	refused(&b, "small.x: 3 bytes where 4 belong");
	put_field(&b, 7, 1, 8, &x);
	refused(&b, "small.x: 8 bytes where 4 belong");
	put_field(&b, 7, 1, 0, &x);
	refused(&b, "small.x: 0 bytes");
	put_field(&b, 7, 3, 4, &x);
	refused(&b, "flags 0x3");
	put_field(&b, 0, 0, 4, &x);
	refused(&b, "field 0");
	put_field(&b, 7, 1, 4, &x);
	put(&b, "\x09", 1);
	refused(&b, "ends within");
	put_field(&b, 7, 1, 4, &x);
	b.data[4] = b.data[5] = b.data[6] = b.data[7] = 0xff; /* length 2^32 - 1 */
	refused(&b, "ends within");
}

/* Every prefix of a good save is refused, except at the boundary before the optional last field. */
static void test_truncated(void **state)
{
	struct state_buf b = { 0 };

	assert_int_equal(state_save(&outer_state, &sample, &b), 0);
	for (size_t len = 0; len < b.len; len++) {
		uint8_t *copy = malloc(len ? len : 1); /* exact, so that ASan sees an overrun */
		struct outer r = { .big = 9 };
		struct err err = { 0 };

		assert_non_null(copy);
		memcpy(copy, b.data, len);
		int rc = state_load(&outer_state, &r, NULL, copy, len, &err);

		assert_int_equal(rc, len == b.len - 12 ? 0 : -EINVAL);
		if (rc)
			assert_int_equal(r.big, 9);
		free(copy);
	}
	state_buf_fini(&b);
}

/* Any byte may be anything: a load ends, with success or a named refusal. */
static void test_flipped(void **state)
{
	struct state_buf b = { 0 };
	unsigned refusals = 0;

	assert_int_equal(state_save(&outer_state, &sample, &b), 0);
	for (size_t i = 0; i < b.len; i++) {
		for (unsigned bit = 0; bit < 8; bit++) {
			struct outer r = { .big = 9 };
			struct err err = { 0 };

			b.data[i] ^= 1u << bit;
			if (state_load(&outer_state, &r, NULL, b.data, b.len, &err)) {
				refusals++;
				assert_true(strstr(err.msg, "outer") || strstr(err.msg, "inner"));
				assert_int_equal(r.big, 9);
			}
			b.data[i] ^= 1u << bit;
		}
	}
	assert_true(refusals > b.len);
	state_buf_fini(&b);
}

static void test_validate(void **state)
{
	struct state_buf b = { 0 };
	struct outer r = { 0 }, bad = sample;
	struct err err = { 0 };
	uint64_t limit = 100;

	/* The outer one, with its device. */
	assert_int_equal(state_save(&outer_state, &sample, &b), 0);
	assert_int_equal(state_load(&outer_state, &r, &limit, b.data, b.len, &err), -ERANGE);
	assert_string_equal(err.msg, "outer.big: too big");
	assert_int_equal(r.big, 0);
	/* Decoding alone does not ask. */
	assert_int_equal(state_decode(&outer_state, &r, b.data, b.len, &err), 0);
	/* An inner one, named by its place. */
	b.len = 0;
	bad.in[1].b = 0xee;
	assert_int_equal(state_save(&outer_state, &bad, &b), 0);
	memset(&r, 0, sizeof(r));
	assert_int_equal(state_load(&outer_state, &r, NULL, b.data, b.len, &err), -EINVAL);
	assert_string_equal(err.msg, "outer.in[1]: inner.b: 238 is not allowed");
	assert_int_equal(r.in[1].b, 0);
	state_buf_fini(&b);
}

/* Sub-table arrays of the wrong length. */
static void test_elements(void **state)
{
	static const struct state_field one_field[] = {
		STATE_TABLE(4, struct outer, in, 2, &inner_state),
	};
	static const struct state_desc d = STATE_DESC("outer", struct outer, one_field, NULL);
	struct state_buf b = { 0 };
	struct outer r = { 0 };
	struct err err = { 0 };
	const uint32_t cut = 8 + 4 + 19;
	uint32_t len;

	assert_int_equal(state_save(&d, &sample, &b), 0);
	len = cut - 8;
	memcpy(b.data + 4, &len, 4);
	assert_int_equal(state_load(&d, &r, NULL, b.data, cut, &err), -EINVAL);
	assert_string_equal(err.msg, "outer.in: ends within element 1 of 2");
	b.len = 0;
	assert_int_equal(state_save(&d, &sample, &b), 0);
	put(&b, "\0\0\0\0", 4); /* a third, empty one */
	len = (uint32_t)b.len - 8;
	memcpy(b.data + 4, &len, 4);
	assert_int_equal(state_load(&d, &r, NULL, b.data, b.len, &err), -EINVAL);
	assert_string_equal(err.msg, "outer.in: 4 bytes after its 2 elements");
	state_buf_fini(&b);
}

struct sparse {
	uint32_t list[6];
	uint8_t bytes[5];
	uint8_t pad[3];
};

/* Zeroes at the end are not sent, and are zeroes when they come back, whatever was there. */
static void test_trimmed(void **state)
{
	static const struct state_field fields[] = {
		STATE_U32_TRIM(1, struct sparse, list, 6),
		STATE_U8_TRIM(2, struct sparse, bytes, 5),
		STATE_PAD(struct sparse, pad),
	};
	static const struct state_desc d = STATE_DESC("sparse", struct sparse, fields, NULL);
	struct sparse some = { .list = { 0, 7, 0x100 } }, full, back;
	struct state_buf b = { 0 };
	struct err err = { 0 };

	state_check_complete(&d, sizeof(struct sparse));
	assert_int_equal(state_save(&d, &some, &b), 0);
	assert_int_equal(b.len, 8 + 12 + 8);
	memset(&back, 0xee, sizeof(back));
	memset(back.pad, 0, sizeof(back.pad));
	assert_int_equal(state_load(&d, &back, NULL, b.data, b.len, &err), 0);
	assert_memory_equal(&back, &some, sizeof(some));
	b.len = 0;
	memset(&full, 0x11, sizeof(full));
	assert_int_equal(state_save(&d, &full, &b), 0);
	assert_int_equal(b.len, 8 + 24 + 8 + 5);

	/* not whole elements; more than there are */
	uint32_t len = 23;

	memcpy(b.data + 4, &len, 4);
	assert_int_equal(state_load(&d, &back, NULL, b.data, 8 + 23, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "sparse.list: 23 bytes"));
	len = 28;
	memcpy(b.data + 4, &len, 4);
	assert_int_equal(state_load(&d, &back, NULL, b.data, 8 + 28, &err), -EINVAL);
	state_buf_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_complete), cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_wire),     cmocka_unit_test(test_unknown),
		cmocka_unit_test(test_refused),  cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_flipped),  cmocka_unit_test(test_validate),
		cmocka_unit_test(test_elements), cmocka_unit_test(test_check_finds),
		cmocka_unit_test(test_trimmed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
