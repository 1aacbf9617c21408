/*
 * test_shim_bundle.c - config.json, the node's configuration, resolv.conf, paths and names made from them
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "k8s-shim/bundle.h"
#include "k8s-shim/cgroup.h"
#include "k8s-shim/node_config.h"
#include "k8s-shim/resolv.h"
#include "k8s-shim/sha256.h"
#include "k8s-shim/vm_config.h"

static int parse(struct bundle *b, const char *text, struct err *err)
{
	memset(err, 0, sizeof(*err));
	return bundle_parse(b, "/bundle", text, strlen(text), err);
}

static void test_a_pods_container(void **state)
{
	struct bundle b;
	struct err err;

	assert_int_equal(
		parse(&b,
		      "{\"process\":{\"terminal\":true,\"oomScoreAdj\":-7},\"hostname\":\"vm\","
		      "\"annotations\":{\"io.kubernetes.cri.container-type\":\"container\","
		      "\"io.kubernetes.cri.sandbox-id\":\"abc\",\"vm.coracle.dev/mode\":\"disk\"},"
		      "\"mounts\":[{\"destination\":\"/disk\",\"source\":\"/"
		      "a\",\"options\":[\"rw\"]},"
		      "{\"destination\":\"/proc\"},"
		      "{\"destination\":\"/all\",\"options\":[\"rbind\",\"rro\"]},"
		      "{\"destination\":\"/disk\",\"source\":\"/"
		      "b\",\"options\":[\"rbind\",\"ro\"]}],"
		      "\"linux\":{\"cgroupsPath\":\"/pods/x\",\"namespaces\":[{\"type\":\"pid\"},"
		      "{\"type\":\"network\",\"path\":\"/run/netns/n\"}],"
		      "\"devices\":[{\"path\":\"/dev/"
		      "rootdisk\",\"type\":\"b\",\"major\":7,\"minor\":3},"
		      "{\"path\":\"/dev/null\",\"type\":\"c\",\"major\":1,\"minor\":3}],"
		      "\"resources\":{\"memory\":{\"limit\":1073741824},"
		      "\"cpu\":{\"shares\":100,\"quota\":150000,\"period\":100000}}}}\n",
		      &err),
		0);
	assert_true(b.in_pod);
	assert_false(b.sandbox);
	assert_string_equal(b.sandbox_id, "abc");
	assert_string_equal(b.netns, "/run/netns/n");
	assert_string_equal(b.cgroup, "/pods/x");
	assert_string_equal(b.hostname, "vm");
	assert_true(b.terminal);
	assert_true(b.has_oom_score);
	assert_int_equal(b.oom_score, -7);
	assert_int_equal(b.memory, 1073741824);
	assert_int_equal(b.cpu_quota, 150000);
	assert_int_equal(b.cpu_period, 100000);
	assert_int_equal(b.cpu_shares, 100);
	assert_int_equal(b.ndevices, 2);
	assert_true(b.devices[0].block);
	assert_int_equal(b.devices[0].minor, 3);
	assert_false(b.devices[1].block);
	assert_int_equal(b.nmounts, 4);
	assert_string_equal(bundle_mount_at(&b, "/disk")->source, "/b");
	assert_true(bundle_mount_at(&b, "/disk")->read_only);
	assert_true(bundle_mount_at(&b, "/all")->read_only);
	assert_string_equal(bundle_mount_at(&b, "/proc")->source, "");
	assert_false(bundle_mount_at(&b, "/proc")->read_only);
	assert_null(bundle_mount_at(&b, "/none"));
	assert_string_equal(bundle_annotation(&b, "vm.coracle.dev/mode"), "disk");
	assert_null(bundle_annotation(&b, "none"));
	bundle_fini(&b);
}

static void test_devices_to_read(void **state)
{
	static const struct {
		const char *rules;
		bool read_only;
	} cases[] = {
		{ "[{\"allow\":false,\"access\":\"rwm\"}]", false },
		{ "[{\"allow\":false,\"access\":\"rwm\"},{\"allow\":true,\"type\":\"b\","
		  "\"major\":7,\"minor\":2,\"access\":\"r\"}]",
		  true },
		{ "[{\"allow\":true,\"type\":\"b\",\"major\":7,\"minor\":2,\"access\":\"rwm\"}]",
		  false },
		{ "[{\"allow\":true,\"type\":\"c\",\"major\":7,\"minor\":2,\"access\":\"r\"}]",
		  false },
		{ "[{\"allow\":true,\"type\":\"b\",\"major\":7,\"minor\":3,\"access\":\"r\"}]",
		  false },
		{ "[{\"allow\":true,\"type\":\"b\",\"major\":7,\"access\":\"r\"},7,null,[]]",
		  false },
		{ "{}", false },
		{ "7", false },
	};
	char text[400];
	struct bundle b;
	struct err err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		snprintf(text, sizeof(text),
			 "{\"linux\":{\"devices\":[{\"path\":\"/dev/a\",\"type\":\"b\",\"major\":7,"
			 "\"minor\":2}],\"resources\":{\"devices\":%s}}}",
			 cases[i].rules);
		assert_int_equal(parse(&b, text, &err), 0);
		assert_int_equal(b.devices[0].read_only, cases[i].read_only);
		bundle_fini(&b);
	}
}

static void test_nothing_in_it(void **state)
{
	struct bundle b;
	struct err err;

	assert_int_equal(parse(&b, "{}", &err), 0);
	assert_false(b.in_pod);
	assert_null(b.netns);
	assert_null(b.cgroup);
	assert_int_equal(b.ndevices + b.nmounts, 0);
	bundle_fini(&b);
}

static void test_refused(void **state)
{
	static const char *const texts[] = {
		"",
		"null",
		"[]",
		"7",
		"{",
		"{}x",
		"{} {}",
		"{\"a\":tru",
		"{\"annotations\":{\"io.kubernetes.cri.container-type\":\"container\"}}",
		"{\"linux\":{\"devices\":[{}]}}",
		"{\"linux\":{\"devices\":[null]}}",
		"{\"mounts\":[{\"source\":\"/x\"}]}",
		"{\"mounts\":[{\"destination\":\"/x\\u0000y\"}]}",
		"{\"linux\":{\"devices\":[{\"path\":\"/a\\u0000\",\"type\":\"b\"}]}}",
	};
	struct bundle b;
	struct err err;

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		assert_int_not_equal(parse(&b, texts[i], &err), 0);
		assert_true(err.code < 0);
		assert_true(!strncmp(err.msg, "/bundle: ", 9));
	}
}

static void test_odd_types(void **state)
{
	static const char *const texts[] = {
		"{\"linux\":7,\"process\":[],\"annotations\":\"x\",\"mounts\":{}}",
		"{\"linux\":{\"namespaces\":{},\"devices\":\"\",\"resources\":[]}}",
		"{\"linux\":{\"namespaces\":[1,null,{\"type\":3}],\"cgroupsPath\":[]}}",
		"{\"linux\":{\"resources\":{\"memory\":{\"limit\":-1},\"cpu\":{\"quota\":-1}}}}",
		"{\"linux\":{\"resources\":{\"memory\":{\"limit\":\"9\"}}}}",
	};
	struct bundle b;
	struct err err;

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		assert_int_equal(parse(&b, texts[i], &err), 0);
		assert_int_equal(b.memory, 0);
		assert_int_equal(b.cpu_quota, 0);
		bundle_fini(&b);
	}
}

static void test_too_many_devices(void **state)
{
	size_t n = BUNDLE_ITEMS_MAX + 1, at = 0, room = n * 40 + 100;
	char *text = malloc(room);
	struct bundle b;
	struct err err;

	at += (size_t)snprintf(text + at, room - at, "{\"linux\":{\"devices\":[");
	for (size_t i = 0; i < n; i++)
		at += (size_t)snprintf(text + at, room - at, "%s{\"path\":\"/d\",\"type\":\"b\"}",
				       i ? "," : "");
	snprintf(text + at, room - at, "]}}");
	assert_int_not_equal(parse(&b, text, &err), 0);
	assert_non_null(strstr(err.msg, "513 devices"));
	free(text);
}

/* ---- the node's configuration ---- */

