/*
 * bundle.h - what containerd wants run: config.json of the OCI runtime specification
 *
 * Read once. Everything points into the parsed text and lives as long as the bundle.
 */
#ifndef K8S_SHIM_BUNDLE_H
#define K8S_SHIM_BUNDLE_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define BUNDLE_BYTES_MAX (8u << 20)
#define BUNDLE_ITEMS_MAX 512 /* devices, mounts */

struct bundle_device {
	const char *path; /* in the container: /dev/rootdisk */
	bool block;
	bool read_only; /* says linux.resources.devices */
	unsigned major, minor;
};

struct bundle_mount {
	const char *destination, *source; /* source "" where there is none */
	bool read_only;
};

struct bundle {
	struct json_object *root;
	char *path; /* the directory */

	bool in_pod;            /* made by CRI: it has a type and a sandbox */
	bool sandbox;           /* the pod itself, not a container in it */
	const char *sandbox_id; /* of the pod; NULL unless in_pod */
	const char *netns;      /* NULL: the node's own */
	const char *cgroup;     /* linux.cgroupsPath; NULL: none */
	const char *hostname;   /* NULL: none */
	bool terminal;
	bool has_oom_score;
	int oom_score;

	uint64_t memory; /* bytes; 0: no limit */
	int64_t cpu_quota;
	uint64_t cpu_period, cpu_shares; /* 0: not given */
	const char *cpus;                /* of the node it may run on: "0-3"; NULL: any */

	struct bundle_device *devices;
	unsigned ndevices;
	struct bundle_mount *mounts;
	unsigned nmounts;
};

/* Read DIR/config.json. On error there is nothing to free. */
int bundle_load(struct bundle *b, const char *dir, struct err *err);
/* The same from memory. */
int bundle_parse(struct bundle *b, const char *dir, const char *text, size_t len, struct err *err);
void bundle_fini(struct bundle *b);

const char *bundle_annotation(const struct bundle *b, const char *name); /* NULL: not there */
const struct bundle_mount *bundle_mount_at(const struct bundle *b, const char *destination);

#endif
