/*
 * test_shim_nocloud.c - cloud-init's disk, read by others: libarchive, and the kernel where it can
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fd.h"
#include "k8s-shim/nocloud.h"

struct rig {
	char dir[32], secret[48], image[48], mnt[48];
};

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));

	strcpy(r->dir, "/tmp/coracle-nc-XXXXXX");
	assert_non_null(mkdtemp(r->dir));
	snprintf(r->secret, sizeof(r->secret), "%s/secret", r->dir);
	snprintf(r->image, sizeof(r->image), "%s/image", r->dir);
	snprintf(r->mnt, sizeof(r->mnt), "%s/mnt", r->dir);
	assert_int_equal(mkdir(r->secret, 0700) | mkdir(r->mnt, 0700), 0);
	*state = r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;
	char command[64];

	snprintf(command, sizeof(command), "rm -rf %s", r->dir);
	assert_int_equal(system(command), 0);
	free(r);
	return 0;
}

static void put(const struct rig *r, const char *name, const char *data, size_t len)
{
	char path[80];

	snprintf(path, sizeof(path), "%s/%s", r->secret, name);
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, len, f), len);
	fclose(f);
}

static void write_image(const struct rig *r, const struct nocloud *n)
{
	struct err err = { 0 };
	cleanup_fd int fd = open(r->image, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_int_equal(nocloud_write(n, fd, &err), 0);
	assert_int_equal(lseek(fd, 0, SEEK_CUR) % 2048, 0);
}

static bool has(const char *program)
{
	char command[64];

	snprintf(command, sizeof(command), "command -v %s >/dev/null", program);
	return system(command) == 0;
}

/* What bsdtar says, malloc'ed; *len bytes. */
static char *run(const char *command, size_t *len)
{
	char *out = calloc(1, 1 << 21);
	FILE *f = popen(command, "r");

	assert_non_null(f);
	*len = fread(out, 1, (1 << 21) - 1, f);
	assert_int_equal(pclose(f), 0);
	return out;
}

static char *list_files(const struct rig *r, size_t *len)
{
	char command[128];

	snprintf(command, sizeof(command), "bsdtar -tf %s", r->image);
	return run(command, len);
}

static char *extract_file(const struct rig *r, const char *name, size_t *len)
{
	char command[160];

	snprintf(command, sizeof(command), "bsdtar -xOf %s %s", r->image, name);
	return run(command, len);
}

/* As kubelet mounts a Secret: links to a directory that it swaps */
static void fill_secret(const struct rig *r)
{
	char path[80];

	snprintf(path, sizeof(path), "%s/..2026", r->secret);
	assert_int_equal(mkdir(path, 0700), 0);
	put(r, "..2026/user-data", "#cloud-config\nusers: []\n", 24);
	snprintf(path, sizeof(path), "%s/..data", r->secret);
	assert_int_equal(symlink("..2026", path), 0);
	snprintf(path, sizeof(path), "%s/user-data", r->secret);
	assert_int_equal(symlink("..data/user-data", path), 0);
}

static void test_read_by_libarchive(void **state)
{
	struct rig *r = *state;
	struct nocloud n;
	struct err err = { 0 };
	size_t len;

	if (!has("bsdtar"))
		skip();
	fill_secret(r);
	assert_int_equal(nocloud_read(&n, r->secret, &err), 0);
	assert_int_equal(nocloud_default(&n, NOCLOUD_META, "instance-id: one\n"), 0);
	assert_int_equal(nocloud_default(&n, NOCLOUD_USER, "not this"), 0);
	write_image(r, &n);
	nocloud_fini(&n);
	char *list = list_files(r, &len);

	assert_string_equal(list, ".\nmeta-data\nuser-data\n");
	free(list);
	char *user = extract_file(r, "user-data", &len);

	assert_string_equal(user, "#cloud-config\nusers: []\n");
	free(user);
	char *meta = extract_file(r, "meta-data", &len);

	assert_string_equal(meta, "instance-id: one\n");
	free(meta);
}

