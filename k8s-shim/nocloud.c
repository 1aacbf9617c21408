/*
 * nocloud.c - an ISO 9660 writer for four files
 *
 * ECMA-119 (which is ISO 9660) with as much of SUSP and RRIP as names with a hyphen in lower case need:
 * one directory, a file's data in one piece. Every number is there twice, little-endian and big-endian,
 * and sectors have 2048 bytes:
 *
 *	0-15  nothing		16  primary volume descriptor	17  end of descriptors
 *	18    path table (L)	19  path table (M)		20  root directory
 *	21... files
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "k8s-shim/nocloud.h"
#include "k8s-shim/rootfs.h"

#define SECTOR       2048u
#define AT_PVD       16u
#define AT_PATH_L    18u
#define AT_PATH_M    19u
#define AT_ROOT      20u
#define AT_FILES     21u
#define SECTORS_MIN  32u /* libarchive takes no image of less than 24 for one */
#define IS_DIRECTORY 2

static const struct {
	const char *iso, *name, *other; /* sorted by iso, as a directory has to be */
} names[NOCLOUD_FILES] = {
	{ "META_DAT.;1", "meta-data", "metadata" },
	{ "NETWORK_.;1", "network-config", "networkdata" },
	{ "USER_DAT.;1", "user-data", "userdata" },
	{ "VENDOR_D.;1", "vendor-data", "vendordata" },
};

/* ---- what goes in ---- */

static int read_file(struct nocloud *n, unsigned which, int fd, const char *name, struct err *err)
{
	struct stat st;

	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || (uint64_t)st.st_size > NOCLOUD_BYTES_MAX)
		return err_set(err, EINVAL, "%s is no regular file of at most %u bytes", name,
			       NOCLOUD_BYTES_MAX);
	uint8_t *data = malloc((size_t)st.st_size + 1);

	if (!data)
		return err_set(err, ENOMEM, "out of memory");
	int rc = fd_pread_all(fd, data, (size_t)st.st_size, 0);

	if (rc) {
		free(data);
		return err_set_sys(err, rc, "cannot read %s", name);
	}
	n->files[which].data = data;
	n->files[which].len = (size_t)st.st_size;
	return 0;
}

int nocloud_read(struct nocloud *n, const char *dir, struct err *err)
{
	cleanup_fd int d = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	memset(n, 0, sizeof(*n));
	if (d < 0)
		return err_set_sys(err, errno, "cannot open %s", dir);
	for (unsigned i = 0; i < NOCLOUD_FILES; i++) {
		cleanup_fd int fd = open_inside(d, names[i].name, O_RDONLY | O_NONBLOCK);

		if (fd < 0)
			fd = open_inside(d, names[i].other, O_RDONLY | O_NONBLOCK);
		int rc = fd < 0 ? 0 : read_file(n, i, fd, names[i].name, err);

		if (rc) {
			nocloud_fini(n);
			return rc;
		}
	}
	return 0;
}

int nocloud_default(struct nocloud *n, enum nocloud_which which, const char *text)
{
	if (n->files[which].data || !text)
		return 0;
	n->files[which].data = (uint8_t *)strdup(text);
	n->files[which].len = strlen(text);
	return n->files[which].data ? 0 : -ENOMEM;
}

void nocloud_fini(struct nocloud *n)
{
	for (unsigned i = 0; i < NOCLOUD_FILES; i++)
		free(n->files[i].data);
	memset(n, 0, sizeof(*n));
}

/* ---- pieces of the format ---- */

