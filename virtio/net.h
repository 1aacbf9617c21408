/*
 * net.h - virtio network device (virtio 1.2 chapter 5.1)
 */
#ifndef VIRTIO_NET_H
#define VIRTIO_NET_H

#include "backends/net.h"
#include "virtio/device.h"

struct vhost;

struct virtio_net_options {
	const char *name; /* instance, "net.net0" */
	uint8_t mac[6];
	uint16_t mtu; /* 0: not told to the guest */
	unsigned pairs;
	uint16_t queue_size;
	struct vhost **vhost; /* one a pair, owned from success on; NULL: @loop does the work */
};

/*
 * A locally administered address made from the machine's and the NIC's names; the same every time.
 */
void virtio_net_default_mac(const char *vm_id, const char *nic_id, uint8_t mac[6]);

/* Owns @ifs[0..pairs) from success on. @loop is an I/O thread's. NULL on error. */
struct virtio *virtio_net_new(const struct virtio_net_options *o, struct netif **ifs,
			      struct gmem *mem, struct loop *loop, struct err *err);

/*
 * Let the network know where the machine is now: after a migration. @d is a virtio-net device. Main
 * thread, the machine runs.
 */
#define VIRTIO_NET_TYPE "virtio-net"
void virtio_net_announce(struct device *d);

extern const struct state_desc virtio_net_state;

#endif
