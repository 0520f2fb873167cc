// SPDX-License-Identifier: GPL-2.0-only
/* 6.11: kiocb_set_rw_flags() is told read or write. */
#include <linux/fs.h>

int probe(struct kiocb *iocb)
{
	return kiocb_set_rw_flags(iocb, 0, READ);
}
