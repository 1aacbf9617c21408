/*
 * test_state_tables.c - every table: complete, found by its name, and shown in full
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/loop.h"
#include "tests/unit/state_check.h"
#include "vmm/state_tables.h"
#include "vmm/vm.h"

/* The poison test, for each there is. */
static void complete(void **state)
{
	const struct state_desc **all = state_tables();
	unsigned n = 0;

	assert_non_null(all);
	for (; all[n]; n++)
		state_check_complete(all[n], all[n]->size);
	assert_true(n > 15);
	free(all);
}

static void names(void **state)
{
	const struct state_desc **all = state_tables();

	for (unsigned i = 0; all[i]; i++) {
		assert_ptr_equal(state_table_find(all[i]->name),
				 all[i]); /* the first of its name */
		assert_true(strlen(all[i]->name) < sizeof(((struct device_state_part *)0)->table));
	}
	assert_null(state_table_find("nonsense"));
	free(all);
}

static size_t count_fields(const struct state_desc *d)
{
	size_t n = 0;

	for (size_t i = 0; i < d->count; i++)
		n += d->fields[i].type != STATE_TYPE_PAD;
	return n;
}

/* Every field is there under its name; bytes that do not fit give no object. */
static void as_json(void **state)
{
	const struct state_desc **all = state_tables();
	struct err err = { 0 };

	for (unsigned i = 0; all[i]; i++) {
		struct state_buf b = { 0 };
		uint8_t *regs = calloc(1, all[i]->size);

		memset(regs, 0x11, all[i]->size);
		assert_int_equal(state_save(all[i], regs, &b), 0);
		struct json_object *o = state_to_json(all[i], b.data, b.len, &err);

		assert_non_null(o);
		assert_int_equal(json_object_object_length(o), count_fields(all[i]));
		for (size_t f = 0; f < all[i]->count; f++)
			if (all[i]->fields[f].type != STATE_TYPE_PAD)
				assert_true(
					json_object_object_get_ex(o, all[i]->fields[f].name, NULL));
		json_object_put(o);
		assert_null(state_to_json(all[i], b.data, b.len - 1, &err));
		state_buf_fini(&b);
		free(regs);
	}
	free(all);
}

/* A part's bytes taken apart: what was put in comes out, and each cut is noticed. */
static void device_sections(void **state)
{
	static const uint8_t whole[] = {
		3, 0, 'r', 'n', 'g', 2, 0, /* type, parts */
		1, 0, 'a', 2,   0,   0, 0, 7, 8, 2, 0, 'b', 'c', 0, 0, 0, 0
	};
	struct device_state *s = calloc(1, sizeof(*s));
	struct err err = { 0 };

	assert_int_equal(device_state_parse(s, whole, sizeof(whole), &err), 0);
	assert_string_equal(s->type, "rng");
	assert_int_equal(s->nparts, 2);
	assert_string_equal(s->parts[0].table, "a");
	assert_int_equal(s->parts[0].len, 2);
	assert_memory_equal(s->parts[0].data, "\7\10", 2);
	assert_string_equal(s->parts[1].table, "bc");
	assert_int_equal(s->parts[1].len, 0);
	for (size_t cut = 0; cut < sizeof(whole); cut++)
		assert_int_equal(device_state_parse(s, whole, cut, &err), -EINVAL);
	free(s);
}

/* Does a machine have a device whose table cannot be found? */
static void of_a_machine(void **state)
{
	struct config c;
	struct err err = { 0 };
	struct loop *loop = loop_new(&err);

	if (access("/dev/kvm", R_OK | W_OK)) {
		print_message("SKIP: /dev/kvm cannot be opened\n");
		skip();
	}
	for (int mmio = 0; mmio < 2; mmio++) {
		char path[] = "/tmp/coracle-disk-XXXXXX";
		int fd = mkstemp(path);

		assert_true(fd >= 0);
		assert_int_equal(ftruncate(fd, 1 << 20), 0);
		config_init(&c);
		assert_int_equal(config_set(&c, "kernel", path, &err), 0);
		assert_int_equal(config_set(&c, "kernel-type", "flat64", &err), 0);
		assert_int_equal(config_set(&c, "memory", "4M", &err), 0);
		assert_int_equal(config_set(&c, "testdev", "on", &err), 0);
		assert_int_equal(config_set(&c, "serial", "null", &err), 0);
		assert_int_equal(config_set(&c, "console", "null", &err), 0);
		assert_int_equal(config_set(&c, "transport", mmio ? "mmio" : "pci", &err), 0);
		assert_int_equal(config_set(&c, "disk", path, &err), 0);
		assert_int_equal(config_finish(&c, &err), 0);
		struct vm *vm = vm_new(&c, loop, NULL, NULL, &err);

		if (!vm)
			fail_msg("%s", err.msg);
		assert_true(vm->ndevices >= 8);
		for (unsigned i = 0; i < vm->ndevices; i++)
			for (unsigned p = 0; p < vm->devices[i]->nparts; p++)
				assert_ptr_equal(
					state_table_find(vm->devices[i]->parts[p].desc->name),
					vm->devices[i]->parts[p].desc);
		vm_free(vm);
		config_fini(&c);
		close(fd);
		unlink(path);
	}
	loop_free(loop);
}

/* docs/state-format.md ends in what the tables say. */
static void documented(void **state)
{
	char *made = NULL, *page = calloc(1, 1 << 20);
	size_t len = 0;
	FILE *f = open_memstream(&made, &len), *docs = fopen("docs/state-format.md", "r");

	assert_non_null(f);
	state_print_tables(f);
	fclose(f);
	if (!docs) {
		print_message("SKIP: not run from the top of the source\n");
		skip();
	}
	assert_true(fread(page, 1, (1 << 20) - 1, docs) > 0);
	fclose(docs);
	const char *mark = strstr(page, "### header\n");

	if (!mark || strcmp(mark, made))
		fail_msg("docs/state-format.md is not what the tables say: make "
			 "docs/state-format.md");
	free(made);
	free(page);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(complete),     cmocka_unit_test(names),
		cmocka_unit_test(as_json),      cmocka_unit_test(device_sections),
		cmocka_unit_test(of_a_machine), cmocka_unit_test(documented),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
