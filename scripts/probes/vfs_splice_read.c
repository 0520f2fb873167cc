// SPDX-License-Identifier: GPL-2.0-only
/*
 * 6.5: vfs_splice_read() is there for modules.
 * exported: vfs_splice_read
 */
#include <linux/fs.h>
#include <linux/splice.h>

ssize_t probe(struct file *in, loff_t *ppos, struct pipe_inode_info *pipe, size_t len)
{
	return vfs_splice_read(in, ppos, pipe, len, 0);
}
