/*
 * console_port.h - a serial port for the console tests, and what turns the loop for it
 */
#ifndef TESTS_UNIT_CONSOLE_PORT_H
#define TESTS_UNIT_CONSOLE_PORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/console_io.h"
#include "base/fd.h"

struct port {
	struct loop *loop;
	struct console *console;
	size_t room;
	char got[1 << 20];
	size_t len;
	unsigned quits, commands, breaks, resizes;
	uint16_t cols, rows;
	char dir[64];
	char path[112];
};

static inline size_t port_room(void *opaque)
{
	return ((struct port *)opaque)->room;
}

static inline void port_input(void *opaque, const uint8_t *data, size_t len)
{
	struct port *p = opaque;

	assert_true(len > 0 && len <= p->room);
	p->room -= len;
	assert_true(p->len + len < sizeof(p->got));
	memcpy(p->got + p->len, data, len);
	p->len += len;
}

static inline void port_escape(void *opaque, enum console_escape what)
{
	struct port *p = opaque;

	p->quits += what == CONSOLE_ESCAPE_QUIT;
	p->commands += what == CONSOLE_ESCAPE_COMMAND;
	p->breaks += what == CONSOLE_ESCAPE_BREAK;
}

static inline void port_resize(void *opaque, uint16_t cols, uint16_t rows)
{
	struct port *p = opaque;

	p->resizes++;
	p->cols = cols;
	p->rows = rows;
}

static inline struct console_user user_of(struct port *p)
{
	return (struct console_user){ port_room, port_input, port_escape, port_resize, p };
}

static inline int setup(void **state)
{
	struct port *p = calloc(1, sizeof(*p));

	if (!p)
		return -1;
	p->room = SIZE_MAX;
	p->loop = loop_new(NULL);
	strcpy(p->dir, "/tmp/coracle-test-XXXXXX");
	if (!p->loop || !mkdtemp(p->dir))
		return -1;
	snprintf(p->path, sizeof(p->path), "%s/console", p->dir);
	*state = p;
	return 0;
}

static inline int teardown(void **state)
{
	struct port *p = *state;

	if (p->console)
		p->console->ops->free(p->console);
	loop_free(p->loop);
	unlink(p->path);
	rmdir(p->dir);
	free(p);
	return 0;
}

static inline void settle(struct port *p)
{
	while (loop_poll(p->loop, 0) > 0)
		;
}

static inline void wait_for(struct port *p, size_t len)
{
	while (p->len < len)
		assert_true(loop_poll(p->loop, 10000) > 0);
}

static inline void say(struct port *p, const char *text)
{
	p->console->ops->write(p->console, text, strlen(text));
}

static inline struct console *open_spec(struct port *p, const char *kind)
{
	struct console_user user = user_of(p);
	struct err err = { 0 };
	char spec[128];

	snprintf(spec, sizeof(spec), "%s:%s", kind, p->path);
	p->console = console_new(spec, p->loop, &user, &err);
	if (!p->console)
		fail_msg("%s", err.msg);
	return p->console;
}

/* Read exactly @len bytes of @fd, turning the loop meanwhile. */
static inline void read_all(struct port *p, int fd, char *buf, size_t len)
{
	for (size_t done = 0; done < len;) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };

		settle(p);
		assert_int_equal(poll(&ready, 1, 10000), 1);
		ssize_t n = read(fd, buf + done, len - done);

		assert_true(n > 0);
		done += (size_t)n;
	}
}

static inline void expect(struct port *p, int fd, const char *text)
{
	char buf[1024];
	size_t len = strlen(text);

	assert_true(len < sizeof(buf));
	read_all(p, fd, buf, len);
	assert_memory_equal(buf, text, len);
}

static inline void expect_nothing(struct port *p, int fd)
{
	struct pollfd ready = { .fd = fd, .events = POLLIN };

	settle(p);
	assert_int_equal(poll(&ready, 1, 0), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif
