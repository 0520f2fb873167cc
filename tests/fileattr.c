// SPDX-License-Identifier: GPL-2.0-only
/*
 * chattr flags, extended flags and project ids: kept, shown and obeyed as
 * below, whichever side they were set on.
 */
#include "common.h"

static int get_flags(const char *path)
{
	int fd = open(path, O_RDONLY), flags = 0;

	if (ioctl(fd, FS_IOC_GETFLAGS, &flags))
		flags = -errno;
	close(fd);
	return flags;
}

static int set_flags(const char *path, int flags)
{
	int fd = open(path, O_RDONLY), ret = ioctl(fd, FS_IOC_SETFLAGS, &flags);

	close(fd);
	return ret;
}

static void each_flag(void)
{
	static const int flags[] = {
		FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL, FS_NOATIME_FL, FS_SYNC_FL, FS_DIRSYNC_FL,
		FS_NOCOW_FL, FS_COMPR_FL, FS_NOCOMP_FL, FS_PROJINHERIT_FL, FS_DAX_FL, FS_UNRM_FL, 0x40000000,
	};
	static const char * const paths[] = { "a", "d", "empty" };
	unsigned int i, k;

	make_pooled("a", 5000, 1);
	make_file("empty", 0, 0);
	mkdir("d", 0755);
	for (k = 0; k < 3; k++) {
		for (i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
			say("%s %x", paths[k], flags[i]);
			DO(set_flags(paths[k], flags[i]));
			VAL(get_flags(paths[k]));
			drop_caches("2");
			VAL(get_flags(paths[k]));
			DO(set_flags(paths[k], 0));
			VAL(get_flags(paths[k]));
		}
	}
}

TEST(every_flag)
{
	SAME(each_flag);
}

static void obeyed(void)
{
	struct statx sx;
	char *p;
	int fd;

	make_pooled("a", 5000, 1);
	make_pooled("b", 5000, 2);
	mkdir("d", 0755);
	make_file("d/f", 10, 3);
	fd = open("a", O_RDWR);
	p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	DO(set_flags("a", FS_IMMUTABLE_FL));
	statx(AT_FDCWD, "a", 0, STATX_ALL, &sx);
	say("immutable %d append %d", !!(sx.stx_attributes & STATX_ATTR_IMMUTABLE),
	    !!(sx.stx_attributes & STATX_ATTR_APPEND));
	DO(open("a", O_RDWR));
	DO(open("a", O_RDONLY));
	DO(chmod("a", 0600));
	DO(unlink("a"));
	DO(rename("a", "x"));
	DO(link("a", "x"));
	DO(truncate("a", 0));
	DO(setxattr("a", "user.x", "y", 1, 0));
	DO(utimensat(AT_FDCWD, "a", NULL, 0));
	VAL(pwrite(fd, "x", 1, 0));
	DO(ftruncate(fd, 10));
	DO(fallocate(fd, 0, 0, 10000));
	DO(ioctl(fd, FICLONE, open("b", O_RDONLY)));
	say("store: %d", FAULTS(p[0] = 1));
	say_file("a");
	DO(set_flags("a", 0));
	DO(set_flags("b", FS_APPEND_FL));
	DO(open("b", O_RDWR));
	fd = DO(open("b", O_WRONLY | O_APPEND));
	VAL(write(fd, "end", 3));
	DO(ftruncate(fd, 0));
	DO(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 100));
	DO(open("b", O_WRONLY | O_APPEND | O_TRUNC));
	DO(unlink("b"));
	say_file("b");
	DO(set_flags("b", 0));
	DO(set_flags("d", FS_IMMUTABLE_FL));
	DO(creat("d/g", 0644));
	DO(unlink("d/f"));
	DO(rename("d/f", "f"));
	DO(set_flags("d", FS_APPEND_FL));
	DO(creat("d/g", 0644));
	DO(unlink("d/f"));
	DO(set_flags("d", 0));
	DO(unlink("d/f"));
	say_file("a");
	say_file("a.twin");
	say_file("b.twin");
}