static int node(struct node_config *c, const char *text, struct err *err)
{
	memset(err, 0, sizeof(*err));
	return node_config_parse(c, text, strlen(text), "coracle.json", err);
}

static void test_node_config(void **state)
{
	struct node_config c;
	struct err err;

	assert_int_equal(node(&c, "{}", &err), 0);
	assert_true(c.disk_direct);
	assert_int_equal(c.memory, 512 << 20);
	assert_null(c.kernel);
	assert_true(node_config_allows(&c, "mode"));
	assert_false(node_config_allows(&c, "else"));
	node_config_fini(&c);

	assert_int_equal(node(&c,
			      "{\"kernel\":\"/k\",\"memory\":\"2G\",\"memory-max\":4096000000,"
			      "\"cpus-max\":4,\"disk-direct\":false,\"annotations\":[\"mode\"]}",
			      &err),
			 0);
	assert_string_equal(c.kernel, "/k");
	assert_int_equal(c.memory, 2ull << 30);
	assert_int_equal(c.memory_max, 4096000000ull);
	assert_int_equal(c.cpus_max, 4);
	assert_false(c.disk_direct);
	assert_false(node_config_allows(&c, "kernel-args"));
	node_config_fini(&c);
}

static void test_node_config_refused(void **state)
{
	static const struct {
		const char *text, *why;
	} cases[] = {
		{ "[]", "must be an object" },
		{ "{\"kernal\":\"/k\"}", "no key \"kernal\"" },
		{ "{\"kernel\":\"k\"}", "absolute path" },
		{ "{\"kernel\":7}", "must be a string" },
		{ "{\"memory\":\"1X\"}", "\"memory\" must be" },
		{ "{\"memory\":\"99999999999T\"}", "\"memory\" must be" },
		{ "{\"memory\":-1}", "\"memory\" must be" },
		{ "{\"memory\":\"1K\"}", "\"memory\" must be" },
		{ "{\"cpus\":0}", "\"cpus\" must be" },
		{ "{\"cpus\":65}", "\"cpus\" must be" },
		{ "{\"cpus\":\"2\"}", "\"cpus\" must be" },
		{ "{\"disk-direct\":1}", "true or false" },
		{ "{\"annotations\":\"mode\"}", "array" },
		{ "{\"annotations\":[1]}", "only strings" },
	};
	struct node_config c;
	struct err err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_not_equal(node(&c, cases[i].text, &err), 0);
		if (!strstr(err.msg, cases[i].why))
			fail_msg("%s: \"%s\" does not say \"%s\"", cases[i].text, err.msg,
				 cases[i].why);
	}
}

