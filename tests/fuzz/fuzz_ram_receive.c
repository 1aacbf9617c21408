/*
 * fuzz_ram_receive.c - everything a target reads from a source: greeting, RAM, hand-over; and a
 * source's reading of replies
 *
 * The first byte says who reads. RAM is two regions with a gap; whatever comes, nothing outside them is
 * touched (ASan) and the sum of work is bounded by the input's length.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "vmm/migrate_wire.h"
#include "vmm/ram.h"
#include "vmm/sections.h"

#define PAGE 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct gmem *make_memory(uint8_t *low, uint8_t *high)
{
	struct err err = { 0 };
	struct gmem *m = gmem_new(&err);

	if (!m || gmem_add_borrowed(m, 0, 16 * PAGE, low, &err) ||
	    gmem_add_borrowed(m, 0x100000, 3 * PAGE, high, &err))
		abort();
	return m;
}

static void read_as_target(struct stream *s)
{
	struct migrate_hello h;
	struct ram_round_end end = { 0 };
	struct err err = { 0 };
	uint8_t *low = aligned_alloc(PAGE, 16 * PAGE), *high = aligned_alloc(PAGE, 3 * PAGE);
	struct gmem *m;
	bool paused;

	memset(low, 1, 16 * PAGE);
	memset(high, 2, 3 * PAGE);
	m = make_memory(low, high);
	if (!migrate_get_hello(s, &h, &err)) {
		if (!h.connections || h.index >= h.connections ||
		    h.connections > RAM_CONNECTIONS_MAX)
			abort();
		int rc = 0;

		for (uint32_t round = 1; !rc && !end.last; round++) {
			rc = ram_receive_round(m, s, round, &end, &err);
			if (!rc && end.round != round)
				abort();
		}
		if (!rc && !migrate_get_commit(s, &paused, &err) && err.code)
			abort();
	}
	gmem_free(m);
	free(low);
	free(high);
}

static void read_as_source(struct stream *s)
{
	struct migrate_reply r;
	struct err err = { 0 };

	while (!migrate_get_reply(s, &r, &err)) {
		if (strlen(r.text) >= sizeof(r.text))
			abort();
		for (const char *c = r.text; *c; c++)
			if (*c < 0x20 || *c > 0x7e)
				abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct err err = { 0 };
	struct stream *s;

	log_set_level(LOG_ERR);
	if (!len)
		return 0;
	s = stream_read_new(data + 1, len - 1, &err);
	if (!s)
		abort();
	stream_name_types(s, section_name);
	if (*data & 1)
		read_as_source(s);
	else
		read_as_target(s);
	stream_free(s);
	return 0;
}
