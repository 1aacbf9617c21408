/*
 * test_net_tap.c - taps, in a network namespace of the test's own
 *
 * The peer of a tap is a packet socket bound to it. Without root or /dev/net/tun every test that
 * needs them skips and says so.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>
#include <netlink/socket.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/net.h"
#include "backends/net_link.h"
#include "base/fd.h"

#define ETHERTYPE 0x88b5 /* IEEE 802: local experiments */

static const char *why_not; /* the host lacks something: skip */

#define NEED_TAPS()                                           \
	do {                                                  \
		if (why_not) {                                \
			print_message("SKIP: %s\n", why_not); \
			skip();                               \
		}                                             \
	} while (0)

static int set_up_namespace(void **state)
{
	(void)state;
	if (geteuid())
		why_not = "not root: a network namespace of the test's own is needed";
	else if (access("/dev/net/tun", R_OK | W_OK))
		why_not = "no /dev/net/tun on this host";
	else if (unshare(CLONE_NEWNET))
		why_not = "this host refuses unshare(CLONE_NEWNET)";
	return 0;
}

static bool link_get(const char *name, struct net_link *l)
{
	struct err err = { 0 };
	struct nl_sock *nl = net_link_connect(&err);

	assert_non_null(nl);
	int rc = net_link_get(nl, name, l, &err);

	nl_socket_free(nl);
	if (rc && rc != -ENODEV)
		fail_msg("%s", err.msg);
	return !rc;
}

static bool link_exists(const char *name)
{
	struct net_link l;

	return link_get(name, &l);
}

static unsigned open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* A tap as `ip tuntap add` makes it; the descriptor is still attached. */
static int make_tap(const char *name, short flags)
{
	struct ifreq ifr = { .ifr_flags = (short)(IFF_TAP | IFF_NO_PI | flags) };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	strcpy(ifr.ifr_name, name);
	assert_int_equal(ioctl(fd, TUNSETIFF, &ifr), 0);
	return fd;
}

static void make_persistent(const char *name, short flags)
{
	int fd = make_tap(name, flags);

	assert_int_equal(ioctl(fd, TUNSETPERSIST, 1), 0);
	close(fd);
}

static void remove_persistent(const char *name, short flags)
{
	int fd = make_tap(name, flags);

	assert_int_equal(ioctl(fd, TUNSETPERSIST, 0), 0);
	close(fd);
	assert_false(link_exists(name));
}

static void assert_says(const struct err *e, int code, const char *a, const char *b)
{
	assert_int_equal(e->code, code);
	if (!strstr(e->msg, a) || !strstr(e->msg, b))
		fail_msg("message lacks \"%s\" or \"%s\": %s", a, b, e->msg);
}

static int packet_socket(const char *name)
{
	struct net_link l;
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETHERTYPE));

	assert_true(fd >= 0);
	assert_true(link_get(name, &l));
	struct sockaddr_ll to = { .sll_family = AF_PACKET,
				  .sll_protocol = htons(ETHERTYPE),
				  .sll_ifindex = l.index };

	assert_int_equal(bind(fd, (struct sockaddr *)&to, sizeof(to)), 0);
	return fd;
}

static void make_frame(uint8_t *frame, size_t len, uint8_t tag)
{
	memset(frame, tag, len);
	memset(frame, 0xff, 6);
	memcpy(frame + 6, "\x02\x00\x00\x00\x00\x01\x88\xb5", 8);
}

/* The next frame of ours; the kernel's own (IPv6 neighbour discovery) are passed over. */
static ssize_t receive_ours(struct netif *n, uint8_t *buf, size_t len)
{
	struct iovec iov = { buf, len };

	for (;;) {
		ssize_t got = n->ops->receive(n, &iov, 1);

		if (got == -EAGAIN) {
			struct pollfd p = { .fd = n->fd, .events = POLLIN };

			assert_int_equal(poll(&p, 1, 10000), 1);
			continue;
		}
		if (got < NET_VNET_HDR_LEN + 14 ||
		    !memcmp(buf + NET_VNET_HDR_LEN + 12, "\x88\xb5", 2))
			return got;
	}
}

