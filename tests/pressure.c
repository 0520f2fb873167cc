// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 300
 *
 * The pool gives way: it holds most of the memory, then a process demands 1.5
 * times the RAM, a half of it anonymous memory and the rest files.  Nobody is
 * killed, the pool shrinks, and the data are right afterwards.  (The page cache
 * of plain XFS survives the same.)
 */
#include "common.h"

/* Of RAM: what is anonymous, the file that fills the pool, and each of two others. */
#define ANON		75
#define FILE_SIZE	60
#define OTHER_SIZE	15

static size_t file_size, other_size;

/* Pages that carry their number and are otherwise alike: cheap to make. */
static void stamp(char *page, size_t index)
{
	((uint64_t *)page)[0] = mix(index + 1);
	((uint64_t *)page)[511] = index;
}

static void make_big(const char *path)
{
	const size_t step = MiB;
	char *buf = mmap(NULL, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open(path, O_WRONLY | O_CREAT | O_DIRECT, 0644);
	size_t off, i;

	fill(buf, step, 1, 0);
	for (off = 0; off < file_size; off += step) {
		for (i = 0; i < step; i += PAGE)
			stamp(buf + i, (off + i) / PAGE);
		write_all(fd, buf, step, off);
	}
	if (fsync(fd))
		die("fsync");
	close(fd);
	munmap(buf, step);
}

/* Pages that are not as make_big() made them. */
static long wrong_pages(const char *path)
{
	const size_t step = MiB;
	char *buf = malloc(step), *want = malloc(step);
	size_t off, i;
	long n = 0;
	int fd = open(path, O_RDONLY);

	fill(want, step, 1, 0);
	for (off = 0; off < file_size; off += step) {
		if (pread(fd, buf, step, off) != (ssize_t)step)
			die("read %s at %zu", path, off);
		for (i = 0; i < step; i += PAGE)
			stamp(want + i, (off + i) / PAGE);
		for (i = 0; memcmp(buf, want, step) && i < step; i += PAGE)
			n += !!memcmp(buf + i, want + i, PAGE);
	}
	close(fd);
	free(buf);
	free(want);
	return n;
}

static void read_eighth(const char *path, size_t size, int nr)
{
	static char buf[256 * KiB];
	int fd = open(path, O_RDONLY);
	size_t off;

	for (off = size / 8 * nr; off < size / 8 * (nr + 1); off += sizeof(buf))
		pread(fd, buf, sizeof(buf), off);
	close(fd);
}

/*
 * In a child: fill @size of anonymous memory, and read meanwhile all of the
 * pooled file, and a half of each of the others.
 */
static void demand(size_t size)
{
	size_t part = size / 8 / PAGE * PAGE, off;
	char *p;
	int i;

	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		_exit(2);
	for (i = 0; i < 8; i++) {
		for (off = part * i; off < part * (i + 1); off += PAGE)
			p[off] = i + 1;
		read_eighth(low("other%d", i % 2), other_size, i);
		read_eighth(up("clone"), file_size, i);
	}
	for (off = 0; off < part * 8; off += PAGE) {
		if (p[off] != (char)(off / part + 1))
			_exit(3);
	}
	_exit(0);
}

FIXTURE(pool) {
};

FIXTURE_SETUP(pool)
{
	file_size = meminfo("MemTotal") * FILE_SIZE / 100 / MiB * MiB;
	other_size = meminfo("MemTotal") * OTHER_SIZE / 100 / MiB * MiB;
	make_big(low("original"));
	make_clone(low("original"), low("clone"));
	make_file(low("other0"), other_size, 2);
	make_file(low("other1"), other_size, 3);
	drop_caches("3");
}

FIXTURE_TEARDOWN(pool)
{
	unlink(low("original"));
	unlink(low("clone"));
	unlink(low("other0"));
	unlink(low("other1"));
}

TEST_F_TIMEOUT(pool, gives_way_to_demand, 200 * TIME_FACTOR)
{
	long killed = vmstat("oom_kill"), full, after;
	int status;
	pid_t pid;
	char *map;

	EXPECT_EQ(0, wrong_pages(up("clone")));
	full = pool("pages");
	if (have_pool)
		EXPECT_LE((long)(file_size / PAGE) * 9 / 10, full);
	/* What the pool holds can be had, and the kernel says so. */
	EXPECT_LE((long)file_size * 9 / 10, meminfo("MemAvailable"));

	/* Part of it is mapped: that too must give way. */
	map = map_file(up("original"), file_size, PROT_READ, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, map);
	touch(map, file_size / 2);

	pid = fork();
	if (!pid)
		demand(meminfo("MemTotal") * ANON / 100);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status) TH_LOG("the process that demanded memory did not end well");
	EXPECT_EQ(killed, vmstat("oom_kill"));
	after = pool("pages");
	TH_LOG("pool: %ld pages when full, %ld after the demand", full, after);
	if (have_pool)
		EXPECT_LE(after, full * 6 / 10);

	EXPECT_EQ(0, wrong_pages(up("clone")));
	EXPECT_EQ(0, wrong_pages(up("original")));
}

TEST_F(pool, empties_on_drop_caches)
{
	EXPECT_EQ(0, wrong_pages(up("clone")));
	drop_caches("2");
	drop_caches("2");
	if (have_pool)
		EXPECT_GE((long)(file_size / PAGE) / 20, pool("pages"));
	EXPECT_EQ(0, wrong_pages(up("clone")));
}

TEST_HARNESS_MAIN
