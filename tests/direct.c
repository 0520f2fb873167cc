// SPDX-License-Identifier: GPL-2.0-only
/*
 * O_DIRECT both ways: on files with shared blocks, from and into mapped pages
 * of such files, mixed with reads, writes and mappings of the page cache.
 */
#include "common.h"

#define SIZE	(64 * PAGE)

static char *buf;

static void direct_read(void)
{
	static const struct { off_t off; size_t len; } places[] = {
		{ 0, PAGE }, { 0, SIZE }, { 512, 512 }, { PAGE, 7 * PAGE }, { SIZE - PAGE, 2 * PAGE },
		{ SIZE, PAGE }, { 100, PAGE }, { 0, 100 }, { 3 * PAGE, 512 },
	};
	static const char * const names[] = { "a", "a.twin", "plain", "odd" };
	unsigned int i, k;
	int fd;

	buf = aligned_alloc(PAGE, 2 * SIZE);
	make_file("plain", SIZE, 2);
	make_file("odd", SIZE - 1000, 3);
	make_pooled("a", SIZE, 1);
	for (k = 0; k < 8; k++) {
		fd = DO(open(names[k % 4], O_RDONLY | O_DIRECT));
		for (i = 0; i < sizeof(places) / sizeof(*places); i++) {
			memset(buf, 0x33, 2 * SIZE);
			VAL(pread(fd, buf, places[i].len, places[i].off));
			say("%lx", hash(buf, 2 * SIZE, 1));
		}
		VAL(pread(fd, buf + 100, PAGE, 0));
		close(fd);
		/* The second time round all is in memory. */
		say_file(names[k % 4]);
	}
}

TEST(reads)
{
	SAME(direct_read);
}

static void direct_write(void)
{
	int fd, ro;
	char *p;

	buf = aligned_alloc(PAGE, SIZE);
	make_pooled("a", SIZE, 1);
	say_file("a");
	say_file("a.twin");
	p = map_file("a", SIZE, PROT_READ, MAP_SHARED);
	touch(p, SIZE / 2);
	fd = DO(open("a", O_RDWR | O_DIRECT));
	ro = open("a", O_RDONLY);
	fill(buf, SIZE, 5, 0);
	VAL(pwrite(fd, buf, 2 * PAGE, 3 * PAGE));
	VAL(pread(ro, buf + 8 * PAGE, 6 * PAGE, PAGE));
	say("%lx", hash(buf, 14 * PAGE, 1));
	say("mapped %lx", hash(p, SIZE, 1));
	say_file("a");
	VAL(pwrite(fd, buf, 512, 20 * PAGE + 512));
	VAL(pwrite(fd, buf, 100, 0));
	VAL(pwrite(fd, buf, PAGE, 100));
	VAL(pwrite(fd, buf + 1, PAGE, 0));
	VAL(pwrite(fd, buf, 4 * PAGE, SIZE - PAGE));
	VAL(pwrite(fd, buf, PAGE, SIZE + 20 * PAGE));
	say("mapped %lx", hash(p, SIZE, 1));
	say_file("a");
	say_file("a.twin");
	/* Mixed with the page cache. */
	VAL(pwrite(open("a", O_RDWR), buf, 5000, 30 * PAGE + 50));
	VAL(pread(fd, buf, 4 * PAGE, 29 * PAGE));
	say("%lx", hash(buf, 4 * PAGE, 1));
	VAL(pwrite(fd, buf, PAGE, 31 * PAGE));
	say_file("a");
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
}

TEST(writes)
{
	SAME(direct_write);
}

/* The memory of a direct read or write is itself a mapping of a shared file. */
static void mapped_memory(void)
{
	int fd, out;
	char *p, *q;

	make_pooled("a", SIZE, 1);
	make_pooled("b", SIZE, 2);
	out = open("out", O_RDWR | O_CREAT | O_DIRECT, 0644);
	/* From a mapping, private and shared, touched and not. */
	p = map_file("a", SIZE, PROT_READ, MAP_PRIVATE);
	touch(p, SIZE / 2);
	VAL(pwrite(out, p, SIZE, 0));
	say_file("out");
	q = map_file("a.twin", SIZE, PROT_READ, MAP_SHARED);
	VAL(pwrite(out, q, SIZE, 0));
	say_file("out");
	/* Into one: refused where it may not be written ... */
	fd = open("b", O_RDONLY | O_DIRECT);
	VAL(pread(fd, p, PAGE, 0));
	munmap(p, SIZE);
	munmap(q, SIZE);
	/* ... private: a copy ... */
	p = map_file("a", SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	touch(p, SIZE / 2);
	VAL(pread(fd, p + 10 * PAGE, 40 * PAGE, 0));
	say("%lx", hash(p, SIZE, 1));
	say_file("a");
	/* ... shared: the file. */
	q = map_file("a", SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(q, SIZE / 2);
	VAL(pread(fd, q + 10 * PAGE, 40 * PAGE, 0));
	say("%lx", hash(q, SIZE, 1));
	DO(msync(q, SIZE, MS_SYNC));
	say_file("a");
	say_file("a.twin");
	say_file("b");
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
	say_file("b");
}

/*
 * btrfs itself loses the pages of a direct read into a shared mapping that
 * write-back cleans before the read has ended (EUCLEAN): not while we look.
 */
#define WRITEBACK_TIMER	"/proc/sys/vm/dirty_writeback_centisecs"

TEST(from_and_into_mappings)
{
	ASSERT_EQ(0, write_text(WRITEBACK_TIMER, "0"));
	SAME(mapped_memory);
	ASSERT_EQ(0, write_text(WRITEBACK_TIMER, "500"));
}

static void flags(void)
{
	loff_t from = 100;
	int fd, out;

	buf = aligned_alloc(PAGE, SIZE);
	make_pooled("a", SIZE, 1);
	fd = open("a", O_RDWR);
	VAL(fcntl(fd, F_GETFL) & O_DIRECT);
	DO(fcntl(fd, F_SETFL, O_DIRECT));
	VAL(!!(fcntl(fd, F_GETFL) & O_DIRECT));
	VAL(pread(fd, buf, 100, 3));
	VAL(pread(fd, buf, PAGE, PAGE));
	say("%lx", hash(buf, PAGE, 1));
	VAL(pwrite(fd, buf, PAGE, 2 * PAGE));
	/* The lower file must have it as well: it is what is copied from. */
	out = open("out", O_WRONLY | O_CREAT | O_TRUNC, 0644);
	VAL(copy_file_range(fd, &from, out, NULL, 1000, 0));
	say_file("out");
	close(out);
	DO(fcntl(fd, F_SETFL, 0));
	VAL(pread(fd, buf, 100, 3));
	say("%lx", hash(buf, 100, 1));
	say_file("a");
	say_file("a.twin");
}

TEST(switched_by_fcntl)
{
	SAME(flags);
}

TEST_HARNESS_MAIN
