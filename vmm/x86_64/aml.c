/*
 * aml.c - writing ACPI Machine Language
 *
 * Only what our tables use. Integers and lengths take their shortest form, so that the bytes are what
 * iasl makes of the disassembly.
 */
#include <string.h>

#include "base/log.h"
#include "vmm/x86_64/aml.h"

#define OP_ZERO    0x00
#define OP_ONE     0x01
#define OP_NAME    0x08
#define OP_BYTE    0x0a
#define OP_WORD    0x0b
#define OP_DWORD   0x0c
#define OP_STRING  0x0d
#define OP_QWORD   0x0e
#define OP_SCOPE   0x10
#define OP_BUFFER  0x11
#define OP_PACKAGE 0x12
#define OP_METHOD  0x14
#define OP_EXT     0x5b
#define EXT_REGION 0x80
#define EXT_FIELD  0x81
#define EXT_DEVICE 0x82
#define OP_LOCAL0  0x60
#define OP_STORE   0x70
#define OP_AND     0x7b
#define OP_NOTIFY  0x86
#define OP_IF      0xa0

void aml_init(struct aml *a, uint8_t *buf, size_t room)
{
	*a = (struct aml){ .buf = buf, .room = room };
}

static void put(struct aml *a, const void *data, size_t len)
{
	if (a->overflow || len > a->room - a->len) {
		a->overflow = true;
		return;
	}
	memcpy(a->buf + a->len, data, len);
	a->len += len;
}

static void put8(struct aml *a, uint8_t v)
{
	put(a, &v, 1);
}

static void put_le(struct aml *a, uint64_t v, unsigned bytes)
{
	for (; bytes; bytes--, v >>= 8)
		put8(a, v);
}

/* NameString (20.2.2): root, then one, two or many four-letter segments padded with '_'. */
static void put_name(struct aml *a, const char *name)
{
	unsigned segments = 1, n;
	const char *p;

	if (*name == '\\') {
		put8(a, '\\');
		name++;
	}
	for (p = name; *p; p++)
		segments += *p == '.';
	if (segments == 2) {
		put8(a, 0x2e);
	} else if (segments > 2) {
		put8(a, 0x2f);
		put8(a, segments);
	}
	for (p = name; segments; segments--) {
		for (n = 0; n < 4; n++)
			put8(a, *p && *p != '.' ? *p++ : '_');
		BUG_ON(*p && *p != '.');
		if (*p)
			p++;
	}
}

static void open_block(struct aml *a, enum aml_block kind)
{
	BUG_ON(a->depth == AML_DEPTH_MAX);
	a->block[a->depth].kind = kind;
	a->block[a->depth].start = a->len;
	a->depth++;
}

/* Insert @len bytes at @at. */
static void insert(struct aml *a, size_t at, const void *data, size_t len)
{
	if (a->overflow || len > a->room - a->len) {
		a->overflow = true;
		return;
	}
	memmove(a->buf + at + len, a->buf + at, a->len - at);
	memcpy(a->buf + at, data, len);
	a->len += len;
}

/* PkgLength (20.2.4) counts itself: 6 bits in one byte, or 4 and then 8 a byte. */
static void insert_pkg_length(struct aml *a, size_t at)
{
	size_t body = a->len - at, n, total, i;
	uint8_t b[4];

	if (body + 1 < 0x40) {
		b[0] = body + 1;
		insert(a, at, b, 1);
		return;
	}
	n = body + 2 < 1 << 12 ? 1 : body + 3 < 1 << 20 ? 2 : 3;
	total = body + 1 + n;
	b[0] = n << 6 | (total & 0xf);
	for (i = 1, total >>= 4; i <= n; i++, total >>= 8)
		b[i] = total;
	insert(a, at, b, 1 + n);
}

