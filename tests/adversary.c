// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 200
 *
 * What a user without privileges can make that is as large or as odd as the
 * filesystem allows: every call ends soon, and with the right bytes.
 */
#include "common.h"

#define HUGE	(1ULL << 50)

static void on_alarm(int sig)
{
	static const char msg[] = "# this takes too long\n";

	write(2, msg, sizeof(msg) - 1);
	_exit(1);
}

FIXTURE(user) {
	int unused;
};

FIXTURE_SETUP(user)
{
	make_file(low("source"), MiB, 1);
	drop_caches("3");
	signal(SIGALRM, on_alarm);
	alarm(100 * TIME_FACTOR);
}

FIXTURE_TEARDOWN(user)
{
	alarm(0);
}

static int clone_range(int from, uint64_t src, uint64_t len, int to, uint64_t dst)
{
	struct file_clone_range range = {
		.src_fd = from, .src_offset = src, .src_length = len, .dest_offset = dst,
	};

	return ioctl(to, FICLONERANGE, &range);
}

/* A petabyte of hole, one shared page at its end, and the rest mapped for writing. */
TEST_F(user, opens_a_sparse_monster)
{
	int from = open(up("source"), O_RDONLY), fd = open(up("monster"), O_RDWR | O_CREAT, 0644);
	char page[PAGE], *p;
	int i, ro;

	ASSERT_EQ(0, ftruncate(fd, HUGE));
	p = mmap(NULL, MiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_EQ(0UL, touch(p, MiB));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, clone_range(from, i * PAGE, PAGE, fd, HUGE - (i + 1) * PAGE));
		ro = open(up("monster"), O_RDONLY);
		ASSERT_LE(0, ro);
		EXPECT_EQ(PAGE, pread(ro, page, PAGE, HUGE - (i + 1) * PAGE));
		EXPECT_EQ(-1, mismatch(page, PAGE, 1, i * PAGE));
		EXPECT_EQ(PAGE, pread(ro, page, PAGE, HUGE / 2));
		EXPECT_EQ(0UL, touch(page, PAGE));
		close(ro);
		p[i * PAGE] = 0;
	}
	munmap(p, MiB);
	close(fd);
}

/* Every second page of a file shared: as many extents as it has pages. */
#define PIECES	5000UL

TEST_F(user, reads_a_file_in_pieces)
{
	int from = open(up("source"), O_RDONLY), fd = open(up("pieces"), O_RDWR | O_CREAT, 0644);
	char page[PAGE];
	unsigned long i;

	ASSERT_EQ(0, ftruncate(fd, 2 * PIECES * PAGE));
	for (i = 0; i < PIECES; i++)
		ASSERT_EQ(0, clone_range(from, i % 256 * PAGE, PAGE, fd, 2 * i * PAGE));
	close(fd);
	fd = open(up("pieces"), O_RDONLY);
	for (i = 0; i < PIECES; i += 1 + i / 16) {
		ASSERT_EQ(PAGE, pread(fd, page, PAGE, 2 * i * PAGE));
		ASSERT_EQ(-1, mismatch(page, PAGE, 1, i % 256 * PAGE));
		ASSERT_EQ(PAGE, pread(fd, page, PAGE, (2 * i + 1) * PAGE));
		ASSERT_EQ(0UL, touch(page, PAGE));
	}
	EXPECT_EQ(hash_read(low("pieces"), MiB), hash_read(up("pieces"), MiB));
	EXPECT_EQ(0, unlink(up("pieces")));
	close(fd);
}

/* Positions and lengths at the end of what can be said. */
static void at_the_end(void)
{
	static const loff_t at[] = {
		-1, LLONG_MIN, LLONG_MAX, LLONG_MAX - 1, LLONG_MAX - PAGE, LLONG_MAX & -PAGE,
		1LL << 62, (1LL << 44) - 1, (1LL << 52) + 1,
	};
	char page[PAGE];
	unsigned int i;
	int fd, from;

	make_pooled("a", 5 * PAGE + 7, 1);
	fd = open("a", O_RDWR);
	from = open("a.twin", O_RDONLY);
	for (i = 0; i < ARRAY_SIZE(at); i++) {
		say("%llx", (long long)at[i]);
		VAL(pread(fd, page, PAGE, at[i]));
		VAL(lseek(fd, at[i], SEEK_SET));
		VAL(lseek(fd, at[i], SEEK_DATA));
		VAL(lseek(fd, at[i], SEEK_HOLE));
		if (at[i] < 0 || at[i] > LLONG_MAX - 2 * (loff_t)PAGE)
			VAL(pwrite(fd, page, PAGE, at[i]));
		VAL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at[i], PAGE));
		VAL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, at[i]));
		VAL(posix_fadvise(fd, at[i], PAGE, POSIX_FADV_WILLNEED));
		VAL(posix_fadvise(fd, 0, at[i], POSIX_FADV_WILLNEED));
		VAL(readahead(fd, at[i], PAGE));
		VAL(sync_file_range(fd, at[i], PAGE, SYNC_FILE_RANGE_WRITE));
		VAL(clone_range(from, at[i], PAGE, fd, 0));
		VAL(clone_range(from, 0, at[i], fd, 0));
		VAL(clone_range(from, 0, PAGE, fd, at[i]));
		VAL(copy_file_range(from, &(loff_t) { at[i] }, fd, &(loff_t) { 0 }, PAGE, 0));
		VAL((long)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, at[i] & -PAGE) == -1);
		say_file("a.twin");
	}
	VAL(ftruncate(fd, 5 * PAGE));
	say_file("a");
}

TEST(offsets_at_the_end)
{
	SAME(at_the_end);
}

TEST_HARNESS_MAIN
