/*
 * control_name.h - where a machine's control socket is found
 */
#ifndef VMM_CONTROL_NAME_H
#define VMM_CONTROL_NAME_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"

struct control_name {
	char *socket; /* where to listen */
	char *link;   /* to be a link to the socket; NULL: the socket is in its place already */
	bool linked;
	dev_t dev;
	ino_t ino;
};

/*
 * The directory of all machines of this user: /run/coracle for root, else $XDG_RUNTIME_DIR/coracle,
 * or $CORACLE_RUNTIME_DIR for anybody. malloc'd; NULL: no memory.
 */
char *control_directory(void);

/* Find out the names; makes the directory. -EADDRINUSE: a machine of that name runs. */
int control_name_take(struct control_name *n, const char *path, const char *vm_id, struct err *err);
int control_name_link(struct control_name *n, struct err *err); /* once the socket is there */
void control_name_release(struct control_name *n);              /* removes our link */

#endif
