// SPDX-License-Identifier: GPL-2.0-only
/*
 * FICLONE, FICLONERANGE, FIDEDUPERANGE and copy_file_range through the mount:
 * content, return values and errors as below; and what becomes shared on disk
 * becomes shared in RAM.
 */
#include "common.h"

#define SIZE	(32 * PAGE + 500)

static int clone_range(int in, off_t src, off_t len, int out, off_t dst)
{
	struct file_clone_range range = { .src_fd = in, .src_offset = src, .src_length = len, .dest_offset = dst };

	return ioctl(out, FICLONERANGE, &range);
}

static int dedupe_range(int in, off_t src, off_t len, int out, off_t dst)
{
	char raw[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)] = {};
	struct file_dedupe_range *range = (void *)raw;

	range->src_offset = src;
	range->src_length = len;
	range->dest_count = 1;
	range->info[0].dest_fd = out;
	range->info[0].dest_offset = dst;
	if (ioctl(in, FIDEDUPERANGE, range))
		return -1;
	say("status %d, deduped %llu", range->info[0].status, (long long)range->info[0].bytes_deduped);
	return 0;
}

static void whole(void)
{
	int a, b, c;

	make_pooled("a", SIZE, 1);
	make_file("b", 3 * SIZE, 2);
	say_file("a");
	say_file("b");
	a = open("a", O_RDWR);
	b = open("b", O_RDWR);
	DO(ioctl(b, FICLONE, a));		/* shorter onto longer */
	say_file("b");
	c = open("c", O_RDWR | O_CREAT, 0644);
	DO(ioctl(c, FICLONE, a));
	say_file("c");
	DO(ioctl(a, FICLONE, a));
	DO(ioctl(c, FICLONE, open("b", O_WRONLY)));
	DO(ioctl(open("c", O_RDONLY), FICLONE, a));
	DO(ioctl(open("c", O_RDWR | O_APPEND), FICLONE, a));
	DO(ioctl(c, FICLONE, open(".", O_RDONLY)));
	DO(ioctl(open(".", O_RDONLY), FICLONE, a));
	DO(ioctl(c, FICLONE, open("/dev/null", O_RDONLY)));
	DO(ioctl(c, FICLONE, open("/proc/version", O_RDONLY)));
	DO(ioctl(c, FICLONE, 999));
	/* Cloned while dirty: the clone has what was just written. */
	pwrite(a, "dirty", 5, 5 * PAGE);
	DO(ioctl(c, FICLONE, a));
	say_file("c");
	pwrite(a, "DIRTY", 5, 5 * PAGE);
	say_file("a");
	say_file("c");
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
	say_file("b");
	say_file("c");
}

TEST(ficlone)
{
	SAME(whole);
}

static void ranges(void)
{
	char *map;
	int a, b;

	make_pooled("a", SIZE, 1);
	make_pooled("b", SIZE, 2);
	a = open("a", O_RDWR);
	b = open("b", O_RDWR);
	map = map_file("b", SIZE, PROT_READ, MAP_SHARED);
	touch(map, SIZE);
	DO(clone_range(a, 4 * PAGE, 8 * PAGE, b, 10 * PAGE));
	say("mapped %lx", hash(map, SIZE, 1));
	say_file("b");
	DO(clone_range(a, 0, 4 * PAGE, a, 20 * PAGE));
	DO(clone_range(a, 0, 4 * PAGE, a, 2 * PAGE));
	DO(clone_range(a, 100, PAGE, b, 0));
	DO(clone_range(a, 0, 100, b, 0));
	DO(clone_range(a, 0, PAGE, b, 100));
	DO(clone_range(a, 32 * PAGE, 500, b, 32 * PAGE));
	DO(clone_range(a, 32 * PAGE, 0, b, 32 * PAGE));
	DO(clone_range(a, 32 * PAGE, 500, b, PAGE));
	DO(clone_range(a, 40 * PAGE, PAGE, b, 0));
	DO(clone_range(a, 0, SIZE + PAGE, b, 0));
	DO(clone_range(a, 0, 2 * PAGE, b, 50 * PAGE));
	DO(clone_range(a, -PAGE, PAGE, b, 0));
	say("mapped %lx", hash(map, SIZE, 1));
	say_file("a");
	say_file("b");
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
	say_file("b");
	say_file("b.twin");
}

TEST(ficlonerange)
{
	SAME(ranges);
}

