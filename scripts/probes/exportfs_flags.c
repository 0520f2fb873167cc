// SPDX-License-Identifier: GPL-2.0-only
/* 6.6: exportfs_encode_inode_fh() takes flags. */
#include <linux/exportfs.h>

int probe(struct inode *inode, struct fid *fid, int *len)
{
	return exportfs_encode_inode_fh(inode, fid, len, NULL, EXPORT_FH_FID);
}
