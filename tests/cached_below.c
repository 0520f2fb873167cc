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
	move_clock(-86400);
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("b"));
	move_clock(86400);
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

/* On btrfs what is clean may be wrong: it is read once more, and one copy is left. */
#define AGAIN		(btrfs ? 100 : 0)

TEST_F(pair, read_below_then_through)
{
	EXPECT_EQ(-1, differs_from(low("a"), self->want, SIZE));
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	EXPECT_GE(103, COPIES());
	/* Who finds the inode locked for a moment reads a window (1 MiB) from disk. */
	EXPECT_GE(130 + AGAIN, DISK_READ());
}

TEST_F(pair, mapped_below_then_through)
{
	char *l = map_file(low("a"), SIZE, PROT_READ, MAP_SHARED);
	char *u = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);

	EXPECT_EQ(0, memcmp(l, self->want, SIZE));
	EXPECT_EQ(0, memcmp(u, self->want, SIZE));
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	EXPECT_GE(103, COPIES());
	EXPECT_GE(110 + AGAIN, DISK_READ());
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
	/* (Where write-back takes long, a part of it is read below meanwhile.) */
	EXPECT_GE(TIME_FACTOR > 1 ? 150 : 103, COPIES());
	/* (What was written is read from disk once.) */
	EXPECT_GE(110, DISK_READ());
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

/* --- a direct write that fails half way ---------------------------------------- */

static void read_directly(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_DIRECT);

	if (pread(fd, buf, size, 0) != (ssize_t)size)
		die("direct read of %s", path);
	close(fd);
}

/*
 * Two pages are written in each other's place, from a mapping of the file
 * itself, which brings them into the page cache while they are written; the
 * third is not there.  XFS leaves the old ones in the cache, and it is theirs
 * to do so; but the pool would show them to other files.
 */
static void fail_half_way(struct __test_metadata *_metadata, char *(*at)(const char *fmt, ...))
{
	enum { NR = 2 };
	char *map, *buf, *on_disk = aligned_alloc(PAGE, NR * PAGE), *old = malloc(NR * PAGE);
	int fd, ro;
	ssize_t n;

	make_file(low("x"), NR * PAGE, 3);
	drop_caches("3");
	fd = open(at("x"), O_RDWR | O_DIRECT);
	ro = open(at("x"), O_RDONLY);
	ASSERT_LE(0, fd);
	map = mmap(NULL, NR * PAGE, PROT_READ, MAP_SHARED, ro, 0);
	buf = mmap(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, mmap(buf, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, ro, PAGE));
	ASSERT_NE(MAP_FAILED, mmap(buf + PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, ro, 0));
	munmap(buf + 2 * PAGE, PAGE);
	n = pwrite(fd, buf, 3 * PAGE, 0);
	touch(map, NR * PAGE);
	memcpy(old, map, NR * PAGE);
	read_directly(low("x"), on_disk, NR * PAGE);
	TH_LOG("written: %zd, the page cache is %s", n, memcmp(on_disk, old, NR * PAGE) ?
	       "not what is on the disk" : "right");

	ASSERT_EQ(0, clone_file(at("x"), at("z")));
	hash_read(up("x"), 64 * KiB);
	EXPECT_EQ(-1, differs_from(up("z"), on_disk, NR * PAGE));
	EXPECT_EQ(-1, differs_from(low("z"), on_disk, NR * PAGE));
	munmap(map, NR * PAGE);
	munmap(buf, 2 * PAGE);
	close(fd);
	close(ro);
	unlink(low("x"));
	unlink(low("z"));
	free(on_disk);
	free(old);
}

TEST(direct_write_that_fails_below)
{
	fail_half_way(_metadata, low);
}

TEST(direct_write_that_fails_above)
{
	fail_half_way(_metadata, up);
}

TEST_HARNESS_MAIN
