/*
 * monitor.c - the prompt on the machine's terminal (Ctrl-A c)
 *
 * The same methods as the control socket has, called directly: there is one list of what can be asked
 * of a machine. The line editor knows backspace, Ctrl-U and Ctrl-C and no more; whoever wants history
 * runs `coracle ctl` in a shell.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/console.h"
#include "base/fd.h"
#include "vmm/control_methods.h"
#include "vmm/ctl_print.h"
#include "vmm/monitor.h"
#include "vmm/vm.h"

#define PROMPT "(coracle) "

struct monitor {
	struct control_target target;
	struct control_peer peer; /* no client: number 0, and never a descriptor that came along */
	struct console *console;  /* it is open there; NULL: nowhere */
	char line[80];
	size_t len;
};

static void say(struct monitor *m, const char *text, size_t len)
{
	m->console->ops->write(m->console, text, len);
}

static void say_text(struct monitor *m, const char *text)
{
	say(m, text, strlen(text));
}

/* Lines as a serial terminal wants them. */
static void say_lines(struct monitor *m, const char *text)
{
	while (*text) {
		size_t len = strcspn(text, "\n");

		say(m, text, len);
		say_text(m, "\r\n");
		text += len + (text[len] == '\n');
	}
}

static void print_result(FILE *f, const char *verb, struct json_object *result)
{
	if (!strcmp(verb, "info"))
		ctl_print_info(f, result);
	else if (!strcmp(verb, "stats"))
		ctl_print_stats(f, result);
	else
		ctl_print_state(f, verb, result);
}

static void call(struct monitor *m, const struct jsonrpc_method *method)
{
	struct json_object *result = NULL;
	struct err err = { 0 };
	char *text = NULL;
	size_t size;

	if (method->fn(&m->target, NULL, &result, &err)) {
		say_lines(m, err.msg);
		return;
	}
	FILE *f = open_memstream(&text, &size);

	if (f) {
		print_result(f, method->name, result);
		fclose(f);
		say_lines(m, text);
	}
	free(text);
	json_object_put(result);
}

static void help(struct monitor *m)
{
	say_text(m, "Ctrl-A c goes back to the guest. Commands:");
	for (const struct jsonrpc_method *p = control_methods; p->name; p++) {
		say_text(m, " ");
		say_text(m, p->name);
	}
	say_text(m, "\r\n");
}

static void execute(struct monitor *m, const char *line)
{
	const struct jsonrpc_method *p = control_methods;

	if (!*line)
		return;
	while (p->name && strcmp(p->name, line))
		p++;
	if (p->name)
		call(m, p);
	else
		help(m);
}

static void enter(struct monitor *m)
{
	char *end = m->line + m->len, *start = m->line;

	m->len = 0;
	*end = '\0';
	while (end > start && end[-1] == ' ')
		*--end = '\0';
	start += strspn(start, " ");
	say_text(m, "\r\n");
	execute(m, start);
	if (m->target.vm->state != VM_STOPPED)
		say_text(m, PROMPT);
}

static void erase(struct monitor *m, size_t count)
{
	for (; count && m->len; count--, m->len--)
		say_text(m, "\b \b");
}

static void take(struct monitor *m, uint8_t c)
{
	switch (c) {
	case '\r':
	case '\n':
		enter(m);
		break;
	case '\b':
	case 0x7f:
		erase(m, 1);
		break;
	case 'U' - '@':
	case 'C' - '@':
		erase(m, m->len);
		break;
	default:
		if (c < 0x20 || c > 0x7e || m->len == sizeof(m->line) - 1)
			break; /* no verb has them */
		m->line[m->len++] = (char)c;
		say(m, (const char *)&c, 1);
	}
}

void monitor_input(struct monitor *m, const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
		take(m, data[i]);
}

void monitor_toggle(struct monitor *m, struct console *c)
{
	const bool open = !m->console;

	m->console = c;
	m->len = 0;
	say_text(m, open ? "\r\n" PROMPT : "\r\n");
	m->console = open ? c : NULL;
}

bool monitor_is_open(const struct monitor *m, const struct console *c)
{
	return m->console == c && c;
}

struct monitor *monitor_new(struct vm *vm, struct err *err)
{
	struct monitor *m = calloc(1, sizeof(*m));

	if (!m) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	m->target.vm = vm;
	m->target.peer = &m->peer;
	m->target.statm_fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	return m;
}

void monitor_free(struct monitor *m)
{
	if (!m)
		return;
	fd_close(&m->target.statm_fd);
	free(m);
}
