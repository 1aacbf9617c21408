/*
 * terminal.h - the user's terminal in raw mode, and back as it was on every way out
 *
 * One at a time in a process. Restored by terminal_release(), exit(), and the signals that end a
 * process; let go and taken again around a stop (SIGTSTP, SIGCONT). Only SIGKILL leaves it raw.
 */
#ifndef BACKENDS_TERMINAL_H
#define BACKENDS_TERMINAL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/event.h"

/*
 * @fd is a terminal, borrowed until terminal_release(), as is @wake, which is signalled when the
 * process continues after a stop and when the terminal has another size. In the background the terminal is left alone until then. -EBUSY:
 * another console has it.
 */
int terminal_take(int fd, struct event *wake, struct err *err);
void terminal_release(void);

/* Put the terminal back as it was. Async-signal-safe; nothing taken: no harm. */
void terminal_restore(void);

/* May the taken terminal be read, or does it belong to the shell for now? */
bool terminal_is_ours(void);

/* True, with its size, if that may have changed since the last call; the first is always true. */
bool terminal_resized(uint16_t *cols, uint16_t *rows);

/* It has become ours (the shell's `fg` of a job that runs tells nobody): raw mode again. */
void terminal_retake(void);

#endif
