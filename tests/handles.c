// SPDX-License-Identifier: GPL-2.0-only
/*
 * File handles: found again while the file lives, also after its dentry and
 * inode are forgotten; stale after, and where it lies outside LOWERDIR.
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

/* Nobody holds any of it: what nobody uses is forgotten, from the leaves up. */
static void forget(void)
{
	int i;

	for (i = 0; i < 5; i++)
		drop_caches("2");
}

/* Where a descriptor is, as seen from @top. */
static const char *place(int fd, const char *top)
{
	static char path[PATH_MAX];
	ssize_t n = readlink(path_of("/proc/self/fd/%d", fd), path, sizeof(path) - 1);

	if (n < 0)
		return errname();
	path[n] = 0;
	return strncmp(path, top, strlen(top)) ? path : path + strlen(top);
}

/* Which file it is, as it is below. */
static bool is_file(int fd, const char *lower_path)
{
	struct stat st, lst;

	return !fstat(fd, &st) && !stat(lower_path, &lst) && st.st_ino == lst.st_ino &&
	       st.st_mode == lst.st_mode && st.st_size == lst.st_size &&
	       st.st_nlink == lst.st_nlink && st.st_mtim.tv_sec == lst.st_mtim.tv_sec &&
	       st.st_mtim.tv_nsec == lst.st_mtim.tv_nsec;
}

static void say_opened(int dir, struct handle *h, int flags, const char *top)
{
	int fd = open_by_handle_at(dir, &h->h, flags), f;
	char buf[100];
	struct stat st;
	ssize_t n;

	if (fd < 0) {
		say("%s", errname());
		return;
	}
	if (fstat(fd, &st))
		die("fstat");
	say("%s: mode %o size %ld nlink %lu", place(fd, top), st.st_mode,
	    S_ISDIR(st.st_mode) ? 0 : (long)st.st_size, (unsigned long)st.st_nlink);
	f = S_ISDIR(st.st_mode) ? openat(fd, "f", O_RDONLY) : fd;
	if (f >= 0) {
		n = read(f, buf, sizeof(buf));
		say("%ld bytes %lx of %s", (long)n, hash(buf, n > 0 ? n : 0, 1), place(f, top));
	}
	if (f >= 0 && f != fd)
		close(f);
	close(fd);
}

static void forgotten(void)
{
	int dir = open(".", O_RDONLY);
	char *top = getcwd(NULL, 0);
	struct handle d, e, f;

	mkdir("d", 0755);
	mkdir("d/e", 0750);
	make_file("d/e/f", 100, 2);
	make_file("d/f", 50, 3);
	get("d", &d);
	get("d/e", &e);
	get("d/e/f", &f);
	/* A directory is put in its place at once; its parents are, too. */
	forget();
	say_opened(dir, &e, O_RDONLY | O_DIRECTORY, top);
	forget();
	say_opened(dir, &e, O_PATH, top);
	say_opened(dir, &d, O_RDONLY | O_DIRECTORY, top);
	/* A file needs no name to be opened. */
	forget();
	say_opened(dir, &f, O_RDONLY, top);
	say_file("d/e/f");
	say_opened(dir, &f, O_RDWR, top);
	/* The names are those of now. */
	forget();
	DO(rename("d/e", "moved"));
	DO(rename("moved/f", "moved/f2"));
	forget();
	say_opened(dir, &e, O_RDONLY, top);
	forget();
	say_opened(dir, &f, O_RDONLY, top);
	DO(unlink("moved/f2"));
	DO(rmdir("moved"));
	forget();
	say_opened(dir, &e, O_RDONLY, top);
	say_opened(dir, &f, O_RDONLY, top);
	free(top);
}

TEST(what_is_forgotten_is_found)
{
	SAME(forgotten);
}

FIXTURE(part) {
	char at[PATH_MAX];	/* where low("sub") is mounted, and nothing else of it */
	int dir;
};

static int mount_part(FIXTURE_DATA(part) *self)
{
	if (mount_on(low("sub"), self->at, NULL))
		return -1;
	self->dir = open(self->at, O_RDONLY);
	return self->dir;
}

static int unmount_part(FIXTURE_DATA(part) *self)
{
	close(self->dir);
	return umount2(self->at, 0);
}

FIXTURE_SETUP(part)
{
	snprintf(self->at, PATH_MAX, "%s/part", getcwd(NULL, 0));
	mkdir(self->at, 0755);
	mkdir(low("sub"), 0755);
	mkdir(low("sub/d"), 0755);
	mkdir(low("sub/d/e"), 0755);
	make_file(low("sub/d/e/f"), 3 * PAGE, 1);
	mkdir(low("beside"), 0755);
	mkdir(low("beside/in"), 0755);
	ASSERT_LE(0, mount_part(self));
}