static void test_create_and_vanish(void **state)
{
	struct net_tap_options o = {
		.name = "tt0", .create = true, .pairs = 1, .mtu = 1400, .addr = "192.0.2.1/24"
	};
	struct err err = { 0 };
	struct netif *n;
	struct net_link l;

	NEED_TAPS();
	unsigned fds = open_fds();

	assert_int_equal(net_tap_open(&o, &n, &err), 0);
	assert_string_equal(n->name, "tt0");
	assert_int_equal(n->mtu, 1400);
	assert_true(n->offloads & NET_OFFLOAD_TSO4);
	assert_true(link_get("tt0", &l));
	assert_true(l.tap && l.up);
	assert_int_equal(l.mtu, 1400);

	struct ifreq ifr = { .ifr_name = "tt0" };
	cleanup_fd int s = socket(AF_INET, SOCK_DGRAM, 0);

	assert_int_equal(ioctl(s, SIOCGIFADDR, &ifr), 0);
	assert_int_equal(((struct sockaddr_in *)&ifr.ifr_addr)->sin_addr.s_addr,
			 inet_addr("192.0.2.1"));
	fd_close(&s);
	n->ops->free(n);
	assert_false(link_exists("tt0"));
	assert_int_equal(open_fds(), fds);
}

static void test_absent(void **state)
{
	struct net_tap_options o = { .name = "tt1", .pairs = 1 };
	struct err err = { 0 };
	struct netif *n;

	NEED_TAPS();
	assert_int_equal(net_tap_open(&o, &n, &err), -ENODEV);
	assert_says(&err, -ENODEV, "tt1", "ip tuntap add tt1");
	assert_false(link_exists("tt1"));
}

static void test_existing_persists(void **state)
{
	struct net_tap_options o = { .name = "tt2", .pairs = 1, .mtu = 9000 };
	struct err err = { 0 };
	struct netif *n;
	struct net_link l;

	NEED_TAPS();
	make_persistent("tt2", 0);
	assert_int_equal(net_tap_open(&o, &n, &err), 0);
	assert_int_equal(n->mtu, 9000);
	n->ops->free(n);
	assert_true(link_get("tt2", &l));
	assert_true(l.up);
	/* again, with nothing asked: as it was left */
	o.mtu = 0;
	assert_int_equal(net_tap_open(&o, &n, &err), 0);
	assert_int_equal(n->mtu, 9000);
	n->ops->free(n);
	remove_persistent("tt2", 0);
}

static void test_in_use(void **state)
{
	struct net_tap_options o = { .name = "tt3", .create = true, .pairs = 1 };
	struct err err = { 0 };
	struct netif *a, *b[2];

	NEED_TAPS();
	assert_int_equal(net_tap_open(&o, &a, &err), 0);
	unsigned fds = open_fds();

	assert_int_equal(net_tap_open(&o, b, &err), -EBUSY);
	assert_says(&err, -EBUSY, "tap tt3", "in use by another virtual machine");
	assert_int_equal(open_fds(), fds);
	a->ops->free(a);

	/* The kernel would let a second machine into a multiqueue tap. */
	o.name = "tt4";
	o.pairs = 2;
	struct netif *c[2];

	assert_int_equal(net_tap_open(&o, c, &err), 0);
	fds = open_fds();
	assert_int_equal(net_tap_open(&o, b, &err), -EBUSY);
	assert_says(&err, -EBUSY, "tap tt4", "in use by another virtual machine");
	assert_int_equal(c[1]->ops->enable(c[1], false), 0);
	assert_int_equal(net_tap_open(&o, b, &err), -EBUSY); /* queues that are off count too */
	assert_int_equal(open_fds(), fds);
	c[0]->ops->free(c[0]);
	c[1]->ops->free(c[1]);
	assert_false(link_exists("tt4"));
}

