// SPDX-License-Identifier: GPL-2.0-only
/*
 * The namespace: every name is looked up and changed in the lower directory,
 * with the caller's credentials, so that errors and rules are the lower ones.
 *
 * An upper dentry holds its lower dentry, negative ones too.  Whether the two
 * still belong together is told by the sequence count of the lower dentry,
 * which moves when that is renamed, unhashed or gets an inode: d_time keeps
 * the count at which the pair was last compared in full.
 *
 * Lock order: upper i_rwsem(s) -> lower sb_writers -> lower i_rwsem(s);
 * upper d_lock -> lower d_lock.
 */
#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <linux/namei.h>

#include "dedupfs.h"

/*
 * d_time of an upper dentry: the sequence count of its lower dentry (32 bits)
 * when they were compared or made; or UNPROVEN; or BUSY and its own sequence count:
 * an operation of ours has changed the lower dentry, and the VFS is about to
 * do the same to this one, which moves its own count; or NAMELESS: it stands for
 * no name, or for none any more, and only who holds it uses it.
 */
#define D_UNPROVEN	(~0UL)
#define D_BUSY		BIT(32)
#define D_NAMELESS	BIT(33)

static void mark_busy(struct dentry *dentry)
{
	WRITE_ONCE(dentry->d_time, D_BUSY | raw_read_seqcount(&dentry->d_seq));
}

static void mark_unproven(struct dentry *dentry)
{
	WRITE_ONCE(dentry->d_time, D_UNPROVEN);
}

/*
 * Path walks do not come to it, but an overlayfs asks for the dentry of its
 * upper layer that it met an inode by, even if the inode has other names.
 */
static void mark_nameless(struct dentry *dentry)
{
	WRITE_ONCE(dentry->d_time, D_NAMELESS);
}

/*
 * The count at which a dentry that was found or made in a lower directory, still
 * locked, is what it was looked up as: there names and parents stand still, and
 * what else can happen to it moves the count.
 */
static unsigned long proven_count(struct dentry *lower)
{
	unsigned long count = raw_read_seqcount(&lower->d_seq);

	/* Odd: it is being moved, as a directory can be by who finds it elsewhere. */
	return (count & 1) || d_unhashed(lower) ? D_UNPROVEN : count;
}

static bool is_busy(struct dentry *dentry, unsigned long time)
{
	return time == (D_BUSY | raw_read_seqcount(&dentry->d_seq));
}

/**
 * dedupfs_set_lower - put an upper dentry onto a lower one
 * @dentry: upper dentry
 * @lower: lower dentry; its reference is consumed
 *
 * Context: may sleep.
 */
void dedupfs_set_lower(struct dentry *dentry, struct dentry *lower)
{
	struct dentry *old = xchg(&dentry->d_fsdata, lower);

	if (old != lower)
		mark_unproven(dentry);
	dput(old);
}

/**
 * dedupfs_set_first_lower - put an upper dentry that has no lower one onto one
 * @dentry: upper dentry
 * @lower: lower dentry; its reference is consumed
 *
 * What a dentry of a file has already stays, as others may be using it.
 *
 * Return: false if it had one; then the reference is still the caller's.
 */
bool dedupfs_set_first_lower(struct dentry *dentry, struct dentry *lower)
{
	if (dedupfs_lower_dentry(dentry))
		return false;
	/* Nobody compares while there is none; who loses costs one comparison. */
	mark_unproven(dentry);
	return !cmpxchg(&dentry->d_fsdata, NULL, lower);
}

static bool same_name(const struct dentry *a, const struct dentry *b)
{
	return a->d_name.len == b->d_name.len &&
	       !memcmp(a->d_name.name, b->d_name.name, a->d_name.len);
}

static bool belong_together(const struct dentry *dentry, const struct dentry *lower)
{
	struct inode *inode = d_inode(dentry);

	return !d_unhashed(lower) &&
	       lower->d_parent == dedupfs_lower_dentry(dentry->d_parent) &&
	       d_inode(lower) == (inode ? dedupfs_lower(inode) : NULL) &&
	       same_name(dentry, lower);
}

