/*
 * layout.c - where RAM and windows lie
 *
 * RAM is split at 3 GiB so that everything below 4 GiB that is not RAM fits in one hole, the same in
 * every guest: a guest's size can differ between two starts without its devices moving.
 */
#include <inttypes.h>

#include "vmm/arch.h"
#include "vmm/x86_64/layout.h"

#define MIB (uint64_t)0x100000

/* Below this there is no place for boot structures, firmware tables and a kernel of any kind. */
#define RAM_MIN (2 * MIB)

const char arch_name[] = "x86_64";

int arch_layout_init(struct arch_layout *l, uint64_t ram, unsigned phys_bits, struct err *err)
{
	uint64_t limit = 1ull << (phys_bits > 52 ? 52 : phys_bits);
	uint64_t high, end;

	if (ram < RAM_MIN)
		return err_set(err, -EINVAL,
			       "memory of %" PRIu64 " KiB is too small: give at least %" PRIu64
			       " MiB",
			       ram / 1024, RAM_MIN / MIB);
	if (ram % 4096)
		return err_set(err, -EINVAL,
			       "memory of %" PRIu64 " bytes is not a multiple of 4096", ram);
	high = ram > X86_RAM_LOW_MAX ? ram - X86_RAM_LOW_MAX : 0;
	if (high >= limit || phys_bits < 36)
		goto too_big;
	end = X86_RAM_HIGH_BASE + high;
	end = (end + X86_PCI64_ALIGN - 1) & ~(X86_PCI64_ALIGN - 1);
	if (end + X86_PCI64_SIZE > limit)
		goto too_big;

	*l = (struct arch_layout){
		.ram_low = { 0, ram - high },
		.ram_high = { X86_RAM_HIGH_BASE, high },
		.ecam = { X86_ECAM_BASE, X86_ECAM_SIZE },
		.pci32 = { X86_PCI32_BASE, X86_PCI32_SIZE },
		.pci64 = { end, X86_PCI64_SIZE },
		.mmio = { X86_MMIO_BASE, ARCH_MMIO_SLOTS * X86_MMIO_STRIDE },
	};
	return 0;

too_big:
	return err_set(err, -EINVAL,
		       "memory of %" PRIu64
		       " MiB is too big: this host's processors address %u bits",
		       ram / MIB, phys_bits);
}

int arch_add_ram(struct gmem *m, const struct arch_layout *l, enum gmem_pages pages,
		 struct err *err)
{
	int r = gmem_add_ram(m, l->ram_low.base, l->ram_low.size, pages, err);

	if (!r && l->ram_high.size)
		r = gmem_add_ram(m, l->ram_high.base, l->ram_high.size, pages, err);
	return r;
}

void arch_mmio_slot(unsigned i, uint64_t *base, unsigned *gsi)
{
	static const uint8_t gsis[] = X86_MMIO_GSIS;

	*base = X86_MMIO_BASE + i * X86_MMIO_STRIDE;
	*gsi = gsis[i % sizeof(gsis)];
}
