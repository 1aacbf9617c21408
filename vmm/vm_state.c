/*
 * vm_state.c - everything of a machine but its RAM, to a stream and back
 *
 * Sections come in the order of their types, which is the order they have to be loaded in: the clock
 * first (how long the guest was on its way), then what vCPUs depend on, vCPUs last. The END counts them
 * and sums them up: a stream that lost its tail, or a section in the middle, never resumes.
 *
 * A device's section is its type and then its parts, each with its table's name. They have to be the
 * same parts in the same order as the machine's own: another number of queues is another machine, and
 * is refused by that name rather than by whichever index does not fit first.
 *
 *	u16 length, type		u16 number of parts
 *	each part: u16 length, name of table	u32 length, table
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/machine_desc.h"
#include "vmm/sections.h"
#include "vmm/state_tables.h"
#include "vmm/vm.h"

#define VERSION_OLDEST 1
#define STATE_MAX      ((size_t)STREAM_PAYLOAD_MAX)

struct header_regs {
	uint32_t version;  /* of the format */
	uint32_t compat;   /* the oldest version whose readers can read it */
	uint64_t features; /* what a reader must know about; none yet */
	uint64_t ram;
	char arch[16];
};

struct end_regs {
	uint32_t sections; /* from CLOCK on, this one not counted */
	uint32_t sum;      /* CRC-32C of all their types, names and payloads */
};

static const struct state_field header_fields[] = {
	STATE_U32(1, struct header_regs, version),  STATE_U32(2, struct header_regs, compat),
	STATE_U64(3, struct header_regs, features), STATE_U64(4, struct header_regs, ram),
	STATE_BYTES(5, struct header_regs, arch),
};
const struct state_desc header_state =
	STATE_DESC("header", struct header_regs, header_fields, NULL);

static const struct state_field end_fields[] = {
	STATE_U32(1, struct end_regs, sections),
	STATE_U32(2, struct end_regs, sum),
};
const struct state_desc end_state = STATE_DESC("end", struct end_regs, end_fields, NULL);

const char *section_name(unsigned type)
{
	switch (type) {
	case SECTION_HEADER:
		return "header";
	case SECTION_MACHINE:
		return "machine";
	case SECTION_CPU:
		return "cpu";
	case SECTION_RAM_ZERO:
		return "ram-zero";
	case SECTION_RAM_DATA:
		return "ram-data";
	case SECTION_ROUND_END:
		return "round-end";
	case SECTION_CLOCK:
		return "clock";
	case SECTION_CHIPS:
		return "chips";
	case SECTION_DEVICE:
		return "device";
	case SECTION_VCPU:
		return "vcpu";
	case SECTION_END:
		return "end";
	default:
		return NULL;
	}
}

/* ---- header ---- */

static int put_table(struct stream *s, unsigned type, const struct state_desc *d, const void *regs,
		     struct err *err)
{
	struct state_buf b = { 0 };
	int rc = state_save(d, regs, &b) ? err_set(err, ENOMEM, "out of memory") : 0;

	if (!rc)
		rc = stream_put(s, (uint16_t)type, 0, NULL, b.data, b.len, err);
	state_buf_fini(&b);
	return rc;
}

int vm_header_save(const struct vm *vm, struct stream *s, struct err *err)
{
	struct header_regs h = { .version = STATE_VERSION,
				 .compat = VERSION_OLDEST,
				 .ram = gmem_size(vm->mem) };
	cleanup_free char *machine = machine_desc_text(vm, err);
	struct state_buf cpu = { 0 };

	snprintf(h.arch, sizeof(h.arch), "%s", arch_name);
	int rc = machine ? put_table(s, SECTION_HEADER, &header_state, &h, err) : err->code;

	if (!rc)
		rc = stream_put(s, SECTION_MACHINE, 0, NULL, machine, strlen(machine), err);
	if (!rc)
		rc = arch_cpu_save(vm->cpu, &cpu, err);
	if (!rc)
		rc = stream_put(s, SECTION_CPU, 0, NULL, cpu.data, cpu.len, err);
	state_buf_fini(&cpu);
	return rc;
}

/* The stream's own messages name it already. */
static int name_peer(const struct stream *s, int rc, struct err *err)
{
	const char *peer = stream_peer(s);

	if (rc < 0 && err && strncmp(err->msg, peer, strlen(peer)))
		err_prefix(err, "%s", peer);
	return rc;
}

