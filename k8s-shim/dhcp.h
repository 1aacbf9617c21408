/*
 * dhcp.h - DHCP for one NIC with one address (RFC 2131, 2132, 3397, 3442)
 *
 * Pure: frames in, frames out. There is one client, one lease, and it never ends.
 */
#ifndef K8S_SHIM_DHCP_H
#define K8S_SHIM_DHCP_H

#include "k8s-shim/net.h"
#include "k8s-shim/told.h"

#define DHCP_FRAME_MAX   1514
#define DHCP_SERVER_PORT 67
#define DHCP_CLIENT_PORT 68

enum dhcp_type {
	DHCP_DISCOVER = 1,
	DHCP_OFFER,
	DHCP_REQUEST,
	DHCP_DECLINE,
	DHCP_ACK,
	DHCP_NAK,
	DHCP_RELEASE,
	DHCP_INFORM,
};

struct dhcp_request {
	enum dhcp_type type;
	uint32_t xid;
	uint16_t flags;
	uint8_t mac[6];
	uint8_t ciaddr[4], requested[4], server[4]; /* zeroes: not said */
	uint16_t max_size;                          /* of the IP packet; 576 if not said */
	uint8_t client_id[255], client_id_len;
};

/* A client's message in an Ethernet frame? Any bytes will do. */
bool dhcp_parse(const uint8_t *frame, size_t len, struct dhcp_request *r);

/* The answer to a frame from the guest; its length, 0: none is due. @room: DHCP_FRAME_MAX. */
size_t dhcp_answer(const struct pod_nic *nic, const struct told *told, const uint8_t *frame,
		   size_t len, uint8_t *out, size_t room);

#endif
