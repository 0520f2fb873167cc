// SPDX-License-Identifier: GPL-2.0-only
/*
 * The superblock: checks of the lower directory at mount, remount, statfs,
 * sync, freeze, and the life of an inode.
 *
 * The lower mount is a private clone: what is later done to the mount that
 * LOWERDIR was found on (remount, umount, new mounts over it) does not reach
 * us, while the lower superblock stays pinned.
 *
 * Lock order: upper s_umount -> lower s_umount; upper sb_writers -> lower
 * sb_writers.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/blkdev.h>
#include <linux/buffer_head.h>
#include <linux/cred.h>
#include <linux/exportfs.h>
#include <linux/fs_context.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/statfs.h>
#include <linux/uuid.h>
#include <linux/writeback.h>

#include "dedupfs.h"

static struct inode *dedupfs_alloc_inode(struct super_block *sb)
{
	struct dedupfs_inode *di = alloc_inode_sb(sb, dedupfs_inode_cachep, GFP_KERNEL);

	if (!di)
		return NULL;
	dedupfs_data_init(di);
	return &di->vfs_inode;
}

static void dedupfs_free_inode(struct inode *inode)
{
	kmem_cache_free(dedupfs_inode_cachep, DEDUPFS_I(inode));
}

/*
 * di->lower stays: a path walk under RCU may still look at it, and the lower
 * inode's memory outlives the grace period that the walk holds back.
 */
static void dedupfs_evict_inode(struct inode *inode)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);

	inode->i_mapping = &inode->i_data;
	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	if (S_ISREG(inode->i_mode))
		dedupfs_map_leave(di);
	iput(di->lower);
}

static int dedupfs_statfs(struct dentry *dentry, struct kstatfs *buf)
{
	struct inode *root = d_inode(dentry->d_sb->s_root);
	struct path lower;
	int err;

	dedupfs_lower_path(dentry, &lower);
	err = vfs_statfs(&lower, buf);
	if (err)
		return err;
	buf->f_type = DEDUPFS_MAGIC;
	/* As lasting as the lower one, and not the same. */
	buf->f_fsid.val[0] ^= DEDUPFS_MAGIC;
	buf->f_fsid.val[1] ^= (u32)dedupfs_lower_ino(dedupfs_lower(root));
	return 0;
}

/* In an errseq_t: somebody was told (Documentation/core-api/errseq.rst). */
#define ERRSEQ_SEEN	BIT(12)

/*
 * Record @now, the lower s_wb_err, here if it is new.  An error reported here
 * while still unseen below cannot be told from a second one like it: record it
 * again.
 */
static void carry_wb_err(struct super_block *sb, errseq_t now)
{
	struct dedupfs_sb *sbi = DEDUPFS_SB(sb);
	errseq_t last = sbi->lower_errseq;

	lockdep_assert_held(&sbi->lock);
	if ((now ^ last) & ~ERRSEQ_SEEN ||
	    (last && !(last & ERRSEQ_SEEN) && (now & ERRSEQ_SEEN) &&
	     (READ_ONCE(sb->s_wb_err) & ERRSEQ_SEEN)))
		errseq_set(&sb->s_wb_err, -(int)(now & MAX_ERRNO));
	WRITE_ONCE(sbi->lower_errseq, now);
}

/**
 * dedupfs_show_wb_err - a write-back error below becomes one of this superblock
 * @sb:		upper superblock
 *
 * A volatile overlayfs above looks for it by itself.  Below, it stays one that
 * nobody was told of.
 */
void dedupfs_show_wb_err(struct super_block *sb)
{
	struct dedupfs_sb *sbi = DEDUPFS_SB(sb);
	const errseq_t *lower = &sbi->lower.mnt->mnt_sb->s_wb_err;

	if (likely(!((READ_ONCE(*lower) ^ READ_ONCE(sbi->lower_errseq)) & ~ERRSEQ_SEEN)))
		return;
	spin_lock(&sbi->lock);
	carry_wb_err(sb, READ_ONCE(*lower));
	spin_unlock(&sbi->lock);
}

/*
 * syncfs(2) reports it once to each file opened before it.  So it counts as
 * told below, or another of the same kind could not be told from it.
 */
