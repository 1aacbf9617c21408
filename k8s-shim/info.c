/*
 * info.c - `-info`: what this runtime is, and which of the OCI specification's features it has
 *
 * containerd from 2.2 on asks for it when it starts, for what CRI tells kubelet of a runtime class,
 * and may ask again for a container. The answer is the specification's features.md as JSON. Left out
 * is what does not hold: above all user namespaces, so that kubelet refuses hostUsers: false with a
 * sentence that says so. "linux" must be there: containerd looks into it unseen.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "k8s-shim/proto/info.pb-c.h"
#include "k8s-shim/shim.h"

#define OPTIONS_MAX (1u << 20)

/* A machine has a volume's file or its contents, and nothing below it: ro and rro are the same. */
static const char features[] = "{\"ociVersionMin\":\"1.0.0\",\"ociVersionMax\":\"1.3.0\","
			       "\"mountOptions\":[\"bind\",\"rbind\",\"ro\",\"rro\",\"rw\"],"
			       "\"linux\":{\"namespaces\":[\"network\"],"
			       "\"cgroup\":{\"v1\":true,\"v2\":true,\"systemd\":true}}}";

/* All of @fd, malloc'ed; NULL with @err. */
static uint8_t *read_options(int fd, size_t *len, struct err *err)
{
	cleanup_free uint8_t *bytes = malloc(OPTIONS_MAX);

	if (!bytes) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	ssize_t n = fd_read_to_end(fd, bytes, OPTIONS_MAX);

	if (n < 0) {
		err_set_sys(err, (int)n, "cannot read the runtime's options from standard input");
		return NULL;
	}
	if (n == OPTIONS_MAX) {
		err_set(err, E2BIG, "the runtime's options on standard input are too long");
		return NULL;
	}
	uint8_t *given = bytes;

	*len = (size_t)n;
	bytes = NULL;
	return given;
}

static int print(const Pb__RuntimeInfo *info, int out, struct err *err)
{
	size_t len = pb__runtime_info__get_packed_size(info);
	cleanup_free uint8_t *bytes = malloc(len);

	if (!bytes)
		return err_set(err, ENOMEM, "out of memory");
	pb__runtime_info__pack(info, bytes);
	int rc = fd_write_all(out, bytes, len);

	return rc ? err_set_sys(err, rc, "standard output") : 0;
}

int shim_info(int in, int out, struct err *err)
{
	Pb__RuntimeInfo info = PB__RUNTIME_INFO__INIT;
	Pb__RuntimeVersion version = PB__RUNTIME_VERSION__INIT;
	Pb__Any any = PB__ANY__INIT;
	size_t len;
	cleanup_free uint8_t *given = read_options(in, &len, err);

	if (!given)
		return 1;
	Pb__Any *options = pb__any__unpack(NULL, len, given);

	if (!options) {
		err_set(err, EINVAL, "standard input has no options of a runtime");
		return 1;
	}
	version.version = (char *)CORACLE_VERSION;
	any.type_url =
		(char *)"types.containerd.io/opencontainers/runtime-spec/1/features/Features";
	any.value = (ProtobufCBinaryData){ .len = strlen(features), .data = (uint8_t *)features };
	info.name = (char *)"io.containerd.coracle.v2";
	info.version = &version;
	info.features = &any;
	if (len)
		info.options = options;
	int rc = print(&info, out, err);

	pb__any__free_unpacked(options, NULL);
	return rc ? 1 : 0;
}
