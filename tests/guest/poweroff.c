/*
 * poweroff.c - ACPI S5, at once or when the power button is pressed ("button")
 */
#include "guest.h"

void guest_main(void)
{
	char text[4];

	if (arg("button", text, sizeof(text))) {
		ioapic_route(9, 0x39); /* the event device's edge */
		irq_on();
		print("ready\n");
		while (!irq_count[0x39])
			kernel(CALL_HALT, 0, 0);
		irq_off();
		check(inl(PORT_GED) & 1, "button", "the event is not the button's");
		check(!(inl(PORT_GED) & 1), "button-once", "the event was not cleared");
	}
	print("done\n");
	power_off();
	fail("power-off", "still here");
}
