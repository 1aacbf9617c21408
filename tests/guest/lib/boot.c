/*
 * boot.c - what the boot protocol handed over, and the ACPI tables it leads to
 *
 * PVH: Xen's public/arch-x86/hvm/start_info.h. Multiboot 1: specification 0.6.96, 3.3.
 */
#include "guest.h"

struct boot_facts boot;

void boot_parse(enum boot_how how, uint64_t info);

static void add_range(uint64_t base, uint64_t size, uint32_t type)
{
	if (boot.ranges < ARRAY_SIZE(boot.map))
		boot.map[boot.ranges++] = (struct ram_range){ base, size, type };
}

static void parse_pvh(uint64_t info)
{
	struct {
		uint32_t magic, version, flags, modules;
		uint64_t modlist, cmdline, rsdp, memmap;
		uint32_t entries, reserved;
	} s;

	memcpy(&s, (void *)info, sizeof(s));
	if (s.magic != 0x336ec578)
		return;
	boot.cmdline = (const char *)s.cmdline;
	boot.rsdp = s.rsdp;
	for (uint32_t i = 0; i < s.entries && s.version >= 1; i++) {
		uint64_t at = s.memmap + i * 24ull;

		add_range(*(uint64_t *)at, *(uint64_t *)(at + 8), *(uint32_t *)(at + 16));
	}
	if (s.modules) {
		boot.module = *(uint64_t *)s.modlist;
		boot.module_size = *(uint64_t *)(s.modlist + 8);
	}
}

static void parse_multiboot(uint64_t info)
{
	uint32_t flags = *(uint32_t *)info;
	uint64_t at = *(uint32_t *)(info + 48), end = at + *(uint32_t *)(info + 44);

	if (flags & 4)
		boot.cmdline = (const char *)(uint64_t) * (uint32_t *)(info + 16);
	while (flags & 64 && at < end) {
		add_range(*(uint64_t *)(at + 4), *(uint64_t *)(at + 12), *(uint32_t *)(at + 20));
		at += 4 + *(uint32_t *)at;
	}
	if (flags & 8 && *(uint32_t *)(info + 20)) {
		uint64_t mod = *(uint32_t *)(info + 24);

		boot.module = *(uint32_t *)mod;
		boot.module_size = *(uint32_t *)(mod + 4) - *(uint32_t *)mod;
	}
	/* The root pointer is not handed over but found, as on a PC. */
	for (uint64_t p = 0xe0000; p < 0x100000 && !boot.rsdp; p += 16)
		if (!memcmp((void *)p, "RSD PTR ", 8))
			boot.rsdp = p;
}

void boot_parse(enum boot_how how, uint64_t info)
{
	boot.how = how;
	boot.cmdline = "";
	if (how == BOOT_PVH)
		parse_pvh(info);
	else if (how == BOOT_MULTIBOOT)
		parse_multiboot(info);
}

const char *arg(const char *name, char *buf, size_t room)
{
	size_t n = strlen(name);

	for (const char *s = boot.cmdline; *s;) {
		size_t len = 0;

		while (*s == ' ')
			s++;
		while (s[len] && s[len] != ' ')
			len++;
		if (len >= n && !strncmp(s, name, n) && (len == n || s[n] == '=')) {
			size_t from = len == n ? n : n + 1, take = len - from;

			if (take >= room)
				take = room - 1;
			memcpy(buf, s + from, take);
			buf[take] = '\0';
			return buf;
		}
		s += len;
	}
	return NULL;
}

uint64_t arg_number(const char *name, uint64_t otherwise)
{
	char buf[32];
	const char *s = arg(name, buf, sizeof(buf));
	uint64_t v = 0;

	if (!s || !*s)
		return otherwise;
	for (; *s >= '0' && *s <= '9'; s++)
		v = v * 10 + (uint64_t)(*s - '0');
	return v;
}

/* ---- ACPI ---- */

static bool sums_up(const uint8_t *p, uint32_t len)
{
	uint8_t sum = 0;

	for (; len; len--)
		sum += *p++;
	return !sum;
}

static const uint8_t *checked(uint64_t at, const char *signature)
{
	const uint8_t *t = (const uint8_t *)at;

	return at && !memcmp(t, signature, 4) && sums_up(t, *(const uint32_t *)(t + 4)) ? t : NULL;
}

const uint8_t *acpi_table(const char *signature)
{
	const uint8_t *rsdp = (const uint8_t *)boot.rsdp, *xsdt;

	if (!rsdp || memcmp(rsdp, "RSD PTR ", 8) || !sums_up(rsdp, 20) || !sums_up(rsdp, 36))
		return NULL;
	xsdt = checked(*(const uint64_t *)(rsdp + 24), "XSDT");
	if (!xsdt)
		return NULL;
	if (!strcmp(signature, "DSDT")) { /* the FADT points to it */
		const uint8_t *fadt = acpi_table("FACP");

		return fadt ? checked(*(const uint64_t *)(fadt + 140), "DSDT") : NULL;
	}
	for (uint32_t i = 36; i + 8 <= *(const uint32_t *)(xsdt + 4); i += 8) {
		const uint8_t *t = checked(*(const uint64_t *)(xsdt + i), signature);

		if (t)
			return t;
	}
	return NULL;
}
