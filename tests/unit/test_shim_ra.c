/*
 * test_shim_ra.c - router advertisements, neighbours that are not there, cloud-init's
 * network-config
 */
#include "pod_rig.h"

#include "k8s-shim/icmp6.h"
#include "k8s-shim/neigh.h"
#include "k8s-shim/ra.h"

static const char *const dns[] = { "10.96.0.10", "fd00::a", "fd00::b", NULL };
static const char *const search[] = { "ns.svc.cluster.local", "svc.cluster.local", NULL };

/* ---- as a host reads it ---- */

struct advert {
	uint8_t frame[RA_FRAME_MAX];
	size_t len;
	struct icmp6 m;
	unsigned count[256];           /* options of a type */
	const uint8_t *option[256][8]; /* the first ones */
};

static void read_advert(struct advert *a, unsigned type)
{
	const uint8_t *ip = a->frame + ETH_LEN;

	assert_true(icmp6_parse(a->frame, a->len, &a->m));
	assert_int_equal(a->m.type, type);
	assert_int_equal(a->m.len, a->len - ETH_LEN - IPV6_LEN);
	assert_int_equal(
		sum_end(sum_add(sum_add(58 + (uint32_t)a->m.len, ip + 8, 32), a->m.data, a->m.len)),
		0);
}

static void read_options(struct advert *a)
{
	for (size_t at = 16; at < a->m.len;) {
		const uint8_t *o = a->m.data + at;

		assert_true(o[1] && at + o[1] * 8u <= a->m.len);
		if (a->count[o[0]] < 8)
			a->option[o[0]][a->count[o[0]]] = o;
		a->count[o[0]]++;
		at += o[1] * 8u;
	}
}

static void advertise(const struct nic *n, const struct told *t, struct advert *a)
{
	memset(a, 0, sizeof(*a));
	a->len = ra_advertise(&n->pub, t, a->frame, sizeof(a->frame));
	assert_true(a->len > 0);
	read_advert(a, ICMP6_ROUTER_ADVERT);
	read_options(a);
}

static void assert_ip6(const uint8_t *at, const char *text)
{
	char buf[INET6_ADDRSTRLEN];

	assert_string_equal(inet_ntop(AF_INET6, at, buf, sizeof(buf)), text);
}

/* ---- advertisements ---- */

static void test_link_local_gateway(void **state)
{
	struct nic n;
	struct told t;
	struct advert a;

	rig_nic(&n, 1450);
	rig_addr(&n, "10.1.2.3", 24);
	rig_addr(&n, "fd00:1:2:3::7", 61);
	rig_route(&n, "fd00:9::", 48, "fe80::1");
	rig_route(&n, "fd00:8::5", 128, "fe80::1");
	rig_route(&n, "fd00:7::", 48, "fd00:1:2:3::1"); /* another's: not for this router to tell */
	rig_route(&n, "::", 0, "fe80::1");
	rig_told(&t, NULL, dns, search);
	advertise(&n, &t, &a);
	assert_ip6(a.m.src, "fe80::1");
	assert_ip6(a.m.dst, "ff02::1");
	assert_memory_equal(a.frame, "\x33\x33\0\0\0\1", 6);
	assert_memory_not_equal(a.frame + 6, rig_mac, 6);
	assert_int_equal(a.m.data[5], 0); /* not managed: there is no DHCPv6 */
	assert_int_equal(get16(a.m.data + 6), 9000);
	assert_int_equal(a.count[5], 1);
	assert_int_equal(get32(a.option[5][0] + 4), 1450);
	assert_int_equal(a.count[3], 1);
	assert_int_equal(a.option[3][0][2], 61);
	assert_int_equal(a.option[3][0][3], 0x80); /* on the link, not autonomous */
	assert_int_equal(get32(a.option[3][0] + 4), 0xffffffff);
	assert_ip6(a.option[3][0] + 16, "fd00:1:2::");
	assert_int_equal(a.count[24], 2);
	assert_int_equal(a.option[24][0][1], 2);
	assert_int_equal(a.option[24][0][2], 48);
	assert_int_equal(a.option[24][1][1], 3);
	assert_ip6(a.option[24][1] + 8, "fd00:8::5");
	assert_int_equal(a.count[25], 1);
	assert_int_equal(a.option[25][0][1], 5);
	assert_ip6(a.option[25][0] + 8, "fd00::a");
	assert_ip6(a.option[25][0] + 24, "fd00::b");
	assert_int_equal(a.count[31], 1);
	assert_memory_equal(a.option[31][0] + 8,
			    "\2ns\3svc\7cluster\5local\0\3svc\7cluster\5local\0", 42);
}

