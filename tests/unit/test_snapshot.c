/*
 * test_snapshot.c - at the switch every page of RAM is in the file, and what cannot be leaves no trace
 *
 * A guest of a few instructions writes to page after page for ever, so every round of the copy finds
 * some dirty, and pages become zero again. With "stop" the machine still stands when the files are
 * complete: then its RAM and the file are compared byte by byte. Needs /dev/kvm; any will do.
 */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/loop.h"
#include "vmm/exit_status.h"
#include "vmm/machine_desc.h"
#include "vmm/snapshot.h"
#include "vmm/vm.h"

#define RAM (16u << 20)

/*
 * 64-bit code at 1 MiB: for page in [2 MiB, 16 MiB): *page ^= counter++, and each third page is
 * emptied again. One word a page, so that software KVM, which interprets it, gets around.
 *
 *	mov $0x200000, %edi
 * 1:	xor %rcx, (%rdi)	inc %rcx
 *	movq $0, 0x3000(%rdi)	add $0x1000, %rdi
 *	cmp $0xffc000, %edi	jb 1b
 *	jmp start
 */
static const uint8_t guest_code[] = {
	0xbf, 0x00, 0x00, 0x20, 0x00, 0x48, 0x31, 0x0f, 0x48, 0xff, 0xc1, 0x48, 0xc7,
	0x87, 0x00, 0x30, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x48, 0x81, 0xc7, 0x00,
	0x10, 0x00, 0x00, 0x81, 0xff, 0x00, 0xc0, 0xff, 0x00, 0x72, 0xe0, 0xeb, 0xd9,
};

struct rig {
	char kernel[32];
	struct config config;
	struct loop *loop;
	struct vm *vm;
	pthread_t thread;
	struct snapshot_files files;
	bool stop;
	const char *cancel_at; /* a stage's name */
	bool cancel, compared;
	unsigned rounds;
	struct snapshot_result result;
	struct err err;
	int rc;
};

static int file(void)
{
	int fd = memfd_create("snapshot", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static void rig_begin(struct rig *r)
{
	struct err err = { 0 };
	int fd;

	memset(r, 0, sizeof(*r));
	if (access("/dev/kvm", R_OK | W_OK)) {
		print_message("SKIP: /dev/kvm cannot be opened\n");
		skip();
	}
	strcpy(r->kernel, "/tmp/coracle-code-XXXXXX");
	fd = mkstemp(r->kernel);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, guest_code, sizeof(guest_code)), sizeof(guest_code));
	close(fd);
	config_init(&r->config);
	assert_int_equal(config_set(&r->config, "kernel", r->kernel, &err), 0);
	assert_int_equal(config_set(&r->config, "kernel-type", "flat64", &err), 0);
	assert_int_equal(config_set(&r->config, "memory", "16M", &err), 0);
	assert_int_equal(config_set(&r->config, "serial", "null", &err), 0);
	assert_int_equal(config_finish(&r->config, &err), 0);
	r->loop = loop_new(&err);
	r->vm = vm_new(&r->config, r->loop, NULL, NULL, &err);
	if (!r->vm)
		fail_msg("%s", err.msg);
	assert_int_equal(vm_start(r->vm, &err), 0);
	r->files = (struct snapshot_files){ file(), file(), file() };
}

/* Until the guest has been everywhere: each page has had something in it. */
static void wait_for_sweep(struct rig *r)
{
	uint64_t last = 0;

	while (!last) {
		assert_int_equal(gmem_read(r->vm->mem, 0xffb000, &last, sizeof(last)), 0);
		usleep(100);
	}
}

static void rig_end(struct rig *r)
{
	vm_free(r->vm);
	loop_free(r->loop);
	config_fini(&r->config);
	close(r->files.machine);
	close(r->files.state);
	close(r->files.memory);
	unlink(r->kernel);
}

/* ---- the watch ---- */

