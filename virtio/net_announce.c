/*
 * net_announce.c - the machine is somewhere else now, and the network has to learn it
 *
 * Switches in between still send the machine's frames to where it was, until one comes from its new
 * place. We send one ourselves, a reverse ARP request, which needs no address of the guest's; it goes
 * out a few times, as it may be lost while a bridge still learns. A guest that negotiated
 * VIRTIO_NET_F_GUEST_ANNOUNCE (5.1.6.5.4) is asked to announce all its addresses (VLANs, IPv6) as well.
 */
#include <endian.h>
#include <string.h>

#include "virtio/net_priv.h"

#define TIMES    5
#define AGAIN_NS 100000000u
#define FRAME    60 /* the shortest on Ethernet */

static void send_rarp(struct net *net)
{
	static const uint8_t request[] = { 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3 };
	uint8_t frame[NET_VNET_HDR_LEN + FRAME] = { 0 }, *p = frame + NET_VNET_HDR_LEN;
	const uint8_t *mac = net->v.regs.config + offsetof(struct virtio_net_config, mac);
	struct netif *nif = net->pair[0].nif;

	memset(p, 0xff, 6);
	memcpy(p + 6, mac, 6);
	memcpy(p + 12, request, sizeof(request));
	memcpy(p + 22, mac, 6); /* sender; its IP address, and the target's, stay 0 */
	memcpy(p + 32, mac, 6);
	if (net->pair[0].gone ||
	    nif->ops->send(nif, &(struct iovec){ frame, sizeof(frame) }, 1) < 0)
		log_debug("%s: an announcement could not be sent", net->v.dev.name);
}

static void ask_guest(struct net *net)
{
	uint8_t *at = net->v.regs.config + offsetof(struct virtio_net_config, status);
	uint16_t status;

	if (!virtio_has(&net->v, NET_F(GUEST_ANNOUNCE)) || !virtio_running(&net->v))
		return;
	memcpy(&status, at, sizeof(status));
	status |= htole16(VIRTIO_NET_S_ANNOUNCE);
	memcpy(at, &status, sizeof(status));
	virtio_config_changed(&net->v);
}

void net_announced(struct net *net)
{
	uint8_t *at = net->v.regs.config + offsetof(struct virtio_net_config, status);
	uint16_t status;

	memcpy(&status, at, sizeof(status));
	status &= (uint16_t)~htole16(VIRTIO_NET_S_ANNOUNCE);
	memcpy(at, &status, sizeof(status));
}

static void announce(struct net *net)
{
	pthread_mutex_lock(&net->v.dev.lock);
	send_rarp(net);
	if (net->announcements == TIMES)
		ask_guest(net);
	pthread_mutex_unlock(&net->v.dev.lock);
	if (--net->announcements)
		loop_timer_arm(&net->announce_timer, AGAIN_NS, 0);
}

static void on_timer(struct loop_timer *t)
{
	announce((struct net *)((char *)t - offsetof(struct net, announce_timer)));
}

int net_announce_init(struct net *net, struct err *err)
{
	return loop_timer_init(net->v.loop, &net->announce_timer, on_timer, err);
}

static void start(void *arg)
{
	struct net *net = arg;

	net->announcements = TIMES;
	announce(net);
}

void virtio_net_announce(struct device *d)
{
	struct net *net = net_of((struct virtio *)d);

	loop_call(net->v.loop, start, net);
}
