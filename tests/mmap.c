// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mappings of a file whose blocks are shared: private, shared, executable,
 * populated, moved, protected, forked, thrown away, read by others.  Each
 * must behave as a mapping of the lower file does.
 */
#include "common.h"
#include <sys/prctl.h>

#define SIZE	(64 * PAGE + 100)
#define LEN	(65 * PAGE)

static char *map(const char *name, int prot, int flags)
{
	char *p = map_file(name, LEN, prot, flags);

	say("map %s %d %d: %s", name, prot, flags, p == MAP_FAILED ? errname() : "ok");
	return p;
}

static void say_map(const char *p)
{
	say("%lx", hash(p, LEN, 1));
}

static void simple(void)
{
	static const int flags[] = { MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE,
				     MAP_PRIVATE | MAP_POPULATE, MAP_SHARED | MAP_POPULATE,
				     MAP_PRIVATE | MAP_LOCKED, MAP_PRIVATE | MAP_NORESERVE };
	unsigned int i;
	char *p;

	make_pooled("a", SIZE, 1);
	make_file("plain", SIZE, 2);
	for (i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		p = map("a", PROT_READ, flags[i]);
		say_map(p);
		munmap(p, LEN);
		p = map("a.twin", PROT_READ | PROT_EXEC, flags[i]);
		say_map(p);
		munmap(p, LEN);
		p = map("plain", PROT_READ, flags[i]);
		say_map(p);
		munmap(p, LEN);
		drop_caches(i & 1 ? "3" : "1");
	}
}

TEST(reading)
{
	SAME(simple);
}

static void modes(void)
{
	int ro, wo, rw, ap;

	make_pooled("a", SIZE, 1);
	ro = open("a", O_RDONLY);
	wo = open("a", O_WRONLY);
	rw = open("a", O_RDWR);
	ap = open("a", O_RDWR | O_APPEND);
	DO(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0));
	DO(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, ro, 0));
	DO(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, wo, 0));
	DO(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, rw, 0));
	DO(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, rw, 0));
	DO(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ap, 0));
	DO(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, rw, 1));
	DO(mmap(NULL, 0, PROT_READ, MAP_SHARED, rw, 0));
	DO(mmap(NULL, PAGE, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, rw, 0));
	DO(mmap(NULL, PAGE, PROT_READ, 0, rw, 0));
	DO(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, rw, 1L << 62));
}

TEST(errors_of_mmap)
{
	SAME(modes);
}

static void cow(void)
{
	char *a, *b, *s;
	int i;

	make_pooled("a", SIZE, 1);
	a = map("a", PROT_READ | PROT_WRITE, MAP_PRIVATE);
	b = map("a.twin", PROT_READ | PROT_WRITE, MAP_PRIVATE);
	s = map("a", PROT_READ, MAP_SHARED);
	for (i = 0; i < 64; i += 3)	/* some read first, some not */
		touch(a + i * PAGE, PAGE);
	for (i = 0; i < 64; i += 2)
		memset(a + i * PAGE + 10, i, 100);
	memset(a + 64 * PAGE, 7, PAGE);
	memset(b, 0x7f, LEN);
	say_map(a);
	say_map(b);
	say_map(s);
	say_file("a");
	say_file("a.twin");
	DO(madvise(a, LEN, MADV_DONTNEED));
	say_map(a);
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
	/* A copy made already does not follow the file; the rest does. */
	a[5 * PAGE] = 1;
	{
		int fd = open("a", O_RDWR);
		char page[PAGE];

		fill(page, PAGE, 9, 0);
		write_all(fd, page, PAGE, 5 * PAGE);
		write_all(fd, page, PAGE, 6 * PAGE);
		write_all(fd, page, 50, 7 * PAGE + 5);
	}
	say_map(a);
	say_map(s);
}

TEST(private_stores)
{
	SAME(cow);
}