/* Compare in full, and remember the lower sequence count if it is right. */
static bool compare(struct dentry *dentry, struct dentry *lower, unsigned long seen)
{
	bool right;

	spin_lock(&dentry->d_lock);
	spin_lock_nested(&lower->d_lock, DENTRY_D_LOCK_NESTED);
	right = belong_together(dentry, lower);
	if (right)
		cmpxchg(&dentry->d_time, seen,
			(unsigned long)raw_read_seqcount(&lower->d_seq));
	else
		/* Or one of ours is at it, and was not yet when we looked. */
		right = is_busy(dentry, READ_ONCE(dentry->d_time));
	spin_unlock(&lower->d_lock);
	spin_unlock(&dentry->d_lock);
	return right;
}

/* Under RCU: a negative dentry can be put onto another lower one meanwhile. */
static int is_valid(struct dentry *dentry, unsigned int flags)
{
	struct dentry *lower = dedupfs_lower_dentry(dentry);
	unsigned long seen = READ_ONCE(dentry->d_time);

	/* Just made from a file handle: look it up. */
	if (unlikely(!lower))
		return flags & LOOKUP_RCU ? -ECHILD : 0;
	if (likely(seen == raw_read_seqcount(&lower->d_seq)))
		return 1;
	/* Made from a file handle: it claims no name, either. */
	if (seen == D_NAMELESS || IS_ROOT(dentry))
		return 1;
	if (flags & LOOKUP_RCU)
		return -ECHILD;
	return is_busy(dentry, seen) || compare(dentry, lower, seen);
}

/*
 * The VFS asks the upper inode who owns it and what it forbids, in places
 * before it asks us: what was changed below must have arrived there.
 * (The lower filesystems, XFS and btrfs, have no ->d_revalidate.)
 */
static int dedupfs_d_revalidate(struct dentry *dentry, unsigned int flags)
{
	struct inode *inode;
	bool old;
	int valid;

	rcu_read_lock();
	valid = is_valid(dentry, flags);
	inode = d_inode_rcu(dentry);
	old = valid == 1 && inode && dedupfs_attr_differs(inode);
	rcu_read_unlock();
	if (likely(!old))
		return valid;
	if (flags & LOOKUP_RCU)
		return -ECHILD;
	dedupfs_copy_attr_patiently(inode);
	return valid;
}

/*
 * Do not keep an unused dentry of what is gone below, or would not be kept
 * there: btrfs says so of all that is in a deleted subvolume.
 */
static int dedupfs_d_delete(const struct dentry *dentry)
{
	struct dentry *lower = dedupfs_lower_dentry(dentry);
	int gone;

	if (!lower || d_unhashed(lower))
		return !!lower;
	if (!(lower->d_flags & DCACHE_OP_DELETE))
		return 0;
	/* (6.1 can hold the upper one as nested itself.) */
	spin_lock_nested(&lower->d_lock, DENTRY_D_LOCK_NESTED + 1);
	gone = lower->d_op->d_delete(lower);
	spin_unlock(&lower->d_lock);
	return gone;
}

static void dedupfs_d_release(struct dentry *dentry)
{
	dput(dedupfs_lower_dentry(dentry));
}

const struct dentry_operations dedupfs_dops = {
	.d_revalidate	= dedupfs_d_revalidate,
	.d_delete	= dedupfs_d_delete,
	.d_release	= dedupfs_d_release,
};

/*
 * As lookup_one_len_unlocked(), for a name that the VFS has looked at, in a
 * directory of which it has asked us already whether the caller may search it:
 * dedupfs_permission() asks below.  @count becomes d_time of the upper dentry.
 */
static struct dentry *find_lower(const struct qstr *upper_name, struct dentry *dir,
				 unsigned long *count)
{
	struct qstr name = QSTR_INIT(upper_name->name, upper_name->len);
	DECLARE_WAIT_QUEUE_HEAD_ONSTACK(wq);
	struct inode *inode = d_inode(dir);
	struct dentry *lower, *other;

	name.hash = full_name_hash(dir, name.name, name.len);
	*count = D_UNPROVEN;
	lower = d_lookup(dir, &name);
	if (lower)
		return lower;
	inode_lock_shared(inode);
	if (IS_DEADDIR(inode))
		lower = ERR_PTR(-ENOENT);
	else
		lower = d_alloc_parallel(dir, &name, &wq);
	if (!IS_ERR(lower) && d_in_lookup(lower)) {
		other = inode->i_op->lookup(inode, lower, 0);
		d_lookup_done(lower);
		if (other) {
			dput(lower);
			lower = other;
		}
	}
	if (!IS_ERR(lower))
		*count = proven_count(lower);
	inode_unlock_shared(inode);
	return lower;
}

