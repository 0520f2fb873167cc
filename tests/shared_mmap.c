// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stores through MAP_SHARED: seen at once by read(2), other mappings and the
 * lower file, in the file after msync, never in a twin.
 */
#include "common.h"
#include "disk.h"

#define SIZE	(64 * PAGE + 300)
#define LEN	(65 * PAGE)

FIXTURE(file) {
	char *want;
	char *map;	/* writable, through the mount */
	char *other;	/* read-only, through the mount */
	char *below;	/* read-only, of the lower file */
};

FIXTURE_VARIANT(file) {
	bool shared;	/* blocks shared with a twin */
	bool touched;	/* mapped pages read before the store */
};

FIXTURE_VARIANT_ADD(file, twin_cold) { .shared = true };
FIXTURE_VARIANT_ADD(file, twin_warm) { .shared = true, .touched = true };
FIXTURE_VARIANT_ADD(file, plain) { .touched = true };

FIXTURE_SETUP(file)
{
	self->want = calloc(1, LEN);
	fill(self->want, SIZE, 1, 0);
	make_file(low("a"), SIZE, 1);
	if (variant->shared)
		make_clone(low("a"), low("twin"));
	drop_caches("3");
	self->map = map_file(up("a"), LEN, PROT_READ | PROT_WRITE, MAP_SHARED);
	self->other = map_file(up("a"), LEN, PROT_READ, MAP_SHARED);
	self->below = map_file(low("a"), LEN, PROT_READ, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, self->map);
	ASSERT_NE(MAP_FAILED, self->other);
	if (variant->touched) {
		touch(self->map, LEN);
		touch(self->other, LEN);
	}
}

FIXTURE_TEARDOWN(file)
{
	unlink(low("a"));
	unlink(low("twin"));
}

static void store(FIXTURE_DATA(file) *self, size_t off, size_t len, int seed)
{
	fill(self->map + off, len, seed, 0);
	fill(self->want + off, len, seed, 0);
}

static void check_views(struct __test_metadata *_metadata, FIXTURE_DATA(file) *self, bool shared)
{
	EXPECT_EQ(0, memcmp(self->map, self->want, SIZE)) TH_LOG("the mapping itself");
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE)) TH_LOG("read");
	EXPECT_EQ(0, memcmp(self->other, self->want, SIZE)) TH_LOG("another mapping");
	EXPECT_EQ(0, memcmp(self->below, self->want, SIZE)) TH_LOG("a mapping below");
	EXPECT_EQ(-1, differs_from(low("a"), self->want, SIZE)) TH_LOG("read below");
	if (shared)
		EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1)) TH_LOG("the twin");
}

