// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 400
 *
 * Memory that is short, or wanted back at a bad moment: a cgroup with a limit
 * far below what is read, 512 clones that are attached to the same pages, a hot
 * set among cold pages, and eviction while pages are mapped and truncated.
 *
 * SECONDS sets the length of the races, SEED repeats their choices.
 */
#include "common.h"

#define OWN_DOMAIN	"memory"
#include "own_pool.h"

static uint64_t rng;

static uint64_t rnd(uint64_t n)
{
	rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
	return (rng >> 33) % n;
}

/* --- a cgroup with a limit --------------------------------------------------- */

#define CGROUPS		"/sys/fs/cgroup"
#define FILES		4
#define FILE_SIZE	(8 * MiB)
#define MAX		"10485760"
#define WRITTEN		(2 * MiB)

static const char *group(const char *file)
{
	return path_of(CGROUPS "/dedupfs-%s/%s", dut ? "mount" : "lower", file);
}

static long group_field(const char *file, const char *field)
{
	char text[8192], key[64], *p;

	if (read_text(group(file), text, sizeof(text)) < 0)
		die("%s", group(file));
	if (!field)
		return strtol(text, NULL, 10);
	snprintf(key, sizeof(key), "%s ", field);
	for (p = text; p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
		if (!strncmp(p, key, strlen(key)))
			return strtol(p + strlen(key), NULL, 10);
	die("no %s in %s", field, group(file));
}

/* One word of each page, another in each. */
static long wrong_words(const char *map, size_t size, uint64_t seed)
{
	size_t off, word;

	for (off = 0; off < size; off += PAGE) {
		word = (off + mix(off) % PAGE) / 8;
		if (((uint64_t *)map)[word] != pattern_word(seed, word))
			return off;
	}
	return -1;
}

static const char *file(int nr, int clone)
{
	return dut ? up("%c%d", "ab"[clone], nr) : low("%c%d", "ab"[clone], nr);
}

struct usage {
	long current, file, anon;
};

/* In the cgroup.  Everything is larger than it may hold. */
static void live_with_limit(struct usage *usage)
{
	char *buf = malloc(WRITTEN), *p;
	int i, k, fd;

	if (write_text(group("cgroup.procs"), "0"))
		_exit(1);
	for (i = 0; i < FILES; i++) {
		for (k = 0; k < 2; k++) {
			if (hash_read(file(i, k), 64 * KiB) !=
			    hash_read(file(i, !k), 64 * KiB))
				_exit(2);
		}
		if (i % 2 ? check_file(file(i, 1), FILE_SIZE, i + 1) >= 0 : 0)
			_exit(3);
		for (k = 0; k < 2; k++) {
			p = map_file(file(i, k), FILE_SIZE, PROT_READ,
				     k ? MAP_SHARED : MAP_PRIVATE);
			if (p == MAP_FAILED || wrong_words(p, FILE_SIZE, i + 1) >= 0)
				_exit(4);
			usage->current = group_field("memory.current", NULL);
			usage->file = group_field("memory.stat", "file");
			usage->anon = group_field("memory.stat", "anon");
			munmap(p, FILE_SIZE);
		}
	}
	/* What is written is the writer's own, and is written back in time. */
	for (i = 0; i < FILES; i++) {
		fill(buf, WRITTEN, 100 + i, WRITTEN);
		fd = open(file(i, 1), O_RDWR);
		for (k = 0; k < 2; k++)
			write_all(fd, buf + k * WRITTEN / 2, WRITTEN / 2,
				  WRITTEN + k * WRITTEN / 2);
		p = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (p == MAP_FAILED)
			_exit(5);
		fill(p + 4 * MiB, WRITTEN, 100 + i, 4 * MiB);
		if (i % 2 && msync(p, FILE_SIZE, MS_SYNC))
			_exit(6);
		if (mismatch(p + WRITTEN, WRITTEN, 100 + i, WRITTEN) >= 0)
			_exit(7);
		munmap(p, FILE_SIZE);
		close(fd);
	}
	_exit(0);
}

static long wrong_after_writes(const char *path, int nr)
{
	char *buf = malloc(FILE_SIZE);
	int fd = open(path, O_RDONLY);
	long bad = 0;

	if (pread(fd, buf, FILE_SIZE, 0) == FILE_SIZE) {
		bad = mismatch(buf, WRITTEN, nr + 1, 0);
		if (bad == -1)
			bad = mismatch(buf + WRITTEN, WRITTEN, 100 + nr, WRITTEN);
		if (bad == -1)
			bad = mismatch(buf + 4 * MiB, WRITTEN, 100 + nr, 4 * MiB);
		if (bad == -1)
			bad = mismatch(buf + 6 * MiB, WRITTEN, nr + 1, 6 * MiB);
	}
	close(fd);
	free(buf);
	return bad;
}

TEST(a_cgroup_with_a_limit)
{
	long killed[2], pages, grown = 0, max;
	struct usage *usage;
	int i, status[2];
	pid_t pid;

	if (access(CGROUPS "/cgroup.controllers", F_OK) ||
	    write_text(CGROUPS "/cgroup.subtree_control", "+memory"))
		SKIP(return, "no memory controller of cgroup v2");
	usage = mmap(NULL, 2 * sizeof(*usage), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (dut = false;; dut = true) {
		for (i = 0; i < FILES; i++) {
			make_file(low("a%d", i), FILE_SIZE, i + 1);
			make_clone(low("a%d", i), low("b%d", i));
		}
		drop_caches("3");
		rmdir(group(""));
		ASSERT_EQ(0, mkdir(group(""), 0755));
		ASSERT_EQ(0, write_text(group("memory.max"), MAX));
		pages = pool("pages");
		pid = fork();
		if (!pid)
			live_with_limit(&usage[dut]);
		ASSERT_EQ(pid, waitpid(pid, &status[dut], 0));
		killed[dut] = group_field("memory.events", "oom_kill");
		max = group_field("memory.events", "max");
		grown = pool("pages") - pages;
		TH_LOG("%s: status %x, %ld killed, limit met %ld times; memory.current %ld KiB, file %ld, anon %ld; the pool grew by %ld KiB",
		       dut ? "mount" : "lower", status[dut], killed[dut], max,
		       usage[dut].current / 1024, usage[dut].file / 1024,
		       usage[dut].anon / 1024, grown * 4);
		/* On the lower filesystem the limit is far below what is read. */
		if (!dut)
			EXPECT_LT(0, max);
		for (i = 0; i < FILES; i++) {
			EXPECT_EQ(-1, check_file(file(i, 0), FILE_SIZE, i + 1));
			if (!status[dut])
				EXPECT_EQ(-1, wrong_after_writes(file(i, 1), i));
		}
		EXPECT_EQ(0, rmdir(group("")));
		if (dut)
			break;
	}
	EXPECT_LE(killed[1], killed[0]);
	EXPECT_EQ(status[0], status[1]);
	if (!have_pool)
		return;
	/* Pool pages are nobody's in particular: what is charged is the rest. */
	EXPECT_LT((long)(2 * MiB / PAGE), grown);
	EXPECT_GE(usage[0].file / 4, usage[1].file);
	for (i = 0; i < FILES; i++) {
		drop_caches("3");
		EXPECT_EQ(-1, wrong_after_writes(low("b%d", i), i));
	}
}

/* --- many small files ---------------------------------------------------------- */

#define SMALL_FILES	8000
#define SMALL_MAX	(6 * MiB)

static void read_small_files(void)
{
	char page[PAGE];
	unsigned int i;
	int fd;

	if (write_text(group("cgroup.procs"), "0"))
		die("%s", group("cgroup.procs"));
	for (i = 0; i < SMALL_FILES; i++) {
		fd = open(dut ? up("small/%u", i) : low("small/%u", i), O_RDONLY);
		if (pread(fd, page, PAGE, 0) != PAGE || mismatch(page, PAGE, 1, i * PAGE) != -1)
			_exit(1);
		close(fd);
	}
	_exit(0);
}

/* What is kept of files that nobody uses any more is as easily given up as below. */
TEST(many_small_files_in_a_cgroup)
{
	struct file_clone_range r = { .src_length = PAGE };
	int fd, status[2];
	long killed[2];
	unsigned int i;
	pid_t pid;

	if (access(CGROUPS "/cgroup.controllers", F_OK) ||
	    write_text(CGROUPS "/cgroup.subtree_control", "+memory"))
		SKIP(return, "no memory controller of cgroup v2");
	if (!btrfs)
		SKIP(return, "XFS frees inodes in its own time, and may be too late itself");
	if (TIME_FACTOR > 1)
		SKIP(return, "too much for a kernel with all checks");
	make_file(low("all"), SMALL_FILES * PAGE, 1);
	ASSERT_EQ(0, mkdir(low("small"), 0755));
	r.src_fd = open(low("all"), O_RDONLY);
	for (i = 0; i < SMALL_FILES; i++) {
		r.src_offset = i * PAGE;
		fd = open(low("small/%u", i), O_WRONLY | O_CREAT, 0644);
		ASSERT_EQ(0, ioctl(fd, FICLONERANGE, &r));
		close(fd);
	}
	close(r.src_fd);
	for (dut = false;; dut = true) {
		drop_caches("3");
		rmdir(group(""));
		ASSERT_EQ(0, mkdir(group(""), 0755));
		ASSERT_EQ(0, write_text(group("memory.max"), path_of("%lu", SMALL_MAX)));
		pid = fork();
		if (!pid)
			read_small_files();
		ASSERT_EQ(pid, waitpid(pid, &status[dut], 0));
		killed[dut] = group_field("memory.events", "oom_kill");
		TH_LOG("%s: status %x, %ld killed, limit met %ld times, %ld pages in the pool",
		       dut ? "mount" : "lower", status[dut], killed[dut],
		       group_field("memory.events", "max"), pool("pages"));
		EXPECT_LT(0, group_field("memory.events", "max"));
		EXPECT_EQ(0, rmdir(group("")));
		if (dut)
			break;
	}
	EXPECT_GE(killed[0], killed[1]);
	if (!killed[0])
		EXPECT_EQ(0, status[0]);
	if (!killed[1])
		EXPECT_EQ(0, status[1]);
	rm_rf(low("small"));
	unlink(low("all"));
}

/* --- the disk's time --------------------------------------------------------- */

/* What was read for the group from the disk that the tests are on. */
static long group_read_bytes(void)
{
	char text[8192], key[32], *p;
	struct stat st;

	if (stat(getenv("DEDUPFS_DEV"), &st) || read_text(group("io.stat"), text, sizeof(text)) < 0)
		die("%s", group("io.stat"));
	snprintf(key, sizeof(key), "%u:%u rbytes=", major(st.st_rdev), minor(st.st_rdev));
	p = strstr(text, key);
	return p ? strtol(p + strlen(key), NULL, 10) : 0;
}

static void read_and_map(void)
{
	if (write_text(group("cgroup.procs"), "0"))
		die("%s", group("cgroup.procs"));
	check_file(dut ? up("a") : low("a"), FILE_SIZE, 1);
	touch(map_file(dut ? up("m") : low("m"), FILE_SIZE, PROT_READ, MAP_SHARED), FILE_SIZE);
}

/* Whoever reads for whom: it is charged to who wants the data. */
TEST(reads_are_charged_to_who_wants_the_data)
{
	int side, status;
	long bytes;
	pid_t pid;

	if (write_text(CGROUPS "/cgroup.subtree_control", "+io"))
		SKIP(return, "no I/O controller of cgroup v2");
	make_file(low("a"), FILE_SIZE, 1);
	make_clone(low("a"), low("b"));
	make_file(low("m"), FILE_SIZE, 2);
	make_clone(low("m"), low("n"));
	for (side = 0; side < 2; side++) {
		dut = side;
		mkdir(group(""), 0755);
		drop_caches("3");
		pid = fork();
		if (!pid) {
			read_and_map();
			_exit(0);
		}
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_EQ(0, status);
		bytes = group_read_bytes();
		EXPECT_LE((long)(2 * FILE_SIZE), bytes) TH_LOG("%s", side ? "mount" : "lower");
		rmdir(group(""));
	}
	dut = false;
	unlink(low("a"));
	unlink(low("b"));
	unlink(low("m"));
	unlink(low("n"));
}

/* --- many who are attached to the same pages ---------------------------------- */

/* (A page is unmapped from one after the other: hours on a debug kernel.) */
#define CLONES	(512 / TIME_FACTOR)
#define NR	64U
#define SIZE	(NR * PAGE)

static char *clone_map[CLONES];

static const char *clone_in(int c)
{
	return path_of("%s/c%d", at, c);
}

static void make_clones(void)
{
	int c, in_fd, out;

	make_file(low("o"), SIZE, 1);
	in_fd = open(low("o"), O_RDONLY);
	for (c = 0; c < CLONES; c++) {
		out = open(low("c%d", c), O_RDWR | O_CREAT, 0644);
		if (out < 0 || ioctl(out, FICLONE, in_fd))
			die("clone %d", c);
		close(out);
	}
	close(in_fd);
	drop_caches("3");
}

/* Who keeps looking at all of them; the parent kills him. */
static void looker(uint64_t seed)
{
	int c, i;

	rng = mix(seed);
	for (;;) {
		c = 1 + rnd(CLONES - 1);
		for (i = 0; i < (int)NR; i++)
			if (((volatile uint64_t *)clone_map[c])[i * PAGE / 8] !=
			    pattern_word(1, i * PAGE / 8))
				_exit(1);
	}
}

static pid_t new_looker(uint64_t seed)
{
	pid_t pid = fork();

	if (!pid)
		looker(seed);
	return pid;
}

/* Each page is unmapped from each of them, for nothing if it is used meanwhile. */
static void shrink_once(struct __test_metadata *_metadata, const char *when, unsigned long limit)
{
	double begun;

	/* What others have left in memory is gone before. */
	sync();
	begun = now();
	if (!limit)
		drop_caches("2");
	else
		ASSERT_EQ(0, set_limit(limit));
	TH_LOG("%s: %s in %.1f s; %ld pages, %ld evictions", when,
	       limit ? "limit set" : "caches dropped", now() - begun, own("pages"),
	       own("evictions"));
	EXPECT_GE(50 * TIME_FACTOR, now() - begun) TH_LOG("is this a livelock?");
	ASSERT_EQ(0, set_limit(0));
}

static void wanted_back(struct __test_metadata *_metadata)
{
	pid_t pid = new_looker(1);
	int i, status;

	shrink_once(_metadata, "looked at", 0);
	shrink_once(_metadata, "looked at", NR / 4);
	EXPECT_EQ(0, waitpid(pid, &status, WNOHANG)) TH_LOG("saw something wrong");
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);

	/* What was used just now gets another round, and a limit three of them. */
	for (i = 0; i < 5 && (!i || own("pages") > NR / 4); i++)
		shrink_once(_metadata, "left alone", NR / 4);
	EXPECT_GE(NR / 4, own("pages"));
	for (i = 0; i < 5 && own("pages"); i++)
		shrink_once(_metadata, "left alone", 0);
	EXPECT_EQ(0, own("pages"));
	EXPECT_LE(NR, own("evictions"));
}

/* Where two fills meet in a file, it is attached in two pieces. */
#define PIECES	8

static void are_attached(struct __test_metadata *_metadata, long expected)
{
	EXPECT_LE(expected, own("attachments"));
	EXPECT_GE(expected + PIECES, own("attachments"));
}

static void one_by_one(struct __test_metadata *_metadata, long extents)
{
	double begun;
	int c;

	for (c = 1; c < CLONES; c++) {
		EXPECT_EQ(-1, wrong_words(clone_map[c], SIZE, 1)) TH_LOG("clone %d", c);
		EXPECT_EQ(0, munmap(clone_map[c], SIZE));
	}
	EXPECT_EQ(-1, check_file(clone_in(CLONES - 1), SIZE, 1));
	begun = now();
	munmap(clone_map[0], SIZE);
	for (c = 0; c < CLONES; c++) {
		EXPECT_EQ(0, unlink(clone_in(c)));
		/* On the way: what is left is right, and no more than that. */
		if (c % 128 == 127 && c < CLONES - 1) {
			EXPECT_EQ(-1, check_file(clone_in(c + 1), SIZE, 1));
			EXPECT_EQ(NR, own("pages"));
			are_attached(_metadata, (CLONES - 1 - c) * extents);
		}
	}
	TH_LOG("unlinked in %.1f s", now() - begun);
	EXPECT_EQ(0, own("attachments"));
	EXPECT_EQ(0, own("pages"));
	EXPECT_EQ(-1, check_file(low("o"), SIZE, 1));
}

TEST_F(own_pool, attachments_to_hot_pages)
{
	int c, fd;
	long extents, before, fills;
	char page[PAGE];
	double begun;

	make_clones();
	extents = fiemap(low("o"), NULL, 0);

	begun = now();
	for (c = 0; c < CLONES; c++) {
		clone_map[c] = map_file(clone_in(c), SIZE, PROT_READ, MAP_SHARED);
		ASSERT_NE(MAP_FAILED, clone_map[c]);
		touch(clone_map[c], SIZE);
	}
	TH_LOG("%d clones mapped in %.1f s", CLONES, now() - begun);
	EXPECT_EQ(NR, own("pages"));
	are_attached(_metadata, CLONES * extents);
	EXPECT_EQ(NR, own("fills"));

	wanted_back(_metadata);

	/* All of them again, filled once. */
	fills = own("fills");
	for (c = 0; c < CLONES; c++)
		touch(clone_map[c], SIZE);
	EXPECT_EQ(NR, own("pages"));
	EXPECT_EQ(NR, own("fills") - fills);
	are_attached(_metadata, CLONES * extents);

	/* One block of one of them is written: the others keep the page. */
	before = own("attachments");
	fd = open(clone_in(0), O_RDWR);
	fill(page, PAGE, 2, 20 * PAGE);
	EXPECT_EQ(PAGE, pwrite(fd, page, PAGE, 20 * PAGE));
	EXPECT_LE(before, own("attachments"));
	EXPECT_GE(before + 1, own("attachments"));
	EXPECT_EQ(0, fsync(fd));
	close(fd);
	EXPECT_EQ(-1, mismatch(clone_map[0] + 20 * PAGE, PAGE, 2, 20 * PAGE));
	EXPECT_EQ(-1, mismatch(clone_map[0], 20 * PAGE, 1, 0));
	/* btrfs takes what nobody shares, too. */
	EXPECT_LE(NR, own("pages"));
	EXPECT_GE(NR + btrfs, own("pages"));

	one_by_one(_metadata, extents);
}

/* --- what is hot stays --------------------------------------------------------- */

#define HOT	1024U
#define COLD	(5 * HOT)
#define ROOM	(2 * HOT)	/* pages that the pool may hold */
#define STEP	128U		/* cold pages between two uses of all hot ones */

static void make_twins(const char *name, unsigned int pages, uint64_t seed)
{
	make_file(low("%s", name), pages * PAGE, seed);
	make_clone(low("%s", name), low("%s.twin", name));
}

FIXTURE(hot_set) {
	char *map;
	int hot, cold;
};

FIXTURE_VARIANT(hot_set) {
	bool mapped;		/* how it is used */
	bool cold_mapped;	/* how the rest is */
};

FIXTURE_VARIANT_ADD(hot_set, read) { };
FIXTURE_VARIANT_ADD(hot_set, mapped) { .mapped = true };
FIXTURE_VARIANT_ADD(hot_set, read_among_mapped) { .cold_mapped = true };
FIXTURE_VARIANT_ADD(hot_set, mapped_among_mapped) { .mapped = true, .cold_mapped = true };

FIXTURE_SETUP(hot_set)
{
	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	ASSERT_EQ(0, mount_own());
	make_twins("hot", HOT, 1);
	make_twins("cold", COLD, 2);
	drop_caches("3");
	self->hot = open(in("hot"), O_RDONLY);
	self->cold = open(in("cold"), O_RDONLY);
	self->map = map_file(in("hot"), HOT * PAGE, PROT_READ, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, self->map);
}

FIXTURE_TEARDOWN(hot_set)
{
	if (have_pool)
		umount_own();
}

/* What is filled ahead is filled. */
static long settled_fills(void)
{
	long fills;

	do {
		fills = own("fills");
		usleep(10000);
	} while (own("fills") != fills);
	return fills;
}

/*
 * Much that is used once passes through a pool that has room for twice the
 * pages that are used all the time: those stay.  What it costs to lose a page
 * is a fill.
 */
TEST_F(hot_set, stays)
{
	char *buf = malloc(HOT * PAGE), *cold;
	unsigned int i, uses = 0;
	long hot_fills = 0, fills;

	cold = mmap(NULL, COLD * PAGE, PROT_READ, MAP_SHARED, self->cold, 0);
	ASSERT_NE(MAP_FAILED, cold);
	ASSERT_EQ(0, set_limit(ROOM));
	for (i = 0; i < COLD; i += STEP) {
		fills = settled_fills();
		if (variant->mapped)
			memcpy(buf, self->map, HOT * PAGE);
		else
			EXPECT_EQ(HOT * PAGE, pread(self->hot, buf, HOT * PAGE, 0));
		hot_fills += settled_fills() - fills;
		uses++;
		EXPECT_EQ(-1, wrong_words(buf, HOT * PAGE, 1));

		if (variant->cold_mapped)
			memcpy(buf, cold + i * PAGE, STEP * PAGE);
		else
			EXPECT_EQ(STEP * PAGE, pread(self->cold, buf, STEP * PAGE, i * PAGE));
		EXPECT_EQ(-1, mismatch(buf, STEP * PAGE, 2, i * PAGE));
		settled_fills();
		/* One more window may be on its way. */
		EXPECT_GE(ROOM + 256, own("pages"));
	}
	fills = own("fills") - hot_fills;
	TH_LOG("%u hot pages, used %u times: filled %ld times; %u cold ones: %ld times; %ld evictions",
	       HOT, uses, hot_fills, COLD, fills, own("evictions"));
	/* The pool cannot have held it all (but for one more window). */
	EXPECT_LE(COLD + HOT - ROOM - 256, own("evictions"));
	/*
	 * Each cold page is filled once, and each hot one may be lost a few
	 * times.  (Where the disk is slow, what is filled ahead of the cold
	 * ones is counted with the hot ones.)
	 */
	EXPECT_GE(COLD + 4 * HOT, own("fills"));
	munmap(cold, COLD * PAGE);
	free(buf);
}

/* --- no two free pages side by side ------------------------------------------- */

#define SCATTERED	(32 * MiB)
#define LARGE_ORDER	4
#define MIN_FREE	"/proc/sys/vm/min_free_kbytes"
#define COMPACT_LOCKED	"/proc/sys/vm/compact_unevictable_allowed"
#define COMPACT_AHEAD	"/proc/sys/vm/compaction_proactiveness"
#define NOT_SCATTERED	77

/* Free pages in blocks of LARGE_ORDER and above, but for those kept for old devices. */
static unsigned long free_large_pages(void)
{
	FILE *f = fopen("/proc/buddyinfo", "r");
	unsigned long n, sum = 0;
	char line[512], zone[32];
	int order, at, len;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Node %*d, zone %31s%n", zone, &at) != 1 || !strcmp(zone, "DMA"))
			continue;
		for (order = 0; sscanf(line + at, "%lu%n", &n, &len) == 1; order++, at += len)
			if (order >= LARGE_ORDER)
				sum += n << order;
	}
	if (f)
		fclose(f);
	return sum;
}

