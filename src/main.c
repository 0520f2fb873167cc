// SPDX-License-Identifier: GPL-2.0-only
/*
 * dedupfs: one copy in RAM of every physical block, however many files share
 * it on disk.
 *
 * This file loads and unloads the module.  Each part is set up after those
 * that it needs and torn down in reverse order; the filesystem type is
 * registered last, so that no mount finds a part missing.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/rcupdate.h>

#include "dedupfs.h"

struct kmem_cache *dedupfs_inode_cachep;

static void init_once(void *p)
{
	struct dedupfs_inode *di = p;

	inode_init_once(&di->vfs_inode);
}

static struct file_system_type dedupfs_fs_type = {
	.owner		= THIS_MODULE,
	.name		= DEDUPFS_NAME,
	.init_fs_context = dedupfs_init_fs_context,
	.parameters	= dedupfs_parameters,
	.kill_sb	= dedupfs_kill_sb,
};
MODULE_ALIAS_FS(DEDUPFS_NAME);

/* In the order of setting up. */
static const struct {
	int (*init)(void);
	void (*exit)(void);
} parts[] = {
	{ dedupfs_stats_init,	dedupfs_stats_exit },
	{ dedupfs_mark_init,	dedupfs_mark_exit },
	{ dedupfs_fiemap_init,	dedupfs_fiemap_exit },
	{ dedupfs_work_init,	dedupfs_work_exit },
	{ dedupfs_write_init,	dedupfs_write_exit },
};

static void exit_parts(int n)
{
	while (n--)
		parts[n].exit();
	/* Inodes, maps and extents are freed after a grace period. */
	rcu_barrier();
	kmem_cache_destroy(dedupfs_inode_cachep);
}

static int __init dedupfs_init(void)
{
	int err, n;

	dedupfs_inode_cachep = kmem_cache_create("dedupfs_inode",
						 sizeof(struct dedupfs_inode), 0,
						 SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT,
						 init_once);
	if (!dedupfs_inode_cachep)
		return -ENOMEM;
	for (n = 0; n < ARRAY_SIZE(parts); n++) {
		err = parts[n].init();
		if (err)
			goto out;
	}
	err = register_filesystem(&dedupfs_fs_type);
	if (!err)
		return 0;
out:
	exit_parts(n);
	return err;
}

static void __exit dedupfs_exit(void)
{
	unregister_filesystem(&dedupfs_fs_type);
	exit_parts(ARRAY_SIZE(parts));
}

module_init(dedupfs_init);
module_exit(dedupfs_exit);

MODULE_DESCRIPTION("Stacking filesystem that keeps one copy in RAM of data shared on disk");
MODULE_AUTHOR("The dedupfs authors");
MODULE_VERSION(DEDUPFS_VERSION);
MODULE_LICENSE("GPL");
