/*
 * metrics.c - what a task's control group has used, as containerd's cgroup messages
 */
#include <stdlib.h>

#include "k8s-shim/cgroup.h"
#include "k8s-shim/proto/metrics.pb-c.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define TICK_NSEC \
	(UINT64_C(1000000000) / (uint64_t)100) /* USER_HZ is 100 on every architecture here */

static int pack(const ProtobufCMessage *m, const char *type, Pb__Any *out, struct err *err)
{
	out->type_url = (char *)type;
	out->value.len = protobuf_c_message_get_packed_size(m);
	out->value.data = malloc(out->value.len + 1);
	if (!out->value.data)
		return err_set(err, ENOMEM, "out of memory");
	protobuf_c_message_pack(m, out->value.data);
	return 0;
}

static void read_pids(const struct cgroup *cg, Pb__PidsStat *p)
{
	const char *dir = cgroup_dir(cg, "pids");

	p->current = cgroup_number(dir, "pids.current", 0);
	p->limit = cgroup_number(dir, "pids.max", 0);
}

static void read_memory_v1(const char *dir, Pb__V1Memory *m)
{
	const struct cgroup_value v[] = {
		{ "cache", &m->cache },
		{ "rss", &m->rss },
		{ "mapped_file", &m->mapped_file },
		{ "pgfault", &m->pg_fault },
		{ "pgmajfault", &m->pg_maj_fault },
		{ "inactive_anon", &m->inactive_anon },
		{ "active_anon", &m->active_anon },
		{ "inactive_file", &m->inactive_file },
		{ "active_file", &m->active_file },
		{ "unevictable", &m->unevictable },
		{ "total_cache", &m->total_cache },
		{ "total_rss", &m->total_rss },
		{ "total_mapped_file", &m->total_mapped_file },
		{ "total_pgfault", &m->total_pg_fault },
		{ "total_pgmajfault", &m->total_pg_maj_fault },
		{ "total_inactive_anon", &m->total_inactive_anon },
		{ "total_active_anon", &m->total_active_anon },
		{ "total_inactive_file", &m->total_inactive_file },
		{ "total_active_file", &m->total_active_file },
		{ "total_unevictable", &m->total_unevictable },
	};

	cgroup_values(dir, "memory.stat", v, COUNT(v));
	m->usage->usage = cgroup_number(dir, "memory.usage_in_bytes", 0);
	m->usage->limit = cgroup_number(dir, "memory.limit_in_bytes", UINT64_MAX);
	m->usage->max = cgroup_number(dir, "memory.max_usage_in_bytes", 0);
	m->usage->failcnt = cgroup_number(dir, "memory.failcnt", 0);
}

static int metrics_v1(const struct cgroup *cg, Pb__Any *out, struct err *err)
{
	Pb__V1Metrics m = PB__V1_METRICS__INIT;
	Pb__PidsStat pids = PB__PIDS_STAT__INIT;
	Pb__V1Cpu cpu = PB__V1_CPU__INIT;
	Pb__V1CpuUsage usage = PB__V1_CPU_USAGE__INIT;
	Pb__V1Throttle throttle = PB__V1_THROTTLE__INIT;
	Pb__V1Memory memory = PB__V1_MEMORY__INIT;
	Pb__V1MemoryEntry entry = PB__V1_MEMORY_ENTRY__INIT;
	Pb__V1OomControl oom = PB__V1_OOM_CONTROL__INIT;
	const char *acct = cgroup_dir(cg, "cpuacct");
	const struct cgroup_value ticks[] = { { "user", &usage.user },
					      { "system", &usage.kernel } };
	const struct cgroup_value throttled[] = {
		{ "nr_periods", &throttle.periods },
		{ "nr_throttled", &throttle.throttled_periods },
		{ "throttled_time", &throttle.throttled_time },
	};
	const struct cgroup_value ooms[] = {
		{ "oom_kill_disable", &oom.oom_kill_disable },
		{ "under_oom", &oom.under_oom },
		{ "oom_kill", &oom.oom_kill },
	};

	m.pids = &pids;
	m.cpu = &cpu;
	m.memory = &memory;
	cpu.usage = &usage;
	cpu.throttling = &throttle;
	memory.usage = &entry;
	read_pids(cg, &pids);
	usage.total = cgroup_number(acct, "cpuacct.usage", 0);
	cgroup_values(acct, "cpuacct.stat", ticks, COUNT(ticks));
	usage.user *= TICK_NSEC;
	usage.kernel *= TICK_NSEC;
	cgroup_values(cgroup_dir(cg, "cpu"), "cpu.stat", throttled, COUNT(throttled));
	read_memory_v1(cgroup_dir(cg, "memory"), &memory);
	/* Where containerd 2 looks for whether a task that was killed was out of memory. */
	cgroup_values(cgroup_dir(cg, "memory"), "memory.oom_control", ooms, COUNT(ooms));
	m.memory_oom_control = &oom;
	return pack(&m.base, "io.containerd.cgroups.v1.Metrics", out, err);
}

