/*
 * node_config.h - what the node's administrator has decided: /etc/coracle/coracle.json
 *
 * coracle.json(5) describes the keys; the table in node_config.c is where they are. Host paths come
 * from here alone, never from a pod.
 */
#ifndef K8S_SHIM_NODE_CONFIG_H
#define K8S_SHIM_NODE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define NODE_CONFIG_PATH "/etc/coracle/coracle.json"

struct node_config {
	char *vmm;       /* the coracle program */
	char *kernel;    /* NULL: the image has to bring one */
	char *initrd;    /* NULL: none */
	char *cmdline;   /* "" at least */
	char *console;   /* "serial" or "virtio"; NULL: serial */
	char *transport; /* NULL: coracle's default */
	char *log_level; /* NULL: coracle's default */
	char *vhost;     /* of NICs; NULL: coracle's default */
	uint64_t memory; /* guest RAM of a pod without a memory limit */
	uint64_t memory_max;
	unsigned cpus, cpus_max; /* vCPUs without a CPU limit; at most */
	bool disk_direct;        /* O_DIRECT on block devices */
	char **annotations;      /* of vm.coracle.dev/ that pods may use; NULL-terminated */
};

/* @path NULL: the default one. On error there is nothing to free. */
int node_config_load(struct node_config *c, const char *path, struct err *err);
int node_config_parse(struct node_config *c, const char *text, size_t len, const char *what,
		      struct err *err);
void node_config_fini(struct node_config *c);

/* By its name below vm.coracle.dev/: is there such an annotation; may pods use it? */
bool node_config_knows(const char *annotation);
bool node_config_allows(const struct node_config *c, const char *annotation);

#endif
