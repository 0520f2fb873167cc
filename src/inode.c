// SPDX-License-Identifier: GPL-2.0-only
/*
 * Upper inodes and their attributes.
 *
 * There is one upper inode for one lower inode; the address of the lower one,
 * which the upper one holds, is the key.  The lower inode is always right: its
 * attributes are copied up where the VFS looks at them, and permissions and
 * changes are decided below with the caller's credentials.  A regular file
 * borrows the lower page cache: i_mapping is the lower inode's.
 *
 * Lock order: upper i_rwsem -> lower sb_writers -> lower i_rwsem.
 */
#include <linux/fs.h>
#include <linux/exportfs.h>
#include <linux/fileattr.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/posix_acl.h>
#include <linux/stat.h>

#include "dedupfs.h"

#define COPIED_FLAGS	(S_SYNC | S_NOATIME | S_APPEND | S_IMMUTABLE | S_DIRSYNC)

/* The start of a btrfs file handle. */
struct btrfs_fid_start {
	u64 objectid;
	u64 root_objectid;
	u32 gen;
} __packed;

#define BTRFS_TOP_LEVEL		5	/* id of the top-level subvolume */
#define BTRFS_ROOT_SHIFT	40

/**
 * dedupfs_lower_ino - a number for a lower inode that no other of it has
 * @lower: lower inode
 *
 * btrfs numbers the inodes of each subvolume alike.  A file handle names the
 * subvolume; its id, in the high bits, makes the number unique, and the same
 * after each mount.
 *
 * Return: inode number.
 */
u64 dedupfs_lower_ino(struct inode *lower)
{
	struct btrfs_fid_start fid[2];
	int len = sizeof(fid) / (sizeof(u32));
	int type;

	if (lower->i_sb->s_magic != BTRFS_SUPER_MAGIC)
		return lower->i_ino;
	type = lower->i_sb->s_export_op->encode_fh(lower, (__u32 *)fid, &len, NULL);
	if (type != FILEID_BTRFS_WITHOUT_PARENT)
		return lower->i_ino;
	if (fid->root_objectid == BTRFS_TOP_LEVEL)
		return fid->objectid;
	return fid->objectid ^ rol64(fid->root_objectid, BTRFS_ROOT_SHIFT);
}

/*
 * In the subvolume of LOWERDIR numbers are what they are below: 32-bit programs
 * without large files cannot be told of others.
 */
static u64 ino_on(const struct super_block *sb, struct inode *lower)
{
	return dedupfs_lower_ino(lower) ^ DEDUPFS_SB(sb)->root_bits;
}

static int inode_is_on(struct inode *inode, void *lower)
{
	return dedupfs_lower(inode) == lower;
}

static int put_inode_on(struct inode *inode, void *lower)
{
	ihold(lower);
	DEDUPFS_I(inode)->lower = lower;
	return 0;
}

static void copy_attr(struct inode *inode, bool locked, bool patient);

static void init_inode(struct inode *inode)
{
	struct inode *lower = dedupfs_lower(inode);

	inode->i_ino = ino_on(inode->i_sb, lower);
	inode->i_generation = lower->i_generation;
	/* (The rest of the mode comes with the owner.) */
	inode->i_mode = lower->i_mode & S_IFMT;
	inode->i_acl = ACL_DONT_CACHE;
	inode->i_default_acl = ACL_DONT_CACHE;
	switch (lower->i_mode & S_IFMT) {
	case S_IFREG:
		inode->i_op = &dedupfs_file_iops;
		inode->i_fop = &dedupfs_file_fops;
		inode->i_mapping = lower->i_mapping;
		break;
	case S_IFDIR:
		inode->i_op = &dedupfs_dir_iops;
		inode->i_fop = &dedupfs_dir_fops;
		break;
	case S_IFLNK:
		inode->i_op = &dedupfs_symlink_iops;
		break;
	default:
		inode->i_op = &dedupfs_special_iops;
		init_special_inode(inode, lower->i_mode, lower->i_rdev);
		break;
	}
	copy_attr(inode, true, true);
}

/* iget5_locked() for a lower inode that mostly has no upper one yet. */
static struct inode *iget_new(struct super_block *sb, struct inode *lower)
{
	struct inode *new = new_inode(sb), *inode;

	if (!new)
		return NULL;
	inode = inode_insert5(new, (unsigned long)lower, inode_is_on, put_inode_on, lower);
	if (inode != new)
		iput(new);
	return inode;
}