static bool cancelled(void *opaque)
{
	return ((struct rig *)opaque)->cancel;
}

static void on_main(void *opaque, void (*fn)(void *arg), void *arg)
{
	loop_call(((struct rig *)opaque)->loop, fn, arg);
}

/* Both stand still: nothing may differ. */
static void compare(struct rig *r)
{
	const struct gmem_region *g = gmem_region(r->vm->mem, 0);
	static uint8_t page[4096];

	assert_int_equal(gmem_count(r->vm->mem), 1);
	for (size_t at = 0; at < RAM; at += 4096) {
		assert_int_equal(pread(r->files.memory, page, 4096, (off_t)at), 4096);
		if (memcmp(page, g->host + at, 4096))
			fail_msg("the page at 0x%zx is not in the file", at);
	}
	r->compared = true;
}

static void progress(void *opaque, const struct transfer_progress *p)
{
	struct rig *r = opaque;

	r->rounds = p->round > r->rounds ? p->round : r->rounds;
	if (r->cancel_at && !strcmp(p->stage, r->cancel_at))
		r->cancel = true;
	if (r->stop && !strcmp(p->stage, "sync"))
		compare(r);
}

static void *worker(void *arg)
{
	struct rig *r = arg;
	const struct transfer_watch w = { cancelled, progress, on_main, r };

	r->rc = snapshot_save(r->vm, &r->files, r->stop, &w, &r->result, &r->err);
	loop_stop(r->loop);
	return NULL;
}

static void save(struct rig *r)
{
	assert_int_equal(pthread_create(&r->thread, NULL, worker, r), 0);
	assert_int_equal(loop_run(r->loop), 0);
	pthread_join(r->thread, NULL);
}

/* ---- tests ---- */

static void every_page(void **state)
{
	struct rig r;
	struct stat st;

	rig_begin(&r);
	wait_for_sweep(&r);
	r.stop = true;
	save(&r);
	if (r.rc)
		fail_msg("%s", r.err.msg);
	assert_true(r.compared);
	assert_true(r.rounds >= 2);
	assert_int_equal(r.vm->state, VM_STOPPED);
	assert_int_equal(r.vm->status, EXIT_OK);
	assert_string_equal(r.vm->stop_reason, "snapshot");
	assert_int_equal(fstat(r.files.memory, &st), 0);
	assert_int_equal(st.st_size, RAM);
	assert_true((uint64_t)st.st_blocks * 512 < RAM); /* holes */
	assert_int_equal(r.result.ram, RAM);
	rig_end(&r);
}

