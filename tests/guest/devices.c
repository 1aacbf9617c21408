/*
 * devices.c - the chips: firmware tables, serial port, clock, keyboard controller, PCI
 */
#include "guest.h"

static void test_tables(void)
{
	static const char *const tables[] = { "FACP", "APIC", "MCFG", "DSDT" };

	for (unsigned i = 0; i < ARRAY_SIZE(tables); i++)
		check(acpi_table(tables[i]) != NULL, tables[i], "missing or its sum is wrong");
	const uint8_t *fadt = acpi_table("FACP");

	check(fadt && *(const uint32_t *)(fadt + 112) & 1 << 20, "hw-reduced", "flag is clear");
}

static void test_serial(void)
{
	outb(0x3f8 + 7, 0x5a);
	check(inb(0x3f8 + 7) == 0x5a, "uart-scratch", "0x%x", inb(0x3f8 + 7));
	check((inb(0x3f8 + 5) & 0x60) == 0x60, "uart-empty", "line status 0x%x", inb(0x3f8 + 5));

	/* the transmitter's interrupt, through the I/O APIC */
	ioapic_route(4, 0x34);
	irq_on();
	outb(0x3f8 + 4, 0x08);
	outb(0x3f8 + 1, 0x02);
	check(irq_wait(0x34, 0), "uart-irq", "none came");
	outb(0x3f8 + 1, 0);
	irq_off();
	ioapic_route(4, 0x10000);
}

static uint8_t cmos(uint8_t reg)
{
	outb(0x70, reg);
	return inb(0x71);
}

static unsigned bcd(uint8_t v)
{
	return (v >> 4) * 10u + (v & 15);
}

static void test_rtc(void)
{
	bool binary = cmos(0x0b) & 4;
	uint8_t y = cmos(9), c = cmos(0x32), m = cmos(8), d = cmos(7), h = cmos(4);
	unsigned year = binary ? c * 100u + y : bcd(c) * 100 + bcd(y);
	unsigned month = binary ? m : bcd(m), day = binary ? d : bcd(d);

	print("clock %u-%02u-%02u, hour register 0x%x\n", year, month, day, h);
	check(year >= 2024 && month >= 1 && month <= 12 && day >= 1 && day <= 31, "rtc",
	      "nonsense");
	outb(0x70, 0x40);
	outb(0x71, 0xa7);
	check(cmos(0x40) == 0xa7, "cmos-memory", "0x%x", cmos(0x40));
}

static void test_keyboard_controller(void)
{
	/* Linux reads until "nothing waits" and gives up after a while: no byte must hang it. */
	for (int i = 0; i < 4 && inb(0x64) & 1; i++)
		inb(0x60);
	check(!(inb(0x64) & 2), "i8042", "does not take commands");
}

static void test_pci(void)
{
	uint32_t bridge = pci_read(0, 0, 4);
	unsigned count = 0;

	check((bridge & 0xffff) != 0xffff, "host-bridge", "not at 0:0.0");
	check(pci_read(0, 10, 2) == 0x0600, "host-bridge-class", "0x%x", pci_read(0, 10, 2));
	for (unsigned slot = 0; slot < 32; slot++) {
		uint32_t id = pci_read(slot, 0, 4);

		if (pci_read_port(slot, 0) != id)
			fail("pci-ports", "slot %u is 0x%x, by ports 0x%x", slot, id,
			     pci_read_port(slot, 0));
		if ((id & 0xffff) == 0xffff)
			continue;
		count++;
		print("pci %u: %04x:%04x class %04x\n", slot, id & 0xffff, id >> 16,
		      pci_read(slot, 10, 2));
	}
	print("pci functions: %u\n", count);
	ok("pci-scan");
}

/* Registers nobody has read as ones, and stores to them vanish. */
static void test_nothing_there(void)
{
	outb(0xeee, 0x12);
	check(inb(0xeee) == 0xff, "empty-port", "0x%x", inb(0xeee));
	write32(0xd00ff000, 0x1234);
	check(read32(0xd00ff000) == 0xffffffff, "empty-mmio", "0x%x", read32(0xd00ff000));
	check(pci_read(31, 0xfe, 2) == 0xffff, "empty-slot", "0x%x", pci_read(31, 0xfe, 2));
}

void guest_main(void)
{
	test_tables();
	sync_point(1);
	test_serial();
	sync_point(2);
	test_rtc();
	test_keyboard_controller();
	sync_point(3);
	if (acpi_table("MCFG"))
		test_pci();
	sync_point(4);
	test_nothing_there();
}
