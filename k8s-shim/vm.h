/*
 * vm.h - everything a container's machine is made of
 *
 * vm_new() assembles it step by step and starts the VMM; each step that was done is undone by
 * vm_release(), in reverse order, whichever was the last. What outlives the machine's process (its end
 * has to be told first, teardown may take a while) is in here; the process is machine.h's.
 */
#ifndef K8S_SHIM_VM_H
#define K8S_SHIM_VM_H

#include "k8s-shim/bundle.h"
#include "k8s-shim/cgroup.h"
#include "k8s-shim/io.h"
#include "k8s-shim/machine.h"
#include "k8s-shim/proto/task.pb-c.h"

struct vm;

struct vm_options {
	struct loop *loop;
	const char *state_dir;
	const struct bundle *bundle; /* must outlive it */
	const struct cgroup *cgroup; /* made already */
	const Pb__CreateTaskRequest *request;
	const char *hostname;    /* NULL: unknown */
	const char *config_path; /* node configuration; NULL: the default one */
};

/* As machine_start(). */
struct vm *vm_new(const struct vm_options *o, machine_ready *ready, void *opaque, struct err *err);

struct machine *vm_machine(struct vm *v);
struct io *vm_io(struct vm *v);
unsigned vm_cpus(const struct vm *v);
uint64_t vm_memory(const struct vm *v);  /* bytes of RAM */
bool vm_has_console(const struct vm *v); /* a virtio one, which knows its size */

/* A message of the VMM's in words that mean something outside of it. */
void vm_explain(const struct vm *v, char *text, size_t room);

void vm_release(struct vm *v); /* network, mounts, files; the machine must have ended */
void vm_free(struct vm *v);    /* and what it had to say; NULL is fine */

#endif
