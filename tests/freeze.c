// SPDX-License-Identifier: GPL-2.0-only
/*
 * FIFREEZE and FITHAW through the mount freeze and thaw the lower filesystem:
 * nobody writes meanwhile, all that was written before is on the disk.
 */
#include "common.h"

#define SIZE	(16 * PAGE)

FIXTURE(frozen) {
	int dir;
	pid_t writer;
};

FIXTURE_SETUP(frozen)
{
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	drop_caches("3");
	self->dir = open(up("."), O_RDONLY);
	ASSERT_LE(0, self->dir);
}

FIXTURE_TEARDOWN(frozen)
{
	ioctl(self->dir, FITHAW, 0);
	unlink(low("a"));
	unlink(low("twin"));
}

static pid_t writer(const char *path, bool mapped)
{
	pid_t pid = fork();
	char *p;
	int fd;

	if (pid)
		return pid;
	fd = open(path, O_RDWR);
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	touch(p, SIZE);
	if (mapped)
		p[PAGE] ^= 1;
	else
		pwrite(fd, "x", 1, 2 * PAGE);
	_exit(0);
}

static bool ended(pid_t pid, int ms)
{
	int status;

	for (; ms > 0; ms -= 20) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			return true;
		usleep(20000);
	}
	return false;
}

static void try_writers(struct __test_metadata *_metadata, FIXTURE_DATA(frozen) *self, const char *path)
{
	int i;

	for (i = 0; i < 2; i++) {
		pid_t pid;

		ASSERT_EQ(0, ioctl(self->dir, FIFREEZE, 0));
		EXPECT_EQ(-1, ioctl(self->dir, FIFREEZE, 0));
		EXPECT_EQ(EBUSY, errno);
		/* Reading goes on. */
		EXPECT_NE(0, hash_read(up("twin"), MiB));
		EXPECT_EQ(hash_read(up("twin"), MiB), hash_map(up("twin"), MiB, MAP_SHARED));
		pid = writer(path, i);
		EXPECT_FALSE(ended(pid, 400)) TH_LOG("it wrote to a frozen filesystem");
		ASSERT_EQ(0, ioctl(self->dir, FITHAW, 0));
		EXPECT_TRUE(ended(pid, 5000 * TIME_FACTOR)) TH_LOG("it hangs after the thaw");
		EXPECT_EQ(-1, ioctl(self->dir, FITHAW, 0));
		EXPECT_EQ(EINVAL, errno);
	}
}

TEST_F(frozen, stops_writers_through_the_mount)
{
	try_writers(_metadata, self, up("a"));
}

TEST_F(frozen, stops_writers_below)
{
	try_writers(_metadata, self, low("a"));
}

/* What goes through a fifo is none of the filesystem's business, but its times are. */
TEST_F(frozen, stops_no_fifo)
{
	int fd, dir = open(low("."), O_RDONLY);
	pid_t pid;

	ASSERT_EQ(0, mkfifo(low("fifo"), 0644));
	fd = open(up("fifo"), O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ioctl(dir, FIFREEZE, 0));
	pid = fork();
	if (!pid)
		_exit(write(fd, "x", 1) != 1);
	EXPECT_TRUE(ended(pid, 3000 * TIME_FACTOR)) TH_LOG("it waits for the thaw");
	ASSERT_EQ(0, ioctl(dir, FITHAW, 0));
	close(dir);
	close(fd);
	unlink(low("fifo"));
}