static void dedupes(void)
{
	int a, b, ro;

	make_pooled("a", SIZE, 1);
	make_file("b", SIZE, 1);
	say_file("a");
	say_file("b");
	a = open("a", O_RDWR);
	b = open("b", O_RDWR);
	DO(dedupe_range(a, 0, 16 * PAGE, b, 0));
	DO(dedupe_range(a, 0, SIZE, b, 0));
	pwrite(b, "x", 1, 7 * PAGE);
	DO(dedupe_range(a, 0, 16 * PAGE, b, 0));
	DO(dedupe_range(a, 8 * PAGE, 8 * PAGE, b, 8 * PAGE));
	DO(dedupe_range(a, 100, PAGE, b, 100));
	DO(dedupe_range(a, 0, 100, b, 0));
	DO(dedupe_range(a, 0, 2 * SIZE, b, 0));
	DO(dedupe_range(a, 0, PAGE, a, PAGE));
	ro = open("b", O_RDONLY);
	DO(dedupe_range(a, 0, PAGE, ro, 0));
	DO(dedupe_range(ro, 0, PAGE, a, 0));
	DO(dedupe_range(open("b", O_WRONLY), 0, PAGE, a, 0));
	DO(dedupe_range(a, 0, PAGE, open(".", O_RDONLY), 0));
	DO(dedupe_range(a, 0, PAGE, 999, 0));
	say_file("a");
	say_file("b");
	drop_caches("3");
	say_file("a");
	say_file("b");
	say_file("a.twin");
}

TEST(fideduperange)
{
	SAME(dedupes);
}

static void copies(void)
{
	off_t from, to;
	int a, b;

	make_pooled("a", SIZE, 1);
	make_pooled("b", SIZE, 2);
	a = open("a", O_RDWR);
	b = open("b", O_RDWR);
	VAL(copy_file_range(a, &(off_t) { 0 }, b, &(off_t) { 0 }, 4 * PAGE, 0));
	from = 5 * PAGE + 7;
	to = 20 * PAGE + 3;
	VAL(copy_file_range(a, &from, b, &to, 3 * PAGE, 0));
	say("%ld %ld", (long)from, (long)to);
	VAL(copy_file_range(a, NULL, b, NULL, 100, 0));
	VAL(lseek(a, 0, SEEK_CUR));
	VAL(lseek(b, 0, SEEK_CUR));
	from = SIZE - 100;
	VAL(copy_file_range(a, &from, b, &to, 1000, 0));
	VAL(copy_file_range(a, &from, b, &to, 1000, 0));
	from = 0;
	VAL(copy_file_range(a, &from, a, &(off_t) { 10 }, 1000, 0));
	VAL(copy_file_range(a, &(off_t) { 0 }, a, &(off_t) { 24 * PAGE }, 2 * PAGE, 0));
	VAL(copy_file_range(a, &from, b, &to, 10, 1));
	VAL(copy_file_range(a, NULL, open("b", O_RDONLY), NULL, 10, 0));
	VAL(copy_file_range(open("a", O_WRONLY), NULL, b, NULL, 10, 0));
	VAL(copy_file_range(a, NULL, open("b", O_RDWR | O_APPEND), NULL, 10, 0));
	VAL(copy_file_range(a, NULL, open(".", O_RDONLY), NULL, 10, 0));
	to = 100 * PAGE;
	from = 0;
	VAL(copy_file_range(a, &from, b, &to, SIZE, 0));
	say_file("a");
	say_file("b");
	drop_caches("3");
	say_file("a");
	say_file("b");
	say_file("a.twin");
	say_file("b.twin");
}

TEST(copy_range)
{
	SAME(copies);
}

/* --- merged in RAM ---------------------------------------------------------- */

#define BIG	(8 * MiB)

FIXTURE(merge) {
	char *want;
};

FIXTURE_SETUP(merge)
{
	self->want = malloc(BIG);
	fill(self->want, BIG, 1, 0);
	make_file(low("a"), BIG, 1);
	make_clone(low("a"), low("a2"));
	drop_caches("3");
	fiemap(low("a"), NULL, 0);
}

FIXTURE_TEARDOWN(merge)
{
	static const char * const names[] = { "a", "a2", "b", "c" };
	int i;

	for (i = 0; i < 4; i++)
		unlink(low("%s", names[i]));
}

TEST_F(merge, a_new_clone_costs_nothing)
{
	long cache, disk;
	int a, b;

	EXPECT_EQ(-1, differs_from(up("a"), self->want, BIG));
	cache = cache_bytes();
	disk = disk_read_bytes();
	a = open(up("a"), O_RDONLY);
	b = open(up("b"), O_RDWR | O_CREAT, 0644);
	ASSERT_EQ(0, ioctl(b, FICLONE, a));
	close(a);
	close(b);
	EXPECT_EQ(-1, differs_from(up("b"), self->want, BIG));
	a = open(up("a"), O_RDONLY);
	b = open(up("c"), O_RDWR | O_CREAT, 0644);
	EXPECT_EQ(0, clone_range(a, 0, BIG / 2, b, BIG / 2));
	EXPECT_EQ(0, clone_range(a, BIG / 2, BIG / 2, b, 0));
	close(a);
	close(b);
	EXPECT_EQ(-1, check_file(up("a2"), BIG, 1));
	hash_read(up("c"), MiB);
	TH_LOG("two new clones: %ld KiB of RAM, %ld KiB from disk", (cache_bytes() - cache) / 1024,
	       (disk_read_bytes() - disk) / 1024);
	EXPECT_GE((long)BIG * 3 / 100, cache_bytes() - cache);
	EXPECT_GE(128 * (long)KiB, disk_read_bytes() - disk);
}