static void tell_wb_err(struct super_block *sb)
{
	struct dedupfs_sb *sbi = DEDUPFS_SB(sb);
	errseq_t now = 0;

	spin_lock(&sbi->lock);
	errseq_check_and_advance(&sbi->lower.mnt->mnt_sb->s_wb_err, &now);
	carry_wb_err(sb, now);
	spin_unlock(&sbi->lock);
}

static int dedupfs_sync_fs(struct super_block *sb, int wait)
{
	struct super_block *lower_sb = DEDUPFS_SB(sb)->lower.mnt->mnt_sb;
	int err;

	if (!wait)
		return 0;
	down_read(&lower_sb->s_umount);
	err = sync_filesystem(lower_sb);
	up_read(&lower_sb->s_umount);
	/* Nobody is left to be told at umount: it stays unseen below. */
	if (sb->s_root)
		tell_wb_err(sb);
	return err;
}

/* EBUSY where it is frozen already, and does not count freezes (before 6.6), as it says itself. */
static int dedupfs_freeze_fs(struct super_block *sb)
{
	struct dedupfs_sb *sbi = DEDUPFS_SB(sb);
	int err;

	err = freeze_super(sbi->lower.mnt->mnt_sb, FREEZE_HOLDER_KERNEL | FREEZE_MAY_NEST);
	sbi->froze_lower = !err;
	return err;
}

static int dedupfs_unfreeze_fs(struct super_block *sb)
{
	struct dedupfs_sb *sbi = DEDUPFS_SB(sb);
	int err;

	if (!sbi->froze_lower)
		return 0;
	sbi->froze_lower = false;
	err = thaw_super(sbi->lower.mnt->mnt_sb, FREEZE_HOLDER_KERNEL | FREEZE_MAY_NEST);
	/* Somebody else thawed it below. */
	return err == -EINVAL ? 0 : err;
}

static const struct super_operations dedupfs_super_ops = {
	.alloc_inode	= dedupfs_alloc_inode,
	.free_inode	= dedupfs_free_inode,
	/* The lower inode is the cache: keep none that no dentry uses. */
	.drop_inode	= generic_delete_inode,
	.evict_inode	= dedupfs_evict_inode,
	.statfs		= dedupfs_statfs,
	.sync_fs	= dedupfs_sync_fs,
	.freeze_fs	= dedupfs_freeze_fs,
	.unfreeze_fs	= dedupfs_unfreeze_fs,
	.show_options	= dedupfs_show_options,
};

/* On-disk superblock of XFS, version 5: offsets in bytes, big endian. */
#define XFS_SB_MAGIC_OFFSET		0	/* 32 bits */
#define XFS_SB_VERSION_OFFSET		100	/* 16 bits */
#define XFS_SB_RO_COMPAT_OFFSET		212	/* 32 bits */
#define XFS_SB_MAGIC_NUMBER		0x58465342	/* "XFSB" */
#define XFS_VERSION_ASCII_CI		BIT(14)
#define XFS_RO_COMPAT_REFLINK		BIT(2)

static u32 xfs_sb_u32(const struct buffer_head *bh, size_t offset)
{
	return be32_to_cpup((const __be32 *)(bh->b_data + offset));
}

static u16 xfs_sb_u16(const struct buffer_head *bh, size_t offset)
{
	return be16_to_cpup((const __be16 *)(bh->b_data + offset));
}

/*
 * Was this XFS made with reflink=1, and with names that keep their case apart?
 * The running filesystem tells that to user memory only; both are fixed when
 * it is made, so the superblock on disk tells them as well, read-only or not.
 * Where that cannot be read the answer is yes: without reflink all is plain.
 */
