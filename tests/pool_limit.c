// SPDX-License-Identifier: GPL-2.0-only
/*
 * pool_limit=SIZE bounds the pool, whatever is read or mapped, and data stay
 * right; a remount changes it; a domain has a pool of its own.
 */
#include "common.h"

#define SIZE	(24 * MiB)

static char at[] = "mnt.XXXXXX";
static char *pool_dir;

/* The pool that was not there before. */
static int find_pool(const char *known)
{
	struct dirent *e;
	DIR *d = opendir("/sys/fs/dedupfs");
	int n = 0;

	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.' || e->d_type != DT_DIR || strstr(known, e->d_name))
			continue;
		pool_dir = strdup(path_of("/sys/fs/dedupfs/%s", e->d_name));
		n++;
	}
	if (d)
		closedir(d);
	return n;
}

FIXTURE(limited) {
	char *want;
};

FIXTURE_SETUP(limited)
{
	struct dirent *e;
	char known[8192] = "";
	DIR *d;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	self->want = malloc(SIZE);
	fill(self->want, SIZE, 1, 0);
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("b"));
	drop_caches("3");
	d = opendir("/sys/fs/dedupfs");
	ASSERT_NE(NULL, d);
	while ((e = readdir(d)))
		strcat(strcat(known, e->d_name), "\n");
	closedir(d);
	ASSERT_NE(NULL, mkdtemp(at));
	ASSERT_EQ(0, mount(lower_dir, at, "dedupfs", 0, "pool_limit=4m,domain=limited"));
	ASSERT_EQ(1, find_pool(known)) TH_LOG("a domain has a pool of its own");
}

FIXTURE_TEARDOWN(limited)
{
	if (!have_pool)
		return;
	umount2(at, MNT_DETACH);
	rmdir(at);
	unlink(low("a"));
	unlink(low("b"));
}

static const char *in(const char *name)
{
	return path_of("%s/%s", at, name);
}

/* Who has filled more evicts that much, and may have to wait for a processor. */
static bool comes_below(long pages)
{
	int tries;

	for (tries = 0; tries < 500 && pool_in(pool_dir, "pages") > pages; tries++)
		usleep(10000);
	return pool_in(pool_dir, "pages") <= pages;
}

TEST_F(limited, reads_and_mappings_stay_below)
{
	char *p;
	size_t off;

	EXPECT_EQ(-1, differs_from(in("a"), self->want, SIZE));
	EXPECT_TRUE(comes_below(1024));
	EXPECT_LT(512, pool_in(pool_dir, "pages"));
	EXPECT_EQ(-1, differs_from(in("b"), self->want, SIZE));
	EXPECT_TRUE(comes_below(1024));
	EXPECT_LT(0, pool_in(pool_dir, "evictions"));

	p = map_file(in("b"), SIZE, PROT_READ, MAP_PRIVATE);
	ASSERT_NE(MAP_FAILED, p);
	for (off = 0; off < SIZE; off += MiB) {
		EXPECT_EQ(0, memcmp(p + off, self->want + off, MiB));
		EXPECT_TRUE(comes_below(1024));
	}
	EXPECT_EQ(0, memcmp(p, self->want, SIZE));
}

TEST_F(limited, remount_changes_it)
{
	long limit = pool_in(pool_dir, "limit");

	ASSERT_EQ(0, mount(NULL, at, NULL, MS_REMOUNT, "pool_limit=16m"));
	EXPECT_EQ(limit * 4, pool_in(pool_dir, "limit"));
	EXPECT_EQ(-1, differs_from(in("a"), self->want, SIZE));
	EXPECT_LT(1024, pool_in(pool_dir, "pages"));
	EXPECT_TRUE(comes_below(4096));
	ASSERT_EQ(0, mount(NULL, at, NULL, MS_REMOUNT, "pool_limit=2m"));
	EXPECT_EQ(-1, differs_from(in("b"), self->want, SIZE));
	EXPECT_TRUE(comes_below(512));
	ASSERT_EQ(0, mount(NULL, at, NULL, MS_REMOUNT, "pool_limit=1%"));
	/* Pages or bytes: one per cent of RAM, as 16m was. */
	EXPECT_LE(meminfo("MemTotal") / 100 * (limit * 4) / (16 * (long)MiB) * 9 / 10,
		  pool_in(pool_dir, "limit"));
}

