// SPDX-License-Identifier: GPL-2.0-only
/* 6.6, and late 6.1: the change time is behind functions. */
#include <linux/fs.h>

struct timespec64 probe(struct inode *inode)
{
	return inode_set_ctime_to_ts(inode, inode_get_ctime(inode));
}
