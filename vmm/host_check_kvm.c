/*
 * host_check_kvm.c - /dev/kvm: is it there, what kind is it, what can it do
 *
 * What is needed comes from the table kvm_open() refuses by (kvm.c), so the two cannot disagree.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/fd.h"
#include "vmm/host_check.h"
#include "vmm/kvm.h"

static int has_cap(int fd, int cap)
{
	return ioctl(fd, KVM_CHECK_EXTENSION, cap);
}

const char *host_kind_name(enum arch_host_kind kind)
{
	static const char *const names[] = {
		[ARCH_HOST_HARDWARE] = "hardware",
		[ARCH_HOST_NESTED] = "nested",
		[ARCH_HOST_SOFTWARE] = "software",
	};

	return names[kind];
}

/* Modules that say what is behind /dev/kvm; built in, they have no entry unless they have parameters. */
static const char *provider(void)
{
	if (!access("/sys/module/kvm_pvm", F_OK))
		return " (PVM)";
	if (!access("/sys/module/kvm_intel", F_OK))
		return " (VMX)";
	if (!access("/sys/module/kvm_amd", F_OK))
		return " (SVM)";
	return "";
}

static void check_needs(struct host_report *r, int fd)
{
	char missing[160] = "";
	unsigned count = 0;

	for (const struct kvm_need *n = kvm_needs; n->name; n++, count++) {
		size_t used = strlen(missing);

		if (has_cap(fd, n->cap) <= 0)
			snprintf(missing + used, sizeof(missing) - used, "%s%s", used ? ", " : "",
				 n->name);
	}
	r->usable = !*missing;
	if (*missing)
		host_row(r, "kvm.capabilities", HOST_NO,
			 "no machine starts without: use a newer kernel", "lacks %s", missing);
	else
		host_row(r, "kvm.capabilities", HOST_YES, NULL, "all %u that are needed", count);
}

static void check_kind(struct host_report *r, int fd)
{
	struct arch_probe *p = &r->probe;
	struct err err = { 0 };
	int size = ioctl(fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	if (size < (int)sizeof(struct kvm_run) || arch_probe_host(fd, (size_t)size, p, &err)) {
		host_row(r, "kvm.kind", HOST_NO, "a small machine did not run here at all", "%s",
			 err.code ? err.msg : "no run area");
		return;
	}
	r->probed = true;
	r->boots_linux = r->usable && !*p->missing;
	host_row(r, "kvm.kind", p->kind == ARCH_HOST_SOFTWARE ? HOST_PARTLY : HOST_YES,
		 p->kind == ARCH_HOST_SOFTWARE ?
			 "guest kernels are interpreted: use a host with VMX, SVM or EL2, or turn "
			 "on nested virtualization for this one" :
			 NULL,
		 "%s%s, %.1f ns per instruction in a guest's kernel mode", host_kind_name(p->kind),
		 provider(), p->ns_per_insn);
	host_row(r, "kvm.boots-linux", r->boots_linux ? HOST_YES : HOST_NO,
		 r->boots_linux ? NULL : "only tiny guests run here: no Linux kernel does without",
		 *p->missing ? "instructions that do not work: %s" :
		 r->usable   ? "the instructions it needs work%s" :
			       "capabilities are missing%s",
		 p->missing);
}

static const struct arch_extra extras[] = {
	{ KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, "kvm.dirty-ring",
	  "migration finds written pages by ring", "migration reads bitmaps instead" },
	{ KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 0, "kvm.manual-dirty-log",
	  "migration protects pages piece by piece", "migration stalls big guests longer" },
	{ KVM_CAP_IOEVENTFD_ANY_LENGTH, 0, "kvm.ioeventfd-any-length", "kicks of any width",
	  "kicks are matched by width" },
	{ KVM_CAP_EXIT_ON_EMULATION_FAILURE, 0, "kvm.emulation-failure",
	  "failed instructions are shown", "a failed instruction is not named in the log" },
	{ KVM_CAP_ADJUST_CLOCK, 0, "kvm.adjust-clock", "the guest's clock can be moved",
	  "the clock of a restored guest may step" },
	{ 0 },
};

static void check_extras(struct host_report *r, int fd, const struct arch_extra *e)
{
	for (; e->key; e++) {
		bool yes = has_cap(fd, e->cap) > 0 || (e->other && has_cap(fd, e->other) > 0);

		host_row(r, e->key, yes ? HOST_YES : HOST_NO, yes ? NULL : e->advice, "%s",
			 e->what);
	}
}

/* "host" is always there; the others may be refused, and say what for. */
static void check_models(struct host_report *r, int fd)
{
	const char *const *names = arch_cpu_models();

	for (unsigned i = 0; names[i]; i++) {
		struct err err = { 0 };
		struct arch_cpu *c = arch_cpu_new(fd, names[i], 1, &err);

		if (c)
			host_row(r, names[i], HOST_YES, NULL, "--cpu %s: %u address bits", names[i],
				 arch_cpu_phys_bits(c));
		else
			host_row(r, names[i], HOST_NO, NULL, "%s", err.msg);
		arch_cpu_free(c);
	}
}

static int open_kvm(struct host_report *r)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd >= 0) {
		host_row(r, "kvm.device", HOST_YES, NULL, "/dev/kvm opens");
		return fd;
	}
	if (errno == ENOENT)
		host_row(r, "kvm.device", HOST_NO,
			 "enable virtualization in the firmware, or nested virtualization of this "
			 "virtual machine, and load kvm_intel or kvm_amd",
			 "/dev/kvm is not there");
	else
		host_row(r, "kvm.device", HOST_NO,
			 errno == EACCES || errno == EPERM ?
				 "join the group that owns it (usually kvm), or run as root" :
				 "load the module of this processor: kvm_intel or kvm_amd",
			 "/dev/kvm cannot be opened: %s", strerror(errno));
	return -1;
}

void host_check_kvm(struct host_report *r)
{
	cleanup_fd int fd = open_kvm(r);

	if (fd < 0)
		return;
	r->api_version = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (r->api_version != KVM_API_VERSION) {
		host_row(r, "kvm.api", HOST_NO, "/dev/kvm is something else: look at what made it",
			 "version %d instead of %d", r->api_version, KVM_API_VERSION);
		return;
	}
	host_row(r, "kvm.api", HOST_YES, NULL, "version %d", r->api_version);
	check_needs(r, fd);
	check_kind(r, fd);

	int max = has_cap(fd, KVM_CAP_MAX_VCPUS);

	r->max_vcpus = max > 0 ? (unsigned)max : 4;
	host_row(r, "kvm.vcpus", HOST_YES, NULL, "%u a machine; coracle gives up to %u",
		 r->max_vcpus, ARCH_CPUS_MAX);
	check_models(r, fd);
	check_extras(r, fd, extras);
	check_extras(r, fd, arch_host_extras());
}
