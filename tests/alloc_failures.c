// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 180
 *
 * Memory that the module asks for and does not get: calls may fail with
 * ENOMEM, and nothing else may happen.  Requests of its reads that the disk
 * refuses: with EIO.  Needs a kernel with fault injection
 * that can be told whose calls shall fail (scripts/debug-kernel).
 */
#include "common.h"

#define FILES	6
#define SIZE	(40 * PAGE + 1000)
#define SECONDS	(10 * TIME_FACTOR)
#define TIMES	1000000000L	/* more often than it will */

static const char *const kinds[] = { "failslab", "fail_page_alloc", "fail_make_request" };

static int set(const char *kind, const char *key, long value)
{
	char text[32];

	/* Addresses are unsigned, counts are not. */
	snprintf(text, sizeof(text), strncmp(key, "require", 7) ? "%ld" : "%#lx", value);
	return write_text(path_of("/sys/kernel/debug/%s/%s", kind, key), text);
}

/* Where the module's code lies: the only caller whose allocations fail. */
static int module_text(unsigned long *start, unsigned long *end)
{
	char text[64], line[256];
	unsigned long at;
	FILE *f;

	if (read_text("/sys/module/dedupfs/sections/.text", text, sizeof(text)) <= 0)
		return -1;
	*start = strtoul(text, NULL, 16);
	*end = *start;
	f = fopen("/proc/kallsyms", "r");
	while (f && fgets(line, sizeof(line), f))
		if (strstr(line, "[dedupfs]") && sscanf(line, "%lx %*[tT]", &at) == 1 && at > *end)
			*end = at;
	if (f)
		fclose(f);
	*end += 4096;
	return *start ? 0 : -1;
}

/* It counts down. */
static long failed(const char *kind)
{
	char text[32];

	if (read_text(path_of("/sys/kernel/debug/%s/times", kind), text, sizeof(text)) <= 0)
		die("%s", kind);
	return TIMES - strtol(text, NULL, 0);
}

static int disk_may_fail(const char *yes)
{
	return write_text(path_of("/sys/block/%s/make-it-fail",
				  strrchr(getenv("DEDUPFS_DEV"), '/') + 1), yes);
}

/*
 * Only what the module asks for itself, or next to it: so few frames are looked
 * at that what the lower filesystem needs for its transactions is left alone.
 */
static int inject(const char *kind, int frames, int percent)
{
	unsigned long start, end;

	if (module_text(&start, &end))
		return -1;
	if (!strcmp(kind, "fail_page_alloc") && set(kind, "min-order", 0))
		return -1;
	if (strcmp(kind, "fail_make_request") ? set(kind, "ignore-gfp-wait", 0) : disk_may_fail("1"))
		return -1;
	return set(kind, "stacktrace-depth", frames) || set(kind, "require-start", start) ||
	       set(kind, "require-end", end) || set(kind, "interval", 1) ||
	       set(kind, "verbose", 0) || set(kind, "times", TIMES) ||
	       set(kind, "probability", percent);
}

struct seen {
	unsigned long done;
	unsigned long no_memory;	/* or not read */
	char wrong[200];
};

#define WRONG(s, fmt, ...) snprintf((s)->wrong, sizeof((s)->wrong), fmt ": %s", __VA_ARGS__, errname())

static bool reads_only;

/* A call came back: @ok, or as it may fail. */
static bool came_back(struct seen *s, bool ok, const char *what)
{
	s->done++;
	if (ok)
		return true;
	if (errno == (reads_only ? EIO : ENOMEM))
		s->no_memory++;
	else
		WRONG(s, "%s", what);
	return false;
}

static sigjmp_buf no_page;

static void on_bus(int sig)
{
	siglongjmp(no_page, 1);
}

/* A mapping shows the file, or SIGBUS where a page could not be had. */
static void look_at_mapping(struct seen *s, int fd, uint64_t seed)
{
	char *p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	long at;

	if (!came_back(s, p != MAP_FAILED, "mmap"))
		return;
	if (sigsetjmp(no_page, 1)) {
		s->no_memory++;
	} else {
		at = mismatch(p, SIZE, seed, 0);
		if (at >= 0)
			WRONG(s, "byte %ld of a mapping", at);
	}
	munmap(p, SIZE);
}

static void look_at(struct seen *s, int i, char *buf)
{
	int fd = open(up("f%d", i), O_RDONLY);
	ssize_t n;
	long at;

	if (!came_back(s, fd >= 0, "open"))
		return;
	n = pread(fd, buf, SIZE, 0);
	if (came_back(s, n >= 0, "read")) {
		at = mismatch(buf, n, i == FILES - 1 ? 2 : 1, 0);
		if (at >= 0)
			WRONG(s, "byte %ld of what was read", at);
	}
	look_at_mapping(s, fd, i == FILES - 1 ? 2 : 1);
	close(fd);
}

