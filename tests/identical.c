// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 240
 *
 * Every file of every clone, read and mapped through the mount, is what it is
 * below: cold and warm, before and after writes, after a remount, after
 * drop_caches.  The tree has every kind of extent.
 */
#include "common.h"

#define CLONES	5

struct kind {
	const char *name;
	void (*make)(const char *path);
};

static void empty(const char *path)
{
	make_file(path, 0, 1);
}

static void tiny(const char *path)		/* inline on btrfs */
{
	make_file(path, 700, 2);
}

static void odd(const char *path)
{
	make_file(path, 3 * MiB + 1234, 3);
}

static void holes(const char *path)
{
	char buf[PAGE];
	int fd = open(path, O_RDWR | O_CREAT, 0644), i;

	for (i = 0; i < 40; i++) {
		fill(buf, PAGE, 4, i);
		write_all(fd, buf, PAGE - i * 10, i * 7 * PAGE + i * 3);
	}
	ftruncate(fd, 300 * PAGE + 5);
	close(fd);
}

static void unwritten(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT, 0644);
	char buf[3 * PAGE];

	fallocate(fd, 0, 0, 2 * MiB);
	fill(buf, sizeof(buf), 5, 0);
	write_all(fd, buf, sizeof(buf), MiB);
	write_all(fd, buf, 100, MiB + 200 * PAGE + 50);
	close(fd);
}

static void fragmented(const char *path)	/* many extents of 1 to 4 pages */
{
	struct file_clone_range range = {};
	int fd, i;

	make_file(path, 256 * PAGE, 6);
	fd = open(path, O_RDWR);
	range.src_fd = fd;
	for (i = 0; i < 60; i++) {
		range.src_offset = mix(i) % 250 * PAGE;
		range.dest_offset = (256 + 3 * i) * PAGE;
		range.src_length = (1 + i % 4) * PAGE;
		ioctl(fd, FICLONERANGE, &range);
	}
	close(fd);
}

static void punched(const char *path)
{
	int fd, i;

	make_file(path, MiB, 7);
	fd = open(path, O_RDWR);
	for (i = 0; i < 30; i++)
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, i * 8 * PAGE + i, PAGE + i * 100);
	close(fd);
}

static void set_flag(const char *path, int flag)
{
	int fd = open(path, O_RDWR | O_CREAT, 0644), flags = 0;

	ioctl(fd, FS_IOC_GETFLAGS, &flags);
	flags |= flag;
	if (ioctl(fd, FS_IOC_SETFLAGS, &flags))
		fprintf(stderr, "# no flag %#x: %s\n", flag, strerror(errno));
	close(fd);
}

static void nocow(const char *path)
{
	int fd;

	if (btrfs)
		set_flag(path, FS_NOCOW_FL);
	fd = open(path, O_RDWR | O_CREAT, 0644);
	close(fd);
	make_file(path, 600 * KiB, 8);
}

static void compressed(const char *path)
{
	char *buf = malloc(MiB);
	int fd, i;

	if (btrfs)
		set_flag(path, FS_COMPR_FL);
	fd = open(path, O_RDWR | O_CREAT, 0644);
	for (i = 0; i < (int)MiB; i += 64)
		memset(buf + i, mix(i) % 7 ? 'a' : mix(i), 64);
	write_all(fd, buf, MiB - 77, 0);
	fsync(fd);
	close(fd);
	free(buf);
}

static const struct kind kinds[] = {
	{ "empty", empty }, { "tiny", tiny }, { "odd", odd }, { "holes", holes },
	{ "unwritten", unwritten }, { "fragmented", fragmented }, { "punched", punched },
	{ "nocow", nocow }, { "compressed", compressed },
};

#define KINDS	((int)(sizeof(kinds) / sizeof(*kinds)))

/* Not all can be cloned (NOCOW to COW): then it is a copy, which is fine. */
static void clone_or_copy(int c, int k)
{
	if (k == 7 && btrfs)
		set_flag(low("%d/%s", c, kinds[k].name), FS_NOCOW_FL);
	if (clone_file(low("0/%s", kinds[k].name), low("%d/%s", c, kinds[k].name)))
		die("clone of %s", kinds[k].name);
}

