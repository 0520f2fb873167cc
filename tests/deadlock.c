// SPDX-License-Identifier: GPL-2.0-only
/*
 * Nobody hangs who writes to the lower file, or to the file itself, straight
 * from a mapping of the file: the writer holds the lower inode's lock while
 * it faults on that mapping.  Each case must end, with the right bytes.
 */
#include "common.h"

#define SIZE	(2 * MiB)

static void on_alarm(int sig)
{
	static const char msg[] = "# this hangs\n";

	write(2, msg, sizeof(msg) - 1);
	_exit(1);
}

FIXTURE(files) {
	char *up_a;	/* mapping of a through the mount, not touched yet */
};

FIXTURE_SETUP(files)
{
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	drop_caches("3");
	self->up_a = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, self->up_a);
	signal(SIGALRM, on_alarm);
	alarm(20 * TIME_FACTOR);
}

FIXTURE_TEARDOWN(files)
{
	alarm(0);
	unlink(low("a"));
	unlink(low("twin"));
}

/* The first half of a file now equals what the second half was. */
static long wrong(const char *path)
{
	char *buf = malloc(SIZE);
	int fd = open(path, O_RDONLY);
	long bad;

	if (pread(fd, buf, SIZE, 0) != SIZE)
		return 0;
	close(fd);
	bad = mismatch(buf, SIZE / 2, 1, SIZE / 2);
	if (bad == -1)
		bad = mismatch(buf + SIZE / 2, SIZE / 2, 1, SIZE / 2);
	free(buf);
	return bad;
}

TEST_F(files, lower_write_from_upper_mapping)
{
	int fd = open(low("a"), O_RDWR);

	EXPECT_EQ(SIZE / 2, pwrite(fd, self->up_a + SIZE / 2, SIZE / 2, 0));
	EXPECT_EQ(-1, wrong(low("a")));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(files, lower_direct_write_from_upper_mapping)
{
	int fd = open(low("a"), O_RDWR | O_DIRECT);

	EXPECT_EQ(SIZE / 2, pwrite(fd, self->up_a + SIZE / 2, SIZE / 2, 0));
	EXPECT_EQ(-1, wrong(low("a")));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(files, upper_write_from_own_mapping)
{
	int fd = open(up("a"), O_RDWR);

	EXPECT_EQ(SIZE / 2, pwrite(fd, self->up_a + SIZE / 2, SIZE / 2, 0));
	EXPECT_EQ(-1, wrong(low("a")));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(files, upper_direct_write_from_own_mapping)
{
	int fd = open(up("a"), O_RDWR | O_DIRECT);

	EXPECT_EQ(SIZE / 2, pwrite(fd, self->up_a + SIZE / 2, SIZE / 2, 0));
	EXPECT_EQ(-1, wrong(low("a")));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(files, write_of_a_page_onto_itself)
{
	int fd = open(up("a"), O_RDWR);
	size_t off;

	for (off = 0; off < SIZE; off += 16 * PAGE)
		ASSERT_EQ(PAGE, pwrite(fd, self->up_a + off, PAGE, off));
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
}

TEST_F(files, read_into_own_mapping)
{
	char *p = map_file(up("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	int fd = open(up("a"), O_RDWR);

	/* read(2) stores into pages of the file that it reads. */
	EXPECT_EQ(SIZE / 2, pread(fd, p, SIZE / 2, SIZE / 2));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(0, msync(p, SIZE, MS_SYNC));
	EXPECT_EQ(-1, wrong(low("a")));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

TEST_F(files, direct_read_into_own_mapping)
{
	char *p = map_file(up("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	int fd = open(up("a"), O_RDWR | O_DIRECT);

	EXPECT_EQ(SIZE / 2, pread(fd, p, SIZE / 2, SIZE / 2));
	EXPECT_EQ(-1, wrong(up("a")));
	EXPECT_EQ(0, msync(p, SIZE, MS_SYNC));
	EXPECT_EQ(-1, check_file(up("twin"), SIZE, 1));
}

/* x = blocks A B and y = blocks B A, each read into a mapping of the other. */
TEST_F(files, opposite_order)
{
	struct file_clone_range range = { .src_length = SIZE / 2 };
	int a = open(low("a"), O_RDONLY), y, i, status;
	char *px, *py, *buf = malloc(SIZE);
	pid_t pid[4];

	y = open(low("y"), O_RDWR | O_CREAT, 0644);
	range.src_fd = a;
	range.dest_offset = SIZE / 2;
	ASSERT_EQ(0, ioctl(y, FICLONERANGE, &range));
	range.src_offset = SIZE / 2;
	range.dest_offset = 0;
	ASSERT_EQ(0, ioctl(y, FICLONERANGE, &range));
	close(y);
	drop_caches("3");
	for (i = 0; i < 4; i++) {
		pid[i] = fork();
		if (pid[i])
			continue;
		alarm(20 * TIME_FACTOR);
		px = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
		py = map_file(up("y"), SIZE, PROT_READ, MAP_SHARED);
		if (i == 0)
			_exit(mismatch(px, SIZE, 1, 0) != -1);
		if (i == 1)
			_exit(mismatch(py, SIZE / 2, 1, SIZE / 2) != -1);
		/* Written back to where it already is, from the other file. */
		y = open(up(i == 2 ? "a" : "y"), O_RDWR);
		if (i == 2)
			_exit(pwrite(y, py + SIZE / 2, SIZE / 2, 0) != SIZE / 2);
		_exit(pwrite(y, px + SIZE / 2, SIZE / 2, 0) != SIZE / 2);
	}
	for (i = 0; i < 4; i++) {
		ASSERT_EQ(pid[i], waitpid(pid[i], &status, 0));
		EXPECT_EQ(0, status) TH_LOG("process %d", i);
	}
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
	y = open(up("y"), O_RDONLY);
	EXPECT_EQ(SIZE, read(y, buf, SIZE));
	EXPECT_EQ(-1, mismatch(buf, SIZE / 2, 1, SIZE / 2));
	EXPECT_EQ(-1, mismatch(buf + SIZE / 2, SIZE / 2, 1, 0));
	unlink(low("y"));
}

TEST_HARNESS_MAIN
