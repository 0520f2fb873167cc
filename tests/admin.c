// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 300
 *
 * What an administrator does to the lower filesystem while the mount is in
 * use: adds, removes and replaces its disks, converts, grows and trims it,
 * swaps, snapshots and deletes subvolumes, mounts things inside it, defragments
 * and deduplicates files.  Others read and map clones and snapshots through
 * the mount all the time, and create, check and remove files of their own, so
 * that blocks that were freed are used again.  Nobody may see anything but what
 * the files hold, and afterwards blocks that are shared are one copy as before.
 */
#include "common.h"
#include "device.h"
#include <dirent.h>
#include <linux/btrfs_tree.h>
#include <sys/prctl.h>

#define FILES		4
#define NR		96UL
#define SIZE		(NR * PAGE)
#define OWN		16UL		/* pages of w/f3 that v/f3 has not */
#define DISK		(400 * MiB)	/* XFS wants 300 */

#define DISK_A		"dedupfs-admin-a"
#define DISK_B		"dedupfs-admin-b"
#define DISK_C		"dedupfs-admin-c"

static char disk_a[64], disk_b[64], disk_c[64];

/* --- a tree and its twin ---------------------------------------------------- */

/* "v" and "w" share all but some pages of w/f3. */
static char *want[2][FILES];
static const char * const trees[] = { "v", "w" };

static int tree_create(const char *path)
{
	return btrfs ? subvol_create(path) : mkdir(path, 0755);
}

/* A snapshot; on XFS, a directory of clones. */
static int tree_copy(const char *from, const char *to)
{
	struct dirent *e;
	DIR *dir;

	if (btrfs)
		return subvol_snapshot(from, to, 0);
	dir = opendir(from);
	if (!dir || mkdir(to, 0755))
		die("%s", to);
	while ((e = readdir(dir)))
		if (e->d_name[0] != '.')
			make_clone(path_of("%s/%s", from, e->d_name), path_of("%s/%s", to, e->d_name));
	closedir(dir);
	return 0;
}

static int tree_delete(const char *path)
{
	return btrfs ? subvol_delete(path) : rm_rf(path);
}

static void make_trees(const char *dir)
{
	char *own = malloc(OWN * PAGE);
	int t, f, fd;

	for (t = 0; t < 2; t++) {
		for (f = 0; f < FILES; f++) {
			want[t][f] = malloc(SIZE);
			fill(want[t][f], SIZE, f + 1, 0);
		}
	}
	fill(own, OWN * PAGE, 100, 0);
	memcpy(want[1][3] + SIZE / 2, own, OWN * PAGE);
	if (tree_create(path_of("%s/v", dir)))
		die("%s/v", dir);
	for (f = 0; f < FILES; f++)
		make_file(path_of("%s/v/f%d", dir, f), SIZE, f + 1);
	sync();
	if (tree_copy(path_of("%s/v", dir), path_of("%s/w", dir)))
		die("%s/w", dir);
	fd = open(path_of("%s/w/f3", dir), O_RDWR);
	write_all(fd, own, OWN * PAGE, SIZE / 2);
	if (fsync(fd))
		die("fsync");
	close(fd);
	free(own);
}

/* --- those who look all the time -------------------------------------------- */

enum { BY_READ, BY_NEW_MAP, BY_OLD_MAP, CHURN, WATCHERS };

static struct watch {
	bool stop, wrong;
	unsigned long rounds[WATCHERS];
	char text[400];
} *watch;

static pid_t watchers[WATCHERS];
static const char *watched, *watched_below;	/* directories */

__attribute__((format(printf, 1, 2)))
static void wrong(const char *fmt, ...)
{
	va_list ap;

	if (!__atomic_exchange_n(&watch->wrong, true, __ATOMIC_SEQ_CST)) {
		va_start(ap, fmt);
		vsnprintf(watch->text, sizeof(watch->text), fmt, ap);
		va_end(ap);
	}
}

static void expect_file(const char *how, int t, int f, const char *got, ssize_t n)
{
	size_t i;

	if (n == (ssize_t)SIZE && !memcmp(got, want[t][f], SIZE))
		return;
	for (i = 0; n == (ssize_t)SIZE && got[i] == want[t][f][i]; i++)
		;
	wrong("%s of %s/f%d: %zd bytes (%s), wrong from %#zx on", how, trees[t], f, n,
	      n < 0 ? strerror(errno) : "", i);
}

static void by_read(void)
{
	char *buf = malloc(SIZE);
	int t, f, fd;

	while (!watch->stop) {
		for (t = 0; t < 2; t++) {
			for (f = 0; f < FILES; f++) {
				fd = open(path_of("%s/%s/f%d", watched, trees[t], f), O_RDONLY);
				expect_file("read", t, f, buf, pread(fd, buf, SIZE, 0));
				close(fd);
			}
		}
		watch->rounds[BY_READ]++;
	}
}

static void by_new_map(void)
{
	char *p;
	int t, f;

	while (!watch->stop) {
		for (f = 0; f < FILES; f++) {
			for (t = 0; t < 2; t++) {
				p = map_file(path_of("%s/%s/f%d", watched, trees[t], f), SIZE,
					     PROT_READ, MAP_SHARED);
				if (p == MAP_FAILED)
					wrong("mmap %s/f%d: %s", trees[t], f, strerror(errno));
				else
					expect_file("mapping", t, f, p, SIZE);
				munmap(p, SIZE);
			}
		}
		watch->rounds[BY_NEW_MAP]++;
	}
}

/* Descriptors and mappings from before it all. */
static void by_old_map(void)
{
	char *p[2][FILES], *buf = malloc(SIZE);
	int fd[2][FILES], t, f;

	for (t = 0; t < 2; t++) {
		for (f = 0; f < FILES; f++) {
			fd[t][f] = open(path_of("%s/%s/f%d", watched, trees[t], f), O_RDONLY);
			p[t][f] = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd[t][f], 0);
			if (p[t][f] == MAP_FAILED)
				die("mmap");
		}
	}
	while (!watch->stop) {
		for (t = 0; t < 2; t++) {
			for (f = 0; f < FILES; f++) {
				expect_file("old mapping", t, f, p[t][f], SIZE);
				if (watch->rounds[BY_OLD_MAP] % 2)
					madvise(p[t][f], SIZE, MADV_DONTNEED);
				expect_file("old descriptor", t, f, buf,
					    pread(fd[t][f], buf, SIZE, 0));
			}
		}
		watch->rounds[BY_OLD_MAP]++;
	}
}

/*
 * While chunks move, btrfs can have no room for a moment.  Whoever never gets
 * any is found to be stuck.  Return: false then.
 */
static bool make_below(const char *path, const char *twin, uint64_t seed)
{
	char *buf = malloc(SIZE);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	bool ok;

	fill(buf, SIZE, seed, 0);
	ok = fd >= 0 && pwrite(fd, buf, SIZE, 0) == SIZE && !fsync(fd) && !clone_file(path, twin);
	if (!ok && errno != ENOSPC)
		die("%s", path);
	close(fd);
	free(buf);
	return ok;
}

/* Others take the blocks that were freed; and nothing stays cached. */
static void churn(void)
{
	char twin[PATH_MAX], file[16];
	unsigned long nr = 0;
	long bad;

	while (!watch->stop) {
		snprintf(file, sizeof(file), "churn%lu", nr % 3);
		snprintf(twin, sizeof(twin), "%s/%s.twin", watched_below, file);
		unlink(twin);
		unlink(path_of("%s/%s", watched_below, file));
		if (!make_below(path_of("%s/%s", watched_below, file), twin, 1000 + nr)) {
			usleep(100000);
			continue;
		}
		bad = check_file(path_of("%s/%s.twin", watched, file), SIZE, 1000 + nr);
		if (bad >= 0)
			wrong("%s of round %lu is wrong from %#lx on", file, nr, bad);
		drop_caches(nr % 2 ? "2" : "3");
		nr++;
		watch->rounds[CHURN]++;
		usleep(20000);
	}
}