static struct dentry *dedupfs_lookup(struct inode *dir, struct dentry *dentry,
				     unsigned int flags)
{
	struct inode *inode = NULL, *lower_inode;
	struct dentry *lower, *alias;
	unsigned long count;

	lower = find_lower(&dentry->d_name, dedupfs_lower_dentry(dentry->d_parent), &count);
	if (IS_ERR(lower))
		return lower;
	/* Once: it can become positive any time. */
	lower_inode = READ_ONCE(lower->d_inode);
	if (lower_inode) {
		inode = dedupfs_iget(dir->i_sb, lower_inode);
		if (IS_ERR(inode)) {
			dput(lower);
			return ERR_CAST(inode);
		}
	}
	dedupfs_set_lower(dentry, lower);
	WRITE_ONCE(dentry->d_time, count);
	alias = d_splice_alias(inode, dentry);
	/* A directory known by another name was moved here.  (@dentry is still ours.) */
	if (!IS_ERR_OR_NULL(alias))
		dedupfs_set_lower(alias, dget(lower));
	return alias;
}

/*
 * The lower dentry of a name, which may have changed below since the upper one
 * was made.  The lower directory is locked: in it names and parents stand
 * still, so mostly it is the dentry that we have.  (That of a directory can be
 * another any time: see dedupfs_lookup().)
 */
static struct dentry *find_name(struct dentry *dentry, struct dentry *lower_dir)
{
	struct dentry *lower = d_is_dir(dentry) ? NULL : dedupfs_lower_dentry(dentry);

	if (lower && lower->d_parent == lower_dir && !d_unhashed(lower) &&
	    same_name(dentry, lower))
		return dget(lower);
	return lookup_one_len(dentry->d_name.name, lower_dir, dentry->d_name.len);
}

/* Lock the lower directory and find the name in it.  Undone by unlock_name(). */
static struct dentry *lock_name(struct dentry *dentry)
{
	struct dentry *lower_dir = dedupfs_lower_dentry(dentry->d_parent);
	struct vfsmount *mnt = DEDUPFS_SB(dentry->d_sb)->lower.mnt;
	struct dentry *lower;
	int err;

	err = mnt_want_write(mnt);
	if (err)
		return ERR_PTR(err);
	inode_lock_nested(d_inode(lower_dir), I_MUTEX_PARENT);
	lower = find_name(dentry, lower_dir);
	if (IS_ERR(lower)) {
		inode_unlock(d_inode(lower_dir));
		mnt_drop_write(mnt);
	}
	return lower;
}

static void unlock_name(struct dentry *dentry, struct dentry *lower)
{
	inode_unlock(d_inode(dedupfs_lower_dentry(dentry->d_parent)));
	mnt_drop_write(DEDUPFS_SB(dentry->d_sb)->lower.mnt);
	dput(lower);
}

/* For an operation that makes the name. */
static struct dentry *lock_new_name(struct dentry *dentry)
{
	struct dentry *lower = lock_name(dentry);

	if (IS_ERR(lower))
		return lower;
	if (d_is_positive(lower)) {
		unlock_name(dentry, lower);
		return ERR_PTR(-EEXIST);
	}
	if (lower != dedupfs_lower_dentry(dentry))
		dedupfs_set_lower(dentry, dget(lower));
	mark_busy(dentry);
	return lower;
}

/*
 * Is the lower dentry still what the upper one stands for?  Others use that of
 * a file without a lock: it is never replaced, the name is looked up again.
 */
static int check_victim(struct dentry *dentry, struct dentry *lower)
{
	if (d_is_negative(lower))
		return -ENOENT;
	if (!d_is_dir(dentry) && lower != dedupfs_lower_dentry(dentry))
		return -ESTALE;
	return d_inode(lower) == dedupfs_lower(d_inode(dentry)) ? 0 : -ESTALE;
}

