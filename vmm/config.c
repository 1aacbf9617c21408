/*
 * config.c - a configuration's life: defaults, ids, the checks between keys, its end
 *
 * Everything walks the table of config_keys.c, so a new key needs no line here unless it conflicts
 * with another one.
 */
#include "vmm/config_keys.h"

#include <stdlib.h>
#include <string.h>

#include "devices/pci.h"

void config_group_init(const struct config_key *table, void *base)
{
	for (const struct config_key *k = table; k->name; k++) {
		struct err err = { 0 };

		if (k->type == KEY_GROUP && !k->count_max)
			config_group_init(k->sub, (char *)base + k->offset);
		else if (k->type == KEY_ADDR && !k->def)
			*(uint64_t *)((char *)base + k->offset) = CONFIG_LOAD_ADDRESS_AUTO;
		else if (k->def)
			BUG_ON(config_value_set(k, base, k->def, &err) == -EINVAL);
	}
}

void config_init(struct config *c)
{
	memset(c, 0, sizeof(*c));
	config_group_init(config_keys, c);
}

static void group_fini(const struct config_key *table, void *base)
{
	for (const struct config_key *k = table; k->name; k++) {
		void *at = (char *)base + k->offset;
		unsigned n = 0;

		if (key_is_list(k))
			memcpy(&n, (char *)base + k->count_offset, sizeof(n));
		else if (k->type == KEY_GROUP)
			n = 1;
		for (unsigned i = 0; i < n; i++)
			group_fini(k->sub, (char *)at + i * k->stride);
		if (k->type == KEY_STRING || k->type == KEY_FILE)
			free(*(char **)at);
	}
}

void config_fini(struct config *c)
{
	group_fini(config_keys, c);
	memset(c, 0, sizeof(*c));
}

void *config_list_add(const struct config_key *k, struct config *c, struct err *err)
{
	unsigned *n = (unsigned *)((char *)c + k->count_offset);
	void *at;

	if (*n >= k->count_max) {
		err_set(err, EINVAL, "at most %u are possible", k->count_max);
		return NULL;
	}
	at = (char *)c + k->offset + *n * k->stride;
	memset(at, 0, k->stride);
	config_group_init(k->sub, at);
	(*n)++;
	return at;
}

uint64_t config_load_address(const struct config *c)
{
	if (c->load_address != CONFIG_LOAD_ADDRESS_AUTO)
		return c->load_address;
	return c->kernel_type == CONFIG_KERNEL_FLAT16 ? 0x7c00 : 0x100000;
}

static int default_id(char **id, const char *kind, unsigned i, struct err *err)
{
	if (*id || asprintf(id, "%s%u", kind, i) >= 0)
		return 0;
	*id = NULL;
	return err_set(err, ENOMEM, "out of memory");
}

int config_finish(struct config *c, struct err *err)
{
	int r = 0;

	for (unsigned i = 0; i < c->ndisks && !r; i++)
		r = default_id(&c->disks[i].id, "disk", i, err);
	for (unsigned i = 0; i < c->nnets && !r; i++)
		r = default_id(&c->nets[i].id, "net", i, err);
	for (unsigned i = 0; i < c->nnets; i++)
		if (c->nets[i].fd.count && c->nets[i].queues == 1)
			c->nets[i].queues = c->nets[i].fd.count;
	return r;
}

static bool is_flat(enum config_kernel_type t)
{
	return t == CONFIG_KERNEL_FLAT16 || t == CONFIG_KERNEL_FLAT32 || t == CONFIG_KERNEL_FLAT64;
}

static int check_kernel(const struct config *c, struct err *err)
{
	if (!c->kernel)
		return err_set(err, EINVAL, "no kernel to start: give --kernel FILE");
	if (!is_flat(c->kernel_type)) {
		if (c->load_address == CONFIG_LOAD_ADDRESS_AUTO)
			return 0;
		return err_set(
			err, EINVAL,
			"--load-address is for flat images: add --kernel-type flat16, flat32 or "
			"flat64, or leave it out");
	}
	if (c->initrd)
		return err_set(err, EINVAL, "--initrd: a flat image takes none, leave it out");
	if (c->cmdline && *c->cmdline)
		return err_set(err, EINVAL, "--cmdline: a flat image takes none, leave it out");
	if (c->kernel_type == CONFIG_KERNEL_FLAT16 && config_load_address(c) >= 0x100000)
		return err_set(
			err, EINVAL,
			"--load-address %#llx: real mode (--kernel-type flat16) reaches only "
			"addresses below 0x100000",
			(unsigned long long)config_load_address(c));
	if (config_load_address(c) >= c->memory)
		return err_set(err, EINVAL,
			       "--load-address %#llx is past the end of --memory (%llu bytes)",
			       (unsigned long long)config_load_address(c),
			       (unsigned long long)c->memory);
	return 0;
}

static int check_memory(const struct config *c, struct err *err)
{
	bool huge = c->hugepages == GMEM_PAGES_HUGE;

	if (c->memory % 4096)
		return err_set(err, EINVAL, "--memory: %llu bytes is not a multiple of 4K",
			       (unsigned long long)c->memory);
	if (huge && c->memory % (2ull << 20))
		return err_set(
			err, EINVAL,
			"--memory: %llu bytes is not a multiple of 2M as --hugepages 2M needs",
			(unsigned long long)c->memory);
	return 0;
}

/* Disks and NICs share one space of names: the control socket names devices by id. */
static const char *device_id(const struct config *c, unsigned i)
{
	return i < c->ndisks ? c->disks[i].id : c->nets[i - c->ndisks].id;
}