static void start_watch(const char *through_dir, const char *below_dir)
{
	static void (*const run[])(void) = { by_read, by_new_map, by_old_map, churn };
	int i;

	watched = strdup(through_dir);
	watched_below = strdup(below_dir);
	watch = mmap(NULL, sizeof(*watch), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (i = 0; i < WATCHERS; i++) {
		watchers[i] = fork();
		if (watchers[i])
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run[i]();
		fflush(NULL);
		_exit(0);
	}
}

/* Until each of them was through all files once more, whole of it after now. */
static void let_watch(struct __test_metadata *_metadata, const char *when)
{
	unsigned long from[WATCHERS];
	double end = now() + 30 * TIME_FACTOR;
	int i;

	memcpy(from, watch->rounds, sizeof(from));
	for (i = 0; i < WATCHERS; i++) {
		while (watch->rounds[i] < from[i] + 2 && !watch->wrong && now() < end)
			usleep(5000);
		EXPECT_TRUE(watch->wrong || watch->rounds[i] >= from[i] + 2)
			TH_LOG("%s: watcher %d is stuck", when, i);
	}
	EXPECT_FALSE(watch->wrong) TH_LOG("%s: %s", when, watch->text);
}

static void stop_watch(struct __test_metadata *_metadata)
{
	int i, status;

	if (!watch)
		return;
	watch->stop = true;
	for (i = 0; i < WATCHERS; i++) {
		if (!watchers[i])
			continue;
		EXPECT_EQ(watchers[i], waitpid(watchers[i], &status, 0));
		EXPECT_EQ(0, status) TH_LOG("watcher %d", i);
		watchers[i] = 0;
	}
	EXPECT_FALSE(watch->wrong) TH_LOG("%s", watch->text);
	for (i = 0; i < 3; i++) {
		unlink(path_of("%s/churn%d", watched_below, i));
		unlink(path_of("%s/churn%d.twin", watched_below, i));
	}
}

/* --- afterwards ------------------------------------------------------------- */

/* Nothing of it is in the pool or mapped any more. */
static void empty_pool(void)
{
	int i;

	for (i = 0; i < 20; i++) {
		drop_caches("3");
		if (!pool("pages"))
			break;
	}
}

/* What the trees share is in RAM once. */
static void check_one_copy(struct __test_metadata *_metadata, const char *dir)
{
	/* What is w/f3's own is no shared extent, so XFS keeps neither in the pool. */
	long pages = FILES * NR + (btrfs ? OWN : -OWN), fills;
	int t, f;

	if (!have_pool)
		return;
	empty_pool();
	ASSERT_EQ(0, pool("pages"));
	fills = pool("fills");
	for (t = 0; t < 2; t++)
		for (f = 0; f < FILES; f++)
			EXPECT_EQ(-1, differs_from(path_of("%s/%s/f%d", dir, trees[t], f), want[t][f], SIZE));
	EXPECT_EQ(pages, pool("pages"));
	EXPECT_EQ(pages, pool("fills") - fills);
}

static int plain_name(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

/* The mount shows a tree of files as it is below. */
static void check_tree(struct __test_metadata *_metadata, const char *is, const char *shown,
		       const char *when)
{
	struct dirent **a = NULL, **b = NULL;
	char pa[PATH_MAX], pb[PATH_MAX];
	struct stat sa, sb;
	int i, n = scandir(is, &a, plain_name, alphasort);

	/* Twice: what the mount remembers of names must not be all. */
	ASSERT_EQ(n, scandir(shown, &b, plain_name, alphasort)) TH_LOG("%s: %s", when, shown);
	for (i = 0; i < n; i++) {
		EXPECT_STREQ(a[i]->d_name, b[i]->d_name) TH_LOG("%s", when);
		snprintf(pa, sizeof(pa), "%s/%s", is, a[i]->d_name);
		snprintf(pb, sizeof(pb), "%s/%s", shown, a[i]->d_name);
		ASSERT_EQ(0, lstat(pa, &sa));
		ASSERT_EQ(0, lstat(pb, &sb)) TH_LOG("%s: %s", when, pb);
		EXPECT_EQ(sa.st_mode, sb.st_mode) TH_LOG("%s: %s", when, pb);
		EXPECT_EQ(sa.st_size, sb.st_size) TH_LOG("%s: %s", when, pb);
		EXPECT_EQ(sa.st_mtim.tv_nsec, sb.st_mtim.tv_nsec) TH_LOG("%s: %s", when, pb);
		if (!S_ISREG(sa.st_mode))
			continue;
		EXPECT_EQ(hash_read(pa, 64 * KiB), hash_read(pb, 64 * KiB))
			TH_LOG("%s: read of %s", when, pb);
		EXPECT_EQ(hash_map(pa, 64 * KiB, MAP_SHARED), hash_map(pb, 64 * KiB, MAP_SHARED))
			TH_LOG("%s: mapping of %s", when, pb);
	}
	while (n-- > 0) {
		free(a[n]);
		free(b[n]);
	}
	free(a);
	free(b);
}

static bool same_space(const char *a, const char *b)
{
	struct statfs x, y;
	int i;

	for (i = 0; i < 10; i++) {
		if (statfs(a, &x) || statfs(b, &y))
			return false;
		if (x.f_blocks == y.f_blocks && x.f_bfree == y.f_bfree)
			return true;
	}
	return false;
}

/* --- a filesystem with disks of its own ---------------------------------------- */

static void all_down(void)
{
	tear_down(through, below, DISK_A);
	dm_remove(DISK_B);
	dm_remove(DISK_C);
}

__attribute__((destructor))
static void at_end(void)
{
	if (getpid() == main_pid)
		all_down();
}

/* A part of the spare disk, in MiB. */
static struct dm_line part_of_spare(uint64_t start, uint64_t len)
{
	struct dm_line line = { 0, len * MiB / SECTOR, "linear" };

	snprintf(line.params, sizeof(line.params), "%s %lu", spare, start * MiB / SECTOR);
	return line;
}

static void use_filesystem(const char *device, const char *mkfs_options)
{
	if (shell("mkfs.%s -q -f -K %s %s >/dev/null", btrfs ? "btrfs" : "xfs", mkfs_options, device) ||
	    mount(device, below, btrfs ? "btrfs" : "xfs", 0, btrfs ? "max_inline=0" : "") ||
	    mount_on(below, through, NULL))
		die("a filesystem on %s", device);
	setenv("DEDUPFS_POOL", path_of("/sys/fs/dedupfs/%s", strrchr(device, '/') + 1), 1);
}

FIXTURE(disks) {
};

FIXTURE_SETUP(disks)
{
	struct dm_line line;

	if (!spare)
		SKIP(return, "DEDUPFS_SPARE is not set");
	if (shell("modprobe -qa dm_mod; test -e /dev/mapper/control"))
		SKIP(return, "no device-mapper");
	all_down();
	line = part_of_spare(0, DISK / MiB);
	snprintf(disk_a, sizeof(disk_a), "%s", dm_make(DISK_A, &line, 1));
	line = part_of_spare(800, DISK / MiB);
	snprintf(disk_b, sizeof(disk_b), "%s", dm_make(DISK_B, &line, 1));
	line = part_of_spare(1400, DISK / MiB + 20);
	snprintf(disk_c, sizeof(disk_c), "%s", dm_make(DISK_C, &line, 1));
	use_filesystem(disk_a, btrfs ? "-m single -d single" : "-m reflink=1");
	make_trees(below);
	drop_caches("3");
	start_watch(through, below);
}

FIXTURE_TEARDOWN(disks)
{
	stop_watch(_metadata);
	all_down();
}

static int vol_ioctl(unsigned long cmd, const char *name)
{
	struct btrfs_ioctl_vol_args args = {};
	int fd = open(below, O_RDONLY | O_DIRECTORY), ret;

	snprintf(args.name, sizeof(args.name), "%s", name);
	ret = ioctl(fd, cmd, &args);
	close(fd);
	return ret;
}

/* All chunks get a new place; @profile: data gets it, too. */
static int balance(uint64_t profile)
{
	struct btrfs_ioctl_balance_args args = {
		.flags = BTRFS_BALANCE_DATA | BTRFS_BALANCE_METADATA | BTRFS_BALANCE_SYSTEM |
			 BTRFS_BALANCE_FORCE,
	};
	int fd = open(below, O_RDONLY | O_DIRECTORY), ret;

	if (profile) {
		args.data.flags = BTRFS_BALANCE_ARGS_CONVERT;
		args.data.target = profile;
	}
	ret = ioctl(fd, BTRFS_IOC_BALANCE_V2, &args);
	close(fd);
	return ret;
}

static int replace(uint64_t devid, const char *by)
{
	struct btrfs_ioctl_dev_replace_args args = { .cmd = BTRFS_IOCTL_DEV_REPLACE_CMD_START };
	int fd = open(below, O_RDONLY | O_DIRECTORY), ret;

	args.start.srcdevid = devid;
	args.start.cont_reading_from_srcdev_mode =
		BTRFS_IOCTL_DEV_REPLACE_CONT_READING_FROM_SRCDEV_MODE_ALWAYS;
	snprintf((char *)args.start.tgtdev_name, sizeof(args.start.tgtdev_name), "%s", by);
	ret = ioctl(fd, BTRFS_IOC_DEV_REPLACE, &args);
	close(fd);
	return ret ?: (int)args.result;
}

/* --- disks come and go --------------------------------------------------------- */

/* The one below at last has no disk of those that it began with. */
TEST_F(disks, come_and_go)
{
	if (!btrfs)
		SKIP(return, "XFS has one disk");
	ASSERT_EQ(0, vol_ioctl(BTRFS_IOC_ADD_DEV, disk_b)) TH_LOG("%s", strerror(errno));
	let_watch(_metadata, "added");
	ASSERT_EQ(0, balance(BTRFS_BLOCK_GROUP_RAID1)) TH_LOG("%s", strerror(errno));
	let_watch(_metadata, "two copies on disk");
	ASSERT_EQ(0, balance(BTRFS_AVAIL_ALLOC_BIT_SINGLE)) TH_LOG("%s", strerror(errno));
	let_watch(_metadata, "one again");
	ASSERT_EQ(0, vol_ioctl(BTRFS_IOC_RM_DEV, disk_a)) TH_LOG("%s", strerror(errno));
	/* Nobody holds on to it. */
	EXPECT_EQ(0, dm_remove(DISK_A));
	let_watch(_metadata, "removed");
	ASSERT_EQ(0, replace(2, disk_c)) TH_LOG("%s", strerror(errno));
	EXPECT_EQ(0, dm_remove(DISK_B));
	let_watch(_metadata, "replaced");
	EXPECT_TRUE(same_space(below, through));
	stop_watch(_metadata);
	check_one_copy(_metadata, through);
	check_tree(_metadata, dn("v"), th("v"), "replaced");
	check_tree(_metadata, dn("w"), th("w"), "replaced");
	EXPECT_EQ(0, umount_soon(through));
	EXPECT_EQ(0, umount_soon(below));
	EXPECT_EQ(0, dm_remove(DISK_C));
}

static uint64_t space(const char *at)
{
	struct statfs st;

	if (statfs(at, &st))
		die("statfs %s", at);
	return st.f_blocks * st.f_bsize;
}

/* Everything but @leave bytes. */
static void take_room(const char *path, size_t leave)
{
	struct statfs st;
	off_t len;
	int fd;

	sync();
	if (statfs(below, &st))
		die("statfs");
	len = st.f_bavail * st.f_bsize - leave;
	fd = open(path, O_RDWR | O_CREAT, 0644);
	if (fallocate(fd, 0, 0, len))
		die("fallocate %s", path);
	close(fd);
}

TEST_F(disks, shrink_and_grow)
{
	struct dm_line line = part_of_spare(0, DISK / MiB + 200);
	struct fiemap_extent ext[16];
	uint64_t before = space(below);
	bool beyond = false;
	int i, k;
	long n;

	if (btrfs) {
		ASSERT_EQ(0, vol_ioctl(BTRFS_IOC_RESIZE, "1:-100M")) TH_LOG("%s", strerror(errno));
		EXPECT_GT(before, space(through));
		let_watch(_metadata, "smaller");
	} else {
		take_room(dn("filler"), 24 * MiB);
	}
	dm_change(DISK_A, &line, 1);
	ASSERT_EQ(0, btrfs ? vol_ioctl(BTRFS_IOC_RESIZE, "1:max") :
		  shell("xfs_growfs %s >/dev/null", below)) TH_LOG("%s", strerror(errno));
	EXPECT_LT(before + 150 * MiB, space(through));
	EXPECT_EQ(space(below), space(through));
	let_watch(_metadata, "bigger");
	/* Files in the new part are as good as others. */
	for (i = 0; i < 10; i++) {
		mkdir(dn("new%d", i), 0755);
		make_file(dn("new%d/a", i), 2 * MiB, 50 + i);
		make_clone(dn("new%d/a", i), dn("new%d/b", i));
		n = fiemap(dn("new%d/a", i), ext, 16);
		for (k = 0; k < n; k++)
			beyond |= ext[k].fe_physical >= DISK;
	}
	drop_caches("1");
	for (i = 0; i < 10; i++) {
		EXPECT_EQ(-1, check_file(th("new%d/a", i), 2 * MiB, 50 + i));
		EXPECT_EQ(-1, check_file(th("new%d/b", i), 2 * MiB, 50 + i));
	}
	EXPECT_TRUE(btrfs || beyond) TH_LOG("nothing lies in the new part: this proves little");
	stop_watch(_metadata);
	check_one_copy(_metadata, through);
	EXPECT_EQ(0, umount_soon(through));
	EXPECT_EQ(0, umount_soon(below));
}

/* --- trim ---------------------------------------------------------------------- */

/* What is trimmed reads as zeroes from then on: a loop device punches holes. */
TEST(trim)
{
	struct fstrim_range range;
	char device[64];
	uint64_t trimmed = 0;
	int i, fd, loop;

	if (shell("modprobe -qa loop; test -e /dev/loop-control"))
		SKIP(return, "no loop devices");
	fd = open(low("image"), O_RDWR | O_CREAT, 0600);
	ASSERT_EQ(0, ftruncate(fd, DISK));
	close(fd);
	loop = loop_open(low("image"), device, sizeof(device));
	use_filesystem(device, btrfs ? "-m single -d single" : "-m reflink=1");
	close(loop);
	make_trees(below);
	drop_caches("3");
	start_watch(through, below);
	fd = open(below, O_RDONLY | O_DIRECTORY);
	for (i = 0; i < 6; i++) {
		range = (struct fstrim_range){ .len = UINT64_MAX };
		if (ioctl(fd, FITRIM, &range)) {
			EXPECT_EQ(EOPNOTSUPP, errno);
			break;
		}
		trimmed += range.len;
		let_watch(_metadata, "trimmed");
	}
	close(fd);
	stop_watch(_metadata);
	EXPECT_TRUE(!i || trimmed);
	check_one_copy(_metadata, through);
	EXPECT_EQ(0, umount_soon(through));
	EXPECT_EQ(0, umount_soon(below));
	unlink(low("image"));
	/* (A SKIP makes good what has failed.) */
	if (!i && !_metadata->exit_code)
		SKIP(return, "the device cannot trim");
}

/* --- XFS: files are moved, and swapped ------------------------------------------ */

#define PIECES	48UL

/* Each page lies elsewhere: in turn a block of one and of another file. */
static void make_pieces(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644), i, k;
	struct file_clone_range range = { .src_length = PAGE };

	for (k = 0; k < 2; k++) {
		make_file(dn("part"), PIECES * PAGE, 70);
		range.src_fd = open(dn("part"), O_RDONLY);
		for (i = k; i < (int)PIECES; i += 2) {
			range.src_offset = range.dest_offset = i * PAGE;
			if (ioctl(fd, FICLONERANGE, &range))
				die("clone into %s", path);
		}
		close(range.src_fd);
		unlink(dn("part"));
	}
	fsync(fd);
	close(fd);
}

static void check_pieces(struct __test_metadata *_metadata, const char *name, int fd, char *map,
			 uint64_t seed, const char *when)
{
	char *buf = malloc(PIECES * PAGE);

	/* First the descriptor: that is what tells the old mapping. */
	EXPECT_EQ(PIECES * PAGE, pread(fd, buf, PIECES * PAGE, 0));
	EXPECT_EQ(-1, mismatch(buf, PIECES * PAGE, seed, 0)) TH_LOG("%s: %s by descriptor", when, name);
	EXPECT_EQ(-1, mismatch(map, PIECES * PAGE, seed, 0)) TH_LOG("%s: %s by mapping", when, name);
	EXPECT_EQ(-1, check_file(th("%s", name), PIECES * PAGE, seed)) TH_LOG("%s: %s", when, name);
	free(buf);
}

TEST_F(disks, xfs_moves_files)
{
	struct fiemap_extent ext[PIECES];
	long before, after;
	char *map[2];
	int fd[2], i;

	if (btrfs)
		SKIP(return, "xfs_fsr is for XFS");
	make_pieces(dn("a"));
	make_clone(dn("a"), dn("twin"));
	for (i = 0; i < 2; i++) {
		fd[i] = open(th("%s", i ? "twin" : "a"), O_RDONLY);
		map[i] = mmap(NULL, PIECES * PAGE, PROT_READ, MAP_SHARED, fd[i], 0);
		ASSERT_NE(MAP_FAILED, map[i]);
		touch(map[i], PIECES * PAGE);
	}
	before = fiemap(dn("a"), ext, PIECES);
	ASSERT_LT(8, before);
	for (i = 0; i < 20; i++) {
		/* It gives up on a file that is in the page cache. */
		drop_caches("3");
		ASSERT_EQ(0, shell("xfs_fsr %s >fsr.log 2>&1", dn("a")));
		after = fiemap(dn("a"), ext, PIECES);
		if (after < before / 2)
			break;
	}
	EXPECT_LT(after, before / 2) TH_LOG("it was not moved: this proves nothing");
	let_watch(_metadata, "moved");
	check_pieces(_metadata, "a", fd[0], map[0], 70, "moved");
	check_pieces(_metadata, "twin", fd[1], map[1], 70, "moved");
	/* Share once more what has come apart. */
	ASSERT_EQ(0, dedupe(dn("a"), dn("twin"), 0, PIECES * PAGE));
	check_pieces(_metadata, "a", fd[0], map[0], 70, "deduplicated");
	check_pieces(_metadata, "twin", fd[1], map[1], 70, "deduplicated");
	for (i = 0; i < 2; i++) {
		munmap(map[i], PIECES * PAGE);
		close(fd[i]);
	}
	stop_watch(_metadata);
	check_one_copy(_metadata, through);
}

/* Since Linux 6.10; not in the headers of Debian 12. */
struct exchange_range {
	int32_t file1_fd;
	uint32_t pad;
	uint64_t file1_offset;
	uint64_t file2_offset;
	uint64_t length;
	uint64_t flags;
};

#define EXCHANGE_RANGE	_IOW('X', 129, struct exchange_range)

/* On disk, of the superblock. */
#define XFS_SB_INCOMPAT		216	/* big endian */
#define XFS_SB_CRC		224	/* little endian */
#define XFS_INCOMPAT_EXCHRANGE	0x40	/* of the last byte */

/* mkfs of Debian 12 does not know the feature: turn it on, or off, on disk. */
static void flip_exchange_bit(void)
{
	unsigned char sb[SECTOR];
	uint32_t crc = ~0U;
	unsigned int i, k;
	int fd = open(disk_a, O_RDWR);

	if (fd < 0 || pread(fd, sb, SECTOR, 0) != SECTOR)
		die("%s", disk_a);
	sb[XFS_SB_INCOMPAT + 3] ^= XFS_INCOMPAT_EXCHRANGE;
	memset(sb + XFS_SB_CRC, 0, sizeof(crc));
	for (i = 0; i < SECTOR; i++)
		for (crc ^= sb[i], k = 0; k < 8; k++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
	crc = ~crc;
	memcpy(sb + XFS_SB_CRC, &crc, sizeof(crc));
	if (pwrite(fd, sb, SECTOR, 0) != SECTOR || fsync(fd))
		die("%s", disk_a);
	close(fd);
}

/* Does this kernel take it? */
static bool allow_exchange(void)
{
	bool allowed;

	if (umount_soon(through) || umount_soon(below))
		die("umount");
	flip_exchange_bit();
	allowed = !mount(disk_a, below, "xfs", 0, "");
	if (!allowed) {
		flip_exchange_bit();
		if (mount(disk_a, below, "xfs", 0, ""))
			die("mount");
	}
	if (mount_on(below, through, NULL))
		die("mount");
	return allowed;
}

static int exchange(const char *a, const char *b, off_t off, size_t len)
{
	int fd = open(b, O_RDWR), ret;
	struct exchange_range range = { .file1_fd = open(a, O_RDWR), .file1_offset = off,
					.file2_offset = off, .length = len };

	ret = ioctl(fd, EXCHANGE_RANGE, &range);
	close(fd);
	close(range.file1_fd);
	return ret;
}

/* Each has the other's blocks: by swapext, whole; by exchange-range, in part. */
TEST_F(disks, xfs_swaps_files)
{
	bool can_exchange;
	char *map[4], *half = malloc(PIECES * PAGE), *buf = malloc(PIECES * PAGE);
	static const char * const names[] = { "a", "b", "a.twin", "b.twin" };
	int fd[4], i, round;

	if (btrfs)
		SKIP(return, "XFS only");
	stop_watch(_metadata);
	can_exchange = allow_exchange();
	start_watch(through, below);
	make_file(dn("a"), PIECES * PAGE, 70);
	make_file(dn("b"), PIECES * PAGE, 71);
	make_clone(dn("a"), dn("a.twin"));
	make_clone(dn("b"), dn("b.twin"));
	drop_caches("3");
	for (i = 0; i < 4; i++) {
		fd[i] = open(th("%s", names[i]), O_RDONLY);
		map[i] = mmap(NULL, PIECES * PAGE, PROT_READ, MAP_SHARED, fd[i], 0);
		ASSERT_NE(MAP_FAILED, map[i]);
		check_pieces(_metadata, names[i], fd[i], map[i], 70 + i % 2, "before");
	}
	for (round = 1; round < 4; round++) {
		for (i = 0; i < 20; i++) {
			/* Not while it is in the page cache. */
			drop_caches("1");
			if (!shell("xfs_io -c 'swapext %s' %s >swap.log 2>&1 && test ! -s swap.log",
				   dn("a"), dn("b")))
				break;
		}
		ASSERT_GT(20, i) TH_LOG("swapext fails");
		check_pieces(_metadata, "a", fd[0], map[0], 70 + round % 2, "swapped");
		check_pieces(_metadata, "b", fd[1], map[1], 71 - round % 2, "swapped");
		check_pieces(_metadata, "a.twin", fd[2], map[2], 70, "swapped");
		check_pieces(_metadata, "b.twin", fd[3], map[3], 71, "swapped");
	}
	/* Here "a" holds 71 and "b" holds 70. */
	for (round = 0; can_exchange && round < 6; round++) {
		ASSERT_EQ(0, exchange(dn("a"), dn("b"), PIECES / 2 * PAGE, PIECES / 4 * PAGE))
			TH_LOG("%s", strerror(errno));
		for (i = 0; i < 2; i++) {
			fill(half, PIECES * PAGE, 71 - i, 0);
			if (!(round % 2))
				fill(half + PIECES / 2 * PAGE, PIECES / 4 * PAGE, 70 + i,
				     PIECES / 2 * PAGE);
			EXPECT_EQ(PIECES * PAGE, pread(fd[i], buf, PIECES * PAGE, 0));
			EXPECT_EQ(0, memcmp(half, buf, PIECES * PAGE)) TH_LOG("round %d", round);
			EXPECT_EQ(0, memcmp(half, map[i], PIECES * PAGE)) TH_LOG("round %d", round);
			EXPECT_EQ(-1, differs_from(th("%s", names[i]), half, PIECES * PAGE))
				TH_LOG("round %d", round);
		}
		if (round == 3)
			drop_caches("3");
	}
	let_watch(_metadata, "swapped");
	for (i = 0; i < 4; i++) {
		munmap(map[i], PIECES * PAGE);
		close(fd[i]);
	}
	stop_watch(_metadata);
	if (!can_exchange)
		TH_LOG("without exchange-range: this kernel has none");
}

/* --- subvolumes ------------------------------------------------------------------ */

/* A directory, a file and its mapping in "sub", open on both sides. */
struct opened {
	int dir[2], fd[2];
	char *map[2];
};

static void open_sub(struct opened *o, const char *is, const char *shown)
{
	int i;

	for (i = 0; i < 2; i++) {
		const char *at = i ? shown : is;

		o->dir[i] = open(at, O_RDONLY | O_DIRECTORY);
		o->fd[i] = openat(o->dir[i], "f0", O_RDONLY);
		o->map[i] = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, o->fd[i], 0);
		if (o->map[i] == MAP_FAILED)
			die("%s", at);
	}
}

static void close_sub(struct opened *o)
{
	int i;

	for (i = 0; i < 2; i++) {
		munmap(o->map[i], SIZE);
		close(o->fd[i]);
		close(o->dir[i]);
	}
}

/* What was opened before shows the same on both sides. */
static void check_opened(struct __test_metadata *_metadata, struct opened *o, uint64_t seed,
			 const char *when)
{
	char *buf[2] = { malloc(SIZE), malloc(SIZE) };
	struct stat st[2];
	int i, fd, err[2];
	ssize_t n[2];

	for (i = 0; i < 2; i++) {
		n[i] = pread(o->fd[!i], buf[!i], SIZE, 0);
		EXPECT_EQ(SIZE, n[i]) TH_LOG("%s: %s", when, i ? "below" : "mount");
		EXPECT_EQ(-1, mismatch(buf[!i], SIZE, seed, 0)) TH_LOG("%s: %s", when, i ? "below" : "mount");
		EXPECT_EQ(-1, mismatch(o->map[!i], SIZE, seed, 0))
			TH_LOG("%s: mapping, %s", when, i ? "below" : "mount");
	}
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, fstat(o->fd[i], &st[i]));
	EXPECT_EQ(st[0].st_size, st[1].st_size);
	EXPECT_EQ(st[0].st_nlink, st[1].st_nlink) TH_LOG("%s", when);
	for (i = 0; i < 2; i++) {
		fd = openat(o->dir[i], "f1", O_RDONLY);
		err[i] = fd < 0 ? errno : 0;
		if (fd >= 0) {
			memset(buf[i], 0, SIZE);
			EXPECT_LE(0, pread(fd, buf[i], SIZE, 0));
			close(fd);
		}
	}
	EXPECT_EQ(err[0], err[1]) TH_LOG("%s: openat of an old directory", when);
	EXPECT_EQ(0, memcmp(buf[0], buf[1], SIZE)) TH_LOG("%s: openat of an old directory", when);
	for (i = 0; i < 2; i++)
		free(buf[i]);
}

