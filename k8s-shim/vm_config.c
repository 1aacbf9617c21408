/*
 * vm_config.c - writing vm.json
 *
 * What a machine gets is what the pod asks for, exactly: a limit that is more than the node allows is
 * refused, not cut, so nobody runs with less than was scheduled. CPU limits may be fractions; a machine
 * has whole processors, so they are rounded up, and the pod's own group holds them to the limit.
 */
#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/machine.h"
#include "k8s-shim/vm_config.h"

#define PAGE       4096
#define MEMORY_MIN (2u << 20) /* of coracle run */

uint64_t vm_config_round_cpus(uint64_t quota, uint64_t period)
{
	return quota / period + !!(quota % period);
}

int vm_config_cpus(const struct bundle *b, const struct node_config *c, unsigned *out,
		   struct err *err)
{
	uint64_t n = c->cpus;

	if (b->cpu_quota > 0 && b->cpu_period)
		n = vm_config_round_cpus((uint64_t)b->cpu_quota, b->cpu_period);
	if (n > c->cpus_max)
		return err_set(
			err, EINVAL,
			"the CPU limit comes to %llu vCPUs, this node allows %u (\"cpus-max\")",
			(unsigned long long)n, c->cpus_max);
	*out = (unsigned)n;
	return 0;
}

int vm_config_memory(const struct bundle *b, const struct node_config *c, uint64_t *out,
		     struct err *err)
{
	uint64_t n = b->memory ? b->memory : c->memory;

	if (n > c->memory_max)
		return err_set(err, EINVAL,
			       "the memory limit of %llu bytes is over what this node allows, %llu "
			       "(\"memory-max\")",
			       (unsigned long long)n, (unsigned long long)c->memory_max);
	if (n < MEMORY_MIN)
		return err_set(err, EINVAL,
			       "the memory limit of %llu bytes is guest RAM, and a machine has at "
			       "least 2 MiB (a Linux guest wants 64 MiB or more)",
			       (unsigned long long)n);
	*out = n / PAGE * PAGE;
	return 0;
}

int vm_config_console(const struct bundle *b, const struct node_config *c, bool *virtio,
		      struct err *err)
{
	const char *of_pod = pod_annotation(b, c, "console", err);
	const char *word = of_pod ? of_pod : c->console ? c->console : "serial";

	if (err->code)
		return err->code;
	*virtio = !strcmp(word, "virtio");
	if (*virtio || !strcmp(word, "serial"))
		return 0;
	return err_set(err, EINVAL, "%s: \"%.40s\" is neither serial nor virtio",
		       of_pod ? "annotation " ANNOTATION "console" :
				"\"console\" in this node's coracle.json",
		       word);
}

void vm_config_name(const struct bundle *b, const char *id, char out[64])
{
	const char *pod = bundle_annotation(b, "io.kubernetes.cri.sandbox-name");

	if (pod && *pod)
		snprintf(out, 64, "%.50s-%.8s", pod, id);
	else
		snprintf(out, 64, "%.60s", id);
	for (char *s = out; *s; s++)
		if (!isalnum((unsigned char)*s) && !strchr("._-", *s))
			*s = '_';
	if (!isalnum((unsigned char)*out))
		*out = 'p';
}

static void add_text(struct json_object *o, const char *key, const char *text)
{
	if (text)
		json_object_object_add(o, key, json_object_new_string(text));
}

static void add_fd_path(struct json_object *o, const char *key, int fd)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	add_text(o, key, path);
}

/*
 * The node's words, then the pod's. A console that the pod sees becomes the kernel's as well, unless the
 * pod says otherwise: the last one counts. NULL: out of memory.
 */
static char *command_line(const struct node_config *c, bool virtio, const char *more)
{
	const char *const words[] = { c->cmdline, virtio ? "console=hvc0" : "", more ? more : "" };
	char *line = NULL;
	size_t len;
	FILE *f = open_memstream(&line, &len);

	for (size_t i = 0; f && i < sizeof(words) / sizeof(words[0]); i++)
		if (*words[i])
			fprintf(f, "%s%s", ftell(f) ? " " : "", words[i]);
	if (f && fclose(f))
		ptr_free(&line);
	return line;
}

static int add_kernel(struct json_object *o, const struct bundle *b, const struct node_config *c,
		      const struct vm_kernel *k, struct err *err)
{
	const char *more = pod_annotation(b, c, "kernel-args", err);
	bool virtio = false;

	if (err->code || vm_config_console(b, c, &virtio, err))
		return err->code;
	cleanup_free char *cmdline = command_line(c, virtio, more);

	if (!cmdline)
		return err_set(err, ENOMEM, "out of memory");
	if (k->kernel >= 0) {
		add_fd_path(o, "kernel", k->kernel);
		if (k->initrd >= 0)
			add_fd_path(o, "initrd", k->initrd);
	} else if (c->kernel) {
		add_text(o, "kernel", c->kernel);
		add_text(o, "initrd", c->initrd);
	} else {
		return err_set(err, EINVAL,
			       "no kernel: the image has no /boot/vmlinuz and this node's "
			       "configuration names none (\"kernel\")");
	}
	add_text(o, "cmdline", cmdline);
	return 0;
}

