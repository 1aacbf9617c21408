/*
 * machine_desc.c - what a machine is, in JSON, and made from it again
 *
 * The configuration has everything already, so the description is the configuration once more, with
 * what was decided at the start written out: MAC addresses made from names, MTUs taken from taps.
 * A machine made from it decides nothing anew.
 *
 * Two short lists say what may be given anew. They are lists of what is allowed: a key added later is
 * the guest's until somebody thought about it.
 */
#include <endian.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "virtio/device.h"
#include "virtio/net.h"
#include "vmm/config_keys.h"
#include "vmm/json_util.h"
#include "vmm/machine_desc.h"
#include "vmm/vm.h"

#define DESC_VERSION 1

/* ---- to JSON ---- */

/* @len bytes at @off of the configuration of virtio device @kind.@id; zeroes if there is none. */
static void read_config(const struct vm *vm, const char *kind, const char *id, unsigned off,
			void *to, unsigned len)
{
	char name[8 + CONFIG_ID_MAX];

	memset(to, 0, len);
	snprintf(name, sizeof(name), "%s.%s", kind, id);
	for (unsigned i = 0; i < vm->ndevices; i++) {
		struct device *d = vm->devices[i];

		if (strcmp(d->name, name))
			continue;
		pthread_mutex_lock(&d->lock); /* a driver may write to it */
		memcpy(to, ((struct virtio *)d)->regs.config + off, len); /* first member */
		pthread_mutex_unlock(&d->lock);
	}
}

/* virtio 1.2, 5.2.4: capacity in sectors of 512 bytes comes first. It never changes. */
static uint64_t disk_size(const struct vm *vm, const char *id)
{
	uint64_t sectors;

	read_config(vm, "disk", id, 0, &sectors, sizeof(sectors));
	return le64toh(sectors) * 512;
}

/* 5.1.4: mac 6, status 2, max_virtqueue_pairs 2, mtu 2. */
static unsigned told_mtu(const struct vm *vm, const char *id)
{
	uint16_t mtu;

	read_config(vm, "net", id, 10, &mtu, sizeof(mtu));
	return le16toh(mtu);
}

/* What was left to chance, and what belongs to the run. Strings stay @vm's. */
static void settle(struct config *c, const struct vm *vm)
{
	for (unsigned i = 0; i < c->nnets; i++) {
		struct config_net *n = &c->nets[i];

		if (!n->mac.set)
			virtio_net_default_mac(c->id ? c->id : "", n->id, n->mac.addr);
		n->mac.set = true;
		if (!n->mtu)
			n->mtu = told_mtu(vm, n->id);
	}
	c->control = NULL;
	c->paused = false;
}

static json_object *config_object(const struct vm *vm)
{
	struct config *c = malloc(sizeof(*c));
	char *text = NULL;
	json_object *o = NULL;

	if (c) {
		*c = *vm->config;
		settle(c, vm);
		text = config_to_json(c);
	}
	if (text)
		o = json_tokener_parse(text);
	free(text);
	free(c);
	return o;
}

static json_object *disks_object(const struct vm *vm)
{
	const struct config *c = vm->config;
	json_object *disks = json_object_new_object();

	for (unsigned i = 0; i < c->ndisks; i++) {
		json_object *d = json_object_new_object();

		json_object_object_add(d, "size",
				       json_object_new_uint64(disk_size(vm, c->disks[i].id)));
		json_object_object_add(disks, c->disks[i].id, d);
	}
	return disks;
}

char *machine_desc_text(const struct vm *vm, struct err *err)
{
	cleanup_json json_object *o = json_object_new_object();
	json_object *config = config_object(vm);
	char *text = NULL;

	if (config) {
		json_object_object_add(o, "version", json_object_new_int(DESC_VERSION));
		json_object_object_add(o, "program",
				       json_object_new_string("coracle " CORACLE_VERSION));
		json_object_object_add(o, "config", config);
		json_object_object_add(o, "disks", disks_object(vm));
		text = strdup(json_object_to_json_string_ext(
			o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
				   JSON_C_TO_STRING_NOSLASHESCAPE));
	}
	if (!text)
		err_set(err, ENOMEM, "out of memory for the machine's description");
	return text;
}

/* ---- from JSON ---- */

static void forget(char **s)
{
	free(*s);
	*s = NULL;
}

static int parse_config(struct config *c, json_object *o, struct err *err)
{
	json_object *config = NULL;

	if (!json_object_object_get_ex(o, "config", &config) ||
	    !json_object_is_type(config, json_type_object))
		return err_set(err, EINVAL, "config: missing");
	const char *text = json_object_to_json_string(config);
	int rc = text ? config_from_json(c, text, strlen(text), err) :
			err_set(err, ENOMEM, "out of memory");

	if (!rc)
		rc = config_finish(c, err);
	if (rc)
		return err_prefix(err, "config");
	forget(&c->id);
	forget(&c->control);
	c->paused = false;
	/* The descriptors of a process that is gone. */
	for (unsigned i = 0; i < c->nnets; i++)
		c->nets[i].fd.count = c->nets[i].vhostfd.count = 0;
	return 0;
}

