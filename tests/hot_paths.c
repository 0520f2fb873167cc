// SPDX-License-Identifier: GPL-2.0-only
/*
 * What makes the pool cheap, counted and not timed: a warm file is read without
 * one of the filesystem below being opened, a fault maps its neighbours, a
 * sequential read finds the next window on its way, and the kernel counts the
 * pool's pages as memory that can be had.
 */
#include "common.h"

#define SIZE	(8 * MiB)
#define FILES	400
/* What the kernel's own counters may be off by: they are kept by processor. */
#define SLACK	150

static long open_files(void)
{
	char text[128];

	if (read_text("/proc/sys/fs/file-nr", text, sizeof(text)) <= 0)
		die("file-nr");
	return strtol(text, NULL, 10);
}

static long minor_faults(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return u.ru_minflt;
}

static void read_start(int fd)
{
	char page[PAGE];

	if (pread(fd, page, PAGE, 0) != PAGE)
		die("pread");
}

/* Files that stay open while FILES are open for reading, and have been read. */
static long files_taken(const char *path)
{
	long before = open_files(), taken;
	int fd[FILES], i;

	for (i = 0; i < FILES; i++) {
		fd[i] = open(path, O_RDONLY | O_CLOEXEC);
		if (fd[i] < 0)
			die("%s", path);
		read_start(fd[i]);
	}
	taken = open_files() - before;
	for (i = 0; i < FILES; i++)
		close(fd[i]);
	return taken;
}

/* Minor faults of touching each page of a mapping in order; all is cached. */
static long faults_taken(const char *path)
{
	char *p = map_file(path, SIZE, PROT_READ, MAP_PRIVATE);
	long before = minor_faults(), taken;

	if (p == MAP_FAILED)
		die("mmap %s", path);
	touch(p, SIZE);
	taken = minor_faults() - before;
	munmap(p, SIZE);
	return taken;
}

/* Bytes that come from the disk after a reader of the first @len bytes has stopped. */
static long read_ahead(const char *path, size_t len)
{
	char *buf = malloc(len);
	int fd = open(path, O_RDONLY | O_CLOEXEC), tries;
	long before = disk_read_bytes();
	size_t off;

	for (off = 0; off < len; off += 16 * KiB) {
		if (pread(fd, buf, 16 * KiB, off) != 16 * KiB)
			die("pread %s", path);
	}
	for (tries = 0; tries < 200 && disk_read_bytes() - before <= (long)len; tries++)
		usleep(10000);
	close(fd);
	free(buf);
	return disk_read_bytes() - before - (long)len;
}

FIXTURE(clones) {
};

FIXTURE_SETUP(clones)
{
	struct rlimit files = { 4096, 4096 };

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &files));
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("b"));
	drop_caches("3");
}

FIXTURE_TEARDOWN(clones)
{
	unlink(low("a"));
	unlink(low("b"));
}

TEST_F(clones, warm_files_are_not_opened_below)
{
	long below, above;

	ASSERT_EQ(-1, check_file(up("a"), SIZE, 1));
	ASSERT_EQ(-1, check_file(up("b"), SIZE, 1));
	below = files_taken(low("b"));
	above = files_taken(up("b"));
	TH_LOG("%d files: %ld of the kernel's below, %ld through the mount", FILES, below, above);
	EXPECT_LE(FILES - SLACK, below);
	EXPECT_GE(FILES + SLACK, above);
}

TEST_F(clones, a_fault_maps_its_neighbours)
{
	long below, above;

	ASSERT_EQ(-1, check_file(up("a"), SIZE, 1));
	ASSERT_EQ(-1, check_file(up("b"), SIZE, 1));
	ASSERT_EQ(-1, check_file(low("b"), SIZE, 1));
	below = faults_taken(low("b"));
	above = faults_taken(up("b"));
	TH_LOG("%lu pages: %ld faults below, %ld through the mount", SIZE / PAGE, below, above);
	EXPECT_LE(above, below);
	EXPECT_LE(above, (long)(SIZE / PAGE) / 16 + 4);
}

/* The wall between two windows is not waited at. */
TEST_F(clones, the_next_window_is_on_its_way)
{
	const size_t len = 96 * PAGE;	/* where a window ends */
	long below, above;

	hash_read(low("b"), PAGE);
	drop_caches("3");
	below = read_ahead(low("b"), len);
	drop_caches("3");
	above = read_ahead(up("b"), len);
	TH_LOG("%ld KiB read ahead below, %ld KiB through the mount", below / 1024, above / 1024);
	ASSERT_LT(0, below);
	EXPECT_LE(64 * (long)KiB, above);
}

TEST_F(clones, the_kernel_counts_it_as_reclaimable)
{
	long reclaimable, available, pages, fill = 64 * PAGE;

	drop_caches("3");
	/* What was freed by then is given back a little later. */
	do {
		reclaimable = meminfo("KReclaimable");
		usleep(200000);
	} while (labs(meminfo("KReclaimable") - reclaimable) > fill / 8);
	pages = pool("pages");
	reclaimable = meminfo("KReclaimable");
	available = meminfo("MemAvailable");
	ASSERT_EQ(-1, check_file(up("a"), SIZE, 1));
	pages = pool("pages") - pages;
	EXPECT_EQ(SIZE / PAGE, pages);
	/* (Slab that comes and goes meanwhile is small.) */
	EXPECT_LE((long)SIZE - fill, meminfo("KReclaimable") - reclaimable);
	/* It takes off up to a half of what is reclaimable, for fragmentation. */
	EXPECT_GE((long)SIZE * 3 / 4, available - meminfo("MemAvailable"));
	drop_caches("2");
	EXPECT_GT(fill, meminfo("KReclaimable") - reclaimable);
}

TEST_HARNESS_MAIN
