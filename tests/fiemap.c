// SPDX-License-Identifier: GPL-2.0-only
/*
 * FIEMAP through the mount shows the lower file's extents, flag by flag.
 */
#include "common.h"

#define MAX_EXT	128

static void make_extents(const char *path)
{
	char buf[PAGE];
	int fd = open(path, O_RDWR | O_CREAT, 0644), i;

	fill(buf, PAGE, 1, 0);
	for (i = 0; i < 20; i++) {
		write_all(fd, buf, PAGE, i * 5 * PAGE);
		if (i % 3 == 0)
			fsync(fd);
	}
	fallocate(fd, 0, 200 * PAGE, 20 * PAGE);
	ftruncate(fd, 300 * PAGE + 5);
	fsync(fd);
	close(fd);
}

static int get(const char *path, off_t start, off_t len, unsigned int flags, unsigned int max,
	       struct fiemap *fm)
{
	int fd = open(path, O_RDONLY), ret;

	memset(fm, 0, sizeof(*fm) + MAX_EXT * sizeof(struct fiemap_extent));
	fm->fm_start = start;
	fm->fm_length = len;
	fm->fm_flags = flags;
	fm->fm_extent_count = max;
	ret = ioctl(fd, FS_IOC_FIEMAP, fm) ? -errno : 0;
	close(fd);
	return ret;
}

TEST(same_extents)
{
	const size_t bytes = sizeof(struct fiemap) + MAX_EXT * sizeof(struct fiemap_extent);
	static const struct { off_t start, len; unsigned int flags, max; } asks[] = {
		{ 0, INT64_MAX, 0, MAX_EXT }, { 0, INT64_MAX, FIEMAP_FLAG_SYNC, MAX_EXT },
		{ 0, INT64_MAX, 0, 0 }, { 0, INT64_MAX, 0, 1 }, { 7 * PAGE, 30 * PAGE, 0, MAX_EXT },
		{ 500 * PAGE, PAGE, 0, MAX_EXT }, { 0, 0, 0, MAX_EXT }, { 0, INT64_MAX, 0x80000000, MAX_EXT },
		{ 0, INT64_MAX, FIEMAP_FLAG_XATTR, MAX_EXT }, { -1, 10, 0, 1 },
	};
	static const char * const names[] = { "a", "b", "plain", "." };
	struct fiemap *l = malloc(bytes), *u = malloc(bytes);
	unsigned int i, n;

	make_extents(low("a"));
	make_clone(low("a"), low("b"));
	make_file(low("plain"), 100 * PAGE, 3);
	for (n = 0; n < 4; n++) {
		hash_read(up("%s", names[n]), MiB);
		for (i = 0; i < sizeof(asks) / sizeof(*asks); i++) {
			int want = get(low("%s", names[n]), asks[i].start, asks[i].len, asks[i].flags, asks[i].max, l);

			EXPECT_EQ(want, get(up("%s", names[n]), asks[i].start, asks[i].len, asks[i].flags,
					    asks[i].max, u)) TH_LOG("%s, question %u", names[n], i);
			EXPECT_EQ(0, memcmp(l, u, bytes)) TH_LOG("%s, question %u", names[n], i);
		}
	}
	/* Dirty: delayed allocation shows, too. */
	EXPECT_EQ(0, shell("echo hello >>%s", up("plain")));
	EXPECT_EQ(get(low("plain"), 0, INT64_MAX, 0, MAX_EXT, l), get(up("plain"), 0, INT64_MAX, 0, MAX_EXT, u));
	EXPECT_EQ(0, memcmp(l, u, bytes));
}

static void others(void)
{
	int fd, block;

	make_pooled("a", 10 * PAGE, 1);
	fd = open("a", O_RDONLY);
	block = 3;
	DO(ioctl(fd, FIBMAP, &block));
	DO(ioctl(fd, FIGETBSZ, &block));
	say("%d", block);
	DO(ioctl(fd, FIONREAD, &block));
	say("%d", block);
	DO(ioctl(fd, 0x12345678, &block));
}

TEST(other_ioctls_of_files)
{
	SAME(others);
}

TEST_HARNESS_MAIN
