/*
 * config_value.c - one value: text into a field and back
 *
 * strtoull() is not used: it takes signs, leading space and other bases, all of which a
 * configuration should refuse. Every refusal says what would have been right, from the table.
 */
#include "vmm/config_keys.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"

static void *field(const struct config_key *k, void *base)
{
	return (char *)base + k->offset;
}

static const void *field_const(const struct config_key *k, const void *base)
{
	return (const char *)base + k->offset;
}

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

/* Digits of @radix from @s on. Returns where they end, or NULL for none or too large. */
static const char *parse_digits(const char *s, int radix, uint64_t *out)
{
	uint64_t v = 0;
	const char *start = s;

	for (; digit(*s) < radix; s++)
		if (__builtin_mul_overflow(v, (uint64_t)radix, &v) ||
		    __builtin_add_overflow(v, (uint64_t)digit(*s), &v))
			return NULL;
	*out = v;
	return s == start ? NULL : s;
}

static bool parse_number(const char *s, bool hex_allowed, uint64_t *out)
{
	bool hex = hex_allowed && s[0] == '0' && (s[1] == 'x' || s[1] == 'X');
	const char *end = hex ? parse_digits(s + 2, 16, out) : parse_digits(s, 10, out);

	return end && *end == '\0';
}

/* 512M or 512MiB: K M G T with an optional iB, all powers of 1024. */
static bool parse_size(const char *s, uint64_t *out)
{
	static const char units[] = "KMGT";
	const char *end = parse_digits(s, 10, out);
	const char *unit;

	if (!end)
		return false;
	if (*end == '\0')
		return true;
	unit = strchr(units, toupper((unsigned char)*end));
	if (!unit || (end[1] != '\0' && strcmp(end + 1, "iB") != 0))
		return false;
	return !__builtin_mul_overflow(*out, 1ull << (10 * (unit - units + 1)), out);
}

/* 1536M but 1000: the largest unit that says it exactly. */
static void format_size(uint64_t v, char *buf, size_t size)
{
	static const char *const units[] = { "", "K", "M", "G", "T" };
	unsigned u = 0;

	while (v && v % 1024 == 0 && u < 4) {
		v /= 1024;
		u++;
	}
	snprintf(buf, size, "%llu%s", (unsigned long long)v, units[u]);
}

static bool parse_mac(const char *s, struct config_mac *mac)
{
	uint8_t all = 0;

	for (unsigned i = 0; i < 6; i++, s += 3) {
		if (digit(s[0]) > 15 || digit(s[1]) > 15 || s[2] != (i < 5 ? ':' : '\0'))
			return false;
		mac->addr[i] = (uint8_t)(digit(s[0]) << 4 | digit(s[1]));
		all |= mac->addr[i];
	}
	mac->set = true;
	return all != 0 && !(mac->addr[0] & 1);
}

static bool parse_fds(const struct config_key *k, const char *s, struct config_fds *fds)
{
	uint64_t v;

	do {
		s = parse_digits(s, 10, &v);
		if (!s || (*s && *s != ':') || v < k->min || v > k->max ||
		    fds->count == CONFIG_PAIRS_MAX)
			return false;
		fds->fd[fds->count++] = (int)v;
	} while (*s++);
	return true;
}

static bool get_fds(const struct config_fds *fds, char *buf, size_t size)
{
	size_t at = 0;

	for (unsigned i = 0; i < fds->count && at < size; i++)
		at += (size_t)snprintf(buf + at, size - at, "%s%d", i ? ":" : "", fds->fd[i]);
	return fds->count;
}

static int parse_word(const char *const *words, const char *text)
{
	for (int i = 0; words[i]; i++)
		if (!strcmp(words[i], text))
			return i;
	return -1;
}

static void join_words(const char *const *words, char *buf, size_t size)
{
	size_t at = 0;

	buf[0] = '\0';
	for (unsigned i = 0; words[i] && at < size; i++) {
		const char *before = i == 0 ? "" : words[i + 1] ? ", " : " or ";

		at += (size_t)snprintf(buf + at, size - at, "%s%s", before, words[i]);
	}
}

void config_value_allowed(const struct config_key *k, char *buf, size_t size)
{
	char lo[32], hi[32];

	switch (k->type) {
	case KEY_BOOL:
	case KEY_FLAG:
		snprintf(buf, size, "on or off");
		return;
	case KEY_UINT:
		snprintf(buf, size, "%llu to %llu", (unsigned long long)k->min,
			 (unsigned long long)k->max);
		return;
	case KEY_FDS:
		snprintf(buf, size, "%llu to %llu, or up to %d such numbers joined by ':'",
			 (unsigned long long)k->min, (unsigned long long)k->max, CONFIG_PAIRS_MAX);
		return;
	case KEY_POW2:
		snprintf(buf, size, "a power of two, %llu to %llu", (unsigned long long)k->min,
			 (unsigned long long)k->max);
		return;
	case KEY_SIZE:
		format_size(k->min, lo, sizeof(lo));
		format_size(k->max, hi, sizeof(hi));
		snprintf(buf, size, "%s to %s, in bytes or with K, M, G or T", lo, hi);
		return;
	case KEY_ADDR:
		snprintf(buf, size, "an address, %#llx to %#llx", (unsigned long long)k->min,
			 (unsigned long long)k->max);
		return;
	case KEY_WORD:
		join_words(k->words, buf, size);
		return;
	case KEY_STRING:
	case KEY_FILE:
		snprintf(buf, size, "%s", k->shape->must);
		return;
	case KEY_MAC:
		snprintf(buf, size, "a unicast MAC address, as 52:54:00:12:34:56");
		return;
	case KEY_CONFIG:
		snprintf(buf, size, "the path of a file");
		return;
	case KEY_GROUP:
		snprintf(buf, size, "%s", k->metavar);
		return;
	}
}

