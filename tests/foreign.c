// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 240
 *
 * Changes made directly on the lower filesystem, beneath the mount.  Once the
 * call that made the change has returned, read(2), a new mapping and a new
 * fault in an old mapping show the new data; a twin keeps its own.  Blocks
 * that were freed and used again never show another file's bytes.
 */
#include "common.h"
#include <linux/btrfs_tree.h>

#define SIZE	(2 * MiB)
#define HALF	(SIZE / 2)

static int below(const char *name, int flags)
{
	int fd = open(low("%s", name), flags, 0644);

	if (fd < 0)
		die("%s", name);
	return fd;
}

/* --- the changes, to file "a" --------------------------------------------- */

static int do_write(void)
{
	char *buf = malloc(SIZE);
	int fd = below("a", O_RDWR);

	fill(buf, SIZE, 7, 0);
	write_all(fd, buf, PAGE, 3 * PAGE);
	write_all(fd, buf, 100, HALF + 9 * PAGE - 50);
	write_all(fd, buf, 60 * PAGE, HALF + 20 * PAGE);
	return close(fd);
}

static int do_direct_write(void)
{
	char *buf = aligned_alloc(PAGE, SIZE);
	int fd = below("a", O_RDWR | O_DIRECT);

	fill(buf, SIZE, 7, 0);
	write_all(fd, buf, 5 * PAGE, 3 * PAGE);
	write_all(fd, buf, 60 * PAGE, HALF + 20 * PAGE);
	return close(fd);
}

static int do_write_sync_write(void)
{
	char page[PAGE];
	int fd = below("a", O_RDWR), i;

	for (i = 0; i < 3; i++) {
		fill(page, PAGE, 10 + i, 0);
		write_all(fd, page, PAGE, (4 + i) * PAGE);
		fsync(fd);
		write_all(fd, page, PAGE, HALF + 4 * PAGE);
	}
	return close(fd);
}

