/*
 * responder.c - speaks DHCP and neighbour discovery with the guest on one tap
 *
 * A packet socket sees a frame before tc takes it away, and sends out of the tap, which is into
 * the guest. The kernel's filter lets through only what can be for us, and frames on their way to
 * the guest are not looked at at all, so this costs the pod's traffic next to nothing. The socket
 * hears frames of every kind of protocol: one bound to a protocol would get them after tc, that
 * is, never.
 *
 * A guest that asks without end gets FRAMES_PER_SECOND; then the socket is left alone until the
 * second is over and the kernel drops what does not fit its buffer. The shim has other things to
 * do.
 */
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/dhcp.h"
#include "k8s-shim/neigh.h"
#include "k8s-shim/ra.h"
#include "k8s-shim/responder.h"

#define FRAMES_PER_SECOND 200
#define FRAMES_AT_ONCE    16 /* then others of the loop have their turn */
#define NSEC              UINT64_C(1000000000)
#define FRAME_ROOM        2048

/* ---- the socket ---- */

/* UDP over IPv4 to the DHCP server's port, router solicitations; @no_arp: ARP, neighbour ones. */
static int set_filter(int sock, bool no_arp)
{
	const unsigned all = 0xffff, arp = no_arp ? all : 0;
	struct sock_filter code[] = {
		/* 0*/ BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),
		/* 1*/ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IP, 2, 0),
		/* 2*/ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IPV6, 8, 0),
		/* 3*/ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_ARP, 13, 14),
		/* 4*/ BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 23),
		/* 5*/ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 12),
		/* 6*/ BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 20),
		/* 7*/ BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x1fff, 10, 0),
		/* 8*/ BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 14),
		/* 9*/ BPF_STMT(BPF_LD | BPF_H | BPF_IND, 16),
		/*10*/ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, DHCP_SERVER_PORT, 5, 7),
		/*11*/ BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 20),
		/*12*/ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_ICMPV6, 0, 5),
		/*13*/ BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 54),
		/*14*/ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 133, 1, 0),
		/*15*/ BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 135, 1, 2),
		/*16*/ BPF_STMT(BPF_RET | BPF_K, all),
		/*17*/ BPF_STMT(BPF_RET | BPF_K, arp),
		/*18*/ BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog prog = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	return setsockopt(sock, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog));
}

int responder_open(struct responder *r, const struct pod_nic *nic, const struct told *told,
		   int tap_index, bool no_arp, struct err *err)
{
	struct sockaddr_ll at = { .sll_family = AF_PACKET,
				  .sll_protocol = htons(ETH_P_ALL),
				  .sll_ifindex = tap_index };
	const int on = 1, buffer = 65536;

	r->nic = nic;
	r->told = told;
	r->no_arp = no_arp;
	/* of no protocol until it has its filter and its tap */
	r->sock = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (r->sock < 0 || set_filter(r->sock, no_arp) ||
	    setsockopt(r->sock, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer)) ||
	    setsockopt(r->sock, SOL_PACKET, PACKET_AUXDATA, &on, sizeof(on)) ||
	    setsockopt(r->sock, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)) ||
	    bind(r->sock, (struct sockaddr *)&at, sizeof(at)))
		return err_set_sys(err, errno, "%s: cannot listen for the guest's DHCP requests",
				   nic->name);
	return 0;
}

/* ---- frames ---- */

/* In a VLAN of the guest's? The kernel takes the tag out of the frame, but tells. */
static bool tagged(struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		struct tpacket_auxdata aux;

		if (c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA ||
		    c->cmsg_len < CMSG_LEN(sizeof(aux)))
			continue;
		memcpy(&aux, CMSG_DATA(c), sizeof(aux));
		return aux.tp_status & TP_STATUS_VLAN_VALID;
	}
	return false;
}

static void answer(struct responder *r, const uint8_t *frame, size_t len)
{
	uint8_t out[DHCP_FRAME_MAX];
	size_t n = dhcp_answer(r->nic, r->told, frame, len, out, sizeof(out));

	if (!n)
		n = ra_answer(r->nic, r->told, frame, len, out, RA_FRAME_MAX);
	if (!n && r->no_arp)
		n = neigh_answer(r->nic, frame, len, out, sizeof(out));
	/* no room, no guest any more: it will ask again if it still wants to know */
	if (n && send(r->sock, out, n, MSG_NOSIGNAL) < 0)
		log_debug("%s: answer to the guest: %s", r->nic->name, strerror(errno));
}

/* One frame; false: there is none. */
static bool take_frame(struct responder *r)
{
	uint8_t frame[FRAME_ROOM], control[256];
	struct iovec iov = { .iov_base = frame, .iov_len = sizeof(frame) };
	struct msghdr m = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control,
			    .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(r->sock, &m, 0);

	if (n < 0 && errno != EAGAIN && errno != EINTR && errno != ENETDOWN) {
		log_debug("%s: the tap is gone: %s", r->nic->name, strerror(errno));
		loop_remove(&r->watch);
	}
	if (n > 0 && !tagged(&m))
		answer(r, frame, (size_t)n);
	return n >= 0;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NSEC + (uint64_t)t.tv_nsec;
}

static void on_frames(struct loop_watch *w, uint32_t events)
{
	struct responder *r = (struct responder *)((char *)w - offsetof(struct responder, watch));
	uint64_t now = now_ns();

	if (now / NSEC != r->second) {
		r->second = now / NSEC;
		r->budget = FRAMES_PER_SECOND;
	}
	for (unsigned i = 0; i < FRAMES_AT_ONCE && r->budget; i++, r->budget--)
		if (!take_frame(r))
			return;
	if (!r->budget && r->watch.fd >= 0) {
		loop_modify(&r->watch, 0);
		loop_timer_arm(&r->timer, NSEC - now % NSEC, RA_PERIOD_S * NSEC);
	}
}

/* The period of advertisements is over, or a pause. */
static void on_time(struct loop_timer *t)
{
	struct responder *r = (struct responder *)((char *)t - offsetof(struct responder, timer));
	uint8_t out[RA_FRAME_MAX];
	size_t n = ra_advertise(r->nic, r->told, out, sizeof(out));

	if (n && send(r->sock, out, n, MSG_NOSIGNAL) < 0)
		log_debug("%s: advertisement: %s", r->nic->name, strerror(errno));
	if (r->watch.fd >= 0)
		loop_modify(&r->watch, EPOLLIN);
}

/* ---- life ---- */

void responder_init(struct responder *r)
{
	*r = (struct responder){ .sock = -1, .watch.fd = -1 };
}

int responder_start(struct responder *r, struct loop *loop, struct err *err)
{
	int rc = loop_timer_init(loop, &r->timer, on_time, err);

	if (rc)
		return rc;
	r->timed = true;
	loop_timer_arm(&r->timer, RA_PERIOD_S * NSEC, RA_PERIOD_S * NSEC);
	rc = loop_add(loop, &r->watch, r->sock, EPOLLIN, on_frames);
	return rc ? err_set_sys(err, rc, "%s: cannot wait for the guest's DHCP requests",
				r->nic->name) :
		    0;
}

void responder_fini(struct responder *r)
{
	loop_remove(&r->watch);
	if (r->timed)
		loop_timer_fini(&r->timer);
	r->timed = false;
	fd_close(&r->sock);
}
