/*
 * fd.h - file descriptors and heap pointers whose ownership shows in the source
 *
 *	cleanup_fd int fd = open(...);
 *	...
 *	self->fd = fd_steal(&fd);
 */
#ifndef BASE_FD_H
#define BASE_FD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

void fd_close(int *fd); /* closes if >= 0, leaves -1, keeps errno */
int fd_steal(int *fd);

void ptr_free(void *pptr); /* free(*pptr), leaves NULL */

#define cleanup_fd   __attribute__((cleanup(fd_close)))
#define cleanup_free __attribute__((cleanup(ptr_free)))

int fd_set_nonblock(int fd); /* 0 or -errno */

/*
 * Give standard input, output and error that are closed something harmless, before anything else is
 * opened: else a disk becomes descriptor 2, and messages are written to it. 0 or -errno.
 */
int fd_fill_standard(void);

/* All of it, restarting after EINTR and short counts. 0, or -errno (-EPIPE/-EIO; read: -ENODATA at EOF) */
int fd_write_all(int fd, const void *buf, size_t len);
int fd_pread_all(int fd, void *buf, size_t len, off_t at);

/* To the end, however short its reads, but no more than @room. Bytes read, or -errno. */
ssize_t fd_read_to_end(int fd, void *buf, size_t room);

#endif
