// SPDX-License-Identifier: GPL-2.0-only
/* 6.4: faults may hold the VMA lock only. */
#include <linux/mm.h>

void probe(struct vm_fault *vmf)
{
	if (vmf->flags & FAULT_FLAG_VMA_LOCK)
		release_fault_lock(vmf);
}
