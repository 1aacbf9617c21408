/*
 * test_shim_dhcp.c - the DHCP responder, against a client's reading of RFC 2131 and its options
 */
#include "pod_rig.h"

#include "k8s-shim/dhcp.h"

#define ADDR "10.1.2.3"

static const char *const dns[] = { "10.96.0.10", "fd00::a", "10.96.0.11", NULL };
static const char *const search[] = { "ns.svc.cluster.local", "svc.cluster.local", NULL };

struct ask {
	unsigned type, flags;
	const char *ciaddr, *requested, *server, *giaddr;
	const uint8_t *mac;
	unsigned max_size, ip_words;
	const char *client_id;
};

static void put_ip_option(struct put *p, unsigned code, const char *text)
{
	if (!text)
		return;
	put8(p, code);
	put8(p, 4);
	put32(p, ntohl(inet_addr(text)));
}

static size_t build(const struct ask *a, uint8_t *frame, size_t room)
{
	struct put p = { .buf = frame, .room = room };
	unsigned head = a->ip_words ? a->ip_words * 4 : 20;
	uint8_t *ip = frame + ETH_LEN, *udp = ip + head, *b = udp + 8;

	put_zeroes(&p, ETH_LEN + head + 8 + 236);
	memset(frame, 0xff, 6);
	set16(frame + 12, 0x0800);
	ip[0] = (uint8_t)(0x40 | head / 4);
	ip[9] = 17;
	set16(udp + 2, 67);
	b[0] = b[1] = 1;
	b[2] = 6;
	set16(b + 4, 0xdead);
	set16(b + 6, 0xbeef);
	set16(b + 10, a->flags);
	if (a->ciaddr)
		inet_pton(AF_INET, a->ciaddr, b + 12);
	if (a->giaddr)
		inet_pton(AF_INET, a->giaddr, b + 24);
	memcpy(b + 28, a->mac ? a->mac : rig_mac, 6);
	put32(&p, 0x63825363);
	put8(&p, 0); /* pad */
	put8(&p, 53);
	put8(&p, 1);
	put8(&p, a->type);
	put_ip_option(&p, 50, a->requested);
	put_ip_option(&p, 54, a->server);
	if (a->max_size) {
		put8(&p, 57);
		put8(&p, 2);
		put16(&p, a->max_size);
	}
	if (a->client_id) {
		put8(&p, 61);
		put8(&p, (unsigned)strlen(a->client_id));
		put_bytes(&p, a->client_id, strlen(a->client_id));
	}
	put8(&p, 255);
	assert_false(p.over);
	set16(ip + 2, (unsigned)(p.len - ETH_LEN));
	set16(udp + 4, (unsigned)(p.len - ETH_LEN - head));
	return p.len;
}

/* ---- the answer, as a client reads it ---- */

struct answer {
	uint8_t frame[DHCP_FRAME_MAX];
	size_t len;
	uint8_t option[256][2048]; /* pieces joined (RFC 3396) */
	size_t option_len[256];
	const uint8_t *bootp;
};

static void check_headers(const struct answer *a)
{
	const uint8_t *ip = a->frame + ETH_LEN, *udp = ip + 20;
	size_t udp_len = get16(udp + 4);

	assert_int_equal(get16(a->frame + 12), 0x0800);
	assert_memory_not_equal(a->frame + 6, rig_mac, 6);
	assert_int_equal(a->frame[6] & 1, 0);
	assert_int_equal(ip[0], 0x45);
	assert_int_equal(get16(ip + 2), a->len - ETH_LEN);
	assert_int_equal(sum_end(sum_add(0, ip, 20)), 0);
	assert_int_equal(get16(udp), 67);
	assert_int_equal(get16(udp + 2), 68);
	assert_int_equal(udp_len, a->len - ETH_LEN - 20);
	assert_int_equal(
		sum_end(sum_add(sum_add(17 + (uint32_t)udp_len, ip + 12, 8), udp, udp_len)), 0);
	assert_true(udp_len >= 8 + 300);
	assert_int_equal(a->bootp[0], 2);
	assert_int_equal(get32(a->bootp + 4), 0xdeadbeef);
	assert_memory_equal(a->bootp + 28, rig_mac, 6);
	assert_int_equal(get32(a->bootp + 236), 0x63825363);
}

static void read_options(struct answer *a)
{
	const uint8_t *o = a->bootp + 240, *end = a->frame + a->len;

	while (*o != 255) {
		assert_true(o + 2 <= end && o + 2 + o[1] < end);
		memcpy(a->option[o[0]] + a->option_len[o[0]], o + 2, o[1]);
		a->option_len[o[0]] += o[1];
		o += 2 + o[1];
	}
	while (++o < end)
		assert_int_equal(*o, 0);
}