TEST(immutable_and_append)
{
	SAME(obeyed);
}

static void projects(void)
{
	static const struct { unsigned int id, flags; } set[] = {
		{ 42, 0 }, { 42, FS_XFLAG_PROJINHERIT }, { 0, FS_XFLAG_NODUMP }, { 77, FS_XFLAG_EXTSIZE },
		{ 0, FS_XFLAG_IMMUTABLE }, { 0, FS_XFLAG_APPEND }, { 0, 0 }, { 0, 0x1000000 },
	};
	static const char * const paths[] = { "a", "d" };
	struct fsxattr fx;
	unsigned int i, k;
	int fd;

	make_pooled("a", 5000, 1);
	mkdir("d", 0755);
	for (k = 0; k < 2; k++) {
		fd = open(paths[k], O_RDONLY);
		for (i = 0; i < sizeof(set) / sizeof(*set); i++) {
			DO(ioctl(fd, FS_IOC_FSGETXATTR, &fx));
			fx.fsx_projid = set[i].id;
			fx.fsx_xflags = set[i].flags;
			DO(ioctl(fd, FS_IOC_FSSETXATTR, &fx));
			memset(&fx, 0, sizeof(fx));
			DO(ioctl(fd, FS_IOC_FSGETXATTR, &fx));
			say("flags %x project %u extsize %u nextents %u", fx.fsx_xflags, fx.fsx_projid,
			    fx.fsx_extsize, fx.fsx_nextents);
		}
		close(fd);
	}
	fd = open("d", O_RDONLY);
	ioctl(fd, FS_IOC_FSGETXATTR, &fx);
	fx.fsx_projid = 9;
	fx.fsx_xflags = FS_XFLAG_PROJINHERIT;
	DO(ioctl(fd, FS_IOC_FSSETXATTR, &fx));
	close(fd);
	make_file("d/f", 10, 1);
	fd = open("d/f", O_RDONLY);
	memset(&fx, 0, sizeof(fx));
	DO(ioctl(fd, FS_IOC_FSGETXATTR, &fx));
	say("inherited: flags %x project %u", fx.fsx_xflags, fx.fsx_projid);
	/* Another project: a link must not cross. */
	DO(link("a", "d/a"));
	DO(rename("a", "d/a"));
}

TEST(project_ids)
{
	SAME(projects);
}

static void unprivileged(void)
{
	make_file("a", 100, 1);
	make_file("own", 100, 1);
	chmod(".", 0777);
	chown("own", 65534, 65534);
	if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		die("setuid");
	DO(set_flags("a", FS_NODUMP_FL));
	DO(set_flags("own", FS_NODUMP_FL));
	DO(set_flags("own", FS_IMMUTABLE_FL));
	DO(set_flags("own", FS_APPEND_FL));
	VAL(get_flags("own"));
}

TEST(of_an_unprivileged_user)
{
	SAME(unprivileged);
}

TEST(set_below_obeyed_above)
{
	make_file(low("a"), 5000, 1);
	make_clone(low("a"), low("twin"));
	EXPECT_EQ(-1, check_file(up("a"), 5000, 1));
	ASSERT_EQ(0, set_flags(low("a"), FS_IMMUTABLE_FL));
	EXPECT_EQ(FS_IMMUTABLE_FL, get_flags(up("a")) & FS_IMMUTABLE_FL);
	EXPECT_EQ(-1, open(up("a"), O_RDWR));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(-1, unlink(up("a")));
	EXPECT_EQ(EPERM, errno);
	ASSERT_EQ(0, set_flags(up("a"), 0));
	EXPECT_EQ(0, get_flags(low("a")) & FS_IMMUTABLE_FL);
	EXPECT_EQ(0, unlink(up("a")));
}

