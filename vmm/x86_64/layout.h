/*
 * layout.h - guest-physical addresses, I/O ports and interrupts of the x86_64 machine
 *
 *	0x0000'0000   RAM, up to 3 GiB; the first MiB is laid out in boot.h
 *	0xC000'0000   PCI window for 32-bit BARs
 *	0xD000'0000   virtio-mmio windows
 *	0xE000'0000   PCI configuration space (ECAM), bus 0
 *	0xFEC0'0000   I/O APIC
 *	0xFEE0'0000   local APICs
 *	0xFFFB'C000   pages KVM needs on Intel hosts for real mode
 *	0x1'0000'0000 RAM above 3 GiB
 *	above RAM     PCI window for 64-bit BARs
 */
#ifndef VMM_X86_64_LAYOUT_H
#define VMM_X86_64_LAYOUT_H

#define X86_RAM_LOW_MAX   0xC0000000ull
#define X86_RAM_HIGH_BASE 0x100000000ull

#define X86_PCI32_BASE 0xC0000000ull
#define X86_PCI32_SIZE 0x10000000ull

#define X86_MMIO_BASE   0xD0000000ull
#define X86_MMIO_STRIDE 0x1000ull

/* One bus: MCFG, host bridge and e820 all say bus 0 to 0. The rest up to 0xF000'0000 stays free. */
#define X86_ECAM_BASE 0xE0000000ull
#define X86_ECAM_SIZE 0x100000ull

#define X86_IOAPIC_BASE 0xFEC00000ull
#define X86_LAPIC_BASE  0xFEE00000ull

/* KVM_SET_IDENTITY_MAP_ADDR takes one page, KVM_SET_TSS_ADDR three (Documentation/virt/kvm/api). */
#define X86_IDENTITY_MAP 0xFFFBC000ull
#define X86_TSS          0xFFFBD000ull

/* 64-bit BARs: aligned so that one large page or MTRR covers whole pieces of it. */
#define X86_PCI64_ALIGN 0x40000000ull
#define X86_PCI64_SIZE  0x400000000ull

/* I/O ports. 0xCF8 to 0xCFF are the host bridge's. */
#define X86_PORT_COM1   0x3F8 /* 8 ports */
#define X86_PORT_I8042  0x60  /* and 0x64 */
#define X86_PORT_RTC    0x70  /* and 0x71 */
#define X86_PORT_PCI    0xCF8
#define X86_PORT_RESET  0xCF9  /* byte access: reset control */
#define X86_PORT_PANIC  0x505  /* devices/pvpanic.h; where QEMU has it */
#define X86_PORT_GED    0x600  /* devices/ged.h: events, sleep and reset registers */
#define X86_PORT_PCI_IO 0x1000 /* window for I/O BARs, to 0xFFFF; nothing of ours uses it */

/*
 * Interrupts of the I/O APIC's 24 pins. All of ours are edges, active high. GSI 0 is the PIT and
 * arrives on pin 2 (an override in the MADT says so). 1, 12: keyboard and mouse, 8: RTC, 13: FPU by
 * tradition. PCI INTx, which none of our functions uses, would be 16 to 19, shared with mmio.
 */
#define X86_GSI_COM1    4
#define X86_GSI_RTC     8
#define X86_GSI_GED     9
#define X86_GSI_INTX    16 /* four from here */
#define X86_IOAPIC_PINS 24

/* virtio-mmio takes these in turn; with more devices than that, edges are shared. */
#define X86_MMIO_GSIS                                                   \
	{                                                               \
		5, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23 \
	}

#endif
