// SPDX-License-Identifier: GPL-2.0-only
/*
 * fadvise, readahead(2) and MADV_WILLNEED: accepted and refused as below; what
 * was asked for is then in memory, once.
 */
#include "common.h"

#define SIZE	(4 * MiB)

static void calls(void)
{
	static const int advice[] = { POSIX_FADV_NORMAL, POSIX_FADV_RANDOM, POSIX_FADV_SEQUENTIAL,
				      POSIX_FADV_WILLNEED, POSIX_FADV_DONTNEED, POSIX_FADV_NOREUSE, 77 };
	unsigned int i;
	int fd, dir, p[2];

	make_pooled("a", SIZE, 1);
	make_file("plain", SIZE, 2);
	fd = open("a", O_RDWR);
	dir = open(".", O_RDONLY);
	if (pipe(p))
		die("pipe");
	for (i = 0; i < 7; i++) {
		VAL(posix_fadvise(fd, 0, 0, advice[i]));
		say_file("a");
		VAL(posix_fadvise(fd, 5000, 100000, advice[i]));
		VAL(posix_fadvise(dir, 0, 0, advice[i]));
		VAL(posix_fadvise(p[0], 0, 0, advice[i]));
		VAL(posix_fadvise(open("plain", O_RDONLY), 0, 0, advice[i]));
	}
	VAL(posix_fadvise(fd, 0, -1, POSIX_FADV_WILLNEED));
	DO(readahead(fd, 0, SIZE));
	DO(readahead(dir, 0, SIZE));
	DO(readahead(p[0], 0, SIZE));
	DO(readahead(open("a", O_WRONLY), 0, SIZE));
	say_file("a");
	say_file("a.twin");
	say_file("plain");
}

TEST(accepted_and_refused)
{
	SAME(calls);
}

FIXTURE(pair) {
	char *want;
};

FIXTURE_VARIANT(pair) {
	void (*ask)(int fd);
};

static void by_fadvise(int fd)
{
	posix_fadvise(fd, 0, SIZE, POSIX_FADV_WILLNEED);
}

static void by_readahead(int fd)
{
	readahead(fd, 0, SIZE);
}

static void by_madvise(int fd)
{
	void *p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);

	madvise(p, SIZE, MADV_WILLNEED);
	munmap(p, SIZE);
}

static void by_populate(int fd)
{
	void *p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);

	madvise(p, SIZE, MADV_POPULATE_READ);
	munmap(p, SIZE);
}

FIXTURE_VARIANT_ADD(pair, fadvise) { .ask = by_fadvise };
FIXTURE_VARIANT_ADD(pair, readahead) { .ask = by_readahead };
FIXTURE_VARIANT_ADD(pair, madvise) { .ask = by_madvise };
FIXTURE_VARIANT_ADD(pair, populate) { .ask = by_populate };

FIXTURE_SETUP(pair)
{
	self->want = malloc(SIZE);
	fill(self->want, SIZE, 1, 0);
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("b"));
	drop_caches("3");
	fiemap(low("a"), NULL, 0);
	fiemap(low("b"), NULL, 0);
}

FIXTURE_TEARDOWN(pair)
{
	unlink(low("a"));
	unlink(low("b"));
}

TEST_F(pair, asked_for_and_then_read_costs_one_copy)
{
	long cache = cache_bytes(), disk = disk_read_bytes();
	int a = open(up("a"), O_RDONLY), b = open(up("b"), O_RDONLY), i;

	/* What was asked for is being read before anybody reads it. */
	variant->ask(a);
	for (i = 0; i < 500 * TIME_FACTOR && disk_read_bytes() - disk < SIZE * 9 / 10; i++)
		usleep(10000);
	EXPECT_LE((long)SIZE * 9 / 10, disk_read_bytes() - disk);
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	variant->ask(b);
	usleep(300000);
	EXPECT_EQ(-1, differs_from(up("b"), self->want, SIZE));
	TH_LOG("%.3f copies in RAM, %.3f from disk", 1.0 * (cache_bytes() - cache) / SIZE,
	       1.0 * (disk_read_bytes() - disk) / SIZE);
	EXPECT_GE((long)SIZE * 105 / 100, cache_bytes() - cache);
	EXPECT_GE((long)SIZE * 110 / 100, disk_read_bytes() - disk);
}

/* What is not shared, or compressed, is read ahead below. */
TEST(asked_for_of_what_is_not_shared)
{
	char buf[PAGE] = "all of it is like this";
	long disk;
	int fd, i;

	make_file(low("part"), SIZE, 1);
	make_clone(low("part"), low("twin"));
	fd = open(low("part"), O_RDWR);
	if (btrfs) {
		ASSERT_EQ(0, shell("btrfs property set %s compression zstd", low("part")));
	} else {
		fill(buf, PAGE, 2, 0);
	}
	for (i = 0; i < (int)(SIZE / 2 / PAGE); i++) {
		memcpy(buf, &i, sizeof(i));
		write_all(fd, buf, PAGE, SIZE / 2 + i * PAGE);
	}
	ASSERT_EQ(0, fsync(fd));
	close(fd);
	drop_caches("3");
	fd = open(up("part"), O_RDONLY);
	/* It is known where it lies, but none of it is cached. */
	ASSERT_EQ(1, pread(fd, &i, 1, SIZE / 2));
	drop_caches("1");
	disk = disk_read_bytes();
	ASSERT_EQ(0, posix_fadvise(fd, SIZE / 2, SIZE / 2, POSIX_FADV_WILLNEED));
	for (i = 0; i < 300 * TIME_FACTOR; i++) {
		if (cached_pages(low("part"), SIZE) >= (long)(SIZE / PAGE / 2))
			break;
		usleep(10000);
	}
	EXPECT_LE((long)(SIZE / PAGE / 2), cached_pages(low("part"), SIZE));
	EXPECT_LT(disk, disk_read_bytes());
	close(fd);
	unlink(low("part"));
	unlink(low("twin"));
}

TEST_HARNESS_MAIN
