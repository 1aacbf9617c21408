/*
 * peer.c - the other end of a migration: tcp:HOST:PORT or unix:PATH
 *
 * What cannot be done inside the sandbox (socket options) is done here, before; sockets that a listener
 * accepts inherit its options.
 */
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "vmm/peer.h"

/* Unanswered for as long, a connection is dead: seconds idle, between probes, and probes. */
#define KEEP_IDLE     10
#define KEEP_INTERVAL 5
#define KEEP_COUNT    4
#define USER_TIMEOUT  30000 /* milliseconds that sent bytes may stay unanswered */

static bool is_port(const char *s)
{
	char *end;
	unsigned long v = strtoul(s, &end, 10);

	return *s >= '0' && *s <= '9' && !*end && end - s <= 5 && v >= 1 && v <= 65535;
}

static int parse_tcp(struct peer_address *a, const char *text)
{
	const char *colon = strrchr(text, ':'), *end = colon;

	if (!colon || !is_port(colon + 1))
		return -EINVAL;
	if (*text == '[') {
		if (end == text || end[-1] != ']')
			return -EINVAL;
		text++;
		end--;
	} else if (memchr(text, ':', (size_t)(colon - text))) {
		return -EINVAL; /* an IPv6 address without brackets */
	}
	if (end <= text || (size_t)(end - text) >= sizeof(a->host))
		return -EINVAL;
	memcpy(a->host, text, (size_t)(end - text));
	a->host[end - text] = '\0';
	memcpy(a->port, colon + 1, strlen(colon + 1) + 1);
	return 0;
}

int peer_parse(struct peer_address *a, const char *text, struct err *err)
{
	int rc = -EINVAL;

	memset(a, 0, sizeof(*a));
	a->tcp = !strncmp(text, "tcp:", 4);
	if (a->tcp) {
		rc = parse_tcp(a, text + 4);
	} else if (!strncmp(text, "unix:", 5) && text[5] && strlen(text + 5) < sizeof(a->path)) {
		memcpy(a->path, text + 5, strlen(text + 5) + 1);
		rc = 0;
	}
	return rc ? err_set(err, -rc,
			    "%.100s is no address: tcp:HOST:PORT (IPv6 in brackets) or unix:PATH",
			    text) :
		    0;
}

/* ---- sockets ---- */

static void set_int(int fd, int level, int option, int value)
{
	/* What a kernel does not have costs us time to notice a dead peer, no more. */
	if (setsockopt(fd, level, option, &value, sizeof(value)) < 0)
		return;
}

static void set_options(int fd)
{
	set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEP_IDLE);
	set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEP_INTERVAL);
	set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEP_COUNT);
	set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT);
}

static int look_up(const struct peer_address *a, bool passive, struct addrinfo **all,
		   struct err *err)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = passive ? AI_PASSIVE : 0 };
	int rc = getaddrinfo(a->host, a->port, &hints, all);

	if (!rc)
		return 0;
	return err_set(err, EHOSTUNREACH, "tcp:%s:%s: %s", a->host, a->port, gai_strerror(rc));
}

static int wait_connected(int fd, unsigned timeout_ms)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };
	int error = 0, rc;
	socklen_t len = sizeof(error);

	do
		rc = poll(&p, 1, (int)timeout_ms);
	while (rc < 0 && errno == EINTR);
	if (rc <= 0)
		return rc ? -errno : -ETIMEDOUT;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		return -errno;
	return -error;
}

static int connect_one(const struct addrinfo *ai, unsigned timeout_ms)
{
	cleanup_fd int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc;

	if (fd < 0)
		return -errno;
	set_options(fd);
	rc = connect(fd, ai->ai_addr, ai->ai_addrlen) ? -errno : 0;
	if (rc == -EINPROGRESS)
		rc = wait_connected(fd, timeout_ms);
	if (!rc && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) < 0)
		rc = -errno;
	return rc ? rc : fd_steal(&fd);
}

static int connect_tcp(const struct peer_address *a, unsigned timeout_ms, struct err *err)
{
	struct addrinfo *all;
	int rc = look_up(a, false, &all, err);

	if (rc)
		return rc;
	rc = -EHOSTUNREACH;
	for (struct addrinfo *ai = all; ai && rc < 0; ai = ai->ai_next)
		rc = connect_one(ai, timeout_ms);
	freeaddrinfo(all);
	return rc < 0 ? err_set_sys(err, rc, "cannot connect to tcp:%s:%s", a->host, a->port) : rc;
}

int peer_connect(const struct peer_address *a, unsigned timeout_ms, struct err *err)
{
	int fd;

	if (a->tcp)
		return connect_tcp(a, timeout_ms, err);
	fd = unix_connect(a->path, timeout_ms, err);
	return fd == -EAGAIN ? err_set(err, ETIMEDOUT, "unix:%s: nobody takes us in", a->path) : fd;
}

static int listen_one(const struct addrinfo *ai, int backlog)
{
	cleanup_fd int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	set_options(fd);
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) || listen(fd, backlog))
		return -errno;
	return fd_steal(&fd);
}

int peer_listen(struct peer_listener *p, const struct peer_address *a, int backlog, struct err *err)
{
	struct addrinfo *all;
	int rc;

	memset(p, 0, sizeof(*p));
	p->l.fd = p->l.spare = -1;
	if (!a->tcp)
		return unix_listen(&p->l, a->path, backlog, err);
	rc = look_up(a, true, &all, err);
	if (rc)
		return rc;
	rc = -EADDRNOTAVAIL;
	for (struct addrinfo *ai = all; ai && rc < 0; ai = ai->ai_next)
		rc = listen_one(ai, backlog);
	freeaddrinfo(all);
	if (rc < 0)
		return err_set_sys(err, rc, "cannot listen at tcp:%s:%s", a->host, a->port);
	p->l.fd = rc;
	return 0;
}

int peer_accept(struct peer_listener *p)
{
	int fd = p->l.path ? unix_accept(&p->l) : accept4(p->l.fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return p->l.path ? fd : -errno;
	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) < 0) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	return fd;
}

void peer_listener_close(struct peer_listener *p)
{
	if (p->l.path)
		unix_listener_close(&p->l);
	else
		fd_close(&p->l.fd);
}
