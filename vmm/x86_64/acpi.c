/*
 * acpi.c - hardware-reduced ACPI tables (ACPI 6.4)
 *
 * There is no chipset: FADT says HW_REDUCED_ACPI, so the fixed power-management registers, the SCI and
 * the PM timer are absent, power-off is the sleep control register, reboot the reset register, and
 * events (power button, later hotplug) come over a generic event device.
 *
 * Linux' virtio_mmio driver finds its windows only by LNRO0005 objects (Debian builds it without its
 * command-line option), and its MCFG check wants the ECAM window reserved both in e820 and by a
 * PNP0C02 object.
 *
 * All tables lie in the BIOS area, where a guest that was not handed the root pointer searches too.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "devices/ged.h"
#include "devices/pvpanic.h"
#include "vmm/x86_64/acpi.h"
#include "vmm/x86_64/aml.h"
#include "vmm/x86_64/boot.h"
#include "vmm/x86_64/layout.h"

#define ROOM (BOOT_ACPI_END - BOOT_ACPI)

#define HEADER_SIZE 36
#define FADT_SIZE   276
#define RSDP_SIZE   36

#define FADT_WBINVD        (1u << 0)
#define FADT_PROC_C1       (1u << 2)
#define FADT_PWR_BUTTON    (1u << 4) /* not a fixed one: a control method's */
#define FADT_SLP_BUTTON    (1u << 5)
#define FADT_RESET_REG_SUP (1u << 10)
#define FADT_HEADLESS      (1u << 12)
#define FADT_HW_REDUCED    (1u << 20)

#define BOOT_ARCH_LEGACY (1u << 0) /* user-visible ISA devices: the serial port */
#define BOOT_ARCH_NO_VGA (1u << 2)
#define BOOT_ARCH_NO_RTC (1u << 5)

struct tables {
	uint8_t *buf; /* a copy of BOOT_ACPI to BOOT_ACPI_END */
	size_t len;
	uint64_t xsdt[8];
	unsigned xsdt_count;
};

static void le(uint8_t *p, uint64_t v, unsigned bytes)
{
	for (; bytes; bytes--, v >>= 8)
		*p++ = v;
}

static uint8_t checksum(const uint8_t *p, size_t len)
{
	uint8_t sum = 0;

	while (len--)
		sum += *p++;
	return -sum;
}

/* Room for a table of @len bytes, zeroed, 16-byte aligned. NULL when full. */
static uint8_t *table_new(struct tables *t, size_t len)
{
	size_t at = (t->len + 15) & ~15ul;

	if (at > ROOM || len > ROOM - at)
		return NULL;
	/* The gap, too: the guest gets all of it. */
	memset(t->buf + t->len, 0, at + len - t->len);
	t->len = at + len;
	return t->buf + at;
}

/* Fill the header, sum it up and list the table. */
static uint64_t table_done(struct tables *t, uint8_t *p, const char *signature, size_t len,
			   unsigned revision, bool list)
{
	uint64_t at = BOOT_ACPI + (p - t->buf);

	memcpy(p, signature, 4);
	le(p + 4, len, 4);
	p[8] = revision;
	memcpy(p + 10, "CORACL", 6);
	memcpy(p + 16, "CORACLVM", 8);
	le(p + 24, 1, 4);
	memcpy(p + 28, "CRCL", 4);
	le(p + 32, 1, 4);
	p[9] = 0;
	p[9] = checksum(p, len);
	if (list)
		t->xsdt[t->xsdt_count++] = at;
	return at;
}

/* ---- the differentiated system description table ---- */

static void dsdt_serial(struct aml *a)
{
	aml_device(a, "COM1");
	aml_name_eisaid(a, "_HID", "PNP0501");
	aml_name_int(a, "_UID", 1);
	aml_name_int(a, "_STA", 0xf);
	aml_name_resources(a, "_CRS");
	aml_res_io(a, X86_PORT_COM1, 8);
	aml_res_irq_edge(a, X86_GSI_COM1, false);
	aml_close(a);
	aml_close(a);
}