/* The next section, which has to be of @type. */
static int expect(struct stream *s, unsigned type, struct stream_section *out, struct err *err)
{
	int rc = stream_get(s, out, err);

	if (rc < 0)
		return rc;
	if (!rc)
		return err_set(err, ENODATA, "it ends where section %s should begin",
			       section_name(type));
	if (out->type != type || !out->data) {
		const char *name = section_name(out->type);

		return type == SECTION_HEADER ?
			       err_set(err, EPROTO, "it does not begin as the state of a machine") :
			       err_set(err, EPROTO, "section %s is where %s should be",
				       name ? name : "of an unknown type", section_name(type));
	}
	return 0;
}

static int check_header(const struct header_regs *h, struct err *err)
{
	if (h->compat > STATE_VERSION || h->features)
		return err_set(
			err, ENOTSUP,
			"section header: it is of version %u, this program reads up to %u: use "
			"a newer coracle",
			h->version, STATE_VERSION);
	if (h->version < VERSION_OLDEST || h->compat > h->version)
		return err_set(err, EPROTO, "section header: version %u, compatible with %u",
			       h->version, h->compat);
	if (strncmp(h->arch, arch_name, sizeof(h->arch)))
		return err_set(
			err, ENOTSUP,
			"section header: it is of a machine with %.16s processors, this host's "
			"are %s",
			h->arch, arch_name);
	return 0;
}

static int load_header(struct vm_header *out, struct stream *s, struct err *err)
{
	struct header_regs h = { 0 };
	struct stream_section sec;
	int rc;

	*out = (struct vm_header){ 0 };
	stream_name_types(s, section_name);
	rc = expect(s, SECTION_HEADER, &sec, err);
	if (!rc)
		rc = state_load_new(&header_state, &h, NULL, sec.data, (size_t)sec.len, err);
	if (!rc)
		rc = check_header(&h, err);
	if (!rc)
		rc = expect(s, SECTION_MACHINE, &sec, err);
	if (!rc && (sec.len > CONFIG_JSON_MAX || memchr(sec.data, 0, (size_t)sec.len)))
		rc = err_set(err, EPROTO, "section machine: it is not JSON");
	if (!rc) {
		out->machine = strndup((const char *)sec.data, (size_t)sec.len);
		rc = out->machine ? expect(s, SECTION_CPU, &sec, err) :
				    err_set(err, ENOMEM, "out of memory");
	}
	if (!rc) {
		out->cpu = malloc((size_t)sec.len + 1);
		rc = out->cpu ? 0 : err_set(err, ENOMEM, "out of memory");
	}
	if (rc) {
		vm_header_fini(out);
		return rc;
	}
	memcpy(out->cpu, sec.data, (size_t)sec.len);
	out->cpu_len = (size_t)sec.len;
	out->version = h.version;
	out->ram = h.ram;
	return 0;
}

int vm_header_load(struct vm_header *h, struct stream *s, struct err *err)
{
	return name_peer(s, load_header(h, s, err), err);
}

void vm_header_fini(struct vm_header *h)
{
	free(h->machine);
	free(h->cpu);
	*h = (struct vm_header){ 0 };
}

int vm_check_cpu(const struct kvm *kvm, const struct vm_header *h, struct err *err)
{
	struct arch_cpu *c = arch_cpu_load(1, h->cpu, h->cpu_len, err);
	int rc = c ? arch_cpu_check(c, kvm->fd, err) : err->code;

	arch_cpu_free(c);
	return rc;
}

/* ---- saving ---- */

struct sum {
	uint32_t sections, crc;
};

static void add_to_sum(struct sum *sum, unsigned type, const char *name, const void *data,
		       size_t len)
{
	uint16_t t = (uint16_t)type;

	sum->sections++;
	sum->crc = crc32c(sum->crc, &t, sizeof(t));
	sum->crc = crc32c(sum->crc, name, strlen(name));
	sum->crc = crc32c(sum->crc, data, len);
}

struct saving {
	struct stream *s;
	struct arch_clock clock;
	struct sum sum;
	struct state_buf buf;
};

