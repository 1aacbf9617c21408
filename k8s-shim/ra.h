/*
 * ra.h - router advertisements for one NIC (RFC 4861, 4191, 8106)
 *
 * Pure: frames in, frames out. What they can and cannot tell a guest stands in ra.c.
 */
#ifndef K8S_SHIM_RA_H
#define K8S_SHIM_RA_H

#include "k8s-shim/net.h"
#include "k8s-shim/told.h"

#define RA_FRAME_MAX 1294 /* IPv6's least MTU, and Ethernet's header */
#define RA_PERIOD_S  600  /* how often to advertise unasked, as routers' lifetimes end */

/* The answer to a router solicitation; its length, 0: none is due. @room: RA_FRAME_MAX. */
size_t ra_answer(const struct pod_nic *nic, const struct told *told, const uint8_t *frame,
		 size_t len, uint8_t *out, size_t room);

/* An advertisement to all nodes; its length, 0: the NIC has no IPv6 address. */
size_t ra_advertise(const struct pod_nic *nic, const struct told *told, uint8_t *out, size_t room);

#endif
