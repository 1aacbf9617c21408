/*
 * config_keys.c - every key of the configuration, once
 *
 * Defaults are text and go through the same setter as the user's values, so a default out of range
 * cannot hide. The first key of a group is the one whose name may be left out: "--disk a.img".
 */
#include "vmm/config_keys.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <net/if.h>
#include <string.h>
#include <sys/un.h>

#include "virtio/queue.h"
#include "vmm/peer.h"

#define FIELD(s, f) .offset = offsetof(struct s, f), .size = sizeof(((struct s *)0)->f)
#define MIB         (1ull << 20)
#define TIB         (1ull << 40)

/* Indices are the enums of config.h, base/guest_memory.h and base/log.h. */
static const char *const words_kernel_type[] = { "auto",   "bzimage", "pvh",    "multiboot",
						 "flat16", "flat32",  "flat64", NULL };
static const char *const words_cpu[] = { "host", "x86-64-v2", "x86-64-v3", "x86-64-v4", NULL };
static const char *const words_hugepages[] = { "transparent", "off", "2M", NULL };
static const char *const words_transport[] = { "pci", "mmio", NULL };
static const char *const words_aio[] = { "auto", "io_uring", "threads", NULL };
static const char *const words_cache[] = { "writeback", "writethrough", NULL };
static const char *const words_format[] = { "raw", NULL };
const char *const config_panic_words[] = { "exit", "reset", "pause", "ignore", NULL };
static const char *const words_vhost[] = { "auto", "on", "off", NULL };
static const char *const words_io_threads[] = { "per-device", "shared", NULL };
static const char *const words_log_level[] = { "error", "warn", "info", "debug", NULL };

/* Only for the completion. */
static const char *const words_console[] = { "stdio", "null", "pty", "file:", "unix:", NULL };

_Static_assert(GMEM_PAGES_TRANSPARENT == 0 && GMEM_PAGES_SMALL == 1 && GMEM_PAGES_HUGE == 2,
	       "words_hugepages has the order of enum gmem_pages");
_Static_assert(LOG_ERR == 0 && LOG_WARN == 1 && LOG_INFO == 2 && LOG_DEBUG == 3,
	       "words_log_level has the order of enum log_level");

static bool is_id(const char *s)
{
	size_t n = strlen(s);

	if (n == 0 || n > CONFIG_ID_MAX || !isalnum((unsigned char)s[0]))
		return false;
	for (; *s; s++)
		if (!isalnum((unsigned char)*s) && !strchr("._-", *s))
			return false;
	return true;
}

static bool is_text(const char *s)
{
	return true;
}

static bool is_path(const char *s)
{
	return *s != '\0';
}

static bool is_socket_path(const char *s)
{
	return *s != '\0' && strlen(s) < sizeof(((struct sockaddr_un *)0)->sun_path);
}

/* net/core/dev.c, dev_valid_name(). */
static bool is_ifname(const char *s)
{
	size_t n = strlen(s);

	if (n == 0 || n >= IFNAMSIZ || !strcmp(s, ".") || !strcmp(s, ".."))
		return false;
	for (; *s; s++)
		if (*s == '/' || *s == ':' || *s == '%' || !isgraph((unsigned char)*s))
			return false;
	return true;
}

/* virtio 1.2, 5.2.6: GET_ID returns 20 bytes. */
static bool is_disk_serial(const char *s)
{
	size_t n = strlen(s);

	if (n == 0 || n > 20)
		return false;
	for (; *s; s++)
		if (!isprint((unsigned char)*s))
			return false;
	return true;
}

static bool is_prefix_length(const char *s, unsigned max)
{
	unsigned v = 0;

	if (!*s || strlen(s) > 3)
		return false;
	for (; *s; s++) {
		if (!isdigit((unsigned char)*s))
			return false;
		v = v * 10 + (unsigned)(*s - '0');
	}
	return v <= max;
}