static int emit(struct saving *g, unsigned type, const char *name, struct err *err)
{
	if (g->buf.len > STATE_MAX)
		return err_set(err, EFBIG, "the state of %s is too large",
			       *name ? name : section_name(type));
	add_to_sum(&g->sum, type, name, g->buf.data, g->buf.len);
	int rc = stream_put(g->s, (uint16_t)type, 0, name, g->buf.data, g->buf.len, err);

	g->buf.len = 0;
	return rc;
}

static int put_string(struct state_buf *b, const char *text)
{
	uint16_t len = (uint16_t)strlen(text);
	int rc = state_buf_put(b, &len, sizeof(len));

	return rc ? rc : state_buf_put(b, text, len);
}

static int put_part(struct state_buf *b, const struct state_part *p)
{
	uint32_t len = 0;
	int rc = put_string(b, p->desc->name);

	if (!rc)
		rc = state_buf_put(b, &len, sizeof(len)); /* known afterwards */
	size_t from = b->len;

	if (!rc)
		rc = state_save(p->desc, p->regs, b);
	if (!rc) {
		len = (uint32_t)(b->len - from);
		memcpy(b->data + from - sizeof(len), &len, sizeof(len));
	}
	return rc;
}

static int save_device(struct saving *g, struct device *d, struct err *err)
{
	uint16_t n = (uint16_t)d->nparts;
	int rc;

	pthread_mutex_lock(&d->lock);
	rc = put_string(&g->buf, d->ops->type);
	if (!rc)
		rc = state_buf_put(&g->buf, &n, sizeof(n));
	for (unsigned i = 0; i < d->nparts && !rc; i++)
		rc = put_part(&g->buf, &d->parts[i]);
	pthread_mutex_unlock(&d->lock);
	return rc ? err_set(err, ENOMEM, "out of memory for the state of %s", d->name) :
		    emit(g, SECTION_DEVICE, d->name, err);
}

static int save_vcpu(struct saving *g, const struct vm *vm, unsigned i, struct err *err)
{
	char name[16];
	int rc = arch_vcpu_save(vm->vcpus.v[i].fd, vm->cpu, i, &g->clock, &g->buf, err);

	snprintf(name, sizeof(name), "%u", i);
	return rc ? err_prefix(err, "vCPU %u", i) : emit(g, SECTION_VCPU, name, err);
}

static int save_sections(struct saving *g, struct vm *vm, struct err *err)
{
	int rc = arch_clock_save(vm->fd, vm->vcpus.v[0].fd, &g->clock, &g->buf, err);

	if (!rc)
		rc = emit(g, SECTION_CLOCK, "", err);
	if (!rc)
		rc = arch_chips_save(vm->fd, &g->buf, err);
	if (!rc)
		rc = emit(g, SECTION_CHIPS, "", err);
	for (unsigned i = 0; i < vm->ndevices && !rc; i++)
		rc = save_device(g, vm->devices[i], err);
	for (unsigned i = 0; i < vm->vcpus.count && !rc; i++)
		rc = save_vcpu(g, vm, i, err);
	return rc;
}

int vm_state_save(struct vm *vm, struct stream *s, struct err *err)
{
	struct saving g = { .s = s };
	int rc = save_sections(&g, vm, err);

	state_buf_fini(&g.buf);
	if (rc)
		return rc;
	struct end_regs end = { .sections = g.sum.sections, .sum = g.sum.crc };

	return put_table(s, SECTION_END, &end_state, &end, err);
}

/* ---- loading ---- */

struct input {
	const uint8_t *data;
	size_t len;
};

static bool take(struct input *in, void *to, size_t len)
{
	if (len > in->len)
		return false;
	memcpy(to, in->data, len);
	in->data += len;
	in->len -= len;
	return true;
}

static bool take_string(struct input *in, char *to, size_t room)
{
	uint16_t len;

	if (!take(in, &len, sizeof(len)) || len >= room || !take(in, to, len))
		return false;
	to[len] = '\0';
	return strlen(to) == len;
}

static bool take_part(struct input *in, struct device_state_part *p)
{
	uint32_t len;

	if (!take_string(in, p->table, sizeof(p->table)) || !take(in, &len, sizeof(len)) ||
	    len > in->len)
		return false;
	p->data = in->data;
	p->len = len;
	in->data += len;
	in->len -= len;
	return true;
}

