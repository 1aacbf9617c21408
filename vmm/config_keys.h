/*
 * config_keys.h - the table behind struct config, for the config_*.c files only
 *
 * A key is named once, in config_keys.c; reading, printing, help, manual, completion and schema walk
 * that table. To add a key: a field in config.h and an entry there.
 */
#ifndef VMM_CONFIG_KEYS_H
#define VMM_CONFIG_KEYS_H

#include "vmm/config.h"

enum key_type {
	KEY_BOOL,   /* bool; on|off */
	KEY_FLAG,   /* bool; on the command line the bare option means on */
	KEY_UINT,   /* unsigned; without a default 0 means not given */
	KEY_POW2,   /* unsigned, a power of two */
	KEY_FDS,    /* struct config_fds; N or N:N... */
	KEY_SIZE,   /* uint64_t bytes, suffix K M G T; without a default 0 means not given */
	KEY_ADDR,   /* uint64_t, decimal or 0x; UINT64_MAX when not given */
	KEY_WORD,   /* an enum (4 bytes): index into words */
	KEY_STRING, /* char *, owned; shape says what it may be */
	KEY_FILE,   /* the same, completed with file names */
	KEY_MAC,    /* struct config_mac */
	KEY_GROUP,  /* k=v,... of its own table; the first key's name may be left out */
	KEY_CONFIG, /* --config: no field */
};

/* What a string may be. */
struct key_shape {
	bool (*ok)(const char *s);
	const char *must;    /* completes "must be ..." */
	const char *pattern; /* for the schema; NULL: any non-empty string */
};

struct config_key {
	const char *section; /* starts one in --help; NULL: goes on */
	const char *name;    /* NULL ends a table */
	enum key_type type;
	bool cli_only;
	bool required; /* schema and help; config_check() enforces it */
	size_t offset, size;
	uint64_t min, max;
	const char *const *words; /* NULL at the end; of a string: what to complete */
	const struct key_shape *shape;
	const char *def; /* as a user would write it; NULL: not given */
	const char *metavar;
	const char *help; /* half a line, no full stop */
	const char *more; /* sentences for the manual; may be NULL */

	/* KEY_GROUP */
	const struct config_key *sub;
	size_t count_offset, stride; /* a list: unsigned in struct config, bytes per element */
	unsigned count_max;          /* 0: one group, not a list */
};

/* Another way to write a key with a value on the command line. */
struct config_alias {
	const char *name;
	char letter;
	const char *key, *value;
	const char *help;
};

extern const struct config_key config_keys[];
extern const struct config_alias config_aliases[];

static inline bool key_is_list(const struct config_key *k)
{
	return k->type == KEY_GROUP && k->count_max;
}

const struct config_key *config_key_find(const struct config_key *table, const char *name,
					 size_t len);
/* Never NULL: the key someone who wrote @name may have meant; @cli: on the command line. */
const struct config_key *config_key_nearest(const struct config_key *table, const char *name,
					    bool cli);

/* ---- config_value.c: one value ---- */

/* Set @k's field in the structure at @base. -EINVAL with "must be ..." as message, or -ENOMEM. */
int config_value_set(const struct config_key *k, void *base, const char *text, struct err *err);
/* "1 to 64", "pci or mmio": completes "must be". */
void config_value_allowed(const struct config_key *k, char *buf, size_t size);
/* The value as text the setter takes back. False when it was not given. */
bool config_value_get(const struct config_key *k, const void *base, char *buf, size_t size);
/* Strings are got by reference: NULL when not given. */
const char *config_value_string(const struct config_key *k, const void *base);

/* A value for a message: short, printable. */
#define CONFIG_SHOWN_MAX 68
const char *config_shown(const char *text, char buf[CONFIG_SHOWN_MAX]);

/* ---- config_args.c ---- */

/*
 * Apply "value,key=value,..." to the element of group @k at @base. @seen: one bit for each of its keys
 * that was given, by its place in the table.
 */
int config_group_set(const struct config_key *k, void *base, const char *text, uint64_t *seen,
		     struct err *err);

/* ---- config.c ---- */

void config_group_init(const struct config_key *table, void *base);
/* Append an element to a list with its defaults; NULL and "at most N" in @err when full. */
void *config_list_add(const struct config_key *k, struct config *c, struct err *err);

#endif
