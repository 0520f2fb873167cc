// SPDX-License-Identifier: GPL-2.0-only
/*
 * A change made through the mount is seen at once by everybody who uses the
 * mount: through mappings made before, through another mount of the same
 * directory, in another domain, and by inodes that were forgotten meanwhile.
 */
#include "common.h"
#include <sys/fanotify.h>

#define SIZE	(1 * MiB)

static char changed[PAGE];

FIXTURE(clones) {
	int page;
};

FIXTURE_SETUP(clones)
{
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("b"));
	sync();
	drop_caches("3");
	/* All of it is in the pool, and attached. */
	ASSERT_EQ(-1, check_file(up("b"), SIZE, 1));
	ASSERT_EQ(-1, check_file(up("a"), SIZE, 1));
	fill(changed, PAGE, 2, 0);
	self->page = 21;
}

FIXTURE_TEARDOWN(clones)
{
	unlink(low("a"));
	unlink(low("b"));
}

static void store_page(const char *path, int flags, int page)
{
	int fd = open(path, flags);

	if (fd < 0)
		die("open %s", path);
	write_all(fd, changed, PAGE, page * PAGE);
	close(fd);
}

static bool read_is_changed(const char *path, int page)
{
	char buf[PAGE];
	int fd = open(path, O_RDONLY);
	bool is;

	if (fd < 0 || pread(fd, buf, PAGE, page * PAGE) != PAGE)
		die("read %s", path);
	close(fd);
	is = !memcmp(buf, changed, PAGE);
	return is;
}

/* Write a page and wait until it is on disk. */
static void settle_page(const char *path, int page)
{
	int fd = open(path, O_RDWR);

	write_all(fd, changed, PAGE, page * PAGE);
	if (fsync(fd))
		die("fsync %s", path);
	close(fd);
}

/* Until no other file has its blocks. */
static void wait_until_alone(const char *path)
{
	struct fiemap_extent ext[8];
	double end = now() + 10 * TIME_FACTOR;
	long n, i;

	do {
		usleep(20000);
		n = fiemap(path, ext, 8);
		for (i = 0; i < n && !(ext[i].fe_flags & FIEMAP_EXTENT_SHARED); i++)
			;
	} while (i < n && now() < end);
}

/*
 * A foreign change hides among ours, and leaves the extents as they were: the
 * block lost its other owner, was overwritten in place, and has another now.
 */
TEST_F(clones, a_foreign_change_that_leaves_no_trace)
{
	struct fiemap_extent was[8], is[8];
	/* Far from ours: XFS takes space for copies in pieces of 32 blocks. */
	int page = 100, i;
	long n, m;

	settle_page(up("a"), 3);
	ASSERT_TRUE(read_is_changed(up("a"), 3));
	for (i = 0; i < 2; i++) {
		ASSERT_FALSE(read_is_changed(up("a"), page + i));
		n = fiemap(low("a"), was, 8);
		ASSERT_EQ(0, unlink(up("b")));
		/* XFS frees what was deleted a little later. */
		sync();
		wait_until_alone(low("a"));
		settle_page(low("a"), page + i);
		make_clone(low("a"), low("b"));
		m = fiemap(low("a"), is, 8);
		if (!btrfs) {
			ASSERT_EQ(n, m);
			for (m = 0; m < n; m++)
				EXPECT_EQ(was[m].fe_physical, is[m].fe_physical)
					TH_LOG("it was moved: this proves nothing");
		}
		ASSERT_EQ(0, chmod(up("a"), 0600 + i));
		EXPECT_TRUE(read_is_changed(up("a"), page + i));
		EXPECT_TRUE(read_is_changed(up("b"), page + i));
	}
}

