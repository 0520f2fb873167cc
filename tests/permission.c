// SPDX-License-Identifier: GPL-2.0-only
/*
 * The caller's own permissions decide, for every call, whatever the mounter
 * may do: an unprivileged user gets what he gets below, and never a byte more,
 * be the data in the pool or not.
 */
#include "common.h"
#include <linux/capability.h>
#include <sys/prctl.h>

static void secret(void)
{
	static char buf[PAGE];
	int fd;

	make_pooled("secret", 5 * PAGE, 1);
	make_file("readable", 100, 2);
	make_file("group", 100, 3);
	make_file("own", 100, 4);
	make_file("drop", 100, 5);
	mkdir("closed", 0700);
	make_file("closed/in", 100, 6);
	mkdir("sticky", 01777);
	make_file("sticky/roots", 100, 7);
	mkdir("open", 0777);
	chmod(".", 0755);
	chmod("secret", 0600);
	chmod("readable", 0644);
	chmod("group", 0640);
	chown("group", 0, 65534);
	chown("own", 65534, 65534);
	chmod("drop", 0222);
	/* Root has read it: it is in memory. */
	say_file("secret");
	say_file("secret.twin");
	nobody();
	DO(open("secret", O_RDONLY));
	DO(open("secret", O_WRONLY));
	DO(open("secret", O_RDONLY | O_TRUNC));
	DO(truncate("secret", 0));
	DO(chmod("secret", 0644));
	DO(chown("secret", 65534, 65534));
	DO(access("secret", R_OK));
	DO(utimensat(AT_FDCWD, "secret", NULL, 0));
	DO(link("secret", "open/l"));
	DO(unlink("secret"));
	DO(rename("secret", "open/x"));
	DO(setxattr("secret", "user.x", "y", 1, 0));
	VAL(getxattr("secret", "user.x", buf, 10));
	DO(execl("secret", "secret", NULL));
	fd = DO(open("secret", O_PATH));
	VAL(read(fd, buf, 10));
	DO(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0));
	DO(open("readable", O_RDONLY));
	DO(open("readable", O_RDWR));
	DO(open("readable", O_RDONLY | O_NOATIME));
	DO(open("group", O_RDONLY));
	DO(open("group", O_WRONLY));
	DO(open("own", O_RDWR));
	DO(open("own", O_RDONLY | O_NOATIME));
	DO(open("drop", O_RDONLY));
	fd = DO(open("drop", O_WRONLY));
	VAL(write(fd, "x", 1));
	VAL(read(fd, buf, 1));
	DO(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0));
	DO(ioctl(fd, FICLONE, open("readable", O_RDONLY)));
	DO(open("closed/in", O_RDONLY));
	DO(access("closed/nothing", F_OK));
	DO(open("closed", O_RDONLY));
	DO(creat("closed/new", 0644));
	DO(creat("new", 0644));
	DO(mkdir("newdir", 0755));
	DO(creat("open/new", 0644));
	DO(mknod("open/dev", S_IFCHR | 0666, makedev(1, 3)));
	DO(mknod("open/fifo", S_IFIFO | 0666, 0));
	DO(link("readable", "open/l2"));
	DO(link("own", "open/l3"));
	DO(unlink("sticky/roots"));
	DO(rename("sticky/roots", "sticky/mine"));
	DO(creat("sticky/new", 0644));
	DO(unlink("sticky/new"));
	DO(chmod("own", 06777));
	DO(chown("own", 0, 0));
	DO(chown("own", -1, 65534));
	DO(setxattr("own", "user.x", "y", 1, 0));
	DO(setxattr("own", "trusted.x", "y", 1, 0));
	DO(open(".", O_TMPFILE | O_RDWR, 0644));
	DO(open("open", O_TMPFILE | O_RDWR, 0644));
}

TEST(an_unprivileged_user)
{
	SAME(secret);
}

/* A descriptor opened while it was allowed goes on working. */
static void kept(void)
{
	char buf[10], *p;
	int fd;

	make_pooled("a", 5 * PAGE, 1);
	fd = open("a", O_RDWR);
	chmod("a", 0600);
	drop_caches("3");
	nobody();
	VAL(pread(fd, buf, 10, 0));
	say("%lx", hash(buf, 10, 1));
	p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
	say("%lx", hash(p, PAGE, 1));
	VAL(pwrite(fd, "x", 1, 2 * PAGE));
	DO(ftruncate(fd, 3 * PAGE));
	DO(fchmod(fd, 0644));
	DO(open("/proc/self/fd/0", O_RDONLY));
	snprintf(buf, 10, "%d", fd);
	say("%d", open(path_of("/proc/self/fd/%s", buf), O_RDONLY) < 0 ? errno : 0);
}

TEST(a_descriptor_opened_before)
{
	SAME(kept);
}

static void groups(void)
{
	struct stat st;

	mkdir("g", 0775);
	chown("g", 0, 50);
	chmod("g", 02775);
	close(creat("g/f", 02770));
	mkdir("g/d", 0755);
	stat("g/f", &st);
	say("gid %d mode %o", st.st_gid, st.st_mode);
	stat("g/d", &st);
	say("gid %d mode %o", st.st_gid, st.st_mode);
	if (setgroups(1, (gid_t[]) { 50 }) || setresgid(7, 7, 7) || setresuid(8, 8, 8))
		die("setuid");
	DO(creat("g/h", 02775));
	stat("g/h", &st);
	say("uid %d gid %d mode %o", st.st_uid, st.st_gid, st.st_mode);
	DO(chmod("g/h", 02755));
	stat("g/h", &st);
	say("mode %o", st.st_mode);
	DO(chown("g/h", -1, 7));
	DO(chown("g/h", -1, 9));
}

