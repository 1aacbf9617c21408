/*
 * vm.c - assembling a machine, and taking it apart
 *
 * Order: what can be refused without having touched anything comes first (configuration, limits), then
 * what is cheap to undo (directory, mount), then the network, and the process last. The machine is
 * complete before its first instruction: CRI tells all of a container at once, and a guest that boots
 * with all its disks and NICs needs no hot plug.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "k8s-shim/disks.h"
#include "k8s-shim/forward.h"
#include "k8s-shim/json.h"
#include "k8s-shim/net.h"
#include "k8s-shim/nocloud.h"
#include "k8s-shim/node_config.h"
#include "k8s-shim/resolv.h"
#include "k8s-shim/rootfs.h"
#include "k8s-shim/state_dir.h"
#include "k8s-shim/vm.h"
#include "k8s-shim/vm_config.h"

#define FDS_MAX (DISKS_MAX + 2 + POD_NICS_MAX * POD_QUEUES_MAX)

struct vm {
	const struct bundle *bundle;
	const char *hostname; /* while it is assembled */
	struct node_config config;
	char *state_dir;
	bool mounted;
	struct disks disks;
	struct vm_kernel kernel;
	bool console;
	unsigned cpus;
	uint64_t memory;
	struct pod_net *net;
	struct forward *forward; /* NULL: kubectl port-forward is not for this one */
	struct io *io;
	struct machine *machine;
};

/* ---- the image ---- */

static int open_kernel(struct vm *v, int rootfs, struct err *err)
{
	struct stat st;

	if (rootfs < 0)
		return 0;
	v->kernel.kernel = open_inside(rootfs, "boot/vmlinuz", O_RDONLY | O_NONBLOCK);
	if (v->kernel.kernel < 0) {
		v->kernel.kernel = -1;
		return 0; /* the node's, then */
	}
	v->kernel.initrd = open_inside(rootfs, "boot/initrd.img", O_RDONLY | O_NONBLOCK);
	if (v->kernel.initrd < 0)
		v->kernel.initrd = -1;
	if (fstat(v->kernel.kernel, &st) || !S_ISREG(st.st_mode) ||
	    (v->kernel.initrd >= 0 && (fstat(v->kernel.initrd, &st) || !S_ISREG(st.st_mode))))
		return err_set(
			err, EINVAL,
			"the image's /boot/vmlinuz or /boot/initrd.img is not a regular file");
	return 0;
}

static int look_into_image(struct vm *v, const struct vm_options *o, struct err *err)
{
	const char *dir = v->bundle->path;
	cleanup_free char *path = NULL;
	int rc = rootfs_mount(dir, o->request->rootfs, o->request->n_rootfs, err);

	if (rc)
		return rc;
	v->mounted = true;
	if (asprintf(&path, "%s/rootfs", dir) < 0) {
		path = NULL;
		return err_set(err, ENOMEM, "out of memory");
	}
	cleanup_fd int rootfs = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	rc = open_kernel(v, rootfs, err);
	return rc ? rc : disks_find(&v->disks, v->bundle, &v->config, rootfs, v->state_dir, err);
}

/* ---- annotations ---- */

/* A word that means nothing is a mistake, or one of a newer version: not to be passed over in silence. */
static int check_annotations(struct vm *v, struct err *err)
{
	static const size_t n = sizeof(ANNOTATION) - 1;
	struct json_object *o = json_at(v->bundle->root, "annotations", NULL);

	if (!json_object_is_type(o, json_type_object))
		return 0;
	json_object_object_foreach (o, name, value) {
		(void)value;
		if (!strncmp(name, ANNOTATION, n) && !node_config_knows(name + n))
			return err_set(err, EINVAL,
				       "annotation %.80s: there is none of that name; see "
				       "coracle.json(5)",
				       name);
	}
	return 0;
}

/* ---- what the machine does not see ---- */

/* Mounts that every container has, and those that are read here. */
static bool expected(const struct vm *v, const char *at)
{
	static const char *const files[] = { "/etc/hosts", "/etc/hostname", "/etc/resolv.conf",
					     "/disk" };
	static const char *const dirs[] = { "/dev/", "/proc/", "/sys/", "/var/run/secrets/",
					    "/run/secrets/" };
	const char *from = bundle_annotation(v->bundle, ANNOTATION "cloud-init-from");

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		if (!strcmp(at, files[i]))
			return true;
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++)
		if (!strncmp(at, dirs[i], strlen(dirs[i])))
			return true;
	return from && !strcmp(at, from);
}

/* Volumes that a container would see. Some are put into every pod of a cluster, so they are no error. */
static void tell_of_mounts(struct vm *v)
{
	char line[512];
	size_t n = 0;

	for (unsigned i = 0; i < v->bundle->nmounts && n < sizeof(line) - 1; i++) {
		const struct bundle_mount *m = &v->bundle->mounts[i];

		if (*m->source != '/' || expected(v, m->destination))
			continue;
		n += (size_t)snprintf(
			line + n, sizeof(line) - n, "%s%s",
			n ? ", " : "coracle: not in the machine, which sees block devices only: ",
			m->destination);
	}
	if (n)
		io_note(v->io, line);
}

