// SPDX-License-Identifier: GPL-2.0-only
/*
 * 6.5: vfs_tmpfile_open() became kernel_tmpfile_open().
 * exported: kernel_tmpfile_open
 */
#include <linux/fs.h>

struct file *probe(const struct path *path, const struct cred *cred)
{
	return kernel_tmpfile_open(NULL, path, 0600, O_RDWR, cred);
}
