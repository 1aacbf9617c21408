/*
 * test_machine_desc.c - a machine's description, there and back; what may be given anew
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "virtio/net.h"
#include "vmm/machine_desc.h"
#include "vmm/vm.h"

/* A machine that was never built: the description needs its configuration and finds no devices. */
static struct vm *machine(struct config *c)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	struct err err = { 0 };
	static const char *const keys[][2] = {
		{ "kernel", "vmlinuz" },
		{ "id", "first" },
		{ "control", "/run/x.sock" },
		{ "cpus", "3" },
		{ "memory", "96M" },
		{ "cmdline", "console=ttyS0 quote=\"x\"" },
		{ "disk", "a.img,id=root,queues=2,cache=writethrough,direct=on" },
		{ "disk", "b,,c.img,id=data,read-only=on" },
		{ "net", "tap0,id=n0,queues=2" },
		{ "net", "tap1,id=n1,mac=52:54:00:12:34:56,mtu=1400" },
		{ "serial", "file:log" },
		{ "paused", "on" },
	};

	config_init(c);
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (config_set(c, keys[i][0], keys[i][1], &err))
			fail_msg("%s", err.msg);
	assert_int_equal(config_finish(c, &err), 0);
	vm->config = c;
	return vm;
}

static char *text_of_machine(void)
{
	struct config c;
	struct err err = { 0 };
	struct vm *vm = machine(&c);
	char *text = machine_desc_text(vm, &err);

	assert_non_null(text);
	free(vm);
	config_fini(&c);
	return text;
}

static void parse(struct machine_desc *d)
{
	char *text = text_of_machine();
	struct err err = { 0 };

	if (machine_desc_parse(d, text, strlen(text), &err))
		fail_msg("%s", err.msg);
	free(text);
}

static void there_and_back(void **state)
{
	struct machine_desc d;
	uint8_t mac[6];

	parse(&d);
	assert_int_equal(d.config.cpus, 3);
	assert_int_equal(d.config.memory, 96 << 20);
	assert_string_equal(d.config.cmdline, "console=ttyS0 quote=\"x\"");
	assert_int_equal(d.config.ndisks, 2);
	assert_string_equal(d.config.disks[0].id, "root");
	assert_int_equal(d.config.disks[0].queues, 2);
	assert_int_equal(d.config.disks[0].cache, CONFIG_CACHE_WRITETHROUGH);
	assert_true(d.config.disks[0].direct);
	assert_string_equal(d.config.disks[1].path, "b,c.img");
	assert_true(d.config.disks[1].read_only);
	assert_string_equal(d.config.serial, "file:log");

	/* What was made from the names stays as it was made, whatever the machine is called next. */
	virtio_net_default_mac("first", "n0", mac);
	assert_true(d.config.nets[0].mac.set);
	assert_memory_equal(d.config.nets[0].mac.addr, mac, 6);
	assert_int_equal(d.config.nets[1].mtu, 1400);

	/* What belongs to the run. */
	assert_null(d.config.id);
	assert_null(d.config.control);
	assert_false(d.config.paused);
	machine_desc_fini(&d);
}

/* Apply one option; 0 or the error, whose message has to have @word. */
static int give(struct machine_desc *d, const char *key, const char *value, const char *word)
{
	struct machine_overrides o = { .v = { { key, value } }, .n = 1 };
	struct err err = { 0 };
	int rc = machine_desc_apply(d, &o, &err);

	if (word && !strstr(err.msg, word))
		fail_msg("%s %s: no \"%s\" in: %s", key, value, word, err.msg);
	return rc;
}

static void given_anew(void **state)
{
	struct machine_desc d;

	parse(&d);
	assert_int_equal(give(&d, "disk", "id=root,path=new.img,aio=threads", NULL), 0);
	assert_string_equal(d.config.disks[0].path, "new.img");
	assert_int_equal(d.config.disks[0].aio, CONFIG_AIO_THREADS);
	assert_int_equal(d.config.disks[0].queues, 2); /* the rest stays */
	assert_true(d.config.disks[0].direct);
	assert_int_equal(give(&d, "disk", "other.img,id=data,direct=off", NULL), 0);
	assert_string_equal(d.config.disks[1].path, "other.img");
	assert_int_equal(give(&d, "net", "id=n0,tap=tap7", NULL), 0);
	assert_string_equal(d.config.nets[0].tap, "tap7");
	assert_int_equal(d.config.nets[0].queues, 2);
	assert_int_equal(give(&d, "net", "id=n1,fd=7", NULL), 0);
	assert_null(d.config.nets[1].tap);
	assert_int_equal(d.config.nets[1].fd.count, 1);
	assert_int_equal(d.config.nets[1].fd.fd[0], 7);
	assert_int_equal(give(&d, "id", "second", NULL), 0);
	assert_int_equal(give(&d, "serial", "null", NULL), 0);
	assert_int_equal(give(&d, "hugepages", "off", NULL), 0);
	assert_int_equal(give(&d, "paused", "on", NULL), 0); /* it has a name */
	assert_int_equal(d.config.ndisks, 2);
	assert_int_equal(d.config.nnets, 2);
	machine_desc_fini(&d);
}

