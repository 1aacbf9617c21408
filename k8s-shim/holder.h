/*
 * holder.h - which machine of this node has a disk
 */
#ifndef K8S_SHIM_HOLDER_H
#define K8S_SHIM_HOLDER_H

/*
 * The name, as `coracle ctl` knows it, of a pod's machine that runs and has the file or block device
 * @path as a disk. malloc'ed; NULL: none that is known of. @own is the state directory of the one who asks.
 */
char *holder_find(const char *path, const char *own);

#endif
