// SPDX-License-Identifier: GPL-2.0-only
/* 6.7: the array of xattr handlers is constant. */
#include <linux/fs.h>
#include <linux/xattr.h>

static const struct xattr_handler * const handlers[] = { NULL };

const struct xattr_handler * const **probe(struct super_block *sb)
{
	sb->s_xattr = handlers;
	return &sb->s_xattr;
}