/* The neighbourhood that a fault maps must not bring back the old page. */
TEST_F(clones, a_fault_beside_a_written_page)
{
	char *p = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
	int i;

	ASSERT_NE(MAP_FAILED, p);
	/* A page table is there already, so that neighbours are mapped. */
	touch(p + SIZE - PAGE, PAGE);
	store_page(up("a"), O_WRONLY, self->page);
	for (i = self->page + 4; i >= self->page - 4; i--)
		touch(p + i * PAGE, 1);
	EXPECT_EQ(0, memcmp(p + self->page * PAGE, changed, PAGE));
	EXPECT_EQ(-1, mismatch(p + (self->page - 1) * PAGE, PAGE, 1, (self->page - 1) * PAGE));
	munmap(p, SIZE);
}

static void second_mount(struct __test_metadata *_metadata, int page, const char *options)
{
	char at[] = "mnt.XXXXXX", other[PATH_MAX];
	char *p;

	ASSERT_NE(NULL, mkdtemp(at));
	ASSERT_EQ(0, mount_on(lower_dir, at, options));
	snprintf(other, sizeof(other), "%s/a", at);
	p = map_file(up("a"), SIZE, PROT_READ, MAP_PRIVATE);
	ASSERT_NE(MAP_FAILED, p);
	/* What the first mount knows has a history of own changes. */
	EXPECT_EQ(0, chmod(up("a"), 0600));
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
	EXPECT_EQ(-1, check_file(other, SIZE, 1));
	touch(p, SIZE);

	store_page(other, O_WRONLY, page);
	EXPECT_TRUE(read_is_changed(up("a"), page));
	EXPECT_TRUE(read_is_changed(other, page));
	EXPECT_EQ(0, memcmp(p + page * PAGE, changed, PAGE));

	/* And the other way round, with what is dirty by the other's hand. */
	store_page(up("a"), O_WRONLY, page + 5);
	EXPECT_TRUE(read_is_changed(other, page + 5));
	EXPECT_TRUE(read_is_changed(up("a"), page + 5));
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 1));
	munmap(p, SIZE);
	EXPECT_EQ(0, umount2(at, 0));
	rmdir(at);
}

TEST_F(clones, through_a_second_mount)
{
	second_mount(_metadata, self->page, NULL);
}

TEST_F(clones, through_a_mount_of_another_domain)
{
	second_mount(_metadata, self->page, "domain=other");
}

/* The other domain knows nothing of the file when it changes it. */
TEST_F(clones, through_a_domain_that_never_looked)
{
	static char page[PAGE] __attribute__((aligned(PAGE)));
	char at[] = "mnt.XXXXXX", other[PATH_MAX], *p, *q;
	int how, at_page;

	ASSERT_NE(NULL, mkdtemp(at));
	snprintf(other, sizeof(other), "%s/a", at);
	p = map_file(up("a"), SIZE, PROT_READ, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, p);
	for (how = 0; how < 3; how++) {
		at_page = self->page + 64 * how;
		ASSERT_EQ(0, mount_on(lower_dir, at, "domain=other"));
		EXPECT_EQ(-1, mismatch(p + at_page * PAGE, PAGE, 1, at_page * PAGE));
		if (how == 0) {
			store_page(other, O_WRONLY, at_page);
		} else if (how == 1) {
			int fd = open(other, O_WRONLY | O_DIRECT);

			memcpy(page, changed, PAGE);
			write_all(fd, page, PAGE, at_page * PAGE);
			close(fd);
		} else {
			q = map_file(other, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
			ASSERT_NE(MAP_FAILED, q);
			memcpy(q + at_page * PAGE, changed, PAGE);
			munmap(q, SIZE);
		}
		EXPECT_EQ(0, memcmp(p + at_page * PAGE, changed, PAGE))
			TH_LOG("%s", how == 0 ? "write" : how == 1 ? "direct write" : "store");
		EXPECT_EQ(0, umount2(at, 0));
		sync();
		EXPECT_TRUE(read_is_changed(up("a"), at_page));
	}
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 1));
	munmap(p, SIZE);
	rmdir(at);
}

