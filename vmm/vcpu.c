/*
 * vcpu.c - the loop around KVM_RUN
 *
 * Stopping a vCPU without a race: the asker sets want, sets run->immediate_exit and sends a signal. If
 * the thread has not entered KVM_RUN yet, immediate_exit makes it return at once; if it has, the
 * signal does; if it is in a device, it looks at `interrupt` before it enters again. The signal's
 * handler does nothing.
 *
 * A guest that asks for power off or a reset, and a vCPU that cannot go on, hold the whole machine
 * (vcpus_hold) and wait: only the main thread decides what happens next, and not one more guest
 * instruction runs on the vCPU that asked.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "vmm/arch.h"
#include "vmm/vcpu.h"

static void add(_Atomic uint64_t *counter)
{
	/* One writer: no locked instruction needed. */
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

/* The asker and the vCPU's own thread both write it. */
static void set_immediate_exit(struct vcpu *v, uint8_t value)
{
	__atomic_store_n(&v->run->immediate_exit, value, __ATOMIC_RELAXED);
}

static void log_registers(const struct vcpu *v)
{
	char text[512];

	arch_vcpu_describe(v->fd, text, sizeof(text));
	log_err("vCPU %u: %s", v->index, text);
}

static void on_io(struct vcpu *v)
{
	struct kvm_run *r = v->run;
	uint8_t *data = (uint8_t *)r + r->io.data_offset;

	/* A string instruction gives @count elements at once; each is an access of its own. */
	for (uint32_t i = 0; i < r->io.count; i++, data += r->io.size) {
		if (r->io.direction == KVM_EXIT_IO_OUT)
			bus_write(v->all->pio, r->io.port, data, r->io.size);
		else
			bus_read(v->all->pio, r->io.port, data, r->io.size);
	}
}

static void on_mmio(struct vcpu *v)
{
	struct kvm_run *r = v->run;

	if (r->mmio.is_write)
		bus_write(v->all->mmio, r->mmio.phys_addr, r->mmio.data, r->mmio.len);
	else
		bus_read(v->all->mmio, r->mmio.phys_addr, r->mmio.data, r->mmio.len);
}

static bool stop(struct vcpu *v, enum vcpu_stop why)
{
	v->all->on_stop(v->all->opaque, why, v->index);
	return false;
}

static bool on_system_event(struct vcpu *v)
{
	switch (v->run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		return stop(v, VCPU_STOP_OFF);
	case KVM_SYSTEM_EVENT_RESET:
		return stop(v, VCPU_STOP_RESET);
	default:
		return stop(v, VCPU_STOP_CRASH);
	}
}

