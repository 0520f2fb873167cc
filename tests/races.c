// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 200
 *
 * Races that a rule of the design closes, each made to happen: what a child
 * does meets what its parent does meanwhile.  On the module as it is the
 * windows are microseconds.  scripts/mutants widens them for a task of the
 * child's name, and then takes the rule away.
 */
#include "common.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/prctl.h>

#define NR	256
#define SIZE	(NR * PAGE)

static pid_t slow_pid;

/* Have a task of that name do something, and wait until it is about to. */
static void slow_begin(const char *name, int (*what)(int), int arg)
{
	int ready[2];
	char c;

	if (pipe(ready))
		die("pipe");
	slow_pid = fork();
	if (slow_pid < 0)
		die("fork");
	if (!slow_pid) {
		prctl(PR_SET_NAME, name);
		close(ready[0]);
		close(ready[1]);
		_exit(what(arg));
	}
	close(ready[1]);
	/* Until it has closed the other end. */
	if (read(ready[0], &c, 1))
		die("pipe");
	close(ready[0]);
	usleep(20000);
}

/* What it returned; -1 if it was killed. */
static int slow_end(void)
{
	int status;

	if (waitpid(slow_pid, &status, 0) != slow_pid)
		die("wait");
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* A process of any name. */
static bool ended_well(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && !status;
}

static bool is_done(pid_t pid)
{
	siginfo_t info = {};

	if (waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT))
		die("wait");
	return info.si_pid;
}

static char want[SIZE];			/* what file a holds */

FIXTURE(clones) {
	int unused;
};

FIXTURE_SETUP(clones)
{
	make_file(low("b"), SIZE, 1);
	make_clone(low("b"), low("a"));
	fill(want, SIZE, 1, 0);
	sync();
}

FIXTURE_TEARDOWN(clones)
{
	unlink(low("a"));
	unlink(low("b"));
}

static int read_all_of_a(int unused)
{
	static char buf[SIZE];
	int fd = open(up("a"), O_RDONLY);

	return pread(fd, buf, SIZE, 0) != SIZE;
}

/*
 * Rule 4: a page changes, and is on disk, between the look at the file's blocks
 * and the read of their data: the block that was seen still has the old.  The
 * twin is attached to it and has no page yet.
 */
TEST_F(clones, changed_while_it_is_read)
{
	int twin = open(up("b"), O_RDONLY), round, page, fd, i;

	ASSERT_LE(0, twin);
	for (round = 0; round < 8; round++) {
		/* In the first window of a read. */
		page = 2 + 3 * round;
		ASSERT_EQ(-1, check_file(up("b"), SIZE, 1));
		for (i = 0; i < 20 && pool("pages"); i++)
			drop_caches("3");
		ASSERT_EQ(0, pool("pages"));
		fd = open(low("a"), O_RDWR);
		slow_begin("slow-fill", read_all_of_a, 0);
		fill(want + page * PAGE, PAGE, 7, page * PAGE);
		write_all(fd, want + page * PAGE, PAGE, page * PAGE);
		ASSERT_EQ(0, fdatasync(fd));
		close(fd);
		EXPECT_EQ(0, slow_end());
		ASSERT_EQ(-1, check_file(up("b"), SIZE, 1)) TH_LOG("page %d", page);
		ASSERT_EQ(-1, differs_from(up("a"), want, SIZE)) TH_LOG("page %d", page);
	}
	close(twin);
}

/* Write a page, and read what was written. */
static int write_page_of_a(int page)
{
	char buf[PAGE], seen[PAGE];
	int fd = open(up("a"), O_RDWR);

	fill(buf, PAGE, 7, page * PAGE);
	if (pwrite(fd, buf, PAGE, page * PAGE) != PAGE || pread(fd, seen, PAGE, page * PAGE) != PAGE)
		return 2;
	return !!memcmp(buf, seen, PAGE);
}

