// SPDX-License-Identifier: GPL-2.0-only
/* Control: must compile everywhere. */
#include <linux/fs.h>

struct inode *probe(struct file *file)
{
	return file_inode(file);
}
