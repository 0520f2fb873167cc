// SPDX-License-Identifier: GPL-2.0-only
/*
 * What mappings of pooled files cannot do, and the lower filesystem's can (see
 * README.md).  Each either works, or fails in the one way that is documented;
 * it never does something else.
 */
#include "common.h"

#define SIZE	(64 * PAGE)

FIXTURE(mapping) {
	char *p;
};

FIXTURE_SETUP(mapping)
{
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	drop_caches("3");
	self->p = map_file(up("a"), SIZE, PROT_READ, MAP_PRIVATE);
	ASSERT_NE(MAP_FAILED, self->p);
	EXPECT_EQ(-1, mismatch(self->p, SIZE, 1, 0));
}

FIXTURE_TEARDOWN(mapping)
{
	unlink(low("a"));
	unlink(low("twin"));
}

/* The kernel does not extend a VM_MIXEDMAP mapping in place. */
TEST_F(mapping, growing_by_mremap)
{
	char *q = mremap(self->p, SIZE, 10 * PAGE, 0);

	ASSERT_EQ(self->p, q);
	q = mremap(self->p, 10 * PAGE, SIZE, MREMAP_MAYMOVE);
	if (q == MAP_FAILED) {
		EXPECT_EQ(ENOMEM, errno);
		EXPECT_EQ(-1, mismatch(self->p, 10 * PAGE, 1, 0));
	} else {
		EXPECT_EQ(-1, mismatch(q, SIZE, 1, 0));
	}
}

/* Nor lets it such a mapping into core dumps again. */
TEST_F(mapping, madvise_dodump)
{
	EXPECT_EQ(0, madvise(self->p, SIZE, MADV_DONTDUMP));
	if (madvise(self->p, SIZE, MADV_DODUMP))
		EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, mismatch(self->p, SIZE, 1, 0));
}

/* mlock succeeds without effect: the pages may go, and come back. */
TEST_F(mapping, mlock_has_no_effect)
{
	EXPECT_EQ(0, mlock(self->p, SIZE));
	drop_caches("3");
	EXPECT_EQ(-1, mismatch(self->p, SIZE, 1, 0));
	EXPECT_EQ(0, munlock(self->p, SIZE));
}

TEST_HARNESS_MAIN
