// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 400
 * expect-log: XFS .*(Internal error|Corruption of in-memory)
 *
 * A disk that fails: reads, writes, a block of which the checksum is wrong, a
 * filesystem that shuts down or turns read-only.  Each sequence runs on a
 * fresh filesystem over a device-mapper table on the spare disk, once as it is
 * and once through dedupfs, and both must say the same; where it is a matter
 * of timing, there are only clean errors, never wrong data, and everything can
 * be unmounted.
 */
#include "common.h"
#include "device.h"
#include "disk.h"
#include <linux/fsmap.h>
#include <linux/fsverity.h>
#include <sys/prctl.h>

#define NAME		"dedupfs-faults"
#define DEV_SIZE	(400 * MiB)
#define NR		64U
#define SIZE		(NR * PAGE)

#define XFS_IOC_GOINGDOWN	_IOR('X', 125, uint32_t)
#define GOING_LOGFLUSH		1
#define GOING_NOLOGFLUSH	2

static char device[64];

static long pool_here(const char *name)
{
	return pool_in(path_of("/sys/fs/dedupfs/%s", strrchr(device, '/') + 1), name);
}

/* --- the device ------------------------------------------------------------- */

static struct part bad[256];
static unsigned int nr_bad;

static void add_bad(uint64_t start, uint64_t len)
{
	if (nr_bad && bad[nr_bad - 1].start + bad[nr_bad - 1].len == start) {
		bad[nr_bad - 1].len += len;
		return;
	}
	if (nr_bad == 256)
		die("too many parts");
	bad[nr_bad++] = (struct part){ start, len };
}