static int parse_disks(struct machine_desc *d, json_object *o, struct err *err)
{
	json_object *disks = NULL, *disk, *size;

	json_object_object_get_ex(o, "disks", &disks);
	for (unsigned i = 0; i < d->config.ndisks; i++) {
		const char *id = d->config.disks[i].id;

		if (!disks || !json_object_object_get_ex(disks, id, &disk) ||
		    !json_object_object_get_ex(disk, "size", &size) ||
		    !json_object_is_type(size, json_type_int))
			return err_set(err, EINVAL, "disks: %s has no size", id);
		d->disk_size[i] = json_object_get_uint64(size);
	}
	return 0;
}

int machine_desc_parse(struct machine_desc *d, const char *text, size_t len, struct err *err)
{
	cleanup_tokener json_tokener *t = json_tokener_new_ex(16);
	cleanup_json json_object *o = NULL;
	json_object *version = NULL;
	int rc = 0;

	memset(d, 0, sizeof(*d));
	config_init(&d->config);
	if (t && len <= CONFIG_JSON_MAX) {
		json_tokener_set_flags(t, JSON_TOKENER_STRICT);
		o = json_tokener_parse_ex(t, text, (int)len);
	}
	if (!json_object_is_type(o, json_type_object))
		rc = err_set(err, EINVAL, "it is not JSON");
	else if (!json_object_object_get_ex(o, "version", &version) ||
		 json_object_get_int(version) != DESC_VERSION)
		rc = err_set(err, EINVAL, "version: %s, this program reads %d",
			     version ? json_object_get_string(version) : "missing", DESC_VERSION);
	if (!rc)
		rc = parse_config(&d->config, o, err);
	if (!rc)
		rc = parse_disks(d, o, err);
	if (rc) {
		err_prefix(err, "section machine");
		machine_desc_fini(d);
	}
	return rc;
}

void machine_desc_fini(struct machine_desc *d)
{
	config_fini(&d->config);
}

/* ---- what is given anew ---- */

static const char *const disk_allowed[] = { "path", "id", "aio", "direct", NULL };
static const char *const net_allowed[] = { "tap",    "id",    "fd",      "addr",
					   "create", "vhost", "vhostfd", NULL };
static const char *const run_allowed[] = { "disk",      "net",        "serial",  "console",
					   "id",        "control",    "paused",  "no-reboot",
					   "on-panic",  "io-threads", "sandbox", "log-level",
					   "hugepages", NULL };

static bool is_in(const char *const *list, const char *name)
{
	for (; *list; list++)
		if (!strcmp(*list, name))
			return true;
	return false;
}

static const char *alias_of(const char *arg, const char **value)
{
	for (const struct config_alias *a = config_aliases; a->key; a++) {
		bool same = (a->letter && arg[0] == '-' && arg[1] == a->letter && !arg[2]) ||
			    (a->name && !strncmp(arg, "--", 2) && !strcmp(arg + 2, a->name));

		if (same && is_in(run_allowed, a->key)) {
			*value = a->value;
			return a->key;
		}
	}
	return NULL;
}

static int note(struct machine_overrides *o, const char *key, const char *value, struct err *err)
{
	if (o->n == MACHINE_OVERRIDES_MAX)
		return err_set(err, E2BIG, "more than %d options", MACHINE_OVERRIDES_MAX);
	o->v[o->n++] = (struct machine_override){ key, value };
	return 1;
}

int machine_overrides_take(struct machine_overrides *o, int argc, char **argv, int *i,
			   struct err *err)
{
	const char *arg = argv[*i], *value, *key = alias_of(arg, &value);

	if (key) {
		++*i;
		return note(o, key, value, err);
	}
	size_t len = strcspn(arg, "=");
	const struct config_key *k =
		strncmp(arg, "--", 2) ? NULL : config_key_find(config_keys, arg + 2, len - 2);

	if (!k || k->cli_only)
		return 0;
	if (!is_in(run_allowed, k->name))
		return err_set(err, EINVAL,
			       "--%s: it is the guest's and cannot change while the guest lives",
			       k->name);
	++*i;
	if (arg[len])
		return note(o, k->name, arg + len + 1, err);
	if (k->type == KEY_FLAG)
		return note(o, k->name, "on", err);
	if (*i >= argc || (!strncmp(argv[*i], "--", 2) &&
			   config_key_find(config_keys, argv[*i] + 2, strcspn(argv[*i], "=") - 2)))
		return err_set(err, EINVAL, "--%s needs a value: %s", k->name, k->metavar);
	return note(o, k->name, argv[(*i)++], err);
}

/* "root, data": the ids there are. */
static void list_ids(const struct config_key *k, const struct config *c, char *buf, size_t size)
{
	bool disks = !strcmp(k->name, "disk");
	unsigned n = disks ? c->ndisks : c->nnets;

	snprintf(buf, size, "%s", n ? "" : "none");
	for (unsigned i = 0; i < n; i++) {
		size_t used = strlen(buf);

		snprintf(buf + used, size - used, "%s%s", i ? ", " : "",
			 disks ? c->disks[i].id : c->nets[i].id);
	}
}