static void test_limits(void **state)
{
	static const struct {
		int64_t quota;
		unsigned cpus;
	} cases[] = { { 0, 3 },      { 1000, 1 },   { 100000, 1 },
		      { 100001, 2 }, { 250000, 3 }, { 800000, 8 } };
	struct node_config c;
	struct bundle b;
	struct err err;
	unsigned cpus;
	uint64_t memory;

	node(&c, "{\"cpus\":3,\"cpus-max\":8,\"memory\":\"1G\",\"memory-max\":\"2G\"}", &err);
	parse(&b, "{}", &err);
	b.cpu_period = 100000;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		b.cpu_quota = cases[i].quota;
		assert_int_equal(vm_config_cpus(&b, &c, &cpus, &err), 0);
		assert_int_equal(cpus, cases[i].cpus);
	}
	b.cpu_quota = 800001;
	assert_int_not_equal(vm_config_cpus(&b, &c, &cpus, &err), 0);
	assert_int_equal(vm_config_memory(&b, &c, &memory, &err), 0);
	assert_int_equal(memory, 1 << 30);
	b.memory = (2 << 20) + 4097;
	assert_int_equal(vm_config_memory(&b, &c, &memory, &err), 0);
	assert_int_equal(memory, (2 << 20) + 4096);
	b.memory = (2 << 20) - 1;
	assert_int_equal(vm_config_memory(&b, &c, &memory, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "2097151 bytes"));
	err.code = 0;
	b.memory = (2ull << 30) + 1;
	assert_int_not_equal(vm_config_memory(&b, &c, &memory, &err), 0);
	bundle_fini(&b);
	node_config_fini(&c);
}

