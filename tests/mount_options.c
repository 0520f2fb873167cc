// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mounting: options, remount, what is refused and with which words, what
 * /proc/mounts, mountinfo and statfs show, several mounts, overlayfs on top.
 *
 * timeout: 300
 */
#include "common.h"
#include <sys/klog.h>
#include <sys/quota.h>

#ifndef FSCONFIG_SET_STRING
#include <linux/mount.h>
#endif

/* A fresh directory in the scratch directory to mount on. */
static char *new_dir(void)
{
	char *at;

	if (asprintf(&at, "%s/mnt.XXXXXX", getcwd(NULL, 0)) < 0 || !mkdtemp(at) || chmod(at, 0755))
		die("mkdtemp");
	return at;
}

/* What the kernel said since the last call. */
static char *kernel_said(void)
{
	static int fd = -1;
	static char text[65536];
	size_t n = 0;
	ssize_t m;

	/* Not from the first message on: there may be more of them than fit. */
	if (fd < 0) {
		fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
		lseek(fd, 0, SEEK_END);
	}
	while (n < sizeof(text) - 8192 && ((m = read(fd, text + n, 8192)) > 0 || (m < 0 && errno == EPIPE)))
		n += m > 0 ? m : 0;
	text[n] = 0;
	return text;
}

static char *mount_line(const char *file, const char *at)
{
	static char line[8192];
	FILE *f = fopen(file, "r");
	bool found = false;

	while (!found && fgets(line, sizeof(line), f))
		found = strstr(line, path_of(" %s ", at));
	fclose(f);
	return found ? line : "";
}

FIXTURE(mounts) {
	char *at;
};

FIXTURE_SETUP(mounts)
{
	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	self->at = new_dir();
	kernel_said();
}

FIXTURE_TEARDOWN(mounts)
{
	if (self->at)
		umount2(self->at, MNT_DETACH);
}

/* A mount that must fail, with this errno and a message that says this. */
static void refused(struct __test_metadata *_metadata, const char *lower, const char *at,
		    const char *options, int err, const char *word)
{
	char *said;
	int ret;

	kernel_said();
	ret = mount(lower, at, "dedupfs", 0, options);
	EXPECT_EQ(-1, ret) TH_LOG("%s, options %s", lower, options ?: "none");
	if (!ret) {
		umount(at);
		return;
	}
	EXPECT_EQ(err, errno) TH_LOG("%s, options %s: %s", lower, options ?: "none", strerror(errno));
	said = kernel_said();
	EXPECT_NE(NULL, strstr(said, "dedupfs")) TH_LOG("%s, options %s: no message", lower, options ?: "none");
	EXPECT_NE(NULL, strstr(said, word))
		TH_LOG("%s, options %s: the log should name '%s': %s", lower, options ?: "none", word, said);
}

/* A remount that must fail, with this errno and a message that says this. */
static void remount_refused(struct __test_metadata *_metadata, const char *at, unsigned long flags,
			    const char *options, int err, const char *word)
{
	char *said;

	kernel_said();
	EXPECT_EQ(-1, mount(NULL, at, NULL, MS_REMOUNT | flags, options)) TH_LOG("%s", options ?: "none");
	EXPECT_EQ(err, errno) TH_LOG("%s", options ?: "none");
	said = kernel_said();
	EXPECT_NE(NULL, strstr(said, "dedupfs: ")) TH_LOG("%s: no message", options ?: "none");
	EXPECT_NE(NULL, strstr(said, word))
		TH_LOG("%s: the log should name '%s': %s", options ?: "none", word, said);
}

TEST_F(mounts, lower_directories_that_are_refused)
{
	char *ext4 = new_dir(), *tmpfs = new_dir(), *img;

	refused(_metadata, low("nothing"), self->at, NULL, ENOENT, "cannot find the lower directory");
	refused(_metadata, "", self->at, NULL, EINVAL, "no lower directory");
	make_file(low("file"), 10, 1);
	refused(_metadata, low("file"), self->at, NULL, ENOTDIR, "is not a directory");
	ASSERT_EQ(0, mount("tmpfs", tmpfs, "tmpfs", 0, "size=64m"));
	refused(_metadata, tmpfs, self->at, NULL, EOPNOTSUPP, "tmpfs");
	refused(_metadata, "/proc", self->at, NULL, EOPNOTSUPP, "proc");
	/* Made small: mkfs would not, so sparse on the lower filesystem. */
	img = strdup(low("ext4"));
	ASSERT_EQ(0, mount_new_image(img, "32M", "ext4 -q", ext4));
	refused(_metadata, ext4, self->at, NULL, EOPNOTSUPP, "ext4");
	umount(ext4);
	unlink(img);
	img = strdup(low("xfs"));
	ASSERT_EQ(0, mount_new_image(img, "320M", "xfs -q -m reflink=0,bigtime=0", ext4));
	refused(_metadata, ext4, self->at, NULL, EOPNOTSUPP, "reflink");
	umount(ext4);
	unlink(img);
	umount(tmpfs);
}

