/*
 * copy.c - the least two processes can do to move memory by TCP: what no migration can beat
 *
 *	copy MIB CONNECTIONS	print MiB a second
 *	copy touch MIB		touch as much memory, and end
 *
 * One process writes its memory to so many sockets at once, in large pieces, from where it is; the other
 * reads it to where it belongs, in memory it has not touched before. Both have huge pages, as guest RAM
 * has. There are no lists of what comes, no look for zeroes and nothing that is checked. iperf3 is no
 * floor: it sends and takes the same few bytes again and again, which are in a cache.
 *
 * "touch" is for hosts that are guests themselves. What is free there may have no memory behind it, and
 * to get it from the host below takes many times longer than to move it. After a touch it is there, for
 * the seconds until it is given back.
 */
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE  4096
#define HUGE  ((size_t)2 << 20)
#define PIECE ((size_t)1 << 20)
#define WAKE  ((size_t)256 << 10)
#define MAX   16

struct share {
	int fd;
	char *at;
	size_t len;
	ssize_t (*move)(struct share *s, size_t len);
	pthread_t thread;
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static char *memory(size_t size)
{
	char *p = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		fail("memory");
	p += HUGE - (size_t)p % HUGE;
	madvise(p, size, MADV_HUGEPAGE);
	return p;
}

static void touch(char *p, size_t size)
{
	for (size_t i = 0; i < size; i += PAGE)
		p[i] = 1;
}

static ssize_t put(struct share *s, size_t len)
{
	return write(s->fd, s->at, len);
}

/* To be woken for every packet costs both ends: wait until there is a good part. */
static ssize_t get(struct share *s, size_t len)
{
	struct pollfd p = { .fd = s->fd, .events = POLLIN };
	int low = len < WAKE ? (int)len : (int)WAKE;

	if (setsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low)) || poll(&p, 1, -1) < 0)
		fail("waiting");
	return recv(s->fd, s->at, len, MSG_DONTWAIT);
}

static void *run(void *arg)
{
	struct share *s = arg;

	while (s->len) {
		ssize_t n = s->move(s, s->len < PIECE ? s->len : PIECE);

		if (n <= 0)
			fail("socket");
		s->at += n;
		s->len -= (size_t)n;
	}
	return NULL;
}

/* All of it, by as many threads as there are sockets. */
static void move(char *p, size_t size, const int *fds, unsigned n,
		 ssize_t (*how)(struct share *s, size_t len))
{
	struct share s[MAX];

	for (unsigned i = 0; i < n; i++) {
		s[i] = (struct share){ fds[i], p + size / n * i, size / n, how, 0 };
		if (pthread_create(&s[i].thread, NULL, run, &s[i]))
			fail("thread");
	}
	for (unsigned i = 0; i < n; i++)
		pthread_join(s[i].thread, NULL);
}

static void join_ends(int *ours, int *theirs, unsigned n)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM, 0);

	if (l < 0 || bind(l, (struct sockaddr *)&a, len) || listen(l, MAX) ||
	    getsockname(l, (struct sockaddr *)&a, &len))
		fail("listen");
	for (unsigned i = 0; i < n; i++) {
		ours[i] = socket(AF_INET, SOCK_STREAM, 0);
		if (ours[i] < 0 || connect(ours[i], (struct sockaddr *)&a, len))
			fail("connect");
		theirs[i] = accept(l, NULL, NULL);
		if (theirs[i] < 0)
			fail("accept");
	}
	close(l);
}

/* A byte tells that all is there; giving the memory back is not part of it. */
static void receive(size_t size, const int *fds, unsigned n, int done)
{
	move(memory(size), size, fds, n, get);
	if (write(done, "", 1) != 1)
		fail("pipe");
	_exit(0);
}

static void measure(size_t size, unsigned n)
{
	int ours[MAX], theirs[MAX], done[2];
	char byte, *from = memory(size);

	touch(from, size);
	join_ends(ours, theirs, n);
	if (pipe(done))
		fail("pipe");
	double start = now();
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	if (!pid)
		receive(size, theirs, n, done[1]);
	close(done[1]);
	move(from, size, ours, n, put);
	if (read(done[0], &byte, 1) != 1) {
		fprintf(stderr, "copy: the receiver has failed\n");
		exit(1);
	}
	printf("%.0f\n", (double)(size >> 20) / (now() - start));
}

int main(int argc, char **argv)
{
	bool warm = argc == 3 && !strcmp(argv[1], "touch");
	size_t mib = argc == 3 ? strtoul(argv[1 + warm], NULL, 10) : 0;
	unsigned n = argc == 3 && !warm ? (unsigned)strtoul(argv[2], NULL, 10) : 1;

	if (!mib || !n || n > MAX) {
		fprintf(stderr, "usage: copy MIB CONNECTIONS(1-%d) | copy touch MIB\n", MAX);
		return 1;
	}
	if (warm)
		touch(memory(mib << 20), mib << 20);
	else
		measure(mib << 20, n);
	return 0;
}
