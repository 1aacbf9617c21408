/*
 * ctl_console.c - `coracle ctl VM console-resize [--cols N --rows N]`
 *
 * For consoles whose other end is no terminal of the machine's own: a socket, a pty that somebody else
 * shows. Without words the size is that of the terminal the command runs in.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm/ctl_print.h"
#include "vmm/ctl_verbs.h"

#define USAGE "console-resize [--cols N --rows N]"

/* Into *@to what stands behind @name, as the next word or after '='; *@i is moved on. 0 or -EINVAL. */
static int take_number(const struct ctl_call *c, unsigned *i, const char *name, unsigned *to,
		       struct err *err)
{
	const size_t len = strlen(name);
	const char *w = c->words[*i], *text = w[len] ? w + len + 1 : c->words[++*i];
	char *end = NULL;
	unsigned long v = text && *text >= '0' && *text <= '9' ? strtoul(text, &end, 10) : 0;

	if (!end || *end || !v || v > UINT16_MAX)
		return err_set(err, EINVAL, "%s takes a number from 1 to 65535, not %.40s", name,
			       text ? text : "nothing");
	*to = (unsigned)v;
	return 0;
}

static bool is_option(const char *word, const char *name)
{
	const size_t len = strlen(name);

	return !strncmp(word, name, len) && (!word[len] || word[len] == '=');
}

static int parse(const struct ctl_call *c, unsigned *cols, unsigned *rows, struct err *err)
{
	int rc = 0;

	for (unsigned i = 0; i < c->nwords && !rc; i++) {
		if (is_option(c->words[i], "--cols"))
			rc = take_number(c, &i, "--cols", cols, err);
		else if (is_option(c->words[i], "--rows"))
			rc = take_number(c, &i, "--rows", rows, err);
		else
			rc = err_set(err, EINVAL, "%.64s: " USAGE, c->words[i]);
	}
	if (!rc && !*cols != !*rows)
		rc = err_set(err, EINVAL, "--cols and --rows go together: " USAGE);
	return rc;
}

static int own_terminal(unsigned *cols, unsigned *rows, struct err *err)
{
	struct winsize size = { 0 };

	if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) || !size.ws_col || !size.ws_row)
		return err_set(err, EINVAL,
			       "standard input is no terminal whose size could be taken: " USAGE);
	*cols = size.ws_col;
	*rows = size.ws_row;
	return 0;
}

int ctl_console_resize(const struct ctl_call *c, struct err *err)
{
	unsigned cols = 0, rows = 0;
	int rc = parse(c, &cols, &rows, err);

	if (!rc && !cols)
		rc = own_terminal(&cols, &rows, err);
	if (rc)
		return rc;
	struct json_object *params = json_object_new_object(), *result = NULL;

	json_object_object_add(params, "cols", json_object_new_int((int)cols));
	json_object_object_add(params, "rows", json_object_new_int((int)rows));
	rc = control_client_call_fds(c->client, "console-resize", params, NULL, 0, c->timeout_ms,
				     &result, err);
	json_object_put(params);
	if (!rc && c->json)
		ctl_print_json(stdout, result);
	json_object_put(result);
	return rc == -EINVAL ? -EIO : rc;
}
