// SPDX-License-Identifier: GPL-2.0-only
/*
 * 6.7: shrinkers are allocated by the kernel.
 * exported: shrinker_alloc shrinker_register shrinker_free
 */
#include <linux/shrinker.h>

struct shrinker *probe(void *data)
{
	struct shrinker *shrinker = shrinker_alloc(SHRINKER_NUMA_AWARE, "probe");

	shrinker->private_data = data;
	return shrinker;
}
