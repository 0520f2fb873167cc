// SPDX-License-Identifier: GPL-2.0-only
/*
 * 24 processes map one of 24 clones each, or of a few, and touch all of it at
 * the same moment: one copy in RAM, and the proportional set sizes of the
 * mappings add up to one copy.
 */
#include "common.h"

#define CLONES	24
#define SIZE	(16 * MiB)

FIXTURE(clones) {
	char *want;
};

FIXTURE_VARIANT(clones) {
	int flags;
	int files;
};

FIXTURE_VARIANT_ADD(clones, private) { .flags = MAP_PRIVATE, .files = CLONES };
FIXTURE_VARIANT_ADD(clones, shared) { .flags = MAP_SHARED, .files = CLONES };
FIXTURE_VARIANT_ADD(clones, populated) { .flags = MAP_PRIVATE | MAP_POPULATE, .files = CLONES };
FIXTURE_VARIANT_ADD(clones, few) { .flags = MAP_PRIVATE, .files = 4 };

FIXTURE_SETUP(clones)
{
	int c;

	self->want = malloc(SIZE);
	fill(self->want, SIZE, 1, 0);
	make_file(low("c0"), SIZE, 1);
	for (c = 1; c < CLONES; c++)
		make_clone(low("c0"), low("c%d", c));
	drop_caches("3");
	for (c = 0; c < CLONES; c++)
		fiemap(low("c%d", c), NULL, 0);
}

FIXTURE_TEARDOWN(clones)
{
	int c;

	for (c = 0; c < CLONES; c++)
		unlink(low("c%d", c));
}

TEST_F(clones, mapped_at_once)
{
	size_t pss = 0, rss = 0;
	int ready[2], c, status;
	pid_t pid[CLONES];
	long cache = cache_bytes(), grown;
	char ok;

	ASSERT_EQ(0, pipe(ready));
	for (c = 0; c < CLONES; c++) {
		pid[c] = fork();
		if (!pid[c]) {
			char *p = map_file(up("c%d", c % variant->files), SIZE, PROT_READ, variant->flags);

			ok = p != MAP_FAILED && !memcmp(p, self->want, SIZE);
			write(ready[1], &ok, 1);
			pause();
			_exit(0);
		}
	}
	for (c = 0; c < CLONES; c++) {
		ASSERT_EQ(1, read(ready[0], &ok, 1));
		EXPECT_EQ(1, ok) TH_LOG("a mapping holds wrong bytes");
	}

	grown = cache_bytes() - cache;
	for (c = 0; c < CLONES; c++) {
		char name[32];

		snprintf(name, sizeof(name), "/c%d\n", c % variant->files);
		rss += smaps(pid[c], name, "Rss");
		pss += smaps(pid[c], name, "Pss");
	}
	/* Only now: each that goes leaves a larger part to the others. */
	for (c = 0; c < CLONES; c++) {
		kill(pid[c], SIGKILL);
		waitpid(pid[c], &status, 0);
	}
	TH_LOG("%.3f copies in RAM, Rss %.3f, Pss %.3f", 1.0 * grown / SIZE,
	       1.0 * rss / SIZE, 1.0 * pss / SIZE);
	/* A fault waits for three seconds: a debug kernel may need longer. */
	if (TIME_FACTOR > 1)
		return;
	EXPECT_LE(grown, (long)SIZE * 103 / 100);
	EXPECT_GE(grown, (long)SIZE * 97 / 100);
	/* All that was touched is there; a page may just have been let go. */
	EXPECT_LE(CLONES * SIZE * 99 / 100, rss);
	EXPECT_LE(pss, SIZE * 105 / 100);
	EXPECT_GE(pss, SIZE * 95 / 100);
}

TEST_HARNESS_MAIN