static int by_start(const void *a, const void *b)
{
	const struct part *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* The parts bad[] fail: writes only, or all.  The rest is the spare disk. */
static unsigned int make_table(struct dm_line *line, bool writes_only)
{
	uint64_t at = 0, to;
	unsigned int i, n = 0;

	qsort(bad, nr_bad, sizeof(bad[0]), by_start);
	for (i = 0; i <= nr_bad; i++) {
		to = i < nr_bad ? bad[i].start : DEV_SIZE;
		if (to > at) {
			line[n] = (struct dm_line){ at / SECTOR, (to - at) / SECTOR, "linear" };
			snprintf(line[n].params, 128, "%s %lu", spare, at / SECTOR);
			n++;
		}
		if (i == nr_bad)
			break;
		to = bad[i].start + bad[i].len;
		if (to > DEV_SIZE)
			die("a part beyond the device");
		line[n] = (struct dm_line){ bad[i].start / SECTOR, bad[i].len / SECTOR,
					    writes_only ? "flakey" : "error" };
		if (writes_only)
			snprintf(line[n].params, 128, "%s %lu 0 100000 1 error_writes", spare,
				 bad[i].start / SECTOR);
		n++;
		at = to;
	}
	return n;
}

/* (A part that fails writes only fails flushes, too; one that fails all does not.) */
static void set_table(bool writes_only)
{
	struct dm_line *line = calloc(2 * 256 + 1, sizeof(*line));

	dm_change(NAME, line, make_table(line, writes_only));
	free(line);
}

static void device_recovers(void)
{
	nr_bad = 0;
	set_table(false);
}

static void whole_device_fails(bool writes_only)
{
	nr_bad = 0;
	add_bad(0, DEV_SIZE);
	set_table(writes_only);
}

/* The extents of a file, on the device. */
static unsigned int file_parts(const char *path, struct part *parts)
{
	struct fiemap_extent ext[64];
	long i, n = fiemap(path, ext, 64);

	for (i = 0; i < n; i++)
		parts[i] = (struct part){ place_of(path, ext[i].fe_logical / PAGE), ext[i].fe_length };
	return n;
}

static void add_gaps(struct part whole, const struct part *used, unsigned int n)
{
	uint64_t at = whole.start, end = whole.start + whole.len;
	unsigned int i;

	for (i = 0; i < n; i++) {
		if (used[i].start < at || used[i].start >= end)
			continue;
		if (used[i].start > at)
			add_bad(at, used[i].start - at);
		at = used[i].start + used[i].len;
	}
	if (at < end)
		add_bad(at, end - at);
}

/*
 * Where file data may come to lie, and no metadata: whoever writes a shared
 * block gets a new one.  @used: and where "a" and "u" lie.
 */
static void add_data(bool used)
{
	struct fsmap_head *head;
	struct part parts[128];
	unsigned int i, n;
	int fd;

	n = file_parts(dn("a"), parts);
	n += file_parts(dn("u"), parts + n);
	qsort(parts, n, sizeof(parts[0]), by_start);
	if (used)
		for (i = 0; i < n; i++)
			add_bad(parts[i].start, parts[i].len);
	if (btrfs) {
		const struct part super = { 64 * MiB, PAGE };	/* a copy of it */
		uint64_t end = 0;

		read_chunks(below);
		for (i = 0; i < nr_chunks; i++) {
			if (chunk_type[i] & BTRFS_BLOCK_GROUP_DATA)
				add_gaps(chunks[i], parts, n);
			if (end < chunks[i].start + chunks[i].len)
				end = chunks[i].start + chunks[i].len;
		}
		/* The next chunk is one for data: there is room enough for metadata. */
		add_gaps((struct part){ end, DEV_SIZE - end }, &super, 1);
		return;
	}
	head = calloc(1, fsmap_sizeof(512));
	head->fmh_count = 512;
	head->fmh_keys[1] = (struct fsmap){ .fmr_device = -1, .fmr_flags = -1, .fmr_physical = -1,
					    .fmr_owner = -1, .fmr_offset = -1 };
	fd = open(below, O_RDONLY);
	if (ioctl(fd, FS_IOC_GETFSMAP, head))
		die("fsmap");
	close(fd);
	for (i = 0; i < head->fmh_entries; i++)
		if ((head->fmh_recs[i].fmr_flags & FMR_OF_SPECIAL_OWNER) &&
		    head->fmh_recs[i].fmr_owner == FMR_OWN_FREE)
			add_bad(head->fmh_recs[i].fmr_physical, head->fmh_recs[i].fmr_length);
	free(head);
}

/* --- a filesystem on it ----------------------------------------------------- */

static int mount_below(void)
{
	return mount(device, below, btrfs ? "btrfs" : "xfs", 0, btrfs ? "max_inline=0" : "");
}

static int mount_through(void)
{
	return dut ? mount_on(below, through, NULL) : mount(below, through, NULL, MS_BIND, NULL);
}

/* Also where a test ended before its teardown. */
__attribute__((destructor))
static void at_end(void)
{
	if (getpid() == main_pid && spare)
		tear_down(through, below, NAME);
}

/* "a" and "b" share their blocks, "u" shares nothing. */
static void start(void)
{
	struct dm_line line[1];

	tear_down(through, below, NAME);
	nr_bad = 0;
	snprintf(device, sizeof(device), "%s", dm_make(NAME, line, make_table(line, false)));
	if (shell("mkfs.%s -q -f -K %s %s >/dev/null", btrfs ? "btrfs" : "xfs",
		  btrfs ? "-m single -d single" : "-m reflink=1", device) || mount_below())
		die("a filesystem on %s", device);
	make_file(dn("a"), SIZE, 1);
	make_clone(dn("a"), dn("b"));
	make_file(dn("u"), SIZE, 2);
	if (mount_through())
		die("mount on %s", through);
	drop_caches("3");
}

static void stop(void)
{
	DO(umount_soon(through));
	DO(umount_soon(below));
	device_recovers();
	DO(mount_below());
	say("a %ld", check_file(dn("a"), SIZE, 1));
	say("b %ld", check_file(dn("b"), SIZE, 1));
	DO(umount_soon(below));
	DO(dm_remove(NAME));
	if (btrfs)
		forget_devices();
}

/* --- what a file gives, page by page: good, Error (EIO), Signal, ? wrong ----- */

static char verdict(const char *page, uint64_t seed, unsigned int i)
{
	return mismatch(page, PAGE, seed, i * PAGE) < 0 ? 'g' : '?';
}

/* Read by @step pages; @random: without readahead. */
static const char *by_read(const char *path, uint64_t seed, unsigned int step, bool random)
{
	static char out[NR + 1];
	char *buf = malloc(step * PAGE);
	int fd = open(path, O_RDONLY);
	unsigned int i, k;
	ssize_t n;

	if (fd < 0)
		return errname();
	if (random)
		posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	for (i = 0; i < NR; i += step) {
		n = pread(fd, buf, step * PAGE, i * PAGE);
		for (k = 0; k < step; k++) {
			if (n >= (ssize_t)((k + 1) * PAGE))
				out[i + k] = verdict(buf + k * PAGE, seed, i + k);
			else if (n < 0)
				out[i + k] = errno == EIO ? 'E' : '!';
			else
				out[i + k] = '-';	/* after the end of a short read */
		}
	}
	close(fd);
	free(buf);
	return out;
}

static const char *by_load(const char *path, uint64_t seed, bool random)
{
	static char out[NR + 1], copy[PAGE];
	static volatile unsigned int i;
	char *volatile p = map_file(path, SIZE, PROT_READ, MAP_SHARED);
	int sig;

	if (p == MAP_FAILED)
		return errname();
	if (random)
		madvise(p, SIZE, MADV_RANDOM);
	for (i = 0; i < NR; i++) {
		sig = FAULTS(memcpy(copy, p + i * PAGE, PAGE));
		out[i] = sig == SIGBUS ? 'S' : sig ? '!' : verdict(copy, seed, i);
	}
	munmap(p, SIZE);
	return out;
}

static int wrong_in(const char *s)
{
	return strpbrk(s, "?!") != NULL;
}

static void say_pages(const char *path, uint64_t seed)
{
	say("%s: %s", path, by_read(path, seed, 1, true));
	say("%s: loads %s", path, by_load(path, seed, true));
}

/* Nothing is cached on any side. */
static void forget_all(void)
{
	int i;

	for (i = 0; i < 20; i++) {
		drop_caches("3");
		if (!dut || !pool_here("pages"))
			break;
	}
}

/* Both sides saying the same proves nothing where no fault was met. */
static void must(bool cond, const char *what)
{
	errno = 0;
	if (!cond)
		die("%s", what);
}

static void say_all(void)
{
	say_pages(th("a"), 1);
	say_pages(th("b"), 1);
	say_pages(th("u"), 2);
}

/* On the mount's side: what of "a" and "b" can be pooled is, and is one copy. */
static void need_pool(unsigned int pages)
{
	if (!dut || !have_pool)
		return;
	/* btrfs takes what nobody shares, too. */
	if (pool_here("pages") < pages || pool_here("pages") > pages + (btrfs ? NR : 0))
		say("the pool has %ld pages, not %u", pool_here("pages"), pages);
}

FIXTURE(fault) {
};

FIXTURE_SETUP(fault)
{
	if (!spare)
		SKIP(return, "DEDUPFS_SPARE is not set");
	if (shell("modprobe -qa dm_mod dm-flakey; test -e /dev/mapper/control"))
		SKIP(return, "no device-mapper");
}

FIXTURE_TEARDOWN(fault)
{
	tear_down(through, below, NAME);
}

/* --- reads ------------------------------------------------------------------ */

static const unsigned int bad_pages[] = { 5, 20, 21, 22, 40, 63 };

static bool is_bad(unsigned int page)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bad_pages); i++)
		if (bad_pages[i] == page)
			return true;
	return false;
}

