/*
 * config_args.c - the command line
 *
 * Not getopt_long(): it abbreviates options, and a new one would change what an old script means;
 * nor could it name the nearest option. The line is read twice: --config files first, wherever they
 * stand, then the rest, so that an option overrides a file whatever their order.
 */
#include "vmm/config_keys.h"

#include <stdlib.h>
#include <string.h>

#include "base/fd.h"

struct option {
	const struct config_key *key;
	const char *value;
};

static bool is_switch(const struct config_key *k)
{
	return k->type == KEY_BOOL || k->type == KEY_FLAG;
}

/* Cut the next item off "k=v,k=v", unescaping ",,". Returns where the one after starts, or NULL. */
static char *cut_item(char *s)
{
	char *to = s;

	for (; *s; s++) {
		if (*s == ',' && s[1] == ',')
			s++;
		else if (*s == ',')
			break;
		*to++ = *s;
	}
	if (!*s) {
		*to = '\0';
		return NULL;
	}
	*to = '\0';
	return s + 1;
}

static int set_item(const struct config_key *k, void *base, const char *name, const char *value,
		    struct err *err)
{
	char shown[CONFIG_SHOWN_MAX], allowed[256];
	int r;

	if (!value && is_switch(k))
		value = "on";
	if (!value) {
		config_value_allowed(k, allowed, sizeof(allowed));
		return err_set(err, EINVAL, "%s needs a value: %s=%s", name, name, allowed);
	}
	r = config_value_set(k, base, value, err);
	if (r)
		err_prefix(err, "%s=%s", name, config_shown(value, shown));
	return r;
}

/* One item of a group; the first may be a bare value of the first key. */
static int apply_item(const struct config_key *table, void *base, char *item, bool first,
		      uint64_t *seen, struct err *err)
{
	char shown[CONFIG_SHOWN_MAX];
	char *eq = strchr(item, '=');
	const struct config_key *k = table;
	const char *value = item;

	if (!*item)
		return err_set(err, EINVAL,
			       "an item between commas is empty (,, stands for a comma)");
	if (!first || eq) {
		k = config_key_find(table, item, eq ? (size_t)(eq - item) : strlen(item));
		value = eq ? eq + 1 : NULL;
		if (eq)
			*eq = '\0';
		if (!k)
			return err_set(err, EINVAL, "unknown key %s, the nearest is %s",
				       config_shown(item, shown),
				       config_key_nearest(table, item, true)->name);
	}
	if (*seen & 1ull << (k - table))
		return err_set(err, EINVAL, "%s is given twice", k->name);
	*seen |= 1ull << (k - table);
	return set_item(k, base, k->name, value, err);
}

int config_group_set(const struct config_key *k, void *base, const char *text, uint64_t *seen,
		     struct err *err)
{
	cleanup_free char *copy = strdup(text);
	char *item = copy;
	int r = 0;

	*seen = 0;
	if (!copy)
		return err_set(err, ENOMEM, "out of memory");
	if (!*text)
		return err_set(err, EINVAL, "needs a value: %s", k->metavar);
	while (item && !r) {
		char *next = cut_item(item);

		r = apply_item(k->sub, base, item, item == copy, seen, err);
		item = next;
	}
	return r;
}

static int set_group(const struct config_key *k, struct config *c, const char *text,
		     struct err *err)
{
	void *base = key_is_list(k) ? config_list_add(k, c, err) : (char *)c + k->offset;
	uint64_t seen;

	return base ? config_group_set(k, base, text, &seen, err) : err->code;
}

static int set_key(const struct config_key *k, struct config *c, const char *value, struct err *err)
{
	char shown[CONFIG_SHOWN_MAX];
	int r;

	if (k->type == KEY_CONFIG) {
		r = config_from_file(c, value, err);
		if (r)
			err_prefix(err, "--config %s", config_shown(value, shown));
	} else if (k->type == KEY_GROUP) {
		r = set_group(k, c, value, err);
		if (r)
			err_prefix(err, "--%s", k->name);
	} else {
		r = config_value_set(k, c, value, err);
		if (r)
			err_prefix(err, "--%s %s", k->name,
				   *value ? config_shown(value, shown) : "''");
	}
	return r;
}

