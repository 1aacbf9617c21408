/*
 * guest.h - what a tiny guest of the tests can use
 *
 * A guest is one C file with guest_main(), linked with this library (guest.mk). It runs in 64-bit user
 * mode with ports allowed, sees physical memory one to one (map() beyond 4 GiB), has no interrupts
 * unless it asks, and reports on the serial port, one line a fact:
 *
 *	ok NAME
 *	fail NAME: why
 *	sync N		the host may save, kill and restore the machine here
 *	done		always the last line; then the guest ends itself
 *
 * How it ends is said on the command line: nothing for power off by ACPI, "exit=testdev" for port 0xF4
 * with 0 if nothing failed and 1 otherwise, "exit=halt" to stay.
 */
#ifndef TESTS_GUEST_GUEST_H
#define TESTS_GUEST_GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* ---- the test ---- */

void guest_main(void); /* the guest's own */

void ok(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void fail(const char *name, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* ok or fail; true if ok. */
bool check(bool good, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void sync_point(
	unsigned n); /* with "sync" on the command line waits for a byte on the serial port */
_Noreturn void guest_exit(void); /* "done" and the end; as returning from guest_main() */
void power_off(void);            /* by the ACPI sleep register; comes back if it does not work */

/* ---- text ---- */

void put_char(char c);
void print(const char *fmt, ...)
	__attribute__((format(printf, 1, 2))); /* %s %c %d %u %x %lu %lx %p, width, 0 */
int get_char(void);                            /* waits for the serial port */
bool char_waiting(void);

void *memset(void *p, int c, size_t n);
void *memcpy(void *d, const void *s, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t n);

/* Value of "name=value" on the command line, "" for a bare word, NULL if not there. */
const char *arg(const char *name, char *buf, size_t room);
uint64_t arg_number(const char *name, uint64_t otherwise);

/* ---- what the boot protocol said ---- */

enum boot_how { BOOT_UNKNOWN, BOOT_PVH, BOOT_MULTIBOOT };

struct ram_range {
	uint64_t base, size;
	uint32_t type; /* 1: RAM */
};

struct boot_facts {
	enum boot_how how;
	const char *cmdline;
	uint64_t rsdp; /* 0: none found */
	struct ram_range map[16];
	unsigned ranges;
	uint64_t module, module_size;
};
extern struct boot_facts boot;

/* ---- the machine ---- */

static inline void outb(uint16_t port, uint8_t v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}
static inline void outw(uint16_t port, uint16_t v)
{
	__asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port));
}
static inline void outl(uint16_t port, uint32_t v)
{
	__asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}
static inline uint8_t inb(uint16_t port)
{
	uint8_t v;
	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline uint16_t inw(uint16_t port)
{
	uint16_t v;
	__asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline uint32_t inl(uint16_t port)
{
	uint32_t v;
	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

/* Device registers: one access of exactly this width. */
static inline uint8_t read8(uint64_t at)
{
	return *(volatile uint8_t *)at;
}
static inline uint16_t read16(uint64_t at)
{
	return *(volatile uint16_t *)at;
}
static inline uint32_t read32(uint64_t at)
{
	return *(volatile uint32_t *)at;
}
static inline void write8(uint64_t at, uint8_t v)
{
	*(volatile uint8_t *)at = v;
}
static inline void write16(uint64_t at, uint16_t v)
{
	*(volatile uint16_t *)at = v;
}
static inline void write32(uint64_t at, uint32_t v)
{
	*(volatile uint32_t *)at = v;
}

static inline uint64_t rdtsc(void)
{
	uint32_t lo, hi;
	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (uint64_t)hi << 32 | lo;
}
static inline void relax(void)
{
	__asm__ volatile("pause" : : : "memory");
}
static inline void barrier(void)
{
	__asm__ volatile("mfence" : : : "memory");
}

struct cpuid {
	uint32_t a, b, c, d;
};
/* In kernel mode; in user mode use guest_cpuid(): software KVM shows the host's there. */
static inline struct cpuid cpuid(uint32_t leaf, uint32_t sub)
{
	struct cpuid r;
	__asm__ volatile("cpuid"
			 : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d)
			 : "a"(leaf), "c"(sub));
	return r;
}
struct cpuid guest_cpuid(uint32_t leaf, uint32_t sub);

/* Zeroed memory for as long as the guest runs; ends the guest when there is none. */
void *alloc(size_t size, size_t align);

/* Make [at, at + len) reachable, one to one; below 4 GiB it is anyway. */
void map(uint64_t at, uint64_t len);

/* A deadline for waiting loops: about ten seconds or more on any processor. */
static inline uint64_t deadline(void)
{
	return rdtsc() + 40000000000ull;
}
static inline bool passed(uint64_t when)
{
	return rdtsc() > when;
}

/* ---- kernel mode for a moment ---- */

enum kernel_call {
	CALL_HALT,
	CALL_INTERRUPTS,
	CALL_TRIPLE_FAULT,
	CALL_CPUID,
	CALL_READ_MSR,
	CALL_WRITE_MSR
};
uint64_t kernel(enum kernel_call what, uint64_t a, uint64_t b); /* CALL_READ_MSR: a; returns it */

/* ---- interrupts: vectors IRQ_FIRST to IRQ_LAST only count ---- */

#define IRQ_FIRST 0x30
#define IRQ_LAST  0x3f
extern volatile uint32_t irq_count[64];

void irq_on(void); /* local APIC on, interrupts enabled */
void irq_off(void);
bool irq_wait(unsigned vector, uint32_t beyond);  /* until irq_count[vector] > beyond */
void ioapic_route(unsigned pin, unsigned vector); /* edge, to this processor */

#define LAPIC  0xfee00000ull
#define IOAPIC 0xfec00000ull

/* ---- other processors ---- */

#define AP_PAGE  0x8000 /* where they start: vector 8 */
#define CPUS_MAX 64
extern volatile uint8_t cpu_alive[256]; /* by APIC id */
void start_processors(void);            /* INIT and start-up interrupt to all but this one */

/* ---- ACPI ---- */

/* The table with this signature, checksum checked, or NULL. Those the XSDT lists, and "DSDT". */
const uint8_t *acpi_table(const char *signature);

#define PORT_GED 0x600 /* devices/ged.h */

/* ---- PCI, bus 0 ---- */

uint32_t pci_read(unsigned slot, unsigned off, unsigned len); /* by ECAM */
void pci_write(unsigned slot, unsigned off, unsigned len, uint32_t v);
uint32_t pci_read_port(unsigned slot, unsigned off); /* by 0xCF8, 32 bits */
uint64_t pci_bar(unsigned slot, unsigned bar);
unsigned pci_find_cap(unsigned slot, unsigned id, unsigned after); /* 0: none */

#endif