/* Rule 9: who reads while a write is under way does not bring back what it lets go of. */
TEST_F(clones, read_while_it_is_written)
{
	int round, page, fd;
	char buf[PAGE];

	drop_caches("3");
	fd = open(up("a"), O_RDONLY);
	for (round = 0; round < 8; round++) {
		page = 3 + 29 * round;
		ASSERT_EQ(-1, check_file(up("b"), SIZE, 1));
		ASSERT_EQ(-1, differs_from(up("a"), want, SIZE));
		fill(want + page * PAGE, PAGE, 7, page * PAGE);
		slow_begin("slow-write", write_page_of_a, page);
		do {
			ASSERT_EQ(PAGE, pread(fd, buf, PAGE, page * PAGE));
			usleep(1000);
		} while (!is_done(slow_pid));
		EXPECT_EQ(0, slow_end()) TH_LOG("what was written to page %d is not read", page);
		ASSERT_EQ(-1, differs_from(up("a"), want, SIZE)) TH_LOG("page %d", page);
		fsync(fd);
	}
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 1));
	close(fd);
}

/* Write a page past the page cache: to the block that it has, where nobody shares that. */
static int write_page_of_a_directly(int page)
{
	char *buf = aligned_alloc(PAGE, PAGE);
	int fd = open(up("a"), O_RDWR | O_DIRECT);

	fill(buf, PAGE, 8, page * PAGE);
	return pwrite(fd, buf, PAGE, page * PAGE) != PAGE;
}

/*
 * Rule 9, where nothing but the word of a change tells of it: the block is
 * shared when a reader comes, and overwritten in place when its twin is gone.
 */
TEST_F(clones, written_in_place_once_the_twin_is_gone)
{
	int round, page, fd, dir = open(up(""), O_RDONLY | O_DIRECTORY), i;
	char buf[PAGE];

	fd = open(up("a"), O_RDONLY);
	for (round = 0; round < 4; round++) {
		page = 5 + 31 * round;
		ASSERT_EQ(-1, differs_from(up("b"), want, SIZE));
		ASSERT_EQ(-1, differs_from(up("a"), want, SIZE));
		slow_begin("slow-write", write_page_of_a_directly, page);
		for (i = 0; i < 3; i++)
			ASSERT_EQ(PAGE, pread(fd, buf, PAGE, page * PAGE));
		ASSERT_EQ(0, unlink(up("b")));
		ASSERT_EQ(0, syncfs(dir));
		EXPECT_EQ(0, slow_end());
		fill(want + page * PAGE, PAGE, 8, page * PAGE);
		ASSERT_EQ(-1, differs_from(up("a"), want, SIZE)) TH_LOG("page %d", page);
		make_clone(low("a"), low("b"));
	}
	close(fd);
	close(dir);
}

static volatile bool *written;		/* in memory that both see */

/* Map a page, and once it has been written, see what is mapped. */
static int load_and_look_again(int page)
{
	char *map = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED) + page * PAGE;
	char new[PAGE];

	touch(map, PAGE);
	while (!*written)
		usleep(1000);
	fill(new, PAGE, 9, page * PAGE);
	return memcmp(map, new, PAGE) != 0;
}

/* Rule 10: who was about to map what a write lets go of is waited for, and unmapped. */
TEST_F(clones, written_while_it_is_mapped)
{
	int round, page, fd = open(up("a"), O_RDWR);

	written = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (round = 0; round < 4; round++) {
		page = 5 + 31 * round;
		ASSERT_EQ(-1, differs_from(up("a"), want, SIZE));
		*written = false;
		slow_begin("slow-fault", load_and_look_again, page);
		fill(want + page * PAGE, PAGE, 9, page * PAGE);
		write_all(fd, want + page * PAGE, PAGE, page * PAGE);
		*written = true;
		EXPECT_EQ(0, slow_end()) TH_LOG("page %d", page);
	}
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 1));
	close(fd);
}

/* --- a writer in the middle of a write --------------------------------------- */

static struct {
	int fault_fd;		/* of the writer */
	char *page;		/* in the writer's memory; not there until we say so */
} *stopped;

