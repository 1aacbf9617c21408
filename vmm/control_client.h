/*
 * control_client.h - the other end of a control socket
 */
#ifndef VMM_CONTROL_CLIENT_H
#define VMM_CONTROL_CLIENT_H

#include <json-c/json.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct control_client {
	int fd;
	char *buf;
	size_t at, len, room; /* received and not yet looked at: buf[at .. len) */
};

/* -ENOENT, -ECONNREFUSED: no machine is there; -ETIMEDOUT; -errno. @c is closed on error. */
int control_client_open(struct control_client *c, const char *path, unsigned timeout_ms,
			struct err *err);
void control_client_close(struct control_client *c);

/*
 * Ask and wait for the answer; events that come before it are left out. *@result is the caller's.
 * -ETIMEDOUT; -ECONNRESET: the machine ended without a word; -EPROTO: it speaks something else;
 * -EREMOTEIO: it answered with an error, which is the message.
 */
int control_client_call(struct control_client *c, const char *method, unsigned timeout_ms,
			struct json_object **result, struct err *err);

/* The same with @params (borrowed; NULL: none) and descriptors that go along. */
int control_client_call_fds(struct control_client *c, const char *method,
			    struct json_object *params, const int *fds, unsigned nfds,
			    unsigned timeout_ms, struct json_object **result, struct err *err);

/*
 * The next message as a line without its newline, which lives until the next call, parsed in *@o
 * (the caller's). -ENODATA: the machine has closed. @timeout_ms UINT_MAX: wait for ever.
 */
int control_client_next(struct control_client *c, unsigned timeout_ms, const char **line,
			struct json_object **o, struct err *err);

#endif