static void test_wrong_kinds(void **state)
{
	struct net_tap_options o = { .name = "lo", .create = true, .pairs = 1 };
	struct err err = { 0 };
	struct netif *n[2];

	NEED_TAPS();
	assert_int_equal(net_tap_open(&o, n, &err), -EINVAL);
	assert_says(&err, -EINVAL, "lo", "not a tap");

	make_persistent("tt5", 0);
	o.name = "tt5";
	o.pairs = 2;
	assert_int_equal(net_tap_open(&o, n, &err), -EINVAL);
	assert_says(&err, -EINVAL, "tap tt5", "multi_queue");
	remove_persistent("tt5", 0);

	/* a multiqueue tap serves a machine that wants one pair */
	make_persistent("tt6", IFF_MULTI_QUEUE);
	o.name = "tt6";
	o.pairs = 1;
	assert_int_equal(net_tap_open(&o, n, &err), 0);
	n[0]->ops->free(n[0]);
	remove_persistent("tt6", IFF_MULTI_QUEUE);

	static const char *const names[] = { "", "tap%d", "a/b", "sixteencharacter", ".." };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		o.name = names[i];
		assert_int_equal(net_tap_open(&o, n, &err), -EINVAL);
	}
}

static void test_nothing_left(void **state)
{
	struct net_tap_options o = {
		.name = "tt7", .create = true, .pairs = 1, .addr = "192.0.2.1/77"
	};
	struct err err = { 0 };
	struct netif *n;
	struct net_link l;

	NEED_TAPS();
	unsigned fds = open_fds();

	assert_true(net_tap_open(&o, &n, &err) < 0);
	assert_says(&err, err.code, "tt7", "192.0.2.1/77");
	assert_null(n);
	assert_false(link_exists("tt7"));

	/* of one that was there the MTU is put back */
	make_persistent("tt8", 0);
	o.name = "tt8";
	o.mtu = 1300;
	assert_true(net_tap_open(&o, &n, &err) < 0);
	assert_true(link_get("tt8", &l));
	assert_int_equal(l.mtu, 1500);
	assert_false(l.up);
	remove_persistent("tt8", 0);

	o.addr = NULL;
	o.name = "tt9";
	o.mtu = 1000000;
	assert_true(net_tap_open(&o, &n, &err) < 0);
	assert_says(&err, err.code, "tt9", "MTU of 1000000");
	assert_false(link_exists("tt9"));
	assert_int_equal(open_fds(), fds);
}

static void test_frames(void **state)
{
	struct net_tap_options o = { .name = "tt10", .create = true, .pairs = 1 };
	uint8_t frame[100], buf[NET_FRAME_MAX];
	struct err err = { 0 };
	struct netif *n;

	NEED_TAPS();
	assert_int_equal(net_tap_open(&o, &n, &err), 0);
	cleanup_fd int s = packet_socket("tt10");

	/* host to guest */
	make_frame(frame, sizeof(frame), 0x5a);
	assert_int_equal(send(s, frame, sizeof(frame), 0), sizeof(frame));
	assert_int_equal(receive_ours(n, buf, sizeof(buf)), NET_VNET_HDR_LEN + sizeof(frame));
	assert_memory_equal(buf + NET_VNET_HDR_LEN, frame, sizeof(frame));

	/* guest to host, in pieces that cut through the header */
	struct virtio_net_hdr_v1 hdr = { 0 };
	struct iovec iov[4] = { { &hdr, 5 },
				{ (uint8_t *)&hdr + 5, 7 },
				{ frame, 3 },
				{ frame + 3, sizeof(frame) - 3 } };

	frame[50] = 0xa5;
	assert_int_equal(n->ops->send(n, iov, 4), NET_VNET_HDR_LEN + sizeof(frame));
	assert_int_equal(recv(s, buf, sizeof(buf), 0), sizeof(frame));
	assert_memory_equal(buf, frame, sizeof(frame));

	/* what a guest may write into the header: refused by the kernel, never fatal */
	hdr.gso_type = 0x77;
	assert_int_equal(n->ops->send(n, iov, 4), -EINVAL);
	hdr = (struct virtio_net_hdr_v1){ .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
					  .csum_start = 0xfff0,
					  .csum_offset = 0xfff0 };
	assert_int_equal(n->ops->send(n, iov, 4), -EINVAL);
	hdr = (struct virtio_net_hdr_v1){ .hdr_len = 0xffff };
	assert_int_equal(n->ops->send(n, iov, 4), -EINVAL);
	hdr = (struct virtio_net_hdr_v1){ 0 };
	assert_int_equal(n->ops->send(n, iov, 1), -EINVAL); /* no whole header */
	assert_int_equal(n->ops->send(n, iov, 2), -EINVAL); /* no frame */
	assert_int_equal(n->ops->send(n, iov, 4), NET_VNET_HDR_LEN + sizeof(frame));
	n->ops->free(n);
}

