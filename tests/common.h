/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the test programs share.
 *
 * A test compares the mount with the lower filesystem under it.  The usual
 * form: a function does operations in its working directory and says what
 * came back; same(ops) runs it once in a directory of the lower filesystem
 * ("ref") and once in one of the mount ("dut"), and both must have said the
 * same.  So the expected results come from XFS or btrfs itself, on the same
 * kernel and in the same boot.  Tests of sharing measure memory and disk.
 *
 * Environment: DEDUPFS_LOWER, DEDUPFS_MNT, DEDUPFS_FS, DEDUPFS_POOL,
 * DEDUPFS_DEV.  Without DEDUPFS_POOL the mount is taken to be the lower
 * filesystem itself: comparisons must pass then, and tests of sharing fail.
 */
#ifndef DEDUPFS_TESTS_COMMON_H
#define DEDUPFS_TESTS_COMMON_H

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>
#include <linux/btrfs.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <grp.h>
#include <linux/fs.h>

#include "kselftest_harness.h"

/* Emulation is slow, and a debug kernel under it slower by TIME_FACTOR. */
#ifndef TIME_FACTOR
#define TIME_FACTOR 1
#endif
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT (110 * TIME_FACTOR)

#define __maybe_unused	__attribute__((unused))
#define PAGE		4096UL
#define KiB		1024UL
#define MiB		(1024UL * 1024UL)

static char lower_dir[PATH_MAX];	/* this program's directory, below */
static char upper_dir[PATH_MAX];	/* the same one, through the mount */
static bool btrfs;			/* else XFS */
static bool have_pool;			/* else the mount is the lower itself */
static bool dut;			/* inside same(): on the mount's side */

/* --- paths ---------------------------------------------------------------- */

static char *path_in(const char *dir, const char *fmt, va_list ap)
{
	static char ring[16][PATH_MAX];
	static unsigned int next;
	char *p = ring[next++ % 16];
	int n = snprintf(p, PATH_MAX, "%s/", dir);

	vsnprintf(p + n, PATH_MAX - n, fmt, ap);
	return p;
}

/* A function name(fmt, ...) that gives a path in @dir, good until 16 more have been made. */
#define PATHS_IN(name, dir)						\
__maybe_unused __attribute__((format(printf, 1, 2)))			\
static char *name(const char *fmt, ...)					\
{									\
	va_list ap;							\
	char *p;							\
									\
	va_start(ap, fmt);						\
	p = path_in(dir, fmt, ap);					\
	va_end(ap);							\
	return p;							\
}

PATHS_IN(slash_and, "")

/* Any path. */
#define path_of(...)	(slash_and(__VA_ARGS__) + 1)

PATHS_IN(low, lower_dir)	/* in this program's directory, on the lower filesystem */
PATHS_IN(up, upper_dir)		/* the same through the mount */

static int rm_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path) && errno != ENOENT ? -1 : 0;
}

__maybe_unused static int rm_rf(const char *path)
{
	return nftw(path, rm_one, 32, FTW_DEPTH | FTW_PHYS);
}

/* Trouble in a helper: nothing that follows would mean anything. */
__maybe_unused __attribute__((format(printf, 1, 2), noreturn))
static void die(const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	fprintf(stderr, "# ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %s\n", strerror(err));
	abort();
}

static pid_t main_pid;

__attribute__((constructor(1000)))
static void common_start(void)
{
	const char *lower = getenv("DEDUPFS_LOWER"), *mnt = getenv("DEDUPFS_MNT");
	const char *fs = getenv("DEDUPFS_FS"), *pool = getenv("DEDUPFS_POOL");

	if (!lower || !mnt || !fs) {
		printf("TAP version 13\n1..0 # SKIP DEDUPFS_LOWER, DEDUPFS_MNT or DEDUPFS_FS is not set\n");
		exit(KSFT_SKIP);
	}
	btrfs = !strcmp(fs, "btrfs");
	have_pool = pool && *pool;
	main_pid = getpid();
	umask(022);
	setvbuf(stdout, NULL, _IOLBF, 0);
	snprintf(lower_dir, PATH_MAX, "%s/t-%s", lower, program_invocation_short_name);
	snprintf(upper_dir, PATH_MAX, "%s/t-%s", mnt, program_invocation_short_name);
	rm_rf(lower_dir);
	if (mkdir(lower_dir, 0755))
		die("mkdir %s", lower_dir);
}