static int check_xfs(struct fs_context *fc, struct super_block *lower_sb, const char *dir)
{
	bool reflink = true, ascii_ci = false;
	struct buffer_head *bh;

	bh = __bread(lower_sb->s_bdev, 0, block_size(lower_sb->s_bdev));
	if (!bh)
		return 0;
	if (xfs_sb_u32(bh, XFS_SB_MAGIC_OFFSET) == XFS_SB_MAGIC_NUMBER) {
		reflink = xfs_sb_u32(bh, XFS_SB_RO_COMPAT_OFFSET) & XFS_RO_COMPAT_REFLINK;
		ascii_ci = xfs_sb_u16(bh, XFS_SB_VERSION_OFFSET) & XFS_VERSION_ASCII_CI;
	}
	brelse(bh);
	if (!reflink)
		return dedupfs_complain(fc, -EOPNOTSUPP,
					"%s is on an XFS made without reflink; make it with mkfs.xfs -m reflink=1",
					dir);
	if (ascii_ci)
		return dedupfs_complain(fc, -EINVAL,
					"%s is on an XFS that ignores case in names, which is not supported; make it without -n version=ci",
					dir);
	return 0;
}

/* Can files of @lower_sb share extents, in a way that this module knows? */
static int check_lower_type(struct fs_context *fc, struct super_block *lower_sb,
			    const char *dir)
{
	const char *type = lower_sb->s_type->name;

	if (lower_sb->s_magic == DEDUPFS_MAGIC)
		return dedupfs_complain(fc, -EINVAL,
					"%s is on dedupfs already; mount the directory below it",
					dir);
	if (lower_sb->s_magic == BTRFS_SUPER_MAGIC && !strcmp(type, "btrfs"))
		return 0;
	if (lower_sb->s_magic != XFS_SUPER_MAGIC || strcmp(type, "xfs"))
		return dedupfs_complain(fc, -EOPNOTSUPP,
					"%s is on %s, which has no shared extents that dedupfs knows; use XFS (reflink=1) or btrfs",
					dir, type);
	return check_xfs(fc, lower_sb, dir);
}

static int check_lower(struct fs_context *fc, const struct path *path, const char *dir)
{
	struct super_block *lower_sb = path->mnt->mnt_sb;
	int err;

	if (!d_is_dir(path->dentry))
		return dedupfs_complain(fc, -ENOTDIR, "%s is not a directory", dir);
	err = check_lower_type(fc, lower_sb, dir);
	if (err)
		return err;
	if (is_idmapped_mnt(path->mnt))
		return dedupfs_complain(fc, -EINVAL,
					"%s is on an idmapped mount, which is not supported; use a mount of it without idmap",
					dir);
	if (lower_sb->s_user_ns != &init_user_ns)
		return dedupfs_complain(fc, -EINVAL,
					"%s was mounted in a user namespace; use a mount of the host",
					dir);
	if (path->dentry->d_flags & (DCACHE_OP_HASH | DCACHE_OP_COMPARE))
		return dedupfs_complain(fc, -EINVAL,
					"%s ignores case in names, which is not supported", dir);
	if (lower_sb->s_stack_depth + 1 > FILESYSTEM_MAX_STACK_DEPTH)
		return dedupfs_complain(fc, -EINVAL,
					"%s: too many filesystems stacked already", dir);
	return 0;
}

/* Find and check the lower directory, and hold it through a private mount. */
static int open_lower(struct fs_context *fc, struct dedupfs_sb *sbi)
{
	const char *dir = sbi->config.lowerdir;
	struct vfsmount *mnt;
	struct path path;
	int err;

	err = kern_path(dir, LOOKUP_FOLLOW, &path);
	if (err)
		return dedupfs_complain(fc, err, "cannot find the lower directory %s: %pe",
					dir, ERR_PTR(err));
	err = check_lower(fc, &path, dir);
	if (err)
		goto out;
	mnt = clone_private_mount(&path);
	if (IS_ERR(mnt)) {
		err = dedupfs_complain(fc, PTR_ERR(mnt),
				       "cannot clone the mount of %s: %pe; is it unbindable, or outside this mount namespace?",
				       dir, mnt);
		goto out;
	}
	/* The mount's own options say which access times are old enough. */
	mnt->mnt_flags &= ~MNT_RELATIME;
	sbi->lower.mnt = mnt;
	sbi->lower.dentry = dget(path.dentry);
	sbi->root_bits = dedupfs_lower_ino(d_inode(path.dentry)) ^ d_inode(path.dentry)->i_ino;
out:
	path_put(&path);
	return err;
}

