// SPDX-License-Identifier: GPL-2.0-only
/*
 * After fsync, fdatasync, sync_file_range, syncfs and msync the data are on
 * the disk: the blocks of the lower file hold them there.
 */
#include "common.h"
#include "disk.h"

#define SIZE	(32 * PAGE)

FIXTURE(file) {
	char *want;
	int fd;
};

FIXTURE_VARIANT(file) {
	int (*sync)(int fd);
	bool mapped;
};

static int by_range(int fd)
{
	return sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
			       SYNC_FILE_RANGE_WAIT_AFTER);
}

static int by_sync(int fd)
{
	sync();
	return 0;
}

FIXTURE_VARIANT_ADD(file, fsync) { .sync = fsync };
FIXTURE_VARIANT_ADD(file, fdatasync) { .sync = fdatasync };
FIXTURE_VARIANT_ADD(file, sync_file_range) { .sync = by_range };
FIXTURE_VARIANT_ADD(file, syncfs) { .sync = syncfs };
FIXTURE_VARIANT_ADD(file, sync) { .sync = by_sync };
FIXTURE_VARIANT_ADD(file, fsync_of_stores) { .sync = fsync, .mapped = true };
FIXTURE_VARIANT_ADD(file, syncfs_of_stores) { .sync = syncfs, .mapped = true };

FIXTURE_SETUP(file)
{
	self->want = aligned_alloc(PAGE, SIZE);
	fill(self->want, SIZE, 1, 0);
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
	self->fd = open(up("a"), O_RDWR);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(file)
{
	unlink(low("a"));
	unlink(low("twin"));
}

TEST_F(file, is_on_the_disk)
{
	char *p;
	int i;

	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	for (i = 0; i < 3; i++) {
		fill(self->want + i * 9 * PAGE + 100, 2 * PAGE, 10 + i, 0);
		if (variant->mapped)
			memcpy(p + i * 9 * PAGE + 100, self->want + i * 9 * PAGE + 100, 2 * PAGE);
		else
			write_all(self->fd, self->want + i * 9 * PAGE + 100, 2 * PAGE, i * 9 * PAGE + 100);
		/* The test can tell. */
		EXPECT_FALSE(is_on_disk(low("a"), self->want, SIZE)) TH_LOG("round %d", i);
		EXPECT_EQ(0, variant->sync(self->fd));
		EXPECT_TRUE(got_to_disk(low("a"), self->want, SIZE)) TH_LOG("round %d", i);
	}
	munmap(p, SIZE);
	write_text("/proc/sys/vm/drop_caches", "3");
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

static void calls(void)
{
	int fd, dir, ro;

	make_pooled("a", SIZE, 1);
	fd = open("a", O_RDWR);
	ro = open("a", O_RDONLY);
	dir = open(".", O_RDONLY);
	DO(fsync(fd));
	DO(fsync(ro));
	DO(fdatasync(ro));
	DO(fsync(dir));
	DO(fdatasync(dir));
	DO(syncfs(dir));
	DO(syncfs(ro));
	DO(sync_file_range(fd, 0, 0, 0));
	DO(sync_file_range(fd, -1, 0, 0));
	DO(sync_file_range(fd, 0, 0, 0x100));
	DO(sync_file_range(dir, 0, 0, SYNC_FILE_RANGE_WRITE));
	DO(fsync(open("a", O_PATH)));
	mkfifo("fifo", 0600);
	DO(fsync(open("fifo", O_RDWR)));
}

TEST(on_what_it_works)
{
	SAME(calls);
}

/* Blocks of a file that are not on disk after a write through a mount with @flags. */
static long not_written(struct __test_metadata *_metadata, unsigned long flags)
{
	struct fiemap *map = calloc(1, sizeof(*map) + 8 * sizeof(map->fm_extents[0]));
	char at[PATH_MAX], *buf = malloc(SIZE);
	unsigned int i;
	long waiting = 0;
	int fd;

	snprintf(at, sizeof(at), "%s.mnt", low("x"));
	mkdir(at, 0755);
	ASSERT_EQ(0, mount(lower_dir, at, "dedupfs", flags, NULL));
	fd = open(path_of("%s/new", at), O_RDWR | O_CREAT, 0644);
	fill(buf, SIZE, 1, 0);
	write_all(fd, buf, SIZE, 0);
	/* (Not with FIEMAP_FLAG_SYNC, which would write them.) */
	map->fm_length = SIZE;
	map->fm_extent_count = 8;
	EXPECT_EQ(0, ioctl(fd, FS_IOC_FIEMAP, map));
	EXPECT_LT(0, map->fm_mapped_extents);
	for (i = 0; i < map->fm_mapped_extents; i++)
		if (map->fm_extents[i].fe_flags & FIEMAP_EXTENT_DELALLOC)
			waiting += map->fm_extents[i].fe_length / PAGE;
	free(map);
	close(fd);
	unlink(low("new"));
	EXPECT_EQ(0, umount2(at, 0));
	rmdir(at);
	free(buf);
	return waiting;
}

TEST(mounted_with_sync)
{
	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	/* The test can tell. */
	EXPECT_LT(0, not_written(_metadata, 0));
	EXPECT_EQ(0, not_written(_metadata, MS_SYNCHRONOUS));
}

TEST_HARNESS_MAIN