static int unknown_option(const char *arg, struct err *err)
{
	char shown[CONFIG_SHOWN_MAX];

	return err_set(err, EINVAL,
		       "unknown option %s, the nearest is --%s; coracle run --help lists all",
		       config_shown(arg, shown),
		       config_key_nearest(config_keys, arg + strspn(arg, "-"), true)->name);
}

int config_set(struct config *c, const char *key, const char *value, struct err *err)
{
	const struct config_key *k = config_key_find(config_keys, key, strlen(key));

	return k ? set_key(k, c, value, err) : unknown_option(key, err);
}

/* "-v", "--verbose" and the like. */
static const struct config_alias *find_alias(const char *arg)
{
	for (const struct config_alias *a = config_aliases; a->key; a++) {
		if (a->letter && arg[0] == '-' && arg[1] == a->letter && !arg[2])
			return a;
		if (a->name && !strncmp(arg, "--", 2) && !strcmp(arg + 2, a->name))
			return a;
	}
	return NULL;
}

static const struct config_key *find_option(const char *arg)
{
	size_t len = strcspn(arg, "=");

	return strncmp(arg, "--", 2) ? NULL : config_key_find(config_keys, arg + 2, len - 2);
}

/* The value of option @k that stands at argv[*i]: behind '=', or the next argument. */
static int option_value(const struct config_key *k, int argc, char **argv, int *i,
			const char **value, struct err *err)
{
	const char *eq = strchr(argv[*i], '=');
	char allowed[256];

	if (eq) {
		*value = eq + 1;
		return 0;
	}
	if (k->type == KEY_FLAG) {
		*value = "on";
		return 0;
	}
	config_value_allowed(k, allowed, sizeof(allowed));
	if (*i + 1 >= argc)
		return err_set(err, EINVAL, "--%s needs a value: %s", k->name, allowed);
	if (find_option(argv[*i + 1]))
		return err_set(err, EINVAL, "--%s needs a value (%s), but the option %.*s follows",
			       k->name, allowed, (int)strcspn(argv[*i + 1], "="), argv[*i + 1]);
	*value = argv[++*i];
	return 0;
}

/* Read one option at argv[*i] and leave *i behind it. */
static int next_option(int argc, char **argv, int *i, struct option *o, struct err *err)
{
	const char *arg = argv[*i];
	const struct config_alias *alias = find_alias(arg);
	char shown[CONFIG_SHOWN_MAX];
	int r = 0;

	if (alias) {
		o->key = config_key_find(config_keys, alias->key, strlen(alias->key));
		o->value = alias->value;
	} else if (arg[0] != '-' || !arg[1]) {
		return err_set(
			err, EINVAL,
			"unexpected argument %s: every value follows its option, as in --kernel "
			"FILE",
			*arg ? config_shown(arg, shown) : "''");
	} else {
		o->key = find_option(arg);
		if (!o->key)
			return unknown_option(arg, err);
		r = option_value(o->key, argc, argv, i, &o->value, err);
	}
	++*i;
	return r;
}

/* Apply the --config options of the line, or the others. Stops at --help. */
static int apply_args(struct config *c, int argc, char **argv, bool files, struct err *err)
{
	for (int i = 1; i < argc;) {
		struct option o = { 0 };
		int r = next_option(argc, argv, &i, &o, err);

		if (!r && !strcmp(o.key->name, "help"))
			return config_value_set(o.key, c, o.value, err);
		if (!r && (o.key->type == KEY_CONFIG) == files)
			r = set_key(o.key, c, o.value, err);
		if (r)
			return r;
	}
	return 0;
}

int config_from_args(struct config *c, int argc, char **argv, struct err *err)
{
	int r = apply_args(c, argc, argv, true, err);

	if (!r && !c->help)
		r = apply_args(c, argc, argv, false, err);
	if (r || c->help)
		return r;
	r = config_finish(c, err);
	return r ? r : config_check(c, err);
}
