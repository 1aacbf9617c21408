/*
 * probe.c - what kind of KVM this is, by running instructions in it
 *
 * /dev/kvm looks the same whether the processor runs guest kernels or the kernel interprets them (as
 * PVM does on machines without VMX and SVM). Two things tell: an interpreter is two to three orders of
 * magnitude slower, and it lacks instructions that every Linux kernel executes. So a VM with one vCPU
 * in 64-bit kernel mode counts down in a loop, and then tries the instructions, each from a fresh
 * start since a failed one leaves the vCPU stopped.
 *
 * Processor time of this thread is measured, not wall clock, and the best of a few rounds counts: a
 * busy host makes rounds longer, never shorter.
 */
#include <cpuid.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "vmm/memslots.h"
#include "vmm/vcpu.h"
#include "vmm/x86_64/boot.h"
#include "vmm/x86_64/cpu.h"

#define RAM       (2ull << 20)
#define CODE      0x100000ull
#define IDT       0x180000ull /* first page of scratch memory */
#define SCRATCH   0x181000ull
#define STACK     0x1f0000ull
#define ROUNDS    5
#define LOOPS     10000
#define LOOP_INSN 2 /* instructions in the loop */

/*
 * Between processors and interpreters. check-host shows what it measured: 2.6 ns in the lab's emulated
 * SVM, 557 ns on a software KVM (PVM).
 */
#define INTERPRETED_NS 100.0

#define TIMEOUT_S 10

/*
 * The guest. Each entry ends with OUT to port 0xE9: AL 1 for success. IDT entries 0 to 31 lead to
 * probe_trap (vector 3 to probe_int3), RDI holds SCRATCH.
 */
extern const uint8_t probe_code[], probe_code_end[], probe_loop[], probe_int3_test[],
	probe_cmpxchg16b[], probe_xrstor[], probe_trap[], probe_int3[];

__asm__(".pushsection .rodata\n"
	"probe_code:\n"
	"probe_loop:\n"
	"	out %al, $0xe9\n" /* the clock starts */
	"	mov %esi, %ecx\n"
	"1:	dec %ecx\n"
	"	jnz 1b\n"
	"	mov $1, %al\n"
	"	jmp probe_loop\n"
	"probe_int3_test:\n"
	"	xor %ebx, %ebx\n"
	"	int3\n"
	"	cmp $0x51, %ebx\n" /* the handler came and returned here */
	"	sete %al\n"
	"	out %al, $0xe9\n"
	"probe_cmpxchg16b:\n"
	"	movq $1, (%rdi)\n"
	"	movq $2, 8(%rdi)\n"
	"	mov $1, %eax\n"
	"	mov $2, %edx\n"
	"	mov $3, %ebx\n"
	"	mov $4, %ecx\n"
	"	lock cmpxchg16b (%rdi)\n"
	"	setz %al\n"
	"	cmpq $3, (%rdi)\n"
	"	setz %cl\n"
	"	and %cl, %al\n"
	"	cmpq $4, 8(%rdi)\n"
	"	setz %cl\n"
	"	and %cl, %al\n"
	"	out %al, $0xe9\n"
	"probe_xrstor:\n"
	"	mov %cr4, %rax\n"
	"	or $0x40200, %eax\n" /* OSXSAVE, OSFXSR */
	"	mov %rax, %cr4\n"
	"	xor %ecx, %ecx\n"
	"	xor %edx, %edx\n"
	"	mov $3, %eax\n"
	"	xsetbv\n"
	"	fninit\n"
	"	xsave (%rdi)\n"
	"	movl $0x1fa0, 24(%rdi)\n" /* another MXCSR */
	"	orl $2, 512(%rdi)\n"
	"	mov $3, %eax\n"
	"	xrstor (%rdi)\n"
	"	stmxcsr 4096-64(%rdi)\n"
	"	cmpl $0x1fa0, 4096-64(%rdi)\n"
	"	sete %al\n"
	"	out %al, $0xe9\n"
	"probe_int3:\n"
	"	mov $0x51, %ebx\n"
	"	iretq\n"
	"probe_trap:\n"
	"	xor %eax, %eax\n"
	"	out %al, $0xe9\n"
	"probe_code_end:\n"
	"	.popsection\n");

struct probe_vm {
	int vm, vcpu;
	struct gmem *mem;
	struct arch_cpu *cpu;
	struct boot boot; /* a long-mode entry with nothing loaded from files */
	struct kvm_run *run;
	size_t run_size;
	timer_t timer;
	bool has_timer;
};

