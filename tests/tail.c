// SPDX-License-Identifier: GPL-2.0-only
/*
 * The last block of a file: shared only between files that end at the same
 * byte, zero behind the end in every mapping, and never anyone else's bytes.
 */
#include "common.h"
#include "device.h"

#define SIZE	(2 * PAGE + 1000)

static void say_tail(const char *path)
{
	char buf[2 * PAGE], *p;
	struct stat st;
	ssize_t n;
	int fd = open(path, O_RDONLY);

	fstat(fd, &st);
	memset(buf, 0x55, sizeof(buf));
	n = pread(fd, buf, sizeof(buf), st.st_size / PAGE * PAGE);
	say("%s: size %ld, last read %zd: %lx", path, (long)st.st_size, n, hash(buf, sizeof(buf), 1));
	p = mmap(NULL, (st.st_size | (PAGE - 1)) + 1, PROT_READ, MAP_SHARED, fd, 0);
	say("mapped: %lx", hash(p, (st.st_size | (PAGE - 1)) + 1, 1));
	munmap(p, (st.st_size | (PAGE - 1)) + 1);
	close(fd);
}

static void ends_anywhere(void)
{
	static const size_t end[] = { 1, 511, 512, 2047, 2049, 4095, 4096, 4097, 8191, 8193, 12288 };
	char name[32];
	unsigned int i, round;

	for (i = 0; i < sizeof(end) / sizeof(*end); i++) {
		sprintf(name, "f%zu", end[i]);
		make_file(name, end[i], i);
		make_clone(name, strcat(strcpy(malloc(64), name), ".twin"));
	}
	drop_caches("3");
	for (round = 0; round < 2; round++) {
		for (i = 0; i < sizeof(end) / sizeof(*end); i++) {
			sprintf(name, "f%zu", end[i]);
			say_tail(name);
			say_tail(strcat(name, ".twin"));
		}
	}
}

TEST(files_that_end_anywhere_in_a_page)
{
	SAME(ends_anywhere);
}

static void longer_twin(void)
{
	make_pooled("a", SIZE, 1);
	say_tail("a");
	say_tail("a.twin");
	/* The twin goes on: its tail's block is shared, its bytes are not. */
	DO(truncate("a.twin", SIZE + 500));
	say_tail("a.twin");
	say_tail("a");
	DO(truncate("a.twin", 5 * PAGE + 1));
	drop_caches("3");
	say_tail("a.twin");
	say_file("a.twin");
	say_tail("a");
}

TEST(a_twin_that_was_extended)
{
	SAME(longer_twin);
}

static void shorter_twin(void)
{
	make_pooled("a", SIZE, 1);
	say_tail("a");
	say_tail("a.twin");
	DO(truncate("a.twin", SIZE - 500));
	say_tail("a.twin");
	say_tail("a");
	drop_caches("3");
	say_tail("a.twin");
	say_tail("a");
	/* What was cut off must not come back. */
	DO(truncate("a.twin", SIZE));
	say_tail("a.twin");
	say_tail("a");
}

TEST(a_twin_that_was_cut)
{
	SAME(shorter_twin);
}

/* One block as the end of one file and the inside of another. */
static void end_and_middle(void)
{
	struct file_clone_range range = { .src_length = 0 };
	int a, b;

	make_file("a", SIZE, 1);
	make_file("b", 8 * PAGE, 2);
	a = open("a", O_RDONLY);
	b = open("b", O_RDWR);
	range.src_fd = a;
	range.src_length = 2 * PAGE;
	range.dest_offset = 4 * PAGE;
	DO(ioctl(b, FICLONERANGE, &range));
	/* A tail may go only to an end. */
	range.src_offset = 2 * PAGE;
	range.src_length = 1000;
	range.dest_offset = 6 * PAGE;
	DO(ioctl(b, FICLONERANGE, &range));
	range.dest_offset = 8 * PAGE;
	DO(ioctl(b, FICLONERANGE, &range));
	fsync(b);
	close(a);
	close(b);
	drop_caches("3");
	say_file("a");
	say_file("b");
	DO(truncate("b", 9 * PAGE));
	say_file("b");
	say_file("a");
	drop_caches("3");
	say_file("b");
	say_file("a");
}