int device_state_parse(struct device_state *d, const void *data, size_t len, struct err *err)
{
	struct input in = { data, len };

	if (!take_string(&in, d->type, sizeof(d->type)) ||
	    !take(&in, &d->nparts, sizeof(d->nparts)))
		return err_set(err, EINVAL, "it ends within its type");
	if (d->nparts > DEVICE_PARTS_MAX)
		return err_set(err, EINVAL, "%u parts, at most %u are possible", d->nparts,
			       DEVICE_PARTS_MAX);
	for (unsigned i = 0; i < d->nparts; i++)
		if (!take_part(&in, &d->parts[i]))
			return err_set(err, EINVAL, "it ends within part %u of %u", i, d->nparts);
	if (in.len)
		return err_set(err, EINVAL, "%zu bytes follow its last part", in.len);
	return 0;
}

static unsigned count_saved(const struct device_state *s, const char *table)
{
	unsigned n = 0;

	for (unsigned i = 0; i < s->nparts; i++)
		n += !strcmp(s->parts[i].table, table);
	return n;
}

static unsigned count_here(const struct device *d, const char *table)
{
	unsigned n = 0;

	for (unsigned i = 0; i < d->nparts; i++)
		n += !strcmp(d->parts[i].desc->name, table);
	return n;
}

/* Which table is it that the two do not have alike? */
static int explain_parts(const struct device *d, const struct device_state *s, struct err *err)
{
	for (unsigned i = 0; i < d->nparts + s->nparts; i++) {
		const char *table = i < d->nparts ? d->parts[i].desc->name :
						    s->parts[i - d->nparts].table;
		unsigned saved = count_saved(s, table), here = count_here(d, table);

		if (saved != here)
			return err_set(err, EINVAL,
				       "it was saved with %u of %s, this machine's has %u", saved,
				       table, here);
	}
	return err_set(err, EINVAL, "its parts are not in the order of this machine's");
}

static bool same_parts(const struct device *d, const struct device_state *s)
{
	for (unsigned i = 0; i < d->nparts; i++)
		if (i >= s->nparts || strcmp(d->parts[i].desc->name, s->parts[i].table))
			return false;
	return d->nparts == s->nparts;
}

int device_state_load(struct device *d, const void *data, size_t len, struct err *err)
{
	cleanup_free struct device_state *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return err_set(err, ENOMEM, "out of memory");
	rc = device_state_parse(s, data, len, err);
	if (rc)
		return rc;
	if (strcmp(s->type, d->ops->type))
		return err_set(err, EINVAL, "it was saved as %s, this machine's is %s", s->type,
			       d->ops->type);
	if (!same_parts(d, s))
		return explain_parts(d, s, err);
	pthread_mutex_lock(&d->lock);
	for (unsigned i = 0; i < d->nparts && !rc; i++)
		rc = state_load(d->parts[i].desc, d->parts[i].regs, d->parts[i].device,
				s->parts[i].data, s->parts[i].len, err);
	pthread_mutex_unlock(&d->lock);
	return rc;
}

struct loading {
	struct vm *vm;
	bool ran; /* the clock went on */
	struct arch_clock clock;
	struct sum sum;
	unsigned last; /* type of the section before */
	bool device[VM_DEVICES_MAX], clock_seen, chips_seen;
	unsigned vcpus; /* so many were loaded, in order */
};

static int load_device(struct loading *g, const struct stream_section *sec, struct err *err)
{
	struct vm *vm = g->vm;

	for (unsigned i = 0; i < vm->ndevices; i++) {
		if (strcmp(vm->devices[i]->name, sec->name))
			continue;
		if (g->device[i])
			return err_set(err, EPROTO, "it is there twice");
		g->device[i] = true;
		return device_state_load(vm->devices[i], sec->data, (size_t)sec->len, err);
	}
	return err_set(err, EINVAL, "this machine has no such device");
}

static int load_vcpu(struct loading *g, const struct stream_section *sec, struct err *err)
{
	struct vm *vm = g->vm;
	char name[16];

	snprintf(name, sizeof(name), "%u", g->vcpus);
	if (strcmp(name, sec->name) || g->vcpus >= vm->vcpus.count)
		return err_set(err, EPROTO, "this machine has %u vCPUs, and number %u comes next",
			       vm->vcpus.count, g->vcpus);
	return arch_vcpu_load(vm->vcpus.v[g->vcpus++].fd, vm->cpu, &g->clock, sec->data,
			      (size_t)sec->len, err);
}

