/*
 * boot_sniff.c - what a file that is no kernel of ours is
 *
 * Only for the error message: most wrong files are a few well-known things, and naming the one at hand
 * tells its owner what went wrong.
 */
#include <stdio.h>
#include <string.h>

#include "vmm/x86_64/boot.h"

struct magic {
	unsigned off, len;
	const char *bytes, *name;
};

static const struct magic magics[] = {
	{ 0, 2, "\x1f\x8b", "a gzip file (uncompress it first)" },
	{ 0, 6,
	  "\xfd"
	  "7zXZ\0",
	  "an xz file (uncompress it first)" },
	{ 0, 4, "\x28\xb5\x2f\xfd", "a zstd file (uncompress it first)" },
	{ 0, 4, "\x02\x21\x4c\x18", "an LZ4 file (uncompress it first)" },
	{ 0, 3, "BZh", "a bzip2 file (uncompress it first)" },
	{ 56, 4, "ARM\x64", "an arm64 kernel Image" },
	{ 56, 4, "RSC\x05", "a RISC-V kernel Image" },
	{ 0, 6, "070701", "a cpio archive (an initrd?)" },
	{ 0, 4, "QFI\xfb", "a qcow2 disk image" },
	{ 0, 4, "KDMV", "a VMDK disk image" },
	{ 0, 8, "conectix", "a VHD disk image" },
	{ 0, 8, "vhdxfile", "a VHDX disk image" },
	{ 0, 4, "hsqs", "a squashfs file system" },
	{ 0x438, 2, "\x53\xef", "an ext file system" },
	{ 257, 5, "ustar", "a tar archive" },
	{ 0, 8, "!<arch>\n", "a Debian package or ar archive" },
	{ 0, 4, "\x50\x4b\x03\x04", "a zip archive" },
	{ 0, 4, "\xed\xab\xee\xdb", "an RPM package" },
	{ 0, 2, "#!", "a script" },
	{ 0, 2, "MZ", "a PE program (EFI?), not a Linux bzImage" },
};

static const char *elf_kind(const uint8_t *h, size_t len, char *buf, size_t room)
{
	unsigned machine;

	if (len < 20)
		return "a truncated ELF file";
	machine = h[18] | h[19] << 8;
	if (machine != 3 && machine != 62) {
		snprintf(buf, room, "an ELF file for %s",
			 machine == 183 ? "arm64" :
			 machine == 40  ? "arm" :
			 machine == 243 ? "RISC-V" :
			 machine == 22  ? "s390" :
			 machine == 21  ? "POWER" :
					  "another kind of processor");
		return buf;
	}
	snprintf(buf, room, "a %s-bit x86 ELF file without a PVH note or multiboot header",
		 h[4] == 2 ? "64" : "32");
	return buf;
}

static bool is_text(const uint8_t *h, size_t len)
{
	size_t i;

	if (len > 512)
		len = 512;
	for (i = 0; i < len; i++)
		if ((h[i] < 0x20 && !strchr("\t\n\r\f", h[i])) || h[i] == 0 || h[i] == 0x7f)
			return false;
	return true;
}

const char *boot_sniff(const uint8_t *h, size_t len, char *buf, size_t room)
{
	size_t i;

	if (len >= 4 && !memcmp(h, "\177ELF", 4))
		return elf_kind(h, len, buf, room);
	for (i = 0; i < sizeof(magics) / sizeof(magics[0]); i++) {
		const struct magic *m = &magics[i];

		if (len >= m->off + m->len && !memcmp(h + m->off, m->bytes, m->len))
			return m->name;
	}
	if (len >= 512 && h[510] == 0x55 && h[511] == 0xaa)
		return "a disk image or boot sector";
	if (is_text(h, len))
		return "a text file";
	for (i = 0; i < len && !h[i]; i++)
		;
	if (i == len)
		return "a file of zeroes";
	snprintf(buf, room, "of no known type (it begins %02x %02x %02x %02x)", h[0],
		 len > 1 ? h[1] : 0, len > 2 ? h[2] : 0, len > 3 ? h[3] : 0);
	return buf;
}
