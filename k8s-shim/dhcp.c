/*
 * dhcp.c - DHCP for one NIC with one address
 *
 * The guest gets the pod's first IPv4 address; DHCP knows only one. Nothing is remembered between
 * messages: what the answer is follows from the message and the NIC alone, so there's no state
 * that a guest could exhaust or a restarted shim lose.
 *
 * Routes are told twice. Option 121 has all of them, those on the link with next hop 0.0.0.0,
 * which is how a gateway outside of the address's network (ptp plugin, Calico's 169.254.1.1)
 * becomes reachable. Clients that ask for it ignore option 3, which is for the others (RFC 3442).
 *
 * The server calls itself by the gateway's address: it is one that the guest will not use itself,
 * and needs no name of ours in the pod's network. No checksum of what comes in is verified:
 * guests leave them to the (virtual) hardware.
 */
#include <arpa/inet.h>

#include "k8s-shim/dhcp.h"
#include "k8s-shim/packet.h"

#define BOOTP_LEN      236
#define BOOTP_MIN      300 /* RFC 1542, 2.1 */
#define MAGIC          0x63825363
#define FLAG_BROADCAST 0x8000
#define LEASE_INFINITE 0xffffffff
#define MAX_SIZE_LEAST 576 /* RFC 2131, 2: what every client takes */
#define HOP_LIMIT      64

enum option {
	OPT_PAD = 0,
	OPT_MASK = 1,
	OPT_ROUTER = 3,
	OPT_DNS = 6,
	OPT_HOSTNAME = 12,
	OPT_DOMAIN = 15,
	OPT_MTU = 26,
	OPT_REQUESTED = 50,
	OPT_LEASE = 51,
	OPT_TYPE = 53,
	OPT_SERVER = 54,
	OPT_MAX_SIZE = 57,
	OPT_CLIENT_ID = 61,
	OPT_SEARCH = 119,
	OPT_ROUTES = 121,
	OPT_END = 255,
};

/* ---- reading ---- */

/* The BOOTP message of a frame to UDP port 67; its length in @len. */
static const uint8_t *find_bootp(const uint8_t *frame, size_t *len)
{
	const uint8_t *ip = frame + ETH_LEN, *udp;
	size_t left = *len, head;

	if (left < ETH_LEN + IPV4_LEN || get16(frame + 12) != 0x0800)
		return NULL;
	left -= ETH_LEN;
	head = (ip[0] & 15) * 4u;
	if (ip[0] >> 4 != 4 || head < IPV4_LEN || get16(ip + 2) > left ||
	    get16(ip + 2) < head + UDP_LEN)
		return NULL;
	left = get16(ip + 2) - head;
	/* UDP, and not a fragment */
	if (ip[9] != 17 || get16(ip + 6) & 0x3fff)
		return NULL;
	udp = ip + head;
	if (get16(udp + 2) != DHCP_SERVER_PORT || get16(udp + 4) > left ||
	    get16(udp + 4) < UDP_LEN + BOOTP_LEN + 4)
		return NULL;
	*len = get16(udp + 4) - UDP_LEN;
	return udp + UDP_LEN;
}

static void read_option(unsigned code, const uint8_t *data, unsigned len, struct dhcp_request *r)
{
	if (code == OPT_TYPE && len == 1 && data[0] <= DHCP_INFORM)
		r->type = data[0];
	else if (code == OPT_REQUESTED && len == 4)
		memcpy(r->requested, data, 4);
	else if (code == OPT_SERVER && len == 4)
		memcpy(r->server, data, 4);
	else if (code == OPT_MAX_SIZE && len == 2 && get16(data) > MAX_SIZE_LEAST)
		r->max_size = get16(data);
	else if (code == OPT_CLIENT_ID)
		memcpy(r->client_id, data, r->client_id_len = (uint8_t)len);
}

bool dhcp_parse(const uint8_t *frame, size_t len, struct dhcp_request *r)
{
	const uint8_t *b = find_bootp(frame, &len);

	/* a request, of Ethernet, that came by no relay */
	if (!b || b[0] != 1 || b[1] != 1 || b[2] != 6 || get32(b + 24) ||
	    get32(b + BOOTP_LEN) != MAGIC)
		return false;
	*r = (struct dhcp_request){ .xid = get32(b + 4),
				    .flags = get16(b + 10),
				    .max_size = MAX_SIZE_LEAST };
	memcpy(r->ciaddr, b + 12, 4);
	memcpy(r->mac, b + 28, 6);
	for (size_t at = BOOTP_LEN + 4; at < len && b[at] != OPT_END;) {
		if (b[at] == OPT_PAD) {
			at++;
			continue;
		}
		if (len - at < 2 || len - at - 2 < b[at + 1])
			return false;
		read_option(b[at], b + at + 2, b[at + 1], r);
		at += 2u + b[at + 1];
	}
	return r->type != 0;
}

/* ---- what to say ---- */

