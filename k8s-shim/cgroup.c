/*
 * cgroup.c - making, joining and removing a task's control group
 *
 * kubelet makes the pod's group with the pod's limits; the runtime makes one below it for each container.
 * The machine's gets the container's CPU weight and no limit of its own: its RAM is the container's
 * memory limit exactly, and the VMM needs a little more than that, for which the RuntimeClass's overhead
 * has made room in the pod's group. A limit here would have the kernel kill a guest that uses what it
 * was promised. The number of vCPUs is what the CPU limit comes to.
 *
 * systemd's style names a slice and a scope. The scope is made as a plain directory in the slice, which
 * needs no D-Bus; systemd leaves groups below its own that it has not made alone.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/cgroup.h"

/* ---- where ---- */

/* "a-b.slice" is "/a.slice/a-b.slice": each part of the name is a level. */
static int expand_slice(const char *slice, size_t len, char *out, size_t room)
{
	size_t n = 0, stem = len - strlen(".slice");

	out[0] = '\0';
	if (!strncmp(slice, "-.slice", len))
		return 0;
	for (size_t i = 1; i <= stem; i++) {
		if (i < stem && slice[i] != '-')
			continue;
		int w = snprintf(out + n, room - n, "/%.*s.slice", (int)i, slice);

		if (w < 0 || (size_t)w >= room - n)
			return -ENAMETOOLONG;
		n += (size_t)w;
	}
	return 0;
}

static int expand_systemd(const char *path, char *out, size_t room)
{
	const char *first = strchr(path, ':'), *second = strchr(first + 1, ':');
	size_t len = (size_t)(first - path);

	if (!second || strchr(second + 1, ':') || len <= strlen(".slice") ||
	    strncmp(first - strlen(".slice"), ".slice", strlen(".slice")))
		return -EINVAL;
	if (expand_slice(path, len, out, room))
		return -ENAMETOOLONG;
	size_t n = strlen(out);
	int w = snprintf(out + n, room - n, "/%.*s-%s.scope", (int)(second - first - 1), first + 1,
			 second + 1);

	return w < 0 || (size_t)w >= room - n ? -ENAMETOOLONG : 0;
}

/* The path below a hierarchy's mount point. The names in it are somebody else's: none may lead out. */
int cgroup_expand(const char *path, char *out, size_t room, struct err *err)
{
	int rc = 0;

	if (strchr(path, ':'))
		rc = expand_systemd(path, out, room);
	else if (snprintf(out, room, "%s%s", *path == '/' ? "" : "/", path) >= (int)room)
		rc = -ENAMETOOLONG;
	if (!rc &&
	    (strstr(out, "/../") || strstr(out, "/./") || strstr(out, "//") ||
	     (strlen(out) >= 3 && !strcmp(out + strlen(out) - 3, "/..")) || !strcmp(out, "/")))
		rc = -EINVAL;
	return rc ? err_set(err, rc, "linux.cgroupsPath \"%s\" is no control group", path) : 0;
}

static int add_mount(struct cgroup *cg, const char *mount, const char *path,
		     const char *controllers)
{
	struct cgroup_mount *m = &cg->mounts[cg->nmounts];

	if (cg->nmounts == CGROUP_MOUNTS_MAX)
		return 0;
	if (asprintf(&m->dir, "%s%s", mount, path) < 0)
		return -ENOMEM;
	if (asprintf(&m->controllers, ",%s,", controllers) < 0) {
		free(m->dir);
		return -ENOMEM;
	}
	cg->nmounts++;
	return 0;
}

/*
 * A line of /proc/self/mountinfo (proc(5)): its mount point is the fifth field; type and options follow
 * " - ". A version 1 hierarchy's last options are its controllers.
 */
static int take_line(struct cgroup *cg, char *line, const char *path, bool unified)
{
	char *save, *sep = strstr(line, " - "), *point = NULL, *options;

	if (!sep)
		return 0;
	*sep = '\0';
	char *field = strtok_r(line, " ", &save);

	for (unsigned i = 0; field && i < 5; i++) {
		point = field;
		field = strtok_r(NULL, " ", &save);
	}
	char *type = strtok_r(sep + 3, " \n", &save);

	strtok_r(NULL, " \n", &save);
	options = strtok_r(NULL, " \n", &save);
	if (!point || !type || strcmp(type, unified ? "cgroup2" : "cgroup"))
		return 0;
	return add_mount(cg, point, path, unified ? "" : options ? options : "");
}

