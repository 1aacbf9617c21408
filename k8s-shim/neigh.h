/*
 * neigh.h - answer for every neighbour on a link that knows no neighbours
 *
 * A link with IFF_NOARP (ipvlan in mode l3 or l3s) routes by IP alone, but the guest's NIC is an
 * ordinary Ethernet one and asks. Pure: frames in, frames out.
 */
#ifndef K8S_SHIM_NEIGH_H
#define K8S_SHIM_NEIGH_H

#include "k8s-shim/net.h"

#define NEIGH_FRAME_MAX 128

/* The answer to an ARP request or a neighbour solicitation; its length, 0: none is due. */
size_t neigh_answer(const struct pod_nic *nic, const uint8_t *frame, size_t len, uint8_t *out,
		    size_t room);

#endif
