// SPDX-License-Identifier: GPL-2.0-only
/*
 * The mount is there, and looks like the filesystem below it.
 */
#include "common.h"

TEST(is_mounted)
{
	struct stat root, parent;

	ASSERT_EQ(0, stat(getenv("DEDUPFS_MNT"), &root));
	ASSERT_EQ(0, stat("/mnt", &parent));
	EXPECT_NE(root.st_dev, parent.st_dev);
	EXPECT_TRUE(S_ISDIR(root.st_mode));
}

TEST(statfs_is_that_of_lower)
{
	struct statfs lower, upper;

	ASSERT_EQ(0, statfs(getenv("DEDUPFS_LOWER"), &lower));
	ASSERT_EQ(0, statfs(getenv("DEDUPFS_MNT"), &upper));
	EXPECT_EQ(lower.f_blocks, upper.f_blocks);
	EXPECT_EQ(lower.f_bsize, upper.f_bsize);
	EXPECT_EQ(lower.f_namelen, upper.f_namelen);
}

TEST_HARNESS_MAIN