static void dsdt_rtc(struct aml *a)
{
	aml_device(a, "RTC");
	aml_name_eisaid(a, "_HID", "PNP0B00");
	aml_name_resources(a, "_CRS");
	aml_res_io(a, X86_PORT_RTC, 2);
	aml_res_irq_edge(a, X86_GSI_RTC, false);
	aml_close(a);
	aml_close(a);
}

static void dsdt_panic(struct aml *a)
{
	aml_device(a, "PEVT");
	aml_name_string(a, "_HID", PVPANIC_HID);
	aml_name_int(a, "_STA", 0xf);
	aml_name_resources(a, "_CRS");
	aml_res_io(a, X86_PORT_PANIC, PVPANIC_SIZE);
	aml_close(a);
	aml_close(a);
}

/* The power button and the event device whose _EVT tells that it was pressed. */
static void dsdt_events(struct aml *a)
{
	aml_device(a, "PWRB");
	aml_name_eisaid(a, "_HID", "PNP0C0C");
	aml_name_int(a, "_UID", 0);
	aml_close(a);

	aml_device(a, "GED");
	aml_name_string(a, "_HID", "ACPI0013");
	aml_name_int(a, "_UID", 0);
	aml_name_resources(a, "_CRS");
	aml_res_irq_edge(a, X86_GSI_GED, false);
	aml_close(a);
	aml_region(a, "EVTR", AML_SYSTEM_IO, X86_PORT_GED + GED_REG_EVENT, 4);
	aml_field(a, "EVTR", 32);
	aml_field_unit(a, "EVTS", 32);
	aml_close(a);
	aml_method(a, "_EVT", 1, true);
	aml_store_name(a, "EVTS", 0); /* the read clears it */
	aml_if_and(a, "Local0", GED_EVENT_POWER_BUTTON);
	aml_notify(a, "PWRB", 0x80);
	aml_close(a);
	aml_close(a);
	aml_close(a);
}

/*
 * INTx of all slots, swizzled over four GSIs. Our functions have MSI-X only; the table is there since
 * Linux complains of a bridge without one.
 */
static void dsdt_prt(struct aml *a)
{
	unsigned slot, pin;

	aml_name_package(a, "_PRT", 32 * 4);
	for (slot = 0; slot < 32; slot++)
		for (pin = 0; pin < 4; pin++) {
			aml_package(a, 4);
			aml_int(a, slot << 16 | 0xffff);
			aml_int(a, pin);
			aml_int(a, 0);
			aml_int(a, X86_GSI_INTX + (slot + pin) % 4);
			aml_close(a);
		}
	aml_close(a);
}

static void dsdt_pci(struct aml *a, const struct arch_layout *l)
{
	aml_device(a, "PCI0");
	aml_name_eisaid(a, "_HID", "PNP0A08");
	aml_name_eisaid(a, "_CID", "PNP0A03");
	aml_name_int(a, "_UID", 0);
	aml_name_int(a, "_SEG", 0);
	aml_name_int(a, "_BBN", 0);
	aml_name_int(a, "_CCA", 1);
	aml_name_resources(a, "_CRS");
	aml_res_bus(a, 0, (l->ecam.size >> 20) - 1);
	aml_res_io(a, X86_PORT_PCI, 8);
	aml_res_window_io(a, X86_PORT_PCI_IO, 0xffff);
	aml_res_window_mem32(a, l->pci32.base, l->pci32.size);
	aml_res_window_mem64(a, l->pci64.base, l->pci64.size);
	aml_close(a);
	dsdt_prt(a);
	aml_close(a);

	aml_device(a, "ECAM");
	aml_name_eisaid(a, "_HID", "PNP0C02");
	aml_name_int(a, "_UID", 0);
	aml_name_resources(a, "_CRS");
	aml_res_mem32_fixed(a, l->ecam.base, l->ecam.size);
	aml_close(a);
	aml_close(a);
}

