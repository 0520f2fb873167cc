// SPDX-License-Identifier: GPL-2.0-only
/*
 * 6.8: splice_copy_file_range() replaces generic_copy_file_range().
 * exported: splice_file_range
 */
#include <linux/splice.h>

long probe(struct file *in, struct file *out)
{
	return splice_copy_file_range(in, 0, out, 0, 1);
}
