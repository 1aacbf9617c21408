/*
 * node_config.c - /etc/coracle/coracle.json
 *
 * A key that is not known is refused by its name: a limit that is spelled wrong must not be no limit.
 * Every key may be left out. Without a kernel only images that bring one can run.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/json.h"
#include "k8s-shim/node_config.h"

#define BYTES_MAX (1u << 20)
#define MIB       (UINT64_C(1) << 20)

enum kind { PATH, TEXT, SIZE, COUNT, BOOL, LIST };

struct key {
	const char *name;
	enum kind kind;
	size_t offset;
	uint64_t min, max; /* SIZE, COUNT */
};

#define AT(f) offsetof(struct node_config, f)
static const struct key keys[] = {
	{ "vmm", PATH, AT(vmm), 0, 0 },
	{ "kernel", PATH, AT(kernel), 0, 0 },
	{ "initrd", PATH, AT(initrd), 0, 0 },
	{ "cmdline", TEXT, AT(cmdline), 0, 0 },
	{ "console", TEXT, AT(console), 0, 0 },
	{ "transport", TEXT, AT(transport), 0, 0 },
	{ "log-level", TEXT, AT(log_level), 0, 0 },
	{ "vhost", TEXT, AT(vhost), 0, 0 },
	{ "memory", SIZE, AT(memory), MIB, UINT64_C(1) << 44 },
	{ "memory-max", SIZE, AT(memory_max), MIB, UINT64_C(1) << 44 },
	{ "cpus", COUNT, AT(cpus), 1, 64 },
	{ "cpus-max", COUNT, AT(cpus_max), 1, 64 },
	{ "disk-direct", BOOL, AT(disk_direct), 0, 0 },
	{ "annotations", LIST, AT(annotations), 0, 0 },
};

static int set_text(char **field, const struct key *k, struct json_object *v, struct err *err)
{
	const char *s = json_text(v);

	if (!s)
		return err_set(err, EINVAL, "\"%s\" must be a string", k->name);
	if (k->kind == PATH && *s != '/')
		return err_set(err, EINVAL, "\"%s\" must be an absolute path, not \"%s\"", k->name,
			       s);
	free(*field);
	*field = strdup(s);
	return *field ? 0 : err_set(err, ENOMEM, "out of memory");
}

/* "512M": a number with K, M, G or T, powers of 1024. */
static bool parse_size(const char *s, uint64_t *out)
{
	static const char units[] = "KMGT";
	char *end;

	errno = 0;
	if (*s < '0' || *s > '9')
		return false;
	uint64_t v = strtoull(s, &end, 10);
	const char *unit = *end ? strchr(units, *end) : NULL;
	unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;

	if (errno || v > UINT64_MAX >> shift)
		return false;
	*out = v << shift;
	return unit ? !end[1] : !*end;
}

static int get_number(const struct key *k, struct json_object *v, uint64_t *n, struct err *err)
{
	const char *s = json_text(v);

	*n = json_u64(v);
	if (s && (k->kind != SIZE || !parse_size(s, n)))
		*n = 0;
	if (*n < k->min || *n > k->max)
		return err_set(err, EINVAL, "\"%s\" must be %s from %llu to %llu", k->name,
			       k->kind == SIZE ? "bytes, or \"512M\", \"2G\"," : "a number",
			       (unsigned long long)k->min, (unsigned long long)k->max);
	return 0;
}

static void free_list(char **list)
{
	for (char **p = list; p && *p; p++)
		free(*p);
	free(list);
}

static int set_list(char ***field, const struct key *k, struct json_object *v, struct err *err)
{
	size_t n = json_object_is_type(v, json_type_array) ? json_object_array_length(v) : 0;

	if (!json_object_is_type(v, json_type_array) || n > 64)
		return err_set(err, EINVAL, "\"%s\" must be an array of at most 64 names", k->name);
	free_list(*field);
	*field = calloc(n + 1, sizeof(**field));
	if (!*field)
		return err_set(err, ENOMEM, "out of memory");
	for (size_t i = 0; i < n; i++) {
		const char *s = json_text(json_object_array_get_idx(v, i));

		if (!s)
			return err_set(err, EINVAL, "\"%s\" must have only strings", k->name);
		(*field)[i] = strdup(s);
		if (!(*field)[i])
			return err_set(err, ENOMEM, "out of memory");
	}
	return 0;
}

