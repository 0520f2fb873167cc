// SPDX-License-Identifier: GPL-2.0-only
/*
 * File handles: found again while the file lives, also after its dentry and
 * inode are forgotten; stale after.
 */
#include "common.h"

struct handle {
	struct file_handle h;
	char room[MAX_HANDLE_SZ];
};

static int get(const char *path, struct handle *h)
{
	int mount_id;

	memset(h, 0, sizeof(*h));
	h->h.handle_bytes = MAX_HANDLE_SZ;
	return name_to_handle_at(AT_FDCWD, path, &h->h, &mount_id, 0);
}

static void handles(void)
{
	struct handle a, d, s, f;
	int dir = open(".", O_RDONLY), fd, mount_id;
	struct stat st;
	char buf[100];

	make_pooled("a", 3 * PAGE, 1);
	mkdir("d", 0755);
	mkdir("d/e", 0755);
	make_file("d/e/f", 100, 2);
	symlink("a", "s");
	DO(get("a", &a));
	DO(get("d/e", &d));
	DO(get("s", &s));
	DO(get("d/e/f", &f));
	fd = DO(open_by_handle_at(dir, &a.h, O_RDWR));
	VAL(pread(fd, buf, 100, PAGE));
	say("%lx", hash(buf, 100, 1));
	stat("a", &st);
	{
		struct stat st2;

		fstat(fd, &st2);
		say("same %d", st.st_ino == st2.st_ino && st.st_dev == st2.st_dev);
	}
	VAL(pwrite(fd, "x", 1, 0));
	close(fd);
	say_file("a");
	fd = DO(open_by_handle_at(dir, &d.h, O_RDONLY | O_DIRECTORY));
	DO(openat(fd, "f", O_RDONLY));
	DO(openat(fd, "../..", O_RDONLY));
	DO(open_by_handle_at(dir, &s.h, O_RDONLY));
	DO(open_by_handle_at(dir, &s.h, O_PATH));
	drop_caches("3");
	fd = DO(open_by_handle_at(dir, &f.h, O_RDONLY));
	VAL(read(fd, buf, 100));
	DO(rename("d/e/f", "moved"));
	drop_caches("3");
	fd = DO(open_by_handle_at(dir, &f.h, O_RDONLY));
	VAL(read(fd, buf, 100));
	close(fd);
	DO(unlink("moved"));
	fd = DO(open_by_handle_at(dir, &f.h, O_RDONLY));
	drop_caches("3");
	DO(open_by_handle_at(dir, &f.h, O_RDONLY));
	a.h.handle_bytes = 4;
	DO(open_by_handle_at(dir, &a.h, O_RDONLY));
	memset(&a, 0xff, sizeof(a));
	a.h.handle_bytes = 24;
	DO(open_by_handle_at(dir, &a.h, O_RDONLY));
	a.h.handle_bytes = 0;
	DO(name_to_handle_at(AT_FDCWD, "a", &a.h, &mount_id, 0));
	say("needs room %d", a.h.handle_bytes > 0);
	if (setresuid(65534, 65534, 65534))
		die("setuid");
	DO(open_by_handle_at(dir, &d.h, O_RDONLY));
}

TEST(open_by_handle)
{
	SAME(handles);
}

/* A handle of the mount opens a file of the mount, not of the lower one. */
TEST(opens_through_the_mount)
{
	struct stat byname, byhandle;
	struct handle h;
	int fd, dir = open(upper_dir, O_RDONLY);

	make_file(low("a"), 3 * PAGE, 1);
	make_clone(low("a"), low("twin"));
	ASSERT_EQ(0, get(up("a"), &h));
	ASSERT_EQ(0, stat(up("a"), &byname));
	drop_caches("3");
	fd = open_by_handle_at(dir, &h.h, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fstat(fd, &byhandle));
	EXPECT_EQ(byname.st_dev, byhandle.st_dev);
	EXPECT_EQ(byname.st_ino, byhandle.st_ino);
	ASSERT_EQ(0, unlink(low("a")));
	close(fd);
	drop_caches("3");
	EXPECT_EQ(-1, open_by_handle_at(dir, &h.h, O_RDONLY));
	EXPECT_EQ(ESTALE, errno);
}

TEST_HARNESS_MAIN