/* What a file holds is written to it again, so that it stays as it is. */
static void write_again(struct seen *s, int i, char *buf)
{
	off_t off = rand() % (SIZE / PAGE) * PAGE;
	int fd = open(up("f%d", i), O_RDWR);

	if (!came_back(s, fd >= 0, "open to write"))
		return;
	fill(buf, PAGE, i == FILES - 1 ? 2 : 1, off);
	came_back(s, pwrite(fd, buf, PAGE, off) >= 0, "write");
	came_back(s, !fsync(fd), "fsync");
	close(fd);
}

static void names(struct seen *s, int me)
{
	char *a = up("n%d", me), *b = up("m%d", me);
	int fd = open(a, O_RDWR | O_CREAT, 0644);
	struct stat st;

	if (came_back(s, fd >= 0, "create")) {
		came_back(s, !stat(a, &st) || errno == ENOENT, "stat");
		came_back(s, !link(a, b) || errno == EEXIST, "link");
		came_back(s, !rename(a, b) || errno == ENOENT, "rename");
		came_back(s, !setxattr(b, "user.x", "y", 1, 0) || errno == ENOENT, "setxattr");
		close(fd);
	}
	came_back(s, !unlink(a) || errno == ENOENT, "unlink");
	came_back(s, !unlink(b) || errno == ENOENT, "unlink");
}

static void another_mount(struct seen *s)
{
	const char *at = low("mnt");

	if (came_back(s, !mount_on(lower_dir, at, "domain=other"), "mount"))
		came_back(s, !umount2(at, MNT_DETACH), "umount");
}

static void worker(struct seen *s, int me)
{
	char *buf = malloc(SIZE + PAGE);
	double end = now() + SECONDS;

	signal(SIGBUS, on_bus);
	srand(me);
	while (now() < end && !*s->wrong) {
		/* A write that fails may be of the log, and the end of the filesystem. */
		switch (reads_only ? 3 + rand() % 9 : rand() % 12) {
		case 0:
			names(s, me);
			break;
		case 1:
			write_again(s, rand() % FILES, buf);
			break;
		case 2:
			if (me == 0)
				another_mount(s);
			break;
		case 3:
			write_text("/proc/sys/vm/drop_caches", me & 1 ? "2" : "3");
			break;
		default:
			look_at(s, rand() % FILES, buf);
		}
	}
	_exit(0);
}

#define WORKERS 3

FIXTURE(failing) {
	struct seen *seen;
};

FIXTURE_VARIANT(failing) {
	const char *kind;
	int frames;		/* the allocator's own, of the page allocator more; the disk is far */
	int percent;
};

FIXTURE_VARIANT_ADD(failing, slab) { .kind = "failslab", .frames = 6, .percent = 10 };
FIXTURE_VARIANT_ADD(failing, pages) { .kind = "fail_page_alloc", .frames = 8, .percent = 20 };
FIXTURE_VARIANT_ADD(failing, requests) { .kind = "fail_make_request", .frames = 32, .percent = 20 };

FIXTURE_SETUP(failing)
{
	int i;

	self->seen = mmap(NULL, WORKERS * sizeof(*self->seen), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	make_file(low("f0"), SIZE, 1);
	for (i = 1; i < FILES - 1; i++)
		make_clone(low("f0"), low("f%d", i));
	make_file(low("f%d", FILES - 1), SIZE, 2);
	mkdir(low("mnt"), 0755);
	drop_caches("3");
}

FIXTURE_TEARDOWN(failing)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		set(kinds[i], "probability", 0);
	disk_may_fail("0");
}

TEST_F(failing, cleanly)
{
	unsigned long done = 0, no_memory = 0;
	pid_t pid[WORKERS];
	int i, status;

	if (access(path_of("/sys/kernel/debug/%s/require-start", variant->kind), W_OK))
		SKIP(return, "this kernel injects no faults");
	reads_only = !strcmp(variant->kind, "fail_make_request");
	ASSERT_EQ(0, inject(variant->kind, variant->frames, variant->percent));
	for (i = 0; i < WORKERS; i++) {
		pid[i] = fork();
		if (!pid[i])
			worker(&self->seen[i], i);
	}
	for (i = 0; i < WORKERS; i++) {
		waitpid(pid[i], &status, 0);
		EXPECT_EQ(0, status);
	}
	set(variant->kind, "probability", 0);
	for (i = 0; i < WORKERS; i++) {
		EXPECT_STREQ("", self->seen[i].wrong);
		done += self->seen[i].done;
		no_memory += self->seen[i].no_memory;
	}
	TH_LOG("%lu calls, %lu failed; %ld times injected", done, no_memory,
	       failed(variant->kind));
	EXPECT_LT(100UL, done);
	EXPECT_LT(20, failed(variant->kind)) TH_LOG("this proves nothing");
	/* Without a page for the pool a call goes to the lower page cache, which may read once more. */
	if (!strcmp(variant->kind, "failslab"))
		EXPECT_LT(0UL, no_memory);
	/* All is as it was, and shared again. */
	drop_caches("3");
	for (i = 0; i < FILES; i++)
		EXPECT_EQ(-1, check_file(up("f%d", i), SIZE, i == FILES - 1 ? 2 : 1));
}

TEST_HARNESS_MAIN
