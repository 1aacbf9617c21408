/*
 * cmd_ctl.c - `coracle ctl`: speak to a running machine
 *
 * A verb is a method of the control socket under the same name; `events` listens. A word without a
 * slash is a machine's name, one with a slash the path of its socket. The words before `--json` are
 * for people and may change; what `--json` prints is the protocol of docs/control.md.
 */
#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/fd.h"
#include "vmm/commands.h"
#include "vmm/control.h"
#include "vmm/control_client.h"
#include "vmm/control_name.h"
#include "vmm/ctl_print.h"
#include "vmm/ctl_verbs.h"
#include "vmm/exit_status.h"

#define TIMEOUT_DEFAULT_MS 10000
#define NAMES_SHOWN        400

struct ctl {
	const char *machine, *verb; /* NULL: not given */
	bool json, help;
	bool has_timeout;
	unsigned timeout_ms;
	struct ctl_call call; /* of a verb that takes words */
};

static const struct verb {
	const char *name, *help;
	int (*run)(const struct ctl_call *c, struct err *err); /* NULL: a question and its answer */
} verbs[] = {
	{ "info", "what the machine is and does", NULL },
	{ "stats", "counters of its processors and devices", NULL },
	{ "pause", "stop its processors", NULL },
	{ "resume", "let them run again", NULL },
	{ "power-button", "ask the guest to shut down", NULL },
	{ "reset", "start the machine again at once", NULL },
	{ "quit", "end the machine at once", NULL },
	{ "console-resize", "[--cols N --rows N]: its virtio console's size, as this terminal's",
	  ctl_console_resize },
	{ "snapshot", "DIR [--stop]: write it to a new directory, for coracle restore",
	  ctl_snapshot },
	{ "migrate", "ADDRESS [OPTION]...: move it to a waiting `coracle run --incoming ADDRESS`",
	  ctl_migrate },
	{ "cancel", "give up the snapshot or migration that is under way", NULL },
	{ "migrate-cancel", "the same", NULL },
	{ "events", "print what happens to it until it ends", NULL },
};

#define NVERBS (sizeof(verbs) / sizeof(verbs[0]))

static void print_help(void)
{
	puts("usage: coracle ctl [list] [--json]\n"
	     "       coracle ctl NAME|SOCKET VERB [--json] [--timeout SECONDS]\n"
	     "\n"
	     "Speak to a running machine by the name it was started with (--id), or by the path "
	     "of\n"
	     "its control socket. Without a name, list the machines that run.\n");
	for (size_t i = 0; i < NVERBS; i++)
		printf("  %-14s %s\n", verbs[i].name, verbs[i].help);
	puts("\n"
	     "  --json         print the machine's answer as JSON, one line\n"
	     "  --timeout S    wait S seconds at most, 10 by default (events: listen as long)\n"
	     "\n"
	     "Exit status: 0 done; 1 no such machine, no answer in time, or it refused; 2 usage.");
}

/* ---- the command line ---- */

static int parse_timeout(struct ctl *c, const char *text, struct err *err)
{
	char *end;
	double seconds = text ? strtod(text, &end) : 0;

	if (!text || end == text || *end || !(seconds > 0 && seconds <= 1e6))
		return err_set(err, EINVAL,
			       "--timeout takes seconds, from 0.001 to 1000000, not %s",
			       text ? text : "nothing");
	c->has_timeout = true;
	c->timeout_ms = seconds < 0.001 ? 1 : (unsigned)(seconds * 1000);
	return 0;
}