/* Lengths around a sector's end, all four files, every byte */
static void test_sizes(void **state)
{
	static const size_t sizes[][NOCLOUD_FILES] = { { 1, 2047, 2048, 2049 },
						       { 0, 4096, 0, 1 },
						       { 1 << 20, 1, 1, 100000 } };
	static const char *const names[] = { "meta-data", "network-config", "user-data",
					     "vendor-data" };
	struct rig *r = *state;

	if (!has("bsdtar"))
		skip();
	for (unsigned k = 0; k < 3; k++) {
		struct nocloud n = { 0 };

		for (unsigned i = 0; i < NOCLOUD_FILES; i++) {
			n.files[i].len = sizes[k][i];
			n.files[i].data = malloc(sizes[k][i] + 1);
			for (size_t j = 0; j < sizes[k][i]; j++)
				n.files[i].data[j] = (uint8_t)(j * 7 + i);
		}
		write_image(r, &n);
		for (unsigned i = 0; i < NOCLOUD_FILES; i++) {
			size_t len;
			char *got = extract_file(r, names[i], &len);

			assert_int_equal(len, sizes[k][i]);
			assert_memory_equal(got, n.files[i].data, len);
			free(got);
		}
		nocloud_fini(&n);
	}
}

static void test_label(void **state)
{
	struct rig *r = *state;
	struct nocloud n = { 0 };
	char command[128], out[64] = { 0 };

	nocloud_default(&n, NOCLOUD_USER, "x");
	write_image(r, &n);
	nocloud_fini(&n);
	snprintf(command, sizeof(command), "blkid -p -s LABEL -s TYPE -o value %s", r->image);
	FILE *f = popen(command, "r");

	assert_non_null(f);
	assert_true(fread(out, 1, sizeof(out) - 1, f) > 0);
	assert_int_equal(pclose(f), 0);
	assert_non_null(strstr(out, "cidata\n")); /* cloud-init looks for this */
	assert_non_null(strstr(out, "iso9660\n"));
}

static bool kernel_reads_iso9660(void)
{
	return geteuid() == 0 &&
	       system("modprobe isofs 2>/dev/null; grep -qw iso9660 /proc/filesystems") == 0;
}

static void test_mounted(void **state)
{
	struct rig *r = *state;
	struct nocloud n = { 0 };
	char command[160], text[64] = { 0 };

	if (!kernel_reads_iso9660()) {
		print_message("# SKIP this kernel has no iso9660\n");
		skip();
	}
	nocloud_default(&n, NOCLOUD_USER, "#cloud-config\n");
	nocloud_default(&n, NOCLOUD_META, "instance-id: one\n");
	write_image(r, &n);
	nocloud_fini(&n);
	snprintf(command, sizeof(command), "mount -o loop,ro %s %s", r->image, r->mnt);
	assert_int_equal(system(command), 0);
	snprintf(command, sizeof(command), "%s/user-data", r->mnt);
	FILE *f = fopen(command, "r");
	size_t len = f ? fread(text, 1, sizeof(text) - 1, f) : 0;

	if (f)
		fclose(f);
	assert_int_equal(umount(r->mnt), 0);
	assert_int_equal(len, 14);
	assert_string_equal(text, "#cloud-config\n");
}

static void test_other_names(void **state)
{
	struct rig *r = *state;
	struct nocloud n;
	struct err err = { 0 };

	put(r, "userdata", "u", 1);
	put(r, "networkdata", "n", 1);
	assert_int_equal(nocloud_read(&n, r->secret, &err), 0);
	assert_memory_equal(n.files[NOCLOUD_USER].data, "u", 1);
	assert_memory_equal(n.files[NOCLOUD_NETWORK].data, "n", 1);
	assert_null(n.files[NOCLOUD_META].data);
	nocloud_fini(&n);
}

/* A volume's content is the pod's: no link in it leads out of it, and no device stops us. */
static void test_hostile_volume(void **state)
{
	struct rig *r = *state;
	struct nocloud n;
	struct err err = { 0 };
	char path[80], big[4096];

	snprintf(path, sizeof(path), "%s/user-data", r->secret);
	assert_int_equal(symlink("/etc/passwd", path), 0);
	assert_int_equal(nocloud_read(&n, r->secret, &err), 0);
	assert_null(n.files[NOCLOUD_USER].data);
	nocloud_fini(&n);
	unlink(path);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_int_not_equal(nocloud_read(&n, r->secret, &err), 0);
	unlink(path);
	memset(big, 'x', sizeof(big));
	cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	for (unsigned i = 0; i < NOCLOUD_BYTES_MAX / sizeof(big) + 1; i++)
		assert_int_equal(write(fd, big, sizeof(big)), sizeof(big));
	assert_int_not_equal(nocloud_read(&n, r->secret, &err), 0);
	assert_non_null(strstr(err.msg, "user-data"));
	assert_int_not_equal(nocloud_read(&n, "/nowhere", &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_read_by_libarchive, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sizes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_label, setup, teardown),
		cmocka_unit_test_setup_teardown(test_mounted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_other_names, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_volume, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