static int find_mounts(struct cgroup *cg, const char *path, bool unified)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	cleanup_free char *line = NULL;
	size_t room = 0;
	int rc = 0;

	if (!f)
		return -errno;
	while (!rc && getline(&line, &room, f) > 0)
		rc = take_line(cg, line, path, unified);
	fclose(f);
	return rc;
}

int cgroup_init(struct cgroup *cg, const char *path, struct err *err)
{
	char below[1024];

	memset(cg, 0, sizeof(*cg));
	if (!path || !*path)
		return 0;
	int rc = cgroup_expand(path, below, sizeof(below), err);

	if (rc)
		return rc;
	/* A node with version 1 often has version 2 mounted besides, without controllers. */
	rc = find_mounts(cg, below, false);
	if (!rc && !cg->nmounts) {
		cg->unified = true;
		rc = find_mounts(cg, below, true);
		if (cg->nmounts > 1) { /* bind mounts of the same */
			struct cgroup rest = { .nmounts = cg->nmounts - 1 };

			memcpy(rest.mounts, cg->mounts + 1, rest.nmounts * sizeof(*rest.mounts));
			cgroup_fini(&rest);
			cg->nmounts = 1;
		}
	}
	if (rc) {
		cgroup_fini(cg);
		return err_set_sys(err, rc, "cannot find the node's control groups");
	}
	return 0;
}

void cgroup_fini(struct cgroup *cg)
{
	for (unsigned i = 0; i < cg->nmounts; i++) {
		free(cg->mounts[i].dir);
		free(cg->mounts[i].controllers);
	}
	memset(cg, 0, sizeof(*cg));
}

const char *cgroup_dir(const struct cgroup *cg, const char *controller)
{
	char word[64];

	snprintf(word, sizeof(word), ",%s,", controller);
	for (unsigned i = 0; i < cg->nmounts; i++)
		if (cg->unified || strstr(cg->mounts[i].controllers, word))
			return cg->mounts[i].dir;
	return NULL;
}

/* ---- making ---- */