static void add_disks(struct json_object *o, const struct disks *d)
{
	struct json_object *list = json_object_new_array();

	for (unsigned i = 0; i < d->count; i++) {
		const struct disk *disk = &d->list[i];
		struct json_object *one = json_object_new_object();

		add_text(one, "path", disk->path);
		add_text(one, "id", disk->name);
		if (disk->has_serial)
			add_text(one, "serial", disk->name);
		json_object_object_add(one, "read-only", json_object_new_boolean(disk->read_only));
		json_object_object_add(one, "direct", json_object_new_boolean(disk->direct));
		json_object_array_add(list, one);
	}
	json_object_object_add(o, "disk", list);
}

/* "7:8:9", one a pair of queues. */
static void add_taps(struct json_object *o, const struct pod_nic *nic)
{
	char text[POD_QUEUES_MAX * 12] = "";
	size_t at = 0;

	for (unsigned i = 0; i < nic->ntaps; i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%d", i ? ":" : "",
				       nic->taps[i]);
	add_text(o, "fd", text);
}

static void add_nics(struct json_object *o, const struct pod_net *net, const char *vhost)
{
	struct json_object *list = json_object_new_array();

	for (unsigned i = 0; net && i < pod_net_count(net); i++) {
		const struct pod_nic *nic = pod_net_nic(net, i);
		struct json_object *one = json_object_new_object();
		char mac[18];

		snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", nic->mac[0],
			 nic->mac[1], nic->mac[2], nic->mac[3], nic->mac[4], nic->mac[5]);
		add_taps(one, nic);
		add_text(one, "vhost", vhost);
		add_text(one, "id", nic->name);
		add_text(one, "mac", mac);
		json_object_object_add(one, "mtu", json_object_new_int((int)nic->mtu));
		json_object_array_add(list, one);
	}
	json_object_object_add(o, "net", list);
}

static int add_machine(struct json_object *o, const char *state_dir, const char *id,
		       const struct bundle *b, const struct node_config *c, struct err *err)
{
	cleanup_free char *serial = NULL, *console = NULL, *control = NULL;
	bool virtio = false;
	unsigned cpus = 0;
	uint64_t memory = 0;
	char name[64];
	int rc = vm_config_cpus(b, c, &cpus, err);

	if (!rc)
		rc = vm_config_memory(b, c, &memory, err);
	if (!rc)
		rc = vm_config_console(b, c, &virtio, err);
	if (rc)
		return rc;
	if (asprintf(&serial, "unix:%s/" MACHINE_SERIAL, state_dir) < 0)
		serial = NULL;
	if (asprintf(&console, "unix:%s/" MACHINE_CONSOLE, state_dir) < 0)
		console = NULL;
	if (asprintf(&control, "%s/" MACHINE_CONTROL, state_dir) < 0)
		control = NULL;
	if (!serial || !console || !control)
		return err_set(err, ENOMEM, "out of memory");
	vm_config_name(b, id, name);
	add_text(o, "id", name);
	add_text(o, "serial", serial);
	if (virtio)
		add_text(o, "console", console);
	add_text(o, "control", control);
	add_text(o, "transport", c->transport);
	add_text(o, "log-level", c->log_level);
	json_object_object_add(o, "cpus", json_object_new_int((int)cpus));
	json_object_object_add(o, "memory", json_object_new_int64((int64_t)memory));
	json_object_object_add(o, "paused", json_object_new_boolean(1));
	return 0;
}

static int write_file(const char *state_dir, struct json_object *o, struct err *err)
{
	const char *text = json_object_to_json_string_ext(
		o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);
	cleanup_free char *path = NULL;

	if (asprintf(&path, "%s/" MACHINE_CONFIG, state_dir) < 0)
		path = NULL;
	if (!path || !text)
		return err_set(err, ENOMEM, "out of memory");
	cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int rc = fd < 0 ? -errno : fd_write_all(fd, text, strlen(text));

	return rc ? err_set_sys(err, rc, "cannot write %s", path) : 0;
}

int vm_config_write(const char *state_dir, const char *id, const struct bundle *b,
		    const struct node_config *c, const struct disks *d, const struct pod_net *net,
		    const struct vm_kernel *k, struct err *err)
{
	struct json_object *o = json_object_new_object();

	if (!o)
		return err_set(err, ENOMEM, "out of memory");
	int rc = add_kernel(o, b, c, k, err);

	if (!rc)
		rc = add_machine(o, state_dir, id, b, c, err);
	if (!rc) {
		add_disks(o, d);
		add_nics(o, net, c->vhost);
		rc = write_file(state_dir, o, err);
	}
	json_object_put(o);
	return rc;
}