/* The interface's own counters, from the guest's side. */
static void test_counters(void **state)
{
	struct net_tap_options o = { .name = "tt24", .create = true, .pairs = 2, .counters = true };
	struct netif_counters was, now;
	struct err err = { 0 };
	struct netif *n[2];
	uint8_t frame[NET_VNET_HDR_LEN + 100] = { 0 }, buf[256];

	NEED_TAPS();
	assert_int_equal(net_tap_open(&o, n, &err), 0);
	assert_int_equal(n[1]->ops->enable(n[1], false), 0);
	assert_int_equal(n[0]->ops->counters(n[0], &was), 0);
	make_frame(frame + NET_VNET_HDR_LEN, 100, 1);
	for (int i = 0; i < 3; i++)
		assert_int_equal(n[0]->ops->send(n[0], &(struct iovec){ frame, sizeof(frame) }, 1),
				 sizeof(frame));
	assert_int_equal(n[0]->ops->counters(n[0], &now), 0);
	assert_int_equal(now.tx_frames - was.tx_frames, 3);
	assert_int_equal(now.tx_bytes - was.tx_bytes, 300);

	cleanup_fd int s = packet_socket("tt24");

	make_frame(frame, 100, 2);
	assert_int_equal(send(s, frame, 100, 0), 100);
	assert_true(receive_ours(n[0], buf, sizeof(buf)) > 0);
	assert_int_equal(n[0]->ops->counters(n[0], &now), 0);
	assert_true(now.rx_frames > was.rx_frames);
	assert_true(now.rx_bytes >= was.rx_bytes + 100);
	n[0]->ops->free(n[0]);
	n[1]->ops->free(n[1]);

	o.counters = false;
	assert_int_equal(net_tap_open(&o, n, &err), 0);
	assert_int_equal(n[0]->ops->counters(n[0], &now), -ENODEV);
	n[0]->ops->free(n[0]);
	n[1]->ops->free(n[1]);
}

static void test_would_block(void **state)
{
	struct net_tap_options o = { .name = "tt11", .create = true, .pairs = 1 };
	uint8_t buf[2048];
	struct iovec iov = { buf, sizeof(buf) };
	struct err err = { 0 };
	struct netif *n;
	ssize_t rc;

	NEED_TAPS();
	assert_int_equal(net_tap_open(&o, &n, &err), 0);
	for (int i = 0; i < 1000; i++) { /* the kernel's own first frames */
		rc = n->ops->receive(n, &iov, 1);
		if (rc < 0)
			break;
	}
	assert_int_equal(rc, -EAGAIN);
	n->ops->free(n);
}

static void test_offloads(void **state)
{
	struct net_tap_options o = { .name = "tt12", .create = true, .pairs = 1 };
	struct err err = { 0 };
	struct netif *n;

	NEED_TAPS();
	assert_int_equal(net_tap_open(&o, &n, &err), 0);
	/* every set a guest could arrive at */
	for (unsigned set = 0; set < 64; set++)
		if (!(set & ~n->offloads))
			assert_int_equal(n->ops->set_offload(n, set), 0);
	n->ops->free(n);
}

