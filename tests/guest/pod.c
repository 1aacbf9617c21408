/*
 * pod.c - a guest on a pod's network: asks DHCP who it is, then answers as any host would
 *
 * For each NIC it prints what it was told, in one line by DHCP and in one by a router's
 * advertisement if there is one, then "ready". From then on it answers ARP, ping, ping -6 and TCP
 * and UDP echoes (port 7, one connection at a time) and does what the serial port says, a line
 * each:
 *
 *	ping NIC A.B.C.D	by the routes DHCP has given; "pong A.B.C.D" or a failure
 *	again NIC		a new DHCP exchange, without a DISCOVER
 *	quit
 *
 * The command line says "nics=N", and "ip6_N=" with 32 hexadecimal digits for an IPv6 address of
 * NIC N.
 */
#include "virtio.h"

#define HDR      12
#define F_MTU    (1ull << 3)
#define F_MAC    (1ull << 5)
#define BUF      12288 /* MTU 9000 and then some: no buffers are joined */
#define RX_BUFS  32
#define NICS_MAX 4
#define ROUTES   32

struct route {
	uint8_t to[4], via[4];
	unsigned prefix;
};

struct nic {
	struct vdev dev;
	struct vq rx, tx;
	uint8_t *rx_buf, *tx_buf;
	unsigned number, mtu;
	uint8_t mac[6], ip[4], server[4];
	uint8_t ll[16], ip6[16];
	bool has_ip6;
	unsigned prefix; /* of the address's network */
	struct route routes[ROUTES];
	unsigned nroutes;
	uint32_t xid;
	/* what a frame brought last */
	uint8_t dhcp; /* type of the answer */
	bool advertised;
	uint8_t arp_ip[4], arp_mac[6], pong[4];
	/* the connection */
	uint32_t seq, ack;
	bool closing;
};

static struct nic nics[NICS_MAX];
static unsigned count;

/* ---- bytes ---- */

static unsigned get16(const uint8_t *p)
{
	return (unsigned)(p[0] << 8 | p[1]);
}

static uint32_t get32(const uint8_t *p)
{
	return get16(p) << 16 | get16(p + 2);
}

