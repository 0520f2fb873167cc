// SPDX-License-Identifier: GPL-2.0-only
/*
 * st_dev and st_ino: stable, unique in the mount, equal in stat, readdir and
 * /proc/PID/maps, for files of every kind; hard links are one inode.
 */
#include "common.h"

/* Device and inode number that /proc/self/maps shows for an address. */
static int from_maps(const void *addr, dev_t *dev, ino_t *ino)
{
	unsigned long start, end, inode;
	unsigned int major, minor;
	char line[4096];
	int found = -1;
	FILE *f = fopen("/proc/self/maps", "r");

	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx %*s %*s %x:%x %lu", &start, &end, &major, &minor, &inode) == 5 &&
		    start <= (unsigned long)addr && (unsigned long)addr < end) {
			*dev = makedev(major, minor);
			*ino = inode;
			found = 0;
			break;
		}
	}
	fclose(f);
	return found;
}

FIXTURE(file) {
};

FIXTURE_VARIANT(file) {
	bool shared;
	bool dirty;
};

FIXTURE_VARIANT_ADD(file, plain) {};
FIXTURE_VARIANT_ADD(file, pooled) { .shared = true };
FIXTURE_VARIANT_ADD(file, pooled_and_written) { .shared = true, .dirty = true };

FIXTURE_SETUP(file)
{
	make_file(low("a"), 10 * PAGE, 1);
	if (variant->shared)
		make_clone(low("a"), low("twin"));
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("a"), 10 * PAGE, 1));
	if (variant->dirty)
		EXPECT_EQ(0, shell("printf x >>%s", up("a")));
}

FIXTURE_TEARDOWN(file)
{
	unlink(low("a"));
	unlink(low("twin"));
}

TEST_F(file, the_same_in_stat_and_maps)
{
	static const int flags[] = { MAP_PRIVATE, MAP_SHARED };
	struct stat st, root, fst;
	dev_t dev;
	ino_t ino;
	char *p;
	int i, k, fd;

	ASSERT_EQ(0, stat(up("a"), &st));
	ASSERT_EQ(0, stat(upper_dir, &root));
	EXPECT_EQ(root.st_dev, st.st_dev);
	fd = open(up("a"), O_RDWR);
	ASSERT_EQ(0, fstat(fd, &fst));
	EXPECT_EQ(st.st_ino, fst.st_ino);
	for (i = 0; i < 2; i++) {
		for (k = 0; k < 2; k++) {
			p = mmap(NULL, PAGE, i && k ? PROT_READ | PROT_WRITE : PROT_READ, flags[i], fd, 0);
			ASSERT_NE(MAP_FAILED, p);
			touch(p, PAGE);
			ASSERT_EQ(0, from_maps(p, &dev, &ino));
			EXPECT_EQ(st.st_ino, ino);
			EXPECT_EQ(st.st_dev, dev) TH_LOG("%x:%x in maps, %x:%x in stat", major(dev), minor(dev),
							 major(st.st_dev), minor(st.st_dev));
		}
	}
}

TEST_F(file, stable)
{
	struct stat a, b;
	int fd = open(up("a"), O_RDONLY);

	ASSERT_EQ(0, stat(up("a"), &a));
	close(fd);
	drop_caches("3");
	drop_caches("3");
	ASSERT_EQ(0, stat(up("a"), &b));
	EXPECT_EQ(a.st_ino, b.st_ino);
	EXPECT_EQ(a.st_dev, b.st_dev);
	ASSERT_EQ(0, rename(up("a"), up("b")));
	ASSERT_EQ(0, stat(up("b"), &b));
	EXPECT_EQ(a.st_ino, b.st_ino);
	ASSERT_EQ(0, rename(low("b"), low("a")));
	ASSERT_EQ(0, stat(up("a"), &b));
	EXPECT_EQ(a.st_ino, b.st_ino);
}

