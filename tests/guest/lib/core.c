/*
 * core.c - entry, traps, memory
 *
 * guest_init() runs in kernel mode and does only what must be done there: on KVM in software each
 * instruction of it costs hundreds of nanoseconds.
 */
#include "guest.h"

struct frame {
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

#define TSS_LIMIT (104 + 8192ull)

struct gate {
	uint16_t low, selector, type, mid;
	uint32_t high, zero;
} __attribute__((packed));

extern uint8_t trap_stubs[], kernel_call_here[], stack_top[], tss[], _end[];
extern uint64_t gdt[], pml4[512];

void guest_init(enum boot_how how, uint64_t info);
void guest_start(void);
void guest_trap(struct frame *f);
void boot_parse(enum boot_how how, uint64_t info);

static struct gate idt[64] __attribute__((aligned(16)));
static struct {
	enum boot_how how;
	uint64_t info;
} entry_facts;
volatile uint32_t irq_count[64];

static void set_gate(unsigned vector, uint64_t at)
{
	idt[vector] = (struct gate){
		.low = (uint16_t)at,
		.selector = 0x08,
		.type = 0x8e00, /* present interrupt gate */
		.mid = (uint16_t)(at >> 16),
	};
}

static void load_idt(void *base, uint16_t limit)
{
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) p = { limit, (uint64_t)base };

	__asm__ volatile("lidt %0" : : "m"(p));
}

void guest_init(enum boot_how how, uint64_t info)
{
	uint64_t base = (uint64_t)tss, rsp0 = (uint64_t)stack_top;

	entry_facts.how = how;
	entry_facts.info = info;
	for (unsigned i = 0; i < 64; i++)
		set_gate(i, (uint64_t)trap_stubs + i * 16);
	load_idt(idt, sizeof(idt) - 1);

	memcpy(tss + 4, &rsp0, 8);
	tss[102] = 104; /* where the map of ports starts; zeroes allow */
	tss[TSS_LIMIT] = 0xff;
	gdt[5] = 0x0000890000000000 | TSS_LIMIT | (base & 0xffffff) << 16 |
		 (base >> 24 & 0xff) << 56;
	gdt[6] = base >> 32;
	__asm__ volatile("ltr %w0" : : "r"(0x28));
}

void guest_start(void)
{
	boot_parse(entry_facts.how, entry_facts.info);
	guest_main();
	guest_exit();
}

static uint64_t read_msr(uint32_t msr)
{
	uint32_t lo, hi;

	__asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
	return (uint64_t)hi << 32 | lo;
}

static void write_msr(uint32_t msr, uint64_t v)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)));
}

static void on_call(struct frame *f)
{
	switch ((enum kernel_call)f->rdi) {
	case CALL_HALT:
		if (f->rflags & 0x200)
			__asm__ volatile("sti; hlt; cli");
		else
			__asm__ volatile("hlt");
		break;
	case CALL_INTERRUPTS:
		f->rflags = (f->rflags & ~0x200ull) | (f->rsi ? 0x200 : 0);
		break;
	case CALL_TRIPLE_FAULT:
		load_idt(NULL, 0);
		__asm__ volatile("ud2");
		break;
	case CALL_CPUID:
		*(struct cpuid *)f->rdx = cpuid((uint32_t)f->rsi, (uint32_t)(f->rsi >> 32));
		break;
	case CALL_READ_MSR:
		f->rax = read_msr((uint32_t)f->rsi);
		break;
	case CALL_WRITE_MSR:
		write_msr((uint32_t)f->rsi, f->rdx);
		break;
	}
}

void guest_trap(struct frame *f)
{
	if (f->vector == 6 && f->rip == (uint64_t)kernel_call_here) {
		f->rip += 2;
		on_call(f);
	} else if (f->vector >= IRQ_FIRST && f->vector <= IRQ_LAST) {
		irq_count[f->vector]++;
		write32(LAPIC + 0xb0, 0);
	} else if (f->vector < 32) {
		uint64_t cr2;

		__asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
		fail("trap", "exception %u error 0x%lx at 0x%lx, cr2 0x%lx", (unsigned)f->vector,
		     f->error, f->rip, cr2);
		guest_exit();
	}
}

/* An invalid instruction at a known place: software KVM knows no INT n from user mode. */
__attribute__((noinline, noclone)) uint64_t kernel(enum kernel_call what, uint64_t a, uint64_t b)
{
	uint64_t r;

	__asm__ volatile(".globl kernel_call_here\nkernel_call_here: ud2"
			 : "=a"(r)
			 : "D"((uint64_t)what), "S"(a), "d"(b)
			 : "memory", "cc");
	return r;
}

/* ---- memory ---- */

/*
 * Upwards from the end of the guest's own image. Boot information may lie there (a module does not: it
 * is at the end of RAM).
 */
void *alloc(size_t size, size_t align)
{
	static uint64_t next;
	uint64_t at, end = 0;

	if (!next)
		next = ((uint64_t)_end + 0xfff) & ~0xfffull;
	at = (next + align - 1) & ~((uint64_t)align - 1);
	for (unsigned i = 0; i < boot.ranges; i++)
		if (boot.map[i].type == 1 && boot.map[i].base <= at &&
		    at < boot.map[i].base + boot.map[i].size)
			end = boot.map[i].base + boot.map[i].size;
	if (at + size > end) {
		fail("alloc", "no memory for %lu bytes at 0x%lx", (uint64_t)size, at);
		guest_exit();
	}
	next = at + size;
	return memset((void *)at, 0, size);
}

static uint64_t *table_below(uint64_t *entry)
{
	if (!(*entry & 1))
		*entry = (uint64_t)alloc(4096, 4096) | 0x67;
	return (uint64_t *)(*entry & 0x000ffffffffff000);
}

void map(uint64_t at, uint64_t len)
{
	const uint64_t large = 2 << 20;

	for (uint64_t a = at & ~(large - 1); a < at + len; a += large) {
		uint64_t *t = table_below(&pml4[a >> 39 & 511]);

		t = table_below(&t[a >> 30 & 511]);
		t[a >> 21 & 511] = a | 0xe7; /* it was not present: nothing to flush */
	}
}

void *memset(void *p, int c, size_t n)
{
	void *d = p;

	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return p;
}

void *memcpy(void *p, const void *s, size_t n)
{
	void *d = p;

	__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
	return p;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;

	for (; n; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}

size_t strlen(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

int strncmp(const char *a, const char *b, size_t n)
{
	for (; n; n--, a++, b++)
		if (*a != *b || !*a)
			return (uint8_t)*a - (uint8_t)*b;
	return 0;
}

int strcmp(const char *a, const char *b)
{
	return strncmp(a, b, (size_t)-1);
}
