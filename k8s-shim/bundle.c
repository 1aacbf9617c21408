/*
 * bundle.c - config.json
 *
 * Most of what an OCI runtime does with it has no meaning for a machine: its namespaces, capabilities,
 * seccomp rules and mounts are a process's. What is taken is what a machine can be given: devices,
 * memory, processors, the network namespace, the cgroup, and the mounts that hold its disks and
 * cloud-init data.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "k8s-shim/bundle.h"
#include "k8s-shim/json.h"

#define CRI "io.kubernetes.cri."

const char *bundle_annotation(const struct bundle *b, const char *name)
{
	return json_text(json_at(b->root, "annotations", name, NULL));
}

const struct bundle_mount *bundle_mount_at(const struct bundle *b, const char *destination)
{
	/* Later ones cover earlier ones. */
	for (unsigned i = b->nmounts; i-- > 0;)
		if (!strcmp(b->mounts[i].destination, destination))
			return &b->mounts[i];
	return NULL;
}

static void find_netns(struct bundle *b)
{
	struct json_object *list = json_at(b->root, "linux", "namespaces", NULL);

	if (!json_object_is_type(list, json_type_array))
		return;
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *ns = json_object_array_get_idx(list, i);
		const char *type = json_text(json_at(ns, "type", NULL));

		if (type && !strcmp(type, "network"))
			b->netns = json_text(json_at(ns, "path", NULL));
	}
	if (b->netns && !*b->netns)
		b->netns = NULL;
}

/* Elements of an array member, 0 where it is not there; *err is set when there are too many. */
static unsigned count_of(struct json_object *list, const char *what, struct err *err)
{
	size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;

	if (n > BUNDLE_ITEMS_MAX)
		err_set(err, EINVAL, "config.json: %zu %s, at most %d are possible", n, what,
			BUNDLE_ITEMS_MAX);
	return n > BUNDLE_ITEMS_MAX ? 0 : (unsigned)n;
}

/*
 * May only be read: the last rule about this very device allows no writing, as CRI's permissions "r" become,
 * which are those of a claim that a pod has with readOnly. More than BUNDLE_ITEMS_MAX rules are no CRI's.
 */
static bool is_read_only(const struct bundle *b, const struct bundle_device *d)
{
	struct json_object *rules = json_at(b->root, "linux", "resources", "devices", NULL);
	bool read_only = false;

	if (!json_object_is_type(rules, json_type_array))
		return false;
	for (size_t i = 0; i < json_object_array_length(rules) && i < BUNDLE_ITEMS_MAX; i++) {
		struct json_object *r = json_object_array_get_idx(rules, i);
		struct json_object *major = json_at(r, "major", NULL);
		struct json_object *minor = json_at(r, "minor", NULL);
		const char *type = json_text(json_at(r, "type", NULL));
		const char *access = json_text(json_at(r, "access", NULL));

		if (major && minor && json_u64(major) == d->major && json_u64(minor) == d->minor &&
		    type && access && !strcmp(type, "b") &&
		    json_object_get_boolean(json_at(r, "allow", NULL)))
			read_only = !strchr(access, 'w');
	}
	return read_only;
}

static int read_devices(struct bundle *b, struct err *err)
{
	struct json_object *list = json_at(b->root, "linux", "devices", NULL);
	unsigned n = count_of(list, "devices", err);

	if (err->code)
		return err->code;
	b->devices = calloc(n + 1, sizeof(*b->devices));
	if (!b->devices)
		return err_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < n; i++) {
		struct json_object *d = json_object_array_get_idx(list, i);
		const char *path = json_text(json_at(d, "path", NULL));
		const char *type = json_text(json_at(d, "type", NULL));

		if (!path || !type)
			return err_set(err, EINVAL, "config.json: device %u has no path or type",
				       i);
		b->devices[b->ndevices] = (struct bundle_device){
			.path = path,
			.block = !strcmp(type, "b"),
			.major = (unsigned)json_u64(json_at(d, "major", NULL)),
			.minor = (unsigned)json_u64(json_at(d, "minor", NULL)),
		};
		b->devices[b->ndevices].read_only = is_read_only(b, &b->devices[b->ndevices]);
		b->ndevices++;
	}
	return 0;
}

static bool mount_is_read_only(struct json_object *options)
{
	if (!json_object_is_type(options, json_type_array))
		return false;
	for (size_t i = 0; i < json_object_array_length(options); i++) {
		const char *s = json_text(json_object_array_get_idx(options, i));

		if (s && (!strcmp(s, "ro") || !strcmp(s, "rro")))
			return true;
	}
	return false;
}

