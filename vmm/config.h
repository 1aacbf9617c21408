/*
 * config.h - what `coracle run` was asked to do
 *
 * The command line and --config JSON fill this one structure from one table of keys
 * (config_keys.c). The same table makes --help, the man page's option list, the bash completion and
 * the JSON schema, so a key exists everywhere or nowhere. Values are checked one by one while they
 * are read; what concerns several of them is config_check().
 *
 * Nothing here touches the host: no path is opened, no tap looked at.
 */
#ifndef VMM_CONFIG_H
#define VMM_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "base/guest_memory.h"
#include "base/log.h"

#define CONFIG_DISKS_MAX 30
#define CONFIG_NETS_MAX  30
#define CONFIG_CPUS_MAX  64
#define CONFIG_PAIRS_MAX 32         /* of a NIC's queues */
#define CONFIG_ID_MAX    63         /* bytes without the NUL; ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$ */
#define CONFIG_JSON_MAX  (1u << 20) /* bytes of a configuration file */

enum config_kernel_type {
	CONFIG_KERNEL_AUTO, /* look at the file */
	CONFIG_KERNEL_BZIMAGE,
	CONFIG_KERNEL_PVH,
	CONFIG_KERNEL_MULTIBOOT,
	CONFIG_KERNEL_FLAT16, /* entered in real mode, at --load-address */
	CONFIG_KERNEL_FLAT32,
	CONFIG_KERNEL_FLAT64,
};

enum config_cpu { CONFIG_CPU_HOST, CONFIG_CPU_V2, CONFIG_CPU_V3, CONFIG_CPU_V4 };
enum config_transport { CONFIG_TRANSPORT_PCI, CONFIG_TRANSPORT_MMIO };
enum config_aio { CONFIG_AIO_AUTO, CONFIG_AIO_IO_URING, CONFIG_AIO_THREADS };
enum config_cache { CONFIG_CACHE_WRITEBACK, CONFIG_CACHE_WRITETHROUGH };
enum config_format { CONFIG_FORMAT_RAW };
enum config_panic {
	CONFIG_PANIC_EXIT,
	CONFIG_PANIC_RESET,
	CONFIG_PANIC_PAUSE,
	CONFIG_PANIC_IGNORE
};
extern const char *const config_panic_words[]; /* by that enum, as a user writes them */
enum config_vhost { CONFIG_VHOST_AUTO, CONFIG_VHOST_ON, CONFIG_VHOST_OFF };
enum config_io_threads { CONFIG_IO_THREADS_PER_DEVICE, CONFIG_IO_THREADS_SHARED };

/* Strings belong to the configuration; NULL when not given. */
struct config_disk {
	char *id;     /* "disk0".. by default; never NULL after config_finish() */
	char *path;   /* never NULL after config_check() */
	char *serial; /* at most 20 bytes */
	bool read_only;
	bool direct; /* O_DIRECT */
	bool discard;
	enum config_aio aio;
	enum config_cache cache;
	enum config_format format;
	unsigned queues;     /* 1..64 */
	unsigned queue_size; /* power of two */
};

struct config_mac {
	uint8_t addr[6];
	bool set; /* false: machine.c derives it from the id (net_mac_default) */
};

/* Inherited descriptors, one a pair of queues. */
struct config_fds {
	unsigned count; /* 0: none given */
	int fd[CONFIG_PAIRS_MAX];
};

struct config_net {
	char *id;             /* "net0".. by default; never NULL after config_finish() */
	char *tap;            /* interface name; NULL when fd is given */
	struct config_fds fd; /* of a tap */
	struct config_mac mac;
	unsigned mtu;    /* 0: as the tap has it */
	char *addr;      /* host side, "192.0.2.1/24" or IPv6; NULL: leave alone */
	bool create;     /* make the tap when it is not there */
	unsigned queues; /* pairs, 1..32 */
	unsigned queue_size;
	enum config_vhost vhost;
	struct config_fds vhostfd;
};