/* Memory at which whoever looks at it waits for let_it_go_on(), after a page of the usual; or exits. */
static char *a_page_to_wait_for(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range.len = PAGE, .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	p += PAGE;
	reg.range.start = (uintptr_t)p;
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg))
		_exit(2);
	stopped->page = p;
	__atomic_store_n(&stopped->fault_fd, uffd, __ATOMIC_RELEASE);
	return p;
}

/* The stopped task's userfaultfd, in this process. */
static int its_fault_fd(void)
{
	int pid_fd = syscall(SYS_pidfd_open, slow_pid, 0);
	int fd = syscall(SYS_pidfd_getfd, pid_fd, stopped->fault_fd, 0);

	close(pid_fd);
	return fd;
}

/* Begin, and wait until he is there. */
static bool begin_and_stop(const char *name, int (*what)(int), int arg)
{
	struct pollfd fault = { .events = POLLIN };
	double end = now() + 20 * TIME_FACTOR;
	bool there;

	if (!stopped)
		stopped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	stopped->fault_fd = 0;
	slow_begin(name, what, arg);
	while (!__atomic_load_n(&stopped->fault_fd, __ATOMIC_ACQUIRE) && now() < end)
		usleep(1000);
	fault.fd = its_fault_fd();
	there = poll(&fault, 1, 20000 * TIME_FACTOR) == 1;
	close(fault.fd);
	return there;
}

/* Write a page below: the call has begun, and waits for what it is to write. */
static int write_below_and_wait(int page)
{
	int fd = open(low("a"), O_RDWR);

	return pwrite(fd, a_page_to_wait_for(), PAGE, page * PAGE) != PAGE;
}

static bool let_it_go_on(const char *data)
{
	struct uffdio_copy copy = {
		.src = (uintptr_t)data, .dst = (uintptr_t)stopped->page, .len = PAGE,
	};
	int fd = its_fault_fd();
	bool ok = !ioctl(fd, UFFDIO_COPY, &copy);

	close(fd);
	return ok;
}

/*
 * Rule 3: who writes below has moved the counter, and not yet written: what is
 * found out now would be valid afterwards.
 */
TEST_F(clones, read_in_the_middle_of_a_write_below)
{
	int round, page;
	char buf[PAGE];
	pid_t reader;
	double end;

	for (round = 0; round < 4; round++) {
		page = 3 + 29 * round;
		/* The pool has all of it: nothing is left to wait for but the writer. */
		ASSERT_EQ(-1, check_file(up("b"), SIZE, 1));
		ASSERT_EQ(-1, differs_from(up("a"), want, SIZE));
		fill(want + page * PAGE, PAGE, 7, page * PAGE);
		ASSERT_TRUE(begin_and_stop("writer", write_below_and_wait, page)) TH_LOG("no userfaultfd");
		reader = fork();
		if (!reader) {
			int fd = open(up("a"), O_RDONLY);

			_exit(pread(fd, buf, PAGE, (page + 1) * PAGE) != PAGE ||
			      pread(fd, buf, PAGE, page * PAGE) != PAGE);
		}
		/* On XFS it waits for the writer. */
		for (end = now() + 2; now() < end && !is_done(reader); )
			usleep(10000);
		ASSERT_TRUE(let_it_go_on(want + page * PAGE));
		EXPECT_EQ(0, slow_end());
		EXPECT_TRUE(ended_well(reader));
		EXPECT_EQ(-1, differs_from(up("a"), want, SIZE)) TH_LOG("page %d", page);
		sync();
		EXPECT_EQ(-1, differs_from(up("a"), want, SIZE)) TH_LOG("page %d, synced", page);
		EXPECT_EQ(-1, check_file(up("b"), SIZE, 1));
	}
}

/*
 * A write that waits for its turn behind a truncation below: an append comes to
 * lie where nobody expected it, and behind any other there is a hole.  Both are
 * seen by who has the place mapped all the same.
 */
