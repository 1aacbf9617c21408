/*
 * memory.c - the memory map tells the truth: RAM of the size asked for, everywhere, and nowhere twice
 *
 * "ram=BYTES" is the machine's size. A page of every MiB gets its own address as its content; then all are read
 * back, so a page that is another one's alias shows.
 */
#include "guest.h"

extern uint8_t _end[];

#define STEP ((1 << 20) + 4096) /* a page of every MiB, not always the same one */

/* The map leaves out what lies over 640 KiB, where firmware has its tables. */
static uint64_t first_mib_gap(void)
{
	uint64_t have = 0;

	for (unsigned i = 0; i < boot.ranges; i++)
		if (boot.map[i].type == 1 && boot.map[i].base < 0x100000)
			have += boot.map[i].size;
	return 0x100000 - have;
}

static bool usable(uint64_t at)
{
	return at >= ((uint64_t)_end + (64 << 10)); /* page tables of map() follow the image */
}

/* Every @step bytes of all RAM: store, or compare. */
static bool walk(uint64_t step, bool store)
{
	for (unsigned i = 0; i < boot.ranges; i++) {
		const struct ram_range *r = &boot.map[i];

		if (r->type != 1)
			continue;
		if (store)
			map(r->base, r->size);
		for (uint64_t at = r->base; at < r->base + r->size; at += step) {
			if (!usable(at) || (boot.module && at + 8 > boot.module &&
					    at < boot.module + boot.module_size))
				continue;
			if (store)
				*(volatile uint64_t *)at = at ^ 0x5a5a;
			else if (*(volatile uint64_t *)at != (at ^ 0x5a5a))
				return check(false, "content", "0x%lx holds 0x%lx", at,
					     *(volatile uint64_t *)at);
		}
		/* the very last bytes, too */
		if (store)
			*(volatile uint64_t *)(r->base + r->size - 8) = ~r->base;
		else if (*(volatile uint64_t *)(r->base + r->size - 8) != ~r->base)
			return check(false, "content", "the end of 0x%lx", r->base);
	}
	return true;
}

void guest_main(void)
{
	uint64_t total = 0, want = arg_number("ram", 0), low_end = 0, high = 0;
	bool sorted = true;

	for (unsigned i = 0; i < boot.ranges; i++) {
		const struct ram_range *r = &boot.map[i];

		print("memory 0x%lx-0x%lx type %u\n", r->base, r->base + r->size, r->type);
		if (i && r->base < boot.map[i - 1].base + boot.map[i - 1].size)
			sorted = false;
		if (r->type != 1)
			continue;
		total += r->size;
		if (r->base < 1ull << 32)
			low_end = r->base + r->size;
		else
			high += r->size;
	}
	check(sorted, "map-order", "ranges overlap or are unsorted");
	check(!want || total + first_mib_gap() == want, "size", "%lu of %lu bytes", total, want);
	check(low_end <= 0xc0000000, "hole", "RAM up to 0x%lx", low_end);
	check(!want || (want > 0xc0000000) == (high > 0), "above-4g", "%lu bytes there", high);
	walk(STEP, true);
	sync_point(1);
	if (walk(STEP, false))
		ok("content");
}