static int do_store(void)
{
	char *p = map_file(low("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);

	memset(p + 5 * PAGE, 0x11, 3 * PAGE);
	memset(p + HALF + 5 * PAGE, 0x22, 3 * PAGE);
	return munmap(p, SIZE);
}

static int do_store_msync(void)
{
	char *p = map_file(low("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);

	memset(p + 5 * PAGE, 0x11, 3 * PAGE);
	memset(p + HALF + 5 * PAGE, 0x22, 3 * PAGE);
	if (msync(p, SIZE, MS_SYNC))
		return -1;
	memset(p + 50 * PAGE, 0x33, 3 * PAGE);
	memset(p + HALF + 50 * PAGE, 0x33, 3 * PAGE);
	return munmap(p, SIZE);
}

static int do_truncate(void)
{
	return truncate(low("a"), HALF + 77);
}

static int do_truncate_and_back(void)
{
	return truncate(low("a"), HALF + 10 * PAGE + 77) || truncate(low("a"), SIZE);
}

static int do_extend(void)
{
	return truncate(low("a"), SIZE + 10 * PAGE);
}

static int do_mode(int mode, off_t off, off_t len)
{
	int fd = below("a", O_RDWR);
	int ret = fallocate(fd, mode, off, len);

	if (ret && errno == EOPNOTSUPP)
		ret = 0;
	close(fd);
	return ret;
}

static int do_punch(void)
{
	return do_mode(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, HALF - 5 * PAGE, 20 * PAGE + 5);
}

static int do_zero(void)
{
	return do_mode(FALLOC_FL_ZERO_RANGE, HALF - 5 * PAGE, 20 * PAGE + 5);
}

static int do_collapse(void)
{
	return do_mode(FALLOC_FL_COLLAPSE_RANGE, 16 * PAGE, 16 * PAGE);
}

static int do_insert(void)
{
	return do_mode(FALLOC_FL_INSERT_RANGE, 16 * PAGE, 16 * PAGE);
}

static int do_unshare(void)
{
	return do_mode(FALLOC_FL_UNSHARE_RANGE, 0, SIZE);
}

static int do_unshare_and_write(void)
{
	return do_unshare() || do_write_sync_write();
}

static int do_clone_onto(void)
{
	struct file_clone_range range = { .src_length = SIZE / 4, .dest_offset = HALF - SIZE / 8 };
	int in, fd, ret;

	make_file(low("other"), SIZE, 5);
	in = below("other", O_RDONLY);
	fd = below("a", O_RDWR);
	range.src_fd = in;
	ret = ioctl(fd, FICLONERANGE, &range);
	close(in);
	close(fd);
	return ret;
}

static int do_clone_onto_and_free(void)
{
	return do_clone_onto() || unlink(low("other"));
}

static int do_swap_twice(void)
{
	/* The block leaves the file and comes back: content has changed between. */
	struct file_clone_range range = { .src_length = 64 * PAGE, .src_offset = HALF };
	int fd = below("a", O_RDWR), save = below("save", O_RDWR | O_CREAT), ret;

	range.src_fd = fd;
	ret = ioctl(save, FICLONERANGE, &range);
	fsync(save);
	do_write();
	fsync(fd);
	range.src_fd = save;
	range.src_offset = 0;
	range.dest_offset = HALF;
	ret |= ioctl(fd, FICLONERANGE, &range);
	close(fd);
	close(save);
	unlink(low("save"));
	return ret;
}

static int do_dedupe(void)
{
	int ret;

	make_file(low("same"), SIZE, 1);
	ret = dedupe(low("same"), low("a"), HALF / 2, HALF);
	unlink(low("same"));
	return ret;
}

static int do_copy(void)
{
	int fd = below("a", O_RDWR), in;
	off_t from = 0, to = HALF - 10 * PAGE;
	ssize_t n;

	make_file(low("other"), SIZE, 5);
	in = below("other", O_RDONLY);
	n = copy_file_range(in, &from, fd, &to, 40 * PAGE, 0);
	close(in);
	close(fd);
	return n == 40 * PAGE ? 0 : -1;
}

static int do_attributes(void)
{
	return chmod(low("a"), 0600) || setxattr(low("a"), "user.x", "y", 1, 0) ||
	       utimensat(AT_FDCWD, low("a"), NULL, 0) || link(low("a"), low("l")) ||
	       unlink(low("l"));
}

static int do_defrag(void)
{
	struct btrfs_ioctl_defrag_range_args args = { .len = -1, .flags = BTRFS_DEFRAG_RANGE_START_IO,
						      .extent_thresh = 32 * MiB };
	int fd = below("a", O_RDWR), ret = ioctl(fd, BTRFS_IOC_DEFRAG_RANGE, &args);

	close(fd);
	sync();
	return ret;
}

static int do_compress(void)
{
	struct btrfs_ioctl_defrag_range_args args = {
		.len = -1, .compress_type = 1,
		.flags = BTRFS_DEFRAG_RANGE_START_IO | BTRFS_DEFRAG_RANGE_COMPRESS };
	int fd = below("a", O_RDWR), ret = ioctl(fd, BTRFS_IOC_DEFRAG_RANGE, &args);

	close(fd);
	sync();
	return ret;
}

static int do_balance(void)
{
	struct btrfs_ioctl_balance_args args = { .flags = 1 /* data */ };
	int fd = open(low("."), O_RDONLY), ret = ioctl(fd, BTRFS_IOC_BALANCE_V2, &args);

	close(fd);
	return ret;
}

/* --- the checks ----------------------------------------------------------- */

FIXTURE(file) {
	char *old_map;		/* through the mount, less than half of it touched */
	int old_fd;
};

FIXTURE_VARIANT(file) {
	int (*change)(void);
	bool only_btrfs;
};

#define CHANGE(what) FIXTURE_VARIANT_ADD(file, what) { .change = do_##what }
#define CHANGE_OF_BTRFS(what)						\
	FIXTURE_VARIANT_ADD(file, what) { .change = do_##what, .only_btrfs = true }

CHANGE(write);
CHANGE(direct_write);
CHANGE(write_sync_write);
CHANGE(store);
CHANGE(store_msync);
CHANGE(truncate);
CHANGE(truncate_and_back);
CHANGE(extend);
CHANGE(punch);
CHANGE(zero);
CHANGE(collapse);
CHANGE(insert);
CHANGE(unshare);
CHANGE(unshare_and_write);
CHANGE(clone_onto);
CHANGE(clone_onto_and_free);
CHANGE(swap_twice);
CHANGE(dedupe);
CHANGE(copy);
CHANGE(attributes);
CHANGE_OF_BTRFS(defrag);
CHANGE_OF_BTRFS(compress);
CHANGE_OF_BTRFS(balance);

FIXTURE_SETUP(file)
{
	if (variant->only_btrfs && !btrfs)
		SKIP(return, "XFS does not do that");
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
	self->old_map = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, self->old_map);
	/* Not up to the middle: a fault maps neighbours, which may stay as they are. */
	touch(self->old_map, HALF - 32 * PAGE);
	self->old_fd = open(up("a"), O_RDONLY);
	ASSERT_LE(0, self->old_fd);
}

FIXTURE_TEARDOWN(file)
{
	static const char * const names[] = { "a", "twin", "other", "same", "save", "new", "new.twin" };
	unsigned int i;

	for (i = 0; i < sizeof(names) / sizeof(*names); i++)
		unlink(low("%s", names[i]));
}

/* What the mount shows, against @want of @size bytes. */
static void check_all(struct __test_metadata *_metadata, FIXTURE_DATA(file) *self,
		      const char *want, size_t size, const char *when)
{
	size_t both = size < SIZE ? size : SIZE;
	char *p, *got = malloc(size + 1);

	EXPECT_EQ((ssize_t)size, pread(self->old_fd, got, size + 1, 0));
	EXPECT_EQ(0, memcmp(got, want, size)) TH_LOG("%s: read through an old descriptor", when);
	EXPECT_EQ(-1, differs_from(up("a"), want, size)) TH_LOG("%s: read", when);
	EXPECT_EQ(0, memcmp(self->old_map + HALF, want + HALF, both - HALF))
		TH_LOG("%s: new faults in an old mapping", when);
	p = map_file(up("a"), size, PROT_READ, MAP_SHARED);
	EXPECT_EQ(0, memcmp(p, want, size)) TH_LOG("%s: a new mapping", when);
	munmap(p, size);
	madvise(self->old_map, SIZE, MADV_DONTNEED);
	EXPECT_EQ(0, memcmp(self->old_map, want, both)) TH_LOG("%s: an old mapping faulted anew", when);
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1)) TH_LOG("%s: the twin", when);
	free(got);
}

TEST_F(file, is_seen_at_once)
{
	struct stat st;
	char *want, *seen;
	int fd;

	ASSERT_EQ(0, variant->change()) TH_LOG("%s", strerror(errno));

	/* The mount is asked first: reading below would fill the page cache. */
	fd = open(up("a"), O_RDONLY);
	ASSERT_EQ(0, stat(low("a"), &st));
	seen = malloc(st.st_size);
	want = malloc(st.st_size);
	EXPECT_EQ(st.st_size, pread(fd, seen, st.st_size, 0));
	close(fd);
	fd = open(low("a"), O_RDONLY);
	ASSERT_EQ(st.st_size, pread(fd, want, st.st_size, 0));
	close(fd);
	EXPECT_EQ(0, memcmp(seen, want, st.st_size)) TH_LOG("the first read");
	check_all(_metadata, self, want, st.st_size, "changed");
	sync();
	check_all(_metadata, self, want, st.st_size, "synced");
	drop_caches("1");
	check_all(_metadata, self, want, st.st_size, "page cache dropped");

	/* Let others take what was freed. */
	make_file(low("new"), 2 * SIZE, 50);
	make_clone(low("new"), low("new.twin"));
	drop_caches("1");
	EXPECT_EQ(-1, check_file(up("new"), 2 * SIZE, 50));
	check_all(_metadata, self, want, st.st_size, "blocks used again");
	drop_caches("3");
	check_all(_metadata, self, want, st.st_size, "all dropped");
}

/* --- pages that are mapped when they change -------------------------------- */

#define MAPPED	3			/* mapped before the change */
#define AWAY	400			/* far from it, and changed as well */

static int load(char *map)
{
	touch(map + AWAY * PAGE, PAGE);
	return 0;
}

static int store(char *map)
{
	map[AWAY * PAGE] = 0;
	return 0;
}

static int read_with(int flags)
{
	char *buf = aligned_alloc(PAGE, PAGE);
	int fd = open(up("a"), O_RDONLY | flags);
	int ret = pread(fd, buf, PAGE, AWAY * PAGE) != PAGE;

	close(fd);
	free(buf);
	return ret;
}

static int read_it(char *map)
{
	return read_with(0);
}

static int read_directly(char *map)
{
	return read_with(O_DIRECT);
}

static int open_it(char *map)
{
	return close(open(up("a"), O_RDONLY));
}

FIXTURE(mapped) {
	char *map;
};

FIXTURE_VARIANT(mapped) {
	int (*then)(char *map);
};

FIXTURE_VARIANT_ADD(mapped, load) { .then = load };
FIXTURE_VARIANT_ADD(mapped, store) { .then = store };
FIXTURE_VARIANT_ADD(mapped, read) { .then = read_it };
FIXTURE_VARIANT_ADD(mapped, direct_read) { .then = read_directly };
FIXTURE_VARIANT_ADD(mapped, open) { .then = open_it };

FIXTURE_SETUP(mapped)
{
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	drop_caches("3");
	ASSERT_EQ(-1, check_file(up("a"), SIZE, 1));
	self->map = map_file(up("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, self->map);
	touch(self->map, 16 * PAGE);
}

FIXTURE_TEARDOWN(mapped)
{
	munmap(self->map, SIZE);
	unlink(low("a"));
	unlink(low("twin"));
}

/* The next read, fault or open of the file, wherever it is, unmaps what is old. */
TEST_F(mapped, is_let_go_of)
{
	char page[PAGE];
	int round, fd;

	for (round = 0; round < 3; round++) {
		fill(page, PAGE, 20 + round, 0);
		fd = below("a", O_RDWR);
		write_all(fd, page, PAGE, MAPPED * PAGE);
		write_all(fd, page, PAGE, AWAY * PAGE);
		if (round == 1)
			fsync(fd);
		close(fd);
		ASSERT_EQ(0, variant->then(self->map));
		EXPECT_EQ(0, memcmp(self->map + MAPPED * PAGE, page, PAGE))
			TH_LOG("round %d", round);
		/* Pooled and mapped again. */
		sync();
		madvise(self->map, SIZE, MADV_DONTNEED);
		EXPECT_EQ(0, memcmp(self->map + MAPPED * PAGE, page, PAGE));
		make_clone(low("a"), low("twin"));
		EXPECT_EQ(hash_read(low("a"), MiB), hash_read(up("a"), MiB));
		madvise(self->map, SIZE, MADV_DONTNEED);
		touch(self->map, 16 * PAGE);
	}
}

/* So does a fault in a mapping that was made before anything of the file was shared. */
TEST(mapped_while_dirty)
{
	char page[PAGE], *old, *new;
	int fd, round;

	for (round = 0; round < 2; round++) {
		fd = open(low("a"), O_RDWR | O_CREAT | O_TRUNC, 0644);
		for (size_t off = 0; off < SIZE; off += PAGE) {
			fill(page, PAGE, 1, off);
			write_all(fd, page, PAGE, off);
		}
		old = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
		ASSERT_NE(MAP_FAILED, old);
		fsync(fd);
		make_clone(low("a"), low("twin"));
		drop_caches("1");
		ASSERT_EQ(-1, check_file(up("a"), SIZE, 1));
		new = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
		ASSERT_NE(MAP_FAILED, new);
		touch(new, 16 * PAGE);
		fill(page, PAGE, 30, 0);
		write_all(fd, page, PAGE, MAPPED * PAGE);
		write_all(fd, page, PAGE, AWAY * PAGE);
		if (round)
			fsync(fd);
		EXPECT_EQ(0, memcmp(old + AWAY * PAGE, page, PAGE));
		EXPECT_EQ(0, memcmp(new + MAPPED * PAGE, page, PAGE)) TH_LOG("round %d", round);
		munmap(old, SIZE);
		munmap(new, SIZE);
		close(fd);
		unlink(low("a"));
		unlink(low("twin"));
	}
}

/* --- replaced by rename, removed ------------------------------------------ */

TEST(replaced_by_rename)
{
	char *old, *new;
	int fd;

	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	make_file(low("b"), SIZE, 2);
	make_clone(low("b"), low("b.twin"));
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
	old = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
	touch(old, HALF);
	fd = open(up("a"), O_RDONLY);
	ASSERT_EQ(0, rename(low("b"), low("a")));
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 2));
	new = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
	EXPECT_EQ(-1, mismatch(new, SIZE, 2, 0));
	/* The open one lives on. */
	EXPECT_EQ(-1, mismatch(old, SIZE, 1, 0));
	EXPECT_EQ(-1, access(up("b"), F_OK));
	EXPECT_EQ(0, unlink(low("a")));
	EXPECT_EQ(0, unlink(low("twin")));
	EXPECT_EQ(-1, access(up("a"), F_OK));
	drop_caches("3");
	EXPECT_EQ(-1, mismatch(old, SIZE, 1, 0));
	EXPECT_EQ(-1, mismatch(new, SIZE, 2, 0));
	close(fd);
	unlink(low("b.twin"));
}

/* --- blocks freed and used again ------------------------------------------ */

/* Files g and h are clones of each other, which hold pattern @gen. */
#define PAIR_SIZE	(256 * PAGE)

static void check_pair(struct __test_metadata *_metadata, int gen)
{
	char *p;

	ASSERT_EQ(-1, check_file(up("g%d", gen % 2), PAIR_SIZE, gen));
	p = map_file(up("h%d", gen % 2), PAIR_SIZE, PROT_READ, MAP_SHARED);
	ASSERT_EQ(-1, mismatch(p, PAIR_SIZE, gen, 0));
	munmap(p, PAIR_SIZE);
}

static void remove_pairs(void)
{
	int i;

	for (i = 0; i < 2; i++) {
		unlink(low("g%d", i));
		unlink(low("h%d", i));
	}
	unlink(low("filler"));
}

TEST(freed_blocks_used_by_others)
{
	const size_t size = PAIR_SIZE;
	static uint64_t seen[512];
	int gen, i, nr_seen = 0, reused = 0;
	struct fiemap_extent ext[8];
	long n;

	if (btrfs)
		take_space(low("filler"), 32 * MiB);
	for (gen = 0; gen < 60; gen++) {
		make_file(low("g%d", gen % 2), size, gen);
		make_clone(low("g%d", gen % 2), low("h%d", gen % 2));
		n = fiemap(low("g%d", gen % 2), ext, 8);
		for (i = 0; n > 0 && i < nr_seen; i++)
			reused += seen[i] == ext[0].fe_physical;
		if (n > 0)
			seen[nr_seen++] = ext[0].fe_physical;

		check_pair(_metadata, gen);
		if (gen) {
			ASSERT_EQ(-1, check_file(up("h%d", (gen - 1) % 2), size, gen - 1));
			unlink(low("g%d", (gen - 1) % 2));
			unlink(low("h%d", (gen - 1) % 2));
		}
		if (gen % 4 == 3)
			sync();		/* frees them for good */
	}
	remove_pairs();
	TH_LOG("blocks used again: %d times", reused);
	EXPECT_LT(0, reused);
}

/*
 * Evict all of the pool (a page that was used gets another round), and wait
 * until nobody is attached to it but those who stay.
 */
static bool empty_pool(long attached)
{
	int i;

	for (i = 0; i < 100 && (pool("pages") || pool("attachments") > attached); i++) {
		if (!pool("pages"))
			usleep(100000);
		drop_caches("2");
	}
	return !pool("pages") && pool("attachments") == attached;
}

/*
 * The same where the file lives on, cut off beneath, and nobody looks at it
 * through the mount: what the pool has of its blocks is no one's.
 */
TEST(blocks_of_a_cut_file_used_by_others)
{
	const size_t size = PAIR_SIZE;
	struct fiemap_extent was[64];
	int gen, reused = 0;
	size_t first;
	long n = 0;

	if (btrfs)
		take_space(low("filler"), 12 * MiB);
	/* (Where btrfs puts them is chance.) */
	for (gen = 0; gen < 16 || (!reused && gen < 80); gen++) {
		make_file(low("g%d", gen % 2), size, gen);
		make_clone(low("g%d", gen % 2), low("h%d", gen % 2));
		reused += run_on(was, n, low("g%d", gen % 2), &first, NULL) > 0;
		check_pair(_metadata, gen);
		n = fiemap(low("g%d", gen % 2), was, 64);
		ASSERT_LT(0, n);
		ASSERT_EQ(0, truncate(low("g%d", gen % 2), 0));
		ASSERT_EQ(0, truncate(low("h%d", gen % 2), 0));
		sync();
	}
	remove_pairs();
	TH_LOG("blocks used again: %d times", reused);
	EXPECT_LT(0, reused);
}

/*
 * Read all of file y through the mount, map it, and let its pages go: what is
 * known of it stays.
 */
static int know_and_let_go(struct __test_metadata *_metadata, size_t size, char **map,
			   long *attached)
{
	char *seen = malloc(size);
	int fd;

	ASSERT_TRUE(empty_pool(0));
	fd = open(up("y"), O_RDONLY);
	ASSERT_EQ(size, pread(fd, seen, size, 0));
	ASSERT_EQ(-1, mismatch(seen, size, 1, 0));
	*map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, *map);
	ASSERT_LE((long)(size / PAGE), pool("pages"));
	*attached = pool("attachments");
	ASSERT_LT(0, *attached);
	ASSERT_TRUE(empty_pool(*attached));
	free(seen);
	return fd;
}

FIXTURE(full) {
	int unused;
};

FIXTURE_SETUP(full)
{
}

FIXTURE_TEARDOWN(full)
{
	int i;

	for (i = 0; i < 24; i++)
		unlink(low("z%d", i));
	unlink(low("y"));
	unlink(low("filler"));
}

/*
 * btrfs moves a file without a word: the counter stays, the old blocks go to
 * another file.  Who was attached to them, without a page, must not get the
 * other's.
 *
 * Any access to a page that the pool does not have finds out about the move:
 * so nobody looks at the file from the move until its blocks hold the other's
 * pages, and then at those first.
 */
TEST_F(full, moved_in_silence)
{
	const size_t size = 256 * PAGE;
	struct fiemap_extent was[64];
	char *seen = malloc(size), *map;
	long n, attached, stale;
	size_t first, run = 0;
	int i, z, fd;

	if (!btrfs)
		SKIP(return, "XFS moves the counter");
	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	/* What deleted files of others still hold. */
	ASSERT_TRUE(empty_pool(0));
	make_file(low("y"), size, 1);
	take_space(low("filler"), 16 * MiB);
	n = fiemap(low("y"), was, 64);
	ASSERT_LT(0, n);
	fd = know_and_let_go(_metadata, size, &map, &attached);
	stale = pool("stale");

	/* (What cannot be compressed is written anew as it is.) */
	ASSERT_EQ(0, shell("btrfs filesystem defragment -czstd -f %s", low("y")));
	sync();
	ASSERT_EQ(0, run_on(was, n, low("y"), &first, NULL)) TH_LOG("it was not moved");
	for (i = 0; i < 24 && !run; i++) {
		make_file(low("z%d", i), size, 10 + i);
		run = run_on(was, n, low("z%d", i), &first, NULL);
	}
	z = i - 1;
	ASSERT_LT(0, run) TH_LOG("its blocks were not used again: this proves nothing");
	TH_LOG("file %d has the blocks of pages %zu+%zu", z, first, run);
	ASSERT_EQ(0, pool("pages"));
	ASSERT_EQ(attached, pool("attachments"));

	/* (A slow machine may need more than one attempt to get all of it shared.) */
	for (i = 0; i < 50 && pool("pages") < (long)(size / PAGE); i++) {
		EXPECT_EQ(-1, check_file(up("z%d", z), size, 10 + z));
		usleep(100000);
	}
	ASSERT_LE((long)(size / PAGE), pool("pages"));
	EXPECT_EQ((ssize_t)(run * PAGE), pread(fd, seen, run * PAGE, first * PAGE));
	EXPECT_EQ(-1, mismatch(seen, run * PAGE, 1, first * PAGE)) TH_LOG("read");
	EXPECT_EQ(-1, mismatch(map + first * PAGE, run * PAGE, 1, first * PAGE)) TH_LOG("mapped");
	EXPECT_EQ(size, pread(fd, seen, size, 0));
	EXPECT_EQ(-1, mismatch(seen, size, 1, 0));
	EXPECT_EQ(-1, mismatch(map, size, 1, 0));
	EXPECT_EQ(-1, check_file(up("z%d", z), size, 10 + z));
	EXPECT_EQ(stale, pool("stale")) TH_LOG("the counter moved: this proves nothing");
	munmap(map, size);
	close(fd);
}

/*
 * The same within one file: a part of it moves to where another part of it was.
 * Who looks at the one finds out about it, and not about the other.
 */
FIXTURE(one_file) {
	int unused;
};

FIXTURE_VARIANT(one_file) {
	bool filled;			/* the pool has the pages of the part that was there */
};

FIXTURE_VARIANT_ADD(one_file, not_cached) {};
FIXTURE_VARIANT_ADD(one_file, cached) { .filled = true };

FIXTURE_SETUP(one_file)
{
	if (!btrfs)
		SKIP(return, "XFS moves the counter");
	if (!have_pool)
		SKIP(return, "no dedupfs to test");
}

FIXTURE_TEARDOWN(one_file)
{
	unlink(low("y"));
	unlink(low("filler"));
}

TEST_F(one_file, moved_within_itself)
{
	const size_t half = 256 * PAGE, size = 2 * half;
	struct fiemap_extent was[64];
	size_t first, at, run = 0;
	char *seen = malloc(size), *map;
	long n, attached, stale;
	int i, fd;

	ASSERT_TRUE(empty_pool(0));
	/* Each half has extents of its own, or the blocks would not be free. */
	fd = open(low("y"), O_RDWR | O_CREAT | O_TRUNC, 0644);
	fill(seen, size, 1, 0);
	write_all(fd, seen, half, 0);
	ASSERT_EQ(0, fsync(fd));
	n = fiemap(low("y"), was, 64);
	ASSERT_LT(0, n);
	write_all(fd, seen + half, half, half);
	ASSERT_EQ(0, fsync(fd));
	close(fd);
	take_space(low("filler"), 16 * MiB);
	fd = know_and_let_go(_metadata, size, &map, &attached);
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	if (variant->filled)
		ASSERT_EQ(half, pread(fd, seen, half, 0));
	ASSERT_EQ(variant->filled ? half / PAGE : 0, pool("pages"));
	stale = pool("stale");

	ASSERT_EQ(0, shell("btrfs filesystem defragment -czstd -f -s 0 -l %zu %s", half, low("y")));
	sync();
	ASSERT_EQ(0, run_on(was, n, low("y"), &first, &at)) TH_LOG("it was not moved");
	/* What it leaves stays in use by a clone, until there is no other place. */
	for (i = 0; i < 24 && !run; i++) {
		make_clone(low("y"), low("z%d", i));
		ASSERT_EQ(0, shell("btrfs filesystem defragment -czstd -f -s %zu -l %zu %s",
				   half, half, low("y")));
		sync();
		run = run_on(was, n, low("y"), &first, &at);
	}
	ASSERT_LT(0, run) TH_LOG("its blocks were not used again: this proves nothing");
	TH_LOG("pages %zu+%zu have the blocks of pages %zu", at, run, first);
	ASSERT_LE(half / PAGE, at);
	ASSERT_EQ(attached, pool("attachments"));

	EXPECT_EQ((ssize_t)(run * PAGE), pread(fd, seen, run * PAGE, at * PAGE));
	EXPECT_EQ(-1, mismatch(seen, run * PAGE, 1, at * PAGE)) TH_LOG("the part that moved there");
	EXPECT_EQ((ssize_t)(run * PAGE), pread(fd, seen, run * PAGE, first * PAGE));
	EXPECT_EQ(-1, mismatch(seen, run * PAGE, 1, first * PAGE)) TH_LOG("the part that was there");
	EXPECT_EQ(-1, mismatch(map, size, 1, 0)) TH_LOG("mapped");
	EXPECT_EQ(size, pread(fd, seen, size, 0));
	EXPECT_EQ(-1, mismatch(seen, size, 1, 0));
	EXPECT_EQ(stale, pool("stale")) TH_LOG("the counter moved: this proves nothing");
	munmap(map, size);
	close(fd);
	free(seen);
	while (i--)
		unlink(low("z%d", i));
}

/* One of those who share is moved away: the rest of them stay, and who comes joins them. */
TEST(one_of_many_moved_away)
{
	const size_t size = 512 * PAGE;
	static const char *const names[] = { "x", "y", "z", "w" };
	long fills, attached;
	unsigned int i;

	if (!btrfs)
		SKIP(return, "XFS moves the counter");
	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	ASSERT_TRUE(empty_pool(0));
	make_file(low("x"), size, 1);
	sync();
	for (i = 1; i < 4; i++)
		make_clone(low("x"), low("%s", names[i]));
	for (i = 0; i < 3; i++)
		ASSERT_EQ(-1, check_file(up("%s", names[i]), size, 1));
	fills = pool("fills");
	attached = pool("attachments");
	ASSERT_EQ(0, shell("btrfs filesystem defragment -czstd -f %s", low("x")));
	sync();
	EXPECT_EQ(-1, check_file(up("w"), size, 1));
	TH_LOG("%ld fills, attachments %ld, then %ld", pool("fills") - fills, attached,
	       pool("attachments"));
	EXPECT_EQ(fills, pool("fills")) TH_LOG("it was read again");
	EXPECT_LE(attached, pool("attachments"));
	for (i = 0; i < 4; i++) {
		EXPECT_EQ(-1, check_file(up("%s", names[i]), size, 1));
		unlink(low("%s", names[i]));
	}
}

/*
 * btrfs ends the write-back of a page before the extent of it is in the tree:
 * for a while the file is clean, and FIEMAP still gives its old block.  The
 * pool has that block's page, of a twin that maps it rightly.
 */
TEST(written_back_and_not_finished)
{
	const unsigned int all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
				 SYNC_FILE_RANGE_WAIT_AFTER;
	char page[PAGE], seen[PAGE];
	int i, old = 0, above, fd;

	make_file(low("a"), 256 * PAGE, 1);
	make_clone(low("a"), low("twin"));
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("twin"), 256 * PAGE, 1));
	above = open(up("a"), O_RDONLY);
	fd = below("a", O_RDWR);
	/* Upwards: what follows stays one range, which the twin is witness for. */
	for (i = 0; i < 255; i++) {
		fill(page, PAGE, 7, i * PAGE);
		write_all(fd, page, PAGE, i * PAGE);
		ASSERT_EQ(0, sync_file_range(fd, i * PAGE, PAGE, all));
		ASSERT_EQ(PAGE, pread(above, seen, PAGE, i * PAGE));
		old += !!memcmp(page, seen, PAGE);
	}
	EXPECT_EQ(0, old) TH_LOG("old data read %d times of %d", old, i);
	EXPECT_EQ(-1, check_file(up("twin"), 256 * PAGE, 1));
	close(above);
	close(fd);
	unlink(low("a"));
	unlink(low("twin"));
}

