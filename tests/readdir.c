// SPDX-License-Identifier: GPL-2.0-only
/*
 * Directories read as they read below: the same entries in the same order with
 * the same types and inode numbers, from any position, while they change.
 */
#include "common.h"

static void make_entries(const char *dir, int n)
{
	char path[PATH_MAX];
	int i;

	mkdir(dir, 0755);
	for (i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/entry-%d-%0*d", dir, i, i % 50 + 1, i);
		switch (i % 7) {
		case 0:
			mkdir(path, 0755);
			break;
		case 1:
			symlink("x", path);
			break;
		case 2:
			mkfifo(path, 0644);
			break;
		case 3:
			mknod(path, S_IFCHR | 0600, makedev(1, 3));
			break;
		default:
			close(creat(path, 0644));
		}
	}
}

/* The same directory, seen from both sides. */
FIXTURE(dir) {
};

FIXTURE_VARIANT(dir) {
	int entries;
};

FIXTURE_VARIANT_ADD(dir, empty) { .entries = 0 };
FIXTURE_VARIANT_ADD(dir, few) { .entries = 5 };
FIXTURE_VARIANT_ADD(dir, many) { .entries = 400 };

FIXTURE_SETUP(dir)
{
	make_entries(low("d"), variant->entries);
}

FIXTURE_TEARDOWN(dir)
{
	rm_rf(low("d"));
}

TEST_F(dir, same_entries_types_and_inodes)
{
	DIR *l = opendir(low("d")), *u = opendir(up("d"));
	struct dirent *le, *ue;
	struct stat st, upst;
	int n = 0;

	ASSERT_NE(NULL, l);
	ASSERT_NE(NULL, u);
	ASSERT_EQ(0, stat(up("d"), &upst));
	for (;;) {
		le = readdir(l);
		ue = readdir(u);
		ASSERT_EQ(!le, !ue);
		if (!le)
			break;
		n++;
		EXPECT_STREQ(le->d_name, ue->d_name);
		EXPECT_EQ(le->d_type, ue->d_type);
		EXPECT_EQ(le->d_off, ue->d_off);
		if (!strcmp(ue->d_name, ".."))
			continue;
		/* d_ino is what stat shows through the same mount. */
		ASSERT_EQ(0, lstat(up("d/%s", ue->d_name), &st));
		EXPECT_EQ(st.st_ino, ue->d_ino) TH_LOG("%s", ue->d_name);
		EXPECT_EQ(st.st_dev, upst.st_dev);
	}
	EXPECT_EQ(variant->entries + 2, n);
	closedir(l);
	closedir(u);
}

TEST_F(dir, any_position_can_be_taken_up)
{
	static long pos[500];
	static char name[500][256];
	struct dirent *e;
	DIR *d = opendir(up("d"));
	int n = 0, i;

	for (;;) {
		pos[n] = telldir(d);
		e = readdir(d);
		if (!e)
			break;
		strcpy(name[n++], e->d_name);
	}
	EXPECT_EQ(variant->entries + 2, n);
	for (i = n - 1; i >= 0; i -= 3) {
		seekdir(d, pos[i]);
		e = readdir(d);
		ASSERT_NE(NULL, e);
		EXPECT_STREQ(name[i], e->d_name);
		if (i + 1 < n) {
			e = readdir(d);
			EXPECT_STREQ(name[i + 1], e->d_name);
		}
	}
	rewinddir(d);
	for (i = 0; readdir(d); i++)
		;
	EXPECT_EQ(n, i);
	closedir(d);
}

TEST_F(dir, small_buffers)
{
	char buf[280];
	int fd = open(up("d"), O_RDONLY), n = 0;
	long got, at;

	while ((got = syscall(SYS_getdents64, fd, buf, sizeof(buf))) > 0) {
		for (at = 0; at < got; n++)
			at += *(unsigned short *)(buf + at + 16);
	}
	EXPECT_EQ(0, got);
	EXPECT_EQ(variant->entries + 2, n);
	close(fd);
}

