/*
 * net_control.c - the control queue (5.1.6.5)
 *
 * A command is answered ERR when its length is not exactly what it says, its feature was not
 * negotiated, or a value is out of range; only one that leaves no room for the answer breaks the
 * device. Receive filters are accepted and remembered but not applied: the specification has them
 * best effort, a frame too many is legal, and the bridge in front of the tap filters already.
 */
#include <endian.h>
#include <string.h>

#include "virtio/net_priv.h"

#define MAC_LEN 6

struct command {
	struct net *net;
	const struct virtq_chain *chain;
	uint8_t cmd;
	uint64_t len; /* bytes after class and command */
};

/* Copy @n bytes of the command's data at @off; false past its end. */
static bool data_at(const struct command *c, uint64_t off, void *dst, size_t n)
{
	return off <= c->len && n <= c->len - off &&
	       virtq_copy_out(c->chain, sizeof(struct virtio_net_ctrl_hdr) + off, dst, n) == n;
}

/* Is the data exactly the @n bytes of @dst? */
static bool data_is(const struct command *c, void *dst, size_t n)
{
	return c->len == n && data_at(c, 0, dst, n);
}

static bool rx_mode(const struct command *c)
{
	struct virtio_net_regs *r = &c->net->regs;
	uint8_t *const mode[] = {
		[VIRTIO_NET_CTRL_RX_PROMISC] = &r->promisc,
		[VIRTIO_NET_CTRL_RX_ALLMULTI] = &r->allmulti,
		[VIRTIO_NET_CTRL_RX_ALLUNI] = &r->alluni,
		[VIRTIO_NET_CTRL_RX_NOMULTI] = &r->nomulti,
		[VIRTIO_NET_CTRL_RX_NOUNI] = &r->nouni,
		[VIRTIO_NET_CTRL_RX_NOBCAST] = &r->nobcast,
	};
	uint64_t feature = c->cmd <= VIRTIO_NET_CTRL_RX_ALLMULTI ? NET_F(CTRL_RX) :
								   NET_F(CTRL_RX_EXTRA);
	uint8_t on;

	if (c->cmd >= sizeof(mode) / sizeof(mode[0]) || !virtio_has(&c->net->v, feature) ||
	    !data_is(c, &on, sizeof(on)) || on > 1)
		return false;
	*mode[c->cmd] = on;
	return true;
}

/* Two tables, unicast and multicast: a count and that many addresses each. */
static bool mac_table(const struct command *c)
{
	uint64_t off = 0;

	if (!virtio_has(&c->net->v, NET_F(CTRL_RX)))
		return false;
	for (int i = 0; i < 2; i++) {
		uint32_t count;

		if (!data_at(c, off, &count, sizeof(count)))
			return false;
		off += sizeof(count) + (uint64_t)le32toh(count) * MAC_LEN;
	}
	return off == c->len;
}

static bool mac_addr(const struct command *c)
{
	static const uint8_t zero[MAC_LEN];
	uint8_t mac[MAC_LEN];

	if (!virtio_has(&c->net->v, NET_F(CTRL_MAC_ADDR)) || !data_is(c, mac, sizeof(mac)) ||
	    mac[0] & 1 || !memcmp(mac, zero, sizeof(mac)))
		return false;
	memcpy(c->net->v.regs.config + offsetof(struct virtio_net_config, mac), mac, sizeof(mac));
	return true;
}

static bool mac(const struct command *c)
{
	switch (c->cmd) {
	case VIRTIO_NET_CTRL_MAC_TABLE_SET:
		return mac_table(c);
	case VIRTIO_NET_CTRL_MAC_ADDR_SET:
		return mac_addr(c);
	default:
		return false;
	}
}

static bool pairs(const struct command *c)
{
	struct net *net = c->net;
	uint16_t n;

	if (c->cmd != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET || !virtio_has(&net->v, NET_F(MQ)) ||
	    !data_is(c, &n, sizeof(n)))
		return false;
	n = le16toh(n);
	if (!n || n > net->npairs)
		return false;
	if (n == net->regs.pairs)
		return true;
	unsigned before = net->regs.pairs;

	net->regs.pairs = n;
	net_apply_pairs(net);
	for (unsigned q = 2 * before; q < 2u * n; q++) /* buffers may be there already */
		event_signal(&net->v.queues[q].kick);
	return true;
}

static bool announce(const struct command *c)
{
	if (c->cmd != VIRTIO_NET_CTRL_ANNOUNCE_ACK || c->len ||
	    !virtio_has(&c->net->v, NET_F(GUEST_ANNOUNCE)))
		return false;
	net_announced(c->net);
	return true;
}

static bool guest_offloads(const struct command *c)
{
	struct net *net = c->net;
	uint64_t bits;

	if (c->cmd != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET ||
	    !virtio_has(&net->v, NET_F(CTRL_GUEST_OFFLOADS)) || !data_is(c, &bits, sizeof(bits)))
		return false;
	bits = le64toh(bits);
	if (bits & ~net_guest_offload_bits(net))
		return false;
	net->regs.offloads_off = net_guest_offload_bits(net) & ~bits;
	net_apply_offloads(net);
	return true;
}

static bool run(struct net *net, const struct virtq_chain *chain)
{
	struct virtio_net_ctrl_hdr hdr;

	if (virtq_copy_out(chain, 0, &hdr, sizeof(hdr)) != sizeof(hdr))
		return false;
	struct command c = {
		.net = net, .chain = chain, .cmd = hdr.cmd, .len = chain->out_len - sizeof(hdr)
	};

	switch (hdr.class) {
	case VIRTIO_NET_CTRL_RX:
		return rx_mode(&c);
	case VIRTIO_NET_CTRL_MAC:
		return mac(&c);
	case VIRTIO_NET_CTRL_MQ:
		return pairs(&c);
	case VIRTIO_NET_CTRL_ANNOUNCE:
		return announce(&c);
	case VIRTIO_NET_CTRL_GUEST_OFFLOADS:
		return guest_offloads(&c);
	default:
		return false;
	}
}

/* 0, or -EPROTO with @why. */
static int answer(struct net *net, struct virtq *q, const struct virtq_chain *c, const char **why)
{
	if (!c->nin) {
		virtq_unpop(q, c);
		*why = "a control command leaves no room for its answer";
		return -EPROTO;
	}
	uint8_t ack = run(net, c) ? VIRTIO_NET_OK : VIRTIO_NET_ERR;

	virtq_copy_in(c, 0, &ack, sizeof(ack));
	virtq_mark_written(q, c, sizeof(ack));
	virtq_push(q, c->head, sizeof(ack));
	return 0;
}

void net_control_turn(struct net *net, unsigned queue)
{
	struct virtq *q = &net->v.queues[queue];
	struct virtq_chain c = { .iov = net->iov, .room = VIRTQ_SEGS_MAX };
	const char *why = NULL;
	unsigned budget = NET_BATCH;
	int rc = 1;

	while (budget && rc == 1) {
		rc = virtq_pop(q, &c, &why);
		budget--;
		if (rc == 1)
			rc = answer(net, q, &c, &why) ? -EPROTO : 1;
		else if (!rc && virtq_want_kick(q))
			rc = 1; /* one came meanwhile */
	}
	virtio_flush(&net->v, queue);
	if (rc < 0)
		virtio_fail(&net->v, why);
	else if (rc)
		event_signal(&q->kick);
}
