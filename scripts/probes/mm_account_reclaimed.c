// SPDX-License-Identifier: GPL-2.0-only
/* 6.5: mm_account_reclaimed_pages(). */
#include <linux/sched.h>
#include <linux/swap.h>

void probe(void)
{
	mm_account_reclaimed_pages(1);
}
