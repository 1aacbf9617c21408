/*
 * responder.h - speaks DHCP and neighbour discovery with the guest on one tap
 */
#ifndef K8S_SHIM_RESPONDER_H
#define K8S_SHIM_RESPONDER_H

#include "base/loop.h"
#include "k8s-shim/net.h"
#include "k8s-shim/told.h"

struct responder {
	const struct pod_nic *nic;
	const struct told *told;
	bool no_arp;
	int sock;
	struct loop_watch watch;
	struct loop_timer timer; /* advertises; ends a pause */
	bool timed;
	unsigned budget; /* frames left to look at in this second */
	uint64_t second; /* which it is, by CLOCK_MONOTONIC */
};

void responder_init(struct responder *r); /* so that _fini() is harmless */
/* Inside the namespace: start to listen on the tap. @no_arp: answer for neighbours, too. */
int responder_open(struct responder *r, const struct pod_nic *nic, const struct told *told,
		   int tap_index, bool no_arp, struct err *err);
/* On the loop's thread: answer from now on. */
int responder_start(struct responder *r, struct loop *loop, struct err *err);
void responder_fini(struct responder *r);

#endif