/* A ResourceTemplate is a Buffer: its size as a term, the descriptors, an end tag. */
static void close_resources(struct aml *a, size_t at)
{
	uint8_t n[3];
	size_t body;

	put8(a, 0x79); /* end tag, checksum 0: not used */
	put8(a, 0);
	body = a->len - at;
	if (body < 0x100) {
		n[0] = OP_BYTE;
		n[1] = body;
		insert(a, at, n, 2);
	} else {
		n[0] = OP_WORD;
		n[1] = body;
		n[2] = body >> 8;
		insert(a, at, n, 3);
	}
}

void aml_close(struct aml *a)
{
	BUG_ON(!a->depth);
	a->depth--;
	if (a->block[a->depth].kind == AML_BLOCK_RESOURCES)
		close_resources(a, a->block[a->depth].start);
	insert_pkg_length(a, a->block[a->depth].start);
}

void aml_scope(struct aml *a, const char *path)
{
	put8(a, OP_SCOPE);
	open_block(a, AML_BLOCK_TERMS);
	put_name(a, path);
}

void aml_device(struct aml *a, const char *name)
{
	put8(a, OP_EXT);
	put8(a, EXT_DEVICE);
	open_block(a, AML_BLOCK_TERMS);
	put_name(a, name);
}

void aml_method(struct aml *a, const char *name, unsigned args, bool serialized)
{
	put8(a, OP_METHOD);
	open_block(a, AML_BLOCK_TERMS);
	put_name(a, name);
	put8(a, args | (serialized ? 8 : 0));
}

void aml_if_and(struct aml *a, const char *left, uint64_t right)
{
	put8(a, OP_IF);
	open_block(a, AML_BLOCK_TERMS);
	put8(a, OP_AND);
	if (!strncmp(left, "Local", 5))
		put8(a, OP_LOCAL0 + (left[5] - '0'));
	else
		put_name(a, left);
	aml_int(a, right);
	put8(a, 0); /* no target */
}

void aml_field(struct aml *a, const char *region, unsigned access_bits)
{
	put8(a, OP_EXT);
	put8(a, EXT_FIELD);
	open_block(a, AML_BLOCK_TERMS);
	put_name(a, region);
	/* access width; no lock; the bits not written are written as zeroes */
	put8(a, (access_bits == 8 ? 1 : access_bits == 16 ? 2 : 3) | 2 << 5);
}

void aml_field_unit(struct aml *a, const char *name, unsigned bits)
{
	BUG_ON(bits >= 0x40);
	put_name(a, name);
	put8(a, bits); /* as a PkgLength of one byte */
}

void aml_package(struct aml *a, unsigned elements)
{
	put8(a, OP_PACKAGE);
	open_block(a, AML_BLOCK_TERMS);
	put8(a, elements);
}

void aml_name_package(struct aml *a, const char *name, unsigned elements)
{
	put8(a, OP_NAME);
	put_name(a, name);
	aml_package(a, elements);
}

void aml_name_resources(struct aml *a, const char *name)
{
	put8(a, OP_NAME);
	put_name(a, name);
	put8(a, OP_BUFFER);
	open_block(a, AML_BLOCK_RESOURCES);
}

void aml_int(struct aml *a, uint64_t v)
{
	if (v <= 1) {
		put8(a, v ? OP_ONE : OP_ZERO);
	} else if (v <= 0xff) {
		put8(a, OP_BYTE);
		put_le(a, v, 1);
	} else if (v <= 0xffff) {
		put8(a, OP_WORD);
		put_le(a, v, 2);
	} else if (v <= 0xffffffff) {
		put8(a, OP_DWORD);
		put_le(a, v, 4);
	} else {
		put8(a, OP_QWORD);
		put_le(a, v, 8);
	}
}

void aml_name_int(struct aml *a, const char *name, uint64_t v)
{
	put8(a, OP_NAME);
	put_name(a, name);
	aml_int(a, v);
}

void aml_name_string(struct aml *a, const char *name, const char *s)
{
	put8(a, OP_NAME);
	put_name(a, name);
	put8(a, OP_STRING);
	put(a, s, strlen(s) + 1);
}