FIXTURE(subvolumes) {
};

static void remove_subvolumes(void)
{
	static const char * const names[] = { "v", "w", "v.new", "v.old", "snap" };
	unsigned int i;

	umount2(through, MNT_DETACH);
	umount2(below, MNT_DETACH);
	for (i = 0; i < ARRAY_SIZE(names); i++)
		tree_delete(low("%s", names[i]));
}

FIXTURE_SETUP(subvolumes)
{
	/* Of a test that failed. */
	remove_subvolumes();
	make_trees(lower_dir);
	/* Another release of "v": f0 is new, f1 is gone, f2 is in both, g is more. */
	ASSERT_EQ(0, tree_copy(low("v"), low("v.new")));
	make_file(low("v.new/f0"), SIZE, 200);
	unlink(low("v.new/f1"));
	make_file(low("v.new/g"), SIZE, 201);
	sync();
	drop_caches("3");
}

FIXTURE_TEARDOWN(subvolumes)
{
	stop_watch(_metadata);
	remove_subvolumes();
}

/* mv v v.old; mv v.new v */
TEST_F(subvolumes, are_replaced)
{
	struct opened old, new;

	check_tree(_metadata, low("v"), up("v"), "before");
	check_tree(_metadata, low("v.new"), up("v.new"), "before");
	open_sub(&old, low("v"), up("v"));
	open_sub(&new, low("v.new"), up("v.new"));
	ASSERT_EQ(0, rename(low("v"), low("v.old")));
	EXPECT_EQ(-1, access(up("v/f0"), F_OK));
	EXPECT_EQ(ENOENT, errno);
	ASSERT_EQ(0, rename(low("v.new"), low("v")));
	EXPECT_EQ(-1, check_file(up("v/f0"), SIZE, 200));
	EXPECT_EQ(-1, access(up("v/f1"), F_OK));
	EXPECT_EQ(-1, access(up("v.new"), F_OK));
	check_tree(_metadata, low("v"), up("v"), "after");
	check_tree(_metadata, low("v.old"), up("v.old"), "after");
	check_opened(_metadata, &old, 1, "after, the old one");
	check_opened(_metadata, &new, 200, "after, the new one");
	ASSERT_EQ(0, tree_delete(low("v.old")));
	EXPECT_EQ(-1, access(up("v.old/f0"), F_OK));
	drop_caches("3");
	check_opened(_metadata, &old, 1, "deleted, the old one");
	check_opened(_metadata, &new, 200, "deleted, the new one");
	close_sub(&old);
	close_sub(&new);
}