static void overtaken(struct __test_metadata *_metadata, bool append)
{
	const size_t end = PAGE + 100;
	char *map = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED), data[50], page[PAGE] = "";
	int fd = open(up("a"), O_WRONLY | (append ? O_APPEND : 0));
	pid_t cutter, writer;

	fill(data, sizeof(data), 8, 0);
	touch(map, SIZE);
	ASSERT_TRUE(begin_and_stop("writer", write_below_and_wait, 200)) TH_LOG("no userfaultfd");
	cutter = fork();
	if (!cutter)
		_exit(truncate(low("a"), end) != 0);
	usleep(500000);
	writer = fork();
	if (!writer)
		_exit(pwrite(fd, data, sizeof(data), 100 * PAGE) != sizeof(data));
	usleep(500000);
	ASSERT_TRUE(let_it_go_on(page));
	EXPECT_EQ(0, slow_end());
	EXPECT_TRUE(ended_well(cutter));
	EXPECT_TRUE(ended_well(writer));
	if (!append)
		memset(data, 0, sizeof(data));
	EXPECT_EQ(0, memcmp(map + end, data, sizeof(data))) TH_LOG("mapped");
	munmap(map, SIZE);
	EXPECT_EQ(hash_read(low("a"), MiB), hash_read(up("a"), MiB));
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 1));
	close(fd);
}

TEST_F(clones, append_overtaken_by_a_truncation_below)
{
	overtaken(_metadata, true);
}

TEST_F(clones, write_overtaken_by_a_truncation_below)
{
	overtaken(_metadata, false);
}

/* --- who keeps a file locked ---------------------------------------------------- */

static const char *locked, *used;	/* names of files */

/* The extents are copied out under the lock. */
static int fiemap_and_wait(int arg)
{
	struct fiemap *fm = (void *)(a_page_to_wait_for() - sizeof(*fm));

	*fm = (struct fiemap){ .fm_length = SIZE, .fm_extent_count = 8 };
	return ioctl(open(low("%s", locked), O_RDONLY), FS_IOC_FIEMAP, fm);
}

static int load_it(int arg)
{
	char *map = map_file(up("%s", used), SIZE, PROT_READ, MAP_SHARED);

	return mismatch(map, SIZE, 1, 0) != -1;
}

static int read_it(int arg)
{
	return check_file(up("%s", used), SIZE, 1) != -1;
}

/* Its user has the file locked, and one waits to change it, whom unlock_it() wants. */
static pid_t lock_it(struct __test_metadata *_metadata, mode_t mode)
{
	pid_t waiter;

	ASSERT_TRUE(begin_and_stop("locker", fiemap_and_wait, 0)) TH_LOG("no userfaultfd");
	waiter = fork();
	if (!waiter)
		_exit(chmod(low("%s", locked), mode));
	usleep(300000);
	return waiter;
}

static void unlock_it(struct __test_metadata *_metadata, pid_t waiter)
{
	char page[PAGE] = "";

	ASSERT_TRUE(let_it_go_on(page));
	EXPECT_EQ(0, slow_end());
	EXPECT_TRUE(ended_well(waiter));
}

/*
 * One holds a lock for as long as he likes, and another waits for it, so that
 * nobody gets it any more: who uses a file meanwhile comes to an end.
 */
static void use_while_locked(struct __test_metadata *_metadata, int (*use)(int))
{
	pid_t waiter, user;
	double begun;

	waiter = lock_it(_metadata, 0640);
	begun = now();
	user = fork();
	if (!user)
		_exit(use(0));
	while (!is_done(user) && now() < begun + 30 * TIME_FACTOR)
		usleep(10000);
	TH_LOG("%s: %.1f s", use == load_it ? "mapped" : "read", now() - begun);
	EXPECT_GT(30 * TIME_FACTOR, now() - begun) TH_LOG("it waits for the lock");
	unlock_it(_metadata, waiter);
	EXPECT_TRUE(ended_well(user));
}

static int (*const ways_to_use[])(int) = { read_it, load_it };

/* Who reads a clone of other users' does not wait for what they do with theirs. */
TEST_F(clones, read_while_another_keeps_his_locked)
{
	unsigned int i;

	locked = "b";
	used = "c";
	for (i = 0; i < 2; i++) {
		make_clone(low("b"), low("c"));
		drop_caches("3");
		ASSERT_EQ(-1, check_file(up("b"), SIZE, 1));
		use_while_locked(_metadata, ways_to_use[i]);
		unlink(low("c"));
	}
}

