// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every fallocate mode, at aligned and other places, on files that are shared
 * and mapped: same result, size, content and errno as below.
 */
#include "common.h"

#define SIZE	(48 * PAGE + 123)

static const struct { const char *name; int mode; } modes[] = {
	{ "allocate", 0 },
	{ "keep size", FALLOC_FL_KEEP_SIZE },
	{ "punch", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE },
	{ "punch without keep size", FALLOC_FL_PUNCH_HOLE },
	{ "zero", FALLOC_FL_ZERO_RANGE },
	{ "zero, keep size", FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE },
	{ "collapse", FALLOC_FL_COLLAPSE_RANGE },
	{ "insert", FALLOC_FL_INSERT_RANGE },
	{ "unshare", FALLOC_FL_UNSHARE_RANGE },
	{ "unshare, keep size", FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE },
	{ "collapse and insert", FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE },
	{ "unknown", 0x800 },
};

static const struct { off_t off, len; } places[] = {
	{ 0, PAGE }, { 3 * PAGE, 4 * PAGE }, { 5 * PAGE + 10, 3 * PAGE }, { 7 * PAGE + 1, 100 },
	{ 40 * PAGE, 30 * PAGE }, { SIZE, 5 * PAGE }, { SIZE + 10 * PAGE, PAGE }, { 0, SIZE },
	{ 0, 0 }, { -1, 10 }, { 10, -1 },
};

FIXTURE(mode) {
};

FIXTURE_VARIANT(mode) {
	int first, last;
};

static int first, last;

FIXTURE_VARIANT_ADD(mode, allocate) { 0, 1 };
FIXTURE_VARIANT_ADD(mode, punch) { 2, 3 };
FIXTURE_VARIANT_ADD(mode, zero) { 4, 5 };
FIXTURE_VARIANT_ADD(mode, collapse) { 6, 6 };
FIXTURE_VARIANT_ADD(mode, insert) { 7, 7 };
FIXTURE_VARIANT_ADD(mode, unshare) { 8, 9 };
FIXTURE_VARIANT_ADD(mode, invalid) { 10, 11 };

FIXTURE_SETUP(mode)
{
	first = variant->first;
	last = variant->last;
}

FIXTURE_TEARDOWN(mode) {}

static void each(void)
{
	unsigned int i;
	char *map;
	int m, fd;

	for (m = first; m <= last; m++) {
		for (i = 0; i < sizeof(places) / sizeof(*places); i++) {
			say("%s, place %u", modes[m].name, i);
			/* Settled and shared; made here from one original, to save time. */
			if (access("original", F_OK))
				make_pooled("original", SIZE, 1);
			make_clone("original", "a");
			say_file("a");
			map = map_file("a", SIZE, PROT_READ, MAP_SHARED);
			touch(map, SIZE);
			fd = open("a", O_RDWR);
			DO(fallocate(fd, modes[m].mode, places[i].off, places[i].len));
			say_file("a");
			say("mapped %lx", FAULTS(touch(map, SIZE)) ? 0 : hash(map, SIZE & -PAGE, 1));
			DO(pwrite(fd, "x", 1, 6 * PAGE + 5));
			say_file("a");
			DO(fsync(fd));
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
			say_file("a");
			close(fd);
			munmap(map, SIZE);
			DO(unlink("a"));
		}
		say_file("original");
		say_file("original.twin");
	}
}

TEST_F(mode, at_all_places)
{
	SAME(each);
}

static void permissions(void)
{
	int fd;

	make_pooled("a", SIZE, 1);
	fd = open("a", O_RDONLY);
	DO(fallocate(fd, 0, 0, PAGE));
	fd = open("a", O_RDWR | O_APPEND);
	DO(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE));
	say_file("a");
	fd = open(".", O_RDONLY);
	DO(fallocate(fd, 0, 0, PAGE));
	mkfifo("fifo", 0644);
	fd = open("fifo", O_RDWR);
	DO(fallocate(fd, 0, 0, PAGE));
	/* Allocated ahead, then written: unwritten extents become data. */
	fd = open("b", O_RDWR | O_CREAT, 0644);
	DO(fallocate(fd, 0, 0, 20 * PAGE));
	say_file("b");
	VAL(pwrite(fd, "abc", 3, 5 * PAGE + 5));
	say_file("b");
	DO(fsync(fd));
	make_clone("b", "c");
	drop_caches("3");
	say_file("b");
	say_file("c");
	VAL(pwrite(fd, "def", 3, 9 * PAGE + 5));
	say_file("b");
	say_file("c");
}

TEST(on_what_it_works)
{
	SAME(permissions);
}

TEST_HARNESS_MAIN
