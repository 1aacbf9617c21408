/*
 * terminal.c - the user's terminal in raw mode, and back as it was on every way out
 *
 * A terminal left raw makes the user's shell unusable, and the way out that matters most is a crash.
 * So the saved modes lie where a signal handler finds them: `taken` below is, besides the log level,
 * the one piece of mutable file-scope state in the project, because a handler has no argument. It is
 * written before `active` is set and not changed while it is.
 *
 * Handlers use only what signal-safety(7) allows. One that ends the process puts the disposition
 * back that it found and lets the signal come again: a fault by returning to the instruction, the
 * rest by raise(). So sanitizers and core dumps see what they would have seen without us.
 *
 * A handler is installed only for a signal nobody handles yet, faults excepted. SIGSYS is not ours:
 * libpsx uses it, and the sandbox's handler, which comes later, calls terminal_restore().
 *
 * In the background the terminal belongs to the shell: changing it there would stop the process
 * (SIGTTOU), and reading it too (SIGTTIN). Our process group is asked for once, at the start: the
 * sandbox has no getpgrp().
 *
 * Output processing stays as the user has it: log lines end in a bare newline.
 */
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "backends/terminal.h"

static const int fatal[] = { SIGSEGV, SIGBUS, SIGILL,  SIGFPE, SIGABRT,
			     SIGTERM, SIGINT, SIGQUIT, SIGHUP };
static const int job[] = { SIGTSTP, SIGCONT, SIGWINCH };

#define FAULTS   5 /* of fatal[], those that are a crash */
#define NFATAL   (sizeof(fatal) / sizeof(fatal[0]))
#define NJOB     (sizeof(job) / sizeof(job[0]))
#define NSIGNALS (NFATAL + NJOB)

static struct {
	_Atomic bool active;
	_Atomic bool resized; /* since terminal_resized() looked */
	bool at_exit;         /* registered */
	int fd;
	pid_t group;
	struct termios saved, raw;
	struct event *wake;
	bool ours[NSIGNALS]; /* handler installed */
	struct sigaction old[NSIGNALS];
} taken;

static bool foreground(void)
{
	pid_t group = tcgetpgrp(taken.fd);

	/* Not our controlling terminal: there is no job control to mind. */
	return group < 0 || group == taken.group;
}

static void set(const struct termios *modes)
{
	int e = errno;

	if (foreground())
		tcsetattr(taken.fd, TCSANOW, modes);
	errno = e;
}

void terminal_restore(void)
{
	if (atomic_load(&taken.active))
		set(&taken.saved);
}

bool terminal_is_ours(void)
{
	return atomic_load(&taken.active) && foreground();
}

/* Nobody told us of a new size in the background (SIGWINCH goes to the foreground). */
void terminal_retake(void)
{
	if (!atomic_load(&taken.active))
		return;
	set(&taken.raw);
	atomic_store(&taken.resized, true);
}

bool terminal_resized(uint16_t *cols, uint16_t *rows)
{
	struct winsize size;

	if (!atomic_load(&taken.active) || !atomic_exchange(&taken.resized, false) ||
	    ioctl(taken.fd, TIOCGWINSZ, &size))
		return false;
	*cols = size.ws_col;
	*rows = size.ws_row;
	return true;
}

static void on_fatal(int sig, siginfo_t *info, void *context)
{
	size_t i = 0;

	terminal_restore();
	while (i < NFATAL - 1 && fatal[i] != sig)
		i++;
	sigaction(sig, &taken.old[i], NULL);
	bool fault = info->si_code > 0 && i < FAULTS && sig != SIGABRT;

	if (!fault)
		raise(sig); /* blocked while we are here; comes when we return */
}

static void on_job(int sig, siginfo_t *info, void *context)
{
	int e = errno;

	if (!atomic_load(&taken.active))
		return;
	if (sig == SIGTSTP) {
		set(&taken.saved);
		raise(SIGSTOP);
	} else {
		if (sig == SIGCONT)
			set(&taken.raw); /* the shell had it meanwhile */
		atomic_store(&taken.resized, true);
		event_signal(taken.wake);
	}
	errno = e;
}

static bool unhandled(const struct sigaction *sa)
{
	return !(sa->sa_flags & SA_SIGINFO) && sa->sa_handler == SIG_DFL;
}

static int signal_at(size_t i)
{
	return i < NFATAL ? fatal[i] : job[i - NFATAL];
}

static void install(void)
{
	for (size_t i = 0; i < NSIGNALS; i++) {
		struct sigaction sa = { .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK };

		sa.sa_sigaction = i < NFATAL ? on_fatal : on_job;
		sigaction(signal_at(i), NULL, &taken.old[i]);
		taken.ours[i] = i < FAULTS || unhandled(&taken.old[i]);
		if (taken.ours[i])
			sigaction(signal_at(i), &sa, NULL);
	}
}

static void uninstall(void)
{
	for (size_t i = 0; i < NSIGNALS; i++) {
		struct sigaction now;

		sigaction(signal_at(i), NULL, &now);
		if (taken.ours[i] && (now.sa_flags & SA_SIGINFO) &&
		    (now.sa_sigaction == on_fatal || now.sa_sigaction == on_job))
			sigaction(signal_at(i), &taken.old[i], NULL);
	}
}

int terminal_take(int fd, struct event *wake, struct err *err)
{
	if (atomic_load(&taken.active))
		return err_set(err, EBUSY, "the terminal is in use by another console already");
	if (tcgetattr(fd, &taken.saved))
		return err_set_sys(err, errno, "cannot read the terminal's modes");
	taken.raw = taken.saved;
	cfmakeraw(&taken.raw);
	taken.raw.c_oflag = taken.saved.c_oflag;
	taken.fd = fd;
	taken.group = getpgrp();
	taken.wake = wake;
	if (!taken.at_exit)
		taken.at_exit = !atexit(terminal_restore);
	install();
	atomic_store(&taken.resized, true);
	atomic_store(&taken.active, true);
	set(&taken.raw);
	return 0;
}

void terminal_release(void)
{
	if (!atomic_load(&taken.active))
		return;
	uninstall();
	terminal_restore();
	atomic_store(&taken.active, false);
}