/*
 * On btrfs a read takes no lock, so it does not wait for who holds one on the
 * very file: a clone of it that takes long, or a user as above.
 */
TEST_F(clones, read_while_it_is_locked)
{
	char page[PAGE];
	unsigned int i;
	int fd;

	if (!btrfs)
		SKIP(return, "reads of XFS take the lock");
	locked = used = "a";
	for (i = 0; i < 2; i++) {
		drop_caches("3");
		/* The rest is to come. */
		fd = open(up("a"), O_RDONLY);
		ASSERT_EQ(PAGE, pread(fd, page, PAGE, 0));
		close(fd);
		use_while_locked(_metadata, ways_to_use[i]);
	}
}

/* --- a program that changes while it is being executed ----------------------- */

static int program_output[2];

/* (Since 6.11 the program is open before the arguments are looked at.) */
static int run_program(int unused)
{
	char *arg = a_page_to_wait_for();

	dup2(program_output[1], 1);
	if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		return 3;
	execl(up("id"), "id", arg, NULL);
	return 4;
}

/* A set-id bit that is taken away below meanwhile is nobody's any more. */
TEST(set_id_removed_while_it_is_executed)
{
	char text[32];
	int removed;

	chmod(lower_dir, 0755);
	ASSERT_EQ(0, shell("cp /usr/bin/id %s && chmod 4755 %s", low("id"), low("id")));
	ASSERT_EQ(0, pipe(program_output));
	for (removed = 0; removed < 2; removed++) {
		ASSERT_TRUE(begin_and_stop("exec", run_program, 0)) TH_LOG("no userfaultfd");
		if (removed)
			ASSERT_EQ(0, chmod(low("id"), 0755));
		ASSERT_TRUE(let_it_go_on((char [PAGE]){ "-u" }));
		EXPECT_EQ(0, slow_end());
		memset(text, 0, sizeof(text));
		EXPECT_LT(0, read(program_output[0], text, sizeof(text) - 1));
		EXPECT_STREQ(removed ? "65534\n" : "0\n", text);
	}
	unlink(low("id"));
}

/*
 * An overlayfs takes the mode of a program when it meets it, and not again: who
 * has it locked for a moment just then does not make it one without set-id.
 */
TEST(set_id_met_while_it_is_locked)
{
	char ovl[] = "ovl.XXXXXX", text[32] = "";
	pid_t waiter, first, user;
	double begun, took;
	char *opt;
	int tries;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	chmod(lower_dir, 0755);
	ASSERT_EQ(0, shell("cd %s && mkdir l u w && cp /usr/bin/id l && chmod 4755 l/id", lower_dir));
	ASSERT_NE(NULL, mkdtemp(ovl));
	chmod(ovl, 0755);
	if (asprintf(&opt, "lowerdir=%s,upperdir=%s,workdir=%s", up("l"), low("u"), low("w")) < 0)
		die("asprintf");
	locked = "l/id";
	/* It is waited for, for half a second: a machine that is slower proves nothing. */
	for (tries = 0, took = 1; tries < 10 && took > 0.4; tries++) {
		umount2(ovl, MNT_DETACH);
		drop_caches("3");
		ASSERT_EQ(0, mount("overlay", ovl, "overlay", 0, opt));
		waiter = lock_it(_metadata, 04755);
		begun = now();
		first = fork();
		if (!first)
			_exit(access(path_of("%s/id", ovl), F_OK));
		usleep(150000);
		unlock_it(_metadata, waiter);
		took = now() - begun;
		EXPECT_TRUE(ended_well(first));
	}
	EXPECT_EQ(0, pipe(program_output));
	user = fork();
	if (!user) {
		dup2(program_output[1], 1);
		if (!setresgid(65534, 65534, 65534) && !setresuid(65534, 65534, 65534))
			execl(path_of("%s/id", ovl), "id", "-u", NULL);
		_exit(4);
	}
	EXPECT_TRUE(ended_well(user));
	close(program_output[1]);
	read(program_output[0], text, sizeof(text) - 1);
	close(program_output[0]);
	EXPECT_EQ(0, umount(ovl));
	rmdir(ovl);
	free(opt);
	if (took > 0.4 && !_metadata->exit_code)
		SKIP(return, "too slow");
	EXPECT_STREQ("0\n", text);
}