static bool is_address(const char *s)
{
	char ip[INET6_ADDRSTRLEN];
	const char *slash = strchr(s, '/');
	unsigned char bin[16];
	size_t n;

	if (!slash || (n = (size_t)(slash - s)) >= sizeof(ip))
		return false;
	memcpy(ip, s, n);
	ip[n] = '\0';
	if (inet_pton(AF_INET, ip, bin) == 1)
		return is_prefix_length(slash + 1, 32);
	return inet_pton(AF_INET6, ip, bin) == 1 && is_prefix_length(slash + 1, 128);
}

static bool is_console(const char *s)
{
	if (!strncmp(s, "file:", 5))
		return is_path(s + 5);
	if (!strncmp(s, "unix:", 5))
		return is_socket_path(s + 5);
	return !strcmp(s, "stdio") || !strcmp(s, "null") || !strcmp(s, "pty");
}

static bool is_peer(const char *s)
{
	struct peer_address a;

	return !peer_parse(&a, s, NULL);
}

static const struct key_shape shape_id = {
	is_id, "1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit",
	"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
};
static const struct key_shape shape_text = { is_text, "text", "" };
static const struct key_shape shape_path = { is_path, "the path of a file", NULL };
static const struct key_shape shape_socket = { is_socket_path, "a path of 1 to 107 bytes",
					       "^.{1,107}$" };
static const struct key_shape shape_ifname = {
	is_ifname, "an interface name: 1 to 15 characters without '/', ':', '%' or space",
	"^[^/:%\\s]{1,15}$"
};
static const struct key_shape shape_disk_serial = { is_disk_serial,
						    "1 to 20 printable ASCII characters",
						    "^[ -~]{1,20}$" };
static const struct key_shape shape_address = {
	is_address, "an address with its prefix length, as 192.0.2.1/24 or 2001:db8::1/64",
	"^[0-9A-Fa-f.:]+/[0-9]{1,3}$"
};
static const struct key_shape shape_peer = { is_peer, "tcp:HOST:PORT or unix:PATH",
					     "^(tcp:.+:[0-9]{1,5}|unix:.{1,107})$" };
static const struct key_shape shape_console = { is_console,
						"stdio, null, pty, file:PATH or unix:PATH",
						"^(stdio|null|pty|file:.+|unix:.{1,107})$" };

static const struct config_key disk_keys[] = {
	{ .name = "path",
	  .type = KEY_FILE,
	  FIELD(config_disk, path),
	  .shape = &shape_path,
	  .required = true,
	  .metavar = "FILE",
	  .help = "raw image or block device",
	  .more = "It is locked while the machine runs: a disk in use by another one is refused." },
	{ .name = "id",
	  .type = KEY_STRING,
	  FIELD(config_disk, id),
	  .shape = &shape_id,
	  .metavar = "NAME",
	  .help = "name in messages and on the control socket",
	  .more = "By default disk0, disk1 and so on, by position." },
	{ .name = "read-only",
	  .type = KEY_BOOL,
	  FIELD(config_disk, read_only),
	  .def = "off",
	  .help = "refuse the guest's writes",
	  .more = "Several machines may share a disk that all of them only read." },
	{ .name = "direct",
	  .type = KEY_BOOL,
	  FIELD(config_disk, direct),
	  .def = "off",
	  .help = "bypass the host's page cache (O_DIRECT)" },
	{ .name = "serial",
	  .type = KEY_STRING,
	  FIELD(config_disk, serial),
	  .shape = &shape_disk_serial,
	  .metavar = "TEXT",
	  .help = "serial number, /dev/disk/by-id/virtio-TEXT in the guest" },
	{ .name = "format",
	  .type = KEY_WORD,
	  FIELD(config_disk, format),
	  .words = words_format,
	  .def = "raw",
	  .help = "what the file is",
	  .more = "It is never guessed: a guest could write another format's header to its disk." },
	{ .name = "queues",
	  .type = KEY_UINT,
	  FIELD(config_disk, queues),
	  .min = 1,
	  .max = 64,
	  .def = "1",
	  .metavar = "N",
	  .help = "request queues" },
	{ .name = "queue-size",
	  .type = KEY_POW2,
	  FIELD(config_disk, queue_size),
	  .min = 2,
	  .max = VIRTQ_SIZE_MAX,
	  .def = "256",
	  .metavar = "N",
	  .help = "descriptors per queue" },
	{ .name = "aio",
	  .type = KEY_WORD,
	  FIELD(config_disk, aio),
	  .words = words_aio,
	  .def = "auto",
	  .help = "how requests reach the host",
	  .more = "auto takes io_uring and falls back to a pool of threads where the host refuses "
		  "it." },
	{ .name = "discard",
	  .type = KEY_BOOL,
	  FIELD(config_disk, discard),
	  .def = "on",
	  .help = "give discarded blocks back to the host" },
	{ .name = "cache",
	  .type = KEY_WORD,
	  FIELD(config_disk, cache),
	  .words = words_cache,
	  .def = "writeback",
	  .help = "when a write counts as done",
	  .more = "With writethrough every write is on stable storage before the guest hears of "
		  "it; "
		  "with writeback the guest's flushes see to that." },
	{ .name = NULL },
};

