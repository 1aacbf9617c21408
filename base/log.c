/*
 * log.c - one line per fact
 *
 * A line is formatted whole and goes out in one write(2), so lines of threads do not mix. Nothing is
 * retried but EINTR: a log that cannot be written must not stop a device. Bytes that could steer a
 * terminal (they may come from a guest) are replaced. On a terminal lines end in CR LF, since a console
 * may have put it into raw mode.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"

#define LINE_MAX_BYTES 1024
#define BURST          10 /* lines of one call site before the limit bites */
#define SECOND         UINT64_C(1000000000)

static _Atomic int level_now = LOG_INFO;

void log_set_level(enum log_level level)
{
	atomic_store_explicit(&level_now, level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
	return atomic_load_explicit(&level_now, memory_order_relaxed);
}

static const char *level_word(enum log_level level)
{
	switch (level) {
	case LOG_ERR:
		return "error: ";
	case LOG_WARN:
		return "warning: ";
	case LOG_INFO:
		return "";
	default:
		return "debug: ";
	}
}

/* snprintf()'s result as the number of bytes that are there. */
static size_t clamp(int n, size_t room)
{
	if (n < 0)
		return 0;
	return (size_t)n < room ? (size_t)n : room - 1;
}

static void put_line(enum log_level level, const char *fmt, va_list ap, unsigned dropped)
{
	int saved = errno;
	char line[LINE_MAX_BYTES];
	const size_t room = sizeof(line) - 64; /* what follows the message fits in the rest */
	size_t n, text;

	text = n = clamp(snprintf(line, room, "%.64s: %s", program_invocation_short_name,
				  level_word(level)),
			 room);
	n += clamp(vsnprintf(line + n, room - n, fmt, ap), room - n);
	for (size_t i = text; i < n; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = line[i] == '\t' ? '\t' : '?';
	if (n == room - 1)
		n += clamp(snprintf(line + n, sizeof(line) - n, "..."), sizeof(line) - n);
	if (dropped)
		n += clamp(snprintf(line + n, sizeof(line) - n, " (%u such lines left out)",
				    dropped),
			   sizeof(line) - n);
	if (isatty(STDERR_FILENO))
		line[n++] = '\r';
	line[n++] = '\n';
	while (write(STDERR_FILENO, line, n) < 0 && errno == EINTR)
		;
	errno = saved;
}

void log_msg(enum log_level level, const char *fmt, ...)
{
	va_list ap;

	if (level > log_get_level())
		return;
	va_start(ap, fmt);
	put_line(level, fmt, ap, 0);
	va_end(ap);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

/* A bucket of BURST lines that gets one back each second. Threads that race may err by a line. */
static void give_back(struct log_limit *l, uint64_t now)
{
	uint64_t start = atomic_load(&l->window_ns);
	uint64_t seconds = now > start ? (now - start) / SECOND : 0;

	if (start == 0) {
		atomic_compare_exchange_strong(&l->window_ns, &start, now);
		return;
	}
	if (!seconds ||
	    !atomic_compare_exchange_strong(&l->window_ns, &start, start + seconds * SECOND))
		return;
	unsigned used = atomic_load(&l->used);

	while (!atomic_compare_exchange_weak(&l->used, &used,
					     used > seconds ? used - (unsigned)seconds : 0))
		;
}

static bool take(struct log_limit *l)
{
	unsigned used = atomic_load(&l->used);

	do {
		if (used >= BURST) {
			atomic_fetch_add(&l->dropped, 1);
			return false;
		}
	} while (!atomic_compare_exchange_weak(&l->used, &used, used + 1));
	return true;
}

bool log_limit_take(struct log_limit *l)
{
	give_back(l, now_ns());
	return take(l);
}

void log_guest(struct log_limit *l, const char *fmt, ...)
{
	va_list ap;

	if (log_get_level() < LOG_WARN)
		return;
	if (!log_limit_take(l))
		return;
	va_start(ap, fmt);
	put_line(LOG_WARN, fmt, ap, atomic_exchange(&l->dropped, 0));
	va_end(ap);
}

_Noreturn void bug(const char *file, int line, const char *what)
{
	log_err("bug in this program, please report it: %s:%d: %s", file, line, what);
	abort();
}
