// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 500
 *
 * What a user without privileges can make that is as large or as odd as the
 * filesystem allows: every call ends soon, and with the right bytes.
 */
#include "common.h"
#include <grp.h>
#include <linux/fsverity.h>

#define HUGE	(1ULL << 50)

#define TRACING	"/sys/kernel/tracing"

static bool count_extents(bool yes)
{
	if (!yes)
		write_text(TRACING "/events/kprobes/dedupfs_test/enable", "0");
	if (write_text(TRACING "/kprobe_events",
		       yes ? "p:dedupfs_test fiemap_fill_next_extent" : "-:dedupfs_test"))
		return false;
	return !yes || !write_text(TRACING "/events/kprobes/dedupfs_test/enable", "1");
}

static void on_alarm(int sig)
{
	static const char msg[] = "# this takes too long\n";

	write(2, msg, sizeof(msg) - 1);
	count_extents(false);
	_exit(1);
}

FIXTURE(user) {
	int unused;
};

FIXTURE_SETUP(user)
{
	make_file(low("source"), MiB, 1);
	drop_caches("3");
	signal(SIGALRM, on_alarm);
	alarm(100 * TIME_FACTOR);
}

FIXTURE_TEARDOWN(user)
{
	alarm(0);
	count_extents(false);
}

static int clone_range(int from, uint64_t src, uint64_t len, int to, uint64_t dst)
{
	struct file_clone_range range = {
		.src_fd = from, .src_offset = src, .src_length = len, .dest_offset = dst,
	};

	return ioctl(to, FICLONERANGE, &range);
}

/* A petabyte of hole, one shared page at its end, and the rest mapped for writing. */
TEST_F(user, opens_a_sparse_monster)
{
	int from = open(up("source"), O_RDONLY), fd = open(up("monster"), O_RDWR | O_CREAT, 0644);
	char page[PAGE], *p;
	int i, ro;

	ASSERT_EQ(0, ftruncate(fd, HUGE));
	p = mmap(NULL, MiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_EQ(0UL, touch(p, MiB));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, clone_range(from, i * PAGE, PAGE, fd, HUGE - (i + 1) * PAGE));
		ro = open(up("monster"), O_RDONLY);
		ASSERT_LE(0, ro);
		EXPECT_EQ(PAGE, pread(ro, page, PAGE, HUGE - (i + 1) * PAGE));
		EXPECT_EQ(-1, mismatch(page, PAGE, 1, i * PAGE));
		EXPECT_EQ(PAGE, pread(ro, page, PAGE, HUGE / 2));
		EXPECT_EQ(0UL, touch(page, PAGE));
		close(ro);
		p[i * PAGE] = 0;
	}
	munmap(p, MiB);
	close(fd);
}

/* Every second page of a file shared: as many extents as it has pages. */
#define PIECES	number("PIECES", 5000 / TIME_FACTOR)

TEST_F(user, reads_a_file_in_pieces)
{
	int from = open(up("source"), O_RDONLY), fd = open(up("pieces"), O_RDWR | O_CREAT, 0644);
	char page[PAGE];
	unsigned long i;

	ASSERT_EQ(0, ftruncate(fd, 2 * PIECES * PAGE));
	for (i = 0; i < PIECES; i++)
		ASSERT_EQ(0, clone_range(from, i % 256 * PAGE, PAGE, fd, 2 * i * PAGE));
	close(fd);
	fd = open(up("pieces"), O_RDONLY);
	for (i = 0; i < PIECES; i += 1 + i / 16) {
		ASSERT_EQ(PAGE, pread(fd, page, PAGE, 2 * i * PAGE));
		ASSERT_EQ(-1, mismatch(page, PAGE, 1, i % 256 * PAGE));
		ASSERT_EQ(PAGE, pread(fd, page, PAGE, (2 * i + 1) * PAGE));
		ASSERT_EQ(0UL, touch(page, PAGE));
	}
	EXPECT_EQ(hash_read(low("pieces"), MiB), hash_read(up("pieces"), MiB));
	EXPECT_EQ(0, unlink(up("pieces")));
	close(fd);
}

/* Calls of fiemap_fill_next_extent() since it is counted: one for each extent looked at. */
static long extents_looked_at(void)
{
	char text[512] = "";
	long hits = -1;

	read_text(TRACING "/kprobe_profile", text, sizeof(text));
	sscanf(text, " dedupfs_test %ld", &hits);
	return hits;
}

