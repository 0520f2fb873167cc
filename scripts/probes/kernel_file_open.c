// SPDX-License-Identifier: GPL-2.0-only
/*
 * 6.8: kernel_file_open(): no path of a user.
 * exported: kernel_file_open
 */
#include <linux/fs.h>

struct file *probe(const struct path *path, const struct cred *cred)
{
	return kernel_file_open(path, O_RDONLY, cred);
}