TEST_F(mounts, over_itself_and_too_deep)
{
	char *two = new_dir(), *ovl = new_dir();

	ASSERT_EQ(0, mount(lower_dir, self->at, "dedupfs", 0, NULL));
	refused(_metadata, self->at, two, NULL, EINVAL, "is on dedupfs already");
	refused(_metadata, upper_dir, two, NULL, EINVAL, "is on dedupfs already");
	/* overlayfs over dedupfs, then dedupfs over that. */
	mkdir(low("l"), 0755);
	mkdir(low("u"), 0755);
	mkdir(low("w"), 0755);
	if (!mount("overlay", ovl, "overlay", 0, path_of("lowerdir=%s,upperdir=%s,workdir=%s", up("l"), low("u"), low("w")))) {
		refused(_metadata, ovl, two, NULL, EOPNOTSUPP, "is on overlay");
		umount(ovl);
	}
}

TEST_F(mounts, options_that_are_refused)
{
	static const struct {
		const char *option, *word;
	} bad[] = {
		{ "nonsense", "unknown option 'nonsense'" },
		{ "nonsense=1", "unknown option 'nonsense'" },
		{ "pool_limit=", "'pool_limit' needs a value" },
		{ "pool_limit=abc", "bad pool_limit 'abc'" },
		{ "pool_limit=-1", "bad pool_limit '-1'" },
		{ "pool_limit=5x", "bad pool_limit '5x'" },
		{ "pool_limit=101%", "bad pool_limit '101%'" },
		{ "pool_limit=99999999999999999999", "bad pool_limit '99999999999999999999'" },
		{ "pool_limit=1.5g", "bad pool_limit '1.5g'" },
		{ "pool_limit", "'pool_limit' needs a value" },
		{ "domain", "'domain' needs a value" },
		{ "domain=", "'domain' needs a value" },
		{ "domain=a/b", "bad domain 'a/b'" },
		{ "lowerdir", "'lowerdir' needs a value" },
		{ "lowerdir=", "'lowerdir' needs a value" },
	};
	unsigned int i;

	for (i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		refused(_metadata, lower_dir, self->at, bad[i].option, EINVAL, bad[i].word);
	/* It stays on its line of the log, whose reader shows a backslash as \\x5c. */
	refused(_metadata, low("."), self->at, "no\nsuch", EINVAL, "no\\x5cx0asuch");
}

TEST_F(mounts, needs_privilege)
{
	int status;

	if (!fork()) {
		if (setresuid(65534, 65534, 65534))
			_exit(0);
		_exit(mount(lower_dir, self->at, "dedupfs", 0, NULL) ? errno : 0);
	}
	wait(&status);
	EXPECT_EQ(EPERM, WEXITSTATUS(status));
	/* Nor as root of a user namespace of one's own. */
	if (!fork()) {
		if (setresuid(65534, 65534, 65534) || unshare(CLONE_NEWUSER | CLONE_NEWNS))
			_exit(EPERM);
		_exit(mount(lower_dir, self->at, "dedupfs", 0, NULL) ? errno : 0);
	}
	wait(&status);
	EXPECT_EQ(EPERM, WEXITSTATUS(status));
}

TEST_F(mounts, options_are_shown)
{
	char *line;

	ASSERT_EQ(0, mount(lower_dir, self->at, "dedupfs", 0, "pool_limit=64m,domain=some"));
	line = mount_line("/proc/mounts", self->at);
	EXPECT_NE(NULL, strstr(line, " dedupfs ")) TH_LOG("%s", line);
	EXPECT_NE(NULL, strstr(line, lower_dir)) TH_LOG("%s", line);
	EXPECT_NE(NULL, strstr(line, "pool_limit=64")) TH_LOG("%s", line);
	EXPECT_NE(NULL, strstr(line, "domain=some")) TH_LOG("%s", line);
	line = mount_line("/proc/self/mountinfo", self->at);
	EXPECT_NE(NULL, strstr(line, lower_dir)) TH_LOG("%s", line);
	EXPECT_NE(NULL, strstr(line, "domain=some")) TH_LOG("%s", line);
	ASSERT_EQ(0, umount(self->at));
	/* What is shown can be given back, as mount(8) does. */
	EXPECT_EQ(0, shell("mount -t dedupfs %s %s", lower_dir, self->at));
	EXPECT_EQ(0, shell("mount -o remount,ro %s && ! touch %s/x 2>/dev/null", self->at, self->at));
	EXPECT_EQ(0, shell("mount -o remount,rw %s && touch %s/x", self->at, self->at));
	EXPECT_EQ(0, access(low("x"), F_OK));
}

TEST_F(mounts, odd_names)
{
	static const char * const names[] = { "a space", "back\\slash", "new\nline", "colon:equals=", "#" };
	unsigned int i;
	char *quoted;

	for (i = 0; i < sizeof(names) / sizeof(*names); i++) {
		ASSERT_EQ(0, mkdir(low("%s", names[i]), 0755));
		quoted = low("%s", names[i]);
		EXPECT_EQ(0, shell("mount -t dedupfs '%s' %s", quoted, self->at)) TH_LOG("%s", names[i]);
		EXPECT_EQ(0, shell("mount -o remount,ro %s && ! touch %s/x 2>/dev/null", self->at, self->at))
			TH_LOG("%s", names[i]);
		EXPECT_EQ(0, shell("mount -o remount,rw %s && touch %s/x", self->at, self->at))
			TH_LOG("%s", names[i]);
		EXPECT_EQ(0, access(low("%s/x", names[i]), F_OK));
		umount(self->at);
	}
}

TEST_F(mounts, read_only)
{
	int fd;

	make_file(low("a"), 5000, 1);
	make_clone(low("a"), low("twin"));
	ASSERT_EQ(0, mount(lower_dir, self->at, "dedupfs", MS_RDONLY, NULL));
	EXPECT_EQ(-1, check_file(path_of("%s/a", self->at), 5000, 1));
	EXPECT_EQ(-1, open(path_of("%s/a", self->at), O_RDWR));
	EXPECT_EQ(EROFS, errno);
	EXPECT_EQ(-1, mkdir(path_of("%s/d", self->at), 0755));
	EXPECT_EQ(EROFS, errno);
	EXPECT_EQ(-1, chmod(path_of("%s/a", self->at), 0600));
	EXPECT_EQ(EROFS, errno);
	EXPECT_EQ(0, mount(NULL, self->at, NULL, MS_REMOUNT, NULL));
	fd = open(path_of("%s/a", self->at), O_RDWR);
	EXPECT_LE(0, fd);
	EXPECT_EQ(-1, mount(NULL, self->at, NULL, MS_REMOUNT | MS_RDONLY, NULL));
	EXPECT_EQ(EBUSY, errno);
	close(fd);
	EXPECT_EQ(0, mount(NULL, self->at, NULL, MS_REMOUNT | MS_RDONLY, NULL));
	EXPECT_EQ(-1, truncate(path_of("%s/a", self->at), 0));
	EXPECT_EQ(EROFS, errno);
	/* "ro" as an option of the filesystem, too. */
	ASSERT_EQ(0, umount(self->at));
	EXPECT_EQ(0, shell("mount -t dedupfs -o ro %s %s", lower_dir, self->at));
	EXPECT_EQ(-1, mkdir(path_of("%s/d", self->at), 0755));
	remount_refused(_metadata, self->at, 0, "nonsense", EINVAL, "unknown option 'nonsense'");
	remount_refused(_metadata, self->at, 0, "domain=other", EINVAL, "domain cannot change");
}

/* What cannot change is refused; to be told what is so already is not to change it. */
TEST_F(mounts, remount_changes_nothing_but_the_limit)
{
	char *line;

	mkdir(low("one"), 0755);
	mkdir(low("two"), 0755);
	make_file(low("one/f"), 5000, 1);
	ASSERT_EQ(0, mount(low("one"), self->at, "dedupfs", 0, "domain=some,pool_limit=64m"));
	remount_refused(_metadata, self->at, 0, path_of("lowerdir=%s", low("two")), EINVAL,
			"lowerdir cannot change");
	remount_refused(_metadata, self->at, 0, path_of("lowerdir=%s/", low("one")), EINVAL,
			"lowerdir cannot change");
	remount_refused(_metadata, self->at, 0, "domain=other", EINVAL, "domain cannot change");
	/* All or nothing: the limit beside it, and ro, are not taken either. */
	remount_refused(_metadata, self->at, MS_RDONLY,
			path_of("pool_limit=32m,lowerdir=%s", low("two")), EINVAL,
			"lowerdir cannot change");
	line = mount_line("/proc/mounts", self->at);
	EXPECT_NE(NULL, strstr(line, path_of("lowerdir=%s,", low("one")))) TH_LOG("%s", line);
	EXPECT_NE(NULL, strstr(line, "domain=some")) TH_LOG("%s", line);
	EXPECT_NE(NULL, strstr(line, "pool_limit=64m")) TH_LOG("%s", line);
	EXPECT_EQ(0, mkdir(path_of("%s/d", self->at), 0755));
	EXPECT_EQ(-1, check_file(path_of("%s/f", self->at), 5000, 1));
	EXPECT_EQ(0, mount(NULL, self->at, NULL, MS_REMOUNT,
			   path_of("domain=some,pool_limit=32m,lowerdir=%s", low("one"))));
	line = mount_line("/proc/mounts", self->at);
	EXPECT_NE(NULL, strstr(line, "pool_limit=32m")) TH_LOG("%s", line);
}

/* lowerdir= counts, whatever the source is. */
TEST_F(mounts, lowerdir_as_an_option)
{
	char *line;

	mkdir(low("one"), 0755);
	mkdir(low("two"), 0755);
	make_file(low("one/f"), 5000, 1);
	make_file(low("two/f"), 5000, 2);
	ASSERT_EQ(0, mount("some name", self->at, "dedupfs", 0, path_of("lowerdir=%s", low("one"))));
	EXPECT_EQ(-1, check_file(path_of("%s/f", self->at), 5000, 1));
	line = mount_line("/proc/mounts", self->at);
	EXPECT_EQ(line, strstr(line, "some\\040name ")) TH_LOG("%s", line);
	EXPECT_NE(NULL, strstr(line, path_of("lowerdir=%s", low("one")))) TH_LOG("%s", line);
	ASSERT_EQ(0, umount(self->at));
	ASSERT_EQ(0, mount(low("two"), self->at, "dedupfs", 0, path_of("lowerdir=%s", low("one"))));
	EXPECT_EQ(-1, check_file(path_of("%s/f", self->at), 5000, 1));
	ASSERT_EQ(0, umount(self->at));
	/* The last one, where there are several. */
	ASSERT_EQ(0, mount("none", self->at, "dedupfs", 0,
			   path_of("lowerdir=%s,lowerdir=%s", low("one"), low("two"))));
	EXPECT_EQ(-1, check_file(path_of("%s/f", self->at), 5000, 2));
	ASSERT_EQ(0, umount(self->at));
	/* As mount(8) gives it, with a remount that repeats it. */
	EXPECT_EQ(0, shell("mount -t dedupfs -o lowerdir=%s none %s", low("one"), self->at));
	EXPECT_EQ(0, shell("mount -o remount,ro %s && ! touch %s/x 2>/dev/null", self->at, self->at));
	EXPECT_EQ(0, shell("mount -o remount,rw %s && touch %s/x", self->at, self->at));
	EXPECT_EQ(0, access(low("one/x"), F_OK));
	ASSERT_EQ(0, umount(self->at));
	/* A source that would do does not help where it is wrong. */
	refused(_metadata, low("two"), self->at, path_of("lowerdir=%s", low("missing")), ENOENT,
		path_of("cannot find the lower directory %s:", low("missing")));
}

/* What is read-only below is so in the mount, and stays so for as long as that lives. */
TEST_F(mounts, read_only_below)
{
	char *bind = new_dir(), *line;

	make_file(low("a"), 5000, 1);
	make_clone(low("a"), low("twin"));
	ASSERT_EQ(0, mount(lower_dir, bind, NULL, MS_BIND, NULL));
	ASSERT_EQ(0, mount(NULL, bind, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
	ASSERT_EQ(0, mount(bind, self->at, "dedupfs", 0, NULL));
	line = mount_line("/proc/mounts", self->at);
	EXPECT_NE(NULL, strstr(line, " dedupfs ro,")) TH_LOG("%s", line);
	EXPECT_EQ(-1, check_file(path_of("%s/a", self->at), 5000, 1));
	EXPECT_EQ(-1, open(path_of("%s/a", self->at), O_RDWR));
	EXPECT_EQ(EROFS, errno);
	EXPECT_EQ(-1, mkdir(path_of("%s/d", self->at), 0755));
	EXPECT_EQ(EROFS, errno);
	EXPECT_EQ(-1, truncate(path_of("%s/a", self->at), 0));
	EXPECT_EQ(EROFS, errno);
	remount_refused(_metadata, self->at, 0, NULL, EROFS, path_of("%s is read-only below", bind));
	EXPECT_EQ(-1, mkdir(path_of("%s/d", self->at), 0755));
	EXPECT_EQ(EROFS, errno);
	/* To stay so is no change. */
	EXPECT_EQ(0, mount(NULL, self->at, NULL, MS_REMOUNT | MS_RDONLY, NULL));
	/* The mount has one of its own of what is below, as that was. */
	ASSERT_EQ(0, mount(NULL, bind, NULL, MS_REMOUNT | MS_BIND, NULL));
	remount_refused(_metadata, self->at, 0, NULL, EROFS, "mount again");
	ASSERT_EQ(0, umount(self->at));
	ASSERT_EQ(0, mount(bind, self->at, "dedupfs", 0, NULL));
	EXPECT_EQ(0, mkdir(path_of("%s/d", self->at), 0755));
	EXPECT_EQ(0, access(low("d"), F_OK));
	/* And the other way: what is read-only below later does not reach it. */
	ASSERT_EQ(0, mount(NULL, bind, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
	EXPECT_EQ(0, rmdir(path_of("%s/d", self->at)));
	ASSERT_EQ(0, umount(self->at));
	ASSERT_EQ(0, umount(bind));
}

TEST_F(mounts, unbindable_below)
{
	char *bind = new_dir();

	ASSERT_EQ(0, mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	ASSERT_EQ(0, mount(lower_dir, bind, NULL, MS_BIND, NULL));
	ASSERT_EQ(0, mount(NULL, bind, NULL, MS_UNBINDABLE, NULL));
	refused(_metadata, bind, self->at, NULL, EINVAL, "is it unbindable");
	ASSERT_EQ(0, mount(NULL, bind, NULL, MS_PRIVATE, NULL));
	EXPECT_EQ(0, mount(bind, self->at, "dedupfs", 0, NULL));
	umount(self->at);
	ASSERT_EQ(0, umount(bind));
}

/* A user namespace in which the ids from 0 on are those of the host from 100000 on. */
static int shifted_userns(void)
{
	int ready[2], fd;
	char c = 0;
	pid_t pid;

	if (pipe(ready))
		die("pipe");
	pid = fork();
	if (!pid) {
		c = unshare(CLONE_NEWUSER) ? 'x' : 'o';
		if (write(ready[1], &c, 1) == 1)
			pause();
		_exit(0);
	}
	if (read(ready[0], &c, 1) != 1 || c != 'o')
		die("unshare");
	if (write_text(path_of("/proc/%d/uid_map", pid), "0 100000 65536") ||
	    write_text(path_of("/proc/%d/gid_map", pid), "0 100000 65536"))
		die("uid_map");
	fd = open(path_of("/proc/%d/ns/user", pid), O_RDONLY | O_CLOEXEC);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(ready[0]);
	close(ready[1]);
	return fd;
}

/* A new mount of a directory, to be moved somewhere, with ids mapped; or -1. */
static int idmapped(const char *dir, int userns)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_IDMAP, .userns_fd = userns };
	int tree = syscall(SYS_open_tree, AT_FDCWD, dir, 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC), err;

	if (tree < 0)
		die("open_tree %s", dir);
	if (!syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)))
		return tree;
	err = errno;
	close(tree);
	errno = err;
	return -1;
}

/* Neither below, nor above: whose ids would be whose? */
TEST_F(mounts, idmapped)
{
	char *bind = new_dir();
	int userns = shifted_userns(), tree;
	struct stat st;

	ASSERT_LE(0, userns);
	make_file(low("a"), 5000, 1);
	tree = idmapped(lower_dir, userns);
	ASSERT_LE(0, tree) TH_LOG("%s", strerror(errno));
	ASSERT_EQ(0, syscall(SYS_move_mount, tree, "", AT_FDCWD, bind, 4 /* MOVE_MOUNT_F_EMPTY_PATH */));
	close(tree);
	ASSERT_EQ(0, stat(path_of("%s/a", bind), &st));
	ASSERT_EQ(100000, st.st_uid) TH_LOG("that it is idmapped has no effect");
	refused(_metadata, bind, self->at, NULL, EINVAL, "is on an idmapped mount");
	ASSERT_EQ(0, umount(bind));
	/* The same call on the mount. */
	ASSERT_EQ(0, mount(lower_dir, self->at, "dedupfs", 0, NULL));
	EXPECT_EQ(-1, idmapped(self->at, userns));
	EXPECT_EQ(EINVAL, errno);
	ASSERT_EQ(0, stat(path_of("%s/a", self->at), &st));
	EXPECT_EQ(0, st.st_uid);
	close(userns);
}

TEST_F(mounts, by_fsopen)
{
	char said[512] = "";
	int fs, m;

	fs = syscall(SYS_fsopen, "dedupfs", 0);
	ASSERT_LE(0, fs);
	EXPECT_EQ(-1, syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	/* Who mounts so is told by the descriptor, too. */
	EXPECT_LT(0, read(fs, said, sizeof(said) - 1));
	EXPECT_NE(NULL, strstr(said, "no lower directory")) TH_LOG("%s", said);
	close(fs);
	fs = syscall(SYS_fsopen, "dedupfs", 0);
	ASSERT_EQ(0, syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", lower_dir, 0));
	ASSERT_EQ(0, syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "domain", "fsopen", 0));
	EXPECT_EQ(-1, syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "nonsense", "x", 0));
	ASSERT_EQ(0, syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	m = syscall(SYS_fsmount, fs, 0, 0);
	ASSERT_LE(0, m);
	make_file(low("a"), 5000, 1);
	EXPECT_LE(0, openat(m, "a", O_RDONLY));
	ASSERT_EQ(0, syscall(SYS_move_mount, m, "", AT_FDCWD, self->at, 4 /* MOVE_MOUNT_F_EMPTY_PATH */));
	EXPECT_EQ(-1, check_file(path_of("%s/a", self->at), 5000, 1));
	close(m);
	close(fs);
}

TEST_F(mounts, statfs_shows_the_lower_numbers)
{
	struct statfs l, u, again;
	int tries = 0;

	/* What others wrote may just be on its way to the disk. */
	do {
		ASSERT_EQ(0, statfs(lower_dir, &l));
		ASSERT_EQ(0, statfs(upper_dir, &u));
		ASSERT_EQ(0, statfs(lower_dir, &again));
	} while (memcmp(&l, &again, sizeof(l)) && ++tries < 50);
	EXPECT_EQ(l.f_blocks, u.f_blocks);
	EXPECT_EQ(l.f_bfree, u.f_bfree);
	EXPECT_EQ(l.f_bavail, u.f_bavail);
	EXPECT_EQ(l.f_files, u.f_files);
	EXPECT_EQ(l.f_ffree, u.f_ffree);
	EXPECT_EQ(l.f_bsize, u.f_bsize);
	EXPECT_EQ(l.f_namelen, u.f_namelen);
	EXPECT_NE(l.f_type, u.f_type);
}

/* One mount for each container is a normal use: they share one pool. */
TEST_F(mounts, several_share_one_pool)
{
	const size_t size = 8 * MiB;
	char *two = new_dir();
	long cache, disk;

	mkdir(low("c1"), 0755);
	mkdir(low("c2"), 0755);
	make_file(low("c1/f"), size, 1);
	make_clone(low("c1/f"), low("c2/f"));
	ASSERT_EQ(0, mount(low("c1"), self->at, "dedupfs", 0, NULL));
	ASSERT_EQ(0, mount(low("c2"), two, "dedupfs", 0, NULL));
	drop_caches("3");
	cache = cache_bytes();
	EXPECT_EQ(-1, check_file(path_of("%s/f", self->at), size, 1));
	disk = disk_read_bytes();
	EXPECT_EQ(-1, check_file(path_of("%s/f", two), size, 1));
	EXPECT_EQ(-1, check_file(up("c1/f"), size, 1));
	EXPECT_GE((long)size * 103 / 100, cache_bytes() - cache);
	EXPECT_GE((long)size * 3 / 100, disk_read_bytes() - disk);
	/* The pool outlives one of them. */
	ASSERT_EQ(0, umount(self->at));
	EXPECT_EQ(-1, check_file(path_of("%s/f", two), size, 1));
	EXPECT_GE((long)size * 3 / 100, disk_read_bytes() - disk);
	/* The same file by two mounts: a write by one is seen by the other. */
	EXPECT_EQ(0, shell("printf changed | dd of=%s/f bs=7 seek=100 conv=notrunc 2>/dev/null", two));
	EXPECT_NE(-1, check_file(up("c2/f"), size, 1));
	EXPECT_EQ(hash_read(up("c2/f"), MiB), hash_read(path_of("%s/f", two), MiB));
	EXPECT_EQ(-1, check_file(up("c1/f"), size, 1));
	umount(two);
}

TEST_F(mounts, domains_are_separate)
{
	const size_t size = 8 * MiB;
	char *two = new_dir();

	make_file(low("f"), size, 1);
	make_clone(low("f"), low("g"));
	ASSERT_EQ(0, mount(lower_dir, self->at, "dedupfs", 0, "domain=one"));
	ASSERT_EQ(0, mount(lower_dir, two, "dedupfs", 0, "domain=two"));
	drop_caches("3");
	EXPECT_EQ(-1, check_file(path_of("%s/f", self->at), size, 1));
	EXPECT_EQ(-1, check_file(path_of("%s/g", two), size, 1));
	/* Each has read it into memory of its own. */
	EXPECT_LE((long)(size / PAGE), pool_in(path_of("%s:one", getenv("DEDUPFS_POOL")), "pages"));
	EXPECT_LE((long)(size / PAGE), pool_in(path_of("%s:two", getenv("DEDUPFS_POOL")), "pages"));
	umount(two);
}

TEST_F(mounts, module_stays_while_mounted)
{
	EXPECT_EQ(-1, syscall(SYS_delete_module, "dedupfs", O_NONBLOCK));
	EXPECT_EQ(EWOULDBLOCK, errno);
}

TEST_F(mounts, busy_unmount)
{
	char *p;
	int fd;

	make_file(low("f"), 50000, 1);
	make_clone(low("f"), low("g"));
	ASSERT_EQ(0, mount(lower_dir, self->at, "dedupfs", 0, NULL));
	fd = open(path_of("%s/f", self->at), O_RDONLY);
	EXPECT_EQ(-1, umount(self->at));
	EXPECT_EQ(EBUSY, errno);
	p = mmap(NULL, 50000, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	touch(p, 20000);
	EXPECT_EQ(-1, umount(self->at));
	EXPECT_EQ(EBUSY, errno);
	/* Lazily: the mapping goes on. */
	EXPECT_EQ(0, umount2(self->at, MNT_DETACH));
	EXPECT_EQ(-1, mismatch(p, 50000, 1, 0));
	munmap(p, 50000);
}

/* Two directories that share a block, and what else an overlayfs wants. */
static void make_layers(const char *a, const char *b, const char *upper, const char *work)
{
	mkdir(low("%s", a), 0755);
	mkdir(low("%s", b), 0755);
	mkdir(low("%s", upper), 0755);
	mkdir(low("%s", work), 0755);
	make_file(low("%s/f", a), MiB, 1);
	make_clone(low("%s/f", a), low("%s/g", b));
	shell("modprobe -q overlay");
}

TEST_F(mounts, overlayfs_on_top)
{
	char *ovl = new_dir();
	char *opt;

	make_layers("img", "img2", "rw", "work");
	drop_caches("3");
	if (asprintf(&opt, "lowerdir=%s:%s,upperdir=%s,workdir=%s", up("img"), up("img2"), low("rw"), low("work")) < 0)
		die("asprintf");
	ASSERT_EQ(0, mount("overlay", ovl, "overlay", 0, opt));
	EXPECT_EQ(-1, check_file(path_of("%s/f", ovl), MiB, 1));
	EXPECT_EQ(-1, check_file(path_of("%s/g", ovl), MiB, 1));
	EXPECT_EQ(hash_map(path_of("%s/g", ovl), MiB, MAP_PRIVATE), hash_read(low("img2/g"), MiB));
	EXPECT_EQ(0, shell("printf x >>%s/f", ovl));
	EXPECT_EQ(-1, check_file(low("img/f"), MiB, 1));
	EXPECT_EQ(0, unlink(path_of("%s/g", ovl)));
	EXPECT_EQ(0, access(low("img2/g"), F_OK));
	ASSERT_EQ(0, umount(ovl));
	/* And as the writable layer. */
	free(opt);
	mkdir(low("rw2"), 0755);
	mkdir(low("work2"), 0755);
	if (asprintf(&opt, "lowerdir=%s,upperdir=%s,workdir=%s", low("img"), up("rw2"), up("work2")) < 0)
		die("asprintf");
	ASSERT_EQ(0, mount("overlay", ovl, "overlay", 0, opt));
	EXPECT_EQ(0, shell("cd %s && printf x >>f && mkdir d && mv f d/f2 && rm -r d && echo new >n", ovl));
	EXPECT_EQ(0, access(low("rw2/n"), F_OK));
	EXPECT_EQ(-1, access(path_of("%s/f", ovl), F_OK));
	ASSERT_EQ(0, umount(ovl));
}

/* Two deep and no more; and between two mounts copies are clones, clones are refused. */
TEST_F(mounts, what_two_mounts_do_not_do)
{
	char *ovl = new_dir(), *second = new_dir(), *at = new_dir(), *opt;
	struct fiemap_extent a[4], b[4];
	int in, out;

	make_layers("deep", "deep2", "rw", "work");
	if (asprintf(&opt, "lowerdir=%s:%s", up("deep"), up("deep2")) < 0)
		die("asprintf");
	ASSERT_EQ(0, mount("overlay", ovl, "overlay", 0, opt));
	free(opt);
	if (asprintf(&opt, "lowerdir=%s:%s", ovl, low("deep")) < 0)
		die("asprintf");
	EXPECT_EQ(-1, mount("overlay", second, "overlay", 0, opt));
	EXPECT_EQ(EINVAL, errno);
	free(opt);
	EXPECT_EQ(0, umount(ovl));

	ASSERT_EQ(0, mount(low("."), at, "dedupfs", 0, NULL));
	in = open(up("deep/f"), O_RDONLY);
	out = open(path_of("%s/copy", at), O_RDWR | O_CREAT, 0644);
	ASSERT_LE(0, out);
	EXPECT_EQ(-1, ioctl(out, FICLONE, in));
	EXPECT_EQ(EXDEV, errno);
	EXPECT_EQ(MiB, copy_file_range(in, NULL, out, NULL, MiB, 0));
	close(in);
	close(out);
	ASSERT_LE(1, fiemap(low("deep/f"), a, 4));
	ASSERT_LE(1, fiemap(low("copy"), b, 4));
	EXPECT_EQ(a[0].fe_physical, b[0].fe_physical);
	in = open(at, O_RDONLY | O_DIRECTORY);
	EXPECT_EQ(-1, syscall(SYS_quotactl_fd, in, QCMD(Q_GETFMT, USRQUOTA), 0, &opt));
	EXPECT_EQ(ENOSYS, errno);
	close(in);
	EXPECT_EQ(0, umount(at));
}

/* Two mounts as two layers: overlayfs tells them apart, and their files' numbers last. */
TEST_F(mounts, two_below_one_overlayfs)
{
	char *ovl = new_dir(), *two = new_dir(), *opt;
	struct stat before, after;

	make_layers("lay", "lay2", "rw3", "work3");
	ASSERT_EQ(0, mount(low("lay"), self->at, "dedupfs", 0, NULL));
	ASSERT_EQ(0, mount(low("lay2"), two, "dedupfs", 0, NULL));
	if (asprintf(&opt, "lowerdir=%s:%s,upperdir=%s,workdir=%s,index=on", self->at, two,
		     low("rw3"), low("work3")) < 0)
		die("asprintf");
	kernel_said();
	ASSERT_EQ(0, mount("overlay", ovl, "overlay", 0, opt));
	EXPECT_EQ(NULL, strstr(kernel_said(), "uuid detected"));
	ASSERT_EQ(0, stat(path_of("%s/g", ovl), &before));
	EXPECT_EQ(0, shell("printf x >>%s/g", ovl));
	ASSERT_EQ(0, umount(ovl));
	ASSERT_EQ(0, mount("overlay", ovl, "overlay", 0, opt));
	ASSERT_EQ(0, stat(path_of("%s/g", ovl), &after));
	EXPECT_EQ(before.st_ino, after.st_ino);
	EXPECT_EQ(before.st_size + 1, after.st_size);
	ASSERT_EQ(0, umount(ovl));
	ASSERT_EQ(0, umount(two));
	ASSERT_EQ(0, umount(self->at));
	free(opt);
}

TEST_F(mounts, bind_and_move)
{
	char *two = new_dir(), *three = new_dir();

	make_file(low("f"), 5000, 1);
	ASSERT_EQ(0, mount(lower_dir, self->at, "dedupfs", 0, NULL));
	ASSERT_EQ(0, mount(self->at, two, NULL, MS_BIND, NULL));
	EXPECT_EQ(-1, check_file(path_of("%s/f", two), 5000, 1));
	ASSERT_EQ(0, mount(NULL, two, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
	EXPECT_EQ(-1, open(path_of("%s/f", two), O_RDWR));
	EXPECT_EQ(EROFS, errno);
	ASSERT_EQ(0, mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	ASSERT_EQ(0, mount(self->at, three, NULL, MS_MOVE, NULL));
	EXPECT_EQ(-1, check_file(path_of("%s/f", three), 5000, 1));
	EXPECT_EQ(0, umount(two));
	EXPECT_EQ(0, umount(three));
	/* Over itself: the mount point is the lower directory. */
	ASSERT_EQ(0, mount(lower_dir, lower_dir, "dedupfs", 0, NULL));
	EXPECT_EQ(-1, check_file(low("f"), 5000, 1));
	EXPECT_EQ(0, umount(lower_dir));
}

TEST_HARNESS_MAIN