static uint64_t frame_in(const char *path)
{
	char *p = map_file(path, SIZE, PROT_READ, MAP_SHARED);
	uint64_t frame = p == MAP_FAILED ? 0 : frame_of(p + 5 * PAGE);

	munmap(p, SIZE);
	return frame;
}

TEST_F(limited, domains_do_not_share)
{
	long ours;

	EXPECT_EQ(-1, differs_from(up("a"), self->want, SIZE));
	ours = pool_in(pool_dir, "pages");
	EXPECT_EQ(0, ours) TH_LOG("read in another domain");
	EXPECT_EQ(-1, differs_from(in("b"), self->want, SIZE));
	EXPECT_LT(0, pool_in(pool_dir, "fills"));
	/* The same page inside a domain, and another one in the other. */
	EXPECT_NE(0, frame_in(up("a")));
	EXPECT_EQ(frame_in(up("a")), frame_in(up("b")));
	EXPECT_EQ(frame_in(in("a")), frame_in(in("b")));
	EXPECT_NE(frame_in(up("a")), frame_in(in("a")));
}

TEST_F(limited, the_last_mount_that_names_one_decides)
{
	char other[] = "mnt.XXXXXX";

	ASSERT_NE(NULL, mkdtemp(other));
	ASSERT_EQ(0, mount(lower_dir, other, "dedupfs", 0, "domain=limited"));
	EXPECT_EQ(1024, pool_in(pool_dir, "limit"));
	EXPECT_EQ(0, umount2(other, 0));
	ASSERT_EQ(0, mount(lower_dir, other, "dedupfs", 0, "pool_limit=0,domain=limited"));
	EXPECT_EQ(0, pool_in(pool_dir, "limit"));
	EXPECT_EQ(0, umount2(other, 0));
	rmdir(other);
}

/* What a limit is too small for is still read once only. */
TEST_F(limited, a_limit_below_one_window)
{
	char *buf = malloc(128 * KiB);
	int fd = open(in("a"), O_RDONLY);
	long before;
	size_t off;

	ASSERT_EQ(0, mount(NULL, at, NULL, MS_REMOUNT, "pool_limit=64k"));
	EXPECT_LT(0, pool_in(pool_dir, "limit"));
	before = disk_read_bytes();
	for (off = 0; off < SIZE; off += 128 * KiB) {
		ASSERT_EQ(128 * KiB, pread(fd, buf, 128 * KiB, off));
		EXPECT_EQ(0, memcmp(buf, self->want + off, 128 * KiB));
	}
	EXPECT_GE((long)SIZE * 5 / 4, disk_read_bytes() - before);
	close(fd);
	free(buf);
}

/* Each way to say it; the last one stays. */
TEST_F(limited, by_any_unit)
{
	static const struct {
		const char *text;
		unsigned long bytes;
	} sizes[] = {
		{ "67108864", 64 * MiB }, { "65536k", 64 * MiB }, { "64M", 64 * MiB },
		{ "2g", 2048 * MiB }, { "1T", 1024 * 1024 * MiB }, { "0", 0 }, { "3m", 3 * MiB },
	};
	unsigned int i;

	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		ASSERT_EQ(0, mount(NULL, at, NULL, MS_REMOUNT,
				   path_of("pool_limit=%s", sizes[i].text))) TH_LOG("%s", sizes[i].text);
		EXPECT_EQ(sizes[i].bytes / PAGE, (unsigned long)pool_in(pool_dir, "limit"))
			TH_LOG("%s", sizes[i].text);
	}
}

TEST_HARNESS_MAIN
