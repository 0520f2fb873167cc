// SPDX-License-Identifier: GPL-2.0-only
/*
 * Extended attributes and ACLs: passed to the lower file, with the caller's
 * credentials.
 *
 * The VFS has checked the caller and translated the value (ids in ACLs and in
 * security.capability) at the upper file.  So the lower attribute is read
 * raw, and written by the one lower entry that checks permission but does
 * not translate again.
 *
 * Lock order: upper i_rwsem -> lower sb_writers -> lower i_rwsem.
 */
#include <linux/fs.h>
#include <linux/mount.h>
#include <linux/posix_acl.h>
#include <linux/xattr.h>

#include "dedupfs.h"

static int dedupfs_xattr_get(const struct xattr_handler *handler, struct dentry *dentry,
			     struct inode *inode, const char *name, void *value, size_t size)
{
	return __vfs_getxattr(dedupfs_lower_dentry(dentry), dedupfs_lower(inode),
			      xattr_full_name(handler, name), value, size);
}

static int remove_locked(struct dentry *lower, const char *name, struct inode **delegated)
{
	return __vfs_removexattr_locked(&nop_mnt_idmap, lower, name, delegated);
}

/* Set or, without a value, remove; wait for an NFS delegation below. */
static int change_lower(struct dentry *lower, const char *name, const void *value,
			size_t size, int flags)
{
	struct inode *inode = d_inode(lower);
	struct inode *delegated = NULL;
	int err;

	do {
		inode_lock(inode);
		if (value)
			err = __vfs_setxattr_locked(&nop_mnt_idmap, lower, name, value,
						    size, flags, &delegated);
		else
			err = remove_locked(lower, name, &delegated);
		inode_unlock(inode);
		if (!delegated)
			return err;
		err = break_deleg_wait(&delegated);
	} while (!err);
	return err;
}

static int dedupfs_xattr_set(const struct xattr_handler *handler, struct mnt_idmap *idmap,
			     struct dentry *dentry, struct inode *inode, const char *name,
			     const void *value, size_t size, int flags)
{
	struct path lower;
	int err;

	name = xattr_full_name(handler, name);
	/* The VFS looks at an owner who may have been changed below since. */
	if (value && !strcmp(name, XATTR_NAME_CAPS) &&
	    !capable_wrt_inode_uidgid(&nop_mnt_idmap, dedupfs_lower(inode), CAP_SETFCAP))
		return -EPERM;
	dedupfs_lower_path(dentry, &lower);
	err = mnt_want_write(lower.mnt);
	if (err)
		return err;
	dedupfs_touch(inode);
	err = change_lower(lower.dentry, name, value, size, flags);
	mnt_drop_write(lower.mnt);
	dedupfs_copy_attr_locked(inode);
	return err;
}

/* The empty prefix matches every name, and leaves it whole. */
static const struct xattr_handler dedupfs_xattr_handler = {
	.prefix	= "",
	.get	= dedupfs_xattr_get,
	.set	= dedupfs_xattr_set,
};

/* nfsd looks for one of this name before it serves such attributes. */
static const struct xattr_handler dedupfs_user_xattr_handler = {
	.prefix	= XATTR_USER_PREFIX,
	.get	= dedupfs_xattr_get,
	.set	= dedupfs_xattr_set,
};

const struct xattr_handler * const dedupfs_xattr_handlers[] = {
	&dedupfs_user_xattr_handler,
	&dedupfs_xattr_handler,
	NULL
};

/* Names of the lower file's attributes. */
ssize_t dedupfs_listxattr(struct dentry *dentry, char *list, size_t size)
{
	return vfs_listxattr(dedupfs_lower_dentry(dentry), list, size);
}

/**
 * dedupfs_get_inode_acl - the lower file's ACL, cached there only
 * @inode: upper inode
 * @type: ACL_TYPE_ACCESS or ACL_TYPE_DEFAULT
 * @rcu: called under RCU: answer from the cache, or ERR_PTR(-ECHILD)
 *
 * Return: the ACL (referenced unless @rcu), NULL, or ERR_PTR.
 */
struct posix_acl *dedupfs_get_inode_acl(struct inode *inode, int type, bool rcu)
{
	struct inode *lower = dedupfs_lower(inode);

	if (!IS_POSIXACL(lower))
		return NULL;
	if (rcu)
		return get_cached_acl_rcu(lower, type);
	return get_inode_acl(lower, type);
}

static const char *acl_name(int type)
{
	return type == ACL_TYPE_ACCESS ? XATTR_NAME_POSIX_ACL_ACCESS :
					 XATTR_NAME_POSIX_ACL_DEFAULT;
}

/**
 * dedupfs_set_acl - set or remove the lower file's ACL
 * @idmap: of the upper mount
 * @dentry: upper dentry
 * @acl: new ACL, or NULL to remove it
 * @type: ACL_TYPE_ACCESS or ACL_TYPE_DEFAULT
 *
 * Context: holds the upper i_rwsem.
 * Return: 0, or a negative error of the lower filesystem.
 */
int dedupfs_set_acl(struct mnt_idmap *idmap, struct dentry *dentry,
		    struct posix_acl *acl, int type)
{
	struct inode *inode = d_inode(dentry);
	struct path lower;
	int err;

	dedupfs_lower_path(dentry, &lower);
	err = mnt_want_write(lower.mnt);
	if (err)
		return err;
	dedupfs_touch(inode);
	if (acl)
		err = vfs_set_acl(&nop_mnt_idmap, lower.dentry, acl_name(type), acl);
	else
		err = vfs_remove_acl(&nop_mnt_idmap, lower.dentry, acl_name(type));
	mnt_drop_write(lower.mnt);
	dedupfs_copy_attr_locked(inode);
	return err;
}