static void errors(void)
{
	char buf[1000];
	int fd;

	make_entries("d", 5);
	fd = open("d", O_RDONLY);
	VAL(syscall(SYS_getdents64, fd, buf, 5));
	VAL(syscall(SYS_getdents64, fd, buf, 0));
	VAL(read(fd, buf, 10));
	VAL(lseek(fd, -1, SEEK_SET));
	VAL(lseek(fd, 0, SEEK_SET));
	DO(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0));
	close(fd);
	fd = open("d/entry-4-00004", O_RDONLY);
	VAL(syscall(SYS_getdents64, fd, buf, 1000));
}

TEST(errors_as_below)
{
	SAME(errors);
}

/* Entries that stay all the while are seen exactly once. */
static void while_changing(void)
{
	int i, seen[100] = {}, extra = 0;
	struct dirent *e;
	char name[64];
	DIR *d;

	mkdir("d", 0755);
	for (i = 0; i < 100; i++) {
		sprintf(name, "d/stay%d", i);
		close(creat(name, 0644));
	}
	d = opendir("d");
	for (i = 0; (e = readdir(d)); i++) {
		if (!strncmp(e->d_name, "stay", 4))
			seen[atoi(e->d_name + 4)]++;
		else
			extra++;
		sprintf(name, "d/come%d", i);
		if (i < 200)
			close(creat(name, 0644));
		if (i % 2)
			unlink(name);
	}
	closedir(d);
	for (i = 0; i < 100; i++) {
		if (seen[i] != 1)
			say("stay%d was seen %d times", i, seen[i]);
	}
}

TEST(while_the_directory_changes)
{
	SAME(while_changing);
}

/* Through the mount: what is created, renamed and removed below shows. */
TEST(changes_below_show)
{
	struct dirent *e;
	int n = 0;
	DIR *d;

	make_entries(low("c"), 10);
	d = opendir(up("c"));
	while (readdir(d))
		n++;
	EXPECT_EQ(12, n);
	close(creat(low("c/new"), 0644));
	EXPECT_EQ(0, unlink(low("c/entry-4-00004")));
	rewinddir(d);
	n = 0;
	while ((e = readdir(d))) {
		n++;
		EXPECT_STRNE("entry-4-00004", e->d_name);
	}
	EXPECT_EQ(12, n);
	closedir(d);
}

/* Reading moves the access time of a directory if the mount says so, and no other. */
static void access_time(struct __test_metadata *_metadata, unsigned long flags, bool moves)
{
	struct timespec old[2] = { { 1000, 0 }, { 2000, 0 } };
	struct stat st;
	char at[PATH_MAX];
	DIR *d;

	snprintf(at, sizeof(at), "%s.mnt", low("x"));
	mkdir(at, 0755);
	mkdir(low("d"), 0755);
	close(creat(low("d/a"), 0644));
	ASSERT_EQ(0, utimensat(AT_FDCWD, low("d"), old, 0));
	ASSERT_EQ(0, mount(lower_dir, at, have_pool ? "dedupfs" : NULL,
			   have_pool ? flags : MS_BIND, NULL));
	if (!have_pool)
		ASSERT_EQ(0, mount(NULL, at, NULL, MS_BIND | MS_REMOUNT | flags, NULL));
	d = opendir(path_of("%s/d", at));
	ASSERT_NE(NULL, d);
	while (readdir(d))
		;
	closedir(d);
	EXPECT_EQ(0, stat(low("d"), &st));
	EXPECT_EQ(moves, st.st_atime != 1000);
	EXPECT_EQ(0, umount2(at, 0));
	rmdir(at);
	rm_rf(low("d"));
}

TEST(access_times_are_the_mounts)
{
	access_time(_metadata, 0, true);
	access_time(_metadata, MS_NOATIME, false);
	access_time(_metadata, MS_NODIRATIME, false);
	access_time(_metadata, MS_RDONLY, false);
}

TEST_HARNESS_MAIN
