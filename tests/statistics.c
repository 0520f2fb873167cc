// SPDX-License-Identifier: GPL-2.0-only
/*
 * What /sys/fs/dedupfs/ says is what happened, to the page: a file of three
 * clones is read, read again, mapped, stored to, and given up.  What it says
 * was saved is what the filesystem below takes more for the same reads.
 */
#include "common.h"
#include <linux/capability.h>

#define OWN_DOMAIN	"statistics"
#include "own_pool.h"

#define NR	65L			/* the last one is not full */
#define SIZE	((NR - 1) * PAGE + 1000)
#define CLONES	3

static const char *const names[CLONES] = { "a", "b", "c" };

static long was[16];
static const char *const all[] = {
	"pages", "attachments", "saved_bytes", "hits", "fills", "fill_bytes", "joins",
	"joins_refused", "evictions", "copy_ups", "stale", "carried",
};

static long *of(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(all); i++)
		if (!strcmp(all[i], name))
			return &was[i];
	die("no %s", name);
}

static void look(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(all); i++)
		was[i] = own(all[i]);
}

/* How a statistic has moved since look(). */
static long moved(const char *name)
{
	return own(name) - *of(name);
}

static void make_clones(void)
{
	int c;

	make_file(low("a"), SIZE, 1);
	for (c = 1; c < CLONES; c++)
		make_clone(low("a"), low("%s", names[c]));
	drop_caches("3");
}

/* Bytes that reads found elsewhere, for whatever reason. */
static long not_shared(void)
{
	const char *dir = strdup(path_of("%s:%s/not_shared", getenv("DEDUPFS_POOL"), OWN_DOMAIN));
	DIR *d = opendir(dir);
	struct dirent *e;
	long n = 0;

	if (!d)
		die("%s", dir);
	while ((e = readdir(d)))
		if (e->d_name[0] != '.')
			n += pool_in(dir, e->d_name);
	closedir(d);
	return n;
}

TEST_F(own_pool, count_each_page)
{
	long extents, c, cache, below;
	char *map;
	int fd;

	make_clones();
	extents = fiemap(low("a"), NULL, 0);
	look();
	for (c = 0; c < (long)ARRAY_SIZE(all); c++)
		EXPECT_EQ(0, was[c]) TH_LOG("statistic %ld of a new pool", c);

	/* The first one fills, the others join. */
	EXPECT_EQ(-1, check_file(in("a"), SIZE, 1));
	EXPECT_EQ(NR, moved("pages"));
	EXPECT_EQ(NR, moved("fills"));
	EXPECT_EQ(NR * PAGE, moved("fill_bytes"));
	EXPECT_EQ(extents, moved("attachments"));
	EXPECT_EQ(0, moved("joins"));
	EXPECT_EQ(0, moved("saved_bytes"));
	for (c = 1; c < CLONES; c++) {
		EXPECT_EQ(-1, check_file(in(names[c]), SIZE, 1));
		EXPECT_EQ(NR, moved("pages"));
		EXPECT_EQ(NR, moved("fills"));
		EXPECT_EQ((c + 1) * extents, moved("attachments"));
		EXPECT_LT(0, moved("joins"));
		EXPECT_EQ(c * NR * PAGE, moved("saved_bytes"));
	}
	EXPECT_EQ(0, moved("joins_refused"));
	EXPECT_EQ(0, moved("stale"));
	EXPECT_EQ(0, not_shared());

	/* A hit for each page that is read, or mapped. */
	look();
	EXPECT_EQ(-1, check_file(in("b"), SIZE, 1));
	EXPECT_EQ(NR, moved("hits"));
	fd = open(in("b"), O_RDWR);
	ASSERT_LE(0, fd);
	map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	look();
	EXPECT_EQ(-1, mismatch(map, SIZE, 1, 0));
	EXPECT_EQ(NR, moved("hits"));
	EXPECT_EQ(0, moved("fills"));

	/* A store replaces one page of one file. */
	look();
	map[3 * PAGE] ^= 1;
	EXPECT_EQ(1, moved("copy_ups"));
	EXPECT_EQ(0, msync(map, SIZE, MS_SYNC));
	EXPECT_EQ(-PAGE, moved("saved_bytes"));
	EXPECT_EQ(NR, own("pages"));
	EXPECT_EQ(0, moved("fills"));
	EXPECT_EQ(0, moved("evictions"));
	munmap(map, SIZE);
	close(fd);

	/* And all is given up, page by page. */
	look();
	for (c = 0; c < 5 && own("pages"); c++)
		drop_caches("2");
	EXPECT_EQ(0, own("pages"));
	EXPECT_EQ(NR, moved("evictions"));
	EXPECT_EQ(0, own("saved_bytes"));

	/* The same reads below, and what they take. */
	EXPECT_EQ(0, unlink(low("b")));
	make_clone(low("a"), low("b"));
	drop_caches("3");
	cache = cache_bytes();
	for (c = 0; c < CLONES; c++)
		EXPECT_EQ(-1, check_file(low("%s", names[c]), SIZE, 1));
	below = cache_bytes() - cache;
	drop_caches("3");
	cache = cache_bytes();
	for (c = 0; c < CLONES; c++)
		EXPECT_EQ(-1, check_file(in(names[c]), SIZE, 1));
	EXPECT_EQ(below - own("pages") * PAGE - (cache_bytes() - cache), own("saved_bytes"));
	EXPECT_EQ((CLONES - 1) * NR * PAGE, own("saved_bytes"));
}