static const struct verb *find_verb(const char *name)
{
	for (size_t i = 0; name && i < NVERBS; i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}

/* Does the verb so far take words and options of its own? */
static bool takes_words(const struct ctl *c)
{
	const struct verb *v = find_verb(c->verb);

	return v && v->run;
}

static int keep_word(struct ctl *c, const char *word, struct err *err)
{
	if (c->call.nwords == CTL_WORDS_MAX)
		return err_set(err, EINVAL, "%s is one word too many: coracle ctl --help", word);
	c->call.words[c->call.nwords++] = word;
	return 0;
}

static int parse_word(struct ctl *c, const char *word, struct err *err)
{
	if (!c->machine)
		c->machine = word;
	else if (!c->verb)
		c->verb = word;
	else
		return err_set(err, EINVAL, "%s is one word too many: coracle ctl --help", word);
	return 0;
}

static int parse(struct ctl *c, int argc, char **argv, struct err *err)
{
	int rc = 0;

	for (int i = 1; i < argc && !rc; i++) {
		const char *a = argv[i];

		if (!strcmp(a, "--json"))
			c->json = true;
		else if (!strcmp(a, "--help") || !strcmp(a, "-h"))
			c->help = true;
		else if (takes_words(c) && !strcmp(c->verb, "migrate"))
			rc = keep_word(c, a, err); /* its --timeout is another */
		else if (!strcmp(a, "--timeout"))
			rc = parse_timeout(c, i + 1 < argc ? argv[++i] : NULL, err);
		else if (!strncmp(a, "--timeout=", 10))
			rc = parse_timeout(c, a + 10, err);
		else if (takes_words(c))
			rc = keep_word(c, a, err);
		else if (a[0] == '-')
			rc = err_set(err, EINVAL, "no option %s: coracle ctl --help", a);
		else
			rc = parse_word(c, a, err);
	}
	if (rc || c->help || !c->verb)
		return rc;
	if (find_verb(c->verb))
		return 0;
	return err_set(err, EINVAL, "no verb %s: coracle ctl --help lists them", c->verb);
}

/* ---- the machines that run ---- */

static int is_socket_name(const struct dirent *e)
{
	const char *dot = strrchr(e->d_name, '.');

	return e->d_name[0] != '.' && dot && !strcmp(dot, ".sock");
}

/* An object of what is known of machine @name, or NULL: it does not run. */
static struct json_object *look_at(const char *name, unsigned timeout_ms)
{
	cleanup_free char *path = control_path_of(name);
	struct control_client client;
	struct json_object *info = NULL;
	struct err err;

	if (!path)
		return NULL;
	int rc = control_client_open(&client, path, timeout_ms, &err);

	if (rc && rc != -ETIMEDOUT)
		return NULL;
	if (!rc)
		rc = control_client_call(&client, "info", timeout_ms, &info, &err);
	control_client_close(&client);
	if (rc == -ECONNRESET)
		return NULL; /* it ended just now */
	if (!rc && json_object_is_type(info, json_type_object))
		return info;
	json_object_put(info);
	info = json_object_new_object();
	json_object_object_add(info, "id", json_object_new_string(name));
	json_object_object_add(info, "state", json_object_new_string("no answer"));
	return info;
}

static struct json_object *running(unsigned timeout_ms)
{
	cleanup_free char *dir = control_directory();
	struct json_object *all = json_object_new_array();
	struct dirent **entries;
	int n = dir ? scandir(dir, &entries, is_socket_name, alphasort) : -1;

	for (int i = 0; i < n; i++) {
		entries[i]->d_name[strlen(entries[i]->d_name) - strlen(".sock")] = '\0';
		struct json_object *o = look_at(entries[i]->d_name, timeout_ms);

		if (o)
			json_object_array_add(all, o);
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
	return all;
}

static int list(const struct ctl *c)
{
	struct json_object *all = running(c->timeout_ms);

	if (c->json)
		ctl_print_json(stdout, all);
	else if (json_object_array_length(all))
		ctl_print_list(stdout, all);
	else
		puts("no machine runs that was started with --id");
	json_object_put(all);
	return EXIT_OK;
}

static int no_such_machine(const struct ctl *c, struct err *err)
{
	struct json_object *all = running(1000);
	char names[NAMES_SHOWN] = "";
	size_t at = 0, n = json_object_array_length(all);

	for (size_t i = 0; i < n && at < sizeof(names); i++) {
		struct json_object *o = json_object_array_get_idx(all, i), *id = NULL;

		json_object_object_get_ex(o, "id", &id);
		at += (size_t)snprintf(names + at, sizeof(names) - at, "%s%s", i ? ", " : "",
				       id ? json_object_get_string(id) : "?");
	}
	json_object_put(all);
	return err_set(err, ENOENT, "no machine named %.64s runs; %s%s", c->machine,
		       n ? "there are: " : "none does that was started with --id", names);
}

/* ---- one machine ---- */

static int connect_to(struct ctl *c, struct control_client *client, struct err *err)
{
	bool by_path = strchr(c->machine, '/');
	cleanup_free char *path = by_path ? strdup(c->machine) : control_path_of(c->machine);

	if (!path)
		return err_set(err, ENOMEM, "out of memory");
	int rc = control_client_open(client, path, c->timeout_ms, err);

	if (rc == -EACCES || rc == -EPERM)
		return err_set(err, EACCES, "%s: permission denied: the machine is another user's",
			       path);
	if (!by_path && (rc == -ENOENT || rc == -ECONNREFUSED))
		return no_such_machine(c, err);
	if (rc == -ECONNREFUSED)
		return err_set(err, rc, "%s: nobody listens there any more", path);
	return rc;
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int follow(const struct ctl *c, struct control_client *client, struct err *err)
{
	int64_t end = now_ms() + c->timeout_ms;
	const char *line;
	struct json_object *o;
	int rc = 0;

	while (!rc) {
		int64_t left = end - now_ms();

		if (c->has_timeout && left <= 0)
			return 0;
		rc = control_client_next(client, c->has_timeout ? (unsigned)left : UINT_MAX, &line,
					 &o, err);
		if (rc)
			break;
		if (c->json)
			puts(line);
		else
			ctl_print_event(stdout, o);
		json_object_put(o);
		if (fflush(stdout))
			return err_set_sys(err, errno, "standard output");
	}
	if (rc == -ENODATA || (rc == -ETIMEDOUT && c->has_timeout)) {
		err->code = 0;
		return 0;
	}
	return rc;
}

static void print_result(const struct ctl *c, struct json_object *result)
{
	struct json_object *job = NULL;

	if (c->json)
		ctl_print_json(stdout, result);
	else if (!strcmp(c->verb, "info"))
		ctl_print_info(stdout, result);
	else if (!strcmp(c->verb, "stats"))
		ctl_print_stats(stdout, result);
	else if (json_object_object_get_ex(result, "job", &job))
		printf("%s: %s is being cancelled\n", c->machine, json_object_get_string(job));
	else
		ctl_print_state(stdout, c->machine, result);
}

static int speak(struct ctl *c, struct control_client *client, struct err *err)
{
	struct json_object *result = NULL;
	const struct verb *v = find_verb(c->verb);
	int rc;

	if (!strcmp(c->verb, "events"))
		return follow(c, client, err);
	if (v->run) {
		c->call.client = client;
		c->call.machine = c->machine;
		c->call.json = c->json;
		c->call.timeout_ms = c->timeout_ms;
		return v->run(&c->call, err);
	}
	rc = control_client_call(client, c->verb, c->timeout_ms, &result, err);
	if (!rc)
		print_result(c, result);
	json_object_put(result);
	return rc;
}

int cmd_ctl(int argc, char **argv, struct err *err)
{
	struct ctl c = { .timeout_ms = TIMEOUT_DEFAULT_MS };
	struct control_client client;

	if (parse(&c, argc, argv, err))
		return EXIT_USAGE;
	if (c.help) {
		print_help();
		return EXIT_OK;
	}
	if (!c.machine || (!c.verb && !strcmp(c.machine, "list")))
		return list(&c);
	if (!c.verb) {
		err_set(err, EINVAL, "what should %.64s do? coracle ctl --help lists the verbs",
			c.machine);
		return EXIT_USAGE;
	}
	if (connect_to(&c, &client, err))
		return EXIT_HOST;
	int rc = speak(&c, &client, err);

	control_client_close(&client);
	if (rc == -EINVAL)
		return EXIT_USAGE;
	if (rc)
		err_prefix(err, "%.64s", c.machine);
	return rc ? EXIT_HOST : EXIT_OK;
}