static void set16(uint8_t *p, unsigned v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static void set32(uint8_t *p, uint32_t v)
{
	set16(p, v >> 16);
	set16(p + 2, v);
}

static uint32_t sum(uint32_t s, const uint8_t *p, unsigned len)
{
	for (; len > 1; p += 2, len -= 2)
		s += get16(p);
	return len ? s + ((uint32_t)p[0] << 8) : s;
}

static unsigned fold(uint32_t s)
{
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return ~s & 0xffff;
}

static void print_ip(const uint8_t *a)
{
	print("%u.%u.%u.%u", a[0], a[1], a[2], a[3]);
}

static void print_hex(const uint8_t *p, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		print("%02x", p[i]);
}

/* ---- frames out ---- */

static uint8_t *frame_of(struct nic *n)
{
	return n->tx_buf + HDR;
}

static void send(struct nic *n, const uint8_t *to, unsigned type, unsigned len)
{
	struct piece p[] = { { n->tx_buf, HDR, false }, { n->tx_buf + HDR, 14 + len, false } };
	uint8_t *f = frame_of(n);

	memset(n->tx_buf, 0, HDR);
	memcpy(f, to, 6);
	memcpy(f + 6, n->mac, 6);
	set16(f + 12, type);
	vq_add(&n->tx, p, 2);
	vq_kick(&n->tx);
	if (vq_wait(&n->tx, NULL) < 0)
		fail("transmit", "a frame is stuck");
}

/* What is behind the IPv4 header is there, @len bytes. */
static void send_ip(struct nic *n, const uint8_t *mac, const uint8_t *to, unsigned proto,
		    unsigned len)
{
	uint8_t *ip = frame_of(n) + 14;

	memset(ip, 0, 20);
	ip[0] = 0x45;
	set16(ip + 2, 20 + len);
	ip[6] = 0x40;
	ip[8] = 64;
	ip[9] = (uint8_t)proto;
	memcpy(ip + 12, n->ip, 4);
	memcpy(ip + 16, to, 4);
	set16(ip + 10, fold(sum(0, ip, 20)));
	send(n, mac, 0x0800, 20 + len);
}

static void send_icmp6(struct nic *n, const uint8_t *mac, const uint8_t *from, const uint8_t *to,
		       unsigned len)
{
	uint8_t *ip = frame_of(n) + 14, *d = ip + 40;

	memset(ip, 0, 40);
	ip[0] = 0x60;
	set16(ip + 4, len);
	ip[6] = 58;
	ip[7] = 255;
	memcpy(ip + 8, from, 16);
	memcpy(ip + 24, to, 16);
	set16(d + 2, 0);
	set16(d + 2, fold(sum(sum(58 + len, ip + 8, 32), d, len)));
	send(n, mac, 0x86dd, 40 + len);
}

static void send_arp(struct nic *n, unsigned op, const uint8_t *to_mac, const uint8_t *to_ip)
{
	static const uint8_t head[] = { 0, 1, 8, 0, 6, 4, 0 },
			     all[6] = { 255, 255, 255, 255, 255, 255 };
	uint8_t *a = frame_of(n) + 14;

	memcpy(a, head, 7);
	a[7] = (uint8_t)op;
	memcpy(a + 8, n->mac, 6);
	memcpy(a + 14, n->ip, 4);
	memset(a + 18, 0, 6);
	memcpy(a + 24, to_ip, 4);
	if (op == 2)
		memcpy(a + 18, to_mac, 6);
	send(n, op == 2 ? to_mac : all, 0x0806, 28);
}

/* ---- DHCP ---- */

static void send_dhcp(struct nic *n, unsigned type)
{
	static const uint8_t all[6] = { 255, 255, 255, 255, 255, 255 }, none[4];
	static const uint8_t wanted[] = { 55, 9, 1, 3, 6, 12, 15, 26, 119, 121, 51 };
	uint8_t *udp = frame_of(n) + 34, *b = udp + 8, *o = b + 240, saved[4];
	unsigned len;

	memset(udp, 0, 8 + 300);
	b[0] = 1;
	b[1] = 1;
	b[2] = 6;
	set32(b + 4, n->xid);
	memcpy(b + 28, n->mac, 6);
	set32(b + 236, 0x63825363);
	*o++ = 53;
	*o++ = 1;
	*o++ = (uint8_t)type;
	memcpy(o, wanted, sizeof(wanted));
	o += sizeof(wanted);
	*o++ = 57;
	*o++ = 2;
	set16(o, 1500);
	o += 2;
	if (type == 3) {
		*o++ = 50;
		*o++ = 4;
		memcpy(o, n->ip, 4);
		o += 4;
		*o++ = 54;
		*o++ = 4;
		memcpy(o, n->server, 4);
		o += 4;
	}
	*o++ = 255;
	len = 8 + 300;
	set16(udp, 68);
	set16(udp + 2, 67);
	set16(udp + 4, len);
	memcpy(saved, n->ip, 4);
	memcpy(n->ip, none, 4);
	send_ip(n, all, all, 17, len);
	memcpy(n->ip, saved, 4);
}

static void read_routes(struct nic *n, const uint8_t *p, unsigned len)
{
	n->nroutes = 0;
	for (unsigned at = 0; at < len && n->nroutes < ROUTES;) {
		struct route *r = &n->routes[n->nroutes++];
		unsigned bytes = (p[at] + 7u) / 8;

		memset(r, 0, sizeof(*r));
		r->prefix = p[at];
		if (r->prefix > 32 || at + 1 + bytes + 4 > len) {
			fail("routes", "option 121 is broken");
			return;
		}
		memcpy(r->to, p + at + 1, bytes);
		memcpy(r->via, p + at + 1 + bytes, 4);
		at += 1 + bytes + 4;
		print(" route=");
		print_ip(r->to);
		print("/%u:", r->prefix);
		print_ip(r->via);
	}
}

/* What was acknowledged; prints it. */
static void read_lease(struct nic *n, const uint8_t *o, unsigned len)
{
	print("nic %u dhcp addr=", n->number);
	print_ip(n->ip);
	for (unsigned at = 0; at + 1 < len && o[at] != 255; at += o[at] ? 2u + o[at + 1] : 1) {
		const uint8_t *p = o + at + 2;
		unsigned l = o[at + 1];

		if (!o[at] || at + 2 + l > len)
			continue;
		if (o[at] == 1) {
			for (n->prefix = 0; n->prefix < 32 && get32(p) << n->prefix & 0x80000000;)
				n->prefix++;
			print(" prefix=%u", n->prefix);
		} else if (o[at] == 3 || o[at] == 6 || o[at] == 54) {
			print(o[at] == 3 ? " router=" : o[at] == 6 ? " dns=" : " server=");
			for (unsigned i = 0; i + 3 < l; i += 4) {
				print(i ? "," : "");
				print_ip(p + i);
			}
		} else if (o[at] == 26) {
			print(" mtu=%u", get16(p));
		} else if (o[at] == 51) {
			print(" lease=%x", get32(p));
		} else if (o[at] == 12 || o[at] == 15) {
			print(o[at] == 12 ? " host=" : " domain=");
			for (unsigned i = 0; i < l; i++)
				put_char((char)p[i]);
		} else if (o[at] == 119) {
			print(" search=");
			print_hex(p, l);
		} else if (o[at] == 121) {
			read_routes(n, p, l);
		}
	}
	print("\n");
}

static void on_dhcp(struct nic *n, const uint8_t *b, unsigned len)
{
	uint8_t type = 0;

	if (len < 244 || b[0] != 2 || get32(b + 4) != n->xid || memcmp(b + 28, n->mac, 6))
		return;
	for (unsigned at = 240; at + 2 < len && b[at] != 255; at += b[at] ? 2u + b[at + 1] : 1) {
		if (b[at] == 53)
			type = b[at + 2];
		if (b[at] == 54 && at + 6 <= len)
			memcpy(n->server, b + at + 2, 4);
	}
	if (type == 2 || type == 5)
		memcpy(n->ip, b + 16, 4);
	n->dhcp = type;
	if (type == 5)
		read_lease(n, b + 240, len - 240);
}

/* ---- TCP: the other side's segments come in order, nothing gets lost ---- */

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

static void send_tcp(struct nic *n, const uint8_t *f, unsigned flags, const uint8_t *data,
		     unsigned len)
{
	const uint8_t *from = f + 26, *in = f + 14 + (f[14] & 15) * 4;
	uint8_t *t = frame_of(n) + 34;
	uint8_t addrs[8];

	memcpy(t + 20, data, len);
	memset(t, 0, 20);
	memcpy(t, in + 2, 2);
	memcpy(t + 2, in, 2);
	set32(t + 4, n->seq);
	set32(t + 8, n->ack);
	t[12] = 0x50;
	t[13] = (uint8_t)flags;
	set16(t + 14, 8000);
	memcpy(addrs, n->ip, 4);
	memcpy(addrs + 4, from, 4);
	set16(t + 16, fold(sum(sum(6 + 20 + len, addrs, 8), t, 20 + len)));
	n->seq += len + !!(flags & (SYN | FIN));
	send_ip(n, f + 6, from, 6, 20 + len);
}

static void on_tcp(struct nic *n, const uint8_t *f, unsigned len)
{
	const uint8_t *t = f + 14 + (f[14] & 15) * 4;
	unsigned head = (t[12] >> 4) * 4u, flags = t[13], data;

	if (len < 20 || head > len || get16(t + 2) != 7 || flags & RST)
		return;
	data = len - head;
	if (flags & SYN) {
		n->seq = 0x1000;
		n->ack = get32(t + 4) + 1;
		n->closing = false;
		send_tcp(n, f, SYN | ACK, NULL, 0);
		return;
	}
	if (get32(t + 4) != n->ack || n->closing) /* said again, or the end of the end */
		return;
	n->ack += data + !!(flags & FIN);
	n->closing = flags & FIN;
	if (data || flags & FIN)
		send_tcp(n, f, ACK | (flags & FIN), t + head, data);
}

/* ---- frames in ---- */

static void on_udp(struct nic *n, const uint8_t *f, unsigned len)
{
	const uint8_t *u = f + 14 + (f[14] & 15) * 4;
	uint8_t *out = frame_of(n) + 34;

	if (len < 8 || get16(u + 4) > len)
		return;
	if (get16(u + 2) == 68)
		on_dhcp(n, u + 8, get16(u + 4) - 8);
	if (get16(u + 2) != 7 || memcmp(f + 30, n->ip, 4))
		return;
	memcpy(out, u, get16(u + 4));
	memcpy(out, u + 2, 2);
	memcpy(out + 2, u, 2);
	set16(out + 6, 0); /* no checksum */
	send_ip(n, f + 6, f + 26, 17, get16(u + 4));
}

static void on_icmp(struct nic *n, const uint8_t *f, unsigned len)
{
	const uint8_t *i = f + 14 + (f[14] & 15) * 4;
	uint8_t *out = frame_of(n) + 34;

	if (len < 8)
		return;
	if (i[0] == 0)
		memcpy(n->pong, f + 26, 4);
	if (i[0] != 8)
		return;
	memcpy(out, i, len);
	out[0] = 0;
	set16(out + 2, 0);
	set16(out + 2, fold(sum(0, out, len)));
	send_ip(n, f + 6, f + 26, 1, len);
}

static void on_ip(struct nic *n, const uint8_t *f, unsigned len)
{
	const uint8_t *ip = f + 14;
	unsigned head = (ip[0] & 15) * 4u, total = get16(ip + 2);
	bool for_us = !memcmp(ip + 16, n->ip, 4);

	if (len < 34 || ip[0] >> 4 != 4 || head < 20 || total < head || total > len - 14 ||
	    get16(ip + 6) & 0x3fff)
		return;
	if (ip[9] == 17)
		on_udp(n, f, total - head);
	else if (ip[9] == 1 && for_us)
		on_icmp(n, f, total - head);
	else if (ip[9] == 6 && for_us)
		on_tcp(n, f, total - head);
}

static void on_arp(struct nic *n, const uint8_t *f, unsigned len)
{
	const uint8_t *a = f + 14;
	static const uint8_t none[4];

	if (len < 42)
		return;
	if (a[7] == 1 && !memcmp(a + 24, n->ip, 4) && memcmp(n->ip, none, 4))
		send_arp(n, 2, a + 8, a + 14);
	if (a[7] == 2) {
		memcpy(n->arp_ip, a + 14, 4);
		memcpy(n->arp_mac, a + 8, 6);
	}
}

static void on_advert(struct nic *n, const uint8_t *f, const uint8_t *d, unsigned len)
{
	n->advertised = true;
	print("nic %u ra router=", n->number);
	print_hex(f + 22, 16);
	print(" flags=%x lifetime=%u", d[5], get16(d + 6));
	for (unsigned at = 16; at + 8 <= len && d[at + 1]; at += d[at + 1] * 8u) {
		print(" option%u=", d[at]);
		print_hex(d + at + 2, d[at + 1] * 8u - 2);
	}
	print("\n");
}

static const uint8_t *own6(struct nic *n, const uint8_t *a)
{
	if (!memcmp(a, n->ll, 16))
		return n->ll;
	return n->has_ip6 && !memcmp(a, n->ip6, 16) ? n->ip6 : NULL;
}

static void on_ip6(struct nic *n, const uint8_t *f, unsigned len)
{
	const uint8_t *ip = f + 14, *d = ip + 40, *own;
	unsigned l = get16(ip + 4);
	uint8_t *out = frame_of(n) + 54;

	if (len < 62 || l > len - 54 || ip[6] != 58)
		return;
	if (d[0] == 134)
		on_advert(n, f, d, l);
	if (d[0] == 135 && l >= 24 && (own = own6(n, d + 8))) {
		memset(out, 0, 32);
		out[0] = 136;
		out[4] = 0x60;
		memcpy(out + 8, own, 16);
		out[24] = 2;
		out[25] = 1;
		memcpy(out + 26, n->mac, 6);
		send_icmp6(n, f + 6, own, ip + 8, 32);
	}
	if (d[0] == 128 && (own = own6(n, ip + 24))) {
		memcpy(out, d, l);
		out[0] = 129;
		send_icmp6(n, f + 6, own, ip + 8, l);
	}
}

static void take_frame(struct nic *n)
{
	uint32_t len;
	int head = vq_wait(&n->rx, &len);
	const uint8_t *f;

	if (head < 0)
		return;
	f = (const uint8_t *)n->rx.desc[head].addr + HDR;
	len -= HDR;
	if (len >= 14 && get16(f + 12) == 0x0806)
		on_arp(n, f, len);
	else if (len >= 34 && get16(f + 12) == 0x0800)
		on_ip(n, f, len);
	else if (len >= 54 && get16(f + 12) == 0x86dd)
		on_ip6(n, f, len);
	vq_publish(&n->rx, (uint16_t)head);
	vq_kick(&n->rx);
}

static void serve(void)
{
	for (unsigned i = 0; i < count; i++)
		while (vq_done(&nics[i].rx))
			take_frame(&nics[i]);
}

/* ---- what the serial port says ---- */

static void read_line(char *buf, unsigned room)
{
	unsigned len = 0;
	char c;

	while ((c = (char)get_char()) != '\n')
		if (len < room - 1)
			buf[len++] = c;
	buf[len] = 0;
}

/* A number; @p is then behind it and what ends it. */
static unsigned number(const char **p)
{
	unsigned n = 0;

	while (**p >= '0' && **p <= '9')
		n = n * 10 + (unsigned)(*(*p)++ - '0');
	if (**p)
		(*p)++;
	return n;
}

static const uint8_t *next_hop(struct nic *n, const uint8_t *to)
{
	const struct route *best = NULL;

	if (!n->prefix || !((get32(to) ^ get32(n->ip)) >> (32 - n->prefix)))
		return to;
	for (unsigned i = 0; i < n->nroutes; i++) {
		const struct route *r = &n->routes[i];

		if (r->prefix && (get32(to) ^ get32(r->to)) >> (32 - r->prefix))
			continue;
		if (!best || r->prefix > best->prefix)
			best = r;
	}
	if (!best)
		return NULL;
	return get32(best->via) ? best->via : to;
}

static void ping(struct nic *n, const uint8_t *to)
{
	const uint8_t *hop = next_hop(n, to);
	uint64_t end = deadline();
	uint8_t *out = frame_of(n) + 34;

	if (!hop) {
		fail("ping", "no route");
		return;
	}
	memset(n->arp_ip, 0, 4);
	memset(n->pong, 0, 4);
	send_arp(n, 1, NULL, hop);
	while (memcmp(n->arp_ip, hop, 4) && !passed(end))
		serve();
	memset(out, 0, 64);
	out[0] = 8;
	set16(out + 2, fold(sum(0, out, 64)));
	if (!passed(end))
		send_ip(n, n->arp_mac, to, 1, 64);
	while (memcmp(n->pong, to, 4) && !passed(end))
		serve();
	print(passed(end) ? "lost " : "pong ");
	print_ip(to);
	print("\n");
}

static bool exchange(struct nic *n, unsigned type, unsigned expect)
{
	uint64_t end = deadline();

	n->xid++;
	n->dhcp = 0;
	send_dhcp(n, type);
	while (!n->dhcp && !passed(end))
		serve();
	return check(n->dhcp == expect, "dhcp", "nic %u: message %u had the answer %u", n->number,
		     type, n->dhcp);
}

static bool command(void)
{
	char line[80];
	const char *p = line;
	uint8_t to[4];
	unsigned i;

	read_line(line, sizeof(line));
	if (!strncmp(line, "ping ", 5)) {
		p += 5;
		i = number(&p);
		for (unsigned k = 0; k < 4; k++)
			to[k] = (uint8_t)number(&p);
		ping(&nics[i % NICS_MAX], to);
	}
	if (!strncmp(line, "again ", 6)) {
		p += 6;
		exchange(&nics[number(&p) % NICS_MAX], 3, 5);
	}
	return strcmp(line, "quit") != 0;
}

/* ---- start ---- */

static void read_ip6(struct nic *n)
{
	char name[] = "ip6_0", buf[40];
	const char *text;

	name[4] = (char)('0' + n->number);
	text = arg(name, buf, sizeof(buf));
	n->has_ip6 = text && strlen(text) == 32;
	for (unsigned i = 0; n->has_ip6 && i < 32; i++) {
		unsigned c = (unsigned)(text[i] <= '9' ? text[i] - '0' : text[i] - 'a' + 10);

		n->ip6[i / 2] = (uint8_t)(n->ip6[i / 2] << 4 | c);
	}
}

static bool open_nic(struct nic *n, unsigned number)
{
	n->number = number;
	if (!check(virtio_find(&n->dev, VIRTIO_NET, number), "find", "no network device %u",
		   number) ||
	    !check(virtio_negotiate(&n->dev, F_MAC | F_MTU), "negotiate", "status %u",
		   virtio_status(&n->dev)))
		return false;
	for (unsigned i = 0; i < 6; i++)
		n->mac[i] = virtio_config8(&n->dev, i);
	n->mtu = n->dev.features & F_MTU ?
			 virtio_config8(&n->dev, 10) | (unsigned)virtio_config8(&n->dev, 11) << 8 :
			 1500;
	n->xid = 0xc0ffee00 + number * 0x10000;
	n->ll[0] = 0xfe;
	n->ll[1] = 0x80;
	memcpy(n->ll + 8, n->mac, 3);
	n->ll[8] ^= 2;
	n->ll[11] = 0xff;
	n->ll[12] = 0xfe;
	memcpy(n->ll + 13, n->mac + 3, 3);
	read_ip6(n);
	n->rx_buf = alloc(RX_BUFS * BUF, 4096);
	n->tx_buf = alloc(BUF, 4096);
	if (!check(vq_open(&n->rx, &n->dev, 0, 0, 0xffff) && vq_open(&n->tx, &n->dev, 1, 0, 0xffff),
		   "queues", "not there"))
		return false;
	virtio_ok(&n->dev);
	for (unsigned i = 0; i < RX_BUFS; i++) {
		struct piece p = { n->rx_buf + i * BUF, BUF, true };

		vq_add(&n->rx, &p, 1); /* descriptor i holds buffer i */
	}
	vq_kick(&n->rx);
	print("nic %u mac=%02x:%02x:%02x:%02x:%02x:%02x mtu=%u\n", number, n->mac[0], n->mac[1],
	      n->mac[2], n->mac[3], n->mac[4], n->mac[5], n->mtu);
	return true;
}

static void solicit(struct nic *n)
{
	static const uint8_t all[16] = { 0xff, 2, [15] = 2 }, mac[6] = { 0x33, 0x33, 0, 0, 0, 2 };
	uint8_t *out = frame_of(n) + 54;

	memset(out, 0, 8);
	out[0] = 133;
	send_icmp6(n, mac, n->ll, all, 8);
}

void guest_main(void)
{
	bool go_on = true;

	count = (unsigned)arg_number("nics", 1);
	for (unsigned i = 0; i < count && i < NICS_MAX; i++)
		if (!open_nic(&nics[i], i))
			return;
	for (unsigned i = 0; i < count; i++) {
		solicit(&nics[i]);
		if (arg_number("dhcp", 1) && exchange(&nics[i], 1, 2))
			exchange(&nics[i], 3, 5);
	}
	print("ready\n");
	for (unsigned turns = 0; go_on; turns++) {
		serve();
		if (!(turns % 4096) && char_waiting())
			go_on = command();
	}
}