/* Limits, formats and flags are the lower filesystem's. */
static void copy_super(struct super_block *sb, const struct vfsmount *mnt)
{
	struct super_block *lower_sb = mnt->mnt_sb;

	sb->s_magic = DEDUPFS_MAGIC;
	sb->s_stack_depth = lower_sb->s_stack_depth + 1;
	sb->s_maxbytes = lower_sb->s_maxbytes;
	sb->s_blocksize = lower_sb->s_blocksize;
	sb->s_blocksize_bits = lower_sb->s_blocksize_bits;
	sb->s_time_gran = lower_sb->s_time_gran;
	sb->s_time_min = lower_sb->s_time_min;
	sb->s_time_max = lower_sb->s_time_max;
	sb->s_iflags |= lower_sb->s_iflags & (SB_I_NOEXEC | SB_I_NODEV | SB_I_UNTRUSTED_MOUNTER);
	/* sync(2) visits the lower filesystem by itself. */
	sb->s_iflags |= SB_I_SKIP_SYNC;
	/* The umask is then left to the lower filesystem where it has ACLs. */
	sb->s_flags |= lower_sb->s_flags & SB_POSIXACL;
	if (mnt->mnt_flags & MNT_NOATIME || lower_sb->s_flags & SB_NOATIME)
		sb->s_flags |= SB_NOATIME;
	if (__mnt_is_readonly((struct vfsmount *)mnt))
		sb->s_flags |= SB_RDONLY;
	sb->s_op = &dedupfs_super_ops;
	sb->s_xattr = DEDUPFS_XATTR(dedupfs_xattr_handlers);
	sb->s_export_op = &dedupfs_export_ops;
	sb->s_d_op = &dedupfs_dops;
}

/*
 * As lasting as the lower one, and another for each LOWERDIR: overlayfs tells
 * its layers apart by it, and finds what was copied up by a file handle.
 */
static void make_uuid(struct super_block *sb, const uuid_t *lower)
{
	__le64 root = cpu_to_le64(dedupfs_lower_ino(dedupfs_lower(d_inode(sb->s_root))));
	uuid_t uuid = *lower;
	unsigned int i;

	if (uuid_is_null(lower))
		return;
	for (i = 0; i < sizeof(root); i++)
		uuid.b[i] ^= ((u8 *)&root)[i];
	uuid.b[UUID_SIZE - 1] ^= 0xdf;
	super_set_uuid(sb, uuid.b, sizeof(uuid));
}

static int make_root(struct super_block *sb, const struct path *lower)
{
	struct inode *inode = dedupfs_iget(sb, d_inode(lower->dentry));
	struct dentry *root;

	if (IS_ERR(inode))
		return PTR_ERR(inode);
	root = d_make_root(inode);
	if (!root)
		return -ENOMEM;
	dedupfs_set_lower(root, dget(lower->dentry));
	sb->s_root = root;
	make_uuid(sb, &lower->mnt->mnt_sb->s_uuid);
	return 0;
}

static int join_pool(struct fs_context *fc, struct dedupfs_sb *sbi)
{
	struct dedupfs_config *config = &sbi->config;
	struct dedupfs_pool *pool;

	pool = dedupfs_pool_get(sbi->lower.mnt->mnt_sb, config->domain);
	if (IS_ERR(pool))
		return dedupfs_complain(fc, PTR_ERR(pool),
					"cannot make a page pool for %s: %pe",
					config->lowerdir, pool);
	sbi->pool = pool;
	if (config->pool_limit_text)
		dedupfs_pool_set_limit(pool, config->pool_limit);
	if (!(pool->lower_sb->s_flags & SB_I_VERSION))
		pr_warn("%s: the filesystem keeps no change counters (i_version) on this kernel, so nothing is shared in memory\n",
			config->lowerdir);
	else if (!pool->observer)
		pr_warn("%s: this kernel does not let dedupfs see which blocks files share, so nothing is shared in memory; it needs CONFIG_DYNAMIC_FTRACE_WITH_REGS, and kernel.ftrace_enabled=1 when the module is loaded\n",
			config->lowerdir);
	return 0;
}

