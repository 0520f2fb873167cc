// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every way to write(2), into files whose blocks are shared and others: what
 * the file and its twin then hold, counts, positions, errors and limits are as
 * below.
 */
#include "common.h"
#include "disk.h"
#include <sys/inotify.h>

#define SIZE	(40 * PAGE + 777)

static char buf[16 * PAGE];
static void *volatile nowhere = (void *)1;

static void say_both(void)
{
	say_file("a");
	say_file("a.twin");
}

static void places(void)
{
	static const struct { off_t off; size_t len; } at[] = {
		{ 0, 1 }, { PAGE, PAGE }, { 3 * PAGE + 5, 10 }, { 5 * PAGE - 3, 6 }, { 7 * PAGE + 1, 3 * PAGE },
		{ 12 * PAGE, 8 * PAGE }, { SIZE - 1, 1 }, { SIZE - 10, 100 }, { SIZE + 90, 5 },
		{ 50 * PAGE + 3, PAGE }, { 0, 0 }, { 60 * PAGE, 16 * PAGE },
	};
	unsigned int i, warm;
	int fd, ro;

	for (warm = 0; warm < 3; warm++) {
		make_pooled("a", SIZE, 1);
		if (warm)
			say_both();
		fd = open("a", O_RDWR);
		ro = open("a", O_RDONLY);
		for (i = 0; i < sizeof(at) / sizeof(*at); i++) {
			fill(buf, at[i].len, 10 + i, 0);
			VAL(pwrite(fd, buf, at[i].len, at[i].off));
			VAL(pread(ro, buf, 16 * PAGE, at[i].off & -PAGE));
			say("%lx", hash(buf, 16 * PAGE, 1));
			if (warm == 2)
				drop_caches("3");
		}
		say_both();
		DO(fsync(fd));
		drop_caches("3");
		say_both();
		close(fd);
		close(ro);
	}
}

TEST(at_all_places)
{
	SAME(places);
}

static void positions(void)
{
	struct iovec iov[3] = { { buf, 5 }, { buf + 100, PAGE }, { buf, 0 } };
	int fd;

	make_pooled("a", SIZE, 1);
	fill(buf, sizeof(buf), 5, 0);
	fd = open("a", O_RDWR);
	VAL(write(fd, buf, 100));
	VAL(lseek(fd, 0, SEEK_CUR));
	VAL(writev(fd, iov, 3));
	VAL(lseek(fd, 0, SEEK_CUR));
	VAL(pwritev(fd, iov, 3, 20 * PAGE - 2));
	VAL(pwritev2(fd, iov, 3, -1, RWF_SYNC));
	VAL(pwritev2(fd, iov, 3, 9 * PAGE, RWF_DSYNC));
	VAL(pwritev2(fd, iov, 3, 0, RWF_APPEND));
	VAL(lseek(fd, 0, SEEK_CUR));
	VAL(lseek(fd, 0, SEEK_END));
	VAL(lseek(fd, 100, SEEK_END));
	VAL(write(fd, buf, 1));
	VAL(pwrite(fd, buf, 1, -1));
	VAL(pwrite(fd, nowhere, 10, 0));
	VAL(write(open("a", O_RDONLY), buf, 1));
	VAL(pwrite(fd, buf, 10, INT64_MAX - 5));
	VAL(lseek(fd, 0, SEEK_CUR));
	close(fd);
	say_both();
	fd = open("a", O_RDWR | O_TRUNC);
	VAL(write(fd, buf, 10));
	say_both();
}

TEST(positions_and_errors)
{
	SAME(positions);
}

static void append(void)
{
	int fd, other, i, status;

	make_pooled("a", SIZE, 1);
	fill(buf, sizeof(buf), 5, 0);
	fd = open("a", O_RDWR | O_APPEND);
	other = open("a", O_RDWR | O_APPEND);
	VAL(write(fd, buf, 10));
	VAL(lseek(fd, 0, SEEK_CUR));
	VAL(write(other, buf, 20));
	VAL(lseek(other, 0, SEEK_CUR));
	VAL(pwrite(fd, buf, 30, 0));
	VAL(lseek(fd, 0, SEEK_CUR));
	DO(fcntl(fd, F_SETFL, 0));
	VAL(pwrite(fd, buf, 30, 0));
	DO(fcntl(fd, F_SETFL, O_APPEND));
	VAL(write(fd, buf, 3));
	say_both();
	/* Two processes append records: none is lost or torn. */
	DO(truncate("a", 0));
	for (i = 0; i < 2; i++) {
		if (!fork()) {
			int n;

			memset(buf, 'a' + i, 100);
			for (n = 0; n < 200; n++)
				write(i ? fd : other, buf, 100);
			_exit(0);
		}
	}
	wait(&status);
	wait(&status);
	{
		int n[2] = {}, torn = 0, k;

		fd = open("a", O_RDONLY);
		while (read(fd, buf, 100) == 100) {
			for (k = 1; k < 100; k++)
				torn += buf[k] != buf[0];
			n[buf[0] == 'b']++;
		}
		say("records: %d %d, torn %d", n[0], n[1], torn);
	}
}