/**
 * dedupfs_iget - the upper inode on a lower inode, made if need be
 * @sb: upper superblock
 * @lower: lower inode; the upper one takes its own reference
 *
 * Context: may sleep.
 * Return: referenced inode, or ERR_PTR(-ENOMEM).
 */
struct inode *dedupfs_iget(struct super_block *sb, struct inode *lower)
{
	struct inode *inode;

	if (lower->i_nlink == 1)
		inode = iget_new(sb, lower);
	else
		inode = iget5_locked(sb, (unsigned long)lower, inode_is_on, put_inode_on, lower);
	if (!inode)
		return ERR_PTR(-ENOMEM);
	if (inode->i_state & I_NEW) {
		init_inode(inode);
		unlock_new_inode(inode);
	} else {
		dedupfs_copy_attr_patiently(inode);
	}
	return inode;
}

/* A link count that passes zero is counted in the superblock: one at a time. */
static void copy_nlink(struct inode *inode, const struct inode *lower)
{
	if (inode->i_nlink == READ_ONCE(lower->i_nlink))
		return;
	spin_lock(&inode->i_lock);
	/* Read under the lock: who comes last has read last. */
	set_nlink(inode, READ_ONCE(lower->i_nlink));
	spin_unlock(&inode->i_lock);
}

static bool owner_differs(const struct inode *inode, const struct inode *lower)
{
	return inode->i_mode != lower->i_mode ||
	       !uid_eq(inode->i_uid, lower->i_uid) ||
	       !gid_eq(inode->i_gid, lower->i_gid);
}

static bool flags_differ(const struct inode *inode, const struct inode *lower)
{
	return (inode->i_flags ^ lower->i_flags) & COPIED_FLAGS;
}

/* Was something changed below that the VFS goes by? */
bool dedupfs_attr_differs(const struct inode *inode)
{
	const struct inode *lower = dedupfs_lower(inode);

	return owner_differs(inode, lower) || flags_differ(inode, lower);
}

/* Without a lock: whoever writes the mode under it meanwhile is next. */
static void strip_set_id(struct inode *inode)
{
	umode_t mode = READ_ONCE(inode->i_mode), seen;

	for (; mode & (S_ISUID | S_ISGID); mode = seen) {
		seen = cmpxchg(&inode->i_mode, mode, mode & ~(S_ISUID | S_ISGID));
		if (seen == mode)
			break;
	}
}

static void set_owner(struct inode *inode, const struct inode *lower, umode_t without)
{
	inode->i_mode = lower->i_mode & ~without;
	inode->i_uid = lower->i_uid;
	inode->i_gid = lower->i_gid;
}

/* How long a set-id program that is looked up is waited for, with no lock held. */
#define SET_ID_WAIT	max(1, HZ / 2)

/*
 * Both by trylock; but an overlayfs above takes the mode of an inode when it
 * meets it, and not again: one that is looked up, and has set-id bits, is worth
 * some patience.
 */
static bool lock_to_copy(struct inode *inode, struct inode *lower, bool locked, bool patient)
{
	unsigned long end = jiffies + SET_ID_WAIT;

	patient = patient && (lower->i_mode & (S_ISUID | S_ISGID));
	for (;;) {
		if (locked || inode_trylock(inode)) {
			if (inode_trylock_shared(lower))
				return true;
			if (!locked)
				inode_unlock(inode);
		}
		if (!patient || time_after(jiffies, end) || fatal_signal_pending(current))
			return false;
		schedule_timeout_killable(1);
	}
}

/*
 * execve() takes owner and mode from the upper inode under its i_rwsem; set-id
 * bits must never meet another owner.  So both are written under that lock and
 * read under the lower one.  Where the upper lock is taken, only strip set-id
 * bits; where the lower one is, copy without them; the next copy completes it.
 * The caller of @locked holds the upper i_rwsem for writing, or nobody else has
 * the inode.
 */
static void copy_owner(struct inode *inode, struct inode *lower, bool locked, bool patient)
{
	if (!S_ISREG(lower->i_mode)) {
		set_owner(inode, lower, 0);
	} else if (lock_to_copy(inode, lower, locked, patient)) {
		set_owner(inode, lower, 0);
		inode_unlock_shared(lower);
		if (!locked)
			inode_unlock(inode);
	} else if (locked || inode_trylock(inode)) {
		set_owner(inode, lower, S_ISUID | S_ISGID);
		if (!locked)
			inode_unlock(inode);
	} else {
		strip_set_id(inode);
	}
}