/* Its advertisements could not say so. */
static void test_other_gateway(void **state)
{
	struct nic n;
	struct told t;
	struct advert a;

	rig_nic(&n, 1500);
	rig_addr(&n, "fd00::3", 64);
	rig_route(&n, "::", 0, "fd00::1");
	rig_told(&t, NULL, NULL, NULL);
	advertise(&n, &t, &a);
	assert_int_equal(get16(a.m.data + 6), 0);
	assert_int_equal(a.m.src[0], 0xfe);
	assert_int_equal(a.count[3], 1);
	assert_int_equal(a.count[24] + a.count[25] + a.count[31], 0);
	/* nothing on the link: nothing to say of networks */
	n.addrs[0].prefix = 128;
	advertise(&n, &t, &a);
	assert_int_equal(a.count[3], 0);
}

static void test_no_ipv6(void **state)
{
	uint8_t out[RA_FRAME_MAX];
	struct nic n;
	struct told t;

	rig_nic(&n, 1500);
	rig_addr(&n, "10.1.2.3", 24);
	rig_told(&t, NULL, dns, search);
	assert_int_equal(ra_advertise(&n.pub, &t, out, sizeof(out)), 0);
}

static void test_much_to_say(void **state)
{
	const char *names[TOLD_SEARCH_MAX + 1] = { NULL };
	char text[TOLD_SEARCH_MAX][80], to[40];
	struct nic n;
	struct told t;
	struct advert a;

	for (unsigned i = 0; i < TOLD_SEARCH_MAX; i++) {
		snprintf(text[i], sizeof(text[i]), "a-really-rather-long-name-%02u.of.some.example",
			 i);
		names[i] = text[i];
	}
	rig_nic(&n, 9000);
	for (unsigned i = 0; i < POD_ADDRS_MAX; i++) {
		snprintf(to, sizeof(to), "fd00:%x::3", i + 1);
		rig_addr(&n, to, 64);
	}
	for (unsigned i = 0; i < POD_ROUTES_MAX - 1; i++) {
		snprintf(to, sizeof(to), "fd01:%x::", i + 1);
		rig_route(&n, to, 48, "fe80::1");
	}
	rig_route(&n, "::", 0, "fe80::1");
	rig_told(&t, NULL, dns, names);
	advertise(&n, &t, &a);
	assert_true(a.len <= RA_FRAME_MAX);
	assert_int_equal(a.count[3], POD_ADDRS_MAX);
	assert_true(a.count[24] > 20);
	assert_int_equal(get16(a.m.data + 6), 9000);
}

/* ---- solicitations ---- */

static size_t solicit(unsigned type, const char *from, const char *target, uint8_t *frame,
		      size_t room)
{
	struct put p = { .buf = frame, .room = room };
	uint8_t src[16], dst[16];

	inet_pton(AF_INET6, from, src);
	inet_pton(AF_INET6, "ff02::2", dst);
	icmp6_begin(&p, type);
	put32(&p, 0);
	if (target) {
		inet_pton(AF_INET6, target, dst);
		put_bytes(&p, dst, 16);
	}
	return icmp6_end(&p, rig_mac, rig_mac, src, dst);
}

static void test_solicitation(void **state)
{
	struct nic n;
	struct told t;
	struct advert a = { .len = 0 };
	uint8_t frame[128], *exact;
	size_t len = solicit(ICMP6_ROUTER_SOLICIT, "fe80::5", NULL, frame, sizeof(frame));

	rig_nic(&n, 1500);
	rig_addr(&n, "fd00::3", 64);
	rig_told(&t, NULL, NULL, NULL);
	a.len = ra_answer(&n.pub, &t, frame, len, a.frame, sizeof(a.frame));
	read_advert(&a, ICMP6_ROUTER_ADVERT);
	assert_ip6(a.m.dst, "fe80::5");
	assert_memory_equal(a.frame, rig_mac, 6);
	for (size_t cut = 0; cut < len; cut++) {
		exact = rig_exact(frame, cut);
		assert_int_equal(ra_answer(&n.pub, &t, exact, cut, a.frame, sizeof(a.frame)), 0);
		free(exact);
	}
	frame[ETH_LEN + 7] = 64; /* hop limit: came by a router */
	assert_int_equal(ra_answer(&n.pub, &t, frame, len, a.frame, sizeof(a.frame)), 0);
	len = solicit(ICMP6_ROUTER_SOLICIT, "::", NULL, frame, sizeof(frame));
	a.len = ra_answer(&n.pub, &t, frame, len, a.frame, sizeof(a.frame));
	read_advert(&a, ICMP6_ROUTER_ADVERT);
	assert_ip6(a.m.dst, "ff02::1");
}

/* ---- links without neighbours ---- */

