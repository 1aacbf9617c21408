/*
 * machine.c - starting the VMM, and hearing from it
 *
 * The VMM is the shim's child and dies with it (PR_SET_PDEATHSIG): a shim that was killed cannot tell
 * containerd of the machine any more, and a machine nobody knows of would hold its disk for ever.
 *
 * Its control socket appears some time after it was started. It is tried for with a timer until it is
 * there; if it never is, the process has ended, which is noticed as always.
 *
 * What it writes to standard error goes to the shim's log, and its last line is why it ended.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/machine.h"

#define MSEC      UINT64_C(1000000)
#define RETRY_MAX (20 * MSEC)
#define SAID_MAX  1024

struct machine {
	struct loop *loop;
	pid_t pid;                                       /* 0: reaped */
	char *control_path, *serial_path, *console_path; /* the last one NULL: it has none */
	struct loop_timer retry;
	uint64_t retry_ns;
	struct control_client *control;
	struct io *io;
	machine_ready *ready;
	void *opaque;

	int said_fd; /* its standard error */
	struct loop_watch said_watch;
	char said[SAID_MAX]; /* the line that is being read */
	size_t said_len;
	char reason[SAID_MAX]; /* the last one that was an error, or any */
	bool reason_is_error;
	struct log_limit io_errors;
};

/* ---- what it says ---- */

static void said_line(struct machine *m)
{
	char *line = m->said;
	bool error;

	m->said[m->said_len] = '\0';
	m->said_len = 0;
	if (!*line)
		return;
	log_info("[%d] %s", (int)m->pid, line);
	error = strstr(line, "error: ") || !strncmp(line, "coracle run: ", 13);
	for (const char *const *p =
		     (const char *const[]){ "coracle run: ", "coracle: ", "error: ", NULL };
	     *p; p++)
		if (!strncmp(line, *p, strlen(*p)))
			line += strlen(*p);
	if (!error && m->reason_is_error)
		return;
	snprintf(m->reason, sizeof(m->reason), "%s", line);
	m->reason_is_error = error;
}

static bool read_said(struct machine *m)
{
	char bytes[4096];
	ssize_t n = read(m->said_fd, bytes, sizeof(bytes));

	for (ssize_t i = 0; i < n; i++) {
		if (bytes[i] == '\n' || m->said_len == SAID_MAX - 1)
			said_line(m);
		if (bytes[i] != '\n')
			m->said[m->said_len++] = bytes[i];
	}
	return n > 0 || (n < 0 && errno == EINTR);
}

static void on_said(struct loop_watch *w, uint32_t events)
{
	struct machine *m = (struct machine *)((char *)w - offsetof(struct machine, said_watch));

	if (!read_said(m) && errno != EAGAIN)
		loop_remove(w);
}

static void on_event(void *opaque, const char *method, struct json_object *params)
{
	struct machine *m = opaque;

	if (!strcmp(method, "reset"))
		io_restarted(m->io);
	else if (!strcmp(method, "io-error"))
		log_guest(&m->io_errors, "[%d] io-error: %s", (int)m->pid,
			  json_object_to_json_string_ext(params, JSON_C_TO_STRING_PLAIN));
	else if (!strcmp(method, "shutdown"))
		log_info("[%d] shutdown: %s", (int)m->pid,
			 json_object_to_json_string_ext(params, JSON_C_TO_STRING_PLAIN));
}

/* ---- connecting ---- */

static int connect_unix(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	if (strlen(path) >= sizeof(a.sun_path))
		return -ENAMETOOLONG;
	strcpy(a.sun_path, path);
	return connect(fd, (struct sockaddr *)&a, sizeof(a)) ? -errno : fd_steal(&fd);
}

static void tell_ready(struct machine *m, const struct err *err)
{
	machine_ready *ready = m->ready;

	m->ready = NULL;
	if (ready)
		ready(m->opaque, err);
}

static int attach(struct machine *m, const char *path, const char *what,
		  int (*to)(struct io *io, int fd, struct err *err), struct err *err)
{
	int fd = connect_unix(path);

	return fd < 0 ? err_set_sys(err, fd, "cannot connect to the machine's %s", what) :
			to(m->io, fd, err);
}

static int attach_lines(struct machine *m, struct err *err)
{
	if (!m->console_path)
		return attach(m, m->serial_path, "serial port", io_attach, err);
	int rc = attach(m, m->serial_path, "serial port", io_attach_early, err);

	return rc ? rc : attach(m, m->console_path, "console", io_attach, err);
}

/* The answer to the first question: everything is open, also the serial port. */
static void on_first_answer(void *opaque, struct json_object *result, const struct err *err)
{
	struct machine *m = opaque;
	struct err why = *err;

	if (why.code == -ESHUTDOWN)
		return; /* machine_ended() knows the reason */
	if (result && !attach_lines(m, &why))
		why.code = 0;
	tell_ready(m, why.code ? &why : NULL);
}

static void try_connect(struct machine *m)
{
	struct err err = { 0 };
	int fd = connect_unix(m->control_path);

	if (fd < 0) { /* not there yet; if it never is, the process has ended */
		loop_timer_arm(&m->retry, m->retry_ns, 0);
		m->retry_ns = m->retry_ns * 2 > RETRY_MAX ? RETRY_MAX : m->retry_ns * 2;
		return;
	}
	m->control = control_client_new(fd, m->loop, on_event, m, &err);
	if (m->control)
		control_client_call(m->control, "info", NULL, on_first_answer, m);
	else
		tell_ready(m, &err);
}

static void on_retry(struct loop_timer *t)
{
	try_connect((struct machine *)((char *)t - offsetof(struct machine, retry)));
}

/* ---- the process ---- */

