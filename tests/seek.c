// SPDX-License-Identifier: GPL-2.0-only
/*
 * lseek: SEEK_DATA and SEEK_HOLE find what they find below, clean and dirty.
 */
#include "common.h"

#define SIZE	(256 * KiB + 100)

static void seek_all(const char *name)
{
	int fd = open(name, O_RDONLY);
	off_t at = 0, data, hole;

	say("%s", name);
	while (at >= 0) {
		data = VAL(lseek(fd, at, SEEK_DATA));
		if (data < 0)
			break;
		hole = VAL(lseek(fd, data, SEEK_HOLE));
		at = hole;
	}
	VAL(lseek(fd, 5000, SEEK_DATA));
	VAL(lseek(fd, 5000, SEEK_HOLE));
	VAL(lseek(fd, SIZE - 1, SEEK_HOLE));
	VAL(lseek(fd, SIZE, SEEK_HOLE));
	VAL(lseek(fd, SIZE + 10 * PAGE, SEEK_DATA));
	VAL(lseek(fd, -1, SEEK_DATA));
	VAL(lseek(fd, 0, SEEK_END));
	VAL(lseek(fd, 0, 99));
	VAL(lseek(fd, 0, SEEK_CUR));
	close(fd);
}

static void holes(void)
{
	char buf[PAGE];
	int fd, i;

	fill(buf, PAGE, 1, 0);
	fd = open("a", O_RDWR | O_CREAT, 0644);
	seek_all("a");
	/* In this order: XFS takes space in advance behind what makes a file longer. */
	ftruncate(fd, SIZE);
	for (i = 0; i < 4; i++)
		write_all(fd, buf, PAGE, i * 64 * KiB);
	fsync(fd);
	seek_all("a");
	make_clone("a", "b");
	drop_caches("3");
	seek_all("a");
	seek_all("b");
	say_file("a");
	say_file("b");
	seek_all("b");
	/* Dirty data is data; a punched hole is one. */
	write_all(fd, buf, PAGE, 32 * KiB);
	seek_all("a");
	seek_all("b");
	DO(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 * PAGE));
	seek_all("a");
	fsync(fd);
	seek_all("a");
	seek_all("b");
	make_pooled("full", SIZE, 1);
	seek_all("full");
	seek_all("full.twin");
	fd = open("prealloc", O_RDWR | O_CREAT, 0644);
	fallocate(fd, 0, 0, 64 * KiB);
	write_all(fd, buf, PAGE, 16 * KiB);
	fsync(fd);
	seek_all("prealloc");
}

TEST(data_and_holes)
{
	SAME(holes);
}

TEST_HARNESS_MAIN