/* Ask; the answer's type, 0: silence. */
static unsigned ask(const struct nic *n, const struct told *t, const struct ask *how,
		    struct answer *a)
{
	uint8_t frame[1024], *exact;
	size_t len = build(how, frame, sizeof(frame));

	memset(a, 0, sizeof(*a));
	exact = rig_exact(frame, len);
	a->len = dhcp_answer(&n->pub, t, exact, len, a->frame, sizeof(a->frame));
	free(exact);
	if (!a->len)
		return 0;
	a->bootp = a->frame + ETH_LEN + 28;
	check_headers(a);
	read_options(a);
	assert_int_equal(a->option_len[53], 1);
	return a->option[53][0];
}

static void assert_option(const struct answer *a, unsigned code, const void *data, size_t len)
{
	if (a->option_len[code] != len)
		fail_msg("option %u has %zu bytes, not %zu", code, a->option_len[code], len);
	assert_memory_equal(a->option[code], data, len);
}

#define OPTION(a, code, ...)                                     \
	assert_option(a, code, (const uint8_t[]){ __VA_ARGS__ }, \
		      sizeof((const uint8_t[]){ __VA_ARGS__ }))

static void assert_ip(const uint8_t *at, const char *text)
{
	char buf[INET_ADDRSTRLEN];

	assert_string_equal(inet_ntop(AF_INET, at, buf, sizeof(buf)), text);
}

static void usual(struct nic *n, struct told *t)
{
	rig_nic(n, 1450);
	rig_addr(n, ADDR, 24);
	rig_addr(n, "fd00::3", 64);
	rig_route(n, "0.0.0.0", 0, "10.1.2.1");
	rig_route(n, "::", 0, "fd00::1");
	rig_told(t, "vm-1", dns, search);
}

/* ---- tests ---- */

static void test_offer(void **state)
{
	struct nic n;
	struct told t;
	struct answer a;

	usual(&n, &t);
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 1, .max_size = 1500 }, &a), DHCP_OFFER);
	assert_ip(a.bootp + 16, ADDR);
	assert_ip(a.frame + ETH_LEN + 12, "10.1.2.1");
	assert_ip(a.frame + ETH_LEN + 16, ADDR);
	assert_memory_equal(a.frame, rig_mac, 6);
	OPTION(&a, 1, 255, 255, 255, 0);
	OPTION(&a, 3, 10, 1, 2, 1);
	OPTION(&a, 6, 10, 96, 0, 10, 10, 96, 0, 11);
	OPTION(&a, 26, 1450 >> 8, 1450 & 255);
	OPTION(&a, 51, 255, 255, 255, 255);
	OPTION(&a, 54, 10, 1, 2, 1);
	OPTION(&a, 121, 0, 10, 1, 2, 1);
	assert_option(&a, 12, "vm-1", 4);
	assert_option(&a, 15, "ns.svc.cluster.local", 20);
	assert_option(&a, 119, "\2ns\3svc\7cluster\5local\0\3svc\7cluster\5local", 22 + 19);
}

static void test_request(void **state)
{
	struct nic n;
	struct told t;
	struct answer a;
	const char *gw = "10.1.2.1";

	usual(&n, &t);
	/* selecting */
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 3, .requested = ADDR, .server = gw },
			     &a),
			 DHCP_ACK);
	assert_ip(a.bootp + 16, ADDR);
	/* another server's offer */
	assert_int_equal(ask(&n, &t,
			     &(struct ask){ .type = 3, .requested = ADDR, .server = "10.1.2.9" },
			     &a),
			 0);
	/* after a reboot */
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 3, .requested = ADDR }, &a), DHCP_ACK);
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 3, .requested = "10.9.9.9" }, &a),
			 DHCP_NAK);
	assert_ip(a.bootp + 16, "0.0.0.0");
	assert_ip(a.frame + ETH_LEN + 16, "255.255.255.255");
	assert_int_equal(a.frame[0], 0xff);
	assert_int_equal(a.option_len[51], 0);
	assert_int_equal(a.option_len[1], 0);
	/* renewing */
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 3, .ciaddr = ADDR }, &a), DHCP_ACK);
	assert_ip(a.frame + ETH_LEN + 16, ADDR);
	assert_ip(a.bootp + 12, ADDR);
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 3, .ciaddr = "10.1.2.4" }, &a),
			 DHCP_NAK);
	/* asking for nothing */
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 3 }, &a), DHCP_NAK);
}

static void test_broadcast(void **state)
{
	struct nic n;
	struct told t;
	struct answer a;

	usual(&n, &t);
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 1, .flags = 0x8000 }, &a), DHCP_OFFER);
	assert_ip(a.frame + ETH_LEN + 16, "255.255.255.255");
	assert_int_equal(a.frame[0], 0xff);
	assert_int_equal(get16(a.bootp + 10), 0x8000);
}

