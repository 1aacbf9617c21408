/*
 * state_dir.c - making and removing a machine's directory
 *
 * The VMM links its control socket into coracle's directory under the machine's name, so that
 * `coracle ctl` lists pods, too. One that was killed cannot take the link away; it is found by what it
 * points to.
 */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/machine.h"
#include "k8s-shim/sha256.h"
#include "k8s-shim/state_dir.h"

char *coracle_directory(void)
{
	const char *own = getenv("CORACLE_RUNTIME_DIR"); /* as the VMM has it */

	return strdup(own && *own ? own : "/run/coracle");
}

char *state_dir_path(const char *address, const char *ns, const char *id)
{
	cleanup_free char *dir = coracle_directory(), *all = NULL;
	char hex[SHA256_HEX + 1], *path;

	if (asprintf(&all, "%s/%s/%s", address, ns, id) < 0)
		all = NULL;
	if (!dir || !all)
		return NULL;
	sha256_hex(all, strlen(all), hex);
	return asprintf(&path, "%s/pods/%.20s", dir, hex) < 0 ? NULL : path;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	if (remove(path) && errno != ENOENT)
		log_warn("cannot remove %s: %s", path, strerror(errno));
	return 0;
}

static void remove_link(const char *dir, const char *control)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	char to[256];

	while (d && (e = readdir(d))) {
		ssize_t n = readlinkat(dirfd(d), e->d_name, to, sizeof(to) - 1);

		if (n <= 0)
			continue;
		to[n] = '\0';
		if (!strcmp(to, control))
			unlinkat(dirfd(d), e->d_name, 0);
	}
	if (d)
		closedir(d);
}

void state_dir_remove(const char *path)
{
	cleanup_free char *dir = coracle_directory(), *control = NULL;

	if (dir && asprintf(&control, "%s/" MACHINE_CONTROL, path) >= 0)
		remove_link(dir, control);
	else
		control = NULL;
	nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static int make(const char *path, struct err *err)
{
	if (mkdir(path, 0700) && errno != EEXIST)
		return err_set_sys(err, errno, "cannot make %s", path);
	return 0;
}

int state_dir_make(const char *path, struct err *err)
{
	cleanup_free char *dir = coracle_directory(), *pods = NULL;

	if (!dir || asprintf(&pods, "%s/pods", dir) < 0) {
		pods = NULL;
		return err_set(err, ENOMEM, "out of memory");
	}
	int rc = make(dir, err);

	if (!rc)
		rc = make(pods, err);
	if (!rc) {
		state_dir_remove(path); /* of a shim that was killed, or of another boot */
		rc = make(path, err);
	}
	return rc;
}