FIXTURE_TEARDOWN(part)
{
	unmount_part(self);
	rmdir(self->at);
	rm_rf(low("sub"));
	rm_rf(low("beside"));
}

/* Opened by the handle, with nothing but the way from LOWERDIR known: where is it? */
static const char *found(FIXTURE_DATA(part) *self, struct handle *h, const char *lower_path)
{
	int fd = open_by_handle_at(self->dir, &h->h, O_RDONLY);
	const char *where;

	if (fd < 0)
		return errname();
	where = place(fd, self->at);
	if (!is_file(fd, lower_path))
		where = "another file";
	close(fd);
	return where;
}

/* As an NFS server does it that was started anew: nothing of the mount is known. */
TEST_F(part, after_a_new_mount)
{
	struct handle sub, e, f;
	int fd;

	ASSERT_EQ(0, get(self->at, &sub));
	ASSERT_EQ(0, get(path_of("%s/d/e", self->at), &e));
	ASSERT_EQ(0, get(path_of("%s/d/e/f", self->at), &f));
	ASSERT_EQ(0, unmount_part(self));
	forget();
	ASSERT_LE(0, mount_part(self));
	EXPECT_STREQ("/d/e", found(self, &e, low("sub/d/e")));
	EXPECT_STREQ("", found(self, &sub, low("sub")));

	ASSERT_EQ(0, unmount_part(self));
	forget();
	ASSERT_LE(0, mount_part(self));
	fd = open_by_handle_at(self->dir, &f.h, O_RDWR);
	ASSERT_LE(0, fd);
	EXPECT_TRUE(is_file(fd, low("sub/d/e/f")));
	EXPECT_EQ(-1, check_file(path_of("/proc/self/fd/%d", fd), 3 * PAGE, 1));
	/* It is the file that has this name. */
	write_all(fd, "x", 1, 5);
	EXPECT_EQ(5, check_file(path_of("%s/d/e/f", self->at), 3 * PAGE, 1));
	close(fd);
}

/* A directory outside LOWERDIR has no place in the mount. */
TEST_F(part, outside_is_stale)
{
	struct handle sub, d, beside, in, top;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	ASSERT_EQ(0, get(low("sub"), &sub));
	ASSERT_EQ(0, get(low("sub/d"), &d));
	ASSERT_EQ(0, get(low("beside"), &beside));
	ASSERT_EQ(0, get(low("beside/in"), &in));
	ASSERT_EQ(0, get(lower_dir, &top));
	EXPECT_STREQ("ESTALE", found(self, &beside, low("beside")));
	EXPECT_STREQ("ESTALE", found(self, &in, low("beside/in")));
	EXPECT_STREQ("ESTALE", found(self, &top, lower_dir));
	/* The handles are those of the lower filesystem, and good for what is inside. */
	EXPECT_STREQ("", found(self, &sub, low("sub")));
	EXPECT_STREQ("/d", found(self, &d, low("sub/d")));
	forget();
	EXPECT_STREQ("ESTALE", found(self, &in, low("beside/in")));
	EXPECT_STREQ("/d", found(self, &d, low("sub/d")));
	/* What comes in is inside. */
	ASSERT_EQ(0, rename(low("beside"), low("sub/d/beside")));
	EXPECT_STREQ("/d/beside/in", found(self, &in, low("sub/d/beside/in")));
}

/* Who has it open keeps it connected in the mount: it is outside for all that. */
TEST_F(part, what_left_is_stale)
{
	struct handle d, e;
	int held;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	ASSERT_EQ(0, get(path_of("%s/d", self->at), &d));
	ASSERT_EQ(0, get(path_of("%s/d/e", self->at), &e));
	held = open(path_of("%s/d/e", self->at), O_RDONLY);
	ASSERT_LE(0, held);
	EXPECT_STREQ("/d/e", found(self, &e, low("sub/d/e")));
	ASSERT_EQ(0, rename(low("sub/d"), low("beside/d")));
	EXPECT_STREQ("ESTALE", found(self, &d, low("beside/d")));
	EXPECT_STREQ("ESTALE", found(self, &e, low("beside/d/e")));
	ASSERT_EQ(0, rename(low("beside/d"), low("sub/d")));
	EXPECT_STREQ("/d/e", found(self, &e, low("sub/d/e")));
	close(held);
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
