// SPDX-License-Identifier: GPL-2.0-only
/*
 * Attributes: mode, owner, times, size, the bits that writes and chown take
 * away, statx, and when a read moves the access time.
 */
#include "common.h"

static void say_stat(const char *path)
{
	struct stat st;

	if (lstat(path, &st)) {
		say("%s: %s", path, errname());
		return;
	}
	say("%s: mode %o uid %u gid %u nlink %ld size %ld rdev %lx blksize %ld", path, st.st_mode, st.st_uid,
	    st.st_gid, (long)st.st_nlink, (long)st.st_size, st.st_rdev, (long)st.st_blksize);
}

static void modes(void)
{
	make_pooled("a", 5000, 1);
	mkdir("d", 0755);
	symlink("a", "s");
	DO(chmod("a", 06777));
	say_stat("a");
	DO(chmod("a", 0));
	say_stat("a");
	DO(chmod("s", 0640));
	say_stat("a");
	say_stat("s");
	DO(chmod("d", 03700));
	say_stat("d");
	DO(fchmodat(AT_FDCWD, "nothing", 0, 0));
	DO(fchmod(open("a", O_RDONLY), 0604));
	DO(fchmod(open("a", O_PATH), 0604));
	say_stat("a");
	drop_caches("3");
	say_stat("a");
	say_stat("d");
}

TEST(chmod_and_fchmod)
{
	SAME(modes);
}

static void owners(void)
{
	make_pooled("a", 5000, 1);
	symlink("a", "s");
	DO(chmod("a", 06755));
	DO(chown("a", 10, 20));
	say_stat("a");
	DO(chmod("a", 06745));
	DO(chown("a", -1, 21));
	say_stat("a");
	DO(lchown("s", 5, 6));
	say_stat("s");
	DO(fchown(open("a", O_RDONLY), 7, -1));
	DO(fchownat(open("a", O_PATH), "", 8, 9, AT_EMPTY_PATH));
	say_stat("a");
	DO(chown("a", 65534, 65534));
	if (!fork()) {
		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
			_exit(1);
		DO(chown("a", 0, -1));
		DO(chown("a", -1, 0));
		DO(chmod("a", 02777));
		say_stat("a");
		DO(chmod("s", 0600));
		_exit(0);
	}
	wait(NULL);
	say_stat("a");
}

TEST(chown_and_lchown)
{
	SAME(owners);
}

