// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mounting: options, remount, what is refused and with which words, what
 * /proc/mounts, mountinfo and statfs show, several mounts, overlayfs on top.
 */
#include "common.h"
#include <sys/klog.h>

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

	if (fd < 0)
		fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
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
	if (word)
		EXPECT_NE(NULL, strstr(said, word))
			TH_LOG("%s, options %s: the log should name '%s': %s", lower, options ?: "none", word, said);
}

TEST_F(mounts, lower_directories_that_are_refused)
{
	char *ext4 = new_dir(), *tmpfs = new_dir(), *img;

	refused(_metadata, low("nothing"), self->at, NULL, ENOENT, NULL);
	refused(_metadata, "", self->at, NULL, EINVAL, "LOWERDIR");
	make_file(low("file"), 10, 1);
	refused(_metadata, low("file"), self->at, NULL, ENOTDIR, NULL);
	ASSERT_EQ(0, mount("tmpfs", tmpfs, "tmpfs", 0, "size=64m"));
	refused(_metadata, tmpfs, self->at, NULL, EOPNOTSUPP, "tmpfs");
	refused(_metadata, "/proc", self->at, NULL, EOPNOTSUPP, "proc");
	/* Made small: mkfs would not, so sparse on the lower filesystem. */
	img = strdup(low("ext4"));
	if (!shell("modprobe -aq loop ext4; truncate -s 32M %s && mkfs.ext4 -q %s && mount -o loop %s %s",
		   img, img, img, ext4)) {
		refused(_metadata, ext4, self->at, NULL, EOPNOTSUPP, "ext4");
		umount(ext4);
	} else {
		TH_LOG("ext4 could not be tried");
	}
	unlink(img);
	img = strdup(low("xfs"));
	if (!shell("modprobe -aq xfs; truncate -s 320M %s && mkfs.xfs -q -m reflink=0,bigtime=0 %s && mount -o loop %s %s",
		   img, img, img, ext4)) {
		refused(_metadata, ext4, self->at, NULL, EOPNOTSUPP, "reflink");
		umount(ext4);
	} else {
		TH_LOG("XFS without reflink could not be tried");
	}
	unlink(img);
	umount(tmpfs);
}

TEST_F(mounts, over_itself_and_too_deep)
{
	char *two = new_dir(), *ovl = new_dir();

	ASSERT_EQ(0, mount(lower_dir, self->at, "dedupfs", 0, NULL));
	refused(_metadata, self->at, two, NULL, EINVAL, NULL);
	refused(_metadata, upper_dir, two, NULL, EINVAL, NULL);
	/* overlayfs over dedupfs, then dedupfs over that. */
	mkdir(low("l"), 0755);
	mkdir(low("u"), 0755);
	mkdir(low("w"), 0755);
	if (!mount("overlay", ovl, "overlay", 0, path_of("lowerdir=%s,upperdir=%s,workdir=%s", up("l"), low("u"), low("w")))) {
		EXPECT_EQ(-1, mount(ovl, two, "dedupfs", 0, NULL));
		umount(ovl);
	}
}

TEST_F(mounts, options_that_are_refused)
{
	static const char * const bad[] = {
		"nonsense", "nonsense=1", "pool_limit=", "pool_limit=abc", "pool_limit=-1", "pool_limit=5x",
		"pool_limit=101%", "pool_limit=99999999999999999999", "pool_limit", "domain", "domain=",
		"pool_limit=1.5g",
	};
	unsigned int i;

	for (i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		refused(_metadata, lower_dir, self->at, bad[i], EINVAL, NULL);
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
	EXPECT_EQ(-1, mount(NULL, self->at, NULL, MS_REMOUNT, "nonsense"));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, mount(NULL, self->at, NULL, MS_REMOUNT, "domain=other"));
	EXPECT_EQ(EINVAL, errno);
}

TEST_F(mounts, by_fsopen)
{
	int fs, m;

	fs = syscall(SYS_fsopen, "dedupfs", 0);
	ASSERT_LE(0, fs);
	EXPECT_EQ(-1, syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
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
	struct statfs l, u;

	ASSERT_EQ(0, statfs(lower_dir, &l));
	ASSERT_EQ(0, statfs(upper_dir, &u));
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
