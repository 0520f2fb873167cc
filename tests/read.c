// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every way to read a file, on a file whose blocks are shared, a file that
 * shares nothing, and one with holes: same bytes, counts and errors as below.
 */
#include "common.h"

#define SIZE	(40 * PAGE + 777)

/* Volatile, or the compiler would warn of them. */
static void *volatile nowhere = (void *)1;
static volatile int too_many = -1;

static void make_files(void)
{
	char buf[3 * PAGE];
	int fd;

	make_file("plain", SIZE, 2);
	fd = open("holes", O_RDWR | O_CREAT, 0644);
	fill(buf, sizeof(buf), 3, 0);
	write_all(fd, buf, sizeof(buf), 2 * PAGE + 10);
	write_all(fd, buf, 500, 11 * PAGE);
	ftruncate(fd, SIZE);
	fsync(fd);
	close(fd);
	make_clone("holes", "holes.twin");
	make_file("empty", 0, 0);
	make_pooled("shared", SIZE, 1);
}

static const char * const names[] = { "shared", "shared.twin", "plain", "holes", "holes.twin", "empty" };

#define for_each_name(n)	for (const char * const *n = names; n < names + 6; n++)

static const struct { off_t off; size_t len; } places[] = {
	{ 0, 1 }, { 0, PAGE }, { 1, PAGE }, { PAGE - 1, 2 }, { 0, SIZE }, { 0, SIZE + 1 },
	{ 5000, 100000 }, { SIZE - 1, 1 }, { SIZE - 1, 10 }, { SIZE, 1 }, { SIZE + 5000, 10 },
	{ SIZE - 800, 900 }, { 2 * PAGE, 0 }, { 13 * PAGE + 5, 7 * PAGE }, { 1L << 40, 5 },
};

#define NR_PLACES	((int)(sizeof(places) / sizeof(*places)))

static void by_pread(void)
{
	char *buf = malloc(2 * SIZE);
	int fd, i;

	make_files();
	for_each_name(n) {
		fd = open(*n, O_RDONLY);
		for (i = 0; i < NR_PLACES; i++) {
			memset(buf, 0x5a, 2 * SIZE);
			VAL(pread(fd, buf, places[i].len, places[i].off));
			say("%s %d %lx", *n, i, hash(buf, 2 * SIZE, 1));
		}
		VAL(pread(fd, buf, 10, -1));
		VAL(lseek(fd, 0, SEEK_CUR));
		close(fd);
	}
}

TEST(at_positions)
{
	SAME(by_pread);
}

static void by_read(void)
{
	static const size_t chunks[] = { 1000, PAGE, 3 * PAGE + 1, 64 * KiB, MiB };
	char *buf = malloc(MiB);
	unsigned int i;
	ssize_t n;
	int fd;

	make_files();
	for_each_name(name) {
		for (i = 0; i < 5; i++) {
			fd = open(*name, O_RDONLY);
			while ((n = read(fd, buf, chunks[i])) > 0)
				say("%zd %lx", n, hash(buf, n, 1));
			VAL(read(fd, buf, 1));
			VAL(lseek(fd, 0, SEEK_CUR));
			close(fd);
		}
	}
	fd = open("shared", O_WRONLY);
	VAL(read(fd, buf, 1));
	fd = open("shared", O_RDONLY);
	VAL(read(fd, nowhere, 10));
	VAL(lseek(fd, 0, SEEK_CUR));
}

TEST(read_to_the_end)
{
	SAME(by_read);
}

/* A read into memory that ends in the middle gives what fitted. */
static void into_bad_memory(void)
{
	char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd;

	munmap(p + 2 * PAGE, 2 * PAGE);
	make_files();
	for_each_name(name) {
		fd = open(*name, O_RDONLY);
		VAL(pread(fd, p, 4 * PAGE, 0));
		say("%lx", hash(p, 2 * PAGE, 1));
		VAL(pread(fd, p + PAGE + 100, 4 * PAGE, 3 * PAGE));
		VAL(pread(fd, p + 2 * PAGE, PAGE, 0));
		close(fd);
	}
}

