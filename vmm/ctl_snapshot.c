/*
 * ctl_snapshot.c - `coracle ctl VM snapshot DIR`
 *
 * The machine can open nothing, so the files are made here, with the rights of whoever asks, and
 * handed over. They lie in a directory of another name, which gets the right one in the end: DIR is
 * whole or not there. Whatever goes wrong before takes the files away again.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "vmm/ctl_verbs.h"
#include "vmm/json_util.h"

static const char *const names[] = { "machine.json", "state", "memory" };
#define NFILES 3

struct making {
	const char *dir; /* as it shall be called */
	char *partial;   /* as it is */
	int dir_fd, fds[NFILES];
	bool stop;
};

static int parse(struct making *m, const struct ctl_call *c, struct err *err)
{
	for (unsigned i = 0; i < c->nwords; i++) {
		const char *w = c->words[i];

		if (!strcmp(w, "--stop"))
			m->stop = true;
		else if (w[0] == '-' || m->dir)
			return err_set(err, EINVAL, "%.64s: snapshot DIR [--stop]", w);
		else
			m->dir = w;
	}
	return m->dir && *m->dir ? 0 : err_set(err, EINVAL, "where to? snapshot DIR [--stop]");
}

/* ---- files ---- */

static int make_files(struct making *m, struct err *err)
{
	struct stat st;
	size_t len = strlen(m->dir);

	while (len > 1 && m->dir[len - 1] == '/')
		len--;
	if (!lstat(m->dir, &st))
		return err_set(err, EEXIST, "%s is there already: give a new name", m->dir);
	if (asprintf(&m->partial, "%.*s.partial-XXXXXX", (int)len, m->dir) < 0) {
		m->partial = NULL;
		return err_set(err, ENOMEM, "out of memory");
	}
	if (!mkdtemp(m->partial)) {
		int e = errno;

		free(m->partial);
		m->partial = NULL;
		return err_set_sys(err, e, "cannot make a directory for %s", m->dir);
	}
	m->dir_fd = open(m->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (unsigned i = 0; i < NFILES && m->dir_fd >= 0; i++) {
		m->fds[i] =
			openat(m->dir_fd, names[i], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (m->fds[i] < 0)
			return err_set_sys(err, errno, "cannot make %s/%s", m->partial, names[i]);
	}
	return m->dir_fd < 0 ? err_set_sys(err, errno, "%s", m->partial) : 0;
}

static void take_away(struct making *m)
{
	for (unsigned i = 0; i < NFILES && m->dir_fd >= 0; i++)
		unlinkat(m->dir_fd, names[i], 0);
	if (m->partial)
		rmdir(m->partial);
}

static int sync_parent(const char *dir, struct err *err)
{
	cleanup_free char *copy = strdup(dir);

	if (!copy)
		return err_set(err, ENOMEM, "out of memory");
	cleanup_fd int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		return err_set_sys(err, errno, "cannot write the directory that %s is in", dir);
	return 0;
}

static int put_in_place(struct making *m, struct err *err)
{
	if (fsync(m->dir_fd) < 0) {
		err_set_sys(err, errno, "cannot write %s", m->partial);
		take_away(m);
		return err->code;
	}
	int rc = renameat2(AT_FDCWD, m->partial, AT_FDCWD, m->dir, RENAME_NOREPLACE);

	/* Not every file system knows the flag. An empty directory would then be replaced, no more. */
	if (rc < 0 && errno == EINVAL)
		rc = rename(m->partial, m->dir);
	if (rc < 0)
		return err_set_sys(err, errno, "cannot call it %s; it is whole, in %s", m->dir,
				   m->partial);
	free(m->partial);
	m->partial = NULL;
	return sync_parent(m->dir, err);
}

/* ---- the machine's part ---- */

static int begin(struct making *m, const struct ctl_call *c, uint64_t *id, struct err *err)
{
	struct json_object *params = json_object_new_object();

	json_object_object_add(params, "stop", json_object_new_boolean(m->stop));
	return ctl_start_job(c, "snapshot", params, m->fds, NFILES, id, err);
}

static void draw(FILE *f, struct json_object *p)
{
	fprintf(f, "round %" PRIu64 ", %" PRIu64 " of %" PRIu64 " MiB left",
		json_get_u64(p, "round"), json_get_u64(p, "remaining") >> 20,
		json_get_u64(p, "total") >> 20);
}

static void print_done(const struct making *m, struct json_object *done)
{
	printf("%s: %" PRIu64 " MiB of RAM, %" PRIu64
	       " MiB written, in %.3f s; the guest stood still "
	       "for %.1f ms%s\n",
	       m->dir, json_get_u64(done, "ram") >> 20, json_get_u64(done, "written") >> 20,
	       (double)json_get_u64(done, "total-us") / 1e6,
	       (double)json_get_u64(done, "pause-us") / 1e3, m->stop ? " and has ended" : "");
}

static int take(struct making *m, const struct ctl_call *c, struct err *err)
{
	struct json_object *done = NULL;
	cleanup_fd int signal_fd = ctl_catch_signals(err);
	uint64_t id = 0;
	int rc = signal_fd < 0 ? signal_fd : make_files(m, err);

	if (!rc)
		rc = begin(m, c, &id, err);
	if (!rc)
		rc = ctl_follow_job(c, id, signal_fd, draw, &done, err);
	if (rc)
		take_away(m);
	else
		rc = put_in_place(m, err);
	if (!rc && !c->json)
		print_done(m, done);
	json_object_put(done);
	return rc;
}

int ctl_snapshot(const struct ctl_call *c, struct err *err)
{
	struct making m = { .dir_fd = -1, .fds = { -1, -1, -1 } };
	int rc = parse(&m, c, err);

	if (rc)
		return rc;
	rc = take(&m, c, err);
	for (unsigned i = 0; i < NFILES; i++)
		fd_close(&m.fds[i]);
	fd_close(&m.dir_fd);
	free(m.partial);
	return rc == -EINVAL ? -EIO : rc;
}
