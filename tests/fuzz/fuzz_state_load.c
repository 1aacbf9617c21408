/*
 * fuzz_state_load.c - hostile snapshots, without KVM
 *
 * The input is a row of sections in a framing of its own, so that mutations get past checksums: u16 type,
 * u8 flags, u8 length of name, u32 length, name, payload. They are made into a stream and loaded: as a
 * header with its machine's description, then into a machine of all devices (headless.h; bit 0 of the
 * first byte chooses the transport). What the machine's loader does not reach without KVM, the tables of
 * processors and chips, is loaded by table. Devices that took their state then run, on rings wherever
 * the state says, and are reset.
 */
#include "base/log.h"
#include "tests/unit/headless.h"
#include "vmm/machine_desc.h"
#include "vmm/sections.h"
#include "vmm/state_tables.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct headless *machines[2]; /* made once: a machine takes longer than a load */

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	log_set_level(LOG_ERR);
	for (int i = 0; i < 2; i++) {
		struct err err = { 0 };

		machines[i] = calloc(1, sizeof(*machines[i]));
		BUG_ON(!machines[i]);
		if (headless_begin(machines[i], i, i, i ? "1" : "2", i, !i, &err)) {
			fprintf(stderr, "%s\n", err.msg);
			abort();
		}
	}
	return 0;
}

/* The input's sections in @s. */
static void frame(struct stream *s, const uint8_t *data, size_t size)
{
	while (size >= 8) {
		uint16_t type;
		uint8_t flags = data[2] & STREAM_OPTIONAL, name_len = data[3] % STREAM_NAME_MAX;
		uint32_t len;
		char name[STREAM_NAME_MAX + 1] = "";
		struct err err;

		memcpy(&type, data, 2);
		memcpy(&len, data + 4, 4);
		data += 8;
		size -= 8;
		if (name_len > size)
			return;
		memcpy(name, data, name_len);
		data += name_len;
		size -= name_len;
		if (len > size)
			len = (uint32_t)size;
		BUG_ON(stream_put(s, type, flags, name, data, len, &err));
		data += len;
		size -= len;
	}
}

static void load_header(const uint8_t *data, size_t size)
{
	struct vm_header h;
	struct machine_desc d;
	struct err err = { 0 };
	struct stream *s = stream_read_new(data, size, &err);

	BUG_ON(!s);
	if (!vm_header_load(&h, s, &err)) {
		struct machine_overrides o = { .v = { { "disk", "id=root,path=x" } }, .n = 1 };

		if (!machine_desc_parse(&d, h.machine, strlen(h.machine), &err)) {
			machine_desc_apply(&d, &o, &err);
			machine_desc_fini(&d);
		}
		vm_header_fini(&h);
	}
	stream_free(s);
}

static const char *table_of(unsigned type)
{
	return type == SECTION_CPU ? "cpuid" : section_name(type);
}

/* Each section by itself: a device's into the machine, the others by their table. */
static void load_each(struct headless *h, const uint8_t *data, size_t size)
{
	struct stream_section sec;
	struct err err = { 0 };
	struct stream *s = stream_read_new(data, size, &err);

	BUG_ON(!s);
	while (stream_get(s, &sec, &err) == 1) {
		const char *name = table_of(sec.type);
		const struct state_desc *t = name ? state_table_find(name) : NULL;
		struct device *d = sec.type == SECTION_DEVICE ? headless_device(h, sec.name) : NULL;

		if (d)
			device_state_load(d, sec.data, (size_t)sec.len, &err);
		if (!t)
			continue;
		uint8_t *regs = calloc(1, t->size);

		BUG_ON(!regs);
		if (!state_load(t, regs, NULL, sec.data, (size_t)sec.len, &err))
			json_object_put(state_to_json(t, sec.data, (size_t)sec.len, &err));
		free(regs);
	}
	stream_free(s);
}

static void for_each(struct headless *h, void (*fn)(struct device *d))
{
	for (unsigned i = 0; i < h->vm->ndevices; i++)
		fn(h->vm->devices[i]);
}

static void quiesce(struct device *d)
{
	d->ops->quiesce(d);
}

static void resume(struct device *d)
{
	d->ops->resume(d);
}

static void reset(struct device *d)
{
	d->ops->reset(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct err err = { 0 };
	size_t len;

	if (!size)
		return 0;
	struct headless *h = machines[*data & 1];
	struct stream *framed = stream_buffer_new(&err), *s;

	BUG_ON(!framed);
	frame(framed, data + 1, size - 1);
	const uint8_t *bytes = stream_buffer(framed, &len);

	load_header(bytes, len);
	for_each(h, quiesce);
	s = stream_read_new(bytes, len, &err);
	BUG_ON(!s);
	vm_state_load(h->vm, s, VM_CLOCK_STOOD, &err);
	stream_free(s);
	load_each(h, bytes, len);
	for_each(h, resume);
	for_each(h, quiesce);
	for_each(h, reset);
	for_each(h, resume);
	BUG_ON(gmem_discard(h->vm->mem, 0, 2 << 20));
	stream_free(framed);
	return 0;
}