static void store_unsigned(const struct config_key *k, void *base, uint64_t v)
{
	unsigned small = (unsigned)v;

	if (k->size == sizeof(v))
		memcpy(field(k, base), &v, sizeof(v));
	else
		memcpy(field(k, base), &small, sizeof(small));
}

static uint64_t load_unsigned(const struct config_key *k, const void *base)
{
	uint64_t v;
	unsigned small;

	if (k->size == sizeof(v)) {
		memcpy(&v, field_const(k, base), sizeof(v));
		return v;
	}
	memcpy(&small, field_const(k, base), sizeof(small));
	return small;
}

static bool set_number(const struct config_key *k, void *base, const char *text)
{
	uint64_t v;

	if (k->type == KEY_SIZE ? !parse_size(text, &v) :
				  !parse_number(text, k->type == KEY_ADDR, &v))
		return false;
	if (v < k->min || v > k->max || (k->type == KEY_POW2 && (v & (v - 1))))
		return false;
	store_unsigned(k, base, v);
	return true;
}

static bool set_word(const struct config_key *k, void *base, const char *text)
{
	static const char *const switches[] = { "off", "on", NULL };
	bool is_bool = k->type != KEY_WORD;
	int i = parse_word(is_bool ? switches : k->words, text);

	if (i < 0)
		return false;
	if (is_bool)
		*(bool *)field(k, base) = i;
	else
		store_unsigned(k, base, (uint64_t)i);
	return true;
}

static int set_string(const struct config_key *k, void *base, const char *text, struct err *err)
{
	char *copy = strdup(text);
	char **to = field(k, base);

	if (!copy)
		return err_set(err, ENOMEM, "out of memory");
	free(*to);
	*to = copy;
	return 0;
}

int config_value_set(const struct config_key *k, void *base, const char *text, struct err *err)
{
	struct config_mac mac = { .set = false };
	struct config_fds fds = { 0 };
	char allowed[256];
	bool ok = false;

	switch (k->type) {
	case KEY_BOOL:
	case KEY_FLAG:
	case KEY_WORD:
		ok = set_word(k, base, text);
		break;
	case KEY_UINT:
	case KEY_POW2:
	case KEY_SIZE:
	case KEY_ADDR:
		ok = set_number(k, base, text);
		break;
	case KEY_STRING:
	case KEY_FILE:
		if (k->shape->ok(text))
			return set_string(k, base, text, err);
		break;
	case KEY_FDS:
		ok = parse_fds(k, text, &fds);
		if (ok)
			*(struct config_fds *)field(k, base) = fds;
		break;
	case KEY_MAC:
		ok = parse_mac(text, &mac);
		if (ok)
			*(struct config_mac *)field(k, base) = mac;
		break;
	case KEY_GROUP:
	case KEY_CONFIG:
		BUG_ON(true);
	}
	if (ok)
		return 0;
	config_value_allowed(k, allowed, sizeof(allowed));
	return err_set(err, EINVAL, "must be %s", allowed);
}

const char *config_value_string(const struct config_key *k, const void *base)
{
	return *(char *const *)field_const(k, base);
}

static bool get_mac(const struct config_mac *m, char *buf, size_t size)
{
	snprintf(buf, size, "%02x:%02x:%02x:%02x:%02x:%02x", m->addr[0], m->addr[1], m->addr[2],
		 m->addr[3], m->addr[4], m->addr[5]);
	return m->set;
}

bool config_value_get(const struct config_key *k, const void *base, char *buf, size_t size)
{
	uint64_t v;

	buf[0] = '\0';
	switch (k->type) {
	case KEY_BOOL:
	case KEY_FLAG:
		snprintf(buf, size, "%s", *(const bool *)field_const(k, base) ? "on" : "off");
		return true;
	case KEY_WORD:
		snprintf(buf, size, "%s", k->words[load_unsigned(k, base)]);
		return true;
	case KEY_UINT:
	case KEY_POW2:
		v = load_unsigned(k, base);
		snprintf(buf, size, "%llu", (unsigned long long)v);
		return v != 0 || k->def;
	case KEY_SIZE:
		v = load_unsigned(k, base);
		format_size(v, buf, size);
		return v != 0 || k->def;
	case KEY_ADDR:
		v = load_unsigned(k, base);
		snprintf(buf, size, "%#llx", (unsigned long long)v);
		return v != UINT64_MAX;
	case KEY_FDS:
		return get_fds(field_const(k, base), buf, size);
	case KEY_MAC:
		return get_mac(field_const(k, base), buf, size);
	case KEY_STRING:
	case KEY_FILE:
	case KEY_GROUP:
	case KEY_CONFIG:
		break;
	}
	BUG_ON(true);
	return false;
}

const char *config_shown(const char *text, char buf[CONFIG_SHOWN_MAX])
{
	size_t i;

	for (i = 0; text[i] && i < CONFIG_SHOWN_MAX - 4; i++)
		buf[i] = isprint((unsigned char)text[i]) ? text[i] : '?';
	strcpy(buf + i, text[i] ? "..." : "");
	return buf;
}