/* For an operation that removes the name. */
static struct dentry *lock_old_name(struct dentry *dentry)
{
	struct dentry *lower = lock_name(dentry);
	int err;

	if (IS_ERR(lower))
		return lower;
	err = check_victim(dentry, lower);
	if (err) {
		unlock_name(dentry, lower);
		return ERR_PTR(err);
	}
	return lower;
}

/* The lower operation ended with @err: finish or give up the new name. */
static int finish_new_name(struct inode *dir, struct dentry *dentry,
			   struct dentry *lower, int err)
{
	struct inode *inode;

	if (!err && WARN_ON_ONCE(d_really_is_negative(lower)))
		err = -EIO;
	if (!err) {
		inode = dedupfs_iget(dir->i_sb, d_inode(lower));
		if (IS_ERR(inode))
			err = PTR_ERR(inode);
		else
			d_instantiate(dentry, inode);
	}
	WRITE_ONCE(dentry->d_time, err ? D_UNPROVEN : proven_count(lower));
	unlock_name(dentry, lower);
	dedupfs_copy_attr(dir);
	return err;
}

static int dedupfs_create(struct mnt_idmap *idmap, struct inode *dir,
			  struct dentry *dentry, umode_t mode, bool excl)
{
	struct dentry *lower = lock_new_name(dentry);
	int err;

	/* Made below since it was looked up: it is looked up again, and opened. */
	if (lower == ERR_PTR(-EEXIST) && !excl)
		return -ESTALE;
	if (IS_ERR(lower))
		return PTR_ERR(lower);
	err = vfs_create(&nop_mnt_idmap, dedupfs_lower(dir), lower, mode, excl);
	return finish_new_name(dir, dentry, lower, err);
}

static int dedupfs_mkdir(struct mnt_idmap *idmap, struct inode *dir,
			 struct dentry *dentry, umode_t mode)
{
	struct dentry *lower = lock_new_name(dentry);
	int err;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	err = vfs_mkdir(&nop_mnt_idmap, dedupfs_lower(dir), lower, mode);
	return finish_new_name(dir, dentry, lower, err);
}

static int dedupfs_mknod(struct mnt_idmap *idmap, struct inode *dir,
			 struct dentry *dentry, umode_t mode, dev_t rdev)
{
	struct dentry *lower = lock_new_name(dentry);
	int err;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	err = vfs_mknod(&nop_mnt_idmap, dedupfs_lower(dir), lower, mode, rdev);
	return finish_new_name(dir, dentry, lower, err);
}

static int dedupfs_symlink(struct mnt_idmap *idmap, struct inode *dir,
			   struct dentry *dentry, const char *target)
{
	struct dentry *lower = lock_new_name(dentry);
	int err;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	err = vfs_symlink(&nop_mnt_idmap, dedupfs_lower(dir), lower, target);
	return finish_new_name(dir, dentry, lower, err);
}

static int dedupfs_link(struct dentry *old, struct inode *dir, struct dentry *new)
{
	struct inode *inode = d_inode(old);
	struct inode *delegated = NULL;
	struct dentry *lower;
	int err;

	/* Whoever allowed it (protected_hardlinks) went by what was: ask again. */
	if (dedupfs_attr_differs(inode)) {
		dedupfs_copy_attr_locked(inode);
		return -ESTALE;
	}
	do {
		lower = lock_new_name(new);
		if (IS_ERR(lower))
			return PTR_ERR(lower);
		dedupfs_touch(inode);
		err = vfs_link(dedupfs_lower_dentry(old), &nop_mnt_idmap,
			       dedupfs_lower(dir), lower, &delegated);
		err = finish_new_name(dir, new, lower, err);
		if (!delegated)
			return err;
		err = break_deleg_wait(&delegated);
	} while (!err);
	return err;
}

/*
 * The upper dentry would keep the removed lower dentry, and with it the lower
 * inode and its disk space: do not cache it as a negative one.
 */
static void finish_removal(struct inode *dir, struct dentry *dentry)
{
	d_drop(dentry);
	mark_nameless(dentry);
	dedupfs_copy_attr(d_inode(dentry));
	dedupfs_copy_attr(dir);
}

