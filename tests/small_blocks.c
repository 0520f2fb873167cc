// SPDX-License-Identifier: GPL-2.0-only
/*
 * Blocks smaller than a page (XFS with 1 KiB): a page of a file can consist of
 * pieces of several extents, and one that is in one piece can lie across two
 * pages of the disk.  Only what fits is shared; all of it is right.
 */
#include "common.h"
#include "device.h"

#define BLOCK	KiB
#define SIZE	(64 * PAGE)

FIXTURE(small) {
	char stats[PATH_MAX];
	char *want;			/* what file b is to hold */
	size_t size;			/* of b */
};

FIXTURE_SETUP(small)
{
	if (btrfs)
		SKIP(return, "of XFS: the blocks of btrfs are pages here");
	if (!spare)
		SKIP(return, "DEDUPFS_SPARE is not set");
	snprintf(self->stats, PATH_MAX, "/sys/fs/dedupfs/%s", strrchr(spare, '/') + 1);
	/* With the stripe large files begin at the beginning of a page. */
	ASSERT_EQ(0, shell("mkfs.xfs -q -f -K -b size=%lu -d su=4k,sw=1 -m reflink=1 %s >/dev/null",
			   BLOCK, spare));
	ASSERT_EQ(0, mount(spare, below, "xfs", 0, NULL));
	ASSERT_EQ(0, mount_on(below, through, NULL));
	make_file(dn("a"), SIZE, 1);
	make_clone(dn("a"), dn("b"));
	self->want = calloc(1, 2 * SIZE);
	self->size = SIZE;
	fill(self->want, SIZE, 1, 0);
	srandom(3);
}

FIXTURE_TEARDOWN(small)
{
	if (!self->want)
		return;
	EXPECT_EQ(0, umount_soon(through));
	EXPECT_EQ(0, umount_soon(below));
	free(self->want);
}

static long not_shared(FIXTURE_DATA(small) *self, const char *reason)
{
	return pool_in(self->stats, path_of("not_shared/%s", reason));
}

/* Both files, by read and by a new mapping, through the mount and below. */
static void expect_files(struct __test_metadata *_metadata, FIXTURE_DATA(small) *self, int round)
{
	const char *b = th("b");
	char *p = map_file(b, self->size, PROT_READ, MAP_SHARED);

	ASSERT_NE(MAP_FAILED, p);
	ASSERT_EQ(0, memcmp(p, self->want, self->size)) TH_LOG("round %d, mapped", round);
	ASSERT_TRUE(zero_behind(p, self->size)) TH_LOG("round %d, mapped, behind the end", round);
	munmap(p, self->size);
	ASSERT_EQ(-1, differs_from(b, self->want, self->size)) TH_LOG("round %d, read", round);
	ASSERT_EQ(-1, differs_from(dn("b"), self->want, self->size))
		TH_LOG("round %d, below", round);
	ASSERT_EQ(-1, check_file(th("a"), SIZE, 1))
		TH_LOG("round %d, the other one", round);
}

/* All in one piece: it is shared as on any XFS. */
TEST_F(small, whole_files)
{
	struct fiemap_extent ext[8];
	long n = fiemap(dn("a"), ext, 8), fills;

	ASSERT_LE(1, n);
	ASSERT_EQ(0UL, ext[0].fe_physical % PAGE) TH_LOG("mkfs did not align it");
	expect_files(_metadata, self, 0);
	fills = pool_in(self->stats, "fills");
	expect_files(_metadata, self, 1);
	if (have_pool) {
		EXPECT_LE(SIZE / PAGE, (unsigned long)pool_in(self->stats, "pages"));
		EXPECT_EQ(fills, pool_in(self->stats, "fills"));
		EXPECT_EQ(0, not_shared(self, "unaligned"));
	}
}

/* Pieces of one to seven blocks move about, pages are written in part, the end moves. */
static void pieces(struct __test_metadata *_metadata, FIXTURE_DATA(small) *self, char *(*at)(const char *fmt, ...))
{
	int a = open(at("a"), O_RDONLY), b = open(at("b"), O_RDWR);
	struct file_clone_range range;
	size_t from, to, len;
	char *mapped;
	int round;

	ASSERT_LE(0, a);
	ASSERT_LE(0, b);
	/* A mapping made before all of it. */
	mapped = map_file(th("b"), SIZE, PROT_READ, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, mapped);
	for (round = 0; round < 120; round++) {
		len = (1 + random() % 7) * BLOCK;
		from = random() % ((SIZE - len) / BLOCK) * BLOCK;
		to = random() % ((SIZE - len) / BLOCK) * BLOCK;
		switch (random() % 8) {
		case 0:
			len -= random() % BLOCK;
			fill(self->want + to, len, round + 9, to);
			write_all(b, self->want + to, len, to);
			ASSERT_EQ(0, random() % 2 ? fsync(b) : 0);
			break;
		case 1:
			memset(self->want + to, 0, len);
			ASSERT_EQ(0, fallocate(b, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, to, len));
			break;
		case 2:
			/* Somewhere into the last pages, and back. */
			self->size = SIZE - random() % (3 * PAGE);
			memset(self->want + self->size, 0, SIZE - self->size);
			ASSERT_EQ(0, ftruncate(b, self->size));
			expect_files(_metadata, self, round);
			self->size = SIZE;
			ASSERT_EQ(0, ftruncate(b, SIZE));
			break;
		default:
			range = (struct file_clone_range) {
				.src_fd = a, .src_offset = from, .src_length = len, .dest_offset = to,
			};
			memset(self->want + to, 0, len);
			fill(self->want + to, len, 1, from);
			ASSERT_EQ(0, ioctl(b, FICLONERANGE, &range));
		}
		expect_files(_metadata, self, round);
		ASSERT_EQ(0, memcmp(mapped, self->want, SIZE)) TH_LOG("round %d, mapped before", round);
		if (round % 16 == 0)
			drop_caches("3");
	}
	if (have_pool) {
		EXPECT_LT(0, not_shared(self, "unaligned"));
		EXPECT_LT(0, pool_in(self->stats, "hits"));
	}
	munmap(mapped, SIZE);
	close(a);
	close(b);
}

TEST_F(small, pieces_through_the_mount)
{
	pieces(_metadata, self, th);
}

TEST_F(small, pieces_below)
{
	pieces(_metadata, self, dn);
}

TEST_HARNESS_MAIN
