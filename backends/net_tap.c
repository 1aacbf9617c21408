/*
 * net_tap.c - a NIC's frames through a tap
 *
 * A tap we make is not persistent: the kernel removes it with its last descriptor, so even a
 * SIGKILL leaves nothing behind. One that exists already is attached to and left as it is, but for
 * what was asked (MTU, address) and for being up.
 *
 * The order of set-up is: every queue first, then what can be undone (MTU, address), then up. So a
 * failure can always be taken back, and nobody sees the tap up but half set.
 *
 * "In use" needs care. A single-queue tap refuses a second user by itself (EBUSY); a multiqueue one
 * takes up to 256 and would deal its frames out to two machines. So descriptors are counted after
 * ours are attached, not before: of two machines that start at once neither then misses the other.
 *
 * An inherited descriptor may belong to another network namespace (a pod's), where a look-up by
 * name would find the wrong interface or none. So only the descriptor itself is asked, and its MTU
 * is read only when it is known to be of our namespace.
 */
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <netlink/socket.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/net.h"
#include "backends/net_link.h"
#include "base/fd.h"
#include "base/log.h"

/* Newer than the headers of Debian 12; asked for at run time (Linux 6.2). */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

#define TAP_PAIRS_MAX 32

struct tap {
	struct netif n;
	bool multi_queue;
	bool enabled;
	struct nl_sock *nl; /* for counters; NULL: there are none */
};

static struct tap *to_tap(struct netif *n)
{
	return (struct tap *)n;
}

static ssize_t tap_send(struct netif *n, const struct iovec *iov, unsigned niov)
{
	ssize_t rc;

	do
		rc = writev(n->fd, iov, (int)niov);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : rc;
}

static ssize_t tap_receive(struct netif *n, const struct iovec *iov, unsigned niov)
{
	ssize_t rc;

	do
		rc = readv(n->fd, iov, (int)niov);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : rc;
}

static unsigned tun_flags(unsigned offloads)
{
	static const struct {
		unsigned ours, kernels;
	} map[] = {
		{ NET_OFFLOAD_CSUM, TUN_F_CSUM }, { NET_OFFLOAD_TSO4, TUN_F_TSO4 },
		{ NET_OFFLOAD_TSO6, TUN_F_TSO6 }, { NET_OFFLOAD_ECN, TUN_F_TSO_ECN },
		{ NET_OFFLOAD_UFO, TUN_F_UFO },   { NET_OFFLOAD_USO, TUN_F_USO4 | TUN_F_USO6 },
	};
	unsigned flags = 0;

	for (size_t i = 0; i < sizeof(map) / sizeof(map[0]); i++)
		flags |= offloads & map[i].ours ? map[i].kernels : 0;
	return flags;
}

static int tap_set_offload(struct netif *n, unsigned offloads)
{
	/* the kernel refuses what stands on checksums without them, and ECN without TSO */
	if (!(offloads & NET_OFFLOAD_CSUM))
		offloads = 0;
	if (!(offloads & (NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6)))
		offloads &= ~(unsigned)NET_OFFLOAD_ECN;
	return ioctl(n->fd, TUNSETOFFLOAD, (unsigned long)tun_flags(offloads)) ? -errno : 0;
}

static int tap_enable(struct netif *n, bool on)
{
	struct tap *t = to_tap(n);
	struct ifreq ifr = { .ifr_flags = on ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE };

	if (!t->multi_queue || t->enabled == on)
		return 0;
	if (ioctl(n->fd, TUNSETQUEUE, &ifr))
		return -errno;
	t->enabled = on;
	return 0;
}

static int tap_counters(struct netif *n, struct netif_counters *c)
{
	struct err ignored = { 0 };
	struct net_link l;
	int rc = to_tap(n)->nl ? net_link_get(to_tap(n)->nl, n->name, &l, &ignored) : -ENODEV;

	if (!rc)
		*c = l.counters;
	return rc;
}

static void tap_free(struct netif *n)
{
	if (!n)
		return;
	fd_close(&n->fd);
	nl_socket_free(to_tap(n)->nl);
	free(n->name);
	free(n);
}

static const struct netif_ops tap_ops = {
	.name = "tap",
	.send = tap_send,
	.receive = tap_receive,
	.set_offload = tap_set_offload,
	.enable = tap_enable,
	.counters = tap_counters,
	.free = tap_free,
};

/* Takes @fd. NULL: out of memory, @fd still the caller's. */
static struct netif *tap_new(int *fd, const char *name, bool multi_queue)
{
	struct tap *t = calloc(1, sizeof(*t));
	char *copy = strdup(name);

