/*
 * state_dir.h - a machine's files outside its bundle: /run/coracle/pods/<hash>
 *
 * A Unix socket's path is at most 107 bytes long and a bundle's is longer. The name is made from what
 * containerd calls the container, so that `delete` finds it without the shim.
 */
#ifndef K8S_SHIM_STATE_DIR_H
#define K8S_SHIM_STATE_DIR_H

#include "base/err.h"

/* The path, malloc'ed; NULL: out of memory. @address: containerd's. */
char *state_dir_path(const char *address, const char *ns, const char *id);
/* Make it, empty. */
int state_dir_make(const char *path, struct err *err);
/* Remove it with everything in it, and the name that `coracle ctl` knows it by. Gone already is fine. */
void state_dir_remove(const char *path);

/* Directory of everything of coracle's at run time, malloc'ed. */
char *coracle_directory(void);

#endif