__attribute__((destructor))
static void common_end(void)
{
	if (getpid() == main_pid)
		rm_rf(lower_dir);
}

/* --- what the system says ------------------------------------------------- */

static long read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = read(fd, buf, size - 1);
	close(fd);
	buf[n < 0 ? 0 : n] = 0;
	return n;
}

__maybe_unused static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	close(fd);
	return n == (ssize_t)strlen(text) ? 0 : -1;
}

/* A value of the pool's statistics; 0 where there is no pool. */
__maybe_unused static long pool_in(const char *dir, const char *name)
{
	const char *path = path_of("%s/%s", dir, name);
	char text[64];

	if (!have_pool)
		return 0;
	if (read_text(path, text, sizeof(text)) <= 0)
		die("%s", path);
	return strtol(text, NULL, 0);
}

__maybe_unused static long pool(const char *name)
{
	return pool_in(getenv("DEDUPFS_POOL"), name);
}

/* A field of /proc/meminfo, in bytes. */
__maybe_unused static long meminfo(const char *field)
{
	char text[4096], key[64], *p;

	if (read_text("/proc/meminfo", text, sizeof(text)) < 0)
		die("/proc/meminfo");
	snprintf(key, sizeof(key), "\n%s:", field);
	p = strstr(text, key);
	if (!p && !strncmp(text, key + 1, strlen(key) - 1))
		p = text - 1;
	if (!p)
		die("no %s in /proc/meminfo", field);
	return strtol(p + strlen(key), NULL, 10) * 1024;
}

__maybe_unused static long vmstat(const char *field)
{
	static char text[16384];
	char key[64], *p;

	if (read_text("/proc/vmstat", text, sizeof(text)) < 0)
		die("/proc/vmstat");
	snprintf(key, sizeof(key), "\n%s ", field);
	p = strstr(text, key);
	if (!p)
		die("no %s in /proc/vmstat", field);
	return strtol(p + strlen(key), NULL, 10);
}


/* Bytes read from the lower filesystem's disk so far. */
__maybe_unused static long disk_read_bytes(void)
{
	const char *dev = getenv("DEDUPFS_DEV");
	char path[PATH_MAX], text[512];
	unsigned long ios, merges, sectors;

	if (!dev)
		die("DEDUPFS_DEV is not set");
	snprintf(path, sizeof(path), "/sys/block/%s/stat", strrchr(dev, '/') + 1);
	if (read_text(path, text, sizeof(text)) <= 0 ||
	    sscanf(text, "%lu %lu %lu", &ios, &merges, &sectors) != 3)
		die("%s", path);
	return sectors * 512;
}

/* "1": page cache, "2": dentries, inodes and the pool, "3": all. */
__maybe_unused static void drop_caches(const char *what)
{
	sync();
	if (write_text("/proc/sys/vm/drop_caches", what))
		die("drop_caches");
}

__maybe_unused static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* What was changed since the machine runs is read from disk: have it older. */
__maybe_unused static void move_clock(time_t seconds)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += seconds;
	if (clock_settime(CLOCK_REALTIME, &ts))
		die("clock_settime");
}

/* A number from the environment. */
__maybe_unused static unsigned long number(const char *key, unsigned long otherwise)
{
	const char *v = getenv(key);

	return v && *v ? strtoul(v, NULL, 0) : otherwise;
}

