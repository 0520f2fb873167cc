// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is created, removed, renamed and replaced directly below is seen
 * through the mount at the next lookup, cached names or not.
 */
#include "common.h"

TEST(created_below)
{
	struct stat st;

	/* A name looked up in vain before. */
	EXPECT_EQ(-1, stat(up("a"), &st));
	EXPECT_EQ(-1, stat(up("d"), &st));
	make_file(low("a"), 1000, 1);
	EXPECT_EQ(0, mkdir(low("d"), 0750));
	EXPECT_EQ(0, stat(up("a"), &st));
	EXPECT_EQ(1000, st.st_size);
	EXPECT_EQ(0, stat(up("d"), &st));
	EXPECT_EQ(S_IFDIR | 0750, st.st_mode);
	EXPECT_EQ(-1, stat(up("d/x"), &st));
	make_file(low("d/x"), 10, 2);
	EXPECT_EQ(-1, check_file(up("d/x"), 10, 2));
	/* O_CREAT finds it, O_EXCL refuses. */
	EXPECT_EQ(-1, open(up("exists"), O_RDONLY));
	make_file(low("exists"), 100, 3);
	EXPECT_EQ(-1, open(up("exists"), O_RDWR | O_CREAT | O_EXCL, 0644));
	EXPECT_EQ(EEXIST, errno);
	EXPECT_LE(0, open(up("exists"), O_RDWR | O_CREAT, 0644));
	EXPECT_EQ(-1, check_file(up("exists"), 100, 3));
}

TEST(removed_below)
{
	struct stat st;
	int fd;

	make_file(low("a"), 1000, 1);
	mkdir(low("d"), 0755);
	make_file(low("d/x"), 10, 2);
	EXPECT_EQ(0, stat(up("a"), &st));
	EXPECT_EQ(0, stat(up("d/x"), &st));
	fd = open(up("a"), O_RDONLY);
	EXPECT_EQ(0, unlink(low("a")));
	EXPECT_EQ(-1, stat(up("a"), &st));
	EXPECT_EQ(ENOENT, errno);
	EXPECT_EQ(-1, open(up("a"), O_RDONLY));
	EXPECT_EQ(0, fstat(fd, &st));
	EXPECT_EQ(0, st.st_nlink);
	EXPECT_EQ(0, unlink(low("d/x")));
	EXPECT_EQ(0, rmdir(low("d")));
	EXPECT_EQ(-1, stat(up("d/x"), &st));
	EXPECT_EQ(-1, mkdir(up("d/y"), 0755));
	EXPECT_EQ(ENOENT, errno);
	EXPECT_EQ(0, mkdir(up("d"), 0755));
	EXPECT_EQ(-1, unlink(up("a")));
	EXPECT_EQ(ENOENT, errno);
}

TEST(renamed_below)
{
	struct stat a, b;
	int fd;

	make_file(low("a"), 1000, 1);
	mkdir(low("d"), 0755);
	make_file(low("d/x"), 10, 2);
	EXPECT_EQ(0, stat(up("a"), &a));
	EXPECT_EQ(0, stat(up("d/x"), &b));
	EXPECT_EQ(-1, access(up("b"), F_OK));
	fd = open(up("a"), O_RDWR);
	EXPECT_EQ(0, rename(low("a"), low("b")));
	EXPECT_EQ(-1, access(up("a"), F_OK));
	EXPECT_EQ(0, stat(up("b"), &b));
	EXPECT_EQ(a.st_ino, b.st_ino);
	EXPECT_EQ(1, pwrite(fd, "x", 1, 1000));
	EXPECT_EQ(0, stat(up("b"), &b));
	EXPECT_EQ(1001, b.st_size);
	EXPECT_EQ(0, rename(low("d"), low("e")));
	EXPECT_EQ(-1, access(up("d/x"), F_OK));
	EXPECT_EQ(-1, check_file(up("e/x"), 10, 2));
	EXPECT_EQ(0, rename(low("e/x"), low("y")));
	EXPECT_EQ(-1, check_file(up("y"), 10, 2));
	EXPECT_EQ(-1, access(up("e/x"), F_OK));
	/* And on through the mount. */
	EXPECT_EQ(0, rename(up("y"), up("e/z")));
	EXPECT_EQ(0, access(low("e/z"), F_OK));
	EXPECT_EQ(0, rename(up("b"), up("c")));
	EXPECT_EQ(0, access(low("c"), F_OK));
	EXPECT_EQ(-1, access(low("b"), F_OK));
}

TEST(replaced_below)
{
	struct stat a, b;

	make_file(low("a"), 1000, 1);
	make_file(low("n"), 2000, 2);
	EXPECT_EQ(-1, check_file(up("a"), 1000, 1));
	EXPECT_EQ(0, stat(up("a"), &a));
	EXPECT_EQ(0, rename(low("n"), low("a")));
	EXPECT_EQ(-1, check_file(up("a"), 2000, 2));
	EXPECT_EQ(0, stat(up("a"), &b));
	EXPECT_NE(a.st_ino, b.st_ino);
	/* By something of another kind. */
	EXPECT_EQ(0, unlink(low("a")));
	EXPECT_EQ(0, mkdir(low("a"), 0755));
	EXPECT_EQ(0, stat(up("a"), &b));
	EXPECT_TRUE(S_ISDIR(b.st_mode));
	EXPECT_EQ(0, rmdir(low("a")));
	EXPECT_EQ(0, symlink("elsewhere", low("a")));
	EXPECT_EQ(0, lstat(up("a"), &b));
	EXPECT_TRUE(S_ISLNK(b.st_mode));
	EXPECT_EQ(-1, stat(up("a"), &b));
	EXPECT_EQ(0, syscall(SYS_renameat2, AT_FDCWD, low("a"), AT_FDCWD, low("a2"), 0));
	EXPECT_EQ(0, mknod(low("a"), S_IFIFO | 0644, 0));
	EXPECT_EQ(0, lstat(up("a"), &b));
	EXPECT_TRUE(S_ISFIFO(b.st_mode));
}