static int set_key(struct node_config *c, const struct key *k, struct json_object *v,
		   struct err *err)
{
	char *at = (char *)c + k->offset;
	uint64_t n = 0;
	int rc = 0;

	switch (k->kind) {
	case PATH:
	case TEXT:
		return set_text((char **)at, k, v, err);
	case LIST:
		return set_list((char ***)at, k, v, err);
	case BOOL:
		if (!json_object_is_type(v, json_type_boolean))
			return err_set(err, EINVAL, "\"%s\" must be true or false", k->name);
		*(bool *)at = json_object_get_boolean(v);
		return 0;
	case SIZE:
		rc = get_number(k, v, &n, err);
		*(uint64_t *)at = n;
		return rc;
	case COUNT:
		rc = get_number(k, v, &n, err);
		*(unsigned *)at = (unsigned)n;
		return rc;
	}
	return 0;
}

static const struct key *find_key(const char *name)
{
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (!strcmp(keys[i].name, name))
			return &keys[i];
	return NULL;
}

/* The VMM is installed beside the shim. */
static char *default_vmm(void)
{
	char self[4096], *out;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n <= 0)
		return strdup("/usr/local/bin/coracle");
	self[n] = '\0';
	*strrchr(self, '/') = '\0';
	return asprintf(&out, "%s/coracle", self) < 0 ? NULL : out;
}

static const char *const all[] = { "mode", "cloud-init-from", "kernel-args", "console" };

static int set_defaults(struct node_config *c)
{
	const size_t n = sizeof(all) / sizeof(all[0]);

	memset(c, 0, sizeof(*c));
	c->vmm = default_vmm();
	c->cmdline = strdup("");
	c->memory = 512 * MIB;
	c->memory_max = UINT64_C(1) << 44;
	c->cpus = 1;
	c->cpus_max = 64;
	c->disk_direct = true;
	c->annotations = calloc(n + 1, sizeof(*c->annotations));
	for (size_t i = 0; c->annotations && i < n; i++)
		c->annotations[i] = strdup(all[i]);
	return c->vmm && c->cmdline && c->annotations ? 0 : -ENOMEM;
}

static int set_all(struct node_config *c, struct json_object *root, struct err *err)
{
	if (!json_object_is_type(root, json_type_object))
		return err_set(err, EINVAL, "it must be an object");
	json_object_object_foreach (root, name, value) {
		const struct key *k = find_key(name);
		int rc = k ? set_key(c, k, value, err) :
			     err_set(err, EINVAL, "there is no key \"%s\"; see coracle.json(5)",
				     name);

		if (rc)
			return rc;
	}
	return 0;
}

int node_config_parse(struct node_config *c, const char *text, size_t len, const char *what,
		      struct err *err)
{
	struct err why = { 0 };
	struct json_object *root = json_parse(text, len, what, err);

	if (!root)
		return err->code;
	int rc = set_defaults(c) ? err_set(&why, ENOMEM, "out of memory") : set_all(c, root, &why);

	json_object_put(root);
	if (rc) {
		node_config_fini(c);
		return err_set(err, rc, "%s: %s", what, why.msg);
	}
	return 0;
}

int node_config_load(struct node_config *c, const char *path, struct err *err)
{
	size_t len = 0;

	memset(c, 0, sizeof(*c));
	if (!path || !*path)
		path = NODE_CONFIG_PATH;
	cleanup_free char *text = json_read_file(path, BYTES_MAX, &len, err);

	if (!text)
		return err_prefix(err, "node configuration");
	return node_config_parse(c, text, len, path, err);
}

void node_config_fini(struct node_config *c)
{
	free(c->vmm);
	free(c->kernel);
	free(c->initrd);
	free(c->cmdline);
	free(c->console);
	free(c->transport);
	free(c->log_level);
	free(c->vhost);
	free_list(c->annotations);
	memset(c, 0, sizeof(*c));
}

bool node_config_knows(const char *annotation)
{
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (!strcmp(all[i], annotation))
			return true;
	return false;
}

bool node_config_allows(const struct node_config *c, const char *annotation)
{
	for (char **p = c->annotations; p && *p; p++)
		if (!strcmp(*p, annotation))
			return true;
	return false;
}