static void read_memory_v2(const char *dir, Pb__V2Memory *m)
{
	const struct cgroup_value v[] = {
		{ "anon", &m->anon },
		{ "file", &m->file },
		{ "kernel_stack", &m->kernel_stack },
		{ "slab", &m->slab },
		{ "sock", &m->sock },
		{ "shmem", &m->shmem },
		{ "file_mapped", &m->file_mapped },
		{ "file_dirty", &m->file_dirty },
		{ "file_writeback", &m->file_writeback },
		{ "anon_thp", &m->anon_thp },
		{ "inactive_anon", &m->inactive_anon },
		{ "active_anon", &m->active_anon },
		{ "inactive_file", &m->inactive_file },
		{ "active_file", &m->active_file },
		{ "unevictable", &m->unevictable },
		{ "slab_reclaimable", &m->slab_reclaimable },
		{ "slab_unreclaimable", &m->slab_unreclaimable },
		{ "pgfault", &m->pgfault },
		{ "pgmajfault", &m->pgmajfault },
	};

	cgroup_values(dir, "memory.stat", v, COUNT(v));
	m->usage = cgroup_number(dir, "memory.current", 0);
	m->usage_limit = cgroup_number(dir, "memory.max", UINT64_MAX);
	m->swap_usage = cgroup_number(dir, "memory.swap.current", 0);
	m->swap_limit = cgroup_number(dir, "memory.swap.max", UINT64_MAX);
}

static int metrics_v2(const struct cgroup *cg, Pb__Any *out, struct err *err)
{
	Pb__V2Metrics m = PB__V2_METRICS__INIT;
	Pb__PidsStat pids = PB__PIDS_STAT__INIT;
	Pb__V2Cpu cpu = PB__V2_CPU__INIT;
	Pb__V2Memory memory = PB__V2_MEMORY__INIT;
	Pb__V2MemoryEvents events = PB__V2_MEMORY_EVENTS__INIT;
	const char *dir = cgroup_dir(cg, "");
	const struct cgroup_value v[] = {
		{ "usage_usec", &cpu.usage_usec },     { "user_usec", &cpu.user_usec },
		{ "system_usec", &cpu.system_usec },   { "nr_periods", &cpu.nr_periods },
		{ "nr_throttled", &cpu.nr_throttled }, { "throttled_usec", &cpu.throttled_usec },
	};
	const struct cgroup_value e[] = {
		{ "low", &events.low }, { "high", &events.high },         { "max", &events.max },
		{ "oom", &events.oom }, { "oom_kill", &events.oom_kill },
	};

	m.pids = &pids;
	m.cpu = &cpu;
	m.memory = &memory;
	m.memory_events = &events;
	read_pids(cg, &pids);
	cgroup_values(dir, "cpu.stat", v, COUNT(v));
	read_memory_v2(dir, &memory);
	cgroup_values(dir, "memory.events", e, COUNT(e));
	return pack(&m.base, "io.containerd.cgroups.v2.Metrics", out, err);
}

int cgroup_metrics(const struct cgroup *cg, Pb__Any *out, struct err *err)
{
	if (!cg->nmounts)
		return err_set(err, ENOENT, "the task has no control group");
	return cg->unified ? metrics_v2(cg, out, err) : metrics_v1(cg, out, err);
}
