/*
 * reset.c - the machine starts again, each way a guest may ask for it
 *
 * "how=ged|i8042|cf9|triple". CMOS memory outlives a reset and counts the starts; RAM must not: a
 * page with a mark on it has to be clear the second time.
 */
#include "guest.h"

#define MARK 0x123456789abcdef0ull

static uint8_t cmos(uint8_t reg)
{
	outb(0x70, reg);
	return inb(0x71);
}

void guest_main(void)
{
	volatile uint64_t *page = (volatile uint64_t *)0x1800000; /* 24 MiB */
	uint8_t starts = cmos(0x50);
	char how[16] = "ged";

	print("start %u\n", starts + 1u);
	if (starts) {
		check(*page != MARK, "memory-cleared", "a mark from before is there");
		outb(0x70, 0x50);
		outb(0x71, 0);
		return;
	}
	*page = MARK;
	sync_point(1);
	outb(0x70, 0x50);
	outb(0x71, 1);
	arg("how", how, sizeof(how));
	if (!strcmp(how, "ged"))
		outb(PORT_GED + 6, 1);
	else if (!strcmp(how, "i8042"))
		outb(0x64, 0xfe);
	else if (!strcmp(how, "cf9"))
		outb(0xcf9, 6);
	else if (!strcmp(how, "triple"))
		kernel(CALL_TRIPLE_FAULT, 0, 0);
	fail("reset", "%s: still here", how);
}