	if (!t || !copy) {
		free(t);
		free(copy);
		return NULL;
	}
	t->n = (struct netif){ .ops = &tap_ops, .fd = fd_steal(fd), .name = copy };
	t->multi_queue = multi_queue;
	t->enabled = true;
	return &t->n;
}

/*
 * The header's size, and what the kernel can leave to the guest; to begin with it leaves nothing.
 */
static int set_up_header(struct netif *n, struct err *err)
{
	const unsigned base = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 |
			      NET_OFFLOAD_ECN | NET_OFFLOAD_UFO;
	int size = NET_VNET_HDR_LEN;

	if (ioctl(n->fd, TUNSETVNETHDRSZ, &size))
		return err_set_sys(err, errno, "tap %s: cannot have a header of %d bytes", n->name,
				   size);
	if (!tap_set_offload(n, base | NET_OFFLOAD_USO))
		n->offloads = base | NET_OFFLOAD_USO;
	else if (!tap_set_offload(n, base))
		n->offloads = base;
	if (tap_set_offload(n, 0))
		return err_set_sys(err, errno, "tap %s: cannot set offloads", n->name);
	return 0;
}

/* ---- by name ---- */

static int open_tun(const char *name, struct err *err)
{
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0)
		return fd;
	if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
		return err_set(
			err, errno,
			"tap %s: this host has no /dev/net/tun: load the driver with modprobe "
			"tun, or have the container given the device",
			name);
	return err_set_sys(err, errno, "tap %s: cannot open /dev/net/tun", name);
}

static int say_why_not(int rc, const struct net_tap_options *o, bool exists, struct err *err)
{
	const char *name = o->name;

	switch (rc) {
	case EBUSY:
		return err_set(err, rc, "tap %s is in use by another virtual machine", name);
	case EPERM:
	case EACCES:
		if (exists)
			return err_set(err, rc,
				       "tap %s belongs to another user: make it with ip tuntap add "
				       "%s mode tap user $USER, or run with CAP_NET_ADMIN",
				       name, name);
		return err_set(err, rc,
			       "making tap %s takes CAP_NET_ADMIN: run with it, or have it made "
			       "beforehand with ip tuntap add %s mode tap user $USER",
			       name, name);
	case E2BIG:
		return err_set(err, rc, "tap %s has no room for %u more queues", name, o->pairs);
	default:
		return err_set_sys(err, rc, "cannot attach to tap %s", name);
	}
}

static int attach(const struct net_tap_options *o, bool exists, bool multi_queue, struct netif **n,
		  struct err *err)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	cleanup_fd int fd = open_tun(o->name, err);

	if (fd < 0)
		return fd;
	/* the checked length leaves room for the 0 */
	memcpy(ifr.ifr_name, o->name, strlen(o->name));
	if (multi_queue)
		ifr.ifr_flags |= IFF_MULTI_QUEUE;
	/* IFF_TUN_EXCL: if another made the name meanwhile, it is not ours */
	if (!exists)
		ifr.ifr_flags = (short)(ifr.ifr_flags | IFF_TUN_EXCL);
	if (ioctl(fd, TUNSETIFF, &ifr))
		return say_why_not(errno, o, exists, err);
	*n = tap_new(&fd, o->name, multi_queue);
	return *n ? set_up_header(*n, err) :
		    err_set(err, ENOMEM, "out of memory for tap %s", o->name);
}

/* What @o asks of the interface @l that has its name. */
static int check_existing(const struct net_tap_options *o, const struct net_link *l,
			  struct err *err)
{
	if (!l->tap)
		return err_set(err, EINVAL,
			       "%s is a network interface but not a tap: give another "
			       "name",
			       o->name);
	if (o->pairs > 1 && !l->multi_queue)
		return err_set(err, EINVAL,
			       "tap %s has a single queue: leave queues=%u out, or make it with ip "
			       "tuntap add %s mode tap multi_queue",
			       o->name, o->pairs, o->name);
	return 0;
}

static int set_mtu(struct nl_sock *nl, const struct net_tap_options *o, struct net_link *l,
		   struct err *err)
{
	int rc = o->mtu && o->mtu != l->mtu ? net_link_set_mtu(nl, l->index, o->mtu) : 0;