static void on_internal_error(struct vcpu *v)
{
	const struct kvm_run *r = v->run;
	char insn[3 * 15 + 1] = "";

	if (r->internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
	    r->emulation_failure.ndata >= 3 &&
	    (r->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
		unsigned n = r->emulation_failure.insn_size;

		for (unsigned i = 0; i < n && i < 15; i++)
			sprintf(insn + 3 * i, " %02x", r->emulation_failure.insn_bytes[i]);
	}
	if (r->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
		log_err("vCPU %u: KVM cannot emulate the guest's instruction%s%s", v->index,
			*insn ? ":" : "", insn);
	else
		log_err("vCPU %u: KVM internal error %u", v->index, r->internal.suberror);
	log_registers(v);
}

/* One exit. false: this vCPU stops. */
static bool handle_exit(struct vcpu *v)
{
	switch (v->run->exit_reason) {
	case KVM_EXIT_IO:
		add(&v->count.pio);
		on_io(v);
		return true;
	case KVM_EXIT_MMIO:
		add(&v->count.mmio);
		on_mmio(v);
		return true;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		return true;
	case KVM_EXIT_HLT: /* without an in-kernel irqchip only: ours never gets here */
	case KVM_EXIT_SHUTDOWN:
		return stop(v, VCPU_STOP_RESET);
	case KVM_EXIT_SYSTEM_EVENT:
		return on_system_event(v);
	case KVM_EXIT_INTERNAL_ERROR:
		on_internal_error(v);
		return stop(v, VCPU_STOP_FAILED);
	case KVM_EXIT_FAIL_ENTRY:
		log_err("vCPU %u: the processor refuses the guest's state, hardware reason 0x%llx",
			v->index,
			(unsigned long long)v->run->fail_entry.hardware_entry_failure_reason);
		log_registers(v);
		return stop(v, VCPU_STOP_FAILED);
	default:
		log_err("vCPU %u: KVM exit %u is not known here", v->index, v->run->exit_reason);
		log_registers(v);
		return stop(v, VCPU_STOP_FAILED);
	}
}

/* Finish the instruction the vCPU was in. */
static void complete_io(struct vcpu *v)
{
	/* An access that crosses a page is two exits; nothing takes more than a few. */
	for (int i = 0; i < 16; i++) {
		set_immediate_exit(v, 1);
		if (ioctl(v->fd, KVM_RUN, 0) < 0)
			return;
		if (v->run->exit_reason == KVM_EXIT_IO)
			on_io(v);
		else if (v->run->exit_reason == KVM_EXIT_MMIO)
			on_mmio(v);
		else
			return;
	}
}

/* Run the guest until asked to stop or stopped by itself. */
static void run(struct vcpu *v)
{
	while (!atomic_load_explicit(&v->all->interrupt, memory_order_acquire)) {
		add(&v->count.exits);
		if (ioctl(v->fd, KVM_RUN, 0) < 0) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			log_err("vCPU %u: KVM_RUN: %s", v->index, strerror(errno));
			if (v->run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
				on_internal_error(v);
			else
				log_registers(v);
			stop(v, VCPU_STOP_FAILED);
			return;
		}
		if (!handle_exit(v))
			return;
	}
	complete_io(v);
}

/* Wait until the guest should run. false: exit. */
static bool park(struct vcpu *v)
{
	struct vcpus *s = v->all;

	pthread_mutex_lock(&s->lock);
	s->parked++;
	pthread_cond_broadcast(&s->changed);
	while (s->want == VCPUS_PAUSE)
		pthread_cond_wait(&s->changed, &s->lock);
	s->parked--;
	set_immediate_exit(v, 0); /* under the lock: the next asker sets it after us */
	bool go = s->want == VCPUS_RUN;
	pthread_mutex_unlock(&s->lock);
#ifdef KVM_KVMCLOCK_CTRL
	if (go)
		ioctl(v->fd, KVM_KVMCLOCK_CTRL,
		      0); /* no false soft lockup; EINVAL without kvmclock */
#endif
	return go;
}

static void *thread(void *arg)
{
	struct vcpu *v = arg;
	char name[16];
	sigset_t set;

	/* Not pthread_setname_np() by the starter: that opens a file, which the sandbox refuses. */
	snprintf(name, sizeof(name), "vcpu%u", v->index);
	prctl(PR_SET_NAME, name);

	sigemptyset(&set);
	sigaddset(&set, VCPU_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	while (park(v))
		run(v);
	return NULL;
}

static int create(struct vcpu *v, int vm_fd, size_t run_size, struct err *err)
{
	v->fd = ioctl(vm_fd, KVM_CREATE_VCPU, v->index);
	if (v->fd < 0)
		return err_set_sys(err, errno, "KVM cannot create vCPU %u", v->index);
	v->run_size = run_size;
	v->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED) {
		v->run = NULL;
		return err_set_sys(err, errno, "cannot map the run area of vCPU %u", v->index);
	}
	return 0;
}

int vcpus_create(struct vcpus *s, int vm_fd, unsigned count, size_t run_size, struct err *err)
{
	s->v = calloc(count, sizeof(*s->v));
	if (!s->v)
		return err_set(err, ENOMEM, "out of memory for %u vCPUs", count);
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	s->want = VCPUS_PAUSE;
	s->interrupt = true;
	s->parked = 0;
	s->count = count;
	for (unsigned i = 0; i < count; i++)
		s->v[i] = (struct vcpu){ .all = s, .index = i, .fd = -1 };
	for (unsigned i = 0; i < count; i++) {
		int rc = create(&s->v[i], vm_fd, run_size, err);

		if (rc) {
			vcpus_destroy(s);
			return rc;
		}
	}
	return 0;
}

static void on_signal(int sig)
{
	(void)sig;
}

static unsigned started(const struct vcpus *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < s->count; i++)
		n += s->v[i].started;
	return n;
}

/* Under the lock. */
static void kick_all(struct vcpus *s)
{
	for (unsigned i = 0; i < s->count; i++) {
		if (!s->v[i].started)
			continue;
		set_immediate_exit(&s->v[i], 1);
		pthread_kill(s->v[i].thread, VCPU_SIGNAL);
	}
}

static void ask(struct vcpus *s, enum vcpus_want want)
{
	pthread_mutex_lock(&s->lock);
	if (s->want ==
	    VCPUS_EXIT) /* for good: a guest's last request must not park a thread again */
		want = VCPUS_EXIT;
	s->want = want;
	atomic_store_explicit(&s->interrupt, want != VCPUS_RUN, memory_order_release);
	if (want != VCPUS_RUN)
		kick_all(s);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

int vcpus_start(struct vcpus *s, struct err *err)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(VCPU_SIGNAL, &sa, NULL);
	for (unsigned i = 0; i < s->count; i++) {
		int rc = pthread_create(&s->v[i].thread, NULL, thread, &s->v[i]);

		if (rc)
			return err_set_sys(err, rc, "cannot start a thread for vCPU %u", i);
		s->v[i].started = true;
	}
	return 0;
}

void vcpus_hold(struct vcpus *s)
{
	ask(s, VCPUS_PAUSE);
}

void vcpus_resume(struct vcpus *s)
{
	ask(s, VCPUS_RUN);
}

void vcpus_pause(struct vcpus *s)
{
	ask(s, VCPUS_PAUSE);
	pthread_mutex_lock(&s->lock);
	while (s->parked < started(s))
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
}

void vcpus_destroy(struct vcpus *s)
{
	if (!s->v)
		return;
	ask(s, VCPUS_EXIT);
	for (unsigned i = 0; i < s->count; i++) {
		struct vcpu *v = &s->v[i];

		if (v->started)
			pthread_join(v->thread, NULL);
		if (v->run)
			munmap(v->run, v->run_size);
		fd_close(&v->fd);
	}
	free(s->v);
	s->v = NULL;
	s->count = 0;
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->changed);
}
