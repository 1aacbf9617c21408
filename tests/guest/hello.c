/*
 * hello.c - the guest is there: how it was started and with what
 */
#include "guest.h"

void guest_main(void)
{
	static const char *const how[] = { "unknown", "pvh", "multiboot" };
	char expect[16];

	print("hello from a guest started by %s\n", how[boot.how]);
	print("command line: %s\n", boot.cmdline);
	if (arg("boot", expect, sizeof(expect)))
		check(!strcmp(how[boot.how], expect), "boot", "started by %s", how[boot.how]);
	check(boot.ranges > 0, "memory-map", "empty");
	check(boot.rsdp != 0, "rsdp", "not found");
	if (boot.module) { /* what the initrd holds, for the host to compare */
		uint32_t sum = 0;

		for (uint64_t i = 0; i < boot.module_size; i++)
			sum = sum * 31 + *(uint8_t *)(boot.module + i);
		print("module %lu bytes, sum %08x\n", boot.module_size, sum);
	}
	if (arg("echo", expect, sizeof(expect))) { /* until a dot */
		int c;

		print("ready\n");
		while ((c = get_char()) != '.')
			put_char((char)c);
		print("\n");
	}
}