static int read_mounts(struct bundle *b, struct err *err)
{
	struct json_object *list = json_at(b->root, "mounts", NULL);
	unsigned n = count_of(list, "mounts", err);

	if (err->code)
		return err->code;
	b->mounts = calloc(n + 1, sizeof(*b->mounts));
	if (!b->mounts)
		return err_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < n; i++) {
		struct json_object *m = json_object_array_get_idx(list, i);
		const char *destination = json_text(json_at(m, "destination", NULL));
		const char *source = json_text(json_at(m, "source", NULL));

		if (!destination)
			return err_set(err, EINVAL, "config.json: mount %u has no destination", i);
		b->mounts[b->nmounts++] = (struct bundle_mount){
			.destination = destination,
			.source = source ? source : "",
			.read_only = mount_is_read_only(json_at(m, "options", NULL)),
		};
	}
	return 0;
}

static void read_resources(struct bundle *b)
{
	struct json_object *r = json_at(b->root, "linux", "resources", NULL);
	struct json_object *quota = json_at(r, "cpu", "quota", NULL);
	struct json_object *score = json_at(b->root, "process", "oomScoreAdj", NULL);

	b->memory = json_u64(json_at(r, "memory", "limit", NULL));
	b->cpu_quota = (int64_t)(json_u64(quota) & INT64_MAX);
	b->cpu_period = json_u64(json_at(r, "cpu", "period", NULL));
	b->cpu_shares = json_u64(json_at(r, "cpu", "shares", NULL));
	b->cpus = json_text(json_at(r, "cpu", "cpus", NULL));
	b->has_oom_score = json_object_is_type(score, json_type_int);
	if (b->has_oom_score)
		b->oom_score = json_object_get_int(score);
}

static int read_annotations(struct bundle *b, struct err *err)
{
	const char *type = bundle_annotation(b, CRI "container-type");

	if (!type)
		return 0; /* not by CRI: `ctr run` */
	b->in_pod = true;
	b->sandbox = !strcmp(type, "sandbox");
	b->sandbox_id = bundle_annotation(b, CRI "sandbox-id");
	if (!b->sandbox_id || !*b->sandbox_id)
		return err_set(err, EINVAL, "config.json: annotation %s is missing",
			       CRI "sandbox-id");
	return 0;
}

static int look(struct bundle *b, struct err *err)
{
	if (!json_object_is_type(b->root, json_type_object))
		return err_set(err, EINVAL, "config.json is no JSON object");
	err->code = 0;
	b->cgroup = json_text(json_at(b->root, "linux", "cgroupsPath", NULL));
	b->hostname = json_text(json_at(b->root, "hostname", NULL));
	b->terminal = json_object_get_boolean(json_at(b->root, "process", "terminal", NULL));
	find_netns(b);
	read_resources(b);
	int rc = read_annotations(b, err);

	if (!rc)
		rc = read_devices(b, err);
	return rc ? rc : read_mounts(b, err);
}

int bundle_parse(struct bundle *b, const char *dir, const char *text, size_t len, struct err *err)
{
	struct err why = { 0 };
	int rc = 0;

	memset(b, 0, sizeof(*b));
	b->path = strdup(dir);
	b->root = json_parse(text, len, "config.json", &why);
	if (!b->root)
		rc = why.code;
	else if (!b->path)
		rc = err_set(&why, ENOMEM, "out of memory");
	if (!rc)
		rc = look(b, &why);
	if (rc) {
		bundle_fini(b);
		err_set(err, rc, "%s: %s", dir, why.msg);
	}
	return rc;
}

int bundle_load(struct bundle *b, const char *dir, struct err *err)
{
	cleanup_free char *path = NULL;
	size_t len = 0;

	memset(b, 0, sizeof(*b));
	if (asprintf(&path, "%s/config.json", dir) < 0) {
		path = NULL;
		return err_set(err, ENOMEM, "out of memory");
	}
	cleanup_free char *text = json_read_file(path, BUNDLE_BYTES_MAX, &len, err);

	return text ? bundle_parse(b, dir, text, len, err) : err->code;
}

void bundle_fini(struct bundle *b)
{
	json_object_put(b->root);
	free(b->path);
	free(b->devices);
	free(b->mounts);
	memset(b, 0, sizeof(*b));
}