/*
 * Take memory until none of it lies together, and give every second page
 * back; nobody may move the others.  What others give back meanwhile may lie
 * together: then once more.  Return: pages given back.
 */
static unsigned long scatter_memory(void)
{
	size_t max = meminfo("MemTotal"), at = 0, i;
	char *p = mmap(NULL, max, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	double begun = now();

	if (p == MAP_FAILED || madvise(p, max, MADV_NOHUGEPAGE) || mlock2(p, max, MLOCK_ONFAULT))
		die("memory");
	do {
		for (i = 0; i < at; i += 2 * PAGE)
			p[i] = 1;
		while (free_large_pages() > SCATTERED / PAGE * 3 / 8 && at + MiB <= max &&
		       meminfo("MemFree") > 24 * (long)MiB) {
			memset(p + at, 1, MiB);
			at += MiB;
		}
		for (i = 0; i < at; i += 2 * PAGE)
			if (madvise(p + i, PAGE, MADV_DONTNEED_LOCKED))
				die("madvise");
	} while (free_large_pages() > SCATTERED / PAGE / 2 && now() < begun + 40 * TIME_FACTOR);
	return at / PAGE / 2;
}

TEST_F_TIMEOUT(own_pool, of_scattered_memory, 250 * TIME_FACTOR)
{
	unsigned long given, large;
	char *map, reserve[32], ahead[32];
	int status;
	pid_t pid;

	make_file(low("a"), SCATTERED, 1);
	make_clone(low("a"), low("b"));
	drop_caches("3");
	/* What is kept for emergencies lies together, too. */
	ASSERT_LT(0, read_text(MIN_FREE, reserve, sizeof(reserve)));
	ASSERT_LT(0, read_text(COMPACT_AHEAD, ahead, sizeof(ahead)));
	ASSERT_EQ(0, write_text(MIN_FREE, "2048"));
	/* Nobody puts the pieces together. */
	ASSERT_EQ(0, write_text(COMPACT_AHEAD, "0"));
	ASSERT_EQ(0, write_text(COMPACT_LOCKED, "0"));
	write_text("/proc/self/oom_score_adj", "-1000");
	pid = fork();
	if (!pid) {
		write_text("/proc/self/oom_score_adj", "0");
		given = scatter_memory();
		large = free_large_pages();
		TH_LOG("%lu pages alone, %lu in larger blocks", given, large);
		EXPECT_LT(2 * SCATTERED / PAGE, given);
		EXPECT_EQ(-1, check_file(in("a"), SCATTERED, 1));
		map = map_file(in("b"), SCATTERED, PROT_READ, MAP_SHARED);
		EXPECT_EQ(-1, mismatch(map, SCATTERED, 1, 0));
		/* None was given up to make larger blocks. */
		EXPECT_EQ(SCATTERED / PAGE, own("fills"));
		EXPECT_EQ(SCATTERED / PAGE, own("pages"));
		EXPECT_EQ((long)SCATTERED, own("saved_bytes"));
		_exit(_metadata->exit_code ?: large >= SCATTERED / PAGE ? NOT_SCATTERED : 0);
	}
	waitpid(pid, &status, 0);
	write_text(MIN_FREE, reserve);
	write_text(COMPACT_AHEAD, ahead);
	write_text(COMPACT_LOCKED, "1");
	write_text("/proc/self/oom_score_adj", "0");
	if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_SCATTERED)
		SKIP(return, "too much memory lies together: this proves nothing");
	EXPECT_EQ(0, status);
}