static void test_console(void **state)
{
#define POD(word) "{\"annotations\":{\"vm.coracle.dev/console\":\"" word "\"}}"
	static const struct {
		const char *node, *pod;
		int virtio; /* -1: refused */
	} cases[] = {
		{ "{}", "{}", 0 },
		{ "{\"console\":\"serial\"}", "{}", 0 },
		{ "{\"console\":\"virtio\"}", "{}", 1 },
		{ "{}", POD("virtio"), 1 },
		{ "{\"console\":\"virtio\"}", POD("serial"), 0 },
		{ "{}", POD(""), -1 },
		{ "{}", POD("Virtio"), -1 },
		{ "{\"console\":\"\"}", "{}", -1 },
		{ "{\"annotations\":[]}", POD("virtio"), -1 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct node_config c;
		struct bundle b;
		struct err err = { 0 };
		bool virtio = false;

		node(&c, cases[i].node, &err);
		parse(&b, cases[i].pod, &err);
		int rc = vm_config_console(&b, &c, &virtio, &err);

		assert_int_equal(rc ? -1 : virtio, cases[i].virtio);
		if (rc)
			assert_non_null(strstr(err.msg, "console"));
		bundle_fini(&b);
		node_config_fini(&c);
	}
}

/* ---- names and paths ---- */

static void test_names(void **state)
{
	struct bundle b;
	struct err err;
	char name[64];

	parse(&b,
	      "{\"annotations\":{\"io.kubernetes.cri.sandbox-name\":"
	      "\"my pod/with-a-name-that-is-really-quite-a-lot-longer-than-fits\"}}",
	      &err);
	vm_config_name(&b, "0123456789abcdef", name);
	assert_string_equal(name, "my_pod_with-a-name-that-is-really-quite-a-lot-long-01234567");
	bundle_fini(&b);
	parse(&b, "{}", &err);
	vm_config_name(&b, "_x", name);
	assert_string_equal(name, "px");
	bundle_fini(&b);
}

static void test_cgroup_paths(void **state)
{
	static const struct {
		const char *path, *below; /* NULL: refused */
	} cases[] = {
		{ "/kubepods/pod1/c1", "/kubepods/pod1/c1" },
		{ "a/b", "/a/b" },
		{ "kubepods-burstable-podx.slice:cri-containerd:c1",
		  "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/"
		  "cri-containerd-c1.scope" },
		{ "-.slice:cri:c1", "/cri-c1.scope" },
		{ "system.slice:cri:c1", "/system.slice/cri-c1.scope" },
		{ "/a/../b", NULL },
		{ "/..", NULL },
		{ "/", NULL },
		{ "//a", NULL },
		{ "x:y", NULL },
		{ ".slice:a:b", NULL },
		{ "a.slice:b:c:d", NULL },
		{ "a.slice:../..:c", NULL },
	};
	char below[1024];
	struct err err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int rc = cgroup_expand(cases[i].path, below, sizeof(below), &err);

		if (!cases[i].below && !rc)
			fail_msg("%s became %s", cases[i].path, below);
		if (cases[i].below) {
			assert_int_equal(rc, 0);
			assert_string_equal(below, cases[i].below);
		}
	}
}

static void test_resolv(void **state)
{
	static const char text[] = "# a comment\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\n"
				   "search one.test two.test\nsearch three.test four.test\n"
				   "options ndots:5\nnameserver";
	struct resolv r;

	resolv_parse(&r, text, strlen(text));
	assert_string_equal(r.servers[0], "192.0.2.1");
	assert_string_equal(r.servers[1], "2001:db8::1");
	assert_null(r.servers[2]);
	assert_string_equal(r.search[0], "three.test");
	assert_string_equal(r.search[1], "four.test");
	assert_null(r.search[2]);
	resolv_fini(&r);
	resolv_read(&r, "/nowhere");
	assert_null(r.servers[0]);
	resolv_fini(&r);
}

/* FIPS 180-4's examples, and lengths around a block's end */
static void test_sha256(void **state)
{
	static const struct {
		const char *text, *hex;
	} cases[] = {
		{ "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
		{ "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
		{ "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
		  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
		{ "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopq"
		  "k"
		  "lmnopqrlmnopqrsmnopqrstnopqrstu",
		  "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1" },
	};
	char hex[SHA256_HEX + 1];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		sha256_hex(cases[i].text, strlen(cases[i].text), hex);
		assert_string_equal(hex, cases[i].hex);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_pods_container),
		cmocka_unit_test(test_devices_to_read),
		cmocka_unit_test(test_nothing_in_it),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_odd_types),
		cmocka_unit_test(test_too_many_devices),
		cmocka_unit_test(test_node_config),
		cmocka_unit_test(test_node_config_refused),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_console),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_cgroup_paths),
		cmocka_unit_test(test_resolv),
		cmocka_unit_test(test_sha256),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