static int write_text(const char *dir, const char *name, const char *text)
{
	cleanup_free char *path = NULL;

	if (asprintf(&path, "%s/%s", dir, name) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

static ssize_t read_text(const char *dir, const char *name, char *out, size_t room)
{
	cleanup_free char *path = NULL;

	if (asprintf(&path, "%s/%s", dir, name) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, out, room - 1);

	if (n < 0)
		return -errno;
	out[n] = '\0';
	return n;
}

/* A new cpuset of version 1 is empty, and nobody may join an empty one. */
static void inherit_cpuset(const char *parent, const char *dir)
{
	static const char *const names[] = { "cpuset.cpus", "cpuset.mems" };
	char text[4096];

	for (unsigned i = 0; i < 2; i++)
		if (read_text(dir, names[i], text, sizeof(text)) <= 1 &&
		    read_text(parent, names[i], text, sizeof(text)) > 1)
			write_text(dir, names[i], text);
}

/* Version 2: a controller works in a group only if its parent hands it on. Some may not be there. */
static void enable_controllers(const char *parent)
{
	static const char *const names[] = { "+cpu", "+cpuset", "+memory", "+pids", "+io" };

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		write_text(parent, "cgroup.subtree_control", names[i]);
}

static int make_dirs(const struct cgroup *cg, const struct cgroup_mount *m, struct err *err)
{
	cleanup_free char *dir = strdup(m->dir);

	if (!dir)
		return err_set(err, ENOMEM, "out of memory");
	for (char *slash = strchr(dir + 1, '/');; slash = strchr(slash + 1, '/')) {
		if (slash)
			*slash = '\0';
		bool made = !mkdir(dir, 0755);

		if (!made && errno != EEXIST && access(dir, F_OK))
			return err_set_sys(err, errno, "cannot make control group %s", dir);
		if (made) {
			cleanup_free char *parent = strdup(dir);

			if (parent) {
				*strrchr(parent, '/') = '\0';
				if (cg->unified)
					enable_controllers(parent);
				else if (strstr(m->controllers, ",cpuset,"))
					inherit_cpuset(parent, dir);
			}
		}
		if (!slash)
			return 0;
		*slash = '/';
	}
}

int cgroup_set_shares(const struct cgroup *cg, uint64_t shares, struct err *err)
{
	const char *dir = cgroup_dir(cg, "cpu");
	char text[32];

	if (!shares || !dir)
		return 0;
	if (shares < 2)
		shares = 2;
	if (shares > 262144)
		shares = 262144;
	/* Version 1 counts 2 to 262144, version 2 1 to 10000: the conversion every runtime makes */
	uint64_t v = cg->unified ? 1 + (shares - 2) * 9999 / 262142 : shares;

	snprintf(text, sizeof(text), "%llu", (unsigned long long)v);
	int rc = write_text(dir, cg->unified ? "cpu.weight" : "cpu.shares", text);

	return rc && rc != -ENOENT ? err_set_sys(err, rc, "cannot set the CPU weight in %s", dir) :
				     0;
}

int cgroup_set_cpus(const struct cgroup *cg, const char *cpus, struct err *err)
{
	const char *dir = cgroup_dir(cg, "cpuset");

	if (!cpus || !*cpus || !dir)
		return 0;
	int rc = write_text(dir, "cpuset.cpus", cpus);

	return rc ? err_set_sys(err, rc, "cannot set cpuset.cpus to \"%.64s\" in %s", cpus, dir) :
		    0;
}

int cgroup_make(struct cgroup *cg, uint64_t shares, struct err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < cg->nmounts && !rc; i++)
		rc = make_dirs(cg, &cg->mounts[i], err);
	return rc ? rc : cgroup_set_shares(cg, shares, err);
}

int cgroup_join(const struct cgroup *cg, struct err *err)
{
	for (unsigned i = 0; i < cg->nmounts; i++) {
		int rc = write_text(cg->mounts[i].dir, "cgroup.procs", "0");

		if (rc)
			return err_set_sys(err, rc, "cannot join control group %s",
					   cg->mounts[i].dir);
	}
	return 0;
}

/* ---- removing ---- */

void cgroup_kill(const struct cgroup *cg)
{
	for (unsigned i = 0; i < cg->nmounts; i++) {
		cleanup_free char *path = NULL;
		int pid;

		if (asprintf(&path, "%s/cgroup.procs", cg->mounts[i].dir) < 0) {
			path = NULL;
			continue;
		}
		FILE *f = fopen(path, "re");

		while (f && fscanf(f, "%d", &pid) == 1)
			if (pid > 0 && pid != getpid())
				kill(pid, SIGKILL);
		if (f)
			fclose(f);
	}
}

int cgroup_remove(const struct cgroup *cg)
{
	int rc = 0;

	for (unsigned i = 0; i < cg->nmounts; i++)
		if (rmdir(cg->mounts[i].dir) && errno != ENOENT)
			rc = -errno;
	return rc;
}

/* ---- reading ---- */

uint64_t cgroup_number(const char *dir, const char *name, uint64_t otherwise)
{
	char text[64], *end;

	if (!dir || read_text(dir, name, text, sizeof(text)) <= 0)
		return otherwise;
	uint64_t v = strtoull(text, &end, 10);

	return end == text ? otherwise : v;
}

void cgroup_values(const char *dir, const char *name, const struct cgroup_value *v, unsigned n)
{
	char text[8192], *save;

	if (!dir || read_text(dir, name, text, sizeof(text)) <= 0)
		return;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *space = strchr(line, ' ');

		if (!space)
			continue;
		*space = '\0';
		for (unsigned i = 0; i < n; i++)
			if (!strcmp(v[i].key, line))
				*v[i].value = strtoull(space + 1, NULL, 10);
	}
}

bool cgroup_oom_killed(const struct cgroup *cg)
{
	uint64_t kills = 0;
	const struct cgroup_value v = { "oom_kill", &kills };

	cgroup_values(cgroup_dir(cg, "memory"),
		      cg->unified ? "memory.events" : "memory.oom_control", &v, 1);
	return kills > 0;
}