/* --- a block that was freed and used again ----------------------------------- */

#define VICTIM	100			/* the page that is looked at */

#define STORED	7			/* the byte of it that is stored to */

/* What file a has there: pattern 1, or a hole by now.  With a store, or without. */
static int is_right(const char *page, bool stored)
{
	char full[PAGE], hole[PAGE] = {};

	fill(full, PAGE, 1, VICTIM * PAGE);
	if (stored)
		full[STORED] = hole[STORED] = 0x5a;
	return memcmp(page, full, PAGE) && memcmp(page, hole, PAGE);
}

static int read_victim(int unused)
{
	int fd = open(up("a"), O_RDONLY);
	char buf[PAGE];

	if (pread(fd, buf, PAGE, VICTIM * PAGE) != PAGE)
		return 2;
	return is_right(buf, false);
}

/* A store into a private mapping: the copy is this task's for good. */
static int store_victim(int unused)
{
	char *map = map_file(up("a"), SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);

	if (map == MAP_FAILED)
		return 2;
	map[VICTIM * PAGE + STORED] = 0x5a;
	return is_right(map + VICTIM * PAGE, true);
}

static int map_victim(int unused)
{
	char *map = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);

	if (map == MAP_FAILED)
		return 2;
	return is_right(map + VICTIM * PAGE, false);
}

static void punch(const char *path)
{
	int fd = open(path, O_RDWR);

	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE))
		die("punch %s", path);
	close(fd);
}

static void used_by_another(struct __test_metadata *_metadata, const char *slow,
			    int (*look)(int))
{
	struct fiemap_extent was[64];
	int round, reused = 0, i;
	size_t first, run;
	char name[16];
	pid_t reader;
	long n;

	take_space(low("filler"), 32 * MiB);
	for (round = 0; round < 3 || (!reused && round < 10); round++) {
		make_file(low("b"), SIZE, 1);
		make_clone(low("b"), low("a"));
		sync();
		ASSERT_EQ(-1, check_file(up("a"), SIZE, 1));
		ASSERT_EQ(-1, check_file(up("b"), SIZE, 1));
		n = fiemap(low("a"), was, 64);
		ASSERT_LT(0, n);

		slow_begin(slow, look, 0);
		punch(low("a"));
		punch(low("b"));
		sync();
		for (i = 0, run = 0; i < 8 && !run; i++) {
			snprintf(name, sizeof(name), "z%d", i);
			make_file(low("%s", name), SIZE, 10 + i);
			run = run_on(was, n, low("%s", name), &first, NULL);
			if (run && (first > VICTIM || first + run <= VICTIM))
				run = 0;
		}
		if (run) {
			reused++;
			make_clone(low("%s", name), low("zz"));
			/* The first of these may wait for a fault of the victim's. */
			reader = fork();
			if (!reader) {
				usleep(200000);
				_exit(check_file(up("zz"), SIZE, 10 + i - 1) != -1);
			}
			EXPECT_EQ(-1, check_file(up("%s", name), SIZE, 10 + i - 1))
				TH_LOG("%s", name);
			EXPECT_TRUE(ended_well(reader));
		}
		EXPECT_EQ(0, slow_end());
		while (i--)
			unlink(low("z%d", i));
		unlink(low("zz"));
		sync();
	}
	unlink(low("filler"));
	TH_LOG("the block was used again %d times", reused);
	EXPECT_LT(0, reused);
}

TEST_F(clones, used_by_another_while_it_is_read)
{
	used_by_another(_metadata, "slow-read", read_victim);
}

TEST_F(clones, used_by_another_while_it_is_copied)
{
	used_by_another(_metadata, "slow-fault", store_victim);
}

TEST_F(clones, used_by_another_while_it_is_mapped)
{
	used_by_another(_metadata, "slow-fault", map_victim);
}

