/*
 * told.h - what guests are told beyond their addresses: host name, name servers, search domains
 *
 * Checked once when the pod's network is opened; the responders and cloud-init's configuration
 * say it.
 */
#ifndef K8S_SHIM_TOLD_H
#define K8S_SHIM_TOLD_H

#include "k8s-shim/net.h"

#define TOLD_DNS_MAX    8
#define TOLD_SEARCH_MAX 32  /* as many as kubelet passes on */
#define TOLD_NAME_MAX   253 /* RFC 1035 */

struct told {
	char hostname[TOLD_NAME_MAX + 1]; /* "": none */
	struct pod_addr dns[TOLD_DNS_MAX];
	unsigned ndns;
	char search[TOLD_SEARCH_MAX][TOLD_NAME_MAX + 1];
	unsigned nsearch;
};

/* What is no address or no domain name is left out, and logged. */
void told_init(struct told *t, const struct pod_net_options *o);

/* @name in DNS wire form (RFC 1035, 3.1) to @out; the length, 0: not a name or no room. */
size_t told_dns_name(const char *name, uint8_t *out, size_t room);

#endif