static bool gsi_shared(const struct arch_machine *m, unsigned gsi)
{
	unsigned i, n = 0;

	for (i = 0; i < m->mmio_count; i++)
		n += m->mmio[i].gsi == gsi;
	return n > 1;
}

static void dsdt_mmio(struct aml *a, const struct arch_machine *m)
{
	char name[16];
	unsigned i;

	for (i = 0; i < m->mmio_count; i++) {
		snprintf(name, sizeof(name), "V%03u", i % 1000);
		aml_device(a, name);
		aml_name_string(a, "_HID", "LNRO0005");
		aml_name_int(a, "_UID", i);
		aml_name_int(a, "_CCA", 1);
		aml_name_resources(a, "_CRS");
		aml_res_mem32_fixed(a, m->mmio[i].base, X86_MMIO_STRIDE);
		aml_res_irq_edge(a, m->mmio[i].gsi, gsi_shared(m, m->mmio[i].gsi));
		aml_close(a);
		aml_close(a);
	}
}

static size_t dsdt(uint8_t *buf, size_t room, const struct arch_layout *l,
		   const struct arch_machine *m)
{
	struct aml a;

	aml_init(&a, buf, room);
	aml_scope(&a, "\\_SB");
	if (m->serial)
		dsdt_serial(&a);
	if (m->rtc)
		dsdt_rtc(&a);
	if (m->panic)
		dsdt_panic(&a);
	dsdt_events(&a);
	if (m->pci)
		dsdt_pci(&a, l);
	dsdt_mmio(&a, m);
	aml_close(&a);
	aml_name_package(&a, "\\_S5", 4);
	aml_int(&a, GED_SLEEP_TYPE_S5);
	aml_int(&a, 0);
	aml_int(&a, 0);
	aml_int(&a, 0);
	aml_close(&a);
	return a.overflow ? 0 : a.len;
}

/* ---- the static tables ---- */

/* Generic address structure: one byte in I/O space. */
static void port8(uint8_t *p, unsigned port)
{
	p[0] = 1;
	p[1] = 8;
	p[3] = 1;
	le(p + 4, port, 8);
}

static bool add_fadt(struct tables *t, const struct arch_machine *m, uint64_t dsdt_at)
{
	uint8_t *p = table_new(t, FADT_SIZE);
	unsigned boot = BOOT_ARCH_NO_VGA;

	if (!p)
		return false;
	if (m->serial)
		boot |= BOOT_ARCH_LEGACY;
	if (!m->rtc)
		boot |= BOOT_ARCH_NO_RTC;
	le(p + 40, dsdt_at, 4);
	le(p + 109, boot, 2);
	le(p + 112,
	   FADT_WBINVD | FADT_PROC_C1 | FADT_PWR_BUTTON | FADT_SLP_BUTTON | FADT_RESET_REG_SUP |
		   FADT_HEADLESS | FADT_HW_REDUCED,
	   4);
	port8(p + 116, X86_PORT_GED + GED_REG_RESET);
	p[128] = GED_RESET_VALUE;
	p[131] = 4; /* FADT 6.4 */
	le(p + 140, dsdt_at, 8);
	port8(p + 244, X86_PORT_GED + GED_REG_SLEEP_CONTROL);
	port8(p + 256, X86_PORT_GED + GED_REG_SLEEP_STATUS);
	memcpy(p + 268, "CORACLE", 8);
	table_done(t, p, "FACP", FADT_SIZE, 6, true);
	return true;
}

/*
 * Without MP tables (Linux is often built without) this is all a guest knows of processors and
 * interrupts. PCAT_COMPAT stays clear: a hardware-reduced guest shall not look for the PICs.
 */