/* --- eviction, faults and truncation at once ------------------------------------ */

#define RACERS	4		/* files; the first half of them is never changed */
#define RACE_NR	48U
#define RACE_SIZE (RACE_NR * PAGE)

struct racer {
	uint32_t moves;		/* odd: it is being changed */
	uint32_t data;		/* pages: the pattern up to here, */
	uint32_t size;		/* zeroes up to here, nothing beyond */
};

struct race {
	struct racer file[RACERS];
	uint64_t faults, reads, signals, changes, drops;
	bool stop;
};

static struct race *race;

static const char *racer_name(int i)
{
	return path_of("%s/r%d", at, i);
}

static bool is_zero(const char *p, size_t len)
{
	while (len && !*p)
		p++, len--;
	return !len;
}

/* Word by word: it may change while it is copied. */
static bool is_old_or_zero(const char *p, int i, unsigned int page)
{
	const uint64_t *w = (const uint64_t *)p;
	unsigned int k;

	for (k = 0; k < PAGE / 8; k++)
		if (w[k] && w[k] != pattern_word(i + 1, page * PAGE / 8 + k))
			return false;
	return true;
}

static void wrong_page(const char *how, int i, unsigned int page, const struct racer *was, int sig)
{
	fprintf(stderr, "# %s of file %d, page %u: %s; pattern up to %u, size %u, move %u\n", how,
		i, page, sig ? strsignal(sig) : "wrong bytes", was->data, was->size, was->moves);
	race->stop = true;
	_exit(1);
}

