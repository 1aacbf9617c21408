/*
 * migrate_stages.c - the stages of a migration, as progress events and docs name them
 */
#include "vmm/migrate.h"

const struct migrate_stage_info migrate_stages[MIGRATE_STAGES] = {
	[MIGRATE_CONNECT] = { "connect", "the source greets the target on every connection" },
	[MIGRATE_CHECK] = { "check",
			    "the target looks at the machine, its processor, disks and NICs, "
			    "and accepts or refuses it; no RAM has moved" },
	[MIGRATE_PRECOPY] = { "precopy",
			      "RAM is sent in rounds while the guest runs; each but the first "
			      "has what was written meanwhile" },
	[MIGRATE_SWITCHOVER] = { "switchover",
				 "the guest stands still; the rest of RAM and the devices' "
				 "state are sent, then the disks are handed over" },
	[MIGRATE_RESUMED] = { "resumed", "the guest runs on the target" },
	[MIGRATE_DONE] = { "done", "the source has ended" },
};
