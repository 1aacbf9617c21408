/*
 * sha256.h - SHA-256 (FIPS 180-4), for names that containerd's own shims make in the same way
 */
#ifndef K8S_SHIM_SHA256_H
#define K8S_SHIM_SHA256_H

#include <stddef.h>

#define SHA256_HEX 64

void sha256_hex(const void *data, size_t len, char hex[SHA256_HEX + 1]);

#endif