/* Send a TCP segment of @len bytes for the kernel to cut, as a host's stack would. */
static void send_tso(const char *name, uint16_t len)
{
	static uint8_t f[65000];
	struct virtio_net_hdr h = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
				    .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
				    .hdr_len = 54,
				    .gso_size = 1000,
				    .csum_start = 34,
				    .csum_offset = 16 };
	struct iovec iov[2] = { { &h, sizeof(h) }, { f, 54u + len } };
	uint16_t total = htons((uint16_t)(40 + len));
	uint32_t sum = 0;
	struct net_link l;
	int one = 1;

	memset(f, 0xab, sizeof(f));
	memcpy(f, "\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\1\x08\0", 14);
	memcpy(f + 14, "\x45\0\0\0\0\0\0\0\x40\6\0\0\xc0\0\2\1\xc0\0\2\2", 20);
	memcpy(f + 16, &total, 2);
	for (int i = 14; i < 34; i += 2)
		sum += (uint32_t)f[i] << 8 | f[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	f[24] = (uint8_t)(~sum >> 8);
	f[25] = (uint8_t)~sum;
	memcpy(f + 34, "\x10\0\x20\0\0\0\0\1\0\0\0\1\x50\x10\x10\0\0\0\0\0", 20);

	cleanup_fd int s = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

	assert_int_equal(setsockopt(s, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)), 0);
	assert_true(link_get(name, &l));
	struct sockaddr_ll to = { .sll_family = AF_PACKET,
				  .sll_protocol = htons(ETH_P_IP),
				  .sll_ifindex = l.index,
				  .sll_halen = 6 };
	struct msghdr m = {
		.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = iov, .msg_iovlen = 2
	};

	assert_int_equal(sendmsg(s, &m, 0), sizeof(h) + iov[1].iov_len);
}

/* The next TCP frame's length with its header; the kernel's own frames are passed over. */
static ssize_t receive_tcp(struct netif *n, uint8_t *buf, size_t len)
{
	struct iovec iov = { buf, len };

	for (;;) {
		ssize_t got = n->ops->receive(n, &iov, 1);

		if (got == -EAGAIN) {
			struct pollfd p = { .fd = n->fd, .events = POLLIN };

			assert_int_equal(poll(&p, 1, 10000), 1);
		} else if (got < 0 || !memcmp(buf + NET_VNET_HDR_LEN + 12, "\x08\0\x45", 3)) {
			return got;
		}
	}
}