static uint64_t guest_addr(const uint8_t *label)
{
	return CODE + (uint64_t)(label - probe_code);
}

static int put_idt(struct boot_ctx *c, struct err *err)
{
	struct {
		uint16_t low, selector, type, mid;
		uint32_t high, zero;
	} idt[32];

	for (unsigned i = 0; i < 32; i++) {
		uint64_t at = guest_addr(i == 3 ? probe_int3 : probe_trap);

		memset(&idt[i], 0, sizeof(idt[i]));
		idt[i].low = (uint16_t)at;
		idt[i].selector = BOOT_CS;
		idt[i].type = 0x8e00; /* present interrupt gate */
		idt[i].mid = (uint16_t)(at >> 16);
	}
	return boot_put(c, IDT, idt, sizeof(idt), err);
}

static int make_memory(struct probe_vm *v, struct err *err)
{
	struct boot_ctx c = { 0 };
	struct boot_entry *e = &v->boot.entry;
	int rc;

	v->mem = gmem_new(err);
	if (!v->mem)
		return err->code;
	c.mem = v->mem;
	e->mode = BOOT_LONG;
	e->rsp = STACK;
	v->boot.loaded = true;
	if ((rc = gmem_add_ram(v->mem, 0, RAM, GMEM_PAGES_SMALL, err)) ||
	    (rc = boot_put_gdt(&c, e, err)) || (rc = boot_put_pages(&c, e, err)) ||
	    (rc = put_idt(&c, err)))
		return rc;
	return boot_put(&c, CODE, probe_code, (size_t)(probe_code_end - probe_code), err);
}

static void on_timeout(int sig)
{
	(void)sig; /* KVM_RUN returns; that is all */
}

/* A guest that never leaves ends with EINTR. */
static int arm_timer(struct probe_vm *v, struct err *err)
{
	struct sigaction sa = { .sa_handler = on_timeout };
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = VCPU_SIGNAL };
	struct itimerspec at = { .it_value.tv_sec = TIMEOUT_S, .it_interval.tv_sec = 1 };

	ev._sigev_un._tid = gettid();
	if (sigaction(VCPU_SIGNAL, &sa, NULL) < 0 || timer_create(CLOCK_MONOTONIC, &ev, &v->timer))
		return err_set_sys(err, errno, "cannot make a timer");
	v->has_timer = true;
	if (timer_settime(v->timer, 0, &at, NULL))
		return err_set_sys(err, errno, "cannot start a timer");
	return 0;
}

static int open_vm(struct probe_vm *v, int kvm_fd, struct err *err)
{
	int rc;

	v->cpu = arch_cpu_new(kvm_fd, "host", 1, err);
	if (!v->cpu)
		return err->code;
	v->vm = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	if (v->vm < 0)
		return err_set_sys(err, errno, "KVM cannot create a virtual machine");
	if ((rc = make_memory(v, err)) || (rc = arch_vm_init(v->vm, err)) ||
	    (rc = memslots_set(v->vm, v->mem, err)))
		return rc;
	v->vcpu = ioctl(v->vm, KVM_CREATE_VCPU, 0);
	if (v->vcpu < 0)
		return err_set_sys(err, errno, "KVM cannot create a vCPU");
	v->run = mmap(NULL, v->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->vcpu, 0);
	if (v->run == MAP_FAILED) {
		v->run = NULL;
		return err_set_sys(err, errno, "cannot map the vCPU's run area");
	}
	rc = arch_vcpu_init(v->vcpu, v->cpu, 0, err);
	return rc ? rc : arm_timer(v, err);
}

static void close_vm(struct probe_vm *v)
{
	if (v->has_timer)
		timer_delete(v->timer);
	if (v->run)
		munmap(v->run, v->run_size);
	fd_close(&v->vcpu);
	fd_close(&v->vm);
	gmem_free(v->mem);
	arch_cpu_free(v->cpu);
}

