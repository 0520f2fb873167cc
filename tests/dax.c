// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files in persistent memory (XFS, dax=always) have no page cache: the mount
 * passes everything on, and is as the filesystem below.
 */
#include "common.h"
#include "device.h"

#define PMEM	"/dev/pmem0"		/* scripts/check has the kernel make it */
#define SIZE	(300 * KiB + 123)

FIXTURE(dax) {
	bool mounted;
};

FIXTURE_SETUP(dax)
{
	struct statx stx;

	if (btrfs)
		SKIP(return, "btrfs has no DAX");
	if (shell("modprobe -qa nd_e820 nd_pmem; for i in 1 2 3 4 5; do [ -b " PMEM " ] && exit; sleep 1; done; exit 1"))
		SKIP(return, "no persistent memory");
	ASSERT_EQ(0, shell("mkfs.xfs -q -f -m reflink=1 " PMEM));
	ASSERT_EQ(0, mount(PMEM, below, "xfs", 0, "dax=always"));
	make_file(dn("f"), SIZE, 1);
	make_file(dn("g"), SIZE, 1);
	ASSERT_EQ(0, statx(AT_FDCWD, dn("f"), 0, STATX_BASIC_STATS, &stx));
	ASSERT_TRUE(stx.stx_attributes & STATX_ATTR_DAX);
	ASSERT_EQ(0, mount_on(below, through, NULL));
	self->mounted = true;
}

FIXTURE_TEARDOWN(dax)
{
	umount2(through, MNT_DETACH);
	umount_soon(below);
}

TEST_F(dax, read)
{
	static char buf[SIZE + PAGE] __attribute__((aligned(PAGE)));
	int fd, out, to[2];

	if (!self->mounted)
		return;
	EXPECT_EQ(-1, check_file(th("f"), SIZE, 1));
	fd = open(th("f"), O_RDONLY);
	ASSERT_LE(0, fd);
	EXPECT_EQ(SIZE, pread(fd, buf, sizeof(buf), 0));
	EXPECT_EQ(-1, mismatch(buf, SIZE, 1, 0));
	EXPECT_EQ(1000, pread(fd, buf, 1000, 5555));
	EXPECT_EQ(-1, mismatch(buf, 1000, 1, 5555));
	EXPECT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED));
	EXPECT_EQ(0, readahead(fd, 0, SIZE));
	/* A documented limit. */
	EXPECT_EQ(MAP_FAILED, mmap(NULL, PAGE, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0));
	EXPECT_EQ(EOPNOTSUPP, errno);

	out = open(dn("out"), O_RDWR | O_CREAT, 0644);
	EXPECT_EQ(SIZE, sendfile(out, fd, NULL, SIZE));
	EXPECT_EQ(-1, check_file(dn("out"), SIZE, 1));
	close(out);
	close(fd);

	fd = open(th("f"), O_RDONLY);
	ASSERT_EQ(0, pipe(to));
	EXPECT_EQ(PAGE, splice(fd, NULL, to[1], NULL, PAGE, 0));
	EXPECT_EQ(PAGE, read(to[0], buf, PAGE));
	EXPECT_EQ(-1, mismatch(buf, PAGE, 1, 0));
	close(fd);
	fd = open(th("f"), O_RDONLY | O_DIRECT);
	EXPECT_EQ(64 * PAGE, pread(fd, buf, 64 * PAGE, 0));
	EXPECT_EQ(-1, mismatch(buf, 64 * PAGE, 1, 0));
	close(fd);
	unlink(dn("out"));
}

TEST_F(dax, write)
{
	char text[] = "what is written";
	int fd;

	if (!self->mounted)
		return;
	fd = open(th("f"), O_RDWR);
	EXPECT_EQ(sizeof(text), pwrite(fd, text, sizeof(text), 4090));
	/* There is nothing to be read ahead. */
	EXPECT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED));
	EXPECT_EQ(0, readahead(fd, 0, SIZE));
	usleep(300000);
	EXPECT_EQ(0, ftruncate(fd, SIZE - 1000));
	EXPECT_EQ(0, fsync(fd));
	close(fd);
	fd = open(dn("g"), O_RDWR);
	EXPECT_EQ(sizeof(text), pwrite(fd, text, sizeof(text), 4090));
	EXPECT_EQ(0, ftruncate(fd, SIZE - 1000));
	close(fd);
	EXPECT_EQ(hash_read(dn("g"), MiB), hash_read(th("f"), MiB));
	EXPECT_EQ(hash_read(dn("g"), MiB), hash_read(dn("f"), MiB));
}

TEST_F(dax, map)
{
	char *p, *q;

	if (!self->mounted)
		return;
	p = map_file(th("f"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	q = map_file(dn("f"), SIZE, PROT_READ, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, p);
	ASSERT_NE(MAP_FAILED, q);
	EXPECT_EQ(-1, mismatch(p, SIZE, 1, 0));
	/* The same memory. */
	p[5000] ^= 0xff;
	EXPECT_EQ(0, memcmp(p, q, SIZE));
	EXPECT_EQ(0, msync(p, SIZE, MS_SYNC));
	munmap(p, SIZE);
	p = map_file(th("f"), SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	ASSERT_NE(MAP_FAILED, p);
	p[6000] ^= 0xff;
	EXPECT_NE(p[6000], q[6000]);
	munmap(p, SIZE);
	munmap(q, SIZE);
}

TEST_F(dax, execute)
{
	if (!self->mounted)
		return;
	ASSERT_EQ(0, shell("cp /bin/true %s", dn("true")));
	EXPECT_EQ(0, shell("%s", th("true")));
}

TEST_HARNESS_MAIN
