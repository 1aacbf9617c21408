/*
 * resolv.c - resolv.conf(5), of which the guest is told what DHCP can say
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/resolv.h"

#define BYTES_MAX 65536

static void add(char **list, const char *word)
{
	for (unsigned i = 0; i < RESOLV_MAX; i++)
		if (!list[i]) {
			list[i] = strdup(word);
			return;
		}
}

static void clear(char **list)
{
	for (unsigned i = 0; list[i]; i++)
		ptr_free(&list[i]);
}

static void take_line(struct resolv *r, char *line)
{
	char *save, *word = strtok_r(line, " \t\r", &save), **list = NULL;

	if (!word || *word == '#' || *word == ';')
		return;
	if (!strcmp(word, "nameserver"))
		list = r->servers;
	if (!strcmp(word, "search") || !strcmp(word, "domain")) {
		list = r->search;
		clear(list); /* the last one counts */
	}
	while (list && (word = strtok_r(NULL, " \t\r", &save))) {
		add(list, word);
		if (list == r->servers)
			return;
	}
}

void resolv_parse(struct resolv *r, const char *text, size_t len)
{
	cleanup_free char *copy = strndup(text, len);
	char *save;

	memset(r, 0, sizeof(*r));
	for (char *line = copy ? strtok_r(copy, "\n", &save) : NULL; line;
	     line = strtok_r(NULL, "\n", &save))
		take_line(r, line);
}

void resolv_read(struct resolv *r, const char *path)
{
	cleanup_fd int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
	cleanup_free char *text = fd < 0 ? NULL : malloc(BYTES_MAX);
	ssize_t n = text ? read(fd, text, BYTES_MAX) : 0;

	resolv_parse(r, text ? text : "", n > 0 ? (size_t)n : 0);
}

void resolv_fini(struct resolv *r)
{
	clear(r->servers);
	clear(r->search);
}