/* Go on as a user without any rights. */
__maybe_unused static void nobody(void)
{
	if (setgroups(0, NULL) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		die("setuid");
}

__maybe_unused __attribute__((format(printf, 1, 2)))
static int shell(const char *fmt, ...)
{
	char cmd[4096];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	return system(cmd);
}

/* A small filesystem of another kind, in a file. */
__maybe_unused
static int mount_new_image(const char *image, const char *size, const char *mkfs,
			   const char *dir)
{
	return shell("modprobe -aq loop ext4 xfs; truncate -s %s %s && mkfs.%s %s && mount -o loop %s %s",
		     size, image, mkfs, image, image, dir);
}

/* --- data ----------------------------------------------------------------- */

static inline uint64_t mix(uint64_t x)
{
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 32;
	return x * 0xc4ceb9fe1a85ec53ULL;
}

/* Byte @off of the pattern @seed depends on both: no two pages are alike. */
static inline uint64_t pattern_word(uint64_t seed, uint64_t word)
{
	return mix(seed * 0x9e3779b97f4a7c15ULL + word + 1);
}

__maybe_unused static void fill(void *buf, size_t len, uint64_t seed, uint64_t off)
{
	unsigned char *p = buf;
	uint64_t w;

	for (; len && (off & 7); len--, off++)
		*p++ = pattern_word(seed, off >> 3) >> (8 * (off & 7));
	for (; len >= 8; len -= 8, off += 8, p += 8) {
		w = pattern_word(seed, off >> 3);
		memcpy(p, &w, 8);
	}
	for (; len; len--, off++)
		*p++ = pattern_word(seed, off >> 3) >> (8 * (off & 7));
}

/* Offset of the first byte that is not as fill() makes it, or -1. */
__maybe_unused static long mismatch(const void *buf, size_t len, uint64_t seed, uint64_t off)
{
	unsigned char want[4096];
	size_t i, n, done;

	for (done = 0; done < len; done += n) {
		n = len - done < sizeof(want) ? len - done : sizeof(want);
		fill(want, n, seed, off + done);
		if (!memcmp((char *)buf + done, want, n))
			continue;
		for (i = 0; ((unsigned char *)buf)[done + i] == want[i]; i++)
			;
		return done + i;
	}
	return -1;
}

__maybe_unused static uint64_t hash(const void *buf, size_t len, uint64_t h)
{
	const unsigned char *p = buf;
	uint64_t w;

	for (; len >= 8; len -= 8, p += 8) {
		memcpy(&w, p, 8);
		h = (h ^ w) * 0x9e3779b97f4a7c15ULL;
		h ^= h >> 29;
	}
	for (; len; len--)
		h = (h ^ *p++) * 0x100000001b3ULL;
	return h;
}

__maybe_unused static void write_all(int fd, const void *buf, size_t len, off_t off)
{
	size_t done;
	ssize_t n;

	for (done = 0; done < len; done += n) {
		n = pwrite(fd, (char *)buf + done, len - done, off + done);
		if (n <= 0)
			die("write of %zu bytes at %lld", len, (long long)off);
	}
}

/* A settled file of @size bytes of pattern @seed. */
__maybe_unused static void make_file(const char *path, size_t size, uint64_t seed)
{
	const size_t step = 256 * KiB;
	char *buf = malloc(step);
	size_t off, n;
	int fd;

	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		die("%s", path);
	for (off = 0; off < size; off += n) {
		n = size - off < step ? size - off : step;
		fill(buf, n, seed, off);
		write_all(fd, buf, n, off);
	}
	if (fsync(fd))
		die("fsync %s", path);
	close(fd);
	free(buf);
}

__maybe_unused static int clone_file(const char *from, const char *to)
{
	int in, out, ret;

	in = open(from, O_RDONLY | O_CLOEXEC);
	if (in < 0)
		return -1;
	out = open(to, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (out < 0) {
		close(in);
		return -1;
	}
	ret = ioctl(out, FICLONE, in);
	if (!ret)
		ret = fsync(out);
	close(in);
	close(out);
	return ret;
}

__maybe_unused static void make_clone(const char *from, const char *to)
{
	if (clone_file(from, to))
		die("clone %s to %s", from, to);
}

/* Let @to have the blocks of @from there, where both hold the same. */
__maybe_unused static int dedupe(const char *from, const char *to, off_t off, size_t len)
{
	char raw[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)] = {};
	struct file_dedupe_range *range = (void *)raw;
	int in = open(from, O_RDWR | O_CLOEXEC), out = open(to, O_RDWR | O_CLOEXEC), ret;

	range->src_length = len;
	range->src_offset = off;
	range->dest_count = 1;
	range->info[0].dest_fd = out;
	range->info[0].dest_offset = off;
	ret = ioctl(in, FIDEDUPERANGE, range) || range->info[0].status ||
	      range->info[0].bytes_deduped != len ? -1 : 0;
	close(in);
	close(out);
	return ret;
}

/* --- btrfs subvolumes ------------------------------------------------------ */

/* The directory that a name is in, opened; the name's last part in @name. */
static int open_parent(const char *path, char *name, size_t size)
{
	const char *last = strrchr(path, '/');
	char dir[PATH_MAX];
	int fd;

	snprintf(dir, sizeof(dir), "%.*s", (int)(last - path), path);
	snprintf(name, size, "%s", last + 1);
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		die("%s", dir);
	return fd;
}

static int subvol_ioctl(const char *path, unsigned long command)
{
	struct btrfs_ioctl_vol_args args = {};
	int dir = open_parent(path, args.name, sizeof(args.name));
	int ret = ioctl(dir, command, &args);

	close(dir);
	return ret;
}

__maybe_unused static int subvol_create(const char *path)
{
	return subvol_ioctl(path, BTRFS_IOC_SUBVOL_CREATE);
}

__maybe_unused static int subvol_delete(const char *path)
{
	return subvol_ioctl(path, BTRFS_IOC_SNAP_DESTROY);
}

__maybe_unused static int subvol_snapshot(const char *from, const char *to, uint64_t flags)
{
	struct btrfs_ioctl_vol_args_v2 args = { .flags = flags };
	int dir = open_parent(to, args.name, sizeof(args.name)), ret;

	args.fd = open(from, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ret = ioctl(dir, BTRFS_IOC_SNAP_CREATE_V2, &args);
	close(args.fd);
	close(dir);
	return ret;
}

/* --- what files hold -------------------------------------------------------- */

__maybe_unused static void *map_file(const char *path, size_t len, int prot, int flags)
{
	int fd = open(path, (prot & PROT_WRITE) && (flags & MAP_SHARED) ? O_RDWR : O_RDONLY);
	void *p;

	if (fd < 0)
		return MAP_FAILED;
	p = mmap(NULL, len, prot, flags, fd, 0);
	close(fd);
	return p;
}

/* Touch each page; the sum keeps the compiler from leaving it out. */
__maybe_unused static unsigned long touch(const void *map, size_t len)
{
	const volatile unsigned char *p = map;
	unsigned long sum = 0;
	size_t off;

	for (off = 0; off < len; off += PAGE)
		sum += p[off];
	return sum;
}

/* Content as read(2) sees it, in chunks of @chunk; 0 on error. */
__maybe_unused static uint64_t hash_read(const char *path, size_t chunk)
{
	char *buf = malloc(chunk);
	uint64_t h = 1, size = 0;
	ssize_t n;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		free(buf);
		return 0;
	}
	while ((n = read(fd, buf, chunk)) > 0) {
		h = hash(buf, n, h);
		size += n;
	}
	close(fd);
	free(buf);
	return n < 0 ? 0 : h ^ size;
}

/* Is the rest of the last page of a mapped file, which ends at @size, zero? */
__maybe_unused static bool zero_behind(const char *map, size_t size)
{
	for (; size % PAGE && !map[size]; size++)
		;
	return size % PAGE == 0;
}

/* Content as a mapping sees it, whole pages: past the end it must be zero. */
__maybe_unused static uint64_t hash_map(const char *path, size_t chunk, int flags)
{
	uint64_t h = 1;
	struct stat st;
	char *p;
	size_t off, n;

	if (stat(path, &st))
		return 0;
	if (!st.st_size)
		return h;
	p = map_file(path, st.st_size, PROT_READ, flags);
	if (p == MAP_FAILED)
		return 0;
	for (off = 0; off < (size_t)st.st_size; off += n) {
		n = (size_t)st.st_size - off < chunk ? st.st_size - off : chunk;
		h = hash(p + off, n, h);
	}
	for (; off % PAGE; off++) {
		if (p[off])
			h = ~h;
	}
	munmap(p, st.st_size);
	return h ^ st.st_size;
}

/* Read a file to its end and check it against the pattern: -1 if right. */
__maybe_unused static long check_file(const char *path, size_t size, uint64_t seed)
{
	const size_t step = 128 * KiB;
	char *buf = malloc(step);
	long bad = -1;
	size_t off = 0;
	ssize_t n;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("%s", path);
	while ((n = read(fd, buf, step)) > 0) {
		bad = mismatch(buf, n, seed, off);
		if (bad >= 0) {
			bad += off;
			break;
		}
		off += n;
	}
	close(fd);
	free(buf);
	if (bad < 0 && off != size)
		bad = off;
	return bad;
}

/* Does a file hold exactly these bytes?  -1: yes; else where it differs. */
__maybe_unused static long differs_from(const char *path, const char *want, size_t size)
{
	const size_t step = 256 * KiB;
	char *buf = malloc(step);
	size_t off = 0, i;
	long bad = -1;
	ssize_t n;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("%s", path);
	while ((n = read(fd, buf, step)) > 0 && off + n <= size) {
		if (memcmp(buf, want + off, n)) {
			for (i = 0; buf[i] == want[off + i]; i++)
				;
			bad = off + i;
			break;
		}
		off += n;
	}
	close(fd);
	free(buf);
	return bad < 0 && off != size ? (long)off : bad;
}

/* The extents of a file, settled first: how many, or -1. */
__maybe_unused static long fiemap(const char *path, struct fiemap_extent *ext, unsigned int max)
{
	struct fiemap *fm = calloc(1, sizeof(*fm) + max * sizeof(*ext));
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	long ret = -1;

	fm->fm_length = FIEMAP_MAX_OFFSET;
	fm->fm_flags = FIEMAP_FLAG_SYNC;
	fm->fm_extent_count = max;
	if (fd >= 0 && !ioctl(fd, FS_IOC_FIEMAP, fm)) {
		ret = fm->fm_mapped_extents;
		if (max)
			memcpy(ext, fm->fm_extents, ret * sizeof(*ext));
	}
	close(fd);
	free(fm);
	return ret;
}

/* A filesystem takes fresh space first: leave little of it. */
__maybe_unused static void take_space(const char *path, size_t leave)
{
	int fd = open(path, O_RDWR | O_CREAT, 0644);
	size_t step = 256 * MiB;
	off_t off = 0;

	for (; step >= 4 * MiB; step /= 2) {
		while (!fallocate(fd, 0, off, step))
			off += step;
	}
	ftruncate(fd, off > (off_t)leave ? off - leave : 0);
	fsync(fd);
	close(fd);
}

/*
 * Pages of a file that lie on blocks of @was: the first run of them, in pages,
 * where it was, and where it is now.
 */
__maybe_unused
static size_t run_on(const struct fiemap_extent *was, long n, const char *path, size_t *first,
		     size_t *now_at)
{
	struct fiemap_extent is[64];
	uint64_t from, to;
	long m = fiemap(path, is, 64);
	int j, k;

	for (k = 0; k < n; k++) {
		for (j = 0; j < m; j++) {
			from = is[j].fe_physical > was[k].fe_physical ?
			       is[j].fe_physical : was[k].fe_physical;
			to = is[j].fe_physical + is[j].fe_length;
			if (to > was[k].fe_physical + was[k].fe_length)
				to = was[k].fe_physical + was[k].fe_length;
			if (from >= to)
				continue;
			*first = (was[k].fe_logical + from - was[k].fe_physical) / PAGE;
			if (now_at)
				*now_at = (is[j].fe_logical + from - is[j].fe_physical) / PAGE;
			return (to - from) / PAGE;
		}
	}
	return 0;
}

/* Page frame number of a mapped page. */
__maybe_unused static uint64_t frame_of(const char *page)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry = 0;

	touch(page, PAGE);
	pread(fd, &entry, sizeof(entry), (uintptr_t)page / PAGE * sizeof(entry));
	close(fd);
	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

/* What /proc/PID/stat says: 'S' sleeps, 'Z' is dead; 0: it is gone. */
__maybe_unused static char process_state(pid_t pid)
{
	char text[512];

	if (read_text(path_of("/proc/%d/stat", pid), text, sizeof(text)) <= 0)
		return 0;
	return strrchr(text, ')')[2];
}

/* Pages of the lower page cache that hold data of a file. */
__maybe_unused static long cached_pages(const char *lower_path, size_t size)
{
	size_t nr = (size + PAGE - 1) / PAGE, i;
	unsigned char *vec = malloc(nr + 1);
	void *p = map_file(lower_path, size, PROT_READ, MAP_SHARED);
	long n = 0;

	if (p == MAP_FAILED || mincore(p, size, vec))
		die("mincore %s", lower_path);
	for (i = 0; i < nr; i++)
		n += vec[i] & 1;
	munmap(p, size);
	free(vec);
	return n;
}

/* --- what the files of this program take in RAM --------------------------- */

static long cached_sum;

static int add_cached(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)ftw;
	if (type == FTW_F && S_ISREG(st->st_mode) && st->st_size)
		cached_sum += cached_pages(path, st->st_size);
	return 0;
}

