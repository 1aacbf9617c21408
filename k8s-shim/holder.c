/*
 * holder.c - which machine of this node has a disk
 *
 * A lock that belongs to an open file (OFD) does not say whose it is. But the disks of every pod's machine
 * are in its vm.json, so whoever is refused one can be told which pod to look for. A machine that was not
 * started by a pod has none and stays unknown.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "k8s-shim/holder.h"
#include "k8s-shim/json.h"
#include "k8s-shim/machine.h"
#include "k8s-shim/shim_socket.h"
#include "k8s-shim/state_dir.h"

#define CONFIG_MAX (1u << 20)

/* Two names of one block device (a state directory may have a node of its own), or of one file */
static bool same(const struct stat *a, const char *path)
{
	struct stat b;

	if (stat(path, &b))
		return false;
	if (S_ISBLK(a->st_mode) && S_ISBLK(b.st_mode))
		return a->st_rdev == b.st_rdev;
	return a->st_dev == b.st_dev && a->st_ino == b.st_ino;
}

static bool has_disk(struct json_object *config, const struct stat *disk)
{
	struct json_object *list = json_at(config, "disk", NULL);
	size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;

	for (size_t i = 0; i < n; i++) {
		struct json_object *o = json_object_array_get_idx(list, i);
		const char *path = json_text(json_at(o, "path", NULL));

		/* What another machine has inherited would be a descriptor of ours here. */
		if (path && strncmp(path, "/proc/self/", 11) && same(disk, path))
			return true;
	}
	return false;
}

/* The machine of a state directory, if it has the disk. One that is not there any more has none. */
static char *machine_with(const char *dir, const struct stat *disk)
{
	cleanup_free char *path = NULL, *control = NULL, *text = NULL;
	struct err err = { 0 };
	size_t len = 0;
	char *name = NULL;

	if (asprintf(&path, "%s/" MACHINE_CONFIG, dir) < 0)
		path = NULL;
	if (asprintf(&control, "%s/" MACHINE_CONTROL, dir) < 0)
		control = NULL;
	if (path && control)
		text = json_read_file(path, CONFIG_MAX, &len, &err);
	struct json_object *config = text ? json_parse(text, len, path, &err) : NULL;
	const char *id = json_text(json_at(config, "id", NULL));

	if (id && has_disk(config, disk) && shim_socket_answers(control))
		name = strdup(id);
	json_object_put(config);
	return name;
}

char *holder_find(const char *path, const char *own)
{
	cleanup_free char *coracle = coracle_directory(), *pods = NULL;
	struct stat disk;
	struct dirent *e;
	char *name = NULL;

	if (stat(path, &disk) || !coracle || asprintf(&pods, "%s/pods", coracle) < 0) {
		pods = NULL;
		return NULL;
	}
	DIR *d = opendir(pods);

	while (d && !name && (e = readdir(d))) {
		cleanup_free char *dir = NULL;

		if (e->d_name[0] == '.' || asprintf(&dir, "%s/%s", pods, e->d_name) < 0) {
			dir = NULL;
			continue;
		}
		if (strcmp(dir, own))
			name = machine_with(dir, &disk);
	}
	if (d)
		closedir(d);
	return name;
}
