/*
 * peer.h - the other end of a migration: tcp:HOST:PORT or unix:PATH
 *
 * HOST is a name, an IPv4 or a bracketed IPv6 address. Sockets are set up so that a peer which vanishes
 * without a word (power cut, cable) is an error within half a minute.
 */
#ifndef VMM_PEER_H
#define VMM_PEER_H

#include <stdbool.h>

#include "backends/unix_socket.h"
#include "base/err.h"

struct peer_address {
	bool tcp;
	char host[256]; /* without brackets */
	char port[6];
	char path[108];
};

/* -EINVAL. Looks at the text only. */
int peer_parse(struct peer_address *a, const char *text, struct err *err);

/* A blocking, connected descriptor, or -errno. Not from within the sandbox. */
int peer_connect(const struct peer_address *a, unsigned timeout_ms, struct err *err);

struct peer_listener {
	struct unix_listener l; /* TCP: only l.fd */
};

int peer_listen(struct peer_listener *p, const struct peer_address *a, int backlog,
		struct err *err);
int peer_accept(struct peer_listener *p); /* blocking descriptor; -EAGAIN: nobody waits; -errno */
void peer_listener_close(struct peer_listener *p);

#endif
