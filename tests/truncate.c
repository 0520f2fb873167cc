// SPDX-License-Identifier: GPL-2.0-only
/*
 * truncate both ways, of files that are shared, mapped, open and dirty.
 */
#include "common.h"

#define SIZE	(30 * PAGE + 1000)

static void sizes(void)
{
	static const off_t to[] = {
		SIZE - 1, SIZE, SIZE + 1, 30 * PAGE, 29 * PAGE + 1, 40 * PAGE, 10 * PAGE + 5, 10 * PAGE,
		50 * PAGE, PAGE - 1, 1, 0, 100,
	};
	unsigned int i, warm;

	for (warm = 0; warm < 3; warm++) {
		make_pooled("a", SIZE, 1);
		if (warm)
			say_file("a");
		for (i = 0; i < sizeof(to) / sizeof(*to); i++) {
			DO(truncate("a", to[i]));
			say_file("a");
			say_file("a.twin");
			if (warm == 2)
				drop_caches("3");
		}
		drop_caches("3");
		say_file("a");
		say_file("a.twin");
	}
}

TEST(to_all_sizes)
{
	SAME(sizes);
}

static void errors(void)
{
	int fd;

	make_pooled("a", SIZE, 1);
	DO(truncate("a", -1));
	DO(truncate("nothing", 0));
	DO(truncate(".", 0));
	DO(truncate("a", INT64_MAX));
	fd = open("a", O_RDONLY);
	DO(ftruncate(fd, 0));
	DO(open("a", O_RDONLY | O_TRUNC));
	say_file("a");
	make_pooled("b", SIZE, 2);
	DO(open("b", O_WRONLY | O_TRUNC));
	say_file("b");
	say_file("b.twin");
	DO(open("b", O_WRONLY | O_CREAT | O_TRUNC | O_EXCL, 0644));
}

TEST(errors_and_o_trunc)
{
	SAME(errors);
}

static void mapped(void)
{
	static const off_t to[] = { 20 * PAGE + 100, 20 * PAGE, 5 * PAGE + 1, 25 * PAGE, 0, 30 * PAGE };
	char *s, *p, *w;
	unsigned int i, k;

	make_pooled("a", SIZE, 1);
	s = map_file("a", 40 * PAGE, PROT_READ, MAP_SHARED);
	p = map_file("a", 40 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	w = map_file("a", 40 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(s, 31 * PAGE);
	touch(p, 31 * PAGE);
	p[22 * PAGE] = 1;	/* a private copy goes, too */
	w[23 * PAGE] = 2;
	for (i = 0; i < sizeof(to) / sizeof(*to); i++) {
		DO(truncate("a", to[i]));
		for (k = 0; k < 31; k += 5) {
			say("%u: shared %d private %d", k, FAULTS(touch(s + k * PAGE, PAGE)),
			    FAULTS(touch(p + k * PAGE, PAGE)));
		}
		say("%lx %lx", hash(s, (to[i] + PAGE - 1) & -PAGE, 1), hash(w, (to[i] + PAGE - 1) & -PAGE, 1));
		say_file("a");
		say_file("a.twin");
		if (to[i] > (off_t)(4 * PAGE))
			w[4 * PAGE + 10] = i;
	}
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
}

TEST(while_mapped)
{
	SAME(mapped);
}

static void dirty(void)
{
	char buf[PAGE];
	int fd;

	make_pooled("a", SIZE, 1);
	fd = open("a", O_RDWR);
	fill(buf, PAGE, 5, 0);
	VAL(pwrite(fd, buf, PAGE, 9 * PAGE + 100));
	VAL(pwrite(fd, buf, PAGE, 20 * PAGE));
	DO(ftruncate(fd, 9 * PAGE + 300));
	DO(ftruncate(fd, SIZE));
	say_file("a");
	VAL(pwrite(fd, buf, PAGE, SIZE + 3 * PAGE));
	say_file("a");
	DO(fsync(fd));
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
}

TEST(of_a_dirty_file)
{
	SAME(dirty);
}

/* XFS takes back in its own time what it allocated in advance. */
static bool same_blocks(const char *name)
{
	struct stat u, l;
	int tries = 0;

	do {
		if (stat(name, &u) || stat(low("%s/%s", dut ? "dut" : "ref", name), &l))
			die("%s", name);
	} while (u.st_blocks != l.st_blocks && ++tries < 5);
	return u.st_blocks == l.st_blocks;
}

/* The truncated size and blocks are known to stat at once. */
static void stats(void)
{
	struct stat st;
	int fd;

	make_pooled("a", SIZE, 1);
	fd = open("a", O_RDWR);
	DO(truncate("a", 12345));
	fstat(fd, &st);
	say("%ld", (long)st.st_size);
	VAL(lseek(fd, 0, SEEK_END));
	DO(ftruncate(fd, 54321));
	stat("a", &st);
	say("%ld", (long)st.st_size);
	fsync(fd);
	sync();
	say("blocks as below %d", same_blocks("a"));
	DO(ftruncate(fd, 0));
	sync();
	stat("a", &st);
	say("blocks %ld", (long)st.st_blocks);
}

TEST(stat_knows)
{
	SAME(stats);
}

TEST_HARNESS_MAIN