static void forked(void)
{
	char *p, *s;
	int status;

	make_pooled("a", SIZE, 1);
	p = map("a", PROT_READ | PROT_WRITE, MAP_PRIVATE);
	s = map("a", PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(p, LEN / 2);
	touch(s, LEN / 2);
	p[0] = 1;
	if (!fork()) {
		say_map(p);
		memset(p + PAGE, 2, 3 * PAGE);
		memset(s + 9 * PAGE, 3, 3 * PAGE);
		memset(s + 60 * PAGE, 4, PAGE);
		say_map(p);
		_exit(0);
	}
	wait(&status);
	say("child %d", status);
	say_map(p);
	say_map(s);
	DO(madvise(p, LEN, MADV_DONTFORK));
	if (!fork()) {
		say("without it: %d", FAULTS(touch(p, PAGE)));
		_exit(0);
	}
	wait(&status);
	DO(madvise(s, LEN, MADV_WIPEONFORK));
	say_file("a");
	say_file("a.twin");
}

TEST(fork_and_store)
{
	SAME(forked);
}

static void moved(void)
{
	char *p, *q;

	make_pooled("a", SIZE, 1);
	p = map("a", PROT_READ | PROT_WRITE, MAP_PRIVATE);
	touch(p, LEN);
	p[3 * PAGE] = 3;
	q = mmap(NULL, 4 * LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	q = mremap(p, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, q);
	say_map(q);
	say("old place: %d", FAULTS(touch(p, PAGE)));
	/* Growing again: see known_limits.c. */
	q = mremap(q, LEN, 10 * PAGE, 0);
	say("%lx", hash(q, 10 * PAGE, 1));
	/* Mapping a second time what is shared. */
	p = map("a", PROT_READ, MAP_SHARED);
	touch(p, LEN);
	q = mremap(p, 0, LEN, MREMAP_MAYMOVE);
	say("a second one: %s", q == MAP_FAILED ? errname() : "ok");
	if (q != MAP_FAILED)
		say_map(q);
	DO(munmap(p + 3 * PAGE, PAGE));
	say("in the middle: %d", FAULTS(touch(p + 3 * PAGE, PAGE)));
	say("%lx", hash(p + 4 * PAGE, PAGE, 1));
	DO(mremap(q, PAGE, PAGE, MREMAP_DONTUNMAP | MREMAP_MAYMOVE));
}

TEST(moved_by_mremap)
{
	SAME(moved);
}

static void protected(void)
{
	char *p, *s;
	int ro;

	make_pooled("a", SIZE, 1);
	p = map("a", PROT_NONE, MAP_PRIVATE);
	say("none: %d", FAULTS(touch(p, PAGE)));
	DO(mprotect(p, LEN, PROT_READ));
	say_map(p);
	say("store: %d", FAULTS(p[0] = 1));
	DO(mprotect(p, LEN, PROT_READ | PROT_WRITE));
	say("store: %d", FAULTS(p[0] = 1));
	say_map(p);
	DO(mprotect(p + PAGE, PAGE, PROT_NONE));
	say("none: %d", FAULTS(touch(p + PAGE, PAGE)));
	DO(mprotect(p + PAGE, PAGE, PROT_READ | PROT_EXEC));
	say_map(p);
	ro = open("a", O_RDONLY);
	s = mmap(NULL, LEN, PROT_READ, MAP_SHARED, ro, 0);
	touch(s, LEN);
	DO(mprotect(s, LEN, PROT_READ | PROT_WRITE));
	s = map("a.twin", PROT_READ | PROT_WRITE, MAP_SHARED);
	touch(s, LEN);
	DO(mprotect(s, LEN, PROT_READ));
	say("store: %d", FAULTS(s[0] = 1));
	DO(mprotect(s, LEN, PROT_READ | PROT_WRITE));
	say("store: %d", FAULTS(s[0] = 1));
	say_file("a");
	say_file("a.twin");
}

TEST(protected_by_mprotect)
{
	SAME(protected);
}

static void advised(void)
{
	static const int advice[] = { MADV_DONTNEED, MADV_WILLNEED, MADV_RANDOM, MADV_SEQUENTIAL, MADV_NORMAL,
				      MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_HUGEPAGE,
				      MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_FREE };
	unsigned int i;
	char *p, *q;

	make_pooled("a", SIZE, 1);
	p = map("a", PROT_READ, MAP_SHARED);
	q = map("a.twin", PROT_READ | PROT_WRITE, MAP_PRIVATE);
	for (i = 0; i < sizeof(advice) / sizeof(*advice); i++) {
		if (advice[i] != MADV_HUGEPAGE) {
			say("%d:", advice[i]);
			DO(madvise(p, LEN, advice[i]));
			q[i * PAGE] = i;
			if (advice[i] != MADV_FREE)
				DO(madvise(q, LEN, advice[i]));
		}
		say_map(p);
		say_map(q);
	}
	DO(madvise(p, LEN, MADV_POPULATE_WRITE));
	DO(madvise(q, LEN, MADV_POPULATE_WRITE));
	say_map(q);
	DO(madvise(p, PAGE, 77));
	DO(mlock(p, LEN));
	DO(munlock(p, LEN));
	DO(madvise(p, LEN, MADV_REMOVE));
	say_file("a");
}

TEST(advised_by_madvise)
{
	SAME(advised);
}

static void behind_end(void)
{
	char *p, *q;
	int fd;

	make_pooled("a", SIZE, 1);
	fd = open("a", O_RDWR);
	p = mmap(NULL, 2 * LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	say("last: %d", FAULTS(touch(p + 64 * PAGE, PAGE)));
	say("behind: %d", FAULTS(touch(p + LEN, PAGE)));
	say("store behind: %d", FAULTS(p[LEN] = 1));
	q = map_file("a", 2 * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	say("private store behind: %d", FAULTS(q[LEN] = 1));
	DO(ftruncate(fd, LEN + 10));
	say("now: %d", FAULTS(touch(p + LEN, PAGE)));
	say("%lx", hash(p, LEN + PAGE, 1));
	DO(ftruncate(fd, 10 * PAGE));
	say("cut off: %d", FAULTS(touch(p + 10 * PAGE, PAGE)));
	say("%lx", hash(p, 10 * PAGE, 1));
	say("populated: %d", mmap(NULL, LEN, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0) == MAP_FAILED);
	VAL(madvise(p, LEN, MADV_POPULATE_READ));
	/* The kernel meets it in a system call. */
	VAL(write(open("out", O_RDWR | O_CREAT, 0644), p + 9 * PAGE, 3 * PAGE));
	VAL(write(open("/dev/null", O_WRONLY), p + 9 * PAGE, 3 * PAGE));
	say_file("out");
}

TEST(behind_the_end)
{
	SAME(behind_end);
}

/* Others look into our mapping: /proc/PID/mem, process_vm_readv, ptrace. */
static void seen_by_others(void)
{
	static char buf[LEN];
	struct iovec local = { buf, LEN }, remote;
	int ready[2], fd, status, i;
	char *p, path[64];
	pid_t pid;

	make_pooled("a", SIZE, 1);
	for (i = 0; i < 2; i++) {
		p = map("a", PROT_READ, i ? MAP_SHARED : MAP_PRIVATE);
		if (pipe(ready))
			die("pipe");
		pid = fork();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			touch(p, LEN / 2);
			write(ready[1], "", 1);
			read(ready[0], buf, 0);
			pause();
		}
		read(ready[0], buf, 1);
		remote = (struct iovec) { p, LEN };
		VAL(process_vm_readv(pid, &local, 1, &remote, 1, 0));
		say_map(buf);
		snprintf(path, sizeof(path), "/proc/%d/mem", pid);
		fd = open(path, O_RDWR);
		memset(buf, 0, LEN);
		VAL(pread(fd, buf, LEN, (off_t)p));
		say_map(buf);
		/* A debugger sets breakpoints: a private copy, never the file. */
		VAL(pwrite(fd, "breakpoint", 10, (off_t)p + 3 * PAGE + 50));
		VAL(pread(fd, buf, LEN, (off_t)p));
		say_map(buf);
		close(fd);
		VAL(process_vm_writev(pid, &local, 1, &remote, 1, 0));
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		munmap(p, LEN);
		say_file("a");
		say_file("a.twin");
	}
}

TEST(seen_by_other_processes)
{
	SAME(seen_by_others);
}

/* The mapping outlives descriptor, name, twin and pool. */
static void outlives(void)
{
	char *p, *q;

	make_pooled("a", SIZE, 1);
	p = map("a", PROT_READ, MAP_SHARED);
	q = map("a.twin", PROT_READ | PROT_WRITE, MAP_PRIVATE);
	touch(p, LEN / 2);
	touch(q, LEN / 2);
	q[0] = 1;
	DO(unlink("a"));
	DO(unlink("a.twin"));
	drop_caches("3");
	make_file("new", 4 * SIZE, 7);
	make_clone("new", "new.twin");
	drop_caches("3");
	say_file("new");
	say_map(p);
	say_map(q);
	DO(madvise(p, LEN, MADV_DONTNEED));
	say_map(p);
}

TEST(mapping_of_an_unlinked_file)
{
	SAME(outlives);
}

static void vectors(void)
{
	unsigned char vec[65];
	char *p;

	make_pooled("a", SIZE, 1);
	p = map("a", PROT_READ, MAP_SHARED);
	DO(mincore(p, LEN, vec));
	touch(p, LEN);
	DO(mincore(p, LEN, vec));
	say("touched: %d %d", vec[0] & 1, vec[64] & 1);
	DO(msync(p, LEN, MS_SYNC));
	DO(msync(p, LEN, MS_ASYNC));
	DO(msync(p, LEN, MS_INVALIDATE));
	DO(remap_file_pages(p, PAGE, 0, 5, 0));
	say("%lx", hash(p, PAGE, 1));
	say_map(map("a", PROT_READ, MAP_SHARED));
}

TEST(mincore_and_the_like)
{
	SAME(vectors);
}

/* A page of the pool whose memory fails: nobody else is to see it, or to fall over it. */
TEST(memory_that_fails)
{
	const char *paths[] = { strdup(up("a")), strdup(up("b")) };
	int status, c;
	pid_t pid;
	char *p;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	make_file(low("a"), 8 * PAGE, 1);
	make_clone(low("a"), low("b"));
	drop_caches("3");
	EXPECT_EQ(-1, check_file(paths[1], 8 * PAGE, 1));
	pid = fork();
	if (!pid) {
		p = mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, open(paths[0], O_RDONLY), 0);
		touch(p, 8 * PAGE);
		_exit(madvise(p + 2 * PAGE, PAGE, MADV_HWPOISON) && errno == EINVAL ? 77 : 0);
	}
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		SKIP(return, "this kernel does not let memory fail");
	for (c = 0; c < 2; c++) {
		pid = fork();
		if (!pid) {
			p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE,
				 open(paths[c], O_RDONLY), 0);
			p[2 * PAGE] = p[3 * PAGE] = 1;
			_exit(mismatch(p + 2 * PAGE + 8, PAGE - 8, 1, 2 * PAGE + 8) >= 0 ||
			      mismatch(p + 4 * PAGE, 4 * PAGE, 1, 4 * PAGE) >= 0);
		}
		waitpid(pid, &status, 0);
		EXPECT_EQ(0, status) TH_LOG("a private copy of clone %d", c);
		EXPECT_EQ(-1, check_file(paths[c], 8 * PAGE, 1));
		p = map_file(paths[c], 8 * PAGE, PROT_READ, MAP_SHARED);
		EXPECT_EQ(-1, mismatch(p, 8 * PAGE, 1, 0));
		munmap(p, 8 * PAGE);
	}
}

/*
 * It fails by itself, and whoever touches it is killed: it is read anew for the
 * first who wants it, and those who have it mapped get the new page.
 */
TEST(memory_that_fails_by_itself)
{
	const char *offline = "/sys/devices/system/memory/hard_offline_page";
	const size_t size = 8 * PAGE;
	uint64_t frame;
	char *map;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	if (access(offline, W_OK))
		SKIP(return, "this kernel does not let memory fail");
	make_file(low("a"), size, 1);
	make_clone(low("a"), low("b"));
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("b"), size, 1));
	map = map_file(up("a"), size, PROT_READ, MAP_SHARED);
	frame = frame_of(map + 2 * PAGE);
	ASSERT_NE(0, frame);
	/* (It says that it could not get hold of the page, whose memory has failed all the same.) */
	write_text(offline, path_of("%#lx", frame * PAGE));
	EXPECT_EQ(-1, check_file(up("b"), size, 1));
	EXPECT_EQ(-1, check_file(up("b"), size, 1));
	EXPECT_NE(frame, frame_of(map + 2 * PAGE));
	EXPECT_EQ(-1, mismatch(map, size, 1, 0));
	EXPECT_EQ(frame_of(map + 3 * PAGE) != 0, 1);
	munmap(map, size);
	map = map_file(up("b"), size, PROT_READ, MAP_PRIVATE);
	EXPECT_EQ(-1, mismatch(map, size, 1, 0));
	munmap(map, size);
}