TEST(appending)
{
	SAME(append);
}

static void limits(void)
{
	struct rlimit lim = { 10 * PAGE + 100, RLIM_INFINITY };
	int fd;

	make_pooled("a", 8 * PAGE, 1);
	fd = open("a", O_RDWR);
	setrlimit(RLIMIT_FSIZE, &lim);
	signal(SIGXFSZ, SIG_IGN);
	VAL(pwrite(fd, buf, PAGE, 10 * PAGE));
	VAL(pwrite(fd, buf, PAGE, 10 * PAGE + 100));
	VAL(pwrite(fd, buf, PAGE, 11 * PAGE));
	DO(ftruncate(fd, 11 * PAGE));
	DO(ftruncate(fd, 10 * PAGE));
	DO(fallocate(fd, 0, 0, 20 * PAGE));
	VAL(copy_file_range(open("a.twin", O_RDONLY), &(off_t) { 0 }, fd, &(off_t) { 9 * PAGE }, 8 * PAGE, 0));
	VAL(copy_file_range(open("a.twin", O_RDONLY), &(off_t) { 0 }, fd, &(off_t) { 11 * PAGE }, PAGE, 0));
	say_both();
	signal(SIGXFSZ, SIG_DFL);
	pwrite(fd, buf, PAGE, 10 * PAGE + 100);
	say("not reached");
}

TEST(size_limits)
{
	SAME(limits);
}

static void holes(void)
{
	int fd = open("a", O_RDWR | O_CREAT, 0644), i;

	fill(buf, sizeof(buf), 3, 0);
	for (i = 0; i < 20; i++)
		VAL(pwrite(fd, buf, 700, i * 5 * PAGE + i * 211));
	DO(fsync(fd));
	make_clone("a", "a.twin");
	drop_caches("3");
	say_both();
	for (i = 0; i < 20; i++)
		VAL(pwrite(fd, buf, PAGE + 5, (i * 5 + 2) * PAGE + i));
	say_both();
	drop_caches("3");
	say_both();
}

TEST(into_holes)
{
	SAME(holes);
}

/* What the lower file "a" holds, which nothing but its page cache need have. */
static bool a_is(bool (*there)(const char *path, const void *want, size_t size))
{
	const char *path = low("%s/a", dut ? "dut" : "ref");
	char *want = malloc(2 * SIZE);
	int fd = open(path, O_RDONLY);
	ssize_t n = read(fd, want, 2 * SIZE);
	bool ret;

	if (n <= 0)
		die("%s", path);
	close(fd);
	ret = there(path, want, n);
	free(want);
	return ret;
}

/* That both say the same is not enough. */
static void need_on_disk(int line)
{
	errno = 0;
	if (!a_is(got_to_disk))
		die("line %d: not on the disk", line);
}

static void synchronous(void)
{
	static const int flags[] = { O_SYNC, O_DSYNC, O_SYNC | O_APPEND, O_SYNC | O_DIRECT };
	struct iovec iov = { buf, 500 };
	int fd, i, in, pipes[2];

	make_pooled("a", SIZE, 1);
	make_pooled("b", SIZE, 2);
	fill(buf, sizeof(buf), 4, 0);
	DO(pipe(pipes));
	for (i = 0; i < 4; i++) {
		char *p = aligned_alloc(PAGE, PAGE);

		fill(p, PAGE, i, 0);
		fd = DO(open("a", O_RDWR | flags[i]));
		VAL(pwrite(fd, p, PAGE, (3 + i * 5) * PAGE));
		need_on_disk(__LINE__);
		if (!(flags[i] & O_DIRECT)) {
			VAL(write(fd, p, 33));
			need_on_disk(__LINE__);
		}
		close(fd);
		write_text("/proc/sys/vm/drop_caches", "3");
		say_both();
	}
	/* From a pipe, and from another file. */
	fd = DO(open("a", O_RDWR | O_DSYNC));
	in = DO(open("b", O_RDONLY));
	VAL(write(pipes[1], buf, PAGE));
	VAL(splice(pipes[0], NULL, fd, &(loff_t) { 24 * PAGE + 5 }, PAGE, 0));
	need_on_disk(__LINE__);
	VAL(lseek(fd, 28 * PAGE + 5, SEEK_SET));
	VAL(sendfile(fd, in, &(off_t) { PAGE }, PAGE));
	need_on_disk(__LINE__);
	close(fd);
	/* Not all writes of a file, but this one. */
	fd = DO(open("a", O_RDWR));
	VAL(pwritev2(fd, &iov, 1, 32 * PAGE + 5, RWF_SYNC));
	need_on_disk(__LINE__);
	VAL(pwritev2(fd, &iov, 1, 34 * PAGE + 5, RWF_DSYNC));
	need_on_disk(__LINE__);
	/* The test can tell. */
	VAL(pwrite(fd, buf, 500, 36 * PAGE + 5));
	say("on the disk: %d", a_is(is_on_disk));
	say_both();
}