/* A name shows one release or the other, whole. */
static void read_releases(unsigned long *rounds, bool *stop)
{
	char *buf = malloc(SIZE), *p;
	int fd, tries;

	while (!*stop) {
		/* Known limit: renamed at the same moment, it can fail once. */
		for (tries = 0; tries < 4; tries++) {
			fd = open(up("v/f0"), O_RDONLY);
			if (fd >= 0 || errno != ESTALE)
				break;
		}
		if (fd < 0)
			die("open of v/f0");
		if (pread(fd, buf, SIZE, 0) != SIZE ||
		    (mismatch(buf, SIZE, 1, 0) >= 0 && mismatch(buf, SIZE, 200, 0) >= 0))
			die("read of v/f0: at %#lx", mismatch(buf, SIZE, 1, 0));
		p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
		if (p == MAP_FAILED || memcmp(p, buf, SIZE))
			die("mapping of v/f0");
		munmap(p, SIZE);
		close(fd);
		++*rounds;
	}
	_exit(0);
}

TEST_F(subvolumes, are_exchanged_under_readers)
{
	struct {
		bool stop;
		unsigned long rounds;
	} *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct stat st, below_st;
	double end = now() + 3;
	int i, status;
	pid_t pid;

	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		read_releases(&shared->rounds, &shared->stop);
	}
	for (i = 0; now() < end || shared->rounds < 20; i++) {
		ASSERT_EQ(0, syscall(SYS_renameat2, AT_FDCWD, low("v"), AT_FDCWD, low("v.new"),
				     RENAME_EXCHANGE)) TH_LOG("%s", strerror(errno));
		/* At once, and each time. */
		EXPECT_EQ(i % 2 ? 0 : -1, access(up("v/f1"), F_OK)) TH_LOG("round %d", i);
		EXPECT_EQ(i % 2 ? -1 : 0, access(up("v/g"), F_OK)) TH_LOG("round %d", i);
		ASSERT_EQ(0, stat(low("v/f2"), &below_st));
		ASSERT_EQ(0, stat(up("v/f2"), &st));
		EXPECT_EQ(below_st.st_ctim.tv_nsec, st.st_ctim.tv_nsec);
		if (i % 16 == 0) {
			EXPECT_EQ(-1, check_file(up("v/f0"), SIZE, i % 2 ? 1 : 200));
			EXPECT_EQ(-1, check_file(up("v.new/f0"), SIZE, i % 2 ? 200 : 1));
		}
		if (i % 50 == 49)
			drop_caches("2");
		usleep(1000);
		if (waitpid(pid, &status, WNOHANG))
			break;
	}
	shared->stop = true;
	if (pid != waitpid(pid, &status, 0))
		status = status ?: -1;
	EXPECT_EQ(0, status);
	check_tree(_metadata, low("v"), up("v"), "after");
	check_tree(_metadata, low("v.new"), up("v.new"), "after");
	TH_LOG("exchanged %d times, read %lu times", i, shared->rounds);
}

