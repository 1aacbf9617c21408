/*
 * aml.h - writing ACPI Machine Language (ACPI 6.4 chapter 20)
 *
 * Each function appends one term; names are as in ASL. Blocks (scope, device, method, ...) are opened
 * and closed; a block's length, which AML puts before its contents in one to four bytes, is inserted at
 * the close.
 *
 *	aml_device(a, "COM1");
 *	aml_name_eisaid(a, "_HID", "PNP0501");
 *	aml_name_resources(a, "_CRS");
 *	aml_res_io(a, 0x3f8, 8);
 *	aml_res_irq_edge(a, 4, false);
 *	aml_close(a);			// the resources
 *	aml_close(a);			// the device
 *
 * Names are given as ASL writes them ("\\_SB.PCI0" is root, prefix and two segments). Errors stick: a
 * buffer too small sets @overflow and later calls do nothing. A malformed name or an unbalanced close
 * is our own bug.
 */
#ifndef VMM_X86_64_AML_H
#define VMM_X86_64_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AML_DEPTH_MAX 12

enum aml_block { AML_BLOCK_TERMS, AML_BLOCK_RESOURCES };

struct aml {
	uint8_t *buf;
	size_t len, room;
	bool overflow;
	struct {
		enum aml_block kind;
		size_t start; /* where the length goes */
	} block[AML_DEPTH_MAX];
	unsigned depth;
};

void aml_init(struct aml *a, uint8_t *buf, size_t room);

/* Blocks. */
void aml_scope(struct aml *a, const char *path);
void aml_device(struct aml *a, const char *name);
void aml_method(struct aml *a, const char *name, unsigned args, bool serialized);
void aml_if_and(struct aml *a, const char *left, uint64_t right); /* If (left & right) */
void aml_field(struct aml *a, const char *region, unsigned access_bits);
void aml_package(struct aml *a, unsigned elements);
void aml_name_package(struct aml *a, const char *name, unsigned elements);
void aml_name_resources(struct aml *a, const char *name); /* Name (x, ResourceTemplate () {...}) */
void aml_close(struct aml *a);

/* Data. */
void aml_int(struct aml *a, uint64_t v);
void aml_name_int(struct aml *a, const char *name, uint64_t v);
void aml_name_string(struct aml *a, const char *name, const char *s);
void aml_name_eisaid(struct aml *a, const char *name, const char *id); /* "PNP0501" */

/* Statements. */
enum aml_space { AML_SYSTEM_MEMORY = 0, AML_SYSTEM_IO = 1 };
void aml_region(struct aml *a, const char *name, enum aml_space space, uint64_t base, uint64_t len);
void aml_field_unit(struct aml *a, const char *name, unsigned bits);  /* within aml_field() */
void aml_store_name(struct aml *a, const char *from, unsigned local); /* Localx = from */
void aml_notify(struct aml *a, const char *device, uint64_t value);

/* Resource descriptors (6.4), within aml_name_resources(). */
void aml_res_io(struct aml *a, uint16_t port, uint8_t len);
void aml_res_irq_edge(struct aml *a, uint32_t gsi, bool shared);
void aml_res_mem32_fixed(struct aml *a, uint32_t base, uint32_t len);
void aml_res_bus(struct aml *a, uint16_t first, uint16_t last);
void aml_res_window_io(struct aml *a, uint16_t first, uint16_t last);
void aml_res_window_mem32(struct aml *a, uint32_t base, uint32_t len);
void aml_res_window_mem64(struct aml *a, uint64_t base, uint64_t len);

/* "PNP0501" as the compressed number ACPI stores. */
uint32_t aml_eisaid(const char *id);

#endif
