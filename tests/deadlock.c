// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 200
 *
 * Nobody hangs who writes to the lower file, or to the file itself, straight
 * from a mapping of the file: the writer holds the lower inode's lock while
 * it faults on that mapping.  Nor who clones two files onto each other, faults
 * on a file while it is changed, frozen or unmounted, or reclaims memory in the
 * middle of an operation of the lower filesystem.  Each case must end,
 * with the right bytes.
 */
#include "common.h"

#define SIZE	(2 * MiB)

static void on_alarm(int sig)
{
	static const char msg[] = "# this hangs\n";

	write(2, msg, sizeof(msg) - 1);
	/* Who waits for what, and what memory there is. */
	write_text("/proc/sysrq-trigger", "w");
	write_text("/proc/sysrq-trigger", "m");
	_exit(1);
}

FIXTURE(files) {
	char *up_a;	/* mapping of a through the mount, not touched yet */
};

FIXTURE_SETUP(files)
{
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	drop_caches("3");
	self->up_a = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, self->up_a);
	signal(SIGALRM, on_alarm);
	alarm(60 * TIME_FACTOR);
}

FIXTURE_TEARDOWN(files)
{
	alarm(0);
	unlink(low("a"));
	unlink(low("twin"));
}

/* The first half of a file now equals what the second half was. */
static long wrong(const char *path)
{
	char *buf = malloc(SIZE);
	int fd = open(path, O_RDONLY);
	long bad;

	if (pread(fd, buf, SIZE, 0) != SIZE)
		return 0;
	close(fd);
	bad = mismatch(buf, SIZE / 2, 1, SIZE / 2);
	if (bad == -1)
		bad = mismatch(buf + SIZE / 2, SIZE / 2, 1, SIZE / 2);
	free(buf);
	return bad;
}

