// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reading directories: the lower directory's entries, positions and types,
 * with inode numbers that agree with stat(2) where that costs nothing.
 *
 * An open upper directory holds the lower one open; the lower position is set
 * from the upper one at each call, under the VFS's lock of the latter.
 *
 * Lock order: upper i_rwsem (shared) -> lower i_rwsem (shared).
 */
#include <linux/fs.h>

#include "dedupfs.h"

/* Translates entries for the caller's context. */
struct translate {
	struct dir_context ctx;
	struct dir_context *caller;
	struct file *file;
	u64 root_bits;		/* what its subvolume adds to an inode number */
};

static int dedupfs_dir_open(struct inode *inode, struct file *file)
{
	struct path path;
	struct file *lower;

	dedupfs_lower_path(file->f_path.dentry, &path);
	lower = dedupfs_open_lower(inode->i_sb, &path, file->f_flags);
	if (IS_ERR(lower))
		return PTR_ERR(lower);
	file->private_data = lower;
	/* Whether an access time is old depends on the others. */
	dedupfs_copy_attr(inode);
	return 0;
}

static int dedupfs_dir_release(struct inode *inode, struct file *file)
{
	dedupfs_release_lower(file->private_data);
	return 0;
}

/* btrfs finds the entries that were added since the open when it seeks. */
static loff_t dedupfs_dir_llseek(struct file *file, loff_t offset, int whence)
{
	struct file *lower = file->private_data;
	loff_t pos;

	lower->f_pos = file->f_pos;
	pos = vfs_llseek(lower, offset, whence);
	if (pos >= 0)
		file->f_pos = pos;
	return pos;
}

static u64 parent_ino_of(struct file *file)
{
	struct dentry *parent = dget_parent(file->f_path.dentry);
	u64 ino = d_inode(parent)->i_ino;

	dput(parent);
	return ino;
}

static bool translate_entry(struct dir_context *ctx, const char *name, int len,
			    loff_t pos, u64 ino, unsigned int type)
{
	struct translate *t = container_of(ctx, struct translate, ctx);

	if (len == 1 && name[0] == '.')
		ino = file_inode(t->file)->i_ino;
	else if (len == 2 && name[0] == '.' && name[1] == '.')
		ino = parent_ino_of(t->file);
	else
		ino ^= t->root_bits;
	t->caller->pos = ctx->pos;
	return t->caller->actor(t->caller, name, len, pos, ino, type);
}

/*
 * Entries belong to the directory's subvolume but for those that are
 * subvolumes themselves; for these the number differs from stat's, as it
 * does on btrfs.
 */
static int dedupfs_iterate(struct file *file, struct dir_context *ctx)
{
	struct inode *inode = file_inode(file);
	struct file *lower = file->private_data;
	struct translate t = {
		.ctx.actor = translate_entry,
		.caller = ctx,
		.file = file,
		.root_bits = inode->i_ino ^ dedupfs_lower(inode)->i_ino,
	};
	struct inode *lower_inode = file_inode(lower);
	int err;

	if (!lower->f_op->iterate_shared)
		return -ENOTDIR;
	/*
	 * As iterate_dir(), which asks security modules: that was done for the
	 * upper file, and this stores to the caller's memory, with his credentials.
	 */
	err = down_read_killable(&lower_inode->i_rwsem);
	if (err)
		return err;
	t.ctx.pos = ctx->pos;
	lower->f_pos = ctx->pos;
	err = -ENOENT;
	if (!IS_DEADDIR(lower_inode))
		err = lower->f_op->iterate_shared(lower, &t.ctx);
	lower->f_pos = t.ctx.pos;
	inode_unlock_shared(lower_inode);
	ctx->pos = t.ctx.pos;
	return err;
}

static int dedupfs_dir_fsync(struct file *file, loff_t start, loff_t end, int datasync)
{
	return vfs_fsync_range(file->private_data, start, end, datasync);
}

const struct file_operations dedupfs_dir_fops = {
	.open		= dedupfs_dir_open,
	.release	= dedupfs_dir_release,
	.llseek		= dedupfs_dir_llseek,
	.read		= generic_read_dir,
	.iterate_shared	= dedupfs_iterate,
	.fsync		= dedupfs_dir_fsync,
};