/* Nothing of it is shared: whoever opens it learns so, or gives up, soon. */
TEST_F(user, opens_a_file_in_pieces)
{
	int fd = open(low("unshared"), O_RDWR | O_CREAT, 0644);
	char page[PAGE];
	unsigned long i;
	long before;

	if (btrfs)
		SKIP(return, "there an open looks at nothing");
	fill(page, PAGE, 1, 0);
	for (i = 0; i < PIECES; i++)
		write_all(fd, page, PAGE, 2 * i * PAGE);
	close(fd);
	sync();
	if (access(TRACING "/kprobe_events", W_OK) &&
	    mount("tracefs", TRACING, "tracefs", 0, NULL))
		SKIP(return, "no tracefs");
	count_extents(false);
	if (!count_extents(true))
		SKIP(return, "no kprobes");
	before = extents_looked_at();
	EXPECT_LE(0, before);
	/* (That it counts.) */
	EXPECT_LT(0, fiemap(low("unshared"), NULL, 0));
	EXPECT_LE(PIECES / 2, (unsigned long)(extents_looked_at() - before));
	before = extents_looked_at();
	fd = open(up("unshared"), O_RDONLY);
	ASSERT_LE(0, fd);
	TH_LOG("%ld extents looked at", extents_looked_at() - before);
	/* (Eight times as many as are taken at a time, and one more each time.) */
	EXPECT_GE(600, extents_looked_at() - before);
	EXPECT_EQ(PAGE, pread(fd, page, PAGE, 2 * PAGE));
	EXPECT_EQ(-1, mismatch(page, PAGE, 1, 0));
	close(fd);
	unlink(low("unshared"));
}

/* How often is that of some mapped pages mapped which is mapped most often? */
static uint64_t most_mapped(const char *map, size_t pages)
{
	int fd = open("/proc/kpagecount", O_RDONLY);
	uint64_t count, most = 0;
	size_t i;

	for (i = 0; i < pages; i++) {
		if (pread(fd, &count, 8, frame_of(map + i * PAGE) * 8) != 8)
			die("kpagecount");
		if (count > most)
			most = count;
	}
	close(fd);
	return most;
}

/*
 * One block, again and again in one file: references to its page, which must
 * not overflow, cost next to nothing there.
 */
TEST(one_block_again_and_again)
{
	enum { TIMES = 4096, MAPS = 8 };
	int fd, i, k;
	char *map[MAPS], *buf = malloc(TIMES * PAGE), page[PAGE];
	long attachments = 0;
	uint64_t most;
	size_t at;

	make_file(low("many"), PAGE, 1);
	fd = open(low("many"), O_RDWR);
	for (i = 1; i < TIMES; i *= 2)
		ASSERT_EQ(0, clone_range(fd, 0, i * PAGE, fd, i * PAGE));
	close(fd);
	/* Longer and longer ends of 16 blocks, four times each: the last one is in all of them. */
	make_file(low("ends"), 16 * PAGE, 2);
	fd = open(low("ends"), O_RDWR);
	for (i = 0, at = 16; i < 64; at += i++ / 4 + 1)
		ASSERT_EQ(0, clone_range(fd, (15 - i / 4) * PAGE, (i / 4 + 1) * PAGE, fd, at * PAGE));
	close(fd);
	drop_caches("3");
	if (have_pool)
		attachments = pool("attachments");
	fd = open(up("many"), O_RDONLY);
	ASSERT_EQ(TIMES * PAGE, pread(fd, buf, TIMES * PAGE, 0));
	for (k = 0; k < MAPS; k++) {
		map[k] = map_file(up("many"), TIMES * PAGE, PROT_READ, MAP_SHARED);
		touch(map[k], TIMES * PAGE);
	}
	for (i = 0; i < TIMES; i++) {
		ASSERT_EQ(-1, mismatch(buf + i * PAGE, PAGE, 1, 0));
		ASSERT_EQ(-1, mismatch(map[i % MAPS] + i * PAGE, PAGE, 1, 0));
	}
	most = most_mapped(map[0], TIMES);
	TH_LOG("a page is mapped %lu times at most by %d mappings", most, MAPS);
	EXPECT_LE((uint64_t)MAPS, most);
	EXPECT_GE(4ULL * MAPS, most);
	if (have_pool) {
		/* (Those that others left may go meanwhile.) */
		EXPECT_GE(attachments + 4, pool("attachments"));
		EXPECT_LT(0, pool("not_shared/repeated"));
	}
	for (k = 0; k < MAPS; k++)
		munmap(map[k], TIMES * PAGE);
	close(fd);

	map[0] = map_file(up("ends"), at * PAGE, PROT_READ, MAP_SHARED);
	EXPECT_EQ(hash_read(low("ends"), MiB), hash_read(up("ends"), MiB));
	EXPECT_EQ(hash_read(low("ends"), MiB), hash_map(up("ends"), MiB, MAP_SHARED));
	touch(map[0], at * PAGE);
	most = most_mapped(map[0], at);
	TH_LOG("%zu pages: one is mapped %lu times at most", at, most);
	EXPECT_GE(4ULL, most);
	munmap(map[0], at * PAGE);

	/* Without a page in the pool, each is filled along with those that are beside it. */
	fd = open(low("ends"), O_RDONLY);
	ASSERT_EQ((ssize_t)(at * PAGE), pread(fd, buf, at * PAGE, 0));
	close(fd);
	fd = open(up("ends"), O_RDONLY);
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	for (k = 0; k < 4; k++) {
		for (i = 0; i < 20 && have_pool && pool("pages"); i++)
			drop_caches("2");
		for (i = k * at / 4; i < (int)(k + 1) * (int)at / 4; i++) {
			ASSERT_EQ(PAGE, pread(fd, page, PAGE, ((i * 101) % at) * PAGE));
			ASSERT_EQ(0, memcmp(page, buf + ((i * 101) % at) * PAGE, PAGE));
		}
	}
	close(fd);
	unlink(low("many"));
	unlink(low("ends"));
}