TEST_F(files, lower_write_from_upper_mapping)
{
	int fd = open(low("a"), O_RDWR);

	EXPECT_EQ(SIZE / 2, pwrite(fd, self->up_a + SIZE / 2, SIZE / 2, 0));
	EXPECT_EQ(-1, wrong(low("a")));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(files, lower_direct_write_from_upper_mapping)
{
	int fd = open(low("a"), O_RDWR | O_DIRECT);

	EXPECT_EQ(SIZE / 2, pwrite(fd, self->up_a + SIZE / 2, SIZE / 2, 0));
	EXPECT_EQ(-1, wrong(low("a")));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(files, upper_write_from_own_mapping)
{
	int fd = open(up("a"), O_RDWR);

	EXPECT_EQ(SIZE / 2, pwrite(fd, self->up_a + SIZE / 2, SIZE / 2, 0));
	EXPECT_EQ(-1, wrong(low("a")));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(files, upper_direct_write_from_own_mapping)
{
	int fd = open(up("a"), O_RDWR | O_DIRECT);

	EXPECT_EQ(SIZE / 2, pwrite(fd, self->up_a + SIZE / 2, SIZE / 2, 0));
	EXPECT_EQ(-1, wrong(low("a")));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(files, write_of_a_page_onto_itself)
{
	int fd = open(up("a"), O_RDWR);
	size_t off;

	for (off = 0; off < SIZE; off += 16 * PAGE)
		ASSERT_EQ(PAGE, pwrite(fd, self->up_a + off, PAGE, off));
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
}

TEST_F(files, read_into_own_mapping)
{
	char *p = map_file(up("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	int fd = open(up("a"), O_RDWR);

	/* read(2) stores into pages of the file that it reads. */
	EXPECT_EQ(SIZE / 2, pread(fd, p, SIZE / 2, SIZE / 2));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(0, msync(p, SIZE, MS_SYNC));
	EXPECT_EQ(-1, wrong(low("a")));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(files, direct_read_into_own_mapping)
{
	char *p = map_file(up("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	int fd = open(up("a"), O_RDWR | O_DIRECT);

	EXPECT_EQ(SIZE / 2, pread(fd, p, SIZE / 2, SIZE / 2));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(0, msync(p, SIZE, MS_SYNC));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

/* --- several at once -------------------------------------------------------- */

static struct progress {
	bool stop;
	unsigned long changes;
	unsigned long reads;
	unsigned long ops;
	unsigned long wrong;
} *progress;

static void one_more(unsigned long *n)
{
	__atomic_add_fetch(n, 1, __ATOMIC_RELAXED);
}

static pid_t start(void (*loop)(int nr), int nr)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	alarm(0);
	while (!__atomic_load_n(&progress->stop, __ATOMIC_RELAXED))
		loop(nr);
	_exit(0);
}

static void *shared_page(void)
{
	return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* Who does not come back in time hangs: the alarm tells. */
static bool end_all(const pid_t *pid, int nr)
{
	bool ok = true;
	int i, status;

	__atomic_store_n(&progress->stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < nr; i++)
		ok &= waitpid(pid[i], &status, 0) == pid[i] && !status;
	return ok;
}

static void clone_across(int nr)
{
	unsigned int page = random() % (SIZE / PAGE), n = 1 + random() % 64;
	struct file_clone_range range = { };
	int from, to;

	if (page + n > SIZE / PAGE)
		n = SIZE / PAGE - page;
	from = open(nr % 2 ? up("a") : up("b"), O_RDWR);
	to = open(nr % 2 ? up("b") : up("a"), O_RDWR);
	range.src_fd = from;
	range.src_offset = range.dest_offset = page * PAGE;
	range.src_length = n * PAGE;
	if (ioctl(to, FICLONERANGE, &range))
		die("clone");
	close(from);
	close(to);
	one_more(&progress->changes);
}

/*
 * XFS itself, where a part of a large folio is taken out of the page cache,
 * zeroes it and unmaps it then: a mapping made in between shows zeroes until
 * that.  A read never does, nor anything that lasts.
 */
static bool zeroed_for_a_moment(const volatile uint64_t *word)
{
	int i;

	for (i = 0; i < 200 && !*word; i++)
		usleep(10000);
	return *word;
}

/* Words of neither pattern: a mapping may change from one to the other under us. */
static unsigned long count_wrong(const void *data, bool mapped)
{
	const volatile uint64_t *p = data;
	unsigned long i, wrong = 0;
	uint64_t word;

	for (i = 0; i < SIZE / 8; i++) {
		word = p[i];
		if (word == pattern_word(1, i) || word == pattern_word(2, i))
			continue;
		if (mapped && !btrfs && !word && zeroed_for_a_moment(&p[i])) {
			fprintf(stderr, "# word %lu of page %lu was zero for a moment\n", i % 512,
				i / 512);
			i--;
			continue;
		}
		if (!wrong++)
			fprintf(stderr, "# word %lu of page %lu is %#lx, and now %#lx\n", i % 512,
				i / 512, word, p[i]);
	}
	return wrong;
}

static void read_across(int nr)
{
	static char buf[SIZE];
	const char *path = random() % 2 ? up("a") : up("b");
	unsigned long n;
	char *p;
	int fd;

	if (nr % 2) {
		fd = open(path, O_RDONLY);
		if (pread(fd, buf, SIZE, 0) != SIZE)
			die("read");
		close(fd);
		p = buf;
	} else {
		p = map_file(path, SIZE, PROT_READ, MAP_SHARED);
	}
	n = count_wrong(p, p != buf);
	if (n)
		fprintf(stderr, "# %lu words are wrong, by a %s\n", n, nr % 2 ? "read" : "mapping");
	__atomic_add_fetch(&progress->wrong, n, __ATOMIC_RELAXED);
	if (p != buf)
		munmap(p, SIZE);
	one_more(&progress->reads);
}

static bool have_done(unsigned long changes, unsigned long reads)
{
	return __atomic_load_n(&progress->changes, __ATOMIC_RELAXED) > changes &&
	       __atomic_load_n(&progress->reads, __ATOMIC_RELAXED) > reads;
}

/* Let them go on for some seconds, and where the machine is slow until something was done. */
static void let_them(int seconds, unsigned long changes, unsigned long reads)
{
	double begun = now();

	while (now() < begun + seconds * TIME_FACTOR ||
	       (!have_done(changes, reads) && now() < begun + 40 * TIME_FACTOR))
		usleep(20000);
}

TEST_F(files, cloned_onto_each_other)
{
	static char below[SIZE];
	pid_t pid[8];
	int i, fd;

	alarm(60 * TIME_FACTOR);
	progress = shared_page();
	make_file(low("b"), SIZE, 2);
	for (i = 0; i < 8; i++)
		pid[i] = start(i < 4 ? clone_across : read_across, i);
	let_them(5, 10, 3);
	EXPECT_TRUE(end_all(pid, 8));
	TH_LOG("%lu clones, %lu reads", progress->changes, progress->reads);
	EXPECT_EQ(0UL, progress->wrong);
	EXPECT_LT(10UL, progress->changes);
	EXPECT_LT(3UL, progress->reads);
	for (i = 0; i < 2; i++) {
		fd = open(low("%c", 'a' + i), O_RDONLY);
		ASSERT_EQ((ssize_t)SIZE, pread(fd, below, SIZE, 0));
		close(fd);
		EXPECT_EQ(0UL, count_wrong(below, false));
		EXPECT_EQ(-1, differs_from(up("%c", 'a' + i), below, SIZE));
	}
	unlink(low("b"));
}

#define PIECE	(8 * PAGE)
#define PIECES	(SIZE / PIECE)

/* Piece n of file y is piece PIECES - 1 - n of file a. */
static void make_opposite(void)
{
	struct file_clone_range range = { .src_length = PIECE };
	int y = open(low("y"), O_RDWR | O_CREAT, 0644), n;

	range.src_fd = open(low("a"), O_RDONLY);
	for (n = 0; n < (int)PIECES; n++) {
		range.src_offset = (PIECES - 1 - n) * PIECE;
		range.dest_offset = n * PIECE;
		if (ioctl(y, FICLONERANGE, &range))
			die("clone of a piece");
	}
	fsync(y);
	close(y);
	close(range.src_fd);
}

/* All of a or y, or from some piece on, by read(2) or a mapping. */
static void read_pieces(int nr)
{
	static char buf[SIZE];
	size_t from = random() % 4 ? 0 : random() % PIECES, n, at;
	const char *path = nr % 2 ? up("a") : up("y");
	char *p;
	int fd;

	if (nr / 2) {
		p = map_file(path, SIZE, PROT_READ, MAP_SHARED);
	} else {
		fd = open(path, O_RDONLY);
		if (pread(fd, buf, SIZE - from * PIECE, from * PIECE) != (ssize_t)(SIZE - from * PIECE))
			die("read");
		close(fd);
		p = buf - from * PIECE;
	}
	for (n = from; n < PIECES; n++) {
		at = nr % 2 ? n * PIECE : (PIECES - 1 - n) * PIECE;
		if (mismatch(p + n * PIECE, PIECE, 1, at) >= 0)
			one_more(&progress->wrong);
	}
	if (nr / 2)
		munmap(p, SIZE);
	one_more(&progress->reads);
}

/*
 * Two files whose shared blocks are laid out in opposite order, filled by
 * both: windows meet in the middle, each with pages that the other waits for.
 */
TEST_F(files, opposite_order)
{
	pid_t pid[6];
	double end;
	int i;

	alarm(60 * TIME_FACTOR);
	progress = shared_page();
	make_opposite();
	for (i = 0; i < 6; i++)
		pid[i] = start(read_pieces, i % 4);
	end = now() + 5 * TIME_FACTOR;
	while (now() < end) {
		drop_caches("3");
		usleep(20000);
	}
	EXPECT_TRUE(end_all(pid, 6));
	TH_LOG("%lu reads", progress->reads);
	EXPECT_EQ(0UL, progress->wrong);
	EXPECT_LT(20UL, progress->reads);
	unlink(low("y"));
}

/* Write below what is mapped through the mount, where it may just be cut off. */
static void write_below_from_it(int nr)
{
	char *p = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
	int fd = open(low("a"), O_RDWR | (nr % 2 ? O_DIRECT : 0));
	size_t page = random() % (SIZE / PAGE - 64), len = (1 + random() % 64) * PAGE;
	ssize_t n;

	/* Each page onto itself. */
	n = pwrite(fd, p + page * PAGE, len, page * PAGE);
	if (n < 0 && errno != EFAULT)
		one_more(&progress->wrong);
	one_more(&progress->reads);
	close(fd);
	munmap(p, SIZE);
}

static void cut_it(int nr)
{
	int fd = open(up("a"), O_RDWR);

	if (ftruncate(fd, random() % SIZE) || ftruncate(fd, SIZE))
		one_more(&progress->wrong);
	one_more(&progress->changes);
	close(fd);
	usleep(random() % 20000);
}

TEST_F(files, cut_while_written_below_from_a_mapping)
{
	pid_t pid[4];
	int i;

	alarm(60 * TIME_FACTOR);
	progress = shared_page();
	for (i = 0; i < 4; i++)
		pid[i] = start(i ? write_below_from_it : cut_it, i);
	let_them(4, 5, 10);
	EXPECT_TRUE(end_all(pid, 4));
	TH_LOG("%lu cuts, %lu writes", progress->changes, progress->reads);
	EXPECT_EQ(0UL, progress->wrong);
	EXPECT_LT(5UL, progress->changes);
	EXPECT_LT(10UL, progress->reads);
	EXPECT_EQ(hash_read(low("a"), MiB), hash_read(up("a"), MiB));
	EXPECT_EQ(hash_read(up("a"), MiB), hash_map(up("a"), MiB, MAP_SHARED));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

static char third[PATH_MAX];		/* a mount that comes and goes */

static void use_third(int nr)
{
	char *p;
	int fd;

	fd = open(path_of("%s/%s", third, nr % 2 ? "a" : "twin"), O_RDONLY);
	if (fd < 0) {
		usleep(1000);
		return;
	}
	posix_fadvise(fd, 0, SIZE, POSIX_FADV_WILLNEED);
	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return;
	if (mismatch(p, SIZE, 1, 0) >= 0)
		one_more(&progress->wrong);
	munmap(p, SIZE);
	one_more(&progress->reads);
}

/* What else looks at the pool meanwhile. */
static void disturb(int nr)
{
	char text[64];

	switch (random() % 3) {
	case 0:
		write_text("/proc/sys/vm/drop_caches", "2");
		break;
	case 1:
		read_text(path_of("%s:third/saved_bytes", getenv("DEDUPFS_POOL")), text, sizeof(text));
		break;
	case 2:
		mount(NULL, third, NULL, MS_REMOUNT, random() % 2 ? "pool_limit=1m" : "pool_limit=0");
		break;
	}
	usleep(random() % 5000);
}

/* The last mount of a pool goes while fills, faults and evictions are under way. */
TEST_F(files, unmounted_in_full_use)
{
	unsigned long rounds = 0, lazy = 0;
	pid_t pid[5];
	double end;
	int i;

	alarm(90 * TIME_FACTOR);
	progress = shared_page();
	snprintf(third, sizeof(third), "%s/third", getcwd(NULL, 0));
	ASSERT_EQ(0, mkdir(third, 0755));
	for (i = 0; i < 5; i++)
		pid[i] = start(i < 3 ? use_third : disturb, i);
	end = now() + 6 * TIME_FACTOR;
	while (now() < end || (rounds <= 10 && now() < end + 30 * TIME_FACTOR)) {
		ASSERT_EQ(0, mount_on(lower_dir, third, "domain=third"));
		usleep(random() % 60000);
		/* In a moment when nobody has a file open, or else under them. */
		for (i = random() % 40; i && umount2(third, 0); i--)
			usleep(200);
		if (!i) {
			EXPECT_EQ(0, umount2(third, MNT_DETACH));
			lazy++;
		}
		rounds++;
	}
	EXPECT_TRUE(end_all(pid, 5));
	TH_LOG("%lu mounts, %lu detached in use, %lu reads", rounds, lazy, progress->reads);
	EXPECT_LT(0UL, lazy);
	EXPECT_EQ(0UL, progress->wrong);
	EXPECT_LT(10UL, rounds);
	EXPECT_LT(3UL, progress->reads);
	rmdir(third);
}

static void fault_on_it(int nr)
{
	int prot = nr ? PROT_READ : PROT_READ | PROT_WRITE, sig;
	char *p = map_file(up("a"), SIZE, prot, nr == 2 ? MAP_PRIVATE : MAP_SHARED);
	volatile char *at;
	int i;

	if (p == MAP_FAILED)
		return;
	for (i = 0; i < 64; i++) {
		at = p + random() % (SIZE / PAGE) * PAGE;
		/* Beyond the end, for as long as it is cut off. */
		sig = FAULTS(nr ? (void)*at : (void)(*at = 'x'));
		if (sig && sig != SIGBUS)
			one_more(&progress->wrong);
	}
	munmap(p, SIZE);
	one_more(&progress->reads);
}

enum { TRUNCATE, PUNCH, CLONE, FREEZE, UMOUNT, CHANGES };

static int change_it(int what)
{
	const char *mnt = getenv("DEDUPFS_MNT");
	int fd = open(what == FREEZE ? up(".") : up("a"), what == FREEZE ? O_RDONLY : O_RDWR);
	int twin = open(up("twin"), O_RDONLY), ret = 0;

	switch (what) {
	case TRUNCATE:
		ret = ftruncate(fd, random() % SIZE) ?: ftruncate(fd, SIZE);
		break;
	case PUNCH:
		ret = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				random() % SIZE, random() % (64 * PAGE) + 1);
		break;
	case CLONE:
		ret = ioctl(fd, FICLONE, twin);
		break;
	case FREEZE:
		ret = ioctl(fd, FIFREEZE, 0);
		usleep(20000);
		ret |= ioctl(fd, FITHAW, 0);
		break;
	case UMOUNT:
		/* It is in use: by this file, if by nothing else. */
		ret = umount2(mnt, 0) == 0 || errno != EBUSY;
		break;
	}
	close(fd);
	close(twin);
	return ret;
}

static const char *const names[] = { "truncate", "punch", "clone", "freeze", "umount" };

TEST_F(files, faults_while_it_changes)
{
	unsigned long before;
	int what, i, failed;
	pid_t pid[4];
	double end;

	alarm(120 * TIME_FACTOR);
	progress = shared_page();
	for (what = TRUNCATE; what < CHANGES; what++) {
		progress->stop = false;
		before = progress->reads;
		failed = 0;
		for (i = 0; i < 4; i++)
			pid[i] = start(fault_on_it, i);
		end = now() + 2 * TIME_FACTOR;
		for (i = 0; now() < end || i < 5; i++) {
			failed += !!change_it(what);
			usleep(1000);
		}
		EXPECT_TRUE(end_all(pid, 4));
		EXPECT_EQ(0, failed) TH_LOG("%s", names[what]);
		EXPECT_LT(before + 3, progress->reads) TH_LOG("%s", names[what]);
	}
	EXPECT_EQ(0UL, progress->wrong);
	EXPECT_EQ(hash_read(low("a"), MiB), hash_read(up("a"), MiB));
	EXPECT_EQ(hash_read(low("a"), MiB), hash_map(up("a"), MiB, MAP_SHARED));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

/*
 * Memory is short and most of what can be had is the pool's: an operation of
 * the lower filesystem that needs memory takes it there, with what it holds.
 */
static void make_names(int nr)
{
	char *(*at)(const char *fmt, ...) = nr % 2 ? up : low;
	char buf[256] = "";
	int i, fd;

	mkdir(at("d%d", nr), 0755);
	for (i = 0; i < 200; i++) {
		fd = open(at("d%d/f%d", nr, i), O_RDWR | O_CREAT, 0644);
		if (fd < 0)
			die("create");
		write_all(fd, buf, sizeof(buf), 0);
		fsetxattr(fd, "user.x", buf, sizeof(buf), 0);
		if (i % 50 == 0)
			fsync(fd);
		close(fd);
		one_more(&progress->ops);
	}
	for (i = 0; i < 200; i++) {
		if (i % 3 == 0)
			rename(at("d%d/f%d", nr, i), at("d%d/g", nr));
		else if (unlink(at("d%d/f%d", nr, i)))
			die("unlink");
	}
	unlink(at("d%d/g", nr));
}

#define POOLED	(48 * MiB)

static void read_pool_file(int nr)
{
	static char buf[MiB];
	off_t at = random() % (POOLED / MiB) * MiB;
	int fd = open(up("pooled%d", nr), O_RDONLY);

	if (pread(fd, buf, MiB, at) != (ssize_t)MiB || mismatch(buf, MiB, 3, at) != -1)
		one_more(&progress->wrong);
	close(fd);
	one_more(&progress->reads);
}

TEST_F(files, reclaims_in_the_middle_of_things)
{
	long evictions = pool("evictions"), full;
	pid_t pid[6];
	int i, hogs;
	char *p;

	alarm(100 * TIME_FACTOR);
	progress = shared_page();
	make_file(low("pooled0"), POOLED, 3);
	make_clone(low("pooled0"), low("pooled1"));
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("pooled0"), POOLED, 3));
	full = pool("pages");
	/* There is no swap: what is touched stays.  Until it hurts. */
	for (hogs = 0; hogs < 4096; hogs++) {
		if (meminfo("MemAvailable") < 16 * (long)MiB ||
		    pool("evictions") - evictions > 1000)
			break;
		p = mmap(NULL, 2 * MiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ASSERT_NE(MAP_FAILED, p);
		for (i = 0; i < (int)(2 * MiB); i += PAGE)
			p[i] = 1;
	}
	/* What follows is those who are in the middle of things. */
	evictions = pool("evictions");
	for (i = 0; i < 6; i++)
		pid[i] = start(i < 4 ? make_names : read_pool_file, i < 4 ? i : i - 4);
	sleep(6 * TIME_FACTOR);
	EXPECT_TRUE(end_all(pid, 6));
	TH_LOG("%d MiB taken, %lu files made, %lu times read, %ld pages full, %ld evictions",
	       2 * hogs, progress->ops, progress->reads, full, pool("evictions") - evictions);
	EXPECT_EQ(0UL, progress->wrong);
	EXPECT_LT(200UL, progress->ops);
	if (have_pool)
		EXPECT_LT(evictions + 100, pool("evictions"));
	for (i = 0; i < 4; i++)
		rm_rf(low("d%d", i));
	unlink(low("pooled0"));
	unlink(low("pooled1"));
}

TEST_HARNESS_MAIN
