/*
 * cmd_check_host.c - `coracle check-host`: can machines run here, and what will they have
 *
 * For people a table, for scripts --json. The exit status answers the one question that matters before
 * a node is put to use: does Linux run in a machine here.
 */
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#include "vmm/commands.h"
#include "vmm/exit_status.h"
#include "vmm/host_check.h"

static const char *const has_name[] = {
	[HOST_NO] = "no", [HOST_PARTLY] = "partly", [HOST_YES] = "yes"
};

static void print_help(void)
{
	printf("usage: coracle check-host [--json]\n\n"
	       "Find out what this host offers to virtual machines by trying it.\n\n"
	       "  --json  an object: kvm {present, usable, api_version, kind, boots_linux,\n"
	       "          ns_per_instruction, missing_instructions, max_vcpus} and checks, one\n"
	       "          object {has, detail, advice} each; kind is hardware, nested or software\n"
	       "  --help  this\n\n"
	       "Exit status: %d Linux guests run here; %d machines run, but not Linux (KVM "
	       "interprets\n"
	       "guest kernels and lacks instructions); %d no machine runs; %d wrong usage.\n",
	       EXIT_OK, EXIT_TINY_GUESTS, EXIT_HOST, EXIT_USAGE);
}

static void print_table(const struct host_report *r)
{
	size_t width = 0;

	for (unsigned i = 0; i < r->count; i++)
		if (strlen(r->rows[i].key) > width)
			width = strlen(r->rows[i].key);
	for (unsigned i = 0; i < r->count; i++) {
		const struct host_row *row = &r->rows[i];

		printf("%-*s  %-6s  %s\n", (int)width, row->key, has_name[row->has], row->detail);
		if (row->advice)
			printf("%*s  %s\n", (int)width + 8, "", row->advice);
	}
	printf("\n%s\n", r->boots_linux         ? "Linux guests run here." :
			 r->usable && r->probed ? "Only tiny guests run here, Linux does not." :
						  "No machine runs here.");
}

static struct json_object *string_or_null(const char *s)
{
	return s ? json_object_new_string(s) : NULL;
}

static struct json_object *missing_list(const struct host_report *r)
{
	struct json_object *list = json_object_new_array();
	char copy[sizeof(r->probe.missing)], *save = NULL;

	memcpy(copy, r->probe.missing, sizeof(copy));
	for (char *s = strtok_r(copy, ", ", &save); s; s = strtok_r(NULL, ", ", &save))
		json_object_array_add(list, json_object_new_string(s));
	return list;
}

static void print_json(const struct host_report *r)
{
	struct json_object *all = json_object_new_object(), *kvm = json_object_new_object();
	struct json_object *checks = json_object_new_object();

	json_object_object_add(all, "version", json_object_new_string(CORACLE_VERSION));
	json_object_object_add(all, "kvm", kvm);
	json_object_object_add(kvm, "present", json_object_new_boolean(r->api_version > 0));
	json_object_object_add(kvm, "usable", json_object_new_boolean(r->usable && r->probed));
	json_object_object_add(kvm, "api_version", json_object_new_int(r->api_version));
	json_object_object_add(kvm, "kind",
			       string_or_null(r->probed ? host_kind_name(r->probe.kind) : NULL));
	json_object_object_add(kvm, "boots_linux", json_object_new_boolean(r->boots_linux));
	json_object_object_add(kvm, "ns_per_instruction",
			       r->probed ? json_object_new_double(r->probe.ns_per_insn) : NULL);
	json_object_object_add(kvm, "missing_instructions", missing_list(r));
	json_object_object_add(kvm, "max_vcpus", json_object_new_int((int)r->max_vcpus));
	json_object_object_add(all, "checks", checks);
	for (unsigned i = 0; i < r->count; i++) {
		const struct host_row *row = &r->rows[i];
		struct json_object *o = json_object_new_object();

		json_object_object_add(o, "has", json_object_new_string(has_name[row->has]));
		json_object_object_add(o, "detail", json_object_new_string(row->detail));
		json_object_object_add(o, "advice", string_or_null(row->advice));
		json_object_object_add(checks, row->key, o);
	}
	puts(json_object_to_json_string_ext(all, JSON_C_TO_STRING_PRETTY));
	json_object_put(all);
}

int cmd_check_host(int argc, char **argv, struct err *err)
{
	struct host_report r = { .count = 0 };
	bool json = false;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--json")) {
			json = true;
		} else if (!strcmp(argv[i], "--help")) {
			print_help();
			return EXIT_OK;
		} else {
			err_set(err, EINVAL, "no option %.64s: --json and --help are all", argv[i]);
			return EXIT_USAGE;
		}
	}
	host_check_kvm(&r);
	host_check_kernel(&r);
	if (json)
		print_json(&r);
	else
		print_table(&r);
	if (r.boots_linux)
		return EXIT_OK;
	return r.usable && r.probed ? EXIT_TINY_GUESTS : EXIT_HOST;
}