/* What is known of a file survives what changes no data. */
TEST_F(own_pool, are_carried_over)
{
	make_clones();
	EXPECT_EQ(-1, check_file(in("a"), SIZE, 1));
	look();
	ASSERT_EQ(0, chmod(in("a"), 0640));
	/*
	 * relatime: an access time of the same tick as the change is not later,
	 * and the next read of check_file() would set it again.
	 */
	usleep(20 * 1000);
	EXPECT_EQ(-1, check_file(in("a"), SIZE, 1));
	EXPECT_EQ(1, moved("carried"));
	EXPECT_EQ(0, moved("stale"));
	EXPECT_EQ(0, moved("fills"));
}

static void no_capabilities(void)
{
	struct __user_cap_header_struct hdr = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = {};

	if (syscall(SYS_capset, &hdr, none))
		die("capset");
}

/* Is no value read by who has become another, for this reason?  The status of a process. */
static int refused_to(void (*become)(void), int reason)
{
	const char *pool = path_of("%s:%s", getenv("DEDUPFS_POOL"), OWN_DOMAIN);
	unsigned int i;
	char text[64];
	int status;

	if (!fork()) {
		become();
		for (i = 0; i < ARRAY_SIZE(all); i++)
			if (read_text(path_of("%s/%s", pool, all[i]), text, sizeof(text)) >= 0 ||
			    errno != reason)
				_exit(i + 1);
		_exit(read_text(path_of("%s/not_shared/plain", pool), text, sizeof(text)) >= 0 ?
		      100 : 0);
	}
	wait(&status);
	return status;
}

/* They tell of all users of the pool. */
TEST_F(own_pool, are_for_root_to_read)
{
	EXPECT_LE(0, own("pages"));
	EXPECT_EQ(0, refused_to(nobody, EACCES));
	/* Of a container that has no user namespace, it owns the files. */
	EXPECT_EQ(0, refused_to(no_capabilities, EPERM));
}

/* A domain's reads are counted in its pool, and in no other. */
TEST_F(own_pool, are_of_one_domain)
{
	make_clones();
	EXPECT_EQ(-1, check_file(in("a"), SIZE, 1));
	look();
	EXPECT_EQ(-1, check_file(up("a"), SIZE, 1));
	EXPECT_EQ(-1, check_file(up("b"), SIZE, 1));
	EXPECT_EQ(0, moved("hits"));
	EXPECT_EQ(0, moved("fills"));
	EXPECT_EQ(0, moved("attachments"));
	EXPECT_EQ(0, moved("saved_bytes"));
}

/* What a private store copies is used, as what is read is. */
TEST(hits_of_private_stores)
{
	const unsigned int nr = 64;
	unsigned int i;
	long hits;
	char *p;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	make_file(low("a"), nr * PAGE, 1);
	make_clone(low("a"), low("b"));
	drop_caches("3");
	EXPECT_EQ(-1, check_file(up("a"), nr * PAGE, 1));
	EXPECT_EQ(-1, check_file(up("b"), nr * PAGE, 1));
	hits = pool("hits");
	p = map_file(up("b"), nr * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	ASSERT_NE(MAP_FAILED, p);
	for (i = 0; i < nr; i++)
		p[i * PAGE] = 1;
	EXPECT_EQ(nr, pool("hits") - hits);
	munmap(p, nr * PAGE);
	unlink(low("a"));
	unlink(low("b"));
}

TEST_HARNESS_MAIN
