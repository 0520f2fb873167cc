// SPDX-License-Identifier: GPL-2.0-only
/*
 * The last block of a file: shared only between files that end at the same
 * byte, zero behind the end in every mapping, and never anyone else's bytes.
 */
#include "common.h"

#define SIZE	(2 * PAGE + 1000)

static void say_tail(const char *path)
{
	char buf[2 * PAGE], *p;
	struct stat st;
	ssize_t n;
	int fd = open(path, O_RDONLY);

	fstat(fd, &st);
	memset(buf, 0x55, sizeof(buf));
	n = pread(fd, buf, sizeof(buf), st.st_size / PAGE * PAGE);
	say("%s: size %ld, last read %zd: %lx", path, (long)st.st_size, n, hash(buf, sizeof(buf), 1));
	p = mmap(NULL, (st.st_size | (PAGE - 1)) + 1, PROT_READ, MAP_SHARED, fd, 0);
	say("mapped: %lx", hash(p, (st.st_size | (PAGE - 1)) + 1, 1));
	munmap(p, (st.st_size | (PAGE - 1)) + 1);
	close(fd);
}

static void ends_anywhere(void)
{
	static const size_t end[] = { 1, 511, 512, 2047, 2049, 4095, 4096, 4097, 8191, 8193, 12288 };
	char name[32];
	unsigned int i, round;

	for (i = 0; i < sizeof(end) / sizeof(*end); i++) {
		sprintf(name, "f%zu", end[i]);
		make_file(name, end[i], i);
		make_clone(name, strcat(strcpy(malloc(64), name), ".twin"));
	}
	drop_caches("3");
	for (round = 0; round < 2; round++) {
		for (i = 0; i < sizeof(end) / sizeof(*end); i++) {
			sprintf(name, "f%zu", end[i]);
			say_tail(name);
			say_tail(strcat(name, ".twin"));
		}
	}
}

TEST(files_that_end_anywhere_in_a_page)
{
	SAME(ends_anywhere);
}

static void longer_twin(void)
{
	make_pooled("a", SIZE, 1);
	say_tail("a");
	say_tail("a.twin");
	/* The twin goes on: its tail's block is shared, its bytes are not. */
	DO(truncate("a.twin", SIZE + 500));
	say_tail("a.twin");
	say_tail("a");
	DO(truncate("a.twin", 5 * PAGE + 1));
	drop_caches("3");
	say_tail("a.twin");
	say_file("a.twin");
	say_tail("a");
}

TEST(a_twin_that_was_extended)
{
	SAME(longer_twin);
}

static void shorter_twin(void)
{
	make_pooled("a", SIZE, 1);
	say_tail("a");
	say_tail("a.twin");
	DO(truncate("a.twin", SIZE - 500));
	say_tail("a.twin");
	say_tail("a");
	drop_caches("3");
	say_tail("a.twin");
	say_tail("a");
	/* What was cut off must not come back. */
	DO(truncate("a.twin", SIZE));
	say_tail("a.twin");
	say_tail("a");
}

TEST(a_twin_that_was_cut)
{
	SAME(shorter_twin);
}

/* One block as the end of one file and the inside of another. */
static void end_and_middle(void)
{
	struct file_clone_range range = { .src_length = 0 };
	int a, b;

	make_file("a", SIZE, 1);
	make_file("b", 8 * PAGE, 2);
	a = open("a", O_RDONLY);
	b = open("b", O_RDWR);
	range.src_fd = a;
	range.src_length = 2 * PAGE;
	range.dest_offset = 4 * PAGE;
	DO(ioctl(b, FICLONERANGE, &range));
	/* A tail may go only to an end. */
	range.src_offset = 2 * PAGE;
	range.src_length = 1000;
	range.dest_offset = 6 * PAGE;
	DO(ioctl(b, FICLONERANGE, &range));
	range.dest_offset = 8 * PAGE;
	DO(ioctl(b, FICLONERANGE, &range));
	fsync(b);
	close(a);
	close(b);
	drop_caches("3");
	say_file("a");
	say_file("b");
	DO(truncate("b", 9 * PAGE));
	say_file("b");
	say_file("a");
	drop_caches("3");
	say_file("b");
	say_file("a");
}

TEST(a_block_at_one_end_and_in_another_middle)
{
	SAME(end_and_middle);
}

/* Stores behind the end reach the page, but neither the file nor the twin. */
static void store_behind_end(void)
{
	char *p, *q;

	make_pooled("a", SIZE, 1);
	p = map_file("a", 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
	q = map_file("a.twin", 3 * PAGE, PROT_READ, MAP_SHARED);
	touch(p, 3 * PAGE);
	touch(q, 3 * PAGE);
	memset(p + SIZE, 0x77, 3 * PAGE - SIZE);
	say("twin's tail %lx", hash(q, 3 * PAGE, 1));
	DO(msync(p, 3 * PAGE, MS_SYNC));
	munmap(p, 3 * PAGE);
	munmap(q, 3 * PAGE);
	DO(truncate("a", 4 * PAGE));
	say_file("a");
	say_file("a.twin");
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
}

TEST(stores_behind_the_end)
{
	SAME(store_behind_end);
}

static void fault_behind_end(void)
{
	volatile char *p;
	int sig;

	make_pooled("a", SIZE, 1);
	p = map_file("a", 8 * PAGE, PROT_READ, MAP_SHARED);
	sig = FAULTS((void)p[SIZE]);
	say("in the last page: %d", sig);
	sig = FAULTS((void)p[3 * PAGE]);
	say("in the next page: %d", sig);
	DO(truncate("a", 5 * PAGE));
	sig = FAULTS((void)p[3 * PAGE]);
	say("after growing: %d, %d", sig, sig ? 0 : p[3 * PAGE]);
	DO(truncate("a", PAGE));
	sig = FAULTS((void)p[PAGE]);
	say("after shrinking: %d", sig);
	sig = FAULTS((void)p[0]);
	say("what is left: %d", sig);
}

TEST(faults_behind_the_end)
{
	SAME(fault_behind_end);
}

TEST_HARNESS_MAIN
