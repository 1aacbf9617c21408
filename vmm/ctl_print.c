/*
 * ctl_print.c - answers of a machine as a person reads them
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "vmm/ctl_print.h"
#include "vmm/json_util.h"

/* Text for a column; nothing in it moves the terminal's cursor. */
static const char *clean(const char *text, char *buf, size_t room)
{
	size_t i;

	for (i = 0; text[i] && i < room - 1; i++)
		buf[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? '?' : text[i];
	buf[i] = '\0';
	return buf;
}

static struct json_object *get(struct json_object *o, const char *key)
{
	struct json_object *value = NULL;

	if (json_object_is_type(o, json_type_object))
		json_object_object_get_ex(o, key, &value);
	return value;
}

static const char *text_of(struct json_object *o, char *buf, size_t room)
{
	return o ? clean(json_object_get_string(o), buf, room) : "-";
}

static const char *duration(uint64_t ms, char *buf, size_t room)
{
	uint64_t s = ms / 1000;

	if (s < 60)
		snprintf(buf, room, "%" PRIu64 ".%" PRIu64 " s", s, ms % 1000 / 100);
	else if (s < 3600)
		snprintf(buf, room, "%" PRIu64 " min %" PRIu64 " s", s / 60, s % 60);
	else if (s < 86400)
		snprintf(buf, room, "%" PRIu64 " h %" PRIu64 " min", s / 3600, s / 60 % 60);
	else
		snprintf(buf, room, "%" PRIu64 " d %" PRIu64 " h", s / 86400, s / 3600 % 24);
	return buf;
}

static void row(FILE *f, const char *label, struct json_object *value)
{
	char buf[512];

	if (value)
		fprintf(f, "%-10s %s\n", label, text_of(value, buf, sizeof(buf)));
}

static void print_devices(FILE *f, struct json_object *all)
{
	char name[80], type[40], worker[40];

	if (!json_object_is_type(all, json_type_array))
		return;
	for (size_t i = 0; i < json_object_array_length(all); i++) {
		struct json_object *d = json_object_array_get_idx(all, i);

		fprintf(f, "%-10s %-20s %s%s%s\n", i ? "" : "devices",
			text_of(get(d, "name"), name, sizeof(name)),
			text_of(get(d, "type"), type, sizeof(type)),
			get(d, "worker") ? ", by " : "",
			get(d, "worker") ? text_of(get(d, "worker"), worker, sizeof(worker)) : "");
	}
}

void ctl_print_info(FILE *f, struct json_object *o)
{
	struct json_object *kernel = get(o, "kernel");
	char buf[512], format[160];

	row(f, "id", get(o, "id"));
	row(f, "state", get(o, "state"));
	row(f, "incoming", get(o, "incoming"));
	if (get(o, "uptime-ms"))
		fprintf(f, "%-10s %s\n", "uptime",
			duration(json_get_u64(o, "uptime-ms"), buf, sizeof(buf)));
	row(f, "pid", get(o, "pid"));
	row(f, "version", get(o, "version"));
	row(f, "vCPUs", get(o, "cpus"));
	if (get(o, "memory"))
		fprintf(f, "%-10s %" PRIu64 " MiB\n", "memory", json_get_u64(o, "memory") >> 20);
	row(f, "transport", get(o, "transport"));
	if (kernel)
		fprintf(f, "%-10s %s (%s)\n", "kernel",
			text_of(get(kernel, "path"), buf, sizeof(buf)),
			text_of(get(kernel, "format"), format, sizeof(format)));
	row(f, "serial", get(o, "console"));
	row(f, "console", get(o, "virtio-console"));
	row(f, "resets", get(o, "resets"));
	row(f, "job", get(o, "job"));
	print_devices(f, get(o, "devices"));
}

static void print_device_stats(FILE *f, struct json_object *devices)
{
	char device[80], counter[80];

	if (!json_object_is_type(devices, json_type_object))
		return;
	fprintf(f, "\n%-20s %-24s %20s\n", "DEVICE", "COUNTER", "VALUE");
	json_object_object_foreach (devices, name, counters) {
		if (!json_object_is_type(counters, json_type_object))
			continue;
		json_object_object_foreach (counters, key, value) {
			fprintf(f, "%-20s %-24s %20" PRIu64 "\n",
				clean(name, device, sizeof(device)),
				clean(key, counter, sizeof(counter)),
				json_object_get_uint64(value));
		}
	}
}

void ctl_print_stats(FILE *f, struct json_object *o)
{
	struct json_object *process = get(o, "process"), *vcpus = get(o, "vcpus");
	char buf[64];

	fprintf(f, "%-10s %s\n", "uptime",
		duration(json_get_u64(o, "uptime-ms"), buf, sizeof(buf)));
	if (get(process, "rss"))
		fprintf(f, "%-10s %.1f MiB\n", "resident",
			(double)json_get_u64(process, "rss") / (1 << 20));
	fprintf(f, "%-10s user %.2f s, system %.2f s\n", "CPU time",
		(double)json_get_u64(process, "user-us") / 1e6,
		(double)json_get_u64(process, "system-us") / 1e6);
	if (json_object_is_type(vcpus, json_type_array)) {
		fprintf(f, "\n%-6s %14s %14s %14s %14s\n", "VCPU", "EXITS", "PIO", "MMIO", "OTHER");
		for (size_t i = 0; i < json_object_array_length(vcpus); i++) {
			struct json_object *v = json_object_array_get_idx(vcpus, i);

			fprintf(f,
				"%-6zu %14" PRIu64 " %14" PRIu64 " %14" PRIu64 " %14" PRIu64 "\n",
				i, json_get_u64(v, "exits"), json_get_u64(v, "pio"),
				json_get_u64(v, "mmio"), json_get_u64(v, "other"));
		}
	}
	print_device_stats(f, get(o, "devices"));
}

void ctl_print_list(FILE *f, struct json_object *infos)
{
	char name[80], state[20], pid[20], cpus[20], memory[40], up[40];

	fprintf(f, "%-20s %-10s %10s %6s %12s  %s\n", "NAME", "STATE", "PID", "VCPUS", "MEMORY",
		"UPTIME");
	for (size_t i = 0; i < json_object_array_length(infos); i++) {
		struct json_object *o = json_object_array_get_idx(infos, i);

		text_of(get(o, "id"), name, sizeof(name));
		text_of(get(o, "state"), state, sizeof(state));
		/* One that waits for its machine does not know what it will be. */
		snprintf(memory, sizeof(memory), "-");
		if (get(o, "memory"))
			snprintf(memory, sizeof(memory), "%" PRIu64 " MiB",
				 json_get_u64(o, "memory") >> 20);
		fprintf(f, "%-20s %-10s %10s %6s %12s  %s\n", name, state,
			text_of(get(o, "pid"), pid, sizeof(pid)),
			text_of(get(o, "cpus"), cpus, sizeof(cpus)), memory,
			get(o, "uptime-ms") ?
				duration(json_get_u64(o, "uptime-ms"), up, sizeof(up)) :
				"-");
	}
}

void ctl_print_state(FILE *f, const char *machine, struct json_object *result)
{
	char name[128], state[64];

	fprintf(f, "%s: %s\n", clean(machine, name, sizeof(name)),
		text_of(get(result, "state"), state, sizeof(state)));
}

void ctl_print_event(FILE *f, struct json_object *o)
{
	struct json_object *params = get(o, "params");
	char buf[256], word[80];

	fprintf(f, "%s", text_of(get(o, "method"), buf, sizeof(buf)));
	if (json_object_is_type(params, json_type_object)) {
		json_object_object_foreach (params, key, value) {
			fprintf(f, " %s=%s", clean(key, word, sizeof(word)),
				text_of(value, buf, sizeof(buf)));
		}
	}
	fputc('\n', f);
}

void ctl_print_json(FILE *f, struct json_object *o)
{
	fputs(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN |
							JSON_C_TO_STRING_NOSLASHESCAPE),
	      f);
	fputc('\n', f);
}