/* Positions and lengths at the end of what can be said. */
static void at_the_end(void)
{
	static const loff_t at[] = {
		-1, LLONG_MIN, LLONG_MAX, LLONG_MAX - 1, LLONG_MAX - PAGE, LLONG_MAX & -PAGE,
		1LL << 62, (1LL << 44) - 1, (1LL << 52) + 1,
	};
	char page[PAGE];
	unsigned int i;
	int fd, from;

	make_pooled("a", 5 * PAGE + 7, 1);
	fd = open("a", O_RDWR);
	from = open("a.twin", O_RDONLY);
	for (i = 0; i < ARRAY_SIZE(at); i++) {
		say("%llx", (long long)at[i]);
		VAL(pread(fd, page, PAGE, at[i]));
		VAL(lseek(fd, at[i], SEEK_SET));
		VAL(lseek(fd, at[i], SEEK_DATA));
		VAL(lseek(fd, at[i], SEEK_HOLE));
		if (at[i] < 0 || at[i] > LLONG_MAX - 2 * (loff_t)PAGE)
			VAL(pwrite(fd, page, PAGE, at[i]));
		VAL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at[i], PAGE));
		VAL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, at[i]));
		VAL(posix_fadvise(fd, at[i], PAGE, POSIX_FADV_WILLNEED));
		VAL(posix_fadvise(fd, 0, at[i], POSIX_FADV_WILLNEED));
		VAL(readahead(fd, at[i], PAGE));
		VAL(sync_file_range(fd, at[i], PAGE, SYNC_FILE_RANGE_WRITE));
		VAL(clone_range(from, at[i], PAGE, fd, 0));
		VAL(clone_range(from, 0, at[i], fd, 0));
		VAL(clone_range(from, 0, PAGE, fd, at[i]));
		VAL(copy_file_range(from, &(loff_t) { at[i] }, fd, &(loff_t) { 0 }, PAGE, 0));
		VAL((long)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, at[i] & -PAGE) == -1);
		say_file("a.twin");
	}
	VAL(ftruncate(fd, 5 * PAGE));
	say_file("a");
}

TEST(offsets_at_the_end)
{
	SAME(at_the_end);
}

/* --- noise ------------------------------------------------------------------ */

static const unsigned int commands[] = {
	FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR,
	FS_IOC_GETVERSION, FS_IOC_SETVERSION, FS_IOC_FIEMAP, FIBMAP, FIGETBSZ, FIONREAD, FIOQSIZE,
	FICLONE, FICLONERANGE, FIDEDUPERANGE, FIFREEZE, FITHAW, FITRIM, FIOASYNC, FIONBIO,
	FS_IOC_GETFSLABEL, FS_IOC_SETFSLABEL, FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY,
	BTRFS_IOC_SNAP_CREATE_V2, BTRFS_IOC_SUBVOL_CREATE, BTRFS_IOC_TREE_SEARCH_V2,
	BTRFS_IOC_INO_LOOKUP, BTRFS_IOC_CLONE_RANGE, BTRFS_IOC_DEFRAG, BTRFS_IOC_DEFRAG_RANGE,
	BTRFS_IOC_LOGICAL_INO, BTRFS_IOC_FS_INFO, BTRFS_IOC_SYNC, BTRFS_IOC_ENCODED_READ,
	/* XFS_IOC_* have no packaged header of their own. */
	_IOR('X', 36, char[40]), _IOW('X', 37, char[40]), _IOWR('X', 38, char[32]),
	_IOR('X', 40, char[0xc0]), _IOW('X', 54, char[16]), _IOWR('X', 61, char[96]),
	_IOR('X', 125, int), _IOWR('X', 127, char[0x40]), _IOW('X', 129, char[32]),
};

