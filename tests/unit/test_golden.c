/*
 * test_golden.c - the devices of every golden snapshot load into today's, and come out the same
 *
 * Without KVM, so on any host: what tests/e2e/test_golden.py shows with a guest where there is one.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "tests/unit/headless.h"
#include "vmm/machine_desc.h"
#include "vmm/sections.h"
#include "vmm/state_tables.h"

#define FILE_MAX (1 << 20)

static uint8_t *read_file(const char *path, size_t *len)
{
	uint8_t *data = malloc(FILE_MAX);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		print_message("SKIP: not run from the top of the source\n");
		free(data);
		skip();
	}
	ssize_t n = read(fd, data, FILE_MAX);

	assert_true(n > 0 && n < FILE_MAX);
	close(fd);
	*len = (size_t)n;
	return data;
}

/* A device that was loaded, saved again: every field of the old is in the new with its value. */
static void same_again(const struct device *d, const struct device_state *old)
{
	for (unsigned i = 0; i < d->nparts; i++) {
		const struct state_desc *t = d->parts[i].desc;
		struct state_buf b = { 0 };
		struct err err = { 0 };

		assert_int_equal(state_save(t, d->parts[i].regs, &b), 0);
		struct json_object *was =
			state_to_json(t, old->parts[i].data, old->parts[i].len, &err);
		struct json_object *is = state_to_json(t, b.data, b.len, &err);

		assert_non_null(was);
		if (!json_object_equal(was, is))
			fail_msg("%s, %s: %s became %s", d->name, t->name,
				 json_object_to_json_string(was), json_object_to_json_string(is));
		json_object_put(was);
		json_object_put(is);
		state_buf_fini(&b);
	}
}

static void load_device(struct headless *h, const struct stream_section *sec)
{
	struct device *d = headless_device(h, sec->name);
	struct device_state *s = calloc(1, sizeof(*s));
	struct err err = { 0 };

	if (!d)
		fail_msg("no device %s", sec->name);
	if (device_state_load(d, sec->data, (size_t)sec->len, &err))
		fail_msg("%s: %s", sec->name, err.msg);
	assert_int_equal(device_state_parse(s, sec->data, (size_t)sec->len, &err), 0);
	same_again(d, s);
	free(s);
}

static void load_table(const char *name, const struct stream_section *sec)
{
	const struct state_desc *d = state_table_find(name);
	uint8_t *regs = calloc(1, d->size);
	struct err err = { 0 };

	if (state_load(d, regs, NULL, sec->data, (size_t)sec->len, &err))
		fail_msg("%s: %s", name, err.msg);
	free(regs);
}

/* Sections of every kind; how many. */
static unsigned load_all(struct headless *h, struct stream *s)
{
	struct stream_section sec;
	struct err err = { 0 };
	unsigned n = 0;
	int rc;

	for (; (rc = stream_get(s, &sec, &err)) == 1; n++) {
		if (sec.type == SECTION_DEVICE)
			load_device(h, &sec);
		else
			load_table(section_name(sec.type), &sec);
	}
	if (rc)
		fail_msg("%s", err.msg);
	return n;
}

static void golden(const char *path, bool mmio)
{
	struct headless h;
	struct vm_header header;
	struct machine_desc desc;
	struct err err = { 0 };
	size_t len;
	uint8_t *data = read_file(path, &len);
	struct stream *s = stream_read_new(data, len, &err);

	if (headless_begin(&h, mmio, mmio, mmio ? "1" : "2", mmio, !mmio, &err))
		fail_msg("%s", err.msg);
	if (vm_header_load(&header, s, &err) ||
	    machine_desc_parse(&desc, header.machine, strlen(header.machine), &err))
		fail_msg("%s", err.msg);
	assert_int_equal(header.ram, 2 << 20);
	assert_int_equal(desc.config.memory, 2 << 20);
	assert_int_equal(desc.disk_size[0], 1 << 20);
	for (unsigned i = 0; i < h.vm->ndevices; i++)
		h.vm->devices[i]->ops->quiesce(h.vm->devices[i]);
	assert_true(load_all(&h, s) >= 8);
	machine_desc_fini(&desc);
	vm_header_fini(&header);
	stream_free(s);
	free(data);
	headless_end(&h);
}

static void v1_pci(void **state)
{
	golden("tests/golden/v1/pci/state", false);
}

/* Made when the device came. */
static void v1_console(void **state)
{
	golden("tests/golden/v1/console/state", false);
}

static void v1_mmio(void **state)
{
	golden("tests/golden/v1/mmio/state", true);
}

/* Another machine's devices: refused by the name of what differs. */
static const char *refusal(bool mmio, bool read_only, const char *queues, const char *device,
			   struct err *err)
{
	struct headless h;
	struct vm_header header;
	struct stream_section sec;
	size_t len;
	uint8_t *data = read_file("tests/golden/v1/pci/state", &len);
	struct stream *s = stream_read_new(data, len, err);

	assert_int_equal(headless_begin(&h, mmio, read_only, queues, false, true, err), 0);
	assert_int_equal(vm_header_load(&header, s, err), 0);
	*err->msg = '\0';
	while (stream_get(s, &sec, err) == 1)
		if (!strcmp(sec.name, device))
			assert_true(device_state_load(headless_device(&h, device), sec.data,
						      (size_t)sec.len, err) < 0);
	vm_header_fini(&header);
	stream_free(s);
	free(data);
	headless_end(&h);
	return err->msg;
}

static void other_machines(void **state)
{
	struct err err = { 0 };

	assert_non_null(strstr(refusal(false, false, "1", "disk.root", &err),
			       "2 of virtq, this machine's has 1"));
	assert_non_null(strstr(refusal(false, false, "3", "disk.root", &err),
			       "2 of virtq, this machine's has 3"));
	assert_non_null(strstr(refusal(true, false, "2", "disk.root", &err),
			       "1 of pci, this machine's has 0"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v1_pci),
		cmocka_unit_test(v1_mmio),
		cmocka_unit_test(v1_console),
		cmocka_unit_test(other_machines),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
