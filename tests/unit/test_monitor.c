/*
 * test_monitor.c - the prompt behind Ctrl-A c: what is typed is heeded, garbage does no harm
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "backends/console.h"
#include "vmm/monitor.h"
#include "vmm/vm.h"

/* A console that keeps what is written. */
struct paper {
	struct console console;
	char text[65536];
	size_t len;
};

static void paper_write(struct console *c, const void *data, size_t len)
{
	struct paper *p = (struct paper *)c;

	assert_true(p->len + len < sizeof(p->text));
	memcpy(p->text + p->len, data, len);
	p->len += len;
	p->text[p->len] = '\0';
}

static const struct console_ops paper_ops = { .name = "paper", .write = paper_write };

struct bench {
	struct paper paper;
	struct config config;
	struct vm vm;
	struct monitor *monitor;
};

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));

	b->paper.console.ops = &paper_ops;
	config_init(&b->config);
	b->config.kernel = strdup("/boot/vmlinuz");
	b->vm.config = &b->config;
	b->vm.loop = loop_new(NULL);
	b->vm.fd = b->vm.kvm.fd = b->vm.request.fd = -1;
	b->vm.state = VM_RUNNING;
	pthread_mutex_init(&b->vm.vcpus.lock, NULL);
	pthread_cond_init(&b->vm.vcpus.changed, NULL);
	b->monitor = monitor_new(&b->vm, NULL);
	*state = b;
	return b->monitor ? 0 : -1;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	monitor_free(b->monitor);
	loop_free(b->vm.loop);
	config_fini(&b->config);
	free(b);
	return 0;
}

static void type(struct bench *b, const char *text)
{
	b->paper.len = 0;
	b->paper.text[0] = '\0';
	monitor_input(b->monitor, (const uint8_t *)text, strlen(text));
}

static void assert_said(const struct bench *b, const char *text)
{
	if (!strstr(b->paper.text, text))
		fail_msg("'%s' is not in '%s'", text, b->paper.text);
}

static void test_verbs(void **state)
{
	struct bench *b = *state;

	assert_false(monitor_is_open(b->monitor, &b->paper.console));
	monitor_toggle(b->monitor, &b->paper.console);
	assert_true(monitor_is_open(b->monitor, &b->paper.console));
	assert_string_equal(b->paper.text, "\r\n(coracle) ");
	type(b, "pause\r");
	assert_string_equal(b->paper.text, "pause\r\npause: paused\r\n(coracle) ");
	assert_int_equal(b->vm.state, VM_PAUSED);
	type(b, "  resume \n");
	assert_int_equal(b->vm.state, VM_RUNNING);
	type(b, "info\r");
	assert_said(b, "kernel     /boot/vmlinuz");
	type(b, "stats\r");
	assert_said(b, "resident");
	for (char *c = b->paper.text; (c = strchr(c, '\n')); c++)
		assert_int_equal(c[-1], '\r');
	type(b, "power-button\r");
	assert_said(b, "no power button");
	type(b, "snapshot\r"); /* wants what only a client can hand in */
	assert_said(b, "have to come along");
	type(b, "help\r");
	assert_said(b, "power-button");
	type(b, "\r");
	assert_string_equal(b->paper.text, "\r\n(coracle) ");
	monitor_toggle(b->monitor, &b->paper.console);
	assert_false(monitor_is_open(b->monitor, &b->paper.console));
	monitor_toggle(b->monitor, &b->paper.console);
	type(b, "quit\r");
	assert_int_equal(b->vm.state, VM_STOPPED);
	assert_string_equal(b->paper.text, "quit\r\nquit: stopped\r\n");
}

static void test_editing(void **state)
{
	struct bench *b = *state;

	monitor_toggle(b->monitor, &b->paper.console);
	type(b, "\177\bpausx\177e\r"); /* erasing nothing is fine */
	assert_int_equal(b->vm.state, VM_PAUSED);
	type(b, "quit\25resume\r"); /* Ctrl-U */
	assert_int_equal(b->vm.state, VM_RUNNING);
	type(b, "quit\3pause\r"); /* Ctrl-C */
	assert_int_equal(b->vm.state, VM_PAUSED);
	/* half a line does not survive going back to the guest */
	type(b, "qu");
	monitor_toggle(b->monitor, &b->paper.console);
	monitor_toggle(b->monitor, &b->paper.console);
	type(b, "it\r");
	assert_int_equal(b->vm.state, VM_PAUSED);
}

static void test_garbage(void **state)
{
	struct bench *b = *state;
	uint8_t all[256], many[1000];

	for (int i = 0; i < 256; i++)
		all[i] = (uint8_t)i;
	memset(many, 'x', sizeof(many));
	monitor_toggle(b->monitor, &b->paper.console);
	monitor_input(b->monitor, all, sizeof(all));
	monitor_input(b->monitor, many, sizeof(many));
	type(b, "\rpause\r");
	assert_int_equal(b->vm.state, VM_PAUSED);
}

/* The prompt is one console's: the other one's bytes stay the guest's. */
static void test_where(void **state)
{
	struct bench *b = *state;
	static struct paper other;

	other.console.ops = &paper_ops;
	monitor_toggle(b->monitor, &other.console);
	assert_true(monitor_is_open(b->monitor, &other.console));
	assert_false(monitor_is_open(b->monitor, &b->paper.console));
	assert_false(monitor_is_open(b->monitor, NULL));
	type(b, "pause\r");
	assert_int_equal(b->paper.len, 0);
	assert_non_null(strstr(other.text, "pause: paused"));
	monitor_toggle(b->monitor, &other.console);
	assert_false(monitor_is_open(b->monitor, &other.console));
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = { T(test_verbs), T(test_editing), T(test_garbage),
					    T(test_where) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