TEST_F(file, is_seen_everywhere)
{
	int i;

	for (i = 0; i < 60; i += 7)
		store(self, i * PAGE + i, 50, 10 + i);
	check_views(_metadata, self, variant->shared);
	store(self, 3 * PAGE, 5 * PAGE, 3);
	store(self, SIZE - 10, 10, 4);
	check_views(_metadata, self, variant->shared);
	EXPECT_EQ(0, msync(self->map, LEN, MS_SYNC));
	check_views(_metadata, self, variant->shared);
	/* Cleaned by msync: the next store must be seen just the same. */
	store(self, 3 * PAGE + 100, PAGE, 5);
	store(self, 40 * PAGE, PAGE, 6);
	check_views(_metadata, self, variant->shared);
	EXPECT_EQ(0, msync(self->map, LEN, MS_ASYNC));
	sync();
	drop_caches("3");
	check_views(_metadata, self, variant->shared);
	store(self, 3 * PAGE + 200, PAGE, 7);
	store(self, 41 * PAGE, PAGE, 8);
	check_views(_metadata, self, variant->shared);
	munmap(self->map, LEN);
	munmap(self->below, LEN);
	drop_caches("3");
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	EXPECT_EQ(0, memcmp(self->other, self->want, SIZE));
	if (variant->shared)
		EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(file, reaches_the_disk_with_msync)
{
	int i;

	for (i = 0; i < 2; i++) {
		store(self, 5 * PAGE + 17, 3 * PAGE, 3 + i);
		store(self, SIZE - 5, 5, 5 + i);
		/* The test can tell. */
		EXPECT_FALSE(is_on_disk(low("a"), self->want, SIZE)) TH_LOG("round %d", i);
		EXPECT_EQ(0, msync(self->map, LEN, MS_SYNC));
		EXPECT_TRUE(got_to_disk(low("a"), self->want, SIZE)) TH_LOG("round %d", i);
	}
	if (variant->shared)
		EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(file, with_writes_in_between)
{
	char buf[PAGE];
	int fd = open(up("a"), O_RDWR), i;

	for (i = 0; i < 60; i++) {
		store(self, i * PAGE + 100, 200, i);
		fill(buf, PAGE, 100 + i, 0);
		write_all(fd, buf, 300, i * PAGE + 200);
		memcpy(self->want + i * PAGE + 200, buf, 300);
		store(self, i * PAGE + 450, 100, 200 + i);
	}
	check_views(_metadata, self, variant->shared);
	EXPECT_EQ(0, fsync(fd));
	close(fd);
	drop_caches("3");
	check_views(_metadata, self, variant->shared);
}

TEST_F(file, store_below_is_seen)
{
	char *w = map_file(low("a"), LEN, PROT_READ | PROT_WRITE, MAP_SHARED);

	fill(w + 7 * PAGE, 2 * PAGE, 9, 0);
	fill(self->want + 7 * PAGE, 2 * PAGE, 9, 0);
	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	EXPECT_EQ(0, msync(w, LEN, MS_SYNC));
	munmap(w, LEN);
	madvise(self->map, LEN, MADV_DONTNEED);
	madvise(self->other, LEN, MADV_DONTNEED);
	check_views(_metadata, self, variant->shared);
	store(self, 7 * PAGE + 5, PAGE, 10);
	check_views(_metadata, self, variant->shared);
}

TEST_F(file, two_processes_store)
{
	volatile char *p;
	int i, status;
	pid_t pid;

	pid = fork();
	if (!pid) {
		p = map_file(up("a"), LEN, PROT_READ | PROT_WRITE, MAP_SHARED);
		for (i = 0; i < 64; i++)
			p[i * PAGE + 8] = i;
		_exit(0);
	}
	for (i = 0; i < 64; i++)
		self->map[i * PAGE + 9] = 100 + i;
	waitpid(pid, &status, 0);
	EXPECT_EQ(0, status);
	for (i = 0; i < 64; i++) {
		self->want[i * PAGE + 8] = i;
		self->want[i * PAGE + 9] = 100 + i;
	}
	check_views(_metadata, self, variant->shared);
}

/* One instruction that loads and stores: a load must not undo the store's page. */
TEST_F(file, load_and_store_in_one_instruction)
{
	int i;

	for (i = 0; i < 64; i++) {
		asm volatile("xorb $0x55, %0" : "+m" (self->map[i * PAGE + 3]));
		asm volatile("lock incb %0" : "+m" (self->map[i * PAGE + 4]));
		self->want[i * PAGE + 3] ^= 0x55;
		self->want[i * PAGE + 4]++;
	}
	check_views(_metadata, self, variant->shared);
}

/* Readers of the same pages do not keep a writer from its store. */
TEST_F(file, stores_while_others_read)
{
	pid_t pid[2];
	int i, k;

	for (k = 0; k < 2; k++) {
		pid[k] = fork();
		if (!pid[k]) {
			for (;;)
				touch(self->other, LEN);
		}
	}
	for (i = 0; i < 64; i++) {
		self->map[i * PAGE + 5] = i;
		self->want[i * PAGE + 5] = i;
		sched_yield();
	}
	for (k = 0; k < 2; k++) {
		kill(pid[k], SIGKILL);
		waitpid(pid[k], NULL, 0);
	}
	check_views(_metadata, self, variant->shared);
}

/* mtime moves, at the latest with msync. */
TEST_F(file, moves_the_times)
{
	struct timespec old[2] = { { 1000, 0 }, { 2000, 0 } };
	struct stat st, lst;

	ASSERT_EQ(0, utimensat(AT_FDCWD, up("a"), old, 0));
	self->map[0] ^= 1;
	EXPECT_EQ(0, msync(self->map, LEN, MS_SYNC));
	ASSERT_EQ(0, stat(up("a"), &st));
	ASSERT_EQ(0, stat(low("a"), &lst));
	EXPECT_NE(2000, lst.st_mtime);
	EXPECT_EQ(lst.st_mtime, st.st_mtime);
	EXPECT_EQ(lst.st_ctim.tv_nsec, st.st_ctim.tv_nsec);
}

#define HUGE	(2UL << 20)

/* Address space for @size bytes that a huge page can begin at. */
static char *reserve_huge(size_t size)
{
	char *room = mmap(NULL, size + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return (char *)(((uintptr_t)room + HUGE - 1) & -HUGE);
}

/*
 * One store makes a huge page writable, and those beside it ask nobody: in
 * what others have mapped of the file, and of the pool, they are seen as well.
 */
TEST(stores_beside_the_first_one)
{
	size_t size = 2 * HUGE;
	long huge = vmstat("thp_file_mapped");
	volatile char *map, *other;
	char *room, want;

	make_file(low("a"), size, 1);
	sync();
	drop_caches("3");
	write_text("/proc/sys/vm/compact_memory", "1");
	room = reserve_huge(HUGE);
	int fd = open(up("a"), O_RDWR);

	map = mmap(room, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	if (madvise((void *)map, HUGE, MADV_HUGEPAGE))
		SKIP(goto out, "no huge pages");
	make_clone(up("a"), up("twin"));
	ASSERT_EQ(-1, check_file(up("twin"), size, 1));
	ASSERT_EQ(-1, check_file(up("a"), size, 1));
	other = map_file(up("a"), HUGE, PROT_READ, MAP_SHARED);
	touch((char *)other, HUGE);
	want = ~other[100 * PAGE + 7];
	map[0] = 1;
	map[100 * PAGE + 7] = want;
	EXPECT_EQ(want, other[100 * PAGE + 7]);
	EXPECT_EQ(1, other[0]);
	EXPECT_EQ(-1, check_file(up("twin"), size, 1));
	/* (A SKIP makes good what has failed.) */
	if (vmstat("thp_file_mapped") == huge && !_metadata->exit_code)
		SKIP(goto out, "it was not mapped by a huge page");
out:
	close(fd);
	unlink(low("a"));
	unlink(low("twin"));
}

/*
 * A huge page in a mapping that pool pages are in, too: the kernel would take it
 * for a driver's, and give back nothing of what it counted.  The first half of
 * the file is shared, the second one is its own.
 */
FIXTURE(half_shared) {
	char *room;
};

FIXTURE_VARIANT(half_shared) {
	bool store;
	bool cached;			/* below, as a huge page */
};

FIXTURE_VARIANT_ADD(half_shared, stored) { .store = true };
FIXTURE_VARIANT_ADD(half_shared, loaded) { .cached = true };
FIXTURE_VARIANT_ADD(half_shared, stored_cached) { .store = true, .cached = true };

FIXTURE_SETUP(half_shared)
{
	struct file_clone_range range = { .src_length = HUGE };
	int fd;

	make_file(low("a"), 2 * HUGE, 1);
	make_file(low("twin"), PAGE, 2);
	range.src_fd = open(low("a"), O_RDONLY);
	fd = open(low("twin"), O_RDWR);
	ASSERT_EQ(0, ioctl(fd, FICLONERANGE, &range));
	close(range.src_fd);
	close(fd);
	sync();
	drop_caches("3");
	write_text("/proc/sys/vm/compact_memory", "1");
	self->room = reserve_huge(2 * HUGE);
}

FIXTURE_TEARDOWN(half_shared)
{
	unlink(low("a"));
	unlink(low("twin"));
}

static char *map_huge(const char *path, char *room)
{
	int fd = open(path, O_RDWR);
	char *map = mmap(room, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);

	close(fd);
	madvise(map, 2 * HUGE, MADV_HUGEPAGE);
	return map;
}

static long rss_of_files(void)
{
	char text[4096], *field;

	if (read_text("/proc/self/status", text, sizeof(text)) < 0)
		die("/proc/self/status");
	field = strstr(text, "RssFile:");
	return field ? atol(field + 8) : -1;
}

/* In a process of its own, whose end the kernel has a look at. */
static int use_and_give_back(char *room, bool store)
{
	volatile char *map = map_huge(up("a"), room);
	long before = rss_of_files(), used;

	touch((char *)map, HUGE);
	if (store)
		map[HUGE] = 1;
	else
		touch((char *)map + HUGE, PAGE);
	used = rss_of_files();
	if (madvise((void *)map, 2 * HUGE, MADV_DONTNEED))
		return 2;
	printf("# RssFile %ld kB, in use %ld kB, given back %ld kB\n", before, used, rss_of_files());
	fflush(stdout);
	/* (A program has some of its own, and 6.1 counts late.) */
	return rss_of_files() > before + 1536;
}

TEST_F(half_shared, is_given_back)
{
	long huge = vmstat("thp_file_mapped"), hits = have_pool ? pool("hits") : 0;
	volatile char *map;
	int status;
	pid_t pid;

	if (variant->cached) {
		map = map_huge(low("a"), self->room);
		touch((char *)map + HUGE, PAGE);
		EXPECT_EQ(0, munmap((void *)map, 2 * HUGE));
		if (vmstat("thp_file_mapped") == huge)
			SKIP(return, "%s has no huge page for it", btrfs ? "btrfs" : "XFS");
	}
	pid = fork();
	if (!pid)
		_exit(use_and_give_back(self->room, variant->store));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	if (have_pool)
		EXPECT_LT(hits, pool("hits"));
	/* Whoever takes its pages out of the cache finds them mapped nowhere. */
	EXPECT_EQ(0, truncate(up("a"), 0));
	EXPECT_EQ(0, unlink(up("a")));
}

TEST_HARNESS_MAIN
