// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 400
 *
 * The mount exported by the kernel's NFS server and used by its client, as the
 * lower filesystem is: both must give the same.  No program is needed for it:
 * what mountd would answer is told to the server beforehand.
 */
#include "common.h"
#include "device.h"
#include <sys/xattr.h>

#define NAME		"dedupfs-nfs"
#define DEV_SIZE	(400 * MiB)
#define SIZE		(64 * PAGE)

#define EXPORT_FSID		0x2000
#define EXPORT_NO_SUBTREE	0x0400
#define NEVER			"2147483647"

static char device[64], remote[PATH_MAX];

PATHS_IN(nfs, remote)

__attribute__((constructor(1002)))
static void place_of_client(void)
{
	snprintf(remote, sizeof(remote), "%s/remote", getcwd(NULL, 0));
	mkdir(remote, 0755);
}

/* --- server and client ------------------------------------------------------- */

/* To one of the server's files.  Return: 0 or -errno. */
static int tell(const char *path, const char *fmt, ...)
{
	char text[PATH_MAX];
	int fd, ret = 0;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

static void flush_caches(void)
{
	static const char *const caches[] = { "auth.unix.ip", "nfsd.export", "nfsd.fh" };
	unsigned int i;

	/* (All that is not from the future; it takes what mounts it holds along.) */
	for (i = 0; i < 3; i++)
		tell(path_of("/proc/net/rpc/%s/flush", caches[i]), "%ld\n", time(NULL) + 2);
}

/* Export a directory to this machine, and mount it. */
static void serve(const char *dir, unsigned int flags)
{
	tell("/proc/fs/nfsd/versions", "-3 +4 +4.1 +4.2\n");
	if (tell("/proc/fs/nfsd/portlist", "tcp 2049\n") || tell("/proc/fs/nfsd/threads", "2\n"))
		die("nfsd");
	/* (It is over already where the server has had no clients before.) */
	tell("/proc/fs/nfsd/v4_end_grace", "Y\n");
	if (tell("/proc/net/rpc/auth.unix.ip/channel", "nfsd 127.0.0.1 " NEVER " this\n") ||
	    tell("/proc/net/rpc/nfsd.export/channel", "this %s " NEVER " %u 65534 65534 0\n", dir,
		 EXPORT_FSID | flags) ||
	    tell("/proc/net/rpc/nfsd.fh/channel", "this 1 \\x00000000 " NEVER " %s\n", dir))
		die("export %s", dir);
	if (mount("127.0.0.1:/", remote, "nfs4", 0,
		  "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,sec=sys,soft,timeo=600"))
		die("mount %s", remote);
}

static void serve_no_more(void)
{
	umount_soon(remote);
	umount2(remote, MNT_FORCE | MNT_DETACH);
	tell("/proc/fs/nfsd/threads", "0\n");
	flush_caches();
}

/* Also where a test ended before its teardown. */
__attribute__((destructor))
static void at_end(void)
{
	if (getpid() != main_pid || !spare)
		return;
	serve_no_more();
	tear_down(through, below, NAME);
}

static void linear(void)
{
	struct dm_line line = { 0, DEV_SIZE / SECTOR, "linear" };

	snprintf(line.params, sizeof(line.params), "%s 0", spare);
	snprintf(device, sizeof(device), "%s", dm_make(NAME, &line, 1));
}

/* "a" and "b" share their blocks.  On the mount's side it is dedupfs that is exported. */
static void start(unsigned int flags)
{
	serve_no_more();
	tear_down(through, below, NAME);
	linear();
	if (shell("mkfs.%s -q -f -K %s >/dev/null", btrfs ? "btrfs" : "xfs", device) ||
	    mount(device, below, btrfs ? "btrfs" : "xfs", 0, NULL))
		die("a filesystem on %s", device);
	make_file(dn("a"), SIZE, 1);
	make_clone(dn("a"), dn("b"));
	mkdir(dn("d"), 0755);
	make_file(dn("d/f"), SIZE, 2);
	make_clone(dn("d/f"), dn("d/g"));
	if (dut ? mount_on(below, through, NULL) : mount(below, through, NULL, MS_BIND, NULL))
		die("mount on %s", through);
	drop_caches("3");
	serve(through, flags);
}

static void stop(void)
{
	serve_no_more();
	DO(umount_soon(through));
	DO(umount_soon(below));
	DO(dm_remove(NAME));
	if (btrfs)
		forget_devices();
}

FIXTURE(nfs) {
};

FIXTURE_SETUP(nfs)
{
	if (!spare)
		SKIP(return, "DEDUPFS_SPARE is not set");
	if (shell("modprobe -q nfsd && modprobe -q nfs && modprobe -q nfsv4"))
		SKIP(return, "this kernel has no NFS");
	if (shell("mkdir -p /var/lib/nfs/v4recovery && modprobe dm_mod && "
		  "{ mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd; }"))
		die("nfsd");
}

FIXTURE_TEARDOWN(nfs)
{
}

/* --- what clients do --------------------------------------------------------- */

static void life(void)
{
	char buf[100], *map;
	int fd, dir;

	start(EXPORT_NO_SUBTREE);
	say("a %ld, b %ld", check_file(nfs("a"), SIZE, 1), check_file(nfs("b"), SIZE, 1));
	map = map_file(nfs("a"), SIZE, PROT_READ, MAP_SHARED);
	say("a mapped %ld", mismatch(map, SIZE, 1, 0));
	munmap(map, SIZE);

	/* What the client changes is seen on the server, in that file alone. */
	fd = open(nfs("a"), O_RDWR);
	fill(buf, sizeof(buf), 3, 0);
	say("written %zd", pwrite(fd, buf, sizeof(buf), 5 * PAGE + 10));
	DO(fsync(fd));
	say_file(th("a"));
	say("b %ld", check_file(th("b"), SIZE, 1));
	DO(ftruncate(fd, 7 * PAGE + 1));
	DO(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE));
	DO(close(fd));
	say_file(th("a"));

	/* And what the server changes is seen by who opens the file then. */
	fd = open(th("b"), O_RDWR);
	say("written %zd", pwrite(fd, buf, sizeof(buf), 9 * PAGE));
	close(fd);
	say_file(nfs("b"));

	/* Cloned by the server (NFS 4.2). */
	DO(clone_file(nfs("b"), nfs("c")));
	say_file(th("c"));
	say_file(nfs("c"));

	/* Names. */
	DO(mkdir(nfs("m"), 0750));
	DO(symlink("../a", nfs("m/s")));
	DO(link(nfs("b"), nfs("m/l")));
	DO(rename(nfs("c"), nfs("m/c")));
	DO(mkfifo(nfs("m/p"), 0600));
	DO(chmod(nfs("m/c"), 0604));
	DO(setxattr(nfs("m/c"), "user.x", "y", 1, 0));
	say("xattr %zd", getxattr(th("m/c"), "user.x", buf, sizeof(buf)));
	DO(unlink(nfs("m/p")));
	DO(rmdir(nfs("m")));
	say_file(th("m/c"));
	say_file(th("m/l"));
	DO(unlink(nfs("nothing")));

	/* A file that the server has forgotten is found again by its handle. */
	fd = open(nfs("d/f"), O_RDONLY);
	dir = open(nfs("d"), O_RDONLY | O_DIRECTORY);
	drop_caches("3");
	say("read %zd, %ld", pread(fd, buf, sizeof(buf), PAGE), mismatch(buf, sizeof(buf), 2, PAGE));
	DO(faccessat(dir, "g", R_OK, 0));
	close(dir);
	close(fd);
	stop();
}