static void some_sectors(void)
{
	const unsigned int n = ARRAY_SIZE(bad_pages);
	unsigned int i;

	start();
	for (i = 0; i < n; i++) {
		add_bad(place_of(dn("a"), bad_pages[i]), PAGE);
		add_bad(place_of(dn("u"), bad_pages[i]), PAGE);
	}
	forget_all();
	set_table(false);
	must(strchr(by_read(dn("u"), 2, 1, true), 'E'), "the disk does not fail");
	say_all();
	need_pool(NR - n);
	say_all();
	forget_all();
	say("one read %s", by_read(th("b"), 1, NR, true));
	say_all();
	/* Without a remount, and through files that are known already. */
	device_recovers();
	say_all();
	need_pool(NR);
	say("one read %s", by_read(th("b"), 1, NR, true));
	say_file(th("a"));
	stop();
}

TEST_F(fault, some_sectors_cannot_be_read)
{
	SAME(some_sectors);
}

/* A disk that tries for seconds before it gives up: so does who wants the page. */
static void slow_error(void)
{
	struct dm_line all_fail = { 0, DEV_SIZE / SECTOR, "error" }, line[3] = {};
	const char *failing = dm_make(NAME "-slow", &all_fail, 1);
	volatile char *p;
	char c = 0;
	uint64_t at;

	start();
	hash_read(th("a"), PAGE);
	at = place_of(dn("a"), 20) / SECTOR;
	line[0] = (struct dm_line){ 0, at, "linear" };
	snprintf(line[0].params, 128, "%s 0", spare);
	line[1] = (struct dm_line){ at, PAGE / SECTOR, "delay" };
	snprintf(line[1].params, 128, "%s 0 2500", failing);
	at += PAGE / SECTOR;
	line[2] = (struct dm_line){ at, DEV_SIZE / SECTOR - at, "linear" };
	snprintf(line[2].params, 128, "%s %lu", spare, at);
	forget_all();
	dm_change(NAME, line, 3);
	/* Its extents are known. */
	say("%s", by_read(th("a"), 1, 1, true));
	p = map_file(th("a"), SIZE, PROT_READ, MAP_SHARED);
	madvise((void *)p, SIZE, MADV_RANDOM);
	say("load: %d", FAULTS(c = p[20 * PAGE]));
	say("beside it: %d, %d", FAULTS(c = p[21 * PAGE]), c);
	munmap((void *)p, SIZE);
	stop();
	DO(dm_remove(NAME "-slow"));
}

TEST_F(fault, a_sector_fails_after_seconds)
{
	if (shell("modprobe -q dm-delay"))
		SKIP(return, "no dm-delay");
	SAME(slow_error);
	dm_remove(NAME "-slow");
}

/* Readahead and large folios decide how many good pages are lost around a bad one. */
static void with_readahead(void)
{
	static const unsigned int steps[] = { 1, 4, 16, NR };
	unsigned int i, k, n = ARRAY_SIZE(bad_pages);
	const char *s, *names[] = { "a", "b", "u" };

	start();
	for (i = 0; i < n; i++) {
		add_bad(place_of(dn("a"), bad_pages[i]), PAGE);
		add_bad(place_of(dn("u"), bad_pages[i]), PAGE);
	}
	for (i = 0; i <= ARRAY_SIZE(steps); i++) {
		nr_bad = 2 * n;
		forget_all();
		set_table(false);
		for (k = 0; k < 3; k++) {
			unsigned int j;

			s = i < ARRAY_SIZE(steps) ? by_read(th("%s", names[k]), 1 + k / 2, steps[i], false) :
						    by_load(th("%s", names[k]), 1 + k / 2, false);
			if (wrong_in(s))
				say("wrong: %s", s);
			for (j = 0; j < n; j++)
				if (s[bad_pages[j]] == 'g')
					say("page %u cannot be good: %s", bad_pages[j], s);
			/* From the pool each good page comes, by single reads at least. */
			for (j = 0; dut && have_pool && k < 2 && !i && j < NR; j++)
				if (s[j] != 'g' && !is_bad(j))
					say("page %u of %s is good: %s", j, names[k], s);
		}
	}
	device_recovers();
	say_all();
	say_file(th("a"));
	say_file(th("b"));
	stop();
}

