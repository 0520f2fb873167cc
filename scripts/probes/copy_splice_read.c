// SPDX-License-Identifier: GPL-2.0-only
/*
 * 6.5: copy_splice_read() and filemap_splice_read().
 * exported: copy_splice_read filemap_splice_read
 */
#include <linux/fs.h>
#include <linux/splice.h>

const struct file_operations probe = {
	.splice_read = copy_splice_read,
};

const struct file_operations probe2 = {
	.splice_read = filemap_splice_read,
};