TEST_F(nfs, clients_see_the_same)
{
	SAME(life);
}

/* The server sends pages: two of a file can be one of the pool. */
static void the_same_block_in_a_row(void)
{
	struct file_clone_range r = { .src_length = PAGE };
	int fd, i;

	start(EXPORT_NO_SUBTREE);
	make_file(th("row"), 40 * PAGE + 100, 5);
	fd = r.src_fd = open(th("row"), O_RDWR);
	for (i = 1; i < 4; i++) {
		r.dest_offset = i * PAGE;
		DO(ioctl(fd, FICLONERANGE, &r));
		r.dest_offset = (20 + i) * PAGE;
		DO(ioctl(fd, FICLONERANGE, &r));
	}
	DO(fsync(fd));
	drop_caches("3");
	say_file(th("row"));
	say_file(nfs("row"));
	/* What is added at the end, where a page was sent in part. */
	for (i = 0; i < 3; i++) {
		DO(pwrite(fd, "more of it", 10, 40 * PAGE + 100 + 10 * i));
		say_file(nfs("row"));
	}
	close(fd);
	stop();
}

TEST_F(nfs, the_same_page_twice)
{
	SAME(the_same_block_in_a_row);
}

/* Where each handle is looked at from its parent, as well. */
static void below_a_subtree(void)
{
	char buf[100];
	int fd;

	start(0);
	fd = open(nfs("d/f"), O_RDWR);
	drop_caches("3");
	say("read %zd, %ld", pread(fd, buf, sizeof(buf), 0), mismatch(buf, sizeof(buf), 2, 0));
	say("written %zd", pwrite(fd, buf, sizeof(buf), 3 * PAGE));
	DO(fsync(fd));
	close(fd);
	drop_caches("3");
	say_file(nfs("d/f"));
	say_file(th("d/f"));
	say("g %ld", check_file(nfs("d/g"), SIZE, 2));
	stop();
}

