// SPDX-License-Identifier: GPL-2.0-only
/* 6.6: update_time() takes no time. */
#include <linux/fs.h>

int probe(struct inode *inode)
{
	return inode_update_time(inode, S_MTIME) ?:
	       inode->i_op->update_time(inode, S_MTIME);
}