static uint64_t subvol_id(const char *path)
{
	struct btrfs_ioctl_ino_lookup_args args = { .objectid = BTRFS_FIRST_FREE_OBJECTID };
	int fd = open(path, O_RDONLY | O_DIRECTORY);

	if (ioctl(fd, BTRFS_IOC_INO_LOOKUP, &args))
		die("id of %s", path);
	close(fd);
	return args.treeid;
}

/* Is a deleted subvolume gone from the disk, soon?  Not while its files are held. */
static bool is_gone(uint64_t id, double seconds)
{
	double end = now() + seconds * TIME_FACTOR;
	int fd = open(lower_dir, O_RDONLY | O_DIRECTORY);
	bool gone;

	do {
		/* Not sync(2): this wakes the one who removes them. */
		if (ioctl(fd, BTRFS_IOC_SYNC))
			die("sync");
		usleep(200000);
		gone = shell("btrfs subvolume list -d \"$DEDUPFS_LOWER\" | grep -q '^ID %lu '", id);
	} while (!gone && now() < end);
	close(fd);
	return gone;
}

/* Made, read, mapped, and deleted while it is. */
TEST_F(subvolumes, are_deleted_in_use)
{
	struct opened o;
	int i, f;

	start_watch(upper_dir, lower_dir);
	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, tree_copy(low("v"), low("snap")));
		/* The mount may not have known the name, or another one by it. */
		check_tree(_metadata, low("snap"), up("snap"), "a new snapshot");
		open_sub(&o, low("snap"), up("snap"));
		check_opened(_metadata, &o, 1, "a new snapshot");
		ASSERT_EQ(0, tree_delete(low("snap"))) TH_LOG("%s", strerror(errno));
		EXPECT_EQ(-1, access(up("snap/f0"), F_OK));
		EXPECT_EQ(ENOENT, errno);
		if (i % 2)
			sync();
		drop_caches("2");
		check_opened(_metadata, &o, 1, "a deleted snapshot");
		let_watch(_metadata, "a deleted snapshot");
		if (i % 2)
			close_sub(&o);
	}
	for (f = 0; f < FILES; f++)
		EXPECT_EQ(-1, differs_from(up("w/f%d", f), want[1][f], SIZE));
}