static void test_inform(void **state)
{
	struct nic n;
	struct told t;
	struct answer a;

	usual(&n, &t);
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 8, .ciaddr = ADDR }, &a), DHCP_ACK);
	assert_ip(a.bootp + 16, "0.0.0.0");
	assert_ip(a.frame + ETH_LEN + 16, ADDR);
	assert_int_equal(a.option_len[51], 0);
	assert_int_equal(a.option_len[6], 8);
}

static void test_silence(void **state)
{
	static const uint8_t other[6] = { 2, 9, 9, 9, 9, 9 };
	struct nic n;
	struct told t;
	struct answer a;

	usual(&n, &t);
	for (unsigned type = 0; type < 256; type++)
		if (type != 1 && type != 3 && type != 8)
			assert_int_equal(ask(&n, &t, &(struct ask){ .type = type }, &a), 0);
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 1, .mac = other }, &a), 0);
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 1, .giaddr = "10.1.2.8" }, &a), 0);
	/* only IPv6 */
	n.addrs[0] = n.addrs[1];
	n.pub.naddrs = 1;
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 1 }, &a), 0);
}

static void test_client_id(void **state)
{
	struct nic n;
	struct told t;
	struct answer a;

	usual(&n, &t);
	assert_int_equal(ask(&n, &t,
			     &(struct ask){ .type = 1,
					    .client_id = "\xff"
							 "abcdefg" },
			     &a),
			 DHCP_OFFER);
	assert_option(&a, 61,
		      "\xff"
		      "abcdefg",
		      8);
}

/* ptp plugin: nothing is on the link but the gateway. */
static void test_gateway_outside(void **state)
{
	struct nic n;
	struct told t;
	struct answer a;

	rig_nic(&n, 1500);
	rig_addr(&n, ADDR, 32);
	rig_route(&n, "169.254.1.1", 32, NULL);
	rig_route(&n, "10.1.0.0", 20, "169.254.1.1");
	rig_route(&n, "0.0.0.0", 0, "169.254.1.1");
	rig_told(&t, NULL, NULL, NULL);
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 1 }, &a), DHCP_OFFER);
	OPTION(&a, 1, 255, 255, 255, 255);
	OPTION(&a, 3, 169, 254, 1, 1);
	OPTION(&a, 121, 32, 169, 254, 1, 1, 0, 0, 0, 0, 20, 10, 1, 0, 169, 254, 1, 1, 0, 169, 254,
	       1, 1);
	assert_int_equal(a.option_len[6] + a.option_len[12] + a.option_len[15] + a.option_len[119],
			 0);
}

/* No default route (a second NIC): no router, and a server that is not the guest itself. */
static void test_no_gateway(void **state)
{
	struct nic n;
	struct told t;
	struct answer a;

	rig_nic(&n, 1500);
	rig_addr(&n, "191.168.1.1", 24);
	rig_told(&t, NULL, NULL, NULL);
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 1 }, &a), DHCP_OFFER);
	assert_int_equal(a.option_len[3] + a.option_len[121], 0);
	OPTION(&a, 54, 169, 254, 1, 1);
	OPTION(&a, 1, 255, 255, 255, 0);
}

static void test_many_routes(void **state)
{
	struct nic n;
	struct told t;
	struct answer a;
	char to[20];

	rig_nic(&n, 9000);
	rig_addr(&n, ADDR, 24);
	for (unsigned i = 0; i < POD_ROUTES_MAX - 1; i++) {
		snprintf(to, sizeof(to), "10.%u.%u.0", 16 + i, i);
		rig_route(&n, to, 24, "10.1.2.1");
	}
	rig_route(&n, "0.0.0.0", 0, "10.1.2.1");
	rig_told(&t, NULL, dns, search);
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 1, .max_size = 9000 }, &a), DHCP_OFFER);
	assert_int_equal(a.option_len[121], 63 * 8 + 5);
	for (unsigned i = 0; i < 63; i++) {
		const uint8_t want[] = { 24, 10, (uint8_t)(16 + i), (uint8_t)i, 10, 1, 2, 1 };

		assert_memory_equal(a.option[121] + i * 8, want, 8);
	}
	/* a client that takes no more than it must: not half a list */
	assert_int_equal(ask(&n, &t, &(struct ask){ .type = 1 }, &a), DHCP_OFFER);
	assert_int_equal(a.option_len[121], 0);
	OPTION(&a, 3, 10, 1, 2, 1);
	assert_int_equal(a.option_len[6], 8);
}