static const struct config_key net_keys[] = {
	{ .name = "tap",
	  .type = KEY_STRING,
	  FIELD(config_net, tap),
	  .shape = &shape_ifname,
	  .metavar = "NAME",
	  .help = "tap interface on the host" },
	{ .name = "id",
	  .type = KEY_STRING,
	  FIELD(config_net, id),
	  .shape = &shape_id,
	  .metavar = "NAME",
	  .help = "name in messages and on the control socket",
	  .more = "By default net0, net1 and so on, by position." },
	{ .name = "fd",
	  .type = KEY_FDS,
	  FIELD(config_net, fd),
	  .min = 0,
	  .max = 1048575,
	  .metavar = "N[:N..]",
	  .help = "open tap descriptor inherited from the caller, instead of tap",
	  .more = "The tap must be open with IFF_NO_PI and IFF_VNET_HDR. Several, as 5:6:7, are "
		  "the queues of one tap made with IFF_MULTI_QUEUE, and each is a pair of queues "
		  "of the NIC." },
	{ .name = "mac",
	  .type = KEY_MAC,
	  FIELD(config_net, mac),
	  .metavar = "ADDRESS",
	  .help = "the guest's MAC address",
	  .more = "By default a locally administered address made from the NIC's id and the "
		  "machine's." },
	{ .name = "mtu",
	  .type = KEY_UINT,
	  FIELD(config_net, mtu),
	  .min = 68,
	  .max = 65521,
	  .metavar = "BYTES",
	  .help = "MTU told to the guest and set on a tap made here",
	  .more = "By default the tap's." },
	{ .name = "addr",
	  .type = KEY_STRING,
	  FIELD(config_net, addr),
	  .shape = &shape_address,
	  .metavar = "ADDRESS/LEN",
	  .help = "address to give the tap on the host's side" },
	{ .name = "create",
	  .type = KEY_BOOL,
	  FIELD(config_net, create),
	  .def = "on",
	  .help = "make the tap if it does not exist, and remove it at the end" },
	{ .name = "queues",
	  .type = KEY_UINT,
	  FIELD(config_net, queues),
	  .min = 1,
	  .max = CONFIG_PAIRS_MAX,
	  .def = "1",
	  .metavar = "N",
	  .help = "pairs of receive and transmit queues",
	  .more = "With fd there is one for each descriptor." },
	{ .name = "queue-size",
	  .type = KEY_POW2,
	  FIELD(config_net, queue_size),
	  .min = 2,
	  .max = VIRTQ_SIZE_MAX,
	  .def = "256",
	  .metavar = "N",
	  .help = "descriptors per queue" },
	{ .name = "vhost",
	  .type = KEY_WORD,
	  FIELD(config_net, vhost),
	  .words = words_vhost,
	  .def = "auto",
	  .help = "have the host's kernel move the frames (vhost-net)",
	  .more = "auto does where /dev/vhost-net can be opened. The guest sees no difference, and "
		  "a machine may move between hosts with it and without." },
	{ .name = "vhostfd",
	  .type = KEY_FDS,
	  FIELD(config_net, vhostfd),
	  .min = 0,
	  .max = 1048575,
	  .metavar = "N[:N..]",
	  .help = "open /dev/vhost-net inherited from the caller, one a pair of queues" },
	{ .name = NULL },
};