/**
 * dedupfs_fill_super - make a superblock from parsed options
 * @sb: new superblock
 * @fc: its fs_private is a struct dedupfs_config, whose strings move to @sb
 *
 * What was set up is undone by dedupfs_kill_sb() in every case.
 *
 * Context: holds s_umount of @sb.  May sleep.
 * Return: 0, or a negative error, which was logged with what to do about it.
 */
int dedupfs_fill_super(struct super_block *sb, struct fs_context *fc)
{
	struct dedupfs_config *config = fc->fs_private;
	struct dedupfs_sb *sbi;
	int err;

	sbi = kzalloc(sizeof(*sbi), GFP_KERNEL);
	if (!sbi)
		return -ENOMEM;
	spin_lock_init(&sbi->lock);
	sb->s_fs_info = sbi;
	sbi->config = *config;
	memset(config, 0, sizeof(*config));
	sbi->cred = prepare_creds();
	if (!sbi->cred)
		return -ENOMEM;
	err = open_lower(fc, sbi);
	if (err)
		return err;
	sbi->lower_errseq = errseq_sample(&sbi->lower.mnt->mnt_sb->s_wb_err);
	/* Before an overlayfs above looks whether there is one. */
	dedupfs_show_wb_err(sb);
	copy_super(sb, sbi->lower.mnt);
	err = join_pool(fc, sbi);
	if (err)
		return err;
	return make_root(sb, &sbi->lower);
}

/**
 * dedupfs_kill_sb - undo dedupfs_fill_super(), wherever it stopped
 * @sb: superblock that nobody uses any more
 */
void dedupfs_kill_sb(struct super_block *sb)
{
	struct dedupfs_sb *sbi = DEDUPFS_SB(sb);

	/* Fills that nobody waits for hold inodes. */
	if (sbi)
		dedupfs_work_flush(sbi);
	kill_anon_super(sb);
	if (!sbi)
		return;
	if (sbi->pool)
		dedupfs_pool_put(sbi->pool);
	dput(sbi->lower.dentry);
	/* Waits for a grace period: path walks under RCU are gone after it. */
	if (sbi->lower.mnt)
		kern_unmount(sbi->lower.mnt);
	if (sbi->cred)
		put_cred(sbi->cred);
	dedupfs_free_config(&sbi->config);
	kfree(sbi);
}

static bool option_changed(const char *now, const char *wanted)
{
	return wanted && (!now || strcmp(now, wanted));
}

static void change_limit(struct dedupfs_sb *sbi, struct dedupfs_config *wanted)
{
	spin_lock(&sbi->lock);
	swap(sbi->config.pool_limit_text, wanted->pool_limit_text);
	sbi->config.pool_limit = wanted->pool_limit;
	spin_unlock(&sbi->lock);
	dedupfs_pool_set_limit(sbi->pool, wanted->pool_limit);
}

/**
 * dedupfs_reconfigure - remount
 * @fc: the options that were given; those that were not stay as they are
 *
 * mount(8) repeats the options that it finds in /proc/mounts: options that
 * cannot change are accepted where they do not.
 *
 * Context: holds s_umount.
 * Return: 0; -EINVAL, -EROFS.
 */
int dedupfs_reconfigure(struct fs_context *fc)
{
	struct super_block *sb = fc->root->d_sb;
	struct dedupfs_sb *sbi = DEDUPFS_SB(sb);
	struct dedupfs_config *wanted = fc->fs_private;
	bool to_rw = (fc->sb_flags_mask & SB_RDONLY) && !(fc->sb_flags & SB_RDONLY);

	if (option_changed(sbi->config.lowerdir, wanted->lowerdir))
		return dedupfs_complain(fc, -EINVAL,
					"lowerdir cannot change at remount; unmount and mount again");
	if (option_changed(sbi->config.domain, wanted->domain))
		return dedupfs_complain(fc, -EINVAL,
					"domain cannot change at remount; unmount and mount again");
	if (to_rw && sb_rdonly(sb) && __mnt_is_readonly(sbi->lower.mnt))
		return dedupfs_complain(fc, -EROFS,
					"%s is read-only below; remount that read-write and mount again",
					sbi->config.lowerdir);
	if (wanted->pool_limit_text)
		change_limit(sbi, wanted);
	return 0;
}