/*
 * A mapping is used from its beginning to its end, of which the pool can have
 * the last part only: who has learned of much that it has not goes on asking.
 */
TEST(shared_after_much_that_is_not)
{
	const size_t before = 8 * MiB, size = 10 * MiB;
	struct file_clone_range range = {
		.src_offset = before, .src_length = size - before, .dest_offset = before,
	};
	char *buf = malloc(size - before), *map;
	long hits;
	size_t off;
	int fd, twin, i;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	fill(buf, size - before, 1, before);
	fd = open(low("many"), O_RDWR | O_CREAT, 0644);
	for (off = 0; off < before; off += 2 * PAGE)
		write_all(fd, buf, PAGE, off);
	write_all(fd, buf, size - before, before);
	EXPECT_EQ(0, fsync(fd));
	twin = open(low("many.twin"), O_RDWR | O_CREAT, 0644);
	range.src_fd = fd;
	ASSERT_EQ(0, ioctl(twin, FICLONERANGE, &range));
	close(fd);
	close(twin);
	drop_caches("3");
	hits = pool("hits");
	/* (A fault on a slow machine may give up waiting, and so for some time others.) */
	for (i = 0; i < 20 && pool("hits") - hits < (long)((size - before) / PAGE); i++) {
		map = map_file(up("many"), size, PROT_READ, MAP_SHARED);
		touch(map, size);
		if (i)
			sleep(1);
		munmap(map, size);
	}
	map = map_file(up("many"), size, PROT_READ, MAP_SHARED);
	EXPECT_LE((long)((size - before) / PAGE), pool("hits") - hits);
	EXPECT_EQ(-1, mismatch(map + before, size - before, 1, before));
	munmap(map, size);
	free(buf);
	unlink(low("many"));
	unlink(low("many.twin"));
}

TEST_HARNESS_MAIN
