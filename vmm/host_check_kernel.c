/*
 * host_check_kernel.c - what else of the host kernel a machine or a pod may use
 *
 * Nothing here is needed to run a machine; each row says what becomes slower, weaker or impossible
 * without. Probes leave nothing behind: no interface, no file, no process.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "vmm/host_check.h"

#ifndef TCP_ULP
#define TCP_ULP 31
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#endif
#define LANDLOCK_VERSION 1u /* LANDLOCK_CREATE_RULESET_VERSION */

void host_row(struct host_report *r, const char *key, enum host_has has, const char *advice,
	      const char *fmt, ...)
{
	struct host_row *row;
	va_list ap;

	if (r->count == HOST_ROWS_MAX)
		return;
	row = &r->rows[r->count++];
	row->key = key;
	row->has = has;
	row->advice = advice;
	va_start(ap, fmt);
	vsnprintf(row->detail, sizeof(row->detail), fmt, ap);
	va_end(ap);
}

static void check_device(struct host_report *r, const char *key, const char *path,
			 const char *advice)
{
	cleanup_fd int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		host_row(r, key, HOST_YES, NULL, "%s opens", path);
	else
		host_row(r, key, HOST_NO, advice, "%s: %s", path, strerror(errno));
}

static void check_io_uring(struct host_report *r)
{
	struct io_uring_params p = { 0 };
	cleanup_fd int fd = (int)syscall(SYS_io_uring_setup, 4, &p);

	if (fd >= 0)
		host_row(r, "io_uring", HOST_YES, NULL, "a ring can be made");
	else
		host_row(
			r, "io_uring", HOST_NO,
			"disks use threads instead; sysctl kernel.io_uring_disabled=0 may allow it",
			"io_uring_setup: %s", strerror(errno));
}

static void check_userfaultfd(struct host_report *r)
{
	struct uffdio_api api = { .api = UFFD_API };
	cleanup_fd int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 && errno == EPERM) {
		cleanup_fd int user =
			(int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

		host_row(r, "userfaultfd", user >= 0 ? HOST_PARTLY : HOST_NO,
			 "restoring on demand needs faults of the kernel too: run as root, or set "
			 "sysctl vm.unprivileged_userfaultfd=1",
			 user >= 0 ? "user mode faults only" : "not permitted");
		return;
	}
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		host_row(r, "userfaultfd", HOST_NO, "restoring reads all memory before it starts",
			 "%s", strerror(errno));
	else
		host_row(r, "userfaultfd", HOST_YES, NULL, "faults of user and kernel mode");
}

/* A small file under /proc or /sys, without its newline; "" when not there. */
static void read_small(const char *path, char *buf, size_t room)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, room - 1);

	buf[n > 0 ? n : 0] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
}