struct config_rng {
	bool enabled;
	uint64_t rate;   /* bytes per period, 0: unlimited */
	unsigned period; /* milliseconds */
};

struct config {
	char *id; /* NULL: the VM has no name */

	char *kernel;
	char *initrd;
	char *cmdline; /* NULL: empty; a second --cmdline replaces the first */
	enum config_kernel_type kernel_type;
	uint64_t load_address; /* CONFIG_LOAD_ADDRESS_AUTO, see config_load_address() */

	unsigned cpus;
	enum config_cpu cpu;
	uint64_t memory; /* bytes, multiple of 4 KiB (2 MiB with GMEM_PAGES_HUGE) */
	enum gmem_pages hugepages;
	enum config_transport transport;

	struct config_disk disks[CONFIG_DISKS_MAX];
	unsigned ndisks;
	struct config_net nets[CONFIG_NETS_MAX];
	unsigned nnets;
	struct config_rng rng;
	char *serial;  /* what console_new() takes: stdio, null, pty, file:PATH, unix:PATH */
	char *console; /* the same for the virtio console; NULL: the machine has none */

	char *incoming; /* tcp:HOST:PORT, unix:PATH: the machine comes by migration; NULL: it boots */
	char *control;              /* socket path; NULL: none was asked for */
	bool no_reboot;             /* exit with EXIT_GUEST_RESET instead of starting again */
	enum config_panic on_panic; /* the guest's kernel says that it has panicked */
	bool paused;                /* wait for `resume` on the control socket */
	bool testdev;               /* port 0xF4 and the other kvm-unit-tests devices */
	bool sandbox;
	enum config_io_threads io_threads;
	enum log_level log_level;

	/* The command line only. */
	bool check; /* print the effective configuration as JSON and exit */
	bool help;  /* print the options and exit; nothing else was checked */
};

#define CONFIG_LOAD_ADDRESS_AUTO UINT64_MAX

/* Where a flat image goes: as given, or 0x7c00 for flat16 and 1 MiB for the others. */
uint64_t config_load_address(const struct config *c);

void config_init(struct config *c); /* the defaults */
void config_fini(struct config *c); /* frees what it owns; @c may then be init again */

/*
 * All of it for a command: @argv[0] is "run" and skipped. A --config file is read first, wherever it
 * stands; options then override it, and --disk and --net add to its lists. Ends with config_finish()
 * and config_check() unless --help was seen. 0 or -errno (-EINVAL for anything the user can mend in
 * the command line; @c is then still to be config_fini'd).
 */
int config_from_args(struct config *c, int argc, char **argv, struct err *err);

/* One key as the command line has it: "memory" "1G", "disk" "a.img,queues=2". */
int config_set(struct config *c, const char *key, const char *value, struct err *err);

/* Add a JSON object with the same keys. @text need not end in NUL. */
int config_from_json(struct config *c, const char *text, size_t len, struct err *err);
int config_from_file(struct config *c, const char *path, struct err *err);

/* Give every disk and NIC an id, and a NIC a pair of queues for each of its descriptors. -ENOMEM. */
int config_finish(struct config *c, struct err *err);

/* What concerns several keys: kernel given, ids, paths, MACs and taps used once, ... -EINVAL. */
int config_check(const struct config *c, struct err *err);

/* Everything, defaults too, as JSON that config_from_json() takes. malloc'd; NULL: no memory. */
char *config_to_json(const struct config *c);

/* ---- made from the table ---- */

struct command;

void config_print_help(FILE *f);   /* coracle run --help */
void config_print_man(FILE *f);    /* the options as mdoc(7), for docs/coracle.1.in */
void config_print_schema(FILE *f); /* JSON schema, draft 2020-12: docs/config.schema.json */
/* A bash script completing @commands (commands.h, ended by a NULL name) and these options. */
void config_print_completion(FILE *f, const struct command *commands);

#endif