static const struct config_key rng_keys[] = {
	{ .name = "enabled",
	  .type = KEY_BOOL,
	  FIELD(config_rng, enabled),
	  .def = "on",
	  .help = "have the device" },
	{ .name = "rate",
	  .type = KEY_SIZE,
	  FIELD(config_rng, rate),
	  .min = 1,
	  .max = TIB,
	  .metavar = "BYTES",
	  .help = "at most so many bytes per period",
	  .more = "By default there is no limit." },
	{ .name = "period",
	  .type = KEY_UINT,
	  FIELD(config_rng, period),
	  .min = 1,
	  .max = 3600000,
	  .def = "1000",
	  .metavar = "MS",
	  .help = "length of the rate's period in milliseconds" },
	{ .name = NULL },
};

const struct config_key config_keys[] = {
	{ .section = "What to start",
	  .name = "kernel",
	  .type = KEY_FILE,
	  FIELD(config, kernel),
	  .shape = &shape_path,
	  .required = true,
	  .metavar = "FILE",
	  .help = "kernel to start" },
	{ .name = "initrd",
	  .type = KEY_FILE,
	  FIELD(config, initrd),
	  .shape = &shape_path,
	  .metavar = "FILE",
	  .help = "initial RAM disk; a multiboot kernel's module" },
	{ .name = "cmdline",
	  .type = KEY_STRING,
	  FIELD(config, cmdline),
	  .shape = &shape_text,
	  .metavar = "TEXT",
	  .help = "kernel command line",
	  .more = "Options are not gathered: the last one counts." },
	{ .name = "kernel-type",
	  .type = KEY_WORD,
	  FIELD(config, kernel_type),
	  .words = words_kernel_type,
	  .def = "auto",
	  .help = "what the kernel file is",
	  .more = "auto looks at the file and knows a Linux bzImage, an ELF file with the PVH note "
		  "and a multiboot 1 image. Flat images have no header, so they must be named: "
		  "flat16 is entered in real mode, flat32 in protected mode without paging, flat64 "
		  "in long mode with memory mapped one to one." },
	{ .name = "load-address",
	  .type = KEY_ADDR,
	  FIELD(config, load_address),
	  .min = 0,
	  .max = (1ull << 52) - 1,
	  .metavar = "ADDRESS",
	  .help = "where a flat image is put and entered",
	  .more = "By default 0x7c00 for flat16 and 0x100000 for the others." },

	{ .section = "Machine",
	  .name = "id",
	  .type = KEY_STRING,
	  FIELD(config, id),
	  .shape = &shape_id,
	  .metavar = "NAME",
	  .help = "the machine's name, for coracle ctl NAME" },
	{ .name = "cpus",
	  .type = KEY_UINT,
	  FIELD(config, cpus),
	  .min = 1,
	  .max = CONFIG_CPUS_MAX,
	  .def = "1",
	  .metavar = "N",
	  .help = "virtual CPUs" },
	{ .name = "cpu",
	  .type = KEY_WORD,
	  FIELD(config, cpu),
	  .words = words_cpu,
	  .def = "host",
	  .help = "CPU features the guest sees",
	  .more = "host shows what this host and KVM can do. The others are the x86-64 psABI's "
		  "levels, the same on every host that has them." },
	{ .name = "memory",
	  .type = KEY_SIZE,
	  FIELD(config, memory),
	  .min = 2 * MIB,
	  .max = 16 * TIB,
	  .def = "512M",
	  .metavar = "SIZE",
	  .help = "guest RAM",
	  .more = "It takes no host memory until the guest touches it, except with --hugepages "
		  "2M." },
	{ .name = "hugepages",
	  .type = KEY_WORD,
	  FIELD(config, hugepages),
	  .words = words_hugepages,
	  .def = "transparent",
	  .help = "page size that backs guest RAM",
	  .more = "2M takes pages of the host's hugetlb pool and fails if it has too few." },
	{ .name = "transport",
	  .type = KEY_WORD,
	  FIELD(config, transport),
	  .words = words_transport,
	  .def = "pci",
	  .help = "how virtio devices are attached" },

	{ .section = "Devices",
	  .name = "disk",
	  .type = KEY_GROUP,
	  FIELD(config, disks),
	  .sub = disk_keys,
	  .count_offset = offsetof(struct config, ndisks),
	  .stride = sizeof(struct config_disk),
	  .count_max = CONFIG_DISKS_MAX,
	  .metavar = "FILE[,KEY=VALUE]...",
	  .help = "add a virtio block device" },
	{ .name = "net",
	  .type = KEY_GROUP,
	  FIELD(config, nets),
	  .sub = net_keys,
	  .count_offset = offsetof(struct config, nnets),
	  .stride = sizeof(struct config_net),
	  .count_max = CONFIG_NETS_MAX,
	  .metavar = "TAP[,KEY=VALUE]...",
	  .help = "add a virtio network device" },
	{ .name = "rng",
	  .type = KEY_GROUP,
	  FIELD(config, rng),
	  .sub = rng_keys,
	  .metavar = "on|off[,KEY=VALUE]...",
	  .help = "virtio entropy device, on by default" },
	{ .name = "serial",
	  .type = KEY_STRING,
	  FIELD(config, serial),
	  .shape = &shape_console,
	  .words = words_console,
	  .def = "stdio",
	  .metavar = "stdio|null|pty|file:PATH|unix:PATH",
	  .help = "where the first serial port goes",
	  .more = "file: appends; unix: listens for one client at a time." },
	{ .name = "console",
	  .type = KEY_STRING,
	  FIELD(config, console),
	  .shape = &shape_console,
	  .words = words_console,
	  .metavar = "stdio|null|pty|file:PATH|unix:PATH",
	  .help = "have a virtio console, and where it goes",
	  .more = "In Linux it is hvc0. Unlike a serial port it has a size: that of the terminal "
		  "on stdio, else what coracle ctl ... console-resize says. Only one of --serial "
		  "and --console can be stdio: give --serial null beside --console stdio." },
	{ .name = "testdev",
	  .type = KEY_BOOL,
	  FIELD(config, testdev),
	  .def = "off",
	  .help = "test devices that kvm-unit-tests want",
	  .more = "A guest can then end the machine with an exit status of its own." },

	{ .section = "Running",
	  .name = "config",
	  .type = KEY_CONFIG,
	  .cli_only = true,
	  .metavar = "FILE",
	  .help = "read these keys from a JSON file first",
	  .more = "Other options override what the file says; --disk and --net add to its lists." },
	{ .name = "incoming",
	  .type = KEY_STRING,
	  .cli_only = true,
	  FIELD(config, incoming),
	  .shape = &shape_peer,
	  .metavar = "tcp:HOST:PORT|unix:PATH",
	  .help = "wait there for a machine that migrates here, instead of booting one",
	  .more = "Its memory, processors and devices come from where it ran. Only what is this "
		  "host's can "
		  "be given beside it: disks and NICs by their id (--disk id=root,path=...), and "
		  "the "
		  "options that concern this process." },
	{ .name = "control",
	  .type = KEY_FILE,
	  FIELD(config, control),
	  .shape = &shape_socket,
	  .metavar = "PATH",
	  .help = "control socket, for coracle ctl" },
	{ .name = "paused",
	  .type = KEY_FLAG,
	  FIELD(config, paused),
	  .def = "off",
	  .help = "wait for `coracle ctl ... resume` before the first instruction" },
	{ .name = "no-reboot",
	  .type = KEY_FLAG,
	  FIELD(config, no_reboot),
	  .def = "off",
	  .help = "exit with status 4 when the guest resets instead of starting again" },
	{ .name = "on-panic",
	  .type = KEY_WORD,
	  FIELD(config, on_panic),
	  .words = config_panic_words,
	  .def = "exit",
	  .help = "what follows when the guest's kernel panics",
	  .more = "exit ends the machine with status 6; reset starts it again; pause keeps it for "
		  "a "
		  "look; ignore only tells of it. The guest tells by the device pvpanic, whose "
		  "driver Linux loads by itself; a panic before that goes unseen. A crash kernel "
		  "(kdump) that takes over is let." },
	{ .name = "io-threads",
	  .type = KEY_WORD,
	  FIELD(config, io_threads),
	  .words = words_io_threads,
	  .def = "per-device",
	  .help = "threads for disks and NICs" },
	{ .name = "sandbox",
	  .type = KEY_BOOL,
	  FIELD(config, sandbox),
	  .def = "on",
	  .help = "give up rights and system calls that are no longer needed",
	  .more = "Turn it off only to debug the VMM itself." },
	{ .name = "log-level",
	  .type = KEY_WORD,
	  FIELD(config, log_level),
	  .words = words_log_level,
	  .def = "info",
	  .help = "what is written to standard error" },
	{ .name = "check",
	  .type = KEY_FLAG,
	  FIELD(config, check),
	  .def = "off",
	  .cli_only = true,
	  .help = "check the configuration, print it whole as JSON and exit" },
	{ .name = "help",
	  .type = KEY_FLAG,
	  FIELD(config, help),
	  .def = "off",
	  .cli_only = true,
	  .help = "print this list and exit" },
	{ .name = NULL },
};