	if (rc == -EPERM)
		return err_set(
			err, rc,
			"setting the MTU of tap %s takes CAP_NET_ADMIN: leave mtu=%u out, or "
			"first do ip link set %s mtu %u",
			o->name, o->mtu, o->name, o->mtu);
	if (rc)
		return err_set_sys(err, rc, "tap %s does not take an MTU of %u", o->name, o->mtu);
	l->mtu = o->mtu ? o->mtu : l->mtu;
	return 0;
}

static int add_addr(struct nl_sock *nl, const struct net_tap_options *o, const struct net_link *l,
		    struct err *err)
{
	int rc = o->addr ? net_link_add_addr(nl, l->index, o->addr) : 0;

	if (rc == -EPERM)
		return err_set(err, rc,
			       "giving tap %s an address takes CAP_NET_ADMIN: leave addr out, or "
			       "first do ip addr add %s dev %s",
			       o->name, o->addr, o->name);
	return rc < 0 ?
		       err_set_sys(err, rc, "cannot give tap %s the address %s", o->name, o->addr) :
		       rc;
}

static int bring_up(struct nl_sock *nl, const char *name, const struct net_link *l, bool created,
		    struct err *err)
{
	int rc = l->up ? 0 : net_link_set_up(nl, l->index);

	if (rc == -EPERM && !created) {
		log_warn("tap %s is down and bringing it up takes CAP_NET_ADMIN: until ip link set "
			 "%s up the guest has no network",
			 name, name);
		return 0;
	}
	return rc ? err_set_sys(err, rc, "cannot bring tap %s up", name) : 0;
}

/* MTU, address, up; on error everything as it was. */
static int set_up_link(struct nl_sock *nl, const struct net_tap_options *o, bool existed,
		       unsigned *mtu, struct err *err)
{
	struct net_link l;
	int rc = net_link_get(nl, o->name, &l, err);

	if (rc == -ENODEV)
		return err_set(err, rc, "tap %s went away while it was being set up", o->name);
	if (rc)
		return rc;
	if (l.queues > o->pairs)
		return say_why_not(EBUSY, o, existed, err);
	unsigned old_mtu = l.mtu;

	rc = set_mtu(nl, o, &l, err);
	if (rc)
		return rc;
	int added = add_addr(nl, o, &l, err);

	rc = added < 0 ? added : bring_up(nl, o->name, &l, !existed, err);
	if (rc && added > 0)
		net_link_del_addr(nl, l.index, o->addr);
	if (rc && l.mtu != old_mtu)
		net_link_set_mtu(nl, l.index, old_mtu);
	*mtu = l.mtu;
	return rc;
}

static int check_name(const char *name, struct err *err)
{
	size_t len = strlen(name);

	/* the kernel would take % as a pattern */
	if (!len || len >= IFNAMSIZ || strpbrk(name, "/%: ") || !strcmp(name, ".") ||
	    !strcmp(name, ".."))
		return err_set(err, EINVAL,
			       "\"%s\" cannot be the name of a tap: give up to %d "
			       "characters without / %% : and spaces",
			       name, IFNAMSIZ - 1);
	return 0;
}

static int open_queues(struct nl_sock *nl, const struct net_tap_options *o, struct netif **n,
		       struct err *err)
{
	struct net_link l;
	int rc = net_link_get(nl, o->name, &l, err);
	bool exists = rc != -ENODEV;
	unsigned mtu = 0;

	if (rc && exists)
		return rc;
	if (!exists && !o->create)
		return err_set(err, ENODEV,
			       "tap %s does not exist: make it with ip tuntap add %s mode tap user "
			       "$USER, or leave create=off out",
			       o->name, o->name);
	rc = exists ? check_existing(o, &l, err) : 0;
	for (unsigned i = 0; i < o->pairs && !rc; i++)
		rc = attach(o, exists || i, exists ? l.multi_queue : o->pairs > 1, &n[i], err);
	if (!rc)
		rc = set_up_link(nl, o, exists, &mtu, err);
	for (unsigned i = 0; i < o->pairs && !rc; i++)
		n[i]->mtu = (uint16_t)(mtu > 65535 ? 65535 : mtu);
	return rc;
}

static int open_by_name(const struct net_tap_options *o, struct netif **n, struct err *err)
{
	int rc = check_name(o->name, err);

	if (rc)
		return rc;
	struct nl_sock *nl = net_link_connect(err);

	if (!nl)
		return err ? err->code : -EIO;
	rc = open_queues(nl, o, n, err);
	if (!rc && o->counters)
		to_tap(n[0])->nl = nl;
	else
		nl_socket_free(nl);
	for (unsigned i = 0; i < o->pairs && rc; i++) {
		tap_free(n[i]);
		n[i] = NULL;
	}
	return rc;
}

