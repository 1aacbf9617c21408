/*
 * vhost.c - the kernel's own hands on a NIC's rings
 *
 * The order of requests is the kernel's: owner, features and memory before rings; a ring's size, place
 * and next entry while it has no tap; the tap last, since that sets it going. Taking the tap away waits
 * for what the kernel has in hand, returns what it has taken and not used, and only then may its next
 * entry be asked for.
 *
 * The kernel doesn't read the kick's eventfd, it hears of each signal.
 *
 * The owner comes late (vhost_own), when the process has given up its capabilities. From Linux 6.4 on the
 * worker is a thread of the owner's process (kernel/vhost_task.c) that keeps the credentials of its birth,
 * takes no signal but SIGKILL and SIGSTOP and never runs a user's instruction: a library that reaches every
 * thread of /proc/self/task by a signal, as libpsx does since 2.72, would wait for it for ever.
 *
 * Logging takes three things, in this order: where the log is, the feature, and for each ring that its
 * used area is to be logged, too, which is given with the ring's addresses.
 */
#include <fcntl.h>
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "backends/vhost.h"
#include "base/fd.h"

#define DEVICE "/dev/vhost-net"
#define BIT(n) (UINT64_C(1) << (n))

const uint64_t vhost_features = BIT(VIRTIO_RING_F_INDIRECT_DESC) | BIT(VIRTIO_RING_F_EVENT_IDX) |
				BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_NET_F_MRG_RXBUF);

static int request(struct vhost *h, unsigned long what, void *arg)
{
	return h->ops->request(h, what, arg);
}

static int set_number(struct vhost *h, unsigned long what, unsigned ring, unsigned num)
{
	return request(h, what, &(struct vhost_vring_state){ .index = ring, .num = num });
}

static int set_file(struct vhost *h, unsigned long what, unsigned ring, int fd)
{
	return request(h, what, &(struct vhost_vring_file){ .index = ring, .fd = fd });
}

/* ---- making ---- */

static int kernel_request(struct vhost *h, unsigned long what, void *arg)
{
	return ioctl(h->fd, what, arg) < 0 ? -errno : 0;
}

static void kernel_free(struct vhost *h)
{
	if (!h)
		return;
	fd_close(&h->fd); /* stops what runs */
	free(h);
}

static const struct vhost_ops kernel_ops = { kernel_request, kernel_free };

static int open_device(struct err *err)
{
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		return fd;
	if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
		return err_set(err, errno,
			       "this host has no " DEVICE ": load the driver with modprobe "
			       "vhost_net, or leave vhost=on out");
	return err_set_sys(err, errno, "cannot open " DEVICE);
}

static int check_features(struct vhost *h, const char *what, struct err *err)
{
	const uint64_t need = vhost_features | BIT(VHOST_F_LOG_ALL);
	uint64_t have = 0;
	int rc = request(h, VHOST_GET_FEATURES, &have);

	if (rc == -EBADF)
		return err_set(err, rc, "%s is not open: the caller must pass it on", what);
	if (rc)
		return err_set_sys(err, rc, "%s is no " DEVICE " that can be used", what);
	if (need & ~have)
		return err_set(err, ENOTSUP,
			       "this kernel's vhost-net lacks features 0x%llx that the guest's NIC "
			       "has: leave vhost=on out",
			       (unsigned long long)(need & ~have));
	return 0;
}

int vhost_open(int fd, struct vhost **out, struct err *err)
{
	struct vhost *h = calloc(1, sizeof(*h));
	char what[32] = DEVICE;
	int rc;

	if (!h)
		return err_set(err, ENOMEM, "out of memory for vhost-net");
	h->ops = &kernel_ops;
	h->fd = fd;
	if (fd >= 0)
		snprintf(what, sizeof(what), "vhostfd=%d", fd);
	else
		h->fd = open_device(err);
	rc = h->fd < 0 ? h->fd : check_features(h, what, err);
	if (!rc && fcntl(h->fd, F_SETFD, FD_CLOEXEC) < 0)
		rc = err_set_sys(err, errno, "%s", what);
	if (rc) {
		if (fd >= 0)
			h->fd = -1; /* still the caller's */
		kernel_free(h);
		return rc;
	}
	*out = h;
	return 0;
}

int vhost_own(struct vhost *h, struct err *err)
{
	int rc = request(h, VHOST_SET_OWNER, NULL);

	if (rc == -EBUSY)
		return err_set(err, rc,
			       "its " DEVICE
			       " has been used already: each machine takes a new one");
	if (rc == -ENOMEM || rc == -EAGAIN)
		return err_set(err, rc,
			       "the kernel makes no thread for vhost-net (memory, RLIMIT_NPROC and "
			       "pids.max limit it)");
	return rc ? err_set_sys(err, rc, DEVICE) : 0;
}

/* ---- rings ---- */

static int tell_features(struct vhost *h)
{
	uint64_t f = h->features | (h->log ? BIT(VHOST_F_LOG_ALL) : 0);

	return request(h, VHOST_SET_FEATURES, &f);
}