#define NOISE	4000

/* As nobody: what is one's own may change, and nothing else. */
static void make_noise(const char *dir, const char *outside)
{
	int fd[6], n = 0, i;
	char *arg = malloc(64 * KiB);

	srandom(1);
	fd[n++] = open(path_of("%s/own", dir), O_RDWR | O_CREAT, 0644);
	fd[n++] = open(path_of("%s/own", dir), O_RDONLY);
	fd[n++] = open(path_of("%s/theirs", outside), O_RDONLY);
	fd[n++] = open(outside, O_RDONLY);
	fd[n++] = open(dir, O_RDONLY);
	fd[n++] = open(path_of("%s/own", dir), O_RDWR | O_PATH);
	if (fd[0] < 0 || fd[2] < 0 || fd[3] < 0)
		_exit(2);
	write_all(fd[0], arg, 64 * KiB, 0);
	if (open(path_of("%s/secret", outside), O_RDONLY) >= 0)
		_exit(3);
	for (i = 0; i < NOISE; i++) {
		unsigned int cmd = random() % 4 ? commands[random() % ARRAY_SIZE(commands)] :
			_IOC(random() % 4, "fXvTi\x94\x12"[random() % 7], random() % 256,
			     random() % 8192);
		unsigned int k, words = random() % 64;
		unsigned long at = (unsigned long)arg;

		for (k = 0; k < 64; k++)
			((uint32_t *)arg)[k] = k >= words ? 0 : random() % 3 ? random() % 8 : random();
		if (random() % 8 == 0)
			at = random() % 2 ? random() % 16 : -1UL - random() % PAGE;
		/* An operation that runs for long is not what is looked for. */
		ioctl(fd[random() % n], cmd, at);
	}
	_exit(0);
}

