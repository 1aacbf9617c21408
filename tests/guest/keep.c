/*
 * keep.c - everything a machine has to remember, set to something, and looked at after each sync point
 *
 * Registers of the processor that user mode reaches, MSRs, local APIC and I/O APIC, timers, the chips,
 * configuration space. One array of words, taken before and after: what differs is named.
 */
#include "virtio.h"

#define FACTS_MAX 200

static struct fact {
	const char *what;
	unsigned index;
	uint64_t value;
} facts[FACTS_MAX];
static unsigned nfacts;
static bool looking; /* compare, not note */

static void fact(const char *what, unsigned index, uint64_t value)
{
	struct fact *f = &facts[nfacts++];

	if (looking && f->value != value)
		fail("kept", "%s %x: 0x%lx, was 0x%lx", what, index, value, f->value);
	if (!looking)
		*f = (struct fact){ what, index, value };
}

/* ---- the processor ---- */

static const struct {
	uint32_t index;
	uint64_t value;
} msrs[] = {
	{ 0x174, 0x10 },
	{ 0x175, 0xffff800000001000 }, /* SYSENTER */
	{ 0x176, 0xffff800000002000 },
	{ 0x277, 0x0407040600070106 }, /* PAT */
	{ 0xc0000081, 0x0023001000000000 },
	{ 0xc0000082, 0xffff800000003000 },
	{ 0xc0000083, 0xffff800000004000 },
	{ 0xc0000084, 0x47700 },
	{ 0xc0000102, 0xffff800000005000 }, /* KERNEL_GS_BASE */
	{ 0x200, 0x6 },
	{ 0x201, 0xff0000800 }, /* an MTRR */
};

static uint8_t vectors[16 * 16] __attribute__((aligned(16)));
static uint16_t fcw = 0x27f;
static uint32_t mxcsr = 0x3f80;

static void set_processor(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(msrs); i++)
		kernel(CALL_WRITE_MSR, msrs[i].index, msrs[i].value);
	for (unsigned i = 0; i < sizeof(vectors); i++)
		vectors[i] = (uint8_t)(i * 7 + 1);
	__asm__ volatile("fldcw %0; ldmxcsr %1" : : "m"(fcw), "m"(mxcsr));
#define LOAD(n) __asm__ volatile("movaps %0, %%xmm" #n : : "m"(vectors[n * 16]))
	LOAD(0);
	LOAD(1);
	LOAD(2);
	LOAD(7);
	LOAD(8);
	LOAD(15);
	__asm__ volatile("fld1; fldpi; fldl2t");
}

static void look_at_processor(void)
{
	static uint8_t x[512] __attribute__((aligned(64)));
	uint64_t word;

	for (unsigned i = 0; i < ARRAY_SIZE(msrs); i++)
		fact("MSR", msrs[i].index, kernel(CALL_READ_MSR, msrs[i].index, 0));
	memset(x, 0, sizeof(x));
	__asm__ volatile("fxsave %0" : "=m"(x));
	for (unsigned at = 0; at < 416; at += 8) { /* what follows is not written */
		memcpy(&word, x + at, 8);
		/* last instruction's and operand's place: processors differ in keeping them */
		fact("fxsave", at, at == 8 || at == 16 ? 0 : word);
	}
	fact("MXCSR", 0, *(uint32_t *)(x + 24));
	fact("apic base", 0, kernel(CALL_READ_MSR, 0x1b, 0));
	struct cpuid c = guest_cpuid(1, 0);

	fact("cpuid 1 a", 0, c.a);
	fact("cpuid 1 c", 0, c.c);
	c = guest_cpuid(7, 0);
	fact("cpuid 7 b", 0, c.b);
}

/* ---- chips ---- */

static void cmos_write(uint8_t reg, uint8_t v)
{
	outb(0x70, reg);
	outb(0x71, v);
}

static uint8_t cmos_read(uint8_t reg)
{
	outb(0x70, reg);
	return inb(0x71);
}

