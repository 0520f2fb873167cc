// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 240
 *
 * Quotas of the lower filesystem: of a user and of a project on XFS, of a
 * subvolume (qgroup) on btrfs.  Who writes, stores to a mapping, allocates,
 * clones or creates through the mount gets as far as he gets below, and the
 * same error then.  What was acknowledged is there, the file that shared the
 * blocks has what it had, and what was used is counted where it belongs.
 *
 * Each sequence runs on a fresh filesystem on the spare disk, once as it is
 * and once through dedupfs.  On btrfs root is excused from limits
 * (quota_override), so that work done by anybody but the caller is noticed.
 */
#include "common.h"
#include "device.h"
#include <linux/btrfs_tree.h>
#include <linux/dqblk_xfs.h>
#include <linux/quota.h>

#define SIZE	(4 * MiB)
#define LIMIT	MiB		/* what is left to use when a sequence begins */
#define NOBODY	65534

static bool by_tree;		/* a project or a subvolume is limited; else the user */
static unsigned int nr_areas;

struct results {
	size_t bytes;
	int err;
};

static struct results *results;	/* of a process that AS_NOBODY() made */

/* Both sides saying the same proves nothing where no limit was met. */
static void must(bool cond, const char *what)
{
	errno = 0;
	if (!cond)
		die("%s", what);
}

/* XFS has another error for projects. */
static int over_limit(void)
{
	return !btrfs && by_tree ? ENOSPC : EDQUOT;
}

/* --- the filesystem ----------------------------------------------------------- */

static void mount_both(void)
{
	if (mount(spare, below, btrfs ? "btrfs" : "xfs", 0, btrfs ? "max_inline=0" : "uquota,pquota"))
		die("mount %s", spare);
	if (dut ? mount_on(below, through, NULL) : mount(below, through, NULL, MS_BIND, NULL))
		die("mount %s", through);
}

static void unmount_both(void)
{
	if (umount_soon(through) || umount_soon(below))
		die("umount");
}

static void qgroups_on(void)
{
	struct btrfs_ioctl_quota_ctl_args on = { .cmd = BTRFS_QUOTA_CTL_ENABLE };
	int fd = open(below, O_RDONLY | O_DIRECTORY);

	if (ioctl(fd, BTRFS_IOC_QUOTA_CTL, &on) || ioctl(fd, BTRFS_IOC_QUOTA_RESCAN_WAIT, NULL))
		die("qgroups");
	close(fd);
}

