/* SPDX-License-Identifier: GPL-2.0-only */
/* A mount with a pool of its own: a domain of the name OWN_DOMAIN. */
#ifndef DEDUPFS_TESTS_OWN_POOL_H
#define DEDUPFS_TESTS_OWN_POOL_H

static char at[] = "mnt.XXXXXX";

__maybe_unused static const char *in(const char *name)
{
	return path_of("%s/%s", at, name);
}

/* A statistic of it. */
__maybe_unused static long own(const char *name)
{
	return pool_in(path_of("%s:%s", getenv("DEDUPFS_POOL"), OWN_DOMAIN), name);
}

static int mount_own(void)
{
	strcpy(at, "mnt.XXXXXX");
	return mkdtemp(at) ? mount(lower_dir, at, "dedupfs", 0, "domain=" OWN_DOMAIN) : -1;
}

/* Pages that the pool may hold; 0: no limit. */
__maybe_unused static int set_limit(unsigned long pages)
{
	return mount(NULL, at, NULL, MS_REMOUNT, path_of("pool_limit=%luk", pages * 4));
}

static void umount_own(void)
{
	umount2(at, MNT_DETACH);
	rmdir(at);
	rm_rf(lower_dir);
	mkdir(lower_dir, 0755);
}

FIXTURE(own_pool) {
};

FIXTURE_SETUP(own_pool)
{
	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	ASSERT_EQ(0, mount_own());
}

FIXTURE_TEARDOWN(own_pool)
{
	if (have_pool)
		umount_own();
}

#endif