/* A machine made of the files has the same RAM and processor; what it writes stays its own. */
static void made_again(void **state)
{
	struct rig r;
	struct vm_header h;
	struct err err = { 0 };

	rig_begin(&r);
	save(&r);
	if (r.rc)
		fail_msg("%s", r.err.msg);
	assert_int_equal(r.vm->state, VM_RUNNING);

	struct stream *s = stream_fd_new(r.files.state, "state", &err);

	assert_int_equal(lseek(r.files.state, 0, SEEK_SET), 0);
	assert_int_equal(vm_header_load(&h, s, &err), 0);
	struct vm *again = vm_new_from(&r.config, &h, r.files.memory, r.loop, NULL, NULL, &err);

	if (!again)
		fail_msg("%s", err.msg);
	if (vm_start_loaded(again, s, VM_CLOCK_STOOD, true, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(again->state, VM_PAUSED);

	/* Saved once more it is the same, but for the time. */
	const struct gmem_region *g = gmem_region(again->mem, 0);
	uint8_t *f = mmap(NULL, RAM, PROT_READ, MAP_SHARED, r.files.memory, 0);
	uint8_t *copy = malloc(RAM);

	assert_memory_equal(f, g->host, RAM);
	memcpy(copy, f, RAM);
	vm_resume(again);
	vm_pause(again);
	assert_int_equal(gmem_fill(again->mem, 0x300000, 0x77, 65536), 0);
	assert_memory_equal(f, copy, RAM);
	assert_int_equal(gmem_discard(again->mem, 0x200000, 1 << 20), 0);
	for (unsigned i = 0; i < 1 << 20; i++)
		assert_int_equal(g->host[0x200000 + i], 0);
	munmap(f, RAM);
	free(copy);
	vm_free(again);
	vm_header_fini(&h);
	stream_free(s);
	rig_end(&r);
}

static void cancelled_anywhere(void **state)
{
	static const char *const stages[] = { "memory", "state", "sync" };

	for (unsigned i = 0; i < 3; i++)
		for (int stop = 0; stop < 2; stop++) {
			struct rig r;

			rig_begin(&r);
			r.stop = stop;
			r.cancel_at = stages[i];
			save(&r);
			assert_int_equal(r.rc, -ECANCELED);
			assert_int_equal(r.vm->state, VM_RUNNING);
			assert_false(r.vm->held);
			/* and another one works */
			r.stop = false;
			r.cancel_at = NULL;
			r.cancel = false;
			assert_int_equal(ftruncate(r.files.memory, 0), 0);
			assert_int_equal(ftruncate(r.files.state, 0), 0);
			save(&r);
			assert_int_equal(r.rc, 0);
			rig_end(&r);
		}
}

/* No room in each of the files: the machine runs on. */
static void no_room(void **state)
{
	for (unsigned which = 0; which < 3; which++)
		for (int stop = 0; stop < 2; stop++) {
			struct rig r;

			rig_begin(&r);
			r.stop = stop;
			int *fd = which == 0 ? &r.files.machine :
				  which == 1 ? &r.files.state :
					       &r.files.memory;

			close(*fd);
			*fd = open("/dev/full", O_RDWR | O_CLOEXEC);
			assert_true(*fd >= 0);
			save(&r);
			assert_true(r.rc < 0);
			assert_non_null(strstr(r.err.msg, "snapshot's file"));
			assert_int_equal(r.vm->state, VM_RUNNING);
			assert_false(r.vm->held);
			rig_end(&r);
		}
}

static void paused(void **state)
{
	struct rig r;

	rig_begin(&r);
	vm_pause(r.vm);
	save(&r);
	if (r.rc)
		fail_msg("%s", r.err.msg);
	assert_int_equal(r.vm->state, VM_PAUSED);
	assert_false(r.vm->held);
	compare(&r);
	rig_end(&r);
}

/* What the guest asked for while a job was about to hold it comes first, and then it can be held. */
static void the_guests_own_end_comes_first(void **state)
{
	static const uint8_t ud2[] = { 0x0f, 0x0b }; /* without an IDT: a triple fault */
	struct err err = { 0 };
	struct rig r;

	rig_begin(&r);
	/* In place of the last jump. The main loop does not run: nobody has carried it out yet. */
	assert_int_equal(gmem_write(r.vm->mem, 0x100000 + sizeof(guest_code) - sizeof(ud2), ud2,
				    sizeof(ud2)),
			 0);
	while (!atomic_load(&r.vm->power))
		usleep(100);
	assert_int_equal(vm_hold(r.vm, &err), -ECANCELED);
	assert_non_null(strstr(err.msg, "power"));
	assert_false(r.vm->held);
	assert_int_equal(r.vm->state, VM_RUNNING);
	while (!r.vm->resets)
		assert_true(loop_poll(r.loop, -1) >= 0);
	assert_int_equal(vm_hold(r.vm, &err), 0);
	assert_true(r.vm->held);
	vm_release(r.vm);
	wait_for_sweep(&r);
	rig_end(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_page),
		cmocka_unit_test(made_again),
		cmocka_unit_test(cancelled_anywhere),
		cmocka_unit_test(no_room),
		cmocka_unit_test(paused),
		cmocka_unit_test(the_guests_own_end_comes_first),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