static int dedupfs_unlink(struct inode *dir, struct dentry *dentry)
{
	struct inode *inode = d_inode(dentry);
	struct inode *delegated = NULL;
	struct dentry *lower;
	int err;

	do {
		lower = lock_old_name(dentry);
		if (IS_ERR(lower))
			return PTR_ERR(lower);
		dedupfs_touch(inode);
		err = vfs_unlink(&nop_mnt_idmap, dedupfs_lower(dir), lower, &delegated);
		unlock_name(dentry, lower);
		if (!delegated)
			break;
		err = break_deleg_wait(&delegated);
	} while (!err);
	if (!err)
		finish_removal(dir, dentry);
	return err;
}

static int dedupfs_rmdir(struct inode *dir, struct dentry *dentry)
{
	struct dentry *lower = lock_old_name(dentry);
	int err;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	err = vfs_rmdir(&nop_mnt_idmap, dedupfs_lower(dir), lower);
	unlock_name(dentry, lower);
	if (!err)
		finish_removal(dir, dentry);
	return err;
}

/* The two names of a rename, and what is found under them below. */
struct lower_rename {
	struct dentry *old, *new;	/* upper */
	struct dentry *lower_old, *lower_new;
	struct dentry *trap;
	unsigned int flags;
};

static int check_rename(const struct lower_rename *r)
{
	int err = check_victim(r->old, r->lower_old);

	if (err)
		return err;
	/* (What is to be replaced and is gone below is no error of the caller's.) */
	if (d_is_positive(r->new))
		err = d_is_positive(r->lower_new) ? check_victim(r->new, r->lower_new) : -ESTALE;
	else if (d_is_positive(r->lower_new))
		err = -ESTALE;
	if (err)
		return err;
	if (r->lower_old == r->trap)
		return -EINVAL;
	if (r->lower_new == r->trap)
		return r->flags & RENAME_EXCHANGE ? -EINVAL : -ENOTEMPTY;
	return 0;
}

/* Lock both lower directories and look both names up. */
static int lock_both_names(struct lower_rename *r)
{
	struct dentry *old_dir = dedupfs_lower_dentry(r->old->d_parent);
	struct dentry *new_dir = dedupfs_lower_dentry(r->new->d_parent);
	int err;

	r->trap = lock_rename(new_dir, old_dir);
	if (IS_ERR(r->trap))
		return PTR_ERR(r->trap);
	r->lower_old = lookup_one_len(r->old->d_name.name, old_dir, r->old->d_name.len);
	if (IS_ERR(r->lower_old)) {
		err = PTR_ERR(r->lower_old);
		goto out_unlock;
	}
	r->lower_new = lookup_one_len(r->new->d_name.name, new_dir, r->new->d_name.len);
	if (IS_ERR(r->lower_new)) {
		err = PTR_ERR(r->lower_new);
		goto out_old;
	}
	err = check_rename(r);
	if (!err)
		return 0;
	dput(r->lower_new);
out_old:
	dput(r->lower_old);
out_unlock:
	unlock_rename(new_dir, old_dir);
	return err;
}

static void unlock_both_names(struct lower_rename *r)
{
	dput(r->lower_new);
	dput(r->lower_old);
	unlock_rename(dedupfs_lower_dentry(r->new->d_parent),
		      dedupfs_lower_dentry(r->old->d_parent));
}

static void touch_both(struct lower_rename *r)
{
	if (d_is_reg(r->old))
		dedupfs_touch(d_inode(r->old));
	if (d_is_reg(r->new))
		dedupfs_touch(d_inode(r->new));
}

static int rename_lower(struct lower_rename *r, struct inode **delegated)
{
	struct renamedata rd = {
		.old_mnt_idmap	= &nop_mnt_idmap,
		.old_dentry	= r->lower_old,
		.old_dir	= d_inode(r->lower_old->d_parent),
		.new_mnt_idmap	= &nop_mnt_idmap,
		.new_dentry	= r->lower_new,
		.new_dir	= d_inode(r->lower_new->d_parent),
		.delegated_inode = delegated,
		.flags		= r->flags,
	};
	int err;

	dedupfs_set_lower(r->old, dget(r->lower_old));
	dedupfs_set_lower(r->new, dget(r->lower_new));
	mark_busy(r->old);
	mark_busy(r->new);
	touch_both(r);
	err = vfs_rename(&rd);
	if (err) {
		mark_unproven(r->old);
		mark_unproven(r->new);
	}
	return err;
}