static struct racer look_at(int i)
{
	struct racer was;

	was.moves = __atomic_load_n(&race->file[i].moves, __ATOMIC_SEQ_CST);
	was.data = __atomic_load_n(&race->file[i].data, __ATOMIC_SEQ_CST);
	was.size = __atomic_load_n(&race->file[i].size, __ATOMIC_SEQ_CST);
	return was;
}

/* Is what was got right for what the file was before and, if @steady, after? */
static void check_page(const char *how, int i, unsigned int page, const char *got, int sig,
		       const struct racer *was)
{
	bool steady = !(was->moves & 1) &&
		      __atomic_load_n(&race->file[i].moves, __ATOMIC_SEQ_CST) == was->moves;
	bool ok;

	if (sig)
		ok = sig == SIGBUS && (!steady || page >= was->size);
	else if (!steady)
		ok = is_old_or_zero(got, i, page);
	else if (page < was->data)
		ok = mismatch(got, PAGE, i + 1, page * PAGE) < 0;
	else
		ok = page < was->size && is_zero(got, PAGE);
	if (!ok)
		wrong_page(how, i, page, was, sig);
}

static void faulter(void)
{
	static char got[PAGE];
	static volatile int i, n;
	static volatile unsigned int page;
	static struct racer was;
	char *volatile p;
	int sig;

	while (!race->stop) {
		i = rnd(RACERS);
		p = map_file(racer_name(i), RACE_SIZE, PROT_READ,
			     rnd(2) ? MAP_SHARED : MAP_PRIVATE);
		if (p == MAP_FAILED)
			_exit(2);
		for (n = 20 + rnd(80); n && !race->stop; n--) {
			page = rnd(RACE_NR);
			was = look_at(i);
			sig = FAULTS(memcpy(got, p + page * PAGE, PAGE));
			check_page("load", i, page, got, sig, &was);
			__atomic_add_fetch(sig ? &race->signals : &race->faults, 1,
					   __ATOMIC_RELAXED);
		}
		munmap(p, RACE_SIZE);
	}
	_exit(0);
}

