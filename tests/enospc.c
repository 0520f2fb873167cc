// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 240
 *
 * A full lower filesystem: write(2) returns ENOSPC, a store through a mapping
 * gets SIGBUS, and nothing that was acknowledged is missing afterwards.  On a
 * small filesystem of its own, on a loop device.
 */
#include "common.h"

#define SIZE	(4 * MiB)
#define FILES	4

static char image[PATH_MAX], small[PATH_MAX], through[PATH_MAX];

static void make_small(void)
{
	snprintf(image, sizeof(image), "%s", low("image"));
	snprintf(small, sizeof(small), "%s/small", getcwd(NULL, 0));
	snprintf(through, sizeof(through), "%s/through", getcwd(NULL, 0));
	mkdir(small, 0755);
	mkdir(through, 0755);
	/* The smallest that mkfs.xfs and mkfs.btrfs make without tricks. */
	if (shell("truncate -s 320M %s && mkfs.%s -q -f %s %s >/dev/null 2>&1 && modprobe -q loop; mount -o loop %s %s",
		  image, btrfs ? "btrfs" : "xfs", btrfs ? "-m single" : "-m reflink=1", image,
		  image, small))
		die("a small filesystem");
}

/* Leave about 2 MiB free. */
static void fill_up(void)
{
	const char *path;
	size_t step = 64 * MiB;
	off_t off = 0;
	int fd;

	path = path_of("%s/filler", small);
	fd = open(path, O_RDWR | O_CREAT, 0644);
	for (; step >= 256 * KiB; step /= 2) {
		while (!fallocate(fd, 0, off, step))
			off += step;
	}
	if (ftruncate(fd, off - 2 * MiB) || fsync(fd))
		die("%s", path);
	close(fd);
}

static void restart(void)
{
	if (umount2(through, 0) || umount2(small, 0) ||
	    shell("mount -o loop %s %s", image, small))
		die("mounting again");
	if (mount_on(small, through, NULL))
		die("mount through");
}

FIXTURE(full) {
};

FIXTURE_SETUP(full)
{
	const char *a;
	int i;

	make_small();
	a = path_of("%s/a", small);
	make_file(a, SIZE, 1);
	for (i = 0; i < FILES; i++)
		make_clone(a, path_of("%s/c%d", small, i));
	ASSERT_EQ(0, mount_on(small, through, NULL));
	fill_up();
}

FIXTURE_TEARDOWN(full)
{
	umount2(through, MNT_DETACH);
	umount2(small, 0);
	unlink(image);
}

/* Page @i of clone @c once it has been written. */
static void new_page(char *page, int c, size_t i)
{
	fill(page, PAGE, 1000 + c, i * PAGE);
}

TEST_F(full, write_returns_enospc)
{
	const char *path;
	char page[PAGE], old[PAGE], got[PAGE];
	size_t acked[FILES] = {}, i;
	bool enospc = false;
	ssize_t n;
	int c, fd;

	for (c = 0; c < FILES; c++) {
		path = path_of("%s/c%d", through, c);
		ASSERT_EQ(-1, check_file(path, SIZE, 1));
		fd = open(path, O_RDWR);
		for (i = 0; i < SIZE / PAGE; i++) {
			new_page(page, c, i);
			n = pwrite(fd, page, PAGE, i * PAGE);
			if (n < 0) {
				EXPECT_EQ(ENOSPC, errno);
				enospc = true;
				break;
			}
			ASSERT_EQ(PAGE, n);
			acked[c]++;
		}
		EXPECT_EQ(0, fsync(fd));
		close(fd);
	}
	EXPECT_TRUE(enospc);
	restart();
	for (c = 0; c < FILES; c++) {
		path = path_of("%s/c%d", through, c);
		fd = open(path, O_RDONLY);
		for (i = 0; i < SIZE / PAGE; i++) {
			new_page(page, c, i);
			fill(old, PAGE, 1, i * PAGE);
			ASSERT_EQ(PAGE, pread(fd, got, PAGE, i * PAGE));
			ASSERT_EQ(0, memcmp(got, i < acked[c] ? page : old, PAGE))
				TH_LOG("file %d, page %zu; %zu were acknowledged", c, i, acked[c]);
		}
		close(fd);
	}
	path = path_of("%s/a", through);
	EXPECT_EQ(-1, check_file(path, SIZE, 1));
	TH_LOG("acknowledged pages: %zu %zu %zu %zu", acked[0], acked[1], acked[2], acked[3]);
}

TEST_F(full, store_gets_sigbus)
{
	static size_t i;
	static char *p;
	const char *path;
	char page[PAGE], old[PAGE], got[PAGE];
	size_t acked[FILES] = {};
	volatile bool sigbus = false;
	int c, fd, sig;

	for (c = 0; c < FILES; c++) {
		path = path_of("%s/c%d", through, c);
		p = map_file(path, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
		ASSERT_NE(MAP_FAILED, p);
		touch(p, SIZE);
		for (i = 0; i < SIZE / PAGE; i++) {
			new_page(page, c, i);
			sig = FAULTS(memcpy(p + i * PAGE, page, PAGE));
			if (sig) {
				EXPECT_EQ(SIGBUS, sig);
				sigbus = true;
				break;
			}
			acked[c]++;
		}
		EXPECT_EQ(0, msync(p, SIZE, MS_SYNC));
		munmap(p, SIZE);
	}
	EXPECT_TRUE(sigbus);
	restart();
	for (c = 0; c < FILES; c++) {
		path = path_of("%s/c%d", through, c);
		fd = open(path, O_RDONLY);
		for (i = 0; i < SIZE / PAGE; i++) {
			new_page(page, c, i);
			fill(old, PAGE, 1, i * PAGE);
			ASSERT_EQ(PAGE, pread(fd, got, PAGE, i * PAGE));
			ASSERT_EQ(0, memcmp(got, i < acked[c] ? page : old, PAGE))
				TH_LOG("file %d, page %zu; %zu were acknowledged", c, i, acked[c]);
		}
		close(fd);
	}
	path = path_of("%s/a", through);
	EXPECT_EQ(-1, check_file(path, SIZE, 1));
	TH_LOG("acknowledged pages: %zu %zu %zu %zu", acked[0], acked[1], acked[2], acked[3]);
}

TEST_HARNESS_MAIN
