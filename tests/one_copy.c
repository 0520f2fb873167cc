// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 700
 *
 * 24 clones of a tree, all read through the mount, cost one copy in RAM, and
 * clones 2 to 24 read no data from the disk.  (XFS alone: 24 copies.)
 */
#include "common.h"

#define CLONES	24
#define SMALL	40

static size_t size_of(int file)
{
	/* One big file, and small ones that end anywhere in a page. */
	return file ? 3000 + (file * 7919) % (60 * KiB) : 16 * MiB;
}

static size_t tree_pages(void)
{
	size_t n = 0;
	int f;

	for (f = 0; f <= SMALL; f++)
		n += (size_of(f) + PAGE - 1) / PAGE;
	return n;
}

static void make_original(void)
{
	int f;

	for (f = 0; f <= SMALL; f++)
		make_file(low("0/f%d", f), size_of(f), f);
}

static void make_reflinks(void)
{
	int c, f;

	mkdir(low("0"), 0755);
	make_original();
	for (c = 1; c < CLONES; c++) {
		mkdir(low("%d", c), 0755);
		for (f = 0; f <= SMALL; f++)
			make_clone(low("0/f%d", f), low("%d/f%d", c, f));
	}
}

static void make_snapshots(void)
{
	int c;

	if (subvol_create(low("0")))
		die("subvolume");
	make_original();
	sync();
	for (c = 1; c < CLONES; c++)
		if (subvol_snapshot(low("0"), low("%d", c), 0))
			die("snapshot");
}

/*
 * Only data is counted: have the metadata in memory, and access times that no
 * read moves (btrfs would copy a leaf of each snapshot for them).
 */
static void read_metadata(void)
{
	struct timespec t[2] = { { time(NULL) + 3600, 0 }, { 0, UTIME_OMIT } };
	int c, f;

	for (c = 0; c < CLONES; c++) {
		for (f = 0; f <= SMALL; f++)
			utimensat(AT_FDCWD, low("%d/f%d", c, f), t, 0);
	}
	drop_caches("3");
	for (c = 0; c < CLONES; c++) {
		for (f = 0; f <= SMALL; f++) {
			if (fiemap(low("%d/f%d", c, f), NULL, 0) < 1)
				die("fiemap");
		}
	}
}

static int wrong_files(int clone, char *want[])
{
	int f, wrong = 0;

	for (f = 0; f <= SMALL; f++)
		wrong += differs_from(up("%d/f%d", clone, f), want[f], size_of(f)) >= 0;
	return wrong;
}

FIXTURE(tree) {
	char *want[SMALL + 1];
};

FIXTURE_VARIANT(tree) {
	void (*make)(void);
};

FIXTURE_VARIANT_ADD(tree, reflinks) { .make = make_reflinks };
FIXTURE_VARIANT_ADD(tree, snapshots) { .make = make_snapshots };

FIXTURE_SETUP(tree)
{
	int f;

	if (variant->make == make_snapshots && !btrfs)
		SKIP(return, "XFS has no snapshots");
	for (f = 0; f <= SMALL; f++) {
		self->want[f] = malloc(size_of(f));
		fill(self->want[f], size_of(f), f, 0);
	}
	variant->make();
	read_metadata();
}

FIXTURE_TEARDOWN(tree)
{
	int c;

	for (c = 0; c < CLONES; c++)
		rm_rf(low("%d", c));
}

TEST_F_TIMEOUT(tree, read, 250 * TIME_FACTOR)
{
	long size = tree_pages() * PAGE, cache, disk_first, disk_rest, grown, fills;
	int c;

	cache = cache_bytes();
	disk_first = disk_read_bytes();
	EXPECT_EQ(0, wrong_files(0, self->want));
	disk_rest = disk_read_bytes();
	fills = pool("fills");
	for (c = 1; c < CLONES; c++)
		EXPECT_EQ(0, wrong_files(c, self->want));
	EXPECT_EQ(fills, pool("fills"));

	grown = cache_bytes() - cache;
	TH_LOG("%.3f copies in RAM; read from disk: clone 1 %ld KiB, the others %ld KiB",
	       1.0 * grown / size, (disk_rest - disk_first) / 1024,
	       (disk_read_bytes() - disk_rest) / 1024);
	EXPECT_LE(grown, size * 103 / 100);
	/* Less than one copy would mean that something is not counted. */
	EXPECT_GE(grown, size * 97 / 100);
	/* Some metadata may still be read. */
	EXPECT_LE(disk_read_bytes() - disk_rest, 512 * (long)KiB);

	/* And once more, in another order, from memory alone. */
	disk_rest = disk_read_bytes();
	for (c = CLONES - 1; c >= 0; c--)
		EXPECT_EQ(0, wrong_files(c, self->want));
	EXPECT_LE(disk_read_bytes() - disk_rest, 512 * (long)KiB);
	EXPECT_LE(cache_bytes() - cache, size * 103 / 100);
}

/* All clones at the same moment, by a process each. */
TEST_F_TIMEOUT(tree, read_at_once, 250 * TIME_FACTOR)
{
	long size = tree_pages() * PAGE, cache = cache_bytes(), grown;
	int c, status, wrong = 0;
	pid_t pid[CLONES];

	for (c = 0; c < CLONES; c++) {
		pid[c] = fork();
		if (!pid[c])
			_exit(wrong_files(c, self->want) != 0);
	}
	for (c = 0; c < CLONES; c++) {
		ASSERT_EQ(pid[c], waitpid(pid[c], &status, 0));
		wrong += status != 0;
	}
	EXPECT_EQ(0, wrong);
	grown = cache_bytes() - cache;
	TH_LOG("%.3f copies in RAM", 1.0 * grown / size);
	EXPECT_LE(grown, size * 103 / 100);
	EXPECT_GE(grown, size * 97 / 100);
}

TEST_HARNESS_MAIN
