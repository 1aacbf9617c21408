/*
 * log.h - one line per fact, to stderr (or a file), never on a path the guest can drive unbounded
 *
 * Guest-triggered messages go through log_guest(), which is rate limited per call site: ten lines,
 * then one a second with the number left out.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_ERR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* The log level is the only mutable file-scope state in the project. Default LOG_INFO. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);

void log_msg(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_err(...)   log_msg(LOG_ERR, __VA_ARGS__)
#define log_warn(...)  log_msg(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_msg(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_msg(LOG_DEBUG, __VA_ARGS__)

struct log_limit {
	_Atomic uint64_t window_ns; /* CLOCK_MONOTONIC second the budget belongs to */
	_Atomic unsigned used;      /* lines written in it */
	_Atomic unsigned dropped;   /* lines left out since the last written one */
};

/* Write the line if @l's budget allows. @l is owned by the device that talks, zero at start. */
void log_guest(struct log_limit *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The budget alone, for what is told elsewhere than in the log: may one more be? */
bool log_limit_take(struct log_limit *l);

/* Our own bug; must be unreachable from guest, image, snapshot, stream or client bytes. */
_Noreturn void bug(const char *file, int line, const char *what);
#define BUG_ON(cond)                                    \
	do {                                            \
		if (__builtin_expect(!!(cond), 0))      \
			bug(__FILE__, __LINE__, #cond); \
	} while (0)

#endif
