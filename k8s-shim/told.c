/*
 * told.c - what guests are told beyond their addresses
 *
 * These strings come from the pod's spec and end in packets and in YAML, so only what can be a
 * name passes. A wrong one is no reason to keep the pod from starting: an ordinary container
 * would start, too.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <string.h>

#include "base/log.h"
#include "k8s-shim/told.h"

size_t told_dns_name(const char *name, uint8_t *out, size_t room)
{
	size_t len = 0;

	while (*name) {
		size_t label = strcspn(name, ".");

		if (!label || label > 63 || len + 1 + label + 1 > room ||
		    len + 1 + label + 1 > TOLD_NAME_MAX + 2)
			return 0;
		for (size_t i = 0; i < label; i++)
			if (!isalnum((unsigned char)name[i]) && name[i] != '-' && name[i] != '_')
				return 0;
		out[len] = (uint8_t)label;
		memcpy(out + len + 1, name, label);
		len += 1 + label;
		name += label;
		if (*name)
			name++; /* a dot at the end is fine */
	}
	if (!len)
		return 0;
	out[len] = 0;
	return len + 1;
}

static bool is_name(const char *name)
{
	uint8_t wire[TOLD_NAME_MAX + 2];

	return strlen(name) <= TOLD_NAME_MAX && told_dns_name(name, wire, sizeof(wire));
}

static bool parse_addr(const char *text, struct pod_addr *a)
{
	if (inet_pton(AF_INET, text, a->addr) == 1)
		*a = (struct pod_addr){ .family = AF_INET, .prefix = 32 };
	else if (inet_pton(AF_INET6, text, a->addr) == 1)
		*a = (struct pod_addr){ .family = AF_INET6, .prefix = 128 };
	else
		return false;
	return inet_pton(a->family, text, a->addr) == 1;
}

void told_init(struct told *t, const struct pod_net_options *o)
{
	memset(t, 0, sizeof(*t));
	if (o->hostname && is_name(o->hostname))
		strcpy(t->hostname, o->hostname);
	else if (o->hostname && *o->hostname)
		log_warn("host name \"%.80s\" is no name: guests are not told it", o->hostname);
	for (const char *const *d = o->dns; d && *d; d++) {
		if (t->ndns == TOLD_DNS_MAX)
			log_warn("name server %.80s: guests are told %d at most", *d, TOLD_DNS_MAX);
		else if (parse_addr(*d, &t->dns[t->ndns]))
			t->ndns++;
		else
			log_warn("name server \"%.80s\" is no address: guests are not told it", *d);
	}
	for (const char *const *s = o->search; s && *s; s++) {
		if (t->nsearch == TOLD_SEARCH_MAX)
			log_warn("search domain %.80s: guests are told %d at most", *s,
				 TOLD_SEARCH_MAX);
		else if (is_name(*s))
			strcpy(t->search[t->nsearch++], *s);
		else if (strcmp(*s, ".")) /* the root, which is always searched */
			log_warn("search domain \"%.80s\" is no name: guests are not told it", *s);
	}
}