TEST_F(merge, dedupe_merges)
{
	char raw[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)] = {};
	struct file_dedupe_range *range = (void *)raw;
	long cache = cache_bytes(), before, after;
	int a, b;

	/* b has the same bytes in blocks of its own. */
	make_file(low("b"), BIG, 1);
	drop_caches("3");
	cache = cache_bytes();
	EXPECT_EQ(-1, differs_from(up("a"), self->want, BIG));
	EXPECT_EQ(-1, differs_from(up("b"), self->want, BIG));
	before = cache_bytes() - cache;
	EXPECT_LE((long)BIG * 19 / 10, before);
	a = open(up("a"), O_RDONLY);
	b = open(up("b"), O_RDWR);
	range->src_length = BIG;
	range->dest_count = 1;
	range->info[0].dest_fd = b;
	ASSERT_EQ(0, ioctl(a, FIDEDUPERANGE, range));
	ASSERT_EQ(FILE_DEDUPE_RANGE_SAME, range->info[0].status);
	close(a);
	close(b);
	EXPECT_EQ(-1, differs_from(up("a"), self->want, BIG));
	EXPECT_EQ(-1, differs_from(up("b"), self->want, BIG));
	after = cache_bytes() - cache;
	TH_LOG("RAM before the dedupe %ld KiB, after %ld KiB", before / 1024, after / 1024);
	EXPECT_GE((long)BIG * 103 / 100, after);
}

TEST_F(merge, copy_file_range_merges)
{
	off_t from = 0, to = 0;
	long cache;
	int a, b;

	EXPECT_EQ(-1, differs_from(up("a"), self->want, BIG));
	cache = cache_bytes();
	a = open(up("a"), O_RDONLY);
	b = open(up("b"), O_RDWR | O_CREAT, 0644);
	ASSERT_EQ(BIG, copy_file_range(a, &from, b, &to, BIG, 0));
	close(a);
	close(b);
	EXPECT_EQ(-1, differs_from(up("b"), self->want, BIG));
	TH_LOG("the copy: %ld KiB of RAM", (cache_bytes() - cache) / 1024);
	EXPECT_GE((long)BIG * 3 / 100, cache_bytes() - cache);
}

/* A file that was plain, with its pages in the page cache, and is then cloned. */
TEST_F(merge, a_plain_file_that_is_cloned)
{
	long cache;

	make_file(low("b"), BIG, 2);
	drop_caches("3");
	fill(self->want, BIG, 2, 0);
	cache = cache_bytes();
	EXPECT_EQ(-1, differs_from(up("b"), self->want, BIG));
	make_clone(up("b"), up("c"));
	EXPECT_EQ(-1, differs_from(up("b"), self->want, BIG));
	EXPECT_EQ(-1, differs_from(up("c"), self->want, BIG));
	TH_LOG("file and clone: %.3f copies", 1.0 * (cache_bytes() - cache) / BIG);
	EXPECT_GE((long)BIG * 206 / 100, cache_bytes() - cache);
	/* At the latest when the page cache lets go, there is one copy. */
	drop_caches("1");
	EXPECT_EQ(-1, differs_from(up("b"), self->want, BIG));
	EXPECT_EQ(-1, differs_from(up("c"), self->want, BIG));
	EXPECT_GE((long)BIG * 103 / 100, cache_bytes() - cache);
}

/*
 * In pieces that the filesystem cannot clone: it copies them, and nothing has
 * come to be shared that would be cached elsewhere from now on.
 */
TEST(copied_in_small_pieces)
{
	const size_t size = 64 * KiB, piece = 1000;
	loff_t from = 0, to = 0;
	int in, out;
	long disk;

	make_file(low("in"), size, 1);
	drop_caches("3");
	in = open(up("in"), O_RDONLY);
	out = open(up("out"), O_RDWR | O_CREAT, 0644);
	EXPECT_EQ(-1, check_file(up("in"), size, 1));
	disk = disk_read_bytes();
	while (from < (loff_t)size)
		ASSERT_LT(0, copy_file_range(in, &from, out, &to, piece, 0));
	/* (btrfs may read of its trees.) */
	EXPECT_GE((long)size, disk_read_bytes() - disk);
	EXPECT_EQ(-1, check_file(up("out"), size, 1));
	close(in);
	close(out);
	unlink(low("in"));
	unlink(low("out"));
}

TEST_HARNESS_MAIN
