/*
 * smp.c - the other processors start, and all of them know who they are
 *
 * "cpus=N" is how many there should be. They start in kernel mode, which software KVM interprets, so what
 * they do there is little: say by APIC id that they are alive.
 */
#include "guest.h"

/* Enabled local APICs of the MADT; the highest id to @max. */
static unsigned madt_cpus(unsigned *max)
{
	const uint8_t *madt = acpi_table("APIC");
	unsigned n = 0;

	*max = 0;
	if (!madt)
		return 0;
	for (uint32_t at = 44; at + 2 <= *(const uint32_t *)(madt + 4) && madt[at + 1];
	     at += madt[at + 1])
		if (madt[at] == 0 && madt[at + 4] & 1) {
			n++;
			if (madt[at + 3] > *max)
				*max = madt[at + 3];
		}
	return n;
}

static unsigned alive(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(cpu_alive); i++)
		n += cpu_alive[i];
	return n;
}

void guest_main(void)
{
	unsigned want = (unsigned)arg_number("cpus", 1), max, have = madt_cpus(&max);
	uint64_t end = deadline();
	struct cpuid one = guest_cpuid(1, 0), b0 = guest_cpuid(0xb, 0), b1 = guest_cpuid(0xb, 1);

	check(have == want, "madt", "%u processors", have);
	check(max == want - 1, "madt-ids", "up to %u", max);
	check((read32(LAPIC + 0x20) >> 24) == 0, "boot-id", "%u", read32(LAPIC + 0x20) >> 24);
	check((one.b >> 16 & 0xff) == want, "cpuid-1", "%u", one.b >> 16 & 0xff);
	check(b0.b == 1 && b0.c == 0x100 && b1.b == want && b1.c == 0x201 && b1.d == 0, "cpuid-b",
	      "%u threads, %u", b0.b, b1.b);
	check(one.c >> 31, "hypervisor", "bit is clear");

	sync_point(1);
	start_processors();
	while (alive() < want - 1 && !passed(end))
		relax();
	for (unsigned i = 0; i < ARRAY_SIZE(cpu_alive); i++)
		if (cpu_alive[i])
			print("processor %u\n", i);
	sync_point(2); /* they wait for interrupts */
	check(alive() == want - 1, "start", "%u of %u came", alive(), want - 1);
}