TEST(synchronous_writes)
{
	SAME(synchronous);
}

/* From memory that ends in the middle, or is the file itself. */
static void odd_memory(void)
{
	char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *m;
	int fd, i;

	make_pooled("a", SIZE, 1);
	fd = open("a", O_RDWR);
	fill(p, 4 * PAGE, 6, 0);
	munmap(p + 2 * PAGE, 2 * PAGE);
	VAL(pwrite(fd, p, 4 * PAGE, 3 * PAGE + 7));
	say_both();
	VAL(pwrite(fd, p + 2 * PAGE, PAGE, 20 * PAGE));
	say_both();
	for (i = 0; i < 2; i++) {
		m = map_file(i ? "a" : "a.twin", SIZE, PROT_READ, MAP_SHARED);
		VAL(pwrite(fd, m + 10 * PAGE + 5, 3 * PAGE, 30 * PAGE + 11));
		VAL(pwrite(fd, m + 64 * PAGE, PAGE, 0));
		say_both();
		munmap(m, SIZE);
	}
}

TEST(from_odd_memory)
{
	SAME(odd_memory);
}

/* splice and sendfile into the file. */
static void spliced(void)
{
	off_t off = 10 * PAGE + 50;
	int fd, p[2], in;

	make_pooled("a", SIZE, 1);
	make_pooled("b", SIZE, 2);
	fd = open("a", O_RDWR);
	in = open("b", O_RDONLY);
	if (pipe(p))
		die("pipe");
	fill(buf, sizeof(buf), 8, 0);
	VAL(write(p[1], buf, 3 * PAGE));
	VAL(splice(p[0], NULL, fd, &off, 3 * PAGE, 0));
	say_both();
	VAL(sendfile(fd, in, &(off_t) { 5 * PAGE + 1 }, 9 * PAGE));
	VAL(lseek(fd, 0, SEEK_CUR));
	say_both();
	VAL(splice(in, &(off_t) { 0 }, p[1], NULL, 2 * PAGE, 0));
	VAL(splice(p[0], NULL, fd, NULL, 2 * PAGE, SPLICE_F_MOVE));
	VAL(sendfile(fd, fd, &(off_t) { 0 }, 100));
	say_both();
	say_file("b");
}

/* What fcntl changed since the open holds for a splice, too; and it is told of. */
static void spliced_elsewhere(void)
{
	int p[2], fd, watch = inotify_init1(IN_NONBLOCK);
	struct inotify_event event = {};
	loff_t off = 3 * PAGE;

	make_pooled("a", SIZE, 1);
	DO(pipe(p));
	fd = open("a", O_WRONLY | O_APPEND);
	fill(buf, 2 * PAGE, 5, 0);
	VAL(write(p[1], buf, 2 * PAGE));
	VAL(splice(p[0], NULL, fd, &off, PAGE, 0));
	DO(fcntl(fd, F_SETFL, 0));
	VAL(inotify_add_watch(watch, "a", IN_MODIFY));
	VAL(splice(p[0], NULL, fd, &off, PAGE, 0));
	VAL(read(watch, &event, sizeof(event)));
	say("event %x", event.mask);
	DO(fcntl(fd, F_SETFL, O_APPEND));
	VAL(write(fd, buf, 10));
	say_both();
	close(watch);
}

TEST(splice_after_fcntl)
{
	SAME(spliced_elsewhere);
}

TEST(splice_and_sendfile_into)
{
	SAME(spliced);
}

/* Times: a write moves mtime and ctime. */
static void times(void)
{
	struct timespec old[2] = { { 1000, 0 }, { 2000, 0 } };
	struct stat st;
	int fd;

	make_pooled("a", SIZE, 1);
	utimensat(AT_FDCWD, "a", old, 0);
	fd = open("a", O_RDWR);
	stat("a", &st);
	say("%ld", st.st_mtime);
	VAL(pwrite(fd, buf, 1, 0));
	stat("a", &st);
	say("moved %d, now %d", st.st_mtime != 2000, labs(st.st_mtime - time(NULL)) < 100);
	fstat(fd, &st);
	say("moved %d, size %ld", st.st_mtime != 2000, (long)st.st_size);
	VAL(pwrite(fd, buf, 0, 0));
}

TEST(times_move)
{
	SAME(times);
}

TEST_HARNESS_MAIN