/* ---- the network ---- */

/* Where whoever looks after the pod reads it, and where whoever looks after the node does. */
static void tell_of_twins(struct vm *v)
{
	static const char prefix[] = "coracle: ";
	const struct pod_nic *twin = NULL;
	char line[256];
	unsigned i;

	for (i = 0; !twin && i < pod_net_count(v->net); i++)
		twin = pod_net_twin(v->net, i);
	if (!twin)
		return;
	snprintf(line, sizeof(line),
		 "%s%s and %s have the same MAC address, as ipvlan links on one parent have; "
		 "cloud-init cannot do with that and is told nothing of them: addresses come by "
		 "DHCP only",
		 prefix, pod_net_nic(v->net, i - 1)->name, twin->name);
	log_warn("%s", line + strlen(prefix));
	io_note(v->io, line);
}

/* The pod's first address, an IPv4 one if there is one. */
static bool find_address(const struct vm *v, struct sockaddr_storage *out)
{
	struct sockaddr_in *in4 = (struct sockaddr_in *)out;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;

	memset(out, 0, sizeof(*out));
	for (unsigned i = 0; i < pod_net_count(v->net); i++) {
		const struct pod_nic *nic = pod_net_nic(v->net, i);

		for (unsigned k = 0; k < nic->naddrs; k++) {
			const struct pod_addr *a = &nic->addrs[k];

			if (a->family == AF_INET) {
				in4->sin_family = AF_INET;
				memcpy(&in4->sin_addr, a->addr, sizeof(in4->sin_addr));
				return true;
			}
			if (a->family == AF_INET6 && !out->ss_family) {
				in6->sin6_family = AF_INET6;
				memcpy(&in6->sin6_addr, a->addr, sizeof(in6->sin6_addr));
			}
		}
	}
	return out->ss_family;
}

/* A node whose kernel has no such programs has everything but kubectl port-forward. */
static void open_forward(struct vm *v, struct loop *loop)
{
	struct sockaddr_storage to;
	struct err err = { 0 };

	if (!find_address(v, &to))
		return;
	v->forward = forward_open(loop, v->bundle->netns, &to, &err);
	if (!v->forward)
		log_warn("kubectl port-forward does not reach the machine: %s", err.msg);
}

static int open_net(struct vm *v, struct loop *loop, struct err *err)
{
	const struct bundle_mount *m = bundle_mount_at(v->bundle, "/etc/resolv.conf");
	struct pod_net_options o = { .netns = v->bundle->netns,
				     .hostname = v->hostname,
				     .queues = v->cpus };
	struct resolv r;

	if (!o.netns)
		return 0; /* not in a pod, and not asked for */
	resolv_read(&r, m ? m->source : NULL);
	o.dns = (const char *const *)r.servers;
	o.search = (const char *const *)r.search;
	int rc = pod_net_open(&o, loop, &v->net, err);

	resolv_fini(&r);
	if (rc)
		return err_prefix(err, "network");
	tell_of_twins(v);
	open_forward(v, loop);
	return 0;
}

/* ---- cloud-init ---- */

static int fill_nocloud(struct vm *v, const char *from, struct nocloud *n, struct err *err)
{
	const struct bundle_mount *m = bundle_mount_at(v->bundle, from);
	const char *uid = bundle_annotation(v->bundle, "io.kubernetes.cri.sandbox-uid");
	cleanup_free char *meta = NULL, *network = v->net ? pod_net_config(v->net) : NULL;

	if (!m || !*m->source)
		return err_set(err, EINVAL,
			       "annotation " ANNOTATION "cloud-init-from: nothing is mounted at %s",
			       from);
	if (!uid)
		uid = v->bundle->sandbox_id ? v->bundle->sandbox_id : "coracle";
	if (asprintf(&meta, "instance-id: %s\nlocal-hostname: %s\n", uid,
		     v->hostname ? v->hostname : "vm") < 0)
		meta = NULL;
	int rc = nocloud_read(n, m->source, err);

	if (rc)
		return err_prefix(err, "cloud-init data");
	if (!meta || (v->net && !network) || nocloud_default(n, NOCLOUD_META, meta) ||
	    nocloud_default(n, NOCLOUD_USER, "") ||
	    (v->net && pod_net_count(v->net) && nocloud_default(n, NOCLOUD_NETWORK, network))) {
		nocloud_fini(n);
		return err_set(err, ENOMEM, "out of memory");
	}
	return 0;
}

/* The annotation names a mount of the container's; what is in it becomes a small disk. */
static int add_cloud_init(struct vm *v, struct err *err)
{
	const char *from = pod_annotation(v->bundle, &v->config, "cloud-init-from", err);
	cleanup_free char *path = NULL;
	struct nocloud n = { 0 };

	if (!from)
		return err->code;
	if (asprintf(&path, "%s/cidata.iso", v->state_dir) < 0) {
		path = NULL;
		return err_set(err, ENOMEM, "out of memory");
	}
	int rc = fill_nocloud(v, from, &n, err);

	if (rc)
		return rc;
	cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	rc = fd < 0 ? err_set_sys(err, errno, "cannot make %s", path) : nocloud_write(&n, fd, err);
	nocloud_fini(&n);
	return rc ? rc : disks_add_file(&v->disks, "cidata", path, err);
}