static _Noreturn void child_fails(const char *what, int error)
{
	dprintf(STDERR_FILENO, "coracle: error: %s: %s\n", what, strerror(error));
	_exit(1);
}

static void child_joins(const struct machine_options *o)
{
	struct err err = { 0 };

	if (cgroup_join(o->cgroup, &err)) {
		dprintf(STDERR_FILENO, "coracle: error: %s\n", err.msg);
		_exit(1);
	}
	if (o->oom_score) {
		int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

		/* It may be lower than what we may set; the kernel then leaves it. */
		if (fd >= 0)
			dprintf(fd, "%d", *o->oom_score);
	}
	if (o->netns) {
		int fd = open(o->netns, O_RDONLY | O_CLOEXEC);

		if (fd < 0 || setns(fd, CLONE_NEWNET))
			child_fails("cannot enter the pod's network namespace", errno);
	}
}

static _Noreturn void run_child(const struct machine_options *o, int said, const char *config)
{
	pid_t shim = getppid();
	sigset_t none;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	dup2(null, STDIN_FILENO);
	dup2(said, STDOUT_FILENO);
	dup2(said, STDERR_FILENO);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != shim)
		_exit(1);
	setsid();
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	child_joins(o);
	for (const int *fd = o->fds; *fd >= 0; fd++)
		if (fcntl(*fd, F_SETFD, 0))
			child_fails("cannot hand a descriptor on", errno);
	execl(o->vmm, "coracle", "run", "--config", config, (char *)NULL);
	child_fails(o->vmm, errno);
}

static int spawn(struct machine *m, const struct machine_options *o, struct err *err)
{
	cleanup_free char *config = NULL;
	int said[2];

	if (asprintf(&config, "%s/" MACHINE_CONFIG, o->state_dir) < 0) {
		config = NULL;
		return err_set(err, ENOMEM, "out of memory");
	}
	if (pipe2(said, O_CLOEXEC | O_NONBLOCK))
		return err_set_sys(err, errno, "cannot make a pipe");
	m->said_fd = said[0];
	cleanup_fd int other = said[1];
	int rc = loop_add(m->loop, &m->said_watch, m->said_fd, EPOLLIN, on_said);

	if (rc)
		return err_set_sys(err, rc, "cannot watch the machine");
	m->pid = fork();
	if (m->pid < 0) {
		m->pid = 0;
		return err_set_sys(err, errno, "cannot start a process");
	}
	if (m->pid == 0)
		run_child(o, other, config);
	return 0;
}

struct machine *machine_start(struct loop *loop, const struct machine_options *o,
			      machine_ready *ready, void *opaque, struct err *err)
{
	struct machine *m = calloc(1, sizeof(*m));

	if (!m) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	m->loop = loop;
	m->io = o->io;
	m->ready = ready;
	m->opaque = opaque;
	m->said_fd = m->said_watch.fd = m->retry.fd = -1;
	m->retry_ns = MSEC / 2;
	if (asprintf(&m->control_path, "%s/" MACHINE_CONTROL, o->state_dir) < 0)
		m->control_path = NULL;
	if (asprintf(&m->serial_path, "%s/" MACHINE_SERIAL, o->state_dir) < 0)
		m->serial_path = NULL;
	if (o->console && asprintf(&m->console_path, "%s/" MACHINE_CONSOLE, o->state_dir) < 0)
		m->console_path = NULL;
	int rc = m->control_path && m->serial_path && (!o->console || m->console_path) ?
			 0 :
			 err_set(err, ENOMEM, "out of memory");

	if (!rc)
		rc = loop_timer_init(loop, &m->retry, on_retry, err);
	if (!rc)
		rc = spawn(m, o, err);
	if (rc) {
		m->ready = NULL;
		machine_free(m);
		return NULL;
	}
	loop_timer_arm(&m->retry, m->retry_ns, 0);
	return m;
}

pid_t machine_pid(const struct machine *m)
{
	return m->pid;
}

void machine_call(struct machine *m, const char *method, const char *params, control_answer *fn,
		  void *opaque)
{
	struct err err = { 0 };

	if (m->control) {
		control_client_call(m->control, method, params, fn, opaque);
		return;
	}
	err_set(&err, EBUSY, "the machine has not started yet");
	fn(opaque, NULL, &err);
}

void machine_kill(struct machine *m)
{
	if (m->pid)
		kill(m->pid, SIGKILL);
}

const char *machine_reason(const struct machine *m)
{
	return m->reason;
}

static int exit_status(const struct machine *m, int wait_status)
{
	if (WIFSIGNALED(wait_status))
		return 128 + WTERMSIG(wait_status);
	return WEXITSTATUS(wait_status);
}

int machine_ended(struct machine *m, int wait_status)
{
	struct err err = { 0 };

	while (read_said(m))
		;
	if (m->said_len)
		said_line(m);
	m->pid = 0;
	loop_timer_disarm(&m->retry);
	control_client_end(m->control);
	io_detach(m->io);
	if (WIFSIGNALED(wait_status) && !m->reason_is_error)
		snprintf(m->reason, sizeof(m->reason),
			 "the machine's process was killed by signal %d", WTERMSIG(wait_status));
	err_set(&err, EIO, "%s", *m->reason ? m->reason : "the machine ended before it ran");
	tell_ready(m, &err);
	return exit_status(m, wait_status);
}

void machine_free(struct machine *m)
{
	if (!m)
		return;
	if (m->pid) {
		kill(m->pid, SIGKILL);
		waitpid(m->pid, NULL, 0);
	}
	if (m->retry.fd >= 0)
		loop_timer_fini(&m->retry);
	control_client_free(m->control);
	loop_remove(&m->said_watch);
	fd_close(&m->said_fd);
	free(m->control_path);
	free(m->serial_path);
	free(m->console_path);
	free(m);
}