TEST(hard_links_are_one_inode)
{
	struct stat a, b, twin;

	make_file(low("a"), 100, 1);
	make_clone(low("a"), low("twin"));
	ASSERT_EQ(0, link(low("a"), low("b")));
	ASSERT_EQ(0, link(up("a"), up("c")));
	ASSERT_EQ(0, stat(up("a"), &a));
	ASSERT_EQ(0, stat(up("b"), &b));
	EXPECT_EQ(a.st_ino, b.st_ino);
	ASSERT_EQ(0, stat(up("c"), &b));
	EXPECT_EQ(a.st_ino, b.st_ino);
	EXPECT_EQ(3, b.st_nlink);
	ASSERT_EQ(0, stat(up("twin"), &twin));
	EXPECT_NE(a.st_ino, twin.st_ino);
}

/* Snapshots repeat inode numbers; in the mount each file has its own. */
TEST(snapshots_get_inode_numbers_of_their_own)
{
	struct stat l[4], u[4];
	struct dirent *e;
	int i, k;
	char *p[4];
	dev_t dev;
	ino_t ino;
	DIR *d;

	if (!btrfs)
		SKIP(return, "XFS has no snapshots");
	ASSERT_EQ(0, subvol_create(low("0")));
	make_file(low("0/f"), 10 * PAGE, 1);
	sync();
	for (i = 1; i < 4; i++)
		ASSERT_EQ(0, subvol_snapshot(low("0"), low("%d", i), 0));
	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, stat(low("%d/f", i), &l[i]));
		ASSERT_EQ(0, stat(up("%d/f", i), &u[i]));
		EXPECT_EQ(l[0].st_ino, l[i].st_ino);
		EXPECT_EQ(u[0].st_dev, u[i].st_dev);
		for (k = 0; k < i; k++)
			EXPECT_NE(u[k].st_ino, u[i].st_ino);
		p[i] = map_file(up("%d/f", i), PAGE, PROT_READ, MAP_SHARED);
		touch(p[i], PAGE);
		ASSERT_EQ(0, from_maps(p[i], &dev, &ino));
		EXPECT_EQ(u[i].st_ino, ino);
		EXPECT_EQ(u[i].st_dev, dev);
		d = opendir(up("%d", i));
		while ((e = readdir(d))) {
			if (!strcmp(e->d_name, "f"))
				EXPECT_EQ(u[i].st_ino, e->d_ino);
		}
		closedir(d);
		munmap(p[i], PAGE);
	}
	/* Tools that walk a tree must see no loop and no false hard link. */
	EXPECT_EQ(0, shell("test $(find %s -name f | wc -l) = 4", upper_dir));
	EXPECT_EQ(0, shell("test $(find %s/. -name f -printf '%%i\\n' | sort -u | wc -l) = 4", upper_dir));
}

/* Where LOWERDIR is a subvolume, they are what they are there: small. */
TEST(a_subvolume_mounted_by_itself)
{
	char *at = path_of("%s/mnt", getcwd(NULL, 0));
	struct stat l, u, other;
	struct dirent *e;
	DIR *d;

	if (!btrfs)
		SKIP(return, "XFS has no subvolumes");
	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	ASSERT_EQ(0, subvol_create(low("s")));
	make_file(low("s/f"), PAGE, 1);
	ASSERT_EQ(0, subvol_create(low("s/inner")));
	make_file(low("s/inner/f"), PAGE, 1);
	ASSERT_EQ(0, stat(low("s/inner/f"), &other));
	ASSERT_EQ(0, stat(low("s/f"), &l));
	EXPECT_EQ(other.st_ino, l.st_ino);
	mkdir(at, 0755);
	ASSERT_EQ(0, mount_on(low("s"), at, NULL));
	ASSERT_EQ(0, stat(path_of("%s/f", at), &u));
	EXPECT_EQ(l.st_ino, u.st_ino);
	ASSERT_EQ(0, stat(path_of("%s/inner/f", at), &other));
	EXPECT_NE(u.st_ino, other.st_ino);
	d = opendir(at);
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, "f"))
			EXPECT_EQ(l.st_ino, e->d_ino);
	}
	closedir(d);
	EXPECT_EQ(0, umount(at));
	EXPECT_EQ(0, subvol_delete(low("s/inner")));
	EXPECT_EQ(0, subvol_delete(low("s")));
}

TEST_HARNESS_MAIN
