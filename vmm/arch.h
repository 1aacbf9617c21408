/*
 * arch.h - what a processor architecture gives the machine
 *
 * The rest of vmm/ is written once; everything that differs between x86_64 and aarch64 is behind
 * these functions, implemented in vmm/<arch>/ under the same names. None of them owns a KVM file
 * descriptor: vm.c and vcpu.c hand theirs in.
 *
 * Order of a start:
 *
 *	arch_cpu_new		what the vCPUs will be; refuses a model the host lacks
 *	arch_layout_init	where RAM, PCI and the rest lie
 *	arch_add_ram
 *	arch_vm_init		interrupt controllers; before the first vCPU is created
 *	arch_vcpu_init		each vCPU
 *	boot_open		looks at the kernel and initrd files once and keeps them open
 *	boot_load		into memory, with firmware tables; again after a reset
 *	arch_vcpu_reset		each vCPU; again after a reset
 *	arch_vcpu_set_entry	the boot vCPU only; the others wait for their start-up interrupt
 */
#ifndef VMM_ARCH_H
#define VMM_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/guest_memory.h"

struct kvm_irq_routing_entry;

extern const char arch_name[]; /* "x86_64": in snapshots */

/* ---- where things are ---- */

struct arch_window {
	uint64_t base, size; /* bytes; size 0: not there */
};

struct arch_layout {
	struct arch_window ram_low, ram_high;
	struct arch_window ecam;  /* PCI configuration space, segment 0 from bus 0 */
	struct arch_window pci32; /* for 32-bit BARs */
	struct arch_window pci64; /* for 64-bit BARs, above RAM */
	struct arch_window mmio;  /* virtio-mmio register windows, see arch_mmio_slot() */
};

/* -EINVAL: no RAM, unaligned, or more than a guest with @phys_bits address bits can reach. */
int arch_layout_init(struct arch_layout *l, uint64_t ram, unsigned phys_bits, struct err *err);

int arch_add_ram(struct gmem *m, const struct arch_layout *l, enum gmem_pages pages,
		 struct err *err);

/*
 * Place of the @i-th virtio-mmio device. Interrupts are edges, so slots may share a GSI: more
 * devices fit than the interrupt controller has pins. @i < ARCH_MMIO_SLOTS.
 */
#define ARCH_MMIO_SLOTS 48
void arch_mmio_slot(unsigned i, uint64_t *base, unsigned *gsi);

/* ---- what is in the machine, as its firmware tables tell the guest ---- */

struct arch_mmio_device {
	uint64_t base;
	unsigned gsi;
};

struct arch_machine {
	unsigned cpus;
	bool pci;    /* a host bridge at bus 0 */
	bool serial; /* the first serial port */
	bool rtc;
	bool panic; /* devices/pvpanic.h */
	struct arch_mmio_device mmio[ARCH_MMIO_SLOTS];
	unsigned mmio_count;
};

/* ---- the kernel ---- */

enum boot_flat_mode { BOOT_FLAT_NONE = 0, BOOT_FLAT_16 = 16, BOOT_FLAT_32 = 32, BOOT_FLAT_64 = 64 };

struct boot_files {
	const char *kernel;
	const char *initrd;       /* NULL: none */
	const char *format;       /* "bzImage", "PVH", "multiboot": nothing else; NULL: find out */
	enum boot_flat_mode flat; /* not NONE: @kernel is raw code, whatever it looks like */
	gpa_t flat_addr;          /* loaded and entered here */
};

struct boot; /* the open files, what they are, and where the boot vCPU starts */

/*
 * Open the files and find out by looking what the kernel is. Errors name the file and what it was
 * found to be. The files stay open for a restart, even if renamed meanwhile.
 */
struct boot *boot_open(const struct boot_files *files, struct err *err);
void boot_free(struct boot *b); /* NULL is fine */

/* "Linux bzImage, boot protocol 2.15": for the log. */
const char *boot_describe(const struct boot *b);

/*
 * Fill guest RAM: kernel, initrd, command line, memory map, firmware tables. RAM is as new, or
 * discarded by the caller. @cmdline may be empty, not NULL. -EINVAL: the kernel's fault; -ENOSPC:
 * memory too small; -errno of reading. Safe on hostile files: bounded work, no access outside @m.
 */
int boot_load(struct boot *b, struct gmem *m, const struct arch_layout *l,
	      const struct arch_machine *machine, const char *cmdline, struct err *err);

/* ---- processors ---- */

struct arch_cpu; /* what every vCPU of a machine looks like; immutable, shared by their threads */

/*
 * @model: "host" or one of the baselines that arch_cpu_models() lists. -EINVAL unknown model, or a
 * feature the host lacks, by name.
 */
struct arch_cpu *arch_cpu_new(int kvm_fd, const char *model, unsigned ncpus, struct err *err);
void arch_cpu_free(struct arch_cpu *c); /* NULL is fine */
unsigned arch_cpu_phys_bits(const struct arch_cpu *c);
const char *const *arch_cpu_models(void); /* NULL-terminated */

#define ARCH_CPUS_MAX 64

/* ---- KVM ---- */

/* Interrupt controllers and timer, before any vCPU is created. */
int arch_vm_init(int vm_fd, struct err *err);