/* Files that differ from what is below. */
static int wrong(const char *dir)
{
	uint64_t r1, r2, m1, m2, want, want1;
	size_t chunk;
	int c, k, n = 0;
	char path[PATH_MAX];

	for (k = 0; k < KINDS; k++) {
		for (c = 0; c < CLONES; c++) {
			snprintf(path, sizeof(path), "%s/%d/%s", dir, c, kinds[k].name);
			/* Map first or read first, small or large chunks. */
			m1 = c & 1 ? hash_map(path, MiB, MAP_PRIVATE) : 0;
			chunk = c & 2 ? MiB : 20 * KiB + 8;
			r1 = hash_read(path, chunk);
			r2 = hash_read(path, MiB);
			m2 = hash_map(path, MiB, MAP_SHARED);
			want = hash_read(low("%d/%s", c, kinds[k].name), MiB);
			/* (The chunks are in the hash.) */
			want1 = hash_read(low("%d/%s", c, kinds[k].name), chunk);
			if ((m1 && m1 != want) || r1 != want1 || r2 != want || m2 != want) {
				fprintf(stderr, "# clone %d, %s: read %lx and %lx, mapped %lx and %lx, below %lx and %lx\n",
					c, kinds[k].name, r1, r2, m1, m2, want1, want);
				n++;
			}
		}
	}
	return n;
}

/* Small changes everywhere, by write and by store, through the mount. */
static void change(int round)
{
	struct stat st;
	char buf[PAGE], *p;
	size_t at;
	int c, k, fd;

	for (k = 1; k < KINDS; k++) {
		for (c = round & 1; c < CLONES; c += 2) {
			fd = open(up("%d/%s", c, kinds[k].name), O_RDWR);
			if (fd < 0 || fstat(fd, &st))
				die("%s", kinds[k].name);
			fill(buf, PAGE, 1000 * round + c, 0);
			at = mix(k * 100 + c + round) % st.st_size;
			write_all(fd, buf, 1 + mix(at) % PAGE, at);
			at = mix(at) % st.st_size / PAGE * PAGE;
			p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
			if (p == MAP_FAILED)
				die("mmap");
			p[5] ^= 0xff;
			munmap(p, PAGE);
			close(fd);
		}
	}
}

FIXTURE(tree) {
};

FIXTURE_SETUP(tree)
{
	int c, k;

	for (c = 0; c < CLONES; c++) {
		rm_rf(low("%d", c));	/* of a test that was killed */
		mkdir(low("%d", c), 0755);
	}
	for (k = 0; k < KINDS; k++) {
		kinds[k].make(low("0/%s", kinds[k].name));
		for (c = 1; c < CLONES; c++)
			clone_or_copy(c, k);
	}
}

FIXTURE_TEARDOWN(tree)
{
	int c;

	for (c = 0; c < CLONES; c++)
		rm_rf(low("%d", c));
}

TEST_F(tree, is_what_it_is_below)
{
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("just made");
	drop_caches("3");
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("cold");
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("warm");
	drop_caches("1");
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("page cache dropped");
	drop_caches("2");
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("inodes and pool dropped");
}

TEST_F(tree, is_still_so_after_writes)
{
	drop_caches("3");
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("cold");
	change(1);
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("changed");
	change(2);
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("changed again");
	sync();
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("synced");
	drop_caches("3");
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("cold again");
	drop_caches("3");
	change(3);
	EXPECT_EQ(0, wrong(upper_dir)) TH_LOG("changed while cold");
}

TEST_F(tree, is_so_through_another_mount_and_after_a_remount)
{
	char at[] = "mnt.XXXXXX";

	ASSERT_NE(NULL, mkdtemp(at));
	EXPECT_EQ(0, wrong(upper_dir));
	change(1);
	ASSERT_EQ(0, mount_on(lower_dir, at, NULL));
	EXPECT_EQ(0, wrong(at)) TH_LOG("a second mount");
	ASSERT_EQ(0, umount2(at, 0));
	change(2);
	ASSERT_EQ(0, mount_on(lower_dir, at, NULL));
	EXPECT_EQ(0, wrong(at)) TH_LOG("mounted again");
	drop_caches("3");
	EXPECT_EQ(0, wrong(at)) TH_LOG("and cold");
	EXPECT_EQ(0, wrong(upper_dir));
	ASSERT_EQ(0, umount2(at, 0));
	rmdir(at);
}

TEST_HARNESS_MAIN