TEST_F(fault, readahead_over_bad_sectors)
{
	SAME(with_readahead);
}

/* What is asked for ahead of a read, and cannot be read any more, shared or not. */
static void ahead_after_shutdown(void)
{
	struct file_clone_range range = { .src_length = SIZE };
	uint32_t how = GOING_LOGFLUSH;
	int i, dir, fd[3];
	char page[PAGE];

	start();
	/* Shared in its first half only. */
	make_file(dn("u"), 2 * SIZE, 2);
	range.src_fd = open(dn("a"), O_RDONLY);
	fd[0] = open(dn("u"), O_RDWR);
	DO(ioctl(fd[0], FICLONERANGE, &range));
	fsync(fd[0]);
	close(fd[0]);
	close(range.src_fd);
	forget_all();
	fd[0] = open(th("a"), O_RDONLY);
	fd[1] = open(th("b"), O_RDONLY);
	fd[2] = open(th("u"), O_RDONLY);
	/* It is known where the unshared half lies. */
	VAL(pread(fd[2], page, PAGE, SIZE));
	drop_caches("1");
	dir = open(dn("."), O_RDONLY);
	DO(ioctl(dir, XFS_IOC_GOINGDOWN, &how));
	close(dir);
	for (i = 0; i < 3; i++) {
		VAL(posix_fadvise(fd[i], 0, 0, POSIX_FADV_WILLNEED));
		DO(readahead(fd[i], SIZE, SIZE));
	}
	usleep(500000);
	for (i = 0; i < 3; i++)
		DO(pread(fd[i], page, PAGE, (NR - 1) * PAGE));
	DO(pread(fd[2], page, PAGE, (2 * NR - 1) * PAGE));
	for (i = 0; i < 3; i++)
		close(fd[i]);
	stop();
}

TEST_F(fault, readahead_after_a_shutdown)
{
	if (btrfs)
		SKIP(return, "of XFS");
	SAME(ahead_after_shutdown);
}

/* Everything fails but what is cached; then all is as if nothing had been. */
static void all_data(void)
{
	start();
	add_data(true);
	hash_read(th("a"), PAGE);
	drop_caches("1");
	hash_read(th("b"), 64 * KiB);
	forget_all();
	set_table(false);
	must(strchr(by_read(dn("u"), 2, 1, true), 'E'), "the disk does not fail");
	say_all();
	need_pool(0);
	say("one read %s", by_read(th("a"), 1, NR, false));
	say("loads %s", by_load(th("b"), 1, false));
	device_recovers();
	say_all();
	need_pool(NR);
	stop();
}

TEST_F(fault, no_data_can_be_read)
{
	SAME(all_data);
}

/* What the pool holds needs no disk: one copy, read while it worked, for both. */
static void from_the_pool(void)
{
	start();
	say_pages(th("a"), 1);
	say_pages(th("b"), 1);
	add_data(true);
	set_table(false);
	say_pages(th("a"), 1);
	say_pages(th("b"), 1);
	say("a %d", FAULTS(free(strdup(by_load(th("a"), 1, false)))));
	device_recovers();
	stop();
}

TEST_F(fault, what_is_cached_needs_no_disk)
{
	SAME(from_the_pool);
}

/* --- a checksum ------------------------------------------------------------- */

/* Turn a block of the disk over; twice makes it right again. */
static void flip(uint64_t at)
{
	char *buf = aligned_alloc(PAGE, PAGE);
	int fd = open(device, O_RDWR | O_DIRECT), i;

	if (pread(fd, buf, PAGE, at) != (ssize_t)PAGE)
		die("the device");
	for (i = 0; i < (int)PAGE; i++)
		buf[i] ^= 0x5a;
	if (pwrite(fd, buf, PAGE, at) != (ssize_t)PAGE)
		die("the device");
	close(fd);
	free(buf);
}

static void checksum(void)
{
	struct file_clone_range r = { .src_length = 32 * PAGE, .src_offset = 8 * PAGE };
	unsigned int i, round;
	char *buf = malloc(PAGE);
	int in, out;
	uint64_t at;

	start();
	in = open(dn("a"), O_RDONLY);
	out = open(dn("part"), O_RDWR | O_CREAT, 0644);
	at = place_of(dn("a"), 20);
	r.src_fd = in;
	ioctl(out, FICLONERANGE, &r);
	fsync(out);
	close(in);
	close(out);
	say("before %lx", hash_read(th("part"), PAGE));
	for (round = 0; round < 2; round++) {
		forget_all();
		flip(at);
		must(by_read(dn("b"), 1, 1, true)[20] == 'E', "the checksum is right");
		drop_caches("1");
		say_all();
		need_pool(NR - 1);
		out = open(th("part"), O_RDONLY);
		posix_fadvise(out, 0, 0, POSIX_FADV_RANDOM);
		for (i = 0; i < 32; i++) {
			ssize_t n = pread(out, buf, PAGE, i * PAGE);

			say("part %u: %s", i, n < 0 ? errname() :
			    mismatch(buf, PAGE, 1, (i + 8) * PAGE) < 0 ? "good" : "wrong");
		}
		close(out);
		forget_all();
		say("one read %s", by_read(th("b"), 1, NR, false));
		flip(at);
		say_all();
		need_pool(NR);
	}
	stop();
}