/*
 * A deleted snapshot gives its space back once nobody uses it and its name was
 * looked up: its files have a link, so that nothing else tells the mount.
 */
TEST_F(subvolumes, give_back_their_space)
{
	struct opened o;
	uint64_t id;

	if (!btrfs)
		SKIP(return, "files with links that are gone: btrfs only");
	/* Without the mount: this is how long it takes. */
	ASSERT_EQ(0, tree_copy(low("v"), low("snap")));
	hash_read(low("snap/f0"), 64 * KiB);
	id = subvol_id(low("snap"));
	ASSERT_EQ(0, subvol_delete(low("snap")));
	ASSERT_TRUE(is_gone(id, 20));

	ASSERT_EQ(0, tree_copy(low("v"), low("snap")));
	id = subvol_id(low("snap"));
	check_tree(_metadata, low("snap"), up("snap"), "a snapshot");
	open_sub(&o, low("snap"), up("snap"));
	check_opened(_metadata, &o, 1, "a snapshot");
	ASSERT_EQ(0, subvol_delete(low("snap")));
	EXPECT_EQ(-1, access(up("snap"), F_OK));
	EXPECT_FALSE(is_gone(id, 0));
	check_opened(_metadata, &o, 1, "a deleted snapshot");
	close_sub(&o);
	EXPECT_TRUE(is_gone(id, 40)) TH_LOG("the mount holds on to it");
}

/* LOWERDIR itself is a subvolume, and is deleted. */
TEST_F(subvolumes, that_are_mounted_are_deleted)
{
	int i, k, fd[2], dir[2], err[2];
	char *buf = malloc(SIZE);
	DIR *d;

	if (!btrfs)
		SKIP(return, "XFS does not delete a directory with files");
	ASSERT_EQ(0, tree_copy(low("v"), low("snap")));
	/* A bind mount says what is right. */
	ASSERT_EQ(0, mount(low("snap"), below, NULL, MS_BIND, NULL));
	ASSERT_EQ(0, mount_on(low("snap"), through, NULL));
	for (i = 0; i < 2; i++) {
		dir[i] = open(i ? through : below, O_RDONLY | O_DIRECTORY);
		fd[i] = openat(dir[i], "f0", O_RDONLY);
		ASSERT_LE(0, fd[i]);
	}
	ASSERT_EQ(SIZE, pread(fd[1], buf, SIZE, 0));
	/* Some kernels refuse what is a mount point elsewhere: this is a root. */
	ASSERT_EQ(0, subvol_delete(low("snap"))) TH_LOG("%s", strerror(errno));
	drop_caches("2");
	for (i = 0; i < 2; i++) {
		memset(buf, 0, SIZE);
		EXPECT_EQ(SIZE, pread(fd[i], buf, SIZE, 0));
		EXPECT_EQ(-1, mismatch(buf, SIZE, 1, 0)) TH_LOG("side %d", i);
	}
	for (k = 0; k < 6; k++) {
		for (i = 0; i < 2; i++) {
			const char *at = i ? through : below;
			struct stat st;

			errno = 0;
			switch (k) {
			case 0:
				close(open(path_of("%s/f0", at), O_RDONLY));
				break;
			case 1:
				close(open(path_of("%s/more", at), O_RDWR | O_CREAT, 0644));
				break;
			case 2:
				unlink(path_of("%s/f1", at));
				break;
			case 3:
				rename(path_of("%s/f1", at), path_of("%s/f9", at));
				break;
			case 4:
				mkdir(path_of("%s/d", at), 0755);
				break;
			case 5:
				lseek(dir[i], 0, SEEK_SET);
				d = fdopendir(dup(dir[i]));
				errno = 0;
				while (readdir(d))
					;
				closedir(d);
				if (!errno && !stat(at, &st))
					errno = st.st_nlink;
				break;
			}
			err[i] = errno;
		}
		EXPECT_EQ(err[0], err[1]) TH_LOG("operation %d", k);
	}
	for (i = 0; i < 2; i++) {
		close(fd[i]);
		close(dir[i]);
	}
	EXPECT_EQ(0, umount_soon(through));
	EXPECT_EQ(0, umount_soon(below));
}

/* --- read-only subvolumes ----------------------------------------------------------- */

/* The directory of this side, as it is below. */
static char *mine(const char *name)
{
	return low("%s/%s", dut ? "dut" : "ref", name);
}

static int set_readonly(const char *path, bool readonly)
{
	uint64_t flags = readonly ? BTRFS_SUBVOL_RDONLY : 0;
	int fd = open(path, O_RDONLY | O_DIRECTORY), ret = ioctl(fd, BTRFS_IOC_SUBVOL_SETFLAGS, &flags);

	close(fd);
	return ret;
}

/* All ways to change a tree, while it may be or not. */
static void try_changes(const char *path, int old_fd, char *old_map)
{
	static int nr;
	char page[PAGE];
	int fd, flags = 0;

	chdir(path);
	fill(page, PAGE, 300 + ++nr, 0);
	fd = DO(open("f0", O_RDWR));
	if (fd >= 0)
		VAL(pwrite(fd, page, PAGE, 7 * PAGE));
	close(fd);
	fd = DO(open("more", O_RDWR | O_CREAT, 0644));
	close(fd);
	DO(truncate("f1", 5 * PAGE + nr));
	DO(chmod("f1", 0600 + nr));
	DO(setxattr("f1", "user.x", page, 10, 0));
	DO(rename("f2", "f2.moved"));
	DO(rename("f2.moved", "f2"));
	DO(unlink("more"));
	DO(mkdir("dir", 0755));
	DO(rmdir("dir"));
	DO(access("f0", W_OK));
	fd = open("f3", O_RDONLY);
	DO(ioctl(fd, FS_IOC_SETFLAGS, &flags));
	close(fd);
	/* A descriptor and a mapping from when it was allowed. */
	VAL(pwrite(old_fd, page, PAGE, 9 * PAGE));
	VAL(fsync(old_fd));
	VAL(ftruncate(old_fd, SIZE));
	VAL(FAULTS(memcpy(old_map + 11 * PAGE, page, PAGE)));
	VAL(FAULTS(memcpy(old_map + 12 * PAGE, page, PAGE)));
	VAL(msync(old_map, SIZE, MS_SYNC));
	say("map %lx", hash(old_map, SIZE, 1));
	chdir("..");
}