static int check_ids(const struct config *c, struct err *err)
{
	unsigned n = c->ndisks + c->nnets;

	for (unsigned i = 0; i < n; i++)
		for (unsigned j = 0; j < i; j++)
			if (!strcmp(device_id(c, i), device_id(c, j)))
				return err_set(
					err, EINVAL,
					"--%s: the id %s is used twice: give each disk and net "
					"its own with id=NAME",
					i < c->ndisks ? "disk" : "net", device_id(c, i));
	return 0;
}

static int check_disks(const struct config *c, struct err *err)
{
	for (unsigned i = 0; i < c->ndisks; i++) {
		const struct config_disk *d = &c->disks[i];

		if (!d->path)
			return err_set(err, EINVAL, "--disk: %s has no path: add path=FILE", d->id);
		for (unsigned j = 0; j < i; j++)
			if (!strcmp(d->path, c->disks[j].path) &&
			    !(d->read_only && c->disks[j].read_only))
				return err_set(
					err, EINVAL,
					"--disk: %s is given twice, as %s and %s: leave one out "
					"or make both read-only=on",
					d->path, c->disks[j].id, d->id);
	}
	return 0;
}

static int check_net(const struct config_net *n, struct err *err)
{
	if (!n->tap && !n->fd.count)
		return err_set(err, EINVAL, "--net: %s has no host side: add tap=NAME or fd=N",
			       n->id);
	if (n->tap && n->fd.count)
		return err_set(err, EINVAL, "--net: %s has both tap=%s and fd=%d: leave one out",
			       n->id, n->tap, n->fd.fd[0]);
	if (n->fd.count && n->fd.count != n->queues)
		return err_set(
			err, EINVAL,
			"--net: %s: fd has %u of the %u descriptors that queues=%u takes: one "
			"a pair, as fd=5:6",
			n->id, n->fd.count, n->queues, n->queues);
	if (n->vhostfd.count && n->vhost == CONFIG_VHOST_OFF)
		return err_set(err, EINVAL,
			       "--net: %s has both vhost=off and vhostfd=%d: leave one out", n->id,
			       n->vhostfd.fd[0]);
	if (n->vhostfd.count && n->vhostfd.count != n->queues)
		return err_set(err, EINVAL,
			       "--net: %s: vhostfd has %u of the %u descriptors that its pairs of "
			       "queues take: one a pair, as vhostfd=7:8",
			       n->id, n->vhostfd.count, n->queues);
	return 0;
}

/* Every descriptor of a NIC: of taps, then of vhost-net. -1: no more. */
static int descriptor(const struct config_net *n, unsigned at)
{
	unsigned more = at - n->fd.count;

	if (at < n->fd.count)
		return n->fd.fd[at];
	return more < n->vhostfd.count ? n->vhostfd.fd[more] : -1;
}

/* No descriptor is given twice, in NIC @i or before. */
static int check_fds(const struct config *c, unsigned i, struct err *err)
{
	const struct config_net *n = &c->nets[i];
	int fd, other;

	for (unsigned at = 0; (fd = descriptor(n, at)) >= 0; at++)
		for (unsigned j = 0; j <= i; j++)
			for (unsigned k = 0; (other = descriptor(&c->nets[j], k)) >= 0; k++)
				if (fd == other && (j < i || k < at))
					return err_set(err, EINVAL,
						       "--net: %s and %s have the same fd %d: "
						       "change one",
						       c->nets[j].id, n->id, fd);
	return 0;
}

static int check_nets(const struct config *c, struct err *err)
{
	for (unsigned i = 0; i < c->nnets; i++) {
		const struct config_net *n = &c->nets[i];
		int r = check_net(n, err);

		if (r)
			return r;
		for (unsigned j = 0; j < i; j++) {
			const struct config_net *o = &c->nets[j];

			/* Whoever hands over descriptors may have links that are so: ipvlan. */
			if (n->mac.set && o->mac.set && (n->tap || o->tap) &&
			    !memcmp(n->mac.addr, o->mac.addr, 6))
				return err_set(
					err, EINVAL,
					"--net: %s and %s have the same MAC address: change one",
					o->id, n->id);
			if (n->tap && o->tap && !strcmp(n->tap, o->tap))
				return err_set(err, EINVAL,
					       "--net: %s and %s have the same tap %s: change one",
					       o->id, n->id, n->tap);
		}
		r = check_fds(c, i, err);
		if (r)
			return r;
	}
	return 0;
}

/* Both would read what is typed, or write over each other. */
static int check_consoles(const struct config *c, struct err *err)
{
	if (!c->console || strcmp(c->console, c->serial) || !strcmp(c->console, "null") ||
	    !strcmp(c->console, "pty"))
		return 0;
	return err_set(err, EINVAL,
		       "--console %s: the serial port is there: give another --serial, such as "
		       "--serial null",
		       c->console);
}

static int check_machine(const struct config *c, struct err *err)
{
	unsigned devices = c->ndisks + c->nnets + c->rng.enabled + !!c->console;

	if (devices > PCI_DEVICES_MAX - 1)
		return err_set(
			err, EINVAL,
			"%u devices are too many, at most %u fit on the bus: leave some --disk "
			"or --net out",
			devices, PCI_DEVICES_MAX - 1);
	if (c->paused && !c->control && !c->id)
		return err_set(
			err, EINVAL,
			"--paused: nothing could resume the machine: add --control PATH or --id "
			"NAME");
	return 0;
}

int config_check(const struct config *c, struct err *err)
{
	static int (*const checks[])(const struct config *c, struct err *err) = {
		check_kernel, check_memory,   check_ids,     check_disks,
		check_nets,   check_consoles, check_machine,
	};

	for (unsigned i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
		int r = checks[i](c, err);

		if (r)
			return r;
	}
	return 0;
}
