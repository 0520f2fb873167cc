// SPDX-License-Identifier: GPL-2.0-only
/*
 * File handles: an upper handle is the lower file's handle.
 *
 * The lower filesystem encodes and decodes; decoding connects directories up
 * to the lower root, so an upper parent and name can be read off the lower
 * dentries.  A directory outside the lower directory is refused; a file there
 * cannot be told apart without its parent (handles are for root, and for NFS
 * servers).
 */
#include <linux/dcache.h>
#include <linux/exportfs.h>
#include <linux/fs.h>
#include <linux/limits.h>
#include <linux/mount.h>

#include "dedupfs.h"

static int dedupfs_encode_fh(struct inode *inode, u32 *fh, int *max_len, struct inode *parent)
{
	struct inode *lower = dedupfs_lower(inode);

	/* XFS and btrfs both have it. */
	return lower->i_sb->s_export_op->encode_fh(lower, fh, max_len,
						   parent ? dedupfs_lower(parent) : NULL);
}

/* Does the lower dentry lie in the tree that @context is the path of? */
static int lower_acceptable(void *context, struct dentry *lower)
{
	const struct path *root = context;

	return !d_is_dir(lower) || is_subdir(lower, root->dentry);
}

static int lower_connected(void *context, struct dentry *lower)
{
	return !(lower->d_flags & DCACHE_DISCONNECTED) && lower_acceptable(context, lower);
}

/* An upper dentry on @lower, whose reference is consumed. */
static struct dentry *obtain_upper(struct super_block *sb, struct dentry *lower)
{
	struct dentry *dentry;
	struct inode *inode;

	inode = dedupfs_iget(sb, d_inode(lower));
	if (IS_ERR(inode)) {
		dput(lower);
		return ERR_CAST(inode);
	}
	dentry = d_obtain_alias(inode);
	/* Another handle of the file may be decoded at the same moment. */
	if (IS_ERR(dentry) || !dedupfs_set_first_lower(dentry, lower))
		dput(lower);
	return dentry;
}

static struct dentry *dedupfs_fh_to_dentry(struct super_block *sb, struct fid *fid,
					   int fh_len, int fh_type)
{
	struct path *root = &DEDUPFS_SB(sb)->lower;
	struct dentry *lower;

	lower = exportfs_decode_fh(root->mnt, fid, fh_len, fh_type, lower_acceptable, root);
	if (IS_ERR_OR_NULL(lower))
		return lower;
	return obtain_upper(sb, lower);
}

/*
 * The parent in the handle of a file.  The lower filesystem connects the file
 * itself meanwhile, so that dedupfs_get_name() finds its name.
 */
static struct dentry *dedupfs_fh_to_parent(struct super_block *sb, struct fid *fid,
					   int fh_len, int fh_type)
{
	struct path *root = &DEDUPFS_SB(sb)->lower;
	struct dentry *lower, *parent;

	lower = exportfs_decode_fh(root->mnt, fid, fh_len, fh_type, lower_connected, root);
	if (IS_ERR_OR_NULL(lower))
		return lower;
	parent = dget_parent(lower);
	dput(lower);
	if (!is_subdir(parent, root->dentry)) {
		dput(parent);
		return ERR_PTR(-ESTALE);
	}
	return obtain_upper(sb, parent);
}

static struct dentry *dedupfs_get_parent(struct dentry *child)
{
	struct path *root = &DEDUPFS_SB(child->d_sb)->lower;
	struct dentry *parent;

	parent = dget_parent(dedupfs_lower_dentry(child));
	if (!is_subdir(parent, root->dentry)) {
		dput(parent);
		return ERR_PTR(-ESTALE);
	}
	return obtain_upper(child->d_sb, parent);
}

static int name_below(struct dentry *lower, struct dentry *lower_parent, char *name)
{
	struct name_snapshot snapshot;
	int err = -ENOENT;

	take_dentry_name_snapshot(&snapshot, lower);
	if (READ_ONCE(lower->d_parent) == lower_parent && snapshot.name.len <= NAME_MAX) {
		memcpy(name, snapshot.name.name, snapshot.name.len);
		name[snapshot.name.len] = '\0';
		err = 0;
	}
	release_dentry_name_snapshot(&snapshot);
	return err;
}

/* @name has room for NAME_MAX and the end. */
static int dedupfs_get_name(struct dentry *parent, char *name, struct dentry *child)
{
	struct dentry *lower_parent = dedupfs_lower_dentry(parent);
	const struct export_operations *ops = lower_parent->d_sb->s_export_op;
	struct dentry *lower;
	int err = -ENOENT;

	/* Prefers an alias that has a name. */
	lower = d_find_alias(d_inode(dedupfs_lower_dentry(child)));
	if (lower) {
		err = name_below(lower, lower_parent, name);
		dput(lower);
	}
	if (err && ops->get_name)
		err = ops->get_name(lower_parent, name, dedupfs_lower_dentry(child));
	return err;
}

/*
 * nfsd has what it did made durable before it says so.  (Without this it would
 * look for dirty state of the upper inode, which has none but the lower pages.)
 */
static int dedupfs_commit_metadata(struct inode *inode)
{
	struct inode *lower = dedupfs_lower(inode);
	const struct export_operations *ops = lower->i_sb->s_export_op;

	return ops->commit_metadata ? ops->commit_metadata(lower) : sync_inode_metadata(lower, 1);
}

/* As nfsd makes it where the inode itself counts its changes. */
static u64 __maybe_unused dedupfs_fetch_iversion(struct inode *inode)
{
	struct inode *lower = dedupfs_lower(inode);
	struct timespec64 ctime = inode_get_ctime(lower);

	return ((u64)ctime.tv_sec << 30) + ctime.tv_nsec + inode_query_iversion(lower);
}

const struct export_operations dedupfs_export_ops = {
	.encode_fh	= dedupfs_encode_fh,
	.fh_to_dentry	= dedupfs_fh_to_dentry,
	.fh_to_parent	= dedupfs_fh_to_parent,
	.get_parent	= dedupfs_get_parent,
	.get_name	= dedupfs_get_name,
	.commit_metadata = dedupfs_commit_metadata,
	DEDUPFS_FETCH_IVERSION_OPS(dedupfs_fetch_iversion)
};