TEST_F(fault, btrfs_checksum_is_wrong)
{
	if (!btrfs)
		SKIP(return, "XFS has no checksums of data");
	SAME(checksum);
}

/* --- fs-verity: who reads a file gets what was signed, or an error ----------- */

static void make_verity(const char *path)
{
	struct fsverity_enable_arg arg = {
		.version = 1, .hash_algorithm = FS_VERITY_HASH_ALG_SHA256, .block_size = PAGE,
	};
	int fd = open(path, O_RDONLY);

	if (ioctl(fd, FS_IOC_ENABLE_VERITY, &arg))
		die("verity of %s", path);
	close(fd);
}

static void verity(void)
{
	int fd, flags = FS_NOCOW_FL;
	struct stat st;
	uint64_t at;
	long before;

	start();
	/* "v" has no checksums, "w" shares its blocks with one that is not so. */
	fd = open(dn("v"), O_RDWR | O_CREAT, 0644);
	if (ioctl(fd, FS_IOC_SETFLAGS, &flags))
		die("NOCOW");
	close(fd);
	make_file(dn("v"), SIZE, 3);
	make_clone(dn("a"), dn("w"));
	make_clone(dn("a"), dn("x"));
	sync();
	make_verity(dn("v"));
	make_verity(dn("w"));
	at = place_of(dn("v"), 20);
	DO(umount_soon(through));
	DO(umount_soon(below));
	flip(at);
	DO(mount_below());
	DO(mount_through());

	/* The first one who opens it here. */
	DO(stat(th("v"), &st));
	say_pages(th("v"), 3);
	must(by_read(th("v"), 3, 1, true)[20] == 'E', "what was changed is shown");
	/* And it left nothing in the cache that others would take for verified. */
	say_pages(dn("v"), 3);
	DO(open(th("v"), O_RDWR));

	say_all();
	before = dut && have_pool ? pool_here("attachments") : 0;
	say_pages(th("w"), 1);
	if (dut && have_pool)
		must(pool_here("attachments") == before, "a verity file is attached");
	say_pages(th("x"), 1);
	if (dut && have_pool)
		must(pool_here("attachments") > before, "its clone is not attached");
	make_verity(dn("x"));
	say_pages(th("x"), 1);
	if (dut && have_pool)
		must(pool_here("attachments") == before, "it stays attached");
	stop();
}

TEST_F(fault, btrfs_verity)
{
	if (!btrfs || access("/sys/fs/btrfs/features/verity", F_OK))
		SKIP(return, "no files with fs-verity");
	SAME(verity);
}

/* --- writes ----------------------------------------------------------------- */

static bool warm_twin;

