/*
 * platform.c - interrupt controllers, other processors, PCI configuration space
 */
#include "guest.h"

/* ---- interrupts ---- */

void irq_on(void)
{
	outb(0x21, 0xff); /* the PICs see the same lines, and at power-on nothing masks them */
	outb(0xa1, 0xff);
	write32(LAPIC + 0x80, 0);            /* task priority */
	write32(LAPIC + 0xf0, 0x100 | 0x3e); /* software enable; the spurious vector is counted */
	kernel(CALL_INTERRUPTS, 1, 0);
}

void irq_off(void)
{
	kernel(CALL_INTERRUPTS, 0, 0);
}

bool irq_wait(unsigned vector, uint32_t beyond)
{
	uint64_t end = deadline();

	while (irq_count[vector] <= beyond)
		if (passed(end))
			return false;
		else
			relax();
	return true;
}

static void ioapic_write(uint32_t reg, uint32_t v)
{
	write32(IOAPIC, reg);
	write32(IOAPIC + 0x10, v);
}

void ioapic_route(unsigned pin, unsigned vector)
{
	ioapic_write(0x11 + 2 * pin, (read32(LAPIC + 0x20) >> 24) << 24);
	ioapic_write(0x10 + 2 * pin, vector); /* fixed, physical, active high, edge, open */
}

/* ---- other processors ---- */

struct cpuid guest_cpuid(uint32_t leaf, uint32_t sub)
{
	struct cpuid r;

	kernel(CALL_CPUID, (uint64_t)sub << 32 | leaf, (uint64_t)&r);
	return r;
}

extern uint8_t ap_start[], ap_start_end[];
volatile uint8_t cpu_alive[256];

void guest_ap(void);

/* In kernel mode, once on each other processor. */
void guest_ap(void)
{
	cpu_alive[read32(LAPIC + 0x20) >> 24] = 1;
}

void start_processors(void)
{
	memcpy((void *)AP_PAGE, ap_start, (size_t)(ap_start_end - ap_start));
	write32(LAPIC + 0xf0, 0x1ff);
	write32(LAPIC + 0x300, 0x000c4500); /* INIT, all excluding self */
	while (read32(LAPIC + 0x300) & 0x1000)
		relax();
	write32(LAPIC + 0x300, 0x000c4600 | AP_PAGE >> 12); /* start-up */
}

/* ---- PCI ---- */

static uint64_t ecam(void)
{
	static uint64_t base;
	const uint8_t *mcfg;

	if (!base) {
		mcfg = acpi_table("MCFG");
		if (!mcfg) {
			fail("pci", "no MCFG table");
			guest_exit();
		}
		base = *(const uint64_t *)(mcfg + 44);
		map(base, 1 << 20);
	}
	return base;
}

uint32_t pci_read(unsigned slot, unsigned off, unsigned len)
{
	uint64_t at = ecam() + (slot << 15) + off;

	return len == 1 ? read8(at) : len == 2 ? read16(at) : read32(at);
}

void pci_write(unsigned slot, unsigned off, unsigned len, uint32_t v)
{
	uint64_t at = ecam() + (slot << 15) + off;

	if (len == 1)
		write8(at, (uint8_t)v);
	else if (len == 2)
		write16(at, (uint16_t)v);
	else
		write32(at, v);
}

uint32_t pci_read_port(unsigned slot, unsigned off)
{
	outl(0xcf8, 0x80000000 | slot << 11 | (off & 0xfc));
	return inl(0xcfc);
}

uint64_t pci_bar(unsigned slot, unsigned bar)
{
	uint32_t low = pci_read(slot, 0x10 + 4 * bar, 4);
	uint64_t high = 0;

	if ((low & 7) == 4)
		high = pci_read(slot, 0x14 + 4 * bar, 4);
	return high << 32 | (low & ~0xfu);
}

unsigned pci_find_cap(unsigned slot, unsigned id, unsigned after)
{
	unsigned at = after ? pci_read(slot, after + 1, 1) : pci_read(slot, 0x34, 1);

	for (unsigned hops = 0; at && hops < 48; hops++) {
		if (pci_read(slot, at, 1) == id)
			return at;
		at = pci_read(slot, at + 1, 1);
	}
	return 0;
}
