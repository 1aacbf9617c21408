/*
 * control.h - the control socket: JSON-RPC 2.0, one message a line
 *
 * A Unix stream socket, mode 0600, served on the main loop. Requests: info, stats, pause, resume,
 * power-button, reset, quit. Events (started, paused, resumed, reset, io-error, shutdown) go to every
 * client as notifications. A client that sends nonsense gets an error, one that sends without end or
 * never reads is dropped; none of them can hold up the machine. docs/control.md has the protocol.
 */
#ifndef VMM_CONTROL_H
#define VMM_CONTROL_H

#include <json-c/json.h>

#include "base/err.h"
#include "base/loop.h"

struct control;
struct vm;

/*
 * Where `coracle ctl NAME` looks for a machine: $XDG_RUNTIME_DIR/coracle/NAME.sock, /run/coracle for
 * root. malloc'd; NULL: no memory.
 */
char *control_path_of(const char *vm_id);

/*
 * Listen. @path NULL: at control_path_of(@vm_id); both given: at @path, with a link of the name.
 * A socket file nobody answers on is replaced, a live one is refused (-EADDRINUSE). Commands wait in
 * the socket until control_serve(). NULL on error.
 */
struct control *control_new(const char *path, const char *vm_id, struct loop *loop,
			    struct err *err);
void control_serve(struct control *c,
		   struct vm *vm); /* @vm lives longer than @c or is reset to NULL */

/*
 * While there is no machine yet, since it comes by migration: info says so, quit ends it, everything else
 * has to wait. @w is borrowed until the next call; NULL: nobody is answered, as at first. @c NULL is fine.
 */
struct control_waiting {
	const char *id, *from; /* the machine's name (NULL: none), the address it comes by */
	void (*quit)(void *opaque);
	void *opaque;
};
void control_wait(struct control *c, const struct control_waiting *w);

/* To every client; has the signature of vm_event_fn. @params borrowed. Main thread. */
void control_event(void *control, const char *event, struct json_object *params);

/* The socket and, NULL: none, the link to it. Borrowed. */
void control_paths(const struct control *c, const char **socket, const char **link);

/* Tells what is still unsent for at most a moment, closes, removes the socket. NULL is fine. */
void control_free(struct control *c);

#endif
