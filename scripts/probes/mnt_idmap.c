// SPDX-License-Identifier: GPL-2.0-only
/* 6.3: operations take a mnt_idmap, not a user_namespace. */
#include <linux/fs.h>

struct mnt_idmap *probe(struct file *file)
{
	return file ? file_mnt_idmap(file) : &nop_mnt_idmap;
}
