// SPDX-License-Identifier: GPL-2.0-only
/*
 * 6.12: d_mark_tmpfile() apart from d_tmpfile().
 * exported: d_mark_tmpfile
 */
#include <linux/fs.h>

void probe(struct file *file, struct inode *inode)
{
	d_mark_tmpfile(file, inode);
}