const struct config_alias config_aliases[] = {
	{ "verbose", 'v', "log-level", "debug", "the same as --log-level debug" },
	{ "quiet", 'q', "log-level", "error", "the same as --log-level error" },
	{ NULL, 'h', "help", "on", "the same as --help" },
	{ NULL, '\0', NULL, NULL, NULL },
};

const struct config_key *config_key_find(const struct config_key *table, const char *name,
					 size_t len)
{
	for (const struct config_key *k = table; k->name; k++)
		if (strlen(k->name) == len && !memcmp(k->name, name, len))
			return k;
	return NULL;
}

#define NEAREST_MAX 32 /* longer than any key; what is beyond does not matter */

/* Levenshtein distance, one row at a time. */
static unsigned distance(const char *a, const char *b)
{
	unsigned row[NEAREST_MAX + 1];
	size_t n = strnlen(b, NEAREST_MAX);

	for (unsigned j = 0; j <= n; j++)
		row[j] = j;
	for (unsigned i = 1; a[i - 1] && i <= NEAREST_MAX; i++) {
		unsigned diagonal = row[0];

		row[0] = i;
		for (unsigned j = 1; j <= n; j++) {
			unsigned best = diagonal + (a[i - 1] != b[j - 1]);

			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			diagonal = row[j];
			row[j] = best;
		}
	}
	return row[n];
}

const struct config_key *config_key_nearest(const struct config_key *table, const char *name,
					    bool cli)
{
	const struct config_key *best = table;
	unsigned best_distance = UINT32_MAX;
	size_t len = strlen(name);

	for (const struct config_key *k = table; k->name; k++) {
		/* "mem" is meant to be memory, not net */
		bool begins = len >= 2 && !strncmp(k->name, name, len);
		unsigned d = begins ? 0 : distance(name, k->name);

		if (d < best_distance && (cli || !k->cli_only)) {
			best_distance = d;
			best = k;
		}
	}
	return best;
}