/* setuid and setgid go with a write, not with a read. */
static void killed_bits(void)
{
	static const int mode[] = { 06777, 04755, 02755, 02745, 06644 };
	int i, how;

	for (how = 0; how < 8; how++) {
		for (i = 0; i < 5; i++) {
			make_file("b", 3 * PAGE, 1);
			make_file("src", PAGE, 2);
			make_clone("b", "b.twin");
			DO(chmod("b", mode[i]));
			DO(chmod(".", 0777));
			DO(chown("b", 65534, 65534));
			DO(chmod("b", mode[i]));
			DO(setxattr("b", "security.capability", "\1\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20, 0));
			if (!fork()) {
				int fd, in = open("src", O_RDONLY);
				char *p;

				if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
					_exit(1);
				fd = open("b", O_RDWR);
				switch (how) {
				case 0:
					hash_read("b", PAGE);
					break;
				case 1:
					DO(pwrite(fd, "x", 1, 0));
					break;
				case 2:
					DO(ftruncate(fd, 100));
					break;
				case 3:
					DO(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE));
					break;
				case 4:
					DO(ioctl(fd, FICLONE, in));
					break;
				case 5:
					DO(copy_file_range(in, &(off_t) { 0 }, fd, &(off_t) { 0 }, 100, 0));
					break;
				case 6:
					p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
					p[0] = 1;
					DO(msync(p, PAGE, MS_SYNC));
					break;
				case 7:
					DO(open("b", O_RDWR | O_TRUNC));
					break;
				}
				_exit(0);
			}
			wait(NULL);
			say("how %d", how);
			say_stat("b");
			VAL(getxattr("b", "security.capability", NULL, 0));
			unlink("b");
			unlink("b.twin");
		}
	}
}

TEST(setuid_bits_go_with_a_write)
{
	SAME(killed_bits);
}

static void times(void)
{
	static const struct timespec t[][2] = {
		{ { 1, 2 }, { 3, 4 } }, { { 0, UTIME_OMIT }, { 100, 200 } }, { { 300, 400 }, { 0, UTIME_OMIT } },
		{ { -5, 0 }, { -6, 0 } }, { { 5000000000, 7 }, { 5000000001, 8 } }, { { 0, 1000000000 }, { 0, 0 } },
	};
	struct stat st;
	unsigned int i;

	make_pooled("a", 5000, 1);
	mkdir("d", 0755);
	symlink("a", "s");
	for (i = 0; i < sizeof(t) / sizeof(*t); i++) {
		DO(utimensat(AT_FDCWD, "a", t[i], 0));
		DO(utimensat(AT_FDCWD, "s", t[i], AT_SYMLINK_NOFOLLOW));
		DO(utimensat(AT_FDCWD, "d", t[i], 0));
		stat("a", &st);
		say("%ld.%09ld %ld.%09ld", st.st_atim.tv_sec, st.st_atim.tv_nsec, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
		lstat("s", &st);
		say("%ld.%09ld %ld.%09ld", st.st_atim.tv_sec, st.st_atim.tv_nsec, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	}
	drop_caches("3");
	stat("a", &st);
	say("%ld.%09ld %ld.%09ld", st.st_atim.tv_sec, st.st_atim.tv_nsec, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	DO(utimensat(AT_FDCWD, "a", NULL, 0));
	stat("a", &st);
	say("now %d", labs(st.st_mtime - time(NULL)) < 100);
	DO(chmod("a", 0666));
	if (!fork()) {
		if (setresuid(65534, 65534, 65534))
			_exit(1);
		DO(utimensat(AT_FDCWD, "a", NULL, 0));
		DO(utimensat(AT_FDCWD, "a", t[0], 0));
		_exit(0);
	}
	wait(NULL);
}

TEST(times_set)
{
	SAME(times);
}

/* relatime: a read moves an atime that is older than mtime; O_NOATIME none. */
static void atime(void)
{
	static const struct timespec old[2] = { { 1000, 0 }, { 2000, 0 } };
	char buf[10], *p;
	struct stat st;
	int fd, how;

	make_pooled("a", 5000, 1);
	make_file("plain", 5000, 1);
	mkdir("d", 0755);
	symlink("a", "s");
	for (how = 0; how < 7; how++) {
		const char *name = how == 5 ? "d" : how == 6 ? "s" : how == 4 ? "plain" : "a";

		utimensat(AT_FDCWD, name, old, AT_SYMLINK_NOFOLLOW);
		fd = open(how == 6 ? "a" : name, O_RDONLY | (how == 1 ? O_NOATIME : 0));
		switch (how) {
		case 2:
			p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
			touch(p, PAGE);
			break;
		case 3:
			break;
		case 5:
			closedir(fdopendir(dup(fd)));
			VAL(syscall(SYS_getdents64, fd, (char[1000]) {}, 1000) > 0);
			break;
		case 6:
			VAL(readlink("s", buf, 10));
			break;
		default:
			VAL(read(fd, buf, 10));
		}
		close(fd);
		lstat(name, &st);
		say("%d: atime moved %d mtime %ld", how, st.st_atime != 1000, st.st_mtime);
		/* And it is no newer than now, and not moved again at once. */
		say("sane %d", st.st_atime == 1000 || labs(st.st_atime - time(NULL)) < 100);
	}
}

TEST(access_time)
{
	SAME(atime);
}

static bool is_later(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec > b->tv_sec || (a->tv_sec == b->tv_sec && a->tv_nsec > b->tv_nsec);
}

/* What the mount was given says it, and not what LOWERDIR's has. */
TEST(strictatime_of_the_mount)
{
	char *at = path_of("%s/mnt", getcwd(NULL, 0)), c;
	struct stat st[2];
	int fd, i;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	make_file(low("a"), 5000, 1);
	mkdir(at, 0755);
	ASSERT_EQ(0, mount(low("."), at, "dedupfs", MS_STRICTATIME, NULL));
	for (i = 0; i < 2; i++) {
		usleep(50000);
		fd = open(path_of("%s/a", at), O_RDONLY);
		EXPECT_EQ(1, read(fd, &c, 1));
		close(fd);
		EXPECT_EQ(0, stat(low("a"), &st[i]));
	}
	EXPECT_TRUE(is_later(&st[1].st_atim, &st[0].st_atim));
	EXPECT_EQ(0, umount(at));
	unlink(low("a"));
}

/* relatime goes by an mtime that nobody has asked for since it moved below. */
TEST(access_time_after_a_change_below)
{
	struct stat st;
	char c;
	int fd, i;

	make_file(low("a"), 5000, 1);
	for (i = 0; i < 2; i++) {
		usleep(50000);
		fd = open(up("a"), O_RDONLY);
		EXPECT_EQ(1, read(fd, &c, 1));
		close(fd);
		EXPECT_EQ(0, stat(low("a"), &st));
		EXPECT_TRUE(is_later(&st.st_atim, &st.st_mtim)) TH_LOG("round %d", i);
		usleep(50000);
		fd = open(low("a"), O_WRONLY);
		EXPECT_EQ(1, pwrite(fd, "x", 1, 100));
		close(fd);
	}
	unlink(low("a"));
}

static void statxs(void)
{
	struct statx sx;
	int i;

	make_pooled("a", 5000, 1);
	mkdir("d", 0755);
	for (i = 0; i < 2; i++) {
		DO(statx(AT_FDCWD, i ? "d" : "a", 0, STATX_ALL, &sx));
		say("mask %x attr %llx of %llx mode %o blksize %u", sx.stx_mask & STATX_ALL, (long long)sx.stx_attributes,
		    (long long)sx.stx_attributes_mask & ~0x2000ULL, sx.stx_mode, sx.stx_blksize);
		say("born %d", !!(sx.stx_mask & STATX_BTIME) && labs(sx.stx_btime.tv_sec - time(NULL)) < 100);
		DO(statx(AT_FDCWD, i ? "d" : "a", AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &sx));
		DO(statx(AT_FDCWD, i ? "d" : "a", AT_STATX_FORCE_SYNC, STATX_SIZE, &sx));
		DO(statx(AT_FDCWD, i ? "d" : "a", 0, 0x80000000, &sx));
#ifdef STATX_DIOALIGN
		DO(statx(AT_FDCWD, i ? "d" : "a", 0, STATX_DIOALIGN, &sx));
		say("direct I/O: %d %u %u", !!(sx.stx_mask & STATX_DIOALIGN), sx.stx_dio_mem_align,
		    sx.stx_dio_offset_align);
#endif
	}
}

TEST(statx_fields)
{
	SAME(statxs);
}

/* One file, two sides: what is changed on one shows on the other. */
TEST(both_sides_agree)
{
	static const struct timespec t[2] = { { 11, 12 }, { 13, 14 } };
	struct stat l, u;
	int i;

	make_file(low("a"), 5000, 1);
	make_clone(low("a"), low("twin"));
	for (i = 0; i < 12; i++) {
		const char *p = i & 1 ? up("a") : low("a");

		switch (i / 2) {
		case 0:
			EXPECT_EQ(0, chmod(p, 0600 + i));
			break;
		case 1:
			EXPECT_EQ(0, chown(p, 40 + i, 50 + i));
			break;
		case 2:
			EXPECT_EQ(0, truncate(p, 3000 + i));
			break;
		case 3:
			EXPECT_EQ(0, utimensat(AT_FDCWD, p, t, 0));
			break;
		case 4:
			EXPECT_EQ(0, shell("printf xyz >>%s", p));
			break;
		case 5:
			EXPECT_EQ(0, link(p, i & 1 ? up("l%d", i) : low("l%d", i)));
			break;
		}
		ASSERT_EQ(0, stat(low("a"), &l));
		ASSERT_EQ(0, stat(up("a"), &u));
		EXPECT_EQ(l.st_mode, u.st_mode) TH_LOG("step %d", i);
		EXPECT_EQ(l.st_uid, u.st_uid) TH_LOG("step %d", i);
		EXPECT_EQ(l.st_gid, u.st_gid) TH_LOG("step %d", i);
		EXPECT_EQ(l.st_size, u.st_size) TH_LOG("step %d", i);
		EXPECT_EQ(l.st_nlink, u.st_nlink) TH_LOG("step %d", i);
		EXPECT_EQ(l.st_blocks, u.st_blocks) TH_LOG("step %d", i);
		EXPECT_EQ(0, memcmp(&l.st_mtim, &u.st_mtim, sizeof(l.st_mtim))) TH_LOG("step %d", i);
		EXPECT_EQ(0, memcmp(&l.st_ctim, &u.st_ctim, sizeof(l.st_ctim))) TH_LOG("step %d", i);
		EXPECT_EQ(0, memcmp(&l.st_atim, &u.st_atim, sizeof(l.st_atim))) TH_LOG("step %d", i);
	}
}

static mode_t mode_of(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		die("%s", path);
	return st.st_mode;
}

/* The mode is changed at @below; what kills set-id bits is done to @path. */
static mode_t after_chown(const char *path, const char *below)
{
	make_file(below, 100, 1);
	chmod(below, 0755);
	mode_of(path);
	chmod(below, 02755);
	if (chown(path, -1, 100))
		die("%s", path);
	return mode_of(below);
}

/* The file is opened before the bits are set, or behind. */
static mode_t after_truncate(const char *path, const char *below, bool open_first)
{
	int fd = -1, status;
	pid_t pid;

	make_file(below, 100, 1);
	chmod(below, 0666);
	pid = fork();
	if (!pid) {
		nobody();
		if (open_first)
			fd = open(path, O_RDWR);
		raise(SIGSTOP);
		if (!open_first)
			fd = open(path, O_RDWR);
		_exit(!!ftruncate(fd, 0));
	}
	waitpid(pid, &status, WUNTRACED);
	chmod(below, 06777);
	kill(pid, SIGCONT);
	waitpid(pid, &status, 0);
	return status ? 0 : mode_of(below);
}

/* Old attributes above must not keep the bits. */
TEST(set_id_bits_that_were_set_below)
{
	chmod(lower_dir, 0755);
	EXPECT_EQ(after_chown(low("a"), low("a")), after_chown(up("b"), low("b")));
	EXPECT_EQ(after_truncate(low("c"), low("c"), false),
		  after_truncate(up("d"), low("d"), false));
	EXPECT_EQ(after_truncate(low("e"), low("e"), true),
		  after_truncate(up("f"), low("f"), true));
	EXPECT_EQ(0, mode_of(low("b")) & 07000);
	EXPECT_EQ(0, mode_of(low("d")) & 07000);
	EXPECT_EQ(0, mode_of(low("f")) & 07000);
}

/* What is written to a fifo is no data of the file; but it moves its times. */
static void fifo_is_written_to(void)
{
	struct stat a, b;
	int fd;

	mkfifo("fifo", 0644);
	fd = open("fifo", O_RDWR);
	stat("fifo", &a);
	usleep(50000);
	VAL(write(fd, "x", 1));
	stat("fifo", &b);
	say("mtime %d ctime %d", b.st_mtim.tv_sec > a.st_mtim.tv_sec ||
	    b.st_mtim.tv_nsec > a.st_mtim.tv_nsec, b.st_ctim.tv_sec > a.st_ctim.tv_sec ||
	    b.st_ctim.tv_nsec > a.st_ctim.tv_nsec);
	close(fd);
}

TEST(times_of_a_fifo)
{
	SAME(fifo_is_written_to);
}

TEST_HARNESS_MAIN