TEST(groups_and_setgid_directories)
{
	SAME(groups);
}

/* Root without capabilities is nobody special; with one, that one counts. */
static void capabilities(void)
{
	struct __user_cap_header_struct hdr = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = {};
	int keep;
	static const int caps[] = { -1, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_CHOWN };

	make_pooled("a", 2 * PAGE, 1);
	chown("a", 1000, 1000);
	chmod("a", 0600);
	chmod(".", 0777);
	for (keep = 0; keep < 5; keep++) {
		if (!fork()) {
			prctl(PR_SET_KEEPCAPS, 1);
			if (setresuid(1001, 1001, 1001))
				_exit(1);
			if (caps[keep] >= 0)
				data[0].effective = data[0].permitted = 1u << caps[keep];
			if (syscall(SYS_capset, &hdr, data))
				_exit(2);
			say("capability %d", caps[keep]);
			DO(open("a", O_RDONLY));
			DO(open("a", O_RDWR));
			DO(chmod("a", 0600));
			DO(chown("a", 1000, 1000));
			DO(utimensat(AT_FDCWD, "a", NULL, 0));
			DO(access("a", R_OK));
			DO(faccessat(AT_FDCWD, "a", R_OK, AT_EACCESS));
			_exit(0);
		}
		wait(NULL);
	}
}

TEST(single_capabilities)
{
	SAME(capabilities);
}

/* Permission taken away below counts at once above. */
TEST(changed_below)
{
	int status;

	make_file(low("a"), 2 * PAGE, 1);
	make_clone(low("a"), low("twin"));
	EXPECT_EQ(-1, check_file(up("a"), 2 * PAGE, 1));
	EXPECT_EQ(0, chmod(low("a"), 0600));
	if (!fork()) {
		nobody();
		_exit(open(up("a"), O_RDONLY) < 0 ? errno : 0);
	}
	wait(&status);
	EXPECT_EQ(EACCES, WEXITSTATUS(status));
	EXPECT_EQ(0, chmod(low("."), 0700));
	EXPECT_EQ(0, chmod(low("a"), 0644));
	if (!fork()) {
		nobody();
		_exit(open(up("a"), O_RDONLY) < 0 ? errno : 0);
	}
	wait(&status);
	EXPECT_EQ(EACCES, WEXITSTATUS(status));
	EXPECT_EQ(0, chmod(low("."), 0755));
}

static char full_dir[PATH_MAX];

/*
 * Names are stored to memory of the caller's: what that costs on its filesystem
 * is his, and not the mounter's, who might have more.
 */
static void names_into_a_full_filesystem(void)
{
	int dir, fd, i;
	char *p;

	DO(mkdir("names", 0755));
	for (i = 0; i < 200; i++)
		close(open(path_of("names/a_name_that_takes_a_lot_of_space_%d", i),
			   O_CREAT | O_WRONLY, 0644));
	chmod(".", 0755);
	nobody();
	fd = DO(open(path_of("%s/hole-%d", full_dir, dut), O_RDWR | O_CREAT, 0644));
	DO(ftruncate(fd, 64 * PAGE));
	p = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	dir = DO(open("names", O_RDONLY | O_DIRECTORY));
	if (VAL(syscall(SYS_getdents64, dir, p, 64 * PAGE)) > 0)
		say("stored to a full filesystem, on the %s's side", dut ? "mount" : "lower filesystem");
}

TEST(who_pays_for_names)
{
	char *img = strdup(low("ext4")), *buf = calloc(1, 64 * KiB);
	char cwd[PATH_MAX - 16];
	int fd, status;

	ASSERT_NE(NULL, getcwd(cwd, sizeof(cwd)));
	snprintf(full_dir, sizeof(full_dir), "%s/full.XXXXXX", cwd);
	ASSERT_NE(NULL, mkdtemp(full_dir));
	ASSERT_EQ(0, mount_new_image(img, "32M", "ext4 -q -m 50", full_dir));
	ASSERT_EQ(0, chmod(full_dir, 0777));
	/* A half of it is root's: the user takes what is left. */
	if (!fork()) {
		nobody();
		fd = open(path_of("%s/filler", full_dir), O_RDWR | O_CREAT, 0644);
		while (write(fd, buf, 64 * KiB) > 0 || write(fd, buf, PAGE) > 0)
			;
		if (errno != ENOSPC || fsync(fd))
			_exit(1);
		/* To the last block, also of what was set aside for writing it. */
		while (write(fd, buf, PAGE) > 0 || write(fd, buf, 1) > 0)
			;
		_exit(errno != ENOSPC);
	}
	wait(&status);
	EXPECT_EQ(0, status);
	if (!status)
		SAME(names_into_a_full_filesystem);
	EXPECT_EQ(0, umount2(full_dir, MNT_DETACH));
	rmdir(full_dir);
	unlink(img);
	free(img);
	free(buf);
}

TEST_HARNESS_MAIN
