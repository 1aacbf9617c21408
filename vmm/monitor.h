/*
 * monitor.h - the prompt on the machine's terminal (Ctrl-A c)
 *
 * Takes the verbs of `coracle ctl`, answered in place. While it is open, what is typed goes here, the
 * guest's output still comes through. All on the main thread.
 */
#ifndef VMM_MONITOR_H
#define VMM_MONITOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct console;
struct monitor;
struct vm;

struct monitor *monitor_new(struct vm *vm, struct err *err); /* before the sandbox; NULL on error */
void monitor_free(struct monitor *m);                        /* NULL is fine */

/* Open it on @c, to which it then writes, or close it. Only one console at a time has it. */
void monitor_toggle(struct monitor *m, struct console *c);
bool monitor_is_open(const struct monitor *m, const struct console *c); /* on @c */
void monitor_input(struct monitor *m, const uint8_t *data, size_t len);

#endif
