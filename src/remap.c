// SPDX-License-Identifier: GPL-2.0-only
/*
 * Clones, deduplication and copy_file_range(2).
 *
 * The lower filesystem does it all.  Afterwards both files have shared blocks
 * that they may not have had before: what was known of them as plain is
 * forgotten, and clean copies in the lower page cache are dropped, so that
 * the next reader of either takes the pool's (one copy in RAM at once).
 *
 * Locks: upper i_rwsems of both files, in the VFS's order.
 */
#include <linux/pagemap.h>
#include "pool.h"

static bool is_ours(const struct file *file)
{
	return file->f_op == &dedupfs_file_fops;
}

/* What a remap can change: from the old end on, if it writes beyond that. */
static void changed_range(struct inode *inode, loff_t pos, loff_t len, loff_t *start, loff_t *last)
{
	*start = dedupfs_change_offset(inode, pos);
	if (!len || check_add_overflow(pos, len - 1, last))
		*last = LLONG_MAX;
}

/* The file has shared blocks now: let it join the pool. */
static void became_shared(struct inode *inode, loff_t pos, loff_t len)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	struct address_space *mapping = di->lower->i_mapping;
	struct dedupfs_map *map = dedupfs_map_of(di);
	pgoff_t first = pos >> PAGE_SHIFT, last = (pos + len - 1) >> PAGE_SHIFT;

	WRITE_ONCE(di->plain_at, DEDUPFS_UNARMED);
	WRITE_ONCE(di->shared_at, DEDUPFS_UNARMED);
	if (map)
		dedupfs_forget_unattached(map, first, last);
	invalidate_mapping_pages(mapping, first, last);
}

/**
 * dedupfs_remap_file_range - FICLONE, FICLONERANGE, FIDEDUPERANGE
 * @in:		upper file
 * @pos_in:	bytes
 * @out:	upper file
 * @pos_out:	bytes
 * @len:	bytes; 0: to the end of @in
 * @flags:	REMAP_FILE_*
 *
 * Return: bytes remapped or the lower filesystem's -errno.
 */
loff_t dedupfs_remap_file_range(struct file *in, loff_t pos_in, struct file *out,
				loff_t pos_out, loff_t len, unsigned int flags)
{
	struct inode *inode_in = file_inode(in), *inode_out = file_inode(out);
	struct file *lower_in, *lower_out;
	loff_t start, last, ret;

	if (!is_ours(in) || !is_ours(out))
		return -EXDEV;
	lower_in = dedupfs_lower_file(in);
	if (IS_ERR(lower_in))
		return PTR_ERR(lower_in);
	lower_out = dedupfs_lower_file(out);
	if (IS_ERR(lower_out))
		return PTR_ERR(lower_out);

	ret = dedupfs_change_prepare(inode_out);
	if (ret)
		return ret;

	lock_two_nondirectories(inode_in, inode_out);
	changed_range(inode_out, pos_out, len, &start, &last);
	dedupfs_touch(inode_in);
	dedupfs_change_begin(inode_out, start, last);
	if (flags & REMAP_FILE_DEDUP)
		ret = vfs_dedupe_file_range_one(lower_in, pos_in, lower_out, pos_out, len, flags);
	else
		ret = vfs_clone_file_range(lower_in, pos_in, lower_out, pos_out, len, flags);
	dedupfs_change_end(inode_out);
	dedupfs_look_for_changes(DEDUPFS_I(inode_out));
	if (ret > 0) {
		became_shared(inode_in, pos_in, ret);
		became_shared(inode_out, pos_out, ret);
	}
	dedupfs_copy_attr_locked(inode_out);
	unlock_two_nondirectories(inode_in, inode_out);
	return ret;
}

/* Or has it been copied, as the filesystem does where it cannot clone? */
static bool may_be_cloned(const struct file *in, loff_t pos_in, const struct file *out,
			  loff_t pos_out, loff_t len)
{
	struct inode *inode = file_inode(in);
	loff_t block = i_blocksize(inode);

	if (file_inode(out)->i_sb != inode->i_sb || dedupfs_in_place(inode) ||
	    dedupfs_in_place(file_inode(out)))
		return false;
	return IS_ALIGNED(pos_in | pos_out, block) &&
	       (len >= block || pos_in + len == i_size_read(inode));
}

/**
 * dedupfs_copy_file_range - ->copy_file_range
 * @in:		upper file, of this or another mount; anything else is -EXDEV
 * @pos_in:	bytes
 * @out:	upper file
 * @pos_out:	bytes
 * @len:	bytes
 * @flags:	0
 *
 * Return: bytes copied, or -errno.
 */
ssize_t dedupfs_copy_file_range(struct file *in, loff_t pos_in, struct file *out,
				loff_t pos_out, size_t len, unsigned int flags)
{
	struct inode *inode_out = file_inode(out);
	struct file *lower_in, *lower_out;
	loff_t start, last;
	ssize_t ret;

	if (!is_ours(out) || !is_ours(in))
		return -EXDEV;
	lower_in = dedupfs_lower_file(in);
	if (IS_ERR(lower_in))
		return PTR_ERR(lower_in);
	lower_out = dedupfs_lower_file(out);
	if (IS_ERR(lower_out))
		return PTR_ERR(lower_out);

	ret = dedupfs_change_prepare(inode_out);
	if (ret)
		return ret;
	changed_range(inode_out, pos_out, len, &start, &last);
	dedupfs_touch(file_inode(in));
	dedupfs_change_begin(inode_out, start, last);
	ret = vfs_copy_file_range(lower_in, pos_in, lower_out, pos_out, len, flags);
	dedupfs_change_end(inode_out);
	dedupfs_look_for_changes(DEDUPFS_I(inode_out));
	if (ret > 0 && may_be_cloned(lower_in, pos_in, lower_out, pos_out, ret)) {
		became_shared(file_inode(in), pos_in, ret);
		became_shared(inode_out, pos_out, ret);
	}
	dedupfs_copy_attr(inode_out);
	return ret;
}
