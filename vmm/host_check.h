/*
 * host_check.h - what this host offers to virtual machines, for `coracle check-host`
 *
 * Every row is found out by trying, never by comparing kernel versions.
 */
#ifndef VMM_HOST_CHECK_H
#define VMM_HOST_CHECK_H

#include <stdbool.h>

#include "vmm/arch.h"

enum host_has { HOST_NO, HOST_PARTLY, HOST_YES };

struct host_row {
	const char *key; /* for machines: "vhost-net"; lives as long as the program */
	enum host_has has;
	char detail[256];
	const char *advice; /* what it is for and what to do; NULL when there is nothing to do */
};

#define HOST_ROWS_MAX 40

struct host_report {
	struct host_row rows[HOST_ROWS_MAX];
	unsigned count;

	/* kvm.* */
	bool usable;      /* opened, and nothing needed is missing */
	bool probed;      /* @probe was filled */
	bool boots_linux; /* @probed, and no instruction is missing */
	struct arch_probe probe;
	int api_version; /* 0: unknown */
	unsigned max_vcpus;
};

/* Add a row. */
void host_row(struct host_report *r, const char *key, enum host_has has, const char *advice,
	      const char *fmt, ...) __attribute__((format(printf, 5, 6)));

void host_check_kvm(struct host_report *r);    /* the kvm.* rows and fields */
void host_check_kernel(struct host_report *r); /* everything else */

const char *host_kind_name(enum arch_host_kind kind); /* "hardware", "nested", "software" */

#endif