static void test_sizes(void **state)
{
	const char *names[TOLD_SEARCH_MAX + 1] = { NULL };
	char text[TOLD_SEARCH_MAX][64], host[254];
	struct nic n;
	struct told t;
	struct answer a;

	for (unsigned i = 0; i < TOLD_SEARCH_MAX; i++) {
		snprintf(text[i], sizeof(text[i]), "a-rather-long-name-%02u.of.some.example", i);
		names[i] = text[i];
	}
	memset(host, 'h', sizeof(host) - 1);
	for (unsigned i = 50; i < 253; i += 51)
		host[i] = '.';
	host[253] = 0;
	for (unsigned mtu = 576; mtu <= 9000; mtu += 119)
		for (unsigned max = 0; max < 2000; max += 97) {
			rig_nic(&n, mtu);
			rig_addr(&n, ADDR, 24);
			rig_route(&n, "0.0.0.0", 0, "10.1.2.1");
			rig_told(&t, host, dns, names);
			assert_int_equal(t.nsearch, TOLD_SEARCH_MAX);
			assert_int_equal(ask(&n, &t, &(struct ask){ .type = 1, .max_size = max },
					     &a),
					 DHCP_OFFER);
			assert_true(a.len <= ETH_LEN + (max > 576 ? max : 576));
			assert_true(a.len <= ETH_LEN + mtu);
			OPTION(&a, 121, 0, 10, 1, 2, 1);
			/* whole names, the first ones */
			for (size_t at = 0, i = 0; at < a.option_len[119]; i++) {
				uint8_t wire[64];
				size_t len = told_dns_name(names[i], wire, sizeof(wire));

				assert_true(at + len <= a.option_len[119]);
				assert_memory_equal(a.option[119] + at, wire, len);
				at += len;
			}
		}
	assert_true(a.option_len[119] > 600);
}

static void test_broken(void **state)
{
	const struct ask how = { .type = 3, .requested = ADDR, .client_id = "x", .ip_words = 8 };
	struct nic n;
	struct told t;
	struct answer a;
	uint8_t frame[1024], out[DHCP_FRAME_MAX], *exact;
	size_t len = build(&how, frame, sizeof(frame));

	usual(&n, &t);
	assert_int_equal(ask(&n, &t, &how, &a), DHCP_ACK); /* with IP options */
	for (size_t cut = 0; cut < len; cut++) {
		exact = rig_exact(frame, cut);
		assert_int_equal(dhcp_answer(&n.pub, &t, exact, cut, out, sizeof(out)), 0);
		free(exact);
	}
	/* each bit of what is before the options changed: no harm, whatever the answer */
	for (size_t bit = 0; bit < len * 8; bit++) {
		exact = rig_exact(frame, len);
		exact[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_true(dhcp_answer(&n.pub, &t, exact, len, out, sizeof(out)) <= sizeof(out));
		free(exact);
	}
	frame[ETH_LEN + 6] = 0x20; /* more fragments */
	assert_int_equal(dhcp_answer(&n.pub, &t, frame, len, out, sizeof(out)), 0);
	frame[ETH_LEN + 6] = 0;
	/* an option that goes on behind the end */
	exact = rig_exact(frame, len);
	exact[len - 1] = 12;
	assert_int_equal(dhcp_answer(&n.pub, &t, exact, len, out, sizeof(out)), 0);
	free(exact);
	/* no room for an answer */
	assert_int_equal(dhcp_answer(&n.pub, &t, frame, len, out, 200), 0);
}

static void test_told(void **state)
{
	static const char *const d[] = { "10.0.0.1", "nonsense", "", "::1", NULL };
	static const char *const s[] = { "good.example", "bad name", "..",          ".", "",
					 "a..b",         "quote\"d", "dot.at.end.", NULL };
	char longest[300];
	struct told t;

	rig_told(&t, "evil\nname", d, s);
	assert_string_equal(t.hostname, "");
	assert_int_equal(t.ndns, 2);
	assert_int_equal(t.dns[0].family, AF_INET);
	assert_int_equal(t.dns[1].family, AF_INET6);
	assert_int_equal(t.nsearch, 2);
	assert_string_equal(t.search[0], "good.example");
	assert_string_equal(t.search[1], "dot.at.end.");
	memset(longest, 'a', sizeof(longest) - 1);
	longest[299] = 0;
	rig_told(&t, longest, NULL, NULL);
	assert_string_equal(t.hostname, "");
	longest[64] = 0; /* a label of 64 */
	rig_told(&t, longest, NULL, NULL);
	assert_string_equal(t.hostname, "");
	longest[63] = 0;
	rig_told(&t, longest, NULL, NULL);
	assert_string_equal(t.hostname, longest);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_offer),           cmocka_unit_test(test_request),
		cmocka_unit_test(test_broadcast),       cmocka_unit_test(test_inform),
		cmocka_unit_test(test_silence),         cmocka_unit_test(test_client_id),
		cmocka_unit_test(test_gateway_outside), cmocka_unit_test(test_no_gateway),
		cmocka_unit_test(test_many_routes),     cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_broken),          cmocka_unit_test(test_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