TEST(into_memory_that_is_not_there)
{
	SAME(into_bad_memory);
}

static void by_vector(void)
{
	static char a[100], b[PAGE], c[3 * PAGE], d[1];
	struct iovec iov[4] = { { a, 100 }, { b, PAGE }, { c, 3 * PAGE }, { d, 1 } };
	int fd;

	make_files();
	for_each_name(name) {
		fd = open(*name, O_RDONLY);
		VAL(readv(fd, iov, 4));
		VAL(preadv(fd, iov, 4, SIZE - 5000));
		say("%lx %lx %lx", hash(a, 100, 1), hash(b, PAGE, 1), hash(c, 3 * PAGE, 1));
		VAL(preadv2(fd, iov, 4, -1, 0));
		VAL(preadv2(fd, iov, 4, 0, RWF_HIPRI | 0x4000));
		VAL(preadv(fd, iov, 0, 0));
		VAL(preadv(fd, iov, too_many, 0));
		close(fd);
	}
}

TEST(into_vectors)
{
	SAME(by_vector);
}

/* RWF_NOWAIT: what is in memory, or EAGAIN; never wrong, never a disk read. */
static void by_nowait(void)
{
	static char buf[8 * PAGE];
	struct iovec iov = { buf, sizeof(buf) };
	ssize_t n;
	int fd;

	make_files();
	for_each_name(name) {
		if (!strncmp(*name, "holes", 5))
			continue;
		fd = open(*name, O_RDONLY);
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		n = preadv2(fd, &iov, 1, 0, RWF_NOWAIT);
		if (n > 0 && mismatch(buf, n, !strcmp(*name, "plain") ? 2 : 1, 0) != -1)
			say("%s: wrong bytes", *name);
		pread(fd, buf, sizeof(buf), 0);
		VAL(preadv2(fd, &iov, 1, 0, RWF_NOWAIT));
		say("%lx", hash(buf, sizeof(buf), 1));
		close(fd);
	}
}

TEST(nowait)
{
	SAME(by_nowait);
}

/* What is cached is there at once, also in a file that is written to all the time. */
static void written_to_and_nowait(void)
{
	static const char *const names[] = { "shared", "alone" };
	static char buf[PAGE];
	struct iovec iov = { buf, sizeof(buf) };
	int fd, i, k;

	make_pooled("shared", SIZE, 1);
	make_file("alone", SIZE, 2);
	for (k = 0; k < 2; k++) {
		fd = open(names[k], O_RDWR);
		for (i = 0; i < 6; i++) {
			fill(buf, PAGE, 3 + i, 0);
			write_all(fd, buf, PAGE, 3 * PAGE);
			VAL(pread(fd, buf, PAGE, 3 * PAGE));
			VAL(preadv2(fd, &iov, 1, 3 * PAGE, RWF_NOWAIT));
			say("%ld", mismatch(buf, PAGE, 3 + i, 0));
			if (i < 3)
				continue;
			fsync(fd);
			VAL(pread(fd, buf, PAGE, 3 * PAGE));
			VAL(preadv2(fd, &iov, 1, 3 * PAGE, RWF_NOWAIT));
			say("%ld", mismatch(buf, PAGE, 3 + i, 0));
		}
		close(fd);
	}
}

TEST(nowait_of_what_was_written)
{
	SAME(written_to_and_nowait);
}