static void copy_attr(struct inode *inode, bool locked, bool patient)
{
	struct inode *lower = dedupfs_lower(inode);

	if (owner_differs(inode, lower))
		copy_owner(inode, lower, locked, patient);
	inode_set_atime_to_ts(inode, inode_get_atime(lower));
	inode_set_mtime_to_ts(inode, inode_get_mtime(lower));
	inode_set_ctime_to_ts(inode, inode_get_ctime(lower));
	inode->i_blkbits = lower->i_blkbits;
	inode->i_blocks = lower->i_blocks;
	if (flags_differ(inode, lower))
		inode_set_flags(inode, lower->i_flags & COPIED_FLAGS, COPIED_FLAGS);
	copy_nlink(inode, lower);
	while (i_size_read(inode) != i_size_read(lower)) {
		i_size_write(inode, i_size_read(lower));
		/* Who changed it since may have been overtaken by us: look again. */
		smp_mb();
	}
}

/**
 * dedupfs_copy_attr - copy the lower inode's attributes to the upper one
 * @inode: upper inode
 *
 * Context: any that holds no i_lock; waits for no other lock, as the lower
 * attributes can change at any time anyway.  Does not copy owner and mode of a
 * file whose i_rwsem, the upper or the lower one, somebody holds.
 */
void dedupfs_copy_attr(struct inode *inode)
{
	copy_attr(inode, false, false);
}

/**
 * dedupfs_copy_attr_patiently - the same for who has looked it up by name
 * @inode: upper inode
 *
 * Context: may sleep: owner and mode of a set-id program are waited for, for
 * half a second at most.
 */
void dedupfs_copy_attr_patiently(struct inode *inode)
{
	copy_attr(inode, false, true);
}

/**
 * dedupfs_copy_attr_locked - the same for who holds the upper i_rwsem
 * @inode: upper inode, locked for writing, or not yet known to anybody
 */
void dedupfs_copy_attr_locked(struct inode *inode)
{
	copy_attr(inode, true, false);
}

/*
 * bprm_fill_uid() took owner and mode, and asks again with i_rwsem held: refuse
 * if they were old.
 */
static bool is_execve_recheck(struct inode *inode, int mask)
{
	return mask == MAY_EXEC && S_ISREG(inode->i_mode) && inode_is_locked(inode);
}

/**
 * dedupfs_permission - may the caller do that to the file?
 * @idmap: of the upper mount; never other than the identity
 * @inode: upper inode
 * @mask: MAY_*
 *
 * The lower filesystem decides.  The VFS asks about the upper inode's owner,
 * mode and flags itself in places: keep them right on the way.
 *
 * Context: with MAY_NOT_BLOCK under RCU alone.
 * Return: 0, or a negative error; -ECHILD asks to call again without RCU.
 */
int dedupfs_permission(struct mnt_idmap *idmap, struct inode *inode, int mask)
{
	struct inode *lower = dedupfs_lower(inode);

	if (unlikely(dedupfs_attr_differs(inode))) {
		if (mask & MAY_NOT_BLOCK)
			return -ECHILD;
		/* A program is run without set-id then, for this once. */
		if (owner_differs(inode, lower) && is_execve_recheck(inode, mask))
			return -ESTALE;
		dedupfs_copy_attr(inode);
	}
	/* Nothing is asked for: an open of what it has just made. */
	if (!(mask & (MAY_READ | MAY_WRITE | MAY_EXEC | MAY_APPEND)))
		return 0;
	return inode_permission(&nop_mnt_idmap, lower, mask);
}

/**
 * dedupfs_getattr - stat: the lower file's answer with the upper identity
 * @idmap: of the upper mount
 * @path: upper path
 * @stat: the answer
 * @request_mask: STATX_* that the caller wants
 * @flags: AT_STATX_*
 *
 * Return: 0, or a negative error of the lower filesystem.
 */
int dedupfs_getattr(struct mnt_idmap *idmap, const struct path *path,
		    struct kstat *stat, u32 request_mask, unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);
	struct path lower;
	int err;

	dedupfs_lower_path(path->dentry, &lower);
	err = vfs_getattr_nosec(&lower, stat, request_mask, flags);
	if (err)
		return err;
	dedupfs_copy_attr(inode);
	stat->dev = inode->i_sb->s_dev;
	stat->ino = inode->i_ino;
	return 0;
}