/*
 * Rule 6: a file that another one is to be attached by is FIEMAPped, then all
 * of it is written anew below, twice: its blocks go, come back with other data,
 * and it is read again, before the other is attached.  That one was moved away
 * meanwhile, of which no counter tells.
 */
static bool write_anew_and_compare(struct __test_metadata *_metadata)
{
	struct fiemap_extent was[8];
	size_t run = 0, first, at;
	char *buf = malloc(SIZE);
	long n = fiemap(low("b"), was, 8);
	int i, fd;
	bool back;

	EXPECT_LT(0, n);
	take_space(low("filler"), 12 * MiB);
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 1));
	slow_begin("slow-join", read_all_of_a, 0);

	/* (What cannot be compressed is written anew as it is.) */
	EXPECT_EQ(0, shell("btrfs filesystem defragment -czstd -f %s", low("a")));
	fd = open(low("b"), O_RDWR);
	for (i = 0; i < 12 && !(run && first == at); i++) {
		fill(buf, SIZE, 10 + i, 0);
		write_all(fd, buf, SIZE, 0);
		EXPECT_EQ(0, fsync(fd));
		sync();
		run = run_on(was, n, low("b"), &first, &at);
	}
	close(fd);
	back = run && first == at;
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 9 + i));
	TH_LOG("%zu pages came back, round %d%s", back ? run : 0, i,
	       is_done(slow_pid) ? "; too late" : "");
	EXPECT_EQ(0, slow_end());
	EXPECT_EQ(-1, differs_from(up("a"), want, SIZE));
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 9 + i));
	unlink(low("filler"));
	free(buf);
	return back;
}

TEST_F(clones, witness_written_anew_before_its_word_is_used)
{
	int tries;

	if (!btrfs)
		SKIP(return, "on XFS the counter tells of a move");
	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	/* Where btrfs puts them is chance. */
	for (tries = 0; tries < 6 && !write_anew_and_compare(_metadata); tries++) {
		unlink(low("a"));
		unlink(low("b"));
		sync();
		make_file(low("b"), SIZE, 1);
		make_clone(low("b"), low("a"));
		sync();
	}
	/* (A SKIP makes good what has failed.) */
	if (tries == 6 && !_metadata->exit_code)
		SKIP(return, "btrfs did not use the blocks again");
}

static int write_one_page(int unused)
{
	char buf[PAGE];
	int fd = open(up("one"), O_RDWR);

	fill(buf, PAGE, 5, 0);
	return pwrite(fd, buf, PAGE, 0) != PAGE;
}

/*
 * What one has let go of, and not unmapped yet, is unmapped before another who
 * finds the file changed below has read the new data.
 */
TEST(changed_below_while_it_is_unmapped)
{
	char buf[PAGE], seen[PAGE], *map;
	int fd, below;

	make_file(low("one"), PAGE, 1);
	make_clone(low("one"), low("two"));
	sync();
	ASSERT_EQ(-1, check_file(up("one"), PAGE, 1));
	map = map_file(up("one"), PAGE, PROT_READ, MAP_SHARED);
	ASSERT_EQ(-1, mismatch(map, PAGE, 1, 0));
	fd = open(up("one"), O_RDONLY);
	below = open(low("one"), O_RDWR);
	slow_begin("slow-zap", write_one_page, 0);
	fill(buf, PAGE, 6, 0);
	write_all(below, buf, PAGE, 0);
	ASSERT_EQ(PAGE, pread(fd, seen, PAGE, 0));
	/* (The other write may come first or last.) */
	if (!memcmp(seen, buf, PAGE))
		EXPECT_NE(-1, mismatch(map, PAGE, 1, 0)) TH_LOG("the mapping has the first data");
	EXPECT_EQ(0, slow_end());
	ASSERT_EQ(PAGE, pread(fd, seen, PAGE, 0));
	EXPECT_EQ(0, memcmp(seen, map, PAGE));
	EXPECT_EQ(-1, check_file(up("two"), PAGE, 1));
	munmap(map, PAGE);
	close(fd);
	close(below);
	unlink(low("one"));
	unlink(low("two"));
}

TEST_HARNESS_MAIN