TEST_F(user, calls_ioctls_at_random)
{
	int status;
	pid_t pid;

	make_file(low("theirs"), 64 * KiB, 5);
	make_file(low("secret"), 64 * KiB, 6);
	ASSERT_EQ(0, chmod(low("secret"), 0600));
	ASSERT_EQ(0, mkdir(low("mine"), 0777));
	ASSERT_EQ(0, chmod(low("mine"), 0777));
	EXPECT_EQ(-1, check_file(up("theirs"), 64 * KiB, 5));
	pid = fork();
	if (!pid) {
		if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
			_exit(4);
		make_noise(up("mine"), up("."));
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(-1, check_file(up("theirs"), 64 * KiB, 5));
	EXPECT_EQ(-1, check_file(low("theirs"), 64 * KiB, 5));
	EXPECT_EQ(-1, check_file(up("secret"), 64 * KiB, 6));
	EXPECT_EQ(hash_read(low("mine/own"), MiB), hash_read(up("mine/own"), MiB));
	/* (Whatever flags it gave itself.) */
	shell("chattr -R -i -a %s 2>/dev/null", low("mine"));
}

/* From its end to its beginning: what is known of a file comes to be one extent. */
TEST(reads_backwards)
{
	enum { NR = 8192 };
	int fd, i, bad = 0;
	char page[PAGE];
	long attachments;

	if (!have_pool)
		SKIP(return, "there is no dedupfs");
	make_file(low("back"), NR * PAGE, 1);
	make_clone(low("back"), low("back.twin"));
	drop_caches("3");
	fd = open(up("back"), O_RDONLY);
	attachments = pool("attachments");
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	for (i = NR - 1; i > NR / 2; i--) {
		if (pread(fd, page, PAGE, i * PAGE) != PAGE ||
		    (i % 64 == 0 && mismatch(page, PAGE, 1, i * PAGE) != -1))
			bad++;
	}
	EXPECT_EQ(0, bad);
	TH_LOG("%ld attachments more", pool("attachments") - attachments);
	EXPECT_GE(attachments + 64, pool("attachments"));
	close(fd);
	unlink(low("back"));
	unlink(low("back.twin"));
}

/*
 * Thousands of clones of one block, many of which have changed since: who comes
 * next looks at a bounded number, and what he reads is right.
 */
FIXTURE(many) {
};

FIXTURE_SETUP(many)
{
}

FIXTURE_TEARDOWN(many)
{
	rm_rf(low("all"));
	unlink(low("one"));
}

TEST_F_TIMEOUT(many, thousands_of_clones, 400 * TIME_FACTOR)
{
	const int nr = 4200 / TIME_FACTOR;
	int from, fd, i, bad = 0;
	long attachments, repeated;
	char page[PAGE];
	double begun;

	if (!have_pool)
		SKIP(return, "there is no dedupfs");
	make_file(low("one"), PAGE, 1);
	from = open(low("one"), O_RDONLY);
	mkdir(low("all"), 0755);
	for (i = 0; i < nr; i++) {
		fd = open(low("all/%d", i), O_RDWR | O_CREAT, 0644);
		ASSERT_EQ(0, ioctl(fd, FICLONE, from));
		close(fd);
	}
	close(from);
	sync();
	attachments = pool("attachments");
	repeated = pool("not_shared/repeated");
	for (i = 0; i < nr; i++) {
		fd = open(up("all/%d", i), O_RDONLY);
		if (pread(fd, page, PAGE, 0) != PAGE || mismatch(page, PAGE, 1, 0) != -1)
			bad++;
		close(fd);
	}
	EXPECT_EQ(0, bad);
	EXPECT_GE(attachments + 4096, pool("attachments"));
	if (nr > 4096)
		EXPECT_LT(repeated, pool("not_shared/repeated"));
	for (i = 0; i < nr; i += 2)
		ASSERT_EQ(0, chmod(up("all/%d", i), 0600));
	/* One that holds a page of its own there, and one that does not. */
	begun = now();
	for (i = 0; i < 4; i++)
		EXPECT_EQ(-1, check_file(up("all/%d", i), PAGE, 1));
	TH_LOG("four of them anew: %.3f s", now() - begun);
	fd = open(up("all/1"), O_RDWR);
	fill(page, PAGE, 2, 0);
	write_all(fd, page, PAGE, 0);
	close(fd);
	for (i = 0; i < nr; i++)
		if (check_file(up("all/%d", i), PAGE, i == 1 ? 2 : 1) != -1)
			bad++;
	EXPECT_EQ(0, bad);
}

/* Options that nobody would write: mounted or refused, and no more. */
TEST(mounts_with_any_option)
{
	static const char *const parts[] = {
		"pool_limit", "domain", "ro", "rw", "lowerdir", "source", "=", "=", ",", ",,", "%", "-1",
		"1g", "18446744073709551616", "0", "\\,", "\"", "\t", "\n", "\xff", "../..", "t", "k",
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
	};
	const char *at = strdup(path_of("%s/mnt", getcwd(NULL, 0)));
	static const char *const limits[] = { "0", "1", "16m", "64M", "1g", "50%", "100%", "101%", "" };
	unsigned int i, k, mounted = 0, refused = 0;
	static char text[PAGE];

	if (!have_pool)
		SKIP(return, "there is no dedupfs");
	mkdir(at, 0755);
	mkdir(low("dir"), 0755);
	make_file(low("dir/a"), 64 * KiB, 1);
	make_clone(low("dir/a"), low("dir/b"));
	srandom(2);
	for (i = 0; i < 400; i++) {
		text[0] = 0;
		if (i % 2)	/* so that some are right */
			sprintf(text, "pool_limit=%s,domain=x", limits[random() % ARRAY_SIZE(limits)]);
		for (k = random() % (i % 2 ? 3 : 12); k > 0; k--)
			strcat(text, parts[random() % ARRAY_SIZE(parts)]);
		if (mount(low("dir"), at, "dedupfs", 0, text)) {
			refused++;
			continue;
		}
		mounted++;
		ASSERT_EQ(-1, check_file(path_of("%s/a", at), 64 * KiB, 1)) TH_LOG("%s", text);
		ASSERT_EQ(-1, check_file(path_of("%s/b", at), 64 * KiB, 1)) TH_LOG("%s", text);
		ASSERT_EQ(0, umount(at)) TH_LOG("%s", text);
	}
	EXPECT_LT(10U, mounted);
	EXPECT_LT(100U, refused);
	rmdir(at);
}

/* Not even with a user namespace of one's own. */
TEST(mounts_nothing_without_privilege)
{
	const char *at = strdup(path_of("%s/mnt", getcwd(NULL, 0)));
	int status;
	pid_t pid;

	mkdir(at, 0755);
	pid = fork();
	if (!pid) {
		if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
			_exit(4);
		if (!mount(low("."), at, "dedupfs", 0, NULL) || errno != EPERM)
			_exit(1);
		if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
			_exit(errno == EPERM ? 0 : 2);	/* forbidden here */
		_exit(!mount(low("."), at, "dedupfs", 0, NULL) || errno != EPERM ? 3 : 0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	rmdir(at);
}

TEST_HARNESS_MAIN
