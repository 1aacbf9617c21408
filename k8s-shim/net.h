/*
 * net.h - the pod's network interfaces as the machine's NICs
 *
 * CNI has set up the pod's network namespace before the runtime hears of the pod. For each link
 * in it but lo there is a tap of the same MTU and a redirection by tc both ways, so the guest has
 * the link's own MAC address and is to the network what an ordinary container would be. A
 * responder on each tap tells the guest its addresses (DHCP, router advertisements).
 *
 * Everything runs on the caller's thread and loop, but what has to be done inside the namespace:
 * a thread that ends before the call returns does that, so the shim's own threads never leave the
 * host's. The order in the shim: open when the container is created, hand the tap descriptors to
 * the machine, close after the machine has ended (task_exit.c); the pod may then start another
 * one.
 */
#ifndef K8S_SHIM_NET_H
#define K8S_SHIM_NET_H

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/loop.h"

struct pod_net;

/* What the responders say beyond what the links tell. Borrowed for the time of pod_net_open(). */
struct pod_net_options {
	const char *netns;         /* path of the pod's network namespace */
	const char *hostname;      /* NULL: none */
	const char *const *dns;    /* addresses as text, v4 and v6; NULL-terminated, or NULL */
	const char *const *search; /* domains; NULL-terminated, or NULL */
	unsigned queues;           /* queue pairs the machine would like: its number of vCPUs */
};

#define POD_NICS_MAX   16
#define POD_ADDRS_MAX  16 /* a link's */
#define POD_ROUTES_MAX 64
#define POD_QUEUES_MAX 32

struct pod_addr {
	int family; /* AF_INET, AF_INET6; link-local ones are not listed */
	uint8_t addr[16];
	/*
	 * 32 or 128 where the pod has no route to the address's network by the link (ptp plugin,
	 * Calico): the guest must not look for its neighbours there either.
	 */
	unsigned prefix;
};

struct pod_route {
	int family;
	uint8_t to[16]; /* prefix 0: the default route */
	unsigned prefix;
	uint8_t via[16];
	bool has_via; /* false: the destination is on the link */
	uint32_t metric;
};

/* One NIC. Owned by the pod_net, valid until pod_net_close(). */
struct pod_nic {
	char name[IF_NAMESIZE]; /* of the link in the pod: eth0 */
	uint8_t mac[6];
	unsigned mtu;
	/*
	 * Open tap descriptors, close-on-exec, IFF_NO_PI and IFF_VNET_HDR set, one a queue pair:
	 * the machine inherits dup()s of them, all of them, or frames get lost. The tap goes away
	 * with the last descriptor.
	 */
	const int *taps;
	unsigned ntaps;
	const struct pod_addr *addrs;
	unsigned naddrs;
	const struct pod_route *routes; /* on-link ones first; networks of addresses left out */
	unsigned nroutes;
};

/*
 * Make the NICs of the namespace. A namespace with no link but lo is fine: no NICs. On error
 * nothing is left behind. -ENOENT: the namespace has gone; -errno with the link named.
 */
int pod_net_open(const struct pod_net_options *o, struct loop *loop, struct pod_net **out,
		 struct err *err);

unsigned pod_net_count(const struct pod_net *n);
const struct pod_nic *pod_net_nic(const struct pod_net *n, unsigned i); /* in order of ifindex */

/* Another NIC with the same MAC address, as two ipvlan links on one parent have; NULL: none. */
const struct pod_nic *pod_net_twin(const struct pod_net *n, unsigned i);

/* A cloud-init network-config (version 2) that says the same; malloc'd, NULL: out of memory. */
char *pod_net_config(const struct pod_net *n);

/* Stop answering, take away taps and redirections. The namespace may be gone. NULL is fine. */
void pod_net_close(struct pod_net *n);

/*
 * Take away what a shim that was killed has left in the namespace (taps go by themselves, tc
 * rules do not). Called by `containerd-shim-coracle-v2 delete`; idempotent, and a namespace that
 * has gone is fine. The NICs of a machine that lives stay: `delete` also comes for a container
 * refused beside it.
 */
void pod_net_sweep(const char *netns);

#endif