/* Only the new file's counter tells of a clone made below; the source is read by others. */
TEST(becomes_the_source_of_a_clone)
{
	const size_t size = 64 * PAGE;
	double end;

	if (btrfs)
		SKIP(return, "on btrfs every file is pooled");
	make_file(low("hot"), size, 1);
	drop_caches("3");
	ASSERT_EQ(-1, check_file(up("hot"), size, 1));
	ASSERT_EQ((long)(size / PAGE), cached_pages(low("hot"), size));
	make_clone(low("hot"), low("hot.clone"));
	ASSERT_EQ(-1, check_file(up("hot.clone"), size, 1));
	end = now() + 20 * TIME_FACTOR;
	do {
		ASSERT_EQ(-1, check_file(up("hot"), size, 1));
		usleep(200000);
	} while (cached_pages(low("hot"), size) && now() < end);
	EXPECT_EQ(0, cached_pages(low("hot"), size));
	unlink(low("hot"));
	unlink(low("hot.clone"));
}

/*
 * A dedupe of what has been deduplicated changes nothing, the counter neither;
 * but it takes a part of the file out of the page cache below, from which the
 * pool is filled, and XFS zeroes that first.
 */
TEST(deduplicated_once_more)
{
	const size_t size = 256 * PAGE;
	char *buf = malloc(size);
	double end;
	pid_t pid[2];
	long n = 0, disk;
	int i, fd;

	move_clock(-86400);
	make_file(low("once"), size, 1);
	make_clone(low("once"), low("more"));
	move_clock(86400);
	drop_caches("3");
	/* Or it would prove nothing: the pool is filled from there (of btrfs, never). */
	hash_read(low("more"), MiB);
	disk = disk_read_bytes();
	EXPECT_EQ(-1, check_file(up("more"), size, 1));
	if (!btrfs)
		EXPECT_GT((long)size / 2, disk_read_bytes() - disk);
	for (i = 0; i < 2; i++) {
		pid[i] = fork();
		if (pid[i])
			continue;
		for (n = 0; ; n++) {
			if (i && dedupe(low("once"), low("more"), (1 + n % 200) * PAGE, 37 * PAGE))
				_exit(1);
			fd = open(low("more"), O_RDONLY);
			if (pread(fd, buf, size, 0) != (ssize_t)size || mismatch(buf, size, 1, 0) >= 0)
				_exit(2);
			close(fd);
		}
	}
	end = now() + 6 * TIME_FACTOR;
	while (now() < end) {
		drop_caches("2");
		n++;
		if (check_file(up("more"), size, 1) != -1)
			break;
		if (check_file(up("once"), size, 1) != -1)
			break;
	}
	TH_LOG("%ld times read", n);
	EXPECT_LE(end, now());
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, waitpid(pid[i], NULL, WNOHANG));
		kill(pid[i], SIGKILL);
		waitpid(pid[i], NULL, 0);
	}
	free(buf);
	unlink(low("once"));
	unlink(low("more"));
}