static void readonly_ops(void)
{
	int fd, f;
	char *p;

	DO(subvol_create(mine("v")));
	for (f = 0; f < FILES; f++)
		make_file(mine(path_of("v/f%d", f)), SIZE, f + 1);
	sync();
	/* Made so. */
	DO(subvol_snapshot(mine("v"), mine("snap"), BTRFS_SUBVOL_RDONLY));
	for (f = 0; f < FILES; f++) {
		say_file(path_of("snap/f%d", f));
		say_file(path_of("v/f%d", f));
	}
	fd = DO(open("snap/f0", O_RDWR));
	fd = DO(open("snap/f0", O_RDONLY));
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	try_changes("snap", fd, p);
	munmap(p, SIZE);
	close(fd);
	/* Writable. */
	DO(set_readonly(mine("snap"), false));
	fd = DO(open("snap/f0", O_RDWR));
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	try_changes("snap", fd, p);
	/*
	 * And not again, with a descriptor and a mapping that can write.  (What is
	 * dirty can be stored to until it is written back, which comes by itself.)
	 */
	DO(fsync(fd));
	DO(set_readonly(mine("snap"), true));
	try_changes("snap", fd, p);
	munmap(p, SIZE);
	close(fd);
	drop_caches("3");
	for (f = 0; f < FILES; f++) {
		say_file(path_of("snap/f%d", f));
		say_file(path_of("v/f%d", f));
	}
	/* Subvolumes can be removed by rmdir; from the mount, too. */
	DO(set_readonly(mine("snap"), false));
	DO(rmdir("snap"));
	for (f = 0; f < FILES; f++)
		unlink(path_of("snap/f%d", f));
	DO(rmdir("snap"));
	DO(access(mine("snap"), F_OK));
	DO(access("snap", F_OK));
	DO(subvol_delete(mine("v")));
	DO(access("v/f0", F_OK));
}

TEST(readonly_snapshots)
{
	if (!btrfs)
		SKIP(return, "XFS has no snapshots");
	SAME(readonly_ops);
}

/* --- mounts inside LOWERDIR ------------------------------------------------------------ */

/* The lower mount is a clone of its own: what others mount on it is not in it. */
TEST(mounts_below)
{
	struct stat st, covered;
	char dir[PATH_MAX];
	int fd;

	snprintf(dir, sizeof(dir), "%s", low("dir"));
	mkdir(dir, 0755);
	mkdir(low("other"), 0755);
	make_file(low("dir/f"), SIZE, 1);
	make_clone(low("dir/f"), low("dir/twin"));
	make_file(low("other/f"), SIZE, 2);
	make_file(low("other/only"), SIZE, 3);
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("dir/f"), SIZE, 1));
	ASSERT_EQ(0, stat(dir, &covered));

	ASSERT_EQ(0, mount(low("other"), dir, NULL, MS_BIND, NULL));
	EXPECT_EQ(-1, check_file(low("dir/f"), SIZE, 2));
	EXPECT_EQ(-1, check_file(up("dir/f"), SIZE, 1));
	EXPECT_EQ(-1, check_file(up("dir/twin"), SIZE, 1));
	EXPECT_EQ(-1, access(up("dir/only"), F_OK));
	ASSERT_EQ(0, stat(up("dir"), &st));
	EXPECT_EQ(covered.st_ctim.tv_nsec, st.st_ctim.tv_nsec);
	/* Not by a lookup that is new, either, nor by a name within. */
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("dir/f"), SIZE, 1));
	/* What the bind mount shows is the same files as ever. */
	EXPECT_EQ(-1, check_file(up("other/f"), SIZE, 2));
	fd = open(low("dir/f"), O_RDWR);
	write_all(fd, "changed", 7, 3 * PAGE);
	close(fd);
	EXPECT_EQ(0, shell("cmp -s %s %s", low("dir/f"), up("other/f")));
	EXPECT_EQ(-1, check_file(up("dir/f"), SIZE, 1));
	/* The directory is busy, as below. */
	EXPECT_EQ(-1, rename(low("dir"), low("moved")));
	EXPECT_EQ(EBUSY, errno);
	EXPECT_EQ(-1, rename(up("dir"), up("moved")));
	EXPECT_EQ(EBUSY, errno);
	unlink(up("dir/twin"));
	EXPECT_EQ(0, rename(up("dir/f"), up("f")));
	EXPECT_EQ(-1, rmdir(up("dir")));
	EXPECT_EQ(EBUSY, errno);
	EXPECT_EQ(0, rename(up("f"), up("dir/f")));

	/* Another filesystem on top of that. */
	ASSERT_EQ(0, mount("none", dir, "tmpfs", 0, NULL));
	make_file(low("dir/t"), PAGE, 9);
	EXPECT_EQ(-1, access(up("dir/t"), F_OK));
	EXPECT_EQ(-1, check_file(up("dir/f"), SIZE, 1));
	/* A mount that is made now takes what is on the name, and that is no XFS. */
	EXPECT_TRUE(!have_pool || mount_on(dir, through, NULL));
	ASSERT_EQ(0, umount2(dir, 0));
	/* Of the bind mount it takes the files. */
	ASSERT_EQ(0, mount_on(dir, through, NULL));
	EXPECT_EQ(-1, check_file(th("only"), SIZE, 3));
	ASSERT_EQ(0, umount2(dir, 0));
	EXPECT_EQ(-1, check_file(th("only"), SIZE, 3));
	EXPECT_EQ(0, umount_soon(through));

	check_tree(_metadata, low("dir"), up("dir"), "unmounted");
	check_tree(_metadata, low("other"), up("other"), "unmounted");
	EXPECT_EQ(0, rename(up("dir"), up("moved")));
	EXPECT_EQ(0, unlink(up("moved/f")));
	EXPECT_EQ(0, rmdir(up("moved")));
}

/* A mount on a directory of the mount goes with the directory. */
TEST(mounts_above)
{
	mkdir(low("point"), 0755);
	mkdir(low("stays"), 0755);
	ASSERT_EQ(0, mount("none", up("point"), "tmpfs", 0, NULL));
	ASSERT_EQ(0, mount("none", up("stays"), "tmpfs", 0, NULL));
	make_file(up("point/t"), PAGE, 9);
	make_file(up("stays/t"), PAGE, 9);
	EXPECT_EQ(-1, access(low("point/t"), F_OK));
	/* Changed below, and still the same directory. */
	make_file(low("stays/f"), PAGE, 1);
	EXPECT_EQ(0, chmod(low("stays"), 0700));
	EXPECT_EQ(-1, check_file(up("stays/t"), PAGE, 9));
	if (have_pool) {
		EXPECT_EQ(0, rename(low("point"), low("elsewhere")));
		EXPECT_EQ(-1, access(up("point"), F_OK));
		EXPECT_EQ(0, access(up("elsewhere"), F_OK));
		EXPECT_EQ(-1, access(up("elsewhere/t"), F_OK));
	}
	EXPECT_EQ(0, umount2(up("stays"), 0));
	EXPECT_EQ(-1, check_file(up("stays/f"), PAGE, 1));
	umount2(up("point"), MNT_DETACH);
	rm_rf(low("point"));
	rm_rf(low("elsewhere"));
	rm_rf(low("stays"));
}

/* --- attributes that tell where data goes ------------------------------------------------ */

static int set_flags(const char *path, int set, int clear)
{
	int fd = open(path, O_RDONLY), flags = 0, ret;

	ret = ioctl(fd, FS_IOC_GETFLAGS, &flags);
	flags = (flags | set) & ~clear;
	ret = ret ?: ioctl(fd, FS_IOC_SETFLAGS, &flags);
	close(fd);
	return ret;
}

static void check_now(struct __test_metadata *_metadata, const char *name, int fd, char *map,
		      const char *content, size_t size, const char *when)
{
	char *buf = malloc(size);

	EXPECT_EQ(size, pread(fd, buf, size, 0)) TH_LOG("%s", when);
	EXPECT_EQ(0, memcmp(buf, content, size)) TH_LOG("%s: %s by descriptor", when, name);
	EXPECT_EQ(0, memcmp(map, content, size)) TH_LOG("%s: %s by mapping", when, name);
	EXPECT_EQ(-1, differs_from(up("%s", name), content, size)) TH_LOG("%s: %s", when, name);
	free(buf);
}

