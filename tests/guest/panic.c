/*
 * panic.c - the guest says that its kernel has panicked, as Linux' pvpanic driver does
 *
 * "event=N" is what it writes; the first time only, so that a machine that starts again ends.
 */
#include "guest.h"

#define PORT_PANIC 0x505 /* devices/pvpanic.h */

void guest_main(void)
{
	uint8_t events = inb(PORT_PANIC);

	outb(0x70, 0x50); /* CMOS memory outlives a reset */
	uint8_t starts = inb(0x71);

	print("start %u\n", starts + 1u);
	check(events == 3, "events", "0x%x", events);
	if (starts)
		return;
	outb(0x71, 1);
	outb(PORT_PANIC, (uint8_t)arg_number("event", 1));
	print("still here\n");
	outb(0x70, 0x50);
	outb(0x71, 0);
}