TEST(exchanged_below)
{
	make_file(low("x"), 100, 1);
	make_file(low("y"), 200, 2);
	EXPECT_EQ(-1, check_file(up("x"), 100, 1));
	EXPECT_EQ(-1, check_file(up("y"), 200, 2));
	EXPECT_EQ(0, syscall(SYS_renameat2, AT_FDCWD, low("x"), AT_FDCWD, low("y"), 2));
	EXPECT_EQ(-1, check_file(up("x"), 200, 2));
	EXPECT_EQ(-1, check_file(up("y"), 100, 1));
}

TEST(linked_below)
{
	struct stat a, b;

	make_file(low("f"), 100, 1);
	EXPECT_EQ(0, stat(up("f"), &a));
	EXPECT_EQ(0, link(low("f"), low("g")));
	EXPECT_EQ(0, stat(up("g"), &b));
	EXPECT_EQ(a.st_ino, b.st_ino);
	EXPECT_EQ(2, b.st_nlink);
	EXPECT_EQ(0, unlink(low("f")));
	EXPECT_EQ(0, stat(up("g"), &b));
	EXPECT_EQ(1, b.st_nlink);
	EXPECT_EQ(a.st_ino, b.st_ino);
}

#define RACE_NAMES	8

/* Names come and go below, and through another mount. */
static void make_and_remove(const char *dir)
{
	char path[PATH_MAX];
	unsigned int i;

	for (i = 0; ; i++) {
		snprintf(path, sizeof(path), "%s/race%u", dir, i % RACE_NAMES);
		close(open(path, O_RDWR | O_CREAT | O_EXCL, 0644));
		if (i % 3)
			unlink(path);
	}
}

/* A file that is opened to be created if need be is opened, whoever is faster. */
TEST(created_by_others_at_the_same_time)
{
	char at[] = "mnt.XXXXXX", path[PATH_MAX];
	unsigned long n = 0, made = 0, stale = 0;
	double end;
	pid_t pid[2];
	int fd, i;

	ASSERT_NE(NULL, mkdtemp(at));
	ASSERT_EQ(0, mount_on(lower_dir, at, NULL));
	for (i = 0; i < 2; i++) {
		pid[i] = fork();
		if (!pid[i])
			make_and_remove(i ? at : lower_dir);
	}
	end = now() + 4 * TIME_FACTOR;
	for (; now() < end || n <= 100; n++) {
		snprintf(path, sizeof(path), "%s/race%lu", upper_dir, n % RACE_NAMES);
		fd = open(path, O_RDWR | O_CREAT, 0644);
		/* (README: where the name came and went twice in between.) */
		if (fd < 0 && errno == ESTALE) {
			stale++;
			continue;
		}
		EXPECT_LE(0, fd) TH_LOG("after %lu: %s", n, strerror(errno));
		if (fd < 0)
			break;
		close(fd);
		if (n % 2)
			made += !unlink(path);
	}
	TH_LOG("%lu opened, %lu removed, %lu stale", n, made, stale);
	EXPECT_GE(n / 50, stale);
	EXPECT_LT(100UL, n);
	for (i = 0; i < 2; i++) {
		kill(pid[i], SIGKILL);
		waitpid(pid[i], NULL, 0);
	}
	EXPECT_EQ(0, umount2(at, MNT_DETACH));
	rmdir(at);
	for (i = 0; i < RACE_NAMES; i++)
		unlink(low("race%d", i));
}

/* Space that a removed file held is free again although the mount knew it. */
TEST(removed_files_give_back_their_space)
{
	struct statfs before, after;
	int i;

	ASSERT_EQ(0, statfs(lower_dir, &before));
	for (i = 0; i < 2; i++) {
		make_file(low("big"), 64 * MiB, 1);
		make_clone(low("big"), low("big2"));
		EXPECT_EQ(-1, check_file(up("big"), 64 * MiB, 1));
		EXPECT_EQ(-1, check_file(up("big2"), 64 * MiB, 1));
		EXPECT_EQ(0, unlink(i ? up("big") : low("big")));
		EXPECT_EQ(0, unlink(i ? up("big2") : low("big2")));
		/* One look at the names is enough for the mount to let go. */
		EXPECT_EQ(-1, access(up("big"), F_OK));
		EXPECT_EQ(-1, access(up("big2"), F_OK));
	}
	for (i = 0; i < 20; i++) {
		sync();
		ASSERT_EQ(0, statfs(lower_dir, &after));
		if ((before.f_bfree - after.f_bfree) * before.f_bsize < 16 * MiB || after.f_bfree > before.f_bfree)
			break;
		usleep(250000);
	}
	EXPECT_GT(20, i) TH_LOG("%ld MiB still held", (long)((before.f_bfree - after.f_bfree) * before.f_bsize / MiB));
}

TEST_HARNESS_MAIN