static unsigned hex(char c)
{
	return c <= '9' ? c - '0' : c - 'A' + 10;
}

/* Three letters of five bits and four hexadecimal digits, most significant byte first (19.6.36). */
uint32_t aml_eisaid(const char *id)
{
	uint32_t v;

	BUG_ON(strlen(id) != 7);
	v = (uint32_t)(id[0] - '@') << 26 | (uint32_t)(id[1] - '@') << 21 |
	    (uint32_t)(id[2] - '@') << 16 | hex(id[3]) << 12 | hex(id[4]) << 8 | hex(id[5]) << 4 |
	    hex(id[6]);
	return __builtin_bswap32(v);
}

void aml_name_eisaid(struct aml *a, const char *name, const char *id)
{
	put8(a, OP_NAME);
	put_name(a, name);
	put8(a, OP_DWORD);
	put_le(a, aml_eisaid(id), 4);
}

void aml_region(struct aml *a, const char *name, enum aml_space space, uint64_t base, uint64_t len)
{
	put8(a, OP_EXT);
	put8(a, EXT_REGION);
	put_name(a, name);
	put8(a, space);
	aml_int(a, base);
	aml_int(a, len);
}

void aml_store_name(struct aml *a, const char *from, unsigned local)
{
	put8(a, OP_STORE);
	put_name(a, from);
	put8(a, OP_LOCAL0 + local);
}

void aml_notify(struct aml *a, const char *device, uint64_t value)
{
	put8(a, OP_NOTIFY);
	put_name(a, device);
	aml_int(a, value);
}

void aml_res_io(struct aml *a, uint16_t port, uint8_t len)
{
	put8(a, 0x47);
	put8(a, 1); /* decodes 16 bits */
	put_le(a, port, 2);
	put_le(a, port, 2);
	put8(a, 1);
	put8(a, len);
}

void aml_res_irq_edge(struct aml *a, uint32_t gsi, bool shared)
{
	put8(a, 0x89);
	put_le(a, 6, 2);
	put8(a, 1 | 1 << 1 | (shared ? 1 << 3 : 0)); /* consumer, edge, active high */
	put8(a, 1);
	put_le(a, gsi, 4);
}

void aml_res_mem32_fixed(struct aml *a, uint32_t base, uint32_t len)
{
	put8(a, 0x86);
	put_le(a, 9, 2);
	put8(a, 1); /* read and write */
	put_le(a, base, 4);
	put_le(a, len, 4);
}

/* Address space descriptors (6.4.3.5): type, flags, then granularity, min, max, offset, length. */
static void window(struct aml *a, uint8_t tag, uint8_t type, uint8_t type_flags, uint64_t first,
		   uint64_t last, unsigned width)
{
	put8(a, tag);
	put_le(a, 3 + 5 * width, 2);
	put8(a, type);
	put8(a, 1 << 3 | 1 << 2); /* minimum and maximum are fixed; producer */
	put8(a, type_flags);
	put_le(a, 0, width);
	put_le(a, first, width);
	put_le(a, last, width);
	put_le(a, 0, width);
	put_le(a, last - first + 1, width);
}

void aml_res_bus(struct aml *a, uint16_t first, uint16_t last)
{
	window(a, 0x88, 2, 0, first, last, 2);
}

void aml_res_window_io(struct aml *a, uint16_t first, uint16_t last)
{
	window(a, 0x88, 1, 3, first, last, 2); /* the entire range, ISA and not */
}

void aml_res_window_mem32(struct aml *a, uint32_t base, uint32_t len)
{
	window(a, 0x87, 0, 1, base, base + (len - 1), 4); /* not cached, read and write */
}

void aml_res_window_mem64(struct aml *a, uint64_t base, uint64_t len)
{
	window(a, 0x8a, 0, 1, base, base + (len - 1), 8);
}