static void test_neighbour6(void **state)
{
	struct nic n;
	struct advert a = { .len = 0 };
	uint8_t frame[128], *exact;
	size_t len = solicit(ICMP6_NEIGHBOR_SOLICIT, "fd00::3", "fd00::9", frame, sizeof(frame));

	rig_nic(&n, 1500);
	rig_addr(&n, "fd00::3", 64);
	a.len = neigh_answer(&n.pub, frame, len, a.frame, sizeof(a.frame));
	read_advert(&a, ICMP6_NEIGHBOR_ADVERT);
	assert_ip6(a.m.src, "fd00::9");
	assert_ip6(a.m.dst, "fd00::3");
	assert_ip6(a.m.data + 8, "fd00::9");
	assert_memory_equal(a.m.data + 24, "\2\1", 2);
	assert_memory_equal(a.m.data + 26, rig_mac, 6);
	for (size_t cut = 0; cut < len; cut++) {
		exact = rig_exact(frame, cut);
		assert_int_equal(neigh_answer(&n.pub, exact, cut, a.frame, sizeof(a.frame)), 0);
		free(exact);
	}
	/* is this address taken? not by us */
	len = solicit(ICMP6_NEIGHBOR_SOLICIT, "::", "fd00::9", frame, sizeof(frame));
	assert_int_equal(neigh_answer(&n.pub, frame, len, a.frame, sizeof(a.frame)), 0);
	len = solicit(ICMP6_NEIGHBOR_SOLICIT, "fe80::1", "fd00::3", frame, sizeof(frame));
	assert_int_equal(neigh_answer(&n.pub, frame, len, a.frame, sizeof(a.frame)), 0);
}

static size_t arp(const char *from, const char *target, unsigned op, uint8_t *frame)
{
	struct put p = { .buf = frame, .room = 64 };

	put_zeroes(&p, 6);
	put_bytes(&p, rig_mac, 6);
	put_bytes(&p, (uint8_t[]){ 8, 6, 0, 1, 8, 0, 6, 4, 0, (uint8_t)op }, 10);
	put_bytes(&p, rig_mac, 6);
	put32(&p, ntohl(inet_addr(from)));
	put_zeroes(&p, 6);
	put32(&p, ntohl(inet_addr(target)));
	return p.len;
}

static void test_neighbour4(void **state)
{
	struct nic n;
	uint8_t frame[64], out[NEIGH_FRAME_MAX], *exact;
	size_t len = arp("10.1.2.3", "10.1.2.9", 1, frame);

	rig_nic(&n, 1500);
	rig_addr(&n, "10.1.2.3", 24);
	assert_int_equal(neigh_answer(&n.pub, frame, len, out, sizeof(out)), 42);
	assert_memory_equal(out, rig_mac, 6);
	assert_memory_equal(out + 12, "\x08\x06\0\1\x08\0\6\4\0\2", 10);
	assert_memory_equal(out + 22, rig_mac, 6);
	assert_memory_equal(out + 28, "\x0a\1\2\x09", 4);
	assert_memory_equal(out + 32, rig_mac, 6);
	assert_memory_equal(out + 38, "\x0a\1\2\3", 4);
	for (size_t cut = 0; cut < len; cut++) {
		exact = rig_exact(frame, cut);
		assert_int_equal(neigh_answer(&n.pub, exact, cut, out, sizeof(out)), 0);
		free(exact);
	}
	assert_int_equal(
		neigh_answer(&n.pub, frame, arp("10.1.2.3", "10.1.2.9", 2, frame), out, 64), 0);
	assert_int_equal(neigh_answer(&n.pub, frame, arp("0.0.0.0", "10.1.2.9", 1, frame), out, 64),
			 0);
	assert_int_equal(
		neigh_answer(&n.pub, frame, arp("10.1.2.9", "10.1.2.9", 1, frame), out, 64), 0);
	assert_int_equal(
		neigh_answer(&n.pub, frame, arp("10.1.2.9", "10.1.2.3", 1, frame), out, 64), 0);
}

/* ---- cloud-init ---- */

static void assert_config(const struct pod_net *n, const char *want)
{
	char *got = pod_net_config(n);

	assert_non_null(got);
	assert_string_equal(got, want);
	free(got);
}