static void check_huge_pages(struct host_report *r)
{
	char text[64], surplus[32];

	read_small("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof(text));
	if (strstr(text, "[always]") || strstr(text, "[madvise]"))
		host_row(r, "huge-pages.transparent", HOST_YES, NULL, "%s", text);
	else
		host_row(r, "huge-pages.transparent", HOST_NO,
			 "guests take more TLB misses: write madvise to "
			 "/sys/kernel/mm/transparent_hugepage/enabled",
			 "%s", *text ? text : "not in this kernel");

	read_small("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", text, sizeof(text));
	read_small("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", surplus,
		   sizeof(surplus));
	if (strtoul(text, NULL, 10) > 0)
		host_row(r, "huge-pages.pool", HOST_YES, NULL, "%s of %s pages of 2 MiB are free",
			 text, surplus);
	else
		host_row(r, "huge-pages.pool", HOST_NO,
			 "--hugepages 2M is refused: set sysctl vm.nr_hugepages",
			 *text ? "none of %s pages of 2 MiB is free" : "not in this kernel%s",
			 surplus);
}

static void check_tun(struct host_report *r)
{
	cleanup_fd int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	unsigned features = 0;

	if (fd < 0)
		host_row(r, "tun", HOST_NO,
			 "no network for guests: load tun, or allow /dev/net/tun",
			 "/dev/net/tun: %s", strerror(errno));
	else if (ioctl(fd, TUNGETFEATURES, &features) < 0 || !(features & IFF_VNET_HDR))
		host_row(r, "tun", HOST_NO, "no network for guests: use a newer kernel",
			 "without IFF_VNET_HDR");
	else
		host_row(r, "tun", features & IFF_MULTI_QUEUE ? HOST_YES : HOST_PARTLY,
			 features & IFF_MULTI_QUEUE ? NULL : "a NIC has one queue",
			 "with packet headers%s",
			 features & IFF_MULTI_QUEUE ? " and several queues" : "");
}

static void check_cgroups(struct host_report *r)
{
	char text[256];
	bool v1 = !access("/sys/fs/cgroup/memory/tasks", F_OK) ||
		  !access("/sys/fs/cgroup/cpu/tasks", F_OK);

	read_small("/sys/fs/cgroup/cgroup.controllers", text, sizeof(text));
	if (!access("/sys/fs/cgroup/cgroup.controllers", F_OK))
		host_row(r, "cgroups", HOST_YES, NULL, "version 2: %.150s", text);
	else if (v1)
		host_row(r, "cgroups", HOST_PARTLY,
			 "pods have their limits; pressure and I/O limits need version 2",
			 "version 1");
	else
		host_row(r, "cgroups", HOST_NO,
			 "pods have no limits: mount cgroup2 at /sys/fs/cgroup",
			 "none at /sys/fs/cgroup");
}

static void check_sandbox(struct host_report *r)
{
	int abi = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION);
	unsigned action = SECCOMP_RET_KILL_PROCESS;

	if (abi > 0)
		host_row(r, "landlock", HOST_YES, NULL, "ABI %d", abi);
	else
		host_row(r, "landlock", HOST_NO,
			 "files are not fenced off; add landlock to the kernel's lsm= list", "%s",
			 strerror(errno));
	if (!syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action))
		host_row(r, "seccomp", HOST_YES, NULL, "filters can end the process");
	else
		host_row(r, "seccomp", HOST_NO, "machines start only with --sandbox off", "%s",
			 strerror(errno));
}

/* The protocol can be attached to connected sockets only, so connect to ourselves. */
static int try_ktls(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	cleanup_fd int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cleanup_fd int c = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (l < 0 || c < 0 || bind(l, (struct sockaddr *)&a, len) || listen(l, 1) ||
	    getsockname(l, (struct sockaddr *)&a, &len))
		return -errno;
	/* Over loopback the handshake is done when connect returns, or nobody answers. */
	if (connect(c, (struct sockaddr *)&a, len) && errno != EINPROGRESS)
		return -errno;
	return setsockopt(c, IPPROTO_TCP, TCP_ULP, "tls", 3) ? -errno : 0;
}

static void check_ktls(struct host_report *r)
{
	int rc = try_ktls();

	if (!rc)
		host_row(r, "ktls", HOST_YES, NULL, "TCP takes it");
	else
		host_row(r, "ktls", HOST_NO,
			 "migration encrypts in user space: modprobe tls, or a kernel with "
			 "CONFIG_TLS",
			 "%s", rc == -ENOENT ? "the tls module is not there" : strerror(-rc));
}

void host_check_kernel(struct host_report *r)
{
	check_tun(r);
	check_device(r, "vhost-net", "/dev/vhost-net",
		     "NICs run in this process instead: modprobe vhost_net");
	check_device(r, "vhost-vsock", "/dev/vhost-vsock",
		     "vsock runs in this process instead: modprobe vhost_vsock");
	check_io_uring(r);
	check_userfaultfd(r);
	check_huge_pages(r);
	check_cgroups(r);
	check_sandbox(r);
	check_ktls(r);
}