static void excuse_root(void)
{
	struct btrfs_ioctl_fs_info_args fs = {};
	int fd = open(below, O_RDONLY | O_DIRECTORY), i;
	char id[40], *p = id;

	if (ioctl(fd, BTRFS_IOC_FS_INFO, &fs))
		die("BTRFS_IOC_FS_INFO");
	close(fd);
	for (i = 0; i < 16; i++)
		p += sprintf(p, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", fs.fsid[i]);
	if (write_text(path_of("/sys/fs/btrfs/%s/quota_override", id), "1"))
		die("quota_override");
}

static void start(void)
{
	results = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	nr_areas = 0;
	/* What a side that gave up has left. */
	tear_down(through, below, NULL);
	if (shell("mkfs.%s -q -f -K %s %s >/dev/null", btrfs ? "btrfs" : "xfs",
		  btrfs ? "-m single -d single" : "-m reflink=1", spare))
		die("mkfs on %s", spare);
	setenv("DEDUPFS_POOL", path_of("/sys/fs/dedupfs/%s", strrchr(spare, '/') + 1), 1);
	mount_both();
	chmod(below, 0755);
	if (btrfs) {
		qgroups_on();
		excuse_root();
	}
	/* What is cloned is root's, and of no project and no limited subvolume. */
	make_file(dn("src"), SIZE, 1);
}

static void restart(void)
{
	unmount_both();
	mount_both();
	if (btrfs)
		excuse_root();
}

static void stop(void)
{
	unmount_both();
	if (btrfs)
		forget_devices();
}

/* --- limits and usage ------------------------------------------------------------ */

static struct fs_disk_quota xfs_usage(int type, unsigned int id)
{
	struct fs_disk_quota q = {};

	if (syscall(SYS_quotactl, QCMD(Q_XGETQUOTA, type), spare, id, &q) && errno != ENOENT)
		die("Q_XGETQUOTA");
	return q;
}

static uint64_t subvol_id(int fd)
{
	struct btrfs_ioctl_ino_lookup_args args = { .objectid = BTRFS_FIRST_FREE_OBJECTID };

	if (ioctl(fd, BTRFS_IOC_INO_LOOKUP, &args))
		die("subvolume");
	return args.treeid;
}

static struct btrfs_qgroup_info_item qgroup_usage(int fd)
{
	struct btrfs_ioctl_search_args args = { .key = {
		.tree_id = BTRFS_QUOTA_TREE_OBJECTID,
		.min_type = BTRFS_QGROUP_INFO_KEY,
		.max_type = BTRFS_QGROUP_INFO_KEY,
		.min_offset = subvol_id(fd),
		.max_offset = subvol_id(fd),
		.max_transid = -1,
		.nr_items = 1,
	} };
	struct btrfs_qgroup_info_item item;

	if (ioctl(fd, BTRFS_IOC_TREE_SEARCH, &args) || args.key.nr_items != 1)
		die("qgroup");
	memcpy(&item, args.buf + sizeof(struct btrfs_ioctl_search_header), sizeof(item));
	return item;
}

/* A directory for everybody, of which the use is counted: the number is its project's. */
static void area(const char *name)
{
	struct fsxattr attr;
	int fd;

	nr_areas++;
	if (btrfs ? subvol_create(dn("%s", name)) : mkdir(dn("%s", name), 0777))
		die("%s", name);
	chmod(dn("%s", name), 0777);
	if (btrfs || !by_tree)
		return;
	fd = open(dn("%s", name), O_RDONLY | O_DIRECTORY);
	if (ioctl(fd, FS_IOC_FSGETXATTR, &attr))
		die("%s", name);
	attr.fsx_projid = nr_areas;
	attr.fsx_xflags |= FS_XFLAG_PROJINHERIT;
	if (ioctl(fd, FS_IOC_FSSETXATTR, &attr))
		die("%s", name);
	close(fd);
}

/* The area that was made last, or the user, may use so much more than now. */
static void allow(const char *name, size_t bytes, size_t inodes)
{
	struct btrfs_ioctl_qgroup_limit_args limit = { .lim.flags = BTRFS_QGROUP_LIMIT_MAX_RFER };
	int type = by_tree ? PRJQUOTA : USRQUOTA, fd;
	unsigned int id = by_tree ? nr_areas : NOBODY;
	struct fs_disk_quota q;

	fd = open(dn("%s", name), O_RDONLY | O_DIRECTORY);
	if (fd < 0 || syncfs(fd))
		die("%s", name);
	if (btrfs) {
		limit.lim.max_rfer = qgroup_usage(fd).rfer + bytes;
		if (ioctl(fd, BTRFS_IOC_QGROUP_LIMIT, &limit))
			die("BTRFS_IOC_QGROUP_LIMIT");
	} else {
		q = xfs_usage(type, id);
		q = (struct fs_disk_quota) {
			.d_version = FS_DQUOT_VERSION,
			.d_flags = by_tree ? FS_PROJ_QUOTA : FS_USER_QUOTA,
			.d_fieldmask = FS_DQ_BHARD | FS_DQ_IHARD,
			.d_id = id,
			.d_blk_hardlimit = q.d_bcount + bytes / 512,
			.d_ino_hardlimit = q.d_icount + inodes,
		};
		if (syscall(SYS_quotactl, QCMD(Q_XSETQLIM, type), spare, id, &q))
			die("Q_XSETQLIM");
	}
	close(fd);
}

static void say_xfs_usage(const char *what, int type, unsigned int id)
{
	struct fs_disk_quota q = xfs_usage(type, id);

	say("%s %u: %llu blocks, %llu inodes", what, id, (unsigned long long)q.d_bcount,
	    (unsigned long long)q.d_icount);
}

/* What is counted where, once nothing is reserved any more. */
static void say_usage(void)
{
	unsigned int i;

	if (btrfs)
		return;
	say_xfs_usage("user", USRQUOTA, 0);
	say_xfs_usage("user", USRQUOTA, NOBODY);
	for (i = 0; i <= nr_areas; i++)
		say_xfs_usage("project", PRJQUOTA, i);
}

static void say_subvol(const char *name)
{
	int fd;

	if (!btrfs)
		return;
	fd = open(dn("%s", name), O_RDONLY | O_DIRECTORY);
	say("%s: %llu bytes", name, (unsigned long long)qgroup_usage(fd).rfer);
	close(fd);
}

static void say_owner(const char *name)
{
	struct fsxattr attr = {};
	struct stat st = {};
	int fd = open(th("%s", name), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);

	if (fstat(fd, &st))
		die("%s", name);
	if (!btrfs && ioctl(fd, FS_IOC_FSGETXATTR, &attr))
		die("%s", name);
	close(fd);
	say("%s: owner %u:%u project %u, %lld bytes, %lld blocks", name, st.st_uid, st.st_gid,
	    attr.fsx_projid, (long long)st.st_size, (long long)st.st_blocks);
	must(st.st_uid == NOBODY, "a file of somebody else");
}

/* --- who uses it ------------------------------------------------------------------ */

/* What a function that ran as nobody gave; its errors are in results->err. */
#define AS_NOBODY(call) ({						\
	size_t __n = TRY_AS_NOBODY(call);				\
									\
	must(results->err == over_limit(), "no limit was met");		\
	__n;								\
})