static int load_clock(struct loading *g, const struct stream_section *sec, struct err *err)
{
	if (g->clock_seen)
		return err_set(err, EPROTO, "it is there twice");
	g->clock_seen = true;
	return arch_clock_load(g->vm->fd, g->ran, sec->data, (size_t)sec->len, &g->clock, err);
}

static int load_chips(struct loading *g, const struct stream_section *sec, struct err *err)
{
	if (g->chips_seen)
		return err_set(err, EPROTO, "it is there twice");
	g->chips_seen = true;
	return arch_chips_load(g->vm->fd, sec->data, (size_t)sec->len, err);
}

static int load_end(struct loading *g, const struct stream_section *sec, struct err *err)
{
	const struct vm *vm = g->vm;
	struct end_regs end = { 0 };
	int rc = state_load_new(&end_state, &end, NULL, sec->data, (size_t)sec->len, err);

	if (rc)
		return rc;
	if (end.sections != g->sum.sections || end.sum != g->sum.crc)
		return err_set(err, EPROTO, "%u sections were written, %u are there%s",
			       end.sections, g->sum.sections,
			       end.sections == g->sum.sections ? ", but not the same" : "");
	/* One without state may be younger than the snapshot: there is nothing it could lack. */
	for (unsigned i = 0; i < vm->ndevices; i++)
		if (!g->device[i] && vm->devices[i]->nparts)
			return err_set(err, EINVAL, "this machine's %s was not saved",
				       vm->devices[i]->name);
	if (g->vcpus != vm->vcpus.count)
		return err_set(err, EINVAL, "%u vCPUs were saved, this machine has %u", g->vcpus,
			       vm->vcpus.count);
	if (!g->clock_seen || !g->chips_seen)
		return err_set(err, EPROTO, "the %s is missing", g->clock_seen ? "chips" : "clock");
	return 0;
}

static int load_section(struct loading *g, const struct stream_section *sec, struct err *err)
{
	if (sec->type < g->last)
		return err_set(err, EPROTO, "it is behind %s, where it cannot be",
			       section_name(g->last));
	switch (sec->type) {
	case SECTION_CLOCK:
		return load_clock(g, sec, err);
	case SECTION_CHIPS:
		return load_chips(g, sec, err);
	case SECTION_DEVICE:
		return load_device(g, sec, err);
	case SECTION_VCPU:
		return load_vcpu(g, sec, err);
	case SECTION_END:
		return load_end(g, sec, err);
	default:
		return err_set(err, EPROTO, "it does not belong here");
	}
}

static bool is_ours(unsigned type)
{
	return type >= SECTION_CLOCK && type <= SECTION_END;
}

static int load_sections(struct vm *vm, struct stream *s, enum vm_clock clock, struct err *err)
{
	struct loading g = { .vm = vm, .ran = clock == VM_CLOCK_RAN };
	struct stream_section sec;

	stream_name_types(s, section_name);
	for (;;) {
		int rc = stream_get(s, &sec, err);

		if (rc < 0)
			return rc;
		if (!rc)
			return err_set(err, ENODATA, "it ends before section end");
		if (!is_ours(sec.type) && sec.flags & STREAM_OPTIONAL) {
			if (sec.data)
				add_to_sum(&g.sum, sec.type, sec.name, sec.data, (size_t)sec.len);
			continue;
		}
		const char *name = section_name(sec.type);

		rc = name && sec.data ?
			     load_section(&g, &sec, err) :
			     err_set(err, EPROTO, "its type %u is not known here", sec.type);
		if (rc)
			return err_prefix(err, "section %s%s%s", name ? name : "?",
					  *sec.name ? " " : "", sec.name);
		if (sec.type == SECTION_END)
			return 0;
		add_to_sum(&g.sum, sec.type, sec.name, sec.data, (size_t)sec.len);
		g.last = sec.type;
	}
}

int vm_state_load(struct vm *vm, struct stream *s, enum vm_clock clock, struct err *err)
{
	return name_peer(s, load_sections(vm, s, clock, err), err);
}
