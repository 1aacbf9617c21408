/*
 * vm_config.h - a pod's container as a configuration of `coracle run`
 */
#ifndef K8S_SHIM_VM_CONFIG_H
#define K8S_SHIM_VM_CONFIG_H

#include "k8s-shim/bundle.h"
#include "k8s-shim/disks.h"
#include "k8s-shim/net.h"
#include "k8s-shim/node_config.h"

struct vm_kernel {
	int kernel, initrd; /* from the image, to be inherited; -1: the node's */
};

/* @fd's are marked by their numbers; whoever starts the machine sees to their inheritance. */
int vm_config_write(const char *state_dir, const char *id, const struct bundle *b,
		    const struct node_config *c, const struct disks *d, const struct pod_net *net,
		    const struct vm_kernel *k, struct err *err);

/* vCPUs that a CPU limit comes to; @period is not 0. */
uint64_t vm_config_round_cpus(uint64_t quota, uint64_t period);

/* vCPUs and bytes of RAM of a container. */
int vm_config_cpus(const struct bundle *b, const struct node_config *c, unsigned *out,
		   struct err *err);
int vm_config_memory(const struct bundle *b, const struct node_config *c, uint64_t *out,
		     struct err *err);

/* Is its line, the container's standard input and output, a virtio console, or the serial port? */
int vm_config_console(const struct bundle *b, const struct node_config *c, bool *virtio,
		      struct err *err);

/* A name for `coracle ctl`: that of the pod and the start of the container's id. */
void vm_config_name(const struct bundle *b, const char *id, char out[64]);

#endif