/* Parts of a file that is in the pool are written anew below, compressed or not. */
TEST(compressed_part_by_part)
{
	static const char * const kinds[] = { "zstd", "lzo", "zlib", "", "none" };
	char *content = malloc(SIZE), *map;
	long encoded = pool("not_shared/encoded");
	unsigned int i, k, round;
	size_t at;
	int fd, low_fd, err;

	if (!btrfs)
		SKIP(return, "XFS does not compress");
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	fill(content, SIZE, 1, 0);
	drop_caches("3");
	fd = open(up("a"), O_RDONLY);
	map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	check_now(_metadata, "a", fd, map, content, SIZE, "plain");
	for (round = 0; round < 10; round++) {
		k = round % ARRAY_SIZE(kinds);
		if (round < 5) {
			err = setxattr(low("a"), "btrfs.compression", kinds[k], strlen(kinds[k]), 0);
		} else {
			err = set_flags(low("a"), round % 2 ? FS_COMPR_FL : FS_NOCOMP_FL,
					round % 2 ? FS_NOCOMP_FL : FS_COMPR_FL);
		}
		ASSERT_EQ(0, err) TH_LOG("round %u: %s", round, strerror(errno));
		check_now(_metadata, "a", fd, map, content, SIZE, "told to compress");
		low_fd = open(low("a"), O_RDWR);
		at = round * 8 * PAGE + round * 100;
		for (i = 0; i < 9 * PAGE; i++)
			content[at + i] = i / 64 + round;
		write_all(low_fd, content + at, 9 * PAGE, at);
		check_now(_metadata, "a", fd, map, content, SIZE, "written");
		ASSERT_EQ(0, fsync(low_fd));
		close(low_fd);
		drop_caches(round % 2 ? "1" : "3");
		check_now(_metadata, "a", fd, map, content, SIZE, "written back");
		if (round % 4 == 3) {
			/* What is compressed is shared as well. */
			make_clone(low("a"), low("twin2"));
			EXPECT_EQ(-1, differs_from(up("twin2"), content, SIZE));
		}
	}
	EXPECT_TRUE(!have_pool || encoded < pool("not_shared/encoded"))
		TH_LOG("nothing was compressed");
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
	munmap(map, SIZE);
	close(fd);
}

/* chattr +C on an empty file, below or through the mount: overwritten in place. */
TEST(overwritten_in_place)
{
	char *content = malloc(SIZE), *map[2];
	const char *name;
	long nocow = pool("not_shared/nocow");
	int fd[2], low_fd, i, round;
	struct fiemap_extent was[8], is[8];
	long n, m;

	if (!btrfs)
		SKIP(return, "XFS has no +C");
	for (i = 0; i < 2; i++) {
		name = i ? "n1" : "n0";
		close(open(low("%s", name), O_RDWR | O_CREAT, 0644));
		ASSERT_EQ(0, set_flags(i ? up("n1") : low("n0"), FS_NOCOW_FL, 0));
		low_fd = open(low("%s", name), O_RDWR);
		fill(content, SIZE, 1, 0);
		write_all(low_fd, content, SIZE, 0);
		fsync(low_fd);
		close(low_fd);
		fd[i] = open(up("%s", name), O_RDONLY);
		map[i] = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd[i], 0);
		ASSERT_NE(MAP_FAILED, map[i]);
	}
	drop_caches("3");
	for (round = 0; round < 6; round++) {
		i = round % 2;
		name = i ? "n1" : "n0";
		fill(content, SIZE, round < 2 ? 1 : round, 0);
		check_now(_metadata, name, fd[i], map[i], content, SIZE, "before");
		n = fiemap(low("%s", name), was, 8);
		fill(content, SIZE, round + 2, 0);
		low_fd = open(low("%s", name), O_RDWR | (round < 4 ? 0 : O_DIRECT));
		{
			char *aligned = aligned_alloc(PAGE, SIZE);

			memcpy(aligned, content, SIZE);
			write_all(low_fd, aligned, SIZE, 0);
			free(aligned);
		}
		check_now(_metadata, name, fd[i], map[i], content, SIZE, "overwritten");
		fsync(low_fd);
		close(low_fd);
		drop_caches("3");
		m = fiemap(low("%s", name), is, 8);
		ASSERT_EQ(n, m);
		EXPECT_EQ(was[0].fe_physical, is[0].fe_physical)
			TH_LOG("not in place: this proves nothing");
		check_now(_metadata, name, fd[i], map[i], content, SIZE, "in place");
	}
	/* A clone of such a file shares its blocks until the next write, once. */
	close(open(low("c"), O_RDWR | O_CREAT, 0644));
	ASSERT_EQ(0, set_flags(low("c"), FS_NOCOW_FL, 0));
	{
		int in = open(low("n1"), O_RDONLY), out = open(low("c"), O_RDWR);

		ASSERT_EQ(0, ioctl(out, FICLONE, in));
		fsync(out);
		close(in);
		close(out);
	}
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("c"), SIZE, 7));
	for (round = 0; round < 3; round++) {
		low_fd = open(low("n1"), O_RDWR);
		fill(content, SIZE, 20 + round, 0);
		write_all(low_fd, content, SIZE, 0);
		fsync(low_fd);
		close(low_fd);
		check_now(_metadata, "n1", fd[1], map[1], content, SIZE, "after a clone");
		EXPECT_EQ(-1, check_file(up("c"), SIZE, 7));
		drop_caches("3");
	}
	EXPECT_TRUE(!have_pool || nocow < pool("not_shared/nocow"));
	/* With data in it, +C is refused or does nothing, as below. */
	make_file(low("full"), SIZE, 5);
	make_clone(low("full"), low("full.twin"));
	EXPECT_EQ(-1, check_file(up("full"), SIZE, 5));
	i = set_flags(low("full"), FS_NOCOW_FL, 0);
	EXPECT_EQ(i, set_flags(up("full.twin"), FS_NOCOW_FL, 0));
	make_file(low("full"), SIZE, 6);
	EXPECT_EQ(-1, check_file(up("full"), SIZE, 6));
	EXPECT_EQ(-1, check_file(up("full.twin"), SIZE, 5));
	for (i = 0; i < 2; i++) {
		munmap(map[i], SIZE);
		close(fd[i]);
	}
}

/* --- deduplication ----------------------------------------------------------------------- */

/* Writes w/f2 anew as it is: a copy of its own. */
static void come_apart(const char *path, const char *content)
{
	int fd = open(path, O_RDWR);

	write_all(fd, content, SIZE, 0);
	if (fsync(fd))
		die("fsync");
	close(fd);
}

TEST(deduplicated_again_and_again)
{
	struct fiemap_extent a[8], b[8];
	long joins;
	int round, i, t, f;

	make_trees(lower_dir);
	drop_caches("3");
	start_watch(upper_dir, lower_dir);
	for (round = 0; round < 6; round++) {
		f = round % FILES;
		t = f == 3 ? 0 : round / 2 % 2;
		come_apart(low("%s/f%d", trees[t], f), want[t][f]);
		ASSERT_LT(0, fiemap(low("v/f%d", f), a, 8));
		ASSERT_LT(0, fiemap(low("w/f%d", f), b, 8));
		ASSERT_NE(a[0].fe_physical, b[0].fe_physical);
		let_watch(_metadata, "apart");
		/*
		 * One copy again, for those who have it open all the while, too.
		 * (w/f3 is not all the same.  Others drop the pool meanwhile.)
		 * Over XFS nothing tells that the other file's blocks are shared
		 * now: a new time lets it be looked at without the usual delay.
		 */
		joins = pool("joins");
		for (i = 0; i < 50; i++) {
			ASSERT_EQ(0, dedupe(low("%s/f%d", trees[!t], f), low("%s/f%d", trees[t], f),
					    0, f == 3 ? SIZE / 2 : SIZE));
			utimensat(AT_FDCWD, low("%s/f%d", trees[!t], f), NULL, 0);
			EXPECT_EQ(-1, differs_from(up("%s/f%d", trees[!t], f), want[!t][f], SIZE));
			EXPECT_EQ(-1, differs_from(up("%s/f%d", trees[t], f), want[t][f], SIZE));
			if (pool("joins") > joins || !have_pool)
				break;
		}
		EXPECT_GT(50, i) TH_LOG("round %d: nothing joined", round);
		ASSERT_LT(0, fiemap(low("v/f%d", f), a, 8));
		ASSERT_LT(0, fiemap(low("w/f%d", f), b, 8));
		ASSERT_EQ(a[0].fe_physical, b[0].fe_physical);
		ASSERT_EQ(0, f < 3 ? 0 : dedupe(low("w/f3"), low("v/f3"), SIZE / 2 + OWN * PAGE,
						SIZE / 2 - OWN * PAGE));
		let_watch(_metadata, "deduplicated");
	}
	stop_watch(_metadata);
	check_one_copy(_metadata, upper_dir);
	tree_delete(low("v"));
	tree_delete(low("w"));
}

TEST_HARNESS_MAIN
