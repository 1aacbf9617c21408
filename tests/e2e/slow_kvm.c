/*
 * slow_kvm.c - put a process aside whenever it has looked at the guest's clock
 *
 * Linked with coracle and --wrap=ioctl. The host's scheduler does it, too, but not when a test asks: after each
 * KVM_GET_CLOCK and KVM_SET_CLOCK CORACLE_SLOW_KVM milliseconds pass. Twice each at most, since callers try
 * again.
 */
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long ms;
static int gets, sets;

__attribute__((constructor)) static void begin(void)
{
	const char *text = getenv("CORACLE_SLOW_KVM");

	ms = text ? strtol(text, NULL, 10) : 0;
}

int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };
	va_list ap;

	va_start(ap, request);
	int rc = (int)syscall(SYS_ioctl, fd, request, va_arg(ap, void *));

	va_end(ap);
	if ((request == KVM_GET_CLOCK && gets++ < 2) || (request == KVM_SET_CLOCK && sets++ < 2))
		nanosleep(&t, NULL);
	return rc;
}