/* The disk or NIC called @id; its only one if @id is NULL. */
static void *find_element(const struct config_key *k, struct config *c, const char *id,
			  struct err *err)
{
	char ids[256];
	bool disks = !strcmp(k->name, "disk");
	unsigned n = disks ? c->ndisks : c->nnets;

	for (unsigned i = 0; i < n; i++) {
		void *at = disks ? (void *)&c->disks[i] : (void *)&c->nets[i];

		if (id ? !strcmp(id, disks ? c->disks[i].id : c->nets[i].id) : n == 1)
			return at;
	}
	list_ids(k, c, ids, sizeof(ids));
	if (id)
		err_set(err, EINVAL, "this machine has no %s called %s; there are: %s", k->name, id,
			ids);
	else
		err_set(err, EINVAL, "which one? add id=NAME; there are: %s", ids);
	return NULL;
}

static int check_allowed(const struct config_key *k, uint64_t seen, struct err *err)
{
	const char *const *allowed = !strcmp(k->name, "disk") ? disk_allowed : net_allowed;

	for (unsigned i = 0; k->sub[i].name; i++)
		if (seen >> i & 1 && !is_in(allowed, k->sub[i].name))
			return err_set(
				err, EINVAL,
				"%s: it is the guest's and cannot change while the guest lives",
				k->sub[i].name);
	return 0;
}

/* A NIC has one host side: the new one replaces the old. */
static void drop_other_side(struct config_net *n, const struct config_net *given)
{
	if (given->tap)
		n->fd.count = 0;
	if (given->fd.count)
		forget(&n->tap);
}

static int apply_group(const struct config_key *k, struct config *c, const char *value,
		       struct err *err)
{
	struct config *given = calloc(1, sizeof(*given));
	uint64_t seen;
	void *at = NULL, *first;
	int rc;

	if (!given)
		return err_set(err, ENOMEM, "out of memory");
	config_init(given);
	first = config_list_add(k, given, err);
	rc = first ? config_group_set(k, first, value, &seen, err) : err->code;
	if (!rc)
		rc = check_allowed(k, seen, err);
	if (!rc) {
		bool disk = !strcmp(k->name, "disk");

		at = find_element(k, c, disk ? given->disks[0].id : given->nets[0].id, err);
		if (at && !disk)
			drop_other_side(at, &given->nets[0]);
		rc = at ? config_group_set(k, at, value, &seen, err) : err->code;
	}
	config_fini(given);
	free(given);
	return rc;
}

int machine_desc_apply(struct machine_desc *d, const struct machine_overrides *o, struct err *err)
{
	for (unsigned i = 0; i < o->n; i++) {
		const char *key = o->v[i].key;
		const struct config_key *k = config_key_find(config_keys, key, strlen(key));
		int rc;

		if (k->type == KEY_GROUP) {
			rc = apply_group(k, &d->config, o->v[i].value, err);
			if (rc)
				return err_prefix(err, "--%s", key), rc;
			continue;
		}
		if (!strcmp(key, "console") && !d->config.console)
			return err_set(err, EINVAL,
				       "--console: this machine has no virtio console");
		rc = config_set(&d->config, key, o->v[i].value, err);
		if (rc)
			return rc;
	}
	return config_check(&d->config, err);
}

/* As of run's options: what is too long for the column has a line of its own. */
static void print_override(FILE *f, const char *left, const char *help)
{
	fprintf(f, strlen(left) > 22 ? "  %s\n%26s%s\n" : "  %-22s  %s%s\n", left,
		strlen(left) > 22 ? "" : help, strlen(left) > 22 ? help : "");
}

void machine_overrides_help(FILE *f)
{
	print_override(f, "--disk id=NAME,path=FILE[,aio=..][,direct=..]",
		       "where that disk is now");
	print_override(f, "--net id=NAME,tap=NAME|fd=N[:N..][,create=..][,addr=..][,vhost=..]",
		       "what that NIC is connected to now");
	for (const char *const *name = run_allowed + 2; *name; name++) {
		const struct config_key *k = config_key_find(config_keys, *name, strlen(*name));
		char left[288], words[256];

		if (!strcmp(k->name, "hugepages")) /* not where RAM is a file: not for restore */
			continue;
		config_value_allowed(k, words, sizeof(words));
		snprintf(left, sizeof(left), "--%s%s%s", k->name, k->type == KEY_FLAG ? "" : " ",
			 k->type == KEY_FLAG ? "" :
			 k->metavar          ? k->metavar :
					       words);
		print_override(f, left, k->help);
	}
}

int machine_desc_check(const struct machine_desc *d, const struct vm *vm, struct err *err)
{
	for (unsigned i = 0; i < d->config.ndisks; i++) {
		const struct config_disk *k = &d->config.disks[i];
		uint64_t now = disk_size(vm, k->id);

		if (now != d->disk_size[i])
			return err_set(err, EINVAL,
				       "--disk: %s: %s has %" PRIu64
				       " bytes, the guest's disk %s had "
				       "%" PRIu64 ": give that disk, or a copy of it",
				       k->id, k->path, now, k->id, d->disk_size[i]);
	}
	return 0;
}