static void reader(void)
{
	char got[8 * PAGE];
	unsigned int page, k;
	struct racer was;
	ssize_t n;
	int i, fd;

	/* A read that meets a missing page of this may be cut short there by a truncation. */
	memset(got, 0, sizeof(got));
	while (!race->stop) {
		i = rnd(RACERS);
		fd = open(racer_name(i), O_RDONLY);
		page = rnd(RACE_NR - 8);
		was = look_at(i);
		n = pread(fd, got, sizeof(got), page * PAGE);
		if (n < 0 || n % PAGE) {
			fprintf(stderr, "# read of file %d, page %u: %zd, %s\n", i, page, n,
				strerror(errno));
			_exit(3);
		}
		for (k = 0; k < n / PAGE; k++)
			check_page("read", i, page + k, got + k * PAGE, 0, &was);
		__atomic_add_fetch(&race->reads, 1, __ATOMIC_RELAXED);
		close(fd);
	}
	_exit(0);
}

static void change(int i, uint32_t data, uint32_t size)
{
	__atomic_store_n(&race->file[i].data, data, __ATOMIC_SEQ_CST);
	__atomic_store_n(&race->file[i].size, size, __ATOMIC_SEQ_CST);
}

/* Down, up again with zeroes, and from time to time a clone of the first once more. */
static void truncator(void)
{
	unsigned int to;
	int i, in_fd, out;

	while (!race->stop) {
		i = RACERS / 2 + rnd(RACERS - RACERS / 2);
		__atomic_add_fetch(&race->file[i].moves, 1, __ATOMIC_SEQ_CST);
		to = rnd(RACE_NR + 1);
		if (rnd(3)) {
			if (truncate(racer_name(i), to * PAGE))
				_exit(4);
			change(i, to < race->file[i].data ? to : race->file[i].data, to);
		} else {
			in_fd = open(path_of("%s/s%d", at, i), O_RDONLY);
			out = open(racer_name(i), O_RDWR);
			if (ioctl(out, FICLONE, in_fd))
				_exit(5);
			close(in_fd);
			close(out);
			change(i, RACE_NR, RACE_NR);
		}
		__atomic_add_fetch(&race->file[i].moves, 1, __ATOMIC_SEQ_CST);
		__atomic_add_fetch(&race->changes, 1, __ATOMIC_RELAXED);
		usleep(rnd(20000));
	}
	_exit(0);
}

