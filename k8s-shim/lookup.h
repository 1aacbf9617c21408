/*
 * lookup.h - connections to a namespace's loopback go to one socket, whatever their port
 */
#ifndef K8S_SHIM_LOOKUP_H
#define K8S_SHIM_LOOKUP_H

#include "base/err.h"

/*
 * From now on @listener accepts every TCP connection that is made to 127.0.0.0/8 in the network
 * namespace that the descriptor @netns is of. Ends with the descriptor returned, or with the process.
 * Linux 5.9.
 */
int lookup_attach(int netns, int listener, struct err *err);

#endif