#define TRY_AS_NOBODY(call) ({						\
	size_t __m = QUIETLY_AS_NOBODY(call);				\
									\
	say("%d: %s: %zu, %s", __LINE__, #call, __m,			\
	    strerrorname_np(results->err));				\
	__m;								\
})

#define QUIETLY_AS_NOBODY(call) ({					\
	int __status;							\
	pid_t __pid = fork();						\
									\
	if (!__pid) {							\
		nobody();						\
		results->bytes = (call);				\
		_exit(0);						\
	}								\
	if (waitpid(__pid, &__status, 0) != __pid || __status)		\
		die("%s", #call);					\
	results->bytes;							\
})

/* Write until it is refused. */
static size_t write_on(const char *path, uint64_t seed, size_t chunk)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	char *buf = malloc(chunk);
	size_t off = 0;
	ssize_t n = 0;

	if (fd < 0)
		die("%s", path);
	results->err = 0;
	while (off + chunk <= SIZE) {
		fill(buf, chunk, seed, off);
		n = pwrite(fd, buf, chunk, off);
		if (n < 0)
			break;
		off += n;
	}
	if (n < 0)
		results->err = errno;
	DO(fsync(fd));
	close(fd);
	free(buf);
	return off;
}

/* Store until it is refused; each page was read by the mapping before. */
static size_t store_on(const char *path, uint64_t seed)
{
	static char page[PAGE];
	static size_t off;
	static char *p;
	int sig = 0;

	p = map_file(path, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	if (p == MAP_FAILED)
		die("%s", path);
	touch(p, SIZE);
	for (off = 0; off < SIZE; off += PAGE) {
		fill(page, PAGE, seed, off);
		sig = FAULTS(memcpy(p + off, page, PAGE));
		if (sig)
			break;
	}
	say("store: %s", sig ? strsignal(sig) : "ok");
	/* Of a signal there is no errno: this is what the tests look for. */
	results->err = sig == SIGBUS ? over_limit() : 0;
	DO(msync(p, SIZE, MS_SYNC));
	munmap(p, SIZE);
	return off;
}

/* Allocate until not one page more is given. */
static size_t allocate_on(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	size_t step, off = 0;

	if (fd < 0)
		die("%s", path);
	results->err = 0;
	for (step = 256 * KiB; step >= PAGE; step /= 2) {
		while (!fallocate(fd, 0, off, step) && off < SIZE)
			off += step;
		results->err = errno;
	}
	DO(fsync(fd));
	close(fd);
	return off;
}

/*
 * Clone until it is refused.  btrfs looks at what is counted already, which a
 * clone is when it is committed: the first one passes, the next does not.
 */
static size_t clone_on(const char *from, const char *path)
{
	struct file_clone_range r = { .src_length = btrfs ? SIZE : 64 * KiB };
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	size_t off;

	r.src_fd = open(from, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || r.src_fd < 0)
		die("%s", path);
	results->err = 0;
	for (off = 0; off < 2 * SIZE; off += r.src_length) {
		r.src_offset = off % SIZE;
		r.dest_offset = off;
		if (ioctl(fd, FICLONERANGE, &r)) {
			results->err = errno;
			break;
		}
		if (btrfs)
			DO(syncfs(fd));
	}
	DO(ioctl(fd, FICLONE, r.src_fd));
	DO(pwrite(fd, "x", 1, off));
	DO(fsync(fd));
	close(fd);
	close(r.src_fd);
	return off;
}

/* Make names until it is refused; three are there. */
static size_t create_on(const char *where)
{
	const char *dir = strdup(where);
	int fd = -1, i;
	size_t n;

	for (n = 3; n < 20; n++) {
		fd = open(path_of("%s/n%zu", dir, n), O_RDWR | O_CREAT | O_EXCL, 0644);
		if (fd < 0)
			break;
		close(fd);
	}
	results->err = fd < 0 ? errno : 0;
	DO(mkdir(path_of("%s/dir", dir), 0755));
	DO(symlink("x", path_of("%s/symlink", dir)));
	DO(mknod(path_of("%s/fifo", dir), S_IFIFO | 0644, 0));
	DO(open(dir, O_TMPFILE | O_RDWR, 0644));
	DO(link(path_of("%s/n0", dir), path_of("%s/link", dir)));
	DO(rename(path_of("%s/n1", dir), path_of("%s/n", dir)));
	DO(unlink(path_of("%s/n2", dir)));
	/* (XFS frees the inode in the background.) */
	for (i = 0, fd = -1; i < 100 && fd < 0; i++) {
		fd = open(path_of("%s/again", dir), O_RDWR | O_CREAT | O_EXCL, 0644);
		if (fd < 0)
			usleep(50000);
	}
	say("again: %s", fd < 0 ? errname() : "ok");
	return n;
}

/* Where a file does not hold @seed up to @done, and @old (0: zeroes) from there to @size; -1. */
static long wrong_in(const char *path, uint64_t seed, size_t done, uint64_t old, size_t size)
{
	char *want = calloc(1, size + 1);
	long bad;

	fill(want, done, seed, 0);
	if (old)
		fill(want + done, size - done, old, done);
	bad = differs_from(path, want, size);
	free(want);
	return bad;
}

/* A clone that is nobody's, in the pool on the mount's side. */
static void make_limited_clone(const char *name)
{
	make_clone(dn("src"), dn("%s", name));
	if (chown(dn("%s", name), NOBODY, NOBODY))
		die("chown");
	drop_caches("3");
	hash_read(th("%s", name), 64 * KiB);
	if (dut && have_pool)
		must(pool("pages") >= (long)(SIZE / PAGE), "it is not in the pool");
}

static void check_clone(const char *name, uint64_t seed, size_t done)
{
	must(done, "nothing was written");
	VAL(wrong_in(th("%s", name), seed, done, 1, SIZE));
	VAL(check_file(th("src"), SIZE, 1));
	VAL(check_file(dn("src"), SIZE, 1));
}

FIXTURE(limited) {
};

FIXTURE_VARIANT(limited) {
	bool by_tree;
};

FIXTURE_VARIANT_ADD(limited, user) {
	.by_tree = false,
};

FIXTURE_VARIANT_ADD(limited, tree) {
	.by_tree = true,
};

FIXTURE_SETUP(limited)
{
	if (!spare)
		SKIP(return, "DEDUPFS_SPARE is not set");
	if (btrfs && !variant->by_tree)
		SKIP(return, "btrfs has no quotas of users");
	by_tree = variant->by_tree;
}

FIXTURE_TEARDOWN(limited)
{
	tear_down(through, below, NULL);
}

/* --- the sequences ------------------------------------------------------------------ */

static void writes(void)
{
	size_t pages, chunks, over;
	int fd;

	start();
	area("new");
	allow("new", LIMIT, 10);
	pages = AS_NOBODY(write_on(th("new/pages"), 2, PAGE));
	/*
	 * By large ones it may end before; those before the end are whole.  How
	 * much of the last one btrfs takes is chance: it reserves for metadata
	 * as well, and gives that back when a transaction ends.
	 */
	if (btrfs)
		area("large");
	allow(btrfs ? "large" : "new", LIMIT, 10);
	if (btrfs)
		chunks = QUIETLY_AS_NOBODY(write_on(th("large/chunks"), 3, 192 * KiB));
	else
		chunks = AS_NOBODY(write_on(th("new/chunks"), 3, 192 * KiB));
	must(results->err == over_limit() && chunks <= LIMIT, "no limit was met by large writes");
	/* The limit is that of the file's owner, or tree, whoever writes. */
	fd = open(th("new/pages"), O_RDWR);
	VAL(pwrite(fd, "x", 1, SIZE));
	DO(ftruncate(fd, pages));
	close(fd);
	area("clone");
	make_limited_clone("clone/b");
	allow("clone", LIMIT, 10);
	/* For a project XFS writes back and tries again, and then each old block is free. */
	if (!btrfs && by_tree)
		over = TRY_AS_NOBODY(write_on(th("clone/b"), 4, PAGE));
	else
		over = AS_NOBODY(write_on(th("clone/b"), 4, PAGE));
	restart();
	must(pages && chunks, "nothing was written");
	VAL(wrong_in(th("new/pages"), 2, pages, 0, pages));
	VAL(wrong_in(th("%s/chunks", btrfs ? "large" : "new"), 3, chunks, 0, chunks));
	check_clone("clone/b", 4, over);
	say_owner("new/pages");
	if (!btrfs)
		say_owner("new/chunks");
	say_owner("clone/b");
	say_subvol("new");
	say_subvol("clone");
	say_usage();
	stop();
}

TEST_F(limited, writes)
{
	SAME(writes);
}

static void stores(void)
{
	size_t holes, over;

	start();
	area("hole");
	make_file(dn("hole/f"), 0, 0);
	if (truncate(dn("hole/f"), SIZE) || chown(dn("hole/f"), NOBODY, NOBODY))
		die("hole");
	allow("hole", LIMIT, 10);
	holes = AS_NOBODY(store_on(th("hole/f"), 2));
	area("clone");
	make_limited_clone("clone/b");
	allow("clone", LIMIT, 10);
	over = AS_NOBODY(store_on(th("clone/b"), 4));
	restart();
	must(holes, "nothing was written");
	VAL(wrong_in(th("hole/f"), 2, holes, 0, SIZE));
	check_clone("clone/b", 4, over);
	say_owner("hole/f");
	say_owner("clone/b");
	say_subvol("hole");
	say_subvol("clone");
	say_usage();
	stop();
}

TEST_F(limited, stores_to_mappings)
{
	SAME(stores);
}

static void allocations(void)
{
	size_t cloned;

	start();
	area("allocated");
	allow("allocated", LIMIT, 10);
	AS_NOBODY(allocate_on(th("allocated/f")));
	area("cloned");
	allow("cloned", LIMIT, 10);
	cloned = AS_NOBODY(clone_on(th("src"), th("cloned/f")));
	restart();
	VAL(wrong_in(th("cloned/f"), 1, cloned, 0, cloned));
	VAL(check_file(th("src"), SIZE, 1));
	say_owner("allocated/f");
	say_owner("cloned/f");
	say_subvol("allocated");
	say_subvol("cloned");
	say_usage();
	stop();
}

TEST_F(limited, fallocate_and_clone)
{
	SAME(allocations);
}

/* On XFS inodes are counted; on btrfs what a name takes in the trees: here nothing is left. */
static void names(void)
{
	unsigned int i;

	start();
	area("many");
	for (i = 0; i < 3; i++) {
		make_file(dn("many/n%u", i), 0, 0);
		if (chown(dn("many/n%u", i), NOBODY, NOBODY))
			die("chown");
	}
	allow("many", btrfs ? 0 : LIMIT, 5);
	AS_NOBODY(create_on(th("many")));
	restart();
	say_owner("many/n0");
	if (!btrfs)
		say_owner("many/n");
	say_subvol("many");
	say_usage();
	stop();
}

TEST_F(limited, names)
{
	SAME(names);
}

/* A directory of a project is a disk of its own to statfs(2), rename(2) and link(2). */
static void projects(void)
{
	struct fsxattr attr = {};
	struct statfs st;
	int fd;

	start();
	area("one");
	allow("one", LIMIT, 10);
	area("two");
	allow("two", 64 * KiB, 10);
	chmod(below, 0777);
	if (statfs(th("one"), &st))
		die("statfs");
	say("%ld blocks, %ld free, %ld inodes, %ld free", (long)st.f_blocks, (long)st.f_bavail,
	    (long)st.f_files, (long)st.f_ffree);
	must(st.f_blocks <= 2 * LIMIT / PAGE, "statfs does not know the project");
	nobody();
	fd = DO(open(th("plain"), O_RDWR | O_CREAT, 0644));
	DO(fallocate(fd, 0, 0, 256 * KiB));
	DO(rename(th("plain"), th("one/plain")));
	DO(link(th("plain"), th("one/plain")));
	/* Of the owner's own files he says the project; it must have the space. */
	DO(ioctl(fd, FS_IOC_FSGETXATTR, &attr));
	attr.fsx_projid = 2;
	DO(ioctl(fd, FS_IOC_FSSETXATTR, &attr));
	attr.fsx_projid = 1;
	DO(ioctl(fd, FS_IOC_FSSETXATTR, &attr));
	DO(rename(th("plain"), th("one/plain")));
	DO(mkdir(th("one/dir"), 0755));
	DO(close(open(th("one/dir/f"), O_RDWR | O_CREAT, 0644)));
	DO(rename(th("one/dir/f"), th("two/f")));
	say_owner("one/plain");
	say_owner("one/dir/f");
}

static void projects_and_usage(void)
{
	int status;

	if (!fork()) {
		projects();
		_exit(0);
	}
	wait(&status);
	say("status %x", status);
	nr_areas = 2;
	restart();
	say_usage();
	stop();
}

TEST_F(limited, projects)
{
	if (btrfs || !by_tree)
		SKIP(return, "of projects on XFS");
	SAME(projects_and_usage);
}

/*
 * btrfs zeroes the end of the new last page, in memory, before it asks for the
 * space that a truncation takes; where that is refused, the page stays so, and
 * the block is what it was.  That is the file's own trouble, and no clone's.
 */
static void truncate_in_vain(void)
{
	static char page[PAGE];
	int i, ro;

	start();
	area("t");
	if (clone_file(dn("src"), dn("t/f")) || chown(dn("t/f"), NOBODY, NOBODY))
		die("clone");
	allow("t", (size_t)-MiB, 0);
	restart();
	for (i = 0; i < 2; i++) {
		ro = open(dn("t/f"), O_RDONLY);
		DO(pread(ro, page, PAGE, 2 * PAGE));
		close(ro);
		QUIETLY_AS_NOBODY((results->err = truncate(i ? dn("t/f") : th("t/f"),
							   2 * PAGE + 1000) ? errno : 0));
		must(results->err == EDQUOT, "the truncation was not refused");
		hash_read(th("t/f"), 64 * KiB);
		say("%ld %ld", check_file(th("src"), SIZE, 1), check_file(dn("src"), SIZE, 1));
		drop_caches("3");
	}
	stop();
}

TEST(truncation_that_is_refused)
{
	if (!btrfs)
		SKIP(return, "of btrfs");
	SAME(truncate_in_vain);
}

TEST_HARNESS_MAIN
