/*
 * exit_status.h - how `coracle` ends, in one place
 *
 * coracle(1) describes the same list; scripts and the pod shim read it. A guest's test device
 * (port 0xF4, --testdev on) ends the machine with (value << 1 | 1) & 0xff, as isa-debug-exit does: odd,
 * so never EXIT_OK, but it may coincide with an odd one below; so it is off by default.
 *
 * `coracle ctl` ends with EXIT_OK when the machine has done what it was told, EXIT_HOST when there is
 * no such machine, it gave no answer in time or refused, and EXIT_USAGE.
 */
#ifndef VMM_EXIT_STATUS_H
#define VMM_EXIT_STATUS_H

enum exit_status {
	EXIT_OK = 0,          /* the guest powered off, or the user quit */
	EXIT_HOST = 1,        /* could not start, or the host failed while running */
	EXIT_USAGE = 2,       /* command line or configuration */
	EXIT_KVM = 3,         /* KVM could not go on: internal error, failed entry */
	EXIT_GUEST_RESET = 4, /* the guest asked for a reset and --no-reboot was given */
	EXIT_TINY_GUESTS = 5, /* check-host: machines run here, but not Linux (1: none at all) */
	EXIT_GUEST_PANIC = 6, /* the guest's kernel panicked (--on-panic exit) */
	EXIT_SIGNAL = 128,    /* + N: killed by signal N, as a shell reports it */
};

#endif