/*
 * Which set-id bits a change of owner or size kills depends on the mode, and
 * the VFS has looked at the upper one, which may be old.
 */
static void kill_bits(struct iattr *attr, struct inode *lower)
{
	int kill;

	if ((attr->ia_valid & (ATTR_UID | ATTR_GID)) && (attr->ia_valid & ATTR_KILL_SUID)) {
		attr->ia_valid &= ~ATTR_KILL_SGID;
		attr->ia_valid |= setattr_should_drop_sgid(&nop_mnt_idmap, lower);
	} else if (attr->ia_valid & ATTR_SIZE) {
		kill = setattr_should_drop_suidgid(&nop_mnt_idmap, lower);
		if (kill)
			attr->ia_valid |= kill | ATTR_FORCE;
	}
}

/*
 * The VFS made a mode of "kill setuid" from the upper mode: the lower
 * filesystem makes its own.  A file becomes the lower file.
 */
static int lower_iattr(const struct iattr *attr, struct iattr *lower, struct inode *inode)
{
	*lower = *attr;
	kill_bits(lower, dedupfs_lower(inode));
	if (lower->ia_valid & (ATTR_KILL_SUID | ATTR_KILL_SGID))
		lower->ia_valid &= ~ATTR_MODE;
	if (lower->ia_valid & ATTR_FILE) {
		lower->ia_file = dedupfs_lower_file(attr->ia_file);
		if (IS_ERR(lower->ia_file))
			return PTR_ERR(lower->ia_file);
	}
	return 0;
}

/* Change attributes below; wait for the holder of an NFS delegation there. */
static int change_lower(struct inode *inode, struct dentry *lower, const struct iattr *attr)
{
	struct inode *lower_inode = d_inode(lower);
	struct inode *delegated = NULL;
	struct iattr ia;
	int err;

	do {
		ia = *attr;
		inode_lock(lower_inode);
		err = notify_change(&nop_mnt_idmap, lower, &ia, &delegated);
		/* Whole, while it can be: see copy_owner(). */
		if (!err)
			set_owner(inode, lower_inode, 0);
		inode_unlock(lower_inode);
		if (!delegated)
			return err;
		err = break_deleg_wait(&delegated);
	} while (!err);
	return err;
}

static int change_size(struct inode *inode, struct dentry *lower, const struct iattr *attr)
{
	struct inode *lower_inode = d_inode(lower);
	loff_t start;
	int err;

	start = round_down(min(i_size_read(lower_inode), attr->ia_size), PAGE_SIZE);
	err = dedupfs_truncate_begin(inode, start);
	if (err)
		return err;
	err = change_lower(inode, lower, attr);
	dedupfs_copy_attr_locked(inode);
	dedupfs_truncate_end(inode);
	return err;
}

static int change_attr(struct inode *inode, struct dentry *lower, const struct iattr *attr)
{
	int err;

	dedupfs_touch(inode);
	err = change_lower(inode, lower, attr);
	dedupfs_copy_attr_locked(inode);
	return err;
}

/**
 * dedupfs_setattr - chmod, chown, utimes, truncate: done by the lower file
 * @idmap: of the upper mount
 * @dentry: upper dentry
 * @attr: what to change
 *
 * Context: holds the upper i_rwsem.
 * Return: 0, or a negative error of the lower filesystem.
 */
int dedupfs_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	struct path lower;
	struct iattr ia;
	int err;

	err = lower_iattr(attr, &ia, inode);
	if (err)
		return err;
	dedupfs_lower_path(dentry, &lower);
	err = mnt_want_write(lower.mnt);
	if (err)
		return err;
	/* Who asked whether it may only be appended to saw what was, perhaps. */
	if ((ia.ia_valid & ATTR_SIZE) && IS_APPEND(d_inode(lower.dentry)))
		err = -EPERM;
	else if (ia.ia_valid & ATTR_SIZE)
		err = change_size(inode, lower.dentry, &ia);
	else
		err = change_attr(inode, lower.dentry, &ia);
	mnt_drop_write(lower.mnt);
	return err;
}

/* Flags (chattr) and project of the lower file. */
int dedupfs_fileattr_get(struct dentry *dentry, struct fileattr *fa)
{
	return vfs_fileattr_get(dedupfs_lower_dentry(dentry), fa);
}