static const struct pod_addr *first_addr(const struct pod_nic *nic)
{
	for (unsigned i = 0; i < nic->naddrs; i++)
		if (nic->addrs[i].family == AF_INET)
			return &nic->addrs[i];
	return NULL;
}

/* The default route's gateway, or NULL. */
static const uint8_t *gateway(const struct pod_nic *nic)
{
	for (unsigned i = 0; i < nic->nroutes; i++)
		if (nic->routes[i].family == AF_INET && !nic->routes[i].prefix &&
		    nic->routes[i].has_via)
			return nic->routes[i].via;
	return NULL;
}

static const uint8_t *server_id(const struct pod_nic *nic)
{
	static const uint8_t none[4] = { 169, 254, 1, 1 };
	const uint8_t *gw = gateway(nic);

	return gw ? gw : none;
}

static bool is_zero(const uint8_t a[4])
{
	return !get32(a);
}

/* The type of the answer, 0: keep silent (RFC 2131, 4.3). */
static enum dhcp_type decide(const struct dhcp_request *r, const struct pod_nic *nic,
			     const struct pod_addr *addr)
{
	const uint8_t *wants = is_zero(r->requested) ? r->ciaddr : r->requested;

	switch (r->type) {
	case DHCP_DISCOVER:
		return DHCP_OFFER;
	case DHCP_INFORM:
		return DHCP_ACK;
	case DHCP_REQUEST:
		if (!is_zero(r->server) && memcmp(r->server, server_id(nic), 4))
			return 0; /* another server's offer: not that there should be one */
		return memcmp(wants, addr->addr, 4) ? DHCP_NAK : DHCP_ACK;
	default:
		return 0;
	}
}

/* ---- writing ---- */

/* All of it or, where there is no room (one byte is left for the end), nothing. */
static void put_option(struct put *p, unsigned code, const void *data, size_t len)
{
	const uint8_t *d = data;
	size_t pieces = (len + 254) / 255;

	if (!len || len + 2 * pieces + 1 > p->room - p->len)
		return;
	/* more than 255 bytes: several options in a row are one (RFC 3396) */
	for (; len; pieces--) {
		size_t n = len > 255 ? 255 : len;

		put8(p, code);
		put8(p, (unsigned)n);
		put_bytes(p, d, n);
		d += n;
		len -= n;
	}
}

static void put_option32(struct put *p, unsigned code, uint32_t v)
{
	uint32_t be = htonl(v);

	put_option(p, code, &be, 4);
}

static void put_routes(struct put *p, const struct pod_nic *nic)
{
	uint8_t buf[POD_ROUTES_MAX * 9];
	struct put r = { .buf = buf, .room = sizeof(buf) };

	for (unsigned i = 0; i < nic->nroutes; i++) {
		const struct pod_route *rt = &nic->routes[i];

		if (rt->family != AF_INET)
			continue;
		put8(&r, rt->prefix);
		put_bytes(&r, rt->to, (rt->prefix + 7) / 8);
		put32(&r, rt->has_via ? get32(rt->via) : 0);
	}
	put_option(p, OPT_ROUTES, buf, r.len);
}

static void put_dns(struct put *p, const struct told *t)
{
	uint8_t buf[TOLD_DNS_MAX * 4];
	size_t len = 0;

	for (unsigned i = 0; i < t->ndns; i++)
		if (t->dns[i].family == AF_INET) {
			memcpy(buf + len, t->dns[i].addr, 4);
			len += 4;
		}
	put_option(p, OPT_DNS, buf, len);
}

/* Names go in as long as they fit. */
static void put_search(struct put *p, const struct told *t)
{
	uint8_t buf[DHCP_FRAME_MAX];
	size_t len = 0;

	for (unsigned i = 0; i < t->nsearch; i++) {
		size_t n = told_dns_name(t->search[i], buf + len, sizeof(buf) - len);
		size_t with = len + n + 2 * ((len + n + 254) / 255) + 1;

		if (!n || with > p->room - p->len)
			break;
		len += n;
	}
	put_option(p, OPT_SEARCH, buf, len);
}

/* Most wanted first: those at the end may find no room. */
static void put_settings(struct put *p, const struct pod_nic *nic, const struct told *t,
			 const struct pod_addr *addr)
{
	const uint8_t *gw = gateway(nic);
	uint8_t mtu[2];

	put_option32(p, OPT_MASK, addr->prefix ? ~0u << (32 - addr->prefix) : 0);
	put_option(p, OPT_ROUTER, gw, gw ? 4 : 0);
	put_routes(p, nic);
	put_dns(p, t);
	set16(mtu, nic->mtu);
	put_option(p, OPT_MTU, mtu, nic->mtu >= 68 && nic->mtu <= 65535 ? 2 : 0);
	put_option(p, OPT_HOSTNAME, t->hostname, strlen(t->hostname));
	if (t->nsearch)
		put_option(p, OPT_DOMAIN, t->search[0], strlen(t->search[0]));
	put_search(p, t);
}