static void evictor(void)
{
	while (!race->stop) {
		if (rnd(2)) {
			write_text("/proc/sys/vm/drop_caches", rnd(4) ? "2" : "3");
		} else if (set_limit(rnd(2) ? 16 + rnd(RACE_NR) : 0)) {
			_exit(6);
		}
		__atomic_add_fetch(&race->drops, 1, __ATOMIC_RELAXED);
		usleep(rnd(50000));
	}
	_exit(0);
}

TEST_F(own_pool, eviction_races_with_faults_and_truncation)
{
	static void (*const who[])(void) = {
		evictor, faulter, faulter, faulter, reader, truncator,
	};
	uint64_t seed = number("SEED", time(NULL));
	pid_t pid[ARRAY_SIZE(who)];
	int i, fd, status;
	double end;
	char *p;

	TH_LOG("SEED=%lu", seed);
	race = mmap(NULL, sizeof(*race), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (i = 0; i < RACERS; i++) {
		make_file(low("s%d", i), RACE_SIZE, i + 1);
		make_clone(low("s%d", i), low("r%d", i));
		change(i, RACE_NR, RACE_NR);
	}
	drop_caches("3");
	for (i = 0; i < (int)ARRAY_SIZE(who); i++) {
		pid[i] = fork();
		if (!pid[i]) {
			rng = mix(seed + i);
			who[i]();
		}
	}
	end = now() + number("SECONDS", 10 * TIME_FACTOR);
	while (now() < end && !race->stop)
		usleep(100000);
	race->stop = true;
	end = now() + 20 * TIME_FACTOR;
	for (i = 0; i < (int)ARRAY_SIZE(who); i++) {
		while (!waitpid(pid[i], &status, WNOHANG)) {
			if (now() > end) {
				EXPECT_EQ(0, i + 1) TH_LOG("process %d hangs", i);
				kill(pid[i], SIGKILL);
				waitpid(pid[i], &status, 0);
				break;
			}
			usleep(20000);
		}
		EXPECT_EQ(0, status) TH_LOG("process %d", i);
	}
	TH_LOG("%lu loads, %lu signals, %lu reads, %lu changes, %lu drops; %ld fills, %ld evictions",
	       race->faults, race->signals, race->reads, race->changes, race->drops, own("fills"),
	       own("evictions"));
	/* All of it happened. */
	EXPECT_LT(0, race->signals);
	EXPECT_LT(100, race->faults);
	EXPECT_LT(10, race->changes);
	EXPECT_LT(RACERS * (long)RACE_NR, own("evictions"));
	for (i = 0; i < RACERS; i++)
		EXPECT_EQ(hash_read(low("r%d", i), MiB), hash_map(racer_name(i), MiB, MAP_SHARED));

	/* Busy, by a descriptor and by a mapping; then not any more. */
	fd = open(racer_name(0), O_RDONLY);
	p = mmap(NULL, RACE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	touch(p, RACE_SIZE);
	EXPECT_EQ(-1, umount2(at, 0));
	EXPECT_EQ(EBUSY, errno);
	close(fd);
	EXPECT_EQ(-1, umount2(at, 0));
	EXPECT_EQ(EBUSY, errno);
	EXPECT_EQ(-1, mismatch(p, RACE_SIZE, 1, 0));
	munmap(p, RACE_SIZE);
	for (i = 0; i < 100 && umount2(at, 0); i++)
		usleep(20000);
	EXPECT_GT(100, i);
	/* Nothing of its pool is left. */
	EXPECT_NE(0, access(path_of("%s:%s", getenv("DEDUPFS_POOL"), OWN_DOMAIN), F_OK));
	for (i = 0; i < RACERS; i++)
		EXPECT_EQ(-1, check_file(low("s%d", i), RACE_SIZE, i + 1));
}

TEST_HARNESS_MAIN
