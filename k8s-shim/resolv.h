/*
 * resolv.h - name servers and search domains of a resolv.conf
 */
#ifndef K8S_SHIM_RESOLV_H
#define K8S_SHIM_RESOLV_H

#include <stddef.h>

#define RESOLV_MAX 32 /* of each; kubelet allows 3 and 32 */

struct resolv {
	char *servers[RESOLV_MAX + 1], *search[RESOLV_MAX + 1]; /* NULL-terminated */
};

/* A file that is not there, or @path NULL, has none. */
void resolv_read(struct resolv *r, const char *path);
void resolv_parse(struct resolv *r, const char *text, size_t len);
void resolv_fini(struct resolv *r);

#endif