/**
 * dedupfs_fileattr_set - change flags and project of the lower file
 * @idmap: of the upper mount
 * @dentry: upper dentry
 * @fa: what to change
 *
 * Context: holds the upper i_rwsem.
 * Return: 0, or a negative error of the lower filesystem.
 */
int dedupfs_fileattr_set(struct mnt_idmap *idmap, struct dentry *dentry, struct fileattr *fa)
{
	struct inode *inode = d_inode(dentry);
	struct path lower;
	int err;

	dedupfs_lower_path(dentry, &lower);
	err = mnt_want_write(lower.mnt);
	if (err)
		return err;
	dedupfs_touch(inode);
	err = vfs_fileattr_set(&nop_mnt_idmap, lower.dentry, fa);
	mnt_drop_write(lower.mnt);
	dedupfs_copy_attr_locked(inode);
	return err;
}

/**
 * dedupfs_update_time - the VFS wants the access time moved
 * @inode: upper inode
 * @flags: S_ATIME, S_MTIME and so on
 *
 * noatime below has the last word.  The other times of a regular file move
 * below as data is written there; those of a fifo are moved here.
 *
 * Return: 0 or -errno.
 */
int dedupfs_update_time(struct inode *inode, int flags)
{
	struct inode *lower = dedupfs_lower(inode);
	struct path path;
	int err = 0;

	if (!(flags & S_ATIME)) {
		/* Who writes to a fifo does not wait for a frozen filesystem. */
		if (S_ISREG(inode->i_mode) || !sb_start_write_trylock(lower->i_sb))
			return 0;
		if (!__mnt_is_readonly(DEDUPFS_SB(inode->i_sb)->lower.mnt))
			err = dedupfs_lower_update_time(lower, flags & (S_MTIME | S_CTIME));
		sb_end_write(lower->i_sb);
		dedupfs_copy_attr(inode);
		return err;
	}
	path.mnt = DEDUPFS_SB(inode->i_sb)->lower.mnt;
	path.dentry = d_find_any_alias(lower);
	if (!path.dentry)
		return 0;
	dedupfs_touch(inode);
	touch_atime(&path);
	dput(path.dentry);
	inode_set_atime_to_ts(inode, inode_get_atime(lower));
	return 0;
}

static const char *dedupfs_get_link(struct dentry *dentry, struct inode *inode,
				    struct delayed_call *done)
{
	struct inode *lower = dedupfs_lower(inode);
	const char *link;

	if (dentry)
		return vfs_get_link(dedupfs_lower_dentry(dentry), done);
	link = READ_ONCE(lower->i_link);
	if (link)
		return link;
	return lower->i_op->get_link(NULL, lower, done);
}

static int file_fiemap(struct inode *inode, struct fiemap_extent_info *fieinfo, u64 start, u64 len)
{
	struct inode *lower = dedupfs_lower(inode);

	if (!lower->i_op->fiemap)
		return -EOPNOTSUPP;
	return lower->i_op->fiemap(lower, fieinfo, start, len);
}

const struct inode_operations dedupfs_file_iops = {
	.permission	= dedupfs_permission,
	.getattr	= dedupfs_getattr,
	.setattr	= dedupfs_setattr,
	.listxattr	= dedupfs_listxattr,
	DEDUPFS_ACL_OPS(dedupfs_get_inode_acl, dedupfs_set_acl),
	.fileattr_get	= dedupfs_fileattr_get,
	.fileattr_set	= dedupfs_fileattr_set,
	.update_time	= DEDUPFS_UPDATE_TIME,
	.fiemap		= file_fiemap,
};

const struct inode_operations dedupfs_symlink_iops = {
	.get_link	= dedupfs_get_link,
	.permission	= dedupfs_permission,
	.getattr	= dedupfs_getattr,
	.setattr	= dedupfs_setattr,
	.listxattr	= dedupfs_listxattr,
	.update_time	= DEDUPFS_UPDATE_TIME,
};

const struct inode_operations dedupfs_special_iops = {
	.permission	= dedupfs_permission,
	.getattr	= dedupfs_getattr,
	.setattr	= dedupfs_setattr,
	/* XFS has an answer of its own; btrfs leaves it to the device. */
	.fileattr_get	= dedupfs_fileattr_get,
	.fileattr_set	= dedupfs_fileattr_set,
	.listxattr	= dedupfs_listxattr,
	DEDUPFS_ACL_OPS(dedupfs_get_inode_acl, dedupfs_set_acl),
	.update_time	= DEDUPFS_UPDATE_TIME,
};
