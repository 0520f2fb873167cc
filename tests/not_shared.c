// SPDX-License-Identifier: GPL-2.0-only
/*
 * What cannot be shared is counted: not_shared/REASON grows by the bytes that
 * a read took from the page cache below for that reason, and no other does.
 * (For "tail" see tail.c.)
 */
#include "common.h"

#define SIZE	MiB
#define HALF	(SIZE / 2)

static const char * const reasons[] = {
	"plain", "hole", "unwritten", "dirty", "delalloc", "inline", "encoded", "unaligned",
	"nocow", "unstable", "changing", "foreign", "unresolved", "tail",
};

#define NR_REASONS	(sizeof(reasons) / sizeof(*reasons))

/* Each makes "a", whose second half, or all of it, is not to be shared. */

static void first_half_and_twin(void (*second)(int fd))
{
	int fd;

	make_file(low("a"), HALF, 1);
	fd = open(low("a"), O_RDWR);
	second(fd);
	fsync(fd);
	close(fd);
	make_clone(low("a"), low("twin"));
}

static void a_hole(int fd)
{
	if (ftruncate(fd, SIZE))
		die("ftruncate");
}

static void unwritten(int fd)
{
	if (fallocate(fd, 0, HALF, HALF))
		die("fallocate");
}

static void make_hole(void)
{
	first_half_and_twin(a_hole);
}

static void make_unwritten(void)
{
	first_half_and_twin(unwritten);
}

/* The twin has the first half only. */
static void make_half_plain(void)
{
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	if (truncate(low("twin"), HALF))
		die("truncate");
	sync();
}

static void make_plain(void)
{
	make_file(low("a"), SIZE, 1);
}

static void make_shared(void)
{
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
}

static void make_inline(void)
{
	make_file(low("a"), 1000, 1);
}

static void make_nocow(void)
{
	int fd = open(low("a"), O_RDWR | O_CREAT, 0644), flags = FS_NOCOW_FL;

	if (ioctl(fd, FS_IOC_SETFLAGS, &flags))
		die("FS_NOCOW_FL");
	close(fd);
	make_file(low("a"), SIZE, 1);
}

static void make_compressed(void)
{
	char *buf = calloc(1, SIZE);
	int fd = open(low("a"), O_RDWR | O_CREAT, 0644);

	memset(buf, 'x', SIZE);
	if (fsetxattr(fd, "btrfs.compression", "zstd", 4, 0))
		die("btrfs.compression");
	write_all(fd, buf, SIZE, 0);
	fsync(fd);
	close(fd);
	free(buf);
}

/* Done beneath, when all is settled; it lasts until the test is over. */

static int disturbed = -1;
static char *disturbing;

static void write_below(void)
{
	char page[PAGE] = "new";

	disturbed = open(low("a"), O_RDWR);
	write_all(disturbed, page, PAGE, HALF);
}

static void map_below(void)
{
	disturbing = map_file(low("a"), SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	if (disturbing == MAP_FAILED)
		die("mmap");
}

FIXTURE(bytes) {
	long before[NR_REASONS];
};

FIXTURE_VARIANT(bytes) {
	void (*make)(void);
	void (*disturb)(void);
	const char *only;	/* filesystem */
	const char *reason;	/* NULL: it is shared */
	off_t from;
	size_t len;
};

#define REASON(_name, _make, _disturb, _only, _reason, _from, _len)		\
	FIXTURE_VARIANT_ADD(bytes, _name) {					\
		.make = _make, .disturb = _disturb, .only = _only,		\
		.reason = _reason, .from = _from, .len = _len,			\
	}

REASON(shared, make_shared, NULL, NULL, NULL, 0, SIZE);
REASON(hole, make_hole, NULL, NULL, "hole", HALF, HALF);
REASON(unwritten, make_unwritten, NULL, NULL, "unwritten", HALF, HALF);
REASON(plain_half, make_half_plain, NULL, "xfs", "plain", HALF, HALF);
REASON(plain_file, make_plain, NULL, "xfs", "plain", 0, SIZE);
REASON(dirty, make_shared, write_below, NULL, "dirty", HALF, HALF);
REASON(unstable, make_shared, map_below, NULL, "unstable", HALF, HALF);
REASON(in_metadata, make_inline, NULL, "btrfs", "inline", 0, 1000);
REASON(encoded, make_compressed, NULL, "btrfs", "encoded", 0, SIZE);
REASON(nocow, make_nocow, NULL, "btrfs", "nocow", 0, SIZE);

static long counted(unsigned int i)
{
	return pool(path_of("not_shared/%s", reasons[i]));
}

FIXTURE_SETUP(bytes)
{
	unsigned int i;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	if (variant->only && btrfs != !strcmp(variant->only, "btrfs"))
		SKIP(return, "of %s", variant->only);
	variant->make();
	drop_caches("3");
	if (variant->disturb)
		variant->disturb();
	for (i = 0; i < NR_REASONS; i++)
		self->before[i] = counted(i);
}

FIXTURE_TEARDOWN(bytes)
{
	if (disturbing)
		munmap(disturbing, SIZE);
	close(disturbed);
	unlink(low("a"));
	unlink(low("twin"));
}

TEST_F(bytes, are_counted_by_reason)
{
	char *want = malloc(SIZE), *got = malloc(SIZE);
	int above = open(up("a"), O_RDONLY), below;
	unsigned int i;
	long expected;

	ASSERT_LE(0, above);
	EXPECT_EQ(variant->len, pread(above, got, variant->len, variant->from));
	for (i = 0; i < NR_REASONS; i++) {
		expected = variant->reason && !strcmp(reasons[i], variant->reason) ?
			   variant->len : 0;
		EXPECT_EQ(expected, counted(i) - self->before[i]) TH_LOG("%s", reasons[i]);
	}
	below = open(low("a"), O_RDONLY);
	EXPECT_EQ(variant->len, pread(below, want, variant->len, variant->from));
	EXPECT_EQ(0, memcmp(want, got, variant->len));
	close(above);
	close(below);
}

TEST_HARNESS_MAIN