static void put_le32(uint8_t *p, uint32_t v)
{
	for (unsigned i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static void put_be32(uint8_t *p, uint32_t v)
{
	for (unsigned i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void put_both32(uint8_t *p, uint32_t v) /* 7.3.3 */
{
	put_le32(p, v);
	put_be32(p + 4, v);
}

static void put_both16(uint8_t *p, uint16_t v) /* 7.2.3 */
{
	p[0] = p[3] = (uint8_t)v;
	p[1] = p[2] = (uint8_t)(v >> 8);
}

/* RRIP 4.1.1, POSIX file attributes: mode, links, uid, gid */
static size_t put_px(uint8_t *p, uint32_t mode)
{
	memcpy(p, "PX\x24\x01", 4);
	put_both32(p + 4, mode);
	put_both32(p + 12, 1);
	put_both32(p + 20, 0);
	put_both32(p + 28, 0);
	return 36;
}

/* RRIP 4.1.4, alternate name */
static size_t put_nm(uint8_t *p, const char *name)
{
	size_t n = strlen(name);

	memcpy(p, "NM", 2);
	p[2] = (uint8_t)(5 + n);
	p[3] = 1;
	memcpy(p + 5, name, n);
	return 5 + n;
}

/* SUSP 5.3 and 5.5, of the root directory's own record: system use follows, by the rules of RRIP */
static size_t put_sp_er(uint8_t *p)
{
	memcpy(p, "SP\x07\x01\xbe\xef\x00", 7);
	memcpy(p + 7, "ER\x12\x01\x0a\x00\x00\x01RRIP_1991A", 18);
	return 25;
}

/* 9.1, a directory record without system use. Its length. */
static size_t put_record(uint8_t *p, const char *name, size_t name_len, uint32_t at, uint32_t len,
			 uint8_t flags)
{
	size_t n = 33 + name_len + (name_len % 2 ? 0 : 1);

	memset(p, 0, n);
	p[0] = (uint8_t)n;
	put_both32(p + 2, at);
	put_both32(p + 10, len);
	memcpy(p + 18, "\x46\x01\x01\x00\x00\x00\x00",
	       7); /* 1970-01-01: the same image every time */
	p[25] = flags;
	put_both16(p + 28, 1);
	p[32] = (uint8_t)name_len;
	memcpy(p + 33, name, name_len);
	return n;
}

/* Records have an even length. */
static size_t end_record(uint8_t *p, size_t len)
{
	len += len % 2;
	p[0] = (uint8_t)len;
	return len;
}

/* ---- the sectors ---- */

static void make_descriptor(uint8_t *s, uint32_t sectors)
{
	memset(s, 0, SECTOR);
	memcpy(s,
	       "\x01"
	       "CD001\x01",
	       7);
	memset(s + 8, ' ', 64);
	memcpy(s + 40, "cidata", 6);
	put_both32(s + 80, sectors);
	put_both16(s + 120, 1);
	put_both16(s + 124, 1);
	put_both16(s + 128, SECTOR);
	put_both32(s + 132, 10); /* bytes of a path table */
	put_le32(s + 140, AT_PATH_L);
	put_be32(s + 148, AT_PATH_M);
	put_record(s + 156, "\0", 1, AT_ROOT, SECTOR, IS_DIRECTORY);
	memset(s + 190, ' ', 813 - 190);
	for (unsigned i = 0; i < 4; i++) /* dates that are not given, 8.4.26.1 */
		memset(s + 813 + 17 * i, '0', 16);
	s[881] = 1;
}

/* 9.4, of the root alone, which is its own parent */
static void make_path_table(uint8_t *s, bool big)
{
	memset(s, 0, SECTOR);
	s[0] = 1;
	if (big)
		put_be32(s + 2, AT_ROOT);
	else
		put_le32(s + 2, AT_ROOT);
	s[big ? 7 : 6] = 1;
}

static uint32_t sectors_of(size_t len)
{
	return (uint32_t)((len + SECTOR - 1) / SECTOR);
}

static void make_root(uint8_t *s, const struct nocloud *n)
{
	uint32_t at = AT_FILES;
	uint8_t *p = s;

	memset(s, 0, SECTOR);
	for (unsigned i = 0; i < 2; i++) { /* itself and its parent */
		size_t len = put_record(p, i ? "\1" : "\0", 1, AT_ROOT, SECTOR, IS_DIRECTORY);

		if (i == 0)
			len += put_sp_er(p + len);
		len += put_px(p + len, S_IFDIR | 0755);
		p += end_record(p, len);
	}
	for (unsigned i = 0; i < NOCLOUD_FILES; i++) {
		if (!n->files[i].data)
			continue;
		size_t len = put_record(p, names[i].iso, strlen(names[i].iso), at,
					(uint32_t)n->files[i].len, 0);

		len += put_px(p + len, S_IFREG | 0644);
		len += put_nm(p + len, names[i].name);
		p += end_record(p, len);
		at += sectors_of(n->files[i].len);
	}
}

static int write_padded(int fd, const uint8_t *data, size_t len)
{
	static const uint8_t zeroes[SECTOR];
	size_t rest = (size_t)sectors_of(len) * SECTOR - len;
	int rc = fd_write_all(fd, data, len);

	return rc ? rc : fd_write_all(fd, zeroes, rest);
}

int nocloud_write(const struct nocloud *n, int fd, struct err *err)
{
	cleanup_free uint8_t *head = calloc(AT_FILES, SECTOR);
	uint32_t used = AT_FILES, sectors;

	if (!head)
		return err_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < NOCLOUD_FILES; i++)
		used += sectors_of(n->files[i].len);
	sectors = used < SECTORS_MIN ? SECTORS_MIN : used;
	make_descriptor(head + AT_PVD * SECTOR, sectors);
	memcpy(head + (AT_PVD + 1) * SECTOR,
	       "\xff"
	       "CD001\x01",
	       7);
	make_path_table(head + AT_PATH_L * SECTOR, false);
	make_path_table(head + AT_PATH_M * SECTOR, true);
	make_root(head + AT_ROOT * SECTOR, n);
	int rc = fd_write_all(fd, head, AT_FILES * SECTOR);

	for (unsigned i = 0; i < NOCLOUD_FILES && !rc; i++)
		if (n->files[i].len)
			rc = write_padded(fd, n->files[i].data, n->files[i].len);
	memset(head, 0, SECTOR);
	for (uint32_t i = used; i < sectors && !rc; i++)
		rc = fd_write_all(fd, head, SECTOR);
	return rc ? err_set_sys(err, rc, "cannot write the cloud-init disk") : 0;
}