/* ---- inherited ---- */

static int check_inherited(int fd, struct ifreq *ifr, struct err *err)
{
	int rc = 0;

	if (ioctl(fd, TUNGETIFF, ifr))
		rc = errno;
	if (rc == EBADF)
		return err_set(err, rc, "fd=%d is not open: the caller must pass the tap on", fd);
	if (rc || !(ifr->ifr_flags & IFF_TAP))
		return err_set(err, rc && rc != ENOTTY && rc != EBADFD ? rc : EINVAL,
			       "fd=%d is not an open tap", fd);
	ifr->ifr_name[IFNAMSIZ - 1] = 0;
	if (!(ifr->ifr_flags & IFF_VNET_HDR) || !(ifr->ifr_flags & IFF_NO_PI))
		return err_set(
			err, EINVAL,
			"fd=%d: tap %s was not opened with IFF_NO_PI and IFF_VNET_HDR, which "
			"its opener must set",
			fd, ifr->ifr_name);
	return 0;
}

/* Is @fd of this network namespace? Else its interface's name is somebody else's here. */
static bool is_of_here(int fd)
{
	cleanup_fd int theirs = ioctl(fd, TUNGETDEVNETNS);
	struct stat a, b;

	return theirs >= 0 && !fstat(theirs, &a) && !stat("/proc/self/ns/net", &b) &&
	       a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* The MTU of the interface called @name; 0: unknown. */
static unsigned inherited_mtu(const char *name)
{
	cleanup_fd int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq ifr = { 0 };

	if (sock < 0)
		return 0;
	memcpy(ifr.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
	return ioctl(sock, SIOCGIFMTU, &ifr) ? 0 : (unsigned)ifr.ifr_mtu;
}

/* One queue. Whatever happens @fd stays the caller's to close until @n is used. */
static int inherit(int fd, const char *tap, struct netif **n, struct err *err)
{
	struct ifreq ifr = { 0 };
	int rc = check_inherited(fd, &ifr, err);

	if (rc)
		return rc;
	if (tap && strcmp(tap, ifr.ifr_name))
		return err_set(err, EINVAL,
			       "fd=%d is tap %s, those before it are tap %s: the queues of a NIC "
			       "are of one tap",
			       fd, ifr.ifr_name, tap);
	rc = fd_set_nonblock(fd);
	if (!rc && fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		rc = -errno;
	if (rc)
		return err_set_sys(err, rc, "fd=%d cannot be made non-blocking", fd);
	*n = tap_new(&fd, ifr.ifr_name, ifr.ifr_flags & IFF_MULTI_QUEUE);
	return *n ? set_up_header(*n, err) :
		    err_set(err, ENOMEM, "out of memory for tap %s", ifr.ifr_name);
}

static int open_inherited(const struct net_tap_options *o, struct netif **n, struct err *err)
{
	struct err ignored = { 0 };
	int rc = 0;

	/* o->mtu is only told to the guest: the interface may not be of our namespace */
	if (o->addr)
		return err_set(err, EINVAL,
			       "fd=%d: an inherited tap gets its address from whoever opened it: "
			       "leave addr=%s out",
			       o->fd[0], o->addr);
	for (unsigned i = 0; i < o->pairs && !rc; i++)
		rc = inherit(o->fd[i], i ? n[0]->name : NULL, &n[i], err);
	for (unsigned i = 0; i < o->pairs && rc; i++) {
		if (n[i])
			n[i]->fd = -1; /* still the caller's */
		tap_free(n[i]);
		n[i] = NULL;
	}
	if (rc)
		return rc;
	bool here = is_of_here(o->fd[0]);
	unsigned mtu = here ? inherited_mtu(n[0]->name) : 0;

	if (here && o->counters)
		to_tap(n[0])->nl = net_link_connect(&ignored);
	for (unsigned i = 0; i < o->pairs; i++)
		n[i]->mtu = (uint16_t)(mtu > 65535 ? 65535 : mtu);
	return 0;
}

int net_tap_open(const struct net_tap_options *o, struct netif **n, struct err *err)
{
	if (!o->pairs || o->pairs > TAP_PAIRS_MAX)
		return err_set(err, EINVAL, "tap %s: %u queue pairs, must be 1 to %u",
			       o->name ? o->name : "descriptor", o->pairs, TAP_PAIRS_MAX);
	memset(n, 0, o->pairs * sizeof(*n));
	return o->name ? open_by_name(o, n, err) : open_inherited(o, n, err);
}