/*
 * Bytes of RAM that hold file data: pages of the pool, and those of the lower
 * page cache that belong to files of this program's directory.  (Cached in
 * /proc/meminfo moves with every program that runs, and with btrfs metadata.)
 */
__maybe_unused static long cache_bytes(void)
{
	cached_sum = 0;
	nftw(lower_dir, add_cached, 16, FTW_PHYS);
	return (cached_sum + pool("pages")) * (long)PAGE;
}

/* A field of /proc/PID/smaps, of all mappings of the file, in bytes. */
__maybe_unused static size_t smaps(pid_t pid, const char *file, const char *field)
{
	char path[64], line[4096], key[64];
	unsigned long start, end;
	size_t kib, sum = 0;
	bool ours = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	snprintf(key, sizeof(key), "%s: %%zu kB", field);
	f = fopen(path, "r");
	if (!f)
		die("%s", path);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			ours = strstr(line, file);
		else if (ours && sscanf(line, key, &kib) == 1)
			sum += kib * 1024;
	}
	fclose(f);
	return sum;
}

/* --- another mount of our own --------------------------------------------- */

/* Where there is no dedupfs to test, a bind mount stands for it. */
__maybe_unused static int mount_on(const char *lower, const char *at, const char *options)
{
	if (!have_pool)
		return mount(lower, at, NULL, MS_BIND, NULL);
	return mount(lower, at, "dedupfs", 0, options);
}

