// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the lower page cache already holds is not cached a second time, and
 * what it holds newer than the disk is what the mount shows.
 */
#include "common.h"

#define SIZE	(8 * MiB)

FIXTURE(pair) {
	char *want;
	long cache;
	long disk;
};

FIXTURE_SETUP(pair)
{
	self->want = malloc(SIZE);
	fill(self->want, SIZE, 1, 0);
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("b"));
	drop_caches("3");
	fiemap(low("a"), NULL, 0);
	fiemap(low("b"), NULL, 0);
	self->cache = cache_bytes();
	self->disk = disk_read_bytes();
}

FIXTURE_TEARDOWN(pair)
{
	unlink(low("a"));
	unlink(low("b"));
}

/* In hundredths of the file's size. */
#define COPIES()	(100 * (cache_bytes() - self->cache) / (long)SIZE)
#define DISK_READ()	(100 * (disk_read_bytes() - self->disk) / (long)SIZE)

TEST_F(pair, read_below_then_through)
{
	EXPECT_EQ(-1, differs_from(low("a"), self->want, SIZE));
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	EXPECT_GE(103, COPIES());
	EXPECT_GE(110, DISK_READ());
}

TEST_F(pair, mapped_below_then_through)
{
	char *l = map_file(low("a"), SIZE, PROT_READ, MAP_SHARED);
	char *u = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);

	EXPECT_EQ(0, memcmp(l, self->want, SIZE));
	EXPECT_EQ(0, memcmp(u, self->want, SIZE));
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	EXPECT_GE(103, COPIES());
	EXPECT_GE(110, DISK_READ());
}

TEST_F(pair, written_through_then_read)
{
	int fd = open(up("c"), O_RDWR | O_CREAT, 0644);

	/* Still in the lower page cache, dirty, then clean: no second copy. */
	ASSERT_LE(0, fd);
	write_all(fd, self->want, SIZE, 0);
	EXPECT_EQ(-1, differs_from(up("c"), self->want, SIZE));
	EXPECT_GE(103, COPIES());
	EXPECT_EQ(0, fsync(fd));
	EXPECT_EQ(-1, differs_from(up("c"), self->want, SIZE));
	EXPECT_GE(103, COPIES());
	/* (What was written is read from disk once on btrfs.) */
	EXPECT_GE(btrfs ? 110 : 10, DISK_READ());
	close(fd);
	unlink(up("c"));
}

TEST_F(pair, part_below_part_not)
{
	char *buf = malloc(SIZE);
	int fd = open(low("a"), O_RDONLY);

	ASSERT_EQ(SIZE / 2, pread(fd, buf, SIZE / 2, SIZE / 4));
	close(fd);
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	EXPECT_GE(103, COPIES());
	EXPECT_EQ(-1, differs_from(up("b"), self->want, SIZE));
	/* b cannot use a's lower page cache; it must not cost more than itself. */
	EXPECT_GE(203, COPIES());
}

TEST_F(pair, dirty_below_is_seen)
{
	int fd = open(low("a"), O_RDWR);
	char *u = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);

	/* Never read through the mount before ... */
	fill(self->want + 3 * PAGE, PAGE, 2, 0);
	write_all(fd, self->want + 3 * PAGE, PAGE, 3 * PAGE);
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	EXPECT_EQ(0, memcmp(u, self->want, SIZE));
	/* ... and now that it has been. */
	fill(self->want + 5 * PAGE, PAGE, 3, 0);
	write_all(fd, self->want + 5 * PAGE, PAGE, 5 * PAGE);
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	close(fd);
}

TEST_HARNESS_MAIN
