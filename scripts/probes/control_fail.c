// SPDX-License-Identifier: GPL-2.0-only
/* Control: must not compile anywhere. */
#include <linux/fs.h>

struct inode *probe(struct file *file)
{
	return dedupfs_no_kernel_has_this(file);
}