/* --- the same on both sides ----------------------------------------------- */

#define TRANSCRIPT_MAX (512 * KiB)

struct transcript {
	size_t len;
	char text[TRANSCRIPT_MAX];
};

static struct transcript *transcript;

__maybe_unused __attribute__((format(printf, 1, 2)))
static void say(const char *fmt, ...)
{
	size_t room = TRANSCRIPT_MAX - transcript->len;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(transcript->text + transcript->len, room, fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n + 2 > room)
		die("a transcript is full");
	transcript->len += n;
	transcript->text[transcript->len++] = '\n';
	transcript->text[transcript->len] = 0;
}

/* Run a command; say what it printed and how it ended. */
__maybe_unused static int say_output(const char *cmd)
{
	char line[4096];
	int status;
	FILE *f;

	say("%s", cmd);
	f = popen(cmd, "r");
	if (!f)
		die("%s", cmd);
	while (fgets(line, sizeof(line), f))
		say("%s", line);
	status = pclose(f);
	say("status %d", status);
	return status;
}

static inline const char *errname(void)
{
	return strerrorname_np(errno) ?: "?";
}

/* Say whether a call worked, or why not; gives the call's value. */
#define DO(call) ({							\
	long __ret;							\
									\
	errno = 0;							\
	__ret = (long)(call);						\
	say("%d: %s: %s", __LINE__, #call, __ret == -1 ? errname() : "ok"); \
	__ret;								\
})