static void write_back(void)
{
	int fd[3], ro, dir, late, i;
	char *buf = malloc(4 * PAGE), *p;

	start();
	if (warm_twin)
		hash_read(th("b"), PAGE);
	hash_read(th("a"), PAGE);
	for (i = 0; i < 3; i++)
		fd[i] = open(th("a"), O_RDWR);
	ro = open(th("a"), O_RDONLY);
	dir = open(through, O_RDONLY);
	p = map_file(th("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(p, SIZE);
	fill(buf, 4 * PAGE, 3, 0);
	add_data(false);

	/* In one piece: btrfs tells of each piece by itself, when it comes to it. */
	write_all(fd[0], buf, 4 * PAGE, 8 * PAGE);
	fill(p + 12 * PAGE, PAGE, 4, 0);
	set_table(false);
	if (btrfs) {
		/*
		 * And even so now and then twice, also without a mount over it,
		 * to who does not wait: all has failed before the first asks.
		 */
		late = open(th("a"), O_RDWR);
		sync_file_range(late, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
				SYNC_FILE_RANGE_WAIT_AFTER);
		close(late);
	}
	must(DO(fsync(fd[0])) == -1, "the disk does not fail");
	DO(fsync(fd[0]));
	DO(fdatasync(fd[1]));
	DO(fdatasync(fd[1]));
	DO(fsync(ro));
	DO(fsync(ro));
	late = open(th("a"), O_RDWR);
	DO(fsync(late));
	DO(syncfs(dir));
	DO(syncfs(dir));
	/* Seen by nobody else yet: fd[2] was open before. */
	DO(msync(p, SIZE, MS_SYNC));
	DO(fsync(fd[2]));
	DO(fsync(fd[2]));

	/* What was not written is the file's alone, for as long as it is cached. */
	say_file(th("a"));
	say("b %ld", check_file(th("b"), SIZE, 1));
	say("b below %ld", check_file(dn("b"), SIZE, 1));
	say_file(th("a"));
	say_file(th("b"));
	if (hash_read(th("a"), PAGE) != hash_read(dn("a"), PAGE))
		say("the mount does not show what is below");
	if (hash_map(th("a"), PAGE, MAP_SHARED) != hash_map(dn("a"), PAGE, MAP_SHARED))
		say("a mapping does not show what is below");
	say("mapped %ld %ld", mismatch(p + 8 * PAGE, PAGE, 3, 0), mismatch(p + 12 * PAGE, PAGE, 4, 0));

	/* A synchronous write tells at once. */
	i = open(th("b"), O_RDWR | O_SYNC);
	DO(pwrite(i, buf, PAGE, 50 * PAGE));
	close(i);
	i = open(th("b"), O_RDWR | O_DIRECT);
	DO(pwrite(i, p - (uintptr_t)p % PAGE, PAGE, 52 * PAGE));
	close(i);
	say_file(th("a"));
	say("b as below: %d", hash_read(th("b"), PAGE) == hash_read(dn("b"), PAGE));

	device_recovers();
	munmap(p, SIZE);
	for (i = 0; i < 3; i++)
		close(fd[i]);
	close(ro);
	close(late);
	drop_caches("3");
	if (hash_read(th("a"), PAGE) != hash_read(dn("a"), PAGE) ||
	    hash_read(th("b"), PAGE) != hash_read(dn("b"), PAGE))
		say("after it recovered the mount does not show what is below");
	say_file(th("a"));
	say_file(th("b"));
	/* All can be written again. */
	fd[0] = open(th("a"), O_RDWR);
	fd[1] = open(th("b"), O_RDWR);
	p = malloc(SIZE);
	fill(p, SIZE, 1, 0);
	write_all(fd[0], p, SIZE, 0);
	write_all(fd[1], p, SIZE, 0);
	DO(fsync(fd[0]));
	DO(fsync(fd[1]));
	DO(syncfs(dir));
	close(fd[0]);
	close(fd[1]);
	close(dir);
	say_pages(th("a"), 1);
	stop();
}

TEST_F(fault, write_back_error_is_told_once)
{
	warm_twin = false;
	SAME(write_back);
}

/* By one call or the other, of the two that wait for write-back. */
static void told_by_either(void)
{
	const unsigned int all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
				 SYNC_FILE_RANGE_WAIT_AFTER;
	int fd, i;
	char *buf = malloc(PAGE);

	start();
	hash_read(th("a"), PAGE);
	fd = open(th("a"), O_RDWR);
	add_data(false);
	set_table(false);
	for (i = 0; i < 2; i++) {
		fill(buf, PAGE, 3 + i, 0);
		write_all(fd, buf, PAGE, (8 + i) * PAGE);
		if (i)
			DO(sync_file_range(fd, 0, 0, all));
		must(DO(fsync(fd)) == -1 || i, "the disk does not fail");
		DO(sync_file_range(fd, 0, 0, all));
		DO(fsync(fd));
	}
	close(fd);
	fd = open(th("a"), O_RDWR | O_SYNC);
	DO(pwrite(fd, buf, PAGE, 20 * PAGE));
	DO(sync_file_range(fd, 0, 0, all));
	DO(fsync(fd));
	close(fd);
	free(buf);
	device_recovers();
	DO(umount_soon(through));
	DO(umount_soon(below));
	DO(dm_remove(NAME));
}

TEST_F(fault, write_back_error_is_told_by_one_call)
{
	if (btrfs)
		SKIP(return, "btrfs itself now and then tells of it twice");
	SAME(told_by_either);
}

TEST_F(fault, write_back_error_with_the_twin_in_the_pool)
{
	warm_twin = true;
	SAME(write_back);
}

/* syncfs alone, which has an error of its own for each descriptor. */
static void by_syncfs(void)
{
	int dir[2], fd, file;
	char *buf = malloc(PAGE);

	start();
	dir[0] = open(through, O_RDONLY);
	dir[1] = open(th("u"), O_RDONLY);
	file = open(th("b"), O_RDONLY);
	add_data(false);
	fd = open(th("a"), O_RDWR);
	fill(buf, PAGE, 3, 0);
	write_all(fd, buf, PAGE, 0);
	set_table(false);
	must(DO(syncfs(dir[0])) == -1, "the disk does not fail");
	DO(syncfs(dir[0]));
	DO(syncfs(dir[1]));
	DO(syncfs(dir[1]));
	DO(fsync(fd));
	DO(fsync(fd));
	/* Not of this file. */
	DO(fsync(file));
	DO(close(fd));
	fd = open(th("a"), O_RDWR);
	DO(fsync(fd));
	DO(syncfs(fd));
	close(fd);
	close(dir[0]);
	close(dir[1]);
	close(file);
	device_recovers();
	DO(umount_soon(through));
	DO(umount_soon(below));
	DO(mount_below());
	DO(mount_through());
	say_file(th("a"));
	say_file(th("b"));
	stop();
}

TEST_F(fault, write_back_error_is_told_by_syncfs)
{
	SAME(by_syncfs);
}

/* --- read-only -------------------------------------------------------------- */

static int remount(int flags)
{
	return mount(NULL, below, NULL, MS_REMOUNT | flags, NULL);
}

static void changes(void)
{
	char x[PAGE];
	int fd;

	memset(x, 0, sizeof(x));
	fd = DO(open(th("a"), O_RDWR)) < 0 ? -1 : open(th("a"), O_RDWR);
	if (fd >= 0) {
		DO(pwrite(fd, x, 1, SIZE + 7));
		DO(ftruncate(fd, SIZE));
		DO(fsync(fd));
		close(fd);
	}
	DO(open(th("new"), O_RDWR | O_CREAT, 0644));
	DO(mkdir(th("new.dir"), 0755));
	DO(rename(th("u"), th("v")));
	rename(th("v"), th("u"));
	DO(chmod(th("a"), 0600));
	DO(setxattr(th("a"), "user.x", "y", 1, 0));
	DO(truncate(th("b"), SIZE));
	DO(link(th("a"), th("l")));
	/* On names that exist: which error is the first differs where none does. */
	DO(unlink(th("old")));
	DO(rmdir(th("old.dir")));
}

static void read_only(void)
{
	char *p;
	int fd;

	start();
	make_file(dn("old"), PAGE, 1);
	mkdir(dn("old.dir"), 0755);
	fd = open(th("a"), O_RDWR);
	p = map_file(th("a"), SIZE, PROT_READ, MAP_SHARED);
	DO(remount(MS_RDONLY));		/* somebody writes */
	close(fd);
	DO(remount(MS_RDONLY));
	changes();
	say_all();
	say("mapped %ld", mismatch(p, SIZE, 1, 0));
	forget_all();
	say_all();
	DO(remount(0));
	changes();
	say_all();
	munmap(p, SIZE);
	DO(remount(MS_RDONLY));
	stop();
}

TEST_F(fault, lower_is_remounted_read_only)
{
	SAME(read_only);
}

static const char *refused(long ret)
{
	return ret == -1 && (errno == EIO || errno == EROFS) ? "yes" : ret == -1 ? errname() : "no";
}

/* Where the filesystem cannot write its metadata: btrfs turns read-only, XFS shuts down. */
static void forced(void)
{
	char *buf = malloc(PAGE), *volatile p;
	int fd, other, dir, i, sig;

	start();
	other = open(th("b"), O_RDONLY);
	dir = open(through, O_RDONLY);
	fd = open(th("a"), O_RDWR);
	p = map_file(th("b"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	say("loads %s", by_load(th("a"), 1, true));
	touch(p, SIZE);
	fill(buf, PAGE, 3, 0);
	whole_device_fails(true);
	write_all(fd, buf, PAGE, 9 * PAGE);
	mkdir(th("dir"), 0755);
	i = fsync(fd);
	i |= fsync(dir);
	i |= syncfs(dir);
	must(i, "the disk does not fail");
	/*
	 * By now nothing more can be changed.  Which error is first, and what
	 * comes from a cache, depends on what each side has cached: what comes
	 * must be right.
	 */
	say("create: %s", refused(open(th("new"), O_RDWR | O_CREAT, 0644)));
	say("mkdir: %s", refused(mkdir(th("dir2"), 0755)));
	say("rename: %s", refused(rename(th("u"), th("v"))));
	say("unlink: %s", refused(unlink(th("b"))));
	say("clone: %s", refused(ioctl(fd, FICLONE, other)));
	say("fsync: %s", refused(fsync(fd)));
	sig = FAULTS(p[40 * PAGE] = p[40 * PAGE]);
	must(!sig || sig == SIGBUS, "a signal of its own");
	say("wrong: %d", wrong_in(by_read(th("b"), 1, 1, true)));
	say("wrong: %d", wrong_in(by_load(th("b"), 1, true)));
	say("wrong: %d", wrong_in(by_read(th("u"), 2, 1, true)));
	munmap(p, SIZE);
	close(fd);
	close(other);
	close(dir);
	device_recovers();
	stop();
}

TEST_F(fault, lower_forces_itself_read_only)
{
	SAME(forced);
}

/* --- under load ------------------------------------------------------------- */

static struct load {
	int stop;
	unsigned long done[6];
	unsigned long errors[6];
	unsigned long wrong;
	int odd_errno;
	int odd_line;
} *load;

/* A call under load may work, or fail with one of the errors of a dead disk. */
#define MAY_FAIL(nr, call) ({						\
	long __ret = (long)(call);					\
									\
	if (__ret >= 0) {						\
		load->done[nr]++;					\
	} else {							\
		load->errors[nr]++;					\
		if (errno != EIO && errno != EROFS) {			\
			load->odd_errno = errno;			\
			load->odd_line = __LINE__;			\
		}							\
	}								\
	__ret;								\
})

static void loader(unsigned int nr)
{
	char *buf = aligned_alloc(PAGE, 8 * PAGE), *volatile p = MAP_FAILED, name[32];
	const char *twin = nr & 1 ? "b" : "a";
	volatile uint64_t rng = nr + 1;
	volatile int fd = -1;
	struct file_clone_range r;
	unsigned int page;
	ssize_t n;
	int sig, k;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (nr == 0 || nr == 1) {
		fd = open(th("%s", twin), O_RDONLY);
	} else if (nr == 2) {
		p = map_file(th("a"), SIZE, PROT_READ, MAP_SHARED);
	} else if (nr == 3) {
		fd = open(th("mine"), O_RDWR | O_CREAT, 0644);
	} else if (nr == 5) {
		fd = open(th("clone"), O_RDWR | O_CREAT, 0644);
		p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	}
	while (!__atomic_load_n(&load->stop, __ATOMIC_RELAXED)) {
		rng = mix(rng + 1);
		page = (rng >> 20) % (NR - 8);
		switch (nr) {
		case 0: case 1:
			n = MAY_FAIL(nr, pread(fd, buf, 8 * PAGE, page * PAGE));
			if (n > 0 && mismatch(buf, n, 1, page * PAGE) >= 0)
				load->wrong++;
			if (!(rng % 64))
				write_text("/proc/sys/vm/drop_caches", "3");
			break;
		case 2:
			if (!(rng % 16))
				madvise(p, SIZE, MADV_DONTNEED);
			sig = FAULTS(memcpy(buf, p + page * PAGE, PAGE));
			if (sig == SIGBUS)
				load->errors[nr]++;
			else if (sig || mismatch(buf, PAGE, 1, page * PAGE) >= 0)
				load->wrong++;
			else
				load->done[nr]++;
			break;
		case 3:
			fill(buf, 8 * PAGE, 5, page * PAGE);
			MAY_FAIL(nr, pwrite(fd, buf, 8 * PAGE, page * PAGE));
			if (!(rng % 8))
				MAY_FAIL(nr, fsync(fd));
			break;
		case 4:
			snprintf(name, sizeof(name), "n%u", page % 4);
			k = MAY_FAIL(nr, open(th("%s", name), O_RDWR | O_CREAT, 0644));
			if (k >= 0)
				close(k);
			if (k >= 0 && !MAY_FAIL(nr, rename(th("%s", name), th("other"))))
				MAY_FAIL(nr, unlink(th("other")));
			break;
		case 5:
			r = (struct file_clone_range){ .src_fd = open(th("%s", twin), O_RDONLY) };
			k = r.src_fd < 0 ? -1 : MAY_FAIL(nr, ioctl(fd, FICLONERANGE, &r));
			if (r.src_fd >= 0)
				close(r.src_fd);
			sig = k ? 0 : FAULTS(p[page * PAGE] = 7);
			if (sig == SIGBUS)
				load->errors[nr]++;
			else if (sig)
				load->wrong++;
			break;
		}
	}
	_exit(0);
}

static void fail_under_load(struct __test_metadata *_metadata, int how)
{
	unsigned int i, flags, k;
	int status, fd, tries;
	pid_t pid[6];

	load = mmap(NULL, sizeof(*load), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	dut = true;
	start();
	fd = open(below, O_RDONLY);
	for (i = 0; i < 6; i++) {
		pid[i] = fork();
		if (!pid[i]) {
			close(fd);
			loader(i);
		}
	}
	/* Each one is at work. */
	for (tries = 0; tries < 200; tries++) {
		for (i = 0, k = 0; i < 6; i++)
			k += load->done[i] > 3;
		if (k == 6)
			break;
		usleep(50000);
	}
	EXPECT_EQ(6, k);
	for (i = 0; i < 6; i++)
		EXPECT_EQ(0, load->errors[i]) TH_LOG("worker %u failed before the disk did", i);
	if (how) {
		flags = how;
		EXPECT_EQ(0, ioctl(fd, XFS_IOC_GOINGDOWN, &flags));
	} else {
		whole_device_fails(false);
	}
	close(fd);
	usleep(1500000);
	/* Who writes, or changes names, learns of it when something has to be on the disk. */
	for (tries = 0; tries < 600 && !(load->errors[3] + load->errors[4]); tries++)
		usleep(50000);
	load->stop = 1;
	for (i = 0; i < 6; i++) {
		for (tries = 0; tries < 300 && !waitpid(pid[i], &status, WNOHANG); tries++)
			usleep(50000);
		EXPECT_GT(300, tries) TH_LOG("worker %u hangs", i);
		if (tries < 300) {
			EXPECT_EQ(0, status) TH_LOG("worker %u", i);
		} else {
			kill(pid[i], SIGKILL);
		}
	}
	printf("# errors:");
	for (i = 0; i < 6; i++)
		printf(" %lu of %lu", load->errors[i], load->errors[i] + load->done[i]);
	printf("\n");
	EXPECT_EQ(0, load->wrong);
	EXPECT_EQ(0, load->odd_errno) TH_LOG("%s in line %d", strerror(load->odd_errno), load->odd_line);
	EXPECT_LT(0, load->errors[3] + load->errors[4]);

	EXPECT_EQ(0, umount_soon(through)) TH_LOG("%s", strerror(errno));
	EXPECT_EQ(0, umount_soon(below)) TH_LOG("%s", strerror(errno));
	device_recovers();
	ASSERT_EQ(0, mount_below());
	ASSERT_EQ(0, mount_through());
	EXPECT_EQ(-1, check_file(th("a"), SIZE, 1));
	EXPECT_EQ(-1, check_file(th("b"), SIZE, 1));
	EXPECT_EQ(-1, check_file(th("u"), SIZE, 2));
	EXPECT_EQ(0, umount_soon(through));
	EXPECT_EQ(0, umount_soon(below));
}

TEST_F(fault, disk_dies_under_load)
{
	fail_under_load(_metadata, 0);
}

TEST_F(fault, xfs_shuts_down_under_load)
{
	if (btrfs)
		SKIP(return, "btrfs has no such ioctl");
	fail_under_load(_metadata, GOING_LOGFLUSH);
}

TEST_F(fault, xfs_shuts_down_at_once_under_load)
{
	if (btrfs)
		SKIP(return, "btrfs has no such ioctl");
	fail_under_load(_metadata, GOING_NOLOGFLUSH);
}

TEST_HARNESS_MAIN