static int start_at(struct probe_vm *v, const uint8_t *label, struct err *err)
{
	struct kvm_sregs s;
	struct kvm_regs r;
	int rc;

	v->boot.entry.rip = guest_addr(label);
	v->boot.entry.rsi = LOOPS;
	rc = arch_vcpu_reset(v->vcpu, v->cpu, 0, err);
	if (!rc)
		rc = arch_vcpu_set_entry(v->vcpu, &v->boot, err);
	if (rc)
		return rc;
	if (ioctl(v->vcpu, KVM_GET_SREGS, &s) < 0 || ioctl(v->vcpu, KVM_GET_REGS, &r) < 0)
		return err_set_sys(err, errno, "KVM cannot read the vCPU's registers");
	s.idt = (struct kvm_dtable){ .base = IDT, .limit = 32 * 16 - 1 };
	r.rdi = SCRATCH;
	if (ioctl(v->vcpu, KVM_SET_SREGS, &s) < 0 || ioctl(v->vcpu, KVM_SET_REGS, &r) < 0)
		return err_set_sys(err, errno, "KVM cannot set the vCPU's registers");
	return 0;
}

/* Run to the next OUT. Its byte, or -1: the guest did not get there. */
static int run_to_out(struct probe_vm *v)
{
	if (ioctl(v->vcpu, KVM_RUN, 0) < 0 || v->run->exit_reason != KVM_EXIT_IO ||
	    v->run->io.port != 0xe9)
		return -1;
	return *((uint8_t *)v->run + v->run->io.data_offset);
}

static double thread_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int measure(struct probe_vm *v, double *ns, struct err *err)
{
	double best = 0;
	int rc = start_at(v, probe_loop, err);

	if (rc)
		return rc;
	if (run_to_out(v) < 0)
		goto stuck;
	for (int i = 0; i < ROUNDS; i++) {
		double start = thread_ns(), took;

		if (run_to_out(v) != 1)
			goto stuck;
		took = thread_ns() - start;
		if (!i || took < best)
			best = took;
	}
	*ns = best / (LOOPS * LOOP_INSN);
	return 0;

stuck:
	return err_set(err, EIO, "KVM cannot run even a loop in 64-bit mode (exit reason %u)",
		       v->run->exit_reason);
}

static int try_instructions(struct probe_vm *v, char *missing, size_t room, struct err *err)
{
	const struct {
		const char *name;
		const uint8_t *start;
		bool wanted;
	} tries[] = {
		{ "int3", probe_int3_test, true },
		{ "cmpxchg16b", probe_cmpxchg16b, cpu_has(v->cpu, 1, CPU_ECX, 13) },
		{ "xrstor", probe_xrstor, cpu_has(v->cpu, 1, CPU_ECX, 26) },
	};

	*missing = '\0';
	for (size_t i = 0; i < sizeof(tries) / sizeof(tries[0]); i++) {
		size_t used = strlen(missing);
		int rc;

		if (!tries[i].wanted) /* the guest is told that it is not there */
			continue;
		rc = start_at(v, tries[i].start, err);
		if (rc)
			return rc;
		if (run_to_out(v) != 1)
			snprintf(missing + used, room - used, "%s%s", used ? ", " : "",
				 tries[i].name);
	}
	return 0;
}

static bool host_is_virtual(void)
{
	unsigned a, b, c, d;

	return __get_cpuid(1, &a, &b, &c, &d) && c >> 31;
}

int arch_probe_host(int kvm_fd, size_t run_size, struct arch_probe *p, struct err *err)
{
	struct probe_vm *v = calloc(1, sizeof(*v));
	int rc;

	if (!v)
		return err_set(err, ENOMEM, "out of memory");
	v->vm = v->vcpu = -1;
	v->run_size = run_size;
	memset(p, 0, sizeof(*p));
	rc = open_vm(v, kvm_fd, err);
	if (!rc)
		rc = measure(v, &p->ns_per_insn, err);
	if (!rc)
		rc = try_instructions(v, p->missing, sizeof(p->missing), err);
	p->kind = p->ns_per_insn >= INTERPRETED_NS ? ARCH_HOST_SOFTWARE :
		  host_is_virtual()                ? ARCH_HOST_NESTED :
						     ARCH_HOST_HARDWARE;
	close_vm(v);
	free(v);
	return rc;
}

const struct arch_extra *arch_host_extras(void)
{
	static const struct arch_extra extras[] = {
		{ KVM_CAP_X2APIC_API, 0, "kvm.x2apic-api", "APIC ids of 32 bits", NULL },
		{ KVM_CAP_TSC_DEADLINE_TIMER, 0, "kvm.tsc-deadline", "the APIC's deadline timer",
		  "guest timers cost more exits" },
		{ KVM_CAP_TSC_CONTROL, 0, "kvm.tsc-scaling",
		  "guests keep their TSC rate when they move",
		  "move guests only between hosts of one TSC rate" },
		{ 0 },
	};

	return extras;
}
