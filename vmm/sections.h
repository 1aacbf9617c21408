/*
 * sections.h - the types of section in a snapshot's state and in a migration
 *
 * Order of a snapshot's state file, and of a migration with RAM in between:
 *
 *	HEADER MACHINE CPU                        vm_header_save(): looked at before anything is made
 *	{ RAM_ZERO | RAM_DATA }* ROUND_END ...    a migration only; a snapshot has its own file
 *	CLOCK CHIPS DEVICE* VCPU* END             vm_state_save(): the machine stands still
 *
 * Numbers are for ever. docs/state-format.md describes the payloads.
 */
#ifndef VMM_SECTIONS_H
#define VMM_SECTIONS_H

enum section_type {
	SECTION_HEADER = 1,     /* table "header" */
	SECTION_MACHINE = 2,    /* JSON: machine_desc.h */
	SECTION_CPU = 3,        /* table "cpuid": what the guest's first processor has seen */
	SECTION_RAM_ZERO = 16,  /* migrate */
	SECTION_RAM_DATA = 17,  /* migrate; bulk */
	SECTION_ROUND_END = 18, /* migrate */
	SECTION_CLOCK = 32,     /* table "clock" */
	SECTION_CHIPS = 33,     /* table "chips": the interrupt controllers and timer in KVM */
	SECTION_DEVICE = 34,    /* named as the device: type and parts, see vm_state.c */
	SECTION_VCPU = 35,      /* named by its number: table "vcpu" */
	SECTION_END = 36,       /* table "end" */
	SECTION_HELLO = 48,     /* migrate_wire.h, as the next two */
	SECTION_REPLY = 49,     /* target to source */
	SECTION_COMMIT = 50,    /* the machine is the target's now */
};

/* "a device's state", for messages; "section 99" is what the caller says of an unknown one: NULL. */
const char *section_name(unsigned type);

#endif
