/*
 * fuzz_shim_config.c - JSON texts the shim reads: config.json, the node's configuration, resolv.conf
 *
 * The first byte says which. What was read of a config.json is then looked at as the shim does.
 */
#include <stdlib.h>
#include <string.h>

#include "k8s-shim/bundle.h"
#include "k8s-shim/cgroup.h"
#include "k8s-shim/node_config.h"
#include "k8s-shim/resolv.h"
#include "k8s-shim/vm_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void use_bundle(const char *text, size_t len)
{
	struct node_config c;
	struct bundle b;
	struct err err = { 0 };
	char name[64], below[1024];
	unsigned cpus;
	uint64_t memory;
	bool virtio;

	if (bundle_parse(&b, "/bundle", text, len, &err))
		return;
	if (!node_config_parse(&c, "{}", 2, "node", &err)) {
		vm_config_cpus(&b, &c, &cpus, &err);
		vm_config_memory(&b, &c, &memory, &err);
		vm_config_console(&b, &c, &virtio, &err);
		node_config_fini(&c);
	}
	vm_config_name(&b, "0123456789", name);
	if (b.cgroup)
		cgroup_expand(b.cgroup, below, sizeof(below), &err);
	bundle_mount_at(&b, "/disk");
	bundle_fini(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct node_config c;
	struct resolv r;
	struct err err = { 0 };

	if (!len)
		return 0;
	const char *text = (const char *)data + 1;

	switch (data[0] % 3) {
	case 0:
		use_bundle(text, len - 1);
		break;
	case 1:
		if (!node_config_parse(&c, text, len - 1, "node", &err))
			node_config_fini(&c);
		break;
	case 2:
		resolv_parse(&r, text, len - 1);
		resolv_fini(&r);
		break;
	}
	return 0;
}
