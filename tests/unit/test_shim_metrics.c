/*
 * test_shim_metrics.c - what a control group has used, as containerd's messages
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fd.h"
#include "k8s-shim/cgroup.h"
#include "k8s-shim/proto/metrics.pb-c.h"

struct file {
	const char *name, *text;
};

/* A group with files of these contents; its figures. All is gone again after it. */
static void figures(struct cgroup *cg, const struct file *files, size_t n, Pb__Any *out)
{
	char dir[] = "/tmp/coracle-metrics-XXXXXX", path[128];
	struct err err = { 0 };

	assert_non_null(mkdtemp(dir));
	cg->nmounts = 1;
	cg->mounts[0].dir = dir;
	for (size_t i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, files[i].name);
		cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

		assert_int_equal(fd_write_all(fd, files[i].text, strlen(files[i].text)), 0);
	}
	assert_int_equal(cgroup_metrics(cg, out, &err), 0);
	for (size_t i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, files[i].name);
		unlink(path);
	}
	assert_int_equal(rmdir(dir), 0);
}

static void test_version_1(void **state)
{
	static const struct file files[] = {
		{ "cpuacct.usage", "5000\n" },
		{ "cpuacct.stat", "user 3\nsystem 2\n" },
		{ "memory.usage_in_bytes", "4096\n" },
		{ "memory.stat", "rss 1024\ntotal_inactive_file 512\n" },
		{ "memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 7\n" },
		{ "pids.current", "2\n" },
	};
	struct cgroup cg = {
		.mounts = { { .controllers = (char *)",cpu,cpuacct,memory,pids," } },
	};
	Pb__Any any = PB__ANY__INIT;

	figures(&cg, files, sizeof(files) / sizeof(files[0]), &any);
	assert_string_equal(any.type_url, "io.containerd.cgroups.v1.Metrics");
	Pb__V1Metrics *m = pb__v1_metrics__unpack(NULL, any.value.len, any.value.data);

	assert_non_null(m);
	assert_int_equal(m->cpu->usage->total, 5000);
	assert_int_equal(m->cpu->usage->user, 30000000);
	assert_int_equal(m->memory->usage->usage, 4096);
	assert_int_equal(m->memory->rss, 1024);
	assert_int_equal(m->memory->total_inactive_file, 512);
	assert_int_equal(m->memory_oom_control->under_oom, 1);
	assert_int_equal(m->memory_oom_control->oom_kill, 7);
	assert_int_equal(m->pids->current, 2);
	pb__v1_metrics__free_unpacked(m, NULL);
	free(any.value.data);
}

static void test_version_2(void **state)
{
	static const struct file files[] = {
		{ "cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\n" },
		{ "memory.current", "4096\n" },
		{ "memory.max", "max\n" },
		{ "memory.stat", "anon 1024\n" },
		{ "memory.events", "low 0\noom 1\noom_kill 7\n" },
	};
	struct cgroup cg = { .unified = true, .mounts = { { .controllers = (char *)"" } } };
	Pb__Any any = PB__ANY__INIT;

	figures(&cg, files, sizeof(files) / sizeof(files[0]), &any);
	assert_string_equal(any.type_url, "io.containerd.cgroups.v2.Metrics");
	Pb__V2Metrics *m = pb__v2_metrics__unpack(NULL, any.value.len, any.value.data);

	assert_non_null(m);
	assert_int_equal(m->cpu->usage_usec, 5);
	assert_int_equal(m->memory->usage, 4096);
	assert_true(m->memory->usage_limit == UINT64_MAX);
	assert_int_equal(m->memory->anon, 1024);
	assert_int_equal(m->memory_events->oom_kill, 7);
	pb__v2_metrics__free_unpacked(m, NULL);
	free(any.value.data);
}

static void test_no_group(void **state)
{
	const struct cgroup none = { 0 };
	Pb__Any any = PB__ANY__INIT;
	struct err err = { 0 };

	assert_int_not_equal(cgroup_metrics(&none, &any, &err), 0);
	assert_string_equal(err.msg, "the task has no control group");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_version_1),
		cmocka_unit_test(test_version_2),
		cmocka_unit_test(test_no_group),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