static bool add_madt(struct tables *t, const struct arch_machine *m)
{
	size_t len = HEADER_SIZE + 8 + 8 * m->cpus + 12 + 10 + 6;
	uint8_t *p = table_new(t, len), *e;
	unsigned i;

	if (!p)
		return false;
	le(p + 36, X86_LAPIC_BASE, 4);
	e = p + 44;
	for (i = 0; i < m->cpus; i++, e += 8) { /* local APIC */
		e[0] = 0;
		e[1] = 8;
		e[2] = i;
		e[3] = i;
		le(e + 4, 1, 4); /* enabled */
	}
	e[0] = 1; /* I/O APIC, from GSI 0 */
	e[1] = 12;
	le(e + 4, X86_IOAPIC_BASE, 4);
	e += 12;
	e[0] = 2; /* interrupt source override: the PIT's ISA 0 is GSI 2, bus defaults */
	e[1] = 10;
	le(e + 4, 2, 4);
	e += 10;
	e[0] = 4; /* NMI on LINT1 of all processors */
	e[1] = 6;
	e[2] = 0xff;
	e[5] = 1;
	table_done(t, p, "APIC", len, 5, true);
	return true;
}

static bool add_mcfg(struct tables *t, const struct arch_layout *l)
{
	size_t len = HEADER_SIZE + 8 + 16;
	uint8_t *p = table_new(t, len);

	if (!p)
		return false;
	le(p + 44, l->ecam.base, 8);
	p[55] = (l->ecam.size >> 20) - 1; /* last bus */
	table_done(t, p, "MCFG", len, 1, true);
	return true;
}

static bool add_root(struct tables *t)
{
	size_t len = HEADER_SIZE + 8 * t->xsdt_count;
	uint8_t *p = table_new(t, len), *rsdp = t->buf;
	unsigned i;

	if (!p)
		return false;
	for (i = 0; i < t->xsdt_count; i++)
		le(p + HEADER_SIZE + 8 * i, t->xsdt[i], 8);

	memcpy(rsdp, "RSD PTR ", 8);
	memcpy(rsdp + 9, "CORACL", 6);
	rsdp[15] = 2; /* ACPI 2.0 and later */
	le(rsdp + 20, RSDP_SIZE, 4);
	le(rsdp + 24, table_done(t, p, "XSDT", len, 1, false), 8);
	rsdp[8] = checksum(rsdp, 20);
	rsdp[32] = checksum(rsdp, RSDP_SIZE);
	return true;
}

static bool build(struct tables *t, const struct arch_layout *l, const struct arch_machine *m)
{
	uint8_t *p;
	size_t n;
	uint64_t at;

	table_new(t, RSDP_SIZE); /* at the very start */
	p = table_new(t, HEADER_SIZE);
	n = dsdt(p + HEADER_SIZE, ROOM - t->len, l, m);
	if (!n)
		return false;
	t->len += n;
	at = table_done(t, p, "DSDT", HEADER_SIZE + n, 6, false);
	return add_fadt(t, m, at) && add_madt(t, m) && (!m->pci || add_mcfg(t, l)) && add_root(t);
}

int acpi_build(struct gmem *m, const struct arch_layout *l, const struct arch_machine *machine,
	       gpa_t *rsdp, struct err *err)
{
	cleanup_free uint8_t *buf = malloc(ROOM); /* of which the tables take a small part */
	struct tables t = { .buf = buf };
	int r;

	if (!buf)
		return err_set_sys(err, -ENOMEM, "cannot make firmware tables");
	if (machine->cpus > ARCH_CPUS_MAX || machine->mmio_count > ARCH_MMIO_SLOTS ||
	    !build(&t, l, machine))
		return err_set(
			err, -ENOSPC,
			"%u processors and %u virtio-mmio devices do not fit in the firmware "
			"tables",
			machine->cpus, machine->mmio_count);
	r = gmem_write(m, BOOT_ACPI, buf, t.len);
	if (r)
		return err_set_sys(err, r, "cannot write firmware tables");
	*rsdp = BOOT_ACPI;
	return 0;
}