static int tell_log(struct vhost *h)
{
	uint64_t base = (uintptr_t)h->log;

	return h->log ? request(h, VHOST_SET_LOG_BASE, &base) : 0;
}

static int tell_address(struct vhost *h, unsigned ring)
{
	struct vhost_vring_addr a = {
		.index = ring,
		.flags = h->log ? 1u << VHOST_VRING_F_LOG : 0,
		.desc_user_addr = h->place[ring].desc,
		.avail_user_addr = h->place[ring].avail,
		.used_user_addr = h->place[ring].used,
		.log_guest_addr = h->place[ring].used_gpa,
	};

	return request(h, VHOST_SET_VRING_ADDR, &a);
}

static int tell_memory(struct vhost *h, const struct gmem *mem)
{
	unsigned n = gmem_count(mem);
	struct vhost_memory *t = calloc(1, sizeof(*t) + n * sizeof(t->regions[0]));
	int rc;

	if (!t)
		return -ENOMEM;
	t->nregions = n;
	for (unsigned i = 0; i < n; i++) {
		const struct gmem_region *r = gmem_region(mem, i);

		t->regions[i] = (struct vhost_memory_region){
			.guest_phys_addr = r->gpa,
			.memory_size = r->size,
			.userspace_addr = (uintptr_t)r->host,
		};
	}
	rc = request(h, VHOST_SET_MEM_TABLE, t);
	free(t);
	return rc;
}

int vhost_set_up(struct vhost *h, uint64_t features, const struct gmem *mem)
{
	int rc = tell_log(h);

	h->features = features & vhost_features;
	if (!rc)
		rc = tell_features(h);
	return rc ? rc : tell_memory(h, mem);
}

/* One of the ring's areas as the host has it; its first byte will do, virtq_check() saw the rest. */
static uint64_t host_address(const struct gmem *mem, gpa_t at)
{
	struct iovec v;

	return gmem_iov(mem, at, 1, &v) ? 0 : (uintptr_t)v.iov_base;
}

static int put(struct vhost *h, unsigned ring, const struct vhost_ring *r, const struct gmem *mem)
{
	const uint64_t desc = host_address(mem, r->desc), avail = host_address(mem, r->driver),
		       used = host_address(mem, r->device);
	int rc = desc && avail && used ? 0 : -EFAULT;

	h->place[ring].desc = desc;
	h->place[ring].avail = avail;
	h->place[ring].used = used;
	h->place[ring].used_gpa = r->device;
	if (!rc)
		rc = set_number(h, VHOST_SET_VRING_NUM, ring, r->size);
	if (!rc)
		rc = set_number(h, VHOST_SET_VRING_BASE, ring, r->next);
	return rc ? rc : tell_address(h, ring);
}

static void disconnect(struct vhost *h, unsigned ring)
{
	set_file(h, VHOST_SET_VRING_KICK, ring, VHOST_FILE_UNBIND);
	set_file(h, VHOST_SET_VRING_CALL, ring, VHOST_FILE_UNBIND);
	set_file(h, VHOST_SET_VRING_ERR, ring, VHOST_FILE_UNBIND);
}

int vhost_start(struct vhost *h, unsigned ring, const struct vhost_ring *r, const struct gmem *mem)
{
	int rc = put(h, ring, r, mem);

	if (!rc)
		rc = set_file(h, VHOST_SET_VRING_ERR, ring, r->error);
	if (!rc)
		rc = set_file(h, VHOST_SET_VRING_CALL, ring, r->call);
	if (!rc)
		rc = set_file(h, VHOST_SET_VRING_KICK, ring, r->kick);
	if (!rc)
		rc = set_file(h, VHOST_NET_SET_BACKEND, ring, r->tap);
	if (rc) {
		disconnect(h, ring);
		return rc;
	}
	h->on[ring] = true;
	return 0;
}

int vhost_stop(struct vhost *h, unsigned ring, uint16_t *next)
{
	struct vhost_vring_state s = { .index = ring };
	int rc = set_file(h, VHOST_NET_SET_BACKEND, ring, VHOST_FILE_UNBIND);

	h->on[ring] = false;
	if (!rc)
		rc = request(h, VHOST_GET_VRING_BASE, &s);
	disconnect(h, ring);
	if (!rc)
		*next = (uint16_t)s.num;
	return rc;
}

int vhost_set_call(struct vhost *h, unsigned ring, int fd)
{
	return set_file(h, VHOST_SET_VRING_CALL, ring, fd);
}

int vhost_set_log(struct vhost *h, void *log)
{
	int rc;

	h->log = log;
	if (!h->on[VHOST_RX] && !h->on[VHOST_TX])
		return 0; /* vhost_set_up() tells it */
	rc = tell_log(h);
	if (!rc)
		rc = tell_features(h);
	for (unsigned i = 0; i < VHOST_RINGS && !rc; i++)
		if (h->on[i])
			rc = tell_address(h, i);
	return rc;
}