/* ---- starting ---- */

static int open_io(struct vm *v, const struct vm_options *o, struct err *err)
{
	const Pb__CreateTaskRequest *r = o->request;
	struct io_paths p = {
		.in = r->stdin, .out = r->stdout, .err = r->stderr, .terminal = r->terminal
	};

	v->io = io_new(o->loop, &p, err);
	return v->io ? 0 : err->code;
}

static void list_fds(const struct vm *v, int out[FDS_MAX + 1])
{
	unsigned n = 0;

	for (unsigned i = 0; i < v->disks.count; i++)
		if (v->disks.list[i].fd >= 0)
			out[n++] = v->disks.list[i].fd;
	if (v->kernel.kernel >= 0)
		out[n++] = v->kernel.kernel;
	if (v->kernel.initrd >= 0)
		out[n++] = v->kernel.initrd;
	for (unsigned i = 0; v->net && i < pod_net_count(v->net); i++)
		for (unsigned q = 0; q < pod_net_nic(v->net, i)->ntaps; q++)
			out[n++] = pod_net_nic(v->net, i)->taps[q];
	out[n] = -1;
}

static int start(struct vm *v, const struct vm_options *o, machine_ready *ready, void *opaque,
		 struct err *err)
{
	int fds[FDS_MAX + 1];
	struct machine_options m = { .vmm = v->config.vmm,
				     .state_dir = v->state_dir,
				     .netns = v->bundle->netns,
				     .cgroup = o->cgroup,
				     .fds = fds,
				     .io = v->io,
				     .console = v->console };

	if (v->bundle->has_oom_score)
		m.oom_score = &v->bundle->oom_score;
	list_fds(v, fds);
	v->machine = machine_start(o->loop, &m, ready, opaque, err);
	return v->machine ? 0 : err->code;
}

static int assemble(struct vm *v, const struct vm_options *o, struct err *err)
{
	int rc = node_config_load(&v->config, o->config_path, err);

	if (!rc)
		rc = check_annotations(v, err);
	if (!rc)
		rc = vm_config_cpus(v->bundle, &v->config, &v->cpus, err);
	if (!rc)
		rc = vm_config_memory(v->bundle, &v->config, &v->memory, err);
	if (!rc)
		rc = vm_config_console(v->bundle, &v->config, &v->console, err);
	if (!rc)
		rc = state_dir_make(o->state_dir, err);
	if (rc)
		return rc;
	v->state_dir = strdup(o->state_dir);
	if (!v->state_dir) {
		state_dir_remove(o->state_dir);
		return err_set(err, ENOMEM, "out of memory");
	}
	rc = open_io(v, o, err);
	if (!rc)
		rc = look_into_image(v, o, err);
	if (!rc)
		tell_of_mounts(v);
	if (!rc)
		rc = open_net(v, o->loop, err);
	if (!rc)
		rc = add_cloud_init(v, err);
	if (!rc)
		rc = vm_config_write(v->state_dir, o->request->id, v->bundle, &v->config, &v->disks,
				     v->net, &v->kernel, err);
	return rc;
}

struct vm *vm_new(const struct vm_options *o, machine_ready *ready, void *opaque, struct err *err)
{
	struct vm *v = calloc(1, sizeof(*v));

	if (!v) {
		err_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	v->bundle = o->bundle;
	v->hostname = o->hostname;
	v->kernel.kernel = v->kernel.initrd = -1;
	int rc = assemble(v, o, err);

	if (!rc)
		rc = start(v, o, ready, opaque, err);
	if (rc) {
		vm_release(v);
		vm_free(v);
		return NULL;
	}
	return v;
}

struct machine *vm_machine(struct vm *v)
{
	return v->machine;
}

struct io *vm_io(struct vm *v)
{
	return v->io;
}

unsigned vm_cpus(const struct vm *v)
{
	return v->cpus;
}

uint64_t vm_memory(const struct vm *v)
{
	return v->memory;
}

bool vm_has_console(const struct vm *v)
{
	return v->console;
}

void vm_explain(const struct vm *v, char *text, size_t room)
{
	disks_explain(&v->disks, v->state_dir, text, room);
}

void vm_release(struct vm *v)
{
	forward_close(v->forward);
	v->forward = NULL;
	pod_net_close(v->net);
	v->net = NULL;
	fd_close(&v->kernel.kernel);
	fd_close(&v->kernel.initrd);
	disks_fini(&v->disks);
	if (v->mounted)
		rootfs_unmount(v->bundle->path);
	v->mounted = false;
	if (v->state_dir)
		state_dir_remove(v->state_dir);
	ptr_free(&v->state_dir);
}

void vm_free(struct vm *v)
{
	if (!v)
		return;
	machine_free(v->machine);
	vm_release(v);
	io_free(v->io);
	node_config_fini(&v->config);
	free(v);
}