/* Operations that move the change counter, and no data, cost no fill and no page. */
TEST_F(clones, what_changes_no_data)
{
	static const char *const names[] = {
		"chmod", "chown", "setxattr", "link", "unlink", "utimens", "rename",
	};
	long fills, pages, i;
	int ret = 0;

	for (i = 0; i < (long)(sizeof(names) / sizeof(*names)); i++) {
		ASSERT_EQ(-1, check_file(up("a"), SIZE, 1));
		fills = pool("fills");
		pages = pool("pages");
		switch (i) {
		case 0: ret = chmod(up("a"), 0640); break;
		case 1: ret = chown(up("a"), 1, 1); break;
		case 2: ret = setxattr(up("a"), "user.x", "y", 1, 0); break;
		case 3: ret = link(up("a"), up("c")); break;
		case 4: ret = unlink(up("c")); break;
		case 5: ret = utimensat(AT_FDCWD, up("a"), NULL, 0); break;
		case 6: ret = rename(up("a"), up("d")) || rename(up("d"), up("a")); break;
		}
		EXPECT_EQ(0, ret) TH_LOG("%s", names[i]);
		EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
		EXPECT_EQ(fills, pool("fills")) TH_LOG("%s", names[i]);
		EXPECT_EQ(pages, pool("pages")) TH_LOG("%s", names[i]);
		EXPECT_EQ(0, cached_pages(low("a"), SIZE)) TH_LOG("%s", names[i]);
	}
}

/* The pool remembers a file whose inode the mount has forgotten. */
TEST_F(clones, through_an_inode_that_is_new)
{
	ASSERT_EQ(0, mkdir(low("dir"), 0755));
	ASSERT_EQ(0, rename(low("a"), low("dir/a")));
	ASSERT_EQ(-1, check_file(up("dir/a"), SIZE, 1));
	ASSERT_EQ(0, chmod(up("dir/a"), 0600));
	ASSERT_EQ(-1, check_file(up("dir/a"), SIZE, 1));
	/* Its dentry goes, and with it the inode; the file below is not touched. */
	ASSERT_EQ(0, rename(low("dir"), low("moved")));
	store_page(up("moved/a"), O_WRONLY, self->page);
	EXPECT_TRUE(read_is_changed(up("moved/a"), self->page));
	sync();
	EXPECT_TRUE(read_is_changed(up("moved/a"), self->page));
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 1));
	rm_rf(low("moved"));
}