static void not_given(void **state)
{
	static const struct {
		const char *key, *value, *word;
	} bad[] = {
		{ "disk", "id=nope,path=x", "root, data" },
		{ "disk", "path=x", "which one" },
		{ "disk", "id=root,queues=4", "queues" },
		{ "disk", "id=root,read-only=on", "read-only" },
		{ "disk", "id=root,cache=writeback", "cache" },
		{ "disk", "id=root,serial=x", "serial" },
		{ "disk", "id=root,nonsense=1", "nonsense" },
		{ "disk", "", "needs a value" },
		{ "net", "id=n9,tap=x", "n0, n1" },
		{ "net", "id=n0,mac=52:54:00:00:00:01", "mac" },
		{ "net", "id=n0,mtu=9000", "mtu" },
		{ "net", "id=n0,tap=tap1", "same tap" },
		{ "net", "id=n0,tap=a/b", "interface name" },
		{ "serial", "nonsense", "stdio" },
		{ "console", "null", "no virtio console" },
		{ "id", "no good", "letters" },
		{ "paused", "on", "nothing could resume" },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct machine_desc d;

		parse(&d);
		assert_int_equal(give(&d, bad[i].key, bad[i].value, bad[i].word), -EINVAL);
		machine_desc_fini(&d);
	}
}

static void command_line(void **state)
{
	const char *words[] = {
		"restore", "--disk", "id=root,path=x", "--net=id=n0,tap=t", "--paused", "DIR", "-q",
		"--json",  NULL
	};
	char **argv = (char **)words; /* only read */
	struct machine_overrides o = { 0 };
	struct err err = { 0 };
	int i = 1;

	assert_int_equal(machine_overrides_take(&o, 8, argv, &i, &err), 1);
	assert_int_equal(i, 3);
	assert_int_equal(machine_overrides_take(&o, 8, argv, &i, &err), 1);
	assert_int_equal(machine_overrides_take(&o, 8, argv, &i, &err), 1);
	assert_int_equal(i, 5);
	assert_int_equal(machine_overrides_take(&o, 8, argv, &i, &err), 0); /* DIR */
	assert_int_equal(i++, 5);
	assert_int_equal(machine_overrides_take(&o, 8, argv, &i, &err), 1); /* -q */
	assert_int_equal(machine_overrides_take(&o, 8, argv, &i, &err), 0); /* not of ours */
	assert_int_equal(o.n, 4);
	assert_string_equal(o.v[1].value, "id=n0,tap=t");
	assert_string_equal(o.v[2].value, "on");
	assert_string_equal(o.v[3].key, "log-level");

	static const char *const bad[] = { "--memory=1G",  "--cpus", "--kernel", "--transport=mmio",
					   "--testdev=on", "--disk", "--serial" };

	for (size_t n = 0; n < sizeof(bad) / sizeof(bad[0]); n++) {
		const char *line[] = { "restore", bad[n], "--paused", NULL };

		i = 1;
		assert_int_equal(machine_overrides_take(&o, 3, (char **)line, &i, &err), -EINVAL);
		assert_non_null(strstr(err.msg, n < 5 ? "cannot change" : "needs a value"));
	}
}

static void hostile(void **state)
{
	static const char *const bad[] = {
		"",
		"{",
		"[]",
		"3",
		"{}",
		"{\"version\":1}",
		"{\"version\":2,\"config\":{\"kernel\":\"k\"}}",
		"{\"version\":1,\"config\":3}",
		"{\"version\":1,\"config\":{\"kernel\":\"k\",\"memory\":\"1Z\"}}",
		"{\"version\":1,\"config\":{\"kernel\":\"k\",\"cpus\":100000}}",
		"{\"version\":1,\"config\":{\"kernel\":\"k\",\"no-such-key\":1}}",
		"{\"version\":1,\"config\":{\"kernel\":\"k\",\"disk\":[{\"path\":\"a\"}]}}",
		"{\"version\":1,\"config\":{\"kernel\":\"k\",\"disk\":[{\"path\":\"a\"}]},"
		"\"disks\":{\"disk0\":{\"size\":\"big\"}}}",
		"{\"version\":1,\"config\":{\"kernel\":\"k\",\"disk\":[{\"path\":\"a\"}]},"
		"\"disks\":[]}",
		"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
	};
	struct machine_desc d;
	struct err err = { 0 };
	char *text = text_of_machine();

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(machine_desc_parse(&d, bad[i], strlen(bad[i]), &err), -EINVAL);
		assert_non_null(strstr(err.msg, "section machine"));
	}
	for (size_t cut = 0; cut + 2 < strlen(text); cut += 5)
		assert_int_equal(machine_desc_parse(&d, text, cut, &err), -EINVAL);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(there_and_back), cmocka_unit_test(given_anew),
		cmocka_unit_test(not_given),      cmocka_unit_test(command_line),
		cmocka_unit_test(hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