/* Say what a call gave. */
#define VAL(call) ({							\
	long __ret;							\
									\
	errno = 0;							\
	__ret = (long)(call);						\
	if (__ret == -1 && errno)					\
		say("%d: %s: %s", __LINE__, #call, errname());		\
	else								\
		say("%d: %s: %ld", __LINE__, #call, __ret);		\
	__ret;								\
})

/* What a file holds, by read(2) and through a mapping. */
__maybe_unused static void say_file(const char *path)
{
	struct stat st;

	if (stat(path, &st)) {
		say("%s: %s", path, errname());
		return;
	}
	say("%s: size %lld mode %o nlink %lu read %lx map %lx", path, (long long)st.st_size,
	    st.st_mode, (unsigned long)st.st_nlink, hash_read(path, 64 * KiB),
	    hash_map(path, 64 * KiB, MAP_PRIVATE));
}

/*
 * A settled file whose blocks are shared with "NAME.twin", in no cache.  On
 * the mount's side it is made sure that the pool takes it.
 */
__maybe_unused static void make_pooled(const char *path, size_t size, uint64_t seed)
{
	char twin[PATH_MAX];
	long before;

	snprintf(twin, sizeof(twin), "%s.twin", path);
	make_file(path, size, seed);
	make_clone(path, twin);
	drop_caches("3");
	if (!dut || !have_pool || size < PAGE)
		return;
	before = pool("pages");
	hash_read(path, 64 * KiB);
	if (pool("pages") - before < (long)(size / PAGE))
		say("%s did not get into the pool: %ld pages of %lu", path,
		    pool("pages") - before, size / PAGE);
	drop_caches("3");
}