TEST_F(frozen, settles_what_was_written)
{
	char *p = map_file(up("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED), *got = aligned_alloc(PAGE, SIZE);
	int fd = open(up("a"), O_RDWR);

	fill(p + 3 * PAGE, PAGE, 3, 0);
	fill(got, PAGE, 4, 0);
	write_all(fd, got, PAGE, 5 * PAGE);
	ASSERT_EQ(0, ioctl(self->dir, FIFREEZE, 0));
	EXPECT_EQ(-1, mismatch(p + 3 * PAGE, PAGE, 3, 0));
	/* Nothing dirty is left: the disk has it. */
	fd = open(low("a"), O_RDONLY | O_DIRECT);
	EXPECT_EQ(SIZE, pread(fd, got, SIZE, 0));
	ASSERT_EQ(0, ioctl(self->dir, FITHAW, 0));
	EXPECT_EQ(-1, mismatch(got + 3 * PAGE, PAGE, 3, 0));
	EXPECT_EQ(-1, mismatch(got + 5 * PAGE, PAGE, 4, 0));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

/* From a pipe, whose lock it takes. */
static pid_t splicer(int from, const char *path, int policy)
{
	struct sched_param param = { .sched_priority = policy == SCHED_FIFO };
	pid_t pid = fork();
	int fd;

	if (pid)
		return pid;
	sched_setscheduler(0, policy, &param);
	fd = open(path, O_WRONLY);
	_exit(splice(from, NULL, fd, NULL, PAGE, 0) != PAGE);
}

/*
 * A splice to the lower file asks for freeze protection, then for the pipe.
 * One through the mount must not do so the other way round: with the pipe
 * locked it would wait for a freeze that waits for the one below.
 */
TEST_F(frozen, waits_for_splices_in_one_order)
{
	int lower = open(low("."), O_RDONLY), pipes[2], i;
	pid_t above, below, freezer, feeder;

	ASSERT_EQ(0, pipe(pipes));
	/* Both are woken when there is something in the pipe: this one runs first. */
	above = splicer(pipes[0], up("a"), SCHED_FIFO);
	usleep(200000);
	below = splicer(pipes[0], low("twin"), SCHED_IDLE);
	usleep(200000);
	freezer = fork();
	if (!freezer)
		_exit(ioctl(lower, FIFREEZE, 0) != 0);
	EXPECT_FALSE(ended(freezer, 400)) TH_LOG("a writer was not waited for");
	feeder = fork();
	if (!feeder) {
		char *page = aligned_alloc(PAGE, PAGE);

		for (i = 0; i < 2; i++) {
			write(pipes[1], page, PAGE);
			usleep(200000);
		}
		_exit(0);
	}
	EXPECT_TRUE(ended(freezer, 8000 * TIME_FACTOR)) TH_LOG("deadlock");
	/* If so, this ends it. */
	kill(below, SIGKILL);
	if (ioctl(lower, FITHAW, 0)) {
		usleep(500000);
		EXPECT_EQ(0, ioctl(lower, FITHAW, 0));
	}
	EXPECT_TRUE(ended(above, 5000 * TIME_FACTOR));
	EXPECT_TRUE(ended(feeder, 5000 * TIME_FACTOR));
	ended(below, 1000);
}

#define ANOTHER "/run/frozen"

/* Another mount of the same, frozen.  Return: its directory, or -1. */
static int freeze_another(void)
{
	int dir;

	if (mkdir(ANOTHER, 0755) || mount_on(lower_dir, ANOTHER, NULL))
		return -1;
	dir = open(ANOTHER, O_RDONLY);
	return ioctl(dir, FIFREEZE, 0) ? -1 : dir;
}

/* Who is told that it is frozen can rely on it, whoever thaws it elsewhere. */
TEST_F(frozen, by_two)
{
	int other, err;
	pid_t pid;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	other = freeze_another();
	ASSERT_LE(0, other);
	err = ioctl(self->dir, FIFREEZE, 0) ? errno : 0;
	TH_LOG("the second: %s", strerror(err));
	if (err)
		EXPECT_EQ(EBUSY, err);
	ASSERT_EQ(0, ioctl(other, FITHAW, 0));
	pid = writer(low("a"), false);
	EXPECT_EQ(err != 0, ended(pid, err ? 5000 * TIME_FACTOR : 400));
	if (!err) {
		ASSERT_EQ(0, ioctl(self->dir, FITHAW, 0));
		EXPECT_TRUE(ended(pid, 5000 * TIME_FACTOR));
	}
	close(other);
	EXPECT_EQ(0, umount(ANOTHER));
	rmdir(ANOTHER);
}

/* The mount is gone, and with it who could thaw: an emergency thaw reaches it. */
TEST_F(frozen, and_unmounted)
{
	pid_t pid;
	int dir;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	dir = freeze_another();
	ASSERT_LE(0, dir);
	close(dir);
	ASSERT_EQ(0, umount(ANOTHER));
	pid = writer(low("a"), false);
	EXPECT_FALSE(ended(pid, 400)) TH_LOG("it wrote to a frozen filesystem");
	ASSERT_EQ(0, write_text("/proc/sysrq-trigger", "j"));
	EXPECT_TRUE(ended(pid, 5000 * TIME_FACTOR)) TH_LOG("it is frozen for good");
	rmdir(ANOTHER);
}

TEST_F(frozen, needs_privilege)
{
	ASSERT_EQ(0, setresuid(65534, 65534, 65534));
	EXPECT_EQ(-1, ioctl(self->dir, FIFREEZE, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(-1, ioctl(self->dir, FITHAW, 0));
	EXPECT_EQ(EPERM, errno);
}

TEST_HARNESS_MAIN