/* --- a writer beneath, against readers and fills --------------------------- */

#define RACE_PAGES	64

static void race_reader(int how)
{
	char *buf = malloc(RACE_PAGES * PAGE), *p;
	int fd;

	for (;;) {
		if (how == 2) {
			write_text("/proc/sys/vm/drop_caches", "2");
			usleep(30000);
			continue;
		}
		fd = open(up(how ? "a" : "twin"), O_RDONLY);
		pread(fd, buf, RACE_PAGES * PAGE, 0);
		p = mmap(NULL, RACE_PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
		touch(p, RACE_PAGES * PAGE);
		munmap(p, RACE_PAGES * PAGE);
		close(fd);
	}
}

TEST(a_writer_beneath_against_readers)
{
	char page[PAGE], *want = malloc(RACE_PAGES * PAGE), *p;
	double end = now() + 8;
	int i, fd, rounds = 0;
	pid_t pid[3];
	size_t at;

	make_file(low("a"), RACE_PAGES * PAGE, 0);
	fill(want, RACE_PAGES * PAGE, 0, 0);
	make_clone(low("a"), low("twin"));
	for (i = 0; i < 3; i++) {
		pid[i] = fork();
		if (!pid[i])
			race_reader(i);
	}
	while (now() < end) {
		rounds++;
		at = mix(rounds) % RACE_PAGES * PAGE;
		fill(page, PAGE, rounds, 0);
		fd = open(low("a"), O_RDWR);
		write_all(fd, page, PAGE, at);
		memcpy(want + at, page, PAGE);
		if (rounds % 3 == 0)
			fsync(fd);
		close(fd);
		if (rounds % 5 == 0)
			make_clone(low("a"), low("twin"));

		p = map_file(up("a"), RACE_PAGES * PAGE, PROT_READ, MAP_SHARED);
		EXPECT_EQ(0, memcmp(p + at, page, PAGE)) TH_LOG("round %d, mapped", rounds);
		munmap(p, RACE_PAGES * PAGE);
		ASSERT_EQ(-1, differs_from(up("a"), want, RACE_PAGES * PAGE))
			TH_LOG("round %d", rounds);
	}
	for (i = 0; i < 3; i++) {
		kill(pid[i], SIGKILL);
		waitpid(pid[i], NULL, 0);
	}
	TH_LOG("%d rounds", rounds);
	unlink(low("a"));
	unlink(low("twin"));
}

TEST_HARNESS_MAIN