/* A large segment comes whole only to a guest that agreed to it. */
static void test_segmentation(void **state)
{
	struct net_tap_options o = { .name = "tt20", .create = true, .pairs = 1 };
	static uint8_t buf[NET_FRAME_MAX];
	struct virtio_net_hdr_v1 h;
	struct err err = { 0 };
	struct netif *n;

	NEED_TAPS();
	assert_int_equal(net_tap_open(&o, &n, &err), 0);
	send_tso("tt20", 10000);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(receive_tcp(n, buf, sizeof(buf)), NET_VNET_HDR_LEN + 54 + 1000);
		memcpy(&h, buf, sizeof(h));
		assert_int_equal(h.gso_type, VIRTIO_NET_HDR_GSO_NONE);
		assert_int_equal(h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM, 0);
	}
	assert_int_equal(n->ops->set_offload(n, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4), 0);
	send_tso("tt20", 60000);
	assert_int_equal(receive_tcp(n, buf, sizeof(buf)), NET_VNET_HDR_LEN + 54 + 60000);
	memcpy(&h, buf, sizeof(h));
	assert_int_equal(h.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
	assert_int_equal(h.gso_size, 1000);
	assert_int_equal(h.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
	assert_int_equal(n->ops->set_offload(n, 0), 0);
	send_tso("tt20", 2000);
	assert_int_equal(receive_tcp(n, buf, sizeof(buf)), NET_VNET_HDR_LEN + 54 + 1000);
	n->ops->free(n);
}

static void test_multiqueue(void **state)
{
	struct net_tap_options o = { .name = "tt13", .create = true, .pairs = 4 };
	struct err err = { 0 };
	struct netif *n[4];
	struct net_link l;

	NEED_TAPS();
	assert_int_equal(net_tap_open(&o, n, &err), 0);
	assert_true(link_get("tt13", &l));
	assert_true(l.multi_queue);
	assert_int_equal(l.queues, 4);
	for (int i = 1; i < 4; i++) {
		assert_int_equal(n[i]->ops->enable(n[i], false), 0);
		assert_int_equal(n[i]->ops->enable(n[i], false), 0);
	}
	/* with one queue on, every frame goes there */
	cleanup_fd int s = packet_socket("tt13");
	uint8_t frame[64], buf[256];

	for (uint8_t i = 0; i < 8; i++) {
		make_frame(frame, sizeof(frame), i);
		assert_int_equal(send(s, frame, sizeof(frame), 0), sizeof(frame));
		assert_int_equal(receive_ours(n[0], buf, sizeof(buf)),
				 NET_VNET_HDR_LEN + sizeof(frame));
		assert_int_equal(buf[NET_VNET_HDR_LEN + 63], i);
	}
	for (int i = 0; i < 4; i++) {
		assert_int_equal(n[i]->ops->enable(n[i], true), 0);
		n[i]->ops->free(n[i]);
	}
	assert_false(link_exists("tt13"));
}

static void test_inherited(void **state)
{
	int fd = -1;
	struct net_tap_options o = { .pairs = 1, .fd = &fd };
	uint8_t frame[60], buf[256];
	struct err err = { 0 };
	struct netif *n;

	NEED_TAPS();
	fd = make_tap("tt14", IFF_VNET_HDR);
	assert_int_equal(net_tap_open(&o, &n, &err), 0);
	assert_string_equal(n->name, "tt14");
	assert_int_equal(n->mtu, 1500);
	assert_true(fcntl(n->fd, F_GETFL) & O_NONBLOCK);

	struct nl_sock *nl = net_link_connect(&err);
	struct net_link l;

	assert_true(link_get("tt14", &l));
	assert_int_equal(net_link_set_up(nl, l.index), 0);
	nl_socket_free(nl);
	cleanup_fd int s = packet_socket("tt14");

	make_frame(frame, sizeof(frame), 1);
	assert_int_equal(send(s, frame, sizeof(frame), 0), sizeof(frame));
	assert_int_equal(receive_ours(n, buf, sizeof(buf)), NET_VNET_HDR_LEN + sizeof(frame));
	n->ops->free(n);
	assert_false(link_exists("tt14"));

	/* what is refused stays the caller's */
	cleanup_fd int plain = make_tap("tt15", 0);

	fd = plain;
	assert_int_equal(net_tap_open(&o, &n, &err), -EINVAL);
	assert_says(&err, -EINVAL, "tt15", "IFF_VNET_HDR");
	assert_true(fcntl(plain, F_GETFD) >= 0);
	o.addr = "192.0.2.1/24";
	cleanup_fd int good = make_tap("tt16", IFF_VNET_HDR);

	fd = good;
	assert_int_equal(net_tap_open(&o, &n, &err), -EINVAL);
	assert_says(&err, -EINVAL, "fd=", "addr");
}

static void test_not_a_tap(void **state)
{
	int fd[2] = { open("/dev/null", O_RDWR), -1 };
	struct net_tap_options o = { .pairs = 1, .fd = fd };
	struct err err = { 0 };
	struct netif *n;

	(void)state;
	assert_int_equal(net_tap_open(&o, &n, &err), -EINVAL);
	assert_says(&err, -EINVAL, "fd=", "not an open tap");
	close(fd[0]);
	assert_int_equal(net_tap_open(&o, &n, &err), -EBADF);
	assert_says(&err, -EBADF, "fd=", "not open");
}

static int make_queue(const char *name)
{
	return make_tap(name, IFF_VNET_HDR | IFF_MULTI_QUEUE);
}

static void test_inherited_queues(void **state)
{
	int fd[3];
	struct net_tap_options o = { .pairs = 3, .fd = fd };
	struct err err = { 0 };
	struct netif *n[3];
	struct net_link l;

	NEED_TAPS();
	for (int i = 0; i < 3; i++)
		fd[i] = make_queue("tt21");
	assert_int_equal(net_tap_open(&o, n, &err), 0);
	assert_true(link_get("tt21", &l));
	assert_int_equal(l.queues, 3);
	for (int i = 0; i < 3; i++) {
		assert_string_equal(n[i]->name, "tt21");
		assert_int_equal(n[i]->ops->enable(n[i], false), 0);
		assert_int_equal(n[i]->ops->enable(n[i], true), 0);
		n[i]->ops->free(n[i]);
	}
	assert_false(link_exists("tt21"));

	/* of two taps: refused, and all of them stay the caller's */
	fd[0] = make_queue("tt22");
	fd[1] = make_queue("tt22");
	fd[2] = make_queue("tt23");
	assert_int_equal(net_tap_open(&o, n, &err), -EINVAL);
	assert_says(&err, -EINVAL, "tt22", "tt23");
	for (int i = 0; i < 3; i++)
		assert_int_equal(close(fd[i]), 0);
}

/* Whoever removes the interface under a running machine must not make it spin or stop. */
static void test_removed_under_us(void **state)
{
	struct net_tap_options o = { .name = "tt17", .create = true, .pairs = 1 };
	uint8_t buf[256] = { 0 };
	struct iovec iov = { buf, sizeof(buf) };
	struct err err = { 0 };
	struct netif *n;

	NEED_TAPS();
	assert_int_equal(net_tap_open(&o, &n, &err), 0);
	assert_int_equal(system("ip link del tt17"), 0);
	assert_int_equal(n->ops->receive(n, &iov, 1), -EBADFD);
	assert_int_equal(n->ops->send(n, &iov, 1), -EBADFD);
	n->ops->free(n);
}

/* A user without rights, in a child. */
static void test_no_right(void **state)
{
	struct net_tap_options o = { .name = "tt18", .create = true, .pairs = 1 };
	struct err err = { 0 };
	struct netif *n;

	NEED_TAPS();
	make_persistent("tt19", 0);
	assert_int_equal(seteuid(65534), 0);
	/* the device may be root's alone: then the message is about that */
	bool may_open = !eaccess("/dev/net/tun", R_OK | W_OK);
	int rc = net_tap_open(&o, &n, &err);

	if (may_open) {
		assert_int_equal(rc, -EPERM);
		assert_says(&err, -EPERM, "tt18", "CAP_NET_ADMIN");
		o.name = "tt19";
		rc = net_tap_open(&o, &n, &err);
		assert_int_equal(rc, -EPERM);
		assert_says(&err, -EPERM, "tt19", "ip tuntap add tt19");
	} else {
		assert_int_equal(rc, -EACCES);
		assert_says(&err, -EACCES, "tt18", "/dev/net/tun");
	}
	assert_int_equal(seteuid(0), 0);
	remove_persistent("tt19", 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_create_and_vanish),
		cmocka_unit_test(test_absent),
		cmocka_unit_test(test_existing_persists),
		cmocka_unit_test(test_in_use),
		cmocka_unit_test(test_wrong_kinds),
		cmocka_unit_test(test_nothing_left),
		cmocka_unit_test(test_frames),
		cmocka_unit_test(test_counters),
		cmocka_unit_test(test_would_block),
		cmocka_unit_test(test_offloads),
		cmocka_unit_test(test_segmentation),
		cmocka_unit_test(test_multiqueue),
		cmocka_unit_test(test_inherited),
		cmocka_unit_test(test_inherited_queues),
		cmocka_unit_test(test_not_a_tap),
		cmocka_unit_test(test_removed_under_us),
		cmocka_unit_test(test_no_right),
	};

	return cmocka_run_group_tests(tests, set_up_namespace, NULL);
}