/* Who has a descriptor from before needs no name, which would tell what is new. */
TEST(append_only_from_below)
{
	char link[64], buf[5000];
	int path, fd;

	make_file(low("a"), 5000, 1);
	fd = open(up("a"), O_RDWR);
	path = open(up("a"), O_PATH);
	ASSERT_LE(0, fd);
	ASSERT_LE(0, path);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", path);
	ASSERT_EQ(0, set_flags(low("a"), FS_APPEND_FL));
	EXPECT_EQ(-1, ftruncate(fd, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-1, truncate(link, 0));
	EXPECT_EQ(EPERM, errno);
	ASSERT_EQ(0, set_flags(low("a"), 0));
	EXPECT_EQ(0, access(up("a"), R_OK));
	ASSERT_EQ(0, set_flags(low("a"), FS_APPEND_FL));
	EXPECT_EQ(-1, open(link, O_WRONLY | O_TRUNC));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(5000, pread(fd, buf, 5000, 0));
	EXPECT_EQ(-1, mismatch(buf, 5000, 1, 0));
	ASSERT_EQ(0, set_flags(low("a"), 0));
	EXPECT_EQ(0, access(up("a"), R_OK));
	EXPECT_EQ(0, ftruncate(fd, 0));
	EXPECT_EQ(0, unlink(up("a")));
	close(path);
	close(fd);
}

/* Files of other kinds, whose ioctls are somebody else's. */
static void of_special_files(void)
{
	static const struct { const char *name; mode_t mode; dev_t dev; } made[] = {
		{ "fifo", S_IFIFO | 0600, 0 },
		{ "null", S_IFCHR | 0600, 0x103 },
		{ "urandom", S_IFCHR | 0600, 0x109 },
	};
	struct fsxattr fx = {};
	unsigned int i, flags;
	int fd;

	for (i = 0; i < ARRAY_SIZE(made); i++) {
		DO(mknod(made[i].name, made[i].mode, made[i].dev));
		fd = open(made[i].name, O_RDWR);
		DO(ioctl(fd, FS_IOC_FSGETXATTR, &fx));
		DO(ioctl(fd, FS_IOC_FSSETXATTR, &fx));
		DO(ioctl(fd, FS_IOC_GETFLAGS, &flags));
		close(fd);
	}
}

TEST(special_files)
{
	SAME(of_special_files);
}

/* Files of a disk filesystem cannot be sealed, and are not by trying. */
static void seals(void)
{
	int fd = open("a", O_RDWR | O_CREAT, 0644);

	DO(fcntl(fd, F_GET_SEALS));
	DO(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
	DO(pwrite(fd, "text", 4, 0));
	DO(ftruncate(fd, 2));
	say_file("a");
	close(fd);
}

TEST(sealing)
{
	SAME(seals);
}

/* What was forbidden, and is not any more: nobody asks stat(2) in between. */
TEST(what_was_allowed_below)
{
	struct stat st;
	int status;
	pid_t pid;

	make_file(low("a"), 10, 1);
	ASSERT_EQ(0, set_flags(low("a"), FS_IMMUTABLE_FL));
	EXPECT_EQ(0, stat(up("a"), &st));
	EXPECT_EQ(-1, open(up("a"), O_WRONLY));
	ASSERT_EQ(0, set_flags(low("a"), 0));
	EXPECT_LE(0, open(up("a"), O_WRONLY));
	EXPECT_EQ(0, stat(up("a"), &st));
	ASSERT_EQ(0, set_flags(low("a"), FS_APPEND_FL));
	EXPECT_EQ(-1, open(up("a"), O_WRONLY));
	EXPECT_EQ(EPERM, errno);
	ASSERT_EQ(0, set_flags(low("a"), 0));
	EXPECT_EQ(0, unlink(up("a")));

	/* Who may remove a name from a sticky directory. */
	chmod(lower_dir, 0755);
	mkdir(low("s"), 0755);
	chmod(low("s"), 01777);
	make_file(low("s/a"), 10, 1);
	EXPECT_EQ(0, stat(up("s/a"), &st));
	ASSERT_EQ(0, chown(low("s/a"), 65534, 65534));
	pid = fork();
	if (!pid) {
		nobody();
		_exit(unlink(up("s/a")) ? errno : 0);
	}
	waitpid(pid, &status, 0);
	EXPECT_EQ(0, WEXITSTATUS(status));
}

TEST_HARNESS_MAIN