TEST_F(nfs, subtrees_are_checked)
{
	SAME(below_a_subtree);
}

/* --- what the server has answered is on disk ---------------------------------- */

/* (The disk below does not count what it writes along with a flush.) */
static unsigned long disk_writes(void)
{
	unsigned long n[5];
	char text[512];

	if (read_text(path_of("/sys/block%s/stat", strrchr(device, '/')), text, sizeof(text)) <= 0 ||
	    sscanf(text, "%lu %lu %lu %lu %lu", &n[0], &n[1], &n[2], &n[3], &n[4]) != 5)
		die("stat of %s", device);
	return n[4];
}

/* The log writes what it can while it has time. */
static unsigned long quiet_disk(void)
{
	unsigned long before, now;
	int i, quiet = 0;

	sync();
	for (i = 0, before = disk_writes(); i < 100 && quiet < 5; i++, before = now) {
		usleep(100 * 1000);
		now = disk_writes();
		quiet = now == before ? quiet + 1 : 0;
	}
	return before;
}

/* (What the log writes in its own time may fall into a call; that failed, it is made once more.) */
#define ON_DISK(op)								\
	do {									\
		unsigned long before;						\
		bool written;							\
		int err, tries = 3;						\
										\
		do {								\
			before = quiet_disk();					\
			err = (op) ? errno : 0;					\
			written = disk_writes() > before;			\
		} while (err && written && --tries);				\
		say("%s: %d, %s", #op, err, written ? "on disk" : "in memory");	\
		if (!dut && !err && !written)					\
			die("%s is not durable below", #op);			\
	} while (0)

static void metadata(void)
{
	start(EXPORT_NO_SUBTREE);
	ON_DISK(mkdir(nfs("m"), 0755));
	ON_DISK(mknod(nfs("p"), S_IFIFO | 0600, 0));
	ON_DISK(symlink("a", nfs("s")));
	ON_DISK(link(nfs("a"), nfs("l")));
	ON_DISK(rename(nfs("l"), nfs("m/l")));
	ON_DISK(chmod(nfs("a"), 0600));
	ON_DISK(chown(nfs("m"), 1, 1));
	ON_DISK(unlink(nfs("s")));
	ON_DISK(rmdir(nfs("nothing")));
	stop();
}

TEST_F(nfs, names_and_attributes_are_durable)
{
	if (btrfs)
		SKIP(return, "btrfs itself leaves them in memory");
	SAME(metadata);
}

/* --- attributes changed while the file is being written ----------------------- */

/*
 * The server waits for the lower filesystem, and not for a write-back of the
 * upper inode, which has none.
 */
static void under_write_back(void)
{
	struct dm_ioctl io;
	char buf[PAGE];
	pid_t flusher, client;
	int fd, status;

	start(EXPORT_NO_SUBTREE);
	DO(access(nfs("a"), R_OK));
	fd = open(th("a"), O_RDWR);
	fill(buf, PAGE, 4, 0);
	say("written %zd", pwrite(fd, buf, PAGE, 0));
	io = (struct dm_ioctl){ .flags = DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG };
	if (dm_call(DM_DEV_SUSPEND, &io, NAME, sizeof(io)))
		die("suspend");
	flusher = fork();
	if (!flusher)
		_exit(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE) != 0);
	usleep(300 * 1000);
	client = fork();
	if (!client)
		_exit(chmod(nfs("a"), 0640) ? errno : 0);
	usleep(700 * 1000);
	if (dm_simple(DM_DEV_SUSPEND, NAME, 0))
		die("resume");
	waitpid(flusher, &status, 0);
	say("flushed %d", status);
	waitpid(client, &status, 0);
	say("changed %d", status);
	close(fd);
	say_file(nfs("a"));
	stop();
}

TEST_F(nfs, attributes_change_under_write_back)
{
	SAME(under_write_back);
}

/* --- two changes of one tick --------------------------------------------------- */

static void one_after_another(void)
{
	int i, fd, stale = 0;
	char c;

	start(EXPORT_NO_SUBTREE);
	fd = open(th("a"), O_RDWR);
	for (i = 0; i < 60; i++) {
		int seen, client;

		c = i;
		if (pwrite(fd, &c, 1, 100) != 1)
			die("write");
		client = open(nfs("a"), O_RDONLY);
		if (pread(client, &c, 1, 100) != 1)
			die("read by the client");
		seen = c;
		close(client);
		stale += seen != i;
	}
	close(fd);
	say("stale %d", stale);
	stop();
}

TEST_F(nfs, each_change_is_seen)
{
	SAME(one_after_another);
}

TEST_HARNESS_MAIN
