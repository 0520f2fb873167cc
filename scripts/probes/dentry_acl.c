// SPDX-License-Identifier: GPL-2.0-only
/*
 * 6.2: ACL operations take a dentry; vfs_get_acl().
 * exported: vfs_get_acl vfs_set_acl vfs_remove_acl
 */
#include <linux/fs.h>
#include <linux/posix_acl.h>

const struct inode_operations probe = {
	.get_inode_acl = NULL,
};

int probe_set(struct inode *inode, struct dentry *dentry, struct posix_acl *acl)
{
	return inode->i_op->set_acl(NULL, dentry, acl, ACL_TYPE_ACCESS);
}
