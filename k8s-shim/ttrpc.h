/*
 * ttrpc.h - a ttrpc server on the shim's loop
 *
 * A request becomes a call, which is answered once: at once, or any time later (Wait). No thread waits
 * with it. A call whose client has gone is answered into the void.
 */
#ifndef K8S_SHIM_TTRPC_H
#define K8S_SHIM_TTRPC_H

#include <protobuf-c/protobuf-c.h>

#include "base/err.h"
#include "base/loop.h"

struct ttrpc_server;
struct ttrpc_call;

/* google.rpc.Code, of which those that are used */
enum ttrpc_code {
	TTRPC_OK = 0,
	TTRPC_UNKNOWN = 2,
	TTRPC_INVALID_ARGUMENT = 3,
	TTRPC_NOT_FOUND = 5,
	TTRPC_ALREADY_EXISTS = 6,
	TTRPC_RESOURCE_EXHAUSTED = 8,
	TTRPC_FAILED_PRECONDITION = 9,
	TTRPC_UNIMPLEMENTED = 12,
};

struct ttrpc_request {
	const char *service, *method;
	const uint8_t *payload;
	size_t len;
};

/* @r is valid within. Must see to it that @call is answered some time. */
typedef void ttrpc_handler(void *opaque, struct ttrpc_call *call, const struct ttrpc_request *r);

/* @fd: a listening socket, taken over. */
struct ttrpc_server *ttrpc_server_new(int fd, struct loop *loop, ttrpc_handler *handler,
				      void *opaque, struct err *err);
/* Sends what can be sent at once. Calls that are not answered yet stay valid and may still be. */
void ttrpc_server_free(struct ttrpc_server *s);

/* Both end @call. NULL is fine. */
void ttrpc_reply(struct ttrpc_call *call, const ProtobufCMessage *m);
void ttrpc_fail(struct ttrpc_call *call, enum ttrpc_code code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void ttrpc_fail_err(struct ttrpc_call *call, const struct err *err); /* the code from err's errno */

#endif