/* The in-kernel interrupt controllers back to power-on state. vCPUs are stopped. */
int arch_vm_reset(int vm_fd, struct err *err);

/*
 * Routes of the wired GSIs (0 to ARCH_GSI_MSI - 1) for KVM_SET_GSI_ROUTING, which takes the whole
 * table at once; MSIs are numbered from ARCH_GSI_MSI. Returns how many of @e were filled.
 */
#define ARCH_GSI_MSI    24
#define ARCH_GSI_ROUTES 48 /* entries arch_gsi_routes() needs at most */
unsigned arch_gsi_routes(struct kvm_irq_routing_entry *e, unsigned room);

/* Once after KVM_CREATE_VCPU: features and topology. Ends with arch_vcpu_reset(). */
int arch_vcpu_init(int vcpu_fd, const struct arch_cpu *c, unsigned index, struct err *err);

/* Power-on state of every register; vCPU 0 runnable, the others wait. */
int arch_vcpu_reset(int vcpu_fd, const struct arch_cpu *c, unsigned index, struct err *err);

/* The registers that tell where a vCPU is, one line for the log. The vCPU is stopped. */
void arch_vcpu_describe(int vcpu_fd, char *buf, size_t len);

/* Registers of the boot vCPU as the boot protocol wants them. After boot_load(). */
int arch_vcpu_set_entry(int vcpu_fd, const struct boot *b, struct err *err);

/* ---- state, to bytes and back (base/state.h) ---- */

struct state_buf;
struct state_desc;

/*
 * What the guest has seen of its processor, and the processor made from it again. The bytes may be
 * hostile. Before any vCPU is loaded arch_cpu_check() has to say that this host can be it: -EINVAL
 * naming what it lacks.
 */
int arch_cpu_save(const struct arch_cpu *c, struct state_buf *out, struct err *err);
struct arch_cpu *arch_cpu_load(unsigned ncpus, const void *data, size_t len, struct err *err);
int arch_cpu_check(struct arch_cpu *c, int kvm_fd, struct err *err);

/* One moment by all clocks: what passes between looks at them is in none of them. */
struct arch_moment {
	uint64_t guest_ns, realtime_ns; /* kvmclock, the host's CLOCK_REALTIME */
	uint64_t tsc_base;              /* with a vCPU's offset its time stamp counter, */
	uint32_t tsc_khz;               /* which runs at this; 0: not known */
};

/* The machine's clocks on their way; made by the first two of these functions, for the others. */
struct arch_clock {
	int vm_fd;
	struct arch_moment saved, now; /* now: on this host, when the first vCPU is loaded */
	bool together;                 /* loading: counters were saved as they were at @saved */
	uint64_t elapsed_ns;           /* loading: how far the guest's clock went on meanwhile */
};

/*
 * The guest's clock, before everything else. @vcpu_fd: any vCPU, all stand still; -1: there is none. @ran:
 * it went on since it was saved, by the host's real time.
 */
int arch_clock_save(int vm_fd, int vcpu_fd, struct arch_clock *k, struct state_buf *out,
		    struct err *err);
int arch_clock_load(int vm_fd, bool ran, const void *data, size_t len, struct arch_clock *k,
		    struct err *err);

/*
 * The vCPU's registers. It is parked; loading comes after the clock, into one that is fresh from
 * KVM_CREATE_VCPU or that arch_vcpu_init() was called for.
 */
int arch_vcpu_save(int vcpu_fd, const struct arch_cpu *c, unsigned index,
		   const struct arch_clock *k, struct state_buf *out, struct err *err);
int arch_vcpu_load(int vcpu_fd, const struct arch_cpu *c, struct arch_clock *k, const void *data,
		   size_t len, struct err *err);

/* Interrupt controllers and timer in the kernel. */
int arch_chips_save(int vm_fd, struct state_buf *out, struct err *err);
int arch_chips_load(int vm_fd, const void *data, size_t len, struct err *err);

/* Every table of this architecture, ended by NULL: for inspection, docs and tests. */
const struct state_desc *const *arch_state_tables(void);

/* ---- trying the host out (coracle check-host) ---- */

enum arch_host_kind {
	ARCH_HOST_HARDWARE, /* the processor runs guest kernels */
	ARCH_HOST_NESTED,   /* so does this one, but it is a virtual machine's itself */
	ARCH_HOST_SOFTWARE, /* KVM interprets guest kernels */
};

struct arch_probe {
	enum arch_host_kind kind;
	double ns_per_insn; /* in the guest's kernel mode, time to leave the guest included */
	char missing
		[128]; /* instructions of a kernel that KVM fails at, "int3, xrstor"; "": none */
};

/* A KVM capability that is good to have. */
struct arch_extra {
	int cap, other;                  /* either will do; 0: no other */
	const char *key, *what, *advice; /* advice NULL: nothing is lost without */
};
const struct arch_extra *arch_host_extras(void); /* this architecture's; ended by a NULL key */

/* Find out by running instructions in a small VM; takes a fraction of a second. 0 or -errno. */
int arch_probe_host(int kvm_fd, size_t run_size, struct arch_probe *p, struct err *err);

#endif