static void put_bootp(struct put *p, const struct dhcp_request *r, const uint8_t yiaddr[4])
{
	put8(p, 2);
	put8(p, 1);
	put8(p, 6);
	put8(p, 0);
	put32(p, r->xid);
	put16(p, 0);
	put16(p, r->flags);
	put_bytes(p, r->ciaddr, 4);
	put_bytes(p, yiaddr, 4);
	put_zeroes(p, 8); /* next server, relay */
	put_bytes(p, r->mac, 6);
	put_zeroes(p, 10 + 64 + 128);
	put32(p, MAGIC);
}

/* Ethernet, IPv4 and UDP around what @p already has behind room for them. */
static void wrap(struct put *p, const uint8_t dst_mac[6], const uint8_t src_mac[6],
		 const uint8_t src[4], const uint8_t dst[4])
{
	uint8_t *f = p->buf, *ip = f + ETH_LEN, *udp = ip + IPV4_LEN;
	size_t udp_len = p->len - ETH_LEN - IPV4_LEN;
	uint32_t sum;

	memcpy(f, dst_mac, 6);
	memcpy(f + 6, src_mac, 6);
	set16(f + 12, 0x0800);
	ip[0] = 0x45;
	set16(ip + 2, (unsigned)(IPV4_LEN + udp_len));
	ip[8] = HOP_LIMIT;
	ip[9] = 17;
	memcpy(ip + 12, src, 4);
	memcpy(ip + 16, dst, 4);
	set16(ip + 10, sum_end(sum_add(0, ip, IPV4_LEN)));
	set16(udp, DHCP_SERVER_PORT);
	set16(udp + 2, DHCP_CLIENT_PORT);
	set16(udp + 4, (unsigned)udp_len);
	sum = sum_add(17 + (uint32_t)udp_len, ip + 12, 8);
	sum = sum_end(sum_add(sum, udp, udp_len));
	set16(udp + 6, sum ? sum : 0xffff);
}

static void send_to(struct put *p, const struct dhcp_request *r, enum dhcp_type type,
		    const struct pod_nic *nic, const struct pod_addr *addr)
{
	static const uint8_t all[6] = { 255, 255, 255, 255, 255, 255 };
	uint8_t from[6];

	/* the guest's own address would make bridges in it think it has moved */
	memcpy(from, nic->mac, 6);
	from[0] ^= 0x02;
	if (type != DHCP_NAK && !is_zero(r->ciaddr))
		wrap(p, r->mac, from, server_id(nic), r->ciaddr);
	else if (type == DHCP_NAK || r->flags & FLAG_BROADCAST || r->type == DHCP_INFORM)
		wrap(p, all, from, server_id(nic), all);
	else
		wrap(p, r->mac, from, server_id(nic), addr->addr);
}

static void put_answer(struct put *p, const struct dhcp_request *r, enum dhcp_type type,
		       const struct pod_nic *nic, const struct told *t, const struct pod_addr *addr)
{
	static const uint8_t none[4];
	bool lease = type != DHCP_NAK && r->type != DHCP_INFORM;

	put_zeroes(p, ETH_LEN + IPV4_LEN + UDP_LEN);
	put_bootp(p, r, lease ? addr->addr : none);
	put_option(p, OPT_TYPE, &(uint8_t){ (uint8_t)type }, 1);
	put_option(p, OPT_SERVER, server_id(nic), 4);
	put_option(p, OPT_CLIENT_ID, r->client_id, r->client_id_len); /* RFC 6842 */
	if (lease)
		put_option32(p, OPT_LEASE, LEASE_INFINITE);
	if (type != DHCP_NAK)
		put_settings(p, nic, t, addr);
	put8(p, OPT_END);
	if (p->len < ETH_LEN + IPV4_LEN + UDP_LEN + BOOTP_MIN)
		put_zeroes(p, ETH_LEN + IPV4_LEN + UDP_LEN + BOOTP_MIN - p->len);
}

size_t dhcp_answer(const struct pod_nic *nic, const struct told *told, const uint8_t *frame,
		   size_t len, uint8_t *out, size_t room)
{
	const struct pod_addr *addr = first_addr(nic);
	struct put p = { .buf = out };
	struct dhcp_request r;
	enum dhcp_type type;

	/* somebody behind the guest's NIC, with another address, is not who this address is for */
	if (!addr || !dhcp_parse(frame, len, &r) || memcmp(r.mac, nic->mac, 6))
		return 0;
	type = decide(&r, nic, addr);
	if (!type)
		return 0;
	p.room = r.max_size;
	if (p.room > nic->mtu)
		p.room = nic->mtu > MAX_SIZE_LEAST ? nic->mtu : MAX_SIZE_LEAST;
	p.room += ETH_LEN;
	if (p.room > room)
		p.room = room;
	put_answer(&p, &r, type, nic, told, addr);
	if (p.over)
		return 0;
	send_to(&p, &r, type, nic, addr);
	return p.len;
}