static void test_config(void **state)
{
	struct pod_net *n = calloc(1, sizeof(*n));

	assert_non_null(n);
	assert_config(n, "version: 2\nethernets: {}\n");
	n->count = 1;
	rig_nic(&n->nics[0], 1450);
	rig_addr(&n->nics[0], "10.1.2.3", 24);
	rig_addr(&n->nics[0], "fd00::3", 64);
	rig_route(&n->nics[0], "0.0.0.0", 0, "10.1.2.1");
	n->nics[0].routes[0].metric = 100;
	rig_route(&n->nics[0], "::", 0, "fd00::1");
	n->nics[0].routes[1].metric = 1024;
	rig_told(&n->told, "vm", dns, search);
	strcpy(n->nics[0].pub.name, "a\"\\b");
	assert_config(n, "version: 2\n"
			 "ethernets:\n"
			 "  \"a\\x22\\x5cb\":\n"
			 "    match:\n"
			 "      macaddress: \"02:11:22:33:44:55\"\n"
			 "    set-name: \"a\\x22\\x5cb\"\n"
			 "    mtu: 1450\n"
			 "    dhcp4: false\n"
			 "    dhcp6: false\n"
			 "    addresses:\n"
			 "      - \"10.1.2.3/24\"\n"
			 "      - \"fd00::3/64\"\n"
			 "    routes:\n"
			 "      - to: \"0.0.0.0/0\"\n"
			 "        via: \"10.1.2.1\"\n"
			 "        on-link: true\n"
			 "        metric: 100\n"
			 "      - to: \"::/0\"\n"
			 "        via: \"fd00::1\"\n"
			 "        on-link: true\n"
			 "    nameservers:\n"
			 "      addresses:\n"
			 "        - \"10.96.0.10\"\n"
			 "        - \"fd00::a\"\n"
			 "        - \"fd00::b\"\n"
			 "      search:\n"
			 "        - \"ns.svc.cluster.local\"\n"
			 "        - \"svc.cluster.local\"\n");
	/* two NICs of one MAC address: which is which? */
	n->count = 2;
	rig_nic(&n->nics[1], 1500);
	assert_config(n, "version: 2\nethernets: {}\n");
	free(n);
}

#define CONFIG_HEAD(dhcp)                           \
	"version: 2\n"                              \
	"ethernets:\n"                              \
	"  \"eth0\":\n"                             \
	"    match:\n"                              \
	"      macaddress: \"02:11:22:33:44:55\"\n" \
	"    set-name: \"eth0\"\n"                  \
	"    mtu: 1500\n"                           \
	"    dhcp4: " dhcp "\n"                     \
	"    dhcp6: false\n"

/* A route without a gateway is more than some of cloud-init's renderers live through. */
static void test_config_without_gateways(void **state)
{
	struct pod_net *n = calloc(1, sizeof(*n));

	assert_non_null(n);
	n->count = 1;
	rig_nic(&n->nics[0], 1500);
	rig_route(&n->nics[0], "169.254.1.1", 32, NULL);
	assert_config(n, CONFIG_HEAD("false") "    routes:\n" /* nobody answers its DHCP */
					      "      - to: \"169.254.1.1/32\"\n"
					      "        scope: link\n");
	rig_addr(&n->nics[0], "10.1.2.3", 32);
	rig_route(&n->nics[0], "0.0.0.0", 0, "169.254.1.1");
	assert_config(n, CONFIG_HEAD("true"));
	rig_addr(&n->nics[0], "fd00::3", 128);
	rig_addr(&n->nics[0], "10.1.2.4", 32);
	rig_route(&n->nics[0], "fd00::1", 128, NULL);
	rig_route(&n->nics[0], "::", 0, "fd00::1");
	assert_config(n, CONFIG_HEAD("true") "    addresses:\n"
					     "      - \"fd00::3/128\"\n"
					     "      - \"10.1.2.4/32\"\n"
					     "    routes:\n"
					     "      - to: \"::/0\"\n"
					     "        via: \"fd00::1\"\n"
					     "        on-link: true\n");
	free(n);
}

/* All of it is on the link (ipvlan L3): neigh.c answers for whatever the gateway is. */
static void test_config_without_neighbours(void **state)
{
	struct pod_net *n = calloc(1, sizeof(*n));

	assert_non_null(n);
	n->count = 1;
	rig_nic(&n->nics[0], 1500);
	rig_addr(&n->nics[0], "fd00::3", 128);
	rig_route(&n->nics[0], "::", 0, NULL);
	assert_config(n, CONFIG_HEAD("false") "    addresses:\n"
					      "      - \"fd00::3/128\"\n"
					      "    routes:\n"
					      "      - to: \"::/0\"\n"
					      "        scope: link\n");
	n->nics[0].no_arp = true;
	assert_config(n, CONFIG_HEAD("false") "    addresses:\n"
					      "      - \"fd00::3/128\"\n"
					      "    routes:\n"
					      "      - to: \"::/0\"\n"
					      "        via: \"fe80::1\"\n"
					      "        on-link: true\n");
	free(n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_link_local_gateway),
		cmocka_unit_test(test_other_gateway),
		cmocka_unit_test(test_no_ipv6),
		cmocka_unit_test(test_much_to_say),
		cmocka_unit_test(test_solicitation),
		cmocka_unit_test(test_neighbour6),
		cmocka_unit_test(test_neighbour4),
		cmocka_unit_test(test_config),
		cmocka_unit_test(test_config_without_gateways),
		cmocka_unit_test(test_config_without_neighbours),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
