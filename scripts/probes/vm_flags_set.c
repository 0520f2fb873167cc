// SPDX-License-Identifier: GPL-2.0-only
/* 6.3: vm_flags are changed by functions. */
#include <linux/mm.h>

void probe(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_MIXEDMAP);
	vm_flags_clear(vma, VM_MAYEXEC);
}