static void by_sendfile(void)
{
	char *buf = malloc(2 * SIZE);
	int fd, out, i, p[2];
	ssize_t n;
	off_t off;

	make_files();
	for_each_name(name) {
		fd = open(*name, O_RDONLY);
		out = open("out", O_RDWR | O_CREAT | O_TRUNC, 0644);
		off = 0;
		VAL(sendfile(out, fd, &off, SIZE * 2));
		say("at %ld, %ld", (long)off, (long)lseek(fd, 0, SEEK_CUR));
		say_file("out");
		off = SIZE - 100;
		VAL(sendfile(out, fd, &off, 5000));
		VAL(sendfile(out, fd, NULL, 3 * PAGE + 7));
		VAL(lseek(fd, 0, SEEK_CUR));
		say_file("out");
		close(out);

		/* splice to a pipe, which may hold pages that then change. */
		if (pipe(p))
			die("pipe");
		for (i = 0; i < NR_PLACES; i++) {
			off = places[i].off;
			n = VAL(splice(fd, &off, p[1], NULL, places[i].len < 60000 ? places[i].len : 60000,
				       SPLICE_F_NONBLOCK));
			if (n > 0) {
				VAL(read(p[0], buf, n));
				say("%lx", hash(buf, n, 1));
			}
		}
		close(p[0]);
		close(p[1]);
		close(fd);
	}
}

TEST(sendfile_and_splice)
{
	SAME(by_sendfile);
}

/* Pages in a pipe: written to the file afterwards, evicted, unlinked. */
static void pipe_keeps_pages(void)
{
	char buf[4 * PAGE], page[PAGE];
	off_t off = 0;
	int fd, p[2];

	make_files();
	if (pipe(p))
		die("pipe");
	fd = open("shared", O_RDWR);
	VAL(splice(fd, &off, p[1], NULL, 4 * PAGE, 0));
	DO(unlink("shared.twin"));
	drop_caches("3");
	fill(page, PAGE, 9, 0);
	DO(ftruncate(fd, 0));
	DO(unlink("shared"));
	close(fd);
	make_file("new", SIZE, 4);
	VAL(read(p[0], buf, 2 * PAGE));
	/* Truncated away: zeroes or the old bytes are both possible below. */
	if (mismatch(buf, 2 * PAGE, 1, 0) != -1 && hash(buf, PAGE, 1) != hash(memset(page, 0, PAGE), PAGE, 1))
		say("the pipe holds bytes of something else");
}

TEST(pages_in_a_pipe)
{
	SAME(pipe_keeps_pages);
}

/* Several readers with their own positions, forwards and backwards. */
static void several(void)
{
	char buf[PAGE];
	int a, b, i;

	make_files();
	a = open("shared", O_RDONLY);
	b = open("shared.twin", O_RDONLY);
	for (i = 0; i < 41; i++) {
		VAL(pread(a, buf, PAGE, i * PAGE));
		say("%lx", hash(buf, PAGE, 1));
		VAL(pread(b, buf, PAGE, (40 - i) * PAGE));
		say("%lx", hash(buf, PAGE, 1));
	}
	VAL(lseek(a, -10, SEEK_END));
	VAL(read(a, buf, 100));
	VAL(lseek(a, 10, SEEK_END));
	VAL(read(a, buf, 100));
	VAL(lseek(a, -1, SEEK_SET));
}

TEST(several_readers)
{
	SAME(several);
}

/* Of a 32-bit program that does not know of large files. */
static long open_by_32_bits(const char *path)
{
	char *name = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	long ret;

	strcpy(name, path);
	asm volatile("int $0x80" : "=a" (ret)
		     : "a" (5), "b" (name), "c" (O_RDONLY), "d" (0)
		     : "memory", "r8", "r9", "r10", "r11");
	munmap(name, PAGE);
	return (int)ret;
}

static void without_large_files(void)
{
	static const off_t sizes[] = { 100, (1UL << 31) - 1, 1UL << 31 };
	unsigned int i;
	long fd;

	for (i = 0; i < 3; i++) {
		close(open("f", O_RDWR | O_CREAT, 0644));
		DO(truncate("f", sizes[i]));
		fd = open_by_32_bits("f");
		say("%lu: %s", sizes[i], fd < 0 ? strerror(-fd) : "open");
		if (fd >= 0)
			close(fd);
	}
}

TEST(opened_by_programs_without_large_files)
{
	int fd = open_by_32_bits("/proc/self/exe");

	if (fd < 0)
		SKIP(return, "this kernel runs no 32-bit programs");
	close(fd);
	SAME(without_large_files);
}

TEST_HARNESS_MAIN