/* A store that loads first: the load must not bring back the pool's page. */
TEST_F(clones, stores_that_load_first)
{
	char *p = map_file(up("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	int i;

	ASSERT_NE(MAP_FAILED, p);
	for (i = 0; i < 32; i++)
		p[i * PAGE + 5] ^= 0xff;
	EXPECT_EQ(0, msync(p, SIZE, MS_SYNC));
	for (i = 0; i < 32; i++)
		p[i * PAGE + 5] ^= 0xff;
	EXPECT_EQ(0, msync(p, SIZE, MS_SYNC));
	EXPECT_EQ(-1, check_file(low("a"), SIZE, 1));
	EXPECT_EQ(-1, check_file(low("b"), SIZE, 1));
	munmap(p, SIZE);
}

/* A read that fails halfway holds on to nothing. */
TEST_F(clones, reads_into_bad_memory)
{
	int fd = open(up("a"), O_RDONLY), i;

	ASSERT_LE(0, fd);
	for (i = 0; i < 32; i++)
		EXPECT_EQ(-1, pread(fd, (void *)PAGE, 64 * KiB, i * 32 * KiB));
	EXPECT_EQ(EFAULT, errno);
	close(fd);
	for (i = 0; i < 20 && pool("pages"); i++)
		drop_caches("2");
	EXPECT_EQ(0, pool("pages"));
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
}

/* Whoever watches a file by fanotify can write to it, and nobody is told. */
TEST_F(clones, a_foreign_change_without_an_event)
{
	struct fanotify_event_metadata ev;
	int fan = fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC, O_RDWR | O_LARGEFILE);

	ASSERT_LE(0, fan);
	ASSERT_EQ(0, fanotify_mark(fan, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, low("a")));
	store_page(up("a"), O_WRONLY, 0);
	close(open(low("a"), O_RDONLY));
	ASSERT_EQ(sizeof(ev), read(fan, &ev, sizeof(ev)));
	ASSERT_LE(0, ev.fd);
	EXPECT_EQ(PAGE, pwrite(ev.fd, changed, PAGE, self->page * PAGE));
	close(ev.fd);
	EXPECT_TRUE(read_is_changed(up("a"), self->page));
	EXPECT_TRUE(read_is_changed(up("a"), 0));
	EXPECT_FALSE(read_is_changed(up("b"), self->page));
	close(fan);
}

/* Its last name goes while it is open, and with it, on 6.1, who watches it. */
TEST_F(clones, a_foreign_change_of_a_file_without_names)
{
	char buf[PAGE];
	int fd, foreign, again;

	ASSERT_EQ(0, link(low("a"), low("a2")));
	foreign = open(low("a2"), O_RDONLY);
	fd = open(up("a"), O_RDWR);
	ASSERT_LE(0, foreign);
	ASSERT_LE(0, fd);
	EXPECT_EQ(PAGE, pread(fd, buf, PAGE, self->page * PAGE));
	EXPECT_EQ(0, unlink(low("a")));
	EXPECT_EQ(PAGE, pwrite(fd, changed, PAGE, 0));
	EXPECT_EQ(0, unlink(low("a2")));
	again = open(path_of("/proc/self/fd/%d", foreign), O_RDWR);
	ASSERT_LE(0, again);
	EXPECT_EQ(PAGE, pwrite(again, changed, PAGE, self->page * PAGE));
	close(again);
	EXPECT_EQ(PAGE, pread(fd, buf, PAGE, self->page * PAGE));
	EXPECT_EQ(0, memcmp(buf, changed, PAGE));
	close(fd);
	close(foreign);
}

/* That one domain has changed a file keeps no other from knowing its own changes. */
TEST_F(clones, each_domain_knows_its_own_changes)
{
	char at[] = "mnt.XXXXXX", other[PATH_MAX], *dir;
	long carried, stale;
	int fd;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	ASSERT_NE(NULL, mkdtemp(at));
	ASSERT_EQ(0, mount_on(lower_dir, at, "domain=second"));
	snprintf(other, sizeof(other), "%s/a", at);
	dir = strdup(path_of("%s:second", getenv("DEDUPFS_POOL")));
	/* The first one changes it, and goes on to have it open. */
	fd = open(up("a"), O_RDONLY);
	EXPECT_EQ(0, chmod(up("a"), 0640));
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
	/* Now it is the other's. */
	EXPECT_EQ(-1, check_file(other, SIZE, 1));
	carried = pool_in(dir, "carried");
	stale = pool_in(dir, "stale");
	EXPECT_EQ(0, chmod(other, 0644));
	EXPECT_EQ(-1, check_file(other, SIZE, 1));
	EXPECT_LT(carried, pool_in(dir, "carried"));
	EXPECT_EQ(stale, pool_in(dir, "stale"));
	/* And the first one's changes are foreign to it, seen at once. */
	store_page(up("a"), O_WRONLY, self->page);
	EXPECT_TRUE(read_is_changed(other, self->page));
	EXPECT_TRUE(read_is_changed(up("a"), self->page));
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 1));
	close(fd);
	EXPECT_EQ(0, umount2(at, 0));
	rmdir(at);
	free(dir);
}

/*
 * A file of one long extent, of which FIEMAP makes many because others do not
 * share all of it any more: a write to it costs one page, and not the file.
 */
TEST_F(clones, a_write_to_what_is_shared_in_places)
{
	long disk;
	int i;

	if (!have_pool || btrfs)
		SKIP(return, "of pools on XFS");
	for (i = 0; i < 100; i++)
		store_page(low("b"), O_WRONLY, 2 * i + 1);
	sync();
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
	disk = disk_read_bytes();
	store_page(up("a"), O_WRONLY, 250);
	EXPECT_TRUE(read_is_changed(up("a"), 250));
	hash_read(up("a"), 64 * KiB);
	EXPECT_GE(64 * (long)KiB, disk_read_bytes() - disk);
}

TEST_HARNESS_MAIN