static void set_chips(void)
{
	outb(0x3f8 + 7, 0xa5); /* scratch */
	outb(0x3f8 + 1, 0x00);
	outb(0x3f8 + 4, 0x0b);
	cmos_write(0x50, 0x12);
	cmos_write(0x7f, 0xed);
	outb(0x21, 0xfb); /* PICs: masks, and where they are */
	outb(0xa1, 0xf7);
	write32(LAPIC + 0x320, 0x10033); /* timer: masked, vector */
	write32(LAPIC + 0x3e0, 3);
	write32(LAPIC + 0x80, 0x20);
	ioapic_route(9, 0x35);
	ioapic_route(17, 0x36);
	outb(0x43, 0xb6); /* the PIT's third channel: mode 3 */
	outb(0x42, 0x34);
	outb(0x42, 0x12);
	outb(0x61, 1);
}

static void look_at_chips(void)
{
	fact("serial scratch", 0, inb(0x3f8 + 7));
	fact("serial ier", 0, inb(0x3f8 + 1));
	fact("serial lcr", 0, inb(0x3f8 + 3));
	fact("serial mcr", 0, inb(0x3f8 + 4));
	fact("cmos", 0x50, cmos_read(0x50));
	fact("cmos", 0x7f, cmos_read(0x7f));
	fact("cmos", 0x0b, cmos_read(0x0b));
	fact("pic", 0x21, inb(0x21));
	fact("pic", 0xa1, inb(0xa1));
	for (unsigned reg = 0x20; reg <= 0x3e0; reg += 0x10)
		if (reg != 0x390 && reg != 0xb0 && reg != 0xc0 &&
		    reg != 0x90) /* counts; write only */
			fact("local apic", reg, read32(LAPIC + reg));
	for (unsigned pin = 0; pin < 24; pin++) {
		write32(IOAPIC, 0x10 + 2 * pin);
		fact("io apic", pin, read32(IOAPIC + 0x10) & ~(1u << 12));
		write32(IOAPIC, 0x11 + 2 * pin);
		fact("io apic high", pin, read32(IOAPIC + 0x10));
	}
	outb(0x43, 0xe8); /* status of the third channel */
	fact("pit", 2, inb(0x42) & 0x3f);
}

/* ---- configuration space ---- */

static void set_pci(void)
{
	for (unsigned slot = 1; slot < 32; slot++) {
		if (pci_read(slot, 0, 2) == 0xffff)
			continue;
		pci_write(slot, 0x3c, 1, 0x40 + slot); /* interrupt line: memory, to us */
		pci_write(slot, 0x0c, 1, slot);
	}
	outl(0xcf8, 0x80000810);
}

static void look_at_pci(void)
{
	fact("cf8", 0, inl(0xcf8));
	for (unsigned slot = 0; slot < 32; slot++) {
		if (pci_read(slot, 0, 2) == 0xffff)
			continue;
		for (unsigned off = 0; off < 0x40; off += 4)
			fact("pci", slot << 8 | off, pci_read(slot, off, 4));
	}
}

static void look(void)
{
	nfacts = 0;
	look_at_processor();
	look_at_chips();
	if (acpi_table("MCFG"))
		look_at_pci();
}

/* An interrupt that is on its way when the machine stops: it comes, and once. */
static void test_timer(unsigned n)
{
	uint32_t before = irq_count[0x33];

	write32(LAPIC + 0x80, 0);
	write32(LAPIC + 0x3e0, 0xb);
	write32(LAPIC + 0x320, 0x33); /* one shot */
	write32(LAPIC + 0x380, 400000000);
	sync_point(n);
	check(irq_wait(0x33, before), "timer", "does not come");
	write32(LAPIC + 0x320, 0x10033);
}

void guest_main(void)
{
	irq_on();
	set_processor();
	set_chips();
	if (acpi_table("MCFG"))
		set_pci();
	look();
	looking = true;
	look(); /* what changes by itself is no fact */
	sync_point(1);
	look();
	sync_point(2);
	look();
	ok("kept");
	test_timer(3);
	irq_off();
}