static void run_side(void (*ops)(void), const char *dir, bool is_dut)
{
	int status;
	pid_t pid;

	rm_rf(dir);
	if (mkdir(dir, 0755))
		die("mkdir %s", dir);
	pid = fork();
	if (!pid) {
		dut = is_dut;
		if (chdir(dir))
			die("chdir %s", dir);
		alarm(80 * TIME_FACTOR);
		ops();
		fflush(NULL);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		die("fork");
	if (WIFSIGNALED(status)) {
		say("killed by %s", strsignal(WTERMSIG(status)));
		/* die() or a hang on both sides is not the same result: there is none. */
		if (WTERMSIG(status) == SIGABRT || WTERMSIG(status) == SIGALRM)
			say("no result of the %s", is_dut ? "mount" : "lower filesystem");
	} else {
		say("exit status %d", WEXITSTATUS(status));
	}
	rm_rf(dir);
}

static const char *next_line(const char **p)
{
	static char line[2][4096];
	static int turn;
	const char *end = strchrnul(*p, '\n');
	size_t n = end - *p < 4095 ? end - *p : 4095;

	turn = !turn;
	memcpy(line[turn], *p, n);
	line[turn][n] = 0;
	*p = *end ? end + 1 : end;
	return line[turn];
}

/* Lines that differ when @ops runs on the lower filesystem and on the mount. */
__maybe_unused static int differences(void (*ops)(void))
{
	static struct transcript *t[2];
	const char *a, *b, *la, *lb;
	int i, n = 0;

	for (i = 0; i < 2; i++) {
		if (!t[i])
			t[i] = mmap(NULL, sizeof(*t[i]), PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		t[i]->len = 0;
		t[i]->text[0] = 0;
		transcript = t[i];
		run_side(ops, i ? up("dut") : low("ref"), i);
	}
	a = t[0]->text;
	b = t[1]->text;
	if (getenv("VERBOSE") && *getenv("VERBOSE"))
		fprintf(stderr, "%s", a);
	while (*a || *b) {
		la = next_line(&a);
		lb = next_line(&b);
		if (!strcmp(la, lb))
			continue;
		if (++n > 12)
			break;
		fprintf(stderr, "#   lower: %s\n#   mount: %s\n", la, lb);
	}
	return n;
}

#define SAME(ops) EXPECT_EQ(0, differences(ops))

/* --- a fault that must not, or must, be answered by a signal -------------- */

static sigjmp_buf fault_env;

__maybe_unused static void on_fault(int sig)
{
	siglongjmp(fault_env, sig);
}

/* Run a statement: 0, or the SIGBUS or SIGSEGV that it drew. */
#define FAULTS(statement) ({						\
	int __sig;							\
									\
	signal(SIGBUS, on_fault);					\
	signal(SIGSEGV, on_fault);					\
	__sig = sigsetjmp(fault_env, 1);				\
	if (!__sig) {							\
		statement;						\
	}								\
	signal(SIGBUS, SIG_DFL);					\
	signal(SIGSEGV, SIG_DFL);					\
	__sig;								\
})

#endif