TEST(a_block_at_one_end_and_in_another_middle)
{
	SAME(end_and_middle);
}

/* Stores behind the end reach the page, but neither the file nor the twin. */
static void store_behind_end(void)
{
	char *p, *q;

	make_pooled("a", SIZE, 1);
	p = map_file("a", 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
	q = map_file("a.twin", 3 * PAGE, PROT_READ, MAP_SHARED);
	touch(p, 3 * PAGE);
	touch(q, 3 * PAGE);
	memset(p + SIZE, 0x77, 3 * PAGE - SIZE);
	say("twin's tail %lx", hash(q, 3 * PAGE, 1));
	DO(msync(p, 3 * PAGE, MS_SYNC));
	munmap(p, 3 * PAGE);
	munmap(q, 3 * PAGE);
	DO(truncate("a", 4 * PAGE));
	say_file("a");
	say_file("a.twin");
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
}

TEST(stores_behind_the_end)
{
	SAME(store_behind_end);
}

static void fault_behind_end(void)
{
	volatile char *p;
	int sig;

	make_pooled("a", SIZE, 1);
	p = map_file("a", 8 * PAGE, PROT_READ, MAP_SHARED);
	sig = FAULTS((void)p[SIZE]);
	say("in the last page: %d", sig);
	sig = FAULTS((void)p[3 * PAGE]);
	say("in the next page: %d", sig);
	DO(truncate("a", 5 * PAGE));
	sig = FAULTS((void)p[3 * PAGE]);
	say("after growing: %d, %d", sig, sig ? 0 : p[3 * PAGE]);
	DO(truncate("a", PAGE));
	sig = FAULTS((void)p[PAGE]);
	say("after shrinking: %d", sig);
	sig = FAULTS((void)p[0]);
	say("what is left: %d", sig);
}

TEST(faults_behind_the_end)
{
	SAME(fault_behind_end);
}

/* --- one block, two lengths ----------------------------------------------- */

#ifndef XFS_IOC_GOINGDOWN
#define XFS_IOC_GOINGDOWN	_IOR('X', 125, uint32_t)
#endif
#define GOING_LOGFLUSH	1

/* Not in the last page: before 6.2, XFS writes that one in time. */
#define CUT	(PAGE + 500)

FIXTURE(crashed) {
	char below[PATH_MAX], through[PATH_MAX], stats[PATH_MAX];
};

/*
 * XFS logs the new size of a file that was cut, and writes the zeroes behind
 * it later, to a block of its own.  A power cut between the two leaves the
 * block shared by files that end at different bytes of it.
 */
FIXTURE_SETUP(crashed)
{
	const char *dev = getenv("DEDUPFS_SPARE");
	struct fiemap_extent a[4], twin[4];
	uint32_t how = GOING_LOGFLUSH;
	struct stat st;
	int fd;

	if (btrfs)
		SKIP(return, "of XFS");
	if (!dev)
		SKIP(return, "DEDUPFS_SPARE is not set");
	snprintf(self->below, PATH_MAX, "%s/below", getcwd(NULL, 0));
	snprintf(self->through, PATH_MAX, "%s/through", getcwd(NULL, 0));
	snprintf(self->stats, PATH_MAX, "/sys/fs/dedupfs/%s", strrchr(dev, '/') + 1);
	mkdir(self->below, 0755);
	mkdir(self->through, 0755);
	ASSERT_EQ(0, shell("mkfs.xfs -q -f -K -m reflink=1 %s", dev));
	ASSERT_EQ(0, mount(dev, self->below, "xfs", 0, NULL));
	make_file(path_of("%s/a", self->below), SIZE, 1);
	make_clone(path_of("%s/a", self->below), path_of("%s/twin", self->below));
	sync();
	ASSERT_EQ(0, truncate(path_of("%s/twin", self->below), CUT));
	fd = open(self->below, O_RDONLY);
	ASSERT_EQ(0, ioctl(fd, XFS_IOC_GOINGDOWN, &how));
	close(fd);
	ASSERT_EQ(0, umount_soon(self->below));
	ASSERT_EQ(0, mount(dev, self->below, "xfs", 0, NULL));

	ASSERT_EQ(0, stat(path_of("%s/twin", self->below), &st));
	ASSERT_EQ(CUT, st.st_size);
	ASSERT_LE(1, fiemap(path_of("%s/a", self->below), a, 4));
	ASSERT_EQ(1, fiemap(path_of("%s/twin", self->below), twin, 4));
	ASSERT_EQ(a[0].fe_physical, twin[0].fe_physical) TH_LOG("the end is not shared");
	ASSERT_EQ(2 * PAGE, twin[0].fe_length) TH_LOG("the end is not shared");
	ASSERT_LE(2 * PAGE, a[0].fe_length) TH_LOG("the end is not shared");
	ASSERT_EQ(0, mount_on(self->below, self->through, NULL));
}

FIXTURE_TEARDOWN(crashed)
{
	if (!*self->below)
		return;
	umount_soon(self->through);
	umount_soon(self->below);
}

static void expect_file(struct __test_metadata *_metadata, const char *path, size_t size)
{
	char *p = map_file(path, size, PROT_READ, MAP_SHARED);

	EXPECT_EQ(-1, check_file(path, size, 1)) TH_LOG("%s, read", path);
	EXPECT_EQ(-1, mismatch(p, size, 1, 0)) TH_LOG("%s, mapped", path);
	munmap(p, size);
	p = map_file(path, size, PROT_READ, MAP_PRIVATE);
	EXPECT_EQ(-1, mismatch(p + PAGE, size - PAGE, 1, PAGE))
		TH_LOG("%s, mapped, the shared end first", path);
	munmap(p, size);
}

static long not_shared_tail(FIXTURE_DATA(crashed) *self)
{
	return pool_in(self->stats, "not_shared/tail");
}

TEST_F(crashed, the_shorter_first)
{
	long before = not_shared_tail(self);
	char *map;

	EXPECT_EQ(-1, check_file(path_of("%s/twin", self->through), CUT, 1));
	EXPECT_EQ(before, not_shared_tail(self));
	/* (XFS itself shows what is on the disk.) */
	map = map_file(path_of("%s/twin", self->through), CUT, PROT_READ, MAP_SHARED);
	EXPECT_TRUE(zero_behind(map, CUT));
	munmap(map, CUT);
	EXPECT_EQ(-1, check_file(path_of("%s/a", self->through), SIZE, 1));
	if (have_pool)
		EXPECT_EQ(before + (long)PAGE, not_shared_tail(self));
	expect_file(_metadata, path_of("%s/a", self->through), SIZE);
	expect_file(_metadata, path_of("%s/twin", self->through), CUT);
}

TEST_F(crashed, the_longer_first)
{
	long before = not_shared_tail(self);

	EXPECT_EQ(-1, check_file(path_of("%s/a", self->through), SIZE, 1));
	EXPECT_EQ(before, not_shared_tail(self));
	EXPECT_EQ(-1, check_file(path_of("%s/twin", self->through), CUT, 1));
	if (have_pool)
		EXPECT_EQ(before + (long)(CUT % PAGE), not_shared_tail(self));
	expect_file(_metadata, path_of("%s/twin", self->through), CUT);
	expect_file(_metadata, path_of("%s/a", self->through), SIZE);
}

TEST_HARNESS_MAIN
