/*
 * disks.h - which mode a container runs in, and the disks of its machine
 */
#ifndef K8S_SHIM_DISKS_H
#define K8S_SHIM_DISKS_H

#include <stdbool.h>

#include "k8s-shim/bundle.h"
#include "k8s-shim/node_config.h"

#define DISKS_MAX 30 /* as many as coracle takes */

#define ANNOTATION "vm.coracle.dev/"

enum pod_mode { MODE_BLOCK, MODE_DISK };

struct disk {
	char name[64];   /* for messages and `coracle ctl`: rootdisk */
	char *path;      /* what the VMM opens */
	char *shown;     /* what a person knows it by, where that is something else */
	int fd;          /* that it inherits, or -1; owned */
	bool has_serial; /* its name is its serial */
	bool direct, read_only;
};

struct disks {
	enum pod_mode mode;
	struct disk list[DISKS_MAX];
	unsigned count;
};

/* @rootfs: the image, or -1. Device nodes that /dev lacks are made in @state_dir. */
int disks_find(struct disks *d, const struct bundle *b, const struct node_config *c, int rootfs,
	       const char *state_dir, struct err *err);
/* One more, of a file of our own. Takes nothing over. */
int disks_add_file(struct disks *d, const char *name, const char *path, struct err *err);
void disks_fini(struct disks *d);

/*
 * In a message of the VMM's, paths that only it can use become names that people know, and "another
 * virtual machine" that has a disk gets its name. @state_dir is the one of the machine of these disks.
 */
void disks_explain(const struct disks *d, const char *state_dir, char *text, size_t room);

/* A pod's annotation vm.coracle.dev/@name: NULL where it is not set. -EPERM in @err if not allowed. */
const char *pod_annotation(const struct bundle *b, const struct node_config *c, const char *name,
			   struct err *err);

#endif
