/*
 * nocloud.h - a disk that cloud-init finds its data on
 *
 * An ISO 9660 image with Rock Ridge names and the label "cidata": cloud-init's NoCloud source.
 */
#ifndef K8S_SHIM_NOCLOUD_H
#define K8S_SHIM_NOCLOUD_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define NOCLOUD_FILES     4
#define NOCLOUD_BYTES_MAX (1u << 20) /* of a file; a Secret has no more */

/* Which files there are, in this order everywhere. */
enum nocloud_which { NOCLOUD_META, NOCLOUD_NETWORK, NOCLOUD_USER, NOCLOUD_VENDOR };

struct nocloud {
	struct {
		uint8_t *data; /* NULL: no such file */
		size_t len;
	} files[NOCLOUD_FILES];
};

/*
 * Take the files that are in @dir. Names may also be those KubeVirt's Secrets have (userdata,
 * networkdata).
 */
int nocloud_read(struct nocloud *n, const char *dir, struct err *err);
/* Set one file that is not there; @text NULL: leave it. 0 or -ENOMEM. */
int nocloud_default(struct nocloud *n, enum nocloud_which which, const char *text);
void nocloud_fini(struct nocloud *n);

/* Write the image. */
int nocloud_write(const struct nocloud *n, int fd, struct err *err);

#endif
