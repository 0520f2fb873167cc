// SPDX-License-Identifier: GPL-2.0-only
/* 6.3: leases and delegations have a header of their own. */
#include <linux/filelock.h>

int probe(struct inode *inode)
{
	return break_deleg(inode, O_WRONLY);
}
