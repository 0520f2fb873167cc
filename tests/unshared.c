// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files that share nothing.  XFS: plain, the pool does not grow and the page
 * cache is used exactly as on the lower filesystem.  btrfs (FIEMAP cannot
 * tell cheaply): one copy, wherever it is.
 */
#include "common.h"

#define SIZE	(16 * MiB)

/* RAM that @use of a fresh file costs. */
static long cost(void (*use)(const char *path), bool through, long *pooled)
{
	long cache, pages;

	make_file(low("f"), SIZE, 1);
	drop_caches("3");
	fiemap(low("f"), NULL, 0);
	cache = cache_bytes();
	pages = pool("pages");
	use(through ? up("f") : low("f"));
	*pooled = pool("pages") - pages;
	cache = cache_bytes() - cache;
	unlink(low("f"));
	return cache;
}

static void read_it(const char *path)
{
	if (check_file(path, SIZE, 1) != -1)
		die("%s: wrong data", path);
}

static void map_it(const char *path)
{
	char *p = map_file(path, SIZE, PROT_READ, MAP_SHARED);

	if (mismatch(p, SIZE, 1, 0) != -1)
		die("%s: wrong data", path);
	munmap(p, SIZE);
}

static void use_as_database(const char *path)
{
	char page[PAGE];
	char *p = map_file(path, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	int fd = open(path, O_RDWR), i;
	size_t at;

	for (i = 0; i < 400; i++) {
		at = mix(i) % (SIZE / PAGE) * PAGE;
		if (pread(fd, page, PAGE, at) != PAGE)
			die("pread");
		fill(page, PAGE, 100 + i, 0);
		if (i % 4 == 3)
			memcpy(p + at, page, PAGE);
		else
			write_all(fd, page, PAGE, at);
		if (i % 100 == 99 && fdatasync(fd))
			die("fdatasync");
		if (memcmp(p + at, page, PAGE))
			die("%s: the mapping does not see the write", path);
	}
	munmap(p, SIZE);
	close(fd);
}

FIXTURE(file) {
};

FIXTURE_VARIANT(file) {
	void (*use)(const char *path);
};

FIXTURE_VARIANT_ADD(file, read) { .use = read_it };
FIXTURE_VARIANT_ADD(file, mapped) { .use = map_it };
FIXTURE_VARIANT_ADD(file, database) { .use = use_as_database };

FIXTURE_SETUP(file) {}
FIXTURE_TEARDOWN(file) {}

TEST_F(file, costs_what_it_costs_below)
{
	long pooled, below, through;

	cost(variant->use, false, &pooled);	/* the first run pays for code pages */
	below = cost(variant->use, false, &pooled);
	through = cost(variant->use, true, &pooled);
	TH_LOG("RAM: below %ld KiB, through the mount %ld KiB, of these %ld pages in the pool",
	       below / 1024, through / 1024, pooled);
	EXPECT_LE(through, below + (long)SIZE / 50);
	if (!btrfs)
		EXPECT_EQ(0, pooled);
}

TEST_HARNESS_MAIN
