// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 300
 *
 * 4 KiB written into each of 24 clones of a big file: still one copy in RAM.
 * Each clone sees its own change, also through mappings made before; no other
 * clone and not the original sees it.
 */
#include "common.h"

#define CLONES	24
#define SIZE	(48 * MiB)

/* Where clone @c is changed: spread out, some next to each other. */
static size_t change_at(int c)
{
	return c < 4 ? (5 + c) * PAGE : c * 2 * MiB - PAGE * (c % 3);
}

FIXTURE(clones) {
	char *want;
	char *before_shared[CLONES];	/* mapped and touched before the change */
	char *before_private[CLONES];
	long cache;
};

FIXTURE_VARIANT(clones) {
	bool mapped;
	bool synced;
};

FIXTURE_VARIANT_ADD(clones, write) { .mapped = false, .synced = false };
FIXTURE_VARIANT_ADD(clones, write_fsync) { .mapped = false, .synced = true };
FIXTURE_VARIANT_ADD(clones, store) { .mapped = true, .synced = false };
FIXTURE_VARIANT_ADD(clones, store_msync) { .mapped = true, .synced = true };

FIXTURE_SETUP(clones)
{
	int c;

	self->want = malloc(SIZE);
	fill(self->want, SIZE, 1, 0);
	make_file(low("original"), SIZE, 1);
	for (c = 0; c < CLONES; c++)
		make_clone(low("original"), low("c%d", c));
	drop_caches("3");
	self->cache = cache_bytes();
	for (c = 0; c < CLONES; c++) {
		self->before_shared[c] = map_file(up("c%d", c), SIZE, PROT_READ, MAP_SHARED);
		self->before_private[c] = map_file(up("c%d", c), SIZE, PROT_READ, MAP_PRIVATE);
		ASSERT_NE(MAP_FAILED, self->before_shared[c]);
		ASSERT_NE(MAP_FAILED, self->before_private[c]);
		EXPECT_EQ(0, memcmp(self->before_shared[c], self->want, 4 * MiB));
		touch(self->before_private[c] + change_at(c) - PAGE, 3 * PAGE);
		touch(self->before_shared[c] + change_at(c) - PAGE, 3 * PAGE);
	}
}

FIXTURE_TEARDOWN(clones)
{
	int c;

	for (c = 0; c < CLONES; c++)
		unlink(low("c%d", c));
	unlink(low("original"));
}

static void change(int c, bool mapped, bool synced)
{
	int fd = open(up("c%d", c), O_RDWR);
	char page[PAGE], *p;

	if (fd < 0)
		die("open");
	fill(page, PAGE, 100 + c, 0);
	if (mapped) {
		p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, change_at(c));
		if (p == MAP_FAILED)
			die("mmap");
		memcpy(p, page, PAGE);
		if (synced && msync(p, PAGE, MS_SYNC))
			die("msync");
		munmap(p, PAGE);
	} else {
		write_all(fd, page, PAGE, change_at(c));
		if (synced && fsync(fd))
			die("fsync");
	}
	close(fd);
}

TEST_F(clones, one_copy_and_own_changes)
{
	char *changed = malloc(PAGE);
	long grown;
	size_t at;
	int c;

	for (c = 0; c < CLONES; c++)
		change(c, variant->mapped, variant->synced);

	for (c = 0; c < CLONES; c++) {
		at = change_at(c);
		fill(changed, PAGE, 100 + c, 0);
		EXPECT_EQ(0, memcmp(self->before_shared[c] + at, changed, PAGE));
		EXPECT_EQ(0, memcmp(self->before_private[c] + at, changed, PAGE));
		EXPECT_EQ(0, memcmp(self->before_shared[c] + at - PAGE, self->want + at - PAGE, PAGE));
		EXPECT_EQ(0, memcmp(self->before_private[c] + at + PAGE, self->want + at + PAGE, PAGE));

		/* All of it by read(2): own change, none of the others'. */
		memcpy(self->want + at, changed, PAGE);
		EXPECT_EQ(-1, differs_from(up("c%d", c), self->want, SIZE));
		fill(self->want + at, PAGE, 1, at);
	}
	/* One clone whole through the old mapping. */
	fill(self->want + change_at(7), PAGE, 107, 0);
	EXPECT_EQ(0, memcmp(self->before_shared[7], self->want, SIZE));
	fill(self->want + change_at(7), PAGE, 1, change_at(7));

	grown = cache_bytes() - self->cache;
	TH_LOG("%.3f copies in RAM", 1.0 * grown / SIZE);
	EXPECT_LE(grown, (long)SIZE * 103 / 100);
	EXPECT_GE(grown, (long)SIZE * 97 / 100);

	EXPECT_EQ(-1, differs_from(up("original"), self->want, SIZE));
	EXPECT_EQ(-1, differs_from(low("original"), self->want, SIZE));
	for (c = 0; c < CLONES; c += 5) {
		fill(self->want + change_at(c), PAGE, 100 + c, 0);
		EXPECT_EQ(-1, differs_from(low("c%d", c), self->want, SIZE));
		fill(self->want + change_at(c), PAGE, 1, change_at(c));
	}
}

TEST_HARNESS_MAIN