static void copy_renamed(struct inode *old_dir, struct inode *new_dir, struct lower_rename *r)
{
	dedupfs_copy_attr(old_dir);
	if (new_dir != old_dir)
		dedupfs_copy_attr(new_dir);
	dedupfs_copy_attr(d_inode(r->old));
	if (d_is_positive(r->new))
		dedupfs_copy_attr(d_inode(r->new));
}

/* All flags go down: the lower filesystem knows which ones it has. */
static int dedupfs_rename(struct mnt_idmap *idmap, struct inode *old_dir, struct dentry *old,
			  struct inode *new_dir, struct dentry *new, unsigned int flags)
{
	struct lower_rename r = { .old = old, .new = new, .flags = flags };
	struct vfsmount *mnt = DEDUPFS_SB(old->d_sb)->lower.mnt;
	struct inode *delegated = NULL;
	int err;

	err = mnt_want_write(mnt);
	if (err)
		return err;
	do {
		err = lock_both_names(&r);
		if (err)
			break;
		err = rename_lower(&r, &delegated);
		unlock_both_names(&r);
		if (!delegated)
			break;
		err = break_deleg_wait(&delegated);
	} while (!err);
	mnt_drop_write(mnt);
	if (err)
		return err;
	/* (The VFS is about to unhash it.) */
	if (d_is_positive(new) && !(flags & RENAME_EXCHANGE))
		mark_nameless(new);
	copy_renamed(old_dir, new_dir, &r);
	return 0;
}

static struct file *lower_tmpfile(struct dentry *dir, umode_t mode, int flags)
{
	struct path lower_dir;
	struct file *file;
	int err;

	dedupfs_lower_path(dir, &lower_dir);
	err = mnt_want_write(lower_dir.mnt);
	if (err)
		return ERR_PTR(err);
	file = kernel_tmpfile_open(&nop_mnt_idmap, &lower_dir, mode, flags, current_cred());
	mnt_drop_write(lower_dir.mnt);
	return file;
}

/* O_EXCL says that the file may never get a name; the rest is our open's. */
static int dedupfs_tmpfile(struct mnt_idmap *idmap, struct inode *dir,
			   struct file *file, umode_t mode)
{
	struct dentry *dentry = file->f_path.dentry;
	struct inode *inode;
	struct file *lower;
	int err = 0;

	lower = lower_tmpfile(dentry->d_parent, mode,
			      O_RDWR | O_LARGEFILE | (file->f_flags & O_EXCL));
	if (IS_ERR(lower))
		return PTR_ERR(lower);
	inode = dedupfs_iget(dir->i_sb, file_inode(lower));
	if (IS_ERR(inode)) {
		err = PTR_ERR(inode);
		goto out;
	}
	dedupfs_set_lower(dentry, dget(lower->f_path.dentry));
	mark_nameless(dentry);
	d_mark_tmpfile(file, inode);
	d_instantiate(dentry, inode);
out:
	fput(lower);
	return finish_open_simple(file, err);
}

const struct inode_operations dedupfs_dir_iops = {
	.lookup		= dedupfs_lookup,
	.create		= dedupfs_create,
	.link		= dedupfs_link,
	.unlink		= dedupfs_unlink,
	.symlink	= dedupfs_symlink,
	.mkdir		= dedupfs_mkdir,
	.rmdir		= dedupfs_rmdir,
	.mknod		= dedupfs_mknod,
	.rename		= dedupfs_rename,
	.tmpfile	= dedupfs_tmpfile,
	.permission	= dedupfs_permission,
	.getattr	= dedupfs_getattr,
	.setattr	= dedupfs_setattr,
	.listxattr	= dedupfs_listxattr,
	DEDUPFS_ACL_OPS(dedupfs_get_inode_acl, dedupfs_set_acl),
	.fileattr_get	= dedupfs_fileattr_get,
	.fileattr_set	= dedupfs_fileattr_set,
	.update_time	= DEDUPFS_UPDATE_TIME,
};
